"""Rates over the root mean square of gradients: equation (34) of README.md."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..problem import Problem, group_gains
from ..problem.features import Features
from ..protocol.updates import AbstractUpdate, is_coordinatewise
from ..protocol.variables import number
from ._solver import Inputs


class Scale(NamedTuple):
    """Of each column: the running mean of P / B over the update's memory, from 0, and the power P of the step before; and the
    weight of that mean so far."""

    mean: Float[Array, " m"]
    power: Float[Array, " m"]
    weight: Float[Array, ""]


class Gains(NamedTuple):
    """What rates are multiplied by: of each column, V^-1/2, and of each eigenvalue group, lambda^-1/2."""

    columns: Float[Array, " m"]
    groups: Float[Array, " group"]

    def seen(self, features: Features) -> Features:
        """With the eigenvalues by which the modes decay."""
        return Features(features.eigenvalues * self.groups, features.weights)


def before(m: int, dtype) -> Scale:
    return Scale(jnp.zeros(m, dtype), jnp.zeros(m, dtype), jnp.zeros((), dtype))


def seen(problem: Problem, update: AbstractUpdate | None) -> Features:
    """The features with the eigenvalues by which the modes decay."""
    features = problem.features
    return fixed(problem, features.eigenvalues.dtype).seen(features) if is_coordinatewise(update) else features


def fixed(problem: Problem, dtype: Any) -> Gains:
    """Of an update that does not look at the size of gradients."""
    return Gains(jnp.ones(problem.m, dtype), group_gains(problem))


def gains(update: AbstractUpdate, problem: Problem, scale: Scale, power: Float[Array, " m"], x: Inputs) -> tuple[Gains, Scale]:
    """In the middle of a step, and what is kept for the next.

    With memory tau, dA/dt = (P / B - A) / tau and V = A / weight, P being linear in the step: its change from the last one goes
    on.
    """
    assert x.durations is not None and x.batch_size is not None
    duration = x.durations
    change = x.ratio * (power - scale.power)
    # Never below a tenth of what it was.
    change = jnp.maximum(change, -1.8 * power)
    of_batch, change = power / x.batch_size, change / x.batch_size
    memory = jnp.asarray(number(update.memory), power.dtype)  # pyright: ignore
    short = memory <= 0
    tau = jnp.where(short, 1.0, memory)

    def after(share):
        """Mean and weight after this share of the step."""
        kept = jnp.where(short, 0.0, jnp.exp(-share * duration / tau))
        lag = jnp.where(short, 0.0, tau / jnp.where(duration > 0, duration, 1.0)) * (1 - kept)
        return kept * scale.mean + (1 - kept) * of_batch + (share - lag) * change, kept * scale.weight + 1 - kept

    mean, weight = after(0.5)
    tiny = jnp.finfo(power.dtype).tiny
    V = jnp.maximum(mean, tiny) / jnp.maximum(weight, tiny)
    # At the very start, of a step of no length: nothing was seen.
    V = jnp.where(weight > 0, V, jnp.maximum(of_batch, tiny))
    ended, ended_weight = after(1.0)
    return Gains(1 / jnp.sqrt(V), group_gains(problem)), Scale(ended, power, ended_weight)
