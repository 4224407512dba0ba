"""Reverse mode through the whole solve against central differences, for every kind of parameter."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import central_difference, problem
from jax.flatten_util import ravel_pytree

import dmftopt

TASKS = {
    "least squares": lambda v: dmftopt.tasks.LeastSquares(v["noise"]),
    "sign": lambda v: dmftopt.tasks.Logistic("sign"),
    "flipped": lambda v: dmftopt.tasks.Logistic("flipped", v["noise"]),
}
VALUES = {
    "learning_rate": jnp.array([1.0, 0.8, 0.5]),
    "batch_size": jnp.array([1.0, 1.5, 3.0]),
    "ridge": jnp.array(0.1),
    "delta": jnp.array(1.5),
    "noise": jnp.array(0.2),
    "teacher_scale": jnp.array([1.0, 0.8, 1.2]),
    "student_scale": jnp.array([0.5, 0.4, 0.3]),
    "eigenvalues": jnp.array([3.0, 1.0, 0.3]),
    "weights": jnp.array([0.1, 0.5, 0.4]),
    # Not 3: DiscreteStep reads the protocol at the grid's times, and a time on a knot of the schedule is a kink.
    "horizon": jnp.array(2.9),
}
NO_BATCH = set(VALUES) - {"batch_size"}
WHOLE_NUMBERS = set(VALUES) - {"batch_size", "delta", "horizon"}
CASES = [
    ("sign", dmftopt.noise.Brownian(), True, set(VALUES) - {"noise"}),
    ("sign", dmftopt.noise.NoNoise(), False, NO_BATCH - {"noise"}),
    ("flipped", dmftopt.noise.Poisson(), False, WHOLE_NUMBERS),
    pytest.param("least squares", dmftopt.noise.Bernoulli(0.3), False, NO_BATCH, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(
    "task, noise, richardson, names", CASES, ids=["sign-Brownian", "sign-NoNoise", "flipped-Poisson", "Bernoulli"]
)
def test_gradient_equals_central_differences(key, task, noise, richardson, names):
    def objective(values):
        features = dmftopt.features.Features(values["eigenvalues"], values["weights"])
        p = dmftopt.Problem(TASKS[task](values), features, values["delta"], values["teacher_scale"], values["student_scale"])

        def knots(name):
            return dmftopt.schedules.PiecewiseLinear((0.0, 1.5, 3.0), values[name])

        protocol = dmftopt.Protocol(knots("learning_rate"), knots("batch_size"), values["ridge"])
        grid = dmftopt.TimeGrid.uniform(values["horizon"], 8)
        s = dmftopt.solve(p, protocol, grid, noise=noise, samples=256, richardson=richardson, key=key)
        return s.test_risk[-1] + 0.3 * s.train_loss[-1] + 0.1 * s.norm[-1, 0, 0] + 0.2 * s.correlation[3, 7, 0, 0]

    tuned = {name: VALUES[name] for name in sorted(names)}
    flat, unravel = ravel_pytree(tuned)
    # One program for both: compiling is what costs here.
    f = jax.jit(jax.value_and_grad(lambda x: objective({**VALUES, **unravel(x)})))
    gradient = f(flat)[1]
    # Fourth order: at 1e-5 truncation vanishes and rounding is about 1e-16 / 1e-5, far below 1e-6. Larger steps let a
    # sample cross the kink between flipped and unflipped labels, which the objective has at every sample.
    step = 1e-5
    for i in range(flat.size):
        slope = central_difference(lambda h, i=i: f(flat.at[i].add(h))[0], step)
        np.testing.assert_allclose(gradient[i], slope, rtol=1e-6, atol=1e-6 * float(jnp.max(jnp.abs(gradient))))


def test_memory_of_the_gradient_is_linear_in_steps(key):
    """In arrays of samples × steps: 2 directions, innovations, multipliers, 2 cotangents, and less than 3 for everything else
    (with the XLA of jaxlib 0.10.2 less than 2), where saving the history at every step would take one for each of 128 steps."""
    samples = 4096

    def bytes_used(steps):
        grid = dmftopt.TimeGrid.uniform(5.0, steps)

        def final(rate):
            s = dmftopt.solve(problem(), dmftopt.Protocol(rate), grid, noise=dmftopt.noise.Brownian(), samples=samples, key=key)
            return s.test_risk[-1]

        memory = jax.jit(jax.grad(final)).lower(jnp.array(1.0)).compile().memory_analysis()
        return memory.temp_size_in_bytes / (8 * samples * steps)

    assert bytes_used(128) < 9


def test_gradient_through_vmap_and_jit(key):
    """vmap over protocols and over problems of the gradient: the same numbers as one at a time."""
    grid = dmftopt.TimeGrid.uniform(2.0, 5)

    def risk(rate, delta):
        p = problem(delta=delta)
        s = dmftopt.solve(p, dmftopt.Protocol(rate), grid, noise=dmftopt.noise.Brownian(), samples=128, key=key)
        return s.test_risk[-1]

    rates, deltas = jnp.array([0.5, 1.0, 2.0]), jnp.array([1.0, 2.0, 3.0])
    gradient = jax.jit(jax.grad(risk, argnums=(0, 1)))
    together = jax.jit(jax.vmap(gradient))(rates, deltas)
    single = [gradient(r, d) for r, d in zip(rates, deltas, strict=True)]
    np.testing.assert_allclose(jnp.stack(together, axis=1), jnp.asarray(single), rtol=1e-9)


def test_numbers_do_not_retrace(key):
    traces = 0

    class Counting(dmftopt.tasks.LeastSquares):
        def loss(self, r, y):
            nonlocal traces
            traces += 1
            return super().loss(r, y)

    def go(rate, delta, noise, horizon):
        p = problem(Counting(noise), delta=delta)
        grid = dmftopt.TimeGrid.uniform(horizon, 3)
        return dmftopt.solve(p, dmftopt.Protocol(rate, ridge=rate / 10), grid, samples=64, key=key)

    go(0.5, 2.0, 0.1, 1.0)
    first = traces
    go(0.7, 3.0, 0.2, 2.0)
    assert first > 0 and traces == first


def test_same_key_same_answer(key):
    grid = dmftopt.TimeGrid.uniform(1.0, 3)
    a, b = (dmftopt.solve(problem(), dmftopt.Protocol(1.0), grid, samples=64, key=key) for _ in range(2))
    assert eqx.tree_equal(a, b)
