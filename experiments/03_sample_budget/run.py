"""What learning-rate schedule is best for a given number of samples seen, and how does that change with repetition?

Least squares on features with a power-law spectrum, noisy labels, a student that starts at zero. Every run sees `samples` * d
samples in batches of one (larger batches waste samples: only learning rate / batch size matters), once (online), or `epochs`
times each over a training set that is smaller in proportion: computation is the same, data are what differs. The other cut, more
and more passes over one training set, is the Pareto front of risk against budget.

For each number of epochs a schedule with free knots and the usual ones (constant, linear decay, cosine, power law,
warmup-stable-decay) are tuned in the same way against the exact solution (Volterra equation of the sample covariance), which has
no sampling error. What is found is judged by two other routes: `solve` with Poisson noise (for one pass the equations of the
online limit), and SGD.
"""

import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import dmftopt
from dmftopt import limits, schedules

from ..shared import sweep
from ..shared.one_pass import one_pass
from ..shared.results import SweepSettings, finish, markdown, mean_and_error, plus_minus

# One pass is the limit of a large training set. As a number, so that it shares the compiled program of the others.
ONLINE = 1e5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings):
    """Learning-rate schedules under a sample budget, by number of epochs."""

    epochs: tuple[int, ...] = (0, 1, 2, 4, 8, 16)
    """Passes over the training set of samples / epochs samples per dimension; 0: each sample is seen once."""
    samples: float = 8.0
    """Seen, per dimension."""
    front_delta: float = 2.0
    """Samples per dimension of the training set of the Pareto front ..."""
    front_epochs: tuple[int, ...] = (1, 2, 4, 8, 16)
    """... and how often they are seen."""
    exponent: float = 1.25
    """Of the spectrum."""
    spectrum: int = 200
    """Eigenvalues; must divide the dimension."""
    label_noise: float = 0.5
    """Standard deviation, where labels without noise have variance 1."""
    knots: int = 9
    peak: float = 0.5
    """Learning rate at which every search starts."""
    steps: int = 240
    """Of the optimizer, from each start. The power law needs them: its optimum is far out in a flat valley."""
    front_steps: int = 80
    """The same for the Pareto front."""
    grid_steps: int = 80
    """Of the independent prediction."""
    predict_samples: int = 4096
    dimension: int = 400
    runs: int = 128


def build(delta, samples, s: dict[str, Any]) -> tuple[dmftopt.Objective, dmftopt.Protocol]:
    """What is minimized, and where the search starts."""
    features = dmftopt.features.power_law(s["exponent"], dimension=s["spectrum"])
    problem = dmftopt.Problem(dmftopt.tasks.LeastSquares(s["label_noise"]), features, delta, 1.0, 0.0)
    grid = dmftopt.TimeGrid.uniform(1.0, 1)
    objective = dmftopt.Objective(
        problem, dmftopt.Budget(samples=samples), grid=grid, predict=dmftopt.Exact(limits.least_squares)
    )
    return objective, dmftopt.Protocol(schedules.piecewise_linear(1.0, s["knots"], s["peak"], log=True))


def search(s: dict[str, Any], protocol: dmftopt.Protocol) -> dict[str, Any]:
    """Options of every search. The free knots start from a second shape too; the objective has no noise, so two fresh values
    say all there is."""
    decaying = schedules.piecewise_linear(1.0, s["knots"], schedules.linear_decay(2 * s["peak"], 1.0, 0.05), log=True)
    return {
        "key": jax.random.key(s["seed"]),
        "steps": s["steps"],
        "optimizer": optax.adam(optax.cosine_decay_schedule(0.2, s["steps"], 0.05)),
        "baselines": dmftopt.baselines(protocol, peak=s["peak"]),
        "starts": [dmftopt.Protocol(decaying)],
        "fresh": 2,
        "progress": False,
    }


