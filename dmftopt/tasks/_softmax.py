import equinox as eqx
import jax
import jax.numpy as jnp

from .._checks import check_count, without_derivative
from ._base import AbstractTask

_LABELS = ("argmax", "softmax")


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
        message = (
            'Softmax(labels="softmax") draws classes, which have no derivative in the teacher or the features. Hold them fixed.'
        )
        w_star = without_derivative(w_star, message)
        return jnp.sum(noise > jnp.cumsum(jax.nn.softmax(w_star))[:-1]).astype(w_star.dtype)


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
