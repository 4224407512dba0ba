"""Steps and samples for an accuracy: solve on two levels, look at the errors, take more of what lacks."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm.auto import tqdm

from .._checks import check_real, is_concrete
from ..numerics.quadrature import uniform_points
from ..problem import Problem
from ..protocol import Protocol
from ..protocol.integrals import epoch_ends
from ..protocol.noise import AbstractNoise
from ..protocol.rates import read
from ..protocol.updates import is_adaptive
from ..results.codes import RESULTS
from ..results.measure import Metrics
from ..results.observables import mean_and_error, sampling_error, student_quantile
from ..tasks import columns as columns
from ._accuracy import extrapolates, is_algorithm, order_of, relative_errors, stability, stiffness
from ._adaptive import seen
from ._causal import CausalInnovations, enough_samples
from ._choice import Density, Numbers, inner_knots
from ._motion import curvature_ratio
from ._program import assembled, check_fits, drawn, run_level
from ._relaxation import relaxation_error
from ._replicate import Level, Replicate, error_of_fine, extrapolated_at_all_times, on_fine
from ._solution import Solution, Statistics
from ._solver import AbstractSolver, configured

# What an automatic solve starts from, and what it may take: steps at first, steps, samples of a replicate, replicates, and the
# product samples * steps² of all replicates.
_FIRST_STEPS, _FIRST_SAMPLES, REPLICATES = 16, 1024, 4
_MOST_FIRST, _MOST_STEPS, _MOST_SAMPLES, _MOST_REPLICATES, _MOST_WORK = 128, 2048, 2**16, 64, 1e10
_ROUNDS = 8
# The next round aims at so much of the accuracy, and at no more than so much less than the last one's error.
_MARGIN, _MOST_GAIN = 0.8, 16.0
# What a new program costs, in samples * steps², and at how many steps drawing samples costs as much as running them (two cores).
_COMPILING, _DRAWING = 5e8, 45


class Request(NamedTuple):
    """What is to be solved."""

    problem: Problem
    protocol: Protocol
    horizon: float
    times: Numbers
    noise: AbstractNoise
    solver: AbstractSolver
    metrics: Metrics
    replicates: int
    key: Array


class Effort(NamedTuple):
    steps: int
    samples: int
    replicates: int


class Measured(NamedTuple):
    """One round: all replicates on the fine of two levels, its total error and what that is made of (relative), and the curvature
    seen. Of the error of the steps, `step_error` is sure, beyond twice what replicates differ, which is `step_noise`."""

    solution: Solution
    total: float
    step_error: float
    step_noise: float
    sampling_error: float
    bias: float
    order: int
    curvature: Numbers


def check_times(times: Any, horizon: Any) -> Numbers:
    """Of observation, as increasing times in (0, horizon]."""
    if times is None:
        return np.zeros(0)
    check_real("times", times, minimum=0.0, cure="They are times of observation.")
    found = np.asarray(times, dtype=float)
    if found.ndim != 1 or not found.size or np.any(np.diff(found) <= 0) or found[-1] > horizon * (1 + 1e-6):
        raise ValueError(f"times must be increasing, from 0 to at most the horizon {horizon:g}, got {times!r}. Sort them.")
    return np.minimum(found, horizon)


def check_horizon(
    horizon: Any, problem: Problem, protocol: Protocol, noise: AbstractNoise, solver: AbstractSolver, key: Array
) -> float:
    if not all(map(is_concrete, jax.tree.leaves((horizon, problem, protocol, noise, solver, key)))):
        raise TypeError(
            "grid: how many steps an accuracy needs cannot be found while tracing. Choose them outside, with "
            "dmftopt.TimeGrid.for_accuracy(problem, protocol, horizon, key=key), and pass that grid."
        )
    if np.ndim(horizon) != 0 or isinstance(horizon, (str, bytes)):
        raise TypeError(
            f"grid must be a TimeGrid, or one number, the horizon, got {horizon!r}. Build it with dmftopt.TimeGrid(times), "
            "or with dmftopt.TimeGrid.uniform(horizon, steps)."
        )
    check_real("horizon", horizon, minimum=0.0, exclusive=True, cure="It is the final time, SGD steps / d.")
    if is_algorithm(noise, solver.step_for(noise), protocol.momentum is not None):
        raise ValueError("grid: here each step is an update of the algorithm. Pass a TimeGrid with one step for each.")
    return float(horizon)


def solve_to(accuracy: float, request: Request, samples: int | None, progress: bool) -> Solution:
    """The first solution whose total error is within the accuracy, or the last one."""
    at = np.array([0.0, request.horizon])
    curvature = np.full(2, float(_curvature_at_start(request.problem, request.protocol)))
    density = _density(request, at, curvature)
    fixed = _fixed(request, _MOST_STEPS).size
    steps = _power_of_two(max(min(density.steps, _MOST_FIRST), _FIRST_STEPS, 4 * fixed))
    effort = _allowed(request, Effort(steps, samples or _FIRST_SAMPLES, request.replicates))
    trial = _Trial(request, density, effort)
    with tqdm(total=_ROUNDS, desc="solve", disable=None if progress else True, leave=False) as bar:
        while True:
            bar.set_postfix_str(f"{effort.steps} steps, {effort.replicates} x {effort.samples} samples")
            found = trial.measure(effort.replicates, accuracy)
            bar.update()
            more = _allowed(request, _more(found, effort, accuracy, request))
            settled = any(bool(found.solution.result == code) for code in (RESULTS.successful, RESULTS.unstable, RESULTS.invalid))
            if settled or more == effort or bar.n >= _ROUNDS:
                return found.solution
            if more[:2] != effort[:2]:
                if np.all(np.isfinite(found.curvature)):
                    density = _density(request, np.asarray(found.solution.times, dtype=float), found.curvature)
                trial = _Trial(request, density, more)
            effort = more


def observed(solution: Solution, times: Numbers) -> Solution:
    """At these of its times."""
    if not times.size:
        return solution
    grid = np.asarray(solution.times)
    keep = np.unique(np.argmin(np.abs(grid[:, None] - np.concatenate([[0.0], times])[None]), axis=0))
    names = ("observables", "replicated", "half_difference", "bias_error", "level_difference")
    parts = {name: part.at(keep) for name in names if (part := getattr(solution, name)) is not None}
    # Of the steps between two times of observation the worst.
    groups = list(itertools.pairwise(keep))
    worst = {name: jnp.stack([jnp.max(getattr(solution, name)[a:b]) for a, b in groups]) for name in ("stiffness", "stability")}
    return dataclasses.replace(solution, times=solution.times[keep], **parts, **worst)


class _Trial:
    """Replicates on two levels of the same random numbers, and on the coarse one with the two halves of the samples. More of them
    may be asked for later."""

    def __init__(self, request: Request, density: Density, effort: Effort):
        problem, noise, solver = request.problem, request.noise, _sized(request, effort)
        step = solver.step_for(noise)
        coarse = density.grid(effort.steps // 2, _fixed(request, effort.steps // 4))
        self.request, self.solver, self.samples = request, solver, effort.samples
        self.order = order_of(problem, noise, step)
        if noise.in_epochs:
            coarse = coarse.counted(request.protocol.batch_size, problem.delta)
        self.levels = [Level.of(problem, request.protocol, grid, noise, step) for grid in (coarse, coarse.refined())]
        self.outputs: list[tuple[Replicate, Array]] = []

    def measure(self, replicates: int, accuracy: float) -> Measured:
        problem, noise, fine = self.request.problem, self.request.noise, self.levels[1].grid
        while len(self.outputs) < replicates:
            self.outputs.append(self._replicate(jax.random.fold_in(self.request.key, len(self.outputs))))
        curvature = np.mean([np.asarray(size) for _, size in self.outputs], axis=0)
        settings = Statistics(self.samples, replicates, fine.steps, False, "measured", self.order)
        given = [replicate for replicate, _ in self.outputs], settings, jnp.asarray(accuracy, fine.times.dtype)
        solution, errors = _assembled(problem, noise, self.levels, *given)
        total, of_steps, noise_of_steps, of_samples, bias = (float(e) for e in errors)
        return Measured(solution, total, of_steps, noise_of_steps, of_samples, bias, self.order, curvature)

    def _replicate(self, key: Array) -> tuple[Replicate, Array]:
        request, (coarse, fine) = self.request, self.levels
        points = drawn(request.problem, request.noise, self.solver, fine, key)
        coarser, *halves = _coarser(points, fine, request.noise)

        def run(level, points):
            return run_level(request.problem, request.noise, self.solver, level, points, request.metrics)

        runs = [run(coarse, coarser), run(fine, points)]
        of_halves = [run(coarse, half).observables for half in halves]
        step = self.solver.step_for(request.noise)
        return _judged(request.problem, request.noise, step, self.levels, runs, of_halves, self.order)


@eqx.filter_jit
def _assembled(problem, noise, levels, replicates: list[Replicate], settings: Statistics, accuracy):
    """The solution, and the largest relative errors: the total, of the time step (what is sure of it, and its noise), of sampling
    and of bias."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *replicates)
    valid = problem.valid() & levels[0].valid(noise) & levels[1].valid(noise)
    solution = assembled(problem, levels[1].grid.times, stacked, valid, settings, accuracy)
    mean, noise_of_mean = mean_and_error(stacked.level_difference)
    sure = jax.tree.map(lambda a, e: jnp.maximum(jnp.abs(a) - 2 * e, 0.0), mean, noise_of_mean)
    sampling = sampling_error(solution.standard_error, settings.replicates)
    parts = solution.total_error, sure, noise_of_mean, sampling, solution.bias
    relative = [relative_errors(solution.observables, part, problem.rho) for part in parts]
    total, of_steps, *others = (jnp.max(jnp.stack(list(r.values()))) for r in relative)
    return solution, [total, jnp.maximum(of_steps, jnp.max(stacked.relaxation)), *others]


