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

from .._checks import check_count
from .._matrices import inverse_root, of_symmetric, rank_floor, square_root, triangular_root
from .._measure import Measured, coordinate_nodes, field_sums, weight_means
from ..observables import from_kernel
from ..tasks import _columns as columns
from . import _points
from . import _weights as weights
from ._orthogonal import DROP, block_drop, combination, dots, products, spread, totals
from ._scan import history_scan
from ._sobol import MAX_DIMENSION
from ._solver import AbstractSolver, Inputs
from ._step import DiscreteStep, ExponentialStep


class History(NamedTuple):
    """Row k is written at step k: the directions (column sample) of the gradients, first the m drifts', then the m noises',
    and phi (m group basis)."""

    gradients: Any
    phi: Any


class Readout(NamedTuple):
    """Per step: products with the known directions and L(k, :) over all rows, losses over the samples, E[theta theta^T],
    metrics, mean curvature of the loss. With gradient noise, for each group and each step's noise normals: their coefficients
    in theta_k, and what this step adds to them in theta_{k+1}."""

    known: Float[Array, "m m_star"]
    L: Float[Array, "m row m"]
    train_loss: Array
    train_error: Array | None
    norm: Float[Array, "m m"]
    train_metrics: dict[str, Array]
    weight_metrics: dict[str, Array]
    curvature: Float[Array, "m m"]
    reached: Float[Array, "m group row m"] | None
    added: Float[Array, "m group row m"] | None


class State(NamedTuple):
    """The weights (or their parameters, component first), and what the last step saw: mean curvature of the loss, mean slope of
    the regularizer's gradient, root of the noise power E[l l^T], drive; and the memory of a momentum."""

    theta: Float[Array, "*component m group basis"]
    curvature: Float[Array, "m m"]
    slope: Float[Array, " group"]
    power: Float[Array, "m m"]
    drive: weights.Drive
    memory: Float[Array, "*component m group basis"] | None


class CausalInnovations(AbstractSolver):
    """The default solver: one causal pass, O(samples * steps²) time, O(samples * steps) memory, no iteration, no kernel ever
    inverted. Takes both steps.

    With the ridge the law of the weights is known exactly. With another regularizer it is sampled: `particles` (a power of two)
    coordinates in each eigenvalue group. `sample_weights`: sample it with the ridge too, to check one against the other.
    """

    steps = (ExponentialStep, DiscreteStep)

    particles: int = eqx.field(static=True, default=4096)
    sample_weights: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_count("particles", self.particles, minimum=4)
        if self.particles & (self.particles - 1):
            raise ValueError(f"particles must be a power of two, got {self.particles}. Use {1 << self.particles.bit_length()}.")

    def _particles(self, linear_weights: bool) -> int:
        """0 where the weights are exact."""
        return self.particles if self.sample_weights or not linear_weights else 0

    def check(self, problem, samples, steps, noise):
        if samples & (samples - 1):
            raise ValueError(f"samples must be a power of two (Sobol points), got {samples}. Use {1 << samples.bit_length()}.")
        dimensions = _points.dimensions(steps, noise, problem.m, problem.m_star)
        if dimensions > MAX_DIMENSION:
            raise ValueError(f"steps: {steps} need {dimensions} Sobol dimensions, of at most {MAX_DIMENSION}. Use fewer steps.")
        needed = 8 * problem.m * _points.zeta_parts(noise) * (steps + 1)
        if 0 < self._particles(problem.linear_weights) < needed:
            raise ValueError(
                f"particles must be at least {needed}, 8 for each direction of a gradient, got {self.particles}. Pass "
                f"solver=CausalInnovations(particles={1 << (needed - 1).bit_length()}), or use fewer steps."
            )

    def draw(self, key, sizes, grid, noise, rate):
        particles = self._particles(sizes.linear_weights)
        return _points.draw(key, sizes.samples, grid, noise, rate, sizes.shards, sizes.m, sizes.m_star, particles)

    def run(self, problem, noise, step, inputs, points, metrics):
        times, m = inputs.drift.shape[0] + 1, problem.m
        parts = _points.zeta_parts(noise)
        nodes = theta_star = None
        if points.zetas is None:
            start, zetas = weights.coefficients(problem, parts * m * times), None
            if metrics.weights:
                nodes, theta_star = coordinate_nodes(problem)
        else:
            start, zetas = weights.particles(problem, points.entries, points.zetas.reshape(parts * m * times, -1))
            if metrics.weights:
                theta_star = weights.teacher(start, problem.features)
        fields, labels = columns.sample(problem.task, points.teacher, points.label, start.root)
        # One more step than there are updates, so that the fields at the last time are read; it does not move.
        xs = jax.tree.map(lambda value: jnp.append(value, 0.0), inputs)
        arrays, static = eqx.partition((problem, step, metrics), eqx.is_inexact_array)
        constants, sampled = jax.tree.map(
            lambda a: a.reshape(*a.shape[:-1], points.shards, -1),
            ((points.innovations, points.multipliers), (fields, labels)),
        )
        row = History(
            jax.ShapeDtypeStruct((parts * m, *constants[0].shape[-2:]), labels.dtype),
            jax.ShapeDtypeStruct(start.theta.shape, start.theta.dtype),
        )
        nothing = jnp.zeros((m, m), start.theta.dtype)
        still = weights.Drive(
            jnp.zeros_like(start.theta),
            jnp.zeros((m, parts * m * times), start.theta.dtype),
            None if problem.linear_weights or not problem.direct else jnp.zeros_like(start.theta),
        )
        trained = start.theta if problem.direct else problem.parametrization.parameters(start.theta)
        slope = jnp.zeros(start.theta.shape[1], start.theta.dtype)
        state = State(trained, nothing, slope, nothing, still, None if inputs.momentum is None else trained)
        parameters = (arrays, start.known, *sampled, nodes, theta_star)
        _, out, _ = history_scan(_Step(static), times, (*constants, zetas), parameters, xs, state, row)
        L = out.L.reshape(times, m, -1)
        if not problem.task.mixture:
            L = jnp.concatenate([out.known, L], axis=2)
        correlation = jnp.einsum("kal,jbl->kjab", L, L)
        response = None if out.reached is None else _response(problem, step, inputs, out)
        overlap = out.known @ start.root
        measured = Measured(metrics.fields, out.train_metrics, out.weight_metrics)
        losses = out.train_loss, out.train_error
        observables = from_kernel(problem, correlation, overlap, out.norm, *losses, problem.rho, response, measured)
        return observables, jnp.asarray(True)


