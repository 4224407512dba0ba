"""Protocol: what is tuned."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_instance, check_real, front_door, is_concrete
from .._register import register_part
from .schedules import Constant, knots_of
from .updates import AbstractUpdate
from .variables import number

# What each field may not fall below, and why. (Momentum must stay below 1 as well.)
_DOMAIN = {
    "learning_rate": (0.0, "Learning rates cannot be negative."),
    "batch_size": (1.0, "SGD uses at least one sample per step."),
    "ridge": (0.0, "A negative ridge is unbounded below."),
    "momentum": (0.0, "It is a share of the last change."),
    "friction": (0.0, "With less than none nothing ever comes to rest."),
}
# What rounding may take off a minimum: a batch size of 1 is exp(log(1)) where logarithms are tuned, and 1 + s (B - 1) under a
# budget. Such values are used as they are.
_ROUNDING = 1e-6


class Momentum(eqx.Module):
    """Of algorithms with discrete updates theta_k -> theta_k - u_k, with the coefficient beta of each update.

    Heavy ball: theta_{k+1} = theta_k - u_k + beta_k (theta_k - theta_{k-1}).
    Nesterov: y_{k+1} = theta_{k+1} + beta_k (theta_{k+1} - theta_k), where theta_{k+1} = y_k - u_k with u_k the update at y_k.
    """

    coefficient: Any
    nesterov: bool = eqx.field(static=True)

    def carry(self, here: Array, moved: Array, memory: Array) -> tuple[Array, Array]:
        """From where the gradient was taken, the same less the update, and the last memory (at first the start itself): where the
        next gradient is taken, and the memory for then."""
        if self.nesterov:
            return moved + self.coefficient * (moved - memory), moved
        return moved + self.coefficient * (here - memory), here


@register_part
class Protocol(eqx.Module):
    """Learning rate, batch size, ridge and momentum as functions of time t = steps/d.

    Each argument is a number, an array scalar, a variable (`dmftopt.above`, `dmftopt.between`) or a callable of t (a schedule).
    Plain Python numbers are held fixed by `dmftopt.optimize`; JAX arrays, variables, and those inside schedules, are tuned.

    - `learning_rate`: eta(t) >= 0, the rate of ordinary SGD on features of unit mean square norm.
    - `batch_size`: B(t) >= 1, samples per SGD step.
    - `ridge`: strength of the regularizer, >= 0: coefficient of its gradient h(theta), which is theta unless the problem has
      another `regularizer`.
    - `momentum`: beta(t) in [0, 1) of each update, theta_{k+1} = theta_k - update + beta (theta_k - theta_{k-1}); None: none. In
      algorithms that are discrete by nature (`DiscreteStep`) it is a memory of earlier updates. Small-batch SGD makes T d steps
      and such a memory lasts 1 / (1 - beta) of them: in the limit d -> infinity, in continuous time, all that beta does is turn
      the learning rate eta into eta / (1 - beta), and so the routes in continuous time take it.
    - `nesterov`: Nesterov's look-ahead in place of the heavy ball. Results are then about the points where gradients are taken
      (in continuous time there is no difference).
    - `friction`: gamma(t) of a heavy ball whose memory is of order d: SGD with beta = 1 - gamma / d and the learning rate
      eta / d, that is d theta / dt = v, dv = -gamma v dt - eta (gradient and its noise). None: none. At large gamma it is SGD at
      the rate eta / gamma.
    - `update`: what the optimizer makes of a batch's gradient, see `dmftopt.updates`: `updates.Adam(memory)`, `Clipped(1.0)`, ...
      None: SGD. The ridge then acts beside the update, as AdamW's weight decay does.
    """

    learning_rate: Callable
    batch_size: Callable
    ridge: Callable
    momentum: Callable | None
    nesterov: bool = eqx.field(static=True)
    update: AbstractUpdate | None
    friction: Callable | None

    @front_door
    def __init__(
        self,
        learning_rate: Any,
        batch_size: Any = 1.0,
        ridge: Any = 0.0,
        momentum: Any = None,
        *,
        nesterov: bool = False,
        update: AbstractUpdate | None = None,
        friction: Any = None,
    ):
        self.learning_rate = _as_schedule("learning_rate", learning_rate)
        self.batch_size = _as_schedule("batch_size", batch_size)
        self.ridge = _as_schedule("ridge", ridge)
        self.momentum = None if momentum is None else _as_schedule("momentum", momentum)
        if not isinstance(nesterov, bool) or (nesterov and momentum is None):
            raise ValueError(f"nesterov must be True or False, and True goes with a momentum, got {nesterov!r}.")
        self.nesterov = nesterov
        if update is not None:
            check_instance("update", update, AbstractUpdate, "Pass dmftopt.updates.Adam(), say.")
            if momentum is not None:
                raise ValueError("momentum: an update has none beside it (Adam's own is beta1). Leave one of them out.")
        self.update = update
        if friction is not None and (momentum is not None or update is not None):
            raise ValueError("friction is a momentum of its own. Leave momentum and update out.")
        self.friction = None if friction is None else _as_schedule("friction", friction)

    def in_continuous_time(self) -> "Protocol":
        """The protocol without momentum that SGD with momentum amounts to as d -> infinity."""
        if self.momentum is None:
            return self
        return Protocol(_Amplified(self.learning_rate, self.momentum), self.batch_size, self.ridge, update=self.update)

    @property
    def knots(self) -> Float[Array, " knot"]:
        """Times at which one of the schedules says that it jumps or has kinks, field by field (see `dmftopt.schedules`)."""
        fields = (self.learning_rate, self.batch_size, self.ridge, self.momentum, self.friction)
        return jnp.concatenate([knots_of(field) for field in fields if field is not None])


class _Amplified(eqx.Module):
    """eta / (1 - beta)."""

    learning_rate: Callable
    momentum: Callable

    def __call__(self, t: Any) -> Any:
        momentum = values_at("momentum", self.momentum, jnp.asarray(t, dtype=float))
        # Traced and outside its domain: a rate that every route knows to be invalid.
        valid = in_domain("momentum", momentum)
        return jnp.where(valid, self.learning_rate(t) / (1 - jnp.where(valid, momentum, 0.0)), -1.0)

    @property
    def knots(self) -> Float[Array, " knot"]:
        return jnp.concatenate([knots_of(self.learning_rate), knots_of(self.momentum)])


def values_at(name: str, schedule: Callable, times: Float[Array, "*time"]) -> Float[Array, "*time"]:
    """The values of a protocol's field `name`. Raises ValueError for another shape and for concrete values outside the domain."""
    values = schedule(times if times.ndim < 2 else times.ravel())
    if not isinstance(values, (jax.Array, np.ndarray, np.number, float, int)) or np.iscomplexobj(values):
        kind = "complex numbers" if np.iscomplexobj(values) else type(values).__name__
        raise TypeError(f"{name} must return one real value per time, got {kind}. Pass a schedule, a function of t.")
    values = jnp.asarray(values, dtype=times.dtype)
    if values.shape not in ((), (times.size,), times.shape):
        raise ValueError(
            f"{name} must return one value per time, shape {(times.size,)} or (), got {values.shape}. "
            "Write the schedule with jax.numpy, elementwise in t."
        )
    if is_concrete(values):
        _check(name, np.broadcast_to(values, (times.size,)), times)
    return jnp.broadcast_to(values, (times.size,)).reshape(times.shape)


