"""Gram-Schmidt against a write-once history."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

# A vector whose residual variance is below this fraction of its own is taken to lie in the span of its past: its new
# direction is dropped (coefficient 0). Rank deficiency is normal (smooth paths); with 1e-12 one run in eight exploded.
DROP = 1e-9


def remove(
    vector: Float[Array, " n"], family: Float[Array, "row n"], past: Float[Array, " row"]
) -> tuple[Float[Array, " row"], Float[Array, " n"]]:
    """Coefficients of `vector` on the rows of `family` where `past` is 1, by two passes of Gram-Schmidt, and what is left of
    the vector. The mask sits on the coefficients, so the history itself is never copied."""
    total = jnp.zeros_like(past)
    for _ in range(2):
        coefficients = past * (family @ vector)
        total = total + coefficients
        vector = vector - coefficients @ family
    return total, vector


def normalized(residual: Array, variance: Array, own: Array) -> tuple[Array, Array]:
    """Residual over its length, and the length; both 0 where the residual variance is negligible beside its `own`."""
    inverse, length = reciprocal_length(variance, own)
    return residual * inverse, length


def reciprocal_length(variance: Array, own: Array, drop: float = DROP) -> tuple[Array, Array]:
    """1 / length and length of a residual; both 0 where its variance is negligible beside its `own`."""
    keep = variance > drop * own
    length = jnp.sqrt(jnp.where(keep, variance, 1.0))
    return jnp.where(keep, 1 / length, 0.0), jnp.where(keep, length, 0.0)


# Vectors over the samples are laid out (shard, local), one row per device. Sums are taken within a shard first, and those of
# one stage of a step then cross the devices together: stacked, they are one reduction. So are, in reverse mode, the cotangents of
# coefficients that were handed out to the shards together.


def dots(family: Float[Array, "row shard local"], vector: Float[Array, "shard local"]) -> Float[Array, "row shard"]:
    """Sums over each shard of the products of `vector` with the rows of `family`."""
    # Batched products want the batch first: otherwise XLA copies the whole family in another order. Moved here, where on its
    # own device the shard axis is 1, it costs nothing.
    return jnp.einsum("srl,sl->rs", jnp.moveaxis(family, 1, 0), vector)


def combination(coefficients: Float[Array, "row shard"], family: Float[Array, "row shard local"]) -> Float[Array, "shard local"]:
    return jnp.einsum("sr,srl->sl", coefficients.T, jnp.moveaxis(family, 1, 0))


def totals(*parts: PyTree[Float[Array, "... shard"]]) -> PyTree[Float[Array, "..."]]:
    """Sums over the last axis of all leaves, at once."""
    leaves, tree = jax.tree.flatten(parts)
    total = jnp.sum(jnp.concatenate([a.reshape(-1, a.shape[-1]) for a in leaves]), axis=1)
    return jax.tree.unflatten(tree, _cut(total, [a.shape[:-1] for a in leaves]))


def spread(shards: int, *coefficients: Float[Array, "..."] | None) -> tuple:
    """Every array repeated along a new last axis of `shards` entries."""
    leaves, tree = jax.tree.flatten(coefficients)
    flat = jnp.concatenate([jnp.ravel(a) for a in leaves])
    repeated = jnp.broadcast_to(flat[:, None], (flat.size, shards))
    return jax.tree.unflatten(tree, _cut(repeated, [a.shape for a in leaves]))


def _cut(joined: Array, shapes: list[tuple[int, ...]]) -> list[Array]:
    """The first axis cut in pieces, each given one of `shapes`."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    return [a.reshape(*shape, *joined.shape[1:]) for a, shape in zip(jnp.split(joined, ends[:-1]), shapes, strict=True)]
