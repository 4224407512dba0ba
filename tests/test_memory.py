"""What cannot fit is refused before it is allocated, what fits is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import problem

import dmftopt
from dmftopt import Protocol, TimeGrid, _memory, features, limits, schedules, simulate, tasks
from dmftopt.numerics.matrices import triangular_root

KEY = jax.random.key(0)
PROBLEM = problem()
CLASSES = problem(tasks.Softmax(1000))
MODEL = dmftopt.flows.Model(lambda x, s: jnp.sum((x - s) ** 2), jnp.ones((3, 2)))


def solve(p=None, grid=None, **options):
    grid = TimeGrid.uniform(1.0, 4) if grid is None else grid
    return dmftopt.solve(PROBLEM if p is None else p, Protocol(0.3), grid, key=KEY, **options)


def sgd(horizon=1.0, dimension=100, runs=1, **options):
    return simulate.sgd(PROBLEM, Protocol(0.3), horizon=horizon, dimension=dimension, runs=runs, key=KEY, **options)


def long(steps):
    return TimeGrid.uniform(1.0, steps)


def flows(steps=10, **options):
    return dmftopt.flows.simulate(MODEL, dmftopt.flows.SGD(), 0.1, jnp.ones((1, 2)), steps, key=KEY, **options)


def finite(grid_method, steps):
    return grid_method(PROBLEM, Protocol(0.3), long(steps), dimension=10**5, runs=1, key=KEY)


# Each would take a thousand times what computers have, or more.
REFUSED = {
    "samples": (lambda: solve(samples=2**45), r"samples = 35184372088832 on grid.steps = 4 .* GB of memory, of"),
    "samples in jit": (lambda: jax.jit(lambda _: solve(samples=2**45).test_risk)(0.0), "samples = 35184372088832"),
    "replicates": (lambda: solve(replicates=10**12), "replicates = 1000000000000"),
    "classes": (lambda: solve(CLASSES, samples=2**20), "1000 student columns"),
    "columns": (lambda: solve(problem(tasks.Softmax(10**8))), "200000000 columns of student and teacher"),
    "fixed point": (lambda: solve(grid=long(10**6), solver=dmftopt.FixedPoint()), "grid.steps = 1000000"),
    "steps": (lambda: long(10**15), "steps = 1000000000000000: "),
    "dimension": (lambda: sgd(dimension=10**9), "dimension = 1000000000 with n"),
    "SGD steps": (lambda: sgd(horizon=1e13), "records of 1000000000000000 steps"),
    "runs": (lambda: sgd(runs=10**13), "runs = 10000000000000"),
    "records": (lambda: sgd(horizon=1e13, records=10**14), "records = 100000000000000"),
    "descent": (lambda: finite(simulate.gradient_descent, 10**6), "1000001 records"),
    "flow": (lambda: finite(simulate.sgf, 10**6), "1000001 records"),
    "flows steps": (lambda: flows(10**15), "steps = 1000000000000000"),
    "flows runs": (lambda: flows(runs=10**14), "runs = 100000000000000"),
    "online": (lambda: limits.online(problem(), Protocol(0.3), long(10**6)), "grid.steps = 1000000, squared"),
    "least squares": (
        lambda: limits.least_squares(problem(tasks.LeastSquares()), Protocol(0.3), long(10**6)), "grid.steps .* kernels"),
    "online least squares": (
        lambda: limits.online_least_squares(problem(tasks.LeastSquares()), Protocol(0.3), dimension=10**9, horizon=1e5),
        "steps with 41 records"),
    "recipe": (lambda: dmftopt.recipe(Protocol(0.3), horizon=1e9, dimension=10**5, delta=1.0), "100000000000000 steps"),
    "knots": (lambda: schedules.piecewise_linear(1.0, 10**15, 0.1), "knots = "),
    "pieces": (lambda: schedules.piecewise_constant(1.0, 10**15, 0.1), "pieces = "),
    "power law": (lambda: features.power_law(1.0, dimension=10**15), "dimension = "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_fit_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


FITS = {
    "solve": lambda rate: dmftopt.solve(PROBLEM, Protocol(rate), long(40), samples=4096, key=KEY).observables,
    "sgd": lambda rate: simulate.sgd(PROBLEM, Protocol(rate), horizon=0.5, dimension=200, runs=4, key=KEY).observables,
}


@pytest.mark.parametrize("call", FITS.values(), ids=FITS.keys())
def test_estimates_are_within_a_factor_of_2(call, monkeypatch):
    compiled = jax.jit(call).lower(0.3).compile().memory_analysis()
    held = compiled.temp_size_in_bytes + compiled.output_size_in_bytes
    monkeypatch.setattr(_memory, "_memory", lambda: 2.0 * held)
    jax.eval_shape(lambda rate: call(rate), 0.3)  # a new function: what was traced before would not be traced again
    monkeypatch.setattr(_memory, "_memory", lambda: 0.5 * held)
    with pytest.raises(ValueError, match="GB of memory"):
        jax.eval_shape(lambda rate: call(rate), 0.3)


def test_triangular_root_of_many_columns_is_a_loop():
    """Written out, that of 100 columns compiled for 20 seconds."""
    a = np.random.default_rng(0).normal(size=(12, 20))
    a[7] = a[3] + a[5]  # in the span of those before: no direction of its own
    L, T = triangular_root(jnp.asarray(a @ a.T), jnp.asarray((a**2).sum(axis=1)), 1e-9)
    kept = np.delete(np.arange(12), 7)
    np.testing.assert_allclose(L @ L.T, a @ a.T, atol=1e-10)
    np.testing.assert_allclose((T @ L)[np.ix_(kept, kept)], np.eye(11), atol=1e-10)
    assert not L[:, 7].any() and not T[7].any() and not np.triu(L, 1).any()
    assert len(jax.make_jaxpr(lambda a: triangular_root(a, jnp.diagonal(a), 1e-9))(jnp.eye(100)).eqns) < 30
