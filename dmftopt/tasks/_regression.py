import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from .._checks import as_number, check_real, check_shape, front_door
from ..numerics.quadrature import bent_nodes, beside, gauss_hermite, gaussian_nodes, safe_sqrt
from . import labels as laws
from . import losses
from ._base import AbstractLossTask, AbstractTask


class AbstractRegression(AbstractTask):
    """Labels y = target + label_noise * N(0, 1), with a target that is a polynomial of the teacher field.

    `label_noise` is the standard deviation of the noise, in the units of the labels.
    """

    label_noise: Any = eqx.field(converter=as_number, default=0.0)

    def __check_init__(self):
        check_real("label_noise", self.label_noise, minimum=0.0, cure="It is a standard deviation.")
        check_shape("label_noise", self.label_noise, ((),), "Use jax.vmap for a sweep.")

    @abc.abstractmethod
    def target(self, w_star: Float[Array, "..."]) -> Float[Array, "..."]:
        """The label without noise."""

    def valid(self):
        return jnp.asarray(self.label_noise) >= 0

    def label(self, w_star, noise):
        return self.target(w_star) + self.label_noise * ndtri(noise)

    def population(self, teacher_scale):
        """Five by five Gauss-Hermite nodes over teacher field and label noise: exact for polynomials up to degree 9."""
        scale = jnp.asarray(teacher_scale)
        nodes, weights = gauss_hermite(5, scale.dtype)
        xi, noise = (a.ravel() for a in jnp.meshgrid(nodes, nodes))
        y = self.target(scale * xi) + jnp.asarray(self.label_noise, scale.dtype) * noise
        return xi, y, jnp.outer(weights, weights).ravel()


class LeastSquares(AbstractRegression, AbstractLossTask):
    """loss = (r - y)² / 2 with y = w_star + label_noise * N(0, 1). (Twice the risk is the mean squared error.)

    `label_noise` is the standard deviation of the noise, in the units of the labels.
    """

    @property
    def loss_function(self):
        return losses.Squared()

    def target(self, w_star):
        return w_star

    def test_risk(self, Q, O, rho):
        """(Q - 2 O + rho + label_noise²) / 2, exact."""
        return 0.5 * (Q - 2 * O + rho + self.label_noise**2)


class PhaseRetrieval(AbstractRegression):
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

    def loss(self, r, y):
        return 0.25 * (r**2 - y) ** 2

    def gradient(self, r, y):
        return r * (r**2 - y)

    def curvature(self, r, y):
        return 3 * r**2 - y

    def target(self, w_star):
        return w_star**2

    def test_risk(self, Q, O, rho):
        """(3 Q² + 3 rho² - 2 Q rho - 4 O² + label_noise²) / 4, exact."""
        return 0.25 * (3 * Q**2 + 3 * rho**2 - 2 * Q * rho - 4 * O**2 + self.label_noise**2)


