"""Runs as segments of constant learning rate."""

import itertools

import jax.numpy as jnp
import numpy as np

from ._curves import Curve
from ._law import Segments

PIECES = 64
# A step that changes the learning rate by more than this share of its peak begins a segment.
_JUMP = 0.02


def edges_of(rates: np.ndarray, at: np.ndarray, warmup: int, pieces: int) -> np.ndarray:
    """Where segments begin and end: at `at`, at jumps, and so that none is longer than a share 1/`pieces` of the run and none
    in the warm-up longer than a half of what went before, where the bias falls by powers."""
    steps = rates.size
    jumps = 1 + np.flatnonzero(np.abs(np.diff(rates)) > _JUMP * rates.max())
    jumps = jumps if jumps.size <= pieces else jumps[:0]
    early = np.round(np.geomspace(1, max(min(warmup, steps), 1), 1 + int(np.ceil(pieces / 32 * np.log2(max(warmup, 2))))))
    edges = np.unique(np.concatenate([early, jumps, at[at > 0], [0, steps]])).astype(int)
    between = [np.linspace(a, b, -(-(b - a) * pieces // steps), endpoint=False) for a, b in itertools.pairwise(edges)]
    return np.unique(np.round(np.concatenate([*between, edges]))).astype(int)


def cut(rates: np.ndarray, batches: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean learning rate, and harmonic mean of the batch size of each segment."""
    steps = np.diff(edges).astype(float)

    def mean(values):
        return np.diff(np.concatenate([[0.0], np.cumsum(values)])[edges]) / steps

    return steps, mean(rates), 1 / mean(1 / batches)


def stack(runs: list[tuple[np.ndarray, np.ndarray, np.ndarray]], peak: float, batch_size: float) -> Segments:
    count = max(run[0].size for run in runs)

    def rows(which, unit, fill):
        padded = [np.pad(run[which] / unit, (0, count - run[which].size), constant_values=fill) for run in runs]
        return jnp.asarray(np.stack(padded), dtype=float)

    return Segments(rows(0, 1.0, 0.0), rows(1, peak, 1.0), rows(2, batch_size, 1.0))


def of_curves(curves: list[Curve], at: list[np.ndarray], peak: float, batch_size: float, pieces: int = PIECES):
    """Segments that end at the steps `at` of each run, and for each of these (first run first) its run and segment."""
    runs, run, segment = [], [], []
    for i, (curve, steps) in enumerate(zip(curves, at, strict=True)):
        rates = curve.rates()
        edges = edges_of(rates, steps, int(np.argmax(rates >= 0.99 * rates.max())), pieces)
        runs.append(cut(rates, curve.batches(), edges))
        run.append(np.full(steps.size, i))
        segment.append(np.searchsorted(edges, steps) - 1)
    return stack(runs, peak, batch_size), np.concatenate(run), np.concatenate(segment)
