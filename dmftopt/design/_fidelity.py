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
from ..dmft import enough_samples, solve
from ..limits import least_squares
from ..problem import Problem
from ..protocol import Protocol, TimeGrid, recipe
from ..protocol.noise import Poisson, Shuffled
from ..results import RESULTS, estimation_error
from ..results.observables import AbstractResult
from ..tasks import GaussianMixture, LeastSquares
from ..tasks.losses import Squared
from ._splits import Tested, on_splits

_QUANTILE = 1.96
# Of the solver, in epochs; and where it is asked again, for what the data leave open.
_SAMPLES, _FEWER, _REPLICATES = 4096, 1024, 4
# Steps of the solver, at the least, and at most where the time step's error is too large.
_FINE, _FINEST = 40, 320


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
    """Test risks (of a regression half mean squared errors, label noise included; of classes the loss) at `times` (time,), and
    their standard errors.

    - `theory`: d to infinity; `theory_error` is numerical. `estimation_error`: what the data leave open of it, as an estimate of
      their population.
    - `surrogate`: SGD on data drawn from that estimate, Gaussian or of Gaussian clusters, of the data's own dimension and train
      size.
    - `real`: SGD on the data, tested on the samples that were left out. `diverged`: of the `splits`, on so many its test risk
      ended more than ten times higher than it began; then the theory is not good here, whatever `real_error` is.
    - `of_test_error`: the same of the 0-1 error, None for a regression.
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
    quantity: str = "test risk"
    of_test_error: "Fidelity | None" = None

    @property
    def differences(self) -> dict[str, Difference]:
        """Of the final values, where they come from.

        - "finite d": surrogate less theory.
        - "not Gaussian" (for classes: nor in Gaussian clusters): real data less surrogate, with the estimate's error, which alone
          could make a difference.
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
        head = f"final {self.quantity}, d = {self.dimension}, {self.train_size} training samples (± standard error)"
        given = (
            ("theory", self.theory, np.hypot(self.theory_error, self.estimation_error)),
            ("surrogate data at this d", self.surrogate, self.surrogate_error),
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
        return "\n".join(lines + ([] if self.of_test_error is None else [str(self.of_test_error)]))


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
    loss: Any = None,
    clusters: int | None = None,
    intercept: bool = False,
) -> Fidelity:
    """How far real SGD on these data is from its prediction, and why: printed as a table, drawn by `dmftopt.plot.fidelity`.

    - `features`, `labels`, `train_size`, `groups`, and for classes `loss` and `clusters`: as for `Problem.from_data` (no
      `intercept`); some samples must be left to test on.
    - `protocol`: in time t = steps / d and the units of the problem (that of `objective.run(found.protocol)`, say), for so many
      `epochs`. Plain SGD: no momentum or other update.
    - `order`: batches are drawn with "replacement", or in epochs, "shuffled". Predicted by `solve` with the noise of that name,
      4096 samples and 4 replicates; least squares with replacement by `limits.least_squares`, without sampling error.
    - `splits`: random training sets of the data, each with its own batches, on `problem.centered(features, labels)`. `runs`: of
      SGD on surrogate data drawn from the estimated population, Gaussian or of clusters (`simulate.sgd`). `records` + 1 times.

    Splits share one table: the standard error of `real` adds to that over splits the one over samples, of their mean losses when
    they were left out, in quadrature.

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
    if intercept:
        raise ValueError("intercept: the surrogate has no constant feature, so that nothing could be compared. Leave it out.")
    problem = Problem.from_data(features, labels, train_size=train_size, groups=groups, loss=loss, clusters=clusters)
    assert problem.data is not None
    x, y = problem.centered(features, labels)
    if len(y) - train_size < 2:
        raise ValueError(f"train_size must leave samples to test on, got {train_size} of {len(y)}. Choose a smaller one.")
    d, c = problem.data.dimension, problem.data.mean_square_norm
    grid = TimeGrid.of_epochs(problem, protocol, epochs, records)
    times = np.asarray(grid.times, dtype=float)
    keys = jax.random.split(key, 3)
    theory = _predicted(problem, protocol, grid, order, keys[0])
    horizon = float(times[-1])
    surrogate = simulate.sgd(
        problem, protocol, horizon=horizon, dimension=d, runs=runs, key=keys[1], records=grid.times, order=order
    )
    steps = recipe(protocol, horizon=horizon, dimension=d, delta=float(problem.delta), mean_square_norm=c)
    rng = np.random.default_rng(np.asarray(jax.random.bits(keys[2], (4,))))
    own = problem.task.cluster_loss if isinstance(problem.task, GaussianMixture) else Squared()
    tested = on_splits(x, y, own, steps, np.round(times * d).astype(int), splits, order == "shuffled", rng)

    def of(name: str, real: Tested, of_test_error: Fidelity | None = None) -> Fidelity:
        value, numerical, left_open = (np.asarray(getattr(part, name), dtype=float) for part in theory)
        return Fidelity(
            times=times,
            theory=value,
            theory_error=numerical,
            estimation_error=left_open,
            surrogate=np.asarray(getattr(surrogate, name), dtype=float),
            surrogate_error=np.asarray(getattr(surrogate.standard_error, name), dtype=float),
            real=real.mean,
            real_error=real.error,
            dimension=d,
            train_size=int(train_size),
            splits=splits,
            diverged=real.diverged,
            quantity=name.replace("_", " "),
            of_test_error=of_test_error,
        )

    return of("test_risk", tested[0], None if loss is None else of("test_error", tested[1]))


class _Curves(NamedTuple):
    test_risk: Any
    test_error: Any


def _predicted(problem: Problem, protocol: Protocol, grid: TimeGrid, order: str, key: Array) -> tuple[_Curves, _Curves, _Curves]:
    """Test risk and error at the grid's times, their numerical standard errors, and those of the estimate."""
    exact = isinstance(problem.task, LeastSquares) and order == "replacement"

    def predict(problem: Problem, fine: TimeGrid, samples: int = _FEWER, **options: Any) -> AbstractResult:
        if exact:
            return least_squares(problem, protocol, grid)
        noise = Shuffled() if order == "shuffled" else Poisson()
        samples = max(samples, enough_samples(problem.m, fine.steps + 1))
        return solve(problem, protocol, fine, noise=noise, samples=samples, key=key, **options)

    fine, asked = grid, {"replicates": _REPLICATES, "estimate_discretization": not isinstance(problem.task, LeastSquares)}
    while fine.steps < _FINE:
        fine = fine.refined()
    result: Any = predict(problem, fine, _SAMPLES, throw=False, **asked)
    while result.result == RESULTS.inaccurate and fine.steps < _FINEST:
        fine = fine.refined()
        result = predict(problem, fine, _SAMPLES, throw=False, **asked)
    if result.result != RESULTS.successful:
        predict(problem, fine, _SAMPLES, **asked)
    every = (result.times.shape[0] - 1) // grid.steps
    known = result.known_error()

    def curves(values: Any, unit: float = 1.0) -> _Curves:
        error = getattr(values, "test_error", None)
        return _Curves(values.test_risk[::every] / unit, None if error is None else error[::every] / unit)

    return (
        curves(result),
        jax.tree.map(jnp.zeros_like, curves(result)) if known is None else curves(known, _QUANTILE),
        curves(estimation_error(lambda problem: predict(problem, fine, throw=False), problem)),
    )