class AbstractRobust(AbstractTask):
    """Regression y = w_star + label_noise * noise, with a loss of the residual r - y that grows at most linearly.

    `label_noise` is the scale of the noise, in the units of the labels, `noise_law` a `tasks.labels.AbstractLabelNoise`, or the
    short name of one:

    - "normal": noise is N(0, 1).
    - "laplace": of density exp(-|noise|) / 2 (standard deviation sqrt 2).
    - "student": Student t with `degrees_of_freedom` > 1, see `tasks.labels.Student`.

    A new loss needs `loss` and `mean_loss`, and `bends` (see `losses.AbstractMarginLoss`; of the residual) where it does not bend
    at 0.
    """

    label_noise: Any = eqx.field(converter=as_number)
    noise_law: laws.AbstractLabelNoise

    @front_door
    def __init__(
        self,
        label_noise: Any = 0.0,
        noise_law: str | laws.AbstractLabelNoise = "normal",
        degrees_of_freedom: float | None = None,
    ):
        self.label_noise = label_noise
        parameters = {"degrees_of_freedom": degrees_of_freedom}
        self.noise_law = laws.named("noise_law", noise_law, laws.NOISES, laws.AbstractLabelNoise, parameters)

    def __check_init__(self):
        check_real("label_noise", self.label_noise, minimum=0.0, cure="It is the scale of the noise.")
        check_shape("label_noise", self.label_noise, ((),), "Use jax.vmap for a sweep.")

    @property
    def bends(self) -> tuple[Any, ...]:
        """The residuals at which the gradient jumps, has a kink, or changes over a distance of order 1."""
        return (0.0,)

    @abc.abstractmethod
    def mean_loss(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """E[loss(s z, 0)], z ~ N(0, 1)."""

    def valid(self):
        return jnp.asarray(self.label_noise) >= 0

    def label(self, w_star, noise):
        return w_star + self.label_noise * self.noise_law.quantile(ndtri(noise))

    def population(self, teacher_scale):
        """Gauss-Hermite nodes over the teacher field times the trapezoidal rule over the noise as a function of a normal."""
        scale = jnp.asarray(teacher_scale)
        nodes, weights = gauss_hermite(9, scale.dtype)
        z, z_weights = gaussian_nodes(0.25, scale.dtype)
        xi, noise = (a.ravel() for a in jnp.meshgrid(nodes, self.noise_law.quantile(z), indexing="ij"))
        y = scale * xi + jnp.asarray(self.label_noise, scale.dtype) * noise
        return xi, y, jnp.outer(weights, z_weights).ravel()

    def test_risk(self, Q, O, rho):
        """`mean_loss` of the residual's standard deviation, averaged over the normal laws that mix to the noise law."""
        Q, O = jnp.asarray(Q), jnp.asarray(O)
        variances, shares = (jnp.asarray(a, Q.dtype) for a in self.noise_law.mixture())
        return self.mean_loss(safe_sqrt((Q - 2 * O + rho)[..., None] + self.label_noise**2 * beside(variances, Q))) @ shares

    def moments(self, Q, O, rho):
        """Means over the residual e, of covariance O - rho with the teacher's field, for each of the normal laws that mix to the
        noise law; E[dl / dw] = E[l e] / E[e²]."""
        variances, shares = (jnp.asarray(a, Q.dtype) for a in self.noise_law.mixture())
        label_noise = jnp.asarray(self.label_noise, Q.dtype)
        clean = jnp.maximum((Q - 2 * O + rho)[0, 0], rho[0, 0] * jnp.finfo(Q.dtype).eps ** (2 / 3))

        def given(deviation):
            z, weights = bent_nodes(deviation, self.bends)
            l = self.gradient(deviation * z, jnp.zeros_like(z))
            return weights @ (l * z) / deviation, weights @ l**2

        a, power = (values @ shares for values in jax.vmap(given)(jnp.sqrt(clean + label_noise**2 * variances)))
        return a.reshape(1, 1), a * (O - rho), power.reshape(1, 1)


class AbstractResidualTask(AbstractRobust, AbstractLossTask):
    """A robust regression whose loss is an object of `tasks.losses`."""

    @property
    @abc.abstractmethod
    def loss_function(self) -> losses.AbstractResidualLoss: ...

    @property
    def bends(self):
        return self.loss_function.bends

    def mean_loss(self, s):
        return self.loss_function.mean(s)


class Huber(AbstractResidualTask):
    """loss = e²/2 where |e| <= threshold, threshold (|e| - threshold/2) beyond, of the residual e = r - y.

    For `label_noise`, `noise_law` and `degrees_of_freedom` see `AbstractRobust`.
    """

    threshold: Any

    @front_door
    def __init__(
        self,
        label_noise: Any = 0.0,
        noise_law: str | laws.AbstractLabelNoise = "normal",
        degrees_of_freedom: float | None = None,
        threshold: Any = 1.0,
    ):
        AbstractRobust.__init__(self, label_noise, noise_law, degrees_of_freedom)
        self.threshold = losses.Huber(threshold).threshold

    @property
    def loss_function(self):
        return losses.Huber(self.threshold)

    def valid(self):
        return super().valid() & self.loss_function.valid()


class LeastAbsolute(AbstractResidualTask):
    """loss = |r - y|. For `label_noise`, `noise_law` and `degrees_of_freedom` see `AbstractRobust`.

    The gradient jumps at residual 0 (see `AbstractTask.kink_width`): use more samples and steps than for a smooth loss.
    """

    @front_door
    def __init__(
        self,
        label_noise: Any = 0.0,
        noise_law: str | laws.AbstractLabelNoise = "normal",
        degrees_of_freedom: float | None = None,
    ):
        AbstractRobust.__init__(self, label_noise, noise_law, degrees_of_freedom)

    @property
    def loss_function(self):
        return losses.Absolute()


class LogCosh(AbstractResidualTask):
    """loss = log cosh(r - y): a smooth loss between squares and absolute values.

    For `label_noise`, `noise_law` and `degrees_of_freedom` see `AbstractRobust`.
    """

    @front_door
    def __init__(
        self,
        label_noise: Any = 0.0,
        noise_law: str | laws.AbstractLabelNoise = "normal",
        degrees_of_freedom: float | None = None,
    ):
        AbstractRobust.__init__(self, label_noise, noise_law, degrees_of_freedom)

    @property
    def loss_function(self):
        return losses.LogCosh()
