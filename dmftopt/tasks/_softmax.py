import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from .._checks import check_count, without_derivative
from .._matrices import inverse_root, rank_floor, square_root
from ..quadrature import uniform_points
from ._base import AbstractTask

_LABELS = ("argmax", "softmax")
_DRAWN = 'Softmax(labels="softmax") draws classes, which have no derivative in the teacher or the features. Hold them fixed.'


class Softmax(AbstractTask):
    """Softmax regression with `classes` classes, one student and one teacher column for each:

        loss = log sum_c exp(r_c) - r_y

    - `labels="argmax"`: y is the class of the largest teacher field.
    - `labels="softmax"`: y is drawn with probabilities exp(w_star_c) / sum; the teacher's scale is the inverse temperature.

    Labels are class numbers 0, 1, ..., as floats. A label jumps where a parameter moves it: with "softmax" labels a derivative in
    the teacher's scale or the features raises an error; with "argmax" derivatives are exact in whatever scales all teacher
    fields alike, and treat the teacher's angles as fixed.
    """

    classes: int = eqx.field(static=True)
    labels: str = eqx.field(static=True, default="argmax")

    def __check_init__(self):
        check_count("classes", self.classes, minimum=2)
        if self.labels not in _LABELS:
            raise ValueError(f"labels must be one of {_LABELS}, got {self.labels!r}.")

    @property
    def columns(self):
        return self.classes

    @property
    def teacher_columns(self):
        return self.classes

    def loss(self, r, y):
        return cross_entropy(r, y)

    def gradient(self, r, y):
        return cross_entropy_gradient(r, y)

    def curvature(self, r, y):
        return cross_entropy_curvature(r)

    def error(self, r, y):
        return multiclass_error(r, y)

    def scores(self, r, y):
        return r, y

    def label(self, w_star, noise):
        if self.labels == "argmax":
            return jnp.argmax(w_star).astype(w_star.dtype)
        w_star = without_derivative(w_star, _DRAWN)
        return jnp.sum(noise > jnp.cumsum(jax.nn.softmax(w_star))[:-1]).astype(w_star.dtype)

    # Means over fresh samples. Labels jump, so they are averaged apart wherever the student's fields allow: over the classes'
    # probabilities given the teacher's fields, and what is linear in the fields given those.

    def _classes(self, known, root):
        """P(class | teacher's fields), (class, node), where these are `root` @ known."""
        w_star = root @ known
        if self.labels == "softmax":
            return jax.nn.softmax(without_derivative(w_star, _DRAWN), axis=0)
        return (jnp.argmax(w_star, axis=0) == jnp.arange(self.classes)[:, None]).astype(w_star.dtype)

    def _teacher(self, rho):
        """E[1_y w_star^T] rho^-1, (class, m_star), and P(y), (class,)."""
        known = ndtri(jnp.asarray(uniform_points(self.classes, 16), rho.dtype))
        shares = self._classes(known, square_root(rho, rank_floor(rho)))
        return shares @ known.T / known.shape[1] @ inverse_root(rho, rank_floor(rho)), jnp.mean(shares, axis=1)

    def _student(self, Q):
        """The student's fields at 8192 nodes and their mirror images, (m, node)."""
        z = ndtri(jnp.asarray(uniform_points(self.classes), Q.dtype))
        w = square_root(Q, rank_floor(Q)) @ z
        return jnp.concatenate([w, -w], axis=1)

    def _joint(self, Q, O, rho):
        """The student's fields and P(class | teacher's fields) at 16384 nodes, (m, node) each."""
        known, z = jnp.split(ndtri(jnp.asarray(uniform_points(2 * self.classes, 14), Q.dtype)), 2)
        to_known, rest = self.student_fields(Q, O, rho)
        return to_known @ known + rest @ z, self._classes(known, square_root(rho, rank_floor(rho)))

    def test_risk(self, Q, O, rho):
        """E[log sum_c exp(w_c)] - E[w_y], good to 5e-4 for fields of order 1 (0-1 errors: 3e-3)."""
        return jnp.mean(jax.nn.logsumexp(self._student(Q), axis=0)) - jnp.sum(self._teacher(rho)[0] * O)

    def test_error(self, Q, O, rho):
        w, shares = self._joint(Q, O, rho)
        best = (w == jnp.max(w, axis=0)).astype(w.dtype)
        return 1 - jnp.mean(jnp.sum(shares * best, axis=0) / jnp.sum(best, axis=0))

    def moments(self, Q, O, rho):
        """With l = p(w) - 1_y: E[p w_star^T] = E[dp / dw] O by Gaussian integration by parts."""
        curvature = jnp.mean(jax.vmap(cross_entropy_curvature, 1, 2)(self._student(Q)), axis=2)
        with_teacher, probabilities = self._teacher(rho)
        w, shares = self._joint(Q, O, rho)
        p = jax.nn.softmax(w, axis=0)
        cross = p @ shares.T
        power = (p @ p.T - cross - cross.T) / w.shape[1] + jnp.diag(probabilities)
        return curvature, curvature @ O - with_teacher @ rho, power


def one_hot(r, y):
    return (jnp.arange(r.shape[0], dtype=r.dtype) == y).astype(r.dtype)


def cross_entropy(r, y):
    return jax.nn.logsumexp(r) - jnp.sum(one_hot(r, y) * r)


def cross_entropy_gradient(r, y):
    return jax.nn.softmax(r) - one_hot(r, y)


def cross_entropy_curvature(r):
    p = jax.nn.softmax(r)
    return jnp.diag(p) - jnp.outer(p, p)


def multiclass_error(r, y):
    """1 where another field is larger, a tie counting by chance."""
    best = (r == jnp.max(r)).astype(r.dtype)
    return 1 - jnp.sum(one_hot(r, y) * best) / jnp.sum(best)
