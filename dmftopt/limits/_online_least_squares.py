"""One-pass SGD on least squares in finite dimension with finite steps: an exact recursion of second moments."""

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import check_count, front_door, is_concrete, numbers_to_arrays
from .._memory import check_memory
from ..problem import Problem
from ..protocol import Protocol
from ..protocol.grid import record_steps
from ..protocol.rates import Rates, read
from ..results.observables import as_column
from ..tasks import LeastSquares
from ._online import fresh
from ._result import Groups, Limit, check_inputs, check_least_squares, ended, finish, response_of, symmetric


@front_door
def online_least_squares(
    problem: Problem, protocol: Protocol, *, dimension: int, horizon: float, records: Any = 40, throw: bool = True
) -> Limit:
    """Mean of SGD on least squares over data, teacher and student, when every batch of m = B(t) samples is fresh, exactly, in
    any dimension d and with any step:

        theta <- theta - eta [ (1/m) sum_i x_i (x_i·theta - y_i) + ridge theta / d ],   x ~ N(0, Lambda / d)

    with learning rate, batch size and ridge read at t = step / d; `problem.delta` is ignored. Per eigenvalue group, with S =
    lambda / d, shrink = 1 - eta ridge / d, error M = E[(theta - theta_star)²], power P = sum_a omega_a lambda_a M_a + sigma²,

        E[theta theta_star] <- shrink E[theta theta_star] - eta S E[(theta - theta_star) theta_star]
        E[theta²] <- shrink² E[theta²] - 2 eta shrink S E[theta (theta - theta_star)] + eta² S [(m + 1) S M + P] / m.

    The term (m + 1) S M, of relative order 1/d, is the square of the mean gradient and the fourth moments of the features.
    As d -> infinity this is `limits.online`. `records` as in `simulate.sgd`; the result's `times` are the records, rounded to
    steps. Group sizes are weights * dimension, whole or not; train_loss = test_risk.

    `throw`: as in `limits.least_squares`. Differentiable in everything real (batch size excepted), in reverse mode with memory of
    order horizon * dimension * groups. Raises TypeError for other tasks, ValueError for a batch size that is not a whole number
    and other input outside its domain. Traced, those end as `RESULTS.invalid`.
    """
    check_inputs(problem, protocol)
    check_least_squares(problem, "online_least_squares")
    if protocol.momentum is not None:
        raise ValueError("momentum: limits.online_least_squares is exact at finite steps, and takes none. Use limits.online.")
    check_count("dimension", dimension)
    at = record_steps(records, horizon, dimension)
    groups = problem.features.groups
    check_memory(
        f"horizon * dimension = {at[-1]} steps with {at.size} records and {groups} eigenvalue groups",
        at[-1] * (8.0 + 4 * groups) + 3.0 * at.size**2,
        "Shorten the run, or ask for fewer records.",
    )
    steps = jnp.arange(at[-1]) / dimension
    rates = read(protocol, steps)
    whole = jnp.all(rates.batch_size == jnp.round(rates.batch_size))
    if is_concrete(whole) and not whole:
        raise ValueError("batch_size must be a whole number at every step in this limit. Round it: lambda t: jnp.round(f(t)).")
    rates = eqx.tree_at(lambda r: r.valid, rates, rates.valid & whole)
    limit = _recursion(numbers_to_arrays(problem), rates, jnp.asarray(at), dimension)
    return finish(limit, throw, "online_least_squares")


@eqx.filter_jit
def _recursion(problem: Problem, rates: Rates, at: Array, dimension: int) -> Limit:
    dtype = rates.learning_rate.dtype
    groups = Groups(problem, dtype)
    S = groups.eigenvalues / dimension
    sigma2 = jnp.asarray(cast(LeastSquares, problem.task).label_noise, dtype) ** 2

    def step(state, inputs):
        square, cross, decay, gain = state
        (eta, m, ridge), fresh_record = inputs
        shrink = 1 - eta * ridge / dimension
        error = square - 2 * cross + groups.teacher
        power = jnp.sum(groups.field_weights * error) + sigma2
        noise = eta**2 * S * ((m + 1) * S * error + power) / m
        square = shrink**2 * square - 2 * eta * shrink * S * (square - cross) + noise
        cross = shrink * cross - eta * S * (cross - groups.teacher)
        # theta_t = decay * theta_s + gain * theta_star + noise, in the mean since the last record s.
        factor = shrink - eta * S
        decay = factor * jnp.where(fresh_record, 1.0, decay)
        gain = factor * jnp.where(fresh_record, 0.0, gain) + eta * S
        state = (square, cross, decay, gain)
        return state, state

    zero = jnp.zeros_like(S)
    per_step = rates.learning_rate, rates.batch_size, rates.ridge
    starts = jnp.zeros(rates.learning_rate.shape, bool).at[at[:-1]].set(True)
    _, path = jax.lax.scan(step, (groups.student, zero, zero, zero), (per_step, starts))
    square, cross = (
        jnp.concatenate([first[None], a[at[1:] - 1]]) for first, a in zip((groups.student, zero), path[:2], strict=True)
    )
    decay, gain = (a[at[1:] - 1] for a in path[2:])

    def extend(rows, inputs):
        """Row s: E[theta_t theta_s] and the response at t to a kick at s, for s <= t."""
        product, response = rows
        k, decay, gain, newest = inputs
        s = jnp.arange(at.shape[0])[:, None]
        here = s == k
        product = jnp.where(here, newest[None], jnp.where(s < k, decay[None] * product + gain[None] * cross, 0.0))
        response = jnp.where(here, 1.0, decay[None] * response)
        kernels = tuple(jnp.sum(groups.field_weights[None] * a, axis=-1) for a in (product, response))
        return (product, response), kernels

    empty = jnp.zeros((at.shape[0], S.shape[0]), dtype)
    ahead = (jnp.arange(at.shape[0]), *(jnp.concatenate([zero[None], a]) for a in (decay, gain)), square)
    _, (correlation, response) = jax.lax.scan(extend, (empty, empty), ahead)
    correlation = symmetric(correlation)
    overlap = jnp.sum(groups.field_weights[None] * cross, axis=-1)
    norm = jnp.sum(groups.weights[None] * square, axis=-1)
    kernels = (correlation, overlap, norm, groups.rho, response_of(response))
    observables = fresh(problem, *(as_column(a) for a in kernels))
    return ended(at / dimension, observables, problem.valid() & rates.valid)
