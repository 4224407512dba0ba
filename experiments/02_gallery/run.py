"""Every kind of model, one figure each: the theory's lines over simulated points.

Each model is solved with the noise of its algorithm and trained at d = 2000, and the two are compared at 2 combined standard
errors plus 0.5% of an observable's largest value. Every model's own figure is written beside result.json.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import dmftopt
from dmftopt import noise, parametrizations, priors, regularizers, tasks, updates

from ..shared import sweep
from ..shared.results import SweepSettings, finish, markdown, write_figure

GATED = ("student_overlap", "teacher_overlap", "norm", "test_risk", "train_loss", "correlation")
SHOWN = ("test_risk", "train_loss", "student_overlap", "teacher_overlap", "test_error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings):
    """Draw the theory over simulations for every kind of model."""

    models: tuple[str, ...] = ()
    """Only these; all by default."""
    dimension: int = 2000
    runs: int = 32
    replicates: int = 4


@dataclasses.dataclass(frozen=True)
class Model:
    """`noise`: Poisson or Shuffled (the simulation is SGD, drawn or in epochs), or NoNoise and Bernoulli (gradient descent of one
    update per grid step, by an `optimizer` of optax)."""

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
    optimizer: Any = None


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
    "shuffled epochs": lambda: Model(tasks.Logistic("sign"), sgd(1.5), noise=noise.Shuffled(), horizon=4.0),
    "shuffled epochs, softmax": lambda: Model(
        tasks.Softmax(3, labels="softmax"), sgd(1.5), teacher_scale=2.0, noise=noise.Shuffled(), horizon=4.0
    ),
    "the same order in every epoch": lambda: Model(
        tasks.LeastSquares(0.3), sgd(0.6), noise=noise.Shuffled(reshuffle=False), horizon=4.0
    ),
    "AdamW, shuffled": lambda: Model(
        tasks.Logistic("sign"), sgd(0.8, update=updates.Adam(0.5)), noise=noise.Shuffled(), horizon=4.0
    ),
    "Adam, committee": lambda: Model(
        tasks.Committee(2, 2, activation="erf", label_noise=0.1),
        sgd(0.4, 0.01, update=updates.Adam(0.5)),
        4.0,
        problem={"initial_correlation": lean(2, 2, 0.4)},
    ),
    "signSGD": lambda: Model(tasks.Logistic("sign"), sgd(0.6, update=updates.Sign())),
    "clipped SGD": lambda: Model(tasks.LeastSquares(0.5), sgd(0.8, update=updates.Clipped(0.5))),
    "Adam, full batch": lambda: Model(
        tasks.Logistic("sign"), dmftopt.Protocol(1.0, ridge=0.1), noise=noise.NoNoise(), horizon=20.0, optimizer=optax.adam(0.1)
    ),
    "SGD with momentum": lambda: Model(tasks.Logistic("sign"), sgd(0.3, momentum=0.8)),
}


def solved_and_trained(name: str, *, small: bool, dimension: int, runs: int, replicates: int, seed: int) -> tuple[Any, Any]:
    model = MODELS[name]()
    problem = dmftopt.Problem(
        model.task, dmftopt.features.isotropic(), model.delta, model.teacher_scale, model.student_scale, **model.problem
    )
    descent = isinstance(model.noise, (noise.NoNoise, noise.Bernoulli))
    # Fewer steps, of the same size.
    steps = 4 if small else model.steps
    horizon = model.horizon * steps / model.steps
    grid = dmftopt.TimeGrid.uniform(horizon, steps)
    order = "replacement"
    if isinstance(model.noise, noise.Shuffled):
        # Batches of one.
        grid = dmftopt.TimeGrid.of_epochs(problem, model.protocol, horizon / model.delta, steps)
        order = "shuffled" if model.noise.reshuffle else "fixed"
    solution = dmftopt.solve(
        problem,
        model.protocol,
        grid,
        noise=model.noise,
        step=dmftopt.DiscreteStep() if descent else None,
        optimizer=model.optimizer,
        solver=dmftopt.CausalInnovations(particles=256 if small else model.particles),
        samples=512 if small else model.samples,
        replicates=replicates,
        key=jax.random.key(seed),
    )
    size: Any = {"dimension": dimension, "runs": runs, "key": jax.random.key(seed + 1)}
    if descent:
        how: Any = {"noise": model.noise, "optimizer": model.optimizer, **size}
        return solution, dmftopt.simulate.gradient_descent(problem, model.protocol, grid, **how)
    times = grid.times[:: 1 if small else 4]
    return solution, dmftopt.simulate.sgd(problem, model.protocol, horizon=float(times[-1]), records=times, order=order, **size)


def cell(name: str, **size: Any) -> dict[str, Any]:
    """Whether the routes agree, and their curves. JSON values."""
    solution, simulation = solved_and_trained(name, **size)
    rows = judged(solution, simulation)
    return {
        "agrees": max(rows[o]["excess_over_gate"] for o in GATED) <= 0,
        "observables": rows,
        "theory": curves(solution),
        "simulation": curves(simulation),
    }


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


def curves(result) -> dict[str, Any]:
    """Times, and (mean, standard error) of (time, entry) each; correlations of column 0 with the last time and the middle one."""
    found: dict[str, Any] = {"times": result.times.tolist()}
    for name in SHOWN:
        if (mean := getattr(result, name)) is not None:
            error = getattr(result.standard_error, name)
            found[name] = [np.asarray(a, dtype=float).reshape(len(mean), -1).tolist() for a in (mean, error)]
    last = len(result.times) - 1
    found["correlation"] = {f"{float(result.times[k]):.3g}": result.correlation[:, k, 0, 0].tolist() for k in (last, last // 2)}
    return found


def draw_model(name: str, c: dict[str, Any]) -> Figure:
    theory, simulation = c["theory"], c["simulation"]
    shown = [o for o in SHOWN if o in theory]
    figure, axes = plt.subplots(1, len(shown) + 1, figsize=(3.4 * (len(shown) + 1), 3.3), layout="constrained")
    for observable, a in zip(shown, axes[:-1], strict=True):
        lines, points = (np.array(r[observable]) for r in (theory, simulation))
        for entry in range(lines.shape[2]):
            color = dmftopt.plot.COLORS[entry % len(dmftopt.plot.COLORS)]
            mean, error = lines[..., entry]
            a.plot(theory["times"], mean, color=color)
            a.fill_between(theory["times"], mean - 2 * error, mean + 2 * error, color=color, alpha=0.3, lw=0)
            mean, error = points[..., entry]
            a.errorbar(simulation["times"], mean, 2 * error, color=color, fmt="o", ms=4)
        a.set(xlabel="time t", ylabel=observable.replace("_", " "))
    for r, form in ((theory, "-"), (simulation, "o")):
        for color, (time, values) in zip(dmftopt.plot.COLORS, r["correlation"].items(), strict=False):
            axes[-1].plot(r["times"], values, form, ms=4, color=color, label=f"s = {time}" if form == "-" else None)
    axes[-1].set(xlabel="time t", ylabel="correlation of column 0 at t and s")
    axes[-1].legend(frameon=False)
    figure.suptitle(name)
    return figure


def draw(models: dict[str, dict]) -> Figure:
    columns = 7
    rows = -(-len(models) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.5 * columns, 2.1 * rows), layout="constrained", squeeze=False)
    for a, (name, c) in zip(axes.flat, models.items(), strict=False):
        (line, _), (points, error) = (np.array(c[r]["test_risk"])[..., 0] for r in ("theory", "simulation"))
        a.plot(c["theory"]["times"], line, color=dmftopt.plot.COLORS[0])
        a.errorbar(c["simulation"]["times"], points, 2 * error, fmt="o", ms=3, color="0.2")
        a.set_title(name, fontsize=9)
    for a in axes.flat[len(models) :]:
        a.axis("off")
    figure.supxlabel("time t = SGD steps / d (updates for gradient descent)")
    figure.supylabel("test risk: theory (line), simulation (points, 2 standard errors)")
    return figure


def tables(models: dict[str, dict]) -> dict[str, str]:
    """The observable that is worst at the gate, of every model."""
    rows = []
    for name, c in models.items():
        worst = max(GATED, key=lambda o: c["observables"][o]["excess_over_gate"])
        d = c["observables"][worst]
        row = [name, "yes" if c["agrees"] else "no", worst.replace("_", " "), f"{d['largest_relative_difference']:.2%}"]
        rows.append([*row, f"{d['largest_z']:.1f}", f"{max(d['excess_over_gate'], 0):.2%}"])
    rows.append([f"{sum(c['agrees'] for c in models.values())} of {len(models)} agree", "", "", "", "", ""])
    return {
        "models": markdown(["model", "agrees", "worst of", "largest difference", "in standard errors", "beyond the gate"], rows)
    }


def main(s: Settings) -> None:
    s = s.sized(replicates=2, dimension=60, runs=2)
    if unknown := set(s.models) - set(MODELS):
        raise SystemExit(f"models: no {', '.join(sorted(unknown))}. There are {', '.join(MODELS)}.")
    if s.models and s.publish:
        raise SystemExit("--publish: the table is one of all models. Leave --models out.")
    cells = {name: {"name": name} for name in s.models or MODELS}
    shared = {**s.without("models"), "small": s.smoke}
    models = sweep.run(cell, cells, s.folder(__file__) / "cells", shared, s.cluster)
    for name, c in models.items():
        file = name.replace(", ", "_").replace(" ", "_").replace("/", "_")
        figure = draw_model(name, c)
        write_figure(s.folder(__file__) / f"{file}.png", figure)
        plt.close(figure)
    gate = f"2 combined standard errors + 0.5% of the largest value, on {', '.join(GATED)}"
    finish(s, __file__, {"gate": gate, "settings": shared, "models": models}, tables(models), draw(models))


if __name__ == "__main__":
    main(tyro.cli(Settings))
