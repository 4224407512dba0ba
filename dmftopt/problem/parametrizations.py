"""Parametrizations: what is trained, if it is not the weights themselves but parameters of which the weights are a function.

Each weight theta = f(p) has parameters p of its own, all trained at once: one SGD step on the batch's gradient G in theta is
p <- p - eta [ G df/dp + ridge h(p) / d ]. Wherever else results say theta, it is f(p).
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import as_number, check_real, check_shape


class AbstractParametrization(eqx.Module):
    """Your own needs `weights` and `parameters`, elementwise, the component of a weight's parameters first."""

    @abc.abstractmethod
    def weights(self, parameters: Float[Array, "component ..."]) -> Float[Array, "..."]:
        """theta = f(p)."""

    @abc.abstractmethod
    def parameters(self, weights: Float[Array, "..."]) -> Float[Array, "component ..."]:
        """Where training starts, for initial weights drawn as the problem says: f(p) = theta."""

    def pull(self, parameters: Float[Array, "component ..."], gradient: Float[Array, "..."]) -> Float[Array, "component ..."]:
        """`gradient` in theta times df/dp."""
        return jax.vjp(self.weights, parameters)[1](gradient)[0]


class Direct(AbstractParametrization):
    """The weights themselves."""

    def weights(self, parameters):
        return parameters[0]

    def parameters(self, weights):
        return weights[None]


class Diagonal(AbstractParametrization):
    """Diagonal linear networks, theta = u² - v². At the start u v = scale², so u = v = scale > 0 for a weight of 0: the
    smaller, the stronger the preference for sparse weights.

    Source: Woodworth et al., arXiv:2002.09277.
    """

    scale: Any = eqx.field(converter=as_number, default=0.5)

    def __check_init__(self):
        check_real("scale", self.scale, minimum=0.0, exclusive=True, cure="At 0 all gradients vanish.")
        check_shape("scale", self.scale, ((),), "Use jax.vmap for a sweep.")

    def weights(self, parameters):
        return parameters[0] ** 2 - parameters[1] ** 2

    def parameters(self, weights):
        # The larger one first: the difference that makes the smaller would cancel.
        scale = jnp.asarray(self.scale, weights.dtype)
        large = jnp.sqrt(0.5 * (jnp.abs(weights) + jnp.sqrt(weights**2 + 4 * scale**4)))
        small = scale**2 / large
        return jnp.where(weights >= 0, jnp.stack([large, small]), jnp.stack([small, large]))
