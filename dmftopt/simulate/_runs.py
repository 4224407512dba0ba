from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import check_count, check_instance, check_key, check_real, is_concrete, numbers_to_arrays, padded
from .._measure import check_metrics
from ..grid import TimeGrid, record_steps
from ..metrics import AbstractFieldMetric, AbstractWeightMetric
from ..noise import Bernoulli, NoNoise
from ..observables import mean_and_error
from ..problem import Problem
from ..protocol import Protocol, check_momentum
from ._algorithms import descend, diffuse, step_through
from ._data import draw, group_sizes, observe
from ._result import Simulation


def sgd(
    problem: Problem,
    protocol: Protocol,
    *,
    horizon: float,
    dimension: int,
    runs: int,
    key: Array,
    records: Any = 40,
    metrics: dict[str, AbstractFieldMetric | AbstractWeightMetric] | None = None,
) -> Simulation:
    """Ordinary SGD, step by step: theta <- theta - eta [ (1/B) sum_{i in batch} x_i l(x_i·theta, y_i) + ridge h(theta) / d ],
    with the regularizer's gradient h (theta for the ridge), and with the protocol's momentum if it has one.

    `horizon` * `dimension` steps; the batch is drawn with replacement from n = delta * d training samples; learning rate,
    batch size and ridge are read at t = step / d. A batch size that is not a whole number is rounded up or down at random
    with that mean, keeping the factor 1/B (which is what the Poisson noise of the solver describes). Returns means and standard
    errors over `runs`, observed at `records` + 1 equally spaced times, or at the increasing times `records` (from 0 to
    `horizon`, for example `grid.times`), each rounded to a step.

    `metrics`: by name, any other quantities, see `dmftopt.metrics`.
    """
    sizes, samples, at = recorded(problem, protocol, horizon, dimension, runs, key, records)
    arguments = protocol, jnp.asarray(at)
    return _runs(problem, sizes, samples, runs, key, jnp.asarray(at / dimension), arguments, step_through, metrics)


def sgf(
    problem: Problem,
    protocol: Protocol,
    grid: TimeGrid,
    *,
    dimension: int,
    runs: int,
    key: Array,
    substeps: int = 8,
    metrics: dict[str, AbstractFieldMetric | AbstractWeightMetric] | None = None,
) -> Simulation:
    """Stochastic gradient flow, the Itô SDE

        d theta = -eta ridge h(theta) dt - (eta / delta) X^T l dt + (eta / sqrt(B delta)) sum_i x_i l_i dW_i

    with one Brownian motion per training sample, by diffrax's Euler scheme (weak order 1) with `substeps` equal steps in each
    step of `grid`, observed at the grid's times. Returns means and standard errors over `runs`.

    The scheme's own error is of first order: with learning rate times the largest eigenvalue well above 1, 8 substeps of a
    coarse grid can be 4% off in the overlap. Double `substeps` and look. `metrics` as in `sgd`.
    """
    check_instance("grid", grid, TimeGrid, "Build it with dmftopt.TimeGrid.uniform(horizon, steps).")
    check_count("substeps", substeps)
    sizes, samples = _check(problem, protocol, dimension, runs, key)
    _check_protocol(protocol, grid.times)
    fine = grid.times[:-1, None] + grid.step_sizes[:, None] * jnp.linspace(0, 1, substeps, endpoint=False)
    fine = jnp.append(fine.ravel(), grid.times[-1])
    arguments = (protocol.in_continuous_time(), grid.times, fine)
    return _runs(problem, sizes, samples, runs, key, grid.times, arguments, diffuse, metrics)


