"""Gradient-noise laws: the random multipliers M of each sample and step.

One update of every algorithm is theta <- theta - D eta h(theta) - X^T (l * M) / delta, with independent multipliers of mean
eta D. A law says their standard deviation, and how to draw them, standardized, from low-discrepancy uniforms.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Bool, Float

from .._checks import as_number, check_real, check_shape, front_door, is_concrete, without_derivative


class Multipliers(NamedTuple):
    """Of each step and sample: `standardized`, the multiplier less its mean given the past, over its standard deviation; and
    `shares`, that mean over its mean eta D over all samples. None where the past says nothing: then it is eta D for each."""

    standardized: Float[Array, "step *sample"]
    shares: Float[Array, "step *sample"] | None = None


class AbstractNoise(eqx.Module):
    """A law of gradient noise.

    `deterministic`: no multipliers are random. `discrete`: the step is the algorithm, not an approximation to continuous
    time. `batched`: the law depends on the protocol's batch size. `in_epochs`: it follows passes over the training set, so that
    grids must have their ends (`TimeGrid.of_epochs`). `workspace`: how many numbers for each multiplier drawing it takes, about,
    for estimates of memory.
    """

    deterministic: ClassVar[bool] = False
    discrete: ClassVar[bool] = False
    batched: ClassVar[bool] = True
    in_epochs: ClassVar[bool] = False
    workspace: ClassVar[int] = 1

    @abc.abstractmethod
    def deviation(self, learning_rate: Array, step_size: Array, visits: Array) -> Array:
        """Standard deviation of the multiplier. `visits` = B D / delta: the mean number of visits of a sample in a step D."""

    @abc.abstractmethod
    def standardized(
        self, uniforms: Float[Array, "step sample"], rotation: Float[Array, "step step"], visits: Float[Array, " step"]
    ) -> Float[Array, "step sample"]:
        """Multipliers less their mean, over their deviation. The first rows of `uniforms` are the most evenly spread."""

    def multipliers(
        self, uniforms: Float[Array, "step sample"], rotation: Float[Array, "step step"], visits: Float[Array, " step"]
    ) -> Multipliers:
        """`standardized`, for laws that know no past."""
        return Multipliers(self.standardized(uniforms, rotation, visits))

    def valid(self, visits: Float[Array, " step"]) -> Bool[Array, ""]:
        """Whether parameters are in their domain, for values that could not be checked because they are traced."""
        return jnp.asarray(True)

    @property
    def order(self) -> int:
        """Power of the step with which the error of a good step vanishes."""
        return 2

    def skewness(self, visits: Float[Array, " step"]) -> Float[Array, " step"] | None:
        """Of the multiplier, where in continuous time it jumps, all jumps being of one size, deviation * skewness. None: it does
        not."""
        return None

    def coarsening(self, step_sizes: Float[Array, " step"], visits: Float[Array, " step"]) -> Float[Array, " step"]:
        """Squared weights with which standardized multipliers of two steps add up to that of both (Richardson)."""
        return step_sizes

    def coarsened(self, fine: Multipliers, step_sizes: Float[Array, " step"], visits: Float[Array, " step"]) -> Multipliers:
        """The multipliers of pairs of steps, from those of each."""
        return Multipliers(paired(fine.standardized, self.coarsening(step_sizes, visits)))

    def epoch_starts(self, visits: Float[Array, " step"]) -> Float[Array, " step"] | None:
        """For laws that go through the training set in epochs, the first step of the epoch of each step. None for others."""
        return None

    def waiting(self, visits: Float[Array, " step"]) -> Multipliers | None:
        """The multipliers of a sample that has not been visited in the epoch and will not be in the step, where all such samples
        have the same and a sample's past does not tell whether it is one of them. None: there are none."""
        return None

    def continues(self, visits: Float[Array, " step"]) -> Float[Array, " step"]:
        """1 where what is averaged over the samples goes on smoothly from the step before, 0 where it may jump."""
        return jnp.ones_like(visits).at[0].set(0.0)

    def temperature(self, learning_rate: Array, batch_size: Array) -> Array | None:
        """The variance of the multiplier per time, over delta, where steps vanish: all that the limits in continuous time know
        of a law. None: it has no such limit."""
        return None


class NoNoise(AbstractNoise):
    """M = eta D: gradient flow, or full-batch gradient descent when the step is discrete."""

    deterministic: ClassVar[bool] = True
    batched: ClassVar[bool] = False

    def deviation(self, learning_rate, step_size, visits):
        return jnp.zeros_like(learning_rate)

    def standardized(self, uniforms, rotation, visits):
        return jnp.zeros_like(uniforms)

    def temperature(self, learning_rate, batch_size):
        return jnp.zeros_like(learning_rate)


