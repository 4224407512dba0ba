"""Averages of the weights along a run: what is kept beside the last iterate.

The average at time t is, with a density w >= 0 from `start` on,

    theta_bar(t) = [ m theta(start) + ∫_start^t w(s) theta(s) ds ] / [ m + ∫_start^t w(s) ds ] ,

and theta(t) itself before. In SGD it is kept up to date in each step, theta_bar <- theta_bar + gain (theta - theta_bar).
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_function, check_real, check_shape, front_door, is_concrete
from .._register import register_part
from ..numerics.quadrature import GAUSS_NODES, GAUSS_WEIGHTS
from .variables import as_variable, number


class AbstractAverage(eqx.Module):
    """An average of the weights along a run, differentiable in its parameters. Times are those of the protocol."""

    @abc.abstractmethod
    def begins(self) -> Any:
        """The time `start`, a number."""

    @abc.abstractmethod
    def log_density(self, time: Float[Array, "..."]) -> Float[Array, "..."]:
        """log w(time), up to a constant."""

    def start_mass(self) -> Any:
        """m / w(start): a time."""
        return 0.0

    @abc.abstractmethod
    def stretched(self, horizon: Any) -> "AbstractAverage":
        """From relative time, 0 to 1, to time 0 to `horizon`."""

    def check(self, times: Float[Array, " time"]) -> None:
        """Raise ValueError for an average that a run on these times cannot tell, or does not begin."""
        if is_concrete(times) and is_concrete(start := self.begins()) and not float(start) < float(times[-1]):
            raise ValueError(f"average: it starts at {float(start):g}, but the run ends at {float(times[-1]):g}. Start earlier.")

    def weights(self, times: Float[Array, " time"]) -> Float[Array, "time time"]:
        """Row k: the weights of theta(times) in the average at times[k], with theta linear in between. Rows sum to 1."""
        start = jnp.asarray(self.begins(), times.dtype)
        left, right = times[:-1], times[1:]
        first = jnp.clip(start, left, right)
        nodes = first[:, None] + (right - first)[:, None] * jnp.asarray(GAUSS_NODES, times.dtype)[None]
        share = (nodes - left[:, None]) / (right - left)[:, None]
        # Over the largest so far, so that nothing overflows.
        largest = jax.lax.stop_gradient(jax.lax.cummax(self.log_density(times)))
        density = jnp.exp(self.log_density(nodes)[None] - largest[:, None, None])
        mass = density * ((right - first)[:, None] * jnp.asarray(GAUSS_WEIGHTS, times.dtype)[None])[None]
        done = right[None] <= times[:, None]
        of_left, of_right = (jnp.where(done, jnp.sum(mass * s[None], axis=2), 0.0) for s in (1 - share, share))
        rows = jnp.pad(of_left, ((0, 0), (0, 1))) + jnp.pad(of_right, ((0, 0), (1, 0)))
        held = self.start_mass() * jnp.exp(self.log_density(start) - largest)
        # theta(start) is between two of the times.
        after = jnp.clip(jnp.searchsorted(times, start, side="right"), 1, times.shape[0] - 1)
        fraction = (start - times[after - 1]) / (times[after] - times[after - 1])
        at_start = jnp.zeros_like(times).at[after - 1].set(1 - fraction).at[after].set(fraction)
        rows = rows + held[:, None] * at_start[None]
        begun = (times > start)[:, None]
        total = jnp.where(begun, jnp.sum(rows, axis=1, keepdims=True), 1.0)
        return jnp.where(begun, rows / total, jnp.eye(times.shape[0], dtype=times.dtype))

    def gains(self, steps: int, dimension: int) -> Float[Array, " step"]:
        """Of SGD's steps: the average takes this share of the weights after each; 1 before it begins."""
        after = (np.arange(steps) + 1) / dimension
        start = jnp.asarray(self.begins(), dtype=float)
        counted = jnp.asarray(after) > start + 0.5 / dimension
        log_density = self.log_density(jnp.asarray(after))
        top = jnp.max(log_density)
        mass = jnp.cumsum(jnp.where(counted, jnp.exp(log_density - top), 0.0))
        held = self.start_mass() * dimension * jnp.exp(self.log_density(start) - top)
        return jnp.where(counted, jnp.exp(log_density - top) / (mass + held), 1.0)


