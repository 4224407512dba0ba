"""Functions of small symmetric matrices, differentiable where eigenvectors are not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

# Of so many columns at most, loops are written out: more would take minutes to compile (a hundred: 20 seconds).
_UNROLLED = 8


def of_symmetric(
    function: Callable[[Float[Array, " m"]], PyTree[Float[Array, "... m"]]], matrix: Float[Array, "m m"], order: int = 1
) -> PyTree[Float[Array, "... m m"]]:
    """U function(h) U^T for matrix = U diag(h) U^T; `function` acts on each eigenvalue by itself and may return several arrays.

    Eigenvectors have no derivative where eigenvalues meet (identical hidden units), functions of the matrix do: see `_expanded`.
    `order`: of the derivatives that are right, 1 or 2; what is right to second order is more to compile.
    """
    if matrix.shape[0] == 1:
        return jax.tree.map(lambda f: f[..., None], function(matrix[0]))

    def slope(h):
        return jax.jvp(function, (h,), (jnp.ones_like(h),))[1]

    h, U, change = _eigen(matrix)
    if order == 1:
        values, slopes = jax.jvp(function, (h,), (jnp.ones_like(h),))
        return jax.tree.map(lambda f, df: _expanded(h, U, change, f, df, None), values, slopes)
    slopes, bends = jax.jvp(slope, (h,), (jnp.ones_like(h),))
    return jax.tree.map(lambda f, df, ddf: _expanded(h, U, change, f, df, ddf), function(h), slopes, bends)


def _eigen(matrix: Float[Array, "m m"]) -> tuple[Float[Array, " m"], Float[Array, "m m"], Float[Array, "m m"]]:
    """Eigenvalues and eigenvectors without derivatives, and the change of the matrix in its eigenbasis: zero, but for those."""
    matrix = 0.5 * (matrix + matrix.T)
    h, U = jnp.linalg.eigh(jax.lax.stop_gradient(matrix))
    return h, U, U.T @ matrix @ U - jnp.diag(h)


def _expanded(
    h: Float[Array, " m"],
    U: Float[Array, "m m"],
    change: Float[Array, "m m"],
    f: Float[Array, "*group m"],
    slope: Float[Array, "*group m"],
    bend: Float[Array, "*group m"] | None,
) -> Float[Array, "*group m m"]:
    """From a function's values, slopes and second derivatives at the eigenvalues, Daleckii and Krein's expansion

        F_ij = f(h_i) 1[i=j] + f[h_i, h_j] change_ij + sum_k f[h_i, h_k, h_j] change_ik change_kj

    in its divided differences. Where `bend` is None the last term is left out, and first derivatives only are right."""
    m, groups = h.size, f.shape[:-1]
    gap = h[:, None] - h[None, :]
    # Equal within what the mean of two slopes is good for, or within rounding.
    size = jnp.abs(h)[:, None] + jnp.abs(h)[None, :]
    close = jnp.abs(gap) <= jnp.maximum(1e-5 * size, jnp.finfo(h.dtype).eps ** (2 / 3) * jnp.max(size))
    every = (close, gap, change, jnp.eye(m, dtype=h.dtype), U)
    close, gap, change, unit, U = (jnp.broadcast_to(a, (*groups, m, m)) for a in every)
    apart = jnp.where(close, 1.0, gap)
    mean = 0.5 * (slope[..., :, None] + slope[..., None, :])
    first = jnp.where(close, mean, (f[..., :, None] - f[..., None, :]) / apart)
    inner = f[..., None] * unit
    if bend is None:
        inner = inner + jax.lax.stop_gradient(first) * change
    else:
        second = _second_differences(h, first, slope, bend, gap)
        inner = inner + first * change + jnp.einsum("...ikj,...ik,...kj->...ij", second, change, change)
    return U @ inner @ jnp.swapaxes(U, -1, -2)


def _second_differences(
    h: Float[Array, " m"],
    first: Float[Array, "*group m m"],
    slope: Float[Array, "*group m"],
    bend: Float[Array, "*group m"],
    gap: Float[Array, "*group m m"],
) -> Float[Array, "*group m m m"]:
    """f[i, k, j], from first differences where all are apart; where they are close on the function's own scale f' / f'', from
    slopes and second derivatives, means of which are good to gap²: rounding leaves of differences eps / gap²."""
    scale = jnp.where(bend == 0, jnp.inf, jnp.abs(slope / jnp.where(bend == 0, 1.0, bend)))
    close = jnp.abs(gap) <= jnp.finfo(h.dtype).eps ** 0.25 * jnp.minimum(scale[..., :, None], scale[..., None, :])
    apart = jnp.where(close, 1.0, gap)
    ends = (first[..., :, :, None] - first[..., None, :, :]) / apart[..., :, None, :]
    tangent = (slope[..., :, None] - first) / apart
    middle = 0.5 * (tangent[..., :, :, None] + jnp.swapaxes(tangent, -1, -2)[..., None, :, :])
    bends = (bend[..., :, None, None] + bend[..., None, :, None] + bend[..., None, None, :]) / 6
    middle = jnp.where(close[..., :, :, None] | close[..., None, :, :], bends, middle)
    return jnp.where(close[..., :, None, :], middle, ends)


def square_root(matrix: Float[Array, "m m"], floor: Any = 0.0, order: int = 2) -> Float[Array, "m m"]:
    """Symmetric root of a covariance; eigenvalues not above `floor` count as 0, with derivative 0."""
    return _power(matrix, 0.5, floor, order)


def inverse_root(matrix: Float[Array, "m m"], floor: Any = 0.0, order: int = 2) -> Float[Array, "m m"]:
    """Inverse of the symmetric root where eigenvalues exceed `floor`, 0 on the other eigenvectors."""
    return _power(matrix, -0.5, floor, order)


def _power(matrix: Float[Array, "m m"], exponent: float, floor: Any, order: int) -> Float[Array, "m m"]:
    """matrix^exponent where eigenvalues exceed `floor`, 0 on the other eigenvectors; `order` as in `of_symmetric`."""

    def terms(h):
        keep = h > floor
        safe = jnp.where(keep, h, 1.0)
        value = jnp.where(keep, jnp.sqrt(safe) if exponent > 0 else 1 / jnp.sqrt(safe), 0.0)
        slope = exponent * value / safe
        return value, slope, (exponent - 1) * slope / safe

    if matrix.shape[0] == 1:
        return terms(matrix[0])[0][None]
    h, U, change = _eigen(matrix)
    value, slope, bend = terms(h)
    return _expanded(h, U, change, value, slope, bend if order == 2 else None)


def rank_floor(covariance: Float[Array, "m m"]) -> Array:
    """Below this, eigenvalues of a covariance are rounding."""
    return 100 * jnp.finfo(covariance.dtype).eps * jnp.trace(jax.lax.stop_gradient(covariance))


def triangular_root(
    matrix: Float[Array, "m m"], own: Float[Array, " m"], drop: float
) -> tuple[Float[Array, "m m"], Float[Array, "m m"]]:
    """Lower triangular L with L L^T = matrix, and T with T L = 1: T v is orthonormal when v has this Gram matrix. Where a
    column's variance beyond those before it is below `drop` times its `own`, it gets no direction: row and column are 0."""
    m = matrix.shape[0]
    columns = jnp.arange(m)

    def column(c, roots):
        L, T = roots
        rest = matrix[:, c] - L @ L[c]
        keep = rest[c] > drop * own[c]
        length = jnp.sqrt(jnp.where(keep, rest[c], 1.0))
        L = L.at[:, c].set(jnp.where(keep & (columns >= c), rest / length, 0.0))
        # The new direction is what the earlier ones leave of column c, over its length.
        left = jnp.where(columns == c, 1.0, 0.0).astype(matrix.dtype) - L[c].at[c].set(0.0) @ T
        return L, T.at[c].set(jnp.where(keep, left / length, 0.0))

    roots = jnp.zeros_like(matrix), jnp.zeros_like(matrix)
    if m > _UNROLLED:
        return jax.lax.fori_loop(0, m, column, roots)
    for c in range(m):
        roots = column(c, roots)
    return roots


