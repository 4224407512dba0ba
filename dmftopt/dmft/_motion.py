"""How one time step moves the weights: equations (10) to (16) of README.md."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..numerics.matrices import exponential, inverse_root, of_symmetric, rank_floor
from ..problem import Problem
from ..problem.features import Features
from ._adaptive import Gains
from ._fields import Pull
from ._rows import Family, combined
from ._solver import Inputs
from ._step import AbstractStep, Factors
from ._weights import Space


class Drive(NamedTuple):
    """The drift of the weights per eta D, less its linear part (10): on the weights' own basis and on the zetas; and `bend`, that
    of the regularizer per eta D ridge, None where that is linear."""

    weights: Float[Array, "m group basis"]
    zetas: Float[Array, "m zeta"]
    bend: Float[Array, "m group basis"] | None


class Last(NamedTuple):
    """What the step before saw: mean curvature of the loss, mean slope of the regularizer's gradient, root of the noise power
    E[l l^T], and drive. `slope` and `drive` are None where parameters are trained, which are not extrapolated."""

    curvature: Float[Array, "m m"]
    power_root: Float[Array, "m m"]
    slope: Float[Array, " group"] | None
    drive: Drive | None


def before(problem: Problem, theta: Float[Array, "m group basis"], zetas: int) -> Last:
    """For the first step, which makes no use of it."""
    m, groups, _ = theta.shape
    nothing = jnp.zeros((m, m), theta.dtype)
    if not problem.direct:
        return Last(nothing, nothing, None, None)
    still = jnp.zeros_like(theta)
    drive = Drive(still, jnp.zeros((m, zetas), theta.dtype), None if problem.linear_weights else still)
    return Last(nothing, nothing, jnp.zeros(groups, theta.dtype), drive)


def trained(problem: Problem, theta: Float[Array, "m group basis"]) -> Float[Array, "*component m group basis"]:
    """What training moves: the weights, or parameters of theirs."""
    return theta if problem.direct else problem.parametrization.parameters(theta)


def weights(problem: Problem, trained: Float[Array, "*component m group basis"]) -> Float[Array, "m group basis"]:
    return trained if problem.direct else problem.parametrization.weights(trained)


class Plan(NamedTuple):
    """How the weights are moved: `step`; `gains` of a coordinatewise update, None for SGD, and its `overlap`; an `optimizer` of
    optax in place of the step, with its `state`; `velocity` where there is friction; `order` of the derivatives that must be
    right."""

    step: AbstractStep
    gains: Gains | None
    overlap: float
    optimizer: Any
    state: PyTree
    velocity: Float[Array, "*component m group basis"] | None
    order: int


def as_floats(state: PyTree) -> PyTree:
    """The state of an optimizer, as what can be differentiated: whole numbers too."""
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) else a.astype(float), state)


def move(
    problem: Problem,
    plan: Plan,
    x: Inputs,
    space: Space,
    trained: Float[Array, "*component m group basis"],
    known: Float[Array, "m_star group basis"],
    phi: tuple[Family, Float[Array, "m coordinate"]],
    pull: Pull,
    last: Last,
    k: Array,
) -> tuple[Float[Array, "*component m group basis"], Last, Float[Array, "m group zeta"] | None, PyTree]:
    """What is trained at the next time (without momentum), what this step saw, what it added on the zetas to the weights
    themselves, None if it is not those that are trained, and the optimizer's state or the velocity. `phi`: of the steps before,
    and the new ones."""
    step, order = plan.step, plan.order
    m, rows, count = pull.zetas.shape
    # What moves the weights is larger than its part along the features.
    root_delta = plan.overlap * jnp.sqrt(problem.delta)
    on_zetas = pull.zetas.reshape(m, rows * count) / root_delta
    swing = jnp.zeros_like(pull.zetas)
    if count > m:
        # Behind those of the mean gradients: the directions of the swings.
        swing = swing.at[:, k, m:].set(step.ahead(pull.power_root, last.power_root, x.ratio))
    swing = x.deviation * (swing.reshape(m, rows * count) / root_delta)
    if x.epoch_start is not None:
        # What the mean gradient shares with the directions of this epoch is noise too, of the samples still to be visited in it
        # (33): it is taken like the swing, of which it is the other part.
        power = pull.power_root @ pull.power_root
        mine = jnp.repeat(jnp.arange(rows, dtype=on_zetas.dtype) >= x.epoch_start, count)[None]
        ahead = step.ahead(pull.power_root, last.power_root, x.ratio) @ inverse_root(power, rank_floor(power), order)
        swing = swing + x.mean * ahead @ jnp.where(mine, on_zetas, 0.0)
        on_zetas = jnp.where(mine, 0.0, on_zetas)
    past, new = phi
    of_past = jnp.where(jnp.arange(rows)[:, None] < k, pull.phi, 0.0).reshape(m, -1)
    on_phi = jnp.stack([combined(c, past) for c in of_past]) + pull.phi[:, k] @ new
    drift = jnp.tensordot(pull.known, known, 1) + on_phi.reshape(m, *known.shape[1:])
    drift = jnp.sqrt(problem.features.eigenvalues)[None, :, None] * drift
    if plan.optimizer is not None:
        moved, state = _move_by_optimizer(problem, plan, x, space, trained, drift, on_zetas, swing)
        # Nothing is extrapolated.
        return moved, last, None, state
    if x.friction is not None and plan.velocity is not None:
        return _move_with_velocity(problem, step, x, space, trained, plan.velocity, drift, on_zetas, swing, pull, last)
    if problem.direct:
        return *_move_weights(problem, step, x, space, trained, drift, on_zetas, swing, pull, last, order, plan.gains), None
    moved = _move_parameters(problem, x, space, trained, drift, on_zetas, swing)
    return moved, Last(pull.curvature, pull.power_root, None, None), None, None


def _move_weights(problem, step, x, space, theta, drift, on_zetas, swing, pull, last, order, gains):
    """Equation (13):

    theta_{k+1} = theta_k - f (x theta_k + eta D drive_k) - c eta D (drive_k - drive_{k-1}) - s sqrt(lambda) swing."""
    regularizer, m = problem.regularizer, theta.shape[0]
    slope = jnp.mean(regularizer.slope(theta), axis=(0, 2))
    bend = None if problem.linear_weights else regularizer.gradient(theta) - slope[None, :, None] * theta
    linear = problem.features.eigenvalues[None, :, None] * jnp.tensordot(pull.curvature, theta, 1)
    drive = Drive(drift - linear, on_zetas, bend)
    now_seen = Last(pull.curvature, pull.power_root, slope, drive)
    # Equation (11): x = D eta (lambda E[l'] + ridge h'), a matrix over the columns in each group.
    curvature = step.ahead(pull.curvature, last.curvature, x.ratio)
    before, half = last.drive, None
    if gains is not None:
        half = jnp.sqrt(gains.columns)
        theta, drive, before, swing = _in_gains(half, theta, drive, before, swing)
        curvature = half[:, None] * curvature * half[None]
    features = problem.features if gains is None else gains.seen(problem.features)
    shrinkage = x.shrinkage * step.ahead(slope, last.slope, x.ratio)[:, None]
    decay = x.mean * features.eigenvalues[:, None, None] * curvature[None] + shrinkage[:, None] * jnp.eye(m)[None]
    excess = curvature_ratio(features, problem.delta)[:, None]

    def factors(excess):
        pace = x.mean * features.eigenvalues[:, None]
        return of_symmetric(lambda h: step.factors(pace * h[None] + shrinkage, x.ratio, excess), curvature, order)

    f, s, c = factors(excess)
    if x.epoch_start is not None:
        # Within an epoch samples are fresh: a kick decays by the population's curvature.
        s = factors(jnp.ones_like(excess))[1]
    root, group = jnp.sqrt(problem.features.eigenvalues), 1.0 if gains is None else gains.groups[None, :, None]

    def on_basis(drive):
        weights = x.mean * group * drive.weights
        return weights if drive.bend is None else weights + x.shrinkage * drive.bend

    now, then = on_basis(drive), on_basis(before)
    kicks = x.mean * (_each_group(f, drive.zetas) + _each_group(c, drive.zetas - before.zetas)) + _each_group(s, swing)
    kicks = -root[None, :, None] * group * kicks
    moved = theta - _within(f, _within(decay, theta) + now) - _within(c, now - then)
    if half is not None:
        moved, kicks = half[:, None, None] * moved, half[:, None, None] * kicks
    return space.add_zetas(moved, kicks), now_seen, kicks


def _in_gains(half, theta, drive, before, swing):
    """In the columns' units in which rates are equal and curvatures symmetric, theta / `half`."""
    wide = half[:, None, None]

    def of(drive):
        bend = None if drive.bend is None else drive.bend / wide
        return Drive(wide * drive.weights, half[:, None] * drive.zetas, bend)

    return theta / wide, of(drive), of(before), half[:, None] * swing


