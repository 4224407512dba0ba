"""The causal scheme against the published fixed-point iteration, which shares no code with it, and responses against kicked
finite-size SGD.

Where both routes solve the same discrete equations the gate is standard errors alone: 5 combined, from 16 replicates each,
because some 500 strongly correlated numbers are compared (the two-time kernels) and the tails are Student's. So that it means
something, `check` also asserts that 5 standard errors are small. Against simulations the gate is that of
test_against_simulation.py, 2 combined standard errors plus 0.5% of the largest value.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import four_groups, problem

import dmftopt
from dmftopt import noise, tasks

GROUPED = jnp.array([0.5, 1.0, 1.5, 1.0])
CONSTANT = dmftopt.Protocol(1.5, 1.0, 0.1)
DECAY = dmftopt.Protocol(
    dmftopt.schedules.cosine(1.5, 3.0, 0.1), dmftopt.schedules.PiecewiseLinear((0.0, 3.0), jnp.array([1.0, 4.0])), 0.1
)
# The four groups' largest eigenvalue is 4.6: at a rate of 1.5 plain steps of this grid would blow up for a while.
GENTLE = dmftopt.Protocol(dmftopt.schedules.cosine(0.6, 3.0, 0.1), 1.0, 0.1)
GRID = dmftopt.TimeGrid.geometric(3.0, 8, ratio=3.0)
# Steps of 75 SGD steps at d = 500, so that simulations see the same times.
FINE = dmftopt.TimeGrid.uniform(3.0, 20)
KEY = jax.random.key(0)


class Hinge(tasks.AbstractTask):
    """A loss with a kink, and none of the optional methods."""

    def loss(self, r, y):
        return jnp.maximum(0.0, 1 - y * r)

    def label(self, w_star, noise):
        return jnp.where(w_star > 0, 1.0, -1.0)


def check(first, second, *, sigmas=5.0, resolved=0.05):
    # The two share the time step, so that its error is none of their difference.
    comparison = dmftopt.compare(first, second, errors="sampling")
    # At time 0 there is nothing but rounding.
    assert comparison.agrees(sigmas=sigmas, relative=1e-12), f"\n{comparison}"
    for name, d in comparison.differences.items():
        assert sigmas * jnp.max(d.standard_error) < resolved * jnp.max(jnp.abs(d.reference)), f"{name} is not resolved"
    return comparison


@pytest.mark.parametrize(
    "task, features, scale, law, protocol",
    [
        (tasks.Logistic("sign"), None, 1.0, noise.Brownian(), CONSTANT),
        pytest.param(tasks.Logistic("sign"), four_groups(), GROUPED, noise.Poisson(), DECAY, marks=pytest.mark.slow),
        pytest.param(tasks.LeastSquares(0.3), four_groups(), GROUPED, noise.NoNoise(), GENTLE, marks=pytest.mark.slow),
    ],
    ids=["sign-brownian", "sign-groups-poisson", "ls-groups-full"],
)
def test_causal_scheme_is_the_fixed_point(task, features, scale, law, protocol):
    p = problem(task, features, teacher_scale=scale)
    options = {"noise": law, "replicates": 16}
    fixed = dmftopt.solve(p, protocol, GRID, samples=4096, solver=dmftopt.FixedPoint(), key=jax.random.key(1), **options)
    causal = dmftopt.solve(p, protocol, GRID, samples=4096, step=dmftopt.DiscreteStep(), key=jax.random.key(2), **options)
    names = set(check(causal, fixed).differences)
    assert ("response" in names) == (not law.deterministic)
    assert {"correlation", "norm", "teacher_overlap", "train_loss"} < names
    assert ("train_error" in names) == isinstance(task, tasks.Logistic)


@pytest.mark.slow
def test_richardson_and_bias_use_the_same_randomness():
    # The Poisson counts of two steps add up to those of both; the normals of the field do so with other weights.
    grid = dmftopt.TimeGrid.uniform(2.0, 4)
    options = {"richardson": True, "estimate_bias": True, "samples": 2048, "replicates": 16}
    fixed = dmftopt.solve(problem(), CONSTANT, grid, solver=dmftopt.FixedPoint(), key=jax.random.key(1), **options)
    causal = dmftopt.solve(problem(), CONSTANT, grid, step=dmftopt.DiscreteStep(), key=jax.random.key(2), **options)
    check(causal, fixed, resolved=0.1)
    # Half the samples on the same points: the difference is a bias of order steps / samples, not another sampling error.
    assert jnp.abs(fixed.bias.norm[-1, 0, 0]) < 3 * fixed.standard_error.norm[-1, 0, 0]


def test_response_of_full_batch_least_squares_is_exact():
    """There l' = 1 and M is certain, so nothing is random: R(k, j) is the mean of prod_i (1 - D eta (s + ridge)) over the
    eigenvalues s of X^T X / delta, of Marchenko and Pastur's law; 1 - D eta (1 + ridge) without spread as delta -> infinity."""
    deltas = jnp.array([1.5, 4.0, 1e8])
    protocol = dmftopt.Protocol(lambda t: 1.0 / (1 + t), ridge=0.3)

    def response(delta):
        p = problem(tasks.LeastSquares(0.3), delta=delta)
        solver = dmftopt.FixedPoint(tolerance=1e-12)
        return dmftopt.solve(p, protocol, GRID, noise=noise.NoNoise(), samples=64, key=KEY, solver=solver, throw=False).response

    found = jax.vmap(response)(deltas)[..., 0, 0]
    angle = (np.arange(2000) + 0.5) * np.pi / 2000
    drift = np.asarray(GRID.step_sizes / (1 + GRID.times[:-1]))
    for delta, result in zip(np.asarray(deltas), np.asarray(found), strict=True):
        s = 1 + 1 / delta + 2 / np.sqrt(delta) * np.cos(angle)
        weight = 2 * np.sin(angle) ** 2 / s / 2000
        for k in range(9):
            for j in range(8):
                factors = 1 - drift[j + 1 : k, None] * (s + 0.3)
                exact = np.sum(weight * np.prod(factors, axis=0)) if k > j else 0.0
                np.testing.assert_allclose(result[k, j], exact, atol=1e-10)
    online = [np.prod(1 - 1.3 * drift[1:k]) for k in range(1, 9)]
    np.testing.assert_allclose(found[-1, 1:, 0], online, atol=1e-7)


