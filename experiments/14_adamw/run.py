"""What should I tune when I train with AdamW, in shuffled epochs, and keep an EMA of the weights?

Logistic regression on noisy labels, features of mean square 1 in three groups of coordinates, several epochs. The usual: a
constant, linear or cosine learning rate at a tuned peak, weight decay 0.01, an EMA of decay 0.999. From the one with the linear
decay each of four knobs is freed alone, together with the rate: the shape of the schedule (knots), weight decay, the memory of
the EMA, the batch size. Then all but one are free, and all. Every plan sees as many samples, is designed on the predicted
test risk of its EMA, predicted again on finer steps, more samples and fresh random numbers, and some are trained: by optax's Adam
in shuffled epochs.

The features' eigenbasis is that of the coordinates, so that Adam sees the three scales. The limit takes beta1 = 0.9 for no memory
and beta2 = 0.999 for one of 1000 steps; what it ignores falls like 1 / dimension.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar

import dmftopt
from dmftopt import averages, noise, schedules, updates
from dmftopt.design import AbstractObjective, realized

from ..shared.results import Settings as Common
from ..shared.results import finish, markdown, mean_and_error, plus_minus

# What is tuned beside the scale of the learning rate: its field in a plan.
KNOBS = {"schedule": ".learning_rate", "weight decay": ".ridge", "EMA memory": ".average", "batch size": ".batch_size"}
UNTUNED, BASE, ALL = "nothing", "linear decay", "everything"
# Of these plans AdamW is run.
TRAINED = (UNTUNED, "constant", "cosine", BASE, f"{BASE} + schedule", "all but schedule", ALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """What each knob of AdamW with an EMA buys."""

    delta: float = 4.0
    """Training samples / dimension."""
    epochs: float = 3.0
    flip_probability: float = 0.1
    """Of labels."""
    dimension: int = 1600
    learning_rate: float = 1e-3
    """What is not tuned of the usual: PyTorch's."""
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    beta2: float = 0.999
    batch_size: float = 4.0
    knots: int = 5
    steps: int = 60
    """Of the optimizer."""
    grid_steps: int = 30
    """A multiple of the epochs, whose ends are among the times."""
    samples: int = 2048
    runs: int = 16
    fresh: int = 4
    """Predictions of each plan."""


def objective_of(s: Settings) -> dmftopt.Objective:
    spectrum = dmftopt.features.spectrum([3.0, 1.0, 0.3], [0.2, 0.4, 0.4])
    task = dmftopt.tasks.Logistic("flipped", s.flip_probability)
    problem = dmftopt.Problem(task, spectrum, s.delta, 1.0, 0.0, basis="aligned")
    grid, predict = dmftopt.TimeGrid.uniform(1.0, s.grid_steps), dmftopt.Solve(noise.Shuffled(), samples=s.samples)
    return dmftopt.Objective(problem, dmftopt.Budget(epochs=s.epochs), grid=grid, predict=predict)


def plan(s: Settings, rate: Any) -> dmftopt.Plan:
    """The usual at this learning rate. All of it could be tuned, whether it is or not: one compiled program serves all plans."""
    horizon = s.delta * s.epochs / s.batch_size
    memory = averages.Exponential(dmftopt.between(1 / ((1 - s.ema_decay) * s.dimension * horizon), 1.5 / s.grid_steps, 1.0))
    # Features of mean square 1 are scaled by 1 / sqrt(d) in the problem: AdamW's weight decay is the ridge.
    batch_size = schedules.constant(s.batch_size, bounds=(1.0, 64.0))
    update = updates.Adam.of(s.beta2, s.dimension)
    return dmftopt.Plan(dmftopt.Protocol(rate, batch_size, dmftopt.above(s.weight_decay), update=update), average=memory)


def tuned(s: Settings, objective: AbstractObjective, starts: list[dmftopt.Plan], *free: str) -> dmftopt.Plan:
    """The best plan from these starts with the learning rate's numbers and these knobs free."""
    fields = {".learning_rate", *(KNOBS[knob] for knob in free)}

    def labels(parameters):
        def label(path, _):
            return "tuned" if any(field in jax.tree_util.keystr(path) for field in fields) else "fixed"

        return jax.tree_util.tree_map_with_path(label, parameters)

    adam = optax.adam(optax.cosine_decay_schedule(0.3, s.steps, 0.05))
    optimizer = optax.partition({"tuned": adam, "fixed": optax.set_to_zero()}, labels)
    return dmftopt.optimize(objective, starts[0], starts=starts[1:], optimizer=optimizer, steps=s.steps, progress=False).protocol


