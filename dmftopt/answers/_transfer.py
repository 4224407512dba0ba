"""What becomes of a tuned schedule when the run is another."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.optimize import minimize_scalar

from .._checks import check_count, check_instance, check_key, check_real, front_door
from .._register import register, register_part
from ..design import Budget, Objective
from ..problem import Problem, check_problem
from ..protocol import Protocol, schedules
from ..protocol.grid import TimeGrid
from ..results import plot
from ._route import KEYS, judged, objective_of, search, shown, value_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Factors of the rate that are tried before the best is looked for; what a rate may cost that is called as good as the best.
_LADDER, _AS_GOOD = 2.0 ** np.arange(-5, 6), 0.01
_MEANING = {"horizon": "steps", "batch_size": "batch size", "dimension": "dimension", "samples": "training samples"}


@register_part
class Moved(NamedTuple):
    """A run that is `factor` times as much of `change`: the final test risk with everything tuned anew, and by how much it is
    above that with the old schedule in relative time (`kept`) and with this times one best number (`rescaled`), each with its
    whole error (95%). That number is `rate`; those from `rate_low` to `rate_high` cost at most 1% more. `peak` and `ridge`: of
    what was tuned anew, over the old (NaN for no ridge). `protocol`: tuned, in relative time."""

    change: str
    factor: float
    risk: float
    risk_error: float
    kept: float
    kept_error: float
    rescaled: float
    rescaled_error: float
    rate: float
    rate_low: float
    rate_high: float
    peak: float
    ridge: float
    protocol: Any


@register
class Transfer(eqx.Module):
    """What `transfer` found: a row for each change, and by name of what was changed the exponent a of the best rate, rate ~
    factor^a, by least squares in logarithms."""

    rows: tuple[Moved, ...]
    exponents: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; None for what is not."""
        rows = [{k: _plain(v) for k, v in row._asdict().items() if k != "protocol"} for row in self.rows]
        return {"rows": rows, "exponents": dict(self.exponents)}

    def __str__(self) -> str:
        names = [f"{row.factor:g} × {_MEANING[row.change]}" for row in self.rows]
        width = max(map(len, names))
        heads = (f"{head:>18}" for head in ("tuned test risk", "schedule kept", "rescaled"))
        lines = ["  ".join([" " * width, *heads, f"{'rate × (1% more)':<22}", "peak ×", "ridge ×"])]
        for name, row in zip(names, self.rows, strict=True):
            costs = (_percent(row.kept, row.kept_error, row.risk), _percent(row.rescaled, row.rescaled_error, row.risk))
            cells = "  ".join(f"{cell:>18}" for cell in (shown(row.risk, row.risk_error), *costs))
            rate = f"{row.rate:.3g} ({row.rate_low:.3g} to {row.rate_high:.3g})"
            lines.append(f"{name:<{width}}  {cells}  {rate:<22}  {row.peak:>6.3g}  {row.ridge:>7.3g}")
        lines += [f"The best rate goes as {_MEANING[name]}^{a:.2f}." for name, a in self.exponents.items()]
        return "\n".join(lines)

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """The best factor of the rate against that of each change. Returns the matplotlib axes."""
        for name in self.exponents:
            rows = sorted((row for row in self.rows if row.change == name), key=lambda row: row.factor)
            at, rate = (np.asarray([getattr(row, field) for row in rows]) for field in ("factor", "rate"))
            ends = np.asarray([[row.rate - row.rate_low, row.rate_high - row.rate] for row in rows]).T
            style = {"x_label": "factor of the change", "y_label": "best factor of the rate", "label": _MEANING[name]}
            axes = plot.curve(at, rate, None, axes=axes, marker="o", **style)
            axes.errorbar(at, rate, yerr=ends, fmt="none", color=axes.lines[-1].get_color(), capsize=3)
        assert axes is not None
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        return axes