class Brownian(AbstractNoise):
    """M = eta (D + sqrt(delta D / B) z), z ~ N(0, 1): stochastic gradient flow, the small-step diffusion limit of SGD."""

    def deviation(self, learning_rate, step_size, visits):
        return learning_rate * step_size / jnp.sqrt(visits)

    def standardized(self, uniforms, rotation, visits):
        return rotation @ ndtri(uniforms)

    def temperature(self, learning_rate, batch_size):
        return learning_rate**2 / batch_size


class Poisson(AbstractNoise):
    """M = eta (delta / B) N, N ~ Poisson(B D / delta): small-batch SGD itself, at finite learning rate.

    Counts jump where batch size, delta or the times move, so a derivative in one of those raises an error. At most `limit`
    visits per sample (epochs) in a run: with more, counts are as good as Gaussian, use Brownian or NoNoise.
    """

    limit: ClassVar[float] = 1e5

    workspace: ClassVar[int] = 3

    def deviation(self, learning_rate, step_size, visits):
        return learning_rate * step_size / jnp.sqrt(visits)

    def standardized(self, uniforms, rotation, visits):
        # Beyond the limit (where `valid` says no) the sums below would be long, and in float32 endless.
        visits = visits * jnp.minimum(1.0, self.limit / jnp.sum(visits))
        counts = _poisson_bridge(jnp.asarray(uniforms), visits)
        return (counts - visits[:, None]) / jnp.sqrt(visits)[:, None]

    def skewness(self, visits):
        return 1 / jnp.sqrt(visits)

    def valid(self, visits):
        return jnp.sum(visits) <= self.limit

    def coarsening(self, step_sizes, visits):
        return visits

    def temperature(self, learning_rate, batch_size):
        return learning_rate**2 / batch_size


@front_door
class Shuffled(AbstractNoise):
    """Epochs: every sample is visited once in each pass over the training set, at a uniform time of it, as data loaders do.

    M = eta (delta / B) N with N = 1 in the step in which the sample is visited, else 0. With `reshuffle=False` the order of the
    first pass is that of all.

    A grid must have the ends of all passes among its times; the last may end before all samples were visited. The clock is that
    of epochs: visits do not depend on batch sizes, which have a derivative on a grid made by `TimeGrid.of_epochs`. How many
    epochs there are has none.
    """

    reshuffle: bool = eqx.field(static=True, default=True)
    in_epochs: ClassVar[bool] = True
    workspace: ClassVar[int] = 3

    def __check_init__(self):
        if not isinstance(self.reshuffle, bool):
            raise ValueError(f"reshuffle must be True or False, got {self.reshuffle!r}. False: the same order in every epoch.")

    @property
    def order(self):
        # Of samples that are known to be visited nothing tells where in the step.
        return 2 if self.reshuffle else 1

    def deviation(self, learning_rate, step_size, visits):
        epochs = self._epochs(visits)
        return learning_rate * step_size * epochs.deviation / visits

    def standardized(self, uniforms, rotation, visits):
        return self.multipliers(uniforms, rotation, visits).standardized

    def multipliers(self, uniforms, rotation, visits):
        epochs = self._epochs(visits)
        # Where in each epoch a sample is visited: the most even of the uniforms.
        position = uniforms[epochs.number if self.reshuffle else jnp.zeros_like(epochs.number)]
        waiting = (position >= epochs.begun[:, None]).astype(uniforms.dtype)
        return epochs.given_past(waiting, jnp.where(position < epochs.ended[:, None], waiting, 0.0))

    def coarsened(self, fine, step_sizes, visits):
        waiting, visited = self._epochs(visits).of(fine)
        coarse = self._epochs(jnp.sum(visits.reshape(-1, 2), axis=1))
        return coarse.given_past(waiting[::2], visited[::2] + visited[1::2])

    def epoch_starts(self, visits):
        epochs = self._epochs(visits)
        # Where the order is known all that the past says is of the very samples that are visited.
        first = jnp.where(epochs.begun == 0, jnp.arange(visits.shape[0]), 0)
        return jnp.where(epochs.known, 0, jax.lax.cummax(first)).astype(visits.dtype)

    def waiting(self, visits):
        if not self.reshuffle:
            # When a sample was visited in the last epoch tells when it will be in this one.
            return None
        epochs = self._epochs(visits)
        return epochs.given_past(jnp.ones_like(visits), jnp.zeros_like(visits))

    def continues(self, visits):
        return (self._epochs(visits).begun > 0).astype(visits.dtype)

    def _epochs(self, visits: Array) -> "_Epochs":
        return _Epochs(visits, self.reshuffle)


# What rounding may take off or add to the end of an epoch, of the step before it.
ROUNDING_OF_EPOCHS = 0.01


