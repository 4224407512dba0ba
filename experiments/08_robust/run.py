"""One schedule for an unknown level of label noise: what does it cost not to know, and who guards against it best?

Least squares on isotropic features, several passes over a training set, batches of one; learning rates at free knots and a ridge.
Tuned for one level of noise and used at another, schedules lose: little noise wants rates that stay high and no ridge, much noise
the opposite. The robust ones are tuned for all levels at once: for the least mean risk, the least worst regret (excess risk
above that of the schedule tuned for that level, the oracle), or the least worst ratio to it. Bare risks cannot be
compared across levels: the worst is always that of the most noise, whatever the schedule.

The prediction is exact (Volterra equation), real SGD is the second route. That the worst cases are minimal is checked by
their gradients: some mixture of those of the levels that are worst must vanish.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from scipy.optimize import nnls

import dmftopt
from dmftopt import limits, schedules

from ..shared import sweep
from ..shared.protocols import flat, protocol_of
from ..shared.results import SweepSettings, finish, markdown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings):
    """Schedules that are good at every level of label noise."""

    noises: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)
    """Standard deviations of label noise, where labels without it have variance 1."""
    delta: float = 2.0
    """Training samples / dimension."""
    epochs: float = 6.0
    """Passes over the training set."""
    knots: int = 7
    steps: int = 150
    """Of the optimizer."""
    dimension: int = 500
    """Of real SGD."""
    runs: int = 64


def build(noises, delta, epochs, knots, **across) -> tuple[dmftopt.Objective, dmftopt.Protocol]:
    """What is minimized over these levels of noise, and where the search starts."""
    problems = [
        dmftopt.Problem(dmftopt.tasks.LeastSquares(noise), dmftopt.features.isotropic(), delta, 1.0, 0.0) for noise in noises
    ]
    # The equations are stepped adaptively: the grid only says when to observe.
    grid, predict = dmftopt.TimeGrid.uniform(1.0, 1), dmftopt.Exact(limits.least_squares)
    objective = dmftopt.Objective(problems, dmftopt.Budget(epochs=epochs), grid=grid, predict=predict, **across)
    rates = schedules.piecewise_linear(1.0, knots, schedules.linear_decay(0.5, 1.0, 0.2), log=True)
    return objective, dmftopt.Protocol(rates, ridge=dmftopt.above(0.1))


def stationary(gradients: np.ndarray) -> tuple[np.ndarray, float]:
    """The mixture of the rows (shares >= 0 that add up to 1) that is shortest, and its length over that of the longest row."""
    longest = np.max(np.linalg.norm(gradients, axis=1))
    heavy = 1e4 * longest
    shares, _ = nnls(np.vstack([gradients.T, np.full(len(gradients), heavy)]), np.append(np.zeros(gradients.shape[1]), heavy))
    shares /= shares.sum()
    return shares, float(np.linalg.norm(shares @ gradients) / longest)


def tuned(noises, across, start, *, delta, epochs, knots, steps) -> dict[str, Any]:
    """The best protocol for these levels together: its stored numbers, from those of `start`. JSON values."""
    objective, protocol = build(noises, delta, epochs, knots, **across)
    if start is not None:
        protocol = protocol_of(protocol, start)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.2, steps))
    found = dmftopt.optimize(objective, protocol, optimizer=optimizer, steps=steps, progress=False)
    return {"parameters": flat(found.protocol).tolist(), "value": found.value}


def checked(noises, across, found, **problem) -> dict[str, Any]:
    """Which levels are worst, and the shortest mixture of their gradients. JSON values."""
    alone = [build([noise], **problem) for noise in noises]
    protocol = protocol_of(alone[0][1], found)
    weights, offsets = np.broadcast_to(across.get("weights", 1.0), len(noises)), np.array(across["offsets"])
    each = weights * (np.array([float(one.values(protocol)[0]) for one, _ in alone]) - offsets)
    # Of ratios, less 1, what is within 2% of the worst.
    active = np.flatnonzero(each > each.max() - 0.02 * (each.max() - (1 if "weights" in across else 0)))
    gradients = [weights[k] * dmftopt.certify(alone[k][0], protocol).gradient for k in active]
    shares, length = stationary(np.array(gradients))
    return {"worst": [noises[k] for k in active], "shares": shares.tolist(), "shortest_gradient": length}


def design(s: Settings) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Stored numbers of protocols by name, and what is known of them. Those tuned for one level come first."""
    shared = {name: getattr(s, name) for name in ("delta", "epochs", "knots", "steps")}

    def tune(cells):
        return sweep.run(tuned, cells, s.folder(__file__) / "cells", shared, s.cluster)

    floors = 0.5 * np.array(s.noises) ** 2
    found = tune({f"noise {noise:g}": {"noises": [noise], "across": {}, "start": None} for noise in s.noises})
    oracle = np.array([c["value"] for c in found.values()])
    ratio: Any = {"offsets": floors.tolist(), "weights": (1 / (oracle - floors)).tolist()}
    # (In the mean, regret and risk differ by a constant.)
    kinds: dict[str, Any] = {
        "mean risk": {"across": "mean"},
        "mean ratio": {"across": "mean", **ratio},
        "worst regret": {"across": "worst", "offsets": oracle.tolist()},
        "worst ratio": {"across": "worst", **ratio},
    }

    def robust(kind, start):
        return {name: {"noises": s.noises, "across": kinds[name], "start": start} for name in kinds if name.startswith(kind)}

    found |= tune(robust("mean", None))
    # Kinks, where the worst level changes, slow the descent down: start close.
    found |= tune(robust("worst", found["mean ratio"]["parameters"]))
    cells = {
        f"{name}, checked": {"noises": s.noises, "across": kinds[name], "found": found[name]["parameters"]}
        for name in ("worst regret", "worst ratio")
    }
    problem = {name: shared[name] for name in ("delta", "epochs", "knots")}
    checks = {
        name.split(",")[0]: c for name, c in sweep.run(checked, cells, s.folder(__file__) / "cells", problem, s.cluster).items()
    }
    values = {name: found[name]["value"] for name in kinds}
    parameters = {name: c["parameters"] for name, c in found.items()}
    return parameters, {"oracle_excess": (oracle - floors).tolist(), "values": values, "checks": checks}


