"""Differential equations driven by a protocol, stepped so that nothing it does is passed over."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from .._checks import check_count, check_instance, check_real
from ..numerics.quadrature import GAUSS_NODES, GAUSS_WEIGHTS
from ..protocol import Protocol
from ..protocol.grid import TimeGrid
from ..protocol.integrals import merged, node_times
from ..protocol.noise import AbstractNoise
from ..protocol.rates import knots, read
from ..results.codes import RESULTS, first_failure
from ._result import positive_or_one

# Equal panels in which a protocol is looked through before anything is integrated (and those between its knots): three times
# as many values are read.
_LOOKS = 2048
# And so many in equal steps of log time before the first of them, from such a share of the whole.
_EARLY, _FIRST = 384, 1e-9
# Panels of equal action in which the equations are stepped (and those between the knots, and between the times of the grid).
_PANELS = 32
# How far the integral of the learning rate that the equations took may be from what was seen in advance, of the whole.
AGREEMENT = 1e-3


class Stepping(NamedTuple):
    """How differential equations are stepped: relative error per step, most steps in a panel, and how derivatives pass through
    them."""

    tolerance: float
    max_steps: int
    adjoint: diffrax.AbstractAdjoint


def stepping(tolerance: float, max_steps: Any, adjoint: Any) -> Stepping:
    check_real("tolerance", tolerance, minimum=0.0, exclusive=True, cure="It is the relative error of a step.")
    check_count("max_steps", max_steps)
    check_instance("adjoint", adjoint, diffrax.AbstractAdjoint, "Pass for example diffrax.ForwardMode().")
    return Stepping(tolerance, max_steps, adjoint)


class Survey(NamedTuple):
    """What a protocol does, seen in advance.

    `quantiles`: increasing times between which it does equal parts of all it does. `bends`: those between which it is smooth, as
    far as it says. `clock`: the integral of the learning rate until each time of the grid. `fastest`: the largest learning rate.
    `valid`: whether all that was read is in its domain.
    """

    quantiles: Float[Array, " quantile"]
    bends: Float[Array, " knot"]
    clock: Float[Array, " time"]
    fastest: Float[Array, ""]
    valid: Bool[Array, ""]


def survey(protocol: Protocol, noise: AbstractNoise, grid: TimeGrid, panels: int = _PANELS) -> Survey:
    """A step that is controlled by its error alone grows over quiet times, and from there past what is brief. So time is divided
    at the quantiles of the mean of learning rate, temperature (each over its integral) and 1 / horizon."""
    times = grid.times
    bends = knots(protocol, times[-1])
    looks = times[-1] * jnp.concatenate([jnp.linspace(0.0, 1.0, _LOOKS + 1), jnp.geomspace(_FIRST, 1 / _LOOKS, _EARLY)])
    found, looks = merged(times, jnp.concatenate([bends, looks]))
    seen = coefficients(protocol, noise, node_times(looks, GAUSS_NODES))
    widths, weights = jnp.diff(looks), jnp.asarray(GAUSS_WEIGHTS, times.dtype)
    action, heat = ((values @ weights) * widths for values in (seen.learning_rate, seen.temperature))
    shares = jnp.stack([_share(part) for part in (action, heat, widths)])
    total = jnp.append(0.0, jnp.cumsum(jnp.mean(shares, axis=0)))
    quantiles = jnp.interp(jnp.arange(1, panels) / panels * total[-1], total, looks)
    clock = jnp.append(0.0, jnp.cumsum(action))[found]
    quantiles, fastest = jax.lax.stop_gradient((quantiles, positive_or_one(jnp.max(seen.learning_rate))))
    return Survey(quantiles, bends, clock, fastest, seen.valid)


class Coefficients(NamedTuple):
    """What a protocol does at some times: learning rate of gradients, temperature (its square / B; 0 without gradient noise),
    shrinkage (learning rate times ridge), batch size and friction, and whether they may be so."""

    learning_rate: Float[Array, "*time"]
    temperature: Float[Array, "*time"]
    shrinkage: Float[Array, "*time"]
    batch_size: Float[Array, "*time"]
    friction: Float[Array, "*time"] | None
    valid: Bool[Array, ""]


def coefficients(protocol: Protocol, noise: AbstractNoise, t: Float[Array, "*time"]) -> Coefficients:
    rates = read(protocol, t, batched=noise.batched)
    temperature = cast(Array, noise.temperature(rates.gradient_rate, rates.batch_size))
    shrinkage = rates.learning_rate * rates.ridge
    return Coefficients(rates.gradient_rate, temperature, shrinkage, rates.batch_size, rates.friction, rates.valid)


def trajectory(
    rates: Callable,
    state: Any,
    protocol: Protocol,
    noise: AbstractNoise,
    times: Float[Array, " time"],
    seen: Survey,
    how: Stepping,
    restarted: Callable = lambda state: state,
) -> tuple[Any, RESULTS]:
    """States at these times of d state / dt = rates(coefficients, state), NaN from the first that was not reached, and how
    it ended.

    The first entry of the state is the integral of the learning rate: where it is not what `seen` has, something was passed over.
    `restarted`: what becomes of the state at each of the times.
    """
    # Where the equations are cut changes nothing, but at a jump.
    at, edges = merged(times, jnp.concatenate([seen.quantiles, seen.bends]))

    def advance(state, panel):
        start, end, fresh = panel
        state = jax.tree.map(lambda new, old: jnp.where(fresh, new, old), restarted(state), state)
        width, rounding = end - start, 64 * jnp.finfo(end.dtype).eps * end

        def change(t, state):
            return jax.tree.map(lambda rate: width * rate, rates(coefficients(protocol, noise, t), state))

        def across(state):
            # Schedules may jump at the ends, where they are read from within.
            return _over_unit_time(
                lambda u, y: change(jnp.clip(start + width * u, start + rounding, end - rounding), y), state, how
            )

        def beside(state):
            # Edges that coincide: nothing happens, unless one of them moves, which is the knot, the last in order.
            moved = jax.tree.map(jnp.add, state, change(jnp.maximum(start - rounding, 0.0), state))
            return moved, RESULTS.successful

        state, result = jax.lax.cond(width > 2 * rounding, across, beside, state)
        return state, (state, result)

    first = jnp.zeros(edges.shape[0] - 1, bool).at[at[:-1]].set(True)
    _, (path, results) = jax.lax.scan(advance, state, (edges[:-1], edges[1:], first))
    path = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest[at[1:] - 1]]), state, path)
    # A clock that is NaN says nothing: that failure has another name.
    missed = jnp.abs(path[0] - seen.clock) > AGREEMENT * seen.clock[-1]
    missed = jnp.cumsum(missed) > 0
    path = jax.tree.map(lambda a: jnp.where(missed.reshape(-1, *[1] * (a.ndim - 1)), jnp.nan, a), path)
    result = first_failure(results)
    inaccurate = jnp.any(missed) & (result == RESULTS.successful)
    return path, RESULTS.where(inaccurate, RESULTS.inaccurate, result)


def drift(pull: Inexact[Array, "mode m m"], friction: Array | None) -> Inexact[Array, "mode rows rows"]:
    """K of d state / dt = -K state: `pull`, or where there is friction, of positions and velocities,

    position' = velocity        velocity' = -friction velocity - pull position."""
    if friction is None:
        return pull
    one = jnp.broadcast_to(jnp.eye(pull.shape[-1], dtype=pull.dtype), pull.shape)
    return jnp.block([[jnp.zeros_like(pull), -one], [pull, friction.astype(pull.dtype) * one]])


def pushed(force: Inexact[Array, "mode m column"], friction: Array | None) -> Inexact[Array, "mode rows column"]:
    """What a force does to the state: with friction it changes velocities only."""
    return force if friction is None else jnp.concatenate([jnp.zeros_like(force), force], axis=1)


def _over_unit_time(change: Callable, state: Any, how: Stepping) -> tuple[Any, RESULTS]:
    """The state at u = 1 of d state / du = change(u, state), from that at 0, NaN where it was not reached, and how it ended."""
    # After a failure there is nothing left to step.
    alive = jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(state)]))
    state = jax.tree.map(lambda a: jnp.where(alive, a, 0.0), state)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda u, y, _: jax.tree.map(lambda a: jnp.where(alive, a, 0.0), change(u, y))),
        diffrax.Tsit5(),
        0.0,
        1.0,
        # The whole panel first: the choice of a first step costs evaluations, and programs that are twice as large.
        1.0,
        state,
        # At the end only: checks of other times are host callbacks, which `jax.export` cannot write.
        saveat=diffrax.SaveAt(t1=True),
        stepsize_controller=diffrax.PIDController(rtol=how.tolerance, atol=0.01 * how.tolerance),
        adjoint=how.adjoint,
        max_steps=how.max_steps,
        throw=False,
    )
    reached = alive & (solution.result == diffrax.RESULTS.successful)
    end = jax.tree.map(lambda y: jnp.where(reached, y[-1], jnp.nan), solution.ys)
    return end, RESULTS.promote(solution.result)


def _share(part: Float[Array, " panel"]) -> Float[Array, " panel"]:
    """Of the whole, or none at all. What is no number is none: it is known to be invalid."""
    part = jax.lax.stop_gradient(jnp.where(jnp.isfinite(part), jnp.maximum(part, 0.0), 0.0))
    whole = jnp.sum(part)
    return part / jnp.where(whole > 0, whole, 1.0)
