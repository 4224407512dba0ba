"""Tasks on arrays with the columns first, (column, ...): routes need not know whether a task has one field or several."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._base import AbstractTask, classifies
from ._base import fresh as fresh
from ._base import student_fields as student_fields


def student(task: AbstractTask, values: Float[Array, "m ..."]) -> Float[Array, "..."]:
    """One entry for each of the student's columns, as the task and its metrics take it."""
    return values[0] if task.columns is None else values


def teacher(task: AbstractTask, values: Float[Array, "m_star ..."]) -> Float[Array, "..."]:
    """One entry for each of the teacher's columns, as the task and its metrics take it."""
    return values[0] if task.teacher_columns is None else values


def loss(task: AbstractTask, r: Float[Array, "m ..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    return task.loss(r[0], y) if task.columns is None else _each(task.loss, r, y, 0)


def gradient(task: AbstractTask, r: Float[Array, "m ..."], y: Float[Array, "..."]) -> Float[Array, "m ..."]:
    """With derivatives, of any order, that see the jumps of a loss with kinks, over their width."""
    if task.kink_width == 0:
        return _gradient(task, r, y)
    return _over_kinks(_gradient, task.kink_width, task, r, y)


def _gradient(task: AbstractTask, r: Float[Array, "m ..."], y: Float[Array, "..."]) -> Float[Array, "m ..."]:
    return task.gradient(r[0], y)[None] if task.columns is None else _each(task.gradient, r, y, 1)


@eqx.filter_custom_jvp
def _over_kinks(function: Callable, width: float, parameters: Any, r: Array, y: Array) -> Float[Array, "m ..."]:
    """function(parameters, r, y), whose derivatives in the fields r and the label y are difference quotients over `width` to
    either side, and their derivatives again: those of the function averaged over a box, once for each order."""
    return function(parameters, r, y)


@_over_kinks.def_jvp
def _(primals, tangents):
    function, width, parameters, r, y = primals
    _, _, of_parameters, of_r, of_y = tangents

    def at(r, y):
        return _over_kinks(function, width, parameters, r, y)

    changes = []
    if of_r is not None:

        def slope(direction):
            shift = width * direction.reshape(-1, *[1] * (r.ndim - 1))
            return (at(r + shift, y) - at(r - shift, y)) / (2 * width)

        slopes = jax.vmap(slope, out_axes=1)(jnp.eye(r.shape[0], dtype=r.dtype))
        changes.append(jnp.sum(slopes * _padded(of_r, slopes.ndim - 1)[None], axis=1))
    if of_y is not None:
        slopes = (at(r, y + width) - at(r, y - width)) / (2 * width)
        changes.append(slopes * _padded(of_y, slopes.ndim - 1)[None])
    for index, change in enumerate(jax.tree.structure(parameters).flatten_up_to(of_parameters)):
        if change is not None:
            # The whole Jacobian, and not a product with the change, which would be differentiated without the rule here.
            jacobian = _over_kinks(eqx.Partial(_in_parameter, function, index), width, parameters, r, y)
            changes.append(jnp.tensordot(jacobian, change, jnp.ndim(change)))
    return at(r, y), sum(changes[1:], changes[0]) if changes else None


def _padded(array: Array, ndim: int) -> Array:
    """With axes of length 1 at the end, where a derivative in parameters has theirs."""
    return array.reshape(*array.shape, *[1] * (ndim - array.ndim))


def _in_parameter(function: Callable, index: int, parameters: Any, r: Array, y: Array) -> Float[Array, "m ..."]:
    """Derivative of function(parameters, r, y) in one leaf of the parameters."""
    leaves, structure = jax.tree.flatten(parameters)

    def at(leaf):
        return function(structure.unflatten([*leaves[:index], leaf, *leaves[index + 1 :]]), r, y)

    return jax.jacfwd(at)(leaves[index])


def curvature(task: AbstractTask, r: Float[Array, "m ..."], y: Float[Array, "..."]) -> Float[Array, "m m ..."]:
    """With derivatives that see where it jumps, over the width of that."""
    m = r.shape[0]
    flat = _curvature(task, r, y) if task.bend_width == 0 else _over_kinks(_curvature, task.bend_width, task, r, y)
    return flat.reshape(m, m, *flat.shape[1:])


def _curvature(task: AbstractTask, r: Float[Array, "m ..."], y: Float[Array, "..."]) -> Float[Array, "m*m ..."]:
    if task.columns is None:
        return task.curvature(r[0], y)[None]
    each = _each(task.curvature, r, y, 2)
    return each.reshape(-1, *each.shape[2:])


def error(task: AbstractTask, r: Float[Array, "m ..."], y: Float[Array, "..."]) -> Float[Array, "..."] | None:
    if not classifies(task):
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
    return _population(task, task.test_error, Q, O, rho) if classifies(task) else None


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
