"""Averages of the weights: their law, closed forms, SGD that keeps them, derivatives, design and recipes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_within, problem

import dmftopt

Exponential = dmftopt.averages.Exponential
Polyak = dmftopt.averages.Polyak
Weighted = dmftopt.averages.Weighted
KEY = jax.random.key(0)
P = problem(dmftopt.tasks.LeastSquares(0.5), dmftopt.features.spectrum([2.0, 0.5], [0.3, 0.7]), delta=2.0)
PROTOCOL = dmftopt.Protocol(0.8)
KINDS = [Exponential(0.7), Exponential(0.4, start=1.3), Polyak(1.3), Weighted(lambda t: 1 + t**2)]


def quadrature(average, path, t):
    """The average of a function of time, by brute force."""
    start = float(average.start)
    s = np.linspace(start, t, 20001)
    w = np.exp(np.asarray(average.log_density(jnp.asarray(s))) - float(average.log_density(jnp.asarray(t))))
    held = float(average.start_mass()) * w[0]
    return (np.trapezoid(w * path(s), s) + held * path(start)) / (np.trapezoid(w, s) + held)


@pytest.mark.parametrize("average", KINDS, ids=str)
def test_weights_are_those_of_the_integral(average):
    times = jnp.linspace(0.0, 5.0, 41)

    def path(s):
        return np.interp(s, np.asarray(times), np.sin(np.asarray(times)))

    weights = np.asarray(average.weights(times))
    assert np.allclose(weights.sum(axis=1), 1) and np.all(np.triu(weights, 1) == 0)
    for k in (0, 5, 20, 40):
        t = float(times[k])
        expected = path(t) if t <= float(average.start) else quadrature(average, path, t)
        assert abs(weights[k] @ path(np.asarray(times)) - expected) < 2e-5


@pytest.mark.parametrize("average", KINDS, ids=str)
def test_gains_of_sgd_make_the_same_average(average):
    d, steps = 400, 2000
    theta = np.sin(np.arange(steps + 1) / d)
    mean = theta[0]
    for gain, value in zip(np.asarray(average.gains(steps, d)), theta[1:], strict=True):
        mean = mean + gain * (value - mean)
    assert abs(mean - quadrature(average, np.sin, 5.0)) < 0.003


def test_polyak_average_of_a_quadratic_in_closed_form():
    # One mode of online SGD without noise: theta = theta_star (1 - e^-t), whose mean to T is theta_star (1 - (1 - e^-T) / T).
    p = problem(dmftopt.tasks.LeastSquares(0.0), delta=1e6, student_scale=0.0)
    run = dmftopt.limits.online(p, dmftopt.Protocol(1.0), dmftopt.TimeGrid.uniform(4.0, 200), noise=dmftopt.noise.NoNoise())
    mean = dmftopt.averaged(run, p, Polyak())
    T = np.asarray(run.times)[1:]
    left = (1 - np.exp(-T)) / T
    np.testing.assert_allclose(mean.test_risk[1:], 0.5 * left**2, atol=1e-4)
    np.testing.assert_allclose(mean.teacher_overlap[1:, 0, 0], 1 - left, atol=1e-4)


@pytest.mark.slow
@pytest.mark.long_run
@pytest.mark.parametrize("average", [Exponential(0.7), Polyak(1.5)], ids=["ema", "polyak"])
def test_averages_are_those_that_sgd_keeps(average):
    p = problem(dmftopt.tasks.LeastSquares(0.5), delta=2.0)
    grid = dmftopt.TimeGrid.of_epochs(p, PROTOCOL, 2, 40)
    solution = dmftopt.solve(p, PROTOCOL, grid, key=KEY, noise=dmftopt.noise.Shuffled(), samples=4096, replicates=4)
    mean = dmftopt.averaged(solution, p, average)
    real = dmftopt.simulate.sgd(
        p, PROTOCOL, horizon=4.0, dimension=400, runs=64, key=KEY, order="shuffled", records=grid.times[::10], average=average
    )
    for name in ("test_risk", "student_overlap", "teacher_overlap"):
        theory, found = np.asarray(getattr(mean, name))[::10], np.asarray(getattr(real, name))
        assert_within(theory, found, getattr(real.standard_error, name), 2.5, 0.006)
    # The last iterate is far from it.
    assert mean.student_overlap[-1] < 0.95 * solution.student_overlap[-1]
    assert np.all(np.asarray(mean.total_error.test_risk)[1:] > 0)


@pytest.mark.slow
def test_derivatives_in_memory_and_schedule():
    def risk(x):
        protocol = dmftopt.Protocol(dmftopt.schedules.linear_decay(x[0], 4.0))
        run = dmftopt.solve(P, protocol, dmftopt.TimeGrid.uniform(4.0, 8), key=KEY, samples=128)
        return dmftopt.averaged(run, P, Exponential(x[1], x[2])).test_risk[-1]

    x = jnp.array([0.8, 0.6, 0.7])
    gradient, risk = jax.grad(risk)(x), jax.jit(risk)
    for i in range(3):
        h = 1e-4 * jnp.eye(3)[i]
        assert abs((risk(x + h) - risk(x - h)) / 2e-4 - gradient[i]) < 1e-5 * abs(gradient[i]) + 1e-8


@pytest.mark.slow
def test_a_plan_is_worth_its_average():
    objective = dmftopt.Objective(P, dmftopt.Budget(steps=4.0), predict=dmftopt.Solve(samples=512))
    rate = dmftopt.schedules.linear_decay(0.9, 1.0)
    plan = dmftopt.Plan(dmftopt.Protocol(rate), average=Exponential(0.2))
    run = objective.predict_run(dmftopt.Protocol(rate), KEY)
    expected = dmftopt.averaged(run, P, Exponential(0.8)).test_risk[-1]
    np.testing.assert_allclose(objective(plan, KEY), expected, rtol=1e-6)
    recipe = objective.run(plan).recipe(dimension=100, delta=2.0)
    np.testing.assert_allclose(recipe.average_gain, 1 - np.exp(-1 / 80), rtol=1e-5)
    assert Exponential(0.8).decay(100) == pytest.approx(np.exp(-1 / 80))


def test_recipes_hold_the_average(tmp_path):
    recipe = dmftopt.recipe(PROTOCOL, horizon=1.0, dimension=20, delta=2.0, average=Polyak(0.5))
    np.testing.assert_allclose(recipe.average_gain[-3:], [1 / 8, 1 / 9, 1 / 10], rtol=1e-6)
    recipe.save(tmp_path / "recipe.csv")
    assert (tmp_path / "recipe.csv").read_text().splitlines()[0].endswith("momentum,average_gain")


@pytest.mark.parametrize(
    "wrong, error, match",
    [
        (lambda run: dmftopt.averaged(run, P, Exponential(5.0)), ValueError, "longer than the run"),
        (lambda run: dmftopt.averaged(run, P, Exponential(0.1)), ValueError, "shorter than the grid's last step"),
        (lambda run: dmftopt.averaged(run, P, Polyak(4.0)), ValueError, "starts at 4, but the run ends at 4"),
        (lambda run: dmftopt.averaged(run, P, 0.9), TypeError, "average must be"),
        (lambda run: dmftopt.averaged(run, P, Exponential(1.0)).norm, ValueError, "norm of averaged weights"),
        (lambda run: Exponential(-1.0), ValueError, "memory must be > 0"),
        (lambda run: Polyak(-1.0), ValueError, "start must be >= 0"),
        (lambda run: dmftopt.Plan(PROTOCOL, average=0.9), TypeError, "average must be"),
    ],
)
def test_what_cannot_be(wrong, error, match):
    run = dmftopt.limits.online(P, PROTOCOL, dmftopt.TimeGrid.uniform(4.0, 8))
    with pytest.raises(error, match=match):
        wrong(run)
