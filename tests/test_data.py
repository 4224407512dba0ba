"""Problem.from_data: what it estimates, and how wrong that is said to be, against data of known truth."""

import contextlib
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import dmftopt
from dmftopt.problem.features import group_eigenvalues, split_groups

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


@pytest.mark.slow
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


FEW = 80  # dimensions


def few_samples(seed):
    """200 samples of a power-law spectrum, the teacher's power spread evenly over it; and the exact risk of ridge regression on
    them."""
    rng, samples, noise, ridge = np.random.default_rng([1, seed]), 200, 0.3, 0.1
    eigenvalues = np.arange(1, FEW + 1) ** -1.0
    eigenvalues *= FEW / eigenvalues.sum()
    teacher = rng.choice([-1.0, 1.0], size=FEW) / np.sqrt(eigenvalues)
    x = rng.normal(size=(samples, FEW)) * np.sqrt(eigenvalues / FEW)
    y = x @ teacher + noise * rng.normal(size=samples)
    centered, delta, c = x - x.mean(axis=0), samples / FEW, np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1))
    fit = np.linalg.solve(centered.T @ centered / delta + ridge * c * np.eye(FEW), centered.T @ (y - y.mean()) / delta)
    return x, y, 0.5 * (noise**2 + np.sum(eigenvalues / FEW * (fit - teacher) ** 2)), ridge


def ridge_risk(problem, ridge):
    """Of ridge regression, from the effective ridge kappa: (sigma² + sum_a P_a kappa² / (lambda_a + kappa)²) / (2 - 2 gamma),
    gamma = (1 / delta) sum_a w_a lambda_a² / (lambda_a + kappa)². (Dobriban and Wager, arXiv:1507.03003.)"""
    lam, w = (np.asarray(a) for a in (problem.features.eigenvalues, problem.features.weights))
    delta, power = float(problem.delta), w * lam * np.asarray(problem.teacher_scale) ** 2

    def excess(kappa):
        return kappa * (1 - np.sum(w * lam / (lam + kappa)) / delta) - ridge

    kappa = scipy.optimize.brentq(excess, 0.0, ridge + 1 / delta)
    bias = float(problem.task.label_noise) ** 2 + np.sum(power * (kappa / (lam + kappa)) ** 2)
    return 0.5 * bias / (1 - np.sum(w * (lam / (lam + kappa)) ** 2) / delta)


def test_few_samples_tell_of_the_population():
    """Ridge regression is what SGD ends at. Its risk with 2.5 samples per dimension, the mean over data sets, and as predicted
    from each of 48; and the spread of the predictions, which is the error they should have."""
    predicted, of_sample, errors = [], [], []
    for seed in range(48):
        x, y, _, ridge = few_samples(seed)
        problem = dmftopt.Problem.from_data(x, y, train_size=len(y))
        predicted.append(ridge_risk(problem, ridge))
        of_sample.append(ridge_risk(dmftopt.Problem.from_data(x, y, train_size=len(y), population="sample"), ridge))
        if seed < 12:
            errors.append(dmftopt.estimation_error(lambda problem, ridge=ridge: ridge_risk(problem, ridge), problem))
    exact = [few_samples(seed)[2] for seed in range(400)]
    # 1.2% of the predictions, which vary by 8%, and 0.4% of the exact mean.
    spread = np.std(predicted, ddof=1)
    standard_error = np.hypot(spread / np.sqrt(48), np.std(exact) / np.sqrt(400))
    assert abs(np.mean(predicted) - np.mean(exact)) < 2.5 * standard_error < 0.05 * np.mean(exact)
    # The sample itself promises 7% less than there is.
    assert np.mean(of_sample) - np.mean(exact) < -2.5 * standard_error
    # The spread of 48 is known to 10%, what single data sets say of it to 20%.
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(errors))), spread, rtol=0.3)


