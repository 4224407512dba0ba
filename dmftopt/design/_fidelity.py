"""Is the theory good for these data? SGD on them, SGD on Gaussian data of the same dimension, and the prediction, in a row."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import simulate
from .._checks import check_count, check_instance, check_key, check_member, front_door
from .._register import register
from ..dmft import solve
from ..limits import least_squares
from ..problem import Problem
from ..protocol import Protocol, Recipe, TimeGrid, recipe
from ..protocol.noise import Poisson, Shuffled
from ..results import estimation_error
from ..results.observables import AbstractResult

_QUANTILE = 1.96
# Of the solver, in epochs; and where it is asked again, for what the data leave open.
_SAMPLES, _FEWER, _REPLICATES = 4096, 1024, 4
# Steps of the solver, at the least.
_FINE = 40
# A split of the data on which the risk ends so many times higher than it began has diverged: no mean means anything then.
_DIVERGED = 10.0


class Difference(NamedTuple):
    """Of final test risks, in units of the risk: `standard_error` is of the difference, `total_error` half a 95% interval."""

    mean: float
    standard_error: float

    @property
    def total_error(self) -> float:
        return _QUANTILE * self.standard_error

    @property
    def sigmas(self) -> float:
        return self.mean / self.standard_error


@register
class Fidelity(eqx.Module):
    """Test risks (half mean squared errors, label noise included) at `times` (time,), and their standard errors.

    - `theory`: d to infinity; `theory_error` is numerical. `estimation_error`: what the data leave open of it, as an estimate of
      their population.
    - `surrogate`: SGD on Gaussian data drawn from that estimate, of the data's own dimension and train size.
    - `real`: SGD on the data, tested on the samples that were left out. `diverged`: of the `splits`, on so many its test risk
      ended more than ten times higher than it began; then the theory is not good here, whatever `real_error` is.
    """

    times: np.ndarray
    theory: np.ndarray
    theory_error: np.ndarray
    estimation_error: np.ndarray
    surrogate: np.ndarray
    surrogate_error: np.ndarray
    real: np.ndarray
    real_error: np.ndarray
    dimension: int
    train_size: int
    splits: int
    diverged: int

    @property
    def differences(self) -> dict[str, Difference]:
        """Of the final risks, where they come from.

        - "finite d": surrogate less theory.
        - "not Gaussian": real data less surrogate, with the estimate's error, which alone could make a difference.
        - "in all": real data less theory.

        Errors are added as if independent. The estimate and real SGD see the same samples, so for the last two this rather
        overstates them.
        """
        theory, surrogate, real = self.theory_error[-1], self.surrogate_error[-1], self.real_error[-1]
        open_ = self.estimation_error[-1]
        parts = {
            "finite d": (self.surrogate[-1] - self.theory[-1], (surrogate, theory)),
            "not Gaussian": (self.real[-1] - self.surrogate[-1], (real, surrogate, open_)),
            "in all": (self.real[-1] - self.theory[-1], (real, theory, open_)),
        }
        return {name: Difference(float(mean), float(np.linalg.norm(errors))) for name, (mean, errors) in parts.items()}

    def __str__(self) -> str:
        head = f"final test risk, d = {self.dimension}, {self.train_size} training samples (± standard error)"
        given = (
            ("theory", self.theory, np.hypot(self.theory_error, self.estimation_error)),
            ("Gaussian surrogate at this d", self.surrogate, self.surrogate_error),
            ("real data", self.real, self.real_error),
        )
        lines = [head, *(f"  {name:<30}{value[-1]:10.4g} ± {error[-1]:.2g}" for name, value, error in given)]
        if self.diverged:
            lines.append(
                f"  SGD diverged on {self.diverged} of {self.splits} splits of the data: do not use the theory at this rate."
            )
        lines.append("where the difference comes from (± half a 95% interval, in percent of the theory)")
        unit = 100 / self.theory[-1]
        for name, found in self.differences.items():
            size = f"{found.mean * unit:+10.1f}% ± {found.total_error * unit:.1f}%"
            lines.append(f"  {name:<30}{size}  ({found.sigmas:+.1f} standard errors)")
        lines.append(f"  {'population estimate':<30}{0:10.1f}% ± {_QUANTILE * self.estimation_error[-1] * unit:.1f}%")
        return "\n".join(lines)


@front_door
def fidelity(
    features: Any,
    labels: Any,
    protocol: Protocol,
    *,
    train_size: int,
    epochs: float,
    key: Array,
    order: str = "replacement",
    splits: int = 20,
    runs: int = 32,
    records: int = 20,
    groups: int = 40,
) -> Fidelity:
    """How far real SGD on these data, by least squares, is from its prediction, and why: printed as a table, drawn by
    `dmftopt.plot.fidelity`.

    - `features`, `labels`, `train_size`, `groups`: as for `Problem.from_data`; some samples must be left to test on.
    - `protocol`: in time t = steps / d and the units of the problem (that of `objective.run(found.protocol)`, say), for so many
      `epochs`. Plain SGD: no momentum or other update.
    - `order`: batches are drawn with "replacement" (predicted by `limits.least_squares`, without sampling error), or in epochs,
      "shuffled" (predicted by `solve` with `noise.Shuffled()`, 4096 samples and 4 replicates).
    - `splits`: random training sets of the data, each with its own batches, on features and labels less the centers of
      `problem.data`. `runs`: of SGD on Gaussian data (`simulate.sgd`). `records` + 1 times.

    Splits share one table: the standard error of `real` adds to that over splits the one over samples, of their mean squared
    errors when they were left out, in quadrature.

    Raises ValueError where `from_data` does, for too few samples to test on, momentum and updates; `SolveError` where SGD on the
    surrogate, or the theory, diverges; RuntimeError where SGD on the data becomes infinite.
    """
    check_instance("protocol", protocol, Protocol, "Pass dmftopt.Protocol(learning_rate).")
    check_member("order", order, ("replacement", "shuffled"))
    for name, value in (("splits", splits), ("runs", runs)):
        check_count(name, value, minimum=2, cure="Standard errors need at least two.")
    check_count("records", records)
    check_key(key)
    if protocol.momentum is not None or protocol.update is not None:
        raise ValueError("protocol: fidelity takes plain SGD, without momentum or update. Leave them out.")
    problem = Problem.from_data(features, labels, train_size=train_size, groups=groups)
    assert problem.data is not None
    d, x, y = problem.data.dimension, *_raw(problem, features, labels)
    if len(y) - train_size < 2:
        raise ValueError(f"train_size must leave samples to test on, got {train_size} of {len(y)}. Choose a smaller one.")
    grid = TimeGrid.of_epochs(problem, protocol, epochs, records)
    times = np.asarray(grid.times, dtype=float)
    keys = jax.random.split(key, 3)
    theory, numerical, left_open = _predicted(problem, protocol, grid, order, keys[0])
    horizon = float(times[-1])
    surrogate = simulate.sgd(
        problem, protocol, horizon=horizon, dimension=d, runs=runs, key=keys[1], records=grid.times, order=order
    )
    steps = recipe(
        protocol, horizon=horizon, dimension=d, delta=float(problem.delta), mean_square_norm=problem.data.mean_square_norm
    )
    rng = np.random.default_rng(np.asarray(jax.random.bits(keys[2], (4,))))
    real, real_error, diverged = _follow(x, y, steps, np.round(times * d).astype(int), splits, order == "shuffled", rng)
    return Fidelity(
        times=times,
        theory=theory,
        theory_error=numerical,
        estimation_error=left_open,
        surrogate=np.asarray(surrogate.test_risk, dtype=float),
        surrogate_error=np.asarray(surrogate.standard_error.test_risk, dtype=float),
        real=real,
        real_error=real_error,
        dimension=d,
        train_size=int(train_size),
        splits=splits,
        diverged=diverged,
    )


def _raw(problem: Problem, features: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    assert problem.data is not None
    x = np.asarray(features, dtype=float) - problem.data.feature_center
    return x, np.asarray(labels, dtype=float) - problem.data.label_center


def _predicted(problem: Problem, protocol: Protocol, grid: TimeGrid, order: str, key: Array) -> list[np.ndarray]:
    """The test risk at the grid's times, its numerical standard error, and that of the estimate."""

    fine = grid
    while fine.times.shape[0] <= _FINE:
        fine = fine.refined()

    def predict(problem: Problem, samples: int = _FEWER, replicates: int = 1) -> AbstractResult:
        if order == "replacement":
            return least_squares(problem, protocol, grid, noise=Poisson())
        options: Any = {"samples": samples, "replicates": replicates, "key": key}
        return solve(problem, protocol, fine, noise=Shuffled(), **options)

    result = predict(problem, _SAMPLES, _REPLICATES)
    every = (result.times.shape[0] - 1) // (grid.times.shape[0] - 1)
    known = result.known_error()
    numerical = jnp.zeros_like(result.test_risk) if known is None else known.test_risk / _QUANTILE
    left_open = estimation_error(predict, problem).test_risk
    return [np.asarray(a, dtype=float)[::every] for a in (result.test_risk, numerical, left_open)]


