"""Predictions by an exact limit, compiled once for every kind of schedule and for whatever of it is tuned."""

from typing import Any

import equinox as eqx
import numpy as np

import dmftopt
from dmftopt import schedules


class Exact(eqx.Module):
    """`route` (problem, protocol, grid), such as `dmftopt.limits.least_squares`, for `Objective(predict=...)`.

    Schedules are read at `reads` equally spaced relative times and interpolated linearly in between: exact for knots among these,
    good to about 1 / reads² otherwise."""

    route: Any = eqx.field(static=True)
    reads: int = eqx.field(static=True, default=481)

    def tabulated(self, protocol, grid):
        horizon, u = grid.times[-1], np.linspace(0.0, 1.0, self.reads)
        # Adding nothing: so that all of this depends on whatever is tuned. A ridge that is not tuned has a derivative as well,
        # which is not used, and programs are the same.
        nothing = 0.0 * (protocol.learning_rate(0.0) + protocol.ridge(0.0) + horizon)

        def read(schedule):
            return schedules.Scaled(schedules.PiecewiseLinear(tuple(u), schedule(horizon * u) + nothing), horizon)

        batch_size = schedules.Scaled(schedules.PiecewiseLinear(tuple(u), protocol.batch_size(horizon * u)), horizon)
        return dmftopt.Protocol(read(protocol.learning_rate), batch_size, read(protocol.ridge))

    def __call__(self, problem, protocol, grid, key):
        return self.route(problem, protocol, grid)

    def run(self, objective, protocol, grid, which: int = 0) -> Any:
        """What `route` returns for the run of `protocol` at all of the relative times `grid`."""
        observed = eqx.tree_at(lambda o: o.grid, objective, grid)
        read, times, _ = observed.prepare(protocol)[which]
        return self.route(observed.problems[which], read, times)
