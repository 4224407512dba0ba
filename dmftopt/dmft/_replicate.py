"""One replicate: one or two levels of the time step, all or half of the samples."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..problem import Problem
from ..protocol import Protocol
from ..protocol.grid import TimeGrid
from ..protocol.noise import AbstractNoise
from ..protocol.rates import Averages, averaged
from ..results.measure import Metrics
from ..results.observables import Observables
from ._accuracy import gain_of, order_of, stability, stiffness
from ._relaxation import relaxation_error
from ._solver import AbstractSolver, Inputs, Outcome, Randomness
from ._step import AbstractStep

# Where the two levels differ by more, as a share of an observable's largest value, they are not in the regime of extrapolation.
_DISAGREEMENT = 0.25
# What extrapolation to first order may leave, over what it changes: so much if the order is anything from .68 to 2.
_LEFT = 2 / 3


class Level(NamedTuple):
    """A grid, and the protocol averaged over its steps."""

    grid: TimeGrid
    average: Averages
    delta: Array

    @classmethod
    def of(cls, problem: Problem, protocol: Protocol, grid: TimeGrid, noise: AbstractNoise, step: AbstractStep) -> "Level":
        average = averaged(protocol, grid, step.nodes, step.node_weights, batched=noise.batched)
        return cls(grid, average, problem.delta)

    @property
    def visits(self) -> Float[Array, " step"]:
        """Mean visits of a sample in each step."""
        if self.grid.epochs is not None:
            return jnp.diff(self.grid.epochs)
        return self.average.batch_size * self.grid.step_sizes / self.delta

    def inputs(self, noise: AbstractNoise) -> Inputs:
        D, average = self.grid.step_sizes, self.average
        return Inputs(
            mean=average.learning_rate * D,
            deviation=noise.deviation(average.noisy_rate, D, self.visits),
            skewness=noise.skewness(self.visits),
            shrinkage=average.shrinkage * D,
            ratio=jnp.append(0.0, D[1:] / D[:-1]) * noise.continues(self.visits),
            momentum=average.momentum,
            epoch_start=noise.epoch_starts(self.visits),
            waiting=noise.waiting(self.visits),
            durations=None if average.update is None and average.friction is None else D,
            batch_size=None if average.update is None else average.batch_size,
            update=average.update,
            friction=average.friction,
        )

    def valid(self, noise: AbstractNoise) -> Bool[Array, ""]:
        return self.average.valid & jnp.all(self.grid.step_sizes > 0) & noise.valid(self.visits)


class Replicate(NamedTuple):
    """Observables at the grid's times; with half the samples, once for each half (None unless asked for); the estimated error of
    the time step, with its sign, at the times of the coarse level, and what it is at the least by the relaxation of modes,
    relative, at the observables' times (None for one level); whether the solver met its tolerance and two levels agree enough to
    be extrapolated; stiffness and stability of each step."""

    full: Observables
    halves: Observables | None
    level_difference: Observables | None
    relaxation: Float[Array, " time"] | None
    converged: Bool[Array, ""]
    agree: Bool[Array, ""]
    stiffness: Float[Array, " step"]
    stability: Float[Array, " step"]


def replicate(
    problem: Problem,
    noise: AbstractNoise,
    solver: AbstractSolver,
    levels: tuple[Level, ...],
    metrics: Metrics,
    points: Randomness,
    estimate_bias: bool,
    richardson: bool,
) -> Replicate:
    """`levels`: coarse first. With `richardson` the result is at the times of the coarse one and extrapolated, otherwise that of
    the fine one."""
    randomness = [points] if len(levels) == 1 else [points.coarsened(levels[1].grid, noise, levels[1].visits), points]
    order = order_of(problem, noise, solver.step_for(noise))

    def run(select) -> list[Outcome]:
        return [
            solver.run(problem, noise, level.inputs(noise), select(r), metrics)
            for level, r in zip(levels, randomness, strict=True)
        ]

    def result(runs: list[Outcome]) -> tuple[Observables, Observables | None, Bool[Array, ""]]:
        coarse, fine = runs[0].observables, runs[-1].observables
        if len(runs) == 1:
            return fine, None, jnp.asarray(True)
        agree = levels_agree(coarse, fine)
        if not richardson:
            return fine, error_of_fine(coarse, fine, order), agree
        correction = extrapolation(coarse, fine, order)
        plain = at_coarse(fine)
        extrapolated = jax.tree.map(lambda f, c: jnp.where(agree, f + c, f), plain, correction)
        return extrapolated, correction, agree

    runs = run(lambda r: r)
    full, difference, agree = result(runs)
    halves = None
    if estimate_bias:
        halves = jax.lax.map(lambda which: result(run(lambda r: r.half(which)))[0], jnp.arange(2))
    # Judged on the grid whose times the result has.
    judged = 0 if richardson else -1
    given = problem, levels[judged].inputs(noise), runs[judged].curvature
    converged = jnp.all(jnp.stack([r.converged for r in runs]))
    relaxation = None
    if len(runs) == 2:
        fine, curvature = runs[1].observables, runs[1].curvature
        relaxation = relaxation_error(problem, levels[-1].inputs(noise), curvature, solver.step_for(noise), fine.train_loss)
        relaxation = relaxation[::2] if richardson else relaxation
    return Replicate(full, halves, difference, relaxation, converged, agree, stiffness(*given), stability(*given))


def levels_agree(coarse: Observables, fine: Observables) -> Bool[Array, ""]:
    """Whether they are in the regime of extrapolation: by the largest change of risks, student overlap and norm, over their
    largest values."""
    plain = at_coarse(fine)

    def change(a, b):
        return jnp.max(jnp.abs(a - b)) / jnp.maximum(jnp.max(jnp.abs(b)), jnp.finfo(b.dtype).tiny)

    names = ("test_risk", "train_loss", "student_overlap", "norm")
    return jnp.max(jnp.stack([change(getattr(coarse, name), getattr(plain, name)) for name in names])) < _DISAGREEMENT


def at_coarse(fine: Observables) -> Observables:
    return fine.at(np.arange(0, fine.test_risk.shape[0], 2))


def extrapolation(coarse: Observables, fine: Observables, order: int) -> Observables:
    """(fine - coarse) / (2^order - 1) at the coarse times: added to the fine level, the error of order step^order cancels,
    equation (23). What follows a kick is of first order: the step extrapolates across it."""
    return _gained(coarse, fine, 1 / (2**order - 1), 1.0)


def error_of_fine(coarse: Observables, fine: Observables, order: int) -> Observables:
    """Equation (30), with its sign, at the coarse times."""
    return _gained(coarse, fine, gain_of(order), gain_of(1))


def _gained(coarse: Observables, fine: Observables, gain: float, of_response: float) -> Observables:
    difference = jax.tree.map(jnp.subtract, at_coarse(fine), coarse)
    response = None if difference.response is None else of_response * difference.response
    return _with_response(jax.tree.map(lambda d: gain * d, difference), response)


def extrapolated_at_all_times(
    coarse: Observables, fine: Observables, order: int
) -> tuple[Observables, Observables, Bool[Array, ""]]:
    """The fine level and what is added to it (23), responses as they are; the error that this may leave, with its sign, at the
    coarse times; and whether the levels agree enough to do so."""
    agree, correction = levels_agree(coarse, fine), extrapolation(coarse, fine, order)
    error = jax.tree.map(lambda c: _LEFT * c, correction)
    if correction.response is not None:
        error = _with_response(error, gain_of(1) * correction.response)
    added = on_fine(_with_response(correction, None), lambda a, b: 0.5 * (a + b))
    whole = jax.tree.map(lambda f, c: jnp.where(agree, f + c, f), _with_response(fine, None), added)
    return _with_response(whole, fine.response), error, agree


def widened(errors: Observables) -> Observables:
    """Sizes of errors, at the times of the coarse level, for the fine one: of two neighbors the larger, as a difference may pass
    through 0."""

    def over_neighbors(a):
        return jnp.maximum(a, jnp.maximum(jnp.concatenate([a[:1], a[:-1]]), jnp.concatenate([a[1:], a[-1:]])))

    plain = _with_response(errors, None).along_time(over_neighbors)
    return on_fine(_with_response(plain, errors.response), jnp.maximum)


def on_fine(of_coarse: Observables, between: Callable[[Array, Array], Array]) -> Observables:
    """From the times of the coarse level to those of the fine one; `between` two of them: what."""

    def interleaved(a):
        pairs = jnp.stack([a[:-1], between(a[:-1], a[1:])], axis=1)
        return jnp.concatenate([pairs.reshape(-1, *a.shape[1:]), a[-1:]])

    plain = _with_response(of_coarse, None).along_time(interleaved)
    if of_coarse.response is None:
        return plain
    return dataclasses.replace(plain, response=jnp.repeat(interleaved(of_coarse.response), 2, axis=1))


def _with_response(observables: Observables, response: Array | None) -> Observables:
    return dataclasses.replace(observables, response=response)
