"""Independent routes to the same numbers: the largest disagreement of every observable, in standard errors and in percent.

Each row is a pair of routes that share nothing but the problem, the protocol and the times. The standard errors are those of both
routes combined (ordinary differential equations have none); percent is of the observable's largest value along the run. The
largest of some hundred correlated entries is 2 to 3.5 standard errors by chance.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm.auto import tqdm

import dmftopt
from dmftopt import limits, noise, simulate

from ..shared.results import Settings as Common
from ..shared.results import finish, markdown

jax.config.update("jax_enable_x64", True)

OBSERVABLES = (
    "student_overlap",
    "teacher_overlap",
    "correlation",
    "norm",
    "test_risk",
    "train_loss",
    "test_error",
    "train_error",
    "response",
)
HORIZON = 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Compare independent routes."""

    steps: int = 40
    samples: int = 16384
    replicates: int = 8
    dimension: int = 1000
    runs: int = 128


def problem(task, delta: float = 2.0) -> dmftopt.Problem:
    features = dmftopt.features.spectrum([4.0, 1.0, 0.5, 0.25], [0.1, 0.3, 0.3, 0.3])
    return dmftopt.Problem(task, features, delta, jnp.array([0.5, 1.0, 1.5, 1.0]), 0.5**0.5)


def protocol(rate: float, **options: Any) -> dmftopt.Protocol:
    schedules = dmftopt.schedules
    batch_size = schedules.PiecewiseLinear((0.0, HORIZON), jnp.array([1.0, 3.0]))
    return dmftopt.Protocol(schedules.cosine(rate, HORIZON, 0.1), batch_size, 0.1, **options)


