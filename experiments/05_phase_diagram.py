"""Which learning rate is best, and where is SGD unstable, as the training set grows?

Isotropic features, a student that starts at zero, ridge 0.1, batch size 1 (only the temperature eta / B matters, which is
checked), constant learning rates. Every point of the diagram makes the same number of steps, horizon * d: the question is what to
do with a given amount of computation, and a training set of delta * d samples is passed horizon / delta times. Least squares
(label noise 0.5) is predicted exactly by the Volterra equation, logistic regression (labels sign(w)) by `solve` with Poisson
noise, which is SGD itself. The best rate of each delta is compared with a rule of thumb, one over the largest curvature of a
single sample's loss, by theory and in real SGD on common data. Writes results/05_phase_diagram/{figure.png,result.json}, and
cells/: a second call goes on where the first stopped.
"""

import dataclasses
from pathlib import Path
from typing import Any

import _common
import _sweep
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.colors import LogNorm

import dmftopt
from dmftopt import limits, tasks

plt.switch_backend("agg")
RIDGE = 0.1
TASKS = {"least squares": tasks.LeastSquares(label_noise=0.5), "logistic": tasks.Logistic("sign")}
# One over the largest curvature in r of a single sample's loss, whose features have |x| = 1.
RULE = {"least squares": 1.0, "logistic": 4.0}
# Lowest and highest rate of the diagram, and those tried in SGD: the last of least squares is beyond the critical rate.
RATES = {"least squares": (0.03, 3.5), "logistic": (0.03, 8.0)}
TRIED = {"least squares": [0.1, 0.5, 2.5], "logistic": [0.2, 1.5, 8.0]}
# Of the learning rates with which stability is measured; the clock is the integral of eta / B over a long run.
UNSTABLE, CLOCK = (2.0, 3.2), 40.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """Phase diagram of the best learning rate and of stability."""

    deltas: int = 12
    """Training samples / dimension: this many, log-spaced from 0.25 to 8."""
    rates: int = 40
    """Learning rates per delta, log-spaced; as many again around the best."""
    horizon: float = 10.0
    """Steps / dimension."""
    grid_steps: int = 48
    samples: int = 2048
    dimension: int = 600
    """Of real SGD."""
    runs: int = 24
    seed: int = 0
    cluster: str | None = None
    """None: in this process; "local": worker processes; "tcp://host:port": an existing Dask scheduler."""
    smoke: bool = False
    """Tiny sizes: shows that everything works, agrees with nothing."""
    out: Path = Path("results/05_phase_diagram")


def least_squares(rate, delta, batch, horizon, *, steps, samples, seed):
    """Final test risk, its standard error, and the exponential growth rate of the train loss in the second half."""
    problem = dmftopt.Problem(TASKS["least squares"], dmftopt.features.isotropic(), delta, 1.0, 0.0)
    times = dmftopt.TimeGrid(horizon * jnp.array([0.0, 0.5, 1.0]))
    exact = limits.least_squares(problem, dmftopt.Protocol(rate, batch, RIDGE), times)
    return exact.test_risk[-1], jnp.zeros(()), 2 * jnp.log(exact.train_loss[2] / exact.train_loss[1]) / horizon


