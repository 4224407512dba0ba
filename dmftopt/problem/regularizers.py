"""Regularizers: elementwise penalties of the weights. Their strength is `Protocol.ridge(t)`.

One SGD step adds -eta ridge(t) h(theta) / d to theta, with h the derivative of the penalty.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import as_number, check_real, check_shape, is_concrete


class AbstractRegularizer(eqx.Module):
    """A penalty of each weight by itself. Your own needs only `penalty`, written with jax.numpy; float fields can be swept and
    differentiated.

    The penalty should be smooth on the scale that the weights cross in one step of the grid: a kink is stepped over."""

    @abc.abstractmethod
    def penalty(self, theta: Float[Array, "..."]) -> Float[Array, "..."]:
        """Elementwise."""

    def gradient(self, theta: Float[Array, "..."]) -> Float[Array, "..."]:
        """h(theta), the derivative of the penalty."""
        return jax.grad(lambda theta: jnp.sum(self.penalty(theta)))(theta)

    def slope(self, theta: Float[Array, "..."]) -> Float[Array, "..."]:
        """dh / d theta. It only sets the rate of the exponential step."""
        return jax.grad(lambda theta: jnp.sum(self.gradient(theta)))(theta)


class Ridge(AbstractRegularizer):
    """theta² / 2, weight decay: the weights stay linear in their start and the gradients, which the solver does exactly."""

    def penalty(self, theta):
        return 0.5 * theta**2

    def gradient(self, theta):
        return theta

    def slope(self, theta):
        return jnp.ones_like(theta)


class SmoothL1(AbstractRegularizer):
    """sqrt(theta² + width²) - width: |theta| with its kink rounded off, quadratic within `width` > 0 of 0.

    Near 0 weights decay at the rate eta ridge / width: a small width needs small steps."""

    width: Any = eqx.field(converter=as_number, default=0.1)

    def __check_init__(self):
        _check_width(self.width)

    def penalty(self, theta):
        return _rounded(theta, self.width)


class ElasticNet(AbstractRegularizer):
    """share (sqrt(theta² + width²) - width) + (1 - share) theta² / 2, with `share` in [0, 1]."""

    share: Any = eqx.field(converter=as_number, default=0.5)
    width: Any = eqx.field(converter=as_number, default=0.1)

    def __check_init__(self):
        _check_width(self.width)
        check_real("share", self.share, minimum=0.0, cure="It is the share of the L1 penalty.")
        check_shape("share", self.share, ((),), "Use jax.vmap for a sweep.")
        if is_concrete(self.share) and np.any(np.asarray(self.share) > 1):
            raise ValueError(f"share must be at most 1, got {self.share}. It is the share of the L1 penalty.")

    def penalty(self, theta):
        return self.share * _rounded(theta, self.width) + (1 - self.share) * 0.5 * theta**2


def _rounded(theta, width):
    return jnp.sqrt(theta**2 + width**2) - width


def _check_width(width):
    check_real("width", width, minimum=0.0, exclusive=True, cure="It rounds off the kink of |theta|.")
    check_shape("width", width, ((),), "Use jax.vmap for a sweep.")
