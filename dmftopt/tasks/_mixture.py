from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Bool, Float, Int

from .._checks import as_number, check_real, check_shape, front_door, is_concrete, without_derivative
from ..numerics.matrices import rank_floor, square_root
from ..numerics.quadrature import bent_nodes, gaussian_nodes, safe_sqrt, uniform_points
from . import losses
from ._base import AbstractLossTask
from ._classification import signed_scores


class GaussianMixture(AbstractLossTask):
    """Classification of clusters: a sample of cluster c is x = mu_c + scale_c N(0, Lambda / d), and its label is the cluster's.

    The means are mu_c = Lambda theta_star_c / d: column c of the teacher is Lambda^-1 (d mu_c), the direction of linear
    discriminant analysis, so `Problem(teacher_scale=..., initial_correlation=...)` describes the means (one column a cluster; a
    scale of 0 puts a cluster at the origin, a correlation of -1 two opposite each other). `teacher_overlap` is the mean field
    E[r | c].

    - `labels`: one per cluster: ±1, or class numbers 0, 1, ... for the loss "softmax". Clusters may share a label, in an XOR-like
      mixture for instance: labels=(1, -1, 1) with means at -mu, 0, mu. Or, (cluster, class), the probabilities of the classes -1
      and 1, or 0, 1, ..., in each cluster.
    - `weights`: probabilities of the clusters, equal by default.
    - `loss`: a loss of `tasks.losses`, or the short name of one: for labels ±1 "logistic", "squared" ((r - y)² / 2), "hinge" and
      others, for class numbers "softmax" (one student column a class).
    - `scales`: of each cluster, 1 by default. E‖x - mu‖² is the mean of their squares: make it 1, the learning rate's
      unit.

    With scales, all that the theory sees is x / scale_c = mu_c / scale_c + N(0, Lambda / d), as SGD makes the same update with it
    and the loss as a function of its field r / scale_c, of gradient scale_c l: each sample's scale becomes part of its loss. So
    `loss`, `gradient`, `error`, `scores`, and metrics, take r / scale_c, and labels that tell the cluster, y (1 + c) or
    y + classes * c; `plain` turns both into r and y.

    Test risk and error are exact up to one-dimensional quadrature (8192 fixed points for "softmax"). Derivatives in what is
    drawn, `weights` and probabilities of classes, raise an error. Source: Mignacco et al., arXiv:2006.06098 (SGD on Gaussian
    mixtures by dynamical mean-field theory).
    """

    law: Float[Array, "cluster class"] = eqx.field(converter=as_number)
    probabilities: Float[Array, " cluster"] = eqx.field(converter=as_number)
    scales: Float[Array, " cluster"] | None = eqx.field(converter=as_number)
    cluster_loss: losses.AbstractLoss

    mixture = True

    @front_door
    def __init__(self, labels, weights=None, loss: str | losses.AbstractLoss = "logistic", scales=None):
        self.cluster_loss = losses.named(loss)
        self.law = _class_law(labels, self.cluster_loss.per_class)
        count = self.law.shape[0]
        self.probabilities = jnp.full(count, 1 / count) if weights is None else weights
        self.scales = scales

    def __check_init__(self):
        shape = (self.law.shape[0],)
        check_shape("weights", self.probabilities, (shape,), "Give one weight per cluster.")
        check_real("weights", self.probabilities)
        given = self.probabilities
        if is_concrete(given) and (np.any(np.asarray(given) <= 0) or abs(float(np.sum(np.asarray(given))) - 1) > 1e-4):
            raise ValueError(f"weights must be positive and sum to 1, got {given}. They are probabilities of clusters.")
        if self.scales is not None:
            check_shape("scales", self.scales, (shape,), "Give one scale per cluster.")
            check_real("scales", self.scales, minimum=0.0, exclusive=True, cure="It is a standard deviation.")

    def with_clusters(self, weights: Any, scales: Any) -> "GaussianMixture":
        """With these probabilities and scales of the clusters."""
        parts = as_number(weights), as_number(scales)
        return eqx.tree_at(lambda task: (task.probabilities, task.scales), self, parts, is_leaf=lambda leaf: leaf is None)

    @property
    def classes(self) -> int:
        return self.law.shape[1]

    @property
    def columns(self):
        return self.classes if self.cluster_loss.per_class else 1

    @property
    def teacher_columns(self):
        return self.law.shape[0]

    @property
    def labels(self) -> Float[Array, " cluster"]:
        """The likeliest label of each cluster."""
        return self._label(jnp.argmax(self.law, axis=1)).astype(self.law.dtype)

    @property
    def plain_loss(self) -> losses.AbstractLoss:
        """The loss of one sample, as a function of its field r, (m,), and its label."""
        return self.cluster_loss if self.cluster_loss.per_class else losses.OfColumn(self.cluster_loss)

    @property
    def loss_function(self):
        if self.scales is None:
            return self.plain_loss
        return _OfClusters(self.plain_loss, self.scales, self.classes if self.cluster_loss.per_class else None)

    def valid(self):
        ok = self.cluster_loss.valid() & jnp.all(self.probabilities > 0) & jnp.all(self.law >= 0)
        return ok if self.scales is None else ok & jnp.all(self.scales > 0)

    def plain(self, r: Float[Array, " m"], y: Float[Array, ""]) -> tuple[Float[Array, " m"], Float[Array, ""]]:
        """Field and label of one sample, from those that tasks with scales go by. Metrics that need them can ask for them:
        `metrics.Fields(lambda r, y: f(*task.plain(r, y)))`."""
        if self.scales is None:
            return r, y
        scale, label = self.loss_function.decoded(y)  # pyright: ignore
        return scale * r, label

    def scores(self, r, y):
        r, y = self.plain(r, y)
        return (r, y) if self.cluster_loss.per_class else signed_scores(r[0], y)

    def label(self, w_star, noise):
        """Label of a sample of the cluster that `w_star` indicates."""
        cluster = jnp.argmax(w_star)
        return self._coded(cluster, jnp.sum(noise > jnp.cumsum(self._drawn(self.law)[cluster])[:-1])).astype(w_star.dtype)

    def sample(self, u_teacher: Array, u_label: Float[Array, " sample"], teacher_scale: Any):
        """The known fields are the indicators of the clusters over their scales."""
        joint = (self._drawn(self.probabilities)[:, None] * self._drawn(self.law)).ravel().astype(u_label.dtype)
        drawn = jnp.sum(u_label[None] > jnp.cumsum(joint)[:-1, None], axis=0)
        cluster, number = drawn // self.classes, drawn % self.classes
        indicators = (jnp.arange(self.law.shape[0])[:, None] == cluster[None]).astype(u_label.dtype)
        known = indicators if self.scales is None else indicators / self._own_scales(u_label.dtype)[:, None]
        return known, self._coded(cluster, number).astype(u_label.dtype)

    def _label(self, number: Int[Array, "..."]) -> Array:
        return number if self.cluster_loss.per_class else 2 * number - 1

    def _coded(self, cluster: Int[Array, "..."], number: Int[Array, "..."]) -> Array:
        if self.scales is None:
            return self._label(number)
        return number + self.classes * cluster if self.cluster_loss.per_class else self._label(number) * (1 + cluster)

    def _drawn(self, value: Array) -> Array:
        return without_derivative(value, "GaussianMixture draws clusters and classes, which have no derivative. Hold them fixed.")

    def _own_scales(self, dtype: Any) -> Float[Array, " cluster"]:
        return jnp.ones(self.law.shape[0], dtype) if self.scales is None else jnp.asarray(self.scales, dtype)

    def _shares(self, dtype: Any) -> tuple[Float[Array, " cluster"], Float[Array, "cluster class"], Float[Array, " class"]]:
        """P(cluster), P(class | cluster), and the classes' labels."""
        labels = self._label(jnp.arange(self.classes)).astype(dtype)
        return self._drawn(self.probabilities).astype(dtype), self._drawn(self.law).astype(dtype), labels

    def _nodes(self, deviation: Float[Array, ""], mean: Float[Array, ""]) -> tuple[Float[Array, " node"], Float[Array, " node"]]:
        """Of one column: z and weights for the field mean + deviation z of a cluster."""
        if isinstance(self.cluster_loss, losses.AbstractMarginLoss):
            bends = [sign * bend - mean for bend in self.cluster_loss.bends for sign in (1, -1)]
        elif isinstance(self.cluster_loss, losses.AbstractResidualLoss):
            bends = [bend + label - mean for bend in self.cluster_loss.bends for label in (1, -1)]
        else:
            return gaussian_nodes(1 / 20, deviation.dtype)
        return bent_nodes(deviation, bends)

    def _over_clusters(self, function: Any, Q: Array, O: Array) -> Float[Array, ""]:
        """E[function(field, label)] of one sample, of several columns: over as many normals in each cluster."""
        p, law, labels = self._shares(Q.dtype)
        z = ndtri(jax.lax.optimization_barrier(jnp.asarray(uniform_points(self.classes, 12), Q.dtype)))
        swing = square_root(Q, rank_floor(Q)) @ jnp.concatenate([z, -z], axis=1)

        def in_cluster(of):
            mean, scale, law = of
            r = mean[:, None] + scale * swing
            values = jax.vmap(lambda y: jnp.mean(jax.vmap(function, (1, None))(r, y)))(labels)
            return law @ values

        return p @ jax.lax.map(in_cluster, (O.T, self._own_scales(Q.dtype), law))

    def test_risk(self, Q, O, rho):
        if self.cluster_loss.per_class:
            return self._over_clusters(self.plain_loss, Q, O)
        p, law, labels = self._shares(Q.dtype)

        def in_cluster(mean, scale, law):
            deviation = scale * safe_sqrt(Q[0, 0])
            z, weights = self._nodes(deviation, mean)
            return law @ (self.cluster_loss((mean + deviation * z)[None], labels[:, None]) @ weights)

        return p @ jax.vmap(in_cluster)(O[0], self._own_scales(Q.dtype), law)

    def test_error(self, Q, O, rho):
        if self.cluster_loss.per_class:
            plain = eqx.tree_at(lambda task: task.scales, self, None, is_leaf=lambda leaf: leaf is None)
            return self._over_clusters(plain.error, Q, O)
        p, law, labels = self._shares(Q.dtype)
        deviation = self._own_scales(Q.dtype) * safe_sqrt(Q[0, 0])
        margins = labels[None] * (O[0] / jnp.where(deviation > 0, deviation, 1.0))[:, None]
        wrong = jnp.where((deviation > 0)[:, None], ndtr(-margins), 0.5 * (1 - jnp.sign(margins)))
        return p @ jnp.sum(law * wrong, axis=1)

    def moments(self, Q, O, rho):
        """Of one column, by quadrature. E[l w_star] is E[l / scale_c] in each cluster, times its probability."""
        if self.cluster_loss.per_class:
            return None
        p, law, labels = self._shares(Q.dtype)
        # A student at 0 has no correlation to divide; see `limits.online`.
        s = jnp.sqrt(jnp.maximum(Q[0, 0], jnp.finfo(Q.dtype).eps ** (2 / 3)))

        def in_cluster(mean, scale, law):
            z, weights = self._nodes(scale * s, mean)
            r, y = (mean + scale * s * z)[None], labels[:, None]
            l = scale * self.cluster_loss.gradient(r, y)
            if self.cluster_loss.kink_width == 0:
                slope = scale**2 * (self.cluster_loss.curvature(r, y) + 0 * y) @ weights
            else:
                slope = (l - l @ weights[:, None]) @ (weights * z) / s
            return law @ slope, law @ (l @ weights) / scale, law @ (l**2 @ weights)

        a, with_known, power = jax.vmap(in_cluster)(O[0], self._own_scales(Q.dtype), law)
        return (p @ a).reshape(1, 1), (p * with_known)[None], (p @ power).reshape(1, 1)


