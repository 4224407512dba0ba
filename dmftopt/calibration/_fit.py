"""The law's parameters by robust least squares: amplitudes by projection, the rest by Levenberg-Marquardt from several starts."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.optimize import least_squares

from ._law import KernelLaw, Segments, Shape, loop_gain, parts, relaxation_rates

# What is fitted nonlinearly: start, lower and upper bound, spread of starts. Logarithms of bias exponent, noise rate (per step at
# the peak) and noise exponent, the exponent of the learning rate, and the logit of the loop gain.
_BOX = {
    "bias_exponent": (np.log(0.5), np.log(0.05), np.log(3.0), 0.3),
    "noise_rate": (np.log(3e-3), np.log(1e-6), np.log(2.0), 1.5),
    "noise_exponent": (np.log(1.2), np.log(0.1), np.log(8.0), 0.4),
    "rate_exponent": (1.8, 0.5, 3.5, 0.3),
    "feedback": (-1.0, -8.0, 4.0, 1.0),
}
SHAPE = ("bias_exponent", "noise_rate", "noise_exponent")
OPTIONAL = ("rate_exponent", "feedback")
# Width of Cauchy's loss in standard deviations: 95% efficient where errors are normal.
_WIDTH = 2.385
_ROUNDS = 4


class Data(eqx.Module):
    """Losses to fit: `run` and `segment` at whose end each was seen, and prior weights."""

    segments: Segments
    run: Int[Array | np.ndarray, " record"]
    segment: Int[Array | np.ndarray, " record"]
    loss: Float[Array | np.ndarray, " record"]


class Fit(NamedTuple):
    """`values`: the nonlinear ones, named `free`, in the units of the search. `amplitudes`: floor, bias, noise. `residuals`:
    relative. `scale`: their robust standard deviation."""

    free: tuple[str, ...]
    values: np.ndarray
    amplitudes: np.ndarray
    residuals: np.ndarray
    scale: float


def shape_of(values: Float[Array, " value"], free: tuple[str, ...], horizon: float) -> Shape:
    value = dict(zip(free, values, strict=True))
    exponent, rate, noise_exponent = (jnp.exp(value[name]) for name in SHAPE)
    gamma = value.get("rate_exponent", jnp.asarray(2.0))
    shape = Shape(exponent, rate, noise_exponent, gamma, jnp.asarray(1.0))
    if "feedback" not in free:
        return eqx.tree_at(lambda s: s.feedback, shape, jnp.asarray(0.0))
    return eqx.tree_at(lambda s: s.feedback, shape, jax.nn.sigmoid(value["feedback"]) / loop_gain(shape, horizon))


def law_of(fit: Fit, peak: float, horizon: float, batch_size: float) -> KernelLaw:
    """In natural units."""
    with jax.enable_x64(True):
        shape = jax.tree.map(float, shape_of(jnp.asarray(fit.values), fit.free, horizon))
    floor, bias, noise = map(float, fit.amplitudes)
    kappa = shape.feedback / noise if noise > 0 else 0.0
    values = {
        "floor": floor,
        "bias_scale": bias * peak**shape.bias_exponent,
        "bias_exponent": shape.bias_exponent,
        "noise_scale": noise / peak**2,
        "noise_rate": shape.noise_rate / peak,
        "noise_exponent": shape.noise_exponent,
        "rate_exponent": shape.rate_exponent,
        "feedback": kappa,
    }
    units = {"peak": peak, "horizon": horizon, "batch_size": batch_size}
    return KernelLaw(**{name: np.asarray(value) for name, value in values.items()}, **units)  # pyright: ignore


@functools.partial(jax.jit, static_argnames=("free", "horizon"))
def _columns(values, data: Data, free, horizon):
    bias, noise = parts(shape_of(values, free, horizon), data.segments, relaxation_rates(horizon))
    at = (data.run, data.segment)
    return jnp.stack([jnp.ones_like(data.loss), bias[at], noise[at]], axis=1) / data.loss[:, None]


@functools.partial(jax.jit, static_argnames=("free", "horizon"))
def _projected(values, data, weights, free, horizon):
    """Weighted relative residuals after the best amplitudes, and their derivatives."""

    def residuals(values):
        columns = _columns(values, data, free, horizon) * weights[:, None]
        basis = jnp.linalg.qr(columns / jnp.linalg.norm(columns, axis=0)[None, :])[0]
        out = weights - basis @ (basis.T @ weights)
        return out, out

    slope, value = jax.jacfwd(residuals, has_aux=True)(values)
    return value, slope


def _amplitudes(columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """None of bias and noise is negative."""
    kept = [0, 1, 2]
    found = np.zeros(3)
    while True:
        found[:] = 0.0
        found[kept] = np.linalg.lstsq(columns[:, kept] * weights[:, None], weights, rcond=None)[0]
        negative = [i for i in kept[1:] if found[i] < 0]
        if not negative:
            return found
        kept.remove(negative[-1])


def _descend(values, data, weights, free, horizon, evaluations):
    low, high = (np.asarray([_BOX[name][i] for name in free]) for i in (1, 2))
    last: dict[str, tuple] = {}

    def both(values):
        key = values.tobytes()
        if key not in last:
            last.clear()
            last[key] = tuple(np.asarray(a) for a in _projected(values, data, weights, free, horizon))
        return last[key]

    return least_squares(
        lambda v: both(v)[0],
        np.clip(values, low + 1e-3, high - 1e-3),
        jac=lambda v: both(v)[1],  # pyright: ignore
        bounds=(low, high),
        xtol=1e-6,
        ftol=1e-7,
        max_nfev=evaluations,
    )


def starts(free: tuple[str, ...], count: int, seed: int = 0) -> list[np.ndarray]:
    center, spread = (np.asarray([_BOX[name][i] for name in free]) for i in (0, 3))
    rng = np.random.default_rng(seed)
    return [center + (i > 0) * spread * rng.normal(size=center.size) for i in range(count)]


def fit(
    data: Data, weights: np.ndarray, free: Sequence[str], horizon: float, begin: Sequence[np.ndarray], rounds: int = _ROUNDS
) -> Fit:
    """From the best of the starts, with weights renewed `rounds` times (iteratively reweighted least squares). Records of weight
    0 have no say."""
    free = (*SHAPE, *(name for name in OPTIONAL if name in free))
    with jax.enable_x64(True):
        data = jax.tree.map(lambda a: jnp.asarray(a, dtype=float if a.dtype.kind == "f" else int), data)
        prior = np.sqrt(weights)
        tried = [_descend(values, data, prior, free, horizon, 30) for values in begin]
        best = min(tried, key=lambda result: result.cost).x
        amplitudes, residuals, scale = _residuals(best, data, weights, np.ones_like(prior), free, horizon)
        for _ in range(rounds):
            robust = 1 / (1 + (residuals / (_WIDTH * scale)) ** 2)
            best = _descend(best, data, prior * np.sqrt(robust), free, horizon, 30).x
            amplitudes, residuals, scale = _residuals(best, data, weights, robust, free, horizon)
    return Fit(free, best, amplitudes, residuals, scale)


def _residuals(values, data, weights, robust, free, horizon) -> tuple[np.ndarray, np.ndarray, float]:
    """Amplitudes, relative residuals, and their robust deviation where there is weight."""
    columns = np.asarray(_columns(values, data, free, horizon))
    amplitudes = _amplitudes(columns, np.sqrt(weights * robust))
    residuals = columns @ amplitudes - 1
    return amplitudes, residuals, max(_deviation(residuals[weights > 0]), 1e-7)


def _deviation(residuals: np.ndarray) -> float:
    """1.4826 times the median of absolute residuals: the standard deviation where they are normal."""
    return 1.4826 * float(np.median(np.abs(residuals)))


def loose(found: Fit, data: Data, horizon: float, blocks: int) -> tuple[str, ...]:
    """Names of what ended at the border of its range, or whose 90% interval in linear theory, residuals as `blocks` independent
    ones, is longer than the value itself: along a flat valley bootstrap draws that start from the fit stay where they are."""
    near = [min(v - _BOX[n][1], _BOX[n][2] - v) < 1e-2 for n, v in zip(found.free, found.values, strict=True)]
    robust = 1 / (1 + (found.residuals / (_WIDTH * found.scale)) ** 2)
    with jax.enable_x64(True):
        data = jax.tree.map(jnp.asarray, data)
        slope = np.asarray(_projected(found.values, data, np.sqrt(robust), found.free, horizon)[1])
    deviations = found.scale * np.sqrt(np.diag(np.linalg.pinv(slope.T @ slope, rcond=1e-14)) * len(slope) / blocks)
    # Logarithms are relative; the logit of the gain is less so, near 1.
    sizes = {"rate_exponent": abs, "feedback": lambda value: 1 + np.exp(value)}
    relative = [d / sizes.get(n, lambda _: 1.0)(v) for n, v, d in zip(found.free, found.values, deviations, strict=True)]
    wide = [3.29 * each > 1 for each in relative]
    return tuple(name for name, one, other in zip(found.free, near, wide, strict=True) if one or other)
