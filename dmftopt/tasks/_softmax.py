from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from .._checks import check_count, front_door
from ..numerics.matrices import rank_floor, square_root
from ..numerics.quadrature import uniform_points
from ..numerics.ties import shares_of_largest
from . import labels as laws
from . import losses
from ._base import AbstractLossTask, student_fields


class Softmax(AbstractLossTask):
    """Softmax regression with `classes` classes, one student and one teacher column for each:

        loss = log sum_c exp(r_c) - r_y

    `labels` is a `tasks.labels.AbstractClassLabels`, or the short name of one:

    - "argmax": y is the class of the largest teacher field.
    - "softmax": y is drawn with probabilities exp(w_star_c) / sum; the teacher's scale is the inverse temperature.

    Labels are class numbers 0, 1, ..., as floats. A label jumps where a parameter moves it: with "softmax" labels a derivative in
    the teacher's scale or the features raises an error; with "argmax" derivatives are exact in whatever scales all teacher
    fields alike, and treat the teacher's angles as fixed.
    """

    classes: int = eqx.field(static=True)
    labels: laws.AbstractClassLabels

    @front_door
    def __init__(self, classes: int, labels: str | laws.AbstractClassLabels = "argmax"):
        self.classes = classes
        self.labels = laws.named("labels", labels, laws.CLASSES, laws.AbstractClassLabels, {})

    def __check_init__(self):
        check_count("classes", self.classes, minimum=2)

    @property
    def columns(self):
        return self.classes

    @property
    def teacher_columns(self):
        return self.classes

    @property
    def risk_nodes(self):
        return 2**16

    @property
    def loss_function(self):
        return losses.CrossEntropy()

    def scores(self, r, y):
        return r, y

    def label(self, w_star, noise):
        return self.labels.label(w_star, noise)

    def _teacher(self, known, rho):
        """The teacher's fields, (class, node), made of these normals, and P(class | teacher's fields)."""
        w_star = square_root(rho, rank_floor(rho)) @ known
        return w_star, self.labels.probabilities(self.labels.fixed(w_star))

    def _nodes(self, Q, O, rho, log_nodes):
        """Over a fresh sample: the student's fields, (m, node), and P(class | teacher's fields). Labels are averaged, and every
        node has a twin whose student differs from its mean to the other side."""
        known, z = jnp.split(_normals(2 * self.classes, log_nodes, Q.dtype), 2)
        to_known, rest = student_fields(self, Q, O, rho)
        center, swing = to_known @ known, rest @ z
        _, shares = self._teacher(known, rho)
        return jnp.concatenate([center + swing, center - swing], axis=1), jnp.concatenate([shares, shares], axis=1)

    def test_risk(self, Q, O, rho):
        """Over 65536 nodes: of fields of order 1 good to about 1e-4 (five classes: 1e-3)."""
        w, shares = self._nodes(Q, O, rho, 15)
        return jnp.mean(jnp.sum(shares * (jax.nn.logsumexp(w, axis=0)[None] - w), axis=0))

    def test_error(self, Q, O, rho):
        """As test_risk, but what is averaged jumps: good to 2e-3."""
        w, shares = self._nodes(Q, O, rho, 15)
        return 1 - jnp.mean(jnp.sum(shares * shares_of_largest(w), axis=0))

    def moments(self, Q, O, rho):
        """With l = p(w) - 1_y: E[p w_star^T] = E[dp / dw] O by Gaussian integration by parts."""
        w, shares = self._nodes(Q, O, rho, 13)
        # The curvature does not depend on the label.
        curvature = jnp.mean(jax.vmap(self.curvature, (1, None), 2)(w, jnp.zeros((), w.dtype)), axis=2)
        p, count = jax.nn.softmax(w, axis=0), w.shape[1]
        cross = p @ shares.T
        power = (p @ p.T - cross - cross.T) / count + jnp.diag(jnp.mean(shares, axis=1))
        w_star, shares = self._teacher(_normals(self.classes, 16, Q.dtype), rho)
        return curvature, curvature @ O - shares @ w_star.T / w_star.shape[1], power


def _normals(dimension: int, log_nodes: int, dtype: Any) -> Float[Array, "dimension node"]:
    # The barrier keeps XLA from working out what follows from constants at compile time, which takes a minute for 100 classes.
    return ndtri(jax.lax.optimization_barrier(jnp.asarray(uniform_points(dimension, log_nodes), dtype)))
