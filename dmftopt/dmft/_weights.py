"""The weight side: the law of one coordinate of theta, exact because the ridge keeps it linear.

theta is linear in the unit normals (theta_star / scale, theta_0 / scale, zeta_0, zeta_1, ...), so it is an array of
coefficients (group, basis), one row per eigenvalue group, with inner product <u, v> = sum_a weight_a u_a·v_a.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..problem import Problem
from ._orthogonal import normalized, remove
from ._step import Factors

TEACHER, STUDENT, FIRST_ZETA = 0, 1, 2


def initial(problem: Problem, basis: int) -> tuple[Array, Array, Array]:
    """Initial student (group, basis), the teacher's direction phi_0 (group, basis) and rho = E[lambda theta_star²]."""
    features = problem.features
    empty = jnp.zeros((features.groups, basis))
    teacher = empty.at[:, TEACHER].set(jnp.sqrt(features.eigenvalues) * problem.teacher_scale)
    rho = problem.rho
    return empty.at[:, STUDENT].set(problem.student_scale), teacher / jnp.sqrt(rho), rho


def read(
    theta: Float[Array, "group basis"], phi: Float[Array, "direction group basis"], past: Array, features
) -> tuple[Array, Array, Array, Array]:
    """What the field side needs of theta_k: L(k, j) = <theta~_k, phi_j> over the past directions, the new direction and its
    coefficient L(k, k), and P(k, j) = <theta~_k, zeta_j>; theta~ = sqrt(lambda) theta.

    `past` is 1 on the rows of phi already written.
    """
    scale = jnp.sqrt(features.weights)[:, None]
    # In coordinates times sqrt(weight) the inner product is the plain one.
    flat_phi = (phi * scale).reshape(phi.shape[0], -1)
    tilde = jnp.sqrt(features.eigenvalues)[:, None] * theta
    coefficients, residual = remove((tilde * scale).ravel(), flat_phi, past)
    size2 = jnp.sum((tilde * scale) ** 2)
    direction, length = normalized(residual, jnp.sum(residual**2), size2)
    pairing = jnp.sum(features.weights[:, None] * tilde, axis=0)[FIRST_ZETA:]
    return coefficients, direction.reshape(theta.shape) / scale, length, pairing


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

    weights: Float[Array, "group basis"]
    zetas: Float[Array, " zeta"]


def drive(theta, S, phi, zetas, curvature, features) -> Drive:
    """sum_j S(k, j) phi_j sqrt(lambda) - lambda E[l'] theta_k, and the coefficients on the zetas (times sqrt(lambda))."""
    rest = jnp.sqrt(features.eigenvalues)[:, None] * jnp.tensordot(S, phi, 1)
    return Drive(rest - curvature * features.eigenvalues[:, None] * theta, zetas)


def update(theta, now: Drive, last: Drive, decay, drift, noise, factors: Factors, features) -> tuple[Array, Array]:
    """theta_{k+1} = theta_k - f (x theta_k + D eta drive_k) - c D eta (drive_k - drive_{k-1}) - s sqrt(lambda) noise, and what
    of it this step adds on the zetas, (group, basis - 2).

    `decay`: x of each group; `drift`: D eta; `noise`: (basis - 2,), coefficients on the zetas; `factors`: f, s, c.
    """
    f, s, c = (factor[:, None] for factor in factors)
    root = jnp.sqrt(features.eigenvalues)[:, None]
    kicks = -root * (drift * (f * now.zetas + c * (now.zetas - last.zetas)) + s * noise)
    moved = theta - f * (decay[:, None] * theta + drift * now.weights) - c * drift * (now.weights - last.weights)
    return moved.at[:, FIRST_ZETA:].add(kicks), kicks
