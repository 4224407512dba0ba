"""Time grids. Time is t = steps / d."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import as_numbers, check_count, check_duration, check_fixed, check_real, check_shape, front_door, is_concrete
from .._memory import check_memory


class TimeGrid(eqx.Module):
    """Times t_0 = 0 < t_1 < ... < t_K at which the equations are stepped and observed. `times`: (steps+1,)."""

    times: Float[Array, " time"]

    def __init__(self, times: Any):
        self.times = as_numbers("times", times)

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
    def for_accuracy(
        cls, problem: Any, protocol: Any, horizon: Any, *, key: Array, accuracy: float = 0.01, **options: Any
    ) -> "TimeGrid":
        """The grid that `dmftopt.solve(problem, protocol, horizon, accuracy=accuracy, **options)` chooses, to be used under
        `jit`, `grad` or `vmap` on problems and protocols like these (how many samples go with it, `Solution.stats` of that
        solve tells). Raises as `solve` does, so where the accuracy is not reached."""
        from ..dmft import solve

        return cls(solve(problem, protocol, horizon, key=key, accuracy=accuracy, **options).times)

    @property
    def steps(self) -> int:
        return self.times.shape[0] - 1

    @property
    def step_sizes(self) -> Float[Array, " step"]:
        return jnp.diff(self.times)

    def refined(self) -> "TimeGrid":
        """The grid with every step halved."""
        middle = 0.5 * (self.times[1:] + self.times[:-1])
        return TimeGrid(jnp.concatenate([self.times[:1], jnp.stack([middle, self.times[1:]], axis=1).ravel()]))

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


def _check_horizon(horizon: Any, steps: Any) -> None:
    check_duration("horizon", horizon, "It is the final time, SGD steps / d.")
    check_shape("horizon", horizon, ((),), "Use jax.vmap for a sweep.")
    check_count("steps", steps)
    check_memory(f"steps = {steps}", 6 * steps, "Use fewer.")
