import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._checks import check_count, check_instance, check_key, check_member, front_door, is_concrete, numbers_to_arrays, padded
from .._memory import check_memory
from .._optimizers import check_elementwise
from ..numerics.quadrature import GAUSS_NODES, GAUSS_WEIGHTS
from ..problem import Problem, check_direct
from ..protocol import Momentum, Protocol
from ..protocol.averages import AbstractAverage
from ..protocol.grid import TimeGrid, record_steps
from ..protocol.noise import Bernoulli, NoNoise
from ..protocol.rates import Rates, averaged, check_protocol, read
from ..results.codes import RESULTS, blank, finite_times, raise_unless, until_failure
from ..results.measure import check_metrics
from ..results.metrics import AbstractFieldMetric, AbstractWeightMetric
from ..results.observables import Observables, mean_and_error
from ._algorithms import Epochs, FlowAverages, descend, diffuse, step_through
from ._data import draw, group_sizes, observe
from ._result import Simulation

_ORDERS = ("replacement", "shuffled", "fixed")


class Setup(NamedTuple):
    """Of checked arguments: the problem, the group of each coordinate, how many training samples, and a key for each run."""

    problem: Problem
    member: Int[np.ndarray | Array, " d"]
    samples: int
    keys: Array


@front_door
def sgd(
    problem: Problem,
    protocol: Protocol,
    *,
    horizon: float,
    dimension: int,
    runs: int,
    key: Array,
    records: Any = 40,
    order: str = "replacement",
    average: AbstractAverage | None = None,
    metrics: dict[str, AbstractFieldMetric | AbstractWeightMetric] | None = None,
    throw: bool = True,
) -> Simulation:
    """Ordinary SGD, step by step: theta <- theta - eta [ (1/B) sum_{i in batch} x_i l(x_i·theta, y_i) + ridge h(theta) / d ],
    with the regularizer's gradient h (theta for the ridge), and with the protocol's momentum if it has one.

    `horizon` * `dimension` steps on n = delta * d training samples. `order`: batches are drawn "replacement" (with replacement:
    `noise.Poisson()` of the solver), or the training set is passed through in epochs, "shuffled" before each as data loaders do
    (`noise.Shuffled()`), or in an order "fixed" before the first (`noise.Shuffled(reshuffle=False)`); a batch may end one epoch
    and begin the next. Learning rate, batch size and ridge are read at t = step / d. A batch size that is not a whole number is
    rounded up or down at random with that mean, keeping the factor 1/B. Returns means and standard
    errors over `runs`, observed at `records` + 1 equally spaced times, or at the increasing times `records` (from 0 to
    `horizon`, for example `grid.times`), each rounded to a step.

    `average`: results are about the average of the weights that is kept beside them, see `dmftopt.averages` (the same key: of the
    same runs). `metrics`: by name, any other quantities, see `dmftopt.metrics`. `throw`: raise `SolveError` where a run became
    infinite or NaN; under `jit` nothing can be raised, look at `result`.
    """
    check_member("order", order, _ORDERS)
    setup, rates, at = recorded(problem, protocol, horizon, dimension, runs, key, records)
    times = jnp.asarray(at / dimension)
    gains = None if average is None else _gains(average, problem, times, int(at[-1]), dimension)
    arguments = (rates, jnp.asarray(at), _epochs(order, rates, int(at[-1]), setup), gains)
    return _simulation("sgd", setup, times, arguments, step_through, metrics, rates.valid, throw)


