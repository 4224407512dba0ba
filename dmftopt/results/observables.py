"""What every route returns: the same observables from the solver, the limits and the simulations."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import stdtrit

from .._checks import front_door, is_concrete
from .._register import register_part
from ..problem import Problem
from ..tasks import columns as columns
from ._dataset import DESCRIPTIONS, METRICS, check_single_result, dataset
from .measure import NOTHING, Measured, test_means

NO_RESPONSE = (
    "This route computes no response. Use solve with gradient noise (and, with several columns, the ridge and no discrete "
    "momentum), solver=FixedPoint(), or dmftopt.limits."
)
# Half a 95% interval over its standard error.
_NORMAL_QUANTILE = 1.96
_UNDETERMINED = (
    "The gradient noise does not determine the response: hidden units are equal (give them different initial overlaps), or the "
    "learning rate is 0 at first (start with some)."
)


@register_part
class Observables(eqx.Module):
    """Order parameters and risks along a run, for m student and m_star teacher columns (1 unless the task has several).

    - `test_risk` (time,): E[loss] on a fresh sample. `train_loss` (time,): mean loss over the training set, without ridge.
    - `student_overlap` (time, m, m): E[theta lambda theta^T]. `teacher_overlap` (time, m, m_star): E[theta lambda theta_star^T];
      for a mixture, whose columns theta_star are means of clusters, the mean field of each cluster.
    - `correlation` (time, time, m, m): two-time E[theta(t) lambda theta(s)^T].
    - `norm` (time, m, m): E[theta theta^T], not weighted by the features.
    - `test_error`, `train_error` (time,): 0-1 errors, None unless the task is a classification.
    - `train_metrics`, `test_metrics`, `weight_metrics`: by name, (time, ...) each, what was asked for with `metrics`, see
      `dmftopt.metrics`.
    - `response` (time, step, m, m): R(k, j), the feature-weighted mean effect E[lambda d theta(t_k) / d h] of a kick h that step
      j adds to theta(t_{j+1}): 1 at k = j + 1 (for features of mean eigenvalue 1), 0 before. None where a route has
      none. With a discrete momentum the kick is part of an update, which the next ones remember.
    """

    test_risk: Float[Array, " time"]
    train_loss: Float[Array, " time"]
    student_overlap: Float[Array, "time m m"]
    teacher_overlap: Float[Array, "time m m_star"]
    correlation: Float[Array, "time time m m"]
    norm: Float[Array, "time m m"]
    test_error: Float[Array, " time"] | None
    train_error: Float[Array, " time"] | None
    response: Float[Array, "time step m m"] | None
    train_metrics: dict[str, Float[Array, "time ..."]] = eqx.field(default_factory=dict)
    test_metrics: dict[str, Float[Array, "time ..."]] = eqx.field(default_factory=dict)
    weight_metrics: dict[str, Float[Array, "time ..."]] = eqx.field(default_factory=dict)

    def arrays(self) -> dict[str, Array]:
        """All that is not None, by name: metrics as `train_<name>`, `test_<name>` and `weight_<name>`."""
        arrays = {name: value for name in DESCRIPTIONS if (value := getattr(self, name)) is not None}
        for kind in METRICS:
            arrays |= {f"{kind}_{name}": value for name, value in getattr(self, f"{kind}_metrics").items()}
        return arrays

    def along_time(self, function: Callable[[Array], Array]) -> "Observables":
        """Apply `function`, which acts on the leading axis, along every axis of times (both of the correlation's)."""
        mapped = jax.tree.map(function, self)
        both = jnp.swapaxes(function(jnp.swapaxes(mapped.correlation, 0, 1)), 0, 1)
        return eqx.tree_at(lambda o: o.correlation, mapped, both)

    def at(self, keep: np.ndarray) -> "Observables":
        """At the times of these increasing indices, the first of them 0. A kick at the end of several steps is one at the end of
        the last."""
        response = None if self.response is None else self.response[keep][:, keep[1:] - 1]
        plain = dataclasses.replace(self, response=None).along_time(lambda a: a[keep])
        return dataclasses.replace(plain, response=response)


@register_part
class AveragedObservables(Observables):
    """Of averaged weights: what depends on fields of training samples, and the norm, is not known (None)."""

    train_loss: None  # pyright: ignore
    norm: None  # pyright: ignore


class AbstractResult(eqx.Module):
    """Times and observables (means), with the observables also as attributes of the result itself. `estimation`: what
    `estimation_error` returns."""

    times: eqx.AbstractVar[Float[Array, " time"]]
    observables: eqx.AbstractVar[Observables]
    replicated: eqx.AbstractVar[Observables | None]
    estimation: Observables | None = eqx.field(default=None, kw_only=True)

    @property
    @front_door
    def test_risk(self) -> Float[Array, "*batch time"]:
        return self.observables.test_risk

    @property
    @front_door
    def train_loss(self) -> Float[Array, "*batch time"]:
        return _present("train_loss", self.observables.train_loss)

    @property
    @front_door
    def student_overlap(self) -> Float[Array, "*batch time m m"]:
        return self.observables.student_overlap

    @property
    @front_door
    def teacher_overlap(self) -> Float[Array, "*batch time m m_star"]:
        return self.observables.teacher_overlap

    @property
    @front_door
    def correlation(self) -> Float[Array, "*batch time time m m"]:
        return self.observables.correlation

    @property
    @front_door
    def norm(self) -> Float[Array, "*batch time m m"]:
        return _present("norm", self.observables.norm)

    @property
    @front_door
    def test_error(self) -> Float[Array, "*batch time"] | None:
        return self.observables.test_error

    @property
    @front_door
    def train_error(self) -> Float[Array, "*batch time"] | None:
        return self.observables.train_error

    @property
    @front_door
    def response(self) -> Float[Array, "*batch time step m m"]:
        if self.observables.response is None:
            raise ValueError(NO_RESPONSE)
        # NaN at the end alone is a solve that failed on the way.
        if is_concrete(self.observables.response) and np.isnan(self.observables.response[..., 1:2, :1, :, :]).any():
            raise ValueError(_UNDETERMINED)
        return self.observables.response

    @property
    @front_door
    def train_metrics(self) -> dict[str, Float[Array, "..."]]:
        return self.observables.train_metrics

    @property
    @front_door
    def test_metrics(self) -> dict[str, Float[Array, "..."]]:
        return self.observables.test_metrics

    @property
    @front_door
    def weight_metrics(self) -> dict[str, Float[Array, "..."]]:
        return self.observables.weight_metrics

    @property
    @front_door
    def standard_error(self) -> Observables:
        """Standard errors of the same observables, from independent replicates (solver) or runs (simulation)."""
        if self.replicated is None:
            raise ValueError("standard_error needs at least two independent replicates. Ask for replicates=4 (or runs=4).")
        return self.replicated

    @property
    @front_door
    def estimation_error(self) -> Observables:
        """Standard errors of the same observables, from the sampling error of the data that the problem was estimated from."""
        if self.estimation is None:
            raise ValueError("estimation_error was not asked for. Get the result by dmftopt.with_estimation_error(...).")
        return self.estimation

    @property
    @front_door
    def total_error(self) -> Observables:
        """Half the width of the interval, for each of the observables, that holds the exact value in 95 of 100 cases: Student's
        quantile times the standard error, plus the size of every other error that is known (bias and time step of a `Solution`;
        1.96 times the `estimation_error`). Raises ValueError as `standard_error` does."""
        return _sum_of_sizes(sampling_error(self.standard_error, self.repetitions), self._known_others())

    @property
    def repetitions(self) -> int:
        """Independent replicates or runs."""
        return 1

    def _other_errors(self) -> list[Observables]:
        """Besides the sampling error and that of an estimated problem."""
        return []

    def of_estimation(self) -> Observables:
        """Half a 95% interval of an estimated problem's error."""
        return jax.tree.map(lambda a: _NORMAL_QUANTILE * a, self.estimation_error)

    def _known_others(self) -> list[Observables]:
        return [*self._other_errors(), *([] if self.estimation is None else [self.of_estimation()])]

    def known_error(self) -> Observables | None:
        """`total_error`, or what is known of it without replicates; None for nothing."""
        others = self._known_others()
        if self.replicated is not None:
            return self.total_error
        return _sum_of_sizes(others[0], others[1:]) if others else None

    def to_xarray(self) -> Any:
        """The result as an `xarray.Dataset`.

        One variable for each observable that is not None, under its name and with the axes of `Observables` named `time`,
        `time_2`, `step`, `student`, `student_2`, `teacher`; `<name>_standard_error`, `<name>_bias` and the like where there
        are any. Metrics are called `train_<name>`, `test_<name>` and `weight_<name>`, with axes `time`, `<name>_0`, ... The
        times are coordinates (`kick_time` along `step`), names and units are attributes of the variables, how the result came
        about is in the attributes of the dataset. All of it can be written as netCDF.

        Raises ImportError without xarray, TypeError under `jit`, ValueError for results batched by `vmap`.
        """
        check_single_result("result", self)
        return dataset(self, self._attributes())

    @abc.abstractmethod
    def _attributes(self) -> dict[str, str | int]:
        """What was run and how it ended."""


def _present(name: str, value: Any) -> Array:
    if value is None:
        raise ValueError(f"{name} of averaged weights is not known from the run. simulate.sgd(average=...) measures it.")
    return value


def sampling_error(standard_error: Observables, repetitions: int) -> Observables:
    """Half the width of the 95% interval, by Student's t: of few repetitions the standard error itself is poorly known."""
    factor = student_quantile(repetitions)
    return jax.tree.map(lambda a: factor * a, standard_error)


def student_quantile(repetitions: int) -> float:
    """Half the 95% interval of a mean of so many, two at least, over its standard error."""
    return float(stdtrit(max(repetitions, 2) - 1, 0.975))


def _sum_of_sizes(first: Observables, others: list[Observables]) -> Observables:
    """Of the observables that all have: what one of the errors does not know is unknown in all."""
    for other in others:
        first = jax.tree.map(
            lambda a, b: None if a is None or b is None else a + jnp.abs(b), first, other, is_leaf=lambda a: a is None
        )
    return first


def from_kernel(
    problem: Problem,
    correlation: Float[Array, "time time m m"],
    teacher_overlap: Float[Array, "time m m_star"],
    norm: Float[Array, "time m m"],
    train_loss: Float[Array, " time"] | None,
    train_error: Float[Array, " time"] | None,
    rho: Float[Array, "m_star m_star"],
    response: Float[Array, "time step m m"] | None = None,
    measured: Measured = NOTHING,
) -> Observables:
    """Observables of one replicate or run from its kernels. `train_loss`: None where training samples are as good as fresh."""
    student_overlap = jnp.diagonal(correlation, axis1=0, axis2=1).transpose(2, 0, 1)
    arguments = (problem.task, student_overlap, teacher_overlap, rho)
    test_risk = columns.test_risk(*arguments)
    return Observables(
        test_risk=test_risk,
        train_loss=test_risk if train_loss is None else train_loss,
        student_overlap=student_overlap,
        teacher_overlap=teacher_overlap,
        correlation=correlation,
        norm=norm,
        test_error=columns.test_error(*arguments),
        train_error=train_error,
        response=response,
        train_metrics=measured.train,
        test_metrics=test_means(measured.fields, problem, student_overlap, teacher_overlap, rho),
        weight_metrics=measured.weights,
    )


def as_column(kernel: Array) -> Array:
    """A kernel of a single column with the two axes of columns at the end."""
    return kernel[..., None, None]


def mean_and_error(stacked: Any) -> tuple[Any, Any]:
    """Mean over the leading axis of every leaf and its standard error (None for a single replicate)."""
    count = jax.tree.leaves(stacked)[0].shape[0]
    mean = jax.tree.map(lambda a: jnp.mean(a, axis=0), stacked)
    if count == 1:
        return mean, None
    return mean, jax.tree.map(lambda a: jnp.std(a, axis=0, ddof=1) / jnp.sqrt(count), stacked)
