"""Adam and other updates: the solver against the online limit, against optax's own algorithms in SGD, derivatives, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_within, problem

import dmftopt
from dmftopt import TimeGrid

Adam = dmftopt.updates.Adam
Clipped = dmftopt.updates.Clipped
Normalized = dmftopt.updates.Normalized
RMSprop = dmftopt.updates.RMSprop
Sign = dmftopt.updates.Sign
KEY = jax.random.key(0)
SPECTRUM = dmftopt.features.spectrum([3.0, 1.0, 0.3], [0.2, 0.4, 0.4])
LOGISTIC = problem(dmftopt.tasks.Logistic("sign"), SPECTRUM, delta=2.0, student_scale=0.0)


def close(a, b, tolerance):
    a, b = np.asarray(a), np.asarray(b)
    return np.max(np.abs(a - b)) < tolerance * np.max(np.abs(b))


@pytest.mark.parametrize(
    "update, basis",
    [
        pytest.param(Adam(0.0), "aligned", marks=pytest.mark.slow),
        pytest.param(Adam(0.5), "aligned", marks=pytest.mark.slow),
        pytest.param(Adam(0.5), "rotated", marks=pytest.mark.slow),
        (Sign(), "aligned"),
    ],
    ids=["short", "long", "rotated", "sign"],
)
def test_solver_with_fresh_samples_is_the_online_limit(basis, update):
    p = dmftopt.Problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM, delta=1e5, student_scale=0.5, basis=basis)
    batch_size = 2.0 if isinstance(update, Adam) else 1.0
    protocol = dmftopt.Protocol(dmftopt.schedules.linear_decay(0.6, 3.0), batch_size, 0.1, update=update)
    grid = TimeGrid.geometric(3.0, 32)
    solution = dmftopt.solve(p, protocol, grid, key=KEY, samples=4096)
    exact = dmftopt.limits.online(p, protocol, grid)
    # A gradient that jumps makes the step of first order.
    tolerance = 0.02 if isinstance(update, Sign) else 0.004
    for name in ("test_risk", "student_overlap", "teacher_overlap", "norm"):
        assert close(getattr(solution, name), getattr(exact, name), tolerance), name


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
        pytest.param(LOGISTIC, 0.6, Sign(), marks=pytest.mark.slow),
        pytest.param(LOGISTIC, 0.8, Normalized(), marks=pytest.mark.slow),
        pytest.param(problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM, delta=2.0), 0.6, RMSprop(0.5), marks=pytest.mark.slow),
        pytest.param(problem(dmftopt.tasks.LeastSquares(0.5), SPECTRUM, delta=2.0), 0.8, Clipped(0.5), marks=pytest.mark.slow),
        pytest.param(problem(dmftopt.tasks.Softmax(3), SPECTRUM, delta=2.0), 0.8, Clipped(0.5), marks=pytest.mark.slow),
        pytest.param(problem(dmftopt.tasks.Committee(2, 2), SPECTRUM, delta=2.0), 0.6, Adam(0.5), marks=pytest.mark.slow),
    ],
    ids=["adam", "sign", "normalized", "rmsprop", "clipped", "softmax", "committee"],
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


@pytest.mark.slow
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
        (lambda: solved(Sign(), batch_size=2.0), ValueError, "batch_size must be 1"),
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


FULL = {"noise": dmftopt.noise.NoNoise(), "step": dmftopt.DiscreteStep()}
DESCENT = dmftopt.Protocol(1.0, 1.0, 0.05)


def test_plain_descent_of_optax_is_the_plain_step():
    grid = TimeGrid.uniform(6.0, 6)
    plain = dmftopt.solve(LOGISTIC, dmftopt.Protocol(0.5, 1.0, 0.05), grid, key=KEY, samples=512, **FULL)
    particles = dmftopt.CausalInnovations(samples=512, particles=512)
    other = dmftopt.solve(LOGISTIC, DESCENT, grid, key=KEY, solver=particles, optimizer=optax.sgd(0.5), **FULL)
    np.testing.assert_allclose(other.student_overlap, plain.student_overlap, rtol=1e-9, atol=1e-12)


@pytest.mark.long_run
@pytest.mark.parametrize(
    "optimizer, noise",
    [
        pytest.param(optax.adam(0.1), dmftopt.noise.NoNoise(), marks=pytest.mark.slow, id="adam"),
        pytest.param(optax.lion(0.05), dmftopt.noise.Bernoulli(0.3), marks=pytest.mark.slow, id="lion, batches"),
    ],
)
def test_any_optimizer_at_full_batch(optimizer, noise):
    p, grid = problem(dmftopt.tasks.Logistic("sign"), SPECTRUM), TimeGrid.uniform(12.0, 12)
    options = {"noise": noise, "optimizer": optimizer, "key": KEY}
    solution = dmftopt.solve(p, DESCENT, grid, samples=4096, step=dmftopt.DiscreteStep(), replicates=2, **options)
    real = dmftopt.simulate.gradient_descent(p, DESCENT, grid, dimension=800, runs=24, **options)
    for name in ("test_risk", "train_loss", "student_overlap", "teacher_overlap", "norm"):
        theory, found = np.asarray(getattr(solution, name)), np.asarray(getattr(real, name))
        assert_within(theory, found, getattr(real.standard_error, name), 2.5, 0.005)


def test_derivatives_through_the_state_of_an_optimizer():
    adam, grid = optax.adam(0.1), TimeGrid.uniform(4.0, 4)
    solver = dmftopt.CausalInnovations(samples=256, particles=256)

    def risk(scale):
        p = problem(dmftopt.tasks.Logistic("sign"), SPECTRUM, student_scale=scale)
        return dmftopt.solve(p, DESCENT, grid, key=KEY, solver=solver, optimizer=adam, **FULL).test_risk[-1]

    slope = jax.grad(risk)(0.5)
    assert abs((risk(0.5 + 1e-5) - risk(0.5 - 1e-5)) / 2e-5 - slope) < 1e-6 * abs(slope)


@pytest.mark.parametrize(
    "optimizer, options, match",
    [
        (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)), FULL, "optimizer must be elementwise"),
        (optax.adam(0.1), {}, "it goes with full or extensive batches"),
        (optax.adam(0.1), {**FULL, "solver": dmftopt.FixedPoint(512)}, "FixedPoint takes none"),
    ],
)
def test_optimizers_that_cannot_be(optimizer, options, match):
    with pytest.raises(ValueError, match=match):
        dmftopt.solve(LOGISTIC, DESCENT, TimeGrid.uniform(4.0, 4), key=KEY, optimizer=optimizer, **options)


def test_adam_remembers_the_noise_of_smaller_batches():
    # Of gradients whose batch grows sixteenfold halfway: of squares of P / B, not of P.
    p = problem(dmftopt.tasks.LeastSquares(0.5), delta=1000.0, student_scale=0.5)
    batches = dmftopt.schedules.PiecewiseConstant(jnp.array([1.0, 16.0]), 2.0)
    protocol, grid = dmftopt.Protocol(0.6, batches, update=Adam(1.0)), TimeGrid.uniform(2.0, 40)
    excess, seen, weight, dt = 0.5 * (1 + 0.25), 0.0, 0.0, 1e-4
    for k in range(20000):
        power, batch = 2 * excess + 0.25, 1.0 if k < 10000 else 16.0
        seen, weight = seen + dt * (power / batch - seen), weight + dt * (1 - weight)
        rate = 0.6 / np.sqrt(seen / weight)
        excess += dt * (-2 * rate * excess + 0.5 * rate**2 * power / batch)
    exact = excess + 0.125
    assert abs(dmftopt.limits.online(p, protocol, grid).test_risk[-1] - exact) < 2e-4 * exact
    solution = dmftopt.solve(p, protocol, grid, key=KEY, samples=2048)
    assert abs(solution.test_risk[-1] - exact) < 0.01 * exact


def test_recipes_for_optax():
    """A recipe's optimizer on a raw problem does what simulate does in the problem's units."""
    c, d = 4.0, 50
    rng = np.random.default_rng(0)
    for update, name in ((Adam.of(0.99, d), "adamw"), (Clipped(0.5), "clipped"), (Normalized(), "normalized"), (None, "sgd")):
        protocol = dmftopt.Protocol(0.7, 1.0, 0.3, update=update)
        recipe = dmftopt.recipe(protocol, horizon=1.0, dimension=d, delta=2.0, mean_square_norm=c)
        assert recipe.optimizer["name"] == name
        transform = recipe.to_optax()
        raw = jnp.asarray(rng.normal(size=d))
        state, theta = transform.init(raw), raw * c**0.5
        own = None if update is None else update.transform(d)
        memory = None if own is None else own.init(theta)
        with jax.numpy_dtype_promotion("standard"):
            for _ in range(d):
                gradient = jnp.asarray(rng.normal(size=d))
                # Features x sqrt(c) and weights theta / sqrt(c).
                updates, state = transform.update(gradient * c**0.5, state, raw)
                raw = raw + updates
                moved = gradient if own is None else None
                if own is not None:
                    moved, memory = own.update(gradient, memory, theta)
                rate = 1.0 if update is None else update.rate(d)
                theta = theta - 0.7 * (rate * moved + 0.3 * theta / d)
        np.testing.assert_allclose(raw * c**0.5, theta, rtol=1e-5, atol=1e-6)


def test_data_say_which_basis():
    rng = np.random.default_rng(0)
    scales = np.linspace(0.3, 2.0, 20)
    plain = rng.normal(size=(4000, 20)) * scales
    turn = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    hadamard = np.array([[1.0]])
    for _ in range(4):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    rotated = rng.normal(size=(4000, 16)) * np.linspace(0.3, 2.0, 16) @ hadamard / 4
    y = rng.normal(size=4000)
    bases = [dmftopt.Problem.from_data(x, x[:, 0] + y, train_size=100).basis for x in (plain, rotated, plain @ turn * scales)]
    assert bases == [problem(basis=name).basis for name in ("aligned", "rotated", "mixed")] == [1.0, 0.0, -1.0]
    mixed = dmftopt.Problem.from_data(plain @ turn * scales, plain[:, 0] + y, train_size=100)
    with pytest.raises(ValueError, match="neither their eigenvectors"):
        dmftopt.solve(mixed, dmftopt.Protocol(0.1, update=Adam()), TimeGrid.uniform(1.0, 4), key=KEY, samples=512)
