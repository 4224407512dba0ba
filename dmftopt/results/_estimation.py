"""The error that a prediction has from an estimated problem."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from .._checks import check_function, check_instance, front_door
from ..problem import Problem
from .observables import AbstractResult

_Result = TypeVar("_Result", bound=AbstractResult)


@front_door
def with_estimation_error(predict: Callable[[Problem], _Result], problem: Problem) -> _Result:
    """The result `predict(problem)` (of `solve`, of `dmftopt.limits`, ...) with its `estimation_error`, which counts in its
    `total_error`, in `compare` and in plots. Raises as `estimation_error` does, which has more.

    Two predictions for one estimate have this error in common: compare them without it."""
    check_function("predict", predict, "a problem")
    result = predict(problem)
    check_instance("predict(problem)", result, AbstractResult, "For arrays use estimation_error.")
    return dataclasses.replace(result, estimation=estimation_error(predict, problem))


@front_door
def estimation_error(predict: Callable[[Problem], Any], problem: Problem) -> Any:
    """Standard errors of `predict(problem)` from the sampling error of the data behind a `Problem.from_data`.

    - `predict`: of a problem, an array or any pytree of arrays, or a result (of `solve`, of `dmftopt.limits`), of which the
      errors of its `Observables` come back. It is called for each of `problem.replicates`, with one compiled program where
      its arrays' shapes are fixed. Random keys must be the same in all calls; then differences are hardly random.
    - `problem`: made by `Problem.from_data`, also with other fields replaced since.

    Returns the same tree with sqrt(sum over pairs of (plus - minus)² / 4): the delta method, of first order in the error. For
    gains of one protocol over another let `predict` return their difference. On Gaussian data of
    known truth 1.96 of it covered the truth in 93% of the cases, for 1.3 to 20 samples per dimension (experiments/benchmarks).
    It does not hold what is wrong because real features are not Gaussian.

    Raises ValueError for a problem without replicates.
    """
    check_function("predict", predict, "a problem")
    check_instance("problem", problem, Problem, "Make it by dmftopt.Problem.from_data(...).")

    def values(replicate):
        found = predict(replicate)
        return found.observables if isinstance(found, AbstractResult) else found

    found = [values(replicate) for replicate in problem.replicates]

    def error(*leaves):
        plus, minus = jnp.stack(leaves[::2]), jnp.stack(leaves[1::2])
        return 0.5 * jnp.sqrt(jnp.sum((plus - minus) ** 2, axis=0))

    return jax.tree.map(error, *found)