def _move_parameters(problem, x, space, parameters, drift, on_zetas, swing):
    """p_{k+1} = p_k - df/dp (eta D drift_k + sqrt(lambda) swing) - eta D ridge h(p_k), equation (16)."""
    kicks = jnp.sqrt(problem.features.eigenvalues)[None, :, None] * (x.mean * on_zetas + swing)[:, None]
    pulled = problem.parametrization.pull(parameters, space.add_zetas(x.mean * drift, kicks))
    return parameters - pulled - x.shrinkage * problem.regularizer.gradient(parameters)


def _move_with_velocity(problem, step, x, space, theta, velocity, drift, on_zetas, swing, pull, last):
    """Equation (37): theta' = v, v' = -gamma v - eta (lambda H + ridge) theta - eta drive, exactly but for the drive, which is
    linear in time, and the noise, which kicks v in the middle of the step."""
    m, lam, D = theta.shape[0], problem.features.eigenvalues, jnp.where(x.durations > 0, x.durations, 1.0)
    drive = Drive(drift - lam[None, :, None] * jnp.tensordot(pull.curvature, theta, 1), on_zetas, None)
    curvature = step.ahead(pull.curvature, last.curvature, x.ratio)
    one, none = jnp.eye(m, dtype=theta.dtype), jnp.zeros((m, m), theta.dtype)

    def propagators(lam):
        """From position, velocity, drive and its change to position and velocity after the step, and from a kick, halfway."""
        pull_back = x.mean / D * lam * curvature + x.shrinkage / D * one
        A = jnp.block([[none, one], [-pull_back, -x.friction * one]])
        forced = jnp.concatenate([none, -x.mean / D * one])
        zero = jnp.zeros((2 * m, m), theta.dtype)
        rows = [jnp.block([[D * A, D * forced, zero]]), jnp.block([[zero.T, none, one]]), jnp.block([[zero.T, none, none]])]
        # The change is reached at the end of the step.
        return exponential(jnp.concatenate(rows))[: 2 * m], exponential(0.5 * D * A)[:, m:]

    whole, half = jax.vmap(propagators)(lam)
    from_state, from_drive, from_change = whole[:, :, : 2 * m], whole[:, :, 2 * m : 3 * m], whole[:, :, 3 * m :]
    change = Drive(x.ratio * (drive.weights - last.drive.weights), x.ratio * (drive.zetas - last.drive.zetas), None)
    root = jnp.sqrt(lam)[None, :, None]
    kicks = root * (_each_group(from_drive, drive.zetas) + _each_group(from_change, change.zetas) - _each_group(half, swing))
    moved = _within(from_state, jnp.concatenate([theta, velocity]))
    moved = moved + _within(from_drive, drive.weights) + _within(from_change, change.weights)
    moved = space.add_zetas(moved, kicks)
    slope = last.slope
    return moved[:m], Last(pull.curvature, pull.power_root, slope, drive), None, moved[m:]


