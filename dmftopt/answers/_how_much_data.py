"""How many samples a risk needs."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import brentq

from .._checks import check_count, check_instance, check_key, check_real, front_door
from .._register import register
from ..design import Budget
from ..problem import Problem, check_problem
from ..protocol import Protocol
from ..protocol.grid import TimeGrid
from ..results import plot
from ._route import KEYS, judged, objective_of, search, shown, value_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@register
class HowMuchData(eqx.Module):
    """The least `delta` = n / d from which the final test risk is at most `target`, not below `least` and not above `most`, where
    its total error is given the benefit of the doubt and not. None: not within the range that was looked at.

    - `deltas` (point,), `risk` (point,): the ladder, increasing; `error`: total error of the risk at `delta`, or at the largest.
    - `protocol`: as tuned there.
    """

    target: float
    delta: float | None
    least: float | None
    most: float | None
    deltas: Float[np.ndarray, " point"]
    risk: Float[np.ndarray, " point"]
    error: float
    protocol: Any

    def samples(self, dimension: int) -> int | None:
        """n, at this dimension."""
        check_count("dimension", dimension)
        return None if self.delta is None else int(np.ceil(self.delta * dimension))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {name: getattr(self, name) for name in ("target", "delta", "least", "most", "error")}

    def __str__(self) -> str:
        if self.delta is None:
            there = f"it is {shown(float(self.risk[-1]), self.error)} there"
            return f"test risk {self.target:g} is not reached up to n / d = {self.deltas[-1]:g}: {there}"
        if self.least is None or self.most is None:
            return f"test risk {self.target:g} is reached at the least n / d that was looked at, {self.delta:g}"
        return f"test risk {self.target:g} needs n / d = {self.delta:.4g} (from {self.least:.4g} to {self.most:.4g})"

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """The final risk against n / d, and the target. Returns the matplotlib axes."""
        axes = plot.curve(self.deltas, self.risk, None, x_label="samples per dimension, n / d", axes=axes, marker="o")
        axes.set_xscale("log", base=2)
        axes.axhline(self.target, color="0.4", linewidth=1, linestyle="--")
        if self.delta is not None:
            axes.axvline(self.delta, color="0.4", linewidth=1, linestyle=":")
        return axes


@front_door
def how_much_data(
    problem: Problem,
    protocol: Protocol,
    budget: Budget,
    target: float,
    *,
    key: Array,
    between: tuple[float, float] = (0.5, 64.0),
    tune: int = 0,
    predict: Callable | None = None,
    grid: TimeGrid | None = None,
) -> HowMuchData:
    """How many samples, n / d, training under this budget needs until its final test risk is at most `target`.

    - `problem`: its delta does not matter. - `protocol`: in relative time. `tune`: that many steps of Adam (0.1) on what is free
      in it, anew for every n / d (0: as it is).
    - `between`: smallest and largest n / d; a ladder of factors of 2 is looked at, and the answer lies above the last of it that
      fails: below that the risk may pass the target too (it can rise with more data).
    - `predict`, `grid`: as in `dmftopt.advise`.

    `least` and `most` come from the risk's total error over its slope in log n / d. Raises ValueError for a range that is none.
    """
    check_problem(problem)
    check_instance("budget", budget, Budget, "Build it with dmftopt.Budget(epochs=...).")
    check_key(key)
    check_real("target", target, minimum=0.0, exclusive=True, cure="It is a test risk.")
    check_count("tune", tune, minimum=0)
    if not (isinstance(between, tuple) and len(between) == 2 and 0 < between[0] < between[1] < np.inf):
        raise ValueError(f"between must be two increasing positive n / d, got {between!r}. Pass (0.5, 64.0), say.")
    tune_key, *fresh = jax.random.split(key, 1 + KEYS)

    def moved(delta: float) -> Problem:
        return eqx.tree_at(lambda p: p.delta, problem, jax.numpy.asarray(delta, dtype=float))

    def at(delta: float):
        return objective_of(moved(delta), budget, protocol, predict, grid)

    def tuned(delta: float) -> Any:
        if not tune:
            return protocol
        return search(at(delta), protocol, tune_key, tune, progress=False).protocol

    def risk(delta: float) -> float:
        return float(value_of(at(delta), tuned(delta), tune_key))

    count = max(2, 1 + int(np.ceil(np.log2(between[1] / between[0]))))
    deltas = np.geomspace(*between, count)
    risks = np.asarray([risk(delta) for delta in deltas])
    fails = np.flatnonzero(~(risks <= target))
    if fails.size and fails[-1] == count - 1:
        _, errors = judged(moved(deltas[-1]), at(deltas[-1]), [tuned(deltas[-1])], fresh)
        return HowMuchData(float(target), None, None, None, deltas, risks, float(errors.total[0]), tuned(deltas[-1]))
    if not fails.size:
        _, errors = judged(moved(deltas[0]), at(deltas[0]), [tuned(deltas[0])], fresh)
        return HowMuchData(float(target), float(deltas[0]), None, None, deltas, risks, float(errors.total[0]), tuned(deltas[0]))
    low, high = np.log(deltas[fails[-1] : fails[-1] + 2])
    middle: Any = brentq(lambda x: risk(float(np.exp(x))) - target, low, high, xtol=1e-4)
    delta, step = float(np.exp(middle)), 0.05
    found = tuned(delta)
    values, errors = judged(moved(delta), at(delta), [found], fresh)
    slope = (risk(delta * np.exp(step)) - risk(delta * np.exp(-step))) / (2 * step)
    # The root was found on one key: the mean over others tells where it is.
    off = (abs(float(values[0]) - target) + float(errors.total[0])) / max(abs(slope), 1e-300) + 1e-4
    least, most = delta * np.exp(-min(off, 20.0)), delta * np.exp(min(off, 20.0))
    return HowMuchData(float(target), delta, least, most, deltas, risks, float(errors.total[0]), found)
