"""Gaussian features, given by groups of equal eigenvalues."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import as_number, check_count, check_real, check_shape, front_door, is_concrete
from .._memory import check_memory


@front_door
class Features(eqx.Module):
    """Independent Gaussian coordinates x_j with variance lambda_j / d.

    A fraction `weights[a]` of the d coordinates has lambda = `eigenvalues[a]`. With weighted mean 1 (what the factories
    below return) E‖x‖² = 1, and the learning rate is that of SGD on features of unit mean square norm.

    - `eigenvalues`: (group,), positive.
    - `weights`: (group,), positive, summing to 1.
    """

    eigenvalues: Float[Array, " group"] = eqx.field(converter=as_number)
    weights: Float[Array, " group"] = eqx.field(converter=as_number)

    def __check_init__(self):
        check_real("eigenvalues", self.eigenvalues, minimum=0.0, exclusive=True, cure="Drop directions of zero variance.")
        check_real("weights", self.weights, minimum=0.0, exclusive=True, cure="Drop empty groups.")
        if np.ndim(self.eigenvalues) != 1 or np.size(self.eigenvalues) == 0:
            shape = np.shape(self.eigenvalues)
            raise ValueError(f"eigenvalues must be one-dimensional with at least one entry, got shape {shape}.")
        check_shape("weights", self.weights, (np.shape(self.eigenvalues),), "Give one weight per eigenvalue.")
        if is_concrete(self.weights) and abs(float(np.sum(np.asarray(self.weights))) - 1.0) > 1e-4:
            raise ValueError(f"weights must sum to 1, got {float(np.sum(np.asarray(self.weights)))}. Divide by their sum.")

    @property
    def groups(self) -> int:
        return self.eigenvalues.shape[0]


def isotropic() -> Features:
    """All eigenvalues 1: x ~ N(0, I/d)."""
    return Features(jnp.ones(1), jnp.ones(1))


@front_door
def spectrum(eigenvalues: Any, weights: Any = None) -> Features:
    """Any spectrum. Eigenvalues are divided by their weighted mean and weights by their sum (equal if not given)."""
    check_real("eigenvalues", eigenvalues, minimum=0.0, exclusive=True, cure="Drop directions of zero variance.")
    eigenvalues = jnp.atleast_1d(jnp.asarray(eigenvalues, dtype=float))
    if weights is None:
        weights = jnp.ones_like(eigenvalues)
    check_real("weights", weights, minimum=0.0, exclusive=True, cure="Drop empty groups.")
    weights = jnp.atleast_1d(jnp.asarray(weights, dtype=float))
    check_shape("weights", weights, (eigenvalues.shape,), "Give one weight per eigenvalue.")
    weights = weights / jnp.sum(weights)
    return Features(eigenvalues / jnp.sum(weights * eigenvalues), weights)


@front_door
def power_law(exponent: float, *, dimension: int = 1000, groups: int = 32) -> Features:
    """Eigenvalues proportional to j^-exponent for j = 1..dimension, gathered into at most `groups` groups."""
    check_real("exponent", exponent, minimum=0.0, cure="Pass the decay rate as a positive number.")
    check_count("dimension", dimension)
    check_count("groups", groups)
    check_memory(f"dimension = {dimension}", 6 * dimension, "Lower it.")
    if dimension ** -float(exponent) < np.finfo(float).tiny:
        raise ValueError(
            f"exponent must leave eigenvalues above 0, got {exponent} with dimension = {dimension}. Lower one of them."
        )
    eigenvalues = np.arange(1, dimension + 1) ** -float(exponent)
    means, counts, _ = group_eigenvalues(eigenvalues, groups)
    return spectrum(means, counts)


def group_eigenvalues(eigenvalues: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gather eigenvalues into bins of equal width in log eigenvalue, dropping empty bins.

    Returns the mean of each group, the count of each group and the group of each eigenvalue.
    """
    logs = np.log(eigenvalues)
    width = max(float(logs.max() - logs.min()), 1e-12) / groups
    bins = np.minimum(((logs.max() - logs) / width).astype(int), groups - 1)
    _, labels = np.unique(bins, return_inverse=True)
    counts = np.bincount(labels)
    return np.bincount(labels, weights=eigenvalues) / counts, counts, labels


def split_groups(counts: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """`groups` groups, at most one per eigenvalue, made of fewer by cutting the largest in halves: for each the group it was cut
    from, and its count. The theory sees sums over groups only, in which nothing changes."""
    parts = [(int(count), parent) for parent, count in enumerate(counts)]
    while len(parts) < groups:
        largest = max(range(len(parts)), key=lambda i: parts[i][0])
        count, parent = parts[largest]
        parts[largest : largest + 1] = [(count - count // 2, parent), (count // 2, parent)]
    split, parents = np.asarray(parts).T
    return parents, split