def _follow(
    x: np.ndarray, y: np.ndarray, steps: Recipe, at: np.ndarray, splits: int, shuffled: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean test risk of SGD on random training sets, after so many steps, its standard error, and how many diverged."""
    samples, d = x.shape
    n = steps.samples
    orders = rng.permuted(np.tile(np.arange(samples), (splits, 1)), axis=1)
    train, test = orders[:, :n], orders[:, n:]
    theta, losses = np.zeros((splits, d)), np.empty((len(at), splits, samples - n))
    starts = np.cumsum(steps.batch_size) - steps.batch_size
    queue = _queue(splits, n, int(steps.batch_size.sum()), rng) if shuffled else None
    record = 0
    for k in range(len(steps) + 1):
        while record < len(at) and at[record] == k:
            fields = np.stack([x[left] @ weights for left, weights in zip(test, theta, strict=True)])
            losses[record] = (fields - y[test]) ** 2 / 2
            record += 1
        if k == len(steps):
            break
        size = steps.batch_size[k]
        drawn = rng.integers(n, size=(splits, size)) if queue is None else queue[:, starts[k] : starts[k] + size]
        batch = np.take_along_axis(train, drawn, axis=1)
        seen = x[batch]
        residual = np.einsum("sbd,sd->sb", seen, theta) - y[batch]
        gradient = np.einsum("sb,sbd->sd", residual, seen) / max(size, 1) + steps.weight_decay[k] * theta
        theta = theta - steps.learning_rate[k] * gradient
    if not np.all(np.isfinite(losses)):
        raise RuntimeError("SGD on the data became infinite, in theory it does not. Lower the learning rate.")
    means = losses.mean(axis=2)
    error = np.hypot(means.std(axis=1, ddof=1) / np.sqrt(splits), _over_samples(losses, test, samples))
    return means.mean(axis=1), error, int(np.sum(means[-1] > _DIVERGED * means[0]))


def _queue(splits: int, n: int, visits: int, rng: np.random.Generator) -> np.ndarray:
    passes = [rng.permuted(np.tile(np.arange(n), (splits, 1)), axis=1) for _ in range(-(-visits // n))]
    return np.concatenate(passes, axis=1)


def _over_samples(losses: np.ndarray, test: np.ndarray, samples: int) -> np.ndarray:
    """Standard error, over the samples of the table, of their mean losses when left out."""
    place = test.ravel()
    count = np.bincount(place, minlength=samples)
    left_out = count > 0
    totals = np.stack([np.bincount(place, weights=row.ravel(), minlength=samples) for row in losses])
    means = totals[:, left_out] / count[left_out]
    return means.std(axis=1, ddof=1) / np.sqrt(left_out.sum())
