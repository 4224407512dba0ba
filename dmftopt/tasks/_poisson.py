import jax
import jax.numpy as jnp

from .._checks import without_derivative
from ..numerics.quadrature import beside, gaussian_nodes, safe_sqrt
from ..protocol.noise import poisson_quantile
from ._base import AbstractTask

_JUMPS = (
    "tasks.PoissonRegression draws counts, which have no derivative in teacher_scale or features. Hold them fixed: differentiate "
    "in one argument, or with equinox.filter_grad (for which Python numbers are fixed), or use jax.lax.stop_gradient; "
    "or use limits.online."
)


class PoissonRegression(AbstractTask):
    """Counts y ~ Poisson(softplus(w_star)), loss = softplus(r) - y log softplus(r): minus their log-likelihood less log y!.

    With this link the loss is convex and its gradient at most 1 + y, so every moment of every field is finite, at any learning
    rate. With the canonical link exp(r) there is no limit d -> infinity on a finite training set: a second visit of a
    sample meets exp(learning_rate * y) with y itself of exponential tails, whose mean is infinite. So it is not offered.

    Counts jump, so a derivative of `solve` in what moves them (teacher_scale, features) raises an error; `limits.online` and
    `test_risk`, which average over counts analytically, are differentiable in everything.
    """

    def loss(self, r, y):
        return jax.nn.softplus(r) - y * _log_softplus(r)

    def label(self, w_star, noise):
        return poisson_quantile(noise, without_derivative(jax.nn.softplus(w_star), _JUMPS))

    def gradient(self, r, y):
        return jax.nn.sigmoid(r) - y * _log_slope(r)

    def curvature(self, r, y):
        slope = _log_slope(r)
        return jax.nn.sigmoid(r) * jax.nn.sigmoid(-r) + y * slope * (slope - jax.nn.sigmoid(-r))

    def population(self, teacher_scale):
        """The trapezoidal rule over the teacher field, and two labels of the counts' mean and variance: loss and gradient are
        linear in y, so this is exact for what is of second degree in them."""
        scale = jnp.asarray(teacher_scale)
        xi, weights = gaussian_nodes(0.25, scale.dtype)
        mean = jax.nn.softplus(scale * xi)
        y = jnp.concatenate([mean - jnp.sqrt(mean), mean + jnp.sqrt(mean)])
        return jnp.tile(xi, 2), y, 0.5 * jnp.tile(weights, 2)

    def test_risk(self, Q, O, rho):
        """E[softplus(w) - softplus(w_star) log softplus(w)], by the trapezoidal rule in two dimensions."""
        Q, O = jnp.asarray(Q), jnp.asarray(O)
        z, weights = gaussian_nodes(0.2, Q.dtype)
        scale = safe_sqrt(jnp.asarray(rho, Q.dtype))
        w_star, z = scale * beside(z[:, None], Q), beside(z[None], Q)
        Q, O = Q[..., None, None], O[..., None, None]
        r = O / rho * w_star + safe_sqrt(Q - O**2 / rho) * z
        return self.loss(r, jax.nn.softplus(w_star)) @ weights @ weights


def _log_softplus(r):
    # Below -30 log(softplus(r)) = r to rounding, and softplus itself may be 0.
    return jnp.where(r > -30, jnp.log(jax.nn.softplus(jnp.maximum(r, -30.0))), r)


def _log_slope(r):
    """d log softplus / dr."""
    inside = jnp.maximum(r, -30.0)
    return jnp.where(r > -30, jax.nn.sigmoid(inside) / jax.nn.softplus(inside), 1.0)
