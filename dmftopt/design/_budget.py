from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import as_number, check_count, check_instance, check_real, check_shape, front_door, is_concrete
from .._register import register_part
from ..protocol import Protocol, Recipe, recipe
from ..protocol.averages import AbstractAverage
from ..protocol.integrals import PANELS, samples_until
from ..protocol.schedules import Scaled
from ..protocol.variables import as_variable, number

# What twice as many panels may change of a mean batch size.
_AGREEMENT = 1e-6
_PROTOCOL = "Build it with dmftopt.Protocol(learning_rate=...), its schedules for u from 0 to 1."


@register_part
@front_door
class Plan(eqx.Module):
    """A protocol in relative time u = t / horizon, from 0 to 1, and the horizon where no budget sets it.

    - `horizon`: steps / d; a variable such as `between(5.0, 1.0, 20.0)` to tune it.
    - `average`: the run is worth what the averaged weights are, see `dmftopt.averages`, whose times are relative here too:
      `averages.Exponential(between(0.1, 0.01, 0.5))` tunes the memory, as a share of the run.
    """

    protocol: Protocol
    horizon: Any = eqx.field(converter=as_variable, default=None)
    average: AbstractAverage | None = None

    def __check_init__(self):
        check_instance("protocol", self.protocol, Protocol, _PROTOCOL)
        if self.average is not None:
            check_instance("average", self.average, AbstractAverage, "Pass dmftopt.averages.Exponential(0.1), say.")
        if self.horizon is not None:
            check_real("horizon", number(self.horizon), minimum=0.0, exclusive=True, cure="It is the final time, SGD steps / d.")


@register_part
class Run(eqx.Module):
    """A protocol as functions of time t = steps / d, until `horizon`, and the average of the weights that is kept."""

    protocol: Protocol
    horizon: Float[Array, ""]
    average: AbstractAverage | None = None

    @property
    def samples(self) -> Float[Array, ""]:
        """∫B dt: samples seen / d."""
        return self.horizon * _mean_batch_size(Scaled(self.protocol.batch_size, 1 / self.horizon))

    def recipe(self, *, dimension: int, delta: float, mean_square_norm: float = 1.0) -> Recipe:
        """`dmftopt.recipe` of this run: its samples and steps are the budget's, rounded to whole ones."""
        return recipe(
            self.protocol,
            horizon=float(self.horizon),
            dimension=dimension,
            delta=delta,
            mean_square_norm=mean_square_norm,
            average=self.average,
        )


