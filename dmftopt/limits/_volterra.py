"""Least squares along a protocol: a Volterra equation whose kernel is a sum of exponentials, stepped in log time."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from .._checks import check_count
from .._memory import check_memory
from ..numerics.quadrature import GAUSS_NODES, GAUSS_WEIGHTS
from ..protocol import Protocol
from ..protocol.grid import TimeGrid
from ..protocol.integrals import merged
from ..protocol.noise import AbstractNoise
from ..protocol.rates import read
from ..results.codes import RESULTS
from ._result import response_of, symmetric
from ._trajectory import AGREEMENT, survey

# By default; with the times of the grid, knots and quantiles of the action there are somewhat more.
STEPS = 512
# In each step the protocol is read at its ends and its middle, and at Gauss's nodes of both halves.
_READ = (0.0, 0.5, 1.0, *(0.5 * (half + node) for half in (0, 1) for node in GAUSS_NODES))
# What is computed at once: so many steps times modes.
_BLOCK = 2**16
# The largest stated error of the power of the residuals that counts as success.
_ACCURACY = 1e-2


class Modes(eqx.Module):
    """Modes z (mode,), real, or complex ones of a contour integral, along which the student is

        theta = p theta_0 + c (z theta_star + label noise) + noise of variance v,

    and the power P of the residuals, by which they are coupled: P = forced(p, c) + felt(v), with `felt` linear, for any number of
    axes before that of the modes. `stiffest`: the largest eigenvalue that they stand for."""

    z: Inexact[Array, " mode"]
    forced: Callable[[Array, Array], Array]
    felt: Callable[[Array], Array]
    stiffest: Float[Array, ""]


class Path(NamedTuple):
    """At the times of the grid: integrals A of the learning rate and R of its product with the ridge, c and v of each mode, and
    the power of the residuals."""

    A: Float[Array, " time"]
    R: Float[Array, " time"]
    c: Inexact[Array, "time mode"]
    v: Inexact[Array, "time mode"]
    power: Float[Array, " time"]


class _Steps(NamedTuple):
    """Of each step: what A and R grow by over its first and second half, what they are before it, and heat h = temperature /
    learning rate at its start, middle and end."""

    A: Float[Array, "step 2"]
    R: Float[Array, "step 2"]
    A_before: Float[Array, " step"]
    R_before: Float[Array, " step"]
    heat: Float[Array, "step 3"]

    @property
    def after(self) -> tuple[Float[Array, "step 2"], Float[Array, "step 2"]]:
        """A and R at the middle and the end of each step."""
        return (
            self.A_before[:, None] + jnp.cumsum(self.A, axis=1),
            self.R_before[:, None] + jnp.cumsum(self.R, axis=1),
        )


def check_steps(steps: Any, modes: int) -> None:
    check_count("steps", steps, minimum=8)
    check_memory(f"steps = {steps} for {modes} modes", 16.0 * steps * modes, "Use fewer.")


def along(
    modes: Modes, protocol: Protocol, noise: AbstractNoise, grid: TimeGrid, steps: int
) -> tuple[Path, Path, Bool[Array, ""], RESULTS]:
    """The path, the same by half as many steps, whether the protocol is in its domain, and how it ended.

    With S the integral of eta * ridge and h = eta / B, in the clock dA = eta dt,

        dp = -(z dA + dS) p        dc = dA - (z dA + dS) c        dv = -2 (z dA + dS) v + h z P dA.

    Over a step, h P is the parabola through its values at start, middle and end, and the exponentials are integrated exactly:
    two linear equations for the two new values of P. That is of fourth order (of second where the ridge changes over a step).
    Where all modes are stiff it becomes their balance, v = h P / 2: so steps may be as long as the protocol is smooth, and are
    equal in log time, from the start and from every knot, and towards the next one. Where the noise outgrows a step the
    equations lose their solution: `RESULTS.unstable`.
    """
    times = grid.times
    seen = survey(protocol, noise, grid, steps // 2)
    spread = _spread(times[-1], seen.bends, 1 / (seen.fastest * modes.stiffest), steps)
    at, edges = merged(times, jnp.concatenate([seen.quantiles, spread, seen.bends]))
    halved = jnp.append(jnp.stack([edges[:-1], 0.5 * (edges[1:] + edges[:-1])], axis=1).ravel(), edges[-1])
    fine = _read(protocol, noise, halved, seen.fastest)
    path, stable = _advance(modes, fine, 2 * at)
    rough, _ = _advance(modes, _coarsened(fine), at)
    # A clock that is NaN says nothing: that failure has another name.
    missed = jnp.cumsum(jnp.abs(path.A - seen.clock) > AGREEMENT * seen.clock[-1]) > 0
    failed = missed | (jnp.cumsum(~stable) > 0)
    path = jax.tree.map(lambda a: jnp.where(failed.reshape(-1, *[1] * (a.ndim - 1)), jnp.nan, a), path)
    off = jnp.any(jnp.abs(path.power - rough.power) > 3 * _ACCURACY * path.power) | jnp.any(missed)
    result = RESULTS.where(off, RESULTS.inaccurate, RESULTS.successful)
    return path, rough, seen.valid, RESULTS.where(jnp.all(stable), result, RESULTS.unstable)


def kicks(
    A: Float[Array, " time"],
    R: Float[Array, " time"],
    z: Inexact[Array, " mode"],
    total: Callable[[Array], Array],
    v: Inexact[Array, "time mode"],
) -> tuple[Float[Array, "time step"], Float[Array, "time time"]]:
    """Response at each time to the kicks of all steps, and the two-time covariance of noise of variance v: totals over modes of
    their propagators, and of these times v, row by row."""

    @jax.checkpoint  # pyright: ignore
    def at(row):
        since = [jnp.maximum(now - then, 0.0).astype(z.dtype)[:, None] for now, then in zip(row, (A, R), strict=True)]
        kept = jnp.exp(-since[0] * z[None] - since[1])
        return total(kept), total(kept * v)

    response, noisy = jax.lax.map(at, (A, R))
    return response_of(response), symmetric(noisy)


def _spread(horizon: Array, bends: Float[Array, " knot"], first: Array, steps: int) -> Float[Array, " step"]:
    """Times such that steps grow like the distance from the last bend plus `first`, or that to the next one if this is less."""
    ends = jnp.concatenate([jnp.zeros(1, bends.dtype), bends, horizon[None]])
    ends, first = jax.lax.stop_gradient((ends, first))
    widths = jnp.diff(ends)
    # Of logarithms of (distance from the start + first) / (distance to the end + first).
    lengths = jnp.append(0.0, jnp.cumsum(2 * jnp.log1p(widths / first)))
    at = lengths[-1] * jnp.arange(1.0, steps, dtype=lengths.dtype) / steps
    panel = jnp.clip(jnp.searchsorted(lengths, at, side="right") - 1, 0, widths.shape[0] - 1)
    ratio, width = jnp.exp(at - lengths[panel]), widths[panel]
    inside = first * (ratio - 1) * (width + first) / (width + first + ratio * first)
    return ends[panel] + jnp.clip(inside, 0.0, width)


def _read(protocol: Protocol, noise: AbstractNoise, edges: Float[Array, " edge"], fastest: Array) -> _Steps:
    start, end = edges[:-1, None], edges[1:, None]
    rounding = 64 * jnp.finfo(edges.dtype).eps * end
    # Schedules may jump at the ends, where they are read from within. Where edges coincide nothing happens, unless one of them
    # moves, which is the knot, the last in order: what is read then is what precedes it.
    t = start + (end - start) * jnp.asarray(_READ, edges.dtype)[None]
    t = jnp.maximum(jnp.minimum(jnp.maximum(t, start + rounding), end - rounding), 0.0)
    rates = read(protocol, t, batched=noise.batched)
    eta, weights = rates.gradient_rate, 0.5 * jnp.asarray(GAUSS_WEIGHTS, edges.dtype)

    def halves(rate):
        return (end - start) * jnp.stack([rate[:, i : i + len(GAUSS_NODES)] @ weights for i in (3, 3 + len(GAUSS_NODES))], axis=1)

    A, R = halves(eta), halves(rates.learning_rate * rates.ridge)
    A_before, R_before = (jnp.append(0.0, jnp.cumsum(jnp.sum(a, axis=1))[:-1]) for a in (A, R))
    # So little more changes nothing, and where the rate is 0 has the right derivative.
    raised = eta[:, :3] + jnp.finfo(eta.dtype).eps * fastest
    heat = cast(Array, noise.temperature(raised, rates.batch_size[:, :3])) / raised
    return _Steps(A, R, A_before, R_before, heat)


def _coarsened(fine: _Steps) -> _Steps:
    """Every two steps as one."""

    def pairs(a):
        return a.reshape(-1, 2, *a.shape[1:])

    A, R = (jnp.sum(pairs(a), axis=2) for a in (fine.A, fine.R))
    A_before, R_before = (pairs(a)[:, 0] for a in (fine.A_before, fine.R_before))
    heat = pairs(fine.heat)
    return _Steps(A, R, A_before, R_before, jnp.stack([heat[:, 0, 0], heat[:, 1, 0], heat[:, 1, 2]], axis=1))


def _advance(modes: Modes, steps: _Steps, at: Array) -> tuple[Path, Bool[Array, " time"]]:
    """The path at the steps `at`, and of each of these times whether the equations until there had a solution."""
    count = steps.A.shape[0]
    block = max(1, min(count, _BLOCK // modes.z.shape[0]))

    def blocks(a):
        more = jnp.concatenate([a, jnp.broadcast_to(a[-1:], (-count % block, *a.shape[1:]))])
        return more.reshape(-1, block, *a.shape[1:])

    zero, one = jnp.zeros_like(modes.z), jnp.ones_like(modes.z)
    power = modes.forced(one, zero)
    _, path = jax.lax.scan(jax.checkpoint(_block(modes)), (one, zero, zero, power), jax.tree.map(blocks, steps))  # pyright: ignore
    c, v, powers, stable = (a.reshape(-1, *a.shape[2:])[:count] for a in path)

    def observed(first, rest):
        return jnp.concatenate([first[None], rest])[at]

    A, R = (jnp.append(0.0, after[:, 1]) for after in steps.after)
    unstable = jnp.append(False, jnp.cumsum(~stable) > 0)
    return Path(A[at], R[at], observed(zero, c), observed(zero, v), observed(power, powers)), ~unstable[at]


def _block(modes: Modes) -> Callable:
    """Some steps: all that does not depend on v at once, then v one step after the other."""
    z = modes.z

    def across(state, steps: _Steps):
        p, c, v, power = state
        # Of both halves, (step, half, mode).
        A, R = (a.astype(z.dtype)[..., None] for a in (steps.A, steps.R))
        x = A * z[None, None] + R
        decay = jnp.exp(-x)

        def grow(state, half):
            p, c = state
            p, c = half[0] * p, half[0] * c + half[1]
            return (p, c), (p, c)

        halves = tuple(a.reshape(-1, z.shape[0]) for a in (decay, A * _integrals(x, decay, 0)[0]))
        (p, c), path = jax.lax.scan(grow, (p, c), halves)
        ps, cs = (a.reshape(x.shape) for a in path)
        forced = modes.forced(ps, cs)
        # Of the squares, from the start to the middle and to the end.
        x, kept = 2 * jnp.cumsum(x, axis=1), jnp.cumprod(decay**2, axis=1)
        weights = _weights(steps, x, kept) * z[None, None, None]
        feedback = modes.felt(weights)
        inverse, stable = _inverse(jnp.eye(2, dtype=forced.dtype)[None] - feedback[..., 1:])

        def advance(state, step):
            v, power = state
            forced, kept, weights, feedback, inverse = step
            known = forced + modes.felt(kept * v[None]) + feedback[:, 0] * power
            middle, end = inverse @ known
            powers = jnp.stack([power, middle, end]).astype(z.dtype)
            v = kept[1] * v + powers @ weights[1]
            return (v, end), (v, end)

        (v, power), (vs, powers) = jax.lax.scan(advance, (v, power), (forced, kept, weights, feedback, inverse))
        return (p, c, v, power), (cs[:, 1], vs, powers, stable)

    return across


def _inverse(matrix: Float[Array, "step 2 2"]) -> tuple[Float[Array, "step 2 2"], Bool[Array, " step"]]:
    """And whether no eigenvalue has come to 0, from the unit matrix of a step that is short."""
    (a, b), (c, d) = ((matrix[:, i, 0], matrix[:, i, 1]) for i in range(2))
    determinant = a * d - b * c
    stable = (determinant > 0) & (a + d > 0)
    adjugate = jnp.stack([jnp.stack([d, -b], axis=1), jnp.stack([-c, a], axis=1)], axis=1)
    return adjugate / jnp.where(stable, determinant, 1.0)[:, None, None], stable


def _weights(
    steps: _Steps, x: Inexact[Array, "step 2 mode"], kept: Inexact[Array, "step 2 mode"]
) -> Inexact[Array, "step 2 3 mode"]:
    """What the power at start, middle and end of a step adds to the variance of each mode, over z, until its middle and end,
    where `kept` = exp(-x) is left of what was there."""
    whole = jnp.sum(steps.A, axis=1)
    # Where in the clock the middle is.
    m = jnp.clip(steps.A[:, 0] / jnp.where(whole > 0, whole, 1.0), 0.02, 0.98)
    m = jnp.where(whole > 0, m, 0.5)
    one, zero = jnp.ones_like(m), jnp.zeros_like(m)
    # Lagrange's polynomials of the nodes 0, m, 1 in powers 0, 1, 2 of the clock: that of the first half, then of the whole step.
    first = [[one, -(1 + m), m], [zero, 1 / (1 - m), -m / (1 - m)], [zero, -(m**2) / (1 - m), m**2 / (1 - m)]]
    both = [[one, -(1 + m) / m, 1 / m], [zero, 1 / (m * (1 - m)), -1 / (m * (1 - m))], [zero, -m / (1 - m), 1 / (1 - m)]]
    table = jnp.stack([jnp.stack([jnp.stack(row, axis=-1) for row in part], axis=-2) for part in (first, both)], axis=1)
    table = table * jnp.cumsum(steps.A, axis=1)[:, :, None, None] * steps.heat[:, None, :, None]
    return jnp.einsum("khjn,nkha->khja", table.astype(x.dtype), jnp.stack(_integrals(x, kept, 2)))


def _integrals(x: Inexact[Array, "*axes"], decay: Inexact[Array, "*axes"], most: int) -> list[Inexact[Array, "*axes"]]:
    """∫ exp(-x (1 - u)) u^k du over the unit interval, k = 0, ..., most, given decay = exp(-x)."""
    # Upward where x is large, downward from the series where it is small: neither cancels.
    small = x.real**2 + x.imag**2 < 0.25
    inverse = 1 / jnp.where(small, 1.0, x)
    upward = [inverse * (1 - decay)]
    for k in range(1, most + 1):
        upward.append(inverse * (1 - k * upward[-1]))
    x = jnp.where(small, x, 0.0)
    series = jnp.ones_like(x)
    for n in range(12, 0, -1):
        series = 1 - (1 / (n + most + 1)) * x * series
    downward = [(1 / (most + 1)) * series]
    for k in range(most, 0, -1):
        downward.append((1 / k) * (1 - x * downward[-1]))
    return [jnp.where(small, *pair) for pair in zip(reversed(downward), upward, strict=True)]