def cell(kind: str, epochs, samples, **s) -> dict[str, Any]:
    """JSON values: schedules, their risks by all routes, the gains of the optimized one over the others."""
    if kind == "front":
        objective, protocol = build(s["front_delta"], samples, s)
        started = time.perf_counter()
        budgets = [dmftopt.Budget(samples=s["front_delta"] * e) for e in epochs]
        front = dmftopt.pareto(objective, protocol, budgets, **search(s, protocol))
        seconds = time.perf_counter() - started
        points = []
        for budget, found in zip(budgets, front, strict=True):
            best = min(found.tuned, key=lambda name: found.report[name].mean)
            at = eqx.tree_at(lambda o: o.budget, objective, budget)
            points.append(judged(at, {"optimized": found.protocol, best: found.tuned[best]}, s))
        return {"points": points, "design_seconds": seconds}
    objective, protocol = build(samples / epochs if epochs else ONLINE, samples, s)
    started = time.perf_counter()
    found = dmftopt.optimize(objective, protocol, **search(s, protocol))
    seconds = time.perf_counter() - started
    # One more gradient, of which the program is there.
    value = dmftopt.certify(objective, found.protocol, key=jax.random.key(1), keys=2, hessian_keys=1)
    return {
        **judged(objective, {"optimized": found.protocol} | found.tuned, s),
        "ends": found.ends.tolist(),
        "design_seconds": seconds,
        "certificate": {
            "gradient": value.gradient_norm,
            "curvatures": value.curvatures.tolist(),
            # None where it is no minimum: unknown.
            "possible_gain": value.possible_gain if np.isfinite(value.possible_gain) else None,
        },
    }


def judged(objective: dmftopt.Objective, protocols: dict[str, dmftopt.Protocol], s: dict[str, Any]) -> dict[str, Any]:
    """The exact prediction, an independent one, and SGD."""
    key = jax.random.key(s["seed"] + 1)
    online = float(objective.problems[0].delta) == ONLINE
    exact = {name: float(objective(p, key)) for name, p in protocols.items()}
    if online:
        other: Any = dmftopt.Exact(limits.online)
        grid = objective.grid
    else:
        other = dmftopt.Solve(dmftopt.noise.Poisson(), s["predict_samples"], replicates=4)
        grid = dmftopt.TimeGrid.geometric(1.0, s["grid_steps"], 10.0)
    check = dmftopt.Objective(objective.problems[0], objective.budget, grid=grid, predict=other)
    made = dmftopt.report(check, protocols, key=key, fresh=2, progress=False)
    if online:
        batches = {name: trained_once(objective, p, s, key) for name, p in protocols.items()}
    else:
        options: Any = {"key": key, "dimension": s["dimension"], "runs": s["runs"], "fresh": 2, "progress": False}
        batches = {
            name: np.asarray(values[0]) for name, values in dmftopt.report(objective, protocols, **options).batches.items()
        }
    rows = {}
    for name, p in protocols.items():
        rows[name] = {
            "rate": np.asarray(p.learning_rate(np.linspace(0.0, 1.0, 129))).tolist(),
            "exact": exact[name],
            "other_route": made.rows[name][0].predicted._asdict(),
            "sgd": mean_and_error(batches[name]),
            "gain_of_optimized": {
                "exact": exact[name] - exact["optimized"],
                "sgd": mean_and_error(batches[name] - batches["optimized"]),
            },
        }
        if online:
            # The mean of SGD at this dimension, exactly.
            d = s["dimension"]
            rates = objective.run(p).recipe(dimension=d, delta=1.0).learning_rate
            per_step = dmftopt.Protocol(schedules.PerStep(jnp.asarray(rates, dtype=float), d))
            steps: Any = {"dimension": d, "horizon": len(rates) / d, "records": 1}
            recursion = limits.online_least_squares(objective.problems[0], per_step, **steps)
            rows[name]["finite_dimension"] = float(recursion.test_risk[-1])
    delta = None if online else float(objective.problems[0].delta)
    return {"rows": rows, "samples": float(objective.run(protocols["optimized"]).samples), "delta": delta}


