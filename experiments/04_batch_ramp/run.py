"""Batch ramp or learning-rate decay? What each is worth depends on what a step costs.

(a) In high dimensions SGD depends on learning rate eta and batch size B only through the temperature eta / B as a function of
the clock s = integral of eta over time. A decay (eta falls, B is constant) and a ramp (B grows, eta is constant) of the same
temperature see the same number of samples and end at the same risk, but the ramp takes fewer steps. Shown for logistic regression
with flipped labels at a large rate, where gradient flow with Gaussian noise (SGF) is a little off but the equality is not; what
breaks it are batches that are not small against the dimension, which `solve` predicts with one discrete update per batch.

(b) A machine takes seconds_per_step for each step and seconds_per_sample for each sample in it. Under the same wall-clock budget
a decay (constant batch size tuned too), a ramp (constant rate tuned too) and both together are optimized for least squares on
power-law features against the exact solution, learning rates and batch sizes being bounded, and then realized in SGD with whole
batch sizes.
"""

import dataclasses
import time
from typing import Any

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
from ..shared.results import SweepSettings, finish, markdown, mean_and_error, plus_minus

TASKS = {
    "logistic": dmftopt.tasks.Logistic("flipped", 0.1),
    "least squares": dmftopt.tasks.LeastSquares(0.5),
}
# Largest learning rates of part (a), at batch size 1.
PEAK = {"logistic": 4.0, "least squares": 1.0}
# The temperature falls to this fraction; time of the decay, in steps / dimension.
FINAL, HORIZON = 0.1, 4.0
# Part (b): bounds of rates and batch sizes (at most 8% of the dimension, where part (a) says that risks are within 1% of those of
# small batches); what the budget would pay for in steps of one sample.
RATES, BATCHES, SINGLE = (0.01, 4.0), (1.0, 32.0), 8.0
MODES = ("decay, B = 1", "decay", "ramp", "both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings):
    """Batch ramp against learning-rate decay."""

    ratios: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0)
    """Seconds per step / seconds per sample."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Of part (a); the first is drawn over time."""
    updates: tuple[float, ...] = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """Batch size / dimension of the coarser and coarser runs at the same temperature; dividing the horizon."""
    delta: float = 2.0
    """Training samples / dimension."""
    exponent: float = 0.5
    """Of the spectrum in part (b); the steeper, the more steps the exact solution takes."""
    spectrum: int = 200
    """Its eigenvalues; must divide the dimension."""
    knots: int = 9
    steps: int = 200
    """Of the optimizer, from each start."""
    grid_steps: int = 64
    """Of the predictions by `solve`."""
    predict_samples: int = 8192
    dimension: int = 400
    runs: int = 64
    equality_runs: int = 256
    """Of part (a)."""


def twins(peak: float) -> dict[str, tuple[dmftopt.Protocol, Any, float]]:
    """Decay and ramp of the same temperature: protocol, time as a function of the share v of the clock that has passed, and the
    horizon. For a linear decay the temperature is peak * sqrt(1 - (1 - FINAL²) v)."""

    def cooled(v):
        return jnp.sqrt(jnp.maximum(1 - (1 - FINAL**2) * v, FINAL**2))

    horizon = HORIZON * 0.5 * (1 + FINAL)
    decay = dmftopt.Protocol(schedules.linear_decay(peak, HORIZON, FINAL))
    ramp = dmftopt.Protocol(peak, lambda t: 1 / cooled(t / horizon))
    return {
        "decay": (decay, lambda v: HORIZON * (1 - cooled(v)) / (1 - FINAL), HORIZON),
        "ramp": (ramp, lambda v: horizon * v, horizon),
    }