def _response(problem, step, inputs: Inputs, out: Readout) -> Float[Array, "time step m m"]:
    """R(k, j) from the normals of the gradient noise, which are kicks of known size: the normals zeta of a step
    reach theta_k through all that they added to the weights, reached(k, zeta) = sum_i R(k, i) added(i, zeta).

    Block triangular in (i, zeta) with the noise itself on the diagonal, so well conditioned. A step without noise (learning
    rate 0) moves nothing: a kick there is one in the step before. In directions of the columns that the loss does not see
    (the sum of a softmax's) there is no noise, and a kick only shrinks with the ridge. All NaN where the noise cannot tell: the
    first step has none, or none in directions that the loss does see (hidden units that are equal).
    """
    assert out.reached is not None and out.added is not None
    # (group, time, m, step, m)
    reached, added = (jnp.moveaxis(a, 2, 0)[:, :, :, :-1] for a in (out.reached, out.added[:-1]))
    groups, times, m, steps, _ = reached.shape
    own = jnp.moveaxis(jnp.diagonal(added, axis1=1, axis2=3), -1, 1)
    inverse = jax.vmap(jax.vmap(_pseudo_inverse))(own)
    reached, added = (jnp.einsum("gkajb,gjbc->gkajc", a, inverse) for a in (reached, added))
    earlier = jnp.tril(jnp.ones((steps, steps)), -1)[:, None, :, None]
    lower = (added * earlier).reshape(groups, steps * m, steps * m) + jnp.eye(steps * m, dtype=added.dtype)
    per_group = jax.vmap(_divided)(reached.reshape(groups, times * m, steps * m), lower).reshape(reached.shape)
    shares = problem.features.weights * problem.features.eigenvalues
    response = jnp.einsum("g,gkajb->kjab", shares, per_group)
    if m > 1:
        excess = weights.curvature_ratio(problem.features, problem.delta)[:, None]
        decay = 1 - inputs.ridge * step.factors(inputs.ridge, inputs.ratio, excess).drift
        decay = jnp.broadcast_to(decay, (groups, steps))
        unseen = jnp.eye(m) - own @ inverse
        response = response + jnp.einsum("g,gkj,gjab->kjab", shares, jax.vmap(_products_between)(decay), unseen)
        curvature = out.curvature[:-1]
        felt = jnp.max(jnp.abs(curvature @ unseen), axis=(0, 2, 3))
        told = felt <= jnp.finfo(felt.dtype).eps ** 0.5 * jnp.max(jnp.abs(curvature), axis=(1, 2))
    else:
        told = jnp.ones(steps, bool)
    noisy = jnp.any(own != 0, axis=(0, 2, 3))
    response = jnp.where(noisy[0] & jnp.all(told | ~noisy), response, jnp.nan)
    before = jax.lax.cummax(jnp.where(noisy, jnp.arange(steps), 0))
    after = jnp.arange(times)[:, None] > jnp.arange(steps)
    return jnp.where(after[..., None, None], response[:, before], 0.0)


