"""The front door of the solver."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from .._checks import check_count, check_instance, check_key, check_real, front_door, is_concrete, numbers_to_arrays
from ..problem import Problem, check_basis, check_problem, updated
from ..protocol import Protocol
from ..protocol.grid import TimeGrid
from ..protocol.noise import AbstractNoise, Poisson
from ..protocol.rates import check_protocol, check_update
from ..protocol.updates import is_coordinatewise
from ..results.codes import raise_unless
from ..results.measure import Metrics, check_metrics
from ..results.metrics import AbstractFieldMetric, AbstractWeightMetric
from ._accuracy import is_algorithm, order_of
from ._automatic import REPLICATES, Request, check_horizon, check_times, observed, solve_to
from ._causal import CausalInnovations
from ._mesh import SAMPLES, axis_size, check_mesh, replicated
from ._program import check_fits, drawn, solved
from ._replicate import Level
from ._solution import Solution, Statistics
from ._solver import AbstractSolver, configured
from ._step import AbstractStep


@front_door
def solve(
    problem: Problem,
    protocol: Protocol,
    grid: TimeGrid | float,
    *,
    key: Array,
    accuracy: float | None = None,
    times: Any = None,
    noise: AbstractNoise = Poisson(),
    solver: AbstractSolver = CausalInnovations(),
    samples: int | None = None,
    step: AbstractStep | None = None,
    optimizer: Any = None,
    replicates: int | None = None,
    richardson: bool = False,
    estimate_bias: bool = False,
    estimate_discretization: bool = False,
    metrics: dict[str, AbstractFieldMetric | AbstractWeightMetric] | None = None,
    mesh: Mesh | None = None,
    throw: bool = True,
    progress: bool = True,
) -> Solution:
    """Exact asymptotic (d -> infinity) train and test behavior of multi-pass SGD, by dynamical mean-field theory.

    The update theta <- theta - D eta ridge h(theta) - X^T (l(X theta, y) * M) / delta, with random multipliers M of mean eta D
    and the regularizer's gradient h (theta for the ridge), becomes a pair of scalar processes coupled through two-time kernels.
    Sources: arXiv:2602.06320 (SGF), arXiv:2112.07572 (gradient flow), arXiv:2210.06591 (discrete time).

    Main arguments:

    - `problem`, `protocol`: what is learned, and how.
    - `grid`: the horizon T, a time t = (SGD steps) / d: steps and samples are chosen, and taken more of, until the total error of
      every observable of one time is within `accuracy` of its largest value along the run (default 0.01), else the result is
      `inaccurate`. It is observed at `times`, or at those of the steps. Or a `TimeGrid`, to choose yourself: for pipelines under
      `jit`, `grad` and `vmap` (`TimeGrid.for_accuracy` gives one). Then the error of the time step is known roughly only
      (`Solution.discretization_error`), and `inaccurate` means beyond `accuracy`, by default one half.
    - `key`: a JAX random key; the same key gives the same answer.
    - `noise`: law of the gradient noise. `noise.Shuffled()` is SGD as data loaders run it, in epochs (a grid for it is made by
      `TimeGrid.of_epochs`); `noise.Poisson()` SGD that draws its batches with replacement; `noise.Brownian()` stochastic
      gradient flow, differentiable in batch size and delta too; `noise.NoNoise()` gradient flow; `noise.Bernoulli(fraction)`
      batches that are a fraction of the training set.
    - `solver`: `CausalInnovations(samples=4096)`, one causal pass, or `FixedPoint()`, the published iteration: slow, an
      independent check. See there for their settings.
    - `samples`, `step`, `optimizer`: short for these settings of the solver: population size, time step, and an optax
      transformation in place of plain full-batch steps.

    Other arguments:

    - `replicates`: independent repetitions; results are their mean, and two or more give standard errors. Default 1 on a grid, 4
      to a horizon.
    - `richardson`: solve also with every step halved, on the same random numbers, and extrapolate the leading error away.
      Triples the cost or more. Where the two levels differ by more than a quarter nothing is extrapolated: the result is
      that of the halved steps, and `inaccurate`.
    - `estimate_bias`: solve also with half the samples; see `Solution.bias`. Doubles the cost.
    - `estimate_discretization`: solve also with every second time of the grid, on the same random numbers, to measure the error
      of the time step; see `Solution.discretization_error`. A third more cost.
    - `metrics`: by name, any other quantities of a sample's (r, y) or of a coordinate's (theta, theta_star), see
      `dmftopt.metrics`. Results are in `train_metrics`, `test_metrics` and `weight_metrics`.
    - `mesh`: devices to share the work, axes named "samples" or "replicates" or both, also of many processes (each makes the
      same call). The same random points in a different order, so results agree to rounding. Inside your own jit too. The size
      of "samples" must be a power of two, that of "replicates" must divide `replicates`. A solve's arrays of size samples never
      leave their device; the solution is on all of them.
    - `progress`: of a solve to a horizon, show a progress bar (on a terminal).
    - `throw`: raise `SolveError` where the result is not successful. Inside jit, grad or vmap nothing can be raised: look
      at `solution.result`; failed entries are NaN.

    Reverse-mode differentiable (memory O(samples * steps)) in everything real in `problem`, `protocol` and `grid`; Poisson
    counts are not differentiable in batch size, delta or times, nor Bernoulli draws in the fraction: asking is an error. Forward
    mode and second derivatives: `CausalInnovations(adjoint=DirectAdjoint())`.
    Finite-sample bias is of order steps / samples: fewer than 16 samples for each column and step are refused.

    Raises ValueError or TypeError naming the argument for input outside its domain.
    """
    solver = configured(solver, samples if isinstance(grid, TimeGrid) else None, step, optimizer)
    problem = _as_updated(problem, protocol, grid)
    asked = _check(problem, protocol, noise, solver, replicates, key, metrics)
    if accuracy is not None:
        check_real("accuracy", accuracy, minimum=0.0, exclusive=True, cure="It is relative to each observable's largest value.")
    if not isinstance(grid, TimeGrid):
        horizon = check_horizon(grid, problem, protocol, noise, solver, key)
        if replicates == 1:
            raise ValueError("replicates must be at least 2 to a horizon: the sampling error is part of what is asked for.")
        if richardson or mesh is not None:
            raise ValueError("richardson and mesh go with a TimeGrid: to a horizon steps are chosen, and halved as needed.")
        if samples is not None:
            configured(solver, samples, None)
        protocol = protocol.in_continuous_time()
        observations = check_times(times, horizon)
        problem, noise, solver, protocol, asked = numbers_to_arrays((problem, noise, solver, protocol, asked))
        request = Request(problem, protocol, horizon, observations, noise, solver, asked, replicates or REPLICATES, key)
        solution = observed(solve_to(0.01 if accuracy is None else accuracy, request, samples, progress), observations)
    else:
        if times is not None:
            raise ValueError("times: a grid is observed at its own. Pass the horizon in place of the grid, or leave times out.")
        how = Settings(replicates or 1, richardson, estimate_bias, estimate_discretization, accuracy)
        solution = _on_grid(problem, protocol, grid, key, noise, solver, how, asked, mesh)
    raise_unless(solution.result, throw, "solve failed", solution.times, solution.test_risk)
    return solution


def _as_updated(problem: Any, protocol: Any, grid: Any) -> Problem:
    """Both checked, the problem as the protocol's update lets it be learned."""
    check_problem(problem)
    check_protocol(protocol)
    if protocol.update is not None and protocol.update.changes:
        horizon = grid.times[-1] if isinstance(grid, TimeGrid) else float(grid)
        check_update(protocol, horizon * jnp.linspace(0.0, 1.0, 65))
    if is_coordinatewise(protocol.update):
        check_basis(problem)
    return updated(problem, protocol.update)


