"""Tuned numbers with a domain: what is stored is free, the number itself cannot leave its bounds.

A variable goes wherever a schedule or a protocol takes a number: a peak, an exponent, a ridge, a horizon, values at knots.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import as_number, check_real, front_door, is_concrete
from .._register import register_part


class AbstractVariable(eqx.Module):
    """`raw`: any real numbers, what gradient steps are taken in. Bounds are fixed."""

    raw: eqx.AbstractVar[Float[Array, "..."]]

    @property
    @abc.abstractmethod
    def value(self) -> Float[Array, "..."]: ...


@register_part
class Above(AbstractVariable):
    """low + exp(raw)."""

    raw: Float[Array, "..."]
    low: float = eqx.field(static=True)

    @property
    def value(self):
        return self.low + jnp.exp(self.raw)


@register_part
class Between(AbstractVariable):
    """low + (high - low) / (1 + exp(-raw))."""

    raw: Float[Array, "..."]
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)

    @property
    def value(self):
        return self.low + (self.high - self.low) * jax.nn.sigmoid(self.raw)


@front_door
def above(value: Any, low: float = 0.0) -> Above:
    """A tuned number larger than `low`, starting at `value`. Gradient steps are relative to its distance from `low`."""
    return _above("value", value, low)


@front_door
def between(value: Any, low: float, high: float) -> Between:
    """A tuned number in the open interval (low, high), starting at `value`. Rounding may take it onto a bound, never beyond."""
    return _between("value", value, low, high)


def number(value: Any) -> Any:
    """What a variable stands for; anything else as it is."""
    return value.value if isinstance(value, AbstractVariable) else value


def as_variable(value: Any) -> Any:
    """For fields of modules: variables as they are, numbers as `as_number` has them."""
    return value if isinstance(value, AbstractVariable) else as_number(value)


def within(name: str, value: Any, bounds: Any) -> Any:
    """`value` as a variable with these bounds (None: none on that side; only an upper one is not offered)."""
    if bounds is None:
        return jnp.asarray(value, dtype=float)
    try:
        low, high = bounds
    except (TypeError, ValueError):
        raise ValueError(f"bounds must be a pair (low, high), got {bounds!r}. For no upper bound pass (low, None).") from None
    if low is None:
        raise ValueError(f"bounds of {name} need a lower one, got {bounds!r}.")
    return _above(name, value, low) if high is None else _between(name, value, low, high)


def _above(name: str, value: Any, low: Any) -> Above:
    low = _bound("low", low)
    return Above(jnp.log(_inside(name, value, low) - low), low)


def _between(name: str, value: Any, low: Any, high: Any) -> Between:
    low, high = _bound("low", low), _bound("high", high)
    if not low < high:
        raise ValueError(f"low must be below high, got {low:g} and {high:g}.")
    value = _inside(name, value, low, high)
    return Between(jnp.log(value - low) - jnp.log(high - value), low, high)


def _bound(name: str, value: Any) -> float:
    check_real(name, value)
    if np.ndim(value) != 0 or not is_concrete(value):
        raise TypeError(f"{name} must be one fixed number, got {value!r}.")
    return float(value)


def _inside(name: str, value: Any, low: float, high: float = np.inf) -> Array:
    check_real(name, value)
    if is_concrete(value) and not np.all((np.asarray(value) > low) & (np.asarray(value) < high)):
        above = f"above {low:g}" + (f" and below {high:g}" if high < np.inf else "")
        raise ValueError(f"{name} must start {above}, got {value!r}. Start strictly inside: gradient steps cannot leave a bound.")
    return jnp.asarray(value, dtype=float)
