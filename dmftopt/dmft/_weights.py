"""The weight side: the law of one coordinate of theta, exact because the ridge keeps it linear.

theta is linear in the unit normals (theta_star / scale, theta_0 / scale, zeta_0, zeta_1, ...), so it is an array of
coefficients (group, basis), one row per eigenvalue group, with inner product <u, v> = sum_a weight_a u_a·v_a.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..problem import Problem
from ._orthogonal import normalized, remove

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
    coefficients, residual = remove((tilde * scale).ravel(), flat_phi, past, 1, passes=2)
    size2 = jnp.sum((tilde * scale) ** 2)
    direction, length = normalized(residual, jnp.sum(residual**2), size2)
    pairing = jnp.sum(features.weights[:, None] * tilde, axis=0)[FIRST_ZETA:]
    return coefficients, direction.reshape(theta.shape) / scale, length, pairing


def feedback(features, delta) -> Float[Array, " group"]:
    """Half the largest ratio of sample to population curvature in each eigenvalue group, at least 1.

    A bulk of r d equal eigenvalues on n = delta d samples has a largest sample eigenvalue of (1 + sqrt(r / delta))² times
    its own. Here r counts, smoothly and never too low, the share of dimensions whose eigenvalue is comparable or larger, and
    the smaller ones in proportion: 1 for isotropic features, near 0 for a spike (which needs no such care).
    """
    ratio = features.eigenvalues[None, :] / features.eigenvalues[:, None]
    rank = jnp.sum(features.weights * 2 * ratio / (1 + ratio), axis=1)
    return jnp.maximum(1.0, 0.5 * (1 + jnp.sqrt(rank / delta)) ** 2)


def update(theta, zeta_drift, phi_drift, zeta_noise, ridge_step, factors, features) -> tuple[Array, Array]:
    """theta_{k+1} = theta_k - f(x) [D eta ridge theta_k + sqrt(lambda) drive] - s(x) sqrt(lambda) noise, and what of it
    this step adds on the zetas, (group, basis - 2).

    `zeta_drift`, `zeta_noise`: (basis - 2,), coefficients on the zetas; `phi_drift`: (group, basis); `factors`: f and s of
    each group, from the step.
    """
    drift_factor, noise_factor = (factor[:, None] for factor in factors)
    root = jnp.sqrt(features.eigenvalues)[:, None]
    kicks = -root * (drift_factor * zeta_drift + noise_factor * zeta_noise)
    moved = theta - drift_factor * (ridge_step * theta + root * phi_drift)
    return moved.at[:, FIRST_ZETA:].add(kicks), kicks
