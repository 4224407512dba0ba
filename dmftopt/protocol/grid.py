"""Time grids. Time is t = steps / d."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import as_numbers, check_count, check_duration, check_fixed, check_real, check_shape, front_door, is_concrete
from .._memory import check_memory
from .integrals import PANELS, samples_until, times_until


class TimeGrid(eqx.Module):
    """Times t_0 = 0 < t_1 < ... < t_K at which the equations are stepped and observed. `times`: (steps+1,).

    `epochs`: passes over the training set until each of them, for `noise.Shuffled()`; see `of_epochs`, which makes such grids.
    """

    times: Float[Array, " time"]
    epochs: Float[Array, " time"] | None

    def __init__(self, times: Any, epochs: Any = None):
        self.times = as_numbers("times", times)
        self.epochs = None if epochs is None else as_numbers("epochs", epochs)

    def __check_init__(self):
        if self.times.ndim != 1 or self.times.shape[0] < 2:
            raise ValueError(f"times must be one-dimensional with at least two entries, got shape {self.times.shape}.")
        check_real("times", self.times)
        check_duration("times", jnp.abs(self.times[-1]))
        if is_concrete(self.times):
            times = np.asarray(self.times)
            if times[0] != 0.0:
                raise ValueError(f"times must start at 0, got {times[0]}. Time counts SGD steps from the start.")
            if not np.all(np.diff(times) > 0):
                where = int(np.argmax(np.diff(times) <= 0))
                raise ValueError(f"times must be increasing, but times[{where + 1}] <= times[{where}]. Sort and deduplicate.")

    @classmethod
    @front_door
    def uniform(cls, horizon: Any, steps: int) -> "TimeGrid":
        """`steps` equal steps from 0 to `horizon`."""
        _check_horizon(horizon, steps)
        return cls(horizon * jnp.linspace(0.0, 1.0, steps + 1))

    @classmethod
    @front_door
    def geometric(cls, horizon: Any, steps: int, ratio: float = 20.0) -> "TimeGrid":
        """Steps that grow geometrically; the last is `ratio` times the first. For stiff spectra: dense early, sparse late."""
        _check_horizon(horizon, steps)
        check_real("ratio", ratio, minimum=0.0, exclusive=True, cure="It is last step / first step.")
        sizes = jnp.asarray(ratio, dtype=float) ** jnp.linspace(0.0, 1.0, steps)
        ends = jnp.cumsum(sizes)
        return cls(horizon * jnp.concatenate([jnp.zeros(1), ends[:-1] / ends[-1], jnp.ones(1)]))

    @classmethod
    @front_door
    def logarithmic(cls, horizon: Any, steps: int, first: Any, last: Any = None) -> "TimeGrid":
        """Equal steps of log time after a first step of `first`: for long runs. With `last` the last step is that, and steps are
        equal in log(t / (horizon - t)): for rates that decay to 0 at the end."""
        _check_horizon(horizon, steps)
        check_count("steps", steps, minimum=2, cure="One is from 0 to `first`.")
        ends = {"first": first} if last is None else {"first": first, "last": last}
        for name, value in ends.items():
            check_duration(name, value)
            check_shape(name, value, ((),))
        if all(map(is_concrete, (horizon, *ends.values()))) and not sum(map(float, ends.values())) < float(horizon):
            said = " + ".join(f"{name} = {float(value):g}" for name, value in ends.items())
            raise ValueError(f"{said} must be less than the horizon {float(horizon):g}: there are other steps. Shorten it.")
        share = first / jnp.asarray(horizon, dtype=float)
        if last is None:
            inner = jnp.exp(jnp.linspace(jnp.log(share), 0.0, steps))[:-1]
        else:
            left = last / jnp.asarray(horizon, dtype=float)
            inner = jax.nn.sigmoid(jnp.linspace(jnp.log(share / (1 - share)), jnp.log((1 - left) / left), steps - 1))
        return cls(horizon * jnp.concatenate([jnp.zeros(1), inner, jnp.ones(1)]))

    @classmethod
    @front_door
    def for_accuracy(
        cls, problem: Any, protocol: Any, horizon: Any, *, key: Array, accuracy: float = 0.01, **options: Any
    ) -> "TimeGrid":
        """The grid that `dmftopt.solve(problem, protocol, horizon, accuracy=accuracy, **options)` chooses, to be used under
        `jit`, `grad` or `vmap` on problems and protocols like these (how many samples go with it, `Solution.stats` of that
        solve tells). Raises as `solve` does, so where the accuracy is not reached."""
        from ..dmft import solve

        return cls(solve(problem, protocol, horizon, key=key, accuracy=accuracy, **options).times)

    @classmethod
    @front_door
    def of_epochs(cls, problem: Any, protocol: Any, epochs: float, steps: int) -> "TimeGrid":
        """`steps` steps over so many passes over the training set, of equal length within each, with the ends of the passes among
        the times: for `noise.Shuffled()`. Two for each pass at the least; take ten or more.

        The clock is that of epochs: the times follow from the batch sizes, ∫_0^t B dt = delta * epochs, and move with them,
        differentiably. The last pass may be a part of one (epochs=2.5). `epochs` is a plain number: it has no derivative."""
        check_real("epochs", epochs, minimum=0.0, exclusive=True, cure="They are passes over the training set.")
        check_fixed("epochs", epochs)
        check_count("steps", steps)
        return cls.at_epochs(problem.delta, protocol.batch_size, spread_epochs(float(epochs), steps))

    @classmethod
    def at_epochs(cls, delta: Any, batch_size: Any, epochs: Any) -> "TimeGrid":
        """As `of_epochs`, at these numbers of epochs, from 0."""
        _check_ends(epochs)
        return cls(times_until(batch_size, jnp.asarray(delta, dtype=float) * epochs), epochs)

    def counted(self, batch_size: Any, delta: Any) -> "TimeGrid":
        """The same grid with its `epochs`. Raises ValueError where the end of one is not among its times, TypeError where
        batch sizes or times are traced."""
        if self.epochs is not None:
            _check_ends(self.epochs)
            return self
        panels = self.times[-1] * jnp.linspace(0.0, 1.0, PANELS + 1)
        epochs = samples_until(batch_size, self.times, panels) / jnp.asarray(delta, dtype=float)
        if not is_concrete(epochs):
            raise TypeError(
                "grid: where epochs end cannot be found while tracing. Build the grid, inside of jit or grad, with "
                "dmftopt.TimeGrid.of_epochs(problem, protocol, epochs, steps)."
            )
        ends = np.round(np.asarray(epochs, dtype=float))
        # Rounding, of the times or of what they are made from.
        snapped = jnp.where(np.abs(ends - np.asarray(epochs)) < 1e-5 * np.maximum(ends, 1.0), ends, epochs)
        _check_ends(snapped)
        return TimeGrid(self.times, snapped)

    @property
    def steps(self) -> int:
        return self.times.shape[0] - 1

    @property
    def step_sizes(self) -> Float[Array, " step"]:
        return jnp.diff(self.times)

    def refined(self) -> "TimeGrid":
        """The grid with every step halved."""

        def halved(values):
            middle = 0.5 * (values[1:] + values[:-1])
            return jnp.concatenate([values[:1], jnp.stack([middle, values[1:]], axis=1).ravel()])

        return TimeGrid(halved(self.times), None if self.epochs is None else halved(self.epochs))

    def coarsened(self) -> "TimeGrid":
        """The grid of every second time."""
        return TimeGrid(self.times[::2], None if self.epochs is None else self.epochs[::2])

    def rotation(self) -> Float[Array, "step step"]:
        """Orthogonal matrix that maps independent normals to this grid's normalized Brownian increments, with the
        normals in order of decreasing share of the path's variance (principal components)."""
        # The law does not depend on the rotation, so no derivative with respect to the grid is lost here.
        times = jax.lax.stop_gradient(self.times[1:])
        steps = jnp.diff(times, prepend=0.0)
        variances, modes = jnp.linalg.eigh(jnp.minimum(times[:, None], times[None, :]))
        paths = (modes * jnp.sqrt(jnp.maximum(variances, 0.0))[None])[:, ::-1]
        rows = jnp.diff(paths, axis=0, prepend=0.0) / jnp.sqrt(steps)[:, None]
        # Rounding in the smallest modes spoils orthogonality on strongly non-uniform grids; QR restores it exactly.
        q, r = jnp.linalg.qr(rows)
        return q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)[None]


