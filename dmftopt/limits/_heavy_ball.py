"""Least squares along a protocol with friction: modes with a velocity, coupled by the power of the residuals."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from ..protocol import Protocol
from ..protocol.grid import TimeGrid
from ..protocol.noise import AbstractNoise
from ..results.codes import RESULTS
from ._result import Groups, symmetric
from ._spectral import HEIGHT, Contour, contour, ellipses
from ._trajectory import Coefficients, Stepping, coefficients, drift, pushed, survey, trajectory
from ._volterra import Modes

# Heights of contours that are tried, downwards from twice that for what decays; angles and times at which growth is looked at.
_HEIGHTS, _ANGLES, _LOOKS = 24, 32, 256
# The largest error of a contour integral, of the largest integrand, that counts as success.
_ACCURACY = 1e-4


class HeavyPath(NamedTuple):
    """At the times of the grid: p and c of each mode (see `Modes`), its noise's variance v, the power of the residuals, and the
    covariance of the noise of two times, `total` of all modes."""

    p: Complex[Array, "time mode"]
    c: Complex[Array, "time mode"]
    v: Complex[Array, "time mode"]
    power: Float[Array, " time"]
    noisy: Float[Array, "time time"]


def heavy_contour(
    groups: Groups, protocol: Protocol, noise: AbstractNoise, grid: TimeGrid, nodes: int
) -> tuple[Contour, Bool[Array, ""]]:
    """A contour for what oscillates, and whether integrals over it can be told.

    Of a mode z = |z| exp(i angle) an underdamped velocity grows like exp(sqrt(rate |z|) sin(angle / 2) t) where on the real axis
    it only oscillates, so that contours must be flat where runs are long; and flat ones need nodes (see `contour`). With G(h) the
    largest integral over the run of the growth on the contour of height h, squares on it are exp(2 G(h)) too large, and so is
    rounding; the trapezoidal rule misses exp(-2 nodes asinh(h / half)) of what they are on one of twice the height. The height
    is that at which the larger of both errors is least. Towards 0 the contour leaves the spectrum where growth begins to matter,
    at eps = (1 + int friction) / (horizon int eta).
    """
    dtype, horizon = grid.times.dtype, grid.times[-1]
    times = horizon * jnp.asarray((np.arange(_LOOKS) + 0.5) / _LOOKS, dtype)
    now = jax.lax.stop_gradient(coefficients(protocol, noise, times))
    friction = jnp.zeros_like(times) if now.friction is None else now.friction
    clock, slowing = (jnp.mean(a) * horizon for a in (now.learning_rate, friction))
    slowest = jnp.where(clock > 0, clock * horizon / (1 + slowing), 1.0)
    slowest = jnp.where(jnp.isfinite(slowest), slowest, 1.0)
    angle = jnp.asarray((np.arange(_ANGLES) + 0.5) * np.pi / _ANGLES, dtype)
    heights = jnp.asarray(HEIGHT * 2.0 ** (1 - 0.5 * np.arange(_HEIGHTS)), dtype)
    paths = ellipses(groups, slowest)

    def growth(height):
        z, _ = paths.at(height, angle)
        eta, shrinkage, half = (x.astype(z.dtype)[:, None] for x in (now.learning_rate, now.shrinkage, 0.5 * friction))
        grows = (jnp.sqrt(half**2 - eta * z[None] - shrinkage) - half).real
        return jnp.max(jnp.mean(jnp.maximum(grows, 0.0), axis=0)) * horizon

    grown = jax.lax.map(growth, heights)
    # Those of half the height come two places later.
    missed = 2 * grown[:-2] - 2 * nodes * jnp.arcsinh(heights[2:] / paths.half)
    rounded = 2 * grown[2:] + jnp.log(jnp.finfo(dtype).eps)
    error = jnp.maximum(missed, rounded)
    best = jnp.argmin(error)
    path = contour(groups, slowest, nodes, heights[2:][best])
    return path, path.good & (error[best] < np.log(_ACCURACY))


def along_heavy(
    modes: Modes, felt: Callable, protocol: Protocol, noise: AbstractNoise, grid: TimeGrid, how: Stepping
) -> tuple[HeavyPath, Bool[Array, ""], RESULTS]:
    """The path, whether the protocol is in its domain, and how it ended. Per mode, with its position x and velocity u,

        x' = u,    u' = -friction u - (eta z + eta ridge) x + eta (z theta_star + label noise) + kicks of variance (eta²/B) z P.

    All modes are stepped together, so that what is found is a function of z as smooth as the exact one. `felt(f)`: of the
    fields, (1/d) tr[Lambda f(H)].
    """
    z, times = modes.z, grid.times
    one, zero = jnp.ones_like(z), jnp.zeros_like(z)
    still = jnp.broadcast_to(jnp.eye(2, dtype=z.dtype), (z.shape[0], 2, 2))

    def rates(now: Coefficients, state):
        _, *packed = state
        x, v, since = (_complex(a) for a in packed)
        eta, shrinkage, temperature = (a.astype(z.dtype) for a in (now.learning_rate, now.shrinkage, now.temperature))
        power = modes.forced(x[:, 0, 0], x[:, 0, 1]) + modes.felt(v[:, 0, 0])
        K = drift((eta * z + shrinkage)[:, None, None], now.friction)
        force = jnp.stack([zero, eta * one], axis=1)[:, None]
        heat = jnp.zeros_like(v).at[:, 1, 1].set(temperature * z * power.astype(z.dtype))
        spread = K @ v
        changes = (pushed(force, now.friction) - K @ x, heat - spread - jnp.swapaxes(spread, 1, 2), -K @ since)
        return now.learning_rate, *(_pair(a) for a in changes)

    # Columns of positions and velocities: p and c.
    first = jnp.zeros((z.shape[0], 2, 2), z.dtype).at[:, 0, 0].set(1.0)
    start = (jnp.zeros((), times.dtype), *(_pair(a) for a in (first, jnp.zeros_like(still), still)))
    seen = survey(protocol, noise, grid)
    (_, *packed), integrated = trajectory(
        rates, start, protocol, noise, times, seen, how, restarted=lambda state: (*state[:-1], _pair(still))
    )
    x, v, factors = (jax.vmap(_complex)(a) for a in packed)

    def extend(since, inputs):
        """The covariance of the noise of one time and of each earlier one."""
        k, factor = inputs
        since = jnp.einsum("aij,sajk->saik", factor, since).at[k].set(still)
        return since, felt(jnp.einsum("saj,saj->sa", since[:, :, 0], v[:, :, :, 0]))

    count = times.shape[0]
    _, noisy = jax.lax.scan(extend, jnp.zeros((count, *still.shape), z.dtype), (jnp.arange(count), factors))
    p, c, v = x[:, :, 0, 0], x[:, :, 0, 1], v[:, :, 0, 0]
    return HeavyPath(p, c, v, modes.forced(p, c) + modes.felt(v), symmetric(noisy)), seen.valid, integrated


def _pair(z: Complex[Array, "*axes"]) -> Float[Array, "2 *axes"]:
    return jnp.stack([z.real, z.imag])


def _complex(pair: Float[Array, "2 *axes"]) -> Complex[Array, "*axes"]:
    return jax.lax.complex(pair[0], pair[1])
