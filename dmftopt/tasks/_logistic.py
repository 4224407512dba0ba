import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jax.scipy.stats import norm

from ..quadrature import gaussian_mean
from ._classification import AbstractClassification


class Logistic(AbstractClassification):
    """Logistic regression: loss = log(1 + exp(-y r)). For `labels` ("sign" by default) see `AbstractClassification`."""

    def loss(self, r, y):
        return jax.nn.softplus(-y * r)

    def gradient(self, r, y):
        return -y * jax.nn.sigmoid(-y * r)

    def curvature(self, r, y):
        return jax.nn.sigmoid(r) * jax.nn.sigmoid(-r)

    def mean_gradient(self, s):
        return jnp.full_like(s, -0.5)


class Probit(AbstractClassification):
    """Probit regression: loss = -log Phi(y r). For `labels` ("sign" by default) see `AbstractClassification`."""

    def loss(self, r, y):
        return -log_ndtr(y * r)

    def gradient(self, r, y):
        return -y * _hazard(y * r)

    def curvature(self, r, y):
        hazard = _hazard(y * r)
        return hazard * (hazard + y * r)

    def mean_gradient(self, s):
        # The hazard's nearest singularity is at a distance 2.8 from the real line: exact to 1e-8 up to s = 5.
        return gaussian_mean(lambda r: -_hazard(r), s, spacing=0.2)


def _hazard(margin):
    """phi / Phi."""
    return jnp.exp(norm.logpdf(margin) - log_ndtr(margin))
