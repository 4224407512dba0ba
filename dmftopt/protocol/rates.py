"""The one reader of protocols: their values at given times, checked."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._checks import check_instance, is_concrete
from ..numerics.quadrature import safe_sqrt
from ._protocol import Momentum, Protocol, in_domain, values_at
from .grid import TimeGrid
from .integrals import node_times
from .schedules import Tabulated
from .updates import AbstractUpdate


class Rates(eqx.Module):
    """A protocol at some times, every field of the times' shape, and whether all of it is in its domain."""

    learning_rate: Float[Array, "*time"]
    batch_size: Float[Array, "*time"]
    ridge: Float[Array, "*time"]
    momentum: Momentum | None
    update: AbstractUpdate | None
    friction: Float[Array, "*time"] | None
    valid: Bool[Array, ""]

    @property
    def gradient_rate(self) -> Float[Array, "*time"]:
        """What the gradient of a batch is multiplied by, but for what depends on its own size (34)."""
        return self.learning_rate if self.update is None else self.update.overlap * self.learning_rate

    def tabulated(self, times: Float[Array, "*time"]) -> Protocol:
        """The protocol that is known at these times only, those it was read at: arrays, whatever kinds of schedules it had."""

        def table(values):
            return Tabulated(times.ravel(), values.ravel())

        rate, batch_size, ridge = (table(values) for values in (self.learning_rate, self.batch_size, self.ridge))
        if self.momentum is None:
            friction = None if self.friction is None else table(self.friction)
            return Protocol(rate, batch_size, ridge, update=self.update, friction=friction)
        return Protocol(rate, batch_size, ridge, table(self.momentum.coefficient), nesterov=self.momentum.nesterov)


class Averages(eqx.Module):
    """A protocol averaged over each step of a grid: learning rate (of gradients), batch size, learning rate times ridge, the
    learning rate that with this batch size has the average of eta²/B, momentum, update, friction, and whether all is valid."""

    learning_rate: Float[Array, " step"]
    batch_size: Float[Array, " step"]
    shrinkage: Float[Array, " step"]
    noisy_rate: Float[Array, " step"]
    momentum: Momentum | None
    update: AbstractUpdate | None
    friction: Float[Array, " step"] | None
    valid: Bool[Array, ""]


def check_protocol(protocol: Any) -> None:
    check_instance("protocol", protocol, Protocol, "Build it with dmftopt.Protocol(learning_rate=...).")


def check_update(protocol: Protocol, times: Float[Array, " time"]) -> None:
    """Raise ValueError for an update that is not known at these batch sizes."""
    if protocol.update is None or not protocol.update.changes:
        return
    batch_size = read(protocol, times).batch_size
    if is_concrete(batch_size) and float(jnp.max(batch_size)) > 1 + 1e-5:
        raise ValueError(
            f"batch_size must be 1 with updates.{type(protocol.update).__name__}, got {float(jnp.max(batch_size)):g}: of larger "
            "batches the norm depends on all samples. Use updates.Adam, or SGD."
        )


def read(protocol: Protocol, times: Float[Array, "*time"], *, batched: bool = True) -> Rates:
    """The protocol at these times. `batched=False`: for an algorithm that does not read the batch size, which then is 1.

    Raises ValueError for schedules of another shape and for concrete values outside their domain; `valid` tells of traced ones.
    """
    times = jnp.asarray(times)
    learning_rate = values_at("learning_rate", protocol.learning_rate, times)
    batch_size = values_at("batch_size", protocol.batch_size, times) if batched else jnp.ones_like(times)
    ridge = values_at("ridge", protocol.ridge, times)
    named = {"learning_rate": learning_rate, "batch_size": batch_size, "ridge": ridge}
    momentum = None
    if protocol.momentum is not None:
        momentum = Momentum(values_at("momentum", protocol.momentum, times), protocol.nesterov)
        named["momentum"] = momentum.coefficient
    friction = None
    if protocol.friction is not None:
        friction = named["friction"] = values_at("friction", protocol.friction, times)
    valid = jnp.asarray(True)
    for name, value in named.items():
        valid = valid & jnp.all(in_domain(name, value))
    return Rates(learning_rate, batch_size, ridge, momentum, protocol.update, friction, valid)


def knots(protocol: Protocol, horizon: Any) -> Float[Array, " knot"]:
    """Increasing times from 0 to `horizon` between which the protocol is smooth, as far as its schedules say: those at which one
    of them jumps or has a kink (repeated, or at 0 or the horizon, where there are fewer). How many there are does not depend on
    any number. They have derivatives: an integral over what jumps changes as the jump moves."""
    horizon = jnp.asarray(horizon, dtype=float)
    return jnp.sort(jnp.clip(protocol.knots, 0.0, horizon))


def averaged(
    protocol: Protocol, grid: TimeGrid, nodes: tuple[float, ...], weights: tuple[float, ...], *, batched: bool = True
) -> Averages:
    """The protocol read at `nodes` (0 to 1) of each step of the grid, and averaged with these weights. Raises as `read` does."""
    rates = read(protocol, node_times(grid.times, nodes), batched=batched)
    w = jnp.asarray(weights, grid.times.dtype)
    learning_rate, batch_size = rates.gradient_rate @ w, rates.batch_size @ w
    noisy = learning_rate
    if len(weights) > 1:
        noisy = safe_sqrt((rates.gradient_rate**2 / rates.batch_size) @ w * batch_size)
    momentum = rates.momentum
    if momentum is not None:
        momentum = Momentum(momentum.coefficient @ w, momentum.nesterov)
    shrinkage = (rates.learning_rate * rates.ridge) @ w
    friction = None if rates.friction is None else rates.friction @ w
    return Averages(learning_rate, batch_size, shrinkage, noisy, momentum, rates.update, friction, rates.valid)