def _check_start(start: Any) -> None:
    check_real("start", number(start), minimum=0.0, cure="It is a time of the run.")
    check_shape("start", number(start), ((),), "Give one number.")


@register_part
@front_door
class Exponential(AbstractAverage):
    """The exponential moving average (EMA), which starts at theta(start) and forgets over the time `memory`:
    d theta_bar / dt = (theta - theta_bar) / memory. In SGD with d weights: decay = exp(-1 / (memory d)), as PyTorch's
    `swa_utils.get_ema_multi_avg_fn(decay)` and `optax.incremental_update(new, old, 1 - decay)` keep it."""

    memory: Any = eqx.field(converter=as_variable)
    start: Any = eqx.field(converter=as_variable, default=0.0)

    def __check_init__(self):
        cure = "It is a time: 1 / ((1 - decay) dimension)."
        check_real("memory", number(self.memory), minimum=0.0, exclusive=True, cure=cure)
        check_shape("memory", number(self.memory), ((),), "Give one number.")
        _check_start(self.start)

    def begins(self):
        return number(self.start)

    def log_density(self, time):
        return time / number(self.memory)

    def start_mass(self):
        return number(self.memory)

    def stretched(self, horizon):
        return Exponential(horizon * number(self.memory), horizon * number(self.start))

    def check(self, times):
        super().check(times)
        memory = number(self.memory)
        if not (is_concrete(times) and is_concrete(memory)):
            return
        if float(memory) > float(times[-1]):
            raise ValueError(
                f"average: a memory of {float(memory):g} is longer than the run, {float(times[-1]):g}. Shorten it, or take "
                "Polyak()."
            )
        if float(memory) < float(times[-1] - times[-2]):
            raise ValueError(
                f"average: a memory of {float(memory):g} is shorter than the grid's last step, {float(times[-1] - times[-2]):g}, "
                "within which the path is not known. Use more steps."
            )

    def decay(self, dimension: int) -> float:
        """Of the average in each step of SGD."""
        return float(np.exp(-1 / (float(number(self.memory)) * dimension)))

    def gains(self, steps, dimension):
        after = jnp.asarray((np.arange(steps) + 1) / dimension)
        gain = -jnp.expm1(-1 / (jnp.asarray(number(self.memory), dtype=float) * dimension))
        return jnp.where(after > jnp.asarray(number(self.start), dtype=float) + 0.5 / dimension, gain, 1.0)


@register_part
@front_door
class Polyak(AbstractAverage):
    """The plain mean of all iterates from `start` on: Polyak and Ruppert's average, or with a late start the tail average, which
    is SWA."""

    start: Any = eqx.field(converter=as_variable, default=0.0)

    def __check_init__(self):
        _check_start(self.start)

    def begins(self):
        return number(self.start)

    def log_density(self, time):
        return jnp.zeros_like(time)

    def stretched(self, horizon):
        return Polyak(horizon * number(self.start))


@register_part
@front_door
class Weighted(AbstractAverage):
    """Any weights: `density` is a positive function of time, such as a schedule or lambda t: t**2."""

    density: Callable
    start: Any = eqx.field(converter=as_variable, default=0.0)

    def __check_init__(self):
        check_function("density", self.density, "time")
        _check_start(self.start)

    def begins(self):
        return number(self.start)

    def log_density(self, time):
        value = jnp.asarray(self.density(time), dtype=float)
        return jnp.log(jnp.maximum(value, jnp.finfo(value.dtype).tiny))

    def stretched(self, horizon):
        return Weighted(_Stretched(self.density, horizon), horizon * number(self.start))


class _Stretched(eqx.Module):
    density: Callable
    horizon: Any

    def __call__(self, time):
        return self.density(time / self.horizon)