def in_domain(name: str, values: Any) -> Any:
    """Of each value of a protocol's field `name`, whether it may be."""
    inside = (values >= _DOMAIN[name][0] * (1 - _ROUNDING)) & (values < np.inf)
    return inside & (values < 1) if name == "momentum" else inside


def _check(name: str, values: np.ndarray, times: Array | None = None) -> None:
    inside = in_domain(name, values)
    if inside.all():
        return
    first = int(np.argmin(inside))
    value, (minimum, cure) = values[first], _DOMAIN[name]
    must = f">= {minimum:g}"
    if not np.isfinite(value):
        must, cure = "finite", "Remove what divides by zero or overflows."
    elif value > minimum:
        must, cure = "below 1", "At 1 nothing ever comes to rest. Lower it."
    when = "" if times is None or not is_concrete(times) else f" at t = {float(jnp.ravel(times)[first]):.4g}"
    raise ValueError(f"{name} must be {must} at every time, got {value:.4g}{when}. {cure}")


def _as_schedule(name: str, value: Any) -> Callable:
    if callable(value):
        return value
    given = number(value)
    check_real(name, given)
    if np.shape(given) != ():
        raise ValueError(
            f"{name} must be a scalar or a callable of t, got an array of shape {np.shape(given)}. "
            "Use dmftopt.schedules.PiecewiseLinear for values at knots, jax.vmap for a sweep."
        )
    if is_concrete(given):
        _check(name, np.asarray(given, dtype=float).ravel())
    return Constant(value)
