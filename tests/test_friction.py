"""Momentum with a memory of order d: moments of each mode by hand, heavy-ball SGD, the overdamped limit, derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_within, problem

import dmftopt
from dmftopt import TimeGrid

KEY = jax.random.key(0)
SPECTRUM = dmftopt.features.spectrum([3.0, 1.0, 0.3], [0.2, 0.4, 0.4])


def moments(p, eta, gamma, ridge, horizon, steps=20000):
    """Test risks of online least squares: second moments of (theta - a theta_star, v) in each mode, midpoint rule."""
    lam, weights = (np.asarray(a) for a in (p.features.eigenvalues, p.features.weights))
    noise = float(p.task.label_noise) ** 2
    # Coefficients of the teacher in (theta, v), and second moments of the rest.
    mean = np.zeros((2, lam.size))
    square = np.zeros((3, lam.size))
    square[0] = float(p.student_scale) ** 2
    dt = horizon / steps

    def change(mean, square):
        risk = np.sum(weights * lam * (square[0] + (mean[0] - 1) ** 2)) + noise
        position, velocity = mean
        d_mean = np.stack([velocity, -gamma * velocity - eta * (lam * (position - 1) + ridge * position)])
        tt, tv, vv = square
        k = eta * (lam + ridge)
        return d_mean, np.stack([2 * tv, vv - gamma * tv - k * tt, -2 * gamma * vv - 2 * k * tv + eta**2 * lam * risk])

    for _ in range(steps):
        first = change(mean, square)
        second = change(mean + 0.5 * dt * first[0], square + 0.5 * dt * first[1])
        mean, square = mean + dt * second[0], square + dt * second[1]
    return 0.5 * (np.sum(weights * lam * (square[0] + (mean[0] - 1) ** 2)) + noise)


@pytest.mark.parametrize("gamma", [pytest.param(0.5, marks=pytest.mark.slow), 4.0])
def test_online_least_squares_is_that_of_the_moments(gamma):
    p = problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM, delta=1e6)
    protocol = dmftopt.Protocol(1.0, 1.0, 0.1, friction=gamma)
    solution = dmftopt.solve(p, protocol, TimeGrid.uniform(5.0, 48), key=KEY, noise=dmftopt.noise.Brownian(), samples=4096)
    assert abs(float(solution.test_risk[-1]) / moments(p, 1.0, gamma, 0.1, 5.0) - 1) < 0.01


@pytest.mark.parametrize("gamma", [pytest.param(0.5, marks=pytest.mark.slow), 4.0])
def test_limits_are_those_of_the_moments(gamma):
    p = problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM, delta=1e8)
    protocol, exact = dmftopt.Protocol(1.0, 1.0, 0.1, friction=gamma), moments(p, 1.0, gamma, 0.1, 5.0)
    for limit in (dmftopt.limits.online, dmftopt.limits.least_squares):
        found = limit(p, protocol, TimeGrid.uniform(5.0, 4))
        assert abs(float(found.test_risk[-1]) / exact - 1) < 1e-6


def test_the_limit_is_that_of_the_solver():
    p = problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM)
    protocol, grid = dmftopt.Protocol(1.0, 1.0, 0.1, friction=4.0), TimeGrid.uniform(5.0, 48)
    exact = dmftopt.limits.least_squares(p, protocol, grid)
    found = dmftopt.solve(p, protocol, grid, key=KEY, noise=dmftopt.noise.Brownian(), samples=4096, replicates=2)
    for name in ("test_risk", "train_loss", "teacher_overlap", "norm", "correlation"):
        assert_within(getattr(found, name), getattr(exact, name), getattr(found.standard_error, name), 3.0, 0.002)


@pytest.mark.slow
@pytest.mark.parametrize("task", [dmftopt.tasks.Logistic("sign"), dmftopt.tasks.Committee(2, 2)])
def test_online_of_other_tasks_is_that_of_the_solver(task):
    p = problem(task, SPECTRUM, delta=1e8)
    protocol, grid = dmftopt.Protocol(1.0, 1.0, 0.1, friction=1.0), TimeGrid.uniform(5.0, 48)
    exact = dmftopt.limits.online(p, protocol, grid)
    found = dmftopt.solve(p, protocol, grid, key=KEY, noise=dmftopt.noise.Brownian(), samples=8192, replicates=2)
    for name in ("test_risk", "student_overlap", "teacher_overlap", "norm"):
        assert_within(getattr(found, name), getattr(exact, name), getattr(found.standard_error, name), 3.0, 0.003)


@pytest.mark.slow
def test_contours_of_long_oscillations():
    p = problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM, delta=0.5)

    def risks(horizon, nodes):
        protocol = dmftopt.Protocol(0.3, 1.0, 0.1, friction=0.1)
        return dmftopt.limits.least_squares(p, protocol, TimeGrid.uniform(horizon, 8), nodes=nodes, throw=False)

    # Twice the nodes change nothing, and too few say so.
    assert np.max(np.abs(risks(20.0, 512).test_risk / risks(20.0, 1024).test_risk - 1)) < 1e-8
    assert risks(50.0, 64).result == dmftopt.RESULTS.unconverged


@pytest.mark.slow
def test_derivatives_of_the_limit_in_friction():
    p = problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM, delta=0.5)

    def risk(x):
        protocol = dmftopt.Protocol(x[0], 1.0, 0.1, friction=dmftopt.schedules.linear_decay(x[1], 6.0))
        return dmftopt.limits.least_squares(p, protocol, TimeGrid.uniform(3.0, 6), nodes=128).test_risk[-1]

    x = jnp.array([2.0, 1.5])
    gradient = jax.grad(risk)(x)
    for i in range(2):
        h = 1e-4 * jnp.eye(2)[i]
        assert abs((risk(x + h) - risk(x - h)) / 2e-4 - gradient[i]) < 1e-6 * abs(gradient[i])


@pytest.mark.slow
def test_steps_are_of_second_order():
    p = problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM, delta=1e6)
    exact, errors = moments(p, 1.0, 0.5, 0.1, 5.0), []
    for steps in (6, 12):
        protocol, grid = dmftopt.Protocol(1.0, 1.0, 0.1, friction=0.5), TimeGrid.uniform(5.0, steps)
        solution = dmftopt.solve(p, protocol, grid, key=KEY, noise=dmftopt.noise.Brownian(), samples=2**14, throw=False)
        errors.append(abs(float(solution.test_risk[-1]) - exact))
    assert errors[1] < 0.4 * errors[0]


@pytest.mark.long_run
@pytest.mark.slow
@pytest.mark.parametrize("order", ["replacement", "shuffled"])
def test_heavy_ball_sgd(order):
    p = problem(dmftopt.tasks.Logistic("sign"), SPECTRUM, delta=2.0)
    protocol = dmftopt.Protocol(2.0, 1.0, 0.05, friction=1.0)
    grid = TimeGrid.of_epochs(p, protocol, 2, 40)
    noise = dmftopt.noise.Shuffled() if order == "shuffled" else dmftopt.noise.Poisson()
    solution = dmftopt.solve(p, protocol, grid, key=KEY, noise=noise, samples=4096, replicates=2)
    real = dmftopt.simulate.sgd(p, protocol, horizon=4.0, dimension=600, runs=32, key=KEY, order=order, records=grid.times[::10])
    for name in ("test_risk", "train_loss", "student_overlap", "teacher_overlap"):
        theory, found = np.asarray(getattr(solution, name))[::10], np.asarray(getattr(real, name))
        assert_within(theory, found, getattr(real.standard_error, name), 2.5, 0.01)


@pytest.mark.slow
def test_much_friction_is_sgd():
    p = problem(dmftopt.tasks.Logistic("sign"), SPECTRUM, delta=2.0)
    grid = TimeGrid.uniform(3.0, 24)
    plain = dmftopt.solve(p, dmftopt.Protocol(0.8, 1.0, 0.1), grid, key=KEY, samples=1024)
    heavy = dmftopt.solve(p, dmftopt.Protocol(80.0, 1.0, 0.1, friction=100.0), grid, key=KEY, samples=1024)
    assert np.max(np.abs(heavy.test_risk - plain.test_risk)) < 0.02
    assert abs(heavy.test_risk[-1] / plain.test_risk[-1] - 1) < 0.01


@pytest.mark.slow
def test_derivatives_in_friction():
    p = problem(dmftopt.tasks.Logistic("sign"), SPECTRUM, delta=2.0)

    def risk(x):
        protocol = dmftopt.Protocol(x[0], 1.0, 0.1, friction=dmftopt.schedules.linear_decay(x[1], 6.0))
        return dmftopt.solve(p, protocol, TimeGrid.uniform(3.0, 6), key=KEY, samples=256).test_risk[-1]

    x = jnp.array([2.0, 1.5])
    gradient = jax.grad(risk)(x)
    for i in range(2):
        h = 1e-5 * jnp.eye(2)[i]
        assert abs((risk(x + h) - risk(x - h)) / 2e-5 - gradient[i]) < 1e-6 * abs(gradient[i]) + 1e-9


def test_recipes_and_designs_keep_it():
    p = problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM)
    protocol = dmftopt.Protocol(dmftopt.schedules.linear_decay(1.0, 2.0), 1.0, 0.1, friction=2.0)
    steps = dmftopt.recipe(protocol, horizon=2.0, dimension=50, delta=2.0, mean_square_norm=4.0)
    np.testing.assert_allclose(steps.momentum, 1 - 2.0 / 50)
    np.testing.assert_allclose(steps.learning_rate, protocol.learning_rate(jnp.arange(100) / 50) / (4.0 * 50))
    np.testing.assert_allclose(steps.weight_decay, 0.1 * 4.0 / 50)
    # The change is what is remembered.
    optimizer, theta, by_hand, change = steps.to_optax(), jnp.ones(3), np.ones(3), np.zeros(3)
    state = optimizer.init(theta)
    for k in range(5):
        moved, state = optimizer.update(0.3 * theta, state, theta)
        theta = theta + moved
        change = steps.momentum[k] * change - steps.learning_rate[k] * (0.3 + steps.weight_decay[k]) * by_hand
        by_hand = by_hand + change
    np.testing.assert_allclose(theta, by_hand, rtol=1e-6)
    with pytest.raises(ValueError, match="must be below dimension 50"):
        dmftopt.recipe(dmftopt.Protocol(1.0, friction=60.0), horizon=2.0, dimension=50, delta=2.0)
    # Tabulated for an objective it is still there.
    plan = dmftopt.Protocol(1.0, 1.0, 0.1, friction=2.0)
    found = dmftopt.Objective(p, dmftopt.Budget(steps=2.0), predict=dmftopt.Exact(dmftopt.limits.least_squares, panels=8))(plan)
    exact = dmftopt.limits.least_squares(p, plan, TimeGrid.uniform(2.0, 1)).test_risk[-1]
    assert abs(float(found / exact) - 1) < 1e-5


@pytest.mark.parametrize(
    "wrong, match",
    [
        (lambda p: dmftopt.Protocol(0.1, friction=-1.0), "friction must be >= 0"),
        (lambda p: dmftopt.Protocol(0.1, momentum=0.5, friction=1.0), "momentum of its own"),
        (lambda p: discrete_limit(dmftopt.Protocol(0.1, friction=1.0)), "this limit takes none"),
        (lambda p: solved(p, step=dmftopt.DiscreteStep()), "friction goes with continuous time"),
        (lambda p: solved(p, solver=dmftopt.FixedPoint(512)), "FixedPoint takes none"),
    ],
)
def test_what_cannot_be(wrong, match):
    with pytest.raises(ValueError, match=match):
        wrong(problem(dmftopt.tasks.Logistic("sign")))


def discrete_limit(protocol):
    p = problem(dmftopt.tasks.LeastSquares(0.5))
    return dmftopt.limits.online_least_squares(p, protocol, dimension=10, horizon=1.0)


def solved(p, **options):
    return dmftopt.solve(p, dmftopt.Protocol(0.1, friction=1.0), TimeGrid.uniform(1.0, 4), key=KEY, **options)
