"""Finite-size instances of a problem, and what is observed in them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int

from .._checks import is_concrete
from ..problem import Problem
from ..problem.priors import Normal
from ..results.measure import Measured, Metrics, field_sums, weight_means
from ..results.observables import Observables, from_kernel
from ..tasks import columns as tasks


class Instance(NamedTuple):
    """One draw: features (n, d), labels (n,), teacher and initial student columns; eigenvalues and groups of coordinates (d,)."""

    features: Float[Array, "n d"]
    labels: Float[Array, " n"]
    teacher: Float[Array, "m_star d"]
    student: Float[Array, "m d"]
    eigenvalues: Float[Array, " d"]
    member: Int[Array, " d"]


def group_sizes(problem: Problem, dimension: int) -> np.ndarray:
    """Coordinates per eigenvalue group: weights * dimension, rounded by largest remainder. Groups that differ in nothing but
    their weights are rounded as one, then share its coordinates."""
    weights = np.asarray(problem.features.weights, dtype=float)
    same = _alike(problem)
    share = np.bincount(same, weights=weights) * dimension
    sizes = _rounded(share, dimension)
    off = np.abs(sizes - share) / share
    if np.any(off > 0.05):
        a = int(np.argmax(off))
        raise ValueError(
            f"dimension {dimension} cannot hold the spectrum: group {int(np.argmax(same == a))} has weight "
            f"{share[a] / dimension:.4g}, {share[a]:.2f} coordinates. Choose a larger dimension, or one that makes "
            "weights * dimension whole numbers."
        )
    parts = np.zeros(weights.size, dtype=int)
    for a, size in enumerate(sizes):
        parts[same == a] = _rounded(weights[same == a] * dimension * size / share[a], size)
    return parts


def _alike(problem: Problem) -> np.ndarray:
    """For each group the number of its kind: eigenvalue, scales and correlations, where these are known."""
    groups = problem.features.groups
    values = (problem.features.eigenvalues, problem.teacher_scale, problem.student_scale)
    if np.ndim(problem.initial_correlation) == 3:
        # Of each group its own: told by the entries themselves.
        values = (problem.features.eigenvalues, problem.initial.reshape(groups, -1))
    if not all(is_concrete(value) for value in values):
        return np.arange(groups)

    def rows(value):
        value = np.asarray(value, dtype=float)
        value = value if value.ndim == 2 else value[..., None]
        return np.broadcast_to(value, (groups, value.shape[-1]))

    known = np.concatenate([rows(value) for value in values], axis=1)
    _, first, kinds = np.unique(known, axis=0, return_index=True, return_inverse=True)
    # In the order of the groups.
    return np.argsort(np.argsort(first))[kinds.ravel()]


def _rounded(share: np.ndarray, total: int | np.integer) -> np.ndarray:
    sizes = np.floor(share + 1e-6).astype(int)
    order = np.argsort(sizes - share, kind="stable")
    sizes[order[: total - sizes.sum()]] += 1
    return sizes


def draw(problem: Problem, member: Int[Array | np.ndarray, " d"], samples: int, key: Array) -> Instance:
    """One instance whose coordinates belong to the groups `member`, in increasing order.

    Teacher and student have exactly their scales and correlations in each group (where it has room for them): this removes
    fluctuations of order 1/sqrt(d) that say nothing about training, at a bias of order 1/d like any other finite-size effect.
    So does giving the entries of a prior exactly its law, in random order: few entries make the second moment of a sparse one."""
    groups, m_star, dimension = problem.features.groups, problem.m_star, member.shape[0]
    key_x, key_columns, key_label = jax.random.split(key, 3)
    eigenvalues = problem.features.eigenvalues[member]
    sizes = jnp.bincount(member, length=groups)

    def mean(values):
        """Over the coordinates of each group."""
        sums = jax.ops.segment_sum(values, member, num_segments=groups)
        return (sums / jnp.maximum(sizes, 1).astype(values.dtype))[member]

    normals = jax.random.normal(key_columns, (m_star + problem.m, dimension))
    priors = [problem.teacher_prior] * m_star + [problem.student_prior] * problem.m
    columns: list[Array] = []
    for count, (prior, normal) in enumerate(zip(priors, normals, strict=True)):
        column = normal if isinstance(prior, Normal) else prior.entries(_by_rank(normal, member, sizes))
        # Orthogonal to the columns before it in groups that are large enough.
        room = sizes[member] > count
        for earlier in columns:
            column = jnp.where(room, column - mean(column * earlier) * earlier, column)
        columns.append(column / jnp.sqrt(mean(column**2)))
    entries = jnp.einsum("dab,bd->ad", problem.initial[member], jnp.stack(columns))
    teacher, student = entries[:m_star], entries[m_star:]
    x = jax.random.normal(key_x, (samples, dimension)) * jnp.sqrt(eigenvalues / dimension)[None]
    noise = jax.random.uniform(key_label, (samples,), minval=1e-7, maxval=1 - 1e-7)
    if problem.task.mixture:
        indicators, labels = problem.task.sample(jnp.zeros((m_star, samples)), noise, jnp.eye(m_star))
        x = x + indicators.T @ (teacher * eigenvalues[None]) / dimension
    else:
        labels = tasks.label(problem.task, teacher @ x.T, noise)
    return Instance(x, labels, teacher, student, eigenvalues, jnp.asarray(member))


def _by_rank(
    normals: Float[Array, " d"], member: Int[Array | np.ndarray, " d"], sizes: Int[Array, " group"]
) -> Float[Array, " d"]:
    """In each group the quantiles of the normal law in the order of `normals`."""
    starts = jnp.cumsum(sizes) - sizes
    order = jnp.lexsort((normals, member))
    places = jnp.arange(member.shape[0]) - starts[member]
    ranks = jnp.zeros_like(normals).at[order].set(places.astype(normals.dtype))
    return ndtri((ranks + 0.5) / sizes[member].astype(normals.dtype))


def observe(problem: Problem, instance: Instance, path: Float[Array, "time m d"], metrics: Metrics) -> Observables:
    """Observables along a path of weights."""
    dimension = path.shape[-1]
    fields = jnp.moveaxis(path @ instance.features.T, 1, 0)
    y = jnp.broadcast_to(instance.labels, fields.shape[1:])
    error = tasks.error(problem.task, fields, y)
    weighted = path * instance.eigenvalues[None, None]
    teacher = instance.teacher

    def measure(theta):
        sums = field_sums(metrics.fields, problem.task, theta @ instance.features.T, instance.labels, mirror=False)
        coordinates = weight_means(
            metrics.weights, problem.task, theta[:, None], teacher[:, None], jnp.ones(1, theta.dtype), instance.member[None]
        )
        return jax.tree.map(lambda a: a / instance.labels.size, sums), coordinates

    train_metrics, weight_metrics = jax.lax.map(measure, path) if any(metrics) else ({}, {})
    return from_kernel(
        problem,
        jnp.einsum("tad,sbd->tsab", weighted, path) / dimension,
        weighted @ teacher.T / dimension,
        path @ jnp.swapaxes(path, 1, 2) / dimension,
        jnp.mean(tasks.loss(problem.task, fields, y), axis=1),
        None if error is None else jnp.mean(error, axis=1),
        (teacher * instance.eigenvalues[None]) @ teacher.T / dimension,
        measured=Measured(metrics.fields, train_metrics, weight_metrics),
    )
