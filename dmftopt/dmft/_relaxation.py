"""What steps do wrong that are longer than modes take to relax, told on a linear problem of the curvature that the run has seen:
equation (39) of README.md. Two levels of such steps may agree with each other, and not with the equation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..problem import Problem
from ..protocol.updates import is_adaptive
from ._accuracy import stiffness
from ._adaptive import seen
from ._motion import curvature_ratio
from ._solver import Curvature, Inputs
from ._step import AbstractStep, phi, sample_modes

# By random least-squares problems with steps of 1 to 10 000 relaxation times: errors of the mean are up to so much larger where
# overlaps are squares and modes of many groups meet on the same samples. Of what noise keeps alive up to a half is wrong, which
# vanishes in the online limit, from so many samples per dimension on.
_OF_MEAN, _OF_NOISE, _ONLINE = 6.0, 0.5, 5.0


class _Mode(NamedTuple):
    """Per node and group: the mean at this time and the last; exactly, the mean and the variance."""

    mean: Array
    last: Array
    exact: Array
    variance: Array


def relaxation_error(
    problem: Problem, inputs: Inputs, curvature: Curvature, step: AbstractStep, train_loss: Float[Array, " time"]
) -> Float[Array, " time"]:
    """Relative to an observable's largest value; 0 for parametrizations and with friction, of which it knows nothing."""
    if inputs.friction is not None or not problem.direct:
        return jnp.zeros_like(train_loss)
    features = seen(problem, inputs.update)
    kappa = curvature_ratio(features, problem.delta)[:, None]
    slope = jnp.maximum(jnp.trace(curvature.mean, axis1=1, axis2=2) / problem.m, 0.0)
    pace = features.eigenvalues[:, None] * (inputs.mean * 0.5 * (slope[1:] + slope[:-1]))[None]
    shrinkage, ratio = (jnp.broadcast_to(a, pace.shape) for a in (inputs.shrinkage, inputs.ratio))
    factors = step.factors(pace + shrinkage, ratio, kappa)
    kicks = jnp.zeros_like(pace)
    if inputs.epoch_start is None and not is_adaptive(inputs.update):
        # Of the power E[l²] along the run, as it moves the risk; of epochs and of rates that follow the loss nothing is told.
        largest = jnp.maximum(jnp.max(jnp.abs(train_loss)), jnp.finfo(train_loss.dtype).tiny)
        power = curvature.quadratic * slope * train_loss / largest
        kicks = features.eigenvalues[:, None] * (inputs.deviation**2 / problem.delta * power[:-1])[None]
    above, weight = sample_modes(kappa[:, 0])
    mu = 1 + above
    of_mean = (features.weights * features.eigenvalues)[None] * weight / mu
    of_noise = _OF_NOISE * jnp.minimum(1.0, _ONLINE / problem.delta) * of_mean

    def move(mode: _Mode, x) -> tuple[_Mode, Array]:
        pace, shrinkage, f, c, kick = (a[None] for a in x)
        rest, whole = pace * above, pace * mu + shrinkage
        mean = mode.mean - f * whole * mode.mean - c * rest * (mode.mean - mode.last)
        decay = jnp.exp(-whole)
        exact, variance = decay * mode.exact, decay**2 * mode.variance + kick * phi(2 * whole)
        squares = mean**2 - exact**2
        wrong = jnp.stack([jnp.sum(of_mean * values) for values in (mean - exact, squares, mu * squares)])
        error = _OF_MEAN * jnp.max(jnp.abs(wrong)) + jnp.sum(of_noise * variance)
        return _Mode(mean, mode.mean, exact, variance), error

    one = jnp.ones_like(mu)
    start = _Mode(one, one, one, jnp.zeros_like(mu))
    per_step = jax.tree.map(lambda a: a.T, (pace, shrinkage, factors.drift, factors.change, kicks))
    errors = jax.lax.scan(move, start, per_step)[1]
    # Of shorter steps two levels tell the error, and better.
    errors = errors * -jnp.expm1(-(jax.lax.cummax(stiffness(problem, inputs, curvature)) ** 2))
    return jax.lax.stop_gradient(jnp.concatenate([jnp.zeros_like(errors[:1]), errors]))
