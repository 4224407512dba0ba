"""What a solver of the DMFT equations is, to the front door."""

import abc
import dataclasses
from typing import Any, NamedTuple, runtime_checkable
from typing import Protocol as Structure

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_instance
from ..problem import Problem
from ..protocol import Momentum, Protocol
from ..protocol.grid import TimeGrid
from ..protocol.noise import AbstractNoise, Multipliers
from ..protocol.updates import AbstractUpdate
from ..results.measure import Metrics
from ..results.observables import Observables
from ._step import AbstractStep


class Inputs(NamedTuple):
    """The protocol on the grid, one entry per step D. Of the multipliers M, equation (2): `mean` = eta D, `deviation`, and
    `skewness` where M jumps. `shrinkage` = D eta ridge. `ratio`: D over the last step's, 0 for the first and where averages jump.
    `momentum`: None for none. `epoch_start`: the first step of the epoch of each, and `waiting`: the multipliers of a sample that
    is not visited in it; None for noise that knows none. `durations`: D, `batch_size` and `update`: for updates other than SGD.
    `friction`: None for none."""

    mean: Float[Array, " step"]
    deviation: Float[Array, " step"]
    skewness: Float[Array, " step"] | None
    shrinkage: Float[Array, " step"]
    ratio: Float[Array, " step"]
    momentum: Momentum | None
    epoch_start: Float[Array, " step"] | None = None
    waiting: Multipliers | None = None
    durations: Float[Array, " step"] | None = None
    batch_size: Float[Array, " step"] | None = None
    update: AbstractUpdate | None = None
    friction: Float[Array, " step"] | None = None


class Curvature(NamedTuple):
    """Of H = dl / dr over the samples: its mean, E[tr H²], and E[l·l] / E[2 loss], which is 1 for losses that are l·l / 2 (least
    squares, squared hinges) and grow without bound, less where gradients saturate."""

    mean: Float[Array, "*time m m"]
    square: Float[Array, "*time"]
    quadratic: Float[Array, "*time"]

    def scaled(self, gains: Float[Array, " m"]) -> "Curvature":
        """Of rates that are multiplied by these, in each column."""
        root = jnp.sqrt(gains)
        return Curvature(root[:, None] * self.mean * root[None], self.square, self.quadratic)

    @property
    def size(self) -> Float[Array, "*time"]:
        """Of the mean, as a matrix over the columns."""
        return jnp.sqrt(jnp.sum(self.mean**2, axis=(-2, -1)))


class Outcome(NamedTuple):
    """Observables at all grid times, those of the metrics among them, whether the solver met its own tolerance, and the curvature
    of the loss at all times, by which the time step and the learning rate are judged."""

    observables: Observables
    converged: Bool[Array, ""]
    curvature: Curvature


class Sizes(NamedTuple):
    """All that the random numbers know of the problem: problems that share it share the program that draws them. `shards`: the
    number of devices that share the samples, if more than one the last axis of every array of random numbers."""

    m: int
    m_star: int
    linear_weights: bool
    shards: int


@runtime_checkable
class Randomness(Structure):
    """The random numbers of one replicate."""

    def half(self, which: Int[Array, ""] | int) -> "Randomness":
        """Those of the first (0) or second (1) half of the samples."""
        ...

    def coarsened(self, fine: TimeGrid, noise: AbstractNoise, visits: Float[Array, " step"]) -> "Randomness":
        """The same randomness on the grid of every second time."""
        ...


class AbstractSolver(eqx.Module):
    """A route to the solution of the DMFT equations on a grid.

    - `samples`: how many samples stand for the law of the fields.
    - `step`: how a time step moves the weights; None: what `step_for` chooses.
    """

    samples: eqx.AbstractVar[int]
    step: eqx.AbstractVar[AbstractStep | None]

    @abc.abstractmethod
    def step_for(self, noise: AbstractNoise) -> AbstractStep:
        """`step`, or the default for this noise."""

    @abc.abstractmethod
    def check(self, problem: Problem, protocol: Protocol, noise: AbstractNoise, steps: int) -> None:
        """Raise ValueError, naming the argument and the cure, for what this solver cannot take; `steps` on its finest grid."""

    def memory(self, problem: Problem, noise: AbstractNoise, steps: int) -> float:
        """How many real numbers one replicate holds at once, on `steps` of its finest grid; 0 where that is not known."""
        return 0.0

    @abc.abstractmethod
    def draw(self, key: Array, sizes: Sizes, grid: TimeGrid, noise: AbstractNoise, visits: Float[Array, " step"]) -> Randomness:
        """The random numbers of one replicate. `visits` = B D / delta: mean visits of a sample in each step."""

    @abc.abstractmethod
    def run(self, problem: Problem, noise: AbstractNoise, inputs: Inputs, randomness: Any, metrics: Metrics) -> Outcome:
        """`randomness`: what `draw` returned."""


def configured(solver: Any, samples: Any, step: Any, optimizer: Any = None) -> AbstractSolver:
    """The solver with these settings where they are not None: the short way to give them. Raises TypeError for no solver."""
    check_instance("solver", solver, AbstractSolver, "Pass dmftopt.CausalInnovations() or dmftopt.FixedPoint().")
    settings = {"samples": samples, "step": step, "optimizer": optimizer}
    given = {name: value for name, value in settings.items() if value is not None}
    if optimizer is not None and not hasattr(solver, "optimizer"):
        raise ValueError(f"optimizer: {type(solver).__name__} takes none. Use solver=CausalInnovations().")
    return dataclasses.replace(solver, **given) if given else solver
