"""Design a learning-rate schedule for real data without a training run, then let real SGD confirm or contradict it.

scikit-learn's bundled 8x8 digits go through a fixed random-feature map, tanh(W pixels + b). The task is odd against even by
least squares, SGD with batch size 1 on a random training subset, a fixed number of epochs. The theory sees the spectrum, the
teacher and the noise of the data, never a training run. Writes results/01_digits/{figure.png,result.json}.
"""

import dataclasses
import time
from pathlib import Path

import _common
import _data
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro

import dmftopt

plt.switch_backend("agg")


@dataclasses.dataclass(frozen=True)
class Settings:
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
    samples: int = 2048
    """Samples in the design; the prediction uses four times as many, and four replicates."""
    seed: int = 0
    smoke: bool = False
    """A tiny run that only shows that everything works."""
    out: Path = Path("results/01_digits")


def main(settings: Settings) -> None:
    if settings.smoke:
        settings = dataclasses.replace(
            settings,
            out=settings.out / "smoke",
            features=60,
            train_size=120,
            seeds=3,
            optimizer_steps=3,
            grid_steps=8,
            samples=256,
        )
    started = time.perf_counter()
    x, y = _data.digits(settings.features, settings.seed)
    problem = dmftopt.Problem.from_data(x, y, train_size=settings.train_size)
    data, task = problem.data, problem.task
    assert data is not None and isinstance(task, dmftopt.tasks.LeastSquares)
    horizon = settings.epochs * settings.train_size / data.dimension
    grid = dmftopt.TimeGrid.geometric(horizon, settings.grid_steps)
    largest = float(problem.features.eigenvalues.max())
    print(
        f"{len(y)} samples, {data.dimension} features, delta = {float(problem.delta):g}, horizon t = {horizon:g}; "
        f"largest eigenvalue {largest:.1f} times the mean, label noise {float(task.label_noise):.3f}"
    )

    def objective(protocol, key):
        # For the squared loss only two moments of the gradient noise matter, so Brownian and Poisson noise agree.
        solution = dmftopt.solve(
            problem, protocol, grid, noise=dmftopt.noise.Brownian(), samples=settings.samples, key=key, throw=False
        )
        return 2 * solution.test_risk[-1]  # mean squared error

    start = 0.1
    knots = dmftopt.schedules.piecewise_linear(horizon, settings.knots, start, log=True)
    tunable = dmftopt.Protocol(learning_rate=knots)
    baselines = dmftopt.baselines(tunable, horizon=horizon, peak=start)
    found = dmftopt.optimize(
        objective,
        tunable,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.2, settings.optimizer_steps, 0.05)),
        steps=settings.optimizer_steps,
        key=jax.random.key(settings.seed),
        baselines={name: baselines[name] for name in ("constant", "linear decay", "cosine")},
    )
    designed = time.perf_counter() - started
    print(f"designed in {designed:.0f} s; predicted final test MSE on fresh random numbers:\n{found}")

    protocols = {**found.tuned, "optimized": found.protocol}
    fine = grid.refined()
    steps = round(horizon * data.dimension)
    records = 20 if steps % 20 == 0 else 1
    curves = {}
    for name, protocol in protocols.items():
        predicted = dmftopt.solve(
            problem,
            protocol,
            fine,
            noise=dmftopt.noise.Brownian(),
            samples=4 * settings.samples,
            replicates=4,
            estimate_bias=True,
            key=jax.random.key(settings.seed + 1),
        )
        schedule = dmftopt.schedules.to_optax(protocol.learning_rate, data.dimension, scale=1 / data.mean_square_norm)
        realized = []
        for seed in range(settings.seeds):
            parts = _data.split(x, y, settings.train_size, seed)
            key = jax.random.key(seed)
            realized.append(np.asarray(_data.real_sgd(*parts, key, schedule=schedule, steps=steps, records=records)))
        realized = np.stack(realized)
        print(f"  {name}: {settings.seeds} runs of real SGD done")
        curves[name] = {
            "learning_rate": np.asarray(protocol.learning_rate(fine.times)).tolist(),
            "predicted_mse": (2 * np.asarray(predicted.test_risk)).tolist(),
            "predicted_standard_error": (2 * np.asarray(predicted.standard_error.test_risk)).tolist(),
            "predicted_bias_estimate": (2 * np.asarray(predicted.bias.test_risk)).tolist(),
            "realized_mse": realized.mean(axis=0).tolist(),
            "realized_standard_error": (realized.std(axis=0, ddof=1) / np.sqrt(settings.seeds)).tolist(),
            "realized_final": realized[:, -1].tolist(),
        }
    summary = _summary(curves)
    print(_table(summary))
    result = {
        "settings": {**dataclasses.asdict(settings), "out": None},
        "delta": float(problem.delta),
        "horizon": horizon,
        "largest_eigenvalue": largest,
        "label_noise": float(task.label_noise),
        "mean_square_norm": data.mean_square_norm,
        "design_seconds": designed,
        "total_seconds": time.perf_counter() - started,
        "grid_times": np.asarray(fine.times).tolist(),
        "record_times": np.linspace(0, horizon, records + 1).tolist(),
        "summary": summary,
        "curves": curves,
    }
    _common.write_json(settings.out / "result.json", result)
    _common.write_figure(settings.out / "figure.png", _figure(result))
    print(f"wrote {settings.out}/figure.png and result.json; {result['total_seconds']:.0f} s in all")


def _summary(curves: dict) -> dict:
    """Final values; gains over the constant rate are paired by seed, since the seeds share their splits."""
    base = curves["constant"]
    summary = {}
    for name, c in curves.items():
        paired = np.asarray(base["realized_final"]) - np.asarray(c["realized_final"])
        summary[name] = {
            "peak_learning_rate": max(c["learning_rate"]),
            "predicted": c["predicted_mse"][-1],
            "predicted_standard_error": c["predicted_standard_error"][-1],
            "predicted_bias_estimate": c["predicted_bias_estimate"][-1],
            "realized": c["realized_mse"][-1],
            "realized_standard_error": c["realized_standard_error"][-1],
            "relative_difference": c["predicted_mse"][-1] / c["realized_mse"][-1] - 1,
            "predicted_gain_over_constant": base["predicted_mse"][-1] - c["predicted_mse"][-1],
            "realized_gain_over_constant": float(paired.mean()),
            "realized_gain_standard_error": float(paired.std(ddof=1) / np.sqrt(len(paired))),
        }
    return summary


def _table(summary: dict) -> str:
    lines = [
        f"{'final test MSE':<14}{'peak rate':>10}{'predicted':>18}{'real SGD':>18}{'difference':>12}{'gain: predicted, real':>30}"
    ]
    for name, s in summary.items():
        lines.append(
            f"{name:<14}{s['peak_learning_rate']:>10.3f}"
            f"{s['predicted']:>10.4f} ±{s['predicted_standard_error']:.4f}"
            f"{s['realized']:>10.4f} ±{s['realized_standard_error']:.4f}{s['relative_difference']:>12.1%}"
            f"{s['predicted_gain_over_constant']:>12.4f}, {s['realized_gain_over_constant']:.4f}"
            f" ±{s['realized_gain_standard_error']:.4f}"
        )
    return "\n".join(lines)


def _figure(result: dict):
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
