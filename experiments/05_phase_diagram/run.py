"""Which learning rate is best, and where is SGD unstable, as the training set grows?

Isotropic features, a student that starts at zero, ridge 0.1, batch size 1 (only the temperature eta / B matters, which is
checked), constant learning rates. Every point of the diagram makes the same number of steps, horizon * d: the question is what to
do with a given amount of computation, and a training set of delta * d samples is passed horizon / delta times. Least squares
(label noise 0.5) is predicted exactly by the Volterra equation, logistic regression (labels sign(w)) by `solve` with Poisson
noise, which is SGD itself. The best rate of each delta is compared with a rule of thumb, one over the largest curvature of a
single sample's loss, by theory and in real SGD on common data.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import dmftopt
from dmftopt import limits, tasks

from ..shared import sweep
from ..shared.results import SweepSettings, finish, markdown, mean_and_error, plus_minus

RIDGE = 0.1
TASKS = {"least squares": tasks.LeastSquares(label_noise=0.5), "logistic": tasks.Logistic("sign")}
# One over the largest curvature in r of a single sample's loss, whose features have |x| = 1.
RULE = {"least squares": 1.0, "logistic": 4.0}
# Lowest and highest rate of the diagram, and those tried in SGD: the last of least squares is beyond the critical rate.
RATES = {"least squares": (0.03, 3.5), "logistic": (0.03, 8.0)}
TRIED = {"least squares": [0.1, 0.5, 2.3], "logistic": [0.2, 1.5, 8.0]}
# Of the learning rates with which stability is measured; the clock is the integral of eta / B over a long run.
UNSTABLE, CLOCK = (2.0, 2.6), 100.0
# A risk so large has grown from a start below 1.
GROWN = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings):
    """Phase diagram of the best learning rate and of stability."""

    deltas: int = 12
    """Training samples / dimension: this many, log-spaced from 0.25 to 8."""
    rates: int = 40
    """Learning rates per delta, log-spaced; half as many again around the best."""
    horizon: float = 10.0
    """Steps / dimension."""
    grid_steps: int = 40
    samples: int = 2048
    dimension: int = 600
    """Of real SGD."""
    runs: int = 24


def least_squares(rate, delta, batch, horizon, *, steps, samples, seed):
    """Final test risk, its standard error, and the exponential growth rate of the train loss in the second half."""
    problem = dmftopt.Problem(TASKS["least squares"], dmftopt.features.isotropic(), delta, 1.0, 0.0)
    times = dmftopt.TimeGrid(horizon * jnp.array([0.0, 0.5, 1.0]))
    exact = limits.least_squares(problem, dmftopt.Protocol(rate, batch, RIDGE), times)
    return exact.test_risk[-1], jnp.zeros(()), 2 * jnp.log(exact.train_loss[2] / exact.train_loss[1]) / horizon


def logistic(rate, delta, batch, horizon, *, steps, samples, seed):
    problem = dmftopt.Problem(TASKS["logistic"], dmftopt.features.isotropic(), delta, 1.0, 0.0)
    grid = dmftopt.TimeGrid.uniform(horizon, steps)
    # At the largest rates a step without extrapolation needs several times as many steps (smoke does without, to compile
    # faster). The same key for every rate: the same random points, so that risks differ by the rate alone. delta and batch are
    # traced, which Poisson counts allow as long as nothing is differentiated in them; inside vmap nothing is raised, and what
    # failed is NaN.
    protocol, key = dmftopt.Protocol(rate, batch, RIDGE), jax.random.key(seed)
    options: Any = {"samples": samples, "replicates": 2, "richardson": steps > 4, "key": key, "throw": False}
    solution = dmftopt.solve(problem, protocol, grid, **options)
    return solution.test_risk[-1], solution.standard_error.test_risk[-1], jnp.zeros(())


def real_sgd(key, *, task, delta, batch, horizon, dimension, rates):
    """Final test risk of one run of SGD per rate, all on the same data in the same order."""
    with jax.ensure_compile_time_eval():
        problem = dmftopt.Problem(TASKS[task], dmftopt.features.isotropic(), delta, 1.0, 0.0)
    options: Any = {"horizon": horizon, "dimension": dimension, "runs": 1, "records": 1, "key": key}

    def final(rate):
        return dmftopt.simulate.sgd(problem, dmftopt.Protocol(rate, batch, RIDGE), **options).test_risk[-1]

    return jax.vmap(final)(jnp.array(rates))


def cell(task, delta, tried, batches, *, rates, horizon, grid_steps, samples, dimension, runs, seed) -> dict[str, Any]:
    """All of one task and delta: risks over the rates, the best rate, stability, and what real SGD says. JSON values.

    At the rates `tried` but the last SGD also runs with `batches`, at the same temperature and over as many samples."""
    jax.config.update("jax_enable_x64", True)
    together = rates // 2

    def predicted(*arguments):
        """Of learning rates, batch size and horizon, some multiple of `together` points: all in one compiled function."""
        given = np.broadcast_arrays(arguments[0], delta, *arguments[1:])
        function = {"least squares": least_squares, "logistic": logistic}[task]
        fixed = {"steps": grid_steps, "samples": samples, "seed": seed}
        parts = [sweep.over_devices(function, *g, **fixed) for g in zip(*(a.reshape(-1, together) for a in given), strict=True)]
        return np.concatenate(parts, axis=1)

    def trained(temperatures, batch=1, dimension=dimension):
        """(run, temperature). A few runs at a time: each has its own data."""
        fixed: Any = {"task": task, "delta": delta, "dimension": dimension, "batch": float(batch), "horizon": horizon / batch}
        fixed["rates"] = tuple(float(batch * t) for t in temperatures)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed + 1), round(1000 * delta) + dimension), runs)
        return np.concatenate([sweep.over_devices(real_sgd, k, **fixed) for k in jnp.array_split(keys, max(1, runs // 8))])

    grid = np.geomspace(*RATES[task], 2 * together)
    risk, error, _ = predicted(grid, 1.0, horizon)
    i = int(np.nanargmin(risk))
    # The rule's, the tried ones, and the rest around the best: near a minimum that is dense enough.
    values = np.array([RULE[task], *tried])
    first = len(values)
    values = np.append(values, np.geomspace(grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)], together - first))
    near, _, _ = predicted(values, 1.0, horizon)
    best = int(np.nanargmin(near[first:])) + first
    shown = [*range(first), best]
    final = trained(values[shown])
    gains = final[:, 0] - final[:, -1]
    result: dict[str, Any] = {
        "rates": grid,
        "risk": [a if np.isfinite(a) else None for a in risk.tolist()],
        "largest_standard_error": np.nanmax(error),
        "best": {"rate": values[best], "at_edge": i in (0, len(grid) - 1), "predicted": near[best], "predicted_at_rule": near[0]},
        "gain": {"predicted": near[0] - near[best], **mean_and_error(gains)},
        "simulated": [],
    }
    for batch in (1, *batches):
        same, same_error, _ = predicted(batch * values, float(batch), horizon / batch)
        if batch > 1:
            result[f"largest_relative_change_with_batch_{batch}"] = np.nanmax(np.abs(same / near - 1))
            shown, final = range(1, first - 1), trained(tried[:-1], batch)
        for j, f in zip(shown, final.T, strict=True):
            half = trained(values[j : j + 1], 1, dimension // 2)[:, 0] if same[j] > GROWN else None
            result["simulated"].append({"temperature": values[j], "batch": batch, **compared(same[j], same_error[j], f, half)})
    if task == "least squares":
        result |= stability(predicted, delta, (1, *batches), 2 * together)
    return jax.tree.map(lambda a: a if isinstance(a, (bool, int, str)) else np.asarray(a).tolist(), result)


def stability(predicted, delta: float, batches, count: int) -> dict[str, Any]:
    """The critical temperature of least squares, from its formula and from the growth of the loss."""
    problem = dmftopt.Problem(TASKS["least squares"], dmftopt.features.isotropic(), delta, 1.0, 0.0)
    found: dict[str, Any] = {"critical": limits.critical_learning_rate(problem, RIDGE)}
    for batch in batches:
        temperature = np.linspace(*UNSTABLE, count)
        _, _, growth = predicted(batch * temperature, float(batch), CLOCK / (batch * temperature))
        found[f"measured_critical_batch_{batch}"] = vanishing(growth / (batch * temperature), temperature)
    return found


def vanishing(growth, temperature) -> float:
    """The temperature eta / B at which the growth rate of the loss (in the clock) goes to zero, from those at which it grew by
    at least e^5 in half of the clock. One over the temperature is a smooth function of the growth rate."""
    grew = growth * CLOCK / 2 > 5
    return 1 / np.polyval(np.polyfit(growth[grew], 1 / temperature[grew], min(4, grew.sum() - 1)), 0.0)


def compared(predicted, predicted_error, final, half) -> dict[str, Any]:
    """`final`: risks of runs. Where they grew, so did their relative finite-size effects, of order 1/d: there the logarithm is
    compared, extrapolated in 1/d with `half`, those at half the dimension."""
    found = mean_and_error(final)
    row = {"predicted": predicted, "mean": found["mean"], "compared": "risk"}
    reference, mean, error = predicted, row["mean"], np.hypot(found["standard_error"], predicted_error)
    if half is not None:
        found, halved = mean_and_error(np.log(final)), mean_and_error(np.log(half))
        reference, mean = np.log(predicted), 2 * found["mean"] - halved["mean"]
        error = np.hypot(2 * found["standard_error"], halved["standard_error"])
        row |= {"compared": "log risk, extrapolated to infinite d", "predicted_log": reference, "extrapolated_log": mean}
    agrees = bool(abs(mean - reference) <= 2 * error + 0.01 * abs(reference))
    return row | {"standard_error": error, "z": (mean - reference) / error, "agrees": agrees}


def draw(results: dict[str, dict[float, dict]]) -> Figure:
    figure, axes = plt.subplots(2, 3, figsize=(16, 9), layout="constrained", width_ratios=(1.25, 1, 1))
    for (task, rows), (heat, cuts, gain) in zip(results.items(), axes, strict=True):
        draw_diagram(figure, heat, task, rows)
        draw_cuts(cuts, task, rows)
        draw_gain(gain, task, rows)
        for a in (heat, gain):
            a.set(xscale="log", xlabel=r"$\delta$ = training samples / dimension")
            a.set_xticks([0.25, 0.5, 1, 2, 4, 8], labels=["1/4", "1/2", "1", "2", "4", "8"])
            a.xaxis.minorticks_off()
    return figure


def scale(task: str, rows: dict[float, dict]) -> tuple[float, float, list[float]]:
    """Colors up to twice the risk of a student at zero; what is above, or infinite, is beyond the color bar."""
    risk = np.array([row["risk"] for row in rows.values()], dtype=float)
    low = np.nanmin(risk)
    high = min(np.nanmax(risk), {"least squares": 1 + 0.5**2, "logistic": 2 * np.log(2)}[task])
    return low, high, [t for t in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.4) if low <= t <= high]


def draw_diagram(figure: Figure, heat, task: str, rows: dict[float, dict]) -> None:
    deltas, rates = np.array(list(rows)), np.array(next(iter(rows.values()))["rates"])
    risk = np.array([row["risk"] for row in rows.values()], dtype=float)
    low, high, ticks = scale(task, rows)
    colors = {"norm": LogNorm(low, high), "cmap": plt.get_cmap("viridis").with_extremes(over="0.85", bad="0.85")}
    mesh = heat.pcolormesh(deltas, rates, risk.T, shading="nearest", rasterized=True, **colors)
    bar = figure.colorbar(mesh, ax=heat, extend="max", label="test risk after the last step (gray: above)")
    bar.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
    bar.minorticks_off()
    heat.plot(deltas, [r["best"]["rate"] for r in rows.values()], color="white", lw=2.5, label="best rate")
    heat.axhline(RULE[task], color="white", ls=":", lw=2, label=f"rule of thumb: {RULE[task]:g}")
    if task == "least squares":
        heat.plot(deltas, [r["critical"] for r in rows.values()], "r-", lw=2, label="critical: formula")
        measured = [r["measured_critical_batch_1"] for r in rows.values()]
        heat.plot(deltas, measured, "rx", ms=7, label="critical: growth of the loss")
    points = [(d, p) for d, r in rows.items() for p in r["simulated"] if p["batch"] == 1]
    edges = ["black" if p["agrees"] else "magenta" for _, p in points]
    x, y, c = zip(*((d, p["temperature"], p["mean"]) for d, p in points), strict=True)
    heat.scatter(x, y, 45, c, edgecolors=edges, zorder=3, label="SGD (magenta: disagrees)", **colors)
    heat.set(title=task, ylabel=r"temperature $\eta/B$ = learning rate / batch size", yscale="log")
    look: Any = {"facecolor": "0.35", "labelcolor": "white", "fontsize": 8, "columnspacing": 1.0}
    heat.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, **look)


def draw_cuts(cuts, task: str, rows: dict[float, dict]) -> None:
    rates = np.array(next(iter(rows.values()))["rates"])
    low, high, ticks = scale(task, rows)
    for d, color in zip([d for d, r in rows.items() if len(r["simulated"]) > 2], dmftopt.plot.COLORS, strict=False):
        cuts.plot(rates, np.array(rows[d]["risk"], dtype=float), color=color, label=rf"$\delta$ = {d:.3g}")
        for p in rows[d]["simulated"]:
            style: Any = {"fmt": "o", "ms": 4} if p["batch"] == 1 else {"fmt": "s", "ms": 8, "mfc": "none"}
            error = 2 * p["standard_error"] if p["compared"] == "risk" else None
            cuts.errorbar(p["temperature"], p["mean"], error, color=color, **style)
    cuts.set(xscale="log", yscale="log", ylim=(0.9 * low, 1.2 * high), xlabel=r"temperature $\eta/B$", ylabel="test risk")
    cuts.set_yticks(ticks, labels=[f"{t:g}" for t in ticks])
    cuts.minorticks_off()
    cuts.set_title("theory (lines), SGD with 2 standard errors\n(squares: batches of 4)", fontsize=11)
    cuts.legend(frameon=False)


def draw_gain(gain, task: str, rows: dict[float, dict]) -> None:
    deltas = np.array(list(rows))
    predicted, realized, errors = (
        np.array([r["gain"][k] for r in rows.values()]) for k in ("predicted", "mean", "standard_error")
    )
    gain.plot(deltas, predicted, color="0.3", label="predicted")
    gain.errorbar(deltas, realized, 2 * errors, fmt="o", color=dmftopt.plot.COLORS[1], label="SGD, 2 standard errors")
    gain.set(title=f"risk saved: best rate against {RULE[task]:g}", ylabel="test risk saved")
    gain.set_ylim(bottom=0)
    gain.legend(frameon=False)


def tables(results: dict[str, dict[float, dict]]) -> dict[str, str]:
    """The best rates, and what they save; agreement with SGD, and stability by two routes."""
    best, agreement = [], []
    for task, rows in results.items():
        for delta, row in rows.items():
            edge = " (edge)" if row["best"]["at_edge"] else ""
            line = [task, f"{delta:.3g}", f"{row['best']['rate']:.3g}{edge}", f"{row['best']['predicted']:.4f}"]
            best.append([*line, f"{row['gain']['predicted']:.4f}", plus_minus(row["gain"])])
        points = [p for row in rows.values() for p in row["simulated"]]
        changes = [v for row in rows.values() for k, v in row.items() if k.startswith("largest_relative")]
        apart = [abs(r[k] / r["critical"] - 1) for r in rows.values() for k in r if k.startswith("measured")]
        numbers = (f"{max(a):.1e}" if a else "" for a in (changes, apart))
        agreement.append([task, f"{sum(p['agrees'] for p in points)} of {len(points)}", *numbers])
    saved = f"saved over {' and '.join(f'{RULE[task]:g} ({task})' for task in results)}: predicted"
    columns = ["", "simulated points that agree (2 s.e. + 1%)", "change with batches of 4", "critical rate, two routes apart"]
    return {
        "best rates": markdown(["", "delta", "best rate", "its risk", saved, "SGD"], best),
        "agreement": markdown(columns, agreement),
    }


def main(s: Settings) -> None:
    s = s.sized(deltas=1, rates=12, grid_steps=4, samples=64, dimension=30, runs=2)
    deltas = np.geomspace(0.25, 8.0, s.deltas).tolist()
    # SGD is tried low, in the middle, where also in batches of 4, and high.
    middle = deltas[s.deltas // 2]
    tried = {deltas[s.deltas // 6], middle, deltas[-1 - s.deltas // 6]}
    cells = {f"{task}, delta={delta:.3g}": {"task": task, "delta": delta} for task in TASKS for delta in deltas}
    for c in cells.values():
        c["tried"] = TRIED[c["task"]] if c["delta"] in tried else []
        # Compilation is all that smoke takes.
        c["batches"] = [4] if c["delta"] == middle and not (s.smoke and c["task"] == "logistic") else []
    shared = s.without("deltas")
    done = sweep.run(cell, cells, s.folder(__file__) / "cells", shared, s.cluster)
    results: dict[str, Any] = {t: {c["delta"]: done[name] for name, c in cells.items() if c["task"] == t} for t in TASKS}
    settings = {**shared, "deltas": deltas, "ridge": RIDGE}
    finish(s, __file__, {"settings": settings, "results": results}, tables(results), draw(results))


if __name__ == "__main__":
    main(tyro.cli(Settings))