@front_door
def sgf(
    problem: Problem,
    protocol: Protocol,
    grid: TimeGrid,
    *,
    dimension: int,
    runs: int,
    key: Array,
    substeps: int = 4,
    metrics: dict[str, AbstractFieldMetric | AbstractWeightMetric] | None = None,
    throw: bool = True,
) -> Simulation:
    """Stochastic gradient flow, the Itô SDE

        d theta = -eta ridge h(theta) dt - (eta d/n) X^T l dt + eta sqrt(d / (B n)) sum_i x_i l_i dW_i

    with one Brownian motion for each of the n = delta * d training samples (rounded, and it is the rounded n that counts, as in
    SGD), in `substeps` equal steps within each step of `grid`, observed at the grid's
    times. Each is one of `flows.Splitting`, with the protocol averaged over it. Returns means and standard errors over `runs`.

    For least squares the time step's error is of second order: at learning rate 1 with eigenvalues up to 4, 0.05% in 40 steps to
    t = 4 as it stands, and 1% in 8. Steps are stable up to learning rate * step * largest eigenvalue of the sample covariance
    of 5. Raise `substeps` where in doubt. `metrics` and `throw` as in `sgd`.
    """
    check_instance("grid", grid, TimeGrid, "Build it with dmftopt.TimeGrid.uniform(horizon, steps).")
    check_count("substeps", substeps)
    _check_plain(protocol, "sgf")
    setup = _setup(problem, protocol, dimension, runs, key, grid.steps + 1, grid.steps * substeps)
    times = grid.times[:-1, None] + grid.step_sizes[:, None] * jnp.linspace(0, 1, substeps, endpoint=False)[None]
    fine = TimeGrid(jnp.append(times.ravel(), grid.times[-1]))
    rates = averaged(protocol.in_continuous_time(), fine, GAUSS_NODES, GAUSS_WEIGHTS)
    values = (rates.learning_rate, rates.shrinkage, rates.noisy_rate**2 / rates.batch_size)
    averages = FlowAverages(*(value.reshape(grid.steps, substeps) for value in values))
    arguments = (jnp.concatenate([times, grid.times[1:, None]], axis=1), averages)
    return _simulation("sgf", setup, grid.times, arguments, diffuse, metrics, rates.valid, throw)


@front_door
def gradient_descent(
    problem: Problem,
    protocol: Protocol,
    grid: TimeGrid,
    *,
    dimension: int,
    runs: int,
    key: Array,
    noise: NoNoise | Bernoulli = NoNoise(),
    optimizer: Any = None,
    metrics: dict[str, AbstractFieldMetric | AbstractWeightMetric] | None = None,
    throw: bool = True,
) -> Simulation:
    """Gradient descent with one update per step D of `grid`, exactly as `solve` with `DiscreteStep`:

        theta <- theta - D eta ridge h(theta) - (d/n) X^T (l * M)

    on n = delta * d training samples (rounded, and it is the rounded n that counts), with M = eta D for `noise.NoNoise()` (full
    batch), and M = (eta D / b) s, s ~ Bernoulli(b) for `noise.Bernoulli(b)`, and the protocol's momentum if it has one. It is
    read at the start of each step. `optimizer`: of optax, elementwise, in place of the plain step, as in `solve`: theta <- theta
    + eta D update(gradient), of d times the mean gradient plus ridge h. Returns means and standard errors over `runs`. `metrics`
    and `throw` as in `sgd`.
    """
    check_instance("grid", grid, TimeGrid, "Build it with dmftopt.TimeGrid.uniform(horizon, steps).")
    if not isinstance(noise, (NoNoise, Bernoulli)):
        raise TypeError(f"noise must be NoNoise() or Bernoulli(fraction), got {noise!r}. Use sgd or sgf for small batches.")
    _check_plain(protocol, "gradient_descent")
    setup = _setup(problem, protocol, dimension, runs, key, grid.steps + 1, grid.steps)
    rates = read(protocol, grid.times[:-1], batched=False)
    fraction = jnp.asarray(noise.fraction if isinstance(noise, Bernoulli) else 1.0, dtype=float)
    if optimizer is not None:
        check_elementwise(optimizer)
        if protocol.momentum is not None:
            raise ValueError("momentum: an optimizer has its own. Leave one of them out.")
    arguments = (rates, grid.step_sizes, fraction, optimizer)
    return _simulation("gradient_descent", setup, grid.times, arguments, descend, metrics, rates.valid, throw)


def _check_plain(protocol: Any, route: str) -> None:
    check_protocol(protocol)
    for name in ("update", "friction"):
        if getattr(protocol, name) is not None:
            raise ValueError(f"{name}: simulate.{route} takes none. Use simulate.sgd.")


def _gains(average: Any, problem: Problem, times: Array, steps: int, dimension: int) -> Array:
    check_instance("average", average, AbstractAverage, "Pass dmftopt.averages.Exponential(memory), say.")
    check_direct(problem, "average")
    # Every step is seen: a memory may be as short as one.
    average.check(jnp.asarray([0.0, times[-1] - 1 / dimension, times[-1]]))
    return average.gains(steps, dimension)


