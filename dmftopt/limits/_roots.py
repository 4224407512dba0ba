"""Roots of a few equations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optimistix
from jax.flatten_util import ravel_pytree


def root(excess: Callable, start: Any, tolerance: float, max_steps: int) -> Any:
    """The root of `excess` that Newton's method finds from `start` (or where it ended), differentiable in whatever `excess`
    closes over, by the implicit function theorem, in forward and reverse mode and any number of times.

    (optimistix's own rule solves its linear equations by lineax with errors on, host callbacks that `jax.export` cannot write.)
    """

    def solve(excess, start):
        newton = optimistix.Newton(rtol=tolerance, atol=tolerance)
        return optimistix.root_find(lambda x, _: excess(x), newton, start, max_steps=max_steps, throw=False).value

    def solve_tangent(linear, values):
        flat, unravel = ravel_pytree(values)
        matrix = jax.jacfwd(lambda v: ravel_pytree(linear(unravel(v)))[0])(jnp.zeros_like(flat))
        return unravel(flat / matrix[0] if flat.size == 1 else jnp.linalg.solve(matrix, flat))

    return jax.lax.custom_root(excess, start, solve, solve_tangent)
