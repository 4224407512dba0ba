import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from .._checks import check_count, check_instance, check_key, check_real, is_concrete, numbers_to_arrays
from .._measure import check_metrics
from .._results import RESULTS, SolveError
from ..grid import TimeGrid
from ..metrics import AbstractFieldMetric, AbstractWeightMetric
from ..noise import AbstractNoise, Bernoulli, NoNoise, Poisson
from ..observables import Observables, mean_and_error
from ..problem import Problem, check_problem
from ..protocol import Momentum, Protocol, check_momentum
from ..quadrature import safe_sqrt
from ._causal import CausalInnovations
from ._mesh import REPLICATES, SAMPLES, axis_size, check_mesh, constrained, replicated
from ._solution import Solution, Statistics, blank, judge
from ._solver import AbstractSolver, Inputs, Randomness, Sizes
from ._step import AbstractStep, DiscreteStep

# Some accelerators multiply float32 matrices in 10 bits by default; orthogonality would not survive that.
_PRECISION = "highest"


class _Values(eqx.Module):
    """The protocol on one grid, averaged over each step: learning rate, batch size, learning rate times ridge, the learning
    rate that with this batch size has the average of eta²/B, momentum, and whether all was in its domain."""

    learning_rate: Array
    batch_size: Array
    shrinkage: Array
    noisy_rate: Array
    momentum: Momentum | None
    valid: Array