def trained_once(objective: dmftopt.Objective, protocol: dmftopt.Protocol, s: dict[str, Any], key) -> np.ndarray:
    """Final test risks of SGD whose samples are all new; the same ones for every protocol."""
    problem, d = objective.problems[0], s["dimension"]
    sizes = np.round(np.asarray(problem.features.weights) * d).astype(int)
    eigenvalues = jnp.repeat(problem.features.eigenvalues, sizes, total_repeat_length=d)
    rates = objective.run(protocol).recipe(dimension=d, delta=1.0).learning_rate
    keys = jax.random.split(key, s["runs"])
    # A teacher of ones: features are as often negative.
    risks = one_pass(problem.task, eigenvalues, jnp.ones((1, d)), jnp.zeros((1, d)), jnp.asarray(rates, dtype=float)[None], keys)
    return np.asarray(risks[:, 0, 0])


def draw(results: dict[str, dict], s: dict[str, Any]) -> Figure:
    figure, axes = plt.subplots(2, 2, figsize=(11.5, 8.6), layout="constrained")
    cells = [results[name] for name in results if name != "front"]
    names = ["online" if e == 0 else str(e) for e in s["epochs"]]
    shapes, risk, gain, front = axes.flat
    draw_schedules(shapes, cells, names)
    draw_risks(risk, gain, cells, names, s)
    draw_front(front, results["front"]["points"], s)
    for a in (risk, front):
        low, high = a.get_ylim()
        ticks = [t for t in (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3) if low <= t <= high]
        a.set_yticks(ticks, [f"{t:g}" for t in ticks])
        a.minorticks_off()
    return figure


def draw_schedules(shapes, cells: list[dict], names: list[str]) -> None:
    shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.88, len(names)))
    for shade, name, c in zip(shades, names, cells, strict=True):
        shapes.plot(np.linspace(0, 1, 129), c["rows"]["optimized"]["rate"], color=shade, lw=2, label=name)
        shapes.plot(np.linspace(0, 1, 129), c["rows"]["linear decay"]["rate"], color=shade, lw=1, ls=":")
    shapes.plot([], [], "k:", lw=1, label="linear decay, tuned")
    shapes.set(xlabel="share of the budget spent", ylabel=r"learning rate $\eta$ (batches of one)", ylim=(0, None))
    shapes.set_title("optimized schedules, by number of epochs")
    shapes.legend(frameon=False, ncols=2, fontsize=9)


def draw_risks(risk, gain, cells: list[dict], names: list[str], s: dict[str, Any]) -> None:
    x, floor = np.arange(len(names)), 0.5 * s["label_noise"] ** 2
    colors = dict(zip(cells[0]["rows"], ["black", *dmftopt.plot.COLORS], strict=False))
    for k, (name, color) in enumerate(colors.items()):
        rows = [c["rows"][name] for c in cells]
        if name in ("optimized", "linear decay", "constant"):
            risk.plot(x, [r["exact"] - floor for r in rows], color=color, label=name)
            mean, error = (np.array([r["sgd"][k] for r in rows]) for k in ("mean", "standard_error"))
            risk.errorbar(x + 0.04 * (k - 1), mean - floor, 2 * error, fmt="o", ms=4, color=color)
        if name != "optimized":
            over = [r["gain_of_optimized"] for r in rows]
            scale = 100 / np.array([r["exact"] - floor for r in rows])
            gain.plot(x, scale * [g["exact"] for g in over], color=color, label=name)
            mean, error = (np.array([g["sgd"][k] for g in over]) for k in ("mean", "standard_error"))
            gain.errorbar(x + 0.05 * (k - 3), scale * mean, 2 * scale * error, fmt="o", ms=4, color=color)
    risk.plot([], [], "k-", label="lines: exact")
    risk.errorbar([], [], [], fmt="ko", ms=4, label="points: SGD, 2 s.e.")
    risk.set(yscale="log", ylabel="test risk above the noise floor", title=f"{s['samples']:g} d samples seen")
    gain.set(ylabel="lower risk above the floor, %", title="gain of the optimized schedule over ...")
    gain.axhline(0, color="0.8", zorder=0)
    gain.set_yscale("symlog", linthresh=2.0)
    gain.set_yticks(ticks := [0, 0.5, 1, 2, 5, 10, 20, 40], [f"{t:g}" for t in ticks])
    for a in (risk, gain):
        a.set_xticks(x, names)
        a.set_xlabel("epochs (training set: samples seen / epochs)")
        a.legend(frameon=False, fontsize=9)


