"""Finite-size instances of a problem, and what is observed in them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from .._measure import Measured, Metrics, field_sums, weight_means
from ..observables import Observables, from_kernel
from ..priors import Normal
from ..problem import Problem
from ..tasks import _columns as tasks


class Instance(NamedTuple):
    """One draw: features (n, d), labels (n,), teacher and initial student columns, eigenvalue of each coordinate (d,)."""

    features: Float[Array, "n d"]
    labels: Float[Array, " n"]
    teacher: Float[Array, "m_star d"]
    student: Float[Array, "m d"]
    eigenvalues: Float[Array, " d"]


def group_sizes(weights: Any, dimension: int) -> np.ndarray:
    """Coordinates per eigenvalue group: weights * dimension, rounded by largest remainder."""
    share = np.asarray(weights, dtype=float) * dimension
    sizes = np.floor(share + 1e-6).astype(int)
    order = np.argsort(sizes - share, kind="stable")
    sizes[order[: dimension - sizes.sum()]] += 1
    off = np.abs(sizes - share) / share
    if np.any(off > 0.05):
        a = int(np.argmax(off))
        raise ValueError(
            f"dimension {dimension} cannot hold the spectrum: group {a} has weight {float(np.asarray(weights)[a]):.4g}, "
            f"{share[a]:.2f} coordinates. Choose a larger dimension, or one that makes weights * dimension whole numbers."
        )
    return sizes


def draw(problem: Problem, sizes: tuple[int, ...], samples: int, key: Array) -> Instance:
    """Teacher and student have exactly their scales and correlations in each group (where it has room for them): this removes
    fluctuations of order 1/sqrt(d) that say nothing about training, at a bias of order 1/d like any other finite-size effect.
    So does giving the entries of a prior exactly its law, in random order: few entries make the second moment of a sparse one."""
    groups, m_star = len(sizes), problem.m_star
    dimension = sum(sizes)
    key_x, key_columns, key_label = jax.random.split(key, 3)
    member = jnp.repeat(jnp.arange(groups), np.asarray(sizes), total_repeat_length=dimension)
    eigenvalues = problem.features.eigenvalues[member]

    def mean(values):
        """Over the coordinates of each group."""
        return (jax.ops.segment_sum(values, member, num_segments=groups) / jnp.asarray(sizes, values.dtype))[member]

    normals = jax.random.normal(key_columns, (m_star + problem.m, dimension))
    priors = [problem.teacher_prior] * m_star + [problem.student_prior] * problem.m
    columns: list[Array] = []
    for count, (prior, normal) in enumerate(zip(priors, normals, strict=True)):
        column = normal if isinstance(prior, Normal) else prior.entries(_by_rank(normal, sizes))
        # Orthogonal to the columns before it in groups that are large enough.
        room = jnp.asarray(np.asarray(sizes) > count)[member]
        for earlier in columns:
            column = jnp.where(room, column - mean(column * earlier) * earlier, column)
        columns.append(column / jnp.sqrt(mean(column**2)))
    entries = jnp.einsum("dab,bd->ad", problem.initial[member], jnp.stack(columns))
    teacher, student = entries[:m_star], entries[m_star:]
    x = jax.random.normal(key_x, (samples, dimension)) * jnp.sqrt(eigenvalues / dimension)
    noise = jax.random.uniform(key_label, (samples,), minval=1e-7, maxval=1 - 1e-7)
    if problem.task.mixture:
        indicators, labels = problem.task.sample(jnp.zeros((m_star, samples)), noise, jnp.eye(m_star))
        x = x + indicators.T @ (teacher * eigenvalues) / dimension
    else:
        labels = tasks.label(problem.task, teacher @ x.T, noise)
    return Instance(x, labels, teacher, student, eigenvalues)


def _by_rank(normals: Float[Array, " d"], sizes: tuple[int, ...]) -> Float[Array, " d"]:
    """In each group the quantiles of the normal law in the order of `normals`."""
    parts = jnp.split(normals, np.cumsum(sizes)[:-1])
    ranks = [jnp.argsort(jnp.argsort(part)).astype(normals.dtype) for part in parts]
    return ndtri(jnp.concatenate([(rank + 0.5) / max(size, 1) for rank, size in zip(ranks, sizes, strict=True)]))


def observe(problem: Problem, instance: Instance, path: Float[Array, "time m d"], metrics: Metrics) -> Observables:
    """Observables along a path of weights."""
    dimension = path.shape[-1]
    fields = jnp.moveaxis(path @ instance.features.T, 1, 0)
    y = jnp.broadcast_to(instance.labels, fields.shape[1:])
    error = tasks.error(problem.task, fields, y)
    weighted = path * instance.eigenvalues
    teacher = instance.teacher

    def measure(theta):
        sums = field_sums(metrics.fields, problem.task, theta @ instance.features.T, instance.labels, mirror=False)
        coordinates = weight_means(metrics.weights, problem.task, theta[:, None], teacher[:, None], jnp.ones(1, theta.dtype))
        return jax.tree.map(lambda a: a / instance.labels.size, sums), coordinates

    train_metrics, weight_metrics = jax.lax.map(measure, path) if any(metrics) else ({}, {})
    return from_kernel(
        problem,
        jnp.einsum("tad,sbd->tsab", weighted, path) / dimension,
        weighted @ teacher.T / dimension,
        path @ jnp.swapaxes(path, 1, 2) / dimension,
        jnp.mean(tasks.loss(problem.task, fields, y), axis=1),
        None if error is None else jnp.mean(error, axis=1),
        (teacher * instance.eigenvalues) @ teacher.T / dimension,
        measured=Measured(metrics.fields, train_metrics, weight_metrics),
    )
