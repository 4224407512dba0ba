"""Stop early, add a ridge, or let the learning rate decay: which protects best against noisy labels, and what do all together?

Least squares on isotropic features, a training set of delta * d noisy samples that is passed many times, batches of one. With one
rate until the end the student fits the noise of the labels, and its own gradient noise. Every remedy is tuned in the same
way at every level of label noise: the time to stop, a ridge, a constant rate, a free schedule, and combinations.

The prediction is exact (Volterra equation), real SGD is the second route. Two known results go with it: no estimator beats the
minimizer with ridge* = noise variance / (delta * teacher variance), for a Gaussian teacher and isotropic features; and the
excess risk of gradient flow that is stopped at the best time is at most 1.22 times its (Ali, Dobriban and Tibshirani,
arXiv:2003.07802).
"""

import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import dmftopt
from dmftopt import limits, schedules

from ..shared import sweep
from ..shared.protocols import observed
from ..shared.results import SweepSettings, finish, markdown, plus_minus

# Rate of the arms whose rate is not tuned: a quarter of the critical one.
RATE = 0.5
COMPARED = "rate tuned"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings):
    """Early stopping, ridge and decay against label noise."""

    noises: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)
    """Standard deviations of label noise, where labels without it have variance 1."""
    delta: float = 1.5
    """Training samples / dimension."""
    epochs: float = 20.0
    """Passes over the training set, at most."""
    knots: int = 9
    steps: int = 80
    """Of the optimizer."""
    dimension: int = 500
    """Of real SGD."""
    runs: int = 64


def build(noise, delta, epochs, knots) -> tuple[dmftopt.Objective, dict[str, dmftopt.Plan]]:
    """What is minimized, and the arms: what is tuned, from where. The last is everything at once."""
    problem = dmftopt.Problem(dmftopt.tasks.LeastSquares(noise), dmftopt.features.isotropic(), delta, 1.0, 0.0)
    # The equations are stepped adaptively: the grid only says when to observe.
    objective = dmftopt.Objective(problem, grid=dmftopt.TimeGrid.uniform(1.0, 1), predict=dmftopt.Exact(limits.least_squares))
    longest = epochs * delta

    def plan(rate: Any, ridge: Any = 0.0, stopped: bool = False):
        horizon = dmftopt.between(0.5 * longest, 0.001 * longest, longest) if stopped else longest
        return dmftopt.Plan(dmftopt.Protocol(rate, ridge=ridge), horizon)

    def tuned():
        return schedules.constant(0.2, log=True)

    def free():
        return schedules.piecewise_linear(1.0, knots, schedules.linear_decay(0.5, 1.0, 0.2), log=True)

    def ridge():
        return dmftopt.above(0.1)

    return objective, {
        f"rate {RATE}": plan(RATE),
        f"rate {RATE}, stopped early": plan(RATE, stopped=True),
        f"rate {RATE}, ridge": plan(RATE, ridge()),
        "rate tuned": plan(tuned()),
        "rate tuned, stopped early": plan(tuned(), stopped=True),
        "rate tuned, ridge": plan(tuned(), ridge()),
        "decay": plan(free()),
        "decay, ridge": plan(free(), ridge()),
        "decay, ridge, stopped early": plan(free(), ridge(), stopped=True),
    }


def within(found: dict[str, dmftopt.Plan], name: str, knots: int) -> list[dmftopt.Plan]:
    """Where else to start: what was found with less to tune."""
    head, _, last = name.rpartition(", ")
    if last == "stopped early":
        # Rounding may take the end onto its bound, never beyond.
        longest = found[head].horizon
        return [dmftopt.Plan(found[head].protocol, dmftopt.between(0.99 * longest, 0.001 * longest, longest))]
    if name.startswith("decay"):
        smaller = found[name.replace("decay", "rate tuned")]
        rate = schedules.piecewise_linear(1.0, knots, smaller.protocol.learning_rate, log=True)
        return [dmftopt.Plan(dmftopt.Protocol(rate, ridge=smaller.protocol.ridge), smaller.horizon)]
    if last == "ridge":
        # Next to none.
        return [
            dmftopt.Plan(dmftopt.Protocol(found[head].protocol.learning_rate, ridge=dmftopt.above(1e-4)), found[head].horizon)
        ]
    return []