@pytest.mark.slow
def test_response_is_that_of_kicked_sgd():
    p = problem(features=four_groups(), teacher_scale=GROUPED)
    solution = dmftopt.solve(p, DECAY, FINE, samples=8192, replicates=8, richardson=True, key=jax.random.key(0))
    check_kicks(p, DECAY, solution, steps=(3, 11))


def check_kicks(p, protocol, solution, steps):
    for j in steps:
        kick = float(FINE.times[j + 1])
        options = {"horizon": 3.0, "dimension": 500, "runs": 128, "records": FINE.times, "key": jax.random.key(j)}
        simulated = dmftopt.simulate.response(p, protocol, kick_time=kick, **options)
        np.testing.assert_allclose(simulated.response[j + 1], np.ones((1, 1)))
        difference = simulated.response - solution.response[:, j]
        error = jnp.hypot(simulated.standard_error, solution.standard_error.response[:, j])
        assert jnp.all(jnp.abs(difference) <= 2 * error + 0.005), f"step {j}\n{difference}\n{error}"
        assert jnp.max(error) < 0.01


@pytest.mark.slow
def test_kinked_loss():
    """The causal scheme takes no derivative of the gradient. The published route does, misses the kink, and gets it wrong."""
    p = problem(Hinge())
    solution = dmftopt.solve(p, CONSTANT, FINE, samples=16384, replicates=8, richardson=True, key=jax.random.key(0))
    simulation = dmftopt.simulate.sgd(
        p, CONSTANT, horizon=3.0, dimension=1000, runs=64, records=FINE.times, key=jax.random.key(1)
    )
    comparison = dmftopt.compare(solution, simulation)
    assert comparison.agrees(), f"\n{comparison}"
    check_kicks(p, CONSTANT, solution, steps=(4, 11))
    tangent = dmftopt.solve(p, CONSTANT, FINE, samples=4096, key=jax.random.key(0), solver=dmftopt.FixedPoint(), throw=False)
    # Differences of the time step are 20 times smaller.
    assert jnp.max(jnp.abs(tangent.response - solution.response)) > 0.2
    assert jnp.max(jnp.abs(tangent.norm - solution.norm)) > 0.3 * jnp.max(solution.norm)


