"""What should be tuned when one trains with AdamW, in shuffled epochs, with an average of the weights?

Two problems, a classifier with noisy labels and a small two-layer network, each trained for a few shuffled epochs by AdamW with
beta2 = 0.999. Starting from a constant rate, a decay, an EMA of the weights, weight decay and the batch size are added, and all
numbers there are tuned against the predicted final test risk. Then the real algorithm trains: optax's Adam, real shuffling, the
EMA kept step by step, on training sets of its own.
"""

import dataclasses
import time
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import dmftopt
from dmftopt import averages, between, schedules, updates

from ..shared.results import Settings as Common
from ..shared.results import finish, markdown

# The usual ways, from the simplest: what is free, besides the peak rate.
WAYS = (
    "constant rate",
    "linear decay",
    "constant rate, EMA",
    "linear decay, EMA",
    "linear decay, weight decay",
    "linear decay, batch size",
    "all, and any schedule",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Tune AdamW in shuffled epochs with an EMA, and train."""

    epochs: int = 4
    dimension: int = 400
    """Of real training; it also says how long the memory of beta2 is."""
    beta2: float = 0.999
    runs: int = 96
    optimizer_steps: int = 40
    samples: int = 1024
    """In the design; what is reported uses four times as many, and four replicates."""
    steps_per_epoch: int = 8


def problems() -> dict[str, dmftopt.Problem]:
    spectrum = dmftopt.features.spectrum([4.0, 1.0, 0.25], [0.1, 0.4, 0.5])
    classifier = dmftopt.Problem(dmftopt.tasks.Logistic("logistic"), spectrum, 2.0, teacher_scale=3.0, student_scale=0.0)
    correlation = np.eye(4)
    # Each unit leans toward one of the teacher's: otherwise they would stay equal.
    correlation[0, 2] = correlation[2, 0] = correlation[1, 3] = correlation[3, 1] = 0.3
    task = dmftopt.tasks.Committee(2, 2, "erf", label_noise=0.3)
    network = dmftopt.Problem(task, spectrum, 4.0, student_scale=0.5, initial_correlation=correlation)
    return {"classifier": classifier, "network": network}


def plan(way: str, peak: float, s: Settings) -> dmftopt.Plan:
    """What is tuned, in relative time: variables and JAX arrays are free, plain numbers are not."""
    free = between(peak, 0.0, 10 * peak)
    memory = between(0.15, 0.05, 0.9)
    adam = updates.Adam.of(s.beta2, s.dimension)
    match way:
        case "constant rate":
            return dmftopt.Plan(dmftopt.Protocol(free, update=adam))
        case "constant rate, EMA":
            return dmftopt.Plan(dmftopt.Protocol(free, update=adam), average=averages.Exponential(memory))
        case "all, and any schedule":
            rate = schedules.piecewise_linear(1.0, 6, peak, log=True)
            protocol = dmftopt.Protocol(rate, between(2.0, 1.0, 16.0), dmftopt.above(0.1), update=adam)
            return dmftopt.Plan(protocol, average=averages.Exponential(memory))
    batch_size = between(2.0, 1.0, 16.0) if "batch size" in way else 1.0
    ridge = dmftopt.above(0.1) if "weight decay" in way else 0.0
    protocol = dmftopt.Protocol(schedules.linear_decay(free, 1.0), batch_size, ridge, update=adam)
    return dmftopt.Plan(protocol, average=averages.Exponential(memory) if "EMA" in way else None)


def designed(problem: dmftopt.Problem, peak: float, s: Settings) -> tuple[dmftopt.Objective, dict[str, dmftopt.Plan]]:
    predict = dmftopt.Solve(dmftopt.noise.Shuffled(), samples=s.samples)
    grid = dmftopt.TimeGrid(np.linspace(0.0, 1.0, s.epochs * s.steps_per_epoch + 1))
    objective = dmftopt.Objective(problem, dmftopt.Budget(epochs=s.epochs), grid=grid, predict=predict)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.2, s.optimizer_steps, 0.1))
    found = {}
    for way in WAYS:
        options: Any = {"optimizer": optimizer, "steps": s.optimizer_steps, "key": jax.random.key(s.seed), "refinements": 0}
        found[way] = dmftopt.optimize(objective, plan(way, peak, s), **options).protocol
    return objective, found


def numbers(objective: dmftopt.Objective, found: dmftopt.Plan, s: Settings) -> dict[str, float | None]:
    """What was found, as one would set it."""
    run = objective.run(found)
    recipe = run.recipe(dimension=s.dimension, delta=float(objective.problems[0].delta))
    average = run.average
    return {
        "peak": float(recipe.learning_rate.max()),
        "end": float(recipe.learning_rate[-1]),
        "weight_decay": float(recipe.weight_decay[0]),
        "batch_size": float(recipe.batch_size.mean()),
        "ema_decay": average.decay(s.dimension) if isinstance(average, averages.Exponential) else None,
    }


def main(s: Settings) -> None:
    s = s.sized(epochs=1, dimension=60, runs=4, optimizer_steps=2, samples=256)
    started, result = time.perf_counter(), {}
    for (name, problem), peak in zip(problems().items(), (1.0, 0.5), strict=True):
        objective, found = designed(problem, peak, s)
        seconds = time.perf_counter() - started
        report = dmftopt.report(objective, found, key=jax.random.key(s.seed + 1), dimension=s.dimension, runs=s.runs)
        print(f"{name}: designed in {seconds:.0f} s\n{report}")
        gains = {way: report.gain(way, WAYS[0]) for way in WAYS}
        result[name] = {
            way: {
                **report.rows[way][0]._asdict(),
                "gain": {key: estimate._asdict() for key, estimate in gains[way].items()},
                "numbers": numbers(objective, found[way], s),
            }
            for way in WAYS
        }
    seconds = time.perf_counter() - started
    plain = {name: {way: _plain(row) for way, row in rows.items()} for name, rows in result.items()}
    finish(s, __file__, {"settings": s.without(), "seconds": seconds, "problems": plain}, tables(plain), draw(plain))


def _plain(row: dict) -> dict:
    return {key: value._asdict() if hasattr(value, "_asdict") else value for key, value in row.items()}


def tables(result: dict) -> dict[str, str]:
    header = ["tuned", "predicted", "realized", "gain over a constant rate: predicted", "realized"]
    header += ["rate, peak to end", "weight decay", "batch", "EMA decay"]
    found = {}
    for name, rows in result.items():
        lines = []
        for way, row in rows.items():
            n, gain = row["numbers"], row["gain"]
            decay = f"{n['weight_decay']:.3f}" if n["weight_decay"] else ""
            lines.append(
                [
                    way,
                    f"{row['predicted']['mean']:.4f} ± {row['predicted']['standard_error']:.4f}",
                    f"{row['realized']['mean']:.4f} ± {row['realized']['standard_error']:.4f}",
                    "" if way == WAYS[0] else f"{gain['predicted']['mean']:.4f}",
                    "" if way == WAYS[0] else f"{gain['realized']['mean']:.4f} ± {gain['realized']['standard_error']:.4f}",
                    f"{n['peak']:.4f} to {n['end']:.4f}",
                    decay,
                    f"{n['batch_size']:.1f}",
                    "" if n["ema_decay"] is None else f"{n['ema_decay']:.5f}",
                ]
            )
        found[name] = markdown(header, lines)
    return found


def draw(result: dict) -> Figure:
    figure, axes = plt.subplots(1, len(result), figsize=(10, 3.6), constrained_layout=True, sharey=True)
    for ax, (name, rows) in zip(axes, result.items(), strict=True):
        places = np.arange(len(rows))[::-1]
        for shift, kind, color in ((0.15, "predicted", "C0"), (-0.15, "realized", "C1")):
            values = [row[kind]["mean"] for row in rows.values()]
            errors = [2 * row[kind]["standard_error"] for row in rows.values()]
            ax.errorbar(values, places + shift, xerr=errors, fmt="o", ms=4, color=color, label=kind)
        ax.set(title=name, xlabel="final test risk (bars: 2 standard errors)", yticks=places)
        ax.set_yticklabels(list(rows))
        ax.grid(axis="x", alpha=0.3)
    axes[0].legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Settings))
