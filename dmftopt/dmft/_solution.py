from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._register import register, register_part
from .._results import RESULTS
from ..observables import AbstractResult, Observables


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
        name = list(RESULTS._name_to_item)[int(self.result._value)]
        return {"result": name, "message": RESULTS[self.result], **self.stats._asdict()}


def judge(observables: Observables, scale: Array, valid: Array, converged: Array) -> tuple[RESULTS, Array]:
    """Result code, and the mask of times before the first failure."""
    steps = observables.norm.shape[0]
    per_time = (observables.test_risk, observables.train_loss, observables.norm)
    finite = [jnp.all(jnp.isfinite(a.reshape(steps, -1)), axis=1) for a in per_time]
    # A NaN at time k also enters row j < k of the correlation, in column k: look at the lower triangle only.
    pairs = jnp.all(jnp.isfinite(observables.correlation), axis=(2, 3)) | ~jnp.tril(jnp.ones((steps, steps), bool))
    finite = jnp.all(jnp.stack([*finite, jnp.all(pairs, axis=1)]), axis=0)
    bounded = ~(jnp.trace(observables.student_overlap, axis1=1, axis2=2) > 1e4 * scale)
    good = jnp.cumprod((finite & bounded & valid & converged).astype(int)).astype(bool)
    result = RESULTS.where(jnp.all(good), RESULTS.successful, RESULTS.nonfinite)
    first_bad = jnp.argmin(good)
    result = RESULTS.where(jnp.all(good) | bounded[first_bad], result, RESULTS.diverged)
    result = RESULTS.where(converged | ~finite[first_bad] | ~bounded[first_bad], result, RESULTS.unconverged)
    return RESULTS.where(valid, result, RESULTS.invalid), good


def blank(observables: Observables, good: Array) -> Observables:
    """NaN from the failing time on."""
    return observables.along_time(lambda a: jnp.where(good.reshape(-1, *[1] * (a.ndim - 1)), a, jnp.nan))