def equality(task: str, **s) -> dict[str, Any]:
    """Risks of the twins over the clock, by theory and SGD, and what is left of their equality as batches grow."""
    problem = dmftopt.Problem(TASKS[task], dmftopt.features.isotropic(), s["delta"], 1.0, 0.0)
    v = np.linspace(0.0, 1.0, s["grid_steps"] + 1)
    shown = v[:: max(1, s["grid_steps"] // 16)]
    key, pairs = jax.random.key(s["seed"]), twins(PEAK[task])
    result: dict[str, Any] = {"v": v.tolist(), "shown": shown.tolist(), "clock": PEAK[task] * HORIZON * 0.5 * (1 + FINAL)}
    noises = {"Poisson": dmftopt.noise.Poisson(), "Brownian": dmftopt.noise.Brownian()}
    for name, (protocol, time_of, horizon) in pairs.items():
        grid, rows = dmftopt.TimeGrid(jnp.asarray(time_of(v)).at[0].set(0.0)), {}
        if task == "least squares":
            rows["exact"] = {"mean": np.asarray(limits.least_squares(problem, protocol, grid).test_risk).tolist()}
        for noise_name, noise in noises.items():
            options: Any = {"noise": noise, "samples": s["predict_samples"], "replicates": 4, "key": key}
            rows[noise_name] = curve(dmftopt.solve(problem, protocol, grid, **options))
        at = np.round(np.asarray(time_of(shown)) * s["dimension"]) / s["dimension"]
        at[-1] = round(horizon * s["dimension"]) / s["dimension"]
        risks = trained(problem, protocol, at, key, s)
        rows["SGD"] = mean_and_error(risks)
        result[name] = {**rows, "final": risks[:, -1].tolist(), "steps": horizon}
    ends = [np.array(result[name]["final"]) for name in pairs]
    result["difference"] = {
        "solve": [result["ramp"][n]["mean"][-1] - result["decay"][n]["mean"][-1] for n in noises],
        "SGD": mean_and_error(ends[1] - ends[0]),
    }
    result["coarse"] = [coarser(problem, pairs["decay"][0], size, key, s) for size in s["updates"]]
    return result


def coarser(problem, decay: dmftopt.Protocol, size: float, key, s: dict[str, Any]) -> dict[str, Any]:
    """The decay with rate and batch size `size * dimension` times as large, in as many fewer steps: one update per `size` of
    time. None where it is unstable."""
    factor, grid = size * s["dimension"], dmftopt.TimeGrid.uniform(HORIZON, round(HORIZON / size))
    options: Any = {"noise": dmftopt.noise.Poisson(), "samples": s["predict_samples"], "replicates": 4, "key": key}
    predicted = dmftopt.solve(problem, decay, grid, step=dmftopt.DiscreteStep(), throw=False, **options)
    if not bool(jnp.isfinite(predicted.test_risk[-1])):
        return {"size": size, "predicted": None, "SGD": None}
    large = dmftopt.Protocol(schedules.Scaled(decay.learning_rate, 1 / factor, factor), factor)
    risks = trained(problem, large, np.array([0.0, HORIZON / factor]), key, s)[:, -1]
    return {"size": size, "predicted": {k: row[-1] for k, row in curve(predicted).items()}, "SGD": mean_and_error(risks)}


def curve(solution) -> dict[str, list[float]]:
    error = solution.standard_error.test_risk
    return {"mean": np.asarray(solution.test_risk).tolist(), "standard_error": np.asarray(error).tolist()}


def trained(problem, protocol, records, key, s) -> np.ndarray:
    """Test risks of SGD, (batch of runs, time); the same training sets for every protocol."""
    options: Any = {"horizon": float(records[-1]), "dimension": s["dimension"], "runs": max(1, s["equality_runs"] // 16)}
    keys = jax.random.split(key, 16)
    return np.stack([dmftopt.simulate.sgd(problem, protocol, key=k, records=records, **options).test_risk for k in keys])


def build(ratio: float, mode: str, s: dict[str, Any]) -> tuple[dmftopt.Objective, dmftopt.Protocol]:
    """What is minimized, and where the search starts. The budget pays for the same number of steps of a single sample at every
    ratio of the costs."""
    features = dmftopt.features.power_law(s["exponent"], dimension=s["spectrum"])
    problem = dmftopt.Problem(TASKS["least squares"], features, s["delta"], 1.0, 0.0)
    budget = dmftopt.Budget(seconds=SINGLE, seconds_per_step=ratio / (1 + ratio), seconds_per_sample=1 / (1 + ratio))
    objective = dmftopt.Objective(
        problem, budget, grid=dmftopt.TimeGrid.uniform(1.0, 1), predict=dmftopt.Exact(limits.least_squares)
    )
    free: Any = {"horizon": 1.0, "knots": s["knots"], "log": True}
    rate = (
        schedules.constant(0.5, bounds=RATES) if mode == "ramp" else schedules.piecewise_linear(initial=0.5, bounds=RATES, **free)
    )
    batch: Any = schedules.constant(4.0, bounds=BATCHES)
    if mode in ("ramp", "both"):
        batch = schedules.piecewise_linear(initial=4.0, bounds=BATCHES, **free)
    return objective, dmftopt.Protocol(rate, 1.0 if mode == "decay, B = 1" else batch)


def wall_clock(ratio: float, **s) -> dict[str, Any]:
    """The best of each mode at this ratio of the costs."""
    found, seconds, ends, possible = {}, {}, {}, {}
    for mode in MODES:
        objective, protocol = build(ratio, mode, s)
        # What both together can do includes what each can do: start there too.
        more = [opened(found[m], s) for m in ("decay", "ramp")] if mode == "both" else 1
        started = time.perf_counter()
        optimizer = optax.adam(optax.cosine_decay_schedule(0.2, s["steps"], 0.05))
        options: Any = {"key": jax.random.key(s["seed"]), "steps": s["steps"], "optimizer": optimizer, "progress": False}
        best = dmftopt.optimize(objective, protocol, starts=more, fresh=2, **options)
        found[mode], ends[mode], seconds[mode] = best.protocol, best.ends.tolist(), time.perf_counter() - started
        possible[mode] = dmftopt.certify(objective, best.protocol, key=jax.random.key(1), keys=2, hessian_keys=1).possible_gain
    objective, _ = build(ratio, "both", s)
    judge = dmftopt.Objective(
        objective.problems[0],
        objective.budget,
        grid=dmftopt.TimeGrid.geometric(1.0, s["grid_steps"], 10.0),
        predict=dmftopt.Solve(dmftopt.noise.Poisson(), s["predict_samples"], replicates=2),
    )
    report = dmftopt.report(
        judge, found, key=jax.random.key(s["seed"] + 1), dimension=s["dimension"], runs=s["runs"], fresh=2, progress=False
    )
    u, rows = np.linspace(0.0, 1.0, 129), {}
    for mode, protocol in found.items():
        run = objective.run(protocol)
        row = report.rows[mode][0]
        rows[mode] = {
            "rate": np.asarray(protocol.learning_rate(u)).tolist(),
            "batch": np.broadcast_to(np.asarray(protocol.batch_size(u)), u.shape).tolist(),
            "steps": float(run.horizon),
            "samples": float(run.samples),
            "exact": float(objective(protocol, jax.random.key(0))),
            "solve": row.predicted._asdict(),
            "solve_whole_batches": row.rounded._asdict() if row.rounded else None,
            "SGD": row.realized._asdict() if row.realized else None,
            "SGD_less_both": report.gain("both", mode)["realized"]._asdict(),
            "SGD_less_decay": report.gain("decay", mode)["realized"]._asdict(),
            "design_seconds": seconds[mode],
            "ends": ends[mode],
            # None where it is no minimum: unknown.
            "possible_gain": possible[mode] if np.isfinite(possible[mode]) else None,
        }
    return {"modes": rows}


def opened(protocol: dmftopt.Protocol, s: dict[str, Any]) -> dmftopt.Protocol:
    """The same with both schedules free. What is at a bound starts a little inside, where it can move."""

    def free(schedule, bounds):
        low, high = np.log(bounds)
        margin = 0.02 * (high - low)
        values = np.log(np.broadcast_to(np.asarray(schedule(np.linspace(0.0, 1.0, s["knots"]))), s["knots"]))
        inside = np.exp(np.clip(values, low + margin, high - margin))
        return schedules.piecewise_linear(1.0, s["knots"], inside, log=True, bounds=bounds)

    return dmftopt.Protocol(free(protocol.learning_rate, RATES), free(protocol.batch_size, BATCHES))


BLUE, ORANGE, GREEN, PINK = dmftopt.plot.COLORS[:4]
SHADES = dict(zip(MODES, ("0.6", BLUE, ORANGE, "black"), strict=True))


def draw(results: dict[str, dict], s: dict[str, Any]) -> Figure:
    figure, axes = plt.subplots(2, 3, figsize=(15, 8.4), layout="constrained")
    twin, coarse, cost, saved, rates, batches = axes.flat
    draw_twins(twin, results, s)
    draw_coarse(coarse, results, s)
    draw_costs(cost, saved, results, s)
    draw_schedules(rates, batches, results, s)
    return figure


def draw_twins(twin, results: dict[str, dict], s: dict[str, Any]) -> None:
    first = results[s["tasks"][0]]
    v, clock = np.array(first["v"]), first["clock"]
    for name, color, style in (("decay", BLUE, "-"), ("ramp", ORANGE, "--")):
        r = first[name]
        twin.plot(clock * v, r["Poisson"]["mean"], style, color=color, lw=2, label=f"{name}, theory (Poisson)")
        mean, error = (np.array(r["SGD"][k]) for k in ("mean", "standard_error"))
        options: Any = {"fmt": "o" if name == "decay" else "s", "ms": 4, "color": color}
        label = f"{name}, SGD, {r['steps']:.2g} d steps"
        twin.errorbar(clock * np.array(first["shown"]), mean, 2 * error, label=label, **options)
    twin.plot(clock * v, first["decay"]["Brownian"]["mean"], ":", color="0.4", label="both, SGF (Brownian)")
    twin.set(
        xlabel=r"clock $s = \int \eta\, dt$",
        ylabel="test risk",
        title=s["tasks"][0] + r": equal $\eta/B$ as a function of the clock",
    )
    twin.legend(frameon=False, fontsize=8)


def draw_coarse(coarse, results: dict[str, dict], s: dict[str, Any]) -> None:
    for task, color in zip(s["tasks"], (GREEN, PINK), strict=False):
        limit = results[task]["decay"]["Poisson"]["mean"][-1]
        points = [p for p in results[task]["coarse"] if p["predicted"]]
        sizes = np.array([p["size"] for p in points])
        for kind, style in (("predicted", "-"), ("SGD", "o")):
            mean, error = (np.array([p[kind][k] for p in points]) for k in ("mean", "standard_error"))
            options = {"fmt": style, "color": color, "ms": 4, "label": f"{task}, {'theory' if kind == 'predicted' else 'SGD'}"}
            coarse.errorbar(sizes, 100 * (mean / limit - 1), 200 * error / limit, **options)
    coarse.axhline(0, color="0.8", zorder=0)
    coarse.set(
        xscale="log", xlabel=r"batch size / dimension at the same $\eta/B$", ylabel="final risk over that of small batches, %"
    )
    coarse.set(title="where the equality ends")
    coarse.set_yscale("symlog", linthresh=2.0)
    coarse.set_ylim(-0.5, None)
    coarse.set_yticks(ticks := [0, 1, 2, 5, 10, 20, 50, 100], [str(t) for t in ticks])
    coarse.legend(frameon=False, fontsize=9)


def draw_costs(cost, saved, results: dict[str, dict], s: dict[str, Any]) -> None:
    done = [results[f"ratio {ratio:g}"]["modes"] for ratio in s["ratios"]]
    floor = 0.5 * TASKS["least squares"].label_noise ** 2
    shifts = dict(zip(MODES, (0.9, 0.95, 1.05, 1.1), strict=True))
    for mode, color in SHADES.items():
        rows = [modes[mode] for modes in done]
        cost.plot(s["ratios"], [r["exact"] - floor for r in rows], color=color, label=mode)
        mean, error = (np.array([r["SGD"][k] for r in rows]) for k in ("mean", "standard_error"))
        cost.errorbar(shifts[mode] * np.array(s["ratios"]), mean - floor, 2 * error, fmt="o", ms=4, color=color)
        if mode in ("ramp", "both"):
            less = np.array([modes["decay"]["exact"] - modes[mode]["exact"] for modes in done])
            scale = 100 / np.array([modes["decay"]["exact"] - floor for modes in done])
            saved.plot(s["ratios"], scale * less, color=color, label=mode)
            mean, error = (np.array([r["SGD_less_decay"][k] for r in rows]) for k in ("mean", "standard_error"))
            # Of the decay over this mode: its sign turned.
            options = {"fmt": "o", "ms": 4, "color": color}
            saved.errorbar(shifts[mode] * np.array(s["ratios"]), -scale * mean, 2 * scale * error, **options)
    cost.set(ylabel="test risk above the noise floor", title="the same wall-clock budget (points: SGD, 2 s.e.)")
    saved.axhline(0, color=BLUE, zorder=0)
    saved.set(ylabel="lower risk above the floor, %", title="gain over the best decay of constant batch size")
    for a in (cost, saved):
        a.set(xscale="log", xlabel="seconds per step / seconds per sample")
        a.legend(frameon=False, fontsize=9)


def draw_schedules(rates, batches, results: dict[str, dict], s: dict[str, Any]) -> None:
    shown = min(s["ratios"], key=lambda ratio: abs(np.log10(ratio / 10)))
    for mode, color in SHADES.items():
        row = results[f"ratio {shown:g}"]["modes"][mode]
        t = row["steps"] * np.linspace(0, 1, len(row["rate"]))
        rates.plot(t, row["rate"], color=color, label=mode)
        batches.plot(t, row["batch"], color=color, label=mode)
    for a, name, bounds in ((rates, r"learning rate $\eta$", RATES), (batches, "batch size $B$", BATCHES)):
        a.set(yscale="log", xlabel="time t = SGD steps / d", ylabel=name)
        a.set_title(f"optimized, a step costs {shown:g} samples")
        a.axhline(bounds[1], color="0.8", ls=":", zorder=0)
    rates.set_ylim(bottom=0.02)
    batches.legend(frameon=False, fontsize=9)


def tables(results: dict[str, dict], s: dict[str, Any]) -> dict[str, str]:
    """Final risks at equal temperature, how they drift apart as batches grow, and the best of each mode by cost of a step."""
    equal, coarse, clock = [], [], []
    for task in s["tasks"]:
        r = results[task]
        for name in ("decay", "ramp"):
            last = [{k: v[-1] for k, v in r[name][route].items()} for route in ("Poisson", "SGD")]
            equal.append([task, name, *(plus_minus(e, 5) for e in last)])
        equal.append([task, "ramp less decay", f"{r['difference']['solve'][0]:.5f}", plus_minus(r["difference"]["SGD"], 5)])
        limit = r["decay"]["Poisson"]["mean"][-1]
        for p in (p for p in r["coarse"] if p["predicted"]):
            percent = [
                {"mean": 100 * (p[k]["mean"] / limit - 1), "standard_error": 100 * p[k]["standard_error"] / limit}
                for k in ("predicted", "SGD")
            ]
            coarse.append([task, f"{p['size']:g}", *(f"{plus_minus(e, 1)} %" for e in percent)])
    for ratio in s["ratios"]:
        modes = results[f"ratio {ratio:g}"]["modes"]
        for mode, r in modes.items():
            row = [f"{ratio:g}", mode, f"{r['exact']:.4f}", plus_minus(r["SGD"]), f"{r['exact'] - modes['both']['exact']:.4f}"]
            clock.append([*row, plus_minus(r["SGD_less_both"])])
    return {
        "equal temperature": markdown(["task", "", "theory (Poisson)", "SGD"], equal),
        "large batches": markdown(["task", "batch size / dimension", "risk above that of small batches: theory", "SGD"], coarse),
        "wall clock": markdown(
            ["step / sample, seconds", "tuned", "risk: exact", "SGD", "above both together: exact", "SGD"], clock
        ),
    }


def main(s: Settings) -> None:
    tiny: Any = {"ratios": (1.0,), "tasks": ("logistic",), "updates": (1.0,), "steps": 1, "knots": 3, "spectrum": 8}
    tiny |= {"grid_steps": 4, "predict_samples": 64, "dimension": 16, "runs": 16, "equality_runs": 16}
    s = s.sized(**tiny, exponent=0.5)
    # Each part with the settings that it reads, so that a change of one leaves the other's cells as they are.
    given, cells_at = s.without(), s.folder(__file__) / "cells"
    common = {k: given[k] for k in ("delta", "grid_steps", "predict_samples", "dimension", "seed")}
    own = common | {k: given[k] for k in ("updates", "equality_runs")}
    results = sweep.run(equality, {task: {"task": task} for task in s.tasks}, cells_at, own, s.cluster)
    own = common | {k: given[k] for k in ("exponent", "spectrum", "knots", "steps", "runs")}
    results |= sweep.run(wall_clock, {f"ratio {ratio:g}": {"ratio": ratio} for ratio in s.ratios}, cells_at, own, s.cluster)
    settings = given | {"peak": PEAK, "final": FINAL, "horizon": HORIZON}
    settings |= {"bounds": {"learning_rate": RATES, "batch_size": BATCHES}, "seconds": SINGLE}
    finish(s, __file__, {"settings": settings, "results": results}, tables(results, settings), draw(results, settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))
