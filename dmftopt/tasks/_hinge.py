import jax.numpy as jnp
from jax.scipy.special import ndtr
from jax.scipy.stats import norm

from ._classification import AbstractClassification


class Hinge(AbstractClassification):
    """Support vector machine: loss = max(0, 1 - y r). For `labels` ("sign" by default) see `AbstractClassification`.

    The gradient jumps at margin 1 (see `AbstractTask.kink_width`), which makes the time step first order with gradient noise: use
    more samples and steps than for a smooth loss, or `richardson`. With Brownian noise, which leaves the kink where it meets
    it, convergence is slower still.
    """

    @property
    def kink_width(self):
        return 0.1

    def loss(self, r, y):
        return jnp.maximum(0.0, 1 - y * r)

    def gradient(self, r, y):
        return jnp.where(y * r < 1, -y, 0.0)

    def mean_loss(self, s):
        below, density = _kink(s)
        return below + s * density

    def mean_gradient(self, s):
        return -_kink(s)[0]


class SquaredHinge(AbstractClassification):
    """loss = max(0, 1 - y r)² / 2. For `labels` ("sign" by default) see `AbstractClassification`."""

    def loss(self, r, y):
        return 0.5 * jnp.maximum(0.0, 1 - y * r) ** 2

    def gradient(self, r, y):
        return -y * jnp.maximum(0.0, 1 - y * r)

    def curvature(self, r, y):
        return jnp.where(y * r < 1, 1.0, 0.0).astype(jnp.result_type(r))

    def mean_loss(self, s):
        below, density = _kink(s)
        return 0.5 * ((1 + s**2) * below + s * density)

    def mean_gradient(self, s):
        below, density = _kink(s)
        return -(below + s * density)


class Perceptron(AbstractClassification):
    """Rosenblatt's perceptron: loss = max(0, -y r), so each mistake moves the student by the learning rate times y x, and a
    field of exactly 0 counts as a mistake. For `labels` ("sign" by default) see `AbstractClassification`.

    The loss is homogeneous: without a ridge only the learning rate in units of the student matters. Start with
    `student_scale` > 0: at exactly 0 all samples are mistakes, just after it half of them, and a time step would average over
    that. The gradient jumps (see `AbstractTask.kink_width`).
    """

    @property
    def kink_width(self):
        return 0.1

    def loss(self, r, y):
        return jnp.maximum(0.0, -y * r)

    def gradient(self, r, y):
        return jnp.where(y * r <= 0, -y, 0.0)

    def mean_loss(self, s):
        return s / (2 * jnp.pi) ** 0.5

    def mean_gradient(self, s):
        return jnp.full_like(s, -0.5)


def _kink(s):
    """P(s z < 1) and the density of z at the kink, z = 1 / s."""
    positive = s > 0
    at = 1 / jnp.where(positive, s, 1.0)
    return jnp.where(positive, ndtr(at), 1.0), jnp.where(positive, norm.pdf(at), 0.0)
