"""Means of metrics over samples, over fresh samples and over coordinates, for all routes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int

from ..numerics.matrices import triangular_root
from ..numerics.quadrature import uniform_points
from ..problem import Problem
from ..problem.priors import Normal, orthonormal_entries
from ..tasks import AbstractTask
from ..tasks import columns as columns
from ._dataset import taken
from .metrics import AbstractFieldMetric, AbstractWeightMetric

_LOG_NODES = 16
# Nodes evaluated at once: few enough to stay in the cache, and to leave room for many simulations side by side.
_LOG_BLOCK = 11


class Metrics(NamedTuple):
    """By name: what is averaged over samples, and what over coordinates."""

    fields: dict[str, AbstractFieldMetric]
    weights: dict[str, AbstractWeightMetric]


NO_METRICS = Metrics({}, {})


class Measured(NamedTuple):
    """Field metrics, to be averaged over fresh samples, and what was found along the run: by name, (time, ...) each."""

    fields: dict[str, AbstractFieldMetric]
    train: dict[str, Array]
    weights: dict[str, Array]


NOTHING = Measured({}, {}, {})


def check_metrics(metrics: Any, problem: Problem) -> Metrics:
    """The argument `metrics` of a route, checked and sorted."""
    if metrics is None:
        return NO_METRICS
    if not isinstance(metrics, Mapping):
        raise TypeError(f'metrics must be a dict, {{"name": metric}}, got {type(metrics).__name__}.')
    sorted_ = Metrics({}, {})
    for name, metric in metrics.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"metrics: a name must be a Python identifier, got {name!r}. Results are named after it.")
        if isinstance(metric, AbstractFieldMetric):
            sorted_.fields[name], kinds = metric, ("train", "test")
        elif isinstance(metric, AbstractWeightMetric):
            sorted_.weights[name], kinds = metric, ("weight",)
        else:
            raise TypeError(
                f"metrics[{name!r}] must be a metric, got {type(metric).__name__}. Wrap a function of (r, y) in "
                "dmftopt.metrics.Fields, a function of (theta, theta_star) in dmftopt.metrics.Weights."
            )
        if taken(name, kinds):
            raise ValueError(f"metrics: the name {name!r} would collide with another in to_xarray. Choose another.")
        _check_value(name, metric, problem)
    return sorted_


def _check_value(name: str, metric: Any, problem: Problem) -> None:
    task, dtype = problem.task, jnp.zeros(()).dtype

    def of(columns):
        return jax.ShapeDtypeStruct(() if columns is None else (columns,), dtype)

    if isinstance(metric, AbstractFieldMetric):
        value = eqx.filter_eval_shape(metric.of_sample, task, of(task.columns), of(None))
    else:
        metric.check(problem)
        value = eqx.filter_eval_shape(metric.of_coordinate, of(task.columns), of(task.teacher_columns))
    if not isinstance(value, jax.ShapeDtypeStruct):
        raise TypeError(
            f"metrics[{name!r}] must return a JAX array, got {type(value).__name__}. Give several numbers as one array."
        )
    if value.size == 0 or not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"metrics[{name!r}] must return real numbers, got {value.dtype} of shape {value.shape}.")


def field_sums(
    fields: dict[str, AbstractFieldMetric],
    task: AbstractTask,
    r: Float[Array, "m sample"],
    y: Float[Array, " sample"],
    mirror: bool,
) -> dict[str, Float[Array, "..."]]:
    """Sums over the samples. `mirror`: for samples from `task.sample`, which stand for their mirror images too if it says so."""

    def sum_of(metric):
        def value(r, y):
            return jnp.asarray(metric.of_sample(task, columns.student(task, r), y)).astype(r.dtype)

        def both(r, y):
            return 0.5 * (value(r, y) + value(-r, -y)) if mirror and task.mirrored else value(r, y)

        return jnp.sum(jax.vmap(both, (1, 0))(r, y), axis=0)

    return {name: sum_of(metric) for name, metric in fields.items()}


def test_means(
    fields: dict[str, AbstractFieldMetric],
    problem: Problem,
    Q: Float[Array, "time m m"],
    O: Float[Array, "time m m_star"],
    rho: Float[Array, "m_star m_star"],
) -> dict[str, Float[Array, "time ..."]]:
    """Means over fresh samples. Not over the nodes of `task.population`, which are right only for functions with the symmetry of
    the loss."""
    if not fields:
        return {}
    task = problem.task
    points = _points(problem.m_star + 1 + problem.m, _LOG_NODES)
    known, y, z = (jnp.moveaxis(a.reshape(*a.shape[:-1], -1, 2**_LOG_BLOCK), -2, 0) for a in columns.fresh(task, rho, points))

    def at(overlaps):
        Q, O = overlaps
        to_known, root = columns.student_fields(task, Q, O, rho)

        def block(nodes):
            known, y, z = nodes
            return field_sums(fields, task, to_known @ known + root @ z, y, mirror=True)

        sums = jax.lax.map(block, (known, y, z))
        return jax.tree.map(lambda a: jnp.sum(a, axis=0) / y.size, sums)

    # In reverse mode the nodes of one time are recomputed, not those of all times kept.
    return jax.lax.map(jax.checkpoint(at), (Q, O))


def weight_means(
    weights: dict[str, AbstractWeightMetric],
    task: AbstractTask,
    theta: Float[Array, "m group coordinate"],
    theta_star: Float[Array, "m_star group coordinate"],
    shares: Float[Array, " group"],
    member: Int[Array, "group ..."] | None = None,
) -> dict[str, Float[Array, "..."]]:
    """Means over coordinates of equal weight in each group, and over groups by their shares. `member`: to which of the problem's
    groups these belong, or each of their coordinates; by default they are those groups."""
    if not weights:
        return {}
    if member is None:
        member = jnp.arange(shares.size)

    def in_group(values):
        *values, member = values

        def mean_of(metric):
            def value(theta, theta_star):
                fields = columns.student(task, theta), columns.teacher(task, theta_star)
                return jnp.asarray(metric.of_coordinate(*fields)).astype(shares.dtype)

            found, factor = jax.vmap(value, (1, 1))(*values), metric.of_group(member)
            if factor is not None:
                found = found * jnp.reshape(factor, (-1, *[1] * (found.ndim - 1))).astype(found.dtype)
            return jnp.mean(found, axis=0)

        return {name: mean_of(metric) for name, metric in weights.items()}

    groups = (jnp.swapaxes(theta, 0, 1), jnp.swapaxes(theta_star, 0, 1), member)
    means = jax.lax.map(jax.checkpoint(in_group), groups)
    return jax.tree.map(lambda a: jnp.tensordot(shares, a, 1), means)


def _points(dimension: int, log_nodes: int) -> Float[Array, "dimension node"]:
    # The barrier keeps XLA from working out what follows from constants at compile time, slowly.
    return jax.lax.optimization_barrier(jnp.asarray(uniform_points(dimension, log_nodes), float))


def coordinate_nodes(
    problem: Problem,
) -> tuple[Float[Array, "{problem.m_star+2*problem.m} node"], Float[Array, "{problem.m_star} group node"]]:
    """Nodes of equal weight for coordinates of known law, the same in each group: unit entries of the teacher's columns, of the
    student's at the start, and normals for what is Gaussian, orthonormal, so that second moments are exact. And theta_star there.
    The more groups, the fewer nodes."""
    m, m_star = problem.m, problem.m_star
    normals = ndtri(_points(m_star + 2 * m, max(12, _LOG_NODES - (problem.features.groups - 1).bit_length())))
    nodes = orthonormal_entries([problem.teacher_prior] * m_star + [problem.student_prior] * m + [Normal()] * m, normals)
    return nodes, jnp.einsum("gac,cn->agn", problem.initial[:, :m_star], nodes[: m_star + m])


def linear_values(
    coefficients: Float[Array, "m group start"], covariance: Float[Array, "group m m"], nodes: Float[Array, "start+m node"]
) -> Float[Array, "m group node"]:
    """theta at the nodes: coefficients times the entries at the start, plus a Gaussian of this covariance in each group."""
    start = coefficients.shape[-1]

    def root(covariance):
        # By hand, column by column: batches of LAPACK's factorizations can hang jaxlib's CPU threads.
        return triangular_root(covariance, jnp.diagonal(covariance), 100 * float(jnp.finfo(covariance.dtype).eps))[0]

    gaussian = jnp.einsum("gab,bn->agn", jax.vmap(root)(covariance), nodes[start:])
    return jnp.einsum("agc,cn->agn", coefficients, nodes[:start]) + gaussian
