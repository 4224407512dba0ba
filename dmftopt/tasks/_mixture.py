from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from .._checks import front_door
from ..numerics.quadrature import gaussian_nodes, safe_sqrt
from . import losses
from ._base import AbstractLossTask
from ._classification import signed_scores


class GaussianMixture(AbstractLossTask):
    """Classification of clusters: a sample of cluster c is x = mu_c + N(0, Lambda / d), and its label is the cluster's.

    The means are mu_c = Lambda theta_star_c / d: column c of the teacher is Lambda^-1 (d mu_c), the direction of linear
    discriminant analysis, so `Problem(teacher_scale=..., initial_correlation=...)` describes the means (one column a cluster; a
    scale of 0 puts a cluster at the origin, a correlation of -1 two opposite each other). `teacher_overlap` is the mean field
    E[r | c].

    - `labels`: one per cluster: ±1, or class numbers 0, 1, ... for the loss "softmax". Clusters may share a label, in an XOR-like
      mixture for instance: labels=(1, -1, 1) with means at -mu, 0, mu.
    - `weights`: probabilities of the clusters, equal by default.
    - `loss`: a loss of `tasks.losses`, or the short name of one: for labels ±1 "logistic", "squared" ((r - y)² / 2), "hinge" and
      others, for class numbers "softmax" (one student column a class).

    Test risk and error are exact up to one-dimensional quadrature (8192 fixed points for "softmax"). Source: Mignacco et al.,
    arXiv:2006.06098 (SGD on Gaussian mixtures by dynamical mean-field theory).
    """

    labels: tuple[float, ...] = eqx.field(static=True)
    probabilities: tuple[float, ...] = eqx.field(static=True)
    cluster_loss: losses.AbstractLoss

    mixture = True

    @front_door
    def __init__(self, labels, weights=None, loss: str | losses.AbstractLoss = "logistic"):
        if np.ndim(labels) != 1 or len(labels) < 2 or not np.all(np.isfinite(labels)):
            raise ValueError(f"labels must be a sequence of at least two finite numbers, one per cluster, got {labels!r}.")
        self.labels = tuple(float(a) for a in labels)
        equal = [1 / len(self.labels)] * len(self.labels)
        self.probabilities = tuple(equal if weights is None else (float(a) for a in weights))
        self.cluster_loss = losses.named(loss)

    def __check_init__(self):
        if len(set(self.labels)) < 2:
            raise ValueError(f"labels must name at least two classes, got {self.labels}.")
        if self.cluster_loss.per_class:
            if set(self.labels) != set(range(self._classes)):
                raise ValueError(f'labels must be the class numbers 0, 1, ... for loss="softmax", got {self.labels}.')
        elif not set(self.labels) <= {1.0, -1.0}:
            raise ValueError(f'labels must be ±1, got {self.labels}. For more classes use loss="softmax".')
        given = self.probabilities
        if len(given) != len(self.labels):
            raise ValueError(f"weights must have one entry per cluster, {len(self.labels)}, got {len(given)}.")
        if not all(np.isfinite(p) and p > 0 for p in given) or abs(sum(given) - 1) > 1e-6:
            raise ValueError(f"weights must be positive and sum to 1, got {given}. They are probabilities of clusters.")

    @property
    def _classes(self) -> int:
        return int(max(self.labels)) + 1

    @property
    def columns(self):
        return self._classes if self.cluster_loss.per_class else 1

    @property
    def teacher_columns(self):
        return len(self.labels)

    @property
    def loss_function(self):
        return self.cluster_loss if self.cluster_loss.per_class else losses.OfColumn(self.cluster_loss)

    def valid(self):
        return self.cluster_loss.valid()

    def scores(self, r, y):
        return (r, y) if self.cluster_loss.per_class else signed_scores(r[0], y)

    def label(self, w_star, noise):
        """Label of the cluster whose indicator is `w_star`."""
        return jnp.asarray(self.labels, w_star.dtype) @ w_star

    def sample(self, u_teacher: Array, u_label: Float[Array, " sample"], teacher_scale: Any):
        edges = jnp.cumsum(jnp.asarray(self.probabilities, u_label.dtype))[:-1]
        cluster = jnp.sum(u_label[None] > edges[:, None], axis=0)
        indicators = (jnp.arange(len(self.labels))[:, None] == cluster[None]).astype(u_label.dtype)
        return indicators, jnp.asarray(self.labels, u_label.dtype) @ indicators

    def test_risk(self, Q, O, rho):
        if self.cluster_loss.per_class:
            return super().test_risk(Q, O, rho)
        z, z_weights = gaussian_nodes(1 / 20, Q.dtype)
        r = O[0][:, None] + safe_sqrt(Q[0, 0]) * z[None]
        means = self.cluster_loss(r, jnp.asarray(self.labels, Q.dtype)[:, None]) @ z_weights
        return jnp.asarray(self.probabilities, Q.dtype) @ means

    def test_error(self, Q, O, rho):
        if self.cluster_loss.per_class:
            return super().test_error(Q, O, rho)
        deviation = safe_sqrt(Q[0, 0])
        margins = jnp.asarray(self.labels, Q.dtype) * O[0] / jnp.where(deviation > 0, deviation, 1.0)
        sharp = 0.5 * (1 - jnp.sign(margins))
        return jnp.asarray(self.probabilities, Q.dtype) @ jnp.where(deviation > 0, ndtr(-margins), sharp)