class Settings(NamedTuple):
    replicates: int
    richardson: bool
    estimate_bias: bool
    estimate_discretization: bool
    accuracy: float | None


def _on_grid(problem, protocol, grid, key, noise, solver, how: Settings, asked, mesh) -> Solution:
    step = solver.step_for(noise)
    if noise.in_epochs:
        grid = grid.counted(protocol.batch_size, problem.delta)
    _check_levels(problem, protocol, grid, noise, solver, how)
    if grid.epochs is not None and noise.in_epochs and noise.waiting(jnp.diff(grid.epochs)) is None:
        check_waiting(problem, grid, solver.samples)
    protocol = protocol.in_continuous_time() if step.continuous else protocol
    mesh = check_mesh(mesh, solver.samples, how.replicates)
    steps = grid.steps * (2 if how.richardson else 1)
    check_fits(numbers_to_arrays(problem), solver, noise, steps, how.replicates, axis_size(mesh, SAMPLES))
    algorithm = is_algorithm(noise, step, protocol.momentum is not None)
    two = how.richardson or how.estimate_discretization
    known = "none" if algorithm else "measured" if two else "rough"
    settings = Statistics(solver.samples, how.replicates, grid.steps, how.richardson, known, order_of(problem, noise, step))
    problem, noise, solver, grid, asked = numbers_to_arrays((problem, noise, solver, grid, asked))
    grids = (grid,)
    if two:
        grids = (grid, grid.refined()) if how.richardson else (grid.coarsened(), grid)
    levels = tuple(Level.of(problem, protocol, g, noise, step) for g in grids)
    given = (problem, noise, solver, levels, asked, jax.random.split(key, how.replicates))
    problem, noise, solver, levels, asked, keys = replicated(given, mesh)
    points = drawn(problem, noise, solver, levels[-1], keys[0], mesh) if how.replicates == 1 else None
    accuracy = None if how.accuracy is None else jnp.asarray(how.accuracy, grid.times.dtype)
    return solved(problem, noise, solver, levels, asked, keys, points, settings, how.estimate_bias, accuracy, mesh)


