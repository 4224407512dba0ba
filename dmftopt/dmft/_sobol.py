"""Scrambled Sobol points as a pure function of a key. The direction numbers are SciPy's (Joe & Kuo 2008)."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32
from scipy.stats import qmc

MAX_DIMENSION = qmc.Sobol.MAXDIM
_BITS = 30


@lru_cache(maxsize=32)
def _directions(dimension: int, log_samples: int) -> np.ndarray:
    """Direction numbers (log_samples, dimension), `_BITS` bits, read off SciPy's unscrambled points at powers of two:
    point 2^k of the sequence, in Gray code order, is v_k xor v_{k-1}."""
    sampler = qmc.Sobol(dimension, scramble=False, bits=_BITS)
    rows, position = [], 0
    for k in range(log_samples):
        sampler.fast_forward(2**k - position)
        position = 2**k + 1
        row = (sampler.random(1)[0] * 2.0**_BITS).astype(np.uint32)
        rows.append(row ^ rows[-1] if rows else row)
    return np.stack(rows) if rows else np.zeros((0, dimension), np.uint32)


def scrambled_sobol(key: Array, dimension: int, samples: int, shards: int = 1) -> Float[Array, "dimension sample"]:
    """`samples` (a power of two) points in (0, 1)^dimension, random linear matrix scramble and digital shift
    (Matoušek 1998). The first half of the points is itself a scrambled Sobol set.

    `shards` (a power of two, at most samples / 2): the same points in another order, such that every shard holds an equal part of
    the first half, then of the second."""
    log_samples, log_shards = samples.bit_length() - 1, shards.bit_length() - 1
    directions = _directions(dimension, log_samples)
    if shards > 1:
        # The last direction tells the halves apart: it becomes the last within a shard.
        local = log_samples - log_shards
        directions = np.concatenate([directions[: local - 1], directions[-1:], directions[local - 1 : -1]])
    directions = jnp.asarray(directions)
    key_matrix, key_shift = jax.random.split(key)
    # Row p of a lower-triangular bit matrix with unit diagonal makes output bit p (from the top) of input bits 0..p.
    position = np.arange(_BITS)
    diagonal = jnp.asarray((1 << (_BITS - 1 - position)).astype(np.uint32))
    above = jnp.asarray((((1 << position) - 1) << (_BITS - position)).astype(np.uint32))
    matrix = (jax.random.bits(key_matrix, (_BITS, dimension), jnp.uint32) & above[:, None]) | diagonal[:, None]
    parity = jax.lax.population_count(matrix[None] & directions[:, None]) & 1
    directions = jnp.sum(parity << jnp.asarray(_BITS - 1 - position, jnp.uint32)[None, :, None], axis=1, dtype=jnp.uint32)
    shift = jax.random.bits(key_shift, (dimension, 1), jnp.uint32) >> (32 - _BITS)
    # Every device makes these by itself, and from them its own shard.
    local = log_samples - (log_shards or log_samples // 2)
    offsets, points = _combinations(directions[local:]), shift ^ _combinations(directions[:local])
    points = (offsets[:, :, None] ^ points[:, None, :]).reshape(dimension, samples)
    dtype = jnp.zeros(()).dtype
    kept = min(_BITS, jnp.finfo(dtype).nmant)  # so that the largest point stays below 1 after rounding
    return ((points >> (_BITS - kept)).astype(dtype) + 0.5) * 2.0**-kept


def _combinations(directions: UInt32[Array, "k dimension"]) -> UInt32[Array, "dimension 2**k"]:
    """Exclusive or of every subset of the rows: entry i has row k where bit k of i is set."""
    count = directions.shape[0]
    chosen = (np.arange(1 << count) >> np.arange(count)[:, None, None]) & 1 == 1
    rows = jnp.where(chosen, directions[:, :, None], jnp.uint32(0))
    return jax.lax.reduce(rows, jnp.uint32(0), jax.lax.bitwise_xor, (0,))
