"""A task whose gradient an optimizer has changed before it moves the weights."""

from typing import Any

import equinox as eqx

from ._base import AbstractTask
from ._derivatives import curvature_of


class Updated(AbstractTask):
    """The same losses, risks and labels; its gradient is `change(l)` of the task's gradient l, columns first. `width`: over which
    what jumps is differentiated, `jump` whether that is the gradient (and not only its slope)."""

    task: AbstractTask
    change: Any
    width: float = eqx.field(static=True)
    jump: bool = eqx.field(static=True)

    @property
    def mixture(self):  # pyright: ignore
        return self.task.mixture

    @property
    def mirrored(self):  # pyright: ignore
        return self.task.mirrored

    @property
    def columns(self):
        return self.task.columns

    @property
    def teacher_columns(self):
        return self.task.teacher_columns

    @property
    def kink_width(self):
        return max(self.task.kink_width, self.width if self.jump else 0.0)

    @property
    def bend_width(self):
        return max(self.task.bend_width, self.width)

    @property
    def risk_nodes(self):
        return self.task.risk_nodes

    def loss(self, r, y):
        return self.task.loss(r, y)

    def label(self, w_star, noise):
        return self.task.label(w_star, noise)

    def gradient(self, r, y):
        l = self.task.gradient(r, y)
        return self.change(l[None])[0] if self.columns is None else self.change(l)

    def curvature(self, r, y):
        return curvature_of(self.gradient, r, y, self.bend_width, self.columns)

    def scores(self, r, y):
        return self.task.scores(r, y)

    def error(self, r, y):
        return self.task.error(r, y)

    def valid(self):
        return self.task.valid()

    def sample(self, u_teacher, u_label, teacher_scale):
        return self.task.sample(u_teacher, u_label, teacher_scale)

    def population(self, teacher_scale):
        return self.task.population(teacher_scale)

    def test_risk(self, Q, O, rho):
        return self.task.test_risk(Q, O, rho)

    def test_error(self, Q, O, rho):
        return self.task.test_error(Q, O, rho)
