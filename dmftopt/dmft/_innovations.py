"""One step of the causal innovations scheme, equations (4) to (17) of README.md, and what is kept of it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..protocol.noise import Multipliers
from ..protocol.updates import is_coordinatewise
from ..results.measure import weight_means
from . import _adaptive as adaptive
from . import _fields as fields
from . import _motion as motion
from . import _weights as weights
from ._adaptive import Scale
from ._fields import Past, Sample
from ._motion import Last
from ._orthogonal import as_family
from ._rows import Family
from ._solver import Curvature, Inputs


class History(NamedTuple):
    """Block k is written at step k: the directions (column sample) of the gradients, first the m mean gradients', then the m
    swings', phi, and in epochs what the directions of the samples' twins have more."""

    gradients: Family
    phi: Family
    differences: Family | None


class State(NamedTuple):
    """What is trained (the weights, or their parameters, component first), what the step before saw, the memory of a momentum,
    that of an adaptive update, and the state of an optimizer, as floats."""

    trained: Float[Array, "*component m group basis"]
    last: Last
    memory: Float[Array, "*component m group basis"] | None
    scale: Scale | None
    optimizer: PyTree


class Constants(NamedTuple):
    """The random numbers that no parameter enters."""

    innovations: Float[Array, "column *sample"]
    multipliers: Multipliers | None
    zetas: Float[Array, "zeta particle"] | None


class Parameters(NamedTuple):
    """The real numbers of problem, step and metrics; the known directions of the weights; what the samples come with; for
    metrics of the weights, nodes of a coordinate's law and theta_star there."""

    numbers: PyTree
    known: Float[Array, "m_star group basis"]
    sample: Sample
    nodes: Float[Array, "m_star+2m node"] | None
    theta_star: Float[Array, "m_star group coordinate"] | None


class Readout(NamedTuple):
    """Per step: products with the known directions and L(k, :) over all rows, losses over the samples, E[theta theta^T],
    metrics, curvature of the loss. Where the noise tells the response: of each group and each step's swing normals, their
    coefficients in theta_k, and what this step adds to them in theta_{k+1}."""

    known: Float[Array, "m m_star"]
    L: Float[Array, "m row m"]
    train_loss: Array
    train_error: Array | None
    norm: Float[Array, "m m"]
    train_metrics: dict[str, Array]
    weight_metrics: dict[str, Array]
    curvature: Curvature
    reached: Float[Array, "m group row m"] | None
    added: Float[Array, "m group row m"] | None


class Advance:
    """(constants, parameters, inputs, state, history, k) -> (state, row of the history, readout): what an adjoint scans.
    `static`: what is no number in problem, step and metrics. `tells`: whether the noise tells the response. `order`: of the
    derivatives that must be right. `optimizer`: of optax, None for plain steps."""

    def __init__(self, static: Any, tells: bool, order: int, optimizer: Any):
        self.static, self.tells, self.order, self.optimizer = static, tells, order, optimizer

    def __call__(
        self, constants: Constants, parameters: Parameters, x: Inputs, state: State, history: History, k: Int[Array, ""]
    ) -> tuple[State, History, Readout]:
        problem, step, metrics, update = eqx.combine(parameters.numbers, self.static)
        task, features, sample = problem.task, problem.features, parameters.sample
        space = weights.space(problem, constants.zetas)
        theta = motion.weights(problem, state.trained)
        past = _past(problem.m, constants, history, x, k)

        # Weights to fields.
        reading = weights.read(theta, parameters.known, not task.mixture, history.phi, past.written, k, features, space)
        if update is not None:
            # Of what moves the weights, the part that the features know (34).
            reading = reading._replace(P=update.overlap * reading.P)
        r = fields.fields(reading, sample, past, problem.delta)
        multipliers = jax.tree.map(lambda a: a[k], constants.multipliers)
        # Fields to weights.
        at = r if past.differences is None else fields.of_twins(reading, r, past, problem.delta)
        gradient = fields.gradient(task, r, at, sample.labels, multipliers, x.waiting)
        gains, scale = None, None
        if update is not None and state.scale is not None:
            gains, scale = adaptive.gains(update, problem, state.scale, fields.power(gradient), x)
        elif is_coordinatewise(update):
            gains = adaptive.fixed(problem, r.dtype)
        gradient = fields.with_swing(task, step, x, problem, at, sample.labels, gradient, multipliers, gains)
        mean, swing = fields.means(task, gradient, r, sample, past, k, metrics.fields)
        pull, new, differences = fields.directions(gradient, mean, swing, past, k, self.order)
        overlap = 1.0 if update is None else update.overlap
        plan = motion.Plan(step, gains, overlap, self.optimizer, state.optimizer, state.memory, self.order)
        moved, last, kicks, carried = motion.move(
            problem, plan, x, space, state.trained, parameters.known, (history.phi, reading.phi), pull, state.last, k
        )
        memory, optimizer = None, None
        if x.friction is not None:
            memory = carried
        else:
            optimizer = carried
        if x.momentum is not None and state.memory is not None:
            moved, memory = x.momentum.carry(state.trained, moved, state.memory)

        def of_swings(zetas):
            if zetas is None or not self.tells:
                return None
            return zetas.reshape(problem.m, features.groups, past.written.size, -1)[..., problem.m :]

        weight_metrics = {}
        if metrics.weights and parameters.theta_star is not None:
            values = space.values(theta, parameters.nodes)
            weight_metrics = weight_means(metrics.weights, task, values, parameters.theta_star, features.weights)
        readout = Readout(
            reading.known,
            reading.L,
            mean.loss,
            mean.error,
            weights.norm(theta, features, space),
            mean.metrics,
            weight_metrics,
            mean.curvature if gains is None else mean.curvature.scaled(gains.columns),
            of_swings(reading.zetas),
            of_swings(kicks),
        )
        if differences is not None:
            # What is written is to depend on everything that is read: XLA copies an array of a loop, at each step, that something
            # else may still want as it was.
            new = new + 0 * differences
        row = History(as_family(new), reading.phi, None if differences is None else as_family(differences))
        return State(moved, last, memory, scale, optimizer), row, readout


def _past(m: int, constants: Constants, history: History, x: Inputs, k: Int[Array, ""]) -> Past:
    rows, dtype = constants.innovations.shape[0] // m, constants.innovations.dtype
    written = (jnp.arange(rows) < k).astype(dtype)
    differences = of_epoch = None
    if history.differences is not None and x.epoch_start is not None:
        differences = history.differences
        of_epoch = jnp.where(jnp.arange(rows, dtype=dtype) >= x.epoch_start, written, 0.0)
    return Past(history.gradients, constants.innovations, written, differences, of_epoch)
