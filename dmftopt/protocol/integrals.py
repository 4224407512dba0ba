"""Times, and what a schedule adds up to between them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..numerics.quadrature import GAUSS_NODES, GAUSS_WEIGHTS
from ._protocol import values_at
from .schedules import knots_of

# Panels on which batch sizes are added up, beside those between their knots.
PANELS = 480
_ROUNDS = 4


def node_times(edges: Float[Array, " time"], nodes: tuple[float, ...]) -> Float[Array, "step node"]:
    """Times in each step between increasing `edges`, `nodes` from its start (0) to its end (1)."""
    return edges[:-1, None] + jnp.diff(edges)[:, None] * jnp.asarray(nodes, edges.dtype)[None]


def merged(times: Float[Array, " time"], others: Float[Array, " other"]) -> tuple[Int[Array, " time"], Float[Array, " edge"]]:
    """All of these times, increasing, equal ones in the order given, and where the first ones are among them."""
    together = jnp.concatenate([times, others.astype(times.dtype)])
    order = jnp.argsort(together, stable=True)
    return jnp.argsort(order)[: times.shape[0]], together[order]


def samples_until(schedule: Callable, times: Float[Array, " time"], panels: Float[Array, " edge"]) -> Float[Array, " time"]:
    """∫B dt from 0 until each of the increasing times, by the three-point rule on these panels and between the knots."""
    bends = jnp.clip(knots_of(schedule), 0.0, times[-1]).astype(times.dtype)
    at, edges = merged(times, jnp.concatenate([panels, bends]))
    values = values_at("batch_size", schedule, node_times(edges, GAUSS_NODES))
    return jnp.append(0.0, jnp.cumsum(jnp.diff(edges) * (values @ jnp.asarray(GAUSS_WEIGHTS, values.dtype))))[at]


def times_until(schedule: Callable, samples: Float[Array, " time"]) -> Float[Array, " time"]:
    """The times until which a batch size B >= 1 has added up to these increasing numbers of samples (per dimension), the first of
    them 0: t with ∫_0^t B = samples. Differentiable in B, by the implicit function theorem."""

    def panels(horizon):
        return horizon * jnp.linspace(0.0, 1.0, PANELS + 1, dtype=samples.dtype)

    def inverted(samples, horizon):
        edges = panels(horizon)
        return jnp.interp(samples, jax.lax.stop_gradient(samples_until(schedule, edges, edges[:1])), edges)

    horizon = samples[-1]
    for _ in range(_ROUNDS):
        # At first too late, as B >= 1; panels on what is needed only are finer.
        horizon = inverted(samples[-1], horizon)
    times, edges = inverted(samples, horizon * (1 + 1e-3)), panels(horizon)
    for _ in range(2):
        times = jax.lax.stop_gradient(times)
        rate = jax.lax.stop_gradient(values_at("batch_size", schedule, times))
        times = times - (samples_until(schedule, times, edges) - samples) / rate
    return times.at[0].set(0.0)


def epoch_ends(schedule: Callable, delta: Any, horizon: float) -> np.ndarray:
    """Times inside (0, horizon) at which a pass over the training set, delta samples per dimension, ends."""
    times = jnp.asarray([0.0, horizon])
    seen = samples_until(schedule, times, horizon * jnp.linspace(0.0, 1.0, PANELS + 1))[-1] / delta
    # The horizon may be the end of one, up to rounding.
    ends = np.arange(np.ceil(float(seen) * (1 - 1e-5)), dtype=float)
    if ends.size < 2:
        return np.zeros(0)
    return np.asarray(times_until(schedule, jnp.asarray(ends * delta)), dtype=float)[1:]