def draw_front(front, points: list[dict], s: dict[str, Any]) -> None:
    floor = 0.5 * s["label_noise"] ** 2
    spent = np.array([p["samples"] for p in points])
    best = [next(name for name in p["rows"] if name != "optimized") for p in points]
    for color, label in (("black", "optimized"), (dmftopt.plot.COLORS[1], "best of the others")):
        rows = [p["rows"]["optimized" if label == "optimized" else b] for p, b in zip(points, best, strict=True)]
        front.plot(spent, [r["exact"] - floor for r in rows], color=color, label=label)
        mean, error = (np.array([r["sgd"][k] for r in rows]) for k in ("mean", "standard_error"))
        front.errorbar(spent * (1.02 if label != "optimized" else 1), mean - floor, 2 * error, fmt="o", ms=4, color=color)
    front.set(xscale="log", yscale="log", xlabel="budget: samples seen / dimension (above: epochs)")
    front.set(ylabel="test risk above the noise floor", title=f"training set of {s['front_delta']:g} d samples")
    front.set_xticks(spent, [f"{v:g}" for v in spent])
    for p, value in zip(points, spent, strict=True):
        y = p["rows"]["optimized"]["exact"] - floor
        front.annotate(f"{value / s['front_delta']:g}", (value, y), (0, 12), textcoords="offset points", ha="center", fontsize=9)
    front.legend(frameon=False)


def tables(results: dict[str, dict]) -> dict[str, str]:
    """What the optimized schedule gains over the others: exact, and in SGD."""
    rows = []
    for name, c in results.items():
        if name == "front":
            continue
        for other in ("constant", "linear decay"):
            r = c["rows"][other]
            gain = r["gain_of_optimized"]
            row = [name, other, f"{r['exact']:.4f}", plus_minus(r["other_route"]), plus_minus(r["sgd"])]
            rows.append([*row, f"{gain['exact']:.4f}", plus_minus(gain["sgd"])])
    header = ["samples seen", "best", "its risk: exact", "other route", "SGD", "the optimized schedule saves: exact", "SGD"]
    return {"gains": markdown(header, rows)}


def main(s: Settings) -> None:
    tiny: Any = {"epochs": (0,), "front_epochs": (2,), "steps": 2, "front_steps": 2, "knots": 3, "spectrum": 8, "exponent": 0.5}
    s = s.sized(**tiny, samples=2.0, grid_steps=4, predict_samples=64, dimension=16, runs=16)
    cells: dict[str, dict[str, Any]] = {}
    for e in s.epochs:
        cells["online" if e == 0 else f"{e} epochs"] = {"kind": "epochs", "epochs": e, "samples": s.samples, "steps": s.steps}
    cells["front"] = {"kind": "front", "epochs": s.front_epochs, "samples": s.samples, "steps": s.front_steps}
    shared = s.without("epochs", "samples", "steps", "front_epochs", "front_steps")
    results = sweep.run(cell, cells, s.folder(__file__) / "cells", shared, s.cluster)
    settings = s.without()
    finish(s, __file__, {"settings": settings, "results": results}, tables(results), draw(results, settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))
