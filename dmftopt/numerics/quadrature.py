"""Expectations over standard normal variables, and means over an interval."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact
from scipy.stats import qmc

# Ends of panels for a normal variable, and around a bend, in units of its width: geometric, so that a pole beside the bend is as
# far from each as the panel is wide.
_HALVES = (-9.0, -5.0, -2.5, 0.0, 2.5, 5.0, 9.0)
_NEAR = (-27.0, -9.0, -3.0, -1.0, 0.0, 1.0, 3.0, 9.0, 27.0)

# The three-point rule on the unit interval, exact for polynomials of degree 5.
GAUSS_NODES, GAUSS_WEIGHTS = (0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5), (5 / 18, 8 / 18, 5 / 18)


def gaussian_nodes(spacing: float, dtype) -> tuple[Float[Array, " node"], Float[Array, " node"]]:
    """Nodes and weights, summing to 1, of the trapezoidal rule for E[f(z)], z ~ N(0, 1). Where f is analytic it converges like
    exp(-2 pi w / spacing), w the distance of the nearest singularity from the real line."""
    count = int(9.0 / spacing)
    nodes = spacing * np.arange(-count, count + 1)
    weights = np.exp(-0.5 * nodes**2)
    return jnp.asarray(nodes, dtype), jnp.asarray(weights / weights.sum(), dtype)


def gauss_hermite(count: int, dtype) -> tuple[Float[Array, " node"], Float[Array, " node"]]:
    """Nodes and weights, summing to 1, exact for E[f(z)], z ~ N(0, 1), and polynomials f of degree 2 count - 1."""
    nodes, weights = (jnp.asarray(a, dtype) for a in np.polynomial.hermite_e.hermegauss(count))
    return nodes, weights / jnp.sum(weights)


def bent_nodes(
    scale: Float[Array, ""], bends: Sequence[Any], steepness: Float[Array, ""] | None = None
) -> tuple[Float[Array, " node"], Float[Array, " node"]]:
    """Nodes and weights for E[f(scale z)], z ~ N(0, 1), where f(r) is smooth but at the `bends` r: there it may jump, turn, or
    change over a distance of order 1, however small that is against `scale`; and for f that varies with `steepness` z as
    well, around 0. Between these Gauss's rule: against dense rules off by less than 1e-8. Derivatives see the jumps."""
    edges = [jnp.asarray(_HALVES, scale.dtype)]
    positive = jnp.where(scale > 0, scale, 1.0)
    edges += [(jnp.asarray(bend, scale.dtype) + jnp.asarray(_NEAR, scale.dtype)) / positive for bend in bends]
    if steepness is not None:
        steep = jnp.maximum(jnp.abs(steepness), 1 / _HALVES[-1])
        edges.append(jnp.asarray(_NEAR, scale.dtype) / steep)
    edges = jnp.sort(jnp.clip(jnp.concatenate(edges), _HALVES[0], _HALVES[-1]))
    centers, halves = 0.5 * (edges[1:] + edges[:-1]), 0.5 * jnp.diff(edges)
    nodes, weights = (jnp.asarray(a, scale.dtype) for a in np.polynomial.legendre.leggauss(10))
    z = (centers[:, None] + halves[:, None] * nodes[None]).ravel()
    return z, (halves[:, None] * weights[None]).ravel() * jnp.exp(-0.5 * z**2) / (2 * np.pi) ** 0.5


def bent_mean(function: Callable, scale: Float[Array, "..."], bends: Sequence[Any]) -> Float[Array, "..."]:
    """E[function(scale * z)], z ~ N(0, 1), for every entry of `scale`, by `bent_nodes`."""

    def at(scale):
        z, weights = bent_nodes(scale, bends)
        return jnp.sum(function(scale * z) * weights)

    scale = jnp.asarray(scale)
    return jax.vmap(at)(scale.ravel()).reshape(scale.shape)


def beside(nodes: Inexact[Array, "..."], values: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """`nodes` behind as many axes of length 1 as `values` have: with values[..., None] they make all pairs."""
    return jnp.expand_dims(nodes, tuple(range(values.ndim)))


def panels(edges: Float[np.ndarray, " edge"], count: int) -> tuple[Float[np.ndarray, " node"], Float[np.ndarray, " node"]]:
    """Gauss-Legendre nodes and weights, `count` between each edge and the next."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    centers, halves = 0.5 * (edges[1:] + edges[:-1]), 0.5 * (edges[1:] - edges[:-1])
    return (centers[:, None] + halves[:, None] * nodes).ravel(), (halves[:, None] * weights).ravel()


@lru_cache(maxsize=16)
def uniform_points(dimension: int, log_nodes: int = 13) -> Float[np.ndarray, "dimension node"]:
    """2^log_nodes (8192) fixed low-discrepancy points in (0, 1)^dimension (scrambled Sobol)."""
    return qmc.Sobol(dimension, scramble=True, rng=0).random_base2(log_nodes).T


def safe_sqrt(value: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root of a variance, with derivative 0 at 0 (where a variance is at its minimum) and 0 below by rounding."""
    positive = value > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1.0)), 0.0)
