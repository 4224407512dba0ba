"""How a question is computed, and how sure the answer is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from scipy.interpolate import PchipInterpolator

from .. import limits
from .._checks import check_real, is_concrete, numbers_to_arrays
from ..design import Budget, Exact, Objective, Optimized, Solve, optimize
from ..problem import Problem
from ..protocol import Protocol, schedules
from ..protocol.grid import TimeGrid
from ..protocol.variables import number
from ..results import estimation_error
from ..results.observables import student_quantile
from ..tasks import LeastSquares

# Random keys of which means are taken, where there is anything random.
KEYS = 4
# Times between which a predicted risk is looked at, by a monotone cubic through those of its grid.
_LOOKS = 4096


def is_exact(problem: Problem, protocol: Protocol | None = None) -> bool:
    """Whether the limit of least squares is a route: it draws with replacement, and data are gone through in epochs."""
    updated = protocol is not None and protocol.update is not None
    return type(problem.task) is LeastSquares and problem.linear_weights and problem.data is None and not updated


def _quick(problem: Problem, protocol: Protocol, grid: TimeGrid):
    """Good to 1e-8 or so, in an eighth of the time; what it is off by is looked at in the end."""
    return limits.least_squares(problem, protocol, grid, nodes=64, steps=128, throw=False)


def objective_of(problem: Problem, budget: Budget, protocol: Protocol, predict: Callable | None, grid: Any) -> Objective:
    """That of `Objective`, but exact where there is a limit."""
    if predict is None and is_exact(problem, protocol):
        predict = Exact(_quick)
    return Objective(problem, budget, predict=predict, grid=grid)


def value_of(objective: Objective, protocol: Any, key: Array | None) -> Array:
    """What the objective is, NaN where the run cannot be predicted; objectives of all budgets share one program."""
    return objective.compiled(objective.prepare(protocol), key)


def search(objective: Objective, protocol: Any, key: Array, steps: int, **options: Any) -> Optimized:
    """`dmftopt.optimize` by Adam, looked at once only: answers judge what was found themselves."""
    adam = optax.adam(0.1)
    return optimize(objective, protocol, optimizer=adam, steps=steps, key=key, fresh=2, refinements=0, **options)


class Errors(NamedTuple):
    """Of means over keys: half a 95% interval of sampling, what twice the steps and samples change, and 1.96 standard errors from
    the data behind the problem. `total` is their sum."""

    sampling: np.ndarray
    refinement: np.ndarray
    estimation: np.ndarray

    @property
    def total(self) -> np.ndarray:
        return self.sampling + self.refinement + self.estimation


def judged(
    problem: Problem,
    objective: Objective,
    protocols: list[Any],
    keys: list[Array],
    features: Callable[[Array], Array] = lambda values: values,
) -> tuple[np.ndarray, Errors]:
    """`features` of the objective's values for all protocols, at twice the steps and samples where it solves, and errors. The
    problem is that of the objective, which keeps no data."""

    def of(objective, keys):
        inputs = [objective.prepare(protocol) for protocol in protocols]
        return [np.asarray(features(jnp.stack([objective.compiled(i, key) for i in inputs]))) for key in keys]

    random = isinstance(objective.predict, Solve)
    both = np.stack([of(o, keys if random else keys[:1]) for o in (objective, _finer(objective))])
    best, refinement = both[1].mean(axis=0), np.abs(both[1].mean(axis=0) - both[0].mean(axis=0))
    sampling = np.zeros_like(best)
    if random:
        sampling = student_quantile(len(keys)) * both[1].std(axis=0, ddof=1) / len(keys) ** 0.5
    estimation = np.zeros_like(best)
    if problem.data is not None and problem.data.estimated:

        def predict(replicate):
            (found,) = of(eqx.tree_at(lambda o: o.problems, objective, (numbers_to_arrays(replicate),)), keys[:1])
            return found

        estimation = 1.96 * np.asarray(estimation_error(predict, problem))
    return best, Errors(sampling, refinement, estimation)


def _finer(objective: Objective) -> Objective:
    """At twice the steps and samples; the limit with all its steps; a prediction of one's own as it is."""
    if isinstance(objective.predict, Exact) and objective.predict.route is _quick:
        return eqx.tree_at(lambda o: o.predict, objective, Exact(limits.least_squares))
    return objective.doubled() or objective


def scale_of(protocol: Protocol) -> float:
    rate = protocol.learning_rate
    if not isinstance(rate, schedules.Constant) or not is_concrete(number(rate.value)):
        raise TypeError("protocol: its learning rate must be a number, about which peaks are looked for. Leave schedules out.")
    scale = float(number(rate.value))
    check_real("protocol.learning_rate", scale, minimum=0.0, exclusive=True)
    return scale


def crossing(times: np.ndarray, series: np.ndarray, target: float) -> float | None:
    """The first time at which the series is at most the target, between the times by a monotone cubic. None: never."""
    looks = np.unique(np.concatenate([times, np.linspace(times[0], times[-1], _LOOKS)]))
    seen = PchipInterpolator(times, series)(looks)
    below = np.flatnonzero(seen <= target)
    if not below.size:
        return None
    k = int(below[0])
    if k == 0:
        return float(looks[0])
    share = (seen[k - 1] - target) / (seen[k - 1] - seen[k])
    return float(looks[k - 1] + share * (looks[k] - looks[k - 1]))


def shown(value: float, error: float) -> str:
    """With as many digits as the error leaves, and at most six."""
    if not error > 1e-6 * abs(value):
        return f"{value:.6g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f} ± " + (f"{error:.0f}" if error >= 10 else f"{error:.1g}")