def test_errors_of_what_has_a_closed_form():
    """Of the label noise's variance, relative: sqrt(2 / (n - d)), to which single samples contribute sqrt(n / (n - d)) times too
    much. Of the labels' variance: sqrt(2 / n) if they are normal, 0 if they are ±1."""
    rng, noise = np.random.default_rng(2), 0.5
    x = rng.normal(size=(400, 160))
    y = x @ rng.normal(size=160) / 160**0.5 + noise * rng.normal(size=400)

    def powers(problem):
        variance = jnp.asarray(problem.task.label_noise) ** 2
        return {"noise": variance, "labels": variance + problem.rho[0, 0]}

    error = dmftopt.estimation_error(powers, dmftopt.Problem.from_data(x, y, train_size=200))
    # The variance of a squared residual is itself known from 400 samples: 10%, the error to half of it.
    np.testing.assert_allclose(error["noise"], noise**2 * np.sqrt(2 / 240), rtol=0.15)
    np.testing.assert_allclose(error["labels"], np.var(y) * np.sqrt(2 / 400), rtol=0.15)
    classes = dmftopt.Problem.from_data(x, np.where(np.arange(400) % 2 == 0, 1.0, -1.0), train_size=200)
    assert dmftopt.estimation_error(powers, classes)["labels"] < 0.1 * np.sqrt(2 / 400)


def test_replicates_follow_the_problem():
    problem = dataclasses.replace(small(0), delta=3.0)
    assert {float(replicate.delta) for replicate in problem.replicates} == {3.0}
    assert len({float(replicate.task.label_noise) for replicate in problem.replicates}) == len(problem.replicates) == 16
    # No randomness: the same data, the same replicates.
    assert small(0).replicates == small(0).replicates
    for without in (small(0, population="sample"), dmftopt.Problem(problem.task, problem.features, 2.0)):
        with pytest.raises(ValueError, match=r"no replicates. Make it by Problem.from_data"):
            dmftopt.estimation_error(lambda problem: problem.rho, without)


SHORT = dmftopt.TimeGrid.uniform(2.0, 4)
CONSTANT = dmftopt.Protocol(0.5)


def small(seed, dimension=6, **options):
    """Another data set of few dimensions, on a spectrum of its own."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, dimension)) * np.arange(1, dimension + 1) ** -rng.uniform(0.0, 1.5) + seed
    y = x @ rng.normal(size=dimension) + 0.3 * rng.normal(size=40)
    return dmftopt.Problem.from_data(x, y, **{"train_size": 12, "groups": 4, **options})


def limit(problem):
    return dmftopt.limits.least_squares(problem, CONSTANT, SHORT, nodes=16)


@contextlib.contextmanager
def compilations():
    """A list that grows with every program that is compiled, or fetched from a cache on disk."""
    events = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def solve(problem):
    return dmftopt.solve(problem, CONSTANT, SHORT, samples=64, key=jax.random.key(0))


def sgd(problem, dimension=30):
    options = {"horizon": 1.0, "dimension": dimension, "runs": 2, "records": 2, "key": jax.random.key(0)}
    return dmftopt.simulate.sgd(problem, CONSTANT, **options)


@pytest.mark.parametrize("route", [pytest.param(limit, marks=pytest.mark.slow), solve, sgd])
def test_one_program_serves_all_data_sets(route):
    """Of other dimensions and training sets too; a simulation's arrays are of one size where delta is."""
    with compilations() as events:
        first = route(small(0))
        assert events, "compilations are not counted"
        events.clear()
        # Another map back, other groups; another dimension of which delta is the same; and what the data leave open.
        others = [route(small(1)), route(small(2, dimension=5, train_size=10)), route(small(0).replicates[0])]
        assert not events
    assert len({float(result.test_risk[-1]) for result in (first, *others)}) == 4


