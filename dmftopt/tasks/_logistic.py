from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm

from .._checks import as_number, check_real, check_shape, is_concrete
from ..quadrature import gaussian_mean, safe_sqrt
from ._base import AbstractTask

_LABELS = ("sign", "logistic", "flipped")


class Logistic(AbstractTask):
    """Logistic regression: loss = log(1 + exp(-y r)), labels y = ±1 drawn with P(y = 1) = p(w_star).

    - `labels="sign"`: y = sign(w_star).
    - `labels="logistic"`: p = 1 / (1 + exp(-w_star)); the teacher's scale is the inverse label temperature.
    - `labels="flipped"`: sign labels, each flipped with probability `flip_probability`.

    Loss and labels are symmetric under (r, w_star, y) -> -(r, w_star, y), so the solver's samples are drawn with y = 1 and
    a teacher field from its law given y = 1, of density 2 p(w) N(w; 0, rho), through the inverse of its distribution
    function. That is exact, saves a random dimension and makes derivatives with respect to the label law exact too.
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

    def valid(self):
        p = 0.0 if self.flip_probability is None else jnp.asarray(self.flip_probability)
        return jnp.asarray((p >= 0) & (p < 0.5))

    def loss(self, r, y):
        return jax.nn.softplus(-y * r)

    def label(self, w_star, noise):
        if self.labels == "sign":
            probability = jnp.where(w_star > 0, 1.0, 0.0)
        elif self.labels == "logistic":
            probability = jax.nn.sigmoid(w_star)
        else:
            probability = jnp.where(w_star > 0, 1 - self.flip_probability, self.flip_probability)
        return jnp.where(noise < probability, 1.0, -1.0).astype(jnp.result_type(w_star))

    def gradient(self, r, y):
        return -y * jax.nn.sigmoid(-y * r)

    def curvature(self, r, y):
        return jax.nn.sigmoid(r) * jax.nn.sigmoid(-r)

    def error(self, r, y):
        return 0.5 * (1 - jnp.sign(y * r))

    def sample(self, u_teacher, u_label, teacher_scale):
        if self.labels == "sign":
            xi = ndtri(0.5 + 0.5 * u_teacher)
        elif self.labels == "flipped":
            p = jnp.asarray(self.flip_probability, dtype=u_teacher.dtype)
            below = u_teacher < p
            # Where the flip probability is 0 no u is below it: keep that branch finite for its (unused) derivative.
            wrong = 0.5 * u_teacher / jnp.where(p > 0, p, 1.0)
            right = 0.5 + 0.5 * (u_teacher - p) / (1 - p)
            xi = ndtri(jnp.where(below, wrong, right))
        else:
            xi = _sample_logistic(u_teacher, jnp.asarray(teacher_scale, dtype=u_teacher.dtype))
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
        else:
            wrong = jnp.full_like(xi, 1.0) * jnp.asarray(self.flip_probability, scale.dtype)
            right = 1 - wrong
        xi = jnp.concatenate([xi, -xi])
        return xi, jnp.ones_like(xi), jnp.concatenate([right * density, wrong * density])

    def test_risk(self, Q, O, rho):
        """E[softplus(w)] - E[w_star y] O / (2 rho), using softplus(-y w) = softplus(w) - w (1 + y) / 2: exact up to one
        one-dimensional quadrature."""
        return gaussian_mean(jax.nn.softplus, safe_sqrt(Q)) - 0.5 * O * self._teacher_alignment(rho)

    def test_error(self, Q, O, rho):
        """P(y w < 0). Sign labels: arccos(O / sqrt(Q rho)) / pi."""
        cosine = O / jnp.where(Q > 0, jnp.sqrt(jnp.where(Q > 0, Q, 1.0) * rho), 1.0)
        # Within rounding of ±1 the derivative of arccos is infinite; a few rounding units inside it is only large.
        limit = 1 - 4 * float(jnp.finfo(cosine.dtype).eps)
        cosine = jnp.clip(cosine, -limit, limit)
        if self.labels == "logistic":
            # Given w_star = s z, P(w < 0) = ndtr(-slope z); z -> -z maps the errors on y = -1 to those on y = 1.
            slope = cosine / jnp.sqrt((1 - cosine) * (1 + cosine))
            s = safe_sqrt(rho)
            return gaussian_mean(lambda z: 2 * jax.nn.sigmoid(s * z) * ndtr(-slope[..., None] * z), jnp.ones_like(slope))
        error = jnp.arccos(cosine) / jnp.pi
        return error if self.labels == "sign" else error + self.flip_probability * (1 - 2 * error)

    def _teacher_alignment(self, rho):
        """E[w_star y] / rho."""
        if self.labels == "logistic":
            # Stein: E[w_star (2 p - 1)] = rho E[2 p'(w_star)].
            return gaussian_mean(lambda w: 2 * jax.nn.sigmoid(w) * jax.nn.sigmoid(-w), safe_sqrt(rho))
        alignment = jnp.sqrt(2 / (jnp.pi * rho))
        return alignment if self.labels == "sign" else (1 - 2 * self.flip_probability) * alignment


# Gauss-Legendre nodes on (0, 1) for the integral below: with 64 nodes exact to rounding up to teacher scales of about 20.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def _panels(edges, count):
    nodes, weights = np.polynomial.legendre.leggauss(count)
    centers, halves = 0.5 * (edges[1:] + edges[:-1]), 0.5 * (edges[1:] - edges[:-1])
    return (centers[:, None] + halves[:, None] * nodes).ravel(), (halves[:, None] * weights).ravel()


# Panels on the positive half line: the narrow ones near 0 resolve label laws and losses as steep as sigmoid(20 z).
_PANELS = _panels(np.array([0.0, 0.3, 1.0, 2.0, 3.5, 5.5, 8.5]), 12)


def _sample_logistic(u, scale):
    """Quantiles of the density 2 sigmoid(scale z) phi(z), differentiable in `scale` by the implicit function theorem."""
    nodes = jnp.asarray(0.5 * (_NODES + 1), u.dtype)
    weights = jnp.asarray(0.5 * _WEIGHTS, u.dtype)

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
