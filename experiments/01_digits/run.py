"""Design a learning-rate schedule for real data without a training run, then let real SGD confirm or contradict it.

scikit-learn's bundled 8x8 digits go through a fixed random-feature map, tanh(W pixels + b). The task is odd against even by
least squares, SGD with batch size 1 on a random training subset, a fixed number of shuffled epochs. The theory sees the
spectrum, the teacher and the noise of the data, never a training run.
"""

import dataclasses
import time
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import dmftopt

from ..shared import data
from ..shared.results import Settings as Common
from ..shared.results import finish, markdown, mean_and_error, plus_minus

PEAK = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Design a schedule for random features of the digits, then test it in real SGD."""

    features: int = 400
    train_size: int = 800
    epochs: float = 2.0
    seeds: int = 20
    """Random train/test splits and batch orders of real SGD."""
    knots: int = 9
    """Free knots of the optimized schedule."""
    optimizer_steps: int = 80
    grid_steps: int = 40
    """Time steps in the design; the prediction that is compared with real SGD uses twice as many."""
    samples: int = 1024
    """Samples in the design; the prediction uses eight times as many, and four replicates."""


def predicted(problem, protocol, grid, samples: int, key, **options: Any) -> dmftopt.Solution:
    return dmftopt.solve(problem, protocol, grid, noise=dmftopt.noise.Shuffled(), samples=samples, key=key, **options)


def design(problem, grid, s: Settings) -> dict[str, dmftopt.Protocol]:
    """Schedules by name: the usual ones, tuned, and the optimized one."""
    horizon = float(grid.times[-1])

    def objective(protocol, key):
        return 2 * predicted(problem, protocol, grid, s.samples, key, throw=False).test_risk[-1]  # mean squared error

    tunable = dmftopt.Protocol(dmftopt.schedules.piecewise_linear(horizon, s.knots, PEAK, log=True))
    usual = dmftopt.baselines(tunable, horizon=horizon, peak=PEAK)
    found = dmftopt.optimize(
        objective,
        tunable,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.2, s.optimizer_steps, 0.05)),
        steps=s.optimizer_steps,
        key=jax.random.key(s.seed),
        baselines={name: usual[name] for name in ("constant", "linear decay", "cosine")},
    )
    print(f"predicted final test MSE on fresh random numbers:\n{found}")
    return {**found.tuned, "optimized": found.protocol}


def judge(problem, protocol, grid, splits, s: Settings) -> dict[str, Any]:
    """The prediction along the run, and real SGD on every split. JSON values."""
    options: Any = {"replicates": 4, "estimate_bias": True}
    theory = predicted(problem, protocol, grid, 8 * s.samples, jax.random.key(s.seed + 1), **options)
    dimension, c = problem.data.dimension, problem.data.mean_square_norm
    recipe = dmftopt.recipe(
        protocol, horizon=float(grid.times[-1]), dimension=dimension, delta=float(problem.delta), mean_square_norm=c
    )
    keys = jax.random.split(jax.random.key(s.seed), s.seeds)
    realized, _ = data.follow(splits, keys, recipe, 20, shuffled=True)
    real = mean_and_error(realized)
    return {
        "learning_rate": np.asarray(protocol.learning_rate(grid.times)).tolist(),
        "predicted_mse": (2 * np.asarray(theory.test_risk)).tolist(),
        "predicted_standard_error": (2 * np.asarray(theory.standard_error.test_risk)).tolist(),
        "predicted_bias_estimate": (2 * np.asarray(theory.bias.test_risk)).tolist(),
        "realized_mse": real["mean"],
        "realized_standard_error": real["standard_error"],
        "realized_final": realized[:, -1].tolist(),
    }


def main(s: Settings) -> None:
    s = s.sized(features=60, train_size=120, seeds=3, optimizer_steps=3, grid_steps=8, samples=256)
    started = time.perf_counter()
    x, y = data.digits(s.features, s.seed)
    problem = dmftopt.Problem.from_data(x, y, train_size=s.train_size)
    assert problem.data is not None and isinstance(problem.task, dmftopt.tasks.LeastSquares)
    known = {
        "delta": float(problem.delta),
        "horizon": s.epochs * s.train_size / problem.data.dimension,
        "largest_eigenvalue": float(problem.features.eigenvalues.max()),
        "label_noise": float(problem.task.label_noise),
        "mean_square_norm": problem.data.mean_square_norm,
    }
    print(f"{len(y)} samples, {s.features} features: " + ", ".join(f"{k} {v:.3g}" for k, v in known.items()))
    grid = dmftopt.TimeGrid.of_epochs(problem, dmftopt.Protocol(PEAK), s.epochs, s.grid_steps)
    protocols = design(problem, grid, s)
    known["design_seconds"] = time.perf_counter() - started
    fine = grid.refined()
    splits = jax.tree.map(lambda *a: np.stack(a), *(data.split(x, y, s.train_size, seed) for seed in range(s.seeds)))
    curves = {name: judge(problem, protocol, fine, splits, s) for name, protocol in protocols.items()}
    errors = left_open(problem, protocols, grid, s)
    known["total_seconds"] = time.perf_counter() - started
    result = {
        "settings": s.without(),
        **known,
        "grid_times": np.asarray(fine.times).tolist(),
        "record_times": np.linspace(0, known["horizon"], len(next(iter(curves.values()))["realized_mse"])).tolist(),
        "summary": summary(curves, *errors),
        "curves": curves,
    }
    print(f"designed in {known['design_seconds']:.0f} s, {known['total_seconds']:.0f} s in all")
    finish(s, __file__, result, tables(result), draw(result))


def left_open(problem, protocols, grid, s: Settings) -> tuple[dict[str, float], dict[str, float]]:
    """What the data leave open of the final errors, and of the gains over the constant rate: standard errors."""

    def finals(problem):
        key, found = jax.random.key(s.seed + 1), {}
        for name, protocol in protocols.items():
            found[name] = 2 * predicted(problem, protocol, grid, s.samples, key, throw=False).test_risk[-1]
        return found, {name: found["constant"] - final for name, final in found.items()}

    return jax.tree.map(float, dmftopt.estimation_error(finals, problem))


def summary(curves: dict, errors: dict, gain_errors: dict) -> dict:
    """Final values; gains over the constant rate are paired by seed, since the seeds share their splits."""
    base = curves["constant"]
    found = {}
    for name, c in curves.items():
        found[name] = {
            "peak_learning_rate": max(c["learning_rate"]),
            "predicted": c["predicted_mse"][-1],
            "predicted_standard_error": c["predicted_standard_error"][-1],
            "predicted_bias_estimate": c["predicted_bias_estimate"][-1],
            "estimation_error": errors[name],
            "realized": mean_and_error(c["realized_final"]),
            "relative_difference": c["predicted_mse"][-1] / c["realized_mse"][-1] - 1,
            "predicted_gain_over_constant": base["predicted_mse"][-1] - c["predicted_mse"][-1],
            "estimation_error_of_gain": gain_errors[name],
            "realized_gain_over_constant": mean_and_error(np.subtract(base["realized_final"], c["realized_final"])),
        }
    return found


def tables(result: dict) -> dict[str, str]:
    seeds = result["settings"]["seeds"]
    header = ["final test MSE", "peak rate", "predicted", f"real SGD ({seeds} splits)", "difference"]
    header += ["gain over constant: predicted", "realized"]
    rows = []
    for name, r in result["summary"].items():
        gain = {"mean": r["predicted_gain_over_constant"], "standard_error": r["estimation_error_of_gain"]}
        gain = [plus_minus(gain), plus_minus(r["realized_gain_over_constant"])]
        final = plus_minus({"mean": r["predicted"], "standard_error": r["estimation_error"]})
        row = [LABELS.get(name, name), f"{r['peak_learning_rate']:.3f}", final, plus_minus(r["realized"])]
        rows.append([*row, f"{r['relative_difference']:.1%}", *(gain if name != "constant" else ["", ""])])
    return {"gains": markdown(header, rows)}


LABELS = {
    "constant": "best constant",
    "linear decay": "tuned linear decay",
    "cosine": "tuned cosine",
    "optimized": "optimized, 9 knots",
}


def draw(result: dict) -> Figure:
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 7), sharex=True, height_ratios=(3, 2), layout="constrained")
    for color, (name, c) in zip(("C0", "C1", "C2", "C3"), result["curves"].items(), strict=True):
        times, mean = np.asarray(result["grid_times"]), np.asarray(c["predicted_mse"])
        band = 2 * np.asarray(c["predicted_standard_error"])
        top.plot(times, mean, color=color, label=f"{name}")
        top.fill_between(times, mean - band, mean + band, color=color, alpha=0.3, linewidth=0)
        errors = np.asarray(c["realized_standard_error"])
        top.errorbar(result["record_times"], c["realized_mse"], errors, color=color, fmt="o", ms=3.5, capsize=2, lw=1)
        bottom.plot(times, c["learning_rate"], color=color)
    top.plot([], [], "k-", label="theory (band: 2 s.e.)")
    top.errorbar([], [], [], color="k", fmt="o", ms=3.5, label="real SGD (mean, s.e.)")
    top.set(ylabel="test mean squared error", yscale="log", title="Odd against even digits, random features")
    top.set_yticks(ticks := [0.2, 0.3, 0.4, 0.6, 1.0], [f"{tick:g}" for tick in ticks])
    top.minorticks_off()
    top.legend(fontsize=9)
    bottom.set(xlabel="time t = SGD steps / number of features", ylabel="learning rate", ylim=(0, None))
    return figure


if __name__ == "__main__":
    main(tyro.cli(Settings))
