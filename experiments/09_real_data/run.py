"""Are gains that the theory predicts realized on real data?

Odd against even digits, and benign against malignant tumors (scikit-learn's, bundled), each through random tanh features, by
least squares. Under a budget of epochs the knots of the learning rate and the ridge are tuned against the prediction for
`Problem.from_data` (spectrum, teacher and noise of the data), and so are what most people would run: a constant, linear decay,
cosine, power law, warmup-stable-decay, and optax's warmup_cosine_decay_schedule, each with its ridge. Then plain optax SGD on
the raw data follows their recipes, on common splits and batches of `seeds` seeds, and so does SGD on Gaussian data of the same
dimension and spectrum, which tells finite size from data that are not Gaussian. Standard errors are over splits of one data set.
"""

import dataclasses
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import dmftopt
from dmftopt import schedules
from dmftopt.design import realized

from ..shared import data, sweep
from ..shared.results import SweepSettings, finish, markdown, mean_and_error, plus_minus

DATA = {"digits": (data.digits, "digits: odd or even"), "breast_cancer": (data.breast_cancer, "tumors: benign or malignant")}
PEAK, RIDGE = 0.3, 0.01
OPTAX = "optax warmup cosine"
GAINS = ("gain_predicted", "gain_gaussian", "gain_realized")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings):
    """Predicted against realized gains on digits and tumors."""

    features: tuple[int, int] = (400, 150)
    """Random features of the digits, of the tumors."""
    train_size: tuple[int, int] = (800, 400)
    """Of 1797 digits, of 569 tumors."""
    epochs: float = 2.0
    seeds: int = 20
    """Random splits and batch orders of real SGD."""
    knots: int = 9
    optimizer_steps: int = 60
    samples: int = 1024
    """Samples in the design; predictions use eight times as many, and four replicates."""
    gaussian_runs: int = 32
    records: int = 20


def build(problem, epochs, knots, samples) -> tuple[dmftopt.Objective, dmftopt.Protocol]:
    """What is minimized, and where the search starts."""
    predict = dmftopt.Solve(dmftopt.noise.Shuffled(), samples=samples)
    objective = dmftopt.Objective(problem, dmftopt.Budget(epochs=epochs), predict=predict)
    free = schedules.piecewise_linear(1.0, knots, schedules.linear_decay(PEAK, 1.0, 0.1), log=True)
    return objective, dmftopt.Protocol(free, ridge=dmftopt.above(RIDGE))