def _pseudo_inverse(matrix: Float[Array, "m m"]) -> Float[Array, "m m"]:
    if matrix.shape == (1, 1):
        return jnp.where(matrix == 0, 0.0, 1 / jnp.where(matrix == 0, 1.0, matrix))
    root = inverse_root(matrix.T @ matrix, rank_floor(matrix.T @ matrix))
    return root @ root @ matrix.T


def _products_between(factors: Float[Array, " step"]) -> Float[Array, "time step"]:
    """Entry (k, j): the product of factors j + 1 to k - 1, 0 for k <= j."""

    def add(row, inputs):
        k, factor = inputs
        row = (row * factor).at[k].set(1.0)
        return row, row

    start = jnp.zeros_like(factors)
    _, rows = jax.lax.scan(add, start, (jnp.arange(factors.size), factors))
    return jnp.concatenate([start[None], rows])


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


def _kicked(task, r, labels, l, curvature, jump):
    """Loss of the gradient l by a kick -l `jump` of its own field, per `jump`. Noise that jumps (a visit of SGD moves its
    sample's field by l eta / B) needs the difference, not its limit l' l: across a kink, or at large rates, they differ much."""
    limit = jnp.sum(curvature * l, axis=1)
    # Below, the difference (and its derivative in the jump) would lose more digits than the limit is wrong by.
    smooth = jump < jnp.finfo(l.dtype).eps ** (1 / 3)
    kicked = columns.gradient(task, r - jnp.where(smooth, 0.0, jump) * l, labels)
    return jnp.where(smooth, limit, (l - kicked) / jnp.where(smooth, 1.0, jump))


