"""Optimizers of optax, where a theory takes them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._checks import check_instance


def check_elementwise(optimizer: Any) -> None:
    """Raise unless what the optimizer does to one weight depends on that weight alone."""
    check_instance("optimizer", optimizer, optax.GradientTransformation, "Pass for example optax.adam(0.1).")
    if not _is_elementwise(optimizer):
        raise ValueError(
            "optimizer must be elementwise: this one mixes weights (a norm over all of them, say), which has another limit."
        )


@functools.lru_cache
def _is_elementwise(optimizer: optax.GradientTransformation) -> bool:
    with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
        weights = jnp.linspace(-1.0, 2.0, 6)
        gradients = jnp.array([[0.3, -2.0, 1.0, 5.0, 0.0, -0.1], [1.0, 2.0, 0.1, -3.0, 0.5, 0.2]])

        def run(keep):
            theta, state = weights[keep], optimizer.init(weights[keep])
            for gradient in gradients[:, keep]:
                updates, state = optimizer.update(gradient, state, theta)
                theta = theta + jnp.asarray(updates)
            return np.asarray(theta)

        return np.allclose(run(slice(None))[:3], run(slice(3)), atol=1e-5)