@eqx.filter_jit
def _coarser(points: Any, fine: Level, noise: AbstractNoise) -> tuple[Any, Any, Any]:
    """The same random numbers on every second time, and the halves of these."""
    coarser = points.coarsened(fine.grid, noise, fine.visits)
    return coarser, coarser.half(0), coarser.half(1)


@eqx.filter_jit
def _judged(problem, noise, step, levels, runs, halves, order: int) -> tuple[Replicate, Array]:
    coarse, fine = (run.observables for run in runs)
    # A bias grows with steps / samples: on half the steps that of half the samples is the fine level's own, and does not count as
    # an error of the steps.
    alike = jax.tree.map(lambda *parts: sum(parts) / len(parts), *halves)
    if extrapolates(problem, noise, order):
        full, difference, agree = extrapolated_at_all_times(alike, fine, order)
    else:
        full, difference, agree = fine, error_of_fine(alike, fine, order), jnp.asarray(True)

    # For the same reason the bias is at most twice what half the samples change on the coarse level.
    def half(of_coarse):
        change = jax.tree.map(lambda h, c: 2 * (h - c), of_coarse, coarse)
        return jax.tree.map(jnp.add, full, on_fine(change, lambda a, b: 0.5 * (a + b)))

    halves = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[half(h) for h in halves])
    given = problem, levels[1].inputs(noise), runs[1].curvature
    converged = runs[0].converged & runs[1].converged
    relaxation = relaxation_error(*given, step, fine.train_loss)
    replicate = Replicate(full, halves, difference, relaxation, converged, agree, stiffness(*given), stability(*given))
    return replicate, runs[1].curvature.size