def logistic(rate, delta, batch, horizon, *, steps, samples, seed):
    problem = dmftopt.Problem(TASKS["logistic"], dmftopt.features.isotropic(), delta, 1.0, 0.0)
    grid = dmftopt.TimeGrid.uniform(horizon, steps)
    # At the largest rates a step without extrapolation needs several times as many steps. The same key for every rate: the
    # same random points, so that risks differ by the rate alone. delta and batch are traced, which Poisson counts allow as
    # long as nothing is differentiated in them; inside vmap nothing is raised, and what failed is NaN.
    protocol, key = dmftopt.Protocol(rate, batch, RIDGE), jax.random.key(seed)
    options: Any = {"samples": samples, "replicates": 2, "richardson": True, "key": key, "throw": False}
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

    At the rates `tried` SGD also runs with `batches`, at the same temperature and over as many samples."""
    jax.config.update("jax_enable_x64", True)

    def predicted(rates, batch=1.0, horizon=horizon):
        fixed = {"steps": grid_steps, "samples": samples, "seed": seed}
        rates, delta_, batch, horizon = np.broadcast_arrays(rates, delta, batch, horizon)
        function = {"least squares": least_squares, "logistic": logistic}[task]
        return [np.asarray(a) for a in _sweep.over_devices(function, rates, delta_, batch, horizon, **fixed)]

    def trained(rates, batch=1):
        """(run, rate)."""
        fixed: Any = {"task": task, "delta": delta, "dimension": dimension, "batch": float(batch), "horizon": horizon / batch}
        keys = jax.random.split(jax.random.key(seed + 1), runs)
        fixed["rates"] = tuple(batch * r for r in rates)
        # A few runs at a time: each has its own data.
        return np.concatenate([_sweep.over_devices(real_sgd, k, **fixed) for k in jnp.split(keys, max(1, runs // 8))])

    grid = np.geomspace(*RATES[task], rates)
    risk, error, _ = predicted(grid)
    i = int(np.nanargmin(risk))
    # As many rates once more: the rule's, the tried ones, and the rest around the best, which near a minimum is dense enough.
    given = [RULE[task], *tried]
    values = np.append(given, np.geomspace(grid[max(i - 1, 0)], grid[min(i + 1, rates - 1)], rates - len(given)))
    near, near_error, _ = predicted(values)
    best = int(np.nanargmin(near[len(given) :])) + len(given)
    shown = [*range(len(given)), best]
    final = trained(values[shown])
    gains = final[:, 0] - final[:, -1]
    result: dict[str, Any] = {
        "rates": grid.tolist(),
        "risk": [a if np.isfinite(a) else None for a in risk.tolist()],
        "largest_standard_error": np.nanmax(error),
        "best": {"rate": values[best], "at_edge": i in (0, rates - 1), "predicted": near[best], "predicted_at_rule": near[0]},
        "gain": {"predicted": near[0] - near[best], "realized": np.mean(gains), "standard_error": standard_error(gains)},
        "simulated": [compared(values[j], 1, near[j], near_error[j], final[:, k]) for k, j in enumerate(shown)],
    }
    for batch in batches:
        same, same_error, _ = predicted(batch * values, batch, horizon / batch)
        result[f"largest_relative_change_with_batch_{batch}"] = np.nanmax(np.abs(same / near - 1))
        for j, f in enumerate(trained(tried, batch).T, start=1):
            result["simulated"].append(compared(values[j], batch, same[j], same_error[j], f))
    if task == "least squares":
        problem = dmftopt.Problem(TASKS[task], dmftopt.features.isotropic(), delta, 1.0, 0.0)
        result["critical"] = limits.critical_learning_rate(problem, RIDGE)
        for batch in (1, *batches):
            temperature = np.linspace(*UNSTABLE, rates)
            _, _, growth = predicted(batch * temperature, batch, CLOCK / (batch * temperature))
            result[f"measured_critical_batch_{batch}"] = vanishing(growth / (batch * temperature), temperature)
    return jax.tree.map(lambda a: a if isinstance(a, (bool, int, str)) else float(a), result)


def vanishing(growth, temperature) -> float:
    """The temperature eta / B at which the growth rate of the loss (in the clock) goes to zero, from those at which it grew by
    at least e^5 in half of the clock. One over the temperature is a smooth function of the growth rate."""
    grew = growth * CLOCK / 2 > 5
    return 1 / np.polyval(np.polyfit(growth[grew], 1 / temperature[grew], min(4, grew.sum() - 1)), 0.0)


def standard_error(values) -> float:
    return np.std(values, ddof=1) / np.sqrt(len(values))


def compared(temperature, batch, predicted, predicted_error, final) -> dict[str, Any]:
    mean, error = np.mean(final), np.hypot(standard_error(final), predicted_error)
    return {
        "temperature": temperature,
        "batch": batch,
        "predicted": predicted,
        "mean": mean,
        "combined_standard_error": error,
        "z": (mean - predicted) / error,
        "agrees": bool(abs(mean - predicted) <= 2 * error + 0.01 * predicted),
    }


def draw(results: dict[str, dict[float, dict]], path: Path) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(15, 8.4), layout="constrained", width_ratios=(1.25, 1, 1))
    for (task, rows), (heat, cuts, gain) in zip(results.items(), axes, strict=True):
        deltas, rates = np.array(list(rows)), np.array(next(iter(rows.values()))["rates"])
        risk = np.array([row["risk"] for row in rows.values()], dtype=float)
        # Colors up to twice the risk of the student at zero; what is above, or infinite, is beyond the color bar.
        zero = {"least squares": 0.5 * (1 + 0.5**2), "logistic": np.log(2)}[task]
        norm, colors = LogNorm(np.nanmin(risk), 2 * zero), plt.get_cmap("viridis").with_extremes(over="0.85", bad="0.85")
        mesh = heat.pcolormesh(deltas, rates, risk.T, norm=norm, cmap=colors, shading="nearest", rasterized=True)
        bar = figure.colorbar(mesh, ax=heat, extend="max", label="test risk after the last step")
        ticks = [t for t in (0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4) if norm.vmin <= t <= norm.vmax]
        bar.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
        bar.minorticks_off()
        heat.plot(deltas, [r["best"]["rate"] for r in rows.values()], "-", color="white", lw=2.5, label="best rate")
        heat.axhline(RULE[task], color="white", ls=":", lw=2, label=f"rule of thumb, {RULE[task]:g}")
        if task == "least squares":
            heat.plot(deltas, [r["critical"] for r in rows.values()], "r-", lw=2, label="critical rate, formula")
            measured = [r["measured_critical_batch_1"] for r in rows.values()]
            heat.plot(deltas, measured, "rx", ms=7, label="critical rate, from growth of the loss")
        for good, edge in ((True, "black"), (False, "magenta")):
            points = [(d, p) for d, r in rows.items() for p in r["simulated"] if p["agrees"] == good and p["batch"] == 1]
            if points:
                xy = [(d, p["temperature"]) for d, p in points]
                label = "SGD, its color; " + ("agrees" if good else "does not agree")
                style: Any = {"c": [p["mean"] for _, p in points], "norm": norm, "cmap": colors, "edgecolors": edge}
                heat.scatter(*np.transpose(xy), s=45, label=label, zorder=3, **style)
        heat.set(xscale="log", yscale="log", xlabel=r"$\delta$ = training samples / dimension", title=task)
        heat.set_ylabel(r"temperature $\eta/B$ = learning rate / batch size")
        heat.legend(fontsize=8, loc="lower right", facecolor="0.35", labelcolor="white", framealpha=0.9)
        tried = [d for d, r in rows.items() if len(r["simulated"]) > 2]
        for d, color in zip(tried, dmftopt.plot.COLORS, strict=False):
            cuts.plot(rates, np.array(rows[d]["risk"], dtype=float), color=color, label=rf"$\delta$ = {d:.3g}")
            for p in rows[d]["simulated"]:
                style = {"fmt": "o", "ms": 4} if p["batch"] == 1 else {"fmt": "s", "ms": 8, "mfc": "none"}
                cuts.errorbar(p["temperature"], p["mean"], 2 * p["combined_standard_error"], color=color, **style)
        cuts.set(xscale="log", yscale="log", ylim=(0.9 * norm.vmin, 3 * norm.vmax), xlabel=r"temperature $\eta/B$")
        cuts.set(ylabel="test risk", title="theory (lines), SGD with 2 standard errors\n(squares: batches of 4)")
        cuts.legend(frameon=False)
        gains = [r["gain"] for r in rows.values()]
        gain.plot(deltas, [g["predicted"] for g in gains], color="0.3", label="predicted")
        realized, errors = ([g[k] for g in gains] for k in ("realized", "standard_error"))
        gain.errorbar(deltas, realized, 2 * np.array(errors), fmt="o", color=dmftopt.plot.COLORS[1], label="real SGD")
        gain.axhline(0, color="0.8", zorder=0)
        gain.set(xscale="log", xlabel=r"$\delta$ = training samples / dimension", ylabel="test risk saved")
        gain.set_title(f"what the best rate saves over {RULE[task]:g}")
        gain.legend(frameon=False)
    for a in axes[:, [0, 2]].flat:
        a.set_xticks([0.25, 0.5, 1, 2, 4, 8], labels=["1/4", "1/2", "1", "2", "4", "8"])
        a.minorticks_off()
    _common.write_figure(path, figure)
    plt.close(figure)


def main(s: Settings) -> None:
    if s.smoke:
        tiny: Any = {"deltas": 3, "rates": 8, "grid_steps": 4, "samples": 128, "dimension": 30, "runs": 2}
        s = dataclasses.replace(s, out=s.out.with_name(s.out.name + "_smoke"), **tiny)
    deltas = np.geomspace(0.25, 8.0, s.deltas).tolist()
    # SGD is tried low, in the middle, where also in batches of 4, and high.
    middle = deltas[s.deltas // 2]
    tried = {deltas[s.deltas // 6], middle, deltas[-1 - s.deltas // 6]}
    cells = {
        f"{task}, delta={delta:.3g}": {
            "task": task,
            "delta": delta,
            "tried": TRIED[task] if delta in tried else [],
            "batches": [4] if delta == middle else [],
        }
        for task in TASKS
        for delta in deltas
    }
    shared = {k: v for k, v in dataclasses.asdict(s).items() if k not in ("deltas", "cluster", "smoke", "out")}
    done = _sweep.run(cell, cells, s.out / "cells", shared, s.cluster)
    results: dict[str, dict[float, dict]] = {
        task: {c["delta"]: done[name] for name, c in cells.items() if c["task"] == task} for task in TASKS
    }
    _common.write_json(s.out / "result.json", {"settings": {**shared, "deltas": deltas, "ridge": RIDGE}, "results": results})
    draw(results, s.out / "figure.png")
    for task, rows in results.items():
        print(
            f"\n{task}\n{'delta':>7}{'best rate':>11}{'predicted':>11}{'gain over ' + str(RULE[task]):>15}{'realized':>20}{'z':>6}"
        )
        for delta, row in rows.items():
            g = row["gain"]
            z = (g["realized"] - g["predicted"]) / g["standard_error"]
            realized = f"{g['realized']:.4f} ± {g['standard_error']:.4f}"
            edge = " (at the edge of the rates)" if row["best"]["at_edge"] else ""
            best = row["best"]
            print(
                f"{delta:>7.3g}{best['rate']:>11.3g}{best['predicted']:>11.4f}{g['predicted']:>15.4f}{realized:>20}{z:>6.1f}{edge}"
            )
        points = [p for row in rows.values() for p in row["simulated"]]
        print(f"{sum(p['agrees'] for p in points)} of {len(points)} runs of SGD agree to 2 standard errors + 1%")
        for row in rows.values():
            print(*(f"{k} {v:.2g}" for k, v in row.items() if k.startswith("largest_relative")), sep="\n", end="")
    measured = [(v, r["critical"]) for r in results["least squares"].values() for k, v in r.items() if k.startswith("measured")]
    print(
        f"\ncritical rate, growth of the loss against the formula: {max(abs(m / c - 1) for m, c in measured):.1e} apart at most"
    )
    print(f"wrote {s.out}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
