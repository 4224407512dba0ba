import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm
from jaxtyping import Array, Float
from scipy.stats import kstwobign

from .._checks import as_number, check_real, check_shape, is_concrete
from ..quadrature import gaussian_mean, panels, safe_sqrt
from ._base import AbstractTask

_LABELS = ("sign", "logistic", "flipped", "probit")


class AbstractClassification(AbstractTask):
    """Labels y = ±1 drawn with P(y = 1) = p(w_star), and a loss of the margin y r alone.

    - `labels="sign"`: y = sign(w_star).
    - `labels="logistic"`: p = 1 / (1 + exp(-w_star)); the teacher's scale is the inverse label temperature.
    - `labels="flipped"`: sign labels, each flipped with probability `flip_probability`.
    - `labels="probit"`: p = Phi(w_star), that is y = sign(w_star + N(0, 1)).

    Loss and labels are symmetric under (r, w_star, y) -> -(r, w_star, y), so the solver's samples are drawn with y = 1 and
    a teacher field from its law given y = 1, of density 2 p(w) N(w; 0, rho), through a map of uniforms that is smooth in the
    parameters. That is exact, and makes derivatives with respect to the label law exact too.

    A new loss needs `loss` and `mean_gradient`, and `mean_loss` too where it has a kink.
    """

    labels: str = eqx.field(static=True, default="sign")
    flip_probability: Any = eqx.field(converter=as_number, default=None)

    def __check_init__(self):
        if self.labels not in _LABELS:
            raise ValueError(f"labels must be one of {_LABELS}, got {self.labels!r}.")
        if self.labels == "flipped":
            if self.flip_probability is None:
                raise ValueError('labels="flipped" needs flip_probability, the chance that a label is flipped.')
            check_real("flip_probability", self.flip_probability, minimum=0.0)
            check_shape("flip_probability", self.flip_probability, ((),), "Use jax.vmap for a sweep.")
            if is_concrete(self.flip_probability) and np.any(np.asarray(self.flip_probability) >= 0.5):
                raise ValueError(f"flip_probability must be below 0.5, got {self.flip_probability}. Swap the labels instead.")
        elif self.flip_probability is not None:
            raise ValueError(f'flip_probability goes with labels="flipped", not with labels={self.labels!r}. Drop it.')

    def mean_loss(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """E[loss(s z, 1)], z ~ N(0, 1). The default is for smooth losses."""
        return gaussian_mean(lambda r: self.loss(r, jnp.ones_like(r)), s)

    @abc.abstractmethod
    def mean_gradient(self, s: Float[Array, "..."]) -> Float[Array, "..."]:
        """E[l(s z, 1)], z ~ N(0, 1)."""

    def valid(self):
        p = 0.0 if self.flip_probability is None else jnp.asarray(self.flip_probability)
        return jnp.asarray((p >= 0) & (p < 0.5))

    def label(self, w_star, noise):
        if self.labels == "sign":
            probability = jnp.where(w_star > 0, 1.0, 0.0)
        elif self.labels == "logistic":
            probability = jax.nn.sigmoid(w_star)
        elif self.labels == "probit":
            probability = ndtr(w_star)
        else:
            probability = jnp.where(w_star > 0, 1 - self.flip_probability, self.flip_probability)
        return jnp.where(noise < probability, 1.0, -1.0).astype(jnp.result_type(w_star))

    @property
    def mirrored(self):
        return True

    def error(self, r, y):
        return 0.5 * (1 - jnp.sign(y * r))

    def scores(self, r, y):
        return signed_scores(r, y)

    def sample(self, u_teacher, u_label, teacher_scale):
        scale = jnp.asarray(teacher_scale, dtype=u_teacher.dtype)
        if self.labels == "sign":
            xi = ndtri(0.5 + 0.5 * u_teacher)
        elif self.labels == "flipped":
            p = jnp.asarray(self.flip_probability, dtype=u_teacher.dtype)
            below = u_teacher < p
            # Where the flip probability is 0 no u is below it: keep that branch finite for its (unused) derivative.
            wrong = 0.5 * u_teacher / jnp.where(p > 0, p, 1.0)
            right = 0.5 + 0.5 * (u_teacher - p) / (1 - p)
            xi = ndtri(jnp.where(below, wrong, right))
        elif self.labels == "probit":
            # Given y = 1, w_star + N(0, 1) is half normal; given that, w_star is normal.
            xi = (scale * ndtri(0.5 + 0.5 * u_teacher) + ndtri(u_label)) / jnp.sqrt(1 + scale**2)
        else:
            xi = _sample_logistic(u_teacher, scale)
        return xi, jnp.ones_like(xi)

    def population(self, teacher_scale):
        """Gauss-Legendre panels over the teacher field given y = 1, of density 2 p(w) N(w; 0, rho)."""
        scale = jnp.asarray(teacher_scale)
        xi, weights = (jnp.asarray(a, scale.dtype) for a in _PANELS)
        density = 2 * weights * norm.pdf(xi)
        if self.labels == "sign":
            return xi, jnp.ones_like(xi), density
        if self.labels == "logistic":
            right, wrong = jax.nn.sigmoid(scale * xi), jax.nn.sigmoid(-scale * xi)
        elif self.labels == "probit":
            right, wrong = ndtr(scale * xi), ndtr(-scale * xi)
        else:
            wrong = jnp.full_like(xi, 1.0) * jnp.asarray(self.flip_probability, scale.dtype)
            right = 1 - wrong
        xi = jnp.concatenate([xi, -xi])
        return xi, jnp.ones_like(xi), jnp.concatenate([right * density, wrong * density])

    def test_risk(self, Q, O, rho):
        """E[loss(w, y)]: with y = sign(h), h of variance v and covariance O with w,

            E[l(sqrt(Q) z, 1)] + sqrt(2 / (pi v)) ∫_0^O E[l'(sqrt(Q - x²/v) z, 1)] dx

        with l the loss and l' its gradient (Price's theorem), where v = rho for sign labels, rho + 1 for probit labels, and a
        mixture for logistic ones. Exact up to quadratures of smooth functions in one dimension.
        """
        Q, O = jnp.asarray(Q), jnp.asarray(O)
        variance, shares = self._hidden(rho, Q.dtype)
        x, weights = (jnp.asarray(a, Q.dtype) for a in _UNIT)
        rest = Q[..., None, None] - O[..., None, None] ** 2 * x**2 / variance[:, None]
        slope = (self.mean_gradient(safe_sqrt(rest)) @ weights * jnp.sqrt(2 / (jnp.pi * variance))) @ shares
        return self.mean_loss(safe_sqrt(Q)) + self._contrast * O * slope

    def test_error(self, Q, O, rho):
        """P(y w < 0). Sign labels: arccos(O / sqrt(Q rho)) / pi."""
        Q, O = jnp.asarray(Q), jnp.asarray(O)
        variance, shares = self._hidden(rho, Q.dtype)
        positive = (Q > 0)[..., None]
        scale = jnp.sqrt(jnp.where(positive, Q[..., None], 1.0) * variance)
        cosine = O[..., None] / jnp.where(positive, scale, 1.0)
        # Within rounding of ±1 the derivative of arccos is infinite; a few rounding units inside it is only large.
        limit = 1 - 4 * float(jnp.finfo(cosine.dtype).eps)
        error = jnp.arccos(jnp.clip(cosine, -limit, limit)) @ shares / jnp.pi
        return error if self.labels != "flipped" else error + self.flip_probability * (1 - 2 * error)

    @property
    def _contrast(self):
        """E[y | h] sign(h)."""
        return 1.0 if self.labels != "flipped" else 1 - 2 * self.flip_probability

    def _hidden(self, rho, dtype):
        """Labels are signs of w_star plus normal noise: the variances of this sum that mix, and their shares."""
        if self.labels == "logistic":
            noise, shares = (jnp.asarray(a, dtype) for a in _LOGISTIC_NOISE)
        else:
            noise, shares = jnp.full(1, 1.0 if self.labels == "probit" else 0.0, dtype), jnp.ones(1, dtype)
        return rho + noise, shares


# Gauss-Legendre nodes on (0, 1). With 64 nodes the integral in _sample_logistic is exact to rounding up to teacher scales
# of about 20.
_UNIT = panels(np.array([0.0, 1.0]), 64)

# Panels on the positive half line: the narrow ones near 0 resolve label laws and losses as steep as sigmoid(20 z).
_PANELS = panels(np.array([0.0, 0.3, 1.0, 2.0, 3.5, 5.5, 8.5]), 12)


def signed_scores(r: Float[Array, ""], y: Float[Array, ""]) -> tuple[Float[Array, "2"], Float[Array, ""]]:
    """`AbstractTask.scores` of one field and labels ±1: the scores differ by r."""
    return 0.5 * jnp.stack([-r, r]), 0.5 * (y + 1)


def _logistic_noise():
    # Logistic noise is 2 K N(0, 1) with K of Kolmogorov's law (Andrews and Mallows 1974). The density of log K decays double
    # exponentially on both sides: the trapezoidal rule with this spacing is exact to rounding.
    k = np.exp(np.arange(-1.75, 1.6, 0.125))
    shares = k * kstwobign.pdf(k)
    return 4 * k**2, shares / shares.sum()


_LOGISTIC_NOISE = _logistic_noise()


def _sample_logistic(u, scale):
    """Quantiles of the density 2 sigmoid(scale z) phi(z), differentiable in `scale` by the implicit function theorem."""
    nodes, weights = (jnp.asarray(a, u.dtype) for a in _UNIT)

    def moment(top, scale):
        z = top[..., None] * nodes
        return top * jnp.sum(weights * jnp.tanh(0.5 * scale * z) * norm.pdf(z), axis=-1)

    def distribution(z, scale):
        return ndtr(z) - (moment(jnp.asarray(9.0, u.dtype), scale) - moment(jnp.abs(z), scale))

    def quantile(u, guess):
        solver = optimistix.Newton(rtol=tolerance, atol=tolerance)
        # The guess, off by 1e-4 at most, leaves Newton two or three steps; in float32 it may stall at rounding, not diverge.
        return optimistix.root_find(
            lambda z, args: distribution(z, args[0]) - args[1], solver, guess, (scale, u), max_steps=8, throw=False
        ).value

    tolerance = 8 * float(jnp.finfo(u.dtype).eps)
    table = jnp.linspace(-9.0, 9.0, 1025, dtype=u.dtype)
    guess = jax.lax.stop_gradient(jnp.interp(u, distribution(table, scale), table))
    return jax.vmap(quantile)(u, guess)
