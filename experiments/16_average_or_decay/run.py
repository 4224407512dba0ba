"""Average the weights, or let the learning rate decay?

A constant learning rate with an EMA or with the mean of a tail of the run (SWA), against a linear decay to zero, and both
together: linear regression and a committee of two units with noisy labels, features of two scales, shuffled
epochs, batches of one. Learning rate, memory of the EMA and beginning of the tail are tuned for each number of epochs, on the
predicted final test risk. Averages cost nothing here: they follow from the two-time correlation of one predicted run. Then SGD
keeps the same averages.
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

import dmftopt
from dmftopt import averages, schedules

from ..shared import sweep
from ..shared.results import SweepSettings, finish, markdown, mean_and_error, plus_minus

DECAYS = {"constant": 0.0, "linear decay": 1.0}
# Memories of an EMA, and beginnings of a tail, as shares of the run.
MEMORIES = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
STARTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
KEPT = ("last", "EMA", "tail")
RATES = {"linear": (0.15, 2.0), "committee": (0.2, 2.5)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings):
    """Averages of the weights against decay of the learning rate."""

    epochs: tuple[int, ...] = (1, 2, 4)
    delta: float = 2.0
    """Training samples / dimension."""
    label_noise: float = 0.5
    rates: int = 12
    """How many learning rates are tried."""
    steps: int = 32
    samples: int = 16384
    fresh: int = 4
    """Predictions of what was found."""
    dimension: int = 800
    runs: int = 64


def problem_of(name: str, delta: float, label_noise: float) -> dmftopt.Problem:
    spectrum = dmftopt.features.spectrum([1.6, 0.4], [0.5, 0.5])
    if name == "linear":
        return dmftopt.Problem(dmftopt.tasks.LeastSquares(label_noise), spectrum, delta, 1.0, 0.5)
    lean = np.eye(4)
    for a in range(2):
        # Each student unit begins closer to a teacher unit of its own.
        lean[a, 2 + a] = lean[2 + a, a] = 0.4
    committee = dmftopt.tasks.Committee(2, 2, activation="erf", label_noise=label_noise)
    return dmftopt.Problem(committee, spectrum, delta, 1.0, 0.5, initial_correlation=lean)


@eqx.filter_jit
def predicted(problem: dmftopt.Problem, rate: Array, decay: Array, epochs: Array, key: Array, samples: int) -> dict[str, Array]:
    """Final test risks: of the last iterate (1,), of the EMA of every memory, of the mean from every start. `epochs`: at each
    time of the grid. One program for all rates, decays and numbers of epochs."""
    horizon = problem.delta * epochs[-1]
    protocol = dmftopt.Protocol(lambda t: rate * (1 - decay * t / horizon), 1.0)
    grid = dmftopt.TimeGrid.at_epochs(problem.delta, protocol.batch_size, epochs)
    run = dmftopt.solve(problem, protocol, grid, noise=dmftopt.noise.Shuffled(), samples=samples, key=key, throw=False)

    def kept(average):
        return dmftopt.averaged(run, problem, average).test_risk[-1]

    return {
        "last": run.test_risk[-1:],
        "EMA": jax.vmap(lambda share: kept(averages.Exponential(share * horizon)))(jnp.asarray(MEMORIES)),
        "tail": jax.vmap(lambda share: kept(averages.Polyak(share * horizon)))(jnp.asarray(STARTS)),
    }


def average_of(kept: str, which: int, horizon: float, dimension: int) -> Any:
    match kept:
        case "EMA":
            return averages.Exponential(MEMORIES[which] * horizon)
        case "tail":
            return averages.Polyak(STARTS[which] * horizon)
    # The mean of the last iterate alone.
    return averages.Polyak(horizon - 0.9 / dimension)


def found(name, epochs, *, delta, label_noise, rates, steps, samples, fresh, dimension, runs, seed) -> dict[str, Any]:
    """The best learning rate and average of every kind, predicted anew and in SGD. JSON values."""
    problem = problem_of(name, delta, label_noise)
    at = dmftopt.TimeGrid.of_epochs(problem, dmftopt.Protocol(1.0), epochs, steps).epochs
    assert at is not None
    tried_rates = np.geomspace(*RATES[name], rates)
    key, *others = jax.random.split(jax.random.key(seed), 1 + fresh)

    def risks(rate, decay, key):
        return predicted(problem, jnp.asarray(rate), jnp.asarray(decay), at, key, samples)

    def trained(protocol, average):
        size: Any = {"horizon": delta * epochs, "dimension": dimension, "runs": runs, "records": 1}
        how: Any = {"order": "shuffled", "average": average, "key": jax.random.key(seed + 1)}
        result = dmftopt.simulate.sgd(problem, protocol, **size, **how)
        return {"mean": float(result.test_risk[-1]) - floor, "standard_error": float(result.standard_error.test_risk[-1])}

    rows, horizon, floor = {}, delta * epochs, 0.5 * label_noise**2
    for schedule, decay in DECAYS.items():
        tried = [risks(rate, decay, key) for rate in tried_rates]
        for kept in KEPT:
            table = np.array([risk[kept] for risk in tried], dtype=float)
            best, which = np.unravel_index(np.nanargmin(table), table.shape)
            rate = float(tried_rates[best])
            protocol = dmftopt.Protocol(schedules.linear_decay(rate, horizon, 1 - decay))
            rows[f"{schedule}, {kept}"] = {
                "learning_rate": rate,
                "average": {"last": (None,), "EMA": MEMORIES, "tail": STARTS}[kept][which],
                "excess": mean_and_error([float(risks(rate, decay, k)[kept][which]) - floor for k in others]),
                "realized": trained(protocol, average_of(kept, int(which), horizon, dimension)),
            }
    return rows


def tables(results: dict[str, Any]) -> dict[str, str]:
    cells = {(name, epochs): rows for name, by_epochs in results.items() for epochs, rows in by_epochs.items()}
    lines = []
    for plan in next(iter(cells.values())):
        line = [plan]
        for rows in cells.values():
            row = rows[plan]
            at = f"{row['learning_rate']:.2g}" + ("" if row["average"] is None else f", {row['average']:.2g}")
            line.append(f"{row['excess']['mean']:.4f} / {plus_minus(row['realized'])} ({at})")
        lines.append(line)
    return {"excess": markdown(["plan", *(f"{name}, epochs: {epochs}" for name, epochs in cells)], lines)}


def draw(results: dict[str, Any]) -> Figure:
    figure, axes = plt.subplots(1, len(results), figsize=(6.2 * len(results), 4.6), layout="constrained")
    for ax, (name, by_epochs) in zip(axes, results.items(), strict=True):
        epochs = np.array([int(e) for e in by_epochs])
        for k, plan in enumerate(next(iter(by_epochs.values()))):
            rows = [by_epochs[e][plan] for e in by_epochs]
            color, style = dmftopt.plot.COLORS[k % len(KEPT)], "-" if k < len(KEPT) else "--"
            ax.plot(epochs, [row["excess"]["mean"] for row in rows], style, color=color, label=plan)
            real = np.array([[row["realized"]["mean"], row["realized"]["standard_error"]] for row in rows]).T
            shifted = epochs * 1.02 ** (k - 2.5)
            ax.errorbar(shifted, real[0], 2 * real[1], fmt="o" if k < len(KEPT) else "s", ms=4, lw=1, color=color, mfc="none")
        ax.set(xscale="log", yscale="log", xlabel="epochs", title=f"{name}: tuned plans")
        ax.set_xticks(epochs, labels=[str(e) for e in epochs])
        ax.minorticks_off()
        ax.set_ylabel("excess test risk: predicted (lines), SGD with 2 standard errors")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def main(s: Settings) -> None:
    s = s.sized(epochs=(1, 2), rates=2, steps=8, samples=512, fresh=2, dimension=20, runs=4)
    cells = {f"{name}, {epochs} epochs": {"name": name, "epochs": epochs} for name in RATES for epochs in s.epochs}
    rows = sweep.run(found, cells, s.folder(__file__) / "cells", s.without("epochs"), s.cluster)
    results = {name: {str(epochs): rows[f"{name}, {epochs} epochs"] for epochs in s.epochs} for name in RATES}
    finish(s, __file__, {"settings": s.without(), "results": results}, tables(results), draw(results))


if __name__ == "__main__":
    main(tyro.cli(Settings))
