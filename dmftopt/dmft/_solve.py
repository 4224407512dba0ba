"""The front door of the solver."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from .._checks import check_count, check_instance, check_key, front_door, numbers_to_arrays
from .._memory import check_memory
from ..problem import Problem, check_problem
from ..protocol import Protocol
from ..protocol.grid import TimeGrid
from ..protocol.noise import AbstractNoise, Poisson
from ..protocol.rates import averaged, check_protocol
from ..results.codes import blank, raise_unless
from ..results.measure import check_metrics
from ..results.metrics import AbstractFieldMetric, AbstractWeightMetric
from ..results.observables import mean_and_error
from ._causal import CausalInnovations
from ._mesh import REPLICATES, SAMPLES, axis_size, check_mesh, constrained, replicated
from ._replicate import Level, replicate
from ._solution import Solution, Statistics, judge
from ._solver import AbstractSolver, Randomness, Sizes, configured
from ._step import AbstractStep

# Some accelerators multiply float32 matrices in 10 bits by default; orthogonality would not survive that.
_PRECISION = "highest"


@front_door
def solve(
    problem: Problem,
    protocol: Protocol,
    grid: TimeGrid,
    *,
    key: Array,
    noise: AbstractNoise = Poisson(),
    solver: AbstractSolver = CausalInnovations(),
    samples: int | None = None,
    step: AbstractStep | None = None,
    replicates: int = 1,
    richardson: bool = False,
    estimate_bias: bool = False,
    metrics: dict[str, AbstractFieldMetric | AbstractWeightMetric] | None = None,
    mesh: Mesh | None = None,
    throw: bool = True,
) -> Solution:
    """Exact asymptotic (d -> infinity) train and test behavior of multi-pass SGD, by dynamical mean-field theory.

    The update theta <- theta - D eta ridge h(theta) - X^T (l(X theta, y) * M) / delta, with random multipliers M of mean eta D
    and the regularizer's gradient h (theta for the ridge), becomes a pair of scalar processes coupled through two-time kernels.
    Sources: arXiv:2602.06320 (SGF), arXiv:2112.07572 (gradient flow), arXiv:2210.06591 (discrete time).

    Main arguments:

    - `problem`, `protocol`, `grid`: what is learned, how, and at which times t = (SGD steps) / d.
    - `key`: a JAX random key; the same key gives the same answer.
    - `noise`: law of the gradient noise. `noise.Poisson()` is SGD itself at finite learning rate; `noise.Brownian()` is
      stochastic gradient flow, differentiable in batch size and delta too; `noise.NoNoise()` gradient flow;
      `noise.Bernoulli(fraction)` batches that are a fraction of the training set.
    - `solver`: `CausalInnovations(samples=4096)`, one causal pass, or `FixedPoint()`, the published iteration: slow, an
      independent check. See there for their settings.
    - `samples`, `step`: short for these settings of the solver, population size and time step.

    Other arguments:

    - `replicates`: independent repetitions; results are their mean, and two or more give standard errors.
    - `richardson`: solve also with every step halved, on the same random numbers, and extrapolate the leading error away.
      Triples the cost or more.
    - `estimate_bias`: solve also with half the samples; see `Solution.bias`. Doubles the cost.
    - `metrics`: by name, any other quantities of a sample's (r, y) or of a coordinate's (theta, theta_star), see
      `dmftopt.metrics`. Results are in `train_metrics`, `test_metrics` and `weight_metrics`.
    - `mesh`: devices to share the work, axes named "samples" or "replicates" or both, also of many processes (each makes the
      same call). The same random points in a different order, so results agree to rounding. Inside your own jit too. The size
      of "samples" must be a power of two, that of "replicates" must divide `replicates`. A solve's arrays of size samples never
      leave their device; the solution is on all of them.
    - `throw`: raise `SolveError` where the result is not successful. Inside jit, grad or vmap nothing can be raised: look
      at `solution.result`; failed entries are NaN.

    Reverse-mode differentiable (memory O(samples * steps)) in everything real in `problem`, `protocol` and `grid`; Poisson
    counts are not differentiable in batch size, delta or times, nor Bernoulli draws in the fraction: asking is an error. Forward
    mode and second derivatives: `CausalInnovations(adjoint=DirectAdjoint())`.
    Finite-sample bias is of order steps / samples.

    Raises ValueError or TypeError naming the argument for input outside its domain.
    """
    solver = configured(solver, samples, step)
    step = _check(problem, protocol, grid, noise, solver, replicates, richardson, key)
    protocol = protocol.in_continuous_time() if step.continuous else protocol
    mesh = check_mesh(mesh, solver.samples, replicates)
    asked = check_metrics(metrics, problem)
    problem, noise, solver, grid, asked = numbers_to_arrays((problem, noise, solver, grid, asked))
    _check_memory(problem, grid, noise, solver, replicates, richardson, mesh)
    grids = (grid, grid.refined()) if richardson else (grid,)
    values = tuple(averaged(protocol, g, step.nodes, step.node_weights, batched=noise.batched) for g in grids)
    settings = Statistics(solver.samples, replicates, grid.steps, richardson)
    given = (problem, noise, solver, grids, values, asked, jax.random.split(key, replicates))
    problem, noise, solver, grids, values, asked, keys = replicated(given, mesh)
    drawn = None
    if replicates == 1:
        # By a program of its own, which other tasks and gradients share.
        drawn = _drawn(problem, noise, solver, grids[-1], values[-1], keys[0], mesh)
    solution = _solve(problem, noise, solver, grids, values, asked, keys, drawn, settings, estimate_bias, mesh)
    raise_unless(solution.result, throw, "solve failed", solution.times, solution.test_risk)
    return solution


def _check_memory(problem, grid, noise, solver, replicates, richardson, mesh) -> None:
    steps = grid.steps * (2 if richardson else 1)
    # Five arrays over the nodes of the test risk; correlations, responses and their standard errors.
    risk = 2.5 * (problem.m + problem.m_star) * problem.task.risk_nodes
    results = (replicates + 2) * 2 * (problem.m * (grid.steps + 1)) ** 2
    check_memory(
        f"samples = {solver.samples} on grid.steps = {steps} with {problem.m} student columns and {problem.features.groups} "
        f"eigenvalue groups, replicates = {replicates}",
        max(solver.memory(problem, noise, steps) / axis_size(mesh, SAMPLES), risk) + results,
        "Lower one of them; steps count twice with richardson.",
    )


def _drawn(problem, noise, solver, grid, value, key, mesh) -> Randomness:
    """The random numbers of one replicate."""
    sizes = Sizes(problem.m, problem.m_star, problem.linear_weights, axis_size(mesh, SAMPLES))
    return _draw(solver, key, sizes, grid, noise, value.batch_size, problem.delta, mesh)


@eqx.filter_jit
def _draw(solver, key, sizes: Sizes, grid, noise, batch_size, delta, mesh) -> Randomness:
    with jax.default_matmul_precision(_PRECISION):
        return constrained(solver.draw(key, sizes, grid, noise, batch_size * grid.step_sizes / delta), mesh, SAMPLES)


@eqx.filter_jit
def _solve(
    problem, noise, solver, grids, values, metrics, keys, drawn, settings: Statistics, estimate_bias, mesh: Mesh | None
) -> Solution:
    """`drawn`: the random numbers of the only replicate, None where there are more: those take turns in the memory."""
    levels = tuple(Level(grid, value, problem.delta) for grid, value in zip(grids, values, strict=True))

    def one(key):
        points = drawn
        if points is None:
            points = _drawn(problem, noise, solver, grids[-1], values[-1], key, mesh)
        with jax.default_matmul_precision(_PRECISION):
            return replicate(problem, noise, solver, levels, metrics, points, estimate_bias)

    parts = axis_size(mesh, REPLICATES)
    if settings.replicates == 1:
        full, halves, converged = jax.tree.map(lambda a: a[None], one(keys[0]))
    elif parts == 1:
        full, halves, converged = jax.lax.map(one, keys)
    else:
        # Each device goes through its own replicates.
        keys = keys.reshape(parts, -1, *keys.shape[1:])
        outputs = jax.vmap(lambda own: jax.lax.map(one, own), spmd_axis_name=REPLICATES)(keys)
        full, halves, converged = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outputs)
    mean, error = mean_and_error(full)
    # The checks at the front doors again, for traced values.
    valid = problem.valid()
    for level in levels:
        valid = valid & level.valid(noise)
    # The scale of everything at the start; 1 stands for the fields at which losses with saturating gradients bend.
    scale = jnp.trace(problem.rho) + jnp.trace(problem.initial_overlap) + 2 * jnp.abs(mean.train_loss[0]) + 1
    result, good = judge(mean, scale, valid, jnp.all(converged))
    difference = None if halves is None else jax.tree.map(lambda h, m: jnp.mean(h, axis=0) - m, halves, mean)
    error, difference = (None if o is None else blank(o, good) for o in (error, difference))
    solution = Solution(grids[0].times, blank(mean, good), error, difference, result, settings)
    return constrained(solution, mesh)


def _check(problem, protocol, grid, noise, solver, replicates, richardson, key) -> AbstractStep:
    """The step that will be taken."""
    check_problem(problem)
    check_protocol(protocol)
    check_instance("grid", grid, TimeGrid, "Build it with dmftopt.TimeGrid.uniform(horizon, steps).")
    check_instance("noise", noise, AbstractNoise, "Pass an instance, for example dmftopt.noise.Poisson().")
    check_count("replicates", replicates)
    step = solver.step_for(noise)
    if step.continuous and noise.discrete:
        raise ValueError("step: an extensive batch is one discrete update per grid step. Use DiscreteStep(), or leave step out.")
    algorithm = noise.discrete or noise.deterministic or protocol.momentum is not None
    if richardson and algorithm and not step.continuous:
        raise ValueError("richardson extrapolates the time step away, but here the step is the algorithm. Drop richardson.")
    solver.check(problem, protocol, noise, grid.steps * (2 if richardson else 1))
    check_key(key)
    return step
