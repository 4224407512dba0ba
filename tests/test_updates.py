"""Adam and other updates: the solver against the online limit, against optax's own algorithms in SGD, derivatives, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import problem

import dmftopt
from dmftopt import TimeGrid

Adam = dmftopt.updates.Adam
Clipped = dmftopt.updates.Clipped
Normalized = dmftopt.updates.Normalized
RMSprop = dmftopt.updates.RMSprop
KEY = jax.random.key(0)
SPECTRUM = dmftopt.features.spectrum([3.0, 1.0, 0.3], [0.2, 0.4, 0.4])
LOGISTIC = problem(dmftopt.tasks.Logistic("sign"), SPECTRUM, delta=2.0, student_scale=0.0)


def close(a, b, tolerance):
    a, b = np.asarray(a), np.asarray(b)
    return np.max(np.abs(a - b)) < tolerance * np.max(np.abs(b))


@pytest.mark.parametrize("basis", ["aligned", "rotated"])
@pytest.mark.parametrize("update", [Adam(0.0), Adam(0.5)], ids=["short", "long"])
def test_solver_with_fresh_samples_is_the_online_limit(basis, update):
    p = dmftopt.Problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM, delta=1e5, student_scale=0.5, basis=basis)
    protocol = dmftopt.Protocol(dmftopt.schedules.linear_decay(0.6, 3.0), 2.0, 0.1, update=update)
    grid = TimeGrid.geometric(3.0, 32)
    solution = dmftopt.solve(p, protocol, grid, key=KEY, samples=4096)
    exact = dmftopt.limits.online(p, protocol, grid)
    for name in ("test_risk", "student_overlap", "teacher_overlap", "norm"):
        assert close(getattr(solution, name), getattr(exact, name), 0.004), name


def test_adam_by_hand():
    # Isotropic, least squares without noise, online, student at 0: with V = P = 2 R, d w / dt = -eta w / sqrt(2 R) + noise of
    # eta^2 on average: R' = -2 eta R / sqrt(2 R) + eta^2 / 2.
    p = problem(dmftopt.tasks.LeastSquares(0.0), delta=1e6, student_scale=0.0)
    run = dmftopt.limits.online(p, dmftopt.Protocol(0.3, update=Adam()), TimeGrid.uniform(4.0, 8))
    R, dt = 0.5, 1e-4
    for _ in range(40000):
        middle = R + 0.5 * dt * (-0.3 * np.sqrt(2 * R) + 0.045)
        R = R + dt * (-0.3 * np.sqrt(2 * middle) + 0.045)
    np.testing.assert_allclose(run.test_risk[-1], R, rtol=1e-4)


# Measured with this project's simulations of the limit, in the units of the table in experiments/benchmarks/README.md: real Adam
# at d = 1600, beta2 = 0.99 and 0.999, eta = 0.3, to t = 3, multi-pass at delta = 2 with replacement.
@pytest.mark.parametrize("beta2, overlap, risk", [(0.99, 0.974, 0.5010), (0.999, 0.903, 0.5049)])
def test_adam_on_a_finite_training_set(beta2, overlap, risk):
    protocol = dmftopt.Protocol(0.3, update=Adam.of(beta2, 1600))
    solution = dmftopt.solve(LOGISTIC, protocol, TimeGrid.uniform(3.0, 20), key=KEY, samples=4096)
    assert abs(float(solution.student_overlap[-1, 0, 0]) - overlap) < 3 * 0.006
    assert abs(float(solution.test_risk[-1]) - risk) < 3 * 0.0008


@pytest.mark.long_run
@pytest.mark.parametrize(
    "p, rate, update",
    [
        (LOGISTIC, 1.0, Adam(2.0)),
        (LOGISTIC, 0.8, Normalized()),
        pytest.param(problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM, delta=2.0), 0.6, RMSprop(0.5), marks=pytest.mark.slow),
        (problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM, delta=2.0), 0.8, Clipped(0.5)),
        pytest.param(problem(dmftopt.tasks.Softmax(3), SPECTRUM, delta=2.0), 0.8, Clipped(0.5), marks=pytest.mark.slow),
        pytest.param(problem(dmftopt.tasks.Committee(2, 2), SPECTRUM, delta=2.0), 0.6, Adam(0.5), marks=pytest.mark.slow),
    ],
    ids=["adam", "normalized", "rmsprop", "clipped", "softmax", "committee"],
)
def test_updates_are_those_of_optax(p, rate, update):
    protocol = dmftopt.Protocol(rate, 1.0, 0.05, update=update)
    grid = TimeGrid.of_epochs(p, protocol, 2, 32)
    solution = dmftopt.solve(p, protocol, grid, key=KEY, noise=dmftopt.noise.Shuffled(), samples=4096, replicates=4)
    real = dmftopt.simulate.sgd(
        p, protocol, horizon=4.0, dimension=800, runs=40, key=KEY, records=grid.times[::8], order="shuffled"
    )
    for name in ("test_risk", "student_overlap", "teacher_overlap"):
        theory, found = np.asarray(getattr(solution, name))[::8], np.asarray(getattr(real, name))
        error = 2.5 * np.hypot(
            np.asarray(getattr(real.standard_error, name)), np.asarray(getattr(solution.standard_error, name))[::8]
        )
        # Of order 1 / d remains 1%.
        assert np.all(np.abs(theory - found) < error + 0.012 * np.max(np.abs(found))), name


def test_clipped_least_squares_moves_as_huber():
    p = problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM, delta=2.0)
    other = problem(dmftopt.tasks.Huber(threshold=0.5, label_noise=0.5), SPECTRUM, delta=2.0)
    grid = TimeGrid.uniform(3.0, 12)
    clipped = dmftopt.solve(p, dmftopt.Protocol(0.8, update=Clipped(0.5)), grid, key=KEY, samples=512)
    huber = dmftopt.solve(other, dmftopt.Protocol(0.8), grid, key=KEY, samples=512)
    np.testing.assert_allclose(clipped.student_overlap, huber.student_overlap, rtol=5e-3)
    assert close(clipped.test_risk, (clipped.student_overlap - 2 * clipped.teacher_overlap + 1.25).ravel() / 2, 1e-6)


def test_all_of_it_composes():
    """Shuffled, Adam, an EMA and schedules in one objective; gradients in all of their numbers."""

    def plan(x):
        update = Adam(x[2])
        rate = dmftopt.schedules.linear_decay(x[0], 1.0)
        return dmftopt.Plan(dmftopt.Protocol(rate, x[1], x[3], update=update), average=dmftopt.averages.Exponential(x[4]))

    predict = dmftopt.Solve(dmftopt.noise.Shuffled(), samples=512)
    objective = dmftopt.Objective(LOGISTIC, dmftopt.Budget(epochs=1.5), predict=predict)
    x = jnp.array([0.5, 1.5, 0.8, 0.1, 0.2])
    value = jax.jit(lambda x: objective(plan(x), KEY))
    gradient = jax.grad(value)(x)
    for i in range(5):
        h = 1e-5 * jnp.eye(5)[i]
        assert abs((value(x + h) - value(x - h)) / 2e-5 - gradient[i]) < 2e-6 * abs(gradient[i]) + 1e-9


@pytest.mark.parametrize(
    "wrong, error, match",
    [
        (lambda: Adam(-1.0), ValueError, "memory must be >= 0"),
        (lambda: Adam.of(1.0, 100), ValueError, "beta2 must be between 0 and 1"),
        (lambda: Adam.of(-0.1, 100), ValueError, "beta2 must be > 0"),
        (lambda: Adam(beta1=1.0), ValueError, "beta1 must be one number from 0 to below 1"),
        (lambda: Adam(eps=-1.0), ValueError, "eps must be >= 0"),
        (lambda: Clipped(0.0), ValueError, "threshold must be > 0"),
        (lambda: dmftopt.Protocol(0.1, update="adam"), TypeError, "update must be"),
        (lambda: dmftopt.Protocol(0.1, momentum=0.9, update=Adam()), ValueError, "an update has none beside it"),
        (lambda: solved(Clipped(1.0), batch_size=2.0), ValueError, "batch_size must be 1"),
        (lambda: solved(Adam(), noise=dmftopt.noise.NoNoise()), ValueError, "dominated by the noise"),
        (lambda: solved(Adam(), solver=dmftopt.FixedPoint(512)), ValueError, "FixedPoint takes SGD only"),
        (
            lambda: dmftopt.limits.least_squares(
                problem(dmftopt.tasks.LeastSquares()), dmftopt.Protocol(0.1, update=Adam()), TimeGrid([0, 1])
            ),
            ValueError,
            "takes no Adam",
        ),
        (
            lambda: dmftopt.simulate.sgf(
                LOGISTIC, dmftopt.Protocol(0.1, update=Adam()), TimeGrid([0, 1]), dimension=20, runs=2, key=KEY
            ),
            ValueError,
            "simulate.sgf takes none",
        ),
        (lambda: problem(basis="other"), ValueError, "basis must be one of"),
    ],
)
def test_what_cannot_be(wrong, error, match):
    with pytest.raises(error, match=match):
        wrong()


def solved(update, batch_size=1.0, **options):
    protocol = dmftopt.Protocol(0.1, batch_size, update=update)
    return dmftopt.solve(LOGISTIC, protocol, TimeGrid.uniform(1.0, 4), key=KEY, samples=512, **options)
