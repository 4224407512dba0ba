"""Every kind of model, one figure each: the theory's lines over simulated points.

Each model is solved with the noise of its algorithm and trained at d = 2000, and the two are compared at 2 combined standard
errors plus 0.5% of an observable's largest value. Writes results/02_gallery/<model>.png, all test risks in one
gallery.png, and result.json, after every model: a second call goes on where the first stopped.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from tqdm.auto import tqdm

import dmftopt
from dmftopt import noise, parametrizations, priors, regularizers, tasks

plt.switch_backend("agg")
GATED = ("student_overlap", "teacher_overlap", "norm", "test_risk", "train_loss", "correlation")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Draw the theory over simulations for every kind of model."""

    models: tuple[str, ...] = ()
    """Only these; all by default."""
    dimension: int = 2000
    runs: int = 32
    replicates: int = 4
    seed: int = 0
    smoke: bool = False
    """Tiny sizes: shows that everything works, agrees with nothing."""
    out: Path = Path("results/02_gallery")


@dataclasses.dataclass(frozen=True)
class Model:
    """`noise`: Poisson (the simulation is SGD), or NoNoise and Bernoulli (gradient descent of one update per grid step)."""

    task: Any
    protocol: Any
    delta: float = 2.0
    teacher_scale: Any = 1.0
    student_scale: float = 0.5
    noise: Any = dataclasses.field(default_factory=noise.Poisson)
    horizon: float = 3.0
    steps: int = 40
    samples: int = 16384
    particles: int = 8192
    problem: dict[str, Any] = dataclasses.field(default_factory=dict)


def sgd(rate: float, ridge: float = 0.1, **settings: Any) -> dmftopt.Protocol:
    return dmftopt.Protocol(dmftopt.schedules.cosine(rate, 3.0, 0.2), 1.0, ridge, **settings)


def lean(m_star: int, m: int, cosine: float) -> np.ndarray:
    """Student column a starts out leaning toward teacher column a: what lets hidden units specialize."""
    correlation = np.eye(m_star + m)
    for a in range(min(m_star, m)):
        correlation[a, m_star + a] = correlation[m_star + a, a] = cosine
    return correlation


# Clusters 0 and 2 opposite each other, cluster 1 at the origin; then the student.
opposite = np.array([[1.0, 0, -1, 0.3], [0, 1, 0, 0], [-1, 0, 1, -0.3], [0.3, 0, -0.3, 1]])
MODELS: dict[str, Callable[[], Model]] = {
    "least squares": lambda: Model(tasks.LeastSquares(0.3), sgd(0.6)),
    "logistic": lambda: Model(tasks.Logistic("logistic"), sgd(1.5), teacher_scale=2.0),
    "probit": lambda: Model(tasks.Probit(), sgd(1.0), teacher_scale=2.0),
    "hinge": lambda: Model(tasks.Hinge(), sgd(1.0)),
    "squared hinge": lambda: Model(tasks.SquaredHinge(), sgd(0.6)),
    "perceptron": lambda: Model(tasks.Perceptron(), sgd(0.5), student_scale=1.0),
    "Huber, Student noise": lambda: Model(tasks.Huber(noise_law="student", degrees_of_freedom=5, label_noise=0.3), sgd(1.0)),
    "least absolute, Laplace noise": lambda: Model(tasks.LeastAbsolute(noise_law="laplace", label_noise=0.3), sgd(0.5)),
    "log-cosh": lambda: Model(tasks.LogCosh(label_noise=0.3), sgd(1.0)),
    "phase retrieval": lambda: Model(
        tasks.PhaseRetrieval(), sgd(0.05), delta=4.0, problem={"initial_correlation": 0.5}, samples=32768, student_scale=0.7
    ),
    "Poisson regression": lambda: Model(tasks.PoissonRegression(), sgd(0.5)),
    "committee, erf": lambda: Model(
        tasks.Committee(2, 2, activation="erf", label_noise=0.1),
        sgd(1.0, 0.01),
        4.0,
        problem={"initial_correlation": lean(2, 2, 0.4)},
    ),
    "committee, ReLU": lambda: Model(
        tasks.Committee(2, 2, activation="relu", label_noise=0.1),
        sgd(0.8, 0.01),
        4.0,
        problem={"initial_correlation": lean(2, 2, 0.4)},
    ),
    "softmax": lambda: Model(tasks.Softmax(3, labels="softmax"), sgd(1.5), teacher_scale=2.0),
    "Gaussian mixture": lambda: Model(
        tasks.GaussianMixture(labels=(1, -1, 1), weights=(0.25, 0.5, 0.25)), sgd(1.0), teacher_scale=1.5
    ),
    "Gaussian mixture, XOR-like": lambda: Model(
        tasks.GaussianMixture(labels=(1, -1, 1), weights=(0.25, 0.5, 0.25)),
        sgd(1.0),
        teacher_scale=np.array([[1.5, 0.0, 1.5]]),
        problem={"initial_correlation": opposite},
    ),
    "smooth L1, sparse teacher": lambda: Model(
        tasks.LeastSquares(0.2),
        sgd(0.5, 0.2),
        problem={"regularizer": regularizers.SmoothL1(0.2), "teacher_prior": priors.Sparse(0.2)},
    ),
    "elastic net, Laplace teacher": lambda: Model(
        tasks.Logistic("sign"),
        sgd(1.0, 0.2),
        problem={"regularizer": regularizers.ElasticNet(), "teacher_prior": priors.Laplace()},
    ),
    "diagonal network": lambda: Model(
        tasks.LeastSquares(0.2),
        dmftopt.Protocol(0.3),
        noise=noise.NoNoise(),
        horizon=10.0,
        problem={"parametrization": parametrizations.Diagonal(0.3), "teacher_prior": priors.Sparse(0.2)},
        student_scale=0.0,
    ),
    "momentum, batches of n/5": lambda: Model(
        tasks.Logistic("sign"), dmftopt.Protocol(0.5, ridge=0.1, momentum=0.7), noise=noise.Bernoulli(0.2), horizon=20.0
    ),
    "SGD with momentum": lambda: Model(tasks.Logistic("sign"), sgd(0.3, momentum=0.8)),
}


