from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gradient_of(loss: Callable, r: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """d loss / d r, elementwise, or of one sample with several columns."""
    return jax.grad(lambda r: jnp.sum(loss(r, y)))(r)


def curvature_of(gradient: Callable, r: Array, y: Array, width: float, columns: int | None) -> Float[Array, "..."]:
    """d gradient / d r, or its difference quotient over a positive `width` to either side: elementwise where `columns` is None,
    otherwise of one sample, (m, m)."""
    if columns is None:
        if width > 0:
            return (gradient(r + width, y) - gradient(r - width, y)) / (2 * width)
        return gradient_of(gradient, r, y)
    if width > 0:
        ahead = jax.vmap(lambda e: (gradient(r + width * e, y) - gradient(r - width * e, y)) / (2 * width), out_axes=1)
        return ahead(jnp.eye(columns, dtype=r.dtype))
    return jax.jacfwd(lambda r: gradient(r, y))(r)
