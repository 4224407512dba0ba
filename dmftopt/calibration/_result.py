"""What a calibration knows: parameters with errors, predictions with bands, designed schedules."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm

from .._checks import check_count, check_real, front_door
from .._files import write_atomically
from .._register import register, register_part
from ._curves import Curve
from ._design import descend, families
from ._law import KernelLaw, Segments
from ._segments import PIECES, cut, edges_of, stack

_LEVEL = 0.9
_NAMES = (
    "floor",
    "bias_scale",
    "bias_exponent",
    "noise_scale",
    "noise_rate",
    "noise_exponent",
    "rate_exponent",
    "feedback",
)
_OPTIONAL = {"rate_exponent", "feedback"}
# Records end a little before a run does: what leaves the range by less than this is within.
_SLACK = 1.02


@register_part
class Seen(NamedTuple):
    """Range of the runs that were fitted: largest learning rate, smallest after the warm-up, sum of learning rates / peak, steps,
    steps of warm-up, batch sizes (smallest, largest, that of reference) and whether they were given."""

    peak: float
    lowest: float
    horizon: float
    steps: int
    warmup: int
    batch_size: tuple[float, float, float]
    batched: bool
    lowest_loss: float
    names: tuple[str, ...]


@register_part
class Interval(NamedTuple):
    """Estimate, 90% interval of the bootstrap, and whether the data fix it: no end of the range of the search, and an interval
    shorter than the estimate (for the floor: than the distance to the lowest loss)."""

    estimate: float
    low: float
    high: float
    identifiable: bool


@register
class Prediction(eqx.Module):
    """The loss before each `step`, with the learning rate there.

    `low`, `high`: a 90% band of a new record: from the bootstrap, the residual deviation, and the error on curves left
    out. `draws`: of the bootstrap alone.
    `discretization_error`: largest relative change when segments are halved. `extrapolates`: how the schedule leaves what was
    seen; empty if it does not, or else the band need not hold."""

    step: Int[np.ndarray, " time"]
    learning_rate: Float[np.ndarray, " time"]
    loss: Float[np.ndarray, " time"]
    low: Float[np.ndarray, " time"]
    high: Float[np.ndarray, " time"]
    draws: Float[np.ndarray, "draw time"]
    discretization_error: float
    extrapolates: tuple[str, ...]

    def __str__(self) -> str:
        text = f"final loss {self.loss[-1]:.4f}, 90% band {self.low[-1]:.4f} to {self.high[-1]:.4f}"
        return "\n".join([text, *(f"  extrapolates: {how}" for how in self.extrapolates)])


@register
class Designed(eqx.Module):
    """A schedule of least predicted final loss. `learning_rate`: of every step. `usual`: predictions for the usual schedules of
    as many steps, within the same bounds."""

    learning_rate: Float[np.ndarray, " step"]
    prediction: Prediction
    usual: dict[str, Prediction]

    def tolist(self) -> list[float]:
        return self.learning_rate.tolist()

    def to_optax(self) -> Callable[[Any], Any]:
        """step -> learning rate; the last holds beyond the end."""
        table = jnp.asarray(self.learning_rate, dtype=float)
        return lambda step: table[jnp.minimum(step, table.size - 1)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """As a table (.csv), one row per step. Whole or not at all."""
        rows = "".join(f"{step},{rate!r}\n" for step, rate in enumerate(self.tolist()))
        write_atomically(Path(path), lambda file: file.write(f"step,learning_rate\n{rows}".encode()))

    def gain(self, over: str) -> tuple[float, float]:
        """By how much the final loss is predicted to be lower than that of the usual schedule `over`, and its standard error
        by the bootstrap (which knows nothing of what the law misses)."""
        if over not in self.usual:
            raise ValueError(f"over must be one of {', '.join(map(repr, self.usual))}, got {over!r}.")
        other = self.usual[over]
        spread = other.draws[:, -1] - self.prediction.draws[:, -1]
        return float(other.loss[-1] - self.prediction.loss[-1]), float(spread.std(ddof=1))

    def __str__(self) -> str:
        lines = [f"designed: {self.prediction}"]
        for name in self.usual:
            gain, error = self.gain(name)
            lines.append(f"{name}: {self.usual[name].loss[-1]:.4f}, designed lower by {gain:.4f} ± {error:.4f}")
        return "\n".join(lines)


@register
class Calibration(eqx.Module):
    """A law fitted to runs. `ensemble`: the same for every bootstrap draw. `deviation`: robust standard deviation of relative
    residuals. `discrepancy`: median over the curves of the relative error (root mean square) on the one left out of the fit (of a
    single curve: on its last third). `loose`: what the search pushed to the end of its range, or left in a flat
    valley."""

    law: KernelLaw
    ensemble: KernelLaw
    free: tuple[str, ...]
    loose: tuple[str, ...]
    deviation: float
    discrepancy: float
    records: int
    seen: Seen

    @property
    def parameters(self) -> dict[str, Interval]:
        """What was fitted, in natural units (see `KernelLaw`)."""
        fitted = [name for name in _NAMES if name not in _OPTIONAL or name in self.free]
        return {name: self._interval(name) for name in fitted}

    def _interval(self, name: str) -> Interval:
        estimate = float(getattr(self.law, name))
        low, high = np.quantile(getattr(self.ensemble, name), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        size = self.seen.lowest_loss - estimate if name == "floor" else abs(estimate)
        known = bool(name not in self.loose and max(high, estimate) - min(low, estimate) < size)
        return Interval(estimate, min(float(low), estimate), max(float(high), estimate), known)

    def __str__(self) -> str:
        header = (
            f"kernel law of {', '.join(self.seen.names)}: {self.records} records, residual deviation {100 * self.deviation:.3f}%"
        )
        lines = [header, f"  left-out curves: {100 * self.discrepancy:.3f}% off"]
        for name, value in self.parameters.items():
            known = "" if value.identifiable else "  not identifiable"
            lines.append(f"  {name:15} {value.estimate:10.4g}  90% {value.low:10.4g} to {value.high:10.4g}{known}")
        return "\n".join(lines)

    @front_door
    def predict(
        self,
        schedule: Any,
        *,
        steps: int | None = None,
        batch_size: Any = None,
        at: Any = None,
    ) -> Prediction:
        """The loss of a run.

        - `schedule`: learning rates, one per step, warm-up included; a function of the step, with `steps`; or a `Curve`.
        - `batch_size`: a number, or one per step; None: that of reference.
        - `at`: steps before which the loss is wanted; None: 200 (a Curve: its records).

        Raises TypeError and ValueError that name the argument.
        """
        rates, at = _rates(schedule, steps), schedule.step if at is None and isinstance(schedule, Curve) else at
        if isinstance(schedule, Curve) and schedule.batch_size is not None and batch_size is None:
            batch_size = schedule.batches()
        batches = self._batches(batch_size, rates.size)
        at = _at(at, rates.size)
        late = at[at > 0]
        loss, draws, error = self._losses(rates, batches, late)
        spread = np.sqrt(draws.var(axis=0, ddof=1) + (self.deviation**2 + self.discrepancy**2) * loss**2)
        width = norm.ppf((1 + _LEVEL) / 2) * spread
        last = np.minimum(late, rates.size - 1)
        return Prediction(late, rates[last], loss, loss - width, loss + width, draws, error, self._extrapolates(rates, batches))

    @front_door
    def optimize(
        self,
        steps: int,
        *,
        warmup: int | None = None,
        bounds: tuple[float, float] | None = None,
        batch_size: float | None = None,
        knots: int = 48,
    ) -> Designed:
        """The schedule of least final loss: linear warm-up to the upper bound, then piecewise linear with `knots` knots, dense
        towards the end, by L-BFGS-B from the usual schedules.

        - `warmup`: steps; None: as in the runs (no more than a tenth of `steps`).
        - `bounds`: of the learning rate after the warm-up; None: the smallest and the largest one seen.

        Raises ValueError that names the argument.
        """
        check_count("steps", steps, minimum=10)
        check_count("knots", knots, minimum=2)
        warmup = min(self.seen.warmup, steps // 10) if warmup is None else warmup
        check_count("warmup", warmup, minimum=0)
        if warmup >= steps:
            raise ValueError(f"warmup must be below steps = {steps}, got {warmup}.")
        low, high = (self.seen.lowest, self.seen.peak) if bounds is None else bounds
        check_real("bounds", np.asarray([low, high]), minimum=0.0)
        if not low < high:
            raise ValueError(
                f"bounds must be (low, high) with low < high, got {(low, high)!r}. The runs may have seen a single rate."
            )
        batches = self._batches(batch_size, steps)
        usual = families(steps, warmup, low, high)
        found = descend(self.law, usual, warmup, (low, high), float(batches[0]), knots)
        each = None if batch_size is None else batches
        predicted = {name: self.predict(rates, batch_size=each) for name, rates in usual.items()}
        return Designed(found, self.predict(found, batch_size=each), predicted)

    def _batches(self, batch_size: Any, steps: int) -> np.ndarray:
        if batch_size is None:
            return np.full(steps, self.seen.batch_size[2])
        if not self.seen.batched:
            raise ValueError("batch_size: the curves had none. Calibrate with batch sizes, or leave it out.")
        check_real("batch_size", batch_size, minimum=0.0, exclusive=True)
        if np.ndim(batch_size) not in (0, 1) or (np.ndim(batch_size) == 1 and len(batch_size) != steps):
            raise ValueError(f"batch_size must be a number or one per step, {steps}, got shape {np.shape(batch_size)}.")
        return np.broadcast_to(np.asarray(batch_size, dtype=float), (steps,))

    def _losses(self, rates, batches, at) -> tuple[np.ndarray, np.ndarray, float]:
        """Those of the law and of the ensemble, and the relative change when segments are halved."""
        warmup = int(np.argmax(rates >= 0.99 * rates.max()))

        def segmented(pieces):
            edges = edges_of(rates, at, warmup, pieces)
            segments = stack([cut(rates, batches, edges)], self.law.peak, self.law.batch_size)
            return segments, np.searchsorted(edges, at) - 1

        with jax.enable_x64(True):
            segments, place = segmented(PIECES)
            loss = np.asarray(_loss(self.law, segments))[place]
            draws = np.asarray(_loss_of_draws(self.ensemble, segments))[:, place]
            finer, its_place = segmented(2 * PIECES)
            error = np.max(np.abs(np.asarray(_loss(self.law, finer))[its_place] / loss - 1))
        for each in (loss, draws):
            if not np.all(np.isfinite(each)) or np.any(each <= 0):
                raise ValueError(
                    "schedule: the law diverges, its noise feeds on itself. Lower the learning rates, or shorten the run."
                )
        return loss, draws, float(error)

    def _extrapolates(self, rates: np.ndarray, batches: np.ndarray) -> tuple[str, ...]:
        seen, ways = self.seen, []
        after = rates[np.argmax(rates >= 0.99 * rates.max()) :]
        if rates.max() > seen.peak * (1 + 1e-6):
            ways.append(f"learning rate {rates.max():.3g} above the largest seen, {seen.peak:.3g}")
        if after.min() * _SLACK < seen.lowest:
            ways.append(f"learning rate {after.min():.3g} below the smallest seen, {seen.lowest:.3g}")
        if rates.sum() / seen.peak > seen.horizon * _SLACK:
            ways.append(f"sum of learning rates {rates.sum() / seen.peak / seen.horizon:.2g} times the largest seen")
        elif rates.size > seen.steps * _SLACK:
            ways.append(f"{rates.size} steps, {seen.steps} seen")
        if batches.min() * _SLACK < seen.batch_size[0] or batches.max() > seen.batch_size[1] * _SLACK:
            ways.append(f"batch sizes outside {seen.batch_size[0]:g} to {seen.batch_size[1]:g}")
        gain = self.law.loop_gain(float(rates.max()), float(batches[np.argmax(rates)]), rates.size)
        if gain >= 1:
            ways.append(f"unstable: at learning rate {rates.max():.3g} noise feeds on itself, {gain:.2g} times in a loop")
        return tuple(ways)


@jax.jit
def _loss(law: KernelLaw, segments: Segments):
    return law.loss(segments)[0]


@jax.jit
def _loss_of_draws(ensemble: KernelLaw, segments: Segments):
    return jax.vmap(lambda law: law.loss(segments)[0])(ensemble)


def _rates(schedule: Any, steps: int | None) -> np.ndarray:
    if isinstance(schedule, Curve):
        return schedule.rates()
    if callable(schedule):
        if steps is None:
            raise ValueError("steps: how many, since the schedule is a function of the step.")
        check_count("steps", steps, minimum=2)
        schedule = np.broadcast_to(np.asarray(schedule(np.arange(steps)), dtype=float), (steps,))
    check_real("schedule", schedule, minimum=0.0)
    rates = np.asarray(schedule, dtype=float)
    if rates.ndim != 1 or rates.size < 2 or rates.max() <= 0:
        raise ValueError("schedule must be at least two learning rates, one per step, not all 0.")
    return rates


def _at(at: Any, steps: int) -> np.ndarray:
    if at is None:
        return np.unique(np.round(np.linspace(1, steps, min(steps, 200))).astype(int))
    check_real("at", at, minimum=0.0, maximum=steps, cure="It is a step of the schedule.")
    found = np.atleast_1d(np.asarray(at))
    if found.ndim != 1 or np.any(found != np.round(found)) or np.any(np.diff(found) <= 0) or found[-1] < 1:
        raise ValueError("at must be increasing whole numbers of steps, the last at least 1.")
    return found.astype(int)
