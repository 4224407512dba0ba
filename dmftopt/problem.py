"""Problem: the task, the features and the scales of teacher and student."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._checks import as_number, check_instance, check_real, check_shape, is_concrete
from .data import DataMap, describe
from .features import Features
from .tasks import AbstractTask, LeastSquares


def check_problem(problem: Any) -> None:
    """What every route asks of its problem at the front door."""
    check_instance("problem", problem, Problem, "Build it with dmftopt.Problem(...).")
    if is_concrete(problem.rho) and not problem.rho > 0:
        raise ValueError("teacher_scale must be > 0 in some group: there is no teacher. Give it a positive scale.")


class Problem(eqx.Module):
    """A student theta learns from n = delta * d samples labelled through a teacher theta_star, both in d dimensions.

    - `task`: loss and label law, see `dmftopt.tasks`.
    - `features`: Gaussian features by eigenvalue groups, see `dmftopt.features`.
    - `delta`: training samples per dimension, n / d > 0.
    - `teacher_scale`, `student_scale`: standard deviation of the entries of theta_star and of the initial theta, a number
      or one per eigenvalue group. Student and teacher start uncorrelated.
    - `data`: how raw data map to this problem, set by `Problem.from_data`.
    """

    task: AbstractTask
    features: Features
    delta: Any = eqx.field(converter=as_number)
    teacher_scale: Any = eqx.field(converter=as_number, default=1.0)
    student_scale: Any = eqx.field(converter=as_number, default=0.0)
    data: DataMap | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_instance("task", self.task, AbstractTask, "Pass for instance dmftopt.tasks.LeastSquares().")
        check_instance("features", self.features, Features, "Pass for instance dmftopt.features.isotropic().")
        check_real("delta", self.delta, minimum=0.0, exclusive=True, cure="It is training samples / dimension.")
        check_shape("delta", self.delta, ((),), "Use jax.vmap for a sweep.")
        for name in ("teacher_scale", "student_scale"):
            scale = getattr(self, name)
            check_real(name, scale, minimum=0.0, cure="It is a standard deviation.")
            check_shape(name, scale, ((), (self.features.groups,)), "Give one number, or one per eigenvalue group.")

    @property
    def rho(self) -> Float[Array, ""]:
        """E[lambda theta_star²], the variance of the teacher field."""
        return self._power(self.teacher_scale)

    @property
    def initial_overlap(self) -> Float[Array, ""]:
        """E[lambda theta_0²], the variance of the student field at time 0."""
        return self._power(self.student_scale)

    def _power(self, scale: Any) -> Float[Array, ""]:
        return jnp.sum(self.features.weights * self.features.eigenvalues * jnp.asarray(scale, dtype=float) ** 2)

    @classmethod
    def from_data(cls, features: Any, labels: Any, *, train_size: int, groups: int = 40) -> "Problem":
        """Least squares on real data, from the spectrum, the teacher and the label noise that the data show.

        Under the squared loss only second moments enter the theory, so Gaussian features with the data's covariance stand
        in for the data. How well they do is for a simulation to say; the digits of experiments/01 come within 3 to 5%.

        - `features`: (samples, d) raw features; `labels`: (samples,) real targets or ±1 classes. Both are centered.
        - `train_size`: how many samples SGD will train on; delta = train_size / d.
        - `groups`: at most this many eigenvalue groups, of equal width in log eigenvalue.

        The teacher is the least-squares fit to all samples given; its power per group and the label noise are corrected for
        the fit's own variance (sigma² = RSS / (samples - d - 1)). The spectrum is the sample's, too wide by a relative variance
        of d / samples, so give many more samples than dimensions where you can. The student starts at 0.

        `problem.data` holds the map back: centers, c = mean square norm (raw learning rate = learning_rate / c, raw ridge =
        ridge * c) and dimension.

        Raises ValueError for NaN or infinite entries, constant or linearly dependent columns, constant labels, and fewer
        than 2 samples per dimension (the fit would hardly determine a teacher).
        """
        estimate = describe(features, labels, train_size=train_size, groups=groups)
        return cls(
            task=LeastSquares(label_noise=estimate.label_noise),
            features=Features(jnp.asarray(estimate.eigenvalues), jnp.asarray(estimate.weights)),
            delta=estimate.delta,
            teacher_scale=jnp.asarray(estimate.teacher_scale),
            student_scale=0.0,
            data=estimate.map,
        )
