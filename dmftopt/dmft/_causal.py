"""The causal innovations scheme: one pass over the time steps (README, "How it works").

Two orthonormal families grow as time goes on. On the field side, the gradients of a population of samples: each direction g^_j
owns a fresh weight-side normal zeta_j. On the weight side, the weights theta~ = sqrt(lambda) theta themselves: each direction
phi_j owns a fresh field-side normal xi_j. Bolthausen's conditioning argument turns the Gaussian feature matrix into these
normals, so the two sides meet only through the numbers L, P (weights to fields) and G, S (fields to weights).

The gradient g = l M of each step is split into its mean over the multiplier, l E[M], and the gradient noise l (M - E[M]), each
with a direction of its own, so that drift and noise can be stepped exponentially.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..observables import from_kernel
from . import _points
from . import _weights as weights
from ._orthogonal import DROP, combination, dots, reciprocal_length, spread, totals
from ._scan import history_scan
from ._sobol import MAX_DIMENSION
from ._solver import AbstractSolver, Inputs
from ._step import DiscreteStep, ExponentialStep


class History(NamedTuple):
    """Row k+1 is written at step k: the directions (column sample) of the gradients, and phi (group basis)."""

    gradients: Array
    phi: Array


class Readout(NamedTuple):
    """Per step: L(k, :) over all directions, losses over the samples, E[theta²]. With gradient noise, for each group and each
    step's noise normal: its coefficient in theta_k, and what this step adds to it in theta_{k+1}."""

    coefficients: Float[Array, " direction"]
    train_loss: Array
    train_error: Array | None
    norm: Array
    reached: Float[Array, "group step"] | None
    added: Float[Array, "group step"] | None


class State(NamedTuple):
    """The weights, and what the last step saw."""

    theta: Float[Array, "group basis"]
    curvature: Array
    log_power: Array
    drive: weights.Drive


class CausalInnovations(AbstractSolver):
    """The default solver: one causal pass, O(samples * steps²) time, O(samples * steps) memory, no iteration, no kernel ever
    inverted. Takes both steps."""

    steps = (ExponentialStep, DiscreteStep)

    def check(self, samples, steps, noise):
        if samples & (samples - 1):
            raise ValueError(f"samples must be a power of two (Sobol points), got {samples}. Use {1 << samples.bit_length()}.")
        dimensions = _points.dimensions(steps, noise)
        if dimensions > MAX_DIMENSION:
            raise ValueError(f"steps: {steps} need {dimensions} Sobol dimensions, of at most {MAX_DIMENSION}. Use fewer steps.")

    def draw(self, key, samples, grid, noise, rate, shards=1):
        return _points.draw(key, samples, grid, noise, rate, shards)

    def run(self, problem, noise, step, inputs, points):
        times = inputs.drift.shape[0] + 1
        columns = 1 if noise.deterministic else 2
        theta, phi, rho = weights.initial(problem, weights.FIRST_ZETA + columns * (times + 1))
        teacher_field, labels = problem.task.sample(points.teacher, points.label, jnp.sqrt(rho))
        # One more step than there are updates, so that the fields at the last time are read; it does not move.
        xs = Inputs(*(jnp.append(value, 0.0) for value in inputs))
        arrays, static = eqx.partition((problem, step), eqx.is_inexact_array)
        constants, sampled = jax.tree.map(
            lambda a: a.reshape(*a.shape[:-1], points.shards, -1),
            ((points.innovations, points.multipliers), (teacher_field, labels)),
        )
        row = History(jnp.zeros((columns, *sampled[0].shape), labels.dtype), phi)
        parameters = (arrays, *sampled)
        zero = jnp.zeros((), theta.dtype)
        state = State(theta, zero, zero, weights.Drive(jnp.zeros_like(theta), jnp.zeros_like(theta[0, weights.FIRST_ZETA :])))
        _, out, _ = history_scan(_Step(static), times, constants, parameters, xs, state, row)
        L = out.coefficients
        response = None if out.reached is None else _response(problem.features, out.reached, out.added)
        observables = from_kernel(
            problem, L @ L.T, L[:, 0] * jnp.sqrt(rho), out.norm, out.train_loss, out.train_error, rho, response
        )
        return observables, jnp.asarray(True)


