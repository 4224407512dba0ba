"""Protocols as vectors of their tuned numbers, and what an objective predicts of them along the run."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def flat(protocol: Any) -> np.ndarray:
    """Its tuned numbers as they are stored."""
    return np.asarray(ravel_pytree(eqx.filter(protocol, eqx.is_inexact_array))[0], dtype=float)


def protocol_of(protocol: Any, point: Any) -> Any:
    """`protocol` with these tuned numbers."""
    parameters, fixed = eqx.partition(protocol, eqx.is_inexact_array)
    return eqx.combine(ravel_pytree(parameters)[1](jnp.asarray(point, dtype=float)), fixed)


def observed(objective: Any, protocol: Any, grid: Any) -> Any:
    """What an objective predicts for a run, at all of the relative times `grid`."""
    return eqx.tree_at(lambda o: o.grid, objective, grid).predict_run(protocol)
