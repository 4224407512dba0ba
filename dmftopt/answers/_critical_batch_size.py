"""How large batches pay: steps against samples on the way to a risk."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_count, check_instance, check_key, check_real, front_door
from .._register import register
from ..dmft import DiscreteStep, solve
from ..problem import Problem, check_problem
from ..protocol import Protocol
from ..protocol.grid import TimeGrid
from ..protocol.noise import AbstractNoise, Bernoulli, Poisson
from ..protocol.schedules import Constant
from ..results import plot
from ._route import crossing, scale_of, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Learning rates are looked at in half octaves: where the search begins, about the scale that is given, how far it may go, and
# how much finer it ends.
_FIRST, _FARTHEST = range(-6, 4), 24
_SPACINGS = 0.5, 0.25
_REPLICATES = 4
# With fewer, a count of updates says little of what a larger batch would save.
_FEWEST_UPDATES = 3.0
# Below this many particles in a batch their average says little.
_PARTICLES = 32


@register
class CriticalBatchSize(eqx.Module):
    """Updates and samples that SGD needs to each target, with a constant learning rate, the best for every target and batch.

    - `targets` (target,): test risks. - `fractions` (batch,): batch size / n, from 1 downwards; `batch_sizes`: over d.
    - `updates` (target, batch), at least 1, between whole ones by interpolation; `samples`, those visited over d;
      `learning_rate`, of each update. NaN: not reached.
    - `least_samples` (target,): what the smallest batches need, any whole number of samples.
    - `critical` (target,): batch size / d at which updates and samples are the same multiple, `price`, of the least of each: of
      updates with the whole training set, of samples with the smallest batches. Not below `lowest` and not above `highest`, for
      risks less and plus their total error. Infinite: even the whole training set at once costs no more samples. NaN: it is
      below the batches that were looked at, or the whole training set needs fewer than 3 updates.
    """

    targets: Float[np.ndarray, " target"]
    fractions: Float[np.ndarray, " batch"]
    batch_sizes: Float[np.ndarray, " batch"]
    updates: Float[np.ndarray, "target batch"]
    samples: Float[np.ndarray, "target batch"]
    learning_rate: Float[np.ndarray, "target batch"]
    least_samples: Float[np.ndarray, " target"]
    critical: Float[np.ndarray, " target"]
    lowest: Float[np.ndarray, " target"]
    highest: Float[np.ndarray, " target"]
    price: Float[np.ndarray, " target"]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; None for what was not reached."""
        found = {}
        for name, value in vars(self).items():
            plain = np.asarray(value, dtype=object)
            plain[~np.isfinite(value)] = None
            found[name] = plain.tolist()
        return found

    def __str__(self) -> str:
        lines = []
        for k, target in enumerate(self.targets):
            if np.isinf(self.critical[k]):
                found = "no batch is too large, not even the whole training set"
            elif np.isnan(self.critical[k]):
                found = "no critical batch size among those looked at"
            else:
                width = float(0.5 * (self.highest[k] - self.lowest[k]))
                size = shown(float(self.critical[k]), width) if np.isfinite(width) else f"about {self.critical[k]:.2g}"
                found = f"critical batch size {size} d, {self.price[k]:.2f} times the least"
            fewest = np.nanmin(self.updates[k]) if np.any(np.isfinite(self.updates[k])) else np.nan
            lines.append(f"test risk {target:g}: {found} (at least {fewest:.3g} updates, {self.least_samples[k]:.3g} d samples)")
        return "\n".join(lines)

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Samples against updates, a line for each target, and the critical batch size on it. Returns the matplotlib axes."""
        for k, target in enumerate(self.targets):
            axes = plot.curve(
                self.updates[k],
                self.samples[k],
                None,
                x_label="updates",
                y_label="samples / d",
                axes=axes,
                marker="o",
                label=f"test risk {target:g}",
            )
            line = axes.lines[-1]
            axes.axhline(float(self.least_samples[k]), color=line.get_color(), linewidth=0.8, linestyle=":")
            if np.isfinite(self.critical[k]):
                at = self.price[k] * float(self.updates[k, 0]), self.price[k] * float(self.least_samples[k])
                axes.plot(*at, marker="*", markersize=12, color=line.get_color())
        assert axes is not None
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        return axes


@front_door
def critical_batch_size(
    problem: Problem,
    target: float | Sequence[float],
    *,
    key: Array,
    protocol: Protocol | None = None,
    fractions: Sequence[float] = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125),
    updates: int = 64,
    samples: int = 2048,
) -> CriticalBatchSize:
    """How many updates, and how many samples, SGD needs until its test risk is at most `target`, by batch size, and up to which
    batch size larger batches pay.

    While a batch B is small against d nothing is lost: learning rate and batch c times as large are the same run in 1/c of the
    steps. The exchange ends where B is of order d, a `fraction` of the n = delta d samples. There each update is an exact one of
    the theory (`noise.Bernoulli(fraction)`, `DiscreteStep()`), and its batch costs fraction * delta samples per dimension.
    (arXiv:1812.06162 has (updates / least - 1) (samples / least - 1) = 1 in the simplest case, a price of 2.)

    - `target`: one, or several, to see the critical batch size along the run.
    - `protocol`: ridge and momentum, numbers. Its learning rate is where the best is looked for, in half octaves; default
      `Protocol(1.0)`. An update is -rate * the mean gradient in features of mean square norm 1.
    - `fractions`: decreasing, the first 1. - `updates`: at most so many; targets that need more are NaN. - `samples`: of the
      solver, four replicates each; the smallest fraction must leave 32 of them in a batch.

    Raises TypeError or ValueError for what makes no run, and for a target that is reached by no batch.
    """
    check_problem(problem)
    check_key(key)
    check_count("updates", updates, minimum=4)
    check_real("target", target, minimum=0.0, exclusive=True, cure="It is a test risk.")
    targets = np.atleast_1d(np.asarray(target, dtype=float))
    shares = _checked(fractions, samples)
    protocol = _plain(Protocol(1.0) if protocol is None else protocol)
    search = _Search(problem, protocol, scale_of(protocol), key, samples, targets)
    grid = TimeGrid.uniform(float(updates), updates)
    found, start = [], list(_FIRST)
    for share in shares:
        best = search.fastest(grid, Bernoulli(share), start)
        found.append(best)
        # A smaller batch takes no larger rate.
        near = best.nearest[np.isfinite(best.time[1])]
        start = list(range(int(near.min()) - 2, int(near.max()) + 2)) if near.size else start
    counts = np.stack([best.time for best in found], axis=-1)
    if not np.any(np.isfinite(counts[1])):
        raise ValueError(f"target: {target} is not reached in {updates} updates by any batch. Raise the target, or `updates`.")
    sizes = shares * float(problem.delta)
    cost = counts * sizes
    least = search.least_samples(updates, cost[1])
    enough = counts[1, :, 0] >= _FEWEST_UPDATES
    knees = [_knees(sizes, counts[j], cost[j], least[j], enough) for j in range(3)]
    at = np.stack([knee[0] for knee in knees])
    rates = np.stack([best.rate for best in found], axis=-1)
    ends = at.min(axis=0), at.max(axis=0)
    return CriticalBatchSize(targets, shares, sizes, counts[1], cost[1], rates, least[1], at[1], *ends, knees[1][1])


class _Fastest(NamedTuple):
    """Times to each target, where the risk is less its error, itself and plus it, at the best rate, and that rate: itself, and
    the half octave next to it."""

    time: np.ndarray
    rate: np.ndarray
    nearest: np.ndarray


class _Search(NamedTuple):
    problem: Problem
    protocol: Protocol
    scale: float
    key: Array
    samples: int
    targets: np.ndarray

    def times(self, half_octave: float, grid: TimeGrid, noise: AbstractNoise) -> np.ndarray:
        """(3, target): when the targets are reached at this learning rate, infinite for never."""
        rate = jnp.asarray(self.scale * 2.0 ** (half_octave / 2))
        protocol = eqx.tree_at(lambda p: p.learning_rate, self.protocol, Constant(rate))
        step = DiscreteStep() if noise.discrete else None
        options = {"samples": self.samples, "replicates": _REPLICATES, "step": step, "noise": noise, "throw": False}
        solution = solve(self.problem, protocol, grid, key=self.key, **options)
        risk, error = np.asarray(solution.test_risk), np.asarray(solution.total_error.test_risk)
        finite = np.isfinite(risk) & np.isfinite(error)
        known = int(np.argmin(finite)) if not np.all(finite) else risk.size
        if known < 2:
            return np.full((3, self.targets.size), np.inf)
        at, risk, error = (np.asarray(a)[:known] for a in (solution.times, risk, error))
        found = [[crossing(at, risk + s * error, float(t)) for t in self.targets] for s in (-1, 0, 1)]
        times = np.asarray([[np.inf if t is None else t for t in row] for row in found])
        return np.maximum(times, 1.0) if noise.discrete else times

    def fastest(self, grid: TimeGrid, noise: AbstractNoise, start: Sequence[float]) -> _Fastest:
        """Over learning rates: a ladder, longer at its ends while a target is met soonest there; finer rungs about the best."""
        ladder = {float(j): self.times(j, grid, noise) for j in start}

        def best() -> tuple[np.ndarray, np.ndarray]:
            """The best rungs, and which targets are reached at all."""
            rungs = np.asarray(sorted(ladder))
            times = np.stack([ladder[j][1] for j in rungs])
            return rungs[np.argmin(times, axis=0)], np.isfinite(times.min(axis=0))

        while True:
            low, high = min(ladder), max(ladder)
            tops, reached = best()
            none = not np.any(reached) and len(ladder) < 2 * len(_FIRST)
            wanted = ((low - 1, none or low in tops[reached]), (high + 1, none or high in tops[reached]))
            more = [j for j, is_wanted in wanted if is_wanted and abs(j) <= _FARTHEST]
            if not more:
                break
            ladder |= {j: self.times(j, grid, noise) for j in more}
        for spacing in _SPACINGS:
            tops, reached = best()
            more = {float(top + side * spacing) for top in tops[reached] for side in (-1, 1)} - set(ladder)
            ladder |= {j: self.times(j, grid, noise) for j in more}
        tops, _ = best()
        around = [[ladder.get(float(top + side * _SPACINGS[-1])) for side in (-1, 0, 1)] for top in tops]
        found = np.asarray([[_top(near, s, k) for k, near in enumerate(around)] for s in range(3)])
        return _Fastest(found[..., 0], self.scale * 2.0 ** ((tops + found[1, :, 1] * _SPACINGS[-1]) / 2), np.round(tops))

    def least_samples(self, steps: int, cost: np.ndarray) -> np.ndarray:
        """(3, target): what batches far smaller than d need, which one by one are samples per dimension in time t = steps / d."""
        found = []
        for k, costs in enumerate(cost):
            if not np.any(np.isfinite(costs)):
                found.append(np.full(3, np.nan))
                continue
            grid = TimeGrid.uniform(1.5 * float(np.nanmin(costs)), steps)
            best = self._replace(targets=self.targets[k : k + 1]).fastest(grid, Poisson(), range(-4, 2))
            found.append(best.time[:, 0])
        return np.stack(found, axis=-1)


def _top(around: list[np.ndarray | None], which: int, target: int) -> tuple[float, float]:
    """The least time by a parabola through the logarithms at three rungs, and where it is, from the middle in rungs; without
    neighbors that reach the target the middle itself."""
    times = np.asarray([np.inf if rung is None else rung[which, target] for rung in around])
    if not np.isfinite(times[1]):
        return np.nan, np.nan
    if not np.all(np.isfinite(times)) or np.any(times <= 0):
        return float(times[1]), 0.0
    a, b, c = np.log(times)
    bend = a - 2 * b + c
    shift = float(np.clip(0.5 * (a - c) / bend, -1.0, 1.0)) if bend > 0 else 0.0
    return float(np.exp(b - 0.25 * (a - c) * shift)), shift


def _knees(
    sizes: np.ndarray, counts: np.ndarray, cost: np.ndarray, least: np.ndarray, enough: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each target the batch size at which updates and samples are the same multiple of the least, and that multiple."""
    found = []
    for updates, samples, fewest, is_enough in zip(counts, cost, least, enough, strict=True):
        with np.errstate(invalid="ignore", divide="ignore"):
            more_updates, more_samples = np.log(updates / updates[0]), np.log(samples / fewest)
        gap = more_updates - more_samples
        if gap[0] >= 0 and is_enough:
            found.append((np.inf, 1.0))
            continue
        k = np.flatnonzero((gap[:-1] < 0) & (gap[1:] >= 0))
        if not k.size or not is_enough:
            found.append((np.nan, np.nan))
            continue
        part = slice(int(k[0]), int(k[0]) + 2)
        found.append(tuple(float(np.exp(np.interp(0.0, gap[part], v[part]))) for v in (np.log(sizes), more_updates)))
    size, price = np.asarray(found).T
    return size, price


