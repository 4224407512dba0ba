"""Risks of averaged weights, from the two-time correlation of a run."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_instance, front_door
from .._register import register
from ..problem import Problem, check_direct, check_problem
from ..protocol.averages import AbstractAverage
from ..tasks import columns as columns
from .measure import check_metrics, test_means
from .metrics import AbstractFieldMetric
from .observables import AbstractResult, AveragedObservables, Observables


@register
class Averaged(AbstractResult):
    """Test risk, test error and overlaps of the averaged weights at each time, see `dmftopt.averaged`. What depends on fields of
    training samples, and the norm, is not known (None).

    `total_error`: a bound, from the total errors of the overlaps of single times as far as these are known (`Solution`: with
    replicates, sampling too).
    """

    times: Float[Array, " time"]
    observables: Observables
    bound: Observables | None
    replicated: Observables | None = None

    @property
    def total_error(self):
        if (known := self.known_error()) is None:
            raise ValueError("total_error: nothing is known of the errors of this run.")
        return known

    def _other_errors(self):
        return [] if self.bound is None else [self.bound]

    def _attributes(self):
        return {}


@front_door
def averaged(
    result: AbstractResult,
    problem: Problem,
    average: AbstractAverage,
    *,
    metrics: dict[str, AbstractFieldMetric] | None = None,
) -> Averaged:
    """The run `result` of a `problem`, with its weights averaged along time (see `dmftopt.averages`): an EMA, the mean of a tail.

    theta_bar(t_k) = sum_j w_kj theta(t_j) has overlaps sum_jl w_kj w_kl C(t_j, t_l) and sum_j w_kj O(t_j), with the two-time
    correlation C and teacher overlap O that the run holds, exact wherever outputs depend on fields linear in theta. Between the
    grid's times theta is taken to be linear, an error of second order in step / memory. Pure and differentiable, in the average's
    parameters too; exact for `Solution` and `Limit`, of a `Simulation` the average of its recorded times only (see
    `simulate.sgd(average=...)` for that of all).

    Raises ValueError for an average that begins after the run, or whose memory is longer than it or shorter than the grid's last
    step.
    """
    check_instance("result", result, AbstractResult, "Pass what dmftopt.solve returned.")
    check_problem(problem)
    check_direct(problem, "averaged")
    check_instance("average", average, AbstractAverage, "Pass dmftopt.averages.Exponential(memory), say.")
    average.check(result.times)
    fields = check_metrics(metrics, problem).fields
    weights = average.weights(result.times)
    Q = jnp.einsum("kj,kl,jlab->kab", weights, weights, result.correlation)
    O = jnp.einsum("kj,jab->kab", weights, result.teacher_overlap)
    found = _observables(problem, weights, result.correlation, Q, O, fields)
    known = result.known_error()
    bound = None if known is None else _bound(problem, jnp.abs(weights), known, Q, O, fields)
    return Averaged(times=result.times, observables=found, bound=bound)


def _observables(problem: Problem, weights: Array, correlation: Array, Q: Array, O: Array, fields: dict) -> Observables:
    arguments = problem.task, Q, O, problem.rho
    return AveragedObservables(
        train_loss=None,
        norm=None,
        train_error=None,
        response=None,
        test_risk=columns.test_risk(*arguments),
        student_overlap=Q,
        teacher_overlap=O,
        correlation=jnp.einsum("kj,lm,jmab->klab", weights, weights, correlation),
        test_error=columns.test_error(*arguments),
        test_metrics=test_means(fields, problem, Q, O, problem.rho),
    )


def _bound(problem: Problem, weights: Array, known: Observables, Q: Array, O: Array, fields: dict) -> Observables:
    """Errors that all point the same way."""
    dQ = jnp.einsum("kj,kl,jlab->kab", weights, weights, known.correlation)
    dO = jnp.einsum("kj,jab->kab", weights, known.teacher_overlap)

    def of(function) -> Any:
        if function(Q, O) is None:
            return None
        by_Q, by_O = jax.grad(lambda Q, O: jnp.sum(function(Q, O)), argnums=(0, 1))(Q, O)
        return jnp.sum(jnp.abs(by_Q) * dQ, axis=(1, 2)) + jnp.sum(jnp.abs(by_O) * dO, axis=(1, 2))

    return AveragedObservables(
        train_loss=None,
        norm=None,
        train_error=None,
        response=None,
        test_risk=of(lambda Q, O: columns.test_risk(problem.task, Q, O, problem.rho)),
        student_overlap=dQ,
        teacher_overlap=dO,
        correlation=jnp.einsum("kj,lm,jmab->klab", weights, weights, known.correlation),
        test_error=of(lambda Q, O: columns.test_error(problem.task, Q, O, problem.rho)),
    )
