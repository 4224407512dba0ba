"""How far a solution may be off, told by the curvature of the loss that the run has seen: equations (27) to (30) of README.md.

Nothing here has a derivative.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..problem import Problem
from ..problem.features import Features
from ..protocol.noise import AbstractNoise
from ..protocol.updates import is_adaptive
from ..results.observables import Observables
from ._adaptive import seen
from ._motion import curvature_ratio
from ._solver import Curvature, Inputs
from ._step import AbstractStep

_HALVINGS = 40
_RESTING = 0.3
# At the critical rate itself nothing grows exponentially.
ROUNDING = 1e-6


def is_algorithm(noise: AbstractNoise, step: AbstractStep, momentum: bool) -> bool:
    """Whether the step is the algorithm itself, and no approximation."""
    return not step.continuous and (noise.discrete or noise.deterministic or momentum)


def order_of(problem: Problem, noise: AbstractNoise, step: AbstractStep) -> int:
    # A sample whose gradient jumps starts or stops being moved at some time within a step: an error of first order.
    return min(noise.order, 1 if problem.task.jumps and not noise.deterministic else step.order)


def extrapolates(problem: Problem, noise: AbstractNoise, order: int) -> bool:
    """Whether two levels of first order are worth extrapolating: not where gradients jump and the noise does not, whose
    error is of half an order."""
    jumps = noise.skewness(jnp.ones(1)) is not None or noise.in_epochs
    return order == 1 and (jumps or not problem.task.jumps)


def stiffness(problem: Problem, inputs: Inputs, curvature: Curvature) -> Float[Array, " step"]:
    """Equation (27): D [sum_a omega_a lambda_a r_a²]^(1/2), r_a = eta lambda_a kappa_a |E[dl / dr]| with kappa_a as in (14); of a
    mode that has come to rest, where only noise moves it, 0.3 of its rate."""
    features = seen(problem, inputs.update)
    fastest = features.eigenvalues * curvature_ratio(features, problem.delta)
    steps = fastest[:, None] * (inputs.mean * curvature.size[:-1])[None]
    if inputs.friction is not None and inputs.durations is not None:
        # An oscillation, or the slower of two decays.
        D = jnp.where(inputs.durations > 0, inputs.durations, 1.0)
        steps = jnp.minimum(jnp.sqrt(steps * D[None]), steps / jnp.maximum(inputs.friction, 1e-12)[None])
    clock = jnp.cumsum(steps, axis=1) - steps
    felt = steps * (_RESTING + (1 - _RESTING) * jnp.exp(-clock / 3))
    return jax.lax.stop_gradient(jnp.sqrt((features.weights * features.eigenvalues) @ felt**2))


def stability(problem: Problem, inputs: Inputs, curvature: Curvature) -> Float[Array, " step"]:
    """Equation (28): eta / B over its critical value, at which gradient noise of constant curvature, through the power that it
    has itself added, keeps itself alive. Exact for least squares at constant rates. 0 without noise, and for losses that
    are not l·l / 2 along the run: where gradients saturate growth ends by itself. Of epochs, and of rates over the size of
    gradients, the critical value is not known."""
    if inputs.epoch_start is not None or is_adaptive(inputs.update) or inputs.friction is not None:
        return jnp.zeros_like(inputs.mean)
    mean, trace = curvature.mean[:-1], jnp.trace(curvature.mean[:-1], axis1=1, axis2=2)
    square, m = curvature.square[:-1], mean.shape[-1]
    known = (trace > 0) & (inputs.mean > 0) & (jnp.abs(curvature.quadratic[:-1] - 1) < 1e-4)
    h, eta = jnp.where(known, trace / m, 1.0), jnp.where(inputs.mean > 0, inputs.mean, 1.0)
    ridge = inputs.shrinkage / eta
    noise = inputs.deviation**2 / (2 * problem.delta * eta)
    felt = jnp.where(known, square / m / h, 0.0) * _field_share(problem.features, problem.delta, ridge / h)
    return jax.lax.stop_gradient(noise * felt)


def _field_share(features: Features, delta: Array, ridge: Float[Array, " step"]) -> Float[Array, " step"]:
    """(1/d) tr[H² (H + ridge)^-1] of the sample covariance H, which is 1 - ridge sum_a omega_a lambda_a / (lambda_a + k) with
    the effective ridge k that solves k [1 - (1/delta) sum_a omega_a lambda_a / (lambda_a + k)] = ridge."""
    lam, shares = features.eigenvalues[:, None], features.weights[:, None]

    def freedom(k):
        return jnp.sum(shares * lam / (lam + k[None]), axis=0)

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        below = middle * (1 - freedom(middle) / delta) < ridge
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    _, k = jax.lax.fori_loop(0, _HALVINGS, halve, (ridge, ridge + jnp.sum(features.weights * features.eigenvalues) / delta))
    return 1 - ridge * freedom(jnp.maximum(k, jnp.finfo(k.dtype).tiny))


def rough_error(
    stiffness: Float[Array, "*batch step"], stability: Float[Array, "*batch step"], order: int
) -> Float[Array, "*batch time"]:
    """Equation (29): the error of the time step until each time, over an observable's largest value; infinite where SGD is
    unstable. Of second order it held in 95% of 150 random least-squares problems at 20, 40 and 80 steps."""
    worst = jax.lax.cummax(stiffness, axis=stiffness.ndim - 1)
    error = 0.1 * worst**2 / (1 + 0.7 * worst) if order >= 2 else 0.25 * worst
    error = jnp.where(jax.lax.cummax(stability, axis=stability.ndim - 1) <= 1 + ROUNDING, error, jnp.inf)
    return jnp.concatenate([jnp.zeros_like(error[..., :1]), error], axis=-1)


def gain_of(order: int) -> float:
    """Error of the finer of two levels, over their difference, equation (30)."""
    return 1 / (2 ** (order - 0.5) - 1)


def scaled(relative: Float[Array, " time"], of_response: Float[Array, " time"], observables: Observables) -> Observables:
    """Errors of this relative size until each time, over an observable's largest value."""

    def along_first(values, relative):
        return jnp.max(jnp.abs(values)) * jnp.broadcast_to(relative.reshape(-1, *[1] * (values.ndim - 1)), values.shape)

    errors = jax.tree.map(lambda values: along_first(values, relative), observables)
    correlation = jnp.maximum(errors.correlation, jnp.swapaxes(errors.correlation, 0, 1))
    response = None if observables.response is None else along_first(observables.response, of_response)
    return dataclasses.replace(errors, correlation=correlation, response=response)


def relative_errors(
    observables: Observables, errors: Observables, rho: Float[Array, "m_star m_star"]
) -> dict[str, Float[Array, ""]]:
    """Largest error of each observable of one time over its own largest value (of a teacher overlap at least a tenth of what it
    could be: it may vanish by symmetry)."""
    values, of = observables.arrays(), errors.arrays()
    floor = {"teacher_overlap": 0.1 * jnp.sqrt(jnp.max(jnp.abs(values["student_overlap"])) * jnp.max(jnp.abs(rho)))}
    relative = {}
    for name in values:
        if name not in ("correlation", "response") and name in of:
            largest = jnp.maximum(jnp.max(jnp.abs(values[name])), floor.get(name, jnp.finfo(values[name].dtype).tiny))
            relative[name] = jnp.max(jnp.abs(of[name])) / largest
    return relative