class _OfClusters(losses.AbstractLoss):
    """A loss of r, (m,), as one of r / scale_c and a label that tells the cluster. `classes`: None for labels ±1."""

    loss: losses.AbstractLoss
    scales: Float[Array, " cluster"]
    classes: int | None = eqx.field(static=True)

    @property
    def kink_width(self):
        return self.loss.kink_width

    @property
    def bend_width(self):
        return self.loss.bend_width

    def valid(self) -> Bool[Array, ""]:
        return self.loss.valid()

    def decoded(self, y: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The scale of the sample's cluster, and its label."""
        if self.classes is None:
            cluster, label = jnp.round(jnp.abs(y)) - 1, jnp.sign(y)
        else:
            cluster = jnp.floor((jnp.round(y) + 0.5) / self.classes)
            label = y - self.classes * cluster
        return self.scales[jax.lax.stop_gradient(cluster).astype(int)].astype(y.dtype), label

    def __call__(self, r, y):
        scale, label = self.decoded(y)
        return self.loss(scale * r, label)

    def gradient(self, r, y):
        scale, label = self.decoded(y)
        return scale * self.loss.gradient(scale * r, label)

    def curvature(self, r, y):
        scale, label = self.decoded(y)
        return scale**2 * self.loss.curvature(scale * r, label)


def _class_law(labels: Any, per_class: bool) -> Float[Array, "cluster class"]:
    """P(class | cluster) of labels as `GaussianMixture` takes them."""
    given = np.asarray(labels, dtype=float)
    if given.ndim == 2:
        rows = np.abs(given.sum(axis=1) - 1) < 1e-4
        if given.shape[0] < 2 or given.shape[1] < 2 or not (np.all(given >= 0) and np.all(rows)):
            raise ValueError(f"labels as (cluster, class) must be probabilities whose rows sum to 1, got {labels!r}.")
        if not per_class and given.shape[1] != 2:
            raise ValueError(f'labels: {given.shape[1]} classes in the columns go with loss="softmax" only. Give two.')
        return jnp.asarray(given)
    if given.ndim != 1 or given.size < 2 or not np.all(np.isfinite(given)):
        raise ValueError(f"labels must be a sequence of at least two finite numbers, one per cluster, got {labels!r}.")
    found = set(given.tolist())
    if len(found) < 2:
        raise ValueError(f"labels must name at least two classes, got {labels}.")
    if per_class and found != set(range(int(max(found)) + 1)):
        raise ValueError(f'labels must be the class numbers 0, 1, ... for loss="softmax", got {labels}.')
    if not per_class and not found <= {1.0, -1.0}:
        raise ValueError(f'labels must be ±1, got {labels}. For more classes use loss="softmax".')
    numbers = given.astype(int) if per_class else (given > 0).astype(int)
    return jnp.eye(int(numbers.max()) + 1)[numbers]
