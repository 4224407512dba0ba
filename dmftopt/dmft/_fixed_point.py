"""The published route: guess the two-time kernels, simulate the field they imply, average, solve the weights, repeat.

An independent check of the causal scheme, written to be read rather than to be fast. It shares the inputs with that scheme
and nothing else. Equations: arXiv:2602.06320 (and arXiv:2112.07572, arXiv:2210.06591), discretized by the plain step.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optimistix
from jaxtyping import Array, Float, Int

from .._checks import as_number, check_count, check_real, check_shape, front_door, is_concrete
from ..problem import Problem, check_linear, check_single
from ..protocol.grid import TimeGrid
from ..protocol.noise import AbstractNoise
from ..results.measure import Measured, coordinate_nodes, field_sums, linear_values, weight_means
from ..results.metrics import AbstractFieldMetric, AbstractWeightMetric
from ..results.observables import as_column, from_kernel
from ._solver import AbstractSolver, Curvature, Inputs, Outcome
from ._step import AbstractStep, DiscreteStep


class Draws(eqx.Module):
    """Plain pseudo-random numbers, samples last: uniforms of the teacher field and the label, a normal for each time of the
    Gaussian field, standardized multipliers."""

    teacher: Float[Array, " sample"]
    label: Float[Array, " sample"]
    normals: Float[Array, "time sample"]
    multipliers: Float[Array, "step sample"]

    def half(self, which: Int[Array, ""] | int) -> "Draws":
        return jax.tree.map(lambda a: a.reshape(*a.shape[:-1], 2, -1)[..., which, :], self)

    def coarsened(self, fine: TimeGrid, noise: AbstractNoise, visits: Float[Array, " step"]) -> "Draws":
        """Sums over pairs of steps, normalized. The normal of time 0 belongs to the initial student."""

        def pairs(values, squared):
            w = jnp.sqrt(squared).reshape(-1, 2, 1)
            return jnp.sum(w * values.reshape(*w.shape[:2], -1), axis=1) / jnp.sqrt(jnp.sum(w**2, axis=1))

        steps = jax.lax.stop_gradient(fine.step_sizes)
        normals = jnp.concatenate([self.normals[:1], pairs(self.normals[1:], steps)])
        return Draws(self.teacher, self.label, normals, pairs(self.multipliers, noise.coarsening(steps, visits)))


class Kernels(NamedTuple):
    """What the field needs of the weights: C(k, j) = E[lambda theta_k theta_j], O(k) = E[lambda theta_k theta_star], and the
    response R(k, j) = E[lambda d theta_k / d h], h added to theta_{j+1}."""

    correlation: Float[Array, "time time"]
    overlap: Float[Array, " time"]
    response: Float[Array, "time step"]


class Gradients(NamedTuple):
    """What the weights need of the field, of g_k = l(r_k, y) M_k: C_g(k, j) = E[g_k g_j], R_g(k, j) = E[d g_k / d w_j] and
    R_g(k, *) = E[d g_k / d w_star]."""

    correlation: Float[Array, "step step"]
    response: Float[Array, "step step"]
    teacher: Float[Array, " step"]


class Law(NamedTuple):
    """E[theta²], and in each eigenvalue group theta's coefficients on unit entries of theta_star and theta_0 and the variance of
    the rest, which is Gaussian."""

    norm: Float[Array, " time"]
    entries: Float[Array, "time group 2"]
    variance: Float[Array, "time group"]


@front_door
class FixedPoint(AbstractSolver):
    """The published fixed-point iteration, an independent check of `CausalInnovations()` and a baseline for it.

    Given the kernels C, O, R of the weights (feature-weighted), sample the single-sample process

        r_k = w_k - (1/delta) sum_{j<k} R(k, j) g_j ,   g_k = l(r_k, y) M_k ,   (w, w_star) ~ N(0, [[C, O], [O^T, rho]])

    and its tangents d r_k / d w_j, average to C_g, R_g, and solve the linear weights of each eigenvalue group,

        theta_{k+1} = (1 - D eta ridge) theta_k - lambda [ sum_{j<=k} R_g(k, j) theta_j + R_g(k, *) theta_star ]
                      + sqrt(lambda / delta) u_k ,   u ~ N(0, C_g)

    for new kernels; repeat on the same random numbers until they stop changing. R_g(k, *) comes from Gaussian integration by
    parts, so a label may jump.

    The step is `DiscreteStep()`, no other. Plain Monte Carlo: errors of order 1 / sqrt(samples), which must be even. Time
    O(samples * steps³) per iteration. Everything is causal, so iteration n makes the first n steps exact, and undamped the
    fixed point is reached after at most `steps` iterations; damping only slows it down.

    Derivatives are those of the fixed point, by the implicit function theorem, for small problems: the reverse mode keeps
    O(samples * steps³).

    For smooth losses only: a tangent does not see a kink of the loss (hinge), and the response and all that follows from it
    are then wrong. The causal scheme has no such limit.

    - `max_iterations`: past it the result is `RESULTS.unconverged`.
    - `tolerance`: on the change of the kernels in one iteration, relative to 1 + their size, correlations in units of
      E[lambda theta_star²] + E[lambda theta_0²].
    - `damping`: share of the old kernels kept in each iteration, in [0, 1).
    """

    samples: int = eqx.field(static=True, default=4096)
    step: AbstractStep | None = None
    max_iterations: int = eqx.field(static=True, default=100)
    tolerance: Any = eqx.field(converter=as_number, default=1e-6)
    damping: Any = eqx.field(converter=as_number, default=0.0)

    def __check_init__(self):
        check_count("samples", self.samples, minimum=4)
        if self.samples % 2:
            raise ValueError(
                f"samples must be even (the bias is estimated from halves), got {self.samples}. Use {self.samples + 1}."
            )
        if self.step is not None and not isinstance(self.step, DiscreteStep):
            raise ValueError(
                f"step: FixedPoint takes DiscreteStep(), got {type(self.step).__name__}. Pass that, or leave step out."
            )
        check_count("max_iterations", self.max_iterations)
        check_real("tolerance", self.tolerance, minimum=0.0, exclusive=True, cure="It is a relative change of the kernels.")
        check_real("damping", self.damping, minimum=0.0, cure="It is the share of the old kernels that is kept.")
        for name in ("tolerance", "damping"):
            check_shape(name, getattr(self, name), ((),), "Give one number.")
        if is_concrete(self.damping) and np.any(np.asarray(self.damping) >= 1):
            raise ValueError(f"damping must be below 1, got {self.damping}. At 1 nothing would ever change.")

    def step_for(self, noise):
        return DiscreteStep() if self.step is None else self.step

    def check(self, problem, protocol, noise, steps):
        if protocol.momentum is not None:
            raise ValueError("momentum: FixedPoint takes none. Use solver=CausalInnovations().")
        if protocol.update is not None:
            raise ValueError("update: FixedPoint takes SGD only. Use solver=CausalInnovations().")
        if protocol.friction is not None:
            raise ValueError("friction: FixedPoint takes none. Use solver=CausalInnovations().")
        if noise.in_epochs:
            raise ValueError("noise: FixedPoint takes multipliers that know no past. Use solver=CausalInnovations().")
        check_single(problem, "solver: FixedPoint()")
        check_linear(problem, "solver: FixedPoint()")

    def memory(self, problem, noise, steps):
        times = steps + 1
        # Normals and multipliers; tangents of one batch (at most 2e8 bytes, at least one sample); kernels, per group and in all.
        tangents = times**2 * max(1, min(self.samples, 1e7 // times**2))
        return 2 * times * self.samples + 2 * tangents + (10 + 4 * problem.features.groups) * times**2

    def draw(self, key, sizes, grid, noise, visits):
        dtype = grid.times.dtype
        edge = float(jnp.finfo(dtype).eps)
        key_field, key_normals, key_multipliers = jax.random.split(key, 3)

        def uniforms(key, shape):
            return jax.random.uniform(key, shape, dtype, minval=edge, maxval=1 - edge)

        teacher, label = uniforms(key_field, (2, self.samples))
        normals = jax.random.normal(key_normals, (grid.steps + 1, self.samples), dtype)
        unrotated = jnp.eye(grid.steps, dtype=dtype)
        multipliers = noise.standardized(uniforms(key_multipliers, (grid.steps, self.samples)), unrotated, visits)
        return Draws(teacher, label, normals, multipliers)

    def run(self, problem, noise, inputs, randomness, metrics):
        scale = (problem.rho + problem.initial_overlap)[0, 0]
        steps = inputs.mean.shape[0]

        def iterate(scaled: Kernels, args):
            kernels = Kernels(scaled.correlation * scale, scaled.overlap * scale, scaled.response)
            gradients, of_samples = _field(problem, inputs, kernels, randomness, metrics.fields)
            kernels, law = _weights(problem, inputs, gradients)
            return Kernels(kernels.correlation / scale, kernels.overlap / scale, kernels.response), (kernels, law, of_samples)

        nothing = jnp.zeros((steps, steps), inputs.mean.dtype)
        first, _ = _weights(problem, inputs, Gradients(nothing, nothing, nothing[0]))
        first = Kernels(first.correlation / scale, first.overlap / scale, first.response)
        iteration = optimistix.FixedPointIteration(rtol=self.tolerance, atol=self.tolerance, damp=self.damping)
        # The map's Jacobian, (steps²)², is never built: nilpotent, causality again, it is easy on GMRES.
        adjoint = optimistix.ImplicitAdjoint(lineax.GMRES(self.tolerance, self.tolerance))
        found = optimistix.fixed_point(
            lambda scaled, args: iterate(scaled, args)[0],
            iteration,
            first,
            max_steps=self.max_iterations,
            adjoint=adjoint,
            throw=False,
        )
        # Once more, outside: what a fixed-point solve hands back on the side has no derivative.
        _, (kernels, law, (train_loss, train_error, train_metrics, curvature)) = iterate(found.value, None)
        correlation, overlap, norm, response = (
            as_column(a) for a in (kernels.correlation, kernels.overlap, law.norm, kernels.response)
        )
        measured = Measured(metrics.fields, train_metrics, _weight_metrics(problem, law, metrics.weights))
        kernels = correlation, overlap, norm
        observables = from_kernel(problem, *kernels, train_loss, train_error, problem.rho, response, measured)
        return Outcome(observables, found.result == optimistix.RESULTS.successful, curvature)


def _field(
    problem: Problem, inputs: Inputs, kernels: Kernels, draws: Draws, fields: dict[str, AbstractFieldMetric]
) -> tuple[Gradients, tuple[Array, Array | None, dict[str, Array], Curvature]]:
    """Averages over the samples of the field process; train loss and error (time,), train metrics (time, ...), curvature."""
    task, rho = problem.task, problem.rho[0, 0]
    root = jnp.sqrt(rho)
    steps = inputs.mean.shape[0]
    times = jnp.arange(steps + 1)
    alignment = kernels.overlap / root
    factor = _semidefinite_cholesky(kernels.correlation - jnp.outer(alignment, alignment), jnp.diagonal(kernels.correlation))
    memory = jnp.pad(kernels.response, ((0, 0), (0, 1))) / problem.delta
    # At the last time fields are read, but nothing is updated.
    mean, deviation = jnp.append(inputs.mean, 0.0), jnp.append(inputs.deviation, 0.0)

    def batch(teacher, label, normals, multipliers):
        xi, y = task.sample(teacher, label, root)
        count = xi.shape[0]

        def advance(past, x):
            g, tangents = past
            k, w, memory, mean, M = x
            r = w - memory @ g
            # d r_k / d w_j = 1[k = j] - (1/delta) sum_i R(k, i) d g_i / d w_j
            moved = jnp.where(times == k, 1.0, 0.0)[:, None] - jnp.tensordot(memory, tangents, 1)
            l, slope, error = task.gradient(r, y), task.curvature(r, y), task.error(r, y)
            # M_k does not depend on what came before k, so its mean can stand for it in every average with the past.
            averages = (
                mean * (g @ l) / count,
                jnp.mean(l**2),
                mean * (moved @ slope) / count,
                mean * jnp.mean(l * xi) * root,
                jax.lax.stop_gradient((jnp.mean(slope), jnp.mean(slope**2))),
                jnp.mean(task.loss(r, y)),
                None if error is None else jnp.mean(error),
                jax.tree.map(lambda a: a / count, field_sums(fields, task, r[None], y, mirror=True)),
            )
            return (g.at[k].set(l * M), tangents.at[k].set((slope * M)[None] * moved)), averages

        M = mean[:, None] + deviation[:, None] * jnp.pad(multipliers, ((0, 1), (0, 0)))
        w = alignment[:, None] * xi[None] + factor @ normals
        start = jnp.zeros((steps + 1, count), w.dtype), jnp.zeros((steps + 1, steps + 1, count), w.dtype)
        return jax.lax.scan(advance, start, (times, w, memory, mean, M))[1]

    # The tangents (time, time, sample) and a copy of them stay below about 200 MB.
    samples = draws.teacher.shape[0]
    together = max(1, int(1e8 / (mean.dtype.itemsize * (steps + 1) ** 2)))
    batches = next(n for n in range(1, samples + 1) if samples % n == 0 and samples // n <= together)
    split = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(*a.shape[:-1], batches, -1), -2, 0), draws)
    means = jax.lax.map(lambda d: batch(d.teacher, d.label, d.normals, d.multipliers), split)
    means = jax.tree.map(lambda a: jnp.mean(a, axis=0), means)
    product, second, response, with_teacher, (slope, square), train_loss, train_error, train_metrics = means
    quadratic = jax.lax.stop_gradient(second / jnp.maximum(2 * train_loss, jnp.finfo(train_loss.dtype).tiny))
    product, second, response = product[:-1, :-1], (mean**2 + deviation**2) * second, response[:-1, :-1]
    # E[g_k w_star] = rho R_g(k, *) + sum_j R_g(k, j) E[w_j w_star], which needs no derivative of the label law.
    toward = (with_teacher[:-1] - response @ kernels.overlap[:-1]) / rho
    of_samples = train_loss, train_error, train_metrics, Curvature(as_column(slope), square, quadratic)
    return Gradients(product + product.T + jnp.diag(second[:-1]), response, toward), of_samples


def _weights(problem: Problem, inputs: Inputs, gradients: Gradients) -> tuple[Kernels, Law]:
    """The kernels and the law of the weights, linear in theta_0, theta_star and u in each eigenvalue group."""
    features = problem.features
    steps = inputs.mean.shape[0]
    pull = jnp.pad(gradients.response, ((0, 0), (0, 1)))

    def group(eigenvalue, teacher_scale, student_scale):
        # Row k: theta_k in terms of theta_0 and of what is added in the update that makes theta_1, theta_2, ...
        # (A batched triangular solve would do it, but two at once deadlock on two CPU threads, in jaxlib 0.10.)
        def advance(rows, x):
            k, shrinkage, pull = x
            new = (1 - shrinkage) * rows[k] - eigenvalue * pull @ rows
            return rows.at[k + 1].set(new.at[k + 1].set(1.0)), None

        start = jnp.zeros((steps + 1, steps + 1), pull.dtype).at[0, 0].set(1.0)
        propagator, _ = jax.lax.scan(advance, start, (jnp.arange(steps), inputs.shrinkage, pull))
        free, response = propagator[:, 0], propagator[:, 1:]
        toward = -eigenvalue * response @ gradients.teacher
        gaussian = eigenvalue / problem.delta * response @ gradients.correlation @ response.T
        correlation = student_scale**2 * jnp.outer(free, free) + teacher_scale**2 * jnp.outer(toward, toward) + gaussian
        entries = jnp.stack([teacher_scale * toward, student_scale * free], axis=1)
        return (correlation, teacher_scale**2 * toward, response), (entries, jnp.diagonal(gaussian))

    # Each column is one normal of its own here.
    scales = jnp.moveaxis(jnp.diagonal(problem.initial, axis1=1, axis2=2), 1, 0)
    moments, (entries, variance) = jax.vmap(group)(features.eigenvalues, *scales)
    shares = features.weights * features.eigenvalues
    kernels = Kernels(*(jnp.tensordot(shares, a, 1) for a in moments))
    norm = features.weights @ jnp.diagonal(moments[0], axis1=1, axis2=2)
    return kernels, Law(norm, jnp.swapaxes(entries, 0, 1), jnp.swapaxes(variance, 0, 1))


def _weight_metrics(problem: Problem, law: Law, weights: dict[str, AbstractWeightMetric]) -> dict[str, Float[Array, "time ..."]]:
    if not weights:
        return {}
    nodes, theta_star = coordinate_nodes(problem)

    def at(law):
        entries, variance = law
        theta = linear_values(entries[None], variance[:, None, None], nodes)
        return weight_means(weights, problem.task, theta, theta_star, problem.features.weights)

    return jax.lax.map(at, (law.entries, law.variance))


def _semidefinite_cholesky(covariance: Float[Array, "time time"], size: Float[Array, " time"]) -> Float[Array, "time time"]:
    """Lower triangular L with L L^T = covariance, which may be singular: without noise paths are smooth, and a student that
    starts at 0 is no direction at all. A time whose residual variance is below eps^(2/3) of `size` (4e-11 in float64, far below
    sampling error, yet above the rounding of the residual itself) gets no normal of its own. Jitter would do as well, but not at
    times of variance 0; a symmetric root would let the future change the past, and lose convergence in finitely many steps."""
    times = jnp.arange(covariance.shape[0])
    floor = float(jnp.finfo(covariance.dtype).eps) ** (2 / 3)

    def column(L, k):
        rest = covariance[:, k] - L @ L[k]
        kept = rest[k] > floor * size[k]
        new = jnp.where(kept & (times >= k), rest / jnp.sqrt(jnp.where(kept, rest[k], 1.0)), 0.0)
        return L.at[:, k].set(new), None

    return jax.lax.scan(column, jnp.zeros_like(covariance), times)[0]
