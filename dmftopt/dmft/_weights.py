"""The weight side: the law of one coordinate of theta in each eigenvalue group, as arrays (m, group, basis) with the inner
product <u, v> = share sum_a weight_a u_a·v_a. Equations (3) and (4) of README.md. Two representations, which differ in their
`space` only:

* `Coefficients`: the ridge keeps theta linear in unit normals (those of theta_star and theta_0, then zeta_0, zeta_1, ...), so an
  array of coefficients says it all. Exact.
* `Particles`: for any elementwise regularizer, a population of coordinates, each with its own values of these normals.

Which one runs is decided where the random numbers are drawn: particles have zetas of their own, coefficients need none.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..numerics.matrices import inverse_root, rank_floor, square_root, triangular_root
from ..problem import Problem
from ..problem.features import Features
from ..problem.priors import orthonormal_entries
from ..results.measure import linear_values
from ._orthogonal import drop
from ._points import Points
from ._rows import Family, combined, products_with


class Start(NamedTuple):
    """`theta`: the initial student. `known`: directions of the fields that a sample comes with: orthonormal ones that span the
    teacher, theta~_star = root @ known, each with a normal; for a mixture theta~_star itself, each with its cluster's
    indicator."""

    theta: Float[Array, "m group basis"]
    known: Float[Array, "m_star group basis"]
    root: Float[Array, "m_star m_star"]


class Coefficients(NamedTuple):
    """The basis: `start` normals of teacher and student, then the zetas."""

    start: int

    share = 1.0

    def values(
        self, theta: Float[Array, "m group basis"], nodes: Float[Array, "normal node"] | None
    ) -> Float[Array, "m group node"]:
        """Of theta itself, at the nodes of `coordinate_nodes`: the zetas add up to Gaussians."""
        assert nodes is not None
        of_zetas = theta[..., self.start :]
        return linear_values(theta[..., : self.start], jnp.einsum("agz,bgz->gab", of_zetas, of_zetas), nodes)

    def on_zetas(self, theta: Float[Array, "m group basis"]) -> Float[Array, "m group zeta"]:
        """E[theta zeta] in each group."""
        return theta[..., self.start :]

    def add_zetas(self, theta: Float[Array, "m group basis"], by: Float[Array, "m group zeta"]) -> Float[Array, "m group basis"]:
        return theta.at[..., self.start :].add(by)


class Particles(NamedTuple):
    """Particles carry the same zetas in every group: groups meet in no product."""

    zetas: Float[Array, "zeta particle"]

    @property
    def share(self) -> float:
        return 1 / self.zetas.shape[1]

    def values(self, theta: Float[Array, "m group particle"], nodes: Any) -> Float[Array, "m group particle"]:
        return theta

    def on_zetas(self, theta: Float[Array, "m group particle"]) -> Float[Array, "m group zeta"]:
        return self.share * (theta @ self.zetas.T)

    def add_zetas(
        self, theta: Float[Array, "m group particle"], by: Float[Array, "m group zeta"]
    ) -> Float[Array, "m group particle"]:
        return theta + by @ self.zetas


Space = Coefficients | Particles


def space(problem: Problem, zetas: Float[Array, "zeta particle"] | None) -> Space:
    return Coefficients(problem.m_star + problem.m) if zetas is None else Particles(zetas)


def start(problem: Problem, points: Points, zetas: int) -> tuple[Start, Float[Array, "zeta particle"] | None]:
    """The start, with room for so many zetas, and the zetas of particles."""
    if points.zetas is not None and points.entries is not None:
        return _particles(problem, points.entries, points.zetas.reshape(zetas, -1))
    # Bases of the teacher's and the student's columns first, then the zetas.
    entries = jnp.moveaxis(problem.initial, 1, 0)
    return _start(problem, jnp.pad(entries, ((0, 0), (0, 0), (0, zetas)))), None


def _particles(
    problem: Problem, entries: Float[Array, "{problem.m_star+problem.m} particle"], zetas: Float[Array, "zeta particle"]
) -> tuple[Start, Float[Array, "zeta particle"]]:
    """The start, and the zetas as they are to be used. From standard normals: those of the columns of teacher and student, which
    get their priors' law, and the zetas.

    All are made orthonormal in the sample. This changes them by sampling error only, and then what is linear in them (all
    there is, with the ridge) has none.
    """
    standard = orthonormal_entries([problem.teacher_prior] * problem.m_star + [problem.student_prior] * problem.m, entries)
    share = 1 / entries.shape[1]
    zetas = zetas - share * (zetas @ standard.T) @ standard
    zetas = _inverse_root_near_one(share * zetas @ zetas.T) @ zetas
    return _start(problem, jnp.einsum("gac,cp->agp", problem.initial, standard)), zetas


def _inverse_root_near_one(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """By Newton and Schulz's iteration, products only (two batched factorizations at once can hang jaxlib's CPU threads).
    Eigenvalues must be in (0, 3). With 4 particles a zeta those of random normals are in (1/4, 9/4): 10 steps give all digits."""
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)

    def improve(_, pair):
        left, inverse = pair
        step = 1.5 * identity - 0.5 * inverse @ left
        return left @ step, step @ inverse

    return jax.lax.fori_loop(0, 10, improve, (matrix, identity))[1]


def _start(problem: Problem, entries: Float[Array, "{problem.m_star+problem.m} group basis"]) -> Start:
    teacher = jnp.sqrt(problem.features.eigenvalues)[None, :, None] * entries[: problem.m_star]
    rho = problem.rho
    if problem.task.mixture:
        return Start(entries[problem.m_star :], teacher, jnp.eye(problem.m_star))
    known = jnp.tensordot(inverse_root(rho, rank_floor(rho)), teacher, 1)
    return Start(entries[problem.m_star :], known, square_root(rho, rank_floor(rho)))


def teacher(start: Start, features: Features) -> Float[Array, "m_star group basis"]:
    """theta_star."""
    return jnp.tensordot(start.root, start.known, 1) / jnp.sqrt(features.eigenvalues)[None, :, None]


class Reading(NamedTuple):
    """What the field side needs of theta_k: its products with the known directions, with phi over all rows (the new one
    included) and with the zetas, <theta~_k, .>. And the new phi, and E[theta_k zeta] in each group."""

    known: Float[Array, "m m_star"]
    L: Float[Array, "m row m"]
    P: Float[Array, "m zeta"]
    phi: Float[Array, "m coordinate"]
    zetas: Float[Array, "m group zeta"]


def read(
    theta: Float[Array, "m group basis"],
    known: Float[Array, "m_star group basis"],
    known_are_orthonormal: bool,
    phi: Family,
    written: Float[Array, " row"],
    k: Array,
    features: Features,
    space: Space,
) -> Reading:
    """Gram-Schmidt of theta~ = sqrt(lambda) theta, two passes, against the rows of phi where `written` is 1 and, where they are
    orthonormal (the means of clusters are not), the known directions, equation (4)."""
    rows, m = written.size, theta.shape[0]
    flat_known = known.reshape(known.shape[0], -1)
    measure = jnp.repeat(space.share * features.weights, theta.shape[-1])
    root = jnp.sqrt(features.eigenvalues)
    flat = (root[None, :, None] * theta).reshape(m, -1)

    def dot(a, b):
        return (measure[None] * a) @ b.T

    written = jnp.repeat(written, m)
    rest, L = flat, jnp.zeros((m, rows * m), flat.dtype)
    for _ in range(2):
        if known_are_orthonormal:
            rest = rest - dot(rest, flat_known) @ flat_known
        coefficients = written[None] * jnp.stack([products_with(phi, row) for row in measure[None] * rest])
        rest = rest - jnp.stack([combined(c, phi) for c in coefficients])
        L = L + coefficients
    own = jnp.sum(measure[None] * flat**2, axis=1)
    lengths, normalize = triangular_root(dot(rest, rest), own, drop(m, flat.dtype))
    L = L.reshape(m, rows, m).at[:, k].add(lengths)
    zetas = space.on_zetas(theta)
    P = jnp.einsum("g,mgz->mz", features.weights * root, zetas)
    return Reading(dot(flat, flat_known), L, P, normalize @ rest, zetas)


def norm(theta: Float[Array, "m group basis"], features: Features, space: Space) -> Float[Array, "m m"]:
    """E[theta theta^T]."""
    return space.share * jnp.einsum("g,agz,bgz->ab", features.weights, theta, theta)