class _Step:
    def __init__(self, static: Any):
        self.static = static

    def __call__(self, constants, parameters, x: Inputs, state: State, history: History, k):
        innovations, multipliers, zetas = constants
        arrays, known, fields, labels, nodes, theta_star = parameters
        problem, step, metrics = eqx.combine(arrays, self.static)
        task, features, delta, theta = problem.task, problem.features, problem.delta, state.theta
        if not problem.direct:
            theta = problem.parametrization.weights(theta)
        m = problem.m
        space = weights.Coefficients(problem.m_star + m) if zetas is None else weights.Particles(zetas)
        rows, directions, shards, local = history.gradients.shape
        samples = shards * local
        gradients = history.gradients.reshape(rows * directions, shards, local)
        innovations = innovations.reshape(-1, shards, local)
        past = (jnp.arange(rows) < k).astype(labels.dtype)
        past_gradients = jnp.repeat(past, directions)

        # Weights to fields. What comes with a sample is kept apart: it may carry derivatives, the innovations are constants.
        seen = weights.read(theta, known, not task.mixture, history.phi, past, k, features, space)
        to_known, to_innovations, to_gradients = spread(
            shards, seen.known, seen.L.reshape(m, -1), past_gradients * seen.P / jnp.sqrt(delta)
        )
        r = combination(to_known, fields) + combination(to_innovations, innovations) + combination(to_gradients, gradients)

        # Fields to weights: the mean gradient's coefficients on the past and on the innovations, Gram-Schmidt in two passes.
        # Sums over the samples are taken together, once for each pass: on many devices each costs one exchange.
        l = columns.gradient(task, r, labels)
        curvature, error = columns.curvature(task, r, labels), columns.error(task, r, labels)
        swing = None
        if multipliers is not None:
            z = multipliers[k]
            swing = l * z
            if step.order == 2:
                # A sample's noise within the step changes its own gradient within the step (Milstein's term: the double
                # integral of the standardized noise is (z² - 1 - skewness z) / 2).
                if x.skewness is None:
                    change, square = jnp.sum(curvature * l, axis=1), z**2 - 1
                else:
                    change = _kicked(task, r, labels, l, curvature, x.noise * x.skewness / delta)
                    square = z**2 - 1 - x.skewness * z
                swing = swing - (0.5 * x.noise / delta) * change * square
        first = totals(
            (dots(gradients, l), dots(innovations, l), products(l, fields), products(l, l)),
            tuple(None if a is None else jnp.sum(a, axis=-1) for a in (curvature, columns.loss(task, r, labels), error)),
            None if swing is None else (dots(gradients, swing), products(swing, swing)),
            jax.vmap(lambda r, y: field_sums(metrics.fields, task, r, y, mirror=True), (1, 0), -1)(r, labels),
        )
        (G, S, S_known, power), (curvature, loss, error), of_swing, train_metrics = jax.tree.map(lambda a: a / samples, first)
        G = past_gradients * G
        S = jnp.where((jnp.arange(rows) <= k)[:, None], S.reshape(m, rows, m), 0.0)
        to_mean, to_noise = spread(shards, G, None if of_swing is None else past_gradients * of_swing[0])
        rest = l - combination(to_mean, gradients)
        if swing is not None:
            # In law this is orthogonal to everything before and of power E[l l^T] times the multiplier's variance. Its
            # directions must be orthonormal in the sample too (or errors grow from step to step); the coefficients
            # removed on the way are sampling error and are dropped. Nothing cancels, so one pass suffices.
            swing = swing - combination(to_noise, gradients)
        second = totals(
            (dots(gradients, rest), products(rest, rest)),
            None if swing is None else (products(swing, rest), products(swing, swing)),
        )
        (again, left), of_swing_rest = jax.tree.map(lambda a: a / samples, second)
        again = past_gradients * again
        # Pythagoras; `again` is rounding, far smaller than any residual that is kept, so nothing is lost.
        heights, normalize = triangular_root(
            left - again @ again.T, jnp.diagonal(power), DROP if m == 1 else block_drop(labels.dtype)
        )
        zeta_drift = (G + again).reshape(m, rows, directions).at[:, k, :m].add(heights)
        zeta_noise = jnp.zeros_like(zeta_drift)
        phi = jax.lax.dynamic_update_index_in_dim(history.phi, seen.phi, k, 0)
        root = jnp.zeros_like(power)
        if swing is None or of_swing is None or of_swing_rest is None:
            to_mean, normalize = spread(shards, again, normalize)
            written = combination(normalize, rest - combination(to_mean, gradients))
        else:
            # The swing's product with the new direction is that with `rest`: what differs is a product of two roundings.
            shared = of_swing_rest[0] @ normalize.T
            # Here the difference may cancel; what is left of it must be more than rounding to be normalized.
            swing_normalize = inverse_root(
                of_swing_rest[1] - shared @ shared.T, block_drop(labels.dtype) * jnp.trace(jax.lax.stop_gradient(of_swing[1]))
            )
            to_mean, normalize, shared, swing_normalize = spread(shards, again, normalize, shared, swing_normalize)
            new = combination(normalize, rest - combination(to_mean, gradients))
            written = jnp.concatenate([new, combination(swing_normalize, swing - combination(shared, new))])
            root = square_root(power, rank_floor(power))
            zeta_noise = zeta_noise.at[:, k, m:].set(step.ahead(root, state.power, x.ratio))

        zeta_drift, zeta_noise = (a.reshape(m, rows * directions) / jnp.sqrt(delta) for a in (zeta_drift, zeta_noise))
        pulls = (S_known, known), (S, phi), zeta_drift
        zeta_noise, slope, kicks = x.noise * zeta_noise, state.slope, None
        if problem.direct:
            slope = weights.slopes(problem, theta)
            drive = weights.drive(theta, *pulls, curvature, weights.bend(problem, theta, slope), features)
            ahead = step.ahead(curvature, state.curvature, x.ratio)
            shrinkage = x.ridge * step.ahead(slope, state.slope, x.ratio)[:, None]
            decay = x.drift * features.eigenvalues[:, None, None] * ahead + shrinkage[:, None] * jnp.eye(m)
            excess = weights.curvature_ratio(features, delta)[:, None]
            factors = of_symmetric(
                lambda h: step.factors(x.drift * features.eigenvalues[:, None] * h + shrinkage, x.ratio, excess), ahead
            )
            moved, kicks = weights.update(
                theta, drive, state.drive, decay, x.drift, x.ridge, zeta_noise, factors, features, space
            )
        else:
            drive = weights.drive(theta, *pulls, jnp.zeros_like(curvature), None, features)
            moved = weights.update_parameters(problem, state.theta, drive, x.drift, x.ridge, zeta_noise, space)
        memory = None
        if x.momentum is not None and state.memory is not None:
            moved, memory = x.momentum.carry(state.theta, moved, state.memory)

        def of_noise(zetas):
            return zetas.reshape(m, features.groups, rows, directions)[..., m:]

        weight_metrics = {}
        if metrics.weights:
            weight_metrics = weight_means(metrics.weights, task, space.values(theta, nodes), theta_star, features.weights)

        # Kicks of parameters are no kicks of the weights; what several columns do unseen is known with the plain ridge only.
        several = m > 1 and (x.momentum is not None or not problem.linear_weights)
        no_response = multipliers is None or kicks is None or several
        readout = Readout(
            seen.known,
            seen.L,
            loss,
            error,
            weights.norm(theta, features, space),
            train_metrics,
            weight_metrics,
            curvature,
            None if no_response else of_noise(seen.zetas),
            None if no_response else of_noise(kicks),
        )
        return State(moved, curvature, slope, root, drive, memory), History(written, seen.phi), readout