def pivoted_root(matrix: Float[Array, "m m"], drop: float) -> Float[Array, "m m"]:
    """A root R, R R^T = matrix (positive semidefinite), whose last columns are 0 where the rank is low: Cholesky's, always with
    the row of which most is left, until that is less than `drop`. In the order of the rows one would leave out rows of which
    little is left, and with them the square root of that of what they have in common with later ones."""
    diagonal = jnp.diagonal(matrix)

    def column(c, root):
        left = diagonal - jnp.sum(root**2, axis=1)
        p = jnp.argmax(left)
        keep = left[p] > drop
        length = jnp.sqrt(jnp.where(keep, left[p], 1.0))
        return root.at[:, c].set(jnp.where(keep, (matrix[:, p] - root @ root[p]) / length, 0.0))

    return jax.lax.fori_loop(0, matrix.shape[0], column, jnp.zeros_like(matrix))


def exponential(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """e^matrix of a small matrix of norm up to some hundred, by Taylor's series and squaring: products only (batches of LAPACK's
    factorizations, which `jax.scipy.linalg.expm` needs, can hang jaxlib's CPU threads)."""
    squarings, terms = 9, 8
    small = matrix / 2**squarings
    term = total = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    for k in range(1, terms + 1):
        term = term @ small / k
        total = total + term
    for _ in range(squarings):
        total = total @ total
    return total
