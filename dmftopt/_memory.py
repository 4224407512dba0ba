"""Memory that a request takes, estimated before anything is allocated: what cannot fit would otherwise hang, or end the process.

Estimates count the arrays that must be there at once, within a factor of 2 of what XLA reports (tests/test_memory.py). What
derivatives take besides is not counted.
"""

import os

import jax
import jax.numpy as jnp


def check_memory(request: str, numbers: float, cure: str) -> None:
    """Raise ValueError where so many real numbers, in JAX's default precision, take more than all the memory of the device, or of
    this computer. `request`: the arguments that ask for it, with their values."""
    dtype = jnp.zeros(()).dtype
    needed, there = float(numbers) * dtype.itemsize, _memory()
    if needed > there:
        raise ValueError(f"{request}: this takes about {needed / 1e9:.3g} GB of memory, of {there / 1e9:.3g} GB. {cure}")


def _memory() -> float:
    """Bytes, where known: of the device, or of the computer."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        return float(limit)
    try:
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        # Not on Linux or macOS: what only the largest machines have.
        return 1e12
