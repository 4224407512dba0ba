"""How far can a diffusion stand in for SGD? Stochastic modified flows, their order, and their place beside the theory.

Weak orders: errors of expectations against exact SGD as the learning rate falls, of one point, of two points under common noise
and of a mean-field network, from the library's own steps without Monte Carlo (weak.py). Side by side: sign-label logistic
regression (delta = 2, ridge 0.1, batches of 1) trained to eta t = 4 at ever larger learning rates eta, in dimension 8, 32, 128,
by SGD, by stochastic gradient flow (the flow of first order) and by the modified flow of second order on the same data sets; and
predicted by DMFT, whose dimension is infinite, with Poisson and with Brownian noise.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure

import dmftopt
from dmftopt import flows, tasks
from dmftopt.results.plot import COLORS

from ..shared import sweep
from ..shared.results import SweepSettings, finish, markdown, mean_and_error, plus_minus
from . import weak

DELTA, RIDGE, CLOCK = 2.0, 0.1, 4.0
FLOWS = {"first order": flows.ModifiedFlow(1), "second order": flows.ModifiedFlow()}
# Title, chain, and by name the dynamics compared with SGD on it.
WEAK: dict[str, Any] = {
    "one point: E cos X": (weak.one_point, FLOWS),
    "two points: E (X - Y)²": (weak.two_point, {**FLOWS, "modified equation": flows.ModifiedEquation()}),
    "mean field: E m²": (weak.mean_field, FLOWS),
    "mean field, measure frozen": (lambda: weak.mean_field(frozen_measure=True), {"measure frozen": flows.ModifiedFlow()}),
}
OBSERVABLES = ("student_overlap", "test_risk")
SHOWN = ("first order", "second order", "Poisson", "Brownian")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings):
    """SGD, modified flows and DMFT side by side."""

    dimensions: tuple[int, ...] = (8, 32, 128)
    rates: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    """Learning rates; 4 d of them must be a whole number of steps."""
    runs: int = 2**17
    """Divided by the dimension."""
    weak_steps: tuple[int, ...] = (8, 16, 32, 64, 128)
    """SGD steps of length 1 / steps for the weak orders."""
    samples: int = 16384
    grid_steps: int = 40


def cell(kind, **arguments) -> dict[str, Any]:
    jax.config.update("jax_enable_x64", True)
    found = {"weak": weak_errors, "side": side_by_side, "theory": theory}[kind](**arguments)
    return jax.tree.map(lambda a: np.asarray(a).tolist(), found)


def weak_errors(name, *, weak_steps, **_) -> dict[str, Any]:
    """Errors of each flow."""
    make, compared = WEAK[name]
    chain, schedules = make(), [[1 / n] * n for n in weak_steps]
    exact = weak.expectations(chain, flows.SGD(), schedules)
    errors = {n: weak.expectations(chain, dynamics, schedules) - exact for n, dynamics in compared.items()}
    rates = 1 / np.array(weak_steps)
    return {"rates": rates, "exact": exact, "errors": errors, "slopes": {n: weak.slopes(rates, e) for n, e in errors.items()}}


def setting() -> dmftopt.Problem:
    return dmftopt.Problem(tasks.Logistic("sign"), dmftopt.features.isotropic(), DELTA, 1.0, 0.5**0.5)


def side_by_side(dimension, rate, halved, *, runs, seed, **_) -> dict[str, Any]:
    """At the end: means and standard errors of SGD, and of the differences of the flows from it on the same data.

    `halved`: also what it changes to halve the time steps of the flow of second order."""
    problem, samples, steps = setting(), round(DELTA * dimension), round(CLOCK / rate * dimension)
    # A time step turns the weights by 1/16 of the unit of eta t; never shorter than a step of SGD.
    stride = max(1, int(dimension / (16 * rate)))
    dynamics = {"sgd": (flows.SGD(), 1), **{n: (f, stride) for n, f in FLOWS.items()}}
    if halved:
        dynamics["half the time step"] = (flows.ModifiedFlow(), stride / 2)

    def loss(theta, sample):
        x, y = sample
        return problem.task.loss(x @ theta, y) + RIDGE / (2 * dimension) * theta @ theta

    def one(key):
        key_data, key_sgd, key_flow = jax.random.split(key, 3)
        data, teacher, student = drawn(problem, samples, dimension, key_data)
        model = flows.Model(loss, data)

        def final(dynamics, stride):
            own = key_sgd if isinstance(dynamics, flows.SGD) else key_flow
            options: Any = {"key": own, "step_size": stride, "throw": False}
            theta = flows.simulate(model, dynamics, rate, student[None], steps, **options).states[0, -1, 0]
            overlaps = (theta @ theta / dimension, theta @ teacher / dimension, teacher @ teacher / dimension)
            return jnp.stack([overlaps[0], problem.task.test_risk(*overlaps)])

        return {name: final(*d) for name, d in dynamics.items()}

    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), dimension), max(2, runs // dimension))
    together = max(1, min(len(keys), 2**22 // (samples * dimension)))
    found = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=together))(keys)
    found = {name: np.asarray(values) for name, values in found.items()}
    if not all(np.all(np.isfinite(values)) for values in found.values()):
        raise FloatingPointError("a run became infinite or NaN. Lower the learning rate.")
    base = {"half the time step": "second order"}
    differences = {name: mean_and_error(found[name] - found[base.get(name, "sgd")]) for name in dynamics if name != "sgd"}
    return {"sgd": mean_and_error(found["sgd"]), **differences}


def drawn(problem: dmftopt.Problem, samples: int, dimension: int, key) -> tuple[Any, jax.Array, jax.Array]:
    """Features and labels, teacher and initial student. The two have exactly their scales, and are orthogonal, so that runs
    differ by nothing but training."""
    key_x, key_columns, key_label = jax.random.split(key, 3)
    teacher, student = jnp.linalg.qr(jax.random.normal(key_columns, (dimension, 2)))[0].T * dimension**0.5
    teacher, student = problem.teacher_scale * teacher, problem.student_scale * student
    x = jax.random.normal(key_x, (samples, dimension)) / dimension**0.5
    y = problem.task.label(x @ teacher, jax.random.uniform(key_label, (samples,), minval=1e-7, maxval=1 - 1e-7))
    return (x, y), teacher, student


def theory(rate, *, samples, grid_steps, seed, **_) -> dict[str, Any]:
    grid = dmftopt.TimeGrid.uniform(CLOCK / rate, grid_steps)
    result = {}
    for noise in (dmftopt.noise.Poisson(), dmftopt.noise.Brownian()):
        options: Any = {"samples": samples, "replicates": 4, "richardson": True, "key": jax.random.key(seed)}
        solution = dmftopt.solve(setting(), dmftopt.Protocol(rate, 1.0, RIDGE), grid, noise=noise, **options)
        values = [np.ravel(getattr(solution, o)[-1])[0] for o in OBSERVABLES]
        errors = [np.ravel(getattr(solution.standard_error, o)[-1])[0] for o in OBSERVABLES]
        result[type(noise).__name__] = {"mean": values, "standard_error": errors}
    return result


STYLE: dict[str, Any] = {
    "first order": {"color": COLORS[1], "marker": "o", "label": "SGF (first order)"},
    "second order": {"color": COLORS[0], "marker": "s", "label": "SMF (second order)"},
    "modified equation": {"color": COLORS[3], "marker": "^", "ls": "--", "label": "SME (second order)"},
    "measure frozen": {"color": COLORS[3], "marker": "v", "ls": "--", "label": "SMF, measure frozen"},
    "Poisson": {"color": COLORS[2], "marker": "D", "label": "DMFT, Poisson noise"},
    "Brownian": {"color": COLORS[4], "marker": "P", "label": "DMFT, Brownian noise"},
}


def draw(weak_found: dict, side: dict) -> Figure:
    columns = max(3, len(side))
    figure, axes = plt.subplots(3, columns, figsize=(4.8 * columns, 12), layout="constrained")
    panels = [("one point: E cos X",), ("two points: E (X - Y)²",), ("mean field: E m²", "mean field, measure frozen")]
    for a, names in zip(axes[0], panels, strict=False):
        for row in (weak_found[n] for n in names):
            for name, errors in row["errors"].items():
                style = {**STYLE[name], "label": f"{STYLE[name]['label']}: slope {row['slopes'][name][-1]:.2f}"}
                a.loglog(row["rates"], np.abs(errors), **style)
        a.set(title=f"weak error, {names[0]}", xlabel=r"learning rate $\eta$", ylabel="|error| against exact SGD")
        a.legend(frameon=False, fontsize=8.5)
    for o, row in enumerate(axes[1:]):
        draw_relative(row, side, o)
    axes[1, 0].legend(frameon=False, fontsize=8.5)
    for a in axes[1:, len(side) :].flat:
        a.axis("off")
    return figure


def draw_relative(row, side: dict, o: int) -> None:
    """Errors of an observable relative to SGD, a panel per dimension."""
    labels = ("student overlap", "test risk")
    for a, (dimension, cells) in zip(row, side.items(), strict=False):
        rates = np.array([float(r) for r in cells])
        for name, aside in (("first order", 0.94), ("second order", 0.98), ("Poisson", 1.02), ("Brownian", 1.06)):
            value, error = (np.array([c["relative"][name][k][o] for c in cells.values()]) for k in ("mean", "standard_error"))
            a.errorbar(aside * rates, 100 * value, 200 * error, capsize=2, ms=5, **STYLE[name])
        a.axhline(0, color="0.4", lw=1)
        a.set_xscale("log", base=2)
        a.set_yscale("symlog", linthresh=1)
        a.set_ylim(-50, 10)
        ticks = [-30, -10, -3, -1, 0, 1, 3, 10]
        a.set_yticks(ticks, labels=[f"{t:+g}%" if t else "0" for t in ticks])
        a.minorticks_off()
        a.set_xticks(rates, labels=[f"{r:g}" for r in rates])
        a.grid(alpha=0.3)
        a.set(title=f"{labels[o]}, dimension {dimension}", xlabel=r"learning rate $\eta$, trained to $\eta t = 4$")
    row[0].set_ylabel(f"{labels[o]}: relative error against SGD\n(2 standard errors)")


def relative(sgd: dict, found: dict, predicted: dict) -> dict[str, Any]:
    """Errors relative to SGD's mean: of the flows, from differences on the same data, and of the theory."""
    mean, error = (np.array(sgd[k]) for k in ("mean", "standard_error"))
    differences = [name for name in found if name != "sgd"]
    rows = {n: (np.array(found[n]["mean"]) / mean, np.array(found[n]["standard_error"]) / mean) for n in differences}
    for name, values in predicted.items():
        rows[name] = np.array(values["mean"]) / mean - 1, np.hypot(values["standard_error"], error) / mean
    return {n: {"mean": m.tolist(), "standard_error": e.tolist()} for n, (m, e) in rows.items()}


