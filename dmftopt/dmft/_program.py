"""The compiled part of a solve: random numbers, replicates, and what is made of them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from .._memory import check_memory
from ..problem import Problem
from ..protocol.noise import AbstractNoise
from ..results.codes import RESULTS, blank
from ..results.measure import Metrics
from ..results.observables import Observables, mean_and_error
from ._accuracy import ROUNDING, relative_errors, rough_error, scaled
from ._mesh import REPLICATES, SAMPLES, axis_size, constrained
from ._replicate import Level, Replicate, replicate, widened
from ._solution import Solution, Statistics, judge
from ._solver import AbstractSolver, Outcome, Randomness, Sizes

# Some accelerators multiply float32 matrices in 10 bits by default; orthogonality would not survive that.
_PRECISION = "highest"
# Of a rough or measured error of the time step, relative: beyond it a number means nothing, whatever accuracy was asked for.
_MEANINGLESS = 0.5


def drawn(problem, noise, solver, level: Level, key, mesh: Mesh | None = None) -> Randomness:
    """The random numbers of one replicate, by a program of its own, which other tasks and gradients share."""
    sizes = Sizes(problem.m, problem.m_star, problem.linear_weights, axis_size(mesh, SAMPLES))
    return _draw(solver, key, sizes, level.grid, noise, level.visits, mesh)


def check_fits(problem: Problem, solver: AbstractSolver, noise: AbstractNoise, steps: int, replicates: int, shards: int) -> None:
    """Raise ValueError where a solve on so many steps does not fit into memory."""
    # Five arrays over the nodes of the test risk; correlations, responses and their errors.
    risk = 2.5 * (problem.m + problem.m_star) * problem.task.risk_nodes
    results = (replicates + 2) * 2 * (problem.m * (steps + 1)) ** 2
    check_memory(
        f"samples = {solver.samples} on grid.steps = {steps} with {problem.m} student columns and {problem.features.groups} "
        f"eigenvalue groups, replicates = {replicates}",
        max(solver.memory(problem, noise, steps) / shards, risk) + results,
        "Lower one of them; steps count twice with richardson.",
    )


@eqx.filter_jit
def _draw(solver, key, sizes: Sizes, grid, noise, visits, mesh) -> Randomness:
    with jax.default_matmul_precision(_PRECISION):
        return constrained(solver.draw(key, sizes, grid, noise, visits), mesh, SAMPLES)


@eqx.filter_jit
def run_level(
    problem: Problem, noise: AbstractNoise, solver: AbstractSolver, level: Level, points: Randomness, metrics: Metrics
) -> Outcome:
    """One level of one replicate by itself."""
    with jax.default_matmul_precision(_PRECISION):
        return solver.run(problem, noise, level.inputs(noise), points, metrics)


@eqx.filter_jit
def solved(
    problem, noise, solver, levels: tuple[Level, ...], metrics, keys, points, settings: Statistics, estimate_bias, accuracy, mesh
) -> Solution:
    """`points`: the random numbers of the only replicate, None where there are more: those take turns in the memory."""

    def one(key):
        own = drawn(problem, noise, solver, levels[-1], key, mesh) if points is None else points
        with jax.default_matmul_precision(_PRECISION):
            return replicate(problem, noise, solver, levels, metrics, own, estimate_bias, settings.richardson)

    parts = axis_size(mesh, REPLICATES)
    if settings.replicates == 1:
        outputs = jax.tree.map(lambda a: a[None], one(keys[0]))
    elif parts == 1:
        outputs = jax.lax.map(one, keys)
    else:
        # Each device goes through its own replicates.
        keys = keys.reshape(parts, -1, *keys.shape[1:])
        outputs = jax.vmap(lambda own: jax.lax.map(one, own), spmd_axis_name=REPLICATES)(keys)
        outputs = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outputs)
    # The checks at the front doors again, for traced values.
    valid = problem.valid()
    for level in levels:
        valid = valid & level.valid(noise)
    times = levels[0 if settings.richardson else -1].grid.times
    return constrained(assembled(problem, times, outputs, valid, settings, accuracy), mesh)


def assembled(
    problem: Problem,
    times: Float[Array, " time"],
    outputs: Replicate,
    valid: Bool[Array, ""],
    settings: Statistics,
    accuracy: Array | None,
) -> Solution:
    """`outputs`: of all replicates, one after the other along the first axis; `accuracy`: None for none in particular."""
    mean, error = mean_and_error(outputs.full)
    # The scale of everything at the start; 1 stands for the fields at which losses with saturating gradients bend.
    scale = jnp.trace(problem.rho) + jnp.trace(problem.initial_overlap) + 2 * jnp.abs(mean.train_loss[0]) + 1
    result, good = judge(mean, problem.rho, problem.task.mixture, scale, valid, jnp.all(outputs.converged))
    bias, bias_error = _bias(outputs)
    difference = _of_time_step(outputs, settings)
    error, bias, bias_error, difference = (None if o is None else blank(o, good) for o in (error, bias, bias_error, difference))
    stiffness, stability = (jnp.max(a, axis=0) for a in (outputs.stiffness, outputs.stability))
    mean = blank(mean, good)
    solution = Solution(times, mean, error, bias, bias_error, difference, stiffness, stability, result, settings)
    total = _relative_error(solution, problem, accuracy)
    inaccurate = ~(total <= (_MEANINGLESS if accuracy is None else accuracy)) | ~jnp.all(outputs.agree)
    code = RESULTS.where(inaccurate, RESULTS.inaccurate, RESULTS.successful)
    code = RESULTS.where(jnp.any(stability > 1 + ROUNDING), RESULTS.unstable, code)
    return eqx.tree_at(lambda s: s.result, solution, RESULTS.where(result == RESULTS.successful, code, result))


def _of_time_step(outputs: Replicate, settings: Statistics) -> Observables | None:
    """Its error (30): the mean over replicates, in which what is noise of the two levels averages out, and its own standard
    error; and at the least that of modes that relax within the steps (39)."""
    if outputs.level_difference is None or outputs.relaxation is None:
        return None
    mean, error = mean_and_error(jax.lax.stop_gradient(outputs.level_difference))
    size = jax.tree.map(jnp.abs, mean) if error is None else jax.tree.map(jnp.hypot, mean, error)
    size = size if settings.richardson else widened(size)
    relaxation = jnp.mean(outputs.relaxation, axis=0)
    mean = jax.tree.map(lambda values: jnp.mean(values, axis=0), outputs.full)
    # Of a run that fails the largest values are not known.
    return jax.tree.map(jnp.fmax, size, scaled(relaxation, relaxation, mean))


def _bias(outputs: Replicate) -> tuple[Observables | None, Observables | None]:
    """Equation (24), with its standard error: over replicates, or for a single one from its two halves."""
    if outputs.halves is None:
        return None, None
    several = jax.tree.map(lambda h, f: jnp.mean(h, axis=1) - f, outputs.halves, outputs.full)
    bias, error = mean_and_error(several)
    if error is None:
        error = jax.tree.map(lambda h: 0.5 * jnp.abs(h[0, 0] - h[0, 1]), outputs.halves)
    return bias, error


def _relative_error(solution: Solution, problem: Problem, accuracy: Array | None) -> Float[Array, ""]:
    """Of the whole error that is known, or where no accuracy is asked for of that of the time step."""
    settings = solution.stats
    if accuracy is None and solution.level_difference is None:
        if settings.step_error == "none":
            return jnp.zeros((), solution.times.dtype)
        return rough_error(solution.stiffness, solution.stability, settings.order)[-1]
    errors: Any = solution.discretization_error
    if accuracy is not None:
        errors = solution.known_error()
    return jnp.max(jnp.stack(list(relative_errors(solution.observables, errors, problem.rho).values())))
