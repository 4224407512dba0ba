"""Priors: the law of the entries of the teacher and of the initial student, of mean square 1 (scales are the problem's).

They matter only with a regularizer other than the ridge: linear weights feel second moments alone.
"""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, ndtr, ndtri
from jaxtyping import Array, Float

from .._checks import as_number, check_real, check_shape, is_concrete, without_derivative


class AbstractPrior(eqx.Module):
    """A law of independent entries, as a function of standard normals (its quantile function at the normal's)."""

    @abc.abstractmethod
    def entries(self, normals: Float[Array, "..."]) -> Float[Array, "..."]:
        """Elementwise. Columns are rescaled to mean square 1 afterwards."""


class Normal(AbstractPrior):
    """Standard normal."""

    def entries(self, normals):
        return normals


class Sparse(AbstractPrior):
    """Bernoulli-Gauss: a `fraction` of the entries, in (0, 1], is normal of variance 1 / fraction, the others are 0.

    Which entries are 0 has no derivative in the fraction: asking for one is an error."""

    fraction: Any = eqx.field(converter=as_number)

    def __check_init__(self):
        check_real("fraction", self.fraction, minimum=0.0, exclusive=True, cure="It is the share of entries that are not 0.")
        check_shape("fraction", self.fraction, ((),), "Use jax.vmap for a sweep.")
        if is_concrete(self.fraction) and np.any(np.asarray(self.fraction) > 1):
            raise ValueError(f"fraction must be at most 1, got {self.fraction}. It is the share of entries that are not 0.")

    def entries(self, normals):
        fraction = without_derivative(
            jnp.asarray(self.fraction, normals.dtype),
            "priors.Sparse has no derivative in its fraction. Hold it fixed (a Python number under equinox.filter_grad), or use "
            "jax.lax.stop_gradient.",
        )
        tail = ndtr(-jnp.abs(normals)) / fraction
        inside = tail < 0.5
        return jnp.where(inside, -jnp.sign(normals) * ndtri(jnp.where(inside, tail, 0.5)), 0.0) / jnp.sqrt(fraction)


class Rademacher(AbstractPrior):
    """+1 or -1, equally likely."""

    def entries(self, normals):
        return jnp.where(normals < 0, -1.0, 1.0).astype(normals.dtype)


class Laplace(AbstractPrior):
    """Density exp(-sqrt(2) |theta|) / sqrt(2)."""

    def entries(self, normals):
        return -jnp.sign(normals) * (jnp.log(2.0) + log_ndtr(-jnp.abs(normals))) / jnp.sqrt(2.0).astype(normals.dtype)


class HeavyTailed(AbstractPrior):
    """Student's t with 4 degrees of freedom: tails |theta|^-5, no fourth moment."""

    def entries(self, normals):
        # Closed quantile function (Shaw 2006, "Sampling Student's T distribution").
        root = jnp.sqrt(jnp.clip(4 * ndtr(normals) * ndtr(-normals), 0.0, 1.0))
        return jnp.sign(normals) * jnp.sqrt(2 * jnp.maximum(jnp.cos(jnp.arccos(root) / 3) / root - 1, 0.0))


def orthonormal_entries(priors: Sequence[AbstractPrior], normals: Float[Array, "column point"]) -> Float[Array, "column point"]:
    """Columns of entries of the priors' laws, made orthonormal in the sample: this changes them by sampling error only, and takes
    the sampling error away from what is of second order in them."""
    columns: list[Array] = []
    for prior, normal in zip(priors, normals, strict=True):
        column = prior.entries(normal)
        for earlier in columns:
            column = column - jnp.mean(column * earlier) * earlier
        columns.append(column / jnp.sqrt(jnp.mean(column**2)))
    return jnp.stack(columns)