@front_door
def transfer(
    problem: Problem,
    budget: Budget,
    protocol: Protocol,
    *,
    key: Array,
    horizon: Sequence[float] = (),
    batch_size: Sequence[float] = (),
    dimension: Sequence[float] = (),
    samples: Sequence[float] = (),
    steps: int = 40,
    predict: Callable | None = None,
    grid: TimeGrid | None = None,
    progress: bool = True,
) -> Transfer:
    """What a schedule that was tuned for one run costs in another, and how it should move.

    - `problem`, `budget`, `protocol`: the run it was tuned for, the schedule in relative time (`Optimized.protocol`).
    - The changes, factors of each: `horizon`, everything the budget fixes, so as many times the steps on the same data;
      `batch_size`, under the same budget; `samples`, the size of the training set, the budget as it says (so many epochs of more
      data, or as many steps on them); `dimension`, with the same number of samples and of steps or epochs, and the same shares
      of eigenvalues.
    - `steps`: of Adam (0.1) on all that is free in the protocol (bounds of the learning rate move along with its best factor);
      nothing free: the rescaled schedule is all there is.
    - `predict`, `grid`: as in `dmftopt.advise`. Errors too.

    While batches are small against d the theory has one exact rule: batch size and learning rate times c are the same run in 1/c
    of the steps, under a budget of samples or epochs.

    Raises TypeError or ValueError for arguments that make no run, and `SolveError` where nothing is finite.
    """
    check_problem(problem)
    check_instance("budget", budget, Budget, "Build it with dmftopt.Budget(epochs=...).")
    check_instance("protocol", protocol, Protocol, "Pass Optimized.protocol, in relative time.")
    check_key(key)
    check_count("steps", steps)
    changes = {"horizon": horizon, "batch_size": batch_size, "dimension": dimension, "samples": samples}
    for name, factors in changes.items():
        if isinstance(factors, str) or not isinstance(factors, Sequence | np.ndarray):
            raise TypeError(f"{name} must be a list of factors, got {factors!r}. Pass {name}=[2.0], say.")
        for factor in factors:
            check_real(name, factor, minimum=0.0, exclusive=True, cure="It is a factor.")
    if not any(len(factors) for factors in changes.values()):
        raise ValueError("horizon: give at least one change, horizon=[2.0, 4.0], say.")
    tune_key, *fresh = jax.random.split(key, 1 + KEYS)

    def row(name: str, factor: float) -> Moved:
        moved, spend, kept = _changed(problem, budget, protocol, name, factor)
        objective = objective_of(moved, spend, kept, predict, grid)
        rate, low, high = _best_rate(objective, kept, tune_key)
        rescaled = tuned = _times(kept, rate)
        if any(map(eqx.is_inexact_array, jax.tree.leaves(protocol))):
            tuned = search(objective, rescaled, tune_key, steps, also=[kept], progress=progress).protocol
        values, errors = judged(moved, objective, [tuned, rescaled, kept], fresh, lambda v: jnp.append(v[:1], v[1:] - v[0]))
        (risk, more, old), (risk_error, more_error, old_error) = (map(float, of) for of in (values, errors.total))
        was, now = (_peak_and_ridge(p) for p in (protocol, tuned))
        peak, ridge = now[0] / was[0], now[1] / was[1] if was[1] > 0 else np.nan
        costs = old, old_error, more, more_error
        return Moved(name, factor, risk, risk_error, *costs, rate, low, high, peak, ridge, tuned)

    rows = tuple(row(name, float(factor)) for name, factors in changes.items() for factor in factors)
    return Transfer(rows, {name: _exponent([r for r in rows if r.change == name]) for name in changes if len(changes[name])})


def _changed(problem: Problem, budget: Budget, protocol: Protocol, name: str, factor: float) -> tuple[Problem, Budget, Protocol]:
    delta, total = problem.delta, budget.total
    if name == "horizon":
        total = total * factor
    elif name == "batch_size":
        protocol = eqx.tree_at(lambda p: p.batch_size, protocol, schedules.Scaled(protocol.batch_size, scale=factor))
    else:
        delta = jnp.asarray(delta, dtype=float) * (factor if name == "samples" else 1 / factor)
        if name == "dimension":
            # Per dimension there are fewer of all but epochs.
            total = jnp.where(jnp.asarray(budget.of_training_set), total, total / factor)
    problem = eqx.tree_at(lambda p: p.delta, problem, delta)
    return problem, eqx.tree_at(lambda b: b.total, budget, total), protocol


def _times(protocol: Protocol, factor: float) -> Protocol:
    return eqx.tree_at(lambda p: p.learning_rate, protocol, schedules.Scaled(protocol.learning_rate, scale=factor))


def _best_rate(objective: Objective, protocol: Protocol, key: Array) -> tuple[float, float, float]:
    """The factor of the rate with the least risk, and those next to it with 1% more."""

    def risk(logarithm: float) -> float:
        value = float(value_of(objective, _times(protocol, float(np.exp(logarithm))), key))
        return value if np.isfinite(value) else 1e300

    ladder = np.log(_LADDER)
    tried = [risk(x) for x in ladder]
    k = int(np.argmin(tried))
    if tried[k] >= 1e300:
        objective.explain(protocol, key)
        raise ValueError(f"protocol: no run is finite at {_LADDER[0]:g} to {_LADDER[-1]:g} times its rate.")
    ends = ladder[max(k - 1, 0)], ladder[min(k + 1, ladder.size - 1)]
    found: Any = minimize_scalar(risk, bounds=ends, method="bounded", options={"xatol": 1e-2})
    best, least, step = float(found.x), float(found.fun), 0.2
    # A parabola for each side: the risk rises faster above than below.
    rises = [max(risk(best + side * step) - least, 1e-300) for side in (-1, 1)]
    widths = [step * min((_AS_GOOD * least / rise) ** 0.5, 16.0) for rise in rises]
    return float(np.exp(best)), float(np.exp(best - widths[0])), float(np.exp(best + widths[1]))


def _peak_and_ridge(protocol: Protocol) -> tuple[float, float]:
    """The largest learning rate and the mean ridge."""
    u = jnp.linspace(0.0, 1.0, 401)
    return float(jnp.max(protocol.learning_rate(u))), float(jnp.mean(protocol.ridge(u)))


def _exponent(rows: list[Moved]) -> float:
    x, y = (np.log([getattr(row, field) for row in rows]) for field in ("factor", "rate"))
    return float(np.sum(x * y) / np.sum(x * x)) if np.any(x != 0) else float("nan")


def _percent(value: float, error: float, of: float) -> str:
    return f"{value / of:+.2%}" + (f" ± {error / of:.2%}" if error > 5e-5 * of else "")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
