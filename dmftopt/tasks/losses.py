"""Losses: functions of a prediction r and a label y, with their derivatives. Tasks are made of them, and

    dmftopt.tasks.GaussianMixture((1, -1), loss=dmftopt.tasks.losses.SquaredHinge())

takes any of them.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, erfc, log_ndtr, ndtr
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float

from .._checks import as_number, check_real, check_shape
from ..numerics.quadrature import bent_mean, beside, panels
from ._derivatives import curvature_of, gradient_of


class AbstractLoss(eqx.Module):
    """A loss of the prediction r for the label y, elementwise. Your own needs only `__call__`, written with jax.numpy.

    Where `per_class`, it is about one sample: r has one entry a class, y is the number of the class, the gradient has the shape
    of r and the curvature (class, class).
    """

    @property
    def per_class(self) -> bool:
        return False

    @property
    def kink_width(self) -> float:
        """As `AbstractTask.kink_width`: positive where the gradient jumps."""
        return 0.0

    @property
    def bend_width(self) -> float:
        """As `AbstractTask.bend_width`: positive where the curvature jumps."""
        return self.kink_width

    @abc.abstractmethod
    def __call__(self, r: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]: ...

    def gradient(self, r: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
        """l(r, y) = d loss / d r."""
        return gradient_of(self, r, y)

    def curvature(self, r: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
        """d l / d r, over `kink_width` where there is one."""
        return curvature_of(self.gradient, r, y, self.kink_width, r.shape[0] if self.per_class else None)

    def valid(self) -> Bool[Array, ""]:
        """Whether parameters are in their domain, for values that could not be checked because they are traced."""
        return jnp.asarray(True)


class AbstractMarginLoss(AbstractLoss):
    """A loss of the margin y r alone, for labels y = ±1.

    `bends`: the margins at which its gradient jumps, has a kink, or changes over a distance of order 1; expectations are taken
    from one to the next.
    """

    @property
    def bends(self) -> tuple[Any, ...]:
        return (0.0,)

    def mean(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """E[loss(s z, 1)], z ~ N(0, 1)."""
        return bent_mean(lambda r: self(r, jnp.ones_like(r)), s, self.bends)

    def mean_gradient(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """E[l(s z, 1)], z ~ N(0, 1)."""
        return bent_mean(lambda r: self.gradient(r, jnp.ones_like(r)), s, self.bends)


class Logistic(AbstractMarginLoss):
    """log(1 + exp(-y r))."""

    def __call__(self, r, y):
        return jax.nn.softplus(-y * r)

    def gradient(self, r, y):
        return -y * jax.nn.sigmoid(-y * r)

    def curvature(self, r, y):
        return jax.nn.sigmoid(r) * jax.nn.sigmoid(-r)

    def mean_gradient(self, s):
        return jnp.full_like(s, -0.5)


class Probit(AbstractMarginLoss):
    """-log Phi(y r)."""

    def __call__(self, r, y):
        return -log_ndtr(y * r)

    def gradient(self, r, y):
        return -y * _hazard(y * r)

    def curvature(self, r, y):
        hazard = _hazard(y * r)
        return hazard * (hazard + y * r)


class Hinge(AbstractMarginLoss):
    """max(0, 1 - y r)."""

    @property
    def bends(self):
        return (1.0,)

    @property
    def kink_width(self):
        return 0.1

    def __call__(self, r, y):
        return jnp.maximum(0.0, 1 - y * r)

    def gradient(self, r, y):
        return jnp.where(y * r < 1, -y, 0.0)

    def mean(self, s):
        below, density = _kink(s)
        return below + s * density

    def mean_gradient(self, s):
        return -_kink(s)[0]


class SquaredHinge(AbstractMarginLoss):
    """max(0, 1 - y r)² / 2."""

    @property
    def bends(self):
        return (1.0,)

    @property
    def bend_width(self):
        return 0.1

    def __call__(self, r, y):
        return 0.5 * jnp.maximum(0.0, 1 - y * r) ** 2

    def gradient(self, r, y):
        return -y * jnp.maximum(0.0, 1 - y * r)

    def curvature(self, r, y):
        return jnp.where(y * r < 1, 1.0, 0.0).astype(jnp.result_type(r))

    def mean(self, s):
        below, density = _kink(s)
        return 0.5 * ((1 + s**2) * below + s * density)

    def mean_gradient(self, s):
        below, density = _kink(s)
        return -(below + s * density)


class Perceptron(AbstractMarginLoss):
    """max(0, -y r). A field of exactly 0 counts as a mistake."""

    @property
    def kink_width(self):
        return 0.1

    def __call__(self, r, y):
        return jnp.maximum(0.0, -y * r)

    def gradient(self, r, y):
        return jnp.where(y * r <= 0, -y, 0.0)

    def mean(self, s):
        return s / (2 * jnp.pi) ** 0.5

    def mean_gradient(self, s):
        return jnp.full_like(s, -0.5)


class AbstractResidualLoss(AbstractLoss):
    """A loss of the residual r - y alone. `bends`: as in `AbstractMarginLoss`, of the residual."""

    @property
    def bends(self) -> tuple[Any, ...]:
        return (0.0,)

    @abc.abstractmethod
    def mean(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """E[loss(s z, 0)], z ~ N(0, 1)."""


class Squared(AbstractResidualLoss):
    """(r - y)² / 2."""

    def __call__(self, r, y):
        return 0.5 * (r - y) ** 2

    def gradient(self, r, y):
        return r - y

    def curvature(self, r, y):
        return jnp.ones_like(r)

    def mean(self, s):
        return 0.5 * s**2


class Huber(AbstractResidualLoss):
    """e²/2 where |e| <= threshold, threshold (|e| - threshold/2) beyond, of the residual e = r - y."""

    threshold: Any = eqx.field(converter=as_number, default=1.0)

    @property
    def bend_width(self):
        return 0.1

    def __check_init__(self):
        check_real("threshold", self.threshold, minimum=0.0, exclusive=True, cure="LeastAbsolute is the limit of small ones.")
        check_shape("threshold", self.threshold, ((),), "Use jax.vmap for a sweep.")

    @property
    def bends(self):
        return (-self.threshold, self.threshold)

    def valid(self):
        return jnp.asarray(self.threshold) > 0

    def __call__(self, r, y):
        inside = self.gradient(r, y)
        return inside * (r - y - 0.5 * inside)

    def gradient(self, r, y):
        return jnp.clip(r - y, -self.threshold, self.threshold)

    def curvature(self, r, y):
        return jnp.where(jnp.abs(r - y) <= self.threshold, 1.0, 0.0).astype(jnp.result_type(r))

    def mean(self, s):
        positive = s > 0
        at = self.threshold / jnp.where(positive, s, 1.0)
        inside, outside = (f(at / 2**0.5) for f in (erf, erfc))
        mean = 0.5 * s**2 * inside + self.threshold * s * norm.pdf(at) - 0.5 * self.threshold**2 * outside
        return jnp.where(positive, mean, 0.0)


class Absolute(AbstractResidualLoss):
    """|r - y|."""

    @property
    def kink_width(self):
        return 0.1

    def __call__(self, r, y):
        return jnp.abs(r - y)

    def gradient(self, r, y):
        return jnp.sign(r - y)

    def mean(self, s):
        return (2 / jnp.pi) ** 0.5 * s


class LogCosh(AbstractResidualLoss):
    """log cosh(r - y)."""

    def __call__(self, r, y):
        return jnp.abs(r - y) + jnp.log1p(jnp.exp(-2 * jnp.abs(r - y))) - jnp.log(2.0)

    def gradient(self, r, y):
        return jnp.tanh(r - y)

    def curvature(self, r, y):
        return 1 - jnp.tanh(r - y) ** 2

    def mean(self, s):
        z, weights = (jnp.asarray(a, s.dtype) for a in _PEAK)
        rest = jnp.log1p(jnp.exp(-2 * s[..., None] * beside(z, s))) @ (weights * 2 * norm.pdf(z))
        return (2 / jnp.pi) ** 0.5 * s + rest - jnp.log(2.0)


class CrossEntropy(AbstractLoss):
    """log sum_c exp(r_c) - r_y, of one sample."""

    @property
    def per_class(self):
        return True

    def __call__(self, r, y):
        return jax.nn.logsumexp(r) - jnp.sum(_one_hot(r, y) * r)

    def gradient(self, r, y):
        return jax.nn.softmax(r) - _one_hot(r, y)

    def curvature(self, r, y):
        p = jax.nn.softmax(r)
        return jnp.diag(p) - jnp.outer(p, p)


class OfColumn(AbstractLoss):
    """A loss of a single field as one of one sample with r of shape (1,), the gradient of shape (1,), the curvature (1, 1)."""

    loss: AbstractLoss

    @property
    def kink_width(self):
        return self.loss.kink_width

    @property
    def bend_width(self):
        return self.loss.bend_width

    def valid(self):
        return self.loss.valid()

    def __call__(self, r, y):
        return self.loss(r[0], y)

    def gradient(self, r, y):
        return self.loss.gradient(r[0], y)[None]

    def curvature(self, r, y):
        return self.loss.curvature(r[0], y)[None, None]


# The short names that tasks take.
NAMED: dict[str, AbstractLoss] = {
    "logistic": Logistic(),
    "squared": Squared(),
    "hinge": Hinge(),
    "softmax": CrossEntropy(),
    "squared hinge": SquaredHinge(),
    "perceptron": Perceptron(),
    "probit": Probit(),
}


def named(loss: Any) -> AbstractLoss:
    """`loss` itself, or the one of this short name (which may have "_" for the space)."""
    if isinstance(loss, str) and loss.replace("_", " ") in NAMED:
        return NAMED[loss.replace("_", " ")]
    if not isinstance(loss, AbstractLoss):
        raise ValueError(f"loss must be one of {tuple(NAMED)} or an object of dmftopt.tasks.losses, got {loss!r}.")
    return loss


def _one_hot(r, y):
    return (jnp.arange(r.shape[0], dtype=r.dtype) == y).astype(r.dtype)


def _hazard(margin):
    """phi / Phi."""
    return jnp.exp(norm.logpdf(margin) - log_ndtr(margin))


def _kink(s):
    """P(s z < 1) and the density of z at the kink, z = 1 / s."""
    positive = s > 0
    at = 1 / jnp.where(positive, s, 1.0)
    return jnp.where(positive, ndtr(at), 1.0), jnp.where(positive, norm.pdf(at), 0.0)


# Panels on the half line for functions of s z that decay within 1 / s, at any s up to 1e4 (beyond, they do not matter).
_PEAK = panels(np.concatenate([[0.0], 9.0 * 3.0 ** np.arange(-11, 1)]), 12)