def judged(noises, found, *, delta, epochs, knots, dimension, runs, seed) -> dict[str, Any]:
    """Excess risk and regret of every protocol at every level, predicted and in SGD. JSON values."""
    objective, start = build(noises, delta, epochs, knots)
    floors = 0.5 * np.array(noises) ** 2
    found = {name: protocol_of(start, parameters) for name, parameters in found.items()}
    report = dmftopt.report(objective, found, key=jax.random.key(seed), dimension=dimension, runs=runs, fresh=2, progress=False)
    rows = {}
    for name, levels in report.rows.items():
        gains = [report.gain(name, f"noise {noise:g}", k) for k, noise in enumerate(noises)]
        realized = [report.realized(name, k) for k in range(len(levels))]
        run = objective.run(found[name])
        times = run.horizon * np.linspace(0.0, 1.0, 61)
        rows[name] = {
            "excess": [row.predicted.mean - f for row, f in zip(levels, floors, strict=True)],
            "realized_excess": [real.mean - f for real, f in zip(realized, floors, strict=True)],
            "standard_error": [real.standard_error for real in realized],
            "regret": [-g["predicted"].mean for g in gains],
            "realized_regret": [-g["realized"].mean for g in gains],
            "regret_error": [g["realized"].standard_error for g in gains],
            "times": times.tolist(),
            "rates": np.asarray(run.protocol.learning_rate(jnp.asarray(times)), dtype=float).tolist(),
            "ridge": float(run.protocol.ridge(0.0)),
        }
    return rows


