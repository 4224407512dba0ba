"""What is a repeated epoch worth, when the schedule is tuned for it?

A training set of n samples is gone through in shuffled epochs, the learning rate decaying linearly to zero, its peak and a ridge
tuned for each number of epochs on the predicted final test risk. The same plan on fresh samples, each seen once and tuned
likewise, reaches that risk with some number of samples: divided by n this is the number of epochs that the repeated ones are
worth. One pass is worth one, by two routes that share nothing (the solver in epochs, the online limit). Then SGD runs what was
found.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from jaxtyping import Array
from matplotlib.figure import Figure
from scipy.interpolate import PchipInterpolator
from scipy.optimize import minimize_scalar

import dmftopt
from dmftopt import schedules

from ..shared import sweep
from ..shared.results import SweepSettings, finish, markdown, mean_and_error

RIDGES = (0.0, 0.05, 0.2, 0.8)
LADDER = np.log(np.geomspace(0.1, 6.4, 7))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings):
    """Epochs that are repeated against fresh samples."""

    deltas: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Training samples / dimension."""
    epochs: tuple[int, ...] = (1, 2, 4, 8, 16)
    samples: int = 8192
    fresh: int = 4
    """Predictions of what was found."""
    points: int = 18
    """Numbers of fresh samples that are looked at."""
    dimension: int = 810
    runs: int = 32


def problem_of(name: str, delta: float) -> dmftopt.Problem:
    task = {"regression": dmftopt.tasks.LeastSquares(0.5), "classification": dmftopt.tasks.Logistic("logistic")}[name]
    scale = {"regression": 1.0, "classification": 3.0}[name]
    return dmftopt.Problem(task, dmftopt.features.spectrum([4.0, 1.0, 0.25]), delta, scale, 0.0)


def plan(rate: Any, ridge: Any, horizon: Any) -> dmftopt.Protocol:
    return dmftopt.Protocol(lambda t: rate * (1 - t / horizon), 1.0, ridge)


@eqx.filter_jit
def repeated(problem: dmftopt.Problem, rate: Array, ridge: Array, epochs: Array, key: Array, samples: int) -> Array:
    """Final test risk in shuffled epochs, `epochs` at each time of the grid."""
    protocol = plan(rate, ridge, problem.delta * epochs[-1])
    grid = dmftopt.TimeGrid.at_epochs(problem.delta, protocol.batch_size, epochs)
    run = dmftopt.solve(problem, protocol, grid, noise=dmftopt.noise.Shuffled(), samples=samples, key=key, throw=False)
    return run.test_risk[-1]


@eqx.filter_jit
def online(problem: dmftopt.Problem, rate: Array, ridge: Array, horizon: Array) -> Array:
    """Final test risk on fresh samples, horizon * d of them."""
    grid = dmftopt.TimeGrid(horizon * jnp.array([0.0, 1.0]))
    return dmftopt.limits.online(problem, plan(rate, ridge, horizon), grid, throw=False).test_risk[-1]


def tuned(risk: Any) -> tuple[float, float]:
    """The best rate and ridge for `risk`(rate, ridge)."""

    def safe(logarithm, ridge):
        value = float(risk(jnp.asarray(np.exp(logarithm)), jnp.asarray(ridge)))
        return value if np.isfinite(value) else 1e300

    found = []
    for ridge in RIDGES:
        k = int(np.argmin([safe(x, ridge) for x in LADDER]))
        ends = LADDER[max(k - 1, 0)], LADDER[min(k + 1, LADDER.size - 1)]
        best: Any = minimize_scalar(safe, bounds=ends, args=(ridge,), method="bounded", options={"xatol": 0.02})
        found.append((float(best.fun), float(np.exp(best.x)), ridge))
    return min(found)[1:]


def found(name, delta, epochs, *, samples, fresh, points, dimension, runs, seed) -> dict[str, Any]:
    """The tuned plan in so many epochs, predicted anew and in SGD; with epochs 0 the risks of tuned plans on fresh samples.
    JSON values."""
    jax.config.update("jax_enable_x64", True)
    if epochs == 0:
        problem = problem_of(name, 1e6)
        horizons = np.geomspace(0.4, 64.0, points)
        rows = []
        for horizon in horizons:
            best = tuned(lambda rate, ridge, T=horizon: online(problem, rate, ridge, jnp.asarray(T)))
            rate, ridge = map(jnp.asarray, best)
            rows.append(float(online(problem, rate, ridge, jnp.asarray(horizon))))
        return {"horizons": horizons.tolist(), "risks": rows}
    problem = problem_of(name, delta)
    at = dmftopt.TimeGrid.of_epochs(problem, dmftopt.Protocol(1.0), epochs, max(32, 8 * epochs)).epochs
    finer = dmftopt.TimeGrid.of_epochs(problem, dmftopt.Protocol(1.0), epochs, max(64, 16 * epochs)).epochs
    assert at is not None and finer is not None
    key, *others = jax.random.split(jax.random.key(seed), 1 + fresh)
    rate, ridge = tuned(lambda rate, ridge: repeated(problem, rate, ridge, at, key, samples))
    again = [float(repeated(problem, jnp.asarray(rate), jnp.asarray(ridge), finer, k, 2 * samples)) for k in others]
    rough = [float(repeated(problem, jnp.asarray(rate), jnp.asarray(ridge), at, k, samples)) for k in others]
    horizon = delta * epochs
    protocol = dmftopt.Protocol(schedules.linear_decay(rate, horizon), 1.0, ridge)
    options: Any = {"horizon": horizon, "dimension": dimension, "runs": runs, "records": 1, "order": "shuffled"}
    real = dmftopt.simulate.sgd(problem, protocol, key=jax.random.key(seed + 1), **options)
    return {
        "learning_rate": rate,
        "ridge": ridge,
        "risk": mean_and_error(again),
        "refinement": abs(float(np.mean(again) - np.mean(rough))),
        "realized": {"mean": float(real.test_risk[-1]), "standard_error": float(real.standard_error.test_risk[-1])},
    }


