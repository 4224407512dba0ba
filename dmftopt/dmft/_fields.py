"""The field side: the law of one training sample, as a population of samples with the inner product <a, b> = mean of a b.
Equations (5) to (9) of README.md.

Everything over the samples is laid out (..., shard, local), see `_orthogonal`. Sums over the samples are taken together, once for
each of the two passes of Gram-Schmidt: on many devices each costs one exchange.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..numerics.matrices import inverse_root, rank_floor, square_root, triangular_root
from ..problem import Problem
from ..protocol.noise import Multipliers
from ..results.measure import field_sums
from ..results.metrics import AbstractFieldMetric
from ..tasks import AbstractTask
from ..tasks import columns as columns
from ._adaptive import Gains
from ._orthogonal import block_drop, combination, dots, drop, products, spread, totals
from ._rows import Family
from ._solver import Curvature, Inputs
from ._step import AbstractStep
from ._weights import Reading


class Past(NamedTuple):
    """The directions of all rows, and which rows are written: `gradients` one after the other (those of the m mean gradients of a
    row, then those of its m swings), `innovations` of the m columns of phi, `written` (row,) 1 or 0. In epochs, `differences`:
    gradients of the samples' twins less their own, and `of_epoch` (row,) 1 for the written rows of this one."""

    gradients: Family
    innovations: Float[Array, "column *sample"]
    written: Float[Array, " row"]
    differences: Family | None = None
    of_epoch: Float[Array, " row"] | None = None

    def each(self, rows: Float[Array, " row"]) -> Float[Array, " {self.gradients.shape[0]}"]:
        """For each direction, what is so for each row."""
        return jnp.repeat(rows, self.gradients.shape[0] // rows.shape[0])

    @property
    def gradients_written(self) -> Float[Array, " {self.gradients.shape[0]}"]:
        return self.each(self.written)

    def difference(
        self, coefficients: Float[Array, "m {self.gradients.shape[0]}"], shards: int
    ) -> Float[Array, "m shard local"] | None:
        """By what a combination of the directions is more for the twins."""
        if self.differences is None or self.of_epoch is None:
            return None
        (shared,) = spread(shards, self.each(self.of_epoch)[None] * coefficients)
        return combination(shared, self.differences)


class Sample(NamedTuple):
    """What the samples come with: their known fields (as normals, or indicators of clusters), and labels."""

    known: Float[Array, "m_star shard local"]
    labels: Float[Array, "shard local"]


class Twins(NamedTuple):
    """Of the twins of the samples, which have not been visited in the epoch: what l is multiplied by in their share of the mean
    gradient, and in the swing."""

    share: Array
    swing: Array


class Gradient(NamedTuple):
    """Per sample: l = d loss / d r, and dl / dr (those of its twin where it has one); l times the sample's share of the mean
    gradient; `weighed`, `weighed_curvature`: l and dl / dr times its weight in averages, which is the share, or 1 for twins; loss
    and error; and the swing n, None without gradient noise."""

    l: Float[Array, "m shard local"]
    shared: Float[Array, "m shard local"]
    weighed: Float[Array, "m shard local"]
    curvature: Float[Array, "m m shard local"]
    weighed_curvature: Float[Array, "m m shard local"]
    loss: Float[Array, "shard local"]
    error: Float[Array, "shard local"] | None
    swing: Float[Array, "m shard local"] | None
    twins: Twins | None


class Means(NamedTuple):
    """Over the samples, equation (7): coefficients `G` of l on the past directions and `S` on the innovations, its products
    `S_known` with the known fields, the power E[l l^T] of the noise, `own` products (the same unless samples have shares), and
    means of dl / dr, loss, error and metrics. `in_sample`: what Gram-Schmidt is to remove, the same as G but for twins."""

    G: Float[Array, "m row*direction"]
    in_sample: Float[Array, "m row*direction"]
    S: Float[Array, "m row m"]
    S_known: Float[Array, "m m_star"]
    power: Float[Array, "m m"]
    own: Float[Array, " m"]
    curvature: Curvature
    loss: Array
    error: Array | None
    metrics: dict[str, Array]


class SwingMeans(NamedTuple):
    """Of the swing: coefficients on the past directions, and its own products."""

    G: Float[Array, "m row*direction"]
    power: Float[Array, "m m"]


class Pull(NamedTuple):
    """What the field side hands to the weight side: coefficients of the mean gradient on the known directions, on phi and on
    the zetas (8), root of the noise power (9) (0 without gradient noise), mean curvature."""

    known: Float[Array, "m m_star"]
    phi: Float[Array, "m row m"]
    zetas: Float[Array, "m row direction"]
    power_root: Float[Array, "m m"]
    curvature: Float[Array, "m m"]


def fields(reading: Reading, sample: Sample, past: Past, delta: Array) -> Float[Array, "m shard local"]:
    """r_k = sum_j L(k, j) xi_j + (1/sqrt(delta)) sum_{j<k} P(k, j) g^_j, equation (5).

    What comes with a sample is kept apart: it may carry derivatives, the innovations are constants."""
    m, shards = reading.L.shape[0], sample.labels.shape[0]
    to_known, to_innovations, to_gradients = spread(
        shards, reading.known, reading.L.reshape(m, -1), past.gradients_written[None] * reading.P / jnp.sqrt(delta)
    )
    r = combination(to_known, sample.known) + combination(to_innovations, past.innovations)
    return r + combination(to_gradients, past.gradients)


def of_twins(reading: Reading, r: Float[Array, "m shard local"], past: Past, delta: Array) -> Float[Array, "m shard local"]:
    """The fields of the samples' twins (38)."""
    more = past.difference(reading.P / jnp.sqrt(delta), r.shape[1])
    return r if more is None else r + more


def gradient(
    task: AbstractTask,
    r: Float[Array, "m shard local"],
    at: Float[Array, "m shard local"],
    labels: Float[Array, "shard local"],
    multipliers: Multipliers | None,
    waiting: Multipliers | None,
) -> Gradient:
    """Without the swing. `at`: the fields of the twins, where there are. `multipliers`: those of this step, (shard, local) each;
    None without gradient noise. `waiting`: those of the twins."""
    # A sample that has not been visited is its twin, and of those that have been l is not asked.
    l, curvature = columns.gradient(task, at, labels), columns.curvature(task, at, labels)
    loss, error = columns.loss(task, r, labels), columns.error(task, r, labels)
    if multipliers is None or multipliers.shares is None:
        return Gradient(l, l, l, curvature, curvature, loss, error, None, None)
    share = multipliers.shares
    shared = share[None] * l
    if waiting is None or waiting.shares is None:
        return Gradient(l, shared, shared, curvature, share[None, None] * curvature, loss, error, None, None)
    return Gradient(l, shared, l, curvature, curvature, loss, error, None, Twins(waiting.shares, waiting.standardized))


def power(of: Gradient) -> Float[Array, " m"]:
    """E[l²] of each column, over the samples that are being visited."""
    return jnp.sum(of.weighed * of.l, axis=(1, 2)) / of.loss.size


def with_swing(
    task: AbstractTask,
    step: AbstractStep,
    x: Inputs,
    problem: Problem,
    r: Float[Array, "m shard local"],
    labels: Float[Array, "shard local"],
    of: Gradient,
    multipliers: Multipliers | None,
    gains: Gains | None,
) -> Gradient:
    """The same with the swing (6)."""
    if multipliers is None:
        return of
    (z, share), l, curvature, delta = multipliers, of.l, of.curvature, problem.delta
    swing = l * z[None]
    # In epochs a sample is visited once at most in a step: no noise acts on itself.
    # Where it is a velocity that is kicked, a sample's own field follows later.
    if step.order >= 2 and share is None and x.friction is None:
        kick = l if gains is None else _own_kick(problem, gains)[:, None, None] * l
        # Milstein's term (6): a sample's noise within the step changes its own gradient within the step. The double integral of
        # the standardized noise is (z² - 1 - skewness z) / 2.
        if x.skewness is None:
            change, square = jnp.sum(curvature * kick[None], axis=1), z**2 - 1
        else:
            change = _kicked(task, r, labels, l, kick, curvature, x.deviation * x.skewness / delta)
            square = z**2 - 1 - x.skewness * z
        swing = swing - (0.5 * x.deviation / delta) * change * square[None]
    return of._replace(swing=swing)


def _own_kick(problem: Problem, gains: Gains) -> Float[Array, " m"]:
    """By what a sample's visit moves its own field, over what SGD's does."""
    features = problem.features
    return gains.columns * jnp.sum(features.weights * features.eigenvalues * gains.groups)


def _kicked(task, r, labels, l, kick, curvature, jump):
    """Loss of the gradient l by a kick -`kick` `jump` of its own field, per `jump`. Noise that jumps (a visit of SGD moves its
    sample's field by l eta / B) needs the difference, not its limit l' l: across a kink, or at large rates, they differ much."""
    limit = jnp.sum(curvature * kick[None], axis=1)
    # Below, the difference (and its derivative in the jump) would lose more digits than the limit is wrong by.
    smooth = jump < jnp.finfo(l.dtype).eps ** (1 / 3)
    kicked = columns.gradient(task, r - jnp.where(smooth, 0.0, jump) * kick, labels)
    return jnp.where(smooth, limit, (l - kicked) / jnp.where(smooth, 1.0, jump))


def means(
    task: AbstractTask,
    of: Gradient,
    r: Float[Array, "m shard local"],
    sample: Sample,
    past: Past,
    k: Array,
    metrics: dict[str, AbstractFieldMetric],
) -> tuple[Means, SwingMeans | None]:
    """The first pass, over the samples at once."""
    m, rows = of.l.shape[0], past.written.shape[0]
    # What judges the solution has no derivative.
    H_square = jnp.sum(jax.lax.stop_gradient(of.curvature) ** 2, axis=(0, 1))
    sums = totals(
        (
            *(dots(family, of.weighed) for family in (past.gradients, past.innovations)),
            products(of.weighed, sample.known),
            products(of.weighed, of.l),
            jnp.sum(of.shared**2, axis=-1),
        ),
        None if past.differences is None else (dots(past.differences, of.weighed), dots(past.gradients, of.shared)),
        tuple(None if a is None else jnp.sum(a, axis=-1) for a in (of.weighed_curvature, H_square, of.loss, of.error)),
        None if of.swing is None else (dots(past.gradients, of.swing), products(of.swing, of.swing)),
        jax.vmap(lambda r, y: field_sums(metrics, task, r, y, mirror=True), (1, 0), -1)(r, sample.labels),
    )
    (G, S, S_known, power, own), of_twins, (curvature, square, loss, error), swing, measured = jax.tree.map(
        lambda a: a / sample.labels.size, sums
    )
    in_sample = G
    if of_twins is not None and of.twins is not None and past.of_epoch is not None:
        G, in_sample = G + past.each(past.of_epoch)[None] * of_twins[0], of_twins[1]
        own = of.twins.share * jnp.diagonal(power)
    S = jnp.where((jnp.arange(rows) <= k)[None, :, None], S.reshape(m, rows, m), 0.0)
    written = past.gradients_written[None]
    quadratic = jax.lax.stop_gradient(jnp.trace(power) / jnp.maximum(2 * loss, jnp.finfo(loss.dtype).tiny))
    of_loss = Curvature(curvature, square, quadratic)
    found = Means(written * G, written * in_sample, S, S_known, power, own, of_loss, loss, error, measured)
    return found, None if swing is None else SwingMeans(written * swing[0], swing[1])


def directions(
    of: Gradient, mean: Means, swing_mean: SwingMeans | None, past: Past, k: Array, order: int
) -> tuple[Pull, Float[Array, "direction shard local"], Float[Array, "direction shard local"] | None]:
    """The second pass, and the new directions g^_k: of the mean gradient (8), then of the swing (9); and by what they are
    more for the twins (38). `order`: of the derivatives that must be right."""
    m, rows = of.l.shape[0], past.written.shape[0]
    shards, samples = of.loss.shape[0], of.loss.size
    to_mean, to_swing = spread(shards, mean.in_sample, None if swing_mean is None else swing_mean.G)
    rest, swing = of.shared - combination(to_mean, past.gradients), of.swing
    if swing is not None:
        # In law this is orthogonal to everything before. Its directions must be orthonormal in the sample too (or errors grow
        # from step to step); the coefficients removed on the way are sampling error and are dropped. Nothing cancels, so one
        # pass suffices.
        swing = swing - combination(to_swing, past.gradients)
    sums = totals(
        (dots(past.gradients, rest), products(rest, rest)),
        None if swing is None else (products(swing, rest), products(swing, swing)),
    )
    (again, left), swing_left = jax.tree.map(lambda a: a / samples, sums)
    again = past.gradients_written[None] * again
    # Pythagoras; `again` is rounding, far smaller than any residual that is kept, so nothing is lost.
    heights, normalize = triangular_root(left - again @ again.T, mean.own, drop(m, of.l.dtype))
    twins = None
    if of.twins is not None:
        heights, twins = _of_twins(of, of.twins, mean, past, order)
        # What has no direction in law has none in the sample.
        normalize = jnp.where(jnp.diagonal(heights) > 0, 1.0, 0.0)[:, None] * normalize
    zetas = (mean.G + again).reshape(m, rows, -1).at[:, k, :m].add(heights)
    if swing is None or swing_mean is None or swing_left is None:
        to_mean, normalize = spread(shards, again, normalize)
        new = combination(normalize, rest - combination(to_mean, past.gradients))
        return Pull(mean.S_known, mean.S, zetas, jnp.zeros_like(mean.power), mean.curvature.mean), new, None
    # The swing's product with the new direction is that with `rest`: what differs is a product of two roundings.
    shared = swing_left[0] @ normalize.T
    # Here the difference may cancel; what is left of it must be more than rounding to be normalized.
    floor = block_drop(of.l.dtype) * jnp.trace(jax.lax.stop_gradient(swing_mean.power))
    swing_normalize = inverse_root(swing_left[1] - shared @ shared.T, floor, order)
    to_mean, normalize, shared, swing_normalize = spread(shards, again, normalize, shared, swing_normalize)
    new = combination(normalize, rest - combination(to_mean, past.gradients))
    of_swing = combination(swing_normalize, swing - combination(shared, new))
    root = square_root(mean.power, rank_floor(mean.power), order)
    new = jnp.concatenate([new, of_swing])
    pull = Pull(mean.S_known, mean.S, zetas, root, mean.curvature.mean)
    return pull, new, None if twins is None else twins - new


def _of_twins(
    of: Gradient, twins: Twins, mean: Means, past: Past, order: int
) -> tuple[Float[Array, "m m"], Float[Array, "direction shard local"]]:
    """Heights of the mean gradient, and the twins' new directions: orthonormal in law, that is over all samples and all times at
    which each could be visited. Few samples wait at the end of an epoch to tell."""
    shards = of.l.shape[1]
    # A difference of what may cancel.
    heights, normalize = triangular_root(twins.share * mean.power - mean.G @ mean.G.T, mean.own, block_drop(of.l.dtype))
    of_swing = twins.swing * inverse_root(mean.power, rank_floor(mean.power), order)
    to_past, normalize, of_swing = spread(shards, mean.G, normalize, of_swing)
    rest = twins.share * of.l - combination(to_past, past.gradients)
    more = past.difference(mean.G, shards)
    new = combination(normalize, rest if more is None else rest - more)
    return heights, jnp.concatenate([new, combination(of_swing, of.l)])