def _response(features, reached: Float[Array, "time group time"], added: Float[Array, "time group time"]) -> Array:
    """R(k, j) (time, step) from the normals of the gradient noise, which are kicks of known size: the normal zeta of a step
    reaches theta_k through all that it added to the weights, reached(k, zeta) = sum_i R(k, i) added(i, zeta).

    Triangular in (i, zeta) with the noise itself on the diagonal, so well conditioned. A step without noise (learning rate 0)
    moves nothing: a kick there is one in the step before.
    """
    reached = jnp.swapaxes(reached, 0, 1)[:, :, :-1]
    added = jnp.swapaxes(added, 0, 1)[:, :-1, :-1]
    steps = added.shape[1]
    noisy = jnp.all(jnp.diagonal(added, axis1=1, axis2=2) != 0, axis=0)
    added = jnp.where(noisy[:, None] & noisy[None, :], added, jnp.eye(steps, dtype=added.dtype))
    per_group = jax.vmap(_divided)(reached, added)
    response = jnp.tensordot(features.weights * features.eigenvalues, per_group, 1)
    before = jax.lax.cummax(jnp.where(noisy, jnp.arange(steps), jnp.argmax(noisy)))
    return jnp.tril(response[:, before], -1)


def _divided(numerator: Float[Array, "row n"], lower: Float[Array, "n n"]) -> Float[Array, "row n"]:
    """numerator @ inverse(lower). By hand: batched triangular solves of LAPACK, two at once, can hang jaxlib's CPU threads."""

    def substituted(matrix, b, upper):
        def row(k, x):
            k = matrix.shape[0] - 1 - k if upper else k
            return x.at[k].set((b[k] - matrix[k] @ x) / matrix[k, k])

        return jax.lax.fori_loop(0, matrix.shape[0], row, jnp.zeros_like(b))

    return jax.lax.custom_linear_solve(
        lambda x: lower.T @ x,
        numerator.T,
        lambda _, b: substituted(lower.T, b, True),
        lambda _, b: substituted(lower, b, False),
    ).T