def known(problem) -> dict[str, float]:
    """The best that any estimator can do, and how close gradient flow comes when it is stopped at the best time."""
    delta, noise = float(problem.delta), float(problem.task.label_noise)
    ridge, power = noise**2 / delta, noise**2 / delta
    # Marchenko and Pastur's law of the eigenvalues h of X^T X / delta, of which d - n are 0 where delta < 1.
    angle = (np.arange(20000) + 0.5) / 20000 * np.pi
    h = 1 + 1 / delta - 2 / np.sqrt(delta) * np.cos(angle)
    weights = 2 * np.sin(angle) ** 2 / h / 20000
    zero = max(0.0, 1 - delta)

    def ridged(ridge):
        return 0.5 * (weights @ ((ridge**2 + power * h) / (h + ridge) ** 2) + zero)

    # In gradient flow only the integral t of the rate counts.
    times = np.geomspace(1e-2, 1e3, 2001)[:, None]
    flow = 0.5 * ((np.exp(-2 * h * times) + power * np.expm1(-h * times) ** 2 / h) @ weights + zero)
    # A second route to the ridge.
    around = [float(limits.stationary(problem, r * ridge).test_risk[0]) - 0.5 * noise**2 for r in (0.8, 1.0, 1.25)]
    return {
        "bayes_ridge": ridge,
        "bayes_excess": float(ridged(ridge)),
        "stationary_excess": around[1],
        "ridge_is_best": bool(
            around[1] < min(around[0], around[2]) and ridged(ridge) < min(ridged(0.9 * ridge), ridged(1.1 * ridge))
        ),
        "flow_ratio": float(flow.min() / ridged(ridge)),
        "flow_stops_at": float(times[np.argmin(flow), 0]),
    }


def cell(noise, *, delta, epochs, knots, steps, dimension, runs, seed) -> dict[str, Any]:
    """All arms at one level of label noise. JSON values."""
    objective, arms = build(noise, delta, epochs, knots)
    # Its own at every level: what is due to chance in SGD is then not the same everywhere.
    key = jax.random.fold_in(jax.random.key(seed), round(1000 * noise))
    found, seconds = {}, {}
    for name, start in arms.items():
        began = time.perf_counter()
        if jax.tree.leaves(eqx.filter(start, eqx.is_inexact_array)):
            options: Any = {"optimizer": optax.adam(optax.cosine_decay_schedule(0.2, steps)), "steps": steps, "progress": False}
            found[name] = dmftopt.optimize(objective, start, starts=within(found, name, knots), **options).protocol
        else:
            found[name] = start
        seconds[name] = time.perf_counter() - began
    report = dmftopt.report(objective, found, key=key, dimension=dimension, runs=runs, fresh=2, progress=False)
    floor = 0.5 * noise**2
    u, rows = np.linspace(0.0, 1.0, 61), {}
    for name, plan in found.items():
        row, real, run = report.rows[name][0], report.realized(name), objective.run(plan)
        path = observed(objective, plan, dmftopt.TimeGrid(u))
        gain = report.gain(name, COMPARED)
        rows[name] = {
            "predicted": row.predicted.mean - floor,
            "realized": real.mean - floor,
            "standard_error": real.standard_error,
            "gain": {"predicted": gain["predicted"].mean, **gain["realized"]._asdict()},
            "horizon": float(run.horizon),
            "ridge": float(run.protocol.ridge(0.0)),
            "times": path.times.tolist(),
            "excess": (path.test_risk - floor).tolist(),
            "rates": run.protocol.learning_rate(path.times).tolist(),
            "seconds": seconds[name],
        }
    # Where stopping is all there is to tune, no value along the run to the end may be below what tuning found.
    least = min(rows[f"rate {RATE}"]["excess"])
    return {"noise": noise, "least_along_the_run": least, **known(objective.problems[0]), "arms": rows}