def _epochs(order: str, rates: Rates, steps: int, setup: Setup) -> Epochs | None:
    if order == "replacement":
        return None
    if not is_concrete(rates.batch_size):
        raise TypeError(f'order: "{order}" fixes how long a queue of samples is by the batch sizes, so they cannot be traced.')
    total = int(np.sum(np.ceil(np.asarray(rates.batch_size, dtype=float)[:steps] - 1e-9)))
    epochs = -(-total // setup.samples)
    check_memory(f"order = {order!r} over {epochs} epochs", epochs * setup.samples * setup.keys.shape[0], "Use fewer runs.")
    # In whole epochs, so that batch sizes that differ a little share a program.
    return Epochs(epochs * setup.samples, order == "shuffled")


def recorded(problem, protocol, horizon, dimension, runs, key, records) -> tuple[Setup, Rates, np.ndarray]:
    """Checked arguments of SGD, the protocol at each step, and after how many steps to observe."""
    check_count("dimension", dimension, minimum=2)
    at = record_steps(records, horizon, dimension)
    setup = _setup(problem, protocol, dimension, runs, key, at.size, int(at[-1]))
    rates = read(protocol, jnp.asarray(padded(np.arange(at[-1]) / dimension)))
    if rates.friction is not None:
        momentum = Momentum(1 - rates.friction / dimension, False)
        rates = dataclasses.replace(rates, learning_rate=rates.learning_rate / dimension, momentum=momentum)
    return setup, rates, at


def _simulation(name, setup: Setup, times, arguments: Any, algorithm: Callable, metrics, valid, throw: bool) -> Simulation:
    measure = eqx.Partial(observe, metrics=check_metrics(metrics, setup.problem))
    mean, error, result = _judged(*over_runs(setup, arguments, algorithm, measure), valid)
    raise_unless(result, throw, f"simulate.{name} failed", times, mean.test_risk)
    return Simulation(times, mean, error, setup.member.size, setup.keys.shape[0], result)


@eqx.filter_jit
def _judged(mean: Observables, error: Observables | None, valid: Array) -> tuple[Observables, Observables | None, RESULTS]:
    """NaN from the first failure of any run on, and how it ended."""
    good = until_failure(finite_times(mean) & valid)
    result = RESULTS.where(jnp.all(good), RESULTS.successful, RESULTS.nonfinite)
    result = RESULTS.where(valid, result, RESULTS.invalid)
    return blank(mean, good), None if error is None else blank(error, good), result


def over_runs(setup: Setup, arguments: Any, algorithm: Callable, measure: Callable) -> tuple[Any, Any]:
    """Mean and standard error over runs of measure(problem, instance, algorithm(problem, instance, key, *arguments))."""
    setup, arguments, measure = numbers_to_arrays((setup, arguments, measure))
    return _compiled(setup, arguments, algorithm, measure)


@eqx.filter_jit
def _compiled(setup: Setup, arguments, algorithm: Callable, measure: Callable):
    problem, member, samples, keys = setup

    def run(key):
        key_data, key_run = jax.random.split(key)
        instance = draw(problem, jnp.asarray(member), samples, key_data)
        return measure(problem, instance, algorithm(problem, instance, key_run, *arguments))

    together = _together(samples * member.size, keys.shape[0])
    return mean_and_error(jax.lax.map(run, keys, batch_size=together))


def _together(data: int, runs: int) -> int:
    """As many runs side by side as keep their data, so many numbers each, within about a gigabyte."""
    return min(max(1, 2**27 // data), runs)


def _setup(problem, protocol, dimension, runs, key, times: int, steps: int) -> Setup:
    """`times` of observation, and `steps` at which the protocol is read."""
    check_instance("problem", problem, Problem, "Build it with dmftopt.Problem(...).")
    check_protocol(protocol)
    check_count("dimension", dimension, minimum=2)
    check_count("runs", runs)
    check_key(key)
    if not (is_concrete(problem.delta) and is_concrete(problem.features.weights)):
        raise TypeError("problem: delta and the features' weights fix array sizes in a simulation, so they cannot be traced.")
    samples = round(float(problem.delta) * dimension)
    if samples < 1:
        raise ValueError(f"dimension {dimension} leaves no training sample at delta = {problem.delta}. Raise dimension.")
    # Features and what they are made of; weights and fields at all times; correlations of times; the protocol.
    own = 2 * samples * dimension + times * problem.m * (dimension + samples)
    kernel = (times * problem.m) ** 2
    together = _together(samples * dimension, runs)
    check_memory(
        f"dimension = {dimension} with n = delta * dimension = {samples} samples, {problem.m} student columns, runs = {runs}, "
        f"{times} records of {steps} steps",
        together * own + (runs + together) * kernel + 6 * steps,
        "Lower the dimension, runs, records or the horizon.",
    )
    sizes = group_sizes(problem, dimension)
    return Setup(problem, np.repeat(np.arange(sizes.size), sizes), samples, jax.random.split(key, runs))
