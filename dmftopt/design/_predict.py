"""How runs are predicted."""

import abc
import dataclasses
import inspect
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
from ..protocol.integrals import node_times
from ..protocol.noise import AbstractNoise, Brownian, Shuffled
from ..protocol.rates import knots, read
from ..protocol.schedules import LinearPieces, Scaled, Tabulated
from ..results.measure import check_metrics

# Room for so many knots of a protocol, or the next power of two.
_KNOTS = 32


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

    @property
    def order(self) -> str:
        """In which SGD visits the samples, as `simulate.sgd` calls it."""
        return "replacement"


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
        if noise is None or self.noise.discrete or self.noise.deterministic or self.noise.in_epochs:
            noise = self.noise
        solver = self.solver
        if isinstance(solver, CausalInnovations):
            solver = dataclasses.replace(solver, particles=samples * solver.particles)
        return Solve(noise, samples * solver.samples, replicates, metrics=self.metrics, solver=solver)

    def rounded(self, protocol, grid, recipe):
        """In each step of the grid the B for which eta²/B is the mean over SGD's steps there. (Where a step of the grid is
        shorter than one of SGD: as it is.) In epochs what weighs is the batch size of each visit: not told."""
        if self.noise.in_epochs:
            return None
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

    @property
    def order(self):
        if isinstance(self.noise, Shuffled):
            return "shuffled" if self.noise.reshuffle else "fixed"
        return "replacement"

    def _solve(self, problem, protocol, grid, key, throw: bool):
        options = {"noise": self.noise, "solver": self.solver, "replicates": self.replicates, "metrics": self.metrics}
        return solve(problem, protocol, grid, key=key, throw=throw, **options)


@front_door
class Exact(AbstractPrediction):
    """Prediction by a limit in continuous time: `route(problem, protocol, grid)`, such as `dmftopt.limits.least_squares` or
    `dmftopt.limits.online`. (`limits.online_least_squares` has a number of steps that a program must know, and no grid. Pass a
    function in place of `Exact`, `predict=lambda problem, protocol, grid, key: ...`, under a budget that fixes the steps.)

    Schedules are read on both sides of `panels` equal panels of the run and of their knots, and are linear in between: exact for
    piecewise constant and piecewise linear schedules, good to about 1 / panels² for others. (A callable that jumps where it does
    not say, by `knots`, is good to 1 / panels only.) Needs no key.
    """

    route: Callable = eqx.field(static=True)
    panels: int = eqx.field(static=True, default=480)

    def __check_init__(self):
        check_function("route", self.route, "(problem, protocol, grid)")
        check_count("panels", self.panels)
        try:
            inspect.signature(self.route).bind(None, None, None)
        except TypeError:
            raise TypeError(
                f"route must be a function of (problem, protocol, grid), got {self.route!r}. Pass limits.least_squares or "
                "limits.online of dmftopt. A limit of another form goes as it is called: predict=lambda problem, protocol, grid, "
                "key: dmftopt.limits.online_least_squares(problem, protocol, dimension=100, horizon=5.0), whose number of steps "
                "the budget must fix."
            ) from None

    def tabulated(self, protocol, grid):
        protocol, horizon = protocol.in_continuous_time(), grid.times[-1]
        bends = knots(protocol, horizon) / horizon
        # As many for all schedules of a few knots each: one program serves them.
        bends = jnp.append(bends, jnp.ones(max(_KNOTS, 1 << (bends.size - 1).bit_length()) - bends.size, bends.dtype))
        edges = jnp.sort(jnp.append(jnp.linspace(0.0, 1.0, self.panels + 1, dtype=bends.dtype), bends))
        # From within each panel, beyond what rounding might take for the next.
        margin = jnp.minimum(64 * jnp.finfo(edges.dtype).eps, 0.5 * jnp.diff(edges))
        rates = read(protocol, horizon * jnp.stack([edges[:-1] + margin, edges[1:] - margin]))
        # Adding nothing: so all of this depends on whatever is tuned. What is not tuned has a derivative as well, which is not
        # used, and programs are the same.
        friction = rates.friction
        slowed = 0.0 if friction is None else friction[0, 0]
        nothing = 0.0 * (rates.learning_rate[0, 0] + rates.ridge[0, 0] + slowed + horizon)
        bends = bends + nothing

        def table(values, bends=None):
            left, right = values + nothing
            return Scaled(LinearPieces(edges + nothing, left, right, bends), horizon)

        own = {"update": protocol.update, "friction": None if friction is None else table(friction)}
        return Protocol(table(rates.learning_rate, bends), table(rates.batch_size), table(rates.ridge), **own)

    def __call__(self, problem, protocol, grid, key=None):
        return self.route(problem, protocol, grid)


class Function(AbstractPrediction):
    """A function (problem, protocol, grid, key), compiled anew for every kind of schedule."""

    function: Callable

    def tabulated(self, protocol, grid):
        return protocol

    def __call__(self, problem, protocol, grid, key=None):
        return self.function(problem, protocol, grid, key)
