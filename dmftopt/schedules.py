"""Functions of time t with trainable leaves, and the way to and from optax.

The map between optax's step count and time is t = step / d, written down here and nowhere else. Arrays in a schedule are
trainable, Python numbers (horizons, exponents, fractions) are fixed; pass a JAX array to train one of those too. Peaks are
stored as logarithms, so gradient steps are relative and a rate stays positive.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._checks import as_number, check_count, check_real, check_shape, is_concrete


class Constant(eqx.Module):
    """s(t) = value, or exp(value) with `log`."""

    value: Any = eqx.field(converter=as_number)
    log: bool = eqx.field(static=True, default=False)

    def __call__(self, t: Any) -> Float[Array, "..."]:
        value = jnp.exp(self.value) if self.log else jnp.asarray(self.value, dtype=float)
        return jnp.broadcast_to(value, jnp.shape(t))


class PiecewiseLinear(eqx.Module):
    """Linear interpolation between `values` at `times`, constant outside; of exp(values) in log value with `log`."""

    times: tuple[float, ...] = eqx.field(static=True, converter=lambda times: tuple(float(t) for t in times))
    values: Float[Array, " knot"] = eqx.field(converter=as_number)
    log: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_real("times", self.times)
        check_real("values", self.values)
        check_shape("values", self.values, ((len(self.times),),), "Give one value per knot time.")
        if np.any(np.diff(self.times) <= 0):
            raise ValueError(f"times must be increasing, got {self.times}. Sort the knots.")

    def __call__(self, t: Any) -> Float[Array, "..."]:
        t = jnp.asarray(t, dtype=float)
        value = jnp.interp(t, jnp.asarray(self.times, dtype=t.dtype), self.values.astype(t.dtype))
        return jnp.exp(value) if self.log else value


class Decay(eqx.Module):
    """s(t) = peak * (final + (1 - final) * shape(t / horizon)), shape falling from 1 at t = 0 to 0 at t = horizon."""

    log_peak: Float[Array, ""]
    horizon: Any = eqx.field(converter=as_number)
    final: Any = eqx.field(converter=as_number)
    shape: str = eqx.field(static=True)

    def __call__(self, t: Any) -> Float[Array, "..."]:
        u = jnp.minimum(jnp.asarray(t, dtype=float) / self.horizon, 1.0)
        fall = 1.0 - u if self.shape == "linear" else 0.5 * (1.0 + jnp.cos(jnp.pi * u))
        return jnp.exp(self.log_peak) * (self.final + (1.0 - self.final) * fall)


class PowerLaw(eqx.Module):
    """s(t) = peak * (1 + t / timescale)^-exponent."""

    log_peak: Float[Array, ""]
    exponent: Any = eqx.field(converter=as_number)
    timescale: Any = eqx.field(converter=as_number)

    def __call__(self, t: Any) -> Float[Array, "..."]:
        return jnp.exp(self.log_peak) * (1.0 + jnp.asarray(t, dtype=float) / self.timescale) ** (-self.exponent)


class WarmupStableDecay(eqx.Module):
    """Linear from 0 to peak until `warmup`, peak until horizon - `decay`, then linear to `final` * peak at `horizon`."""

    log_peak: Float[Array, ""]
    horizon: Any = eqx.field(converter=as_number)
    warmup: Any = eqx.field(converter=as_number)
    decay: Any = eqx.field(converter=as_number)
    final: Any = eqx.field(converter=as_number)

    def __call__(self, t: Any) -> Float[Array, "..."]:
        t = jnp.asarray(t, dtype=float)
        up = jnp.minimum(t / self.warmup, 1.0)
        remaining = jnp.minimum(jnp.maximum(self.horizon - t, 0.0) / self.decay, 1.0)
        return jnp.exp(self.log_peak) * up * (self.final + (1.0 - self.final) * remaining)


class FromOptax(eqx.Module):
    """s(t) = scale * schedule(t * dimension). Fixed: an optax schedule has no trainable leaves."""

    schedule: Callable = eqx.field(static=True)
    dimension: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __call__(self, t: Any) -> Float[Array, "..."]:
        return self.scale * jnp.asarray(self.schedule(jnp.asarray(t, dtype=float) * self.dimension), dtype=float)


def constant(value: Any, *, log: bool = False) -> Constant:
    """A trainable constant, positive and stored as its logarithm with `log`."""
    check_real("value", value, minimum=0.0 if log else None, exclusive=True, cure="A logarithm needs a positive value.")
    value = jnp.asarray(value, dtype=float)
    return Constant(jnp.log(value) if log else value, log)


def piecewise_linear(horizon: float, knots: int, initial: Any, *, log: bool = False) -> PiecewiseLinear:
    """`knots` equally spaced knots from 0 to `horizon`, all at `initial` (a number, one value per knot, or a schedule)."""
    _check_positive("horizon", horizon)
    check_count("knots", knots, minimum=2, cure="Use dmftopt.schedules.constant for a single value.")
    times = np.linspace(0.0, float(horizon), knots)
    values = jnp.asarray(initial(jnp.asarray(times)) if callable(initial) else initial, dtype=float)
    check_shape("initial", values, ((), (knots,)), "Give one number, or one per knot.")
    check_real("initial", values, minimum=0.0 if log else None, exclusive=True, cure="A logarithm needs positive values.")
    values = jnp.broadcast_to(values, (knots,))
    return PiecewiseLinear(times, jnp.log(values) if log else values, log)


def linear_decay(peak: Any, horizon: float, final: Any = 0.0) -> Decay:
    """Linear from `peak` at 0 to `final * peak` at `horizon`, constant beyond."""
    return _decay(peak, horizon, final, "linear")


def cosine(peak: Any, horizon: float, final: Any = 0.0) -> Decay:
    """Half a cosine from `peak` at 0 to `final * peak` at `horizon`, constant beyond."""
    return _decay(peak, horizon, final, "cosine")


def power_law(peak: Any, exponent: Any, timescale: Any = 1.0) -> PowerLaw:
    """peak * (1 + t / timescale)^-exponent."""
    check_real("exponent", exponent)
    _check_positive("timescale", timescale)
    return PowerLaw(_log_peak(peak), exponent, timescale)


def warmup_stable_decay(peak: Any, horizon: float, warmup: float, decay: float, final: Any = 0.0) -> WarmupStableDecay:
    """Linear warmup over `warmup`, then `peak`, then linear decay over the last `decay` units of time to `final * peak`."""
    for name, value in (("horizon", horizon), ("warmup", warmup), ("decay", decay)):
        _check_positive(name, value)
    check_real("final", final, minimum=0.0)
    if all(is_concrete(v) for v in (warmup, decay, horizon)) and warmup + decay > horizon:
        raise ValueError(f"warmup + decay must be at most the horizon {horizon}, got {warmup} + {decay}. Shorten one of them.")
    return WarmupStableDecay(_log_peak(peak), horizon, warmup, decay, final)


def from_optax(schedule: Callable, dimension: int, scale: float = 1.0) -> FromOptax:
    """An optax schedule of the step count, as a function of t = step / `dimension`, times `scale`."""
    if not callable(schedule):
        raise TypeError(f"schedule must be a callable of the step count, got {schedule!r}. Pass an optax schedule.")
    check_count("dimension", dimension)
    return FromOptax(schedule, dimension, scale)


def to_optax(schedule: Callable, dimension: int, scale: float = 1.0) -> Callable:
    """The optax schedule step -> scale * schedule(step / `dimension`).

    `scale` is 1 / (mean square norm of the raw features): 1 for features of unit mean square norm, and
    `1 / problem.data.mean_square_norm` for a problem made by `Problem.from_data`.
    """
    if not callable(schedule):
        raise TypeError(f"schedule must be a callable of t, got {schedule!r}. Pass protocol.learning_rate or the like.")
    check_count("dimension", dimension)
    return lambda step: scale * schedule(jnp.asarray(step, dtype=float) / dimension)


def _decay(peak: Any, horizon: Any, final: Any, shape: str) -> Decay:
    _check_positive("horizon", horizon)
    check_real("final", final, minimum=0.0, cure="It is a fraction of the peak.")
    return Decay(_log_peak(peak), horizon, final, shape)


def _log_peak(peak: Any) -> Float[Array, ""]:
    _check_positive("peak", peak)
    return jnp.log(jnp.asarray(peak, dtype=float))


def _check_positive(name: str, value: Any) -> None:
    check_real(name, value, minimum=0.0, exclusive=True)