def solved_and_trained(model: Model, settings: Settings) -> tuple[dmftopt.Solution, dmftopt.simulate.Simulation]:
    problem = dmftopt.Problem(
        model.task, dmftopt.features.isotropic(), model.delta, model.teacher_scale, model.student_scale, **model.problem
    )
    small = settings.smoke
    descent = isinstance(model.noise, (noise.NoNoise, noise.Bernoulli))
    # Fewer steps, of the same size.
    steps = 4 if small else model.steps
    grid = dmftopt.TimeGrid.uniform(model.horizon * steps / model.steps, steps)
    solution = dmftopt.solve(
        problem,
        model.protocol,
        grid,
        noise=model.noise,
        step=dmftopt.DiscreteStep() if descent else None,
        solver=dmftopt.CausalInnovations(particles=256 if small else model.particles),
        samples=512 if small else model.samples,
        replicates=settings.replicates,
        key=jax.random.key(settings.seed),
    )
    dimension, runs = (60, 2) if small else (settings.dimension, settings.runs)
    size: Any = {"dimension": dimension, "runs": runs, "key": jax.random.key(settings.seed + 1)}
    if isinstance(model.noise, (noise.NoNoise, noise.Bernoulli)):
        return solution, dmftopt.simulate.gradient_descent(problem, model.protocol, grid, noise=model.noise, **size)
    times = grid.times[:: 1 if small else 4]
    return solution, dmftopt.simulate.sgd(problem, model.protocol, horizon=float(times[-1]), records=times, **size)


def judged(solution, simulation) -> dict[str, Any]:
    """Per observable the largest difference, also in standard errors, and by how much it misses the gate (negative: not)."""
    rows = {}
    for name, d in dmftopt.compare(solution, simulation).differences.items():
        scale = float(jnp.max(jnp.abs(d.reference))) or 1.0
        rows[name] = {
            "largest_relative_difference": float(jnp.max(jnp.abs(d.difference))) / scale,
            "largest_z": float(jnp.max(jnp.abs(d.z_score))),
            "excess_over_gate": float(d.excess(2.0, 0.005)),
        }
    return rows