def _plain(protocol: Protocol) -> Protocol:
    """With batches of one, which are those of the smallest."""
    check_instance("protocol", protocol, Protocol, "Build it with dmftopt.Protocol(1.0, ridge=...).")
    for name in ("ridge", "momentum"):
        schedule = getattr(protocol, name)
        if schedule is not None and not isinstance(schedule, Constant):
            raise TypeError(f"protocol.{name} must be a number: runs of all batch sizes share it. Leave its schedule out.")
    if protocol.update is not None or protocol.friction is not None:
        raise ValueError("protocol: this is about SGD, with ridge and momentum at most. Leave update and friction out.")
    return eqx.tree_at(lambda p: p.batch_size, protocol, Constant(1.0))


def _checked(fractions: Sequence[float], samples: int) -> np.ndarray:
    check_count("samples", samples)
    shares = np.asarray(fractions, dtype=float)
    if shares.ndim != 1 or shares.size < 2 or shares[0] != 1.0 or not np.all(np.diff(shares) < 0) or not shares[-1] > 0:
        raise ValueError(f"fractions must decrease from 1 and stay positive, got {fractions!r}. Pass (1.0, 0.5, 0.25), say.")
    if shares[-1] * samples < _PARTICLES:
        raise ValueError(
            f"fractions: a batch of {shares[-1]:g} of {samples} samples of the solver says little. Pass samples="
            f"{1 << int(np.ceil(np.log2(_PARTICLES / shares[-1])))} or more, or larger fractions."
        )
    return shares