class OneKey(AbstractObjective):
    """An objective on one set of random numbers. `optimize` scores what is found on others, and on finer steps, after each
    search: here that comes later, of all plans at once."""

    objective: dmftopt.Objective
    key: jax.Array

    def prepare(self, protocol):
        return self.objective.prepare(protocol)

    def evaluate(self, inputs, key):
        return self.objective.evaluate(inputs, self.key)

    def explain(self, protocol, key):
        self.objective.explain(protocol, self.key)

    @property
    def evaluator(self):
        return OneKey(self.objective.evaluator, self.key)


def designed(s: Settings, objective: dmftopt.Objective) -> dict[str, dmftopt.Plan]:
    """The usual, one knob at a time from the linear decay, all knobs but one, all."""
    search = OneKey(objective, jax.random.key(s.seed))

    def peak():
        return dmftopt.between(s.learning_rate * s.dimension, 0.0, 16.0)

    def opened(plan):
        """With a learning rate at knots in place of the decay: not 0 at the end, of which there is no logarithm."""
        rate = plan.protocol.learning_rate
        knots = schedules.piecewise_linear(1.0, s.knots, lambda u: rate(0.95 * u), log=True)
        return eqx.tree_at(lambda p: p.protocol.learning_rate, plan, knots)

    rates = {
        "constant": schedules.constant(peak()),
        "cosine": schedules.cosine(peak(), 1.0),
        BASE: schedules.linear_decay(peak(), 1.0),
    }
    plans = {UNTUNED: plan(s, schedules.constant(peak()))}
    plans |= {name: tuned(s, search, [plan(s, rate)]) for name, rate in rates.items()}
    base, free = plans[BASE], opened(plans[BASE])
    for knob in KNOBS:
        plans[f"{BASE} + {knob}"] = tuned(s, search, [free if knob == "schedule" else base], knob)
    for knob in KNOBS:
        others = [other for other in KNOBS if other != knob]
        plans[f"all but {knob}"] = tuned(s, search, [base if knob == "schedule" else free], *others)
    ends = [plans[f"all but {knob}"] for knob in KNOBS if knob != "schedule"]
    plans[ALL] = tuned(s, search, [opened(plans["all but schedule"]), *ends], *KNOBS)
    return plans


def floor(problem: dmftopt.Problem) -> float:
    """Test risk of the best linear model, which for Gaussian features lies along the teacher."""
    rho = problem.rho[0, 0]

    def risk(scale):
        return float(problem.task.test_risk(scale**2 * rho, scale * rho, rho))

    best: Any = minimize_scalar(risk, bounds=(0.0, 50.0), method="bounded")
    return float(best.fun)


def row_of(objective: dmftopt.Objective, plan: dmftopt.Plan, dimension: int) -> dict[str, Any]:
    """What a plan says, at AdamW's scale. JSON values."""
    run = objective.run(plan)
    delta = float(objective.problems[0].delta)
    recipe = run.recipe(dimension=dimension, delta=delta, mean_square_norm=dimension)
    seen = np.cumsum(recipe.batch_size) / recipe.samples
    assert recipe.average_gain is not None
    at = np.unique(np.linspace(0, len(recipe) - 1, 201).astype(int))
    return {
        "steps": len(recipe),
        "epoch": seen[at].tolist(),
        "learning_rate": recipe.learning_rate[at].tolist(),
        "batch_size": float(run.protocol.batch_size(jnp.asarray(0.0))),
        "weight_decay": float(recipe.weight_decay[0]),
        "ema_decay": 1 - float(recipe.average_gain[-1]),
    }


