"""Metrics: any quantity of a sample or of a weight, averaged along a run.

`solve`, `dmftopt.simulate` and `limits.online` take `metrics={"name": metric, ...}`. Results then hold

    train_metrics[name]  (time, ...)  mean of a field metric over the training samples' (r, y)
    test_metrics[name]   (time, ...)  its mean over fresh samples' (w, y)
    weight_metrics[name] (time, ...)  mean of a weight metric over the coordinates of (theta, theta_star)

and their standard errors and bias like any observable. Means over fresh samples are taken over 65536 fixed low-discrepancy
points. With one field these are good to about 1e-5 for smooth functions and 1e-4 for jumps of size 1 (at most 3e-4 was seen),
with three classes to 1e-4 and 1e-3. Where the law of the weights is known, means over coordinates take as many points (fewer a
group where groups are many): 3e-4 for jumps, at most 1e-3, and second moments exact. Sampled weights have their particles' error.

They are differentiable in reverse mode like everything else, in the arrays inside a metric too (fields of an `equinox.Module`, or
`jax.tree_util.Partial`), but not through jumps: what a metric that jumps gains by moving samples across is not seen, and
histograms and confusions have derivative zero.

Richardson extrapolates metrics too: bins that are nearly empty may come out slightly negative.

A metric is compiled once for each function object: define functions outside of loops.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import as_number, check_real, front_door, is_concrete
from ..numerics.ties import shares_of_largest
from ..problem import Problem
from ..tasks import AbstractTask
from ..tasks import columns as columns


class AbstractFieldMetric(eqx.Module):
    """A quantity of a sample's fields and label, a pure function."""

    @abc.abstractmethod
    def of_sample(self, task: AbstractTask, r: Float[Array, "..."], y: Float[Array, ""]) -> Float[Array, "..."]:
        """For one sample, with r and y as in `task.loss`: r is a scalar, or has shape (m,) where the task has columns."""


class AbstractWeightMetric(eqx.Module):
    """A quantity of one coordinate of the weights, a pure function."""

    @abc.abstractmethod
    def of_coordinate(self, theta: Float[Array, "..."], theta_star: Float[Array, "..."]) -> Float[Array, "..."]:
        """For one coordinate: theta is a scalar, or has shape (m,) where the task has columns; theta_star likewise, (m_star,)."""

    def of_group(self, group: Int[Array, "*coordinate"]) -> Float[Array, "*coordinate"] | None:
        """A factor for coordinates of eigenvalue group number `group`, one or several. None: all count alike."""
        return None

    def check(self, problem: Problem) -> None:
        """Raise ValueError for a problem that this cannot be measured of."""


@front_door
class Fields(AbstractFieldMetric):
    """E[function(r, y)] of any function of the fields and the label of one sample, with an array of any shape as its value.

    As in `task.loss`: r is a scalar where `task.columns` is None, otherwise (m,), also for m = 1 (a GaussianMixture, a Committee
    of one unit); y is a scalar. Booleans count as 0 and 1.
    """

    function: Callable[..., Any]

    def __check_init__(self):
        _check_function("Fields", self.function, "(r, y)")

    def of_sample(self, task, r, y):
        return self.function(r, y)


@front_door
class Weights(AbstractWeightMetric):
    """E[function(theta, theta_star)] of any function of one coordinate of student and teacher, with an array as its value.

    theta is a scalar where `task.columns` is None, otherwise (m,), theta_star likewise with `task.teacher_columns`. The mean is
    over all coordinates: over the eigenvalue groups by their weights, not by their eigenvalues.
    """

    function: Callable[..., Any]

    def __check_init__(self):
        _check_function("Weights", self.function, "(theta, theta_star)")

    def of_coordinate(self, theta, theta_star):
        return self.function(theta, theta_star)


@front_door
class Margins(AbstractFieldMetric):
    """Histogram density of the margin, (bin,): of y r for labels ±1, of r_y - max_{c != y} r_c for classes (in general by
    `AbstractTask.scores`).

    `edges` (bin+1,): increasing; bin b is edges[b] <= margin < edges[b+1]. Margins outside of all bins fall in none, so the
    density integrates to less than 1 if there are any. Derivative zero. Raises ValueError for a task without classes.
    """

    edges: Float[Array, " edge"] = eqx.field(converter=as_number)

    def __check_init__(self):
        _check_edges(self.edges)

    def of_sample(self, task, r, y):
        scores, right = _scores(self, task, r, y)
        own = jnp.arange(scores.shape[0], dtype=scores.dtype) == right
        best_other = jnp.max(jnp.where(own, -jnp.inf, scores))
        return _density(self.edges, jnp.sum(jnp.where(own, scores, 0.0)) - best_other)


