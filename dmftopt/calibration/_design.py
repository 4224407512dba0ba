"""A schedule of least final loss."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from ._law import KernelLaw, Segments

_SEGMENTS = 192


def families(steps: int, warmup: int, low: float, high: float) -> dict[str, np.ndarray]:
    """The usual schedules between the bounds, after a linear warm-up."""
    after = np.arange(steps - warmup) / (steps - warmup)
    decay = np.clip((after - 0.8) / 0.2, 0.0, 1.0)
    shapes = {
        "constant": np.ones_like(after),
        "cosine": 0.5 * (1 + np.cos(np.pi * after)),
        "linear": 1 - after,
        "warmup-stable-decay": 1 - decay,
    }
    rise = high * np.arange(warmup) / max(warmup, 1)
    return {name: np.concatenate([rise, low + (high - low) * shape]) for name, shape in shapes.items()}


def descend(
    law: KernelLaw, starts: dict[str, np.ndarray], warmup: int, bounds: tuple[float, float], batch_size: float, knots: int
) -> np.ndarray:
    """The best rate of every step, the warm-up as in the starts."""
    first = next(iter(starts.values()))
    steps, peak = first.size, law.peak
    # Dense towards the end, where rates decay, for knots and segments alike.
    places = 1 - (1 - np.linspace(0, 1, knots)) ** 2
    late = np.round(warmup + (steps - warmup) * (1 - (1 - np.linspace(0, 1, _SEGMENTS + 1)) ** 2))
    early = np.round(np.linspace(0, warmup, 17))
    edges = np.unique(np.concatenate([early, late])).astype(int)
    middle = 0.5 * (edges[1:] + edges[:-1])
    relative = (middle - warmup) / (steps - warmup)
    with jax.enable_x64(True):
        risen, batch = jnp.asarray(first[np.minimum(middle.astype(int), steps - 1)] / peak), batch_size / law.batch_size
        counts, warming = jnp.asarray(np.diff(edges), dtype=float)[None, :], jnp.asarray(relative < 0)
        place, knot_place = jnp.asarray(np.clip(relative, 0, 1)), jnp.asarray(places)

        @jax.jit
        @jax.value_and_grad
        def final(values, law):
            rate = jnp.where(warming, risen, jnp.interp(place, knot_place, values))[None, :]
            return law.loss(Segments(counts, rate, jnp.full_like(rate, batch)))[0, -1]

        best, lowest = np.zeros(knots), np.inf
        scale = 1e4  # L-BFGS-B's own tolerances are for changes of order one
        for rates in starts.values():
            begin = np.interp(places, (np.arange(steps) - warmup) / (steps - warmup), rates) / peak

            def scaled(values):
                value, slope = final(jnp.asarray(values), law)
                return scale * float(value), scale * np.asarray(slope)

            limits = [(bounds[0] / peak, bounds[1] / peak)] * knots
            found = minimize(scaled, begin, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 300})
            if found.fun < lowest:
                best, lowest = found.x, found.fun
    after = np.interp(np.arange(steps - warmup) / (steps - warmup), places, best) * peak
    return np.concatenate([first[:warmup], after])
