"""Training curves of language models: a law fitted to three schedules, and how well it predicts six others.

language_models.csv holds the losses of two language models (25M and 100M parameters, AdamW) under nine learning-rate schedules
(see README.md for source and license). By the published split `dmftopt.calibrate` sees cosine_24000, constant_24000 and wsdcon_9;
the other six are predicted. Which parameters are free is chosen by leaving out a sixth of the three in turn, for both
models together; the errors of all choices on the six are in the tables. Then a schedule of 24000 steps is designed on the fitted
law.

AdamW made these curves: the law, that of SGD on least squares with two more parameters, is a surrogate.
"""

import csv
import dataclasses
import itertools
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure

import dmftopt
from dmftopt import calibration

from ..shared.results import Settings as Common
from ..shared.results import finish, markdown

TRAINED = ("cosine_24000", "constant_24000", "wsdcon_9")
UNSEEN = ("constant_72000", "cosine_72000", "wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3", "wsdcon_18")
WARMUP = 2160
CHOICES = ((), ("rate_exponent",), ("rate_exponent", "feedback"))
# Means over the six unseen schedules of the multi-power law, seven parameters: arXiv:2503.12811 and its repository's README.
PUBLISHED = {
    "25M": {"r2": 0.9988, "mean": 0.00110, "worst": 0.00409},
    "100M": {"r2": 0.9983, "mean": 0.00142, "worst": 0.00583},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Calibrate on language models."""

    draws: int = 30
    """Of the bootstrap."""
    steps: int = 24000
    """Of the designed schedule."""
    every: int = 1
    """Of the records that are fitted."""


def load(every: int = 1) -> dict[str, dict[str, dmftopt.Curve]]:
    """model -> schedule -> curve."""
    with (Path(__file__).parent / "language_models.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, dict[str, dmftopt.Curve]] = {}
    for (model, name), group in itertools.groupby(rows, key=lambda row: (row["model"], row["schedule"])):
        step, rate, loss = np.asarray([[float(row[key]) for key in ("step", "learning_rate", "loss")] for row in group])[
            ::every
        ].T
        found.setdefault(model, {})[name] = dmftopt.Curve(step, rate, loss, warmup=WARMUP, name=name)
    return found


def errors(curve: dmftopt.Curve, predicted: calibration.Prediction) -> dict[str, Any]:
    """R², mean and largest relative error, and the share of records within the 90% band."""
    kept = curve.step > 0
    loss = curve.loss[kept]
    off = np.abs(predicted.loss / loss - 1)
    return {
        "r2": 1 - np.sum((predicted.loss - loss) ** 2) / np.sum((loss - loss.mean()) ** 2),
        "mean": off.mean(),
        "worst": off.max(),
        "within_band": np.mean((predicted.low < loss) & (loss < predicted.high)),
        "extrapolates": list(predicted.extrapolates),
        "last": [predicted.loss[-1], loss[-1]],
    }


def judged(curves: dict[str, dmftopt.Curve], result: dmftopt.Calibration) -> dict[str, dict[str, Any]]:
    return {name: errors(curve, result.predict(curve)) for name, curve in curves.items()}


def means(rows: dict[str, dict[str, Any]], names=UNSEEN) -> dict[str, float]:
    return {key: float(np.mean([rows[name][key] for name in names])) for key in ("r2", "mean", "worst", "within_band")}


def main(s: Settings) -> None:
    s = s.sized(draws=2, steps=240, every=8)
    curves, fitted = load(), load(s.every)
    trained = {model: [fitted[model][name] for name in TRAINED] for model in fitted}
    models: dict[str, Any] = {model: {"left_out": {}, "unseen": {}} for model in curves}
    for model, choice in itertools.product(curves, CHOICES):
        label = " + ".join(choice) or "neither"
        by: tuple[Literal["blocks", "curves"], ...] = ("blocks", "curves")
        scores = {how: calibration.cross_validate(trained[model], [choice], leave_out=how)[choice] for how in by}
        result = dmftopt.calibrate(trained[model], free=choice, draws=2, seed=s.seed)
        models[model]["left_out"][label] = scores
        models[model]["unseen"][label] = means(judged(curves[model], result))
    best = min(CHOICES, key=lambda choice: np.mean([left_out(models[model], choice) for model in models]))
    chosen = {model: dmftopt.calibrate(trained[model], free=best, draws=s.draws, seed=s.seed) for model in curves}
    designed = {model: result.optimize(s.steps) for model, result in chosen.items()}
    for model, result in chosen.items():
        print(f"\n{model}: {result}\n{designed[model]}")
        models[model]["schedules"] = judged(curves[model], result)
        models[model]["parameters"] = {name: value._asdict() for name, value in result.parameters.items()}
        models[model]["designed"] = scores_of(designed[model])
        designed[model].save(s.folder(__file__) / f"schedule_{model}.csv")
    result = {"settings": s.without(), "free": list(best), "models": models}
    finish(s, __file__, result, tables(models, best, chosen, designed), draw(curves, chosen, designed))


def left_out(model: dict[str, Any], choice: tuple[str, ...], by: str = "blocks") -> float:
    return float(np.mean(model["left_out"][" + ".join(choice) or "neither"][by]))


def scores_of(designed: calibration.Designed) -> dict[str, Any]:
    """Predicted final losses, and what the design saves, with the bootstrap's standard error."""
    usual = {name: {"final": p.loss[-1], "saved": designed.gain(name)} for name, p in designed.usual.items()}
    return {"final": designed.prediction.loss[-1], "extrapolates": list(designed.prediction.extrapolates), "usual": usual}


def percent(value: float) -> str:
    return f"{100 * value:.3f}"


def tables(models, best, chosen, designed) -> dict[str, str]:
    def cells(row):
        return [percent(row["mean"]), f"{row['r2']:.4f}", f"{100 * row['within_band']:.0f}"]

    lines = []
    for name in (*TRAINED, *UNSEEN):
        label = name + (" (fitted)" if name in TRAINED else "")
        lines.append([label, *(cell for model in models.values() for cell in cells(model["schedules"][name]))])
    lines.append(["**unseen, mean**", *(cell for model in models.values() for cell in cells(means(model["schedules"])))])
    lines.append(["published", *(x for m in models for x in (percent(PUBLISHED[m]["mean"]), f"{PUBLISHED[m]['r2']:.4f}", ""))])
    header = ["schedule", *(f"{m}: {what}" for m in models for what in ("error in %", "R²", "in band, %"))]
    choices = []
    for choice in CHOICES:
        name = " + ".join(choice) or "neither"
        line = [name + (" (chosen)" if choice == best else "")]
        for model in models.values():
            unseen = model["unseen"][name]
            line += [percent(left_out(model, choice)), percent(left_out(model, choice, "curves"))]
            line += [percent(unseen["mean"]), f"{unseen['r2']:.4f}"]
        choices.append(line)
    kinds = ["free", *(f"{m}: {what}" for m in models for what in ("left-out blocks, %", "curves, %", "unseen, %", "R²"))]
    return {
        "unseen": markdown(header, lines),
        "choices": markdown(kinds, choices),
        "parameters": markdown(["parameter", *models], parameter_rows(chosen)),
        "designed": markdown(["schedule", *models], designed_rows(designed, models)),
    }


def parameter_rows(chosen) -> list[list[str]]:
    def cell(value: calibration.Interval) -> str:
        known = "" if value.identifiable else ", not identifiable"
        return f"{value.estimate:.4g} ({value.low:.4g} to {value.high:.4g}){known}"

    names = next(iter(chosen.values())).parameters
    return [[name, *(cell(result.parameters[name]) for result in chosen.values())] for name in names]


def designed_rows(designed, models) -> list[list[str]]:
    rows = [["designed", *(f"{d.prediction.loss[-1]:.4f}" for d in designed.values())]]
    for name in next(iter(designed.values())).usual:
        cells = []
        for d in designed.values():
            gain, error = d.gain(name)
            cells.append(f"{d.usual[name].loss[-1]:.4f}, higher by {gain:.4f} ± {error:.4f}")
        rows.append([name, *cells])
    for name in ("cosine_24000", "wsd_20000_24000", "wsdld_20000_24000"):
        last = [model["schedules"][name]["last"] for model in models.values()]
        rows.append([f"{name}, last record", *(f"{predicted:.4f}, trained {loss:.4f}" for predicted, loss in last)])
    return rows


def draw(curves, chosen, designed) -> Figure:
    figure, axes = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
    colors = plt.get_cmap("tab10").colors  # pyright: ignore
    for row, model in zip(axes, curves, strict=True):
        for color, name in zip(colors, UNSEEN, strict=False):
            curve = curves[model][name]
            predicted = chosen[model].predict(curve)
            row[0].plot(predicted.step, curve.loss, ".", ms=2, color=color, alpha=0.5)
            row[0].plot(predicted.step, predicted.loss, color=color, lw=1, label=name)
            row[1].plot(predicted.step, 100 * (curve.loss / predicted.loss - 1), color=color, lw=1, label=name)
        low, high = (np.quantile(np.concatenate([c.loss for c in curves[model].values()]), q) for q in (0.0, 0.97))
        row[0].set(xlabel="step", ylabel="loss", ylim=(low - 0.02, high), title=f"{model}: unseen schedules and predictions")
        row[1].set(xlabel="step", ylabel="loss above prediction, %", ylim=(-0.8, 0.8), title="residuals")
        row[1].axhline(0, color="black", lw=0.5)
        row[2].plot(designed[model].learning_rate, label=f"designed, {designed[model].prediction.loss[-1]:.4f}")
        for name, usual in designed[model].usual.items():
            row[2].plot(usual.step, usual.learning_rate, lw=1, ls="--", label=f"{name}, {usual.loss[-1]:.4f}")
        row[2].set(xlabel="step", ylabel="learning rate", title="schedules and predicted final losses")
        row[0].legend(fontsize=8)
        row[2].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Settings))