def tables(weak_found: dict, side: dict) -> dict[str, str]:
    """Orders at the smallest rates, and relative errors against SGD in percent."""
    orders, rows = [], []
    for name, row in weak_found.items():
        orders += [[name, STYLE[dynamics]["label"], f"{slopes[-1]:.2f}"] for dynamics, slopes in row["slopes"].items()]
    for dimension, cells in side.items():
        for rate, c in cells.items():
            for o, observable in enumerate(OBSERVABLES):
                picked = [{k: c["relative"][n][k][o] for k in ("mean", "standard_error")} for n in SHOWN]
                values = (plus_minus(v, 2, 100) for v in picked)
                rows.append([dimension, f"{rate:g}", observable.replace("_", " "), *values])
    return {
        "orders": markdown(["weak error of", "dynamics", "order"], orders),
        "against SGD": markdown(["d", "learning rate", "error of, %", *(STYLE[n]["label"] for n in SHOWN)], rows),
    }


def main(s: Settings) -> None:
    tiny: Any = {"dimensions": (4,), "rates": (2.0,), "runs": 64, "weak_steps": (8, 16), "samples": 128, "grid_steps": 4}
    s = s.sized(**tiny)
    cells: dict[str, Any] = {f"weak, {name}": {"kind": "weak", "name": name} for name in WEAK}
    cells |= {f"theory, rate={r:g}": {"kind": "theory", "rate": r} for r in s.rates}
    pairs = [(d, r) for d in s.dimensions for r in s.rates]
    cells |= {f"d={d}, rate={r:g}": {"kind": "side", "dimension": d, "rate": r, "halved": d == s.dimensions[0]} for d, r in pairs}
    shared = s.without("dimensions", "rates")
    done = sweep.run(cell, cells, s.folder(__file__) / "cells", shared, s.cluster)
    weak_found = {name: done[f"weak, {name}"] for name in WEAK}
    side: dict[int, dict[float, Any]] = {d: {} for d in s.dimensions}
    for d, r in pairs:
        found, predicted = done[f"d={d}, rate={r:g}"], done[f"theory, rate={r:g}"]
        side[d][r] = {**found, **predicted, "relative": relative(found["sgd"], found, predicted)}
    result = {"settings": {**shared, "delta": DELTA, "ridge": RIDGE, "clock": CLOCK}, "weak": weak_found, "side_by_side": side}
    finish(s, __file__, result, tables(weak_found, side), draw(weak_found, side))


if __name__ == "__main__":
    main(tyro.cli(Settings))