def _check(problem, protocol, noise, solver, replicates, key, metrics) -> Metrics:
    """What does not depend on the grid; the metrics, sorted."""
    check_instance("noise", noise, AbstractNoise, "Pass an instance, for example dmftopt.noise.Poisson().")
    if replicates is not None:
        check_count("replicates", replicates)
    if solver.step_for(noise).continuous and noise.discrete:
        raise ValueError("step: an extensive batch is one discrete update per grid step. Use DiscreteStep(), or leave step out.")
    check_key(key)
    return check_metrics(metrics, problem)


# What the noise of drawn samples may be of that of SGD, at the end of an epoch: more is an error of five percent.
_MOST_DRAWN = 0.2


def check_waiting(problem: Problem, grid: TimeGrid, samples: int) -> None:
    """For epochs in a fixed order, where samples have no twins: raise ValueError where too few are visited in a step to
    tell what moves the largest eigenvalue: of the noise there delta lambda / samples is theirs, times the steps of an epoch."""
    if not all(is_concrete(value) for value in (grid.epochs, problem.delta, problem.features.eigenvalues)):
        return
    visits, largest = np.diff(np.asarray(grid.epochs)), float(np.max(np.asarray(problem.features.eigenvalues)))
    needed = float(problem.delta) * largest / (float(visits.min()) * _MOST_DRAWN)
    if samples < needed:
        enough = 1 << int(np.ceil(np.log2(needed)))
        raise ValueError(
            f"samples must be at least {enough} with noise.Shuffled(reshuffle=False) on this grid, got {samples}: few "
            f"wait at the end of an epoch, and along an eigenvalue of {largest:.2g} times the mean their own noise would be "
            "felt. Use fewer steps in an epoch, or noise.Shuffled()."
        )


def _check_levels(problem, protocol, grid, noise, solver, how: Settings) -> None:
    algorithm = is_algorithm(noise, solver.step_for(noise), protocol.momentum is not None)
    for name in ("richardson", "estimate_discretization"):
        if getattr(how, name) and algorithm:
            raise ValueError(f"{name} is about the time step, but here the step is the algorithm. Drop {name}.")
    if how.richardson and how.estimate_discretization:
        raise ValueError("estimate_discretization: richardson has an estimate already. Drop one of them.")
    if how.estimate_discretization and grid.steps % 2:
        raise ValueError(f"grid: estimate_discretization takes every second time, so steps must be even, got {grid.steps}.")
    if how.estimate_discretization and noise.in_epochs:
        grid.coarsened().counted(protocol.batch_size, problem.delta)
    steps = grid.steps * (2 if how.richardson else 1)
    solver.check(problem, protocol, noise, steps)