class _Epochs:
    """Steps as parts of epochs, from the mean visits of a sample in each: `number` of the epoch, the share of it `begun` before
    and `ended` after the step, whether the step is its `last`, and whether the order is `known` from the epoch before. `hazard`:
    the chance that a sample not yet visited is visited in it; `deviation`: that of visits given the past."""

    def __init__(self, visits: Float[Array, " step"], reshuffle: bool):
        visits = _whole_numbers(visits, "noise.Shuffled", "epochs (build the grid with TimeGrid.of_epochs)")
        ends = jnp.cumsum(visits)
        whole = jnp.round(ends)
        self.last = jnp.abs(ends - whole) < ROUNDING_OF_EPOCHS * visits
        ends = jnp.where(self.last, whole, ends)
        starts = jnp.concatenate([jnp.zeros(1, visits.dtype), ends[:-1]])
        self.number = jnp.floor(starts).astype(int)
        self.begun, self.ended = starts - jnp.floor(starts), ends - jnp.floor(starts)
        self.known = (self.number > 0) & (not reshuffle)
        self.hazard = jnp.where(self.last, 1.0, (self.ended - self.begun) / (1 - self.begun))
        self.deviation = jnp.sqrt(jnp.where(self.known, 0.0, (self.ended - self.begun) * (1 - self.hazard)))

    def given_past(self, waiting: Float[Array, "step *sample"], visited: Float[Array, "step *sample"]) -> Multipliers:
        """From who had not been visited in the epoch, and who was in the step."""

        def of_steps(values):
            return values.reshape(-1, *[1] * (waiting.ndim - 1))

        deviation, hazard, known = of_steps(self.deviation), of_steps(self.hazard), of_steps(self.known)
        random = deviation > 0
        z = (visited - hazard * waiting) / jnp.where(random, deviation, 1.0)
        shares = jnp.where(known, visited / of_steps(self.ended - self.begun), waiting / of_steps(1 - self.begun))
        return Multipliers(jnp.where(random, z, 0.0), shares)

    def of(self, multipliers: Multipliers) -> tuple[Float[Array, "step sample"], Float[Array, "step sample"]]:
        """Who had not been visited in the epoch (where the order is known: who was in the step), and who was in the step."""
        z, shares = multipliers
        assert shares is not None
        there = (shares > 0).astype(shares.dtype)
        drawn = jnp.round(z * self.deviation[:, None] + self.hazard[:, None] * there)
        return there, jnp.where((self.known | self.last)[:, None], there, drawn)


class Bernoulli(AbstractNoise):
    """M = eta D s / b, s ~ Bernoulli(b): SGD with extensive batches, each step using a fraction `fraction` = b of the
    training set. The protocol's batch size plays no part; time counts D of the grid per step."""

    fraction: Any = eqx.field(converter=as_number)
    discrete: ClassVar[bool] = True
    batched: ClassVar[bool] = False

    def __check_init__(self):
        check_real("fraction", self.fraction, minimum=0.0, exclusive=True, cure="It is batch size / training samples.")
        check_shape("fraction", self.fraction, ((),), "Use jax.vmap for a sweep.")
        if is_concrete(self.fraction) and np.any(np.asarray(self.fraction) > 1):
            raise ValueError(f"fraction must be at most 1, got {self.fraction}. It is batch size / training samples.")

    def valid(self, visits):
        b = jnp.asarray(self.fraction)
        return (b > 0) & (b <= 1)

    def deviation(self, learning_rate, step_size, visits):
        b = jnp.asarray(self.fraction, dtype=step_size.dtype)
        return learning_rate * step_size * jnp.sqrt(jnp.maximum((1 - b) / b, 0.0))

    def standardized(self, uniforms, rotation, visits):
        b = _whole_numbers(jnp.asarray(self.fraction, dtype=uniforms.dtype), "noise.Bernoulli", "fraction")
        taken = (rotation @ ndtri(uniforms) < ndtri(b)).astype(uniforms.dtype)
        full = b >= 1
        return jnp.where(full, 0.0, (taken - b) / jnp.sqrt(jnp.where(full, 1.0, b * (1 - b))))


def paired(values: Float[Array, "step ..."], squared_weights: Float[Array, " step"]) -> Float[Array, "pair ..."]:
    """Normalized sums of pairs."""
    w = jnp.sqrt(squared_weights).reshape(-1, 2, *[1] * (values.ndim - 1))
    total = jnp.sum(w * values.reshape(*w.shape[:2], *values.shape[1:]), axis=1)
    return total / jnp.sqrt(jnp.sum(w**2, axis=1))


