"""Functions of small symmetric matrices, differentiable where eigenvectors are not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def of_symmetric(
    function: Callable[[Float[Array, " m"]], PyTree[Float[Array, "... m"]]], matrix: Float[Array, "m m"]
) -> PyTree[Float[Array, "... m m"]]:
    """U function(h) U^T for matrix = U diag(h) U^T; `function` acts on each eigenvalue by itself and may return several arrays.

    Eigenvectors have no derivative where eigenvalues meet (identical hidden units), functions of the matrix do: that of
    Daleckii and Krein, the divided differences of the function times the change of the matrix in the eigenbasis. First
    derivatives only.
    """
    m = matrix.shape[0]
    if m == 1:
        return jax.tree.map(lambda f: f[..., None], function(matrix[0]))
    fixed = jax.lax.stop_gradient(0.5 * (matrix + matrix.T))
    h, U = jnp.linalg.eigh(fixed)
    # Zero, but for its derivative.
    change = U.T @ (0.5 * (matrix + matrix.T)) @ U - jnp.diag(h)
    values, slopes = jax.jvp(function, (h,), (jnp.ones_like(h),))
    gap = h[:, None] - h[None, :]
    # Equal within what the mean of two slopes is good for, or within rounding.
    size = jnp.abs(h)[:, None] + jnp.abs(h)[None, :]
    close = jnp.abs(gap) <= jnp.maximum(1e-5 * size, jnp.finfo(h.dtype).eps ** (2 / 3) * jnp.max(size))

    def assemble(f, slope):
        divided = jnp.where(
            close,
            0.5 * (slope[..., :, None] + slope[..., None, :]),
            (f[..., :, None] - f[..., None, :]) / jnp.where(close, 1.0, gap),
        )
        inner = f[..., None] * jnp.eye(m, dtype=h.dtype) + jax.lax.stop_gradient(divided) * change
        return U @ inner @ U.T

    return jax.tree.map(assemble, values, slopes)


def square_root(matrix: Float[Array, "m m"], floor: Any = 0.0) -> Float[Array, "m m"]:
    """Symmetric root of a covariance; eigenvalues not above `floor` count as 0, with derivative 0."""

    def root(h):
        keep = h > floor
        return jnp.where(keep, jnp.sqrt(jnp.where(keep, h, 1.0)), 0.0)

    return of_symmetric(root, matrix)


def inverse_root(matrix: Float[Array, "m m"], floor: Any = 0.0) -> Float[Array, "m m"]:
    """Inverse of the symmetric root where eigenvalues exceed `floor`, 0 on the other eigenvectors."""

    def inverse(h):
        keep = h > floor
        return jnp.where(keep, 1 / jnp.sqrt(jnp.where(keep, h, 1.0)), 0.0)

    return of_symmetric(inverse, matrix)


def rank_floor(covariance: Float[Array, "m m"]) -> Array:
    """Below this, eigenvalues of a covariance are rounding."""
    return 100 * jnp.finfo(covariance.dtype).eps * jnp.trace(jax.lax.stop_gradient(covariance))


def triangular_root(
    matrix: Float[Array, "m m"], own: Float[Array, " m"], drop: float
) -> tuple[Float[Array, "m m"], Float[Array, "m m"]]:
    """Lower triangular L with L L^T = matrix, and T with T L = 1: T v is orthonormal when v has this Gram matrix. Where a
    column's variance beyond those before it is below `drop` times its `own`, it gets no direction: row and column are 0."""
    m = matrix.shape[0]
    L, T = jnp.zeros_like(matrix), jnp.zeros_like(matrix)
    for c in range(m):
        rest = matrix[:, c] - L @ L[c]
        keep = rest[c] > drop * own[c]
        length = jnp.sqrt(jnp.where(keep, rest[c], 1.0))
        L = L.at[c:, c].set(jnp.where(keep, rest[c:] / length, 0.0))
        # The new direction is what the earlier ones leave of column c, over its length.
        left = jnp.zeros(m, matrix.dtype).at[c].set(1.0) - L[c].at[c].set(0.0) @ T
        T = T.at[c].set(jnp.where(keep, left / length, 0.0))
    return L, T
