"""Who is largest."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def shares_of_largest(scores: Float[Array, "class *sample"]) -> Float[Array, "class *sample"]:
    """Along the first axis 1 for the largest, of several in equal parts. What compilers compute twice they may round differently,
    and then nothing would be equal to the largest: what is as large up to rounding counts as equal."""
    rounding = jnp.finfo(scores.dtype).eps ** 0.75 * jnp.max(jnp.abs(scores), axis=0, keepdims=True)
    best = (scores >= jnp.max(scores, axis=0, keepdims=True) - rounding).astype(scores.dtype)
    return best / jnp.maximum(jnp.sum(best, axis=0, keepdims=True), 1.0)
