"""Tasks on arrays with the columns first, (column, ...): routes need not know whether a task has one field or several."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._base import AbstractTask


def loss(task: AbstractTask, r: Float[Array, "m ..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    return task.loss(r[0], y) if task.columns is None else _each(task.loss, r, y, 0)


def gradient(task: AbstractTask, r: Float[Array, "m ..."], y: Float[Array, "..."]) -> Float[Array, "m ..."]:
    if task.kink_width == 0:
        return _gradient(task, r, y)
    # The value, with derivatives that see the jumps: slopes over the kink's width times what moves.
    fixed, label = jax.lax.stop_gradient((r, y))
    slope = jax.lax.stop_gradient(curvature(task, fixed, label))
    w = task.kink_width
    with_label = jax.lax.stop_gradient((_gradient(task, fixed, label + w) - _gradient(task, fixed, label - w)) / (2 * w))
    return _gradient(task, fixed, label) + jnp.sum(slope * (r - fixed), axis=1) + with_label * (y - label)


def _gradient(task: AbstractTask, r: Float[Array, "m ..."], y: Float[Array, "..."]) -> Float[Array, "m ..."]:
    return task.gradient(r[0], y)[None] if task.columns is None else _each(task.gradient, r, y, 1)


def curvature(task: AbstractTask, r: Float[Array, "m ..."], y: Float[Array, "..."]) -> Float[Array, "m m ..."]:
    return task.curvature(r[0], y)[None, None] if task.columns is None else _each(task.curvature, r, y, 2)


def error(task: AbstractTask, r: Float[Array, "m ..."], y: Float[Array, "..."]) -> Float[Array, "..."] | None:
    if not task.classifies:
        return None
    return task.error(r[0], y) if task.columns is None else _each(task.error, r, y, 0)


def sample(
    task: AbstractTask, u_teacher: Float[Array, "m_star sample"], u_label: Float[Array, " sample"], root: Array
) -> tuple[Float[Array, "m_star sample"], Float[Array, " sample"]]:
    """Teacher fields as independent normals, `root` taking them to w_star (or cluster indicators), and labels."""
    if task.teacher_columns is None:
        xi, y = task.sample(u_teacher[0], u_label, root[0, 0])
        return xi[None], y
    return task.sample(u_teacher, u_label, root)


def label(task: AbstractTask, w_star: Float[Array, "m_star sample"], noise: Float[Array, " sample"]) -> Float[Array, " sample"]:
    return task.label(w_star[0], noise) if task.teacher_columns is None else jax.vmap(task.label, (1, 0))(w_star, noise)


def test_risk(task, Q: Float[Array, "time m m"], O: Float[Array, "time m m_star"], rho: Array) -> Float[Array, " time"]:
    return _population(task, task.test_risk, Q, O, rho)


def test_error(task, Q: Float[Array, "time m m"], O: Float[Array, "time m m_star"], rho: Array) -> Float[Array, " time"] | None:
    return _population(task, task.test_error, Q, O, rho) if task.classifies else None


def _population(task: AbstractTask, function: Callable, Q: Array, O: Array, rho: Array):
    if task.columns is None:
        return function(Q[:, 0, 0], O[:, 0, 0], rho[0, 0])
    return jax.lax.map(lambda qo: function(*qo, rho), (Q, O))


def _each(function: Callable, r: Array, y: Array, outputs: int) -> Array:
    """`function` of every sample: (m,), () -> `outputs` axes, which come first in the result."""
    samples = jnp.moveaxis(r, 0, -1).reshape(-1, r.shape[0])
    result = jax.vmap(function)(samples, jnp.ravel(jnp.broadcast_to(y, r.shape[1:])))
    axes = range(1, outputs + 1)
    return jnp.moveaxis(result, tuple(axes), tuple(range(outputs))).reshape(*result.shape[1:], *r.shape[1:])
