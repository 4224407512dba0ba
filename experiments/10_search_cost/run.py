"""What does a schedule cost that is designed from the theory, and what one that is searched by running SGD?

Logistic regression on sign labels, power-law features, as many samples as four passes over the training set. 5 to 40 numbers
are tuned: knots of the learning rate and of the batch size, and the ridge. `dmftopt.optimize` descends the prediction's gradient;
Optuna's tree-structured Parzen estimator (TPE) and random search run SGD, in as small a dimension and as few runs as still lead
to the same place, and are given every advantage named in search.py. Each search ends when its best trial keeps all but 5% of
the gain that the design has over the common start, or when it has taken `times` as long as the design.

The same question for the problems of the other experiments that design something, as they pose them: TPE until it is as good.

Compilation is apart: on one problem it takes longer than the design itself. In the end, designs and searched schedules run
in SGD of a larger dimension. In this limit only the temperature eta / B matters, so that rate and batch knots overlap, for all
three alike.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import dmftopt
from dmftopt import schedules
from dmftopt.design import realized

from ..shared import data, sweep
from ..shared.compilation import compile_anew
from ..shared.protocols import protocol_of
from ..shared.results import Settings as Common
from ..shared.results import finish, markdown, mean_and_error, plus_minus, short
from .search import SAMPLERS, design, risk, search

RATE, BATCH, RIDGE, DELTA = 1.0, 2.0, 0.01, 2.0
NAMES = {"tpe": "TPE (Optuna)", "random": "random search"}


class Posed(NamedTuple):
    """A problem of another experiment: `simulate(protocol, key)` where SGD is not `dmftopt.simulate.sgd`."""

    objective: dmftopt.Objective
    protocol: Any
    dimension: int = 100
    runs: int = 16
    simulate: Callable[[Any, jax.Array], float] | None = None
    samples: int = 1
    """Times as many, and four replicates, to judge."""


def _sample_budget(module: Any) -> Posed:
    s = module.Settings()
    # Four epochs; its spectrum has 200 eigenvalues.
    return Posed(*module.build(s.samples / 4, s.samples, dataclasses.asdict(s)), dimension=200)


def _batch_ramp(module: Any) -> Posed:
    return Posed(*module.build(10.0, "both", dataclasses.asdict(module.Settings())), dimension=200)


def _early_stopping(module: Any) -> Posed:
    s = module.Settings()
    objective, arms = module.build(1.0, s.delta, s.epochs, s.knots)
    return Posed(objective, arms["decay, ridge, stopped early"])


def _plateau_escape(module: Any) -> Posed:
    s, dimension, runs = module.Settings(), 128, 16
    objective, starts = module.build(100.0, s.lean, s.student_scale, s.label_noise, s.knots, s.peak)

    def simulate(protocol, key) -> float:
        excess = module.real_sgd(objective, [protocol], [1], key, dimension=dimension, runs=runs)
        return float(np.mean(excess[:, 0, -1])) + 0.5 * s.label_noise**2

    return Posed(objective, starts[module.FREE], dimension, runs, simulate)


def _robust(module: Any) -> Posed:
    s = module.Settings()
    return Posed(*module.build(s.noises, s.delta, s.epochs, s.knots))


def _real_data(module: Any) -> Posed:
    s = module.Settings()
    x, y = data.digits(s.features[0], s.seed)
    problem = dmftopt.Problem.from_data(x, y, train_size=s.train_size[0])
    objective, protocol = module.build(problem, s.epochs, s.knots, s.samples)
    # Of the data's own dimension.
    return Posed(objective, protocol, dimension=x.shape[1], runs=4, samples=8)


POSED = {
    "03_sample_budget": _sample_budget,
    "04_batch_ramp": _batch_ramp,
    "06_early_stopping": _early_stopping,
    "07_plateau_escape": _plateau_escape,
    "08_robust": _robust,
    "09_real_data": _real_data,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Cost of a design against searches that simulate."""

    hyperparameters: tuple[int, ...] = (5, 10, 20, 40)
    passes: float = 4.0
    """Over the training set of 2 d samples."""
    optimizer_steps: int = 25
    grid_steps: int = 16
    samples: int = 1024
    """Of the design; judged with half the steps, four times the samples, four replicates and SGD's own noise."""
    times: float = 60.0
    """A search is given up after this many times what the design took."""
    dimension: int = 100
    """Of the searches' trials."""
    runs: int = 16
    """Of SGD in each trial."""
    check_dimension: int = 400
    check_runs: int = 64
    experiments: tuple[str, ...] = tuple(POSED)
    """Whose problems are searched too."""
    experiment_times: float = 60.0
    """A search for one of them is given up after this many times what the design took ..."""
    experiment_seconds: float = 240.0
    """... or after this time."""
    experiment_steps: int = 80
    """Of the optimizer, for them."""


