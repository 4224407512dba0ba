"""Gram-Schmidt against a write-once history."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._rows import Family, combined, products_with

# A vector whose residual variance is below this fraction of its own is taken to lie in the span of its past: its new
# direction is dropped (coefficient 0). Rank deficiency is normal (smooth paths); with 1e-12 one run in eight exploded.
DROP = 1e-9


def block_drop(dtype: Any) -> float:
    """As DROP, where differences cancel: what is left must also be more than rounding."""
    return max(DROP, 100 * float(jnp.finfo(dtype).eps))


def drop(m: int, dtype: Any) -> float:
    """For a residual of m columns: with several, one column's is a difference of what the others leave."""
    return DROP if m == 1 else block_drop(dtype)


# Vectors over the samples are laid out (shard, local), one row per device; families of them (row, shard, local), or (row, sample)
# where there is one shard: XLA on CPUs multiplies an array that a loop carries by a vector as fast as memory, but one that it has
# to reshape first element by element, twenty times slower. Sums are taken within a shard first, and those of one stage of a step
# then cross the devices together: stacked, they are one reduction. So are, in reverse mode, the cotangents of coefficients that
# were handed out to the shards together.


def as_family(vectors: Float[Array, "*row shard local"]) -> Float[Array, "row *sample"]:
    """Laid out as a family, one after the other."""
    *_, shards, local = vectors.shape
    return vectors.reshape(-1, local) if shards == 1 else vectors.reshape(-1, shards, local)


# One column at a time: matrix-vector products of long rows are as fast as memory, a product with a few columns is not.


def dots(family: Family, vectors: Float[Array, "m shard local"]) -> Float[Array, "m row shard"]:
    """Sums over each shard of the products of `vectors` with the rows of `family`."""
    if len(family.shape) == 2:
        return jnp.stack([products_with(family, vector[0]) for vector in vectors])[..., None]
    return jnp.stack([products_with(family, vector) for vector in vectors])


def combination(coefficients: Float[Array, "m row shard"], family: Family) -> Float[Array, "m shard local"]:
    if len(family.shape) == 2:
        return jnp.stack([combined(c[:, 0], family) for c in coefficients])[:, None]
    return jnp.stack([combined(c, family) for c in coefficients])


def products(a: Float[Array, "i shard local"], b: Float[Array, "j shard local"]) -> Float[Array, "i j shard"]:
    """Sums over each shard of all pairs, few by few."""
    return jnp.sum(a[:, None] * b[None], axis=-1)


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
