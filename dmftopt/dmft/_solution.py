from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._checks import front_door, is_concrete
from .._register import register, register_part
from ..results.codes import RESULTS, finite_times, name_of, until_failure
from ..results.observables import AbstractResult, Observables, sampling_error
from ._accuracy import rough_error, scaled


@register_part
class Statistics(NamedTuple):
    """What was run. `step_error`: how the error of the time step is known: "rough" (from the stiffness), "measured" (from a
    second level), or "none" (the step is the algorithm). `order`: of the step."""

    samples: int
    replicates: int
    steps: int
    richardson: bool
    step_error: str = "rough"
    order: int = 2


@register
class Solution(AbstractResult):
    """Observables of the DMFT at the grid's times, see `dmftopt.Observables` for shapes.

    - `times` (step+1,); `observables`, also as attributes: `test_risk`, `train_loss`, `student_overlap`, ...
    - `standard_error`: of the same observables, from the spread over replicates (raises for a single replicate).
    - `bias`: estimate of the finite-sample bias, the result with half the samples less the result (the bias is of order
      steps / samples, and no standard error shows it), and `bias_standard_error`. Raise unless asked for with
      `estimate_bias=True`.
    - `discretization_error`: of the time step. Measured with a second level (`estimate_discretization=True`, `richardson=True`,
      or a horizon in place of the grid), and where steps are longer than modes take to relax at the least what that does on a
      linear problem, equation (39); otherwise rough, from `stiffness`, at no cost. 0 where the step is the algorithm.
    - `total_error`: half the width of the interval that holds the exact value in 95 of 100 cases, from all of these that are
      known.
    - `stiffness` (step,): step times the rate of what is moving, equation (27); below 0.3 the time step is good to a percent.
      `stability` (step,): learning rate / batch size over its critical value, equation (28); above 1 SGD itself is unstable.
    - `result`: a member of `dmftopt.RESULTS`. Where it is nonfinite, diverged, unphysical or invalid, entries from the failing
      time on are NaN; where it is unstable or inaccurate they are what was found.
    """

    times: Float[Array, " time"]
    observables: Observables
    replicated: Observables | None
    half_difference: Observables | None
    bias_error: Observables | None
    level_difference: Observables | None
    stiffness: Float[Array, " step"]
    stability: Float[Array, " step"]
    result: RESULTS
    stats: Statistics = eqx.field(static=True)

    @property
    @front_door
    def bias(self) -> Observables:
        if self.half_difference is None:
            raise ValueError("bias was not estimated. Ask for estimate_bias=True in solve.")
        return self.half_difference

    @property
    @front_door
    def bias_standard_error(self) -> Observables:
        if self.bias_error is None:
            raise ValueError("bias was not estimated. Ask for estimate_bias=True in solve.")
        return self.bias_error

    @property
    @front_door
    def discretization_error(self) -> Observables:
        if self.level_difference is not None:
            return self.level_difference

        def rough(stiffness, stability, observables):
            if self.stats.step_error == "none":
                none = jnp.zeros(stiffness.shape[0] + 1, stiffness.dtype)
                return scaled(none, none, observables)
            error, of_response = (rough_error(stiffness, stability, order) for order in (self.stats.order, 1))
            return scaled(error, of_response, observables)

        for _ in range(jnp.ndim(self.times) - 1):
            rough = jax.vmap(rough)
        return rough(self.stiffness, self.stability, self.observables)

    @property
    def repetitions(self):
        return self.stats.replicates

    def _other_errors(self):
        bias = [] if self.half_difference is None else [self.half_difference]
        return [self.discretization_error, *bias]

    def __str__(self) -> str:
        """The final test risk with its error, of what it is made, and how the solve ended."""
        if not is_concrete(self.times) or jnp.ndim(self.times) != 1:
            return repr(self)
        parts = {"time step": self.discretization_error}
        if self.replicated is not None:
            parts = {"sampling": sampling_error(self.replicated, self.repetitions), **parts}
        if self.half_difference is not None:
            parts["bias"] = self.half_difference
        if self.estimation is not None:
            parts["estimate from data"] = self.of_estimation()
        errors = {name: abs(float(part.test_risk[-1])) for name, part in parts.items()}
        notes = {"time step": " (rough)" if self.stats.step_error == "rough" else ""}
        said = [f"{name} {value:.1g}{notes.get(name, '')}" for name, value in errors.items()]
        if self.replicated is None:
            said.append("sampling unknown (replicates=1)")
        value = f"{float(self.test_risk[-1]):.5g} ± {sum(errors.values()):.2g} at t = {float(self.times[-1]):.4g}"
        spent = f"{self.stats.steps} steps, {self.stats.replicates} x {self.stats.samples} samples"
        return f"test risk {value} ({', '.join(said)}); {spent}; {name_of(self.result)}"

    def _attributes(self) -> dict[str, str | int]:
        return {"result": name_of(self.result), "message": RESULTS[self.result], **self.stats._asdict()}


def judge(
    observables: Observables, rho: Float[Array, "m_star m_star"], mixture: bool, scale: Array, valid: Array, converged: Array
) -> tuple[RESULTS, Bool[Array, " time"]]:
    """Result code, and the mask of times before the first failure. `rho`: what bounds the teacher overlap."""
    finite = finite_times(observables)
    bounded = ~(jnp.trace(observables.student_overlap, axis1=1, axis2=2) > 1e4 * scale)
    physical = _physical(observables, rho, mixture)
    good = until_failure(finite & bounded & physical & valid & converged)
    result = RESULTS.where(jnp.all(good), RESULTS.successful, RESULTS.nonfinite)
    first_bad = jnp.argmin(good)
    result = RESULTS.where(jnp.all(good) | physical[first_bad] | ~finite[first_bad], result, RESULTS.unphysical)
    result = RESULTS.where(jnp.all(good) | bounded[first_bad], result, RESULTS.diverged)
    result = RESULTS.where(converged | ~finite[first_bad] | ~bounded[first_bad], result, RESULTS.unconverged)
    return RESULTS.where(valid, result, RESULTS.invalid), good


def _physical(observables: Observables, rho: Float[Array, "m_star m_star"], mixture: bool) -> Bool[Array, " time"]:
    """Of each time, whether overlaps are those of some student: no diagonal entry of Q is negative, and O_ia² <= Q_ii rho_aa (a
    mixture's means are no Gaussian fields, and bound nothing). Rounding is forgiven."""
    Q, O = jnp.diagonal(observables.student_overlap, axis1=1, axis2=2), observables.teacher_overlap
    rounding = float(jnp.finfo(Q.dtype).eps) ** 0.5 * jnp.max(jnp.abs(Q), axis=1)
    positive = jnp.all(-rounding[:, None] <= Q, axis=1)
    if mixture:
        return positive
    most = (Q + rounding[:, None])[:, :, None] * (jnp.diagonal(rho) * (1 + float(jnp.finfo(Q.dtype).eps) ** 0.5))[None, None, :]
    return positive & jnp.all(most >= O**2, axis=(1, 2))
