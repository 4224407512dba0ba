"""Two-layer networks linger on a plateau before their hidden units specialize: which learning rates get them off it soonest?

A committee of two erf units learns another one from noisy labels, every sample seen once (Saad and Solla's model). Each student
unit starts out leaning toward a teacher unit, visibly: from a symmetric start the plateau lasts forever, its length grows with
the logarithm of one over the lean. For several horizons a free schedule and the usual ones are tuned for the least final test
risk, and for the least time to a risk below the plateau's, by the ordinary differential equations of the online limit, which
have no sampling error. Real SGD in finite dimension, on fresh samples and from the same overlaps, is the second route.

Batches: in this limit a run in batches of B at the rate B eta(t) makes, after as many samples, exactly what eta(t) makes in
batches of one, so a batch size can only spend samples in fewer steps. SGD shows up to where that holds in finite dimension.
Globally optimal rates of such networks: Saad and Rattray, Phys. Rev. Lett. 79 (1997) 2578.
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
from ..shared.one_pass import one_pass
from ..shared.protocols import observed
from ..shared.results import SweepSettings, finish, markdown, mean_and_error, plus_minus

UNITS = 2
# Samples between two records of SGD; batch sizes divide it.
CHUNK = 256
FREE = "free"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings):
    """The plateau of a committee machine, and the schedules that leave it."""

    horizons: tuple[float, ...] = (50.0, 100.0, 200.0)
    """Samples / dimension = steps / dimension: the free schedule and the usual ones are tuned for each."""
    escape: float = 100.0
    """The horizon at which the time to the target is tuned too, and batches are tried."""
    target: float = 0.005
    """Excess test risk, below that of the plateau."""
    batches: tuple[int, ...] = (1, 4, 16, 64, 256)
    lean: float = 0.2
    """Initial correlation of student unit a with teacher unit a."""
    student_scale: float = 0.3
    label_noise: float = 0.1
    knots: int = 17
    peak: float = 0.8
    """Learning rate at which every search starts."""
    steps: int = 80
    """Of the optimizer."""
    dimension: int = 512
    """Of real SGD."""
    runs: int = 32


def build(horizon, lean, student_scale, label_noise, knots, peak, measure=None) -> tuple[dmftopt.Objective, dict]:
    """What is minimized, and the families of learning rates, from where. Batches of one."""
    correlation = np.eye(2 * UNITS)
    for a in range(UNITS):
        correlation[a, UNITS + a] = correlation[UNITS + a, a] = lean
    task = dmftopt.tasks.Committee(UNITS, UNITS, "erf", label_noise=label_noise)
    # The online limit knows no delta.
    isotropic = dmftopt.features.isotropic()
    problem = dmftopt.Problem(task, isotropic, 1.0, 1.0, student_scale, initial_correlation=correlation)
    objective = dmftopt.Objective(
        problem,
        dmftopt.Budget(steps=horizon),
        measure=measure or dmftopt.objectives.final(),
        # Stepped adaptively, starting anew at each time of observation: the time to a target wants to see many.
        grid=dmftopt.TimeGrid.uniform(1.0, 50 if measure else 1),
        predict=dmftopt.Exact(limits.online),
    )
    free = dmftopt.Protocol(schedules.piecewise_linear(1.0, knots, peak, log=True))
    return objective, {**dmftopt.baselines(free, peak=peak), FREE: free}


def real_sgd(objective, protocols, batches, key, *, dimension: int, runs: int) -> np.ndarray:
    """SGD of committees on fresh samples, all protocols on the same: excess test risk (run, protocol, record), a record every
    CHUNK samples. Overlaps are at first exactly those of the problem. In batches of B a step takes B times the rate of its first
    sample."""
    problem = objective.problems[0]
    frame = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (dimension, 2 * UNITS)))[0] * dimension**0.5
    teacher, student = jnp.split(problem.initial[0] @ frame.T, 2)
    records = round(float(objective.run(protocols[0]).horizon) * dimension / CHUNK)
    options: Any = {"records": records}
    keys, risks = jax.random.split(key, runs), np.zeros((runs, len(protocols), records))
    for size in sorted(set(batches)):
        members = [j for j, b in enumerate(batches) if b == size]
        first = jnp.arange(0, records * CHUNK, size) / dimension
        rates = jnp.stack([size * objective.run(protocols[j]).protocol.learning_rate(first) for j in members])
        found = one_pass(problem.task, jnp.ones(dimension), teacher, student, rates, keys, batch_size=size, **options)
        risks[:, members] = np.asarray(found)
    return risks - 0.5 * float(problem.task.label_noise) ** 2


def value(objective, protocol):
    return dmftopt.optimize(objective, protocol, steps=0, progress=False).value


def time_to(target, times, excess):
    """When each of the rows of `excess` (..., time) first falls to the target, NaN for one that never does."""
    k = np.argmax(excess <= target, axis=-1)[..., None]
    above, below = (np.take_along_axis(excess, np.maximum(i, 0), axis=-1) for i in (k - 1, k))
    share = np.where(above > below, (target - below) / np.where(above > below, above - below, 1.0), 0.0)
    crossing = times[k] - (times[1] - times[0]) * share
    return np.where(np.any(excess <= target, axis=-1), crossing[..., 0], np.nan)


def design(horizon, escape, target, *, lean, student_scale, label_noise, knots, peak, steps) -> tuple[Any, dict]:
    """The objective, and protocols by name."""
    settings: Any = (horizon, lean, student_scale, label_noise, knots, peak)
    objective, starts = build(*settings)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, steps))
    options: Any = {"optimizer": optimizer, "steps": steps, "progress": False}
    found: dict[str, Any] = {}
    for name, start in starts.items():
        # The free schedule also starts from the best of the others (with an end above 0): each moment of escape is a valley.
        more = [min(found.values(), key=lambda p: float(value(objective, p)))] if name == FREE else []
        more = [schedules.piecewise_linear(1.0, knots, lambda u, p=p: p.learning_rate(u) + 0.02, log=True) for p in more]
        found[name] = dmftopt.optimize(objective, start, starts=list(map(dmftopt.Protocol, more)), **options).protocol
    if escape:
        soonest, _ = build(*settings, measure=dmftopt.objectives.time_to(target=target + 0.5 * label_noise**2))
        start = {"constant": found["constant"], FREE: starts[FREE]}
        for name, protocol in start.items():
            found[f"{name}, soonest"] = dmftopt.optimize(soonest, protocol, **options).protocol
    return objective, found


def cell(horizon, escape, target, batches, *, label_noise, dimension, runs, seed, **problem) -> dict[str, Any]:
    """All schedules of one horizon. JSON values."""
    began = time.perf_counter()
    objective, found = design(horizon, escape, target, label_noise=label_noise, **problem)
    seconds = time.perf_counter() - began
    batch_of = dict.fromkeys(found, 1)
    for size in batches if escape else []:
        found[f"batches of {size}"], batch_of[f"batches of {size}"] = found[f"{FREE}, soonest"], size
    key, protocols = jax.random.key(seed + 1), list(found.values())
    excess = real_sgd(objective, protocols, list(batch_of.values()), key, dimension=dimension, runs=runs)
    records = excess.shape[2]
    times = (np.arange(records) + 1) * CHUNK / dimension
    rows, names = {}, list(found)
    for j, (name, protocol) in enumerate(found.items()):
        path = observed(objective, protocol, dmftopt.TimeGrid.uniform(1.0, 100))
        predicted, at = np.asarray(path.test_risk, dtype=float) - 0.5 * label_noise**2, np.asarray(path.times, dtype=float)
        here, base = excess[:, j], excess[:, names.index("constant")]
        waits = time_to(target, times, here)
        shown = slice(None, None, max(1, records // 40))
        curve = mean_and_error(here[:, shown])
        rows[name] = {
            "batch_size": batch_of[name],
            "predicted": float(predicted[-1]),
            "realized": mean_and_error(here[:, -1]),
            "realized_gain_over_constant": mean_and_error(base[:, -1] - here[:, -1]),
            "predicted_wait": float(np.nan_to_num(time_to(target, at, predicted), nan=-1.0)),
            "realized_wait": mean_and_error(waits) if np.all(np.isfinite(waits)) else None,
            "never": int(np.sum(np.isnan(waits))),
            "times": at.tolist(),
            "excess": predicted.tolist(),
            "rates": np.asarray(objective.run(protocol).protocol.learning_rate(path.times), dtype=float).tolist(),
            "sgd_times": times[shown].tolist(),
            "sgd_mean": curve["mean"],
            "sgd_error": curve["standard_error"],
        }
    return {"horizon": horizon, "seconds": seconds, "arms": rows}


def draw(cells: list[dict[str, Any]], settings: dict[str, Any]) -> Figure:
    figure, ((paths, rates), (longer, batches)) = plt.subplots(2, 2, figsize=(13, 9.6), layout="constrained")
    middle = next(c for c in cells if any("soonest" in name for name in c["arms"]))
    shown = ["constant", "cosine", "power law", "warmup-stable-decay", FREE, f"{FREE}, soonest"]
    for name, color in zip(shown, dmftopt.plot.COLORS, strict=True):
        a = middle["arms"][name]
        paths.plot(a["times"], a["excess"], color=color, label=name)
        style: Any = {"fmt": "o", "ms": 3, "lw": 1, "color": color}
        paths.errorbar(a["sgd_times"], a["sgd_mean"], 2 * np.array(a["sgd_error"]), **style)
        # Beyond the target its schedule is not tuned.
        end = np.searchsorted(a["times"], a["predicted_wait"]) + 1 if "soonest" in name else None
        rates.plot(a["times"][:end], a["rates"][:end], color=color)
    paths.axhline(settings["target"], color="0.6", ls=":", label="target")
    paths.set(yscale="log", ylabel="excess test risk", ylim=(0.5 * min(middle["arms"][FREE]["excess"]), 0.1))
    paths.set_title("online limit (lines), SGD with 2 standard errors (points)", fontsize=10)
    paths.legend(fontsize=8, frameon=False, ncols=2)
    rates.set(ylabel=r"learning rate $\eta(t)$", yscale="log", ylim=(0.02, 3))
    rates.set_title("the schedules", fontsize=10)
    time_label = r"time $t$ = samples seen / $d$"
    for axes in (paths, rates):
        axes.set_xlabel(time_label)
    for c, color in zip(cells, dmftopt.plot.COLORS, strict=False):
        a = c["arms"][FREE]
        longer.plot(a["times"], a["rates"], color=color, label=f"horizon {c['horizon']:g}")
    longer.set(xscale="log", yscale="log", xlabel=time_label, ylabel=r"learning rate $\eta(t)$", xlim=(1, None), ylim=(0.02, 3))
    longer.set_title("free schedules for the least final risk", fontsize=10)
    longer.legend(frameon=False)
    tried = [(a["batch_size"], a) for name, a in middle["arms"].items() if name.startswith("batches of")]
    sizes = [b for b, _ in tried]
    waits = [(b, a["realized_wait"]) for b, a in tried if a["realized_wait"]]
    batches.axhline(tried[0][1]["predicted_wait"], color="0.3", label="online limit")
    style = {"fmt": "o", "color": dmftopt.plot.COLORS[1], "label": f"SGD, $d$ = {settings['dimension']}, 2 standard errors"}
    batches.errorbar([b for b, _ in waits], [w["mean"] for _, w in waits], [2 * w["standard_error"] for _, w in waits], **style)
    batches.set(
        xscale="log", xlabel="batch size $B$, at the rate $B$ times that of $B = 1$", ylabel="samples / $d$ to the target"
    )
    batches.set_xticks(sizes, labels=[str(b) for b in sizes])
    batches.minorticks_off()
    batches.set_title(f"wait for an excess risk of {settings['target']:g}", fontsize=10)
    for size, a in tried:
        if a["never"]:
            note = f"{a['never']} of {settings['runs']} runs never"
            batches.annotate(
                note, (size, 0.02), xycoords=("data", "axes fraction"), rotation=90, ha="right", va="bottom", fontsize=8
            )
    batches.legend(frameon=False, loc="upper left")
    return figure


def tables(results: list[dict[str, Any]], target: float) -> dict[str, str]:
    """At the end of every horizon, and when an excess risk of `target` is reached."""
    rows = []
    for c in results:
        for name, a in c["arms"].items():
            wait = f"{a['predicted_wait']:.1f}" if a["predicted_wait"] >= 0 else "never"
            realized = plus_minus(a["realized_wait"], 1) if a["realized_wait"] else f"never in {a['never']} runs"
            saved = c["arms"]["constant"]["predicted"] - a["predicted"]
            row = [f"{c['horizon']:g}", name, f"{1e3 * a['predicted']:.2f}", plus_minus(a["realized"], 2, 1e3)]
            row += [f"{1e3 * saved:.2f}", plus_minus(a["realized_gain_over_constant"], 2, 1e3)]
            rows.append([*row, wait, realized])
    head = ["horizon", "schedule", "excess risk x 1000", "SGD", "saved over constant", "SGD", f"until {target:g}", "SGD"]
    return {"schedules": markdown(head, rows)}


def main(s: Settings) -> None:
    tiny: Any = {"horizons": (16.0,), "escape": 16.0, "knots": 3, "steps": 1, "dimension": 32, "runs": 2, "target": 0.02}
    s = s.sized(**tiny, batches=(1, 16))
    shared = s.without("horizons", "escape", "target", "batches")
    cells = {
        f"horizon={h:g}": {"horizon": h, "escape": h == s.escape, "target": s.target, "batches": list(s.batches)}
        for h in s.horizons
    }
    results = list(sweep.run(cell, cells, s.folder(__file__) / "cells", shared, s.cluster).values())
    settings = {**shared, "target": s.target, "escape": s.escape}
    finish(s, __file__, {"settings": settings, "results": results}, tables(results, s.target), draw(results, settings))


if __name__ == "__main__":
    main(tyro.cli(Settings))
