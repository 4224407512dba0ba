"""Exact predictions for the design layer."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np

import dmftopt
from dmftopt import limits, schedules


class Exact(eqx.Module):
    """Prediction by a limit with schedules, read at equally spaced relative times and interpolated between them (which changed
    no risk here by more than 1e-6), so that all families of schedules share its compiled program. For `dmftopt.Objective`."""

    route: Callable = eqx.field(static=True, default=limits.least_squares)
    reads: int = eqx.field(static=True, default=513)

    def tabulated(self, protocol: dmftopt.Protocol, grid: dmftopt.TimeGrid) -> dmftopt.Protocol:
        horizon, u = grid.times[-1], np.linspace(0.0, 1.0, self.reads)

        def read(schedule):
            return schedules.Scaled(schedules.PiecewiseLinear(tuple(u), schedule(horizon * u)), horizon)

        return dmftopt.Protocol(read(protocol.learning_rate), read(protocol.batch_size), read(protocol.ridge))

    def __call__(self, problem: dmftopt.Problem, protocol: dmftopt.Protocol, grid: dmftopt.TimeGrid, key: Any) -> Any:
        return self.route(problem, protocol, grid)
