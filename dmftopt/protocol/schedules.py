"""Functions of time t with trainable leaves, and the way to and from optax.

The map between optax's step count and time is t = step / d, written down here and nowhere else. Arrays in a schedule are
trainable, Python numbers (horizons, exponents, fractions) are fixed; to train one of those too pass a JAX array, or a variable
with bounds (`dmftopt.above`, `dmftopt.between`). Peaks are positive variables, so gradient steps are relative.

Any callable of t is a schedule. One that jumps or has kinks may say where by an attribute `knots`, the times as a one-dimensional
array: whoever integrates it then does so between them. Schedules without the attribute are taken to be smooth.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import as_numbers, check_count, check_duration, check_real, check_shape, front_door, is_concrete
from .._memory import check_memory
from .._register import register_part
from .variables import AbstractVariable, Between, above, as_variable, number, within


def knots_of(schedule: Callable) -> Float[Array, " knot"]:
    """The times at which a schedule says that it jumps or has kinks, in any order; none if it does not say. Raises ValueError
    where they are not one-dimensional."""
    times = getattr(schedule, "knots", None)
    if times is None:
        return jnp.zeros(0)
    if np.ndim(times) != 1:
        raise ValueError(
            f"knots of the schedule {schedule!r} must be a one-dimensional array of times, got shape {np.shape(times)}. "
            "Give the times at which it jumps or has kinks, or name the attribute otherwise."
        )
    check_real("knots", times)
    return jnp.asarray(times, dtype=float)


def _fixed_times(times: Any) -> tuple[float, ...]:
    try:
        return tuple(float(t) for t in times)
    except (TypeError, ValueError) as error:
        raise TypeError(f"times must be a sequence of fixed numbers, got {times!r}. Tune the values at them instead.") from error


@register_part
class Constant(eqx.Module):
    """s(t) = value."""

    value: Any = eqx.field(converter=as_variable)

    def __check_init__(self):
        _check_values("value", self.value)

    def __call__(self, t: Any) -> Float[Array, "..."]:
        return jnp.broadcast_to(jnp.asarray(number(self.value), dtype=float), jnp.shape(t))


@register_part
@front_door
class PiecewiseLinear(eqx.Module):
    """Linear interpolation between `values` at `times`, constant outside; of exp(values) in log value with `log`."""

    times: tuple[float, ...] = eqx.field(static=True, converter=_fixed_times)
    values: Any = eqx.field(converter=as_variable)
    log: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if not self.times:
            raise ValueError("times must have at least one entry, got none. Give the times of the knots.")
        check_real("times", self.times)
        if self.times[-1] != 0:
            check_duration("times", abs(self.times[-1]))
        _check_values("values", self.values, self.log)
        check_shape("values", number(self.values), ((len(self.times),),), "Give one value per knot time.")
        if np.any(np.diff(self.times) <= 0):
            raise ValueError(f"times must be increasing, got {self.times}. Sort the knots.")

    def __call__(self, t: Any) -> Float[Array, "..."]:
        t = jnp.asarray(t, dtype=float)
        value = jnp.interp(t, jnp.asarray(self.times, dtype=t.dtype), number(self.values).astype(t.dtype))
        return jnp.exp(value) if self.log else value

    @property
    def knots(self) -> Float[Array, " knot"]:
        return jnp.asarray(self.times, dtype=float)


@register_part
@front_door
class PiecewiseConstant(eqx.Module):
    """`values` over equal pieces of [0, `horizon`), the last one beyond; exp(values) with `log`."""

    values: Any = eqx.field(converter=as_variable)
    horizon: float
    log: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_duration("horizon", self.horizon)
        _check_values("values", self.values, self.log)
        _check_row("values", self.values, "Give one value per piece.")

    def __call__(self, t: Any) -> Float[Array, "..."]:
        values = number(self.values)
        pieces = values.shape[0]
        value = values[_piece(t, lambda t: t / self.horizon * pieces, pieces)]
        return jnp.exp(value) if self.log else value

    @property
    def knots(self) -> Float[Array, " knot"]:
        pieces = number(self.values).shape[0]
        return self.horizon * jnp.arange(1.0, pieces) / pieces


@register_part
@front_door
class PerStep(eqx.Module):
    """`values` of the steps k = 0, 1, ... of a run, each from t = k / `dimension` until the next; the last one beyond."""

    values: Any = eqx.field(converter=as_variable)
    dimension: int = eqx.field(static=True)

    def __check_init__(self):
        check_count("dimension", self.dimension)
        _check_values("values", self.values)
        _check_row("values", self.values, "Give one value per step.")

    def __call__(self, t: Any) -> Float[Array, "..."]:
        values = number(self.values)
        return values[_piece(t, lambda t: t * self.dimension, values.shape[0])]

    @property
    def knots(self) -> Float[Array, " knot"]:
        return jnp.arange(1.0, number(self.values).shape[0]) / self.dimension


class Tabulated(eqx.Module):
    """`values` at `times` and nowhere else: what was read once, to be read again at the same times. Asked for others it raises
    ValueError, or where traced is NaN."""

    times: Float[Array, " time"]
    values: Float[Array, " time"]

    def __call__(self, t: Any) -> Float[Array, " time"]:
        t = jnp.asarray(t, dtype=self.times.dtype)
        cure = "Read the schedule that it was made of."
        check_shape("t", t, (self.times.shape,), f"This schedule is known at the times of its table only. {cure}")
        # The same times, of two compiled programs, may differ by rounding.
        same = jnp.abs(t - self.times) <= 64 * jnp.finfo(t.dtype).eps * jnp.max(jnp.abs(self.times))
        if is_concrete(same) and not np.all(same):
            raise ValueError(f"t must be the times of the table, this schedule is known nowhere else. {cure}")
        return jnp.where(same, self.values, jnp.nan)


class LinearPieces(eqx.Module):
    """On each piece between increasing `edges` linear from its `left` value to its `right` one: what was read once, jumps
    included. `knots`: the edges at which what was read is not smooth; None: another schedule says it."""

    edges: Float[Array, " edge"]
    left: Float[Array, " piece"]
    right: Float[Array, " piece"]
    knots: Float[Array, " knot"] | None

    def __call__(self, t: Any) -> Float[Array, "..."]:
        t = jnp.asarray(t, dtype=self.edges.dtype)
        at = jnp.clip(jnp.searchsorted(self.edges, t, side="right") - 1, 0, self.left.shape[0] - 1)
        start, width = self.edges[at], jnp.diff(self.edges)[at]
        share = jnp.clip((t - start) / jnp.where(width > 0, width, 1.0), 0.0, 1.0)
        return self.left[at] + share * (self.right[at] - self.left[at])


@register_part
@front_door
class Decay(eqx.Module):
    """s(t) = peak * (final + (1 - final) * shape(t / horizon)), shape falling from 1 at t = 0 to 0 at t = horizon."""

    peak: Any
    horizon: Any = eqx.field(converter=as_variable)
    final: Any = eqx.field(converter=as_variable)
    shape: str = eqx.field(static=True)

    def __check_init__(self):
        _check_positive("peak", self.peak)
        check_duration("horizon", number(self.horizon))
        _check_final(self.final)
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f'shape must be "linear" or "cosine", got {self.shape!r}.')

    def __call__(self, t: Any) -> Float[Array, "..."]:
        u = jnp.minimum(jnp.asarray(t, dtype=float) / number(self.horizon), 1.0)
        fall = 1.0 - u if self.shape == "linear" else 0.5 * (1.0 + jnp.cos(jnp.pi * u))
        final = number(self.final)
        return number(self.peak) * (final + (1.0 - final) * fall)

    @property
    def knots(self) -> Float[Array, " knot"]:
        return jnp.asarray(number(self.horizon), dtype=float).reshape(1)


@register_part
class PowerLaw(eqx.Module):
    """s(t) = peak * (1 + t / timescale)^-exponent."""

    peak: Any
    exponent: Any = eqx.field(converter=as_variable)
    timescale: Any = eqx.field(converter=as_variable)

    def __check_init__(self):
        _check_positive("peak", self.peak)
        check_real("exponent", number(self.exponent))
        check_duration("timescale", number(self.timescale))

    def __call__(self, t: Any) -> Float[Array, "..."]:
        return number(self.peak) * (1.0 + jnp.asarray(t, dtype=float) / number(self.timescale)) ** (-number(self.exponent))


@register_part
class WarmupStableDecay(eqx.Module):
    """Linear from 0 to peak until `warmup`, peak until horizon - `decay`, then linear to `final` * peak at `horizon`."""

    peak: Any
    horizon: Any = eqx.field(converter=as_variable)
    warmup: Any = eqx.field(converter=as_variable)
    decay: Any = eqx.field(converter=as_variable)
    final: Any = eqx.field(converter=as_variable)

    def __check_init__(self):
        _check_positive("peak", self.peak)
        for name in ("horizon", "warmup", "decay"):
            check_duration(name, number(getattr(self, name)))
        _check_final(self.final)
        # Of what is tuned within bounds, the longest.
        longest = [v.high if isinstance(v, Between) else v for v in (self.warmup, self.decay, self.horizon)]
        if any(isinstance(v, AbstractVariable) or not is_concrete(v) for v in longest):
            return
        warmup, decay, horizon = map(float, longest)
        if warmup + decay > horizon:
            raise ValueError(
                f"warmup + decay must be at most the horizon {horizon}, got {warmup} + {decay}. Shorten one of them."
            )

    def __call__(self, t: Any) -> Float[Array, "..."]:
        t = jnp.asarray(t, dtype=float)
        up = jnp.minimum(t / number(self.warmup), 1.0)
        remaining = jnp.minimum(jnp.maximum(number(self.horizon) - t, 0.0) / number(self.decay), 1.0)
        final = number(self.final)
        return number(self.peak) * up * (final + (1.0 - final) * remaining)

    @property
    def knots(self) -> Float[Array, " knot"]:
        warmup, decay, horizon = (number(a) for a in (self.warmup, self.decay, self.horizon))
        return jnp.stack([jnp.asarray(t, dtype=float) for t in (warmup, horizon - decay, horizon)])


@register_part
@front_door
class Scaled(eqx.Module):
    """s(t) = offset + scale * schedule(t / horizon)."""

    schedule: Callable
    horizon: Any = 1.0
    scale: Any = 1.0
    offset: Any = 0.0

    def __check_init__(self):
        _check_callable(self.schedule, "t")
        _check_positive("horizon", self.horizon)
        check_real("scale", self.scale)
        check_real("offset", self.offset)

    def __call__(self, t: Any) -> Float[Array, "..."]:
        return self.offset + self.scale * self.schedule(jnp.asarray(t, dtype=float) / self.horizon)

    @property
    def knots(self) -> Float[Array, " knot"]:
        return self.horizon * knots_of(self.schedule)


@front_door
class FromOptax(eqx.Module):
    """s(t) = scale * schedule(t * dimension). An optax schedule has no trainable leaves; the scale may be one."""

    schedule: Callable = eqx.field(static=True)
    dimension: int = eqx.field(static=True)
    scale: Any = eqx.field(converter=as_variable)

    def __check_init__(self):
        _check_callable(self.schedule, "the step count")
        check_count("dimension", self.dimension)
        _check_positive("scale", self.scale)

    def __call__(self, t: Any) -> Float[Array, "..."]:
        return number(self.scale) * jnp.asarray(self.schedule(jnp.asarray(t, dtype=float) * self.dimension), dtype=float)

    @property
    def knots(self) -> Float[Array, " knot"]:
        return knots_of(self.schedule) / self.dimension


@front_door
def constant(value: Any, *, log: bool = False, bounds: tuple[float, float | None] | None = None) -> Constant:
    """A trainable constant: a variable, or a number; positive, with relative gradient steps, with `log`; within `bounds` (low,
    high) if given."""
    if isinstance(value, AbstractVariable):
        return Constant(value)
    if log and bounds is None:
        bounds = (0.0, None)
    check_real("value", value, minimum=0.0 if log else None, exclusive=True, cure="A logarithm needs a positive value.")
    return Constant(within("value", value, bounds))


@front_door
def piecewise_linear(
    horizon: float, knots: int, initial: Any, *, log: bool = False, bounds: tuple[float, float | None] | None = None
) -> PiecewiseLinear:
    """`knots` equally spaced knots from 0 to `horizon`, all at `initial` (a number, one value per knot, or a schedule).

    `log`: interpolate, and train, logarithms. `bounds`: (low, high), or (low, None): values stay in between (which they must at
    the start, strictly), and so does the whole schedule.
    """
    check_count("knots", knots, minimum=2, cure="Use dmftopt.schedules.constant for a single value.")
    check_duration("horizon", horizon)
    check_memory(f"knots = {knots}", 4 * knots, "Use fewer.")
    times = np.linspace(0.0, float(horizon), knots)
    return PiecewiseLinear(times, _values(times, initial, log, bounds), log)


@front_door
def piecewise_constant(
    horizon: float, pieces: int, initial: Any, *, log: bool = False, bounds: tuple[float, float | None] | None = None
) -> PiecewiseConstant:
    """A free value on each of `pieces` equal pieces of [0, `horizon`); with as many pieces as a uniform grid has steps, one per
    step. `initial`, `log` and `bounds` as in `piecewise_linear` (a schedule is read in the middle of each piece)."""
    check_count("pieces", pieces)
    check_duration("horizon", horizon)
    check_memory(f"pieces = {pieces}", 4 * pieces, "Use fewer.")
    middle = (np.arange(pieces) + 0.5) / pieces * float(horizon)
    return PiecewiseConstant(_values(middle, initial, log, bounds), float(horizon), log)


@front_door
def linear_decay(peak: Any, horizon: float, final: Any = 0.0) -> Decay:
    """Linear from `peak` at 0 to `final * peak` at `horizon`, constant beyond."""
    return Decay(_peak(peak), horizon, final, "linear")


@front_door
def cosine(peak: Any, horizon: float, final: Any = 0.0) -> Decay:
    """Half a cosine from `peak` at 0 to `final * peak` at `horizon`, constant beyond."""
    return Decay(_peak(peak), horizon, final, "cosine")


@front_door
def power_law(peak: Any, exponent: Any, timescale: Any = 1.0) -> PowerLaw:
    """peak * (1 + t / timescale)^-exponent."""
    return PowerLaw(_peak(peak), exponent, timescale)


@front_door
def warmup_stable_decay(peak: Any, horizon: float, warmup: Any, decay: Any, final: Any = 0.0) -> WarmupStableDecay:
    """Linear warmup over `warmup`, then `peak`, then linear decay over the last `decay` units of time to `final * peak`."""
    return WarmupStableDecay(_peak(peak), horizon, warmup, decay, final)


@front_door
def from_optax(schedule: Callable, dimension: int, scale: Any = 1.0) -> FromOptax:
    """An optax schedule of the step count, as a function of t = step / `dimension`, times `scale`.

    Under a `Budget` schedules are functions of relative time: `from_optax(schedule, total_steps)` is that of a run of so many
    steps, stretched to whatever number of steps the budget leaves. With an optax schedule of peak 1, `scale` is the peak: a
    number, or a variable such as `above(0.5)` to tune it.
    """
    return FromOptax(schedule, dimension, scale)


@front_door
def to_optax(schedule: Callable, dimension: int, scale: float = 1.0) -> Callable:
    """The optax schedule step -> scale * schedule(step / `dimension`).

    `scale` is 1 / (mean square norm of the raw features): 1 for features of unit mean square norm, and
    `1 / problem.data.mean_square_norm` for a problem made by `Problem.from_data`.
    """
    _check_callable(schedule, "t")
    check_count("dimension", dimension)
    _check_positive("scale", scale)
    return lambda step: scale * schedule(jnp.asarray(step, dtype=float) / dimension)


def _piece(t: Any, position: Callable, count: int) -> Int[Array, "..."]:
    """The whole part of `position`(t), 0 at least and count - 1 at most. A time that is the start of a piece up to rounding
    counts as its start."""
    t = jnp.asarray(t, dtype=float)
    at = jnp.floor(position(t) * (1 + 8 * float(jnp.finfo(t.dtype).eps)))
    return jnp.clip(at, 0, count - 1).astype(int)


def _values(times: np.ndarray, initial: Any, log: bool, bounds: Any) -> Any:
    """Values at these times, or their logarithms, as an array or within bounds."""
    values = as_numbers("initial", initial(jnp.asarray(times)) if callable(initial) else initial)
    check_shape("initial", values, ((), times.shape), "Give one number, or one per knot.")
    check_real("initial", values, minimum=0.0 if log else None, exclusive=True, cure="A logarithm needs positive values.")
    values = jnp.broadcast_to(values, times.shape)
    if not log:
        return within("initial", values, bounds)
    if bounds is None:
        return jnp.log(values)
    low, high = bounds
    if low is None or low <= 0:
        raise ValueError(f"bounds: logarithms need a lower bound above 0, got {bounds!r}. Raise it, or drop log.")
    return within("logarithms of initial", jnp.log(values), (np.log(low), None if high is None else np.log(high)))


def _peak(peak: Any) -> AbstractVariable:
    _check_positive("peak", peak)
    return peak if isinstance(peak, AbstractVariable) else above(peak)


def _check_positive(name: str, value: Any) -> None:
    check_real(name, number(value), minimum=0.0, exclusive=True)


def _check_values(name: str, value: Any, log: bool = False) -> None:
    """Hyperparameters are not negative; their logarithms may be."""
    check_real(name, number(value), minimum=None if log else 0.0, cure="No hyperparameter is negative.")


def _check_row(name: str, values: Any, cure: str) -> None:
    shape = np.shape(number(values))
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(f"{name} must be one-dimensional with at least one entry, got shape {shape}. {cure}")


def _check_final(final: Any) -> None:
    check_real("final", number(final), minimum=0.0, maximum=1.0, cure="It is a fraction of the peak.")


def _check_callable(schedule: Any, of: str) -> None:
    if not callable(schedule):
        cure = "Pass protocol.learning_rate or the like." if of == "t" else "Pass an optax schedule."
        raise TypeError(f"schedule must be a callable of {of}, got {schedule!r}. {cure}")