def tunable(count: int) -> dmftopt.Protocol:
    """`count` numbers: the ridge, a third of the others for the batch size, the rest for the rate."""
    batch = max(2, (count - 1) // 3)
    return dmftopt.Protocol(
        learning_rate=schedules.piecewise_linear(1.0, count - 1 - batch, RATE, log=True),
        batch_size=schedules.piecewise_linear(1.0, batch, BATCH, bounds=(1.0, 32.0)),
        ridge=dmftopt.above(RIDGE),
    )


def the_objective(passes, grid_steps, samples) -> dmftopt.Objective:
    # 50 eigenvalues in 12 groups, so that small dimensions can hold them.
    features = dmftopt.features.power_law(1.0, dimension=50, groups=12)
    problem = dmftopt.Problem(dmftopt.tasks.Logistic("sign"), features, DELTA, 1.0, 0.0)
    grid = dmftopt.TimeGrid.uniform(1.0, grid_steps)
    return dmftopt.Objective(problem, dmftopt.Budget(epochs=passes), grid=grid, predict=dmftopt.Solve(samples=samples))


def adam(steps: int) -> Any:
    return optax.adam(optax.cosine_decay_schedule(0.3, steps, 0.02))


def cell(
    count, *, passes, grid_steps, samples, optimizer_steps, times, dimension, runs, check_dimension, check_runs, seed
) -> dict[str, Any]:
    """The design of `count` numbers, both searches, and all of them in SGD. JSON values."""
    objective, protocol = the_objective(passes, grid_steps, samples), tunable(count)
    options: Any = {"steps": optimizer_steps, "optimizer": adam(optimizer_steps), "fresh": 2, "progress": False}
    designed = design(objective, protocol, key=jax.random.key(seed), **options)
    # Smoke does without, to compile faster.
    finer = objective.finer() if samples > 64 else objective
    result: dict[str, Any] = {}
    protocols = {"start": protocol, "design": designed.found.protocol}
    trials: Any = {"dimension": dimension, "runs": runs, "seconds": times * designed.seconds, "seed": seed, "judge": finer}
    for sampler in SAMPLERS:
        result[sampler] = search(objective, protocol, designed, sampler=sampler, **trials)
        protocols[sampler] = protocol_of(protocol, result[sampler]["incumbent"])
    # What tuning two numbers gives, peak and ridge.
    simple = dmftopt.baselines(dmftopt.Protocol(RATE, BATCH, dmftopt.above(RIDGE)), peak=RATE)
    for name in ("constant", "linear decay"):
        protocols[name] = dmftopt.optimize(objective, simple[name], key=jax.random.key(seed), **options).protocol
    # Padded to more than the longest possible recipe, of batches of 1: all share a compiled simulation.
    length = max(512, round(passes * DELTA * check_dimension))
    return result | {"check": checked(objective, finer, protocols, check_dimension, check_runs, length, seed)}


def checked(objective, finer, protocols, dimension: int, runs: int, length: int, seed: int) -> dict[str, Any]:
    """All protocols in SGD of a larger dimension."""
    keys, measured = jax.random.split(jax.random.key(seed + 2), 8), {}
    for name, p in protocols.items():
        run = objective.run(p)
        recipe = run.recipe(dimension=dimension, delta=DELTA)
        measured[name] = np.array([realized(objective, run, recipe, max(1, runs // 8), k, length=length) for k in keys])
    return {
        name: {
            "predicted": risk(finer, p, jax.random.key(seed + 1000)),
            "realized": mean_and_error(measured[name]),
            "gain over start": mean_and_error(measured["start"] - measured[name]),
            "design's gain over it": mean_and_error(measured[name] - measured["design"]),
        }
        for name, p in protocols.items()
    }


def experiment_cell(name, *, times, seconds, optimizer_steps, seed) -> dict[str, Any]:
    """A design for another experiment's problem, and TPE. JSON values."""
    posed = POSED[name](importlib.import_module(f"..{name}.run", __package__))
    options: Any = {"steps": optimizer_steps, "optimizer": adam(optimizer_steps), "fresh": 2, "progress": False}
    designed = design(posed.objective, posed.protocol, key=jax.random.key(seed), **options)
    sampled = isinstance(posed.objective.predict, dmftopt.Solve)
    return search(
        posed.objective,
        posed.protocol,
        designed,
        dimension=posed.dimension,
        runs=posed.runs,
        seconds=min(seconds, times * designed.seconds),
        seed=seed,
        # What is exact stays as it is.
        judge=posed.objective.finer(samples=posed.samples) if sampled else posed.objective,
        simulate=posed.simulate,
    )


def missing(a: dict[str, Any]) -> float:
    """Of the design's gain, in a search's last incumbent; all where no trial was finite."""
    return (a["trace"][-1]["predicted"] - a["design"]) / (a["start"] - a["design"]) if a["trace"] else 1.0


def draw(results: dict[int, dict]) -> Figure:
    figure, axes = plt.subplot_mosaic([["0", "1", "s"], ["2", "3", "s"]], figsize=(13.5, 7.5), layout="constrained")
    for ax, (count, r) in zip((axes[i] for i in "0123"), results.items(), strict=False):
        draw_search(ax, count, r)
    figure.legend(*axes["0"].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=4)
    draw_seconds(axes["s"], results)
    return figure


def draw_search(ax, count: int, r: dict) -> None:
    """The share of the gain that searches still miss, over time."""
    tpe = r["tpe"]
    gain = tpe["start"] - tpe["design"]
    for color, sampler in zip(("C0", "C2"), SAMPLERS, strict=True):
        s = r[sampler]
        seconds = [t["seconds"] for t in s["trace"]] + [s["seconds"]]
        gaps = [max((t["predicted"] - s["design"]) / gain, 0.021) for t in s["trace"]]
        ax.step(seconds, [*gaps, gaps[-1]], where="post", color=color, label=NAMES[sampler])
        if s["reached"]:
            ax.plot(seconds[-1], gaps[-1], "o", color=color)
    reached = tpe["design_seconds_to_target"]
    if reached is not None:
        ax.plot(reached, tpe["tolerance"], "*", ms=14, color="C1", label="design, at the same risk")
    ax.axvline(tpe["design_seconds"], color="C1", label="design, all of it")
    ax.axhline(tpe["tolerance"], color="0.5", ls="--", lw=1, label="5% of the gain missing")
    for name, ls in (("constant", ":"), ("linear decay", "-.")):
        gap = (r["check"][name]["predicted"] - tpe["design"]) / gain
        ax.axhline(max(gap, 0.01), color="0.6", ls=ls, lw=1, label=f"best {name} (peak and ridge)")
    ax.set(xscale="log", yscale="log", ylim=(0.02, 1.4), title=f"{count} hyperparameters")
    ax.set_yticks(ticks := [0.02, 0.05, 0.1, 0.2, 0.5, 1.0], [f"{t:.0%}" for t in ticks])
    ax.set(xlabel="seconds, without compilation", ylabel="share of the gain still missing")
    ax.minorticks_off()


def draw_seconds(ax, results: dict[int, dict]) -> None:
    """Until as good, over the number of hyperparameters."""
    counts = list(results)
    for key, style, label in (
        ("design_seconds", "C1o-", "design"),
        ("design_seconds_to_target", "C1*--", "design, at the same risk"),
        ("design_seconds_with_compilation", "C1o:", "design, with compilation"),
    ):
        ax.plot(counts, [r["tpe"][key] if r["tpe"][key] is not None else np.nan for r in results.values()], style, label=label)
    # A little to the right, where it would hide the other.
    for shift, color, sampler in zip((1.0, 1.05), ("C0", "C2"), SAMPLERS, strict=True):
        seconds = [r[sampler]["seconds"] for r in results.values()]
        places = shift * np.asarray(counts)
        ax.plot(places, seconds, color=color, marker="o", label=NAMES[sampler])
        for c, s, r in zip(places, seconds, results.values(), strict=True):
            if not r[sampler]["reached"]:
                ax.annotate("", (c, 1.7 * s), (c, s), arrowprops={"arrowstyle": "->", "color": color})
    ax.set(xscale="log", yscale="log", xlabel="hyperparameters", ylabel="seconds", title="until as good (arrows: given up)")
    ax.set_xticks(counts, [str(c) for c in counts])
    ax.minorticks_off()
    ax.set_ylim(top=10 * ax.get_ylim()[1])
    ax.legend(fontsize=8, loc="upper left")


def tables(results: dict[int, dict], others: dict[str, dict]) -> dict[str, str]:
    """Seconds without compilation: of the design, and of searches until they are as good; then how all do in SGD."""

    def share(a):
        return "" if a["reached"] else f"given up after {short(a['ratio'])}×, {missing(a):.0%} of the gain missing"

    own, posed, check = [], [], []
    for count, r in results.items():
        design = f"{r['tpe']['design_seconds']:.1f} s ({r['tpe']['design_seconds_with_compilation']:.0f} s)"
        own.append([count, design])
        for a in (r[k] for k in SAMPLERS):
            ratios = f"{short(a['ratio'])}×, with compilation {short(a['ratio_with_compilation'])}×"
            own[-1].append(share(a) or f"{short(a['seconds'])} s ({ratios})")
        for name, row in r["check"].items():
            check.append([count, name, f"{row['predicted']:.4f}", *(plus_minus(row[k]) for k in ("realized", "gain over start"))])
    for name, a in others.items():
        more = "" if a["reached"] else "> "
        same = f"{more}{short(a['ratio_to_target'])}×" if a["ratio_to_target"] is not None else ""
        row = [name, a["hyperparameters"], f"{a['design_seconds']:.1f} s", share(a) or f"{short(a['seconds'])} s"]
        posed.append([*row, f"{more}{short(a['ratio'])}×", same, f"{more}{short(a['ratio_with_compilation'])}×"])
    head = ["problem of", "hyperparameters", "design", "TPE", "against all of the design", "until as good", "with compilation"]
    return {
        "one problem": markdown(["hyperparameters", "design (with compilation)", *(NAMES[k] for k in SAMPLERS)], own),
        "other problems": markdown(head, posed),
        "in SGD": markdown(["hyperparameters", "", "predicted risk", "SGD", "saved over the start in SGD"], check),
    }


def main(s: Settings) -> None:
    compile_anew()
    tiny: Any = {"hyperparameters": (5,), "optimizer_steps": 2, "grid_steps": 4, "samples": 64, "times": 1.0}
    tiny |= {"dimension": 50, "runs": 2, "check_dimension": 50, "check_runs": 16}
    s = s.sized(**tiny, experiments=("08_robust",), experiment_times=0.1, experiment_steps=1)
    at = s.folder(__file__) / "cells"
    cells = {f"{count} hyperparameters": {"count": count} for count in s.hyperparameters}
    shared = s.without("hyperparameters", "experiments", "experiment_times", "experiment_seconds", "experiment_steps")
    done = sweep.run(cell, cells, at, shared)
    found = {c["count"]: done[name] for name, c in cells.items()}
    limits: Any = {"times": s.experiment_times, "seconds": s.experiment_seconds, "optimizer_steps": s.experiment_steps}
    others = sweep.run(experiment_cell, {name: {"name": name} for name in s.experiments}, at, {**limits, "seed": s.seed})
    settings = {"shared": shared, "experiments": limits}
    result = {"settings": settings, "results": found, "experiments": others}
    finish(s, __file__, result, tables(found, others), draw(found))


if __name__ == "__main__":
    main(tyro.cli(Settings))
