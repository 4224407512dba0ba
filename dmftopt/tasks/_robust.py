import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float
from numpy.polynomial import chebyshev
from scipy import special, stats

from .._checks import as_number, check_real, check_shape
from ..quadrature import gauss_hermite, gaussian_nodes, panels, safe_sqrt
from ._base import AbstractTask

_LAWS = ("normal", "laplace", "student")


def _fixed_number(value):
    # Quantiles come from SciPy, so no tracer will do.
    if value is None or (isinstance(value, (int, float, np.number)) and not isinstance(value, bool)):
        return value if value is None else float(value)
    raise TypeError(f"degrees_of_freedom must be a Python number, got {value!r}. It is held fixed.")


class AbstractRobust(AbstractTask):
    """Regression y = w_star + label_noise * noise, with a loss of the residual r - y that grows at most linearly.

    - `noise_law="normal"`: noise is N(0, 1).
    - `noise_law="laplace"`: of density exp(-|noise|) / 2 (standard deviation sqrt 2).
    - `noise_law="student"`: Student t with `degrees_of_freedom` > 1, a Python number that is held fixed. At 1 and below every
      risk is infinite. Up to 2 the variance of the labels is infinite, and with it that of the train loss over samples and
      runs (not of the gradients, which are bounded): trust its mean less than the other observables.

    `label_noise` is the scale of the noise, in the units of the labels. A new loss needs `loss` and `mean_loss`.
    """

    label_noise: Any = eqx.field(converter=as_number, default=0.0)
    noise_law: str = eqx.field(static=True, default="normal")
    degrees_of_freedom: Any = eqx.field(converter=_fixed_number, static=True, default=None)

    def __check_init__(self):
        check_real("label_noise", self.label_noise, minimum=0.0, cure="It is the scale of the noise.")
        check_shape("label_noise", self.label_noise, ((),), "Use jax.vmap for a sweep.")
        if self.noise_law not in _LAWS:
            raise ValueError(f"noise_law must be one of {_LAWS}, got {self.noise_law!r}.")
        if self.noise_law != "student":
            if self.degrees_of_freedom is not None:
                raise ValueError(f'degrees_of_freedom goes with noise_law="student", not with {self.noise_law!r}. Drop it.')
            return
        if self.degrees_of_freedom is None:
            raise ValueError('noise_law="student" needs degrees_of_freedom, above 1.')
        cure = "With so heavy a tail the mean |noise|, and with it every risk, is infinite."
        check_real("degrees_of_freedom", self.degrees_of_freedom, minimum=1.0, exclusive=True, cure=cure)

    @abc.abstractmethod
    def mean_loss(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """E[loss(s z, 0)], z ~ N(0, 1)."""

    def valid(self):
        return jnp.asarray(self.label_noise) >= 0

    def label(self, w_star, noise):
        return w_star + self.label_noise * self._quantile(ndtri(noise))

    def population(self, teacher_scale):
        """Gauss-Hermite nodes over the teacher field times the trapezoidal rule over the noise as a function of a normal."""
        scale = jnp.asarray(teacher_scale)
        nodes, weights = gauss_hermite(9, scale.dtype)
        z, z_weights = gaussian_nodes(0.25, scale.dtype)
        xi, noise = (a.ravel() for a in jnp.meshgrid(nodes, self._quantile(z), indexing="ij"))
        y = scale * xi + jnp.asarray(self.label_noise, scale.dtype) * noise
        return xi, y, jnp.outer(weights, z_weights).ravel()

    def test_risk(self, Q, O, rho):
        """`mean_loss` of the residual's standard deviation, averaged over the normal laws that mix to the noise law."""
        Q, O = jnp.asarray(Q), jnp.asarray(O)
        variances, shares = (jnp.asarray(a, Q.dtype) for a in _mixture(self.noise_law, self.degrees_of_freedom))
        return self.mean_loss(safe_sqrt((Q - 2 * O + rho)[..., None] + self.label_noise**2 * variances)) @ shares

    def _quantile(self, z):
        """The noise as an increasing function of a normal."""
        if self.noise_law == "normal":
            return z
        if self.noise_law == "laplace":
            # -log(2 P(|z'| > |z|) / 2): log_ndtr keeps the tails that 1 - u would lose.
            return jnp.sign(z) * (-jnp.log(2.0) - jax.scipy.special.log_ndtr(-jnp.abs(z)))
        return _student(z, self.degrees_of_freedom)


class Huber(AbstractRobust):
    """loss = e²/2 where |e| <= threshold, threshold (|e| - threshold/2) beyond, of the residual e = r - y.

    For `label_noise`, `noise_law` and `degrees_of_freedom` see `AbstractRobust`.
    """

    threshold: Any = eqx.field(converter=as_number, default=1.0)

    def __check_init__(self):
        check_real("threshold", self.threshold, minimum=0.0, exclusive=True, cure="LeastAbsolute is the limit of small ones.")
        check_shape("threshold", self.threshold, ((),), "Use jax.vmap for a sweep.")

    def valid(self):
        return (jnp.asarray(self.label_noise) >= 0) & (jnp.asarray(self.threshold) > 0)

    def loss(self, r, y):
        inside = jnp.clip(r - y, -self.threshold, self.threshold)
        return inside * (r - y - 0.5 * inside)

    def gradient(self, r, y):
        return jnp.clip(r - y, -self.threshold, self.threshold)

    def curvature(self, r, y):
        return jnp.where(jnp.abs(r - y) <= self.threshold, 1.0, 0.0).astype(jnp.result_type(r))

    def mean_loss(self, s):
        positive = s > 0
        at = self.threshold / jnp.where(positive, s, 1.0)
        inside, outside = (f(at / 2**0.5) for f in (jax.scipy.special.erf, jax.scipy.special.erfc))
        density = jax.scipy.stats.norm.pdf(at)
        mean = 0.5 * s**2 * inside + self.threshold * s * density - 0.5 * self.threshold**2 * outside
        return jnp.where(positive, mean, 0.0)


class LeastAbsolute(AbstractRobust):
    """loss = |r - y|. For `label_noise`, `noise_law` and `degrees_of_freedom` see `AbstractRobust`.

    The gradient jumps at residual 0 (see `AbstractTask.kink_width`): use more samples and steps than for a smooth loss.
    """

    @property
    def kink_width(self):
        return 0.1

    def loss(self, r, y):
        return jnp.abs(r - y)

    def gradient(self, r, y):
        return jnp.sign(r - y)

    def mean_loss(self, s):
        return (2 / jnp.pi) ** 0.5 * s


class LogCosh(AbstractRobust):
    """loss = log cosh(r - y): a smooth loss between squares and absolute values.

    For `label_noise`, `noise_law` and `degrees_of_freedom` see `AbstractRobust`.
    """

    def loss(self, r, y):
        return jnp.abs(r - y) + jnp.log1p(jnp.exp(-2 * jnp.abs(r - y))) - jnp.log(2.0)

    def gradient(self, r, y):
        return jnp.tanh(r - y)

    def curvature(self, r, y):
        return 1 - jnp.tanh(r - y) ** 2

    def mean_loss(self, s):
        z, weights = (jnp.asarray(a, s.dtype) for a in _PEAK)
        rest = jnp.log1p(jnp.exp(-2 * s[..., None] * z)) @ (weights * 2 * jax.scipy.stats.norm.pdf(z))
        return (2 / jnp.pi) ** 0.5 * s + rest - jnp.log(2.0)


# Panels on the half line for functions of s z that decay within 1 / s, at any s up to 1e4 (beyond, they do not matter).
_PEAK = panels(np.concatenate([[0.0], 9.0 * 3.0 ** np.arange(-11, 1)]), 12)


def _mixture(law: str, degrees_of_freedom: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Variances of the normal laws that mix to a noise law, and their shares: c for Laplace's with c of the chi-square law of
    2 degrees of freedom, degrees_of_freedom / c for Student's."""
    if law == "normal":
        return np.ones(1), np.ones(1)
    freedom = 2.0 if degrees_of_freedom is None else degrees_of_freedom
    tails = 10.0 ** np.arange(-16.0, 0.0)
    quantiles = np.concatenate([stats.chi2.ppf(np.append(tails, 0.5), freedom), stats.chi2.isf(tails[::-1], freedom)])
    log_c, weights = panels(np.log(quantiles), 8)
    c = np.exp(log_c)
    shares = weights * c * stats.chi2.pdf(c, freedom)
    if degrees_of_freedom is None:
        return c, shares / shares.sum()
    # The mean loss grows like sqrt(variance). Where the tail is heavy, what is beyond the last quantile counts: one normal
    # with the share and the mean deviation of the rest.
    half, cut = 0.5 * degrees_of_freedom, 0.5 * quantiles[0]
    share = special.gammainc(half, cut)
    log_mean = special.gammaln(half - 0.5) - special.gammaln(half) + np.log(half) / 2
    deviation = np.exp(log_mean) * special.gammainc(half - 0.5, cut) / share
    variances, shares = np.append(degrees_of_freedom / c, deviation**2), np.append(shares, share)
    return variances, shares / shares.sum()


def _student(z, degrees_of_freedom):
    """Student's t at the quantile of a normal z, |z| <= 9: z times a Chebyshev series in z² for its inverse hyperbolic sine
    (in units that cancel the nearest singularity), fitted to SciPy's quantiles. Relative error below 1e-10."""
    root = degrees_of_freedom**0.5

    def fitted(x):
        z = 9.0 * np.sqrt(0.5 * (x + 1))
        return np.arcsinh(stats.t.isf(special.ndtr(-z), degrees_of_freedom) / root) / z

    coefficients = jnp.asarray(chebyshev.chebinterpolate(fitted, 120), z.dtype)
    x = 2 * (z / 9.0) ** 2 - 1

    def clenshaw(state, coefficient):
        return (coefficient + 2 * x * state[0] - state[1], state[0]), None

    zeros = jnp.zeros_like(x)
    (last, before), _ = jax.lax.scan(clenshaw, (zeros, zeros), coefficients[:0:-1])
    return root * jnp.sinh(z * (coefficients[0] + x * last - before))
