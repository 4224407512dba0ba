"""Protocol: what is tuned."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np

from ._checks import as_number, check_real
from .schedules import Constant


class Protocol(eqx.Module):
    """Learning rate, batch size and ridge as functions of time t = steps/d.

    Each argument is a number, an array scalar, or a callable of t (a schedule). Plain Python numbers are held fixed by
    `dmftopt.optimize`; JAX arrays, and the arrays inside schedules, are trainable.

    - `learning_rate`: eta(t) >= 0, the rate of ordinary SGD on features of unit mean square norm.
    - `batch_size`: B(t) >= 1, samples per SGD step.
    - `ridge`: strength of the regularizer, >= 0: coefficient of its gradient h(theta), which is theta unless the problem has
      another `regularizer`.
    """

    learning_rate: Callable
    batch_size: Callable
    ridge: Callable

    def __init__(self, learning_rate: Any, batch_size: Any = 1.0, ridge: Any = 0.0):
        self.learning_rate = _as_schedule("learning_rate", learning_rate, 0.0, "Learning rates cannot be negative.")
        self.batch_size = _as_schedule("batch_size", batch_size, 1.0, "SGD uses at least one sample per step.")
        self.ridge = _as_schedule("ridge", ridge, 0.0, "A negative ridge is unbounded below.")


def _as_schedule(name: str, value: Any, minimum: float, cure: str) -> Callable:
    if callable(value):
        return value
    check_real(name, value, minimum=minimum, cure=cure)
    if np.shape(value) != ():
        raise ValueError(
            f"{name} must be a scalar or a callable of t, got an array of shape {np.shape(value)}. "
            "Use dmftopt.schedules.PiecewiseLinear for values at knots, jax.vmap for a sweep."
        )
    return Constant(as_number(value))
