from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._register import register, register_part
from ..results.codes import RESULTS, finite_times, name_of, until_failure
from ..results.observables import AbstractResult, Observables


@register_part
class Statistics(NamedTuple):
    """What was run."""

    samples: int
    replicates: int
    steps: int
    richardson: bool


@register
class Solution(AbstractResult):
    """Observables of the DMFT at the grid's times, see `dmftopt.Observables` for shapes.

    - `times` (step+1,); `observables`, also as attributes: `test_risk`, `train_loss`, `student_overlap`, ...
    - `standard_error`: of the same observables, from the spread over replicates (raises for a single replicate).
    - `bias`: estimate of the finite-sample bias, the result with half the samples less the result (the bias is of order
      steps / samples, and no standard error shows it). Raises unless asked for with `estimate_bias=True`.
    - `result`: a member of `dmftopt.RESULTS`. Where it is not successful, entries from the failing time on are NaN.
    """

    times: Float[Array, " time"]
    observables: Observables
    replicated: Observables | None
    half_difference: Observables | None
    result: RESULTS
    stats: Statistics = eqx.field(static=True)

    @property
    def bias(self) -> Observables:
        if self.half_difference is None:
            raise ValueError("bias was not estimated. Ask for estimate_bias=True in solve.")
        return self.half_difference

    def _attributes(self) -> dict[str, str | int]:
        return {"result": name_of(self.result), "message": RESULTS[self.result], **self.stats._asdict()}


def judge(observables: Observables, scale: Array, valid: Array, converged: Array) -> tuple[RESULTS, Array]:
    """Result code, and the mask of times before the first failure."""
    finite = finite_times(observables)
    bounded = ~(jnp.trace(observables.student_overlap, axis1=1, axis2=2) > 1e4 * scale)
    good = until_failure(finite & bounded & valid & converged)
    result = RESULTS.where(jnp.all(good), RESULTS.successful, RESULTS.nonfinite)
    first_bad = jnp.argmin(good)
    result = RESULTS.where(jnp.all(good) | bounded[first_bad], result, RESULTS.diverged)
    result = RESULTS.where(converged | ~finite[first_bad] | ~bounded[first_bad], result, RESULTS.unconverged)
    return RESULTS.where(valid, result, RESULTS.invalid), good