def draw(name: str, solution, simulation, path: Path) -> None:
    shown = ["test_risk", "train_loss", "student_overlap", "teacher_overlap"]
    shown += ["test_error"] if solution.test_error is not None else []
    figure, axes = plt.subplots(1, len(shown) + 1, figsize=(3.4 * (len(shown) + 1), 3.3), layout="constrained")
    for observable, a in zip(shown, axes[:-1], strict=True):
        dmftopt.plot.comparison(solution, simulation, observable, axes=a)
    # Two-time correlations with the last time and with the middle.
    for count, share in enumerate((1.0, 0.5)):
        k, j = (int(share * (len(r.times) - 1)) for r in (solution, simulation))
        color = dmftopt.plot.COLORS[count]
        axes[-1].plot(solution.times, solution.correlation[:, k, 0, 0], color=color, label=f"s = {solution.times[k]:.3g}")
        axes[-1].plot(simulation.times, simulation.correlation[:, j, 0, 0], "o", color=color, markersize=4)
    axes[-1].set(xlabel="time t", ylabel="correlation of column 0 at t and s")
    axes[-1].legend(frameon=False)
    figure.suptitle(name)
    _common.write_figure(path, figure)
    plt.close(figure)


def draw_all(curves: dict[str, dict], path: Path) -> None:
    columns = 7
    rows = -(-len(curves) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.5 * columns, 2.1 * rows), layout="constrained", squeeze=False)
    for a, (name, c) in zip(axes.flat, curves.items(), strict=False):
        a.plot(c["times"], c["test_risk"], color=dmftopt.plot.COLORS[0])
        a.errorbar(c["simulated_times"], c["simulated"], 2 * np.asarray(c["simulated_error"]), fmt="o", ms=3, color="0.2")
        a.set_title(name, fontsize=9)
    for a in axes.flat[len(curves) :]:
        a.axis("off")
    figure.supxlabel("time t = SGD steps / d (updates for gradient descent)")
    figure.supylabel("test risk: theory (line), simulation (points, 2 standard errors)")
    _common.write_figure(path, figure)
    plt.close(figure)


def main(settings: Settings) -> None:
    if settings.smoke:
        settings = dataclasses.replace(settings, out=settings.out.with_name(settings.out.name + "_smoke"), replicates=2)
    unknown = set(settings.models) - set(MODELS)
    if unknown:
        raise SystemExit(f"models: no {', '.join(sorted(unknown))}. There are {', '.join(MODELS)}.")
    names = settings.models or tuple(MODELS)
    stored = settings.out / "result.json"
    shown = {**dataclasses.asdict(settings), "out": None, "models": None}
    done = {}
    if stored.exists() and (old := json.loads(stored.read_text()))["settings"] == shown:
        done = old["models"]
    for name in (bar := tqdm(names)):
        bar.set_postfix_str(name)
        if name in done:
            continue
        started = time.perf_counter()
        solution, simulation = solved_and_trained(MODELS[name](), settings)
        rows = judged(solution, simulation)
        file = name.replace(", ", "_").replace(" ", "_").replace("/", "_")
        draw(name, solution, simulation, settings.out / f"{file}.png")
        done[name] = {
            "seconds": time.perf_counter() - started,
            "agrees": max(rows[o]["excess_over_gate"] for o in GATED) <= 0,
            "observables": rows,
            "curve": {
                "times": solution.times.tolist(),
                "test_risk": solution.test_risk.tolist(),
                "simulated_times": simulation.times.tolist(),
                "simulated": simulation.test_risk.tolist(),
                "simulated_error": simulation.standard_error.test_risk.tolist(),
            },
        }
        ordered = {n: done[n] for n in MODELS if n in done}
        gate = f"2 combined standard errors + 0.5% of the largest value, on {', '.join(GATED)}"
        _common.write_json(stored, {"gate": gate, "settings": shown, "models": ordered})
    draw_all({n: done[n]["curve"] for n in MODELS if n in done}, settings.out / "gallery.png")
    print(f"{'model':<32}{'agrees':>7}{'worst of':>18}{'difference':>12}{'z':>6}{'beyond gate':>13}{'seconds':>9}")
    for name in names:
        row = done[name]
        worst = max(GATED, key=lambda o: row["observables"][o]["excess_over_gate"])
        d = row["observables"][worst]
        print(
            f"{name:<32}{'yes' if row['agrees'] else 'NO':>7}{worst:>18}{d['largest_relative_difference']:>12.2%}"
            f"{d['largest_z']:>6.1f}{max(d['excess_over_gate'], 0):>13.2%}{row['seconds']:>9.0f}"
        )
    print(f"{sum(done[n]['agrees'] for n in names)} of {len(names)} agree; wrote {settings.out}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
