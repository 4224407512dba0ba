"""When a run reaches a risk."""

from typing import TYPE_CHECKING, Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from .. import limits
from .._checks import check_count, check_key, check_real, front_door
from .._register import register
from ..dmft import solve
from ..problem import Problem, check_problem
from ..protocol import Protocol
from ..protocol.grid import TimeGrid
from ..results import plot
from ._route import crossing, is_exact, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Times at which a limit is read.
_TIMES = 128


@register
class HowLong(eqx.Module):
    """When the test risk first is at most `target`, in time t = steps / d: `time`, not before `earliest` and not after `latest`,
    where the risk is its prediction, and that less and plus its total error. None: not within the run.

    - `times` (time,), `risk` (time,), `error` (time,): what was predicted.
    """

    target: float
    time: float | None
    earliest: float | None
    latest: float | None
    times: Float[np.ndarray, " time"]
    risk: Float[np.ndarray, " time"]
    error: Float[np.ndarray, " time"]

    def steps(self, dimension: int) -> int | None:
        """Of SGD at this dimension, whole ones."""
        check_count("dimension", dimension)
        return None if self.time is None else int(np.ceil(self.time * dimension))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {name: getattr(self, name) for name in ("target", "time", "earliest", "latest")}

    def __str__(self) -> str:
        if self.time is None:
            k = int(np.argmin(self.risk))
            found = f"the least is {shown(self.risk[k], self.error[k])}, at t = {self.times[k]:.4g}"
            perhaps = "" if self.earliest is None else f" (within its error from t = {self.earliest:.4g} on)"
            return f"test risk {self.target:g} is not reached by t = {self.times[-1]:.4g}{perhaps}: {found}"
        latest = f"not surely by t = {self.times[-1]:.4g}" if self.latest is None else f"{self.latest:.4g}"
        return f"test risk {self.target:g} is reached at t = {self.time:.4g} (steps / d; from {self.earliest:.4g} to {latest})"

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """The risk with its total error, the target, and when it is reached. Returns the matplotlib axes."""
        axes = plot.curve(self.times, self.risk, self.error, axes=axes)
        axes.axhline(self.target, color="0.4", linewidth=1, linestyle="--")
        if self.time is not None:
            axes.axvline(self.time, color="0.4", linewidth=1, linestyle=":")
        return axes


@front_door
def how_long(
    problem: Problem,
    protocol: Protocol,
    target: float,
    *,
    horizon: float,
    key: Array | None = None,
    accuracy: float = 0.01,
    **options: Any,
) -> HowLong:
    """How long SGD with this protocol takes until its test risk is at most `target`, if it is within `horizon`.

    Times are steps / d, in `protocol` too: a schedule that decays over the run asks another question for every horizon. Least
    squares is exact (`limits.least_squares`); other problems are solved to `accuracy`, which needs a `key`, with `options` of
    `dmftopt.solve` (`noise=dmftopt.noise.Shuffled()`, say). Times are where the predicted risk, and that less and plus its total
    error, cross the target, by a monotone cubic between the times of the grid; what leaving out half of these changes is added.

    Raises ValueError for a target or horizon that is not positive, and what `solve` raises.
    """
    check_problem(problem)
    check_real("target", target, minimum=0.0, exclusive=True, cure="It is a test risk.")
    check_real("horizon", horizon, minimum=0.0, exclusive=True, cure="It is the final time, SGD steps / d.")
    if is_exact(problem, protocol) and not options:
        result = limits.least_squares(problem, protocol, TimeGrid.uniform(horizon, _TIMES))
    else:
        if key is None:
            raise ValueError("key: this problem is solved on random numbers. Pass jax.random.key(0).")
        check_key(key)
        result = solve(problem, protocol, horizon, accuracy=accuracy, key=key, **options)
    at, risk = (np.asarray(a, dtype=float) for a in (result.times, result.test_risk))
    known = result.known_error()
    assert known is not None
    error = np.asarray(known.test_risk, dtype=float)
    found = [crossing(at, series, target) for series in (risk - error, risk, risk + error)]
    half = np.unique(np.append(np.arange(0, at.size, 2), at.size - 1))
    rough = crossing(at[half], risk[half], target)
    width = 0.0 if found[1] is None or rough is None else abs(rough - found[1])
    earliest, time, latest = found
    earliest = None if earliest is None else max(earliest - width, 0.0)
    latest = None if latest is None else latest + width
    return HowLong(float(target), time, earliest, latest, at, risk, error)