class _Step:
    def __init__(self, static: Any):
        self.static = static

    def __call__(self, constants, parameters, x: Inputs, state: State, history: History, k):
        innovations, multipliers = constants
        arrays, teacher_field, labels = parameters
        problem, step = eqx.combine(arrays, self.static)
        features, delta, theta = problem.features, problem.delta, state.theta
        rows, columns, shards, local = history.gradients.shape
        samples = shards * local
        gradients = history.gradients.reshape(rows * columns, shards, local)
        past = (jnp.arange(rows) <= k).astype(labels.dtype)
        past_columns = jnp.repeat(past, columns)

        # Weights to fields. The teacher's innovation is kept apart: it may carry derivatives, the others are constants.
        L, direction, length, P = weights.read(theta, history.phi, past, features)
        L = L.at[k + 1].add(length)
        to_teacher, to_innovations, to_gradients = spread(shards, L[0], L, past_columns * P / jnp.sqrt(delta))
        r = to_teacher[:, None] * teacher_field + combination(to_innovations, innovations)
        r = r + combination(to_gradients, gradients)

        # Fields to weights: the mean gradient's coefficients on the past and on the innovations, Gram-Schmidt in two passes.
        # Sums over the samples are taken together, once for each pass: on many devices each costs one exchange.
        l = problem.task.gradient(r, labels)
        curvature, error = problem.task.curvature(r, labels), problem.task.error(r, labels)
        swing = None if columns == 1 else l * multipliers[k]
        if swing is not None and step.order == 2:
            # A sample's noise within the step changes its own gradient within the step, dr = -l dM / delta (Milstein's
            # term: the double integral of the standardized noise is (z² - 1 - skewness z) / 2).
            square = multipliers[k] ** 2 - 1 - x.skewness * multipliers[k]
            swing = swing - (0.5 * x.noise / delta) * l * curvature * square
        first = totals(
            (dots(gradients, l), dots(innovations, l), jnp.sum(teacher_field * l, axis=1), jnp.sum(l**2, axis=1)),
            tuple(None if a is None else jnp.sum(a, axis=1) for a in (curvature, problem.task.loss(r, labels), error)),
            None if swing is None else (dots(gradients, swing), jnp.sum(swing**2, axis=1)),
        )
        (G, S, S_teacher, size2), (curvature, loss, error), of_swing = jax.tree.map(lambda a: a / samples, first)
        log_power = jnp.log(jnp.where(size2 > 0, size2, 1.0))
        G = past_columns * G
        S = jnp.where(jnp.arange(rows) <= k + 1, S, 0.0).at[0].set(S_teacher)
        to_mean, to_noise = spread(shards, G, None if of_swing is None else past_columns * of_swing[0])
        rest = l - combination(to_mean, gradients)
        if swing is not None:
            # In law this is orthogonal to everything before and of norm sqrt(E[l²]) times the multiplier's deviation.
            # Its direction must be orthonormal in the sample too (or errors grow from step to step); the coefficients
            # removed on the way are sampling error and are dropped. Nothing cancels, so one pass suffices.
            swing = swing - combination(to_noise, gradients)
        second = totals(
            (dots(gradients, rest), jnp.sum(rest**2, axis=1)),
            None if swing is None else (jnp.sum(swing * rest, axis=1), jnp.sum(swing**2, axis=1)),
        )
        (again, rest2), of_swing_rest = jax.tree.map(lambda a: a / samples, second)
        again = past_columns * again
        # Pythagoras; `again` is rounding, far smaller than any residual that is kept, so nothing is lost.
        inverse, height = reciprocal_length(rest2 - jnp.sum(again**2), size2)
        zeta_drift = (G + again).at[(k + 1) * columns].add(height)
        zeta_noise = jnp.zeros_like(zeta_drift)
        phi = history.phi.at[k + 1].set(direction)
        if of_swing is None or of_swing_rest is None:
            to_mean, inverse = spread(shards, again, inverse)
            written = ((rest - combination(to_mean, gradients)) * inverse[:, None])[None]
        else:
            # The swing's product with the new direction is that with `rest`: what differs is a product of two roundings.
            shared = of_swing_rest[0] * inverse
            # Here the difference may cancel; what is left of it must be more than rounding to be normalized.
            swing_inverse, _ = reciprocal_length(
                of_swing_rest[1] - shared**2, of_swing[1], drop=max(DROP, 100 * float(jnp.finfo(labels.dtype).eps))
            )
            to_mean, inverse, shared, swing_inverse = spread(shards, again, inverse, shared, swing_inverse)
            new = (rest - combination(to_mean, gradients)) * inverse[:, None]
            written = jnp.stack([new, (swing - shared[:, None] * new) * swing_inverse[:, None]])
            power = jnp.exp(0.5 * step.ahead(log_power, state.log_power, x.ratio))
            zeta_noise = zeta_noise.at[(k + 1) * columns + 1].set(jnp.where(size2 > 0, power, 0.0))

        drive = weights.drive(theta, S, phi, zeta_drift / jnp.sqrt(delta), curvature, features)
        decay = x.drift * features.eigenvalues * step.ahead(curvature, state.curvature, x.ratio) + x.ridge
        theta_next, kicks = weights.update(
            theta,
            drive,
            state.drive,
            decay,
            x.drift,
            x.noise * zeta_noise / jnp.sqrt(delta),
            step.factors(decay, x.ratio, weights.curvature_ratio(features, delta)),
            features,
        )
        readout = Readout(
            L,
            loss,
            error,
            jnp.sum(features.weights * jnp.sum(theta**2, axis=1)),
            None if columns == 1 else theta[:, weights.FIRST_ZETA + 3 :: 2],
            None if columns == 1 else kicks[:, 3::2],
        )
        return State(theta_next, curvature, log_power, drive), History(written, direction), readout
