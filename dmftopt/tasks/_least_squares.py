from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.special import ndtri

from .._checks import as_number, check_real, check_shape
from ..quadrature import gauss_hermite
from ._base import AbstractTask


class LeastSquares(AbstractTask):
    """loss = (r - y)² / 2 with y = w_star + label_noise * N(0, 1). (Twice the risk is the mean squared error.)

    `label_noise` is the standard deviation of the noise, in the units of the labels.
    """

    label_noise: Any = eqx.field(converter=as_number, default=0.0)

    def __check_init__(self):
        check_real("label_noise", self.label_noise, minimum=0.0, cure="It is a standard deviation.")
        check_shape("label_noise", self.label_noise, ((),), "Use jax.vmap for a sweep.")

    def valid(self):
        return jnp.asarray(self.label_noise) >= 0

    def loss(self, r, y):
        return 0.5 * (r - y) ** 2

    def label(self, w_star, noise):
        return w_star + self.label_noise * ndtri(noise)

    def gradient(self, r, y):
        return r - y

    def curvature(self, r, y):
        return jnp.ones_like(r)

    def population(self, teacher_scale):
        """Five by five Gauss-Hermite nodes over teacher field and label noise: exact for polynomials up to degree 9."""
        scale = jnp.asarray(teacher_scale)
        nodes, weights = gauss_hermite(5, scale.dtype)
        xi, noise = (a.ravel() for a in jnp.meshgrid(nodes, nodes))
        return xi, scale * xi + jnp.asarray(self.label_noise, scale.dtype) * noise, jnp.outer(weights, weights).ravel()

    def test_risk(self, Q, O, rho):
        """(Q - 2 O + rho + label_noise²) / 2, exact."""
        return 0.5 * (Q - 2 * O + rho + self.label_noise**2)