def record_steps(records: Any, horizon: Any, dimension: Any) -> np.ndarray:
    """The SGD steps at which a run of round(horizon * dimension) steps is observed: at `records` + 1 equally spaced times, or
    at the increasing times `records` from 0 to the horizon, each rounded to a step. Raises ValueError where two coincide."""
    check_duration("horizon", horizon, "It is the final time, SGD steps / dimension.")
    check_fixed("horizon", horizon)
    total = round(float(horizon) * dimension)
    if np.ndim(records) == 0:
        check_count("records", records)
        check_memory(f"records = {records}", 4 * records, "Ask for fewer.")
        records = np.linspace(0.0, float(horizon), records + 1)
    check_real("records", records, minimum=0.0, cure="They are times of observation.")
    at = np.round(np.asarray(records, dtype=float) * dimension).astype(int)
    if at.ndim != 1 or at.size < 2 or at[0] != 0 or at[-1] != total or np.any(np.diff(at) <= 0):
        raise ValueError(
            f"records must be increasing times from 0 to the horizon, at least one SGD step (1/{dimension}) apart, or at most "
            f"{total}, the number of steps. Ask for fewer, or raise dimension."
        )
    return at


def spread_epochs(epochs: float, steps: int) -> np.ndarray:
    """From 0 to `epochs`, of equal distance between whole numbers; even numbers of steps between these where `steps` is even, so
    that they are in the grid of every second time too."""
    whole = np.floor(epochs) if abs(epochs - round(epochs)) > 1e-9 else round(epochs)
    ends = np.unique(np.append(np.arange(whole + 1), epochs)) if epochs > whole else np.arange(whole + 1.0)
    parts, unit = ends.size - 1, 2 if steps % 2 == 0 else 1
    if steps < 2 * parts:
        raise ValueError(
            f"steps must be at least {2 * parts}, two for each of {epochs:g} epochs, got {steps}. Take ten for each."
        )
    at = np.round(np.interp(ends, [0.0, ends[-1]], [0, steps // unit])).astype(int)
    # One unit for each part at the least.
    for part in range(1, parts + 1):
        at[part] = max(at[part], at[part - 1] + 1)
    for part in range(parts, 0, -1):
        at[part] = min(at[part], steps // unit - (parts - part))
    return np.interp(np.arange(steps + 1), unit * at + (at == at[-1]) * (steps - unit * at[-1]), ends)


def _check_ends(epochs: Any) -> None:
    if not is_concrete(epochs):
        return
    epochs = np.asarray(epochs, dtype=float)
    for end in range(1, int(np.floor(epochs[-1])) + 1):
        if not np.any(np.abs(epochs - end) < 1e-9 * end):
            raise ValueError(
                f"grid: the end of epoch {end} is not among its times. Build it with "
                "dmftopt.TimeGrid.of_epochs(problem, protocol, epochs, steps) (in an Objective leave grid out), or use "
                "noise.Poisson()."
            )


def _check_horizon(horizon: Any, steps: Any) -> None:
    check_duration("horizon", horizon, "It is the final time, SGD steps / d.")
    check_shape("horizon", horizon, ((),), "Use jax.vmap for a sweep.")
    check_count("steps", steps)
    check_memory(f"steps = {steps}", 6 * steps, "Use fewer.")