def _more(found: Measured, effort: Effort, accuracy: float, request: Request) -> Effort:
    """The cheapest effort that should reach the accuracy. What cannot be told yet waits: a level without finite values, or far
    off, says nothing of the samples."""
    steps, samples, replicates = effort
    if not (found.step_error <= 0.1 and found.total < np.inf):
        return Effort(4 * steps if not found.step_error <= 1.0 else 2 * steps, samples, replicates)
    if found.total <= accuracy:
        # The levels differ too much to be extrapolated.
        return Effort(2 * steps, samples, replicates)
    target = max(_MARGIN * accuracy, found.total / _MOST_GAIN)
    allowed = [e for e in _candidates(effort, request.replicates) if _allowed(request, e) == e]
    reaching = [e for e in allowed if _predicted(found, effort, e) <= target]
    if reaching:
        return min(reaching, key=lambda e: _cost(effort, e))
    return min([effort, *allowed], key=lambda e: _predicted(found, effort, e))


def _candidates(effort: Effort, least: int) -> list[Effort]:
    """Steps like 2, 3, 4, 6, 8, 12, so that programs are few. More replicates compile nothing anew and make Student's t
    smaller; with more samples or finer steps fewer may do."""
    finer = (2, 3, 4, 6, 8) if _power_of_two(effort.steps) == effort.steps else (6, 8, 12, 16, 24)
    steps = [effort.steps * factor // finer[0] for factor in finer]
    samples = [effort.samples << i for i in range(6)]
    most = max(_MOST_REPLICATES, effort.replicates)
    replicates = list(itertools.takewhile(lambda r: r <= most, (least << i for i in itertools.count())))
    more = [Effort(*e) for e in itertools.product(steps, samples, replicates)]
    return [e for e in more if e[:2] != effort[:2] or e.replicates > effort.replicates]


def _predicted(found: Measured, effort: Effort, other: Effort) -> float:
    """The total error with another effort, in the proportions in which it is the sum of its parts now."""
    finer, more = other.steps / effort.steps, other.samples / effort.samples
    replicates = other.replicates / effort.replicates
    parts = (
        (found.step_error, finer**-found.order),
        (2 * found.step_noise, (more * replicates) ** -0.5),
        (found.sampling_error, more**-0.5 * _spread(other.replicates) / _spread(effort.replicates)),
        (found.bias, finer / more),
    )
    return found.total * sum(part * factor for part, factor in parts) / sum(part for part, _ in parts)


def _cost(effort: Effort, other: Effort) -> float:
    """Of what is still to be run, in units of samples * steps²."""
    done, compiling = (effort.replicates, 0.0) if other[:2] == effort[:2] else (0, _COMPILING)
    return (other.replicates - done) * other.samples * other.steps * (other.steps + _DRAWING) + compiling


def _spread(replicates: int) -> float:
    """Half the 95% interval of a mean, over the deviation of one."""
    return student_quantile(replicates) / replicates**0.5


def _allowed(request: Request, effort: Effort) -> Effort:
    """Within what an automatic solve may take, with enough samples for the directions."""
    steps, replicates = min(effort.steps, _MOST_STEPS), effort.replicates
    samples = min(max(effort.samples, enough_samples(request.problem.m, steps)), _MOST_SAMPLES)
    while steps > _FIRST_STEPS and replicates * samples * steps**2 > _MOST_WORK:
        if replicates > request.replicates:
            replicates //= 2
        else:
            steps //= 2
    return Effort(steps, samples, replicates)


def _power_of_two(least: float) -> int:
    return 1 << max(0, int(np.ceil(np.log2(least))))


def _sized(request: Request, effort: Effort) -> AbstractSolver:
    solver = configured(request.solver, effort.samples, None)
    if isinstance(solver, CausalInnovations) and not request.problem.linear_weights:
        # As many as `check` asks for, and as many as there are samples.
        needed = enough_samples(request.problem.m, effort.steps + 1)
        solver = dataclasses.replace(solver, particles=max(solver.particles, effort.samples, needed))
    solver.check(request.problem, request.protocol, request.noise, effort.steps)
    check_fits(request.problem, solver, request.noise, effort.steps, request.replicates, 1)
    return solver


def _density(request: Request, at: Numbers, curvature: Numbers) -> Density:
    features = seen(request.problem, request.protocol.update)
    ratio = np.asarray(curvature_ratio(features, request.problem.delta), dtype=float)
    return Density(request.problem, request.protocol, request.horizon, curvature, at, ratio)


def _fixed(request: Request, most: int) -> Numbers:
    """Times that the coarse grid must have: ends of epochs, those asked for, and the protocol's knots if not too many."""
    horizon, batch_size = request.horizon, request.protocol.batch_size
    ends = epoch_ends(batch_size, request.problem.delta, horizon) if request.noise.in_epochs else np.zeros(0)
    times = _joined(ends, request.times[(request.times > 0) & (request.times < horizon)], 1e-6 * horizon)
    every = _joined(times, inner_knots(request.protocol, horizon, 1e-6 * horizon), 1e-6 * horizon)
    return every if every.size <= most else times


def _joined(times: Numbers, others: Numbers, apart: float) -> Numbers:
    """The times, and those of the others that are not too near to one of them."""
    far = np.all(np.abs(others[:, None] - times[None]) > apart, axis=1)
    return np.sort(np.concatenate([times, others[far]]))


@eqx.filter_jit
def _curvature_at_start(problem: Problem, protocol: Protocol) -> Array:
    """Size of E[dl / dr] on the fields of the initial student, as the update scales it."""
    task, m_star = problem.task, problem.m_star
    rows, weights = problem.initial, problem.features.weights * problem.features.eigenvalues
    overlap = jnp.einsum("g,gac,gbc->ab", weights, rows[:, m_star:], rows[:, :m_star])
    uniforms = jnp.asarray(uniform_points(m_star + 1 + problem.m, 10), float)
    known, y, z = columns.fresh(task, problem.rho, uniforms)
    to_known, root = columns.student_fields(task, problem.initial_overlap, overlap, problem.rho)
    fields = to_known @ known + root @ z
    found = jnp.mean(columns.curvature(task, fields, y), axis=-1)
    if is_adaptive(protocol.update):
        batch_size = read(protocol, jnp.zeros(1)).batch_size
        scale = (jnp.mean(columns.gradient(task, fields, y) ** 2, axis=-1) / batch_size) ** -0.25
        found = scale[:, None] * found * scale[None]
    return jnp.sqrt(jnp.sum(found**2))