class Confusion(AbstractFieldMetric):
    """Joint probabilities P(class of the label = a, predicted class = b), (class, class). Label -1 is class 0, label +1 class 1.
    Those who tie share.

    With p = solution.test_metrics[name], the error of each class is `1 - p.diagonal(axis1=1, axis2=2) / p.sum(axis=2)`, and the
    total error `1 - p.trace(axis1=1, axis2=2)`. Derivative zero. Raises ValueError for a task without classes.
    """

    def of_sample(self, task, r, y):
        scores, right = _scores(self, task, r, y)
        own = (jnp.arange(scores.shape[0], dtype=scores.dtype) == right).astype(scores.dtype)
        return jnp.outer(own, shares_of_largest(scores))


@front_door
class WeightHistogram(AbstractWeightMetric):
    """Histogram density of a coordinate of theta, (bin,), or (m, bin) for several columns.

    `edges` as in `Margins`: weights outside of all bins fall in none. Derivative zero.
    """

    edges: Float[Array, " edge"] = eqx.field(converter=as_number)

    def __check_init__(self):
        _check_edges(self.edges)

    def of_coordinate(self, theta, theta_star):
        return _density(self.edges, theta[..., None])


@front_door
class Shifted(AbstractWeightMetric):
    """Overlaps on test data of another covariance, of which the coordinates of group a have variance `eigenvalues`[a] / d:

        E[(theta, theta_star) lambda' (theta, theta_star)^T],   (time, m + m_star, m + m_star),

    from which `test_risk` and `test_error` on such data follow. With all eigenvalues 0 but one they tell how a group is learned.
    Other label noise, or other shares of the clusters of a mixture, need no metric: pass another task with the usual overlaps to
    `task.test_risk`. Raises ValueError where there are not as many groups, and for a mixture, whose teacher is no weight.

    - `eigenvalues`: (group,), not negative, in the unit of `problem.features.eigenvalues`.
    """

    eigenvalues: Float[Array, " group"] = eqx.field(converter=as_number)

    def __check_init__(self):
        check_real("eigenvalues", self.eigenvalues, minimum=0.0)
        if np.ndim(self.eigenvalues) != 1 or np.size(self.eigenvalues) < 1:
            raise ValueError(f"eigenvalues must be one-dimensional, one for each group, got shape {np.shape(self.eigenvalues)}.")

    def of_coordinate(self, theta, theta_star):
        both = jnp.concatenate([jnp.atleast_1d(theta), jnp.atleast_1d(theta_star)])
        return jnp.outer(both, both)

    def of_group(self, group):
        return jnp.asarray(self.eigenvalues, dtype=float)[group]

    def check(self, problem):
        groups = problem.features.groups
        if np.shape(self.eigenvalues) != (groups,):
            raise ValueError(f"eigenvalues: the problem has {groups} groups of features, got {np.shape(self.eigenvalues)[0]}.")
        if problem.task.mixture:
            raise ValueError("metrics.Shifted: the teacher of a mixture is its means, which are no weights. Use another task.")

    def test_risk(self, overlaps: Float[Array, "time both both"], task: AbstractTask) -> Float[Array, " time"]:
        """E[loss] on a fresh sample of these features, of `weight_metrics[name]`."""
        return columns.test_risk(task, *self._parts(overlaps, task))

    def test_error(self, overlaps: Float[Array, "time both both"], task: AbstractTask) -> Float[Array, " time"] | None:
        """Its 0-1 error; None unless the task is a classification."""
        return columns.test_error(task, *self._parts(overlaps, task))

    def _parts(self, overlaps: Array, task: AbstractTask) -> tuple[Array, Array, Array]:
        m = 1 if task.columns is None else task.columns
        return overlaps[:, :m, :m], overlaps[:, :m, m:], overlaps[0, m:, m:]


def _density(edges: Float[Array, " edge"], value: Float[Array, "..."]) -> Float[Array, "... bin"]:
    # Moving edges would need the law's density at them, which a sample does not know: no derivative rather than half of one.
    edges = jax.lax.stop_gradient(jnp.asarray(edges, value.dtype))
    low, high = (jnp.broadcast_to(a, (*value.shape[:-1], a.size)) for a in (edges[:-1], edges[1:]))
    return ((low <= value) & (value < high)).astype(value.dtype) / (high - low)


def _scores(metric: AbstractFieldMetric, task: AbstractTask, r, y) -> tuple[Array, Array]:
    found = task.scores(r, y)
    if found is None:
        raise ValueError(
            f"metrics.{type(metric).__name__} is for classification: {type(task).__name__} has no scores of classes. Use "
            "metrics.Fields with a function of your own, or give your task the method scores."
        )
    return found


def _check_function(name: str, function: Any, arguments: str) -> None:
    if not callable(function):
        raise TypeError(f"function must be a function of {arguments} in metrics.{name}, got {function!r}.")


def _check_edges(edges: Any) -> None:
    check_real("edges", edges)
    if np.ndim(edges) != 1 or np.size(edges) < 2:
        raise ValueError(f"edges must be one-dimensional with at least two entries, got shape {np.shape(edges)}.")
    if is_concrete(edges) and not np.all(np.diff(np.asarray(edges, dtype=float)) > 0):
        raise ValueError("edges must be increasing. Sort them and drop duplicates.")
