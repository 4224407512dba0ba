"""The causal innovations scheme: one pass over the time steps. Equations: README.md in this folder.

Two orthonormal families grow as time goes on. On the field side, the gradients of a population of samples: each direction g^_j
owns a fresh weight-side normal zeta_j. On the weight side, the weights theta~ = sqrt(lambda) theta themselves: each direction
phi_j owns a fresh field-side normal xi_j. Bolthausen's conditioning argument turns the Gaussian feature matrix into these
normals, so the two sides (`_fields`, `_weights`) meet only through the numbers L, P (weights to fields) and G, S (fields to
weights).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._checks import check_count, check_instance, front_door
from .._optimizers import check_elementwise
from ..problem import Problem
from ..protocol.updates import is_adaptive, is_coordinatewise
from ..results.measure import Measured, Metrics, coordinate_nodes
from ..results.observables import Observables, from_kernel
from ..tasks import columns as columns
from . import _adaptive as adaptive
from . import _motion as motion
from . import _points
from . import _weights as weights
from ._adjoint import AbstractAdjoint, WriteOnceAdjoint
from ._fields import Sample
from ._innovations import Advance, Constants, History, Parameters, Readout, State
from ._orthogonal import as_family
from ._points import Points
from ._response import is_told, response
from ._sobol import MAX_DIMENSION
from ._solver import AbstractSolver, Inputs, Outcome
from ._step import AbstractStep, DiscreteStep, ExponentialStep
from ._weights import Start

# Every column gets a direction in each step, orthonormal in the sample: fewer samples for each leave a bias of several percent.
SAMPLES_PER_DIRECTION = 16


def enough_samples(columns: int, steps: int) -> int:
    """The least power of two that is enough for so many steps of so many columns."""
    return 1 << (SAMPLES_PER_DIRECTION * columns * steps - 1).bit_length()


@front_door
class CausalInnovations(AbstractSolver):
    """The default solver: one causal pass, O(samples * steps²) time, O(samples * steps) memory, no iteration, no kernel ever
    inverted.

    - `samples`: population size of the field side, a power of two, at least 16 for each column and step.
    - `step`: `ExponentialStep()` (continuous time, second order; the default), `DiscreteStep()` (one update of the algorithm per
      grid step; the default for noise that is discrete by nature), or your own.
    - `particles`: with the ridge the law of the weights is known exactly; with another regularizer or a parametrization it is
      sampled, by so many coordinates (a power of two) in each eigenvalue group.
    - `sample_weights`: sample it with the ridge too, to check one against the other.
    - `optimizer`: any elementwise optax transformation, such as `optax.adam(0.1)`, in place of the plain step of full-batch or
      extensive-batch descent (noise `NoNoise()` or `Bernoulli()`, `DiscreteStep()`): sampled weights, which carry its state,
      theta <- theta + eta D update(gradient), where the gradient is d times the mean one, plus ridge h. Leave eta at 1.
    - `adjoint`: how it is differentiated, `WriteOnceAdjoint()` (reverse mode, little memory) or `DirectAdjoint()` (forward mode
      and second derivatives too).
    """

    samples: int = eqx.field(static=True, default=4096)
    step: AbstractStep | None = None
    particles: int = eqx.field(static=True, default=4096)
    sample_weights: bool = eqx.field(static=True, default=False)
    adjoint: AbstractAdjoint = WriteOnceAdjoint()
    optimizer: optax.GradientTransformation | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.optimizer is not None:
            check_elementwise(self.optimizer)
        for name in ("samples", "particles"):
            count = getattr(self, name)
            check_count(name, count, minimum=4)
            if count & (count - 1):
                raise ValueError(f"{name} must be a power of two (Sobol points), got {count}. Use {1 << count.bit_length()}.")
        if self.step is not None:
            check_instance("step", self.step, AbstractStep, "Pass ExponentialStep() or DiscreteStep().")
        check_instance("adjoint", self.adjoint, AbstractAdjoint, "Pass WriteOnceAdjoint() or DirectAdjoint().")

    def step_for(self, noise):
        if self.step is not None:
            return self.step
        return DiscreteStep() if noise.discrete else ExponentialStep()

    def _particles(self, linear_weights: bool) -> int:
        """0 where the weights are exact: the one place that decides it."""
        return self.particles if self.sample_weights or self.optimizer is not None or not linear_weights else 0

    def check(self, problem, protocol, noise, steps):
        if self.optimizer is not None:
            algorithm = not self.step_for(noise).continuous and (noise.discrete or noise.deterministic)
            if not algorithm or protocol.momentum is not None or protocol.update is not None:
                raise ValueError(
                    "optimizer: it goes with full or extensive batches, noise.NoNoise() or noise.Bernoulli(fraction) and "
                    "step=DiscreteStep(), without momentum or update. At small batches use Protocol(update=updates.Adam(...))."
                )
        if self.step_for(noise).continuous and not problem.direct:
            raise ValueError(
                "step: with a parametrization the noise depends on the weights. Pass DiscreteStep() (of first order)."
            )
        if protocol.friction is not None and (not self.step_for(noise).continuous or not problem.linear_weights):
            raise ValueError("friction goes with continuous time, direct weights and regularizers.Ridge(). Leave step out.")
        if is_coordinatewise(protocol.update) and (noise.deterministic or noise.discrete or not problem.direct):
            raise ValueError(
                "update: gradients are taken to be dominated by the noise of small batches. Use noise.Poisson() or "
                "noise.Shuffled(), without a parametrization."
            )
        dimensions = _points.dimensions(steps, noise, problem.m, problem.m_star)
        if dimensions > MAX_DIMENSION:
            raise ValueError(f"steps: {steps} need {dimensions} Sobol dimensions, of at most {MAX_DIMENSION}. Use fewer steps.")
        needed = SAMPLES_PER_DIRECTION * problem.m * steps
        if self.samples < needed:
            raise ValueError(
                f"samples must be at least {needed}, {SAMPLES_PER_DIRECTION} for each column and step, got {self.samples}: with "
                f"fewer the bias is several percent. Pass samples={enough_samples(problem.m, steps)}, or use fewer steps."
            )
        needed = 8 * problem.m * _points.zeta_parts(noise) * (steps + 1)
        if 0 < self._particles(problem.linear_weights) < needed:
            raise ValueError(
                f"particles must be at least {needed}, 8 for each direction of a gradient, got {self.particles}. Pass "
                f"solver=CausalInnovations(particles={1 << (needed - 1).bit_length()}), or use fewer steps."
            )

    def memory(self, problem, noise, steps):
        m, m_star, times = problem.m, problem.m_star, steps + 1
        parts, random = _points.zeta_parts(noise), 0 if noise.deterministic else 1
        innovations = (m + random) * times
        drawing = innovations + _points.dimensions(steps, noise, m, m_star) + noise.workspace * times
        # The history, in epochs with that of the samples' twins, and the curvatures of all samples with what they are made of.
        running = innovations + (2 if noise.in_epochs else 1) * parts * m * times + (2 * m**2 if m > 1 else 8)
        particles = self._particles(problem.linear_weights)
        sampled = particles * m * (4 * parts * times + problem.features.groups * times)
        # L, phi and correlation; with noise the response, that is what the zetas of each step reach in each group.
        two_times = (12 if random else 4) * problem.features.groups * (m * times) ** 2
        return self.samples * max(drawing, running) + sampled + two_times

    def draw(self, key, sizes, grid, noise, visits):
        particles = self._particles(sizes.linear_weights)
        return _points.draw(key, self.samples, grid, noise, visits, sizes.shards, sizes.m, sizes.m_star, particles)

    def run(self, problem, noise, inputs, randomness, metrics):
        step, m, times = self.step_for(noise), problem.m, inputs.mean.shape[0] + 1
        directions = _points.zeta_parts(noise) * m
        start, zetas = weights.start(problem, randomness, directions * times)
        nodes = theta_star = None
        if metrics.weights:
            nodes, theta_star = coordinate_nodes(problem) if zetas is None else (None, weights.teacher(start, problem.features))
        update = inputs.update
        numbers, static = eqx.partition((problem, step, metrics, update), eqx.is_inexact_array)
        constants, sample = _laid_out(problem, randomness, start, zetas)
        state = _start(problem, start, inputs, directions * times, self.optimizer)
        row = jax.eval_shape(lambda: _row(start, sample, directions, inputs))
        # One more step than there are updates, so that the fields at the last time are read; it does not move.
        xs = jax.tree.map(lambda value: jnp.append(value, 0.0), inputs._replace(update=None))
        if inputs.batch_size is not None:
            xs = xs._replace(batch_size=jnp.append(inputs.batch_size, 1.0))
        if inputs.epoch_start is not None:
            # It belongs to no epoch: all samples wait.
            xs = xs._replace(epoch_start=jnp.append(inputs.epoch_start, jnp.inf))
        tells = self.optimizer is None and inputs.friction is None and is_told(problem, inputs, not noise.deterministic)
        advance = Advance(static, tells, self.adjoint.order, self.optimizer)
        parameters = Parameters(numbers, start.known, sample, nodes, theta_star)
        out = self.adjoint.scan(advance, times, constants, parameters, xs, state, row)
        return Outcome(_observables(problem, step, inputs, start, metrics, out), jnp.asarray(True), out.curvature)


def _laid_out(problem: Problem, points: Points, start: Start, zetas: Array | None) -> tuple[Constants, Sample]:
    """What belongs to the samples, over the shards."""

    def laid_out(array):
        return array.reshape(*array.shape[:-1], points.shards, -1)

    known, labels = columns.sample(problem.task, points.teacher, points.label, start.root)
    multipliers = jax.tree.map(laid_out, points.multipliers)
    return Constants(as_family(laid_out(points.innovations)), multipliers, zetas), Sample(laid_out(known), laid_out(labels))


def _row(start: Start, sample: Sample, directions: int, inputs: Inputs) -> History:
    """Of the history, empty."""
    gradients = as_family(jnp.zeros((directions, *sample.labels.shape), sample.labels.dtype))
    phi = jnp.zeros_like(start.theta).reshape(start.theta.shape[0], -1)
    return History(gradients, phi, None if inputs.waiting is None else gradients)


def _start(problem: Problem, start: Start, inputs: Inputs, zetas: int, optimizer: Any) -> State:
    trained = motion.trained(problem, start.theta)
    scale = adaptive.before(problem.m, trained.dtype) if is_adaptive(inputs.update) else None
    last = motion.before(problem, start.theta, zetas)
    own = None if optimizer is None else motion.as_floats(optimizer.init(trained))
    memory = None if inputs.momentum is None else trained
    return State(trained, last, jnp.zeros_like(trained) if inputs.friction is not None else memory, scale, own)


def _observables(
    problem: Problem, step: AbstractStep, inputs: Inputs, start: Start, metrics: Metrics, out: Readout
) -> Observables:
    """Equations (18) to (22)."""
    times, m = out.L.shape[:2]
    L = out.L.reshape(times, m, -1)
    if not problem.task.mixture:
        L = jnp.concatenate([out.known, L], axis=2)
    correlation = jnp.einsum("kal,jbl->kjab", L, L)
    told = None
    if out.reached is not None and out.added is not None:
        told = response(problem, step, inputs, out.reached, out.added, out.curvature.mean)
    measured = Measured(metrics.fields, out.train_metrics, out.weight_metrics)
    return from_kernel(
        problem,
        correlation,
        out.known @ start.root,
        out.norm,
        out.train_loss,
        out.train_error,
        problem.rho,
        told,
        measured,
    )