def gradient_descent(
    problem: Problem,
    protocol: Protocol,
    grid: TimeGrid,
    *,
    dimension: int,
    runs: int,
    key: Array,
    noise: NoNoise | Bernoulli = NoNoise(),
    metrics: dict[str, AbstractFieldMetric | AbstractWeightMetric] | None = None,
) -> Simulation:
    """Gradient descent with one update per step D of `grid`, exactly as `solve` with `DiscreteStep`:

        theta <- theta - D eta ridge h(theta) - X^T (l * M) / delta

    with M = eta D for `noise.NoNoise()` (full batch), and M = (eta D / b) s, s ~ Bernoulli(b) for `noise.Bernoulli(b)`, and the
    protocol's momentum if it has one. It is read at the start of each step. Returns means and standard errors over `runs`.
    `metrics` as in `sgd`.
    """
    check_instance("grid", grid, TimeGrid, "Build it with dmftopt.TimeGrid.uniform(horizon, steps).")
    if not isinstance(noise, (NoNoise, Bernoulli)):
        raise TypeError(f"noise must be NoNoise() or Bernoulli(fraction), got {noise!r}. Use sgd or sgf for small batches.")
    sizes, samples = _check(problem, protocol, dimension, runs, key)
    _check_protocol(protocol, grid.times[:-1])
    fraction = jnp.asarray(noise.fraction if isinstance(noise, Bernoulli) else 1.0, dtype=float)
    return _runs(problem, sizes, samples, runs, key, grid.times, (protocol, grid.times, fraction), descend, metrics)


def recorded(problem, protocol, horizon, dimension, runs, key, records) -> tuple[tuple[int, ...], int, np.ndarray]:
    """Checked arguments of SGD: group sizes, training samples, and after how many steps to observe."""
    sizes, samples = _check(problem, protocol, dimension, runs, key)
    at = record_steps(records, horizon, dimension)
    _check_protocol(protocol, padded(np.arange(at[-1]) / dimension))
    return sizes, samples, at


def _runs(problem, sizes, samples, runs, key, times, arguments: Any, algorithm: Callable, metrics) -> Simulation:
    measure = eqx.Partial(observe, metrics=check_metrics(metrics, problem))
    mean, error = over_runs(problem, sizes, samples, runs, key, arguments, algorithm, measure)
    for name in ("test_risk", "train_loss", "student_overlap"):
        value = getattr(mean, name)
        if is_concrete(value) and not bool(jnp.all(jnp.isfinite(value))):
            raise FloatingPointError(f"{name} became infinite or NaN in the simulation. Lower the learning rate.")
    return Simulation(times, mean, error, sum(sizes), runs)


def over_runs(problem, sizes, samples, runs, key, arguments: Any, algorithm: Callable, measure: Callable) -> tuple[Any, Any]:
    """Mean and standard error over runs of measure(problem, instance, algorithm(problem, instance, key, *arguments))."""
    problem, arguments, measure = numbers_to_arrays((problem, arguments, measure))
    return _compiled(problem, sizes, samples, arguments, jax.random.split(key, runs), algorithm, measure)


@eqx.filter_jit
def _compiled(problem, sizes, samples, arguments, keys, algorithm, measure):
    def run(key):
        key_data, key_run = jax.random.split(key)
        instance = draw(problem, sizes, samples, key_data)
        return measure(problem, instance, algorithm(problem, instance, key_run, *arguments))

    # As many runs side by side as keep their data within about a gigabyte.
    together = max(1, int(2**27 // (samples * sum(sizes))))
    return mean_and_error(jax.lax.map(run, keys, batch_size=min(together, keys.shape[0])))


def _check(problem, protocol, dimension, runs, key) -> tuple[tuple[int, ...], int]:
    check_instance("problem", problem, Problem, "Build it with dmftopt.Problem(...).")
    check_instance("protocol", protocol, Protocol, "Build it with dmftopt.Protocol(learning_rate=...).")
    check_count("dimension", dimension, minimum=2)
    check_count("runs", runs)
    check_key(key)
    if not (is_concrete(problem.delta) and is_concrete(problem.features.weights)):
        raise TypeError("problem: delta and the features' weights fix array sizes in a simulation, so they cannot be traced.")
    samples = round(float(problem.delta) * dimension)
    if samples < 1:
        raise ValueError(f"dimension {dimension} leaves no training sample at delta = {problem.delta}. Raise dimension.")
    return tuple(int(s) for s in group_sizes(problem.features.weights, dimension)), samples


def _check_protocol(protocol: Protocol, times: Any) -> None:
    times = jnp.asarray(times)
    for name, minimum in (("learning_rate", 0.0), ("batch_size", 1.0), ("ridge", 0.0)):
        check_real(name, getattr(protocol, name)(times), minimum=minimum, cure="It must be so at every time.")
    if protocol.momentum is not None:
        check_momentum(protocol.momentum(times))
