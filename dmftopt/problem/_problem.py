"""Problem: the task, the features and the scales of teacher and student."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._checks import as_number, check_instance, check_member, check_real, check_shape, front_door, is_concrete
from .._compiler import warn_of_compiler
from .._memory import check_memory
from ..numerics.matrices import pivoted_root, square_root
from ..tasks import AbstractTask, GaussianMixture, LeastSquares, Updated
from ..tasks.losses import AbstractLoss, named
from ._data import DataMap, describe, describe_classes
from ._mixture_data import Mixture
from ._population import Population
from .features import Features
from .parametrizations import AbstractParametrization, Direct
from .priors import AbstractPrior, Normal
from .regularizers import AbstractRegularizer, Ridge


def check_problem(problem: Any) -> None:
    """What every route asks of its problem at the front door."""
    warn_of_compiler()
    check_instance("problem", problem, Problem, "Build it with dmftopt.Problem(...).")
    columns, groups = problem.m + problem.m_star, problem.features.groups
    request = f"problem with {columns} columns of student and teacher and {groups} eigenvalue groups"
    check_memory(request, 4 * groups * columns**2, "Use fewer classes, hidden units or groups.")
    if is_concrete(problem.rho) and not jnp.trace(problem.rho) > 0:
        raise ValueError("teacher_scale must be > 0 in some group: there is no teacher. Give it a positive scale.")


def check_single(problem: "Problem", route: str) -> None:
    """For routes with one student and one teacher field, who start uncorrelated."""
    if problem.task.columns is not None or problem.task.teacher_columns is not None:
        raise ValueError(f"{route} takes tasks with a single field, not {type(problem.task).__name__}. Use solve without it.")
    if problem.initial_correlation is not None:
        raise ValueError(f"{route} takes no initial_correlation. Use solve without it, or limits.online.")


def check_linear(problem: "Problem", route: str) -> None:
    """For routes whose weights are linear. (Priors need no check: linear weights feel second moments alone.)"""
    if not isinstance(problem.regularizer, Ridge):
        name = type(problem.regularizer).__name__
        raise ValueError(f"{route} takes regularizers.Ridge() only, got {name}. Use solve without it.")
    check_direct(problem, route)


def check_direct(problem: "Problem", route: str) -> None:
    if not problem.direct:
        name = type(problem.parametrization).__name__
        raise ValueError(f"{route} takes parametrizations.Direct() only, got {name}. Use solve without it.")


def _roots(correlation: Float[Array, "group column column"]) -> Float[Array, "group column column"]:
    """Of each group a root whose last columns are 0 where the rank is low: then few coordinates can show it exactly."""
    drop = float(jnp.finfo(correlation.dtype).eps) ** 0.75
    return jax.vmap(lambda matrix: pivoted_root(matrix, drop))(correlation)


_BASES = {"aligned": 1.0, "rotated": 0.0, "mixed": -1.0}


def _as_basis(value: Any) -> Any:
    if isinstance(value, str):
        check_member("basis", value, _BASES)
        return _BASES[value]
    return as_number(value)


def _check_correlation(value: Any, columns: int, groups: int) -> None:
    name = "initial_correlation"
    shapes = ((columns, columns), (groups, columns, columns), *([()] if columns == 2 else []))
    check_shape(name, value, shapes, "Give correlations over the teacher's columns, then the student's.")
    check_real(name, value)
    if not is_concrete(value):
        return
    matrix = np.asarray(value)
    if matrix.ndim == 0:
        if abs(matrix) > 1:
            raise ValueError(f"{name} must lie in [-1, 1], got {value}. It is a cosine.")
        return
    transposed, diagonal = np.swapaxes(matrix, -1, -2), np.diagonal(matrix, axis1=-2, axis2=-1)
    if not np.allclose(matrix, transposed, atol=1e-6) or not np.allclose(diagonal, 1, atol=1e-6):
        raise ValueError(f"{name} must be symmetric with ones on the diagonal. Put scales in teacher_scale and student_scale.")
    if np.min(np.linalg.eigvalsh(matrix)) < -1e-6:
        raise ValueError(f"{name} must be positive semidefinite: no set of columns has these correlations.")


# In units of the fields, over which what an update makes of a gradient is differentiated where it jumps or bends.
_UPDATE_WIDTH = 0.1


def updated(problem: "Problem", update: Any) -> "Problem":
    """The problem as an update (of `dmftopt.updates`, or None) that changes gradients lets it be learned."""
    if update is None or not update.changes:
        return problem
    task = Updated(problem.task, update.gradient, _UPDATE_WIDTH, update.jumps)
    return dataclasses.replace(problem, task=task)


def check_basis(problem: "Problem") -> None:
    """For updates that see single coordinates."""
    if is_concrete(problem.basis) and float(np.asarray(problem.basis)) == _BASES["mixed"]:
        raise ValueError(
            "update: the columns of the features are neither their eigenvectors nor of nearly equal variance, and what Adam does "
            "to them is not known. Scale all columns to the same variance, and make the problem anew."
        )


def group_gains(problem: "Problem") -> Float[Array, " group"]:
    """Of each eigenvalue group, the inverse root mean square of the features as coordinates see them."""
    lam = problem.features.eigenvalues
    return lam ** (-0.5 * jnp.asarray(problem.basis, lam.dtype))


@front_door
class Problem(eqx.Module):
    """A student theta learns from n = delta * d samples labelled through a teacher theta_star, both in d dimensions.

    - `task`: loss and label law, see `dmftopt.tasks`.
    - `features`: Gaussian features by eigenvalue groups, see `dmftopt.features`.
    - `delta`: training samples per dimension, n / d > 0.
    - `teacher_scale`, `student_scale`: standard deviation of the entries of theta_star and of the initial theta: a number, one
      per eigenvalue group, or an array (groups, columns) or (1, columns) where the task has several columns.
    - `initial_correlation`: correlations of the entries of teacher and initial student. None: all columns independent. A
      number: of the one teacher column with the one student column. Or the matrix (m_star + m, m_star + m) over the teacher's
      columns, then the student's (a small asymmetry of hidden units is what lets them specialize). Or one for each eigenvalue
      group, (groups, m_star + m, m_star + m).
    - `regularizer`: penalty of the weights, see `dmftopt.regularizers`; its strength is `Protocol.ridge`.
    - `parametrization`: what is trained in place of the weights, see `dmftopt.parametrizations`.
    - `teacher_prior`, `student_prior`: law of these entries, see `dmftopt.priors`. Only a regularizer other than the ridge or a
      parametrization tells laws of equal scale apart.
    - `basis`: "aligned" if the coordinates that an adaptive optimizer sees are the features' eigenvectors, "rotated" if they are
      far from them, all of nearly equal variance; "mixed" if neither, which Adam's theory does not take (held as 1, 0, -1: a
      number, so that data sets share their programs). Only `dmftopt.updates` tells one from the other.
    - `data`: how raw data map to this problem, set by `Problem.from_data`. No route reads it.

    Teacher and student have m_star and m columns where the task has (`task.teacher_columns`, `task.columns`), otherwise one.
    """

    task: AbstractTask
    features: Features
    delta: Any = eqx.field(converter=as_number)
    teacher_scale: Any = eqx.field(converter=as_number, default=1.0)
    student_scale: Any = eqx.field(converter=as_number, default=0.0)
    initial_correlation: Any = eqx.field(converter=as_number, default=None)
    regularizer: AbstractRegularizer = Ridge()
    parametrization: AbstractParametrization = Direct()
    teacher_prior: AbstractPrior = Normal()
    student_prior: AbstractPrior = Normal()
    basis: Any = eqx.field(converter=_as_basis, default="aligned")
    data: DataMap | None = None

    def __check_init__(self):
        check_instance("task", self.task, AbstractTask, "Pass for instance dmftopt.tasks.LeastSquares().")
        check_instance("features", self.features, Features, "Pass for instance dmftopt.features.isotropic().")
        if self.task.teacher_columns is not None and self.task.columns is None:
            raise ValueError(f"task: {type(self.task).__name__} has teacher_columns but no columns. Give it columns = 1.")
        check_real("delta", self.delta, minimum=0.0, exclusive=True, cure="It is training samples / dimension.")
        check_shape("delta", self.delta, ((),), "Use jax.vmap for a sweep.")
        groups = self.features.groups
        for name, columns in (("teacher_scale", self.m_star), ("student_scale", self.m)):
            scale = getattr(self, name)
            check_real(name, scale, minimum=0.0, cure="It is a standard deviation.")
            shapes = ((), (groups,), (1, columns), (groups, columns))
            check_shape(name, scale, shapes, "Give one number, one per eigenvalue group, or (groups, columns).")
        if self.initial_correlation is not None:
            _check_correlation(self.initial_correlation, self.m_star + self.m, groups)
        check_instance("regularizer", self.regularizer, AbstractRegularizer, "Pass dmftopt.regularizers.SmoothL1(0.1), say.")
        check_instance("parametrization", self.parametrization, AbstractParametrization, "Pass parametrizations.Diagonal(), say.")
        for name in ("teacher_prior", "student_prior"):
            prior = getattr(self, name)
            check_instance(name, prior, AbstractPrior, "Pass for instance dmftopt.priors.Sparse(0.1).")
            if self.initial_correlation is not None and not isinstance(prior, Normal):
                raise ValueError(f"{name} must be priors.Normal() with initial_correlation: mixed columns would lose their law.")

    def valid(self) -> Bool[Array, ""]:
        """The checks above, for traced values."""
        ok = (jnp.asarray(self.delta) > 0) & jnp.all(self.features.eigenvalues > 0) & jnp.all(self.features.weights > 0)
        ok = ok & (jnp.abs(jnp.sum(self.features.weights) - 1) < 1e-3) & self.task.valid()
        for scale in (self.teacher_scale, self.student_scale):
            ok = ok & jnp.all(jnp.asarray(scale) >= 0)
        if self.initial_correlation is None:
            return ok
        correlation = jax.lax.stop_gradient(jnp.asarray(self.initial_correlation, dtype=float))
        if correlation.ndim == 0:
            return ok & (jnp.abs(correlation) <= 1)
        close = jnp.allclose(correlation, jnp.swapaxes(correlation, -1, -2), atol=1e-5)
        close = close & jnp.allclose(jnp.diagonal(correlation, axis1=-2, axis2=-1), 1.0, atol=1e-5)
        if correlation.ndim == 3:
            # What its root makes of it (batches of LAPACK's factorizations can hang jaxlib's CPU threads).
            root = _roots(correlation)
            return ok & close & jnp.allclose(root @ jnp.swapaxes(root, 1, 2), correlation, atol=1e-3)
        return ok & close & (jnp.linalg.eigvalsh(correlation)[0] > -1e-5)

    @property
    def m(self) -> int:
        """Columns of the student."""
        return self.task.columns or 1

    @property
    def m_star(self) -> int:
        """Columns of the teacher."""
        return self.task.teacher_columns or 1

    @property
    def direct(self) -> bool:
        """Whether it is the weights themselves that are trained."""
        return isinstance(self.parametrization, Direct)

    @property
    def linear_weights(self) -> bool:
        """Whether the weights are linear in their start and the gradients, so that second moments say all."""
        return self.direct and isinstance(self.regularizer, Ridge)

    @property
    def initial(self) -> Float[Array, "{self.features.groups} {self.m_star+self.m} {self.m_star+self.m}"]:
        """The entries of theta_star, then theta_0, as combinations of independent normals, for each eigenvalue group."""
        groups = self.features.groups

        def scales(value, columns):
            value = jnp.asarray(value, dtype=float)
            return jnp.broadcast_to(value if value.ndim == 2 else value[..., None], (groups, columns))

        scale = jnp.concatenate([scales(self.teacher_scale, self.m_star), scales(self.student_scale, self.m)], axis=1)
        if self.initial_correlation is None:
            return scale[:, :, None] * jnp.eye(self.m_star + self.m)[None]
        correlation = jnp.asarray(self.initial_correlation, dtype=float)
        if correlation.ndim == 3:
            return scale[:, :, None] * _roots(correlation)
        if correlation.ndim == 0:
            correlation = jnp.eye(2) + correlation * (1 - jnp.eye(2))
        return scale[:, :, None] * square_root(correlation, 4 * jnp.finfo(correlation.dtype).eps)[None]

    @property
    def rho(self) -> Float[Array, "{self.m_star} {self.m_star}"]:
        """E[theta_star lambda theta_star^T], the covariance of the teacher fields."""
        return self._moment(self.initial[:, : self.m_star])

    @property
    def initial_overlap(self) -> Float[Array, "{self.m} {self.m}"]:
        """E[theta_0 lambda theta_0^T], the covariance of the student fields at time 0."""
        return self._moment(self.initial[:, self.m_star :])

    def _moment(self, rows: Float[Array, "group column normal"]) -> Array:
        return jnp.einsum("g,gac,gbc->ab", self.features.weights * self.features.eigenvalues, rows, rows)

    @property
    def replicates(self) -> list["Problem"]:
        """This problem with other populations that the data could have come from, in pairs, one standard deviation to either side
        along independent directions: half the differences of what is predicted for them are standard errors that add in
        squares, see `dmftopt.estimation_error`. One compiled program serves them all.

        Raises ValueError for a problem that `from_data` did not estimate."""
        if self.data is None or not self.data.estimated:
            raise ValueError('The problem has no replicates. Make it by Problem.from_data(..., population="estimate").')
        return [self._of(population) for population in self.data.others()]

    def centered(self, features: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
        """Data as SGD has to see them for this problem of `from_data` to predict it: features less their center, beside them a
        constant 1 where the problem has an `intercept`; labels less theirs, or of classes -1 and 1, or for "softmax" 0, 1, ...

        Raises ValueError for a problem that is not of `from_data`, other numbers of columns, and unknown classes."""
        if self.data is None:
            raise ValueError("The problem does not come from data. Make it by Problem.from_data(...).")
        x, y = self.data.centered(features, labels)
        one = isinstance(self.task, GaussianMixture) and self.task.columns == 1
        return x, 2 * y - 1 if one else y

    def _of(self, population: Population | Mixture) -> "Problem":
        """With this population; the task has a label noise, or clusters."""
        if isinstance(population, Mixture):
            if not isinstance(self.task, GaussianMixture):
                raise ValueError(f"task: replicates of classes need the task of from_data, a GaussianMixture, got {self.task}.")
            scale, correlation = population.teacher(self.m)
            return dataclasses.replace(
                self,
                task=self.task.with_clusters(population.weights, population.scales),
                features=Features(jnp.asarray(population.eigenvalues), jnp.asarray(population.shares)),
                teacher_scale=jnp.asarray(scale),
                initial_correlation=jnp.asarray(correlation),
            )
        return dataclasses.replace(
            self,
            task=dataclasses.replace(self.task, label_noise=float(population.label_noise)),
            features=Features(jnp.asarray(population.eigenvalues), jnp.asarray(population.weights)),
            teacher_scale=jnp.asarray(population.teacher_scale),
        )

    @classmethod
    @front_door
    def from_data(
        cls,
        features: Any,
        labels: Any,
        *,
        train_size: int,
        groups: int = 40,
        population: str = "estimate",
        loss: str | AbstractLoss | None = None,
        clusters: int | None = None,
        intercept: bool = False,
    ) -> "Problem":
        """The problem that real data pose: a regression, or with a `loss` a classification.

        Under the squared loss only second moments enter the theory, so Gaussian features with the data's covariance stand
        in for the data. How well they do is for a simulation to say; the digits of experiments/01 come within 1 to 3%.

        - `features`: (samples, d) raw features, or a frame of numeric columns; centered. `labels`: (samples,) real targets, which
          are centered too, or with a `loss` the classes: whole numbers, booleans, text, categories.
        - `train_size`: how many samples SGD will train on; delta = train_size / d.
        - `groups`: so many eigenvalue groups, or d if that is less: of equal width in log eigenvalue, the largest cut in two
          where widths without an eigenvalue leave fewer. Data sets of one size are then served by one compiled program.
        - `population`: "estimate", of the distribution that the samples come from (`_population.py` has the equations);
          its sampling error is known, see `dmftopt.estimation_error`. Or "sample", the samples as if they were all there
          is: their spectrum, too wide by a relative variance of d / samples, and the least-squares fit to them, its power
          and the label noise corrected for the fit's own variance (sigma² = RSS / (samples - d - 1)).

        Regression (`loss` = None) is least squares.

        Classification: features are a `tasks.GaussianMixture` of clusters within the classes (k-means), with one covariance and a
        scale each. (No Gaussian field explains labels of well separated classes.)

        - `loss`: for two classes "logistic", "squared hinge", "hinge", "squared", ... (the class that comes last has the label
          1, the other -1); for more, or two, "softmax". Or an object of `tasks.losses`.
        - `clusters`: so many in each class; None for what samples held out find likeliest, among powers of 2.
        - `intercept`: whether a constant, of the same learning rate and ridge as the weights, is trained beside them (a constant
          feature 1). Without it nothing learns how frequent classes are. Adaptive updates do not take it.

        The covariance's spectrum and the means' Gram matrices are those of the population, estimated from the sample's
        (problem/README.md has more). What is left out: that x / scale is not Gaussian within a cluster, and at finite d the
        means' own share of a step. On six tables 30 of 34 final losses came within 3% or two standard errors of the prediction
        (experiments/19_tables).

        The student starts at 0. `problem.data` holds the map back (`dmftopt.data.DataMap`): centers, c = mean square norm, for
        classes within clusters (raw learning rate = learning_rate / c, raw ridge = ridge * c), dimension, names of classes.

        Raises ValueError for missing or infinite entries, constant or linearly dependent columns, constant labels, and fewer
        than 1.2 samples per dimension and 2 more, for classes 2 (they would hardly determine the problem); ImportError for
        classes without scikit-learn.
        """
        if loss is not None:
            if population != "estimate":
                raise ValueError(f"population goes with regression, got {population!r} with a loss for classes. Leave it out.")
            return cls._of_classes(features, labels, named(loss), train_size, groups, clusters, intercept)
        if clusters is not None or intercept:
            raise ValueError('clusters and intercept go with a loss for classes, such as loss="logistic".')
        found = describe(features, labels, train_size=train_size, groups=groups, population=population)
        problem = cls(LeastSquares(), Features(jnp.ones(1), jnp.ones(1)), found.delta, basis=found.basis, data=found.map)
        return problem._of(found.population)

    @classmethod
    def _of_classes(cls, features, labels, loss: AbstractLoss, train_size, groups, clusters, intercept) -> "Problem":
        found = describe_classes(
            features,
            labels,
            train_size=train_size,
            groups=groups,
            per_class=loss.per_class,
            clusters=clusters,
            intercept=intercept,
        )
        task = GaussianMixture(found.labels, found.mixture.weights, loss, found.mixture.scales)
        one = Features(jnp.ones(1), jnp.ones(1))
        problem = cls(task, one, found.delta, student_scale=0.0, basis=found.basis, data=found.map)
        return problem._of(found.mixture)
