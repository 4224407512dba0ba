"""What a solver of the DMFT equations is, to the front door."""

import abc
from typing import ClassVar, NamedTuple
from typing import Protocol as Structure

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int

from .._measure import Metrics
from ..grid import TimeGrid
from ..noise import AbstractNoise
from ..observables import Observables
from ..problem import Problem
from ..protocol import Momentum
from ._step import AbstractStep


class Inputs(NamedTuple):
    """The protocol on the grid, one entry per step: drift = eta D, noise = deviation of M, ridge = D eta ridge, ratio = D over
    the last step's (0 for the first), skewness of M where it jumps, momentum."""

    drift: Float[Array, " step"]
    noise: Float[Array, " step"]
    ridge: Float[Array, " step"]
    ratio: Float[Array, " step"]
    skewness: Float[Array, " step"] | None
    momentum: Momentum | None


class Sizes(NamedTuple):
    """All that the random numbers know of the problem: problems that share it share the program that draws them. `shards`: the
    number of devices that share the samples, if more than one the last axis of every array of random numbers."""

    samples: int
    m: int
    m_star: int
    linear_weights: bool
    shards: int


class Randomness(Structure):
    """The random numbers of one replicate."""

    def half(self, which: Int[Array, ""]) -> "Randomness":
        """Those of the first (0) or second (1) half of the samples."""
        ...

    def coarsened(self, fine: TimeGrid, noise: AbstractNoise, rate: Float[Array, " step"]) -> "Randomness":
        """The same randomness on the grid of every second time."""
        ...


class AbstractSolver(eqx.Module):
    """A route to the solution of the DMFT equations on a grid. `steps`: the steps it can take, the default first."""

    steps: ClassVar[tuple[type[AbstractStep], ...]]

    def check(self, problem: Problem, samples: int, steps: int, noise: AbstractNoise) -> None:
        """Raise ValueError for problems and sizes that this solver cannot take; `steps` on its finest grid."""

    @abc.abstractmethod
    def draw(self, key: Array, sizes: Sizes, grid: TimeGrid, noise: AbstractNoise, rate: Float[Array, " step"]) -> Randomness:
        """The random numbers of one replicate. `rate` = B D / delta: mean visits of a sample in each step."""

    @abc.abstractmethod
    def run(
        self, problem: Problem, noise: AbstractNoise, step: AbstractStep, inputs: Inputs, points, metrics: Metrics
    ) -> tuple[Observables, Bool[Array, ""]]:
        """Observables at all grid times, those of `metrics` among them, and whether the solver met its own tolerance."""
