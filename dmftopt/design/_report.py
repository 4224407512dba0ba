"""What was designed, predicted anew and put to the test in SGD."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm.auto import tqdm

from .. import simulate
from .._checks import check_count, check_instance, check_key, check_member, check_named, front_door
from .._register import register, register_part
from ..protocol import Protocol, Recipe
from ..protocol.schedules import PerStep
from ._budget import Plan, Run
from ._objective import Objective
from ._optimize import Check, Score

# Runs are simulated in this many batches, of which differences between protocols have a standard error.
_BATCHES = 16


@register_part
class Estimate(NamedTuple):
    mean: float
    standard_error: float


@register_part
class Row(NamedTuple):
    """Of one protocol, for one problem.

    - `predicted`: on fresh random numbers, finer than it was designed. - `rounded`: the same for batch sizes rounded to whole
      numbers (None where the route cannot tell).
    - `realized`: mean of SGD runs with these whole batch sizes; None if nothing was simulated.
    - `horizon`: steps / d; `samples`: seen / d.
    - `doubled`: predicted at twice the steps and samples; None where that was not looked at.
    """

    predicted: Estimate
    rounded: Estimate | None
    realized: Estimate | None
    horizon: float
    samples: float
    doubled: Estimate | None = None


@register
class Report(eqx.Module):
    """`rows`: name -> one `Row` per problem. `batches`: the same, means over batches of SGD runs (none if not simulated)."""

    rows: dict[str, list[Row]]
    batches: dict[str, list[np.ndarray]]

    def realized(self, name: str, which: int = 0) -> Estimate:
        """Mean of the SGD runs; raises ValueError where there were none."""
        self._check(which, name=name)
        values = self.batches[name][which]
        if not values.size:
            raise ValueError("nothing was simulated: give report a dimension.")
        return _estimate(values)

    def gain(self, name: str, over: str, which: int = 0) -> dict[str, Estimate]:
        """By how much the objective is lower than that of the protocol `over`: "predicted", at twice the steps and samples
        "doubled", and if simulated "rounded" and "realized". Simulations share training sets and random numbers, and so their
        difference is known better than each."""
        self._check(which, name=name, over=over)
        mine, other = self.rows[name][which], self.rows[over][which]
        gains = {"predicted": _difference(other.predicted, mine.predicted)}
        if mine.doubled is not None and other.doubled is not None:
            gains["doubled"] = _difference(other.doubled, mine.doubled)
        if mine.rounded is not None and other.rounded is not None:
            gains["rounded"] = _difference(other.rounded, mine.rounded)
        a, b = self.batches[name][which], self.batches[over][which]
        if a.size and b.size:
            gains["realized"] = _estimate(b - a)
        return gains

    def _check(self, which: int, **names: str) -> None:
        for argument, name in names.items():
            check_member(argument, name, self.rows)
            check_member("which", which, range(len(self.rows[name])))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {
            name: [{k: v._asdict() if isinstance(v, Estimate) else v for k, v in row._asdict().items()} for row in rows]
            for name, rows in self.rows.items()
        }

    def __str__(self) -> str:
        width = max(len(n) for n in self.rows)
        lines = [f"{'':<{width}}  {'predicted':>20}  {'batches rounded':>20}  {'SGD':>20}  steps/d  samples/d"]
        for name, rows in sorted(self.rows.items(), key=lambda item: np.mean([row.predicted.mean for row in item[1]])):
            for row in rows:
                cells = [f"{e.mean:.5g} ± {e.standard_error:.1g}" if e else "" for e in row[:3]]
                lines.append(
                    f"{name:<{width}}  " + "  ".join(f"{c:>20}" for c in cells) + f"  {row.horizon:>7.4g}  {row.samples:>9.4g}"
                )
        lines += [
            f"not resolved: the gain of {name!r} over {over!r} is {check}. Give Objective more of both."
            for name, over, check in self._moved()
        ]
        return "\n".join(lines)

    def _moved(self) -> list[tuple[str, str, Check]]:
        """Gains of the best on average over the others that are not the same at twice the steps and samples."""
        best = min(self.rows, key=lambda name: np.mean([row.predicted.mean for row in self.rows[name]]))
        moved = []
        for over in self.rows:
            for which in range(len(self.rows[best]) if over != best else 0):
                gains = self.gain(best, over, which)
                if "doubled" in gains:
                    check = Check(Score(*gains["predicted"]), Score(*gains["doubled"]))
                    moved += [(best, over, check)] if check.moved else []
        return moved


@front_door
def report(
    objective: Objective,
    protocols: Mapping[str, Protocol | Plan],
    *,
    key: Array,
    dimension: int | None = None,
    runs: int = 32,
    fresh: int = 4,
    recheck: bool = True,
    progress: bool = True,
) -> Report:
    """Judge protocols under an objective's budget: predicted on fresh random numbers, and realized by SGD.

    - `objective`: by which to predict; often `objective.finer()` of the one that was optimized: steps half as long, more samples,
      and SGD's own Poisson noise. Predictions are means over `fresh` keys, with standard errors.
    - `protocols`: by name, for example `{"optimized": found.protocol} | found.tuned`.
    - `dimension`: of `runs` SGD runs of each with batch sizes rounded to whole numbers (`dmftopt.recipe`), on the same training
      sets and batches for each protocol. None: no simulation.
    - `recheck`: predict again at twice the steps and samples, where a prediction knows such (by `dmftopt.Solve`), and say which
      gain moved by more than its error and a tenth.

    The measure must be one that simulations have too. Raises ValueError where a prediction is not finite.
    """
    check_instance("objective", objective, Objective, "Build it with dmftopt.Objective(problem, budget).")
    check_named("protocols", protocols)
    if not protocols:
        raise ValueError("protocols: give at least one.")
    check_key(key)
    check_count("fresh", fresh, minimum=2, cure="A standard error needs two.")
    if dimension is not None:
        check_count("dimension", dimension, minimum=2)
        check_count("runs", runs, minimum=2 * 2, cure="Differences need several batches of runs.")
    predict_key, simulate_key = jax.random.split(key)
    keys = jax.random.split(predict_key, fresh)
    problems = range(len(objective.problems))
    made = {name: [objective.run(p, which) for which in problems] for name, p in protocols.items()}
    recipes: dict[str, list[Recipe]] = {}
    longest = 0
    if dimension is not None:
        for name, several in made.items():
            pairs = zip(several, objective.problems, strict=True)
            recipes[name] = [run.recipe(dimension=dimension, delta=float(problem.delta)) for run, problem in pairs]
            longest = max([longest, *(len(r) for r in recipes[name])])
    rows, batches = {}, {}
    finer = objective.doubled() if recheck else None
    with tqdm(total=len(made) * (2 if recipes else 1), desc="report", disable=None if progress else True, leave=False) as bar:
        for name, protocol in protocols.items():
            bar.set_postfix_str(f"{name}, predicted")
            inputs = _prepared(objective, protocol)
            predicted = _estimates(name, objective, inputs, keys)
            doubled: list = [None] * len(predicted)
            if finer is not None:
                doubled = _estimates(name, finer, _prepared(finer, protocol), keys)
            bar.update()
            rounded: list = [None] * len(predicted)
            measured = [np.zeros(0)] * len(predicted)
            if dimension is not None:
                bar.set_postfix_str(f"{name}, SGD")
                whole = _rounded(objective, inputs, recipes[name])
                if whole is not None:
                    rounded = _estimates(name, objective, whole, keys)
                cases = zip(made[name], recipes[name], problems, strict=True)
                measured = [_simulated(objective, *case, runs, longest, simulate_key) for case in cases]
                bar.update()
            realized = [_estimate(m) if m.size else None for m in measured]
            spent = [(float(run.horizon), float(run.samples)) for run in made[name]]
            columns = zip(predicted, rounded, realized, spent, doubled, strict=True)
            rows[name] = [Row(p, r, m, *s, d) for p, r, m, s, d in columns]
            batches[name] = measured
    return Report(rows, batches)


@eqx.filter_jit
def _prepared(objective: Objective, protocol):
    return objective.prepare(protocol)


@eqx.filter_jit
def _evaluated(objective: Objective, inputs, key):
    return objective.values_of(inputs, key)


def _estimates(name: str, objective: Objective, inputs, keys: Array) -> list[Estimate]:
    values = np.stack([np.asarray(_evaluated(objective, inputs, k), dtype=float) for k in keys])
    if not np.all(np.isfinite(values)):
        raise ValueError(f"the prediction of {name!r} is not finite: it is unstable at this finer resolution or with this noise.")
    return [_estimate(v) for v in values.T]


def _estimate(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size)))


def _difference(a: Estimate, b: Estimate) -> Estimate:
    return Estimate(a.mean - b.mean, float(np.hypot(a.standard_error, b.standard_error)))


def _rounded(objective: Objective, inputs: Any, recipes: list[Recipe]) -> Any:
    """The prepared inputs with whole batch sizes, or None."""
    whole = []
    for (protocol, grid, spent, average), recipe in zip(inputs, recipes, strict=True):
        protocol = objective.predict.rounded(protocol, grid, recipe)
        if protocol is None:
            return None
        whole.append((protocol, grid, spent, average))
    return tuple(whole)


def _simulated(objective: Objective, run: Run, recipe: Recipe, which: int, runs: int, longest: int, key: Array) -> np.ndarray:
    """The measure in SGD, one value per batch of runs."""
    batches = min(_BATCHES, runs // 2)
    keys = jax.random.split(key, batches)
    return np.asarray([realized(objective, run, recipe, runs // batches, k, which=which, length=longest) for k in keys])


def _rate(protocol: Protocol, dimension: int) -> float:
    """The optimizer's own learning rate over the protocol's."""
    return 1.0 if protocol.update is None else protocol.update.rate(dimension)


def realized(
    objective: Objective, run: Run, recipe: Recipe, runs: int, key: Array, *, which: int = 0, length: int | None = None
) -> float:
    """The measure of `runs` runs of SGD that follow a recipe, in its dimension. Recipes padded to the same `length` share a
    compiled simulation. Raises FloatingPointError where SGD diverged."""
    steps, d = len(recipe), recipe.dimension

    def per_step(values):
        return PerStep(jnp.asarray(np.pad(values, (0, max(0, (length or steps) - steps)), mode="edge"), dtype=float), d)

    own = run.protocol.momentum is not None or run.protocol.friction is not None
    momentum = per_step(recipe.momentum) if own else None
    protocol = Protocol(
        per_step(recipe.learning_rate / _rate(run.protocol, d)),
        per_step(recipe.batch_size.astype(float)),
        per_step(recipe.weight_decay * d * _rate(run.protocol, d)),
        momentum,
        nesterov=run.protocol.nesterov,
        update=run.protocol.update,
    )
    # As many of the grid's times as whole steps allow.
    at = np.unique(np.round(np.asarray(objective.grid.times, dtype=float) * steps).astype(int))
    result = simulate.sgd(
        objective.problems[which],
        protocol,
        horizon=steps / d,
        dimension=d,
        runs=runs,
        key=key,
        records=at / d,
        order=objective.predict.order,
        average=run.average,
        metrics=objective.predict.asked_metrics,
    )
    spent = result.times if objective.budget is None else objective.budget.spent(run, result.times)
    return float(objective.measure(result, spent))
