from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.special import ndtri

from .._checks import as_number, check_real, check_shape
from ..quadrature import gauss_hermite
from ._base import AbstractTask


class PhaseRetrieval(AbstractTask):
    """loss = (r² - y)² / 4 with y = w_star² + label_noise * N(0, 1): learning from intensities.

    The student knows nothing of the teacher's sign, and at teacher overlap 0 nothing pulls it to either side: a saddle that
    d -> infinity never leaves. Start off it with `Problem(student_scale=..., initial_correlation=...)`, both not 0 (a student
    of exactly 0 never moves).

    The gradient is cubic, so steps overshoot where learning_rate / batch_size * (r² - y) > 2: a sample with such a field, once
    visited again and again, runs away with the student. On a finite training set no learning rate excludes that; its
    chance falls like exp(-batch_size / (learning_rate * student_overlap)). At a learning rate of 0.05 and overlaps below 1 it
    was not seen, neither in SGD nor in the solver, which agree. Where it is seen a solve may end in a result code, or be wrong
    by rare samples: lower the learning rate until more samples change nothing (32768 are needed for 0.5%).

    `label_noise` is the standard deviation of the noise, in the units of the labels.
    """

    label_noise: Any = eqx.field(converter=as_number, default=0.0)

    def __check_init__(self):
        check_real("label_noise", self.label_noise, minimum=0.0, cure="It is a standard deviation.")
        check_shape("label_noise", self.label_noise, ((),), "Use jax.vmap for a sweep.")

    def valid(self):
        return jnp.asarray(self.label_noise) >= 0

    def loss(self, r, y):
        return 0.25 * (r**2 - y) ** 2

    def label(self, w_star, noise):
        return w_star**2 + self.label_noise * ndtri(noise)

    def gradient(self, r, y):
        return r * (r**2 - y)

    def curvature(self, r, y):
        return 3 * r**2 - y

    def population(self, teacher_scale):
        """Five by five Gauss-Hermite nodes over teacher field and label noise: exact for polynomials up to degree 9."""
        scale = jnp.asarray(teacher_scale)
        nodes, weights = gauss_hermite(5, scale.dtype)
        xi, noise = (a.ravel() for a in jnp.meshgrid(nodes, nodes))
        y = (scale * xi) ** 2 + jnp.asarray(self.label_noise, scale.dtype) * noise
        return xi, y, jnp.outer(weights, weights).ravel()

    def test_risk(self, Q, O, rho):
        """(3 Q² + 3 rho² - 2 Q rho - 4 O² + label_noise²) / 4, exact."""
        return 0.25 * (3 * Q**2 + 3 * rho**2 - 2 * Q * rho - 4 * O**2 + self.label_noise**2)
