"""Shuffled epochs: the multipliers' law, one epoch as the online limit, several against SGD, derivatives, and grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_within, problem

import dmftopt
from dmftopt import TimeGrid

Shuffled = dmftopt.noise.Shuffled
SPECTRUM = dmftopt.features.spectrum([3.0, 1.0, 0.3], [0.2, 0.4, 0.4])
KEY = jax.random.key(0)


def visits_of(grid):
    return jnp.diff(grid.epochs)


@pytest.mark.parametrize("reshuffle", [True, False])
def test_every_sample_is_visited_once_in_each_epoch(reshuffle):
    p, protocol = problem(delta=2.0), dmftopt.Protocol(0.5)
    grid = TimeGrid.of_epochs(p, protocol, 2.5, 20)
    v = visits_of(grid)
    noise = Shuffled(reshuffle)
    z, shares = noise.multipliers(jax.random.uniform(KEY, (20, 4096)), jnp.eye(20), v)
    rate = jnp.ones_like(v)
    M = rate[:, None] * grid.step_sizes[:, None] * shares + noise.deviation(rate, grid.step_sizes, v)[:, None] * z
    # M = eta (delta / B) N
    N = np.asarray(M / 2.0)
    assert np.allclose(np.minimum(np.abs(N), np.abs(N - 1)), 0, atol=1e-9)
    number = np.floor(np.asarray(grid.epochs)[:-1] + 1e-9).astype(int)
    for epoch in (0, 1):
        assert np.allclose(N[number == epoch].sum(axis=0), 1)
    assert abs(N[number == 2].sum(axis=0).mean() - 0.5) < 0.05
    same = np.allclose(N[number == 0].argmax(axis=0), N[number == 1].argmax(axis=0))
    assert same == (not reshuffle)
    # Given the past, the rest has mean 0 and its size is as it says.
    assert np.allclose(np.mean(shares, axis=1), 1, atol=0.15)
    random = np.asarray(noise.deviation(rate, grid.step_sizes, v)) > 0
    assert np.allclose(np.mean(np.asarray(z)[random] ** 2, axis=1), 1, atol=0.15)
    assert np.allclose(np.mean(np.asarray(z * shares), axis=1), 0, atol=0.2)


@pytest.mark.parametrize("reshuffle", [True, False])
def test_pairs_of_steps_are_the_steps_of_the_coarse_grid(reshuffle):
    p, protocol = problem(delta=2.0), dmftopt.Protocol(0.5)
    grid = TimeGrid.of_epochs(p, protocol, 2.5, 20)
    uniforms, noise = jax.random.uniform(KEY, (20, 64)), Shuffled(reshuffle)
    fine = noise.multipliers(uniforms, jnp.eye(20), visits_of(grid))
    coarse = noise.coarsened(fine, grid.step_sizes, visits_of(grid))
    direct = noise.multipliers(uniforms[:10], jnp.eye(10), visits_of(grid.coarsened()))
    for a, b in zip(coarse, direct, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def committee():
    return dmftopt.Problem(dmftopt.tasks.Committee(2, 2), SPECTRUM, delta=1.5, student_scale=0.5)


@pytest.mark.parametrize(
    "p, rate",
    [
        (problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM, delta=2.0), 0.8),
        pytest.param(problem(dmftopt.tasks.Logistic("sign"), SPECTRUM, delta=0.7), 2.0, marks=pytest.mark.slow),
        pytest.param(committee(), 1.0, marks=pytest.mark.slow),
    ],
    ids=["least squares", "sign", "committee"],
)
def test_one_epoch_is_online_sgd(p, rate):
    protocol = dmftopt.Protocol(dmftopt.schedules.linear_decay(rate, 2 * float(p.delta)), 1.0, 0.1)
    grid = TimeGrid.of_epochs(p, protocol, 1, 16)
    solution = dmftopt.solve(p, protocol, grid, key=KEY, noise=Shuffled(), samples=4096, replicates=2)
    exact = dmftopt.limits.online(p, protocol, grid)
    for name in ("test_risk", "student_overlap", "teacher_overlap"):
        a, b = np.asarray(getattr(solution, name)), np.asarray(getattr(exact, name))
        # The first step knows no past, and is of first order.
        assert np.max(np.abs(a - b)) < 0.025 * np.max(np.abs(b)), name
        assert np.max(np.abs(a - b)[8:]) < 0.01 * np.max(np.abs(b)), name
    # A sample that waits is as good as a fresh one: at the end all have been visited, and are not.
    assert solution.train_loss[-1] < solution.test_risk[-1]


@pytest.mark.slow
def test_one_epoch_is_of_second_order():
    p, protocol = problem(dmftopt.tasks.LeastSquares(0.5), delta=2.0), dmftopt.Protocol(1.0)
    exact = float(dmftopt.limits.online(p, protocol, TimeGrid([0.0, 2.0])).test_risk[-1])
    errors = []
    for steps in (4, 8):
        grid = TimeGrid.of_epochs(p, protocol, 1, steps)
        solution = dmftopt.solve(p, protocol, grid, key=KEY, noise=Shuffled(), samples=2**14, throw=False)
        errors.append(abs(float(solution.test_risk[-1]) - exact))
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.long_run
@pytest.mark.parametrize("order, rate", [("shuffled", 1.0), pytest.param("fixed", 0.8, marks=pytest.mark.slow)])
def test_epochs_are_those_of_sgd(order, rate):
    # With replacement the excess error is a quarter higher after an epoch, and the gate would not pass by far.
    p = problem(dmftopt.tasks.Logistic("sign"), delta=2.0)
    protocol = dmftopt.Protocol(rate, dmftopt.schedules.PiecewiseLinear((0.0, 5.0), jnp.array([1.0, 3.0])), 0.02)
    grid = TimeGrid.of_epochs(p, protocol, 3.5, 42)
    noise = Shuffled(order == "shuffled")
    solution = dmftopt.solve(p, protocol, grid, key=KEY, noise=noise, samples=8192, replicates=4)
    horizon = float(grid.times[-1])
    simulation = dmftopt.simulate.sgd(
        p, protocol, horizon=horizon, dimension=500, runs=96, key=KEY, records=grid.times[::6], order=order
    )
    keep = solution.observables.at(np.arange(0, 43, 6))
    for name in ("test_risk", "train_loss", "student_overlap", "teacher_overlap"):
        theory, real = np.asarray(getattr(keep, name)), np.asarray(getattr(simulation, name))
        assert_within(theory, real, getattr(simulation.standard_error, name), 2.5, 0.006)


@pytest.mark.slow
@pytest.mark.long_run
@pytest.mark.parametrize("epochs", [1, 4, 16])
@pytest.mark.parametrize(
    "p, protocol",
    [
        (problem(dmftopt.tasks.LeastSquares(0.3), SPECTRUM, delta=2.0), dmftopt.Protocol(0.3)),
        (problem(dmftopt.tasks.Logistic("sign"), delta=2.0), dmftopt.Protocol(3.0, 4.0)),
        (problem(dmftopt.tasks.Logistic("logistic"), SPECTRUM, delta=1.0, teacher_scale=2.0), dmftopt.Protocol(1.0, 2.0)),
        (problem(dmftopt.tasks.Committee(2, 2), delta=3.0, student_scale=0.5), dmftopt.Protocol(1.0, 4.0)),
        (problem(dmftopt.tasks.Softmax(3), delta=2.0), dmftopt.Protocol(2.0, 2.0)),
    ],
    ids=["least squares", "sign", "logistic", "committee", "softmax"],
)
def test_shuffled_epochs_at_large_dimension(p, protocol, epochs):
    steps = max(16, 10 * epochs)
    grid = TimeGrid.of_epochs(p, protocol, epochs, steps)
    solution = dmftopt.solve(p, protocol, grid, key=KEY, noise=Shuffled(), samples=8192, replicates=4, estimate_bias=True)
    simulation = dmftopt.simulate.sgd(
        p, protocol, horizon=float(grid.times[-1]), dimension=1600, runs=12, key=KEY, records=grid.times[::2], order="shuffled"
    )
    keep = np.arange(0, steps + 1, 2)
    theory, own, bias = (o.at(keep) for o in (solution.observables, solution.standard_error, solution.bias))
    for name in ("test_risk", "student_overlap", "teacher_overlap"):
        real = np.asarray(getattr(simulation, name))
        error = 2 * np.hypot(np.asarray(getattr(simulation.standard_error, name)), np.asarray(getattr(own, name)))
        # Of some 40 correlated times the largest.
        error = 1.5 * error + np.abs(np.asarray(getattr(bias, name))) + 0.005 * np.max(np.abs(real))
        assert np.all(np.abs(np.asarray(getattr(theory, name)) - real) < error), name


def test_derivatives_in_rates_and_batch_sizes():
    p = problem(dmftopt.tasks.Logistic("sign"), SPECTRUM, delta=2.0)

    def risk(x):
        protocol = dmftopt.Protocol(dmftopt.schedules.linear_decay(x[0], 8.0), x[1], x[2])
        grid = TimeGrid.of_epochs(p, protocol, 1.5, 12)
        return dmftopt.solve(p, protocol, grid, key=KEY, noise=Shuffled(), samples=512).test_risk[-1]

    x = jnp.array([0.9, 1.7, 0.1])
    gradient = jax.grad(risk)(x)
    for i in range(3):
        h = 1e-5 * jnp.eye(3)[i]
        assert abs((risk(x + h) - risk(x - h)) / 2e-5 - gradient[i]) < 1e-6 * abs(gradient[i]) + 1e-9


@pytest.mark.slow
def test_a_horizon_is_solved_to_an_accuracy():
    p, protocol = problem(dmftopt.tasks.Logistic("sign"), delta=1.0), dmftopt.Protocol(0.5)
    solution = dmftopt.solve(p, protocol, 2.2, key=KEY, noise=Shuffled(), accuracy=0.03, times=[0.7, 1.0, 2.0, 2.2])
    assert solution.result == dmftopt.RESULTS.successful
    np.testing.assert_allclose(solution.times, [0.0, 0.7, 1.0, 2.0, 2.2], atol=1e-6)
    exact = dmftopt.limits.online(p, protocol, TimeGrid([0.0, 0.7, 1.0])).test_risk
    assert np.all(np.abs(solution.test_risk[:3] - exact) < 0.03 * exact[0])


def test_grids_of_epochs():
    p = problem(delta=2.0)
    grid = TimeGrid.of_epochs(p, dmftopt.Protocol(0.1, lambda t: 1.0 + t), 2.5, 20)
    # ∫(1 + t) = delta * epochs
    np.testing.assert_allclose(grid.times + grid.times**2 / 2, 2.0 * grid.epochs, atol=1e-9)
    assert {1.0, 2.0, 2.5} <= set(np.asarray(grid.epochs).tolist())
    assert {1.0, 2.0, 2.5} <= set(np.asarray(grid.coarsened().epochs).tolist())
    assert TimeGrid.of_epochs(p, dmftopt.Protocol(0.1), 3, 7).steps == 7
    jumps = dmftopt.schedules.piecewise_constant(3.0, 3, np.array([1.0, 4.0, 2.0]))
    np.testing.assert_allclose(TimeGrid.of_epochs(p, dmftopt.Protocol(0.1, jumps), 2.5, 10).times[-1], 2.0, atol=1e-6)


@pytest.mark.parametrize(
    "wrong, error, match",
    [
        (lambda p: TimeGrid.of_epochs(p, dmftopt.Protocol(0.1), 16, 20), ValueError, "steps must be at least 32"),
        (lambda p: TimeGrid.of_epochs(p, dmftopt.Protocol(0.1), 0, 20), ValueError, "epochs must be > 0"),
        (lambda p: solve_on(p, TimeGrid.uniform(4.5, 20)), ValueError, "the end of epoch 1 is not among"),
        (
            lambda p: jax.grad(lambda B: solve_on(p, TimeGrid.uniform(4.0, 20), B).test_risk[-1])(1.0),
            TypeError,
            "TimeGrid.of_epochs",
        ),
        (lambda p: solve_on(p, TimeGrid.uniform(4.0, 20), solver=dmftopt.FixedPoint(512)), ValueError, "know no past"),
        (
            lambda p: dmftopt.limits.online(p, dmftopt.Protocol(0.1), TimeGrid([0, 1]), noise=Shuffled()),
            TypeError,
            "noise must be",
        ),
        (lambda p: Shuffled("yes"), ValueError, "reshuffle must be True or False"),
        (
            lambda p: dmftopt.Objective(p, dmftopt.Budget(steps=3.0), predict=dmftopt.Solve(Shuffled())),
            ValueError,
            "must fix the number of epochs",
        ),
        (
            lambda p: dmftopt.simulate.sgd(p, dmftopt.Protocol(0.1), horizon=1.0, dimension=10, runs=2, key=KEY, order="random"),
            ValueError,
            "order must be one of",
        ),
    ],
)
def test_what_cannot_be(wrong, error, match):
    with pytest.raises(error, match=match):
        wrong(problem(delta=2.0))


def solve_on(p, grid, batch_size=1.0, **options):
    return dmftopt.solve(p, dmftopt.Protocol(0.1, batch_size), grid, key=KEY, noise=Shuffled(), **options)


@pytest.mark.slow
def test_an_objective_in_epochs():
    p = problem(dmftopt.tasks.Logistic("sign"), delta=2.0)
    objective = dmftopt.Objective(p, dmftopt.Budget(epochs=1.5), predict=dmftopt.Solve(Shuffled(), samples=512))
    protocol = dmftopt.Protocol(dmftopt.schedules.linear_decay(0.9, 1.0), 2.0)
    value, slope = jax.value_and_grad(lambda B: objective(dmftopt.Protocol(protocol.learning_rate, B), KEY))(2.0)
    h = 1e-5
    after, before = (objective(dmftopt.Protocol(protocol.learning_rate, B), KEY) for B in (2.0 + h, 2.0 - h))
    assert abs((after - before) / (2 * h) - slope) < 1e-6 * abs(slope) + 1e-9
    run = objective.run(protocol)
    grid = TimeGrid.of_epochs(p, run.protocol, 1.5, 20)
    direct = dmftopt.solve(p, run.protocol, grid, key=KEY, noise=Shuffled(), samples=512)
    np.testing.assert_allclose(value, direct.test_risk[-1], rtol=1e-6)


@pytest.mark.slow
def test_a_spike_feels_the_same_noise_with_few_samples():
    # A hundred of them are waiting when the epoch ends. Counting those alone the risk was a third too high, .376 at 80 steps.
    spike = dmftopt.features.spectrum([54.0, 4.0, 0.56], [0.005, 0.05, 0.945])
    p = problem(dmftopt.tasks.LeastSquares(0.5), spike, delta=3.0)
    protocol = dmftopt.Protocol(dmftopt.schedules.linear_decay(0.5, 6.0))
    grid = TimeGrid.of_epochs(p, protocol, 1, 40)
    solution = dmftopt.solve(p, protocol, grid, key=KEY, noise=Shuffled(), samples=4096)
    exact = dmftopt.limits.online(p, protocol, grid).test_risk[-1]
    assert abs(solution.test_risk[-1] - exact) < 0.01 * exact


def test_in_a_fixed_order_samples_that_wait_must_be_enough_for_a_spike():
    spike = dmftopt.features.spectrum([50.0, 0.9], [0.005, 0.995])
    p = problem(dmftopt.tasks.LeastSquares(0.5), spike, delta=2.0)
    grid = TimeGrid.of_epochs(p, dmftopt.Protocol(0.1), 2, 32)
    with pytest.raises(ValueError, match=r"samples must be at least 8192 with noise.Shuffled\(reshuffle=False\)"):
        dmftopt.solve(p, dmftopt.Protocol(0.1), grid, key=KEY, noise=Shuffled(False), samples=2048)