def draw(results: list[dict[str, Any]]) -> Figure:
    figure, (ratios, paths, rates) = plt.subplots(1, 3, figsize=(16, 5.2), layout="constrained", width_ratios=(1.3, 1, 1))
    noises = np.array([r["noise"] for r in results])
    bayes = np.array([r["bayes_excess"] for r in results])
    groups = dict(zip((f"rate {RATE}", "rate tuned", "decay"), dmftopt.plot.COLORS, strict=False))
    styles = {"": ("-", "o"), "stopped early": (":", "s"), "ridge": ("--", "^"), "ridge, stopped early": ("-.", "D")}
    names = list(results[0]["arms"])
    middle = results[len(results) // 2]
    for k, name in enumerate(names):
        group, _, extra = name.partition(", ")
        line, marker = styles[extra]
        arms = [r["arms"][name] for r in results]
        predicted, realized, error = (np.array([a[i] for a in arms]) for i in ("predicted", "realized", "standard_error"))
        ratios.plot(noises, predicted / bayes, line, color=groups[group], label=name)
        shift = 1.012 ** (k - len(names) / 2)
        style: Any = {"color": groups[group], "fmt": marker, "ms": 4.5, "mfc": "white", "lw": 1}
        ratios.errorbar(shift * noises, realized / bayes, 2 * error / bayes, **style)
        arm = middle["arms"][name]
        paths.plot(arm["times"], np.array(arm["excess"]) / middle["bayes_excess"], line, color=groups[group])
        paths.plot(arm["times"][-1], arm["excess"][-1] / middle["bayes_excess"], marker, color=groups[group], ms=5)
        rates.plot(arm["times"], arm["rates"], line, color=groups[group])
        rates.plot(arm["times"][-1], arm["rates"][-1], marker, color=groups[group], ms=5)
    flow = [r["flow_ratio"] for r in results]
    ratios.plot(noises, flow, color="0.5", lw=4, alpha=0.5, zorder=0, label="gradient flow without end, stopped at its best")
    ratios.axhline(1, color="black", lw=0.8)
    ratios.set(xscale="log", yscale="log", xlabel="standard deviation of label noise", ylabel="excess test risk / Bayes optimal")
    ratios.set_xticks(noises, labels=[f"{x:g}" for x in noises])
    ticks = [1, 1.1, 1.2, 1.5, 2, 3]
    ratios.set_yticks(ticks, labels=[f"{x:g}" for x in ticks])
    ratios.minorticks_off()
    ratios.set_ylim(0.97, 3.5)
    ratios.set_title("at the end: exact (lines), SGD with 2 standard errors (points)", fontsize=10)
    ratios.legend(fontsize=8, frameon=False)
    paths.set(yscale="log", ylim=(0.95, 4.5), xlabel=r"time $t$ = SGD steps / $d$", ylabel="excess test risk / Bayes optimal")
    paths.set_yticks([1, 1.5, 2, 3, 4], labels=["1", "1.5", "2", "3", "4"])
    paths.minorticks_off()
    paths.axhline(1, color="black", lw=0.8)
    paths.set_title(f"along the run, label noise {middle['noise']:g} (exact)", fontsize=10)
    rates.set(yscale="log", xlabel=r"time $t$ = SGD steps / $d$", ylabel=r"learning rate $\eta(t)$")
    rates.set_title(f"learning rates, label noise {middle['noise']:g}; markers: the end", fontsize=10)
    return figure


def tables(results: list[dict[str, Any]]) -> dict[str, str]:
    """Excess risks over the Bayes optimal one, and gains over the tuned rate; the known limits."""
    arms, known = [], []
    for r in results:
        for name, a in r["arms"].items():
            realized = {"mean": a["realized"], "standard_error": a["standard_error"]}
            row = [f"{r['noise']:g}", name, f"{a['predicted'] / r['bayes_excess']:.3f}", f"{a['predicted']:.4f}"]
            arms.append([*row, plus_minus(realized), f"{a['gain']['predicted']:.4f}", plus_minus(a["gain"])])
        row = [f"{r['noise']:g}", f"{r['bayes_excess']:.5f}", f"{r['stationary_excess']:.5f}", f"{r['bayes_ridge']:.4f}"]
        known.append([*row, "yes" if r["ridge_is_best"] else "no", f"{r['flow_ratio']:.3f}"])
    head = ["label noise", "tuned", "excess risk / Bayes", "excess risk: exact", "SGD", f"gain over {COMPARED}: exact", "SGD"]
    columns = ["label noise", "Bayes optimal excess", "by limits.stationary", "its ridge", "best of its neighbors"]
    columns += ["gradient flow stopped at its best / Bayes"]
    return {"remedies": markdown(head, arms), "known": markdown(columns, known)}


def main(s: Settings) -> None:
    s = s.sized(noises=(1.0,), epochs=2.0, knots=3, steps=2, dimension=20, runs=4)
    shared = s.without("noises")
    cells = {f"noise={noise:g}": {"noise": noise} for noise in s.noises}
    results = list(sweep.run(cell, cells, s.folder(__file__) / "cells", shared, s.cluster).values())
    finish(s, __file__, {"settings": shared, "results": results}, tables(results), draw(results))
    for r in results:
        stopped = r["arms"][f"rate {RATE}, stopped early"]["predicted"]
        least = r["least_along_the_run"]
        print(f"label noise {r['noise']:g}, rate {RATE}: least along the run {least:.5f}, tuned stopping time {stopped:.5f}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
