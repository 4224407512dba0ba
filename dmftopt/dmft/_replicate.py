"""One replicate: one or two levels of the time step, all or half of the samples."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..problem import Problem
from ..protocol.grid import TimeGrid
from ..protocol.noise import AbstractNoise
from ..protocol.rates import Averages
from ..results.measure import Metrics
from ..results.observables import Observables
from ._solver import AbstractSolver, Inputs, Randomness


class Level(NamedTuple):
    """A grid, and the protocol averaged over its steps."""

    grid: TimeGrid
    average: Averages
    delta: Array

    @property
    def visits(self) -> Float[Array, " step"]:
        """Mean visits of a sample in each step."""
        return self.average.batch_size * self.grid.step_sizes / self.delta

    def inputs(self, noise: AbstractNoise) -> Inputs:
        D, average = self.grid.step_sizes, self.average
        return Inputs(
            mean=average.learning_rate * D,
            deviation=noise.deviation(average.noisy_rate, D, self.visits),
            skewness=noise.skewness(self.visits),
            shrinkage=average.shrinkage * D,
            ratio=jnp.append(0.0, D[1:] / D[:-1]),
            momentum=average.momentum,
        )

    def valid(self, noise: AbstractNoise) -> Bool[Array, ""]:
        return self.average.valid & jnp.all(self.grid.step_sizes > 0) & noise.valid(self.visits)


def replicate(
    problem: Problem,
    noise: AbstractNoise,
    solver: AbstractSolver,
    levels: tuple[Level, ...],
    metrics: Metrics,
    drawn: Randomness,
    estimate_bias: bool,
) -> tuple[Observables, Observables | None, Bool[Array, ""]]:
    """Observables, those of half the samples (or None), and whether the solver converged. `levels`: one, or two of which the
    second has every step halved."""
    randomness = [drawn]
    if len(levels) == 2:
        # Drawn on the finest grid; a coarser level uses the same randomness, summed over pairs of steps.
        randomness.insert(0, drawn.coarsened(levels[1].grid, noise, levels[1].visits))

    def extrapolated(select):
        runs = [
            solver.run(problem, noise, level.inputs(noise), select(r), metrics)
            for level, r in zip(levels, randomness, strict=True)
        ]
        observables, converged = zip(*runs, strict=True)
        # A sample whose gradient jumps starts or stops being moved at some time within a step: an error of first order.
        order = 1 if problem.task.jumps and not noise.deterministic else solver.step_for(noise).order
        result = observables[0] if len(runs) == 1 else _richardson(observables[0], observables[1], order)
        return result, jnp.all(jnp.stack(converged))

    full, converged = extrapolated(lambda r: r)
    if not estimate_bias:
        return full, None, converged
    halves = jax.lax.map(lambda which: extrapolated(lambda r: r.half(which))[0], jnp.arange(2))
    return full, jax.tree.map(lambda a: jnp.mean(a, axis=0), halves), converged


def _richardson(coarse: Observables, fine: Observables, order: int) -> Observables:
    """(2^order fine - coarse) / (2^order - 1) at the coarse times: the error of order step^order cancels, equation (23)."""
    gain = 1 / (2**order - 1)
    at_coarse = dataclasses.replace(fine.along_time(lambda a: a[::2]), response=None)
    result = jax.tree.map(lambda f, c: f + gain * (f - c), at_coarse, dataclasses.replace(coarse, response=None))
    if fine.response is None or coarse.response is None:
        return result
    # A kick at the end of a coarse step is one at the end of its second half. What follows a kick is of first order: the step
    # extrapolates across it.
    response = 2 * fine.response[::2, 1::2] - coarse.response
    return dataclasses.replace(result, response=response)