def pairs(settings: Settings) -> dict[str, Callable]:
    sign, squares = dmftopt.tasks.Logistic("sign"), dmftopt.tasks.LeastSquares(0.3)
    grid = dmftopt.TimeGrid.geometric(HORIZON, settings.steps, ratio=10.0)
    coarse = dmftopt.TimeGrid.uniform(HORIZON, max(8, settings.steps // 4))
    size: dict[str, Any] = {"samples": settings.samples, "replicates": settings.replicates}

    def solve(p, rate, at=grid, seed=0, **options):
        options = {"richardson": not options.get("step"), **size, **options}
        return dmftopt.solve(p, protocol(rate), at, key=jax.random.key(seed), **options)

    def sgd(p, rate, dimension=settings.dimension, runs=settings.runs):
        size = {"dimension": dimension, "runs": runs, "key": jax.random.key(1)}
        return simulate.sgd(p, protocol(rate), horizon=HORIZON, records=grid.times[::2], **size)

    def fixed_point(p, rate, law):
        plain = {"step": dmftopt.DiscreteStep(), "noise": law}
        other = solve(p, rate, coarse, seed=2, solver=dmftopt.FixedPoint(), **plain)
        return solve(p, rate, coarse, **plain), other

    seen_once = problem(sign, 1e7)
    small = problem(squares, 500.0)
    squares_solved = functools.cache(lambda: solve(problem(squares), 0.8))
    squares_trained = functools.cache(lambda: sgd(problem(squares), 0.8))
    squares_exact = functools.cache(lambda: limits.least_squares(problem(squares), protocol(0.8), grid))
    return {
        "solver (Poisson) / SGD, sign labels": lambda: (solve(problem(sign), 2.0), sgd(problem(sign), 2.0)),
        "solver (Poisson) / SGD, least squares": lambda: (squares_solved(), squares_trained()),
        "Volterra / SGD, least squares": lambda: (squares_exact(), squares_trained()),
        "solver (Poisson) / Volterra, least squares": lambda: (squares_solved(), squares_exact()),
        "solver (Brownian) / Volterra, delta = 1/2": lambda: (
            solve(problem(squares, 0.5), 0.4, noise=noise.Brownian()),
            limits.least_squares(problem(squares, 0.5), protocol(0.4), grid),
        ),
        "solver (none) / Volterra, least squares": lambda: (
            solve(problem(squares), 0.8, noise=noise.NoNoise()),
            limits.least_squares(problem(squares), protocol(0.8), grid, noise=noise.NoNoise()),
        ),
        "solver (Brownian) / online, sign labels": lambda: (
            solve(seen_once, 2.0, noise=noise.Brownian()), limits.online(seen_once, protocol(2.0), grid)
        ),
        **beyond(grid, size),
        "solver (Brownian) / fixed point, sign labels": lambda: fixed_point(problem(sign), 2.0, noise.Brownian()),
        "solver (Poisson) / fixed point, sign labels": lambda: fixed_point(problem(sign), 2.0, noise.Poisson()),
        "finite d, online / SGD, d = 40, delta = 500": lambda: (
            limits.online_least_squares(
                small, dmftopt.Protocol(0.8, 1.0, 0.1), dimension=40, horizon=HORIZON, records=20
            ),
            simulate.sgd(
                small, dmftopt.Protocol(0.8, 1.0, 0.1), horizon=HORIZON, dimension=40, runs=4 * settings.runs,
                key=jax.random.key(1), records=20,
            ),
        ),
    }  # fmt: skip


def beyond(grid: dmftopt.TimeGrid, size: dict[str, Any]) -> dict[str, Callable]:
    """Shuffled epochs, Adam, and friction, against ordinary differential equations and the sample spectrum."""
    sign, squares = dmftopt.tasks.Logistic("sign"), dmftopt.tasks.LeastSquares(0.3)

    def both(p, how, at, law, limit, **options):
        options = {**size, **options}
        solution = dmftopt.solve(p, how, at, key=jax.random.key(0), noise=law, richardson=True, **options)
        return solution, limit(p, how, at)

    def epoch(task, rate):
        """One pass over a training set of as many samples as the run sees: 8 d."""
        p, how = problem(task, 8.0), protocol(rate)
        at = dmftopt.TimeGrid.of_epochs(p, how, 1, grid.steps)
        # Few samples wait at the end of an epoch: fewer than these are refused.
        return both(p, how, at, noise.Shuffled(), limits.online, samples=max(size["samples"], 2048))

    adam, slow = protocol(0.8, update=dmftopt.updates.Adam(1.0)), protocol(0.8, friction=2.0)
    return {
        "solver (one shuffled epoch) / online, sign labels": lambda: epoch(sign, 2.0),
        "solver (one shuffled epoch) / online, least squares": lambda: epoch(squares, 0.8),
        "solver (Adam) / online, sign labels": lambda: both(problem(sign, 1e7), adam, grid, noise.Brownian(), limits.online),
        "solver (friction) / heavy ball over the spectrum": lambda: both(
            problem(squares), slow, grid, noise.Poisson(), limits.least_squares
        ),
        "solver (friction) / online, sign labels": lambda: both(problem(sign, 1e7), slow, grid, noise.Brownian(), limits.online),
    }


def main(s: Settings) -> None:
    s = s.sized(steps=8, samples=256, replicates=2, dimension=40, runs=4)
    rows: dict = {}
    for name, pair in tqdm(pairs(s).items(), desc="pairs", disable=None):
        # Of sampling only: what the time step leaves is to be seen. (The fixed point has the same time steps.)
        found = dmftopt.compare(*pair(), errors="sampling").differences
        # After an epoch a training sample is one that was visited, not a fresh one.
        kept = [o for o in found if "epoch" not in name or not o.startswith("train")]
        rows[name] = {observable: largest(found[observable]) for observable in kept}
    finish(s, __file__, {"settings": s.without(), "routes": rows}, tables(rows))


def largest(d) -> dict[str, float | None]:
    size, known = float(jnp.max(jnp.abs(d.reference))), np.asarray(d.standard_error) > 0
    z = np.abs(np.asarray(d.z_score))[known]
    return {
        "largest_z": float(np.max(z)) if z.size else None,
        "rms_z": float(np.sqrt(np.mean(z**2))) if z.size else None,
        "largest_relative_difference": float(jnp.max(jnp.abs(d.difference))) / size if size else 0.0,
    }


def tables(rows: dict) -> dict[str, str]:
    """Largest disagreement in standard errors (and in percent)."""

    def cell(row):
        if row is None:
            return ""
        percent = f"{100 * row['largest_relative_difference']:.2f}%"
        return percent if row["largest_z"] is None else f"{row['largest_z']:.1f} ({percent})"

    head = ["routes", *(name.replace("_", " ") for name in OBSERVABLES)]
    return {"routes": markdown(head, ([name, *(cell(row.get(o)) for o in OBSERVABLES)] for name, row in rows.items()))}


if __name__ == "__main__":
    main(tyro.cli(Settings))
