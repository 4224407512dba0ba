"""Problem.from_data: what it estimates, against data of known truth."""

import jax
import jax.numpy as jnp
import numpy as np

import dmftopt

D, SAMPLES, TRAIN, NOISE = 100, 1000, 250, 0.4


def make(seed):
    """Gaussian data of power-law spectrum, off center and badly scaled, with the problem that is their truth."""
    rng = np.random.default_rng(seed)
    eigenvalues = np.arange(1, D + 1) ** -1.0
    eigenvalues *= D / eigenvalues.sum()
    teacher = rng.normal(size=D)
    rotation, _ = np.linalg.qr(rng.normal(size=(D, D)))
    x = rng.normal(size=(SAMPLES, D)) * np.sqrt(eigenvalues / D)
    y = x @ teacher + NOISE * rng.normal(size=SAMPLES)
    truth = dmftopt.Problem(
        dmftopt.tasks.LeastSquares(NOISE),
        dmftopt.features.Features(jnp.asarray(eigenvalues), jnp.ones(D) / D),
        TRAIN / D,
        jnp.abs(jnp.asarray(teacher)),
    )
    return 7.0 * x @ rotation + 3.0, y - 2.0, truth


def test_estimates_predict_the_risk_of_the_truth(key):
    """The learning curves of estimate and truth, over four data sets. Label noise has relative standard deviation
    1 / sqrt(2 (SAMPLES - D)) = 2.4%, so the risk about 5% at the end; the mean over four is known to half of that."""
    grid = dmftopt.TimeGrid.geometric(4.0, 40)
    protocol = dmftopt.Protocol(dmftopt.schedules.linear_decay(1.0, 4.0))

    def curve(problem):
        return dmftopt.solve(problem, protocol, grid, noise=dmftopt.noise.Brownian(), samples=1024, key=key).test_risk

    ratios = []
    for seed in range(4):
        x, y, truth = make(seed)
        ratios.append(np.asarray(curve(dmftopt.Problem.from_data(x, y, train_size=TRAIN)) / curve(truth)))
    assert np.max(np.abs(np.mean(ratios, axis=0) - 1)) < 0.08
    assert np.max(np.abs(np.asarray(ratios) - 1)) < 0.2


def test_the_map_back_to_raw_data():
    x, y, _ = make(0)
    problem = dmftopt.Problem.from_data(x, y, train_size=TRAIN)
    data = problem.data
    np.testing.assert_allclose(data.feature_center, x.mean(axis=0))
    np.testing.assert_allclose(data.mean_square_norm, np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1)))
    assert (data.dimension, data.train_size, float(problem.delta)) == (D, TRAIN, TRAIN / D)
    np.testing.assert_allclose(jnp.sum(problem.features.weights * problem.features.eigenvalues), 1.0, rtol=1e-6)


def test_noise_without_a_teacher_shows_none():
    """Labels independent of the features: sigma is their deviation, and the teacher field's power is near zero where the
    uncorrected fit would show d / samples = 10% of it."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, 200))
    problem = dmftopt.Problem.from_data(x, rng.normal(size=2000), train_size=400)
    # The residual variance has relative standard deviation sqrt(2 / 1800) = 3.3%, the deviation half of it.
    assert abs(problem.task.label_noise - 1.0) < 5 * 0.017
    assert float(problem.rho[0, 0]) < 0.03


def test_the_estimate_agrees_with_sgd_on_the_raw_data():
    """Plain SGD on raw features with the raw learning rate, and raw ridge, is what the problem predicts."""
    ridge, rate, horizon = 0.2, 0.8, 3.0
    x, y, _ = make(3)
    problem = dmftopt.Problem.from_data(x, y, train_size=TRAIN)
    data = problem.data
    grid = dmftopt.TimeGrid.geometric(horizon, 60)
    predicted = dmftopt.solve(problem, dmftopt.Protocol(rate, 1.0, ridge), grid, samples=4096, key=jax.random.key(0))
    x, y = jnp.asarray(x - np.asarray(data.feature_center)), jnp.asarray(y - data.label_center)

    def run(key):
        order = jax.random.permutation(jax.random.fold_in(key, 1), SAMPLES)
        x_train, y_train, x_test, y_test = x[order[:TRAIN]], y[order[:TRAIN]], x[order[TRAIN:]], y[order[TRAIN:]]

        def step(theta, key):
            i = jax.random.randint(key, (), 0, TRAIN)
            gradient = x_train[i] * (x_train[i] @ theta - y_train[i]) + ridge * data.mean_square_norm / D * theta
            return theta - rate / data.mean_square_norm * gradient, None

        theta, _ = jax.lax.scan(step, jnp.zeros(D), jax.random.split(key, round(horizon * D)))
        return 0.5 * jnp.mean((x_test @ theta - y_test) ** 2)

    risks = jax.lax.map(run, jax.random.split(jax.random.key(1), 400), batch_size=50)
    # 5%: the estimate's own error (label noise 2.4%, spectrum d / samples) and the finite size 1 / D.
    np.testing.assert_allclose(jnp.mean(risks), predicted.test_risk[-1], rtol=0.05)