class Budget(eqx.Module):
    """What a run spends, all of it and no more: one or two of

    - `steps`: SGD steps. - `samples`: samples seen. - `epochs`: passes over the training set.
    - `seconds`: of a machine that takes `seconds_per_step` for each step plus `seconds_per_sample` for each sample in it.

    Steps, samples and seconds are those of a run in dimension `dimension`; with 1, the default, they are per dimension (steps
    is the horizon, samples is ∫B dt). Each says a T + b ∫B dt = total. The protocol is given in relative time u = t / T, 0 to 1.
    With one constraint batch sizes are the protocol's and the horizon T follows. With two, T and the mean batch size follow: the
    batch size is 1 + s (B(u) - 1), with s to match.

    Exact: integrals of batch sizes are taken from knot to knot, to rounding for all of `dmftopt.schedules`. Differentiable.
    Raises ValueError where constraints contradict each other or leave less than one sample per step, and for a batch size whose
    integral is not good to 1e-6, which jumps where it does not say. Traced, the horizon is NaN then, which is invalid everywhere.
    """

    per_step: Float[Array, " constraint"]
    per_sample: Float[Array, " constraint"]
    total: Float[Array, " constraint"]
    of_training_set: tuple[bool, ...] = eqx.field(static=True)

    @front_door
    def __init__(
        self,
        *,
        steps: Any = None,
        samples: Any = None,
        epochs: Any = None,
        seconds: Any = None,
        seconds_per_step: Any = None,
        seconds_per_sample: Any = None,
        dimension: int = 1,
    ):
        check_count("dimension", dimension)
        rows = []
        for name, value, a, b in (("steps", steps, 1.0, 0.0), ("samples", samples, 0.0, 1.0), ("epochs", epochs, 0.0, 1.0)):
            if value is not None:
                check_real(name, value, minimum=0.0, exclusive=True)
                check_shape(name, value, ((),), "Use jax.vmap for a sweep.")
                rows.append((a, b, as_number(value) / (1 if name == "epochs" else dimension), name == "epochs"))
        if (seconds is None) != (seconds_per_step is None) or (seconds is None) != (seconds_per_sample is None):
            raise ValueError("seconds goes with seconds_per_step and seconds_per_sample. Give all three, or none.")
        if seconds is not None:
            check_real("seconds", seconds, minimum=0.0, exclusive=True)
            for name, value in (("seconds_per_step", seconds_per_step), ("seconds_per_sample", seconds_per_sample)):
                check_real(name, value, minimum=0.0, cure="It is a cost.")
            rows.append((as_number(seconds_per_step), as_number(seconds_per_sample), as_number(seconds) / dimension, False))
        if not 1 <= len(rows) <= 2:
            raise ValueError(
                f"a budget is one or two of steps, samples, epochs and seconds, got {len(rows)}: two of them fix the number of "
                "steps and the mean batch size."
            )
        self.per_step, self.per_sample, self.total = (jnp.stack([jnp.asarray(r[i], dtype=float) for r in rows]) for i in range(3))
        self.of_training_set = tuple(r[3] for r in rows)

    def run(self, plan: Plan | Protocol, delta: Any) -> Run:
        """The run that spends this budget, on a training set of delta * d samples."""
        protocol, average = (plan.protocol, plan.average) if isinstance(plan, Plan) else (plan, None)
        check_instance("protocol", protocol, Protocol, _PROTOCOL)
        a, b = self.per_step, self.per_sample
        total = jnp.where(jnp.asarray(self.of_training_set), jnp.asarray(delta, dtype=float), 1.0) * self.total
        if isinstance(plan, Plan) and plan.horizon is not None:
            a, b, total = (jnp.append(c, x) for c, x in ((a, 1.0), (b, 0.0), (total, number(plan.horizon))))
            if a.shape[0] > 2:
                raise ValueError("horizon: this budget fixes it already. Leave it out of the plan.")
        mean = _mean_batch_size(protocol.batch_size)
        if a.shape[0] == 1:
            horizon = total[0] / (a[0] + b[0] * mean)
            _check(
                (horizon > 0) & jnp.isfinite(horizon),
                "budget: the horizon must be > 0. Give a cost per step or per sample.",
            )
            return stretched(protocol, horizon, average)
        # Two linear equations for the horizon and for horizon * mean batch size.
        determinant = a[0] * b[1] - a[1] * b[0]
        _check(determinant != 0, "budget: these two constraints fix the same thing. Drop one.")
        horizon = (total[0] * b[1] - total[1] * b[0]) / determinant
        seen = (a[0] * total[1] - a[1] * total[0]) / determinant
        _check(
            (horizon > 0) & (seen >= horizon * (1 - 1e-6)),
            f"budget: it leaves {seen} samples for {horizon} steps (per dimension), but SGD uses at least one per step. Raise "
            "samples, epochs or seconds, or lower steps.",
        )
        excess = jnp.maximum(seen / horizon - 1, 0.0)
        _check(
            (mean > 1) | (excess == 0),
            f"batch_size: this budget needs a mean of {seen / horizon}, and scales what is above 1, but this one is 1 "
            "throughout. Start from a larger one.",
        )
        varied = mean > 1
        scale = jnp.where(varied, excess / jnp.where(varied, mean - 1, 1.0), 0.0)
        # 1 + scale * (B - 1)
        batch_size = Scaled(protocol.batch_size, scale=scale, offset=1 - scale)
        return stretched(eqx.tree_at(lambda p: p.batch_size, protocol, batch_size), horizon, average)

    def epochs(self, delta: Any) -> float | None:
        """Passes over a training set of delta * d samples, where the budget fixes them whatever the protocol."""
        for a, b, total, of_training_set in zip(self.per_step, self.per_sample, self.total, self.of_training_set, strict=True):
            if not all(is_concrete(value) for value in (a, b, total, delta)):
                return None
            if a == 0 and b > 0:
                return float(total / b) / (1.0 if of_training_set else float(delta))
        return None

    def spent(self, run: Run, times: Array) -> Float[Array, " time"]:
        """Of the first constraint: what is spent until each of the increasing `times`, the first of them 0."""
        panels = times[-1] * jnp.linspace(0.0, 1.0, PANELS + 1, dtype=times.dtype)
        return self.per_step[0] * times + self.per_sample[0] * samples_until(run.protocol.batch_size, times, panels)


def stretched(protocol: Protocol, horizon: Any, average: AbstractAverage | None) -> Run:
    """From relative time, 0 to 1, to time 0 to `horizon`."""
    horizon = jnp.asarray(horizon, dtype=float)
    names = ("learning_rate", "batch_size", "ridge", "momentum", "friction")
    fields = [getattr(protocol, name) for name in names]
    fields = [None if f is None else Scaled(f, horizon) for f in fields]
    average = None if average is None else average.stretched(horizon)
    *fields, friction = fields
    return Run(Protocol(*fields, nesterov=protocol.nesterov, update=protocol.update, friction=friction), horizon, average)


def _mean_batch_size(schedule: Callable) -> Float[Array, ""]:
    """Over u from 0 to 1."""
    ends = jnp.array([0.0, 1.0])
    rough, fine = (samples_until(schedule, ends, jnp.linspace(0.0, 1.0, n + 1))[-1] for n in (PANELS // 2, PANELS))
    agree = jnp.abs(fine - rough) <= _AGREEMENT * fine
    _check(
        agree,
        f"batch_size: its mean is {rough} on {PANELS // 2} panels of the run and {fine} on twice as many, so that samples cannot "
        "be counted. Give the schedule an attribute `knots`, the times at which it jumps, or use one of dmftopt.schedules.",
    )
    return jnp.where(agree, fine, jnp.nan)


def _check(holds: Array, message: str) -> None:
    # Traced, a horizon that is not positive, or NaN, or a batch size below 1 is known to every route as invalid.
    if is_concrete(holds) and not bool(holds):
        raise ValueError(message)