@pytest.mark.slow
def test_compare_takes_the_response_only_at_equal_times():
    short = {"samples": 128, "key": KEY, "noise": noise.Brownian()}
    one, same, other = (dmftopt.solve(problem(), CONSTANT, dmftopt.TimeGrid.uniform(1.0, steps), **short) for steps in (4, 4, 8))
    assert jnp.all(dmftopt.compare(one, same).differences["response"].difference == 0)
    assert "response" not in dmftopt.compare(other, one).differences
    moved = dmftopt.solve(problem(), CONSTANT, dmftopt.TimeGrid.geometric(1.0, 4, 1.5), **short)
    assert "response" not in dmftopt.compare(one, moved).differences


def tiny(learning_rate=1.0, solver=dmftopt.FixedPoint(), **options):
    grid = dmftopt.TimeGrid.uniform(2.0, 3)
    protocol = dmftopt.Protocol(learning_rate, 1.0, 0.1)
    options = {"noise": noise.Brownian(), "samples": 64, "key": KEY} | options
    return dmftopt.solve(problem(), protocol, grid, solver=solver, **options)


@pytest.mark.slow
def test_undamped_iteration_ends_after_as_many_iterations_as_steps():
    # One more to see that nothing changes. Damped it reaches the same point, later.
    exact = tiny(solver=dmftopt.FixedPoint(max_iterations=4, tolerance=1e-14))
    damped = tiny(solver=dmftopt.FixedPoint(tolerance=1e-10, damping=0.4))
    np.testing.assert_allclose(damped.correlation, exact.correlation, atol=1e-8)
    np.testing.assert_allclose(damped.response, exact.response, atol=1e-8)


def test_unconverged_is_a_result_that_names_the_cure():
    solver = dmftopt.FixedPoint(max_iterations=1)
    solution = tiny(solver=solver, throw=False)
    assert solution.result == dmftopt.RESULTS.unconverged
    assert jnp.all(jnp.isnan(solution.test_risk))
    with pytest.raises(dmftopt.SolveError, match="max_iterations"):
        tiny(solver=solver)


def test_derivative_is_that_of_the_fixed_point():
    # The random numbers are fixed, so central differences are good to epsilon² and tolerance / epsilon.
    @jax.jit
    @jax.value_and_grad
    def norm(rate):
        return tiny(rate, dmftopt.FixedPoint(tolerance=1e-12), samples=16, throw=False).norm[-1, 0, 0]

    rate, epsilon = jnp.asarray(1.0), 1e-4
    difference = (norm(rate + epsilon)[0] - norm(rate - epsilon)[0]) / (2 * epsilon)
    np.testing.assert_allclose(norm(rate)[1], difference, rtol=1e-6)


def response(**changes):
    options = {"horizon": 1.0, "dimension": 20, "runs": 1, "key": KEY, "records": 4, "kick_time": 0.5} | changes
    return dmftopt.simulate.response(problem(), CONSTANT, **options)


@pytest.mark.parametrize(
    "call, exception, message",
    [
        (lambda: dmftopt.FixedPoint(max_iterations=0), ValueError, "max_iterations must be at least 1"),
        (lambda: dmftopt.FixedPoint(max_iterations=5.0), TypeError, "max_iterations must be a Python integer"),
        (lambda: dmftopt.FixedPoint(tolerance=0.0), ValueError, "tolerance must be > 0"),
        (lambda: dmftopt.FixedPoint(damping=1.0), ValueError, "damping must be below 1"),
        (lambda: dmftopt.FixedPoint(damping=-0.1), ValueError, "damping must be >= 0"),
        (lambda: dmftopt.FixedPoint(damping=jnp.zeros(2)), ValueError, "damping must have shape"),
        (lambda: tiny(samples=65), ValueError, "samples must be even"),
        (lambda: tiny(step=dmftopt.ExponentialStep()), ValueError, "step: FixedPoint takes DiscreteStep"),
        (lambda: tiny(solver=dmftopt.FixedPoint), TypeError, "solver must be a"),
        (lambda: response(kick_time=0.0), ValueError, "kick_time must lie"),
        (lambda: response(kick_time=1.5), ValueError, "kick_time must lie"),
        (lambda: response(kick_time=float("nan")), ValueError, "kick_time must be finite"),
        (lambda: response(size=0.0), ValueError, "size must be > 0"),
        (lambda: response(runs=0), ValueError, "runs must be at least 1"),
    ],
)
def test_bad_input_is_refused(call, exception, message):
    with pytest.raises(exception, match=message):
        call()


def test_samples_need_not_be_a_power_of_two():
    assert tiny(samples=66).result == dmftopt.RESULTS.successful
    assert response().standard_error is None
