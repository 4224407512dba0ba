"""SGD on random training sets of one table, tested on what is left of it."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import simulate
from ..numerics.ties import shares_of_largest
from ..protocol import Recipe
from ..tasks.losses import AbstractLoss

# A split on which the loss ends so many times higher than it began has diverged: no mean means anything then.
_DIVERGED = 10.0


class Tested(NamedTuple):
    """Mean over splits of what is tested (time,), its standard error, and on how many splits SGD diverged."""

    mean: np.ndarray
    error: np.ndarray
    diverged: int


def on_splits(
    x: np.ndarray,
    y: np.ndarray,
    loss: AbstractLoss,
    steps: Recipe,
    at: Int[np.ndarray, " time"],
    splits: int,
    shuffled: bool,
    rng: np.random.Generator,
) -> tuple[Tested, Tested]:
    """Losses and 0-1 errors after so many steps."""
    orders = rng.permuted(np.tile(np.arange(len(y)), (splits, 1)), axis=1)
    train, test = orders[:, : steps.samples], orders[:, steps.samples :]
    weights = simulate.follow(steps, x, y, loss, simulate.queues(train, steps, shuffled, rng), at)
    seen, labels = jnp.asarray(x, dtype=float), jnp.asarray(y, dtype=float)
    losses, errors = (np.asarray(a, dtype=float) for a in _tested(weights, seen, labels, jnp.asarray(test), loss))
    if not np.all(np.isfinite(losses)):
        raise RuntimeError("SGD on the data became infinite, in theory it does not. Lower the learning rate.")
    means = losses.mean(axis=2)
    diverged = int(np.sum(means[-1] > _DIVERGED * means[0]))

    def tested(values: np.ndarray) -> Tested:
        return Tested(values.mean(axis=(1, 2)), _error(values, test, len(y)), diverged)

    return tested(losses), tested(errors)


@eqx.filter_jit
def _tested(
    weights: Float[Array, "time split m d"], x: Array, y: Array, test: Int[Array, "split left"], loss: AbstractLoss
) -> tuple[Float[Array, "time split left"], Float[Array, "time split left"]]:
    def of_split(given):
        theta, left = given
        r, label = theta @ x[left].T, y[left]
        if not loss.per_class:
            return loss(r[0], label), 0.5 * (1 - jnp.sign(r[0] * label))
        own = jnp.arange(r.shape[0], dtype=label.dtype)[:, None] == label[None]
        return jax.vmap(loss, (1, 0))(r, label), 1 - jnp.sum(jnp.where(own, shares_of_largest(r), 0.0), axis=0)

    return jax.lax.map(lambda theta: jax.lax.map(of_split, (theta, test)), weights)


def _error(values: Float[np.ndarray, "time split left"], test: np.ndarray, samples: int) -> np.ndarray:
    """Over splits, and over the samples of the table, of what they are in the mean when left out: as splits share one table, in
    quadrature."""
    place = test.ravel()
    count = np.bincount(place, minlength=samples)
    totals = np.stack([np.bincount(place, weights=row.ravel(), minlength=samples) for row in values])
    means = totals[:, count > 0] / count[count > 0]
    over_samples = means.std(axis=1, ddof=1) / np.sqrt(np.sum(count > 0))
    return np.hypot(values.mean(axis=2).std(axis=1, ddof=1) / np.sqrt(len(test)), over_samples)