def solve(
    problem: Problem,
    protocol: Protocol,
    grid: TimeGrid,
    *,
    key: Array,
    noise: AbstractNoise = Poisson(),
    samples: int = 4096,
    replicates: int = 1,
    step: AbstractStep | None = None,
    solver: AbstractSolver = CausalInnovations(),
    richardson: bool = False,
    estimate_bias: bool = False,
    throw: bool = True,
    mesh: Mesh | None = None,
    metrics: dict[str, AbstractFieldMetric | AbstractWeightMetric] | None = None,
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
    - `samples`: population size of the field side, a power of two.

    Other arguments:

    - `replicates`: independent repetitions; results are their mean, and two or more give standard errors.
    - `step`: `ExponentialStep()` (continuous time, second order; the default) or `DiscreteStep()` (one update of the
      algorithm per grid step; the default for Bernoulli).
    - `solver`: `CausalInnovations()`, one causal pass (with a setting `particles`, for regularizers other than the ridge), or
      `FixedPoint()`, the published iteration: slow, an independent check.
    - `richardson`: solve also with every step halved, on the same random numbers, and extrapolate the leading error away.
      Triples the cost or more.
    - `estimate_bias`: solve also with half the samples; see `Solution.bias`. Doubles the cost.
    - `throw`: raise `SolveError` where the result is not successful. Inside jit, grad or vmap nothing can be raised: look
      at `solution.result`; failed entries are NaN.
    - `mesh`: devices to share the work, axes named "samples" or "replicates" or both, also of many processes (each makes the
      same call). The same random points in a different order, so results agree to rounding. Inside your own jit too. The size
      of "samples" must be a power of two, that of "replicates" must divide `replicates`. A solve's arrays of size samples never
      leave their device; the solution is on all of them.

    - `metrics`: by name, any other quantities of a sample's (r, y) or of a coordinate's (theta, theta_star), see
      `dmftopt.metrics`. Results are in `train_metrics`, `test_metrics` and `weight_metrics`.

    Reverse-mode differentiable (memory O(samples * steps)) in everything real in `problem`, `protocol` and `grid`; Poisson
    counts are not differentiable in batch size, delta or times, nor Bernoulli draws in the fraction: asking is an error. First
    derivatives only: with several columns or a loss with kinks second derivatives would be wrong.
    Finite-sample bias is of order steps / samples.

    Raises ValueError or TypeError naming the argument for input outside its domain.
    """
    step = _check(problem, protocol, grid, noise, step, solver, samples, replicates, richardson, key)
    protocol = protocol.in_continuous_time() if step.continuous else protocol
    mesh = check_mesh(mesh, samples, replicates)
    asked = check_metrics(metrics, problem)
    problem, noise, solver, grid, asked = numbers_to_arrays((problem, noise, solver, grid, asked))
    grids = (grid, grid.refined()) if richardson else (grid,)
    values = tuple(_read(protocol, g, step, noise) for g in grids)
    settings = Statistics(samples, replicates, grid.steps, richardson)
    given = (problem, noise, step, solver, grids, values, asked, jax.random.split(key, replicates))
    problem, noise, step, solver, grids, values, asked, keys = replicated(given, mesh)
    drawn = None
    if replicates == 1:
        # By a program of its own, which other tasks and gradients share.
        drawn = _drawn(problem, noise, solver, grids[-1], values[-1], keys[0], samples, mesh)
    solution = _solve(problem, noise, step, solver, grids, values, asked, keys, drawn, settings, estimate_bias, mesh)
    code = solution.result._value
    if throw and is_concrete(code) and np.ndim(code) == 0 and bool(solution.result != RESULTS.successful):
        failed = solution.times[int(jnp.argmin(jnp.isfinite(solution.test_risk)))]
        raise SolveError(f"solve failed at t = {float(failed):.4g}. {RESULTS[solution.result]} (throw=False returns the rest.)")
    return solution


def _drawn(problem, noise, solver, grid, value, key, samples, mesh) -> Randomness:
    """The random numbers of one replicate."""
    sizes = Sizes(samples, problem.m, problem.m_star, problem.linear_weights, axis_size(mesh, SAMPLES))
    return _draw(solver, key, sizes, grid, noise, value.batch_size, problem.delta, mesh)


@eqx.filter_jit
def _draw(solver, key, sizes: Sizes, grid, noise, batch_size, delta, mesh) -> Randomness:
    with jax.default_matmul_precision(_PRECISION):
        return constrained(solver.draw(key, sizes, grid, noise, batch_size * grid.step_sizes / delta), mesh, SAMPLES)


@eqx.filter_jit
def _solve(
    problem, noise, step, solver, grids, values, metrics, keys, drawn, settings: Statistics, estimate_bias, mesh: Mesh | None
) -> Solution:
    """`drawn`: the random numbers of the only replicate, None where there are more: those take turns in the memory."""

    def replicate(key):
        points = drawn
        if points is None:
            points = _drawn(problem, noise, solver, grids[-1], values[-1], key, settings.samples, mesh)
        with jax.default_matmul_precision(_PRECISION):
            return _replicate(problem, noise, step, solver, grids, values, metrics, points, estimate_bias)

    parts = axis_size(mesh, REPLICATES)
    if settings.replicates == 1:
        full, halves, converged = jax.tree.map(lambda a: a[None], replicate(keys[0]))
    elif parts == 1:
        full, halves, converged = jax.lax.map(replicate, keys)
    else:
        # Each device goes through its own replicates.
        keys = keys.reshape(parts, -1, *keys.shape[1:])
        outputs = jax.vmap(lambda own: jax.lax.map(replicate, own), spmd_axis_name=REPLICATES)(keys)
        full, halves, converged = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outputs)
    mean, error = mean_and_error(full)
    valid = _valid(problem, noise, grids, values)
    # The scale of everything at the start; 1 stands for the fields at which losses with saturating gradients bend.
    scale = jnp.trace(problem.rho) + jnp.trace(problem.initial_overlap) + 2 * jnp.abs(mean.train_loss[0]) + 1
    result, good = judge(mean, scale, valid, jnp.all(converged))
    difference = None if halves is None else jax.tree.map(lambda h, m: jnp.mean(h, axis=0) - m, halves, mean)
    error, difference = (None if o is None else blank(o, good) for o in (error, difference))
    solution = Solution(grids[0].times, blank(mean, good), error, difference, result, settings)
    return constrained(solution, mesh)


def _replicate(problem, noise, step, solver, grids, values, metrics, drawn, estimate_bias):
    """Observables, their difference to half the samples' (or None), and whether the solver converged."""
    rates = [v.batch_size * g.step_sizes / problem.delta for g, v in zip(grids, values, strict=True)]
    # Drawn on the finest grid; a coarser level uses the same randomness, summed over pairs of steps.
    points = [drawn]
    if len(grids) == 2:
        points.insert(0, points[0].coarsened(grids[1], noise, rates[1]))

    def extrapolated(select):
        levels = []
        for grid, value, rate, p in zip(grids, values, rates, points, strict=True):
            drift = value.learning_rate * grid.step_sizes
            deviation = noise.deviation(value.noisy_rate, grid.step_sizes, rate)
            ratio = jnp.append(0.0, grid.step_sizes[1:] / grid.step_sizes[:-1])
            inputs = Inputs(drift, deviation, value.shrinkage * grid.step_sizes, ratio, noise.skewness(rate), value.momentum)
            levels.append(solver.run(problem, noise, step, inputs, select(p), metrics))
        observables, converged = zip(*levels, strict=True)
        # A sample whose gradient jumps starts or stops being moved at some time within a step: an error of first order.
        order = 1 if problem.task.jumps and not noise.deterministic else step.order
        result = observables[0] if len(levels) == 1 else _richardson(observables[0], observables[1], order)
        return result, jnp.all(jnp.stack(converged))

    full, converged = extrapolated(lambda p: p)
    if not estimate_bias:
        return full, None, converged
    halves = jax.lax.map(lambda which: extrapolated(lambda p: p.half(which))[0], jnp.arange(2))
    return full, jax.tree.map(lambda a: jnp.mean(a, axis=0), halves), converged


def _richardson(coarse: Observables, fine: Observables, order: int) -> Observables:
    """(2^order fine - coarse) / (2^order - 1) at the coarse times: the error of order step^order cancels."""
    gain = 1 / (2**order - 1)
    at_coarse = dataclasses.replace(fine.along_time(lambda a: a[::2]), response=None)
    result = jax.tree.map(lambda f, c: f + gain * (f - c), at_coarse, dataclasses.replace(coarse, response=None))
    if fine.response is None or coarse.response is None:
        return result
    # A kick at the end of a coarse step is one at the end of its second half. What follows a kick is of first order: the step
    # extrapolates across it.
    response = 2 * fine.response[::2, 1::2] - coarse.response
    return dataclasses.replace(result, response=response)


def _read(protocol: Protocol, grid: TimeGrid, step: AbstractStep, noise: AbstractNoise) -> _Values:
    """The protocol, averaged over each step and checked where concrete."""
    times = step.evaluation_times(grid)
    weights = jnp.asarray(step.weights, times.dtype)

    def at(name, minimum, cure):
        value = jnp.asarray(getattr(protocol, name)(times.ravel()), dtype=times.dtype)
        if value.shape not in ((), (times.size,)):
            raise ValueError(
                f"{name} must return one value per time, shape {(times.size,)} or (), got {value.shape}. "
                "Write the schedule with jax.numpy, elementwise in t."
            )
        check_real(name, value, minimum=minimum, cure=cure)
        return jnp.broadcast_to(value, (times.size,)).reshape(times.shape)

    learning_rate = at("learning_rate", 0.0, "Learning rates cannot be negative.")
    ridge = at("ridge", 0.0, "A negative ridge is unbounded below.")
    # Full-batch and extensive-batch algorithms do not read the batch size.
    minibatch = not isinstance(noise, (NoNoise, Bernoulli))
    batch_size = at("batch_size", 1.0, "SGD uses at least one sample per step.") if minibatch else jnp.ones_like(times)
    # Rounding of exp(log(1)) must not fail a batch size of 1.
    valid = jnp.all(learning_rate >= 0) & jnp.all(batch_size >= 1 - 1e-6) & jnp.all(ridge >= 0)
    mean = learning_rate @ weights, batch_size @ weights, (learning_rate * ridge) @ weights
    noisy = mean[0] if len(step.weights) == 1 else safe_sqrt((learning_rate**2 / batch_size) @ weights * mean[1])
    momentum = None
    if protocol.momentum is not None:
        coefficient = at("momentum", 0.0, "It is a share of the last change.")
        check_momentum(coefficient)
        valid = valid & jnp.all((coefficient >= 0) & (coefficient < 1))
        momentum = Momentum(coefficient @ weights, protocol.nesterov)
    return _Values(*mean, noisy, momentum, valid)


def _valid(problem: Problem, noise: AbstractNoise, grids: tuple[TimeGrid, ...], values: tuple[_Values, ...]) -> Array:
    """The checks at the front doors again, for traced values."""
    ok = problem.valid()
    for grid, value in zip(grids, values, strict=True):
        ok = ok & jnp.all(grid.step_sizes > 0) & noise.valid(value.batch_size * grid.step_sizes / problem.delta)
        ok = ok & value.valid
    return ok


def _check(problem, protocol, grid, noise, step, solver, samples, replicates, richardson, key) -> AbstractStep:
    check_problem(problem)
    check_instance("protocol", protocol, Protocol, "Build it with dmftopt.Protocol(learning_rate=...).")
    check_instance("grid", grid, TimeGrid, "Build it with dmftopt.TimeGrid.uniform(horizon, steps).")
    check_instance("noise", noise, AbstractNoise, "Pass an instance, for example dmftopt.noise.Poisson().")
    check_instance("solver", solver, AbstractSolver, "Pass dmftopt.CausalInnovations() or dmftopt.FixedPoint().")
    if step is None:
        step = DiscreteStep() if noise.discrete else solver.steps[0]()
    check_instance("step", step, AbstractStep, "Pass ExponentialStep() or DiscreteStep().")
    if not isinstance(step, solver.steps):
        names = " or ".join(f"{s.__name__}()" for s in solver.steps)
        raise ValueError(f"step: {type(solver).__name__} takes {names}, got {type(step).__name__}. Pass that, or leave step out.")
    if protocol.momentum is not None and not isinstance(solver, CausalInnovations):
        raise ValueError(f"momentum: {type(solver).__name__} takes none. Use solver=CausalInnovations().")
    if step.continuous and not problem.direct:
        raise ValueError("step: with a parametrization the noise depends on the weights. Pass DiscreteStep() (of first order).")
    check_count("samples", samples, minimum=4)
    check_count("replicates", replicates)
    if step.continuous and noise.discrete:
        raise ValueError("step: an extensive batch is one discrete update per grid step. Use DiscreteStep(), or leave step out.")
    algorithm = noise.discrete or noise.deterministic or protocol.momentum is not None
    if richardson and algorithm and not step.continuous:
        raise ValueError("richardson extrapolates the time step away, but here the step is the algorithm. Drop richardson.")
    solver.check(problem, samples, grid.steps * (2 if richardson else 1), noise)
    check_key(key)
    return step
