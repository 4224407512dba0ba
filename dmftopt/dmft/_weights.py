"""The weight side: the law of one coordinate of theta in each eigenvalue group, as arrays (m, group, basis) with the inner
product <u, v> = share sum_a weight_a u_a·v_a. Two representations, which differ in their `space` only:

* `Coefficients`: the ridge keeps theta linear in unit normals (those of theta_star and theta_0, then zeta_0, zeta_1, ...), so an
  array of coefficients says it all. Exact.
* `Particles`: for any elementwise regularizer, a population of coordinates, each with its own values of these normals.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._matrices import inverse_root, rank_floor, square_root, triangular_root
from .._measure import linear_values
from ..priors import orthonormal_entries
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


class Coefficients(NamedTuple):
    """The basis: `start` normals of teacher and student, then the zetas."""

    start: int

    share = 1.0

    def values(self, theta: Float[Array, "m group basis"], nodes: Float[Array, "m_star+2m node"]) -> Float[Array, "m group node"]:
        """Of theta itself, at the nodes of `coordinate_nodes`: the zetas add up to Gaussians."""
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

    def values(self, theta: Float[Array, "m group particle"], nodes: None) -> Float[Array, "m group particle"]:
        return theta

    def on_zetas(self, theta: Float[Array, "m group particle"]) -> Float[Array, "m group zeta"]:
        return self.share * (theta @ self.zetas.T)

    def add_zetas(
        self, theta: Float[Array, "m group particle"], by: Float[Array, "m group zeta"]
    ) -> Float[Array, "m group particle"]:
        return theta + by @ self.zetas


Space = Coefficients | Particles


def coefficients(problem: Problem, zetas: int) -> Start:
    """Bases of the teacher's and the student's columns first, then `zetas`."""
    entries = jnp.moveaxis(problem.initial, 1, 0)
    return _start(problem, jnp.pad(entries, ((0, 0), (0, 0), (0, zetas))))


def particles(
    problem: Problem, entries: Float[Array, "m_star+m particle"], zetas: Float[Array, "zeta particle"]
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


def _start(problem: Problem, entries: Float[Array, "m_star+m group basis"]) -> Start:
    teacher = jnp.sqrt(problem.features.eigenvalues)[:, None] * entries[: problem.m_star]
    rho = problem.rho
    if problem.task.mixture:
        return Start(entries[problem.m_star :], teacher, jnp.eye(problem.m_star))
    known = jnp.tensordot(inverse_root(rho, rank_floor(rho)), teacher, 1)
    return Start(entries[problem.m_star :], known, square_root(rho, rank_floor(rho)))


def teacher(start: Start, features) -> Float[Array, "m_star group basis"]:
    """theta_star."""
    return jnp.tensordot(start.root, start.known, 1) / jnp.sqrt(features.eigenvalues)[:, None]


class Reading(NamedTuple):
    """What the field side needs of theta_k: its products with the known directions, with phi over all rows (the new one
    included) and with the zetas, <theta~_k, .>. And the new phi, and E[theta_k zeta] in each group."""

    known: Float[Array, "m m_star"]
    L: Float[Array, "m row m"]
    P: Float[Array, "m zeta"]
    phi: Float[Array, "m group basis"]
    zetas: Float[Array, "m group zeta"]


def read(
    theta: Float[Array, "m group basis"],
    known: Float[Array, "m_star group basis"],
    removed: bool,
    phi: Float[Array, "row m group basis"],
    past: Float[Array, " row"],
    k: Array,
    features,
    space: Space,
) -> Reading:
    """Gram-Schmidt of theta~ = sqrt(lambda) theta, two passes, against the rows of phi where `past` is 1 and, if `removed`, the
    known directions."""
    rows, m = phi.shape[:2]
    family, flat_known = phi.reshape(rows * m, -1), known.reshape(known.shape[0], -1)
    measure = jnp.repeat(space.share * features.weights, theta.shape[-1])
    root = jnp.sqrt(features.eigenvalues)
    flat = (root[:, None] * theta).reshape(m, -1)

    def dot(a, b):
        return (measure * a) @ b.T

    past = jnp.repeat(past, m)
    rest, L = flat, jnp.zeros((m, rows * m), flat.dtype)
    for _ in range(2):
        if removed:
            rest = rest - dot(rest, flat_known) @ flat_known
        coefficients = past * dot(rest, family)
        rest = rest - coefficients @ family
        L = L + coefficients
    own = jnp.sum(measure * flat**2, axis=1)
    lengths, normalize = triangular_root(dot(rest, rest), own, DROP if m == 1 else block_drop(flat.dtype))
    L = L.reshape(m, rows, m).at[:, k].add(lengths)
    zetas = space.on_zetas(theta)
    P = jnp.einsum("g,mgz->mz", features.weights * root, zetas)
    return Reading(dot(flat, flat_known), L, P, (normalize @ rest).reshape(theta.shape), zetas)


def norm(theta: Float[Array, "m group basis"], features, space: Space) -> Float[Array, "m m"]:
    """E[theta theta^T]."""
    return space.share * jnp.einsum("g,agz,bgz->ab", features.weights, theta, theta)


def slopes(problem: Problem, theta: Float[Array, "m group basis"]) -> Float[Array, " group"]:
    """Mean of dh / d theta in each group."""
    return jnp.mean(problem.regularizer.slope(theta), axis=(0, 2))


def bend(
    problem: Problem, theta: Float[Array, "m group basis"], slope: Float[Array, " group"]
) -> Float[Array, "m group basis"] | None:
    """h(theta) less its linear part; None where weights are linear."""
    return None if problem.linear_weights or not problem.direct else problem.regularizer.gradient(theta) - slope[:, None] * theta


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
    """The drift of the weights per D eta, less its linear part: on the weights' own basis and on the zetas; and `bend`, that of
    the regularizer per D eta ridge."""

    weights: Float[Array, "m group basis"]
    zetas: Float[Array, "m zeta"]
    bend: Float[Array, "m group basis"] | None


def drive(
    theta: Float[Array, "m group basis"],
    to_known: tuple[Float[Array, "m m_star"], Float[Array, "m_star group basis"]],
    to_phi: tuple[Float[Array, "m row m"], Float[Array, "row m group basis"]],
    zetas: Float[Array, "m zeta"],
    curvature: Float[Array, "m m"],
    bend: Float[Array, "m group basis"] | None,
    features,
) -> Drive:
    """sqrt(lambda) times the sums of coefficients and directions, less lambda E[l'] theta_k; and the coefficients on the
    zetas (times sqrt(lambda))."""
    rest = jnp.tensordot(*to_known, 1) + jnp.tensordot(*to_phi, 2)
    rest = jnp.sqrt(features.eigenvalues)[:, None] * rest
    return Drive(rest - features.eigenvalues[:, None] * jnp.tensordot(curvature, theta, 1), zetas, bend)


def update(
    theta, now: Drive, last: Drive, decay, drift, ridge, noise, factors: Factors, features, space: Space
) -> tuple[Array, Array]:
    """theta_{k+1} = theta_k - f (x theta_k + D eta drive_k) - c D eta (drive_k - drive_{k-1}) - s sqrt(lambda) noise, and what
    of it this step adds on the zetas, (m, group, zeta). `drift`: D eta; `ridge`: D eta ridge; `noise`: (m, zeta). `decay` (x) and
    `factors` (f, s, c) are matrices over the columns, (group, m, m)."""
    f, s, c = factors
    root = jnp.sqrt(features.eigenvalues)[:, None]

    def apply(matrix, vectors):
        if vectors.ndim == 2:
            return jnp.einsum("gab,bz->agz", matrix, vectors)
        return jnp.einsum("gab,bgz->agz", matrix, vectors)

    def pull(drive):
        return drift * drive.weights if drive.bend is None else drift * drive.weights + ridge * drive.bend

    kicks = -root * (drift * (apply(f, now.zetas) + apply(c, now.zetas - last.zetas)) + apply(s, noise))
    moved = theta - apply(f, apply(decay, theta) + pull(now)) - apply(c, pull(now) - pull(last))
    return space.add_zetas(moved, kicks), kicks


def update_parameters(
    problem: Problem, parameters: Float[Array, "component m group particle"], now: Drive, drift, ridge, noise, space: Space
) -> Float[Array, "component m group particle"]:
    """p_{k+1} = p_k - df/dp (D eta drive_k + sqrt(lambda) noise) - D eta ridge h(p_k), where `now` is the whole drift."""
    kicks = jnp.sqrt(problem.features.eigenvalues)[:, None] * (drift * now.zetas + noise)[:, None]
    pull = problem.parametrization.pull(parameters, space.add_zetas(drift * now.weights, kicks))
    return parameters - pull - ridge * problem.regularizer.gradient(parameters)
