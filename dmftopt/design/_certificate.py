from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._checks import check_count, check_function, check_key, check_real, front_door
from .._register import register
from ._staged import AbstractObjective, Gradient, staged

# Curvatures smaller than this, relative to the strongest, are not told from noise.
_FLAT = 1e-3


@register
class Certificate(eqx.Module):
    """Of a protocol: how far it is from a local minimum, and how well that is known.

    - `names`: (parameter,) of what is tuned; `point`: (parameter,) its values (what is stored: a logarithm for a positive one).
    - `gradient`, `gradient_error`: (parameter,) mean over fresh random numbers, and its standard error.
    - `hessian`: (parameter, parameter), by central differences of the gradient on the same random numbers.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    point: Float[np.ndarray, " parameter"]
    gradient: Float[np.ndarray, " parameter"]
    gradient_error: Float[np.ndarray, " parameter"]
    hessian: Float[np.ndarray, "parameter parameter"]

    @property
    def gradient_norm(self) -> float:
        return float(np.linalg.norm(self.gradient))

    @property
    def gradient_norm_error(self) -> float:
        """Root mean square norm of the gradient's error: a smaller gradient cannot be told from zero."""
        return float(np.linalg.norm(self.gradient_error))

    @property
    def curvatures(self) -> Float[np.ndarray, " parameter"]:
        """Eigenvalues of the Hessian, increasing: positive at a minimum, near zero where the objective is flat."""
        return np.linalg.eigvalsh(self.hessian)

    @property
    def downward(self) -> int:
        """How many directions curve downward, by more than 1e-3 of the strongest curvature: none at a minimum, all at a maximum.
        What curves less, either way, is taken to be flat."""
        values = self.curvatures
        return int(np.sum(values < -_FLAT * np.max(np.abs(values))))

    @property
    def possible_gain(self) -> float:
        """How much lower the minimum of the quadratic model is, g^T H^-1 g / 2 over directions that are not flat (the gradient's
        noise included). Infinite where some curve downward: the model has no minimum."""
        if self.downward:
            return float("inf")
        values, vectors = np.linalg.eigh(self.hessian)
        used = values > _FLAT * np.max(np.abs(values))
        along = vectors.T @ self.gradient
        return float(0.5 * np.sum(along[used] ** 2 / values[used]))

    def __str__(self) -> str:
        low, high = self.curvatures[[0, -1]]
        known = f"possible gain {self.possible_gain:.2g}"
        if self.downward:
            known = f"not a minimum: {self.downward} of {self.point.size} directions curve downward, possible gain unknown"
        return (
            f"gradient {self.gradient_norm:.2g} (standard error {self.gradient_norm_error:.2g}), "
            f"curvatures {low:.2g} to {high:.2g}, {known}"
        )


@front_door
def certify(
    objective: Callable[..., Any],
    protocol: Any,
    *,
    key: Array | None = None,
    keys: int = 8,
    spacing: float = 0.05,
    hessian_keys: int = 2,
    trainable: Callable[[Any], bool] = eqx.is_inexact_array,
) -> Certificate:
    """Gradient with its standard error, and curvature, of `objective` at `protocol`.

    Arguments as in `optimize`. The gradient is the mean over `keys` random numbers from `key` (without one: exact, no error),
    the Hessian that over the first `hessian_keys` of them, differences over `spacing` in each parameter: 2 parameters *
    hessian_keys gradients. Raises ValueError where a gradient is not finite.
    """
    return differentiated(staged(objective), protocol, key, keys, spacing, hessian_keys, trainable)


def differentiated(
    objective: AbstractObjective,
    protocol: Any,
    key: Array | None,
    keys: int,
    spacing: float,
    hessian_keys: int = 1,
    trainable: Callable[[Any], bool] = eqx.is_inexact_array,
    along: Callable[[Any], Any] | None = None,
) -> Certificate:
    """`along`: from the parameters to a mask of those of which second derivatives are wanted; the rest of the Hessian is 0."""
    check_count("keys", keys, minimum=2, cure="A standard error needs two.")
    check_count("hessian_keys", hessian_keys)
    check_function("trainable", trainable, "a leaf")
    check_real("spacing", spacing, minimum=0.0, exclusive=True)
    if key is not None:
        check_key(key)
    drawn: list[Array | None] = [None] if key is None else list(jax.random.split(key, keys))
    parameters, fixed = eqx.partition(protocol, trainable)
    flat, unravel = ravel_pytree(parameters)
    if not flat.size:
        raise ValueError("protocol has nothing to tune, so there is nothing to certify.")
    evaluate = Gradient(objective, parameters, fixed)

    def gradient(point: np.ndarray, key: Array | None) -> np.ndarray:
        value, gradient, finite = evaluate(unravel(jnp.asarray(point, flat.dtype)), key)
        if not finite:
            raise ValueError(f"objective or gradient is not finite ({float(value)}) at the protocol or {spacing:g} beside it.")
        return np.asarray(ravel_pytree(gradient)[0], dtype=float)

    point = np.asarray(flat, dtype=float)
    gradients = np.stack([gradient(point, k) for k in drawn])
    error = np.zeros(point.size) if key is None else gradients.std(axis=0, ddof=1) / np.sqrt(len(drawn))
    mask = np.ones(point.size, bool) if along is None else np.asarray(ravel_pytree(along(parameters))[0], bool)
    hessian = np.zeros((point.size, point.size))
    for i in np.flatnonzero(mask):
        shift = spacing * np.eye(point.size)[i]
        differences = [gradient(point + shift, k) - gradient(point - shift, k) for k in drawn[:hessian_keys]]
        hessian[i] = np.where(mask, np.mean(differences, axis=0) / (2 * spacing), 0.0)
    return Certificate(_names(parameters), point, gradients.mean(axis=0), error, 0.5 * (hessian + hessian.T))


def _names(parameters: Any) -> tuple[str, ...]:
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        name = jax.tree_util.keystr(path).lstrip(".")
        names += [name] if leaf.ndim == 0 else [f"{name}[{i}]" for i in range(leaf.size)]
    return tuple(names)
