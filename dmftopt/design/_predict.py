"""How runs are predicted."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_count
from .._rates import node_times
from ..dmft import AbstractStep, DiscreteStep, ExponentialStep, solve
from ..grid import TimeGrid
from ..noise import AbstractNoise, Brownian
from ..problem import Problem
from ..protocol import Protocol
from ..schedules import PiecewiseLinear, Scaled


class AbstractPrediction(eqx.Module):
    """A function (problem, protocol, grid, key) -> result, which takes protocols in a common form: then it is compiled once for
    all kinds of schedules."""

    @abc.abstractmethod
    def tabulated(self, protocol: Protocol, grid: TimeGrid) -> Protocol:
        """The protocol as arrays whose shapes do not depend on its schedules."""

    @abc.abstractmethod
    def __call__(self, problem: Problem, protocol: Protocol, grid: TimeGrid, key: Array | None) -> Any: ...


class Solve(AbstractPrediction):
    """Prediction by `dmftopt.solve`, with these of its arguments."""

    noise: AbstractNoise = Brownian()
    samples: int = eqx.field(static=True, default=2048)
    replicates: int = eqx.field(static=True, default=1)
    step: AbstractStep | None = None
    metrics: Any = None

    def __check_init__(self):
        check_count("samples", self.samples, minimum=4)

    def tabulated(self, protocol, grid):
        # Its values at the times at which `solve` reads it.
        step = self.step or (DiscreteStep() if self.noise.discrete else ExponentialStep())
        times = node_times(grid, step.nodes).ravel()

        def read(schedule):
            return Table(jnp.broadcast_to(jnp.asarray(schedule(times), times.dtype), times.shape))

        momentum = None if protocol.momentum is None else read(protocol.momentum)
        rate, batch_size, ridge = (read(s) for s in (protocol.learning_rate, protocol.batch_size, protocol.ridge))
        return Protocol(rate, batch_size, ridge, momentum, nesterov=protocol.nesterov)

    def __call__(self, problem, protocol, grid, key, throw: bool = False):
        settings = {"noise": self.noise, "samples": self.samples, "replicates": self.replicates, "step": self.step}
        return solve(problem, protocol, grid, key=key, throw=throw, metrics=self.metrics, **settings)


class Table(eqx.Module):
    """What a schedule is at the times at which it will be read."""

    values: Float[Array, " time"]

    def __call__(self, t: Any) -> Array:
        return self.values


class Exact(AbstractPrediction):
    """Prediction by a limit: `route(problem, protocol, grid)`, such as `dmftopt.limits.least_squares` or `dmftopt.limits.online`.

    Schedules are read at `reads` equally spaced relative times and interpolated linearly in between: exact for knots among these
    (481 holds knots at distances of 1/480), good to about 1 / reads² otherwise. Needs no key.
    """

    route: Callable = eqx.field(static=True)
    reads: int = eqx.field(static=True, default=481)

    def __check_init__(self):
        check_count("reads", self.reads, minimum=2)

    def tabulated(self, protocol, grid):
        protocol = protocol.in_continuous_time()
        horizon, u = grid.times[-1], np.linspace(0.0, 1.0, self.reads)
        # Adding nothing: so all of this depends on whatever is tuned. A ridge that is not tuned has a derivative as well, which
        # is not used, and programs are the same.
        nothing = 0.0 * (protocol.learning_rate(0.0) + protocol.ridge(0.0) + horizon)

        def read(schedule):
            return Scaled(PiecewiseLinear(tuple(u), schedule(horizon * u) + nothing), horizon)

        # Limits check batch sizes: not even rounding may take them below 1.
        batch_size = Scaled(PiecewiseLinear(tuple(u), protocol.batch_size(horizon * u)), horizon)
        return Protocol(read(protocol.learning_rate), batch_size, read(protocol.ridge))

    def __call__(self, problem, protocol, grid, key=None):
        return self.route(problem, protocol, grid)
