"""How runs are predicted."""

import abc
import itertools
from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import check_count, check_function, check_instance, front_door
from ..dmft import AbstractSolver, AbstractStep, CausalInnovations, configured, solve
from ..problem import Problem
from ..protocol import Protocol, Recipe
from ..protocol.grid import TimeGrid
from ..protocol.noise import AbstractNoise, Brownian
from ..protocol.rates import node_times, read
from ..protocol.schedules import PiecewiseLinear, Scaled, Tabulated
from ..results.measure import check_metrics


class AbstractPrediction(eqx.Module):
    """A function (problem, protocol, grid, key) -> result, which takes protocols in a common form: then it is compiled once for
    all kinds of schedules."""

    @abc.abstractmethod
    def tabulated(self, protocol: Protocol, grid: TimeGrid) -> Protocol:
        """The protocol as arrays whose shapes do not depend on its schedules."""

    @abc.abstractmethod
    def __call__(self, problem: Problem, protocol: Protocol, grid: TimeGrid, key: Array | None) -> Any: ...

    def check(self, problem: Problem) -> None:
        """Raise ValueError for a problem that cannot be predicted."""

    def explain(self, problem: Problem, protocol: Protocol, grid: TimeGrid, key: Array | None) -> None:
        """Raise an error that says why the prediction is not finite, if it is not."""
        self(problem, protocol, grid, key)

    def finer(self, samples: int, replicates: int, noise: AbstractNoise | None) -> "AbstractPrediction":
        """More accurate: `samples` times as many samples, as many `replicates`, and this noise (None: as it is)."""
        return self

    def rounded(self, protocol: Protocol, grid: TimeGrid, recipe: Recipe) -> Protocol | None:
        """A tabulated protocol with the whole batch sizes of a recipe; None where the route cannot tell them."""
        return None

    @property
    def refinable(self) -> bool:
        """Whether a finer grid is a better approximation (and no other algorithm)."""
        return True

    @property
    def asked_metrics(self) -> Any:
        """The `metrics` that results have."""
        return None


class Solve(AbstractPrediction):
    """Prediction by `dmftopt.solve`, with these of its arguments. `samples` and `step` are short for those of the solver, whose
    default is `CausalInnovations(samples=2048)`."""

    noise: AbstractNoise
    solver: AbstractSolver
    replicates: int = eqx.field(static=True)
    metrics: Any

    @front_door
    def __init__(
        self,
        noise: AbstractNoise = Brownian(),
        samples: int | None = None,
        replicates: int = 1,
        step: AbstractStep | None = None,
        metrics: Any = None,
        *,
        solver: AbstractSolver = CausalInnovations(samples=2048),
    ):
        check_instance("noise", noise, AbstractNoise, "Pass an instance, for example dmftopt.noise.Poisson().")
        self.noise = noise
        self.solver = configured(solver, samples, step)
        self.replicates = replicates
        self.metrics = metrics

    def __check_init__(self):
        check_count("samples", self.solver.samples, minimum=4)
        check_count("replicates", self.replicates)

    def tabulated(self, protocol, grid):
        # At the times at which `solve` reads it.
        times = node_times(grid.times, self.solver.step_for(self.noise).nodes)
        return read(protocol, times, batched=self.noise.batched).tabulated(times)

    def __call__(self, problem, protocol, grid, key):
        return self._solve(problem, protocol, grid, key, throw=False)

    def check(self, problem):
        check_metrics(self.metrics, problem)

    def explain(self, problem, protocol, grid, key):
        self._solve(problem, protocol, grid, key, throw=True)

    def finer(self, samples, replicates, noise):
        if noise is None or self.noise.discrete or self.noise.deterministic:
            noise = self.noise
        return Solve(noise, samples * self.solver.samples, replicates, metrics=self.metrics, solver=self.solver)

    def rounded(self, protocol, grid, recipe):
        """In each step of the grid the B for which eta²/B is the mean over SGD's steps there. (Where a step of the grid is
        shorter than one of SGD: as it is.)"""
        edges = np.searchsorted(np.arange(len(recipe)) / recipe.dimension, np.asarray(grid.times) - 1e-9 / recipe.dimension)
        batch_size = np.array(cast(Tabulated, protocol.batch_size).values).reshape(grid.steps, -1)
        for j, (a, b) in enumerate(itertools.pairwise(edges)):
            if b > a:
                power = np.maximum(recipe.learning_rate[a:b] ** 2, 1e-300)
                batch_size[j] = power.sum() / (power / recipe.batch_size[a:b]).sum()
        return eqx.tree_at(lambda p: p.batch_size.values, protocol, jnp.asarray(batch_size.ravel()))

    @property
    def refinable(self):
        return self.solver.step_for(self.noise).continuous or not (self.noise.discrete or self.noise.deterministic)

    @property
    def asked_metrics(self):
        return self.metrics

    def _solve(self, problem, protocol, grid, key, throw: bool):
        options = {"noise": self.noise, "solver": self.solver, "replicates": self.replicates, "metrics": self.metrics}
        return solve(problem, protocol, grid, key=key, throw=throw, **options)


@front_door
class Exact(AbstractPrediction):
    """Prediction by a limit: `route(problem, protocol, grid)`, such as `dmftopt.limits.least_squares` or `dmftopt.limits.online`.

    Schedules are read at `reads` equally spaced relative times and interpolated linearly in between: exact for knots among these
    (481 holds knots at distances of 1/480), good to about 1 / reads² otherwise. Needs no key.
    """

    route: Callable = eqx.field(static=True)
    reads: int = eqx.field(static=True, default=481)

    def __check_init__(self):
        check_function("route", self.route, "(problem, protocol, grid)")
        check_count("reads", self.reads, minimum=2)

    def tabulated(self, protocol, grid):
        horizon, u = grid.times[-1], np.linspace(0.0, 1.0, self.reads)
        rates = read(protocol.in_continuous_time(), horizon * u)
        # Adding nothing: so all of this depends on whatever is tuned. What is not tuned has a derivative as well, which is not
        # used, and programs are the same.
        nothing = 0.0 * (rates.learning_rate[0] + rates.ridge[0] + horizon)

        def table(values):
            return Scaled(PiecewiseLinear(tuple(u), values + nothing), horizon)

        return Protocol(table(rates.learning_rate), table(rates.batch_size), table(rates.ridge))

    def __call__(self, problem, protocol, grid, key=None):
        return self.route(problem, protocol, grid)


class Function(AbstractPrediction):
    """A function (problem, protocol, grid, key), compiled anew for every kind of schedule."""

    function: Callable

    def tabulated(self, protocol, grid):
        return protocol

    def __call__(self, problem, protocol, grid, key=None):
        return self.function(problem, protocol, grid, key)