def judged(s: Settings, objective: dmftopt.Objective, plans: dict[str, dmftopt.Plan]) -> dict[str, Any]:
    """What plans are worth on fresh random numbers, finer steps and more samples, and in training. All on the same numbers, so
    that differences are known better than values. JSON values."""
    finer, lowest = objective.finer(samples=2, replicates=2), floor(objective.problems[0])
    fresh, batches = (jax.random.split(jax.random.key(s.seed + i), n) for i, n in ((1, s.fresh), (2, s.runs // 2)))
    runs = {name: objective.run(own) for name, own in plans.items()}
    recipes = {name: run.recipe(dimension=s.dimension, delta=s.delta) for name, run in runs.items()}
    longest = max(len(recipes[name]) for name in TRAINED)
    predicted, trained = {}, {}
    for name, own in plans.items():
        predicted[name] = np.array([float(finer.predict_run(own, key).test_risk[-1]) for key in fresh])
    for name in TRAINED:
        each = [realized(objective, runs[name], recipes[name], 2, key, length=longest) for key in batches]
        trained[name] = np.array(each)
    rows = {}
    for name, own in plans.items():
        rows[name] = row_of(objective, own, s.dimension)
        for prefix, values in (("", predicted), ("realized_", trained)):
            if name in values:
                rows[name][f"{prefix}excess"] = mean_and_error(values[name] - lowest)
                rows[name][f"{prefix}saved"] = mean_and_error(values[BASE] - values[name])
    return {"floor": lowest, "plans": rows}


def tables(found: dict[str, Any]) -> dict[str, str]:
    lines = []
    for name, row in found["plans"].items():
        rates = row["learning_rate"]
        shown = [" to ".join(dict.fromkeys(f"{1e3 * rate:.2g}" for rate in (rates[0], max(rates), rates[-1])))]
        said = [*shown, f"{row['batch_size']:.2g}", f"{row['weight_decay']:.2g}", f"{row['ema_decay']:.5f}", row["steps"]]
        numbers = [plus_minus(row[key]) if key in row else "" for key in ("excess", "realized_excess")]
        saved = [plus_minus(row[key], 5) if key in row and name != BASE else "" for key in ("saved", "realized_saved")]
        lines.append([name, *numbers, *saved, *said])
    head = ["tuned", "excess risk, predicted", "in AdamW", f"less than {BASE}, predicted", "in AdamW"]
    head += ["learning rate / 1e-3", "batch size", "weight decay", "EMA decay", "steps"]
    return {"knobs": markdown(head, lines)}


def draw(found: dict[str, Any]) -> Figure:
    figure, (bars, gains, rates) = plt.subplots(1, 3, figsize=(16, 5), layout="constrained", width_ratios=(1.3, 1, 1.2))
    names, black = list(found["plans"]), {"fmt": "o", "ms": 4, "color": "0.1"}
    blue: Any = {"fmt": "s", "ms": 5, "color": dmftopt.plot.COLORS[0]}
    for place, name in enumerate(names):
        row = found["plans"][name]
        bars.barh(place, row["excess"]["mean"], color=blue["color"], alpha=0.6)
        if (real := row.get("realized_excess")) is not None:
            bars.errorbar(real["mean"], place, xerr=2 * real["standard_error"], **black)
        if name in (UNTUNED, BASE):
            continue
        for estimate, shift, style in ((row["saved"], -0.15, blue), (row.get("realized_saved"), 0.15, black)):
            if estimate is not None:
                mean, error = (1e3 * estimate[key] for key in ("mean", "standard_error"))
                gains.errorbar(mean, place + shift, xerr=2 * error, **style)
    bars.set_yticks(range(len(names)), labels=names)
    gains.set_yticks(range(len(names)), labels=[])
    gains.axvline(0, color="0.6", lw=1)
    bars.set_title("plan: what is tuned beside the peak", fontsize=10)
    bars.set_xlabel("excess test risk of the EMA: predicted (bars), AdamW")
    gains.set_xlabel(f"less than {BASE}, / 1e-3: predicted (squares), AdamW")
    for axes in (bars, gains):
        axes.set_ylim(len(names) - 0.4, -0.6)
    for color, name in zip(dmftopt.plot.COLORS, ("constant", BASE, f"{BASE} + schedule", "all but schedule", ALL), strict=False):
        row = found["plans"][name]
        rates.plot(row["epoch"], 1e3 * np.array(row["learning_rate"]), color=color, label=name)
    rates.set(xlabel="epochs", ylabel="AdamW's learning rate / 1e-3", ylim=(0, None))
    rates.legend(fontsize=8, frameon=False)
    return figure


def main(s: Settings) -> None:
    s = s.sized(dimension=40, epochs=2.0, grid_steps=8, knots=3, steps=1, samples=512, runs=4)
    objective = objective_of(s)
    found = judged(s, objective, designed(s, objective))
    finish(s, __file__, {"settings": s.without(), **found}, tables(found), draw(found))


if __name__ == "__main__":
    main(tyro.cli(Settings))