def _whole_numbers(value: Array, law: str, parameters: str) -> Array:
    """The identity, with a derivative that is an error instead of a silent zero."""
    return without_derivative(
        value,
        f"{law} draws whole numbers, which have no derivative in {parameters}. noise.Brownian() is differentiable in "
        "batch size, delta and times; otherwise hold them fixed: differentiate in one argument, or with equinox.filter_grad "
        "(for which Python numbers are fixed; jax.grad differentiates those too), or use jax.lax.stop_gradient.",
    )


def _poisson_bridge(uniforms: Float[Array, "step sample"], visits: Float[Array, " step"]) -> Float[Array, "step sample"]:
    """Independent Poisson(visits) counts: the first uniform draws a sample's total, the others split it binomially down a
    binary tree over the steps, largest intervals first."""
    visits = _whole_numbers(visits, "noise.Poisson", "batch_size, delta or times")
    steps, samples = uniforms.shape
    edges = jnp.concatenate([jnp.zeros(1, visits.dtype), jnp.cumsum(visits)])
    # A row more, for the splits that fill up a batch: none of its none.
    counts = jnp.zeros((steps + 1, samples), uniforms.dtype).at[0].set(poisson_quantile(uniforms[0], edges[-1]))

    def split(counts, batch):
        start, middle, end, row = batch
        whole = edges[end] - edges[start]
        chance = jnp.where(end > start, (edges[middle] - edges[start]) / jnp.where(end > start, whole, 1.0), 1.0)
        here = counts[start]
        taken = _binomial_quantile(uniforms[row], here, chance[:, None])
        return counts.at[start].set(taken).at[middle].set(here - taken), None

    return jax.lax.scan(split, counts, _splits(steps))[0][:steps]


# How many splits are made at once: one program for all of a tree, and few idle places in it.
_SPLITS = 4


def _splits(steps: int) -> tuple[np.ndarray, ...]:
    """The splits of a binary tree over the steps, in batches of one level each: where an interval starts, is split and ends, and
    the row of uniforms by which it is."""
    batches, row, width = [], 1, 1 << (steps - 1).bit_length()
    while width > 1:
        # Intervals that would be split beyond the last step are not.
        start = np.arange(0, steps - width // 2, width)
        splits = np.stack([start, start + width // 2, np.minimum(start + width, steps), row + np.arange(start.size)])
        idle = np.array([steps, steps, steps, 0])[:, None].repeat(-start.size % _SPLITS, axis=1)
        batches.append(np.concatenate([splits, idle], axis=1).reshape(4, -1, _SPLITS))
        row, width = row + start.size, width // 2
    return tuple(np.concatenate(batches, axis=1)) if batches else tuple(np.zeros((4, 0, _SPLITS), int))


def poisson_quantile(u: Array | np.ndarray, mean: Array) -> Array:
    """Smallest k with P(Poisson(mean) <= k) > u."""
    return _quantile(u, mean, jnp.sqrt(mean), jnp.full_like(mean, jnp.inf), lambda k: jnp.log(mean / (k + 1)))


def _binomial_quantile(u: Array | np.ndarray, n: Array, p: Array) -> Array:
    """Smallest k with P(Binomial(n, p) <= k) > u."""
    inside = jnp.where(p < 1, p, 0.5)
    odds = jnp.log(inside) - jnp.log1p(-inside)
    return _quantile(u, n * p, jnp.sqrt(n * p * (1 - p)), n, lambda k: jnp.log(jnp.maximum(n - k, 1) / (k + 1)) + odds)


def _quantile(u: Array | np.ndarray, mean: Array, deviation: Array, top: Array, log_ratio: Callable) -> Array:
    """Quantile of a unimodal law on 0..top by summing its probabilities, given log p(k + 1) / p(k).

    Sums run over 12 deviations either side of the mean and are normalized by their own total: started from log p(0) = -mean
    they would lose the tails, and in float32 the law, to rounding at large means.
    """
    mean, deviation, top = (jnp.broadcast_to(a, jnp.broadcast_shapes(u.shape, top.shape)) for a in (mean, deviation, top))
    first = jnp.maximum(jnp.floor(mean - 12 * deviation), 0.0)
    last = jnp.minimum(jnp.ceil(mean + 12 * deviation + 30), top)
    start = (first, -jnp.minimum(mean, 72.0), jnp.zeros_like(mean))

    def add(k, log_p, total):
        return k + 1, log_p + log_ratio(k), total + jnp.where(k <= last, jnp.exp(log_p), 0.0)

    *_, norm = jax.lax.while_loop(lambda s: jnp.any(s[0] <= last), lambda s: add(*s), start)

    def body(state):
        following = add(*state[:3])
        reached = (following[2] > u * norm) | (state[0] >= last)
        return *following, jnp.where(reached, state[3], state[0] + 1)

    return jax.lax.while_loop(lambda s: jnp.any(s[3] >= s[0]), body, (*start, first))[3]