def _move_by_optimizer(problem, plan: Plan, x, space, parameters, drift, on_zetas, swing):
    """p_{k+1} = p_k + eta D update(df/dp (drive + swing / (eta D)) + ridge h(p)), equation (36)."""
    moves = x.mean > 0
    pace = jnp.where(moves, x.mean, 1.0)
    kicks = jnp.sqrt(problem.features.eigenvalues)[None, :, None] * (on_zetas + swing / pace)[:, None]
    gradient = space.add_zetas(drift, kicks)
    if not problem.direct:
        gradient = problem.parametrization.pull(parameters, gradient)
    gradient = gradient + x.shrinkage / pace * problem.regularizer.gradient(parameters)
    kinds = jax.eval_shape(plan.optimizer.init, parameters)
    before = jax.tree.map(lambda a, kind: a.astype(kind.dtype), plan.state, kinds)
    # Optax raises numbers to counts, which strict promotion would not have.
    with jax.numpy_dtype_promotion("standard"):
        updates, state = plan.optimizer.update(gradient, before, parameters)
    return parameters + x.mean * updates, as_floats(state)


def _within(matrix: Float[Array, "group out m"], vectors: Float[Array, "m group basis"]) -> Float[Array, "out group basis"]:
    return jnp.einsum("gab,bgz->agz", matrix, vectors)


def _each_group(matrix: Float[Array, "group out m"], vectors: Float[Array, "m zeta"]) -> Float[Array, "out group zeta"]:
    return jnp.einsum("gab,bz->agz", matrix, vectors)


def decay_factors(step: AbstractStep, x: Inputs, features: Features, delta: Array) -> Float[Array, "group step"]:
    """By what a step multiplies weights that the loss does not see, in each group: 1 - f D eta ridge."""
    excess = curvature_ratio(features, delta)[:, None]
    shrinkage, ratio = (jnp.broadcast_to(a, (features.groups, a.size)) for a in (x.shrinkage, x.ratio))
    factors: Factors = step.factors(shrinkage, ratio, excess)
    return 1 - shrinkage * factors.drift


def curvature_ratio(features: Features, delta: Array) -> Float[Array, " group"]:
    """Largest ratio of sample to population curvature in each eigenvalue group, equation (14).

    A bulk of r d equal eigenvalues on n = delta d samples has a largest sample eigenvalue of (1 + sqrt(r / delta))² times
    its own. Here r counts, smoothly and never too low, the share of dimensions whose eigenvalue is comparable or larger, and
    the smaller ones in proportion: 1 for isotropic features, near 0 for a spike (which needs no such care).
    """
    ratio = features.eigenvalues[None, :] / features.eigenvalues[:, None]
    rank = jnp.sum(features.weights[None] * 2 * ratio / (1 + ratio), axis=1)
    return (1 + jnp.sqrt(rank / delta)) ** 2
