"""The weight side: the law of one coordinate of theta, exact because the ridge keeps it linear.

theta is linear in unit normals (those of theta_star and theta_0, then zeta_0, zeta_1, ...), so each column is an array of
coefficients (group, basis), one row per eigenvalue group, with inner product <u, v> = sum_a weight_a u_a·v_a.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._matrices import inverse_root, rank_floor, square_root, triangular_root
from ..problem import Problem
from ._orthogonal import DROP, block_drop
from ._step import Factors


class Start(NamedTuple):
    """`theta`: the initial student. `known`: directions of the fields that a sample comes with: orthonormal ones that span the
    teacher, theta~_star = root @ known, each with a normal; for a mixture theta~_star itself, each with its cluster's
    indicator."""

    theta: Float[Array, "m group basis"]
    known: Float[Array, "m_star group basis"]
    root: Float[Array, "m_star m_star"]


def initial(problem: Problem, zetas: int) -> Start:
    """Bases of the teacher's and the student's columns first, then `zetas`."""
    entries = jnp.moveaxis(problem.initial, 1, 0)
    entries = jnp.pad(entries, ((0, 0), (0, 0), (0, zetas)))
    teacher = jnp.sqrt(problem.features.eigenvalues)[:, None] * entries[: problem.m_star]
    rho = problem.rho
    if problem.task.mixture:
        return Start(entries[problem.m_star :], teacher, jnp.eye(problem.m_star))
    known = jnp.tensordot(inverse_root(rho, rank_floor(rho)), teacher, 1)
    return Start(entries[problem.m_star :], known, square_root(rho, rank_floor(rho)))


class Reading(NamedTuple):
    """What the field side needs of theta_k: its products with the known directions, with phi over all rows (the new one
    included) and with the zetas, <theta~_k, .>; and the new phi."""

    known: Float[Array, "m m_star"]
    L: Float[Array, "m row m"]
    P: Float[Array, "m zeta"]
    phi: Float[Array, "m group basis"]


def read(
    theta: Float[Array, "m group basis"],
    known: Float[Array, "m_star group basis"],
    removed: bool,
    phi: Float[Array, "row m group basis"],
    past: Float[Array, " row"],
    k: Array,
    features,
) -> Reading:
    """Gram-Schmidt of theta~ = sqrt(lambda) theta, two passes, against the rows of phi where `past` is 1 and, if `removed`, the
    known directions."""
    scale = jnp.sqrt(features.weights)[:, None]
    rows, m = phi.shape[:2]
    # In coordinates times sqrt(weight) the inner product is the plain one.
    family = (phi * scale).reshape(rows * m, -1)
    flat_known = (known * scale).reshape(known.shape[0], -1)
    tilde = jnp.sqrt(features.eigenvalues)[:, None] * theta
    flat = (tilde * scale).reshape(m, -1)
    past = jnp.repeat(past, m)
    rest, L = flat, jnp.zeros((m, rows * m), flat.dtype)
    for _ in range(2):
        if removed:
            rest = rest - (rest @ flat_known.T) @ flat_known
        coefficients = past * (rest @ family.T)
        rest = rest - coefficients @ family
        L = L + coefficients
    own = jnp.sum(flat**2, axis=1)
    lengths, normalize = triangular_root(rest @ rest.T, own, DROP if m == 1 else block_drop(flat.dtype))
    direction = (normalize @ rest).reshape(theta.shape) / scale
    L = L.reshape(m, rows, m).at[:, k].add(lengths)
    start = known.shape[0] + m
    P = jnp.einsum("g,mgz->mz", features.weights, tilde[..., start:])
    return Reading(flat @ flat_known.T, L, P, direction)


def curvature_ratio(features, delta) -> Float[Array, " group"]:
    """Largest ratio of sample to population curvature in each eigenvalue group.

    A bulk of r d equal eigenvalues on n = delta d samples has a largest sample eigenvalue of (1 + sqrt(r / delta))² times
    its own. Here r counts, smoothly and never too low, the share of dimensions whose eigenvalue is comparable or larger, and
    the smaller ones in proportion: 1 for isotropic features, near 0 for a spike (which needs no such care).
    """
    ratio = features.eigenvalues[None, :] / features.eigenvalues[:, None]
    rank = jnp.sum(features.weights * 2 * ratio / (1 + ratio), axis=1)
    return (1 + jnp.sqrt(rank / delta)) ** 2


class Drive(NamedTuple):
    """The drift of the weights per D eta, less its linear part: on the weights' own basis and on the zetas."""

    weights: Float[Array, "m group basis"]
    zetas: Float[Array, "m zeta"]


def drive(
    theta: Float[Array, "m group basis"],
    to_known: tuple[Float[Array, "m m_star"], Float[Array, "m_star group basis"]],
    to_phi: tuple[Float[Array, "m row m"], Float[Array, "row m group basis"]],
    zetas: Float[Array, "m zeta"],
    curvature: Float[Array, "m m"],
    features,
) -> Drive:
    """sqrt(lambda) times the sums of coefficients and directions, less lambda E[l'] theta_k; and the coefficients on the
    zetas (times sqrt(lambda))."""
    rest = jnp.tensordot(*to_known, 1) + jnp.tensordot(*to_phi, 2)
    rest = jnp.sqrt(features.eigenvalues)[:, None] * rest
    return Drive(rest - features.eigenvalues[:, None] * jnp.tensordot(curvature, theta, 1), zetas)


def update(theta, now: Drive, last: Drive, decay, drift, noise, factors: Factors, features) -> tuple[Array, Array]:
    """theta_{k+1} = theta_k - f (x theta_k + D eta drive_k) - c D eta (drive_k - drive_{k-1}) - s sqrt(lambda) noise, and what
    of it this step adds on the zetas, (m, group, zeta). `drift`: D eta; `noise`: (m, zeta). `decay` (x) and `factors` (f, s, c)
    are matrices over the columns, (group, m, m)."""
    f, s, c = factors
    root = jnp.sqrt(features.eigenvalues)[:, None]

    def apply(matrix, vectors):
        if vectors.ndim == 2:
            return jnp.einsum("gab,bz->agz", matrix, vectors)
        return jnp.einsum("gab,bgz->agz", matrix, vectors)

    kicks = -root * (drift * (apply(f, now.zetas) + apply(c, now.zetas - last.zetas)) + apply(s, noise))
    moved = theta - apply(f, apply(decay, theta) + drift * now.weights) - drift * apply(c, now.weights - last.weights)
    start = theta.shape[-1] - kicks.shape[-1]
    return moved.at[..., start:].add(kicks), kicks
