"""Gram-Schmidt against a write-once history."""

import jax.numpy as jnp
from jaxtyping import Array, Float

# A vector whose residual variance is below this fraction of its own is taken to lie in the span of its past: its new
# direction is dropped (coefficient 0). Rank deficiency is normal (smooth paths); with 1e-12 one run in eight exploded.
DROP = 1e-9


def remove(
    vector: Float[Array, " n"], family: Float[Array, "row n"], past: Float[Array, " row"], count, passes: int
) -> tuple[Float[Array, " row"], Float[Array, " n"]]:
    """Coefficients of `vector` on the rows of `family` where `past` is 1, in the inner product sum(u v) / `count`, and
    what is left of the vector. The mask sits on the coefficients, so the history itself is never copied."""
    total = jnp.zeros_like(past)
    for _ in range(passes):
        coefficients = past * (family @ vector) / count
        total = total + coefficients
        vector = vector - coefficients @ family
    return total, vector


def normalized(residual: Array, variance: Array, own: Array) -> tuple[Array, Array]:
    """Residual over its length, and the length; both 0 where the residual variance is negligible beside its `own`."""
    keep = variance > DROP * own
    length = jnp.where(keep, jnp.sqrt(jnp.where(keep, variance, 1.0)), 0.0)
    return residual * jnp.where(keep, 1 / jnp.where(keep, length, 1.0), 0.0), length
