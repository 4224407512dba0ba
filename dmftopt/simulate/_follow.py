"""SGD on data of one's own, step by step as a recipe says."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from .._memory import check_memory
from ..protocol import Recipe
from ..tasks.losses import AbstractLoss


def queues(
    rows: Int[np.ndarray, "run n"], steps: Recipe, shuffled: bool, rng: np.random.Generator
) -> Int[np.ndarray, "run visit"]:
    """Which samples the runs see, one after the other, each of its own training set `rows`: in passes through it, each shuffled
    anew, or drawn with replacement."""
    visits, n = int(steps.batch_size.sum()), rows.shape[1]
    check_memory(f"{len(rows)} runs of {visits} visits", len(rows) * visits, "Use fewer epochs or splits.")
    if not shuffled:
        return np.take_along_axis(rows, rng.integers(n, size=(len(rows), visits)), axis=1)
    passes = [rng.permuted(rows, axis=1) for _ in range(-(-visits // n))]
    return np.concatenate(passes, axis=1)[:, :visits]


def follow(
    steps: Recipe, x: Any, y: Any, loss: AbstractLoss, queue: Int[np.ndarray, "run visit"], at: Int[np.ndarray, " record"]
) -> Float[Array, "record run m d"]:
    """Weights of each run after `at` steps, from 0 on, by optax; a column for each class where the loss is `per_class`. `queue`:
    the rows of `x` and `y` in the order in which they are seen."""
    sizes = np.asarray(steps.batch_size)
    width, m = int(sizes.max(initial=1)), len(np.unique(y)) if loss.per_class else 1
    # A step reads as many entries as the largest batch has, and drops those beyond its own.
    table = _Table(
        *(jnp.asarray(a, dtype=float) for a in (x, y, steps.learning_rate, steps.weight_decay, steps.constant_momentum)),
        *(jnp.asarray(a) for a in (np.pad(queue, ((0, 0), (0, width))), np.cumsum(sizes) - sizes, sizes, np.append(0, at))),
    )
    return _follow(table, loss, tuple(sorted(steps.optimizer.items())), width, m)


class _Table(NamedTuple):
    """Data, and what is done at each step: rates, decays, the momentum of all, where in the queue its batch starts, its size."""

    x: Array
    y: Array
    rates: Array
    decays: Array
    momentum: Array
    queue: Array
    starts: Array
    sizes: Array
    edges: Array


@eqx.filter_jit
def _follow(table: _Table, loss: AbstractLoss, described: tuple, width: int, m: int):
    x, y, rates, decays, momentum, queues, starts, sizes, edges = table
    optimizer = Recipe.chained(lambda k: rates[k], lambda k: decays[k], momentum, dict(described))

    def gradient(theta, k, queue):
        rows = jax.lax.dynamic_slice(queue, (starts[k],), (width,))
        seen, label = x[rows], y[rows]
        r = theta @ seen.T
        l = jax.vmap(loss.gradient, (1, 0), 1)(r, label) if loss.per_class else loss.gradient(r, label[None])
        taken = jnp.where(jnp.arange(width) < sizes[k], 1.0, 0.0).astype(l.dtype)
        return (l * taken[None]) @ seen / jnp.maximum(sizes[k], 1).astype(l.dtype)

    def run(queue):
        def step(k, state):
            theta, memory = state
            updates, memory = optimizer.update(gradient(theta, k, queue), memory, theta)
            return optax.apply_updates(theta, updates), memory

        def record(state, span):
            state = jax.lax.fori_loop(span[0], span[1], step, state)
            return state, state[0]

        theta = jnp.zeros((m, x.shape[1]), x.dtype)
        return jax.lax.scan(record, (theta, optimizer.init(theta)), jnp.stack([edges[:-1], edges[1:]], axis=1))[1]

    return jax.vmap(run, out_axes=1)(queues)