def cell(
    source, features, train_size, *, epochs, seeds, knots, optimizer_steps, samples, gaussian_runs, records, seed
) -> dict[str, Any]:
    """Predictions and real SGD of every protocol on one data set. JSON values."""
    x, y = DATA[source][0](features, seed)
    problem = dmftopt.Problem.from_data(x, y, train_size=train_size)
    assert problem.data is not None
    dimension, delta = problem.data.dimension, float(problem.delta)
    objective, tunable = build(problem, epochs, knots, samples)
    steps = round(epochs * train_size)
    compared = dmftopt.baselines(tunable, peak=PEAK)
    # In relative time, with a tuned peak.
    warmup = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=steps // 20, decay_steps=steps)
    compared[OPTAX] = dmftopt.Protocol(schedules.from_optax(warmup, steps, dmftopt.above(PEAK)), ridge=dmftopt.above(RIDGE))
    adam = optax.adam(optax.cosine_decay_schedule(0.2, optimizer_steps, 0.05))
    options: Any = {"steps": optimizer_steps, "key": jax.random.key(seed), "fresh": 2, "progress": False, "optimizer": adam}
    found = dmftopt.optimize(objective, tunable, baselines=compared, **options)
    finer = objective.finer(samples=8)
    splits = jax.tree.map(lambda *a: np.stack(a), *(data.split(x, y, train_size, k) for k in range(seeds)))
    keys = jax.random.split(jax.random.key(seed + 1), seeds)
    rows = {}
    for name, protocol in ({"optimized": found.protocol} | found.tuned).items():
        run = objective.run(protocol)
        predicted = finer.predict_run(protocol, jax.random.key(seed + 2))
        recipe = run.recipe(dimension=dimension, delta=delta, mean_square_norm=problem.data.mean_square_norm)
        error, wrong = data.follow(splits, keys, recipe, records, shuffled=True)
        same = run.recipe(dimension=dimension, delta=delta)
        groups = jax.random.split(jax.random.key(seed + 3), 8)
        gaussian = [2 * realized(objective, run, same, max(1, gaussian_runs // 8), k) for k in groups]
        rows[name] = {
            "times": np.asarray(finer.grid.times).tolist(),
            "learning_rate": np.asarray(run.protocol.learning_rate(run.horizon * finer.grid.times)).tolist(),
            "ridge": float(run.protocol.ridge(0.0)),
            # Mean squared errors: twice the risk.
            "predicted": (2 * np.asarray(predicted.test_risk)).tolist(),
            "predicted_standard_error": 2 * float(predicted.standard_error.test_risk[-1]),
            "gaussian": gaussian,
            "realized": error.tolist(),
            "wrong_signs": wrong.tolist(),
        }
    return {
        "samples": len(y),
        "dimension": dimension,
        "delta": delta,
        "horizon": epochs * delta,
        "largest_eigenvalue": float(problem.features.eigenvalues.max()),
        "constant_prediction": float(np.var(y)),
        "protocols": rows,
    }


def summary(rows: dict[str, dict]) -> dict[str, dict]:
    """Final mean squared errors, and the gains of the optimized protocol, paired by seed."""
    best = rows["optimized"]
    table = {}
    for name, r in rows.items():
        real = np.asarray(r["realized"])[:, -1]
        error = float(np.hypot(r["predicted_standard_error"], best["predicted_standard_error"]))
        table[name] = {
            "predicted": r["predicted"][-1],
            "gaussian": mean_and_error(r["gaussian"]),
            "realized": mean_and_error(real),
            "real_over_predicted": float(real.mean() / r["predicted"][-1] - 1),
            "wrong_signs": mean_and_error(r["wrong_signs"]),
            "gain_predicted": {"mean": r["predicted"][-1] - best["predicted"][-1], "standard_error": error},
            "gain_gaussian": mean_and_error(np.asarray(r["gaussian"]) - np.asarray(best["gaussian"])),
            "gain_realized": mean_and_error(real - np.asarray(best["realized"])[:, -1]),
        }
    return table


def tables(summaries: dict[str, dict]) -> dict[str, str]:
    """Final test mean squared errors, and what the optimized schedule saves."""
    rows = []
    for source, table in summaries.items():
        for name, t in table.items():
            pairs = [plus_minus(t[k]) for k in ("gaussian", "realized", "wrong_signs", *GAINS)]
            row = [source.replace("_", " "), name, f"{t['predicted']:.4f}", *pairs[:2], f"{t['real_over_predicted']:+.1%}"]
            rows.append([*row, *pairs[2:]])
    head = ["data", "schedule", "predicted", "SGD on Gaussian data", "real SGD", "differs", "wrong signs"]
    return {"gains": markdown([*head, "the optimized one saves: predicted", "Gaussian data", "real SGD"], rows)}


def draw(results: dict[str, dict], summaries: dict[str, dict]) -> Figure:
    figure, axes = plt.subplots(len(results), 3, figsize=(15, 4.4 * len(results)), layout="constrained", squeeze=False)
    for (source, r), (rates, curves, gains) in zip(results.items(), axes, strict=True):
        rows, table = r["protocols"], summaries[source]
        for color, (name, row) in zip((*dmftopt.plot.COLORS, "0.4"), rows.items(), strict=False):
            width = 2.5 if name == "optimized" else 1.2
            rates.plot(row["times"], row["learning_rate"], color=color, lw=width, label=f"{name} (ridge {row['ridge']:.2g})")
            if name in ("optimized", "constant", "cosine"):
                curves.plot(row["times"], row["predicted"], color=color, label=f"{name}, predicted")
                real = np.asarray(row["realized"])
                mean, error = real.mean(axis=0), 2 * real.std(axis=0, ddof=1) / np.sqrt(len(real))
                at = np.linspace(0, 1, len(mean))
                curves.errorbar(at, mean, error, color=color, fmt="o", ms=3.5, lw=1, label="real SGD (2 s.e.)")
        rates.set(ylim=(0, None), xlabel="share of the budget", ylabel="learning rate (unit mean square norm)")
        rates.set_title(f"{DATA[source][1]}, d = {r['dimension']}, δ = {r['delta']:.3g}")
        rates.legend(fontsize=7.5)
        low = min(min(row["predicted"]) for row in rows.values())
        curves.set(yscale="log", ylim=(0.85 * low, 1.15 * r["constant_prediction"]), xlabel="share of the budget")
        ticks = [t for t in (0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0) if t > 0.85 * low]
        curves.set_yticks(ticks, [f"{t:g}" for t in ticks])
        curves.minorticks_off()
        curves.set_ylabel("test mean squared error")
        curves.legend(fontsize=7.5)
        others = [name for name in table if name != "optimized"]
        place = np.arange(len(others))[::-1]
        gains.plot([table[n]["gain_predicted"]["mean"] for n in others], place + 0.2, "k|", ms=14, mew=2, label="predicted")
        for shift, key, color, label in (
            (0.0, "gain_gaussian", "C0", "SGD on Gaussian data"),
            (-0.2, "gain_realized", "C1", "real SGD"),
        ):
            mean, error = (np.array([table[n][key][k] for n in others]) for k in ("mean", "standard_error"))
            gains.errorbar(mean, place + shift, xerr=2 * error, fmt="o", color=color, label=f"{label} (2 s.e.)")
        gains.axvline(0, color="0.8", zorder=0)
        gains.set_yticks(place, others)
        # Linear up to 0.01, so that small gains can be told apart beside large ones.
        gains.set_xscale("symlog", linthresh=0.01)
        gains.set_xticks(ticks := [0, 0.005, 0.01, 0.02, 0.05], [f"{t:g}" for t in ticks])
        gains.minorticks_off()
        gains.set(xlabel="what the optimized schedule saves, mean squared error")
        gains.legend(fontsize=8)
    return figure


def main(s: Settings) -> None:
    tiny: Any = {"features": (30, 20), "train_size": (60, 40), "seeds": 3, "optimizer_steps": 1}
    s = s.sized(**tiny, samples=512, gaussian_runs=8, records=4)
    sizes = zip(DATA, s.features, s.train_size, strict=True)
    cells = {source: {"source": source, "features": f, "train_size": n} for source, f, n in sizes}
    if s.smoke:
        del cells["breast_cancer"]
    shared = s.without("features", "train_size")
    found = sweep.run(cell, cells, s.folder(__file__) / "cells", shared, s.cluster)
    summaries = {source: summary(r["protocols"]) for source, r in found.items()}
    result = {"settings": shared, "summary": summaries, "results": found}
    finish(s, __file__, result, tables(summaries), draw(found, summaries))


if __name__ == "__main__":
    main(tyro.cli(Settings))
