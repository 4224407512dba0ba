"""Which grid to step on: an a-priori density of steps, made exact by the levels that are compared on it."""

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ..problem import Problem
from ..protocol import Protocol
from ..protocol.grid import TimeGrid
from ..protocol.rates import knots, read
from ._adaptive import seen

Numbers = NDArray[np.float64]

# Times at which the protocol and the curvature are read to make a grid.
_READS = 2048
# Of the steps that the fast modes get once they have come to rest, where only noise moves them.
_RESTING = 0.3
# Steps for each unit of the density's integral, and at the least, for an error of about a percent.
_PER_UNIT, _LEAST = 1.5, 8.0


class Density:
    """Steps per time, up to a factor: on modes of rate r_a = eta lambda_a kappa_a |E[dl / dr]| that start from rest, so much

        sum_a (omega_a lambda_a)^(1/3) r_a(t) [exp(-∫r_a / 3) + resting] ,

    which spreads the error of a second-order step evenly while a mode decays, plus a constant."""

    def __init__(self, problem: Problem, protocol: Protocol, horizon: float, curvature: Numbers, at: Numbers, ratio: Numbers):
        self.horizon = horizon
        features = seen(problem, protocol.update)
        lam, shares = (np.asarray(a, dtype=float) for a in (features.eigenvalues, features.weights))
        early = horizon * np.geomspace(1e-6, 1.0, _READS // 4)
        self.times = np.unique(np.concatenate([np.linspace(0.0, horizon, _READS), early]))
        eta = np.asarray(read(protocol, jnp.asarray(self.times, dtype=float)).gradient_rate, dtype=float)
        rates = (lam * ratio)[:, None] * (eta * np.interp(self.times, at, curvature))[None]
        clock = np.concatenate(
            [np.zeros((lam.size, 1)), np.cumsum(np.diff(self.times) * 0.5 * (rates[:, 1:] + rates[:, :-1]), 1)], 1
        )
        moving = (shares * lam)[:, None] ** (1 / 3) * rates * (np.exp(-clock / 3) + _RESTING)
        density = moving.sum(axis=0) + _LEAST / _PER_UNIT / horizon
        self.integral = np.concatenate([[0.0], np.cumsum(np.diff(self.times) * 0.5 * (density[1:] + density[:-1]))])

    @property
    def steps(self) -> float:
        return _PER_UNIT * float(self.integral[-1])

    def grid(self, steps: int, fixed: Numbers) -> TimeGrid:
        """So many steps, with the increasing times `fixed` among the grid's: each stretch between two of them has its share,
        one at the least."""
        edges = np.concatenate([[0.0], fixed, [self.horizon]])
        at = np.interp(edges, self.times, self.integral)
        counts = _shares(np.diff(at), steps)
        pieces = [np.zeros(1)]
        for a, b, end, count in zip(at[:-1], at[1:], edges[1:], counts, strict=True):
            inside = np.interp(a + (b - a) * np.arange(1, count) / count, self.integral, self.times)
            pieces += [inside, np.array([end])]
        return TimeGrid(np.concatenate(pieces))


def _shares(weights: Numbers, total: int) -> NDArray[np.int64]:
    """Whole numbers of at least 1 in proportion to the weights, as near as may be, that sum to `total`."""
    free = total - weights.size
    exact = free * weights / weights.sum()
    counts = np.floor(exact).astype(int)
    counts[np.argsort(exact - counts)[::-1][: free - counts.sum()]] += 1
    return counts + 1


def inner_knots(protocol: Protocol, horizon: float, apart: float) -> Numbers:
    """Those of the protocol inside (0, horizon), distinct, at least `apart` from each other and from the ends."""
    kept: list[float] = []
    for time in np.asarray(knots(protocol, horizon), dtype=float):
        if time - (kept[-1] if kept else 0.0) > apart and horizon - time > apart:
            kept.append(float(time))
    return np.asarray(kept, dtype=float)