@pytest.mark.slow
def test_a_hundred_data_sets_live():
    """The process used to die after some sixty, of as many programs."""
    with compilations() as events:
        limit(small(0))
        events.clear()
        risks = [float(limit(small(seed)).test_risk[-1]) for seed in range(1, 101)]
        assert not events
    assert np.all(np.isfinite(risks)) and len(set(risks)) == 100


def test_data_sets_stack_and_travel():
    """A problem with its map back is a pytree like others."""
    problems = [small(seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    assert stacked.data.dimension == 6 and stacked.data.feature_center.shape == (2, 6)
    expected = jnp.stack([problem.rho for problem in problems])
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda problem: problem.rho))(stacked), expected, rtol=1e-12)
    assert jax.grad(lambda problem: jnp.sum(problem.rho))(problems[0]).features.weights.shape == (4,)
    again = pickle.loads(pickle.dumps(problems[0]))
    assert again == problems[0] and again != problems[1]


def test_results_carry_the_estimation_error():
    result = dmftopt.with_estimation_error(limit, small(0))
    alone = dmftopt.estimation_error(lambda problem: limit(problem).test_risk, small(0))
    np.testing.assert_array_equal(result.estimation_error.test_risk, alone)
    assert np.all(alone > 0)
    # Half a 95% interval; of a limit nothing else is unknown.
    np.testing.assert_allclose(result.known_error().test_risk, 1.96 * alone)
    with pytest.raises(ValueError, match=r"Get the result by dmftopt\.with_estimation_error"):
        limit(small(0)).estimation_error  # noqa: B018
    with pytest.raises(TypeError, match=r"predict\(problem\) must be an AbstractResult"):
        dmftopt.with_estimation_error(lambda problem: problem.rho, small(0))


@pytest.mark.slow
def test_splitting_groups_changes_nothing():
    eigenvalues = np.array([4.0, 4.0, 4.1, 1.0, 1.0, 0.2, 0.2, 0.2, 0.2, 0.2])
    means, counts, _ = group_eigenvalues(eigenvalues, 3)
    parent, parts = split_groups(counts, 4)
    assert parent.tolist() == [0, 1, 2, 2] and parts.tolist() == [3, 2, 3, 2]
    np.testing.assert_array_equal(split_groups(counts, 3), [[0, 1, 2], counts])
    scale = jnp.array([0.5, 1.0, 2.0])

    def problem(which, count):
        features = dmftopt.features.Features(means[which] * 10 / eigenvalues.sum(), count / 10)
        return dmftopt.Problem(dmftopt.tasks.LeastSquares(0.3), features, 2.0, scale[which])

    whole, split = (problem(*arguments) for arguments in ((np.arange(3), counts), (parent, parts)))
    for route, rtol in ((limit, 1e-6), (solve, 1e-9)):
        a, b = (route(one).observables.arrays() for one in (whole, split))
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=rtol, atol=1e-9, err_msg=name)

    # A dimension that holds the groups holds their parts, which together get what the groups get.
    assert np.all(np.isfinite(sgd(split).test_risk))
    for one in (whole, split):
        with pytest.raises(ValueError, match=r"dimension 14 cannot hold the spectrum: group 1 has weight 0\.2, 2\.80"):
            sgd(one, dimension=14)


def test_as_many_groups_as_asked_for():
    assert small(0, groups=3).features.groups == 3
    assert small(0, groups=40).features.groups == 6  # each eigenvalue by itself


def test_data_are_gone_through_in_epochs_where_their_number_is_fixed():
    on_data, noise = small(0), dmftopt.noise
    own = dmftopt.Problem(dmftopt.tasks.LeastSquares(0.5), dmftopt.features.isotropic(), delta=2.0)
    for problem, budget, law in (
        (on_data, dmftopt.Budget(epochs=2.0), noise.Shuffled),
        (on_data, dmftopt.Budget(steps=100, dimension=50), noise.Brownian),
        (own, dmftopt.Budget(epochs=2.0), noise.Brownian),
    ):
        assert type(dmftopt.Objective(problem, budget).predict.noise) is law