def draw(s: Settings, rows: dict[str, Any], known: dict[str, Any]) -> Figure:
    figure, (ratios, regrets, rates) = plt.subplots(1, 3, figsize=(16, 5.2), layout="constrained")
    oracle = np.array(known["oracle_excess"])
    tuned = [name for name in rows if name.startswith("noise")]
    shades = plt.get_cmap("Greys")(np.linspace(0.3, 0.8, len(tuned)))
    robust = [name for name in rows if name not in tuned]
    colors = dict(zip(tuned, shades, strict=True)) | dict(zip(robust, dmftopt.plot.COLORS, strict=False))
    for k, (name, row) in enumerate(rows.items()):
        width, label = (1.2, f"tuned for {name}") if name in tuned else (2.2, name)
        shift = np.array(s.noises) * 1.015 ** (k - len(rows) / 2)
        style: Any = {"color": colors[name], "fmt": "o", "ms": 3.5, "lw": 1}
        ratios.plot(s.noises, np.array(row["excess"]) / oracle, color=colors[name], lw=width, label=label)
        realized, error = np.array(row["realized_regret"]), 2 * np.array(row["regret_error"])
        ratios.errorbar(shift, 1 + realized / oracle, error / oracle, **style)
        regrets.plot(s.noises, row["regret"], color=colors[name], lw=width)
        regrets.errorbar(shift, realized, error, **style)
        rates.plot(row["times"], row["rates"], color=colors[name], lw=width, label=f"{label}: {row['ridge']:.3g}")
    ratios.set(yscale="log", ylabel="excess test risk / that of the schedule tuned for this level")
    ticks = [1, 1.2, 1.5, 2, 3, 5, 10, 20, 50]
    ratios.set_yticks(ticks, labels=[f"{x:g}" for x in ticks])
    ratios.set_ylim(0.95, 1.15 * max(max(np.array(r["excess"]) / oracle) for r in rows.values()))
    ratios.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.62, 1))
    regrets.set(ylabel="regret: test risk above that of the schedule tuned for this level")
    regrets.set_yscale("symlog", linthresh=0.01)
    for axes in (ratios, regrets):
        axes.set(xscale="log", xlabel="standard deviation of label noise")
        axes.set_xticks(s.noises, labels=[f"{x:g}" for x in s.noises])
        axes.minorticks_off()
        axes.set_title("exact (lines), SGD with 2 standard errors (points)", fontsize=10)
    rates.set(yscale="log", xlabel=r"time $t$ = SGD steps / $d$", ylabel=r"learning rate $\eta(t)$", ylim=(0.0015, 2))
    rates.set_title("schedules", fontsize=10)
    rates.legend(fontsize=8, frameon=False, title="ridge", title_fontsize=8, loc="lower left")
    return figure


def tables(s: Settings, rows: dict[str, Any], known: dict[str, Any]) -> dict[str, str]:
    """Excess risks over the oracle's at every level, and the worst cases; whether these are minimal."""
    oracle, levels = np.array(known["oracle_excess"]), []
    for name, row in rows.items():
        exact, realized, error = (np.array(row[k]) for k in ("regret", "realized_regret", "regret_error"))
        pairs = zip(exact / oracle, realized / oracle, error / oracle, strict=True)
        k = int(np.argmax(exact))
        worst = [f"{1 + max(exact / oracle):.2f}", f"{exact[k]:.3f}", f"{realized[k]:.3f} ± {error[k]:.3f}"]
        levels.append([name, *(f"{1 + a:.2f} ({1 + b:.2f} ± {c:.2f})" for a, b, c in pairs), *worst])
    minimal = []
    for name, check in known["checks"].items():
        shares = ", ".join(f"{x:.2f} of noise {n:g}" for x, n in zip(check["shares"], check["worst"], strict=True))
        minimal.append([name, f"{known['values'][name]:.4f}", shares, f"{check['shortest_gradient']:.2g}"])
    head = ["tuned for", *(f"noise {x:g}" for x in s.noises), "worst ratio", "worst regret", "in SGD"]
    columns = ["", "value", "gradients of the worst levels mix", "to this part of the longest"]
    return {"levels": markdown(head, levels), "minimal": markdown(columns, minimal)}


def main(s: Settings) -> None:
    s = s.sized(noises=(0.5, 2.0), epochs=1.0, knots=3, steps=2, dimension=20, runs=4)
    found, known = design(s)
    cells = {"judged": {"noises": s.noises, "found": found}}
    rows = sweep.run(judged, cells, s.folder(__file__) / "cells", s.without("noises", "steps"), s.cluster)["judged"]
    result = {"settings": s.without(), "rows": rows, **known}
    finish(s, __file__, result, tables(s, rows, known), draw(s, rows, known))


if __name__ == "__main__":
    main(tyro.cli(Settings))
