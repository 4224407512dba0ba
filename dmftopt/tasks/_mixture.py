from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from ..quadrature import gaussian_nodes, safe_sqrt
from ._base import AbstractTask
from ._classification import signed_scores
from ._softmax import cross_entropy, multiclass_error

_LOSSES = ("logistic", "squared", "hinge", "softmax")


class GaussianMixture(AbstractTask):
    """Classification of clusters: a sample of cluster c is x = mu_c + N(0, Lambda / d), and its label is the cluster's.

    The means are mu_c = Lambda theta_star_c / d: column c of the teacher is Lambda^-1 (d mu_c), the direction of linear
    discriminant analysis, so `Problem(teacher_scale=..., initial_correlation=...)` describes the means (one column a cluster; a
    scale of 0 puts a cluster at the origin, a correlation of -1 two opposite each other). `teacher_overlap` is the mean field
    E[r | c].

    - `labels`: one per cluster: ±1, or class numbers 0, 1, ... for the loss "softmax". Clusters may share a label, in an XOR-like
      mixture for instance: labels=(1, -1, 1) with means at -mu, 0, mu.
    - `weights`: probabilities of the clusters, equal by default.
    - `loss`: "logistic", "squared" ((r - y)² / 2), "hinge", or "softmax" (one student column a class).

    Test risk and error are exact up to one-dimensional quadrature (8192 fixed points for "softmax"). Source: Mignacco et al.,
    arXiv:2006.06098 (SGD on Gaussian mixtures by dynamical mean-field theory).
    """

    labels: tuple[float, ...] = eqx.field(static=True)
    weights: tuple[float, ...] = eqx.field(static=True)
    loss_name: str = eqx.field(static=True)

    def __init__(self, labels, weights=None, loss: str = "logistic"):
        if np.ndim(labels) != 1 or len(labels) < 2 or not np.all(np.isfinite(labels)):
            raise ValueError(f"labels must be a sequence of at least two finite numbers, one per cluster, got {labels!r}.")
        self.labels = tuple(float(a) for a in labels)
        self.weights = tuple([1 / len(self.labels)] * len(self.labels) if weights is None else (float(a) for a in weights))
        self.loss_name = loss

    def __check_init__(self):
        if self.loss_name not in _LOSSES:
            raise ValueError(f"loss must be one of {_LOSSES}, got {self.loss_name!r}.")
        if len(set(self.labels)) < 2:
            raise ValueError(f"labels must name at least two classes, got {self.labels}.")
        if self.loss_name == "softmax":
            if set(self.labels) != set(range(self._classes)):
                raise ValueError(f'labels must be the class numbers 0, 1, ... for loss="softmax", got {self.labels}.')
        elif not set(self.labels) <= {1.0, -1.0}:
            raise ValueError(f'labels must be ±1, got {self.labels}. For more classes use loss="softmax".')
        if len(self.weights) != len(self.labels):
            raise ValueError(f"weights must have one entry per cluster, {len(self.labels)}, got {len(self.weights)}.")
        if not all(np.isfinite(w) and w > 0 for w in self.weights) or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights must be positive and sum to 1, got {self.weights}. They are probabilities of clusters.")

    @property
    def _classes(self) -> int:
        return int(max(self.labels)) + 1

    @property
    def columns(self):
        return self._classes if self.loss_name == "softmax" else 1

    @property
    def teacher_columns(self):
        return len(self.labels)

    @property
    def kink_width(self):
        return 0.1 if self.loss_name == "hinge" else 0.0

    @property
    def mixture(self):
        return True

    def loss(self, r, y):
        if self.loss_name == "softmax":
            return cross_entropy(r, y)
        r = r[0]
        if self.loss_name == "logistic":
            return jax.nn.softplus(-y * r)
        return 0.5 * (r - y) ** 2 if self.loss_name == "squared" else jnp.maximum(0.0, 1 - y * r)

    def error(self, r, y):
        return multiclass_error(r, y) if self.loss_name == "softmax" else 0.5 * (1 - jnp.sign(y * r[0]))

    def scores(self, r, y):
        return (r, y) if self.loss_name == "softmax" else signed_scores(r[0], y)

    def label(self, w_star, noise):
        """Label of the cluster whose indicator is `w_star`."""
        return jnp.asarray(self.labels, w_star.dtype) @ w_star

    def sample(self, u_teacher: Array, u_label: Float[Array, " sample"], teacher_scale: Any):
        edges = jnp.cumsum(jnp.asarray(self.weights, u_label.dtype))[:-1]
        cluster = jnp.sum(u_label > edges[:, None], axis=0)
        indicators = (jnp.arange(len(self.labels))[:, None] == cluster).astype(u_label.dtype)
        return indicators, jnp.asarray(self.labels, u_label.dtype) @ indicators

    def test_risk(self, Q, O, rho):
        if self.loss_name == "softmax":
            return super().test_risk(Q, O, rho)
        return self._clusters(lambda r, y: jax.vmap(self.loss, (0, None))(r[:, None], y), Q, O)

    def test_error(self, Q, O, rho):
        if self.loss_name == "softmax":
            return super().test_error(Q, O, rho)
        deviation = safe_sqrt(Q[0, 0])
        margins = jnp.asarray(self.labels, Q.dtype) * O[0] / jnp.where(deviation > 0, deviation, 1.0)
        sharp = 0.5 * (1 - jnp.sign(margins))
        return jnp.asarray(self.weights, Q.dtype) @ jnp.where(deviation > 0, ndtr(-margins), sharp)

    def _clusters(self, function, Q, O):
        z, z_weights = gaussian_nodes(1 / 20, Q.dtype)
        s = safe_sqrt(Q[0, 0])
        means = [function(o + s * z, y) @ z_weights for o, y in zip(O[0], self.labels, strict=True)]
        return jnp.asarray(self.weights, Q.dtype) @ jnp.stack(means)
