"""Finite-size instances of a problem, and what is observed in them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..observables import Observables, from_kernel
from ..problem import Problem


class Instance(NamedTuple):
    """One draw: features (n, d), labels (n,), teacher and initial student (d,), eigenvalue of each coordinate (d,)."""

    features: Float[Array, "n d"]
    labels: Float[Array, " n"]
    teacher: Float[Array, " d"]
    student: Float[Array, " d"]
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
    """Teacher and student have exactly their scales in each group, and are orthogonal there: this removes fluctuations of
    order 1/sqrt(d) that say nothing about training, at a bias of order 1/d like any other finite-size effect."""
    groups = len(sizes)
    dimension = sum(sizes)
    key_x, key_teacher, key_student, key_label = jax.random.split(key, 4)
    member = jnp.repeat(jnp.arange(groups), np.asarray(sizes), total_repeat_length=dimension)
    eigenvalues = problem.features.eigenvalues[member]

    def per_group(values):
        return jax.ops.segment_sum(values, member, num_segments=groups)[member]

    def scaled(direction, scale):
        scale = jnp.broadcast_to(jnp.asarray(scale, dtype=float), (groups,))[member]
        return scale * direction / jnp.sqrt(per_group(direction**2) / per_group(jnp.ones(dimension)))

    a = jax.random.normal(key_teacher, (dimension,))
    b = jax.random.normal(key_student, (dimension,))
    # A group of one coordinate has no room for an orthogonal direction.
    room = jnp.asarray(np.asarray(sizes) > 1)[member]
    b = jnp.where(room, b - per_group(a * b) / per_group(a**2) * a, b)
    teacher, student = scaled(a, problem.teacher_scale), scaled(b, problem.student_scale)
    x = jax.random.normal(key_x, (samples, dimension)) * jnp.sqrt(eigenvalues / dimension)
    labels = problem.task.label(x @ teacher, jax.random.uniform(key_label, (samples,), minval=1e-7, maxval=1 - 1e-7))
    return Instance(x, labels, teacher, student, eigenvalues)


def observe(problem: Problem, instance: Instance, path: Float[Array, "time d"]) -> Observables:
    """Observables along a path of weights."""
    dimension = path.shape[1]
    fields = path @ instance.features.T
    y = jnp.broadcast_to(instance.labels, fields.shape)
    error = problem.task.error(fields, y)
    weighted = path * instance.eigenvalues
    return from_kernel(
        problem,
        weighted @ path.T / dimension,
        weighted @ instance.teacher / dimension,
        jnp.sum(path**2, axis=1) / dimension,
        jnp.mean(problem.task.loss(fields, y), axis=1),
        None if error is None else jnp.mean(error, axis=1),
        jnp.sum(instance.eigenvalues * instance.teacher**2) / dimension,
    )