def worth(risk: float, error: float, delta: float, reference: dict[str, Any]) -> dict[str, float]:
    """How many passes over as many fresh samples reach the risk, and half the range in which risk ± error leaves that."""
    x, y = np.log(reference["horizons"]), np.asarray(reference["risks"])
    # Risks fall, so they can be read backwards.
    inverse = PchipInterpolator(y[::-1], x[::-1])
    low, middle, high = (float(np.exp(inverse(risk + s * error))) / delta for s in (1, 0, -1))
    return {"mean": middle, "error": 0.5 * (high - low)}


def summarized(rows: dict[str, Any], s: Settings) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name in ("regression", "classification"):
        reference = rows[f"{name}, fresh"]
        cells = {}
        for delta in s.deltas:
            for epochs in s.epochs:
                row = rows[f"{name}, {delta:g} d samples, {epochs} epochs"]
                risk, real = row["risk"], row["realized"]
                whole = 2 * risk["standard_error"] + row["refinement"]
                row["worth"] = worth(risk["mean"], whole, delta, reference)
                row["realized_worth"] = worth(real["mean"], 2 * real["standard_error"], delta, reference)
                cells[f"{delta:g}, {epochs}"] = row
        results[name] = {"fresh": reference, "repeated": cells}
    return results


def tables(results: dict[str, Any], s: Settings) -> dict[str, str]:
    lines = []
    for name, result in results.items():
        for delta in s.deltas:
            line = [name, f"{delta:g}"]
            for epochs in s.epochs:
                row = result["repeated"][f"{delta:g}, {epochs}"]
                a, b = row["worth"], row["realized_worth"]
                found = f"{a['mean']:.2f} / {b['mean']:.2f} ± {b['error']:.2f}"
                line.append(f"{found} ({row['learning_rate']:.2g}, {row['ridge']:g})")
            lines.append(line)
    return {"worth": markdown(["task", "n / d", *(f"epochs: {e}" for e in s.epochs)], lines)}


def draw(results: dict[str, Any], s: Settings) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.6), layout="constrained", sharey=True)
    for ax, (name, result) in zip(axes, results.items(), strict=True):
        ax.plot(s.epochs, s.epochs, color="0.6", lw=1, ls="--", label="as good as fresh samples")
        for k, delta in enumerate(s.deltas):
            rows = [result["repeated"][f"{delta:g}, {e}"] for e in s.epochs]
            color = dmftopt.plot.COLORS[k % len(dmftopt.plot.COLORS)]
            ax.plot(s.epochs, [r["worth"]["mean"] for r in rows], color=color, label=f"n = {delta:g} d")
            real = np.array([[r["realized_worth"]["mean"], r["realized_worth"]["error"]] for r in rows]).T
            ax.errorbar(np.array(s.epochs) * 1.02 ** (k - 1.5), *real, fmt="o", ms=4, lw=1, color=color, mfc="none")
        ax.set(xscale="log", yscale="log", xlabel="epochs", title=name)
        ax.set_xticks(s.epochs, labels=[str(e) for e in s.epochs])
        ax.set_ylim(0.93, 2.5)
        ax.set_yticks([1, 1.25, 1.5, 2], labels=["1", "1.25", "1.5", "2"])
        ax.minorticks_off()
    axes[0].set_ylabel("worth so many epochs of fresh samples\npredicted (lines), SGD with 2 standard errors")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def main(s: Settings) -> None:
    s = s.sized(deltas=(1.0,), epochs=(1, 2), samples=2048, fresh=2, points=4, dimension=42, runs=4)
    names = ("regression", "classification")
    cells: dict[str, Any] = {f"{name}, fresh": {"name": name, "delta": 1.0, "epochs": 0} for name in names}
    for name in names:
        for delta in s.deltas:
            for epochs in s.epochs:
                cell = {"name": name, "delta": delta, "epochs": epochs}
                cells[f"{name}, {delta:g} d samples, {epochs} epochs"] = cell
    rows = sweep.run(found, cells, s.folder(__file__) / "cells", s.without("deltas", "epochs"), s.cluster)
    results = summarized(rows, s)
    finish(s, __file__, {"settings": s.without(), "results": results}, tables(results, s), draw(results, s))


if __name__ == "__main__":
    main(tyro.cli(Settings))
