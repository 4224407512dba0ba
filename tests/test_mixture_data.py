"""Gaussian mixtures with scales and label laws, and Problem.from_data for classes: against sampling, plain SGD, known truth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from scipy.special import ndtr

import dmftopt
from dmftopt import tasks
from dmftopt.numerics.matrices import pivoted_root, triangular_root
from dmftopt.problem import _mixture_data as mixtures

LAW = np.array([[0.1, 0.9], [0.8, 0.2], [1.0, 0.0]])
WEIGHTS = np.array([0.3, 0.3, 0.4])
SCALES = np.array([0.6, 1.3, 0.9])
LOSSES = {
    "logistic": (lambda r, y: np.logaddexp(0, -y * r), lambda r, y: -y / (1 + np.exp(y * r))),
    "hinge": (lambda r, y: np.maximum(0, 1 - y * r), lambda r, y: -y * (y * r < 1)),
    "squared_hinge": (lambda r, y: 0.5 * np.maximum(0, 1 - y * r) ** 2, lambda r, y: -y * np.maximum(0, 1 - y * r)),
    "squared": (lambda r, y: 0.5 * (r - y) ** 2, lambda r, y: r - y),
}


def samples_of(count, law=LAW, seed=0):
    """Clusters and class numbers."""
    rng = np.random.default_rng(seed)
    cluster = rng.choice(len(WEIGHTS), size=count, p=WEIGHTS)
    number = np.sum(rng.random(count)[:, None] > np.cumsum(law[cluster], axis=1)[:, :-1], axis=1)
    return cluster, number, rng


@pytest.mark.parametrize("loss", LOSSES)
def test_risk_error_and_moments_are_those_of_random_samples(loss):
    """Of fields mean + scale sqrt(Q) z, 2e6 of them: 5 standard errors."""
    task = tasks.GaussianMixture(LAW, WEIGHTS, loss, SCALES)
    O, Q = np.array([0.9, -0.4, -1.2]), 0.7
    cluster, number, rng = samples_of(2_000_000)
    z, y, scale = rng.normal(size=cluster.size), 2.0 * number - 1, SCALES[cluster]
    r = O[cluster] + scale * Q**0.5 * z
    value, slope = (f(r, y) for f in LOSSES[loss])
    matrices = jnp.asarray([[Q]]), jnp.asarray(O[None]), jnp.eye(3)
    a, with_known, power = task.moments(*matrices)
    # By Stein's lemma; what the SGD of x = scale x' sees of x' is scale l.
    a_samples = scale * (slope - np.mean(slope)) * z / Q**0.5
    a_samples = a_samples - np.mean(scale * z) * np.mean(slope)
    checks = [
        (task.test_risk(*matrices), value),
        (task.test_error(*matrices), (y * r < 0).astype(float)),
        (power[0, 0], (scale * slope) ** 2),
        (a[0, 0], a_samples),
        *[(with_known[0, c], slope * (cluster == c)) for c in range(3)],
    ]
    for found, expected in checks:
        np.testing.assert_allclose(found, np.mean(expected), atol=5 * np.std(expected) / expected.size**0.5 + 1e-12)


@pytest.mark.parametrize("classes", [2, 3])
def test_each_scale_is_part_of_the_loss(classes):
    """loss(r', y') is that of the plain field and label, its derivatives those in r' = r / scale; and samples follow the law."""
    law = LAW if classes == 2 else np.array([[0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0]])
    task = tasks.GaussianMixture(law, WEIGHTS, "logistic" if classes == 2 else "softmax", SCALES)
    u = jnp.asarray((np.arange(20000) + 0.5) / 20000)
    known, y = task.sample(jnp.zeros((3, u.size)), u, jnp.eye(3))
    cluster = np.argmax(known, axis=0)
    np.testing.assert_allclose(np.max(known, axis=0), 1 / SCALES[cluster])
    fields = jnp.asarray(np.random.default_rng(0).normal(size=(task.columns, u.size)))
    r, label = jax.vmap(task.plain, (1, 0), (1, 0))(fields, y)
    np.testing.assert_allclose(r, SCALES[cluster][None] * fields)
    names = [-1.0, 1.0] if classes == 2 else [0.0, 1.0, 2.0]
    for c in range(3):
        shares = [np.mean((cluster == c) & (np.asarray(label) == name)) for name in names]
        np.testing.assert_allclose(shares, WEIGHTS[c] * law[c], atol=1.5e-4)
    some = slice(None, None, 400)
    fields, y, r, label = fields[:, some], y[some], r[:, some], label[some]
    value, slope = jax.vmap(jax.value_and_grad(task.loss), (1, 0), (0, 1))(fields, y)
    plain = tasks.GaussianMixture(law, WEIGHTS, task.cluster_loss)
    np.testing.assert_allclose(value, jax.vmap(plain.loss, (1, 0))(r, label), rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(task.gradient, (1, 0), 1)(fields, y), slope, atol=1e-12)
    curvature = jax.vmap(jax.jacfwd(task.gradient), (1, 0))(fields, y)
    np.testing.assert_allclose(jax.vmap(task.curvature, (1, 0))(fields, y), curvature, atol=1e-12)
    np.testing.assert_array_equal(jax.vmap(task.error, (1, 0))(fields, y), jax.vmap(plain.error, (1, 0))(r, label))


def test_a_class_without_noise_is_as_before():
    one, other = (tasks.GaussianMixture(labels, WEIGHTS) for labels in ((1, -1, 1), np.array([[0, 1], [1, 0], [0, 1]])))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.labels, [1, -1, 1])


def test_scales_have_derivatives_and_probabilities_none():
    def risk(scales, weights):
        task = tasks.GaussianMixture(LAW, weights, "logistic", scales)
        return task.test_risk(jnp.asarray([[0.7]]), jnp.asarray([[0.9, -0.4, -1.2]]), jnp.eye(3))

    slope = jax.grad(risk)(jnp.asarray(SCALES), jnp.asarray(WEIGHTS))
    for c in range(3):
        up, down = (risk(jnp.asarray(SCALES + sign * 1e-4 * np.eye(3)[c]), WEIGHTS) for sign in (1, -1))
        np.testing.assert_allclose(slope[c], (up - down) / 2e-4, atol=1e-8)
    with pytest.raises(ValueError, match="draws clusters"):
        jax.grad(risk, argnums=1)(jnp.asarray(SCALES), jnp.asarray(WEIGHTS))


class Truth:
    """A mixture in raw units, off center and badly scaled, as plain NumPy has it: each class is one cluster."""

    def __init__(self, d, weights, scales, strength=2.5, seed=0):
        rng = np.random.default_rng(seed)
        self.eigenvalues = np.arange(1, d + 1) ** -0.5
        self.eigenvalues /= self.eigenvalues.mean()
        self.rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
        self.weights, self.scales = np.asarray(weights), np.asarray(scales)
        self.scales = self.scales / np.sqrt(self.weights @ self.scales**2)
        self.means = strength * rng.normal(size=(len(weights), d)) * self.eigenvalues**0.5 / d

    def draw(self, count, rng):
        """Raw features and class numbers."""
        cluster = rng.choice(len(self.weights), size=count, p=self.weights)
        d = len(self.eigenvalues)
        x = self.means[cluster] + self.scales[cluster, None] * rng.normal(size=(count, d)) * np.sqrt(self.eigenvalues / d)
        return self.unit * x @ self.rotation + 3.0, cluster

    unit = 12.0


def one_pass(truth, center, rate, steps, runs, seed, intercept):
    """Test loss and 0-1 error of logistic SGD on fresh raw samples, each run's."""
    rng = np.random.default_rng(seed)
    d = len(center)
    theta, bias = np.zeros((runs, d)), np.zeros(runs)
    for k in range(steps):
        x, number = truth.draw(runs, rng)
        x, y = x - center, 2 * number - 1
        l = LOSSES["logistic"][1](np.sum(x * theta, axis=1) + bias, y)
        theta -= rate(k / steps) * l[:, None] * x
        bias -= rate(k / steps) * l * intercept
    # On all fresh samples: within a class, and so a cluster, fields are normal.
    raw = truth.unit * theta @ truth.rotation.T
    means = raw @ truth.means.T + ((3.0 - center) @ theta.T + bias)[:, None]
    width = np.sqrt(raw**2 @ truth.eigenvalues / d)[:, None] * truth.scales
    z, weights = np.polynomial.hermite_e.hermegauss(60)
    r, y = means[..., None] + width[..., None] * z, np.array([-1.0, 1.0])[:, None]
    risk = LOSSES["logistic"][0](r, y) @ (weights / weights.sum())
    return risk @ truth.weights, ndtr(-means * y[:, 0] / width) @ truth.weights


@pytest.mark.parametrize("intercept", [pytest.param(intercept, marks=pytest.mark.slow) for intercept in (False, True)])
def test_sgd_on_raw_data_is_what_the_problem_predicts(intercept):
    """Online: plain SGD, at the raw learning rate, on fresh samples of the truth. 4 standard errors and 1.5%: the finite size
    d = 200 of SGD and the estimate from 4000 samples have about 1% each."""
    truth = Truth(200, [0.7, 0.3], [0.8, 1.4])
    x, number = truth.draw(4000, np.random.default_rng(1))
    labels = np.array(["no", "yes"])[number]
    options = {"train_size": 1000, "loss": "logistic", "clusters": 1, "intercept": intercept, "groups": 12}
    problem = dmftopt.Problem.from_data(x, labels, **options)
    assert problem.data.classes == ("no", "yes")
    assert problem.data.dimension == 200
    np.testing.assert_allclose(problem.data.mean_square_norm, truth.unit**2, rtol=0.02)
    rate = dmftopt.schedules.linear_decay(3.0, 4.0)
    grid = dmftopt.TimeGrid.uniform(4.0, 4)
    limit = dmftopt.limits.online(problem, dmftopt.Protocol(rate), grid)
    raw = lambda s: 3.0 * (1 - s) / problem.data.mean_square_norm  # noqa: E731
    risks, errors = one_pass(truth, problem.data.feature_center, raw, 800, 100, 2, intercept)
    for name, found in (("test_risk", risks), ("test_error", errors)):
        expected = float(getattr(limit, name)[-1])
        slack = 4 * np.std(found) / 10 + 0.015 * expected
        assert abs(np.mean(found) - expected) < slack, f"{name}: {np.mean(found):.4f} ± {np.std(found) / 10:.4f}, {expected:.4f}"


def test_the_intercept_learns_how_frequent_classes_are():
    """In the end all that clusters without means leave: P(class)."""
    found = mixtures.Mixture(
        np.array([0, 1]), np.array([0.8, 0.2]), np.ones(2), np.ones(1), np.ones(1), np.zeros((1, 2, 2)), 100.0
    )
    with_one = mixtures.with_intercept(found, 100)
    np.testing.assert_allclose(with_one.shares.sum(), 1.0)
    # d a² = d / mean_square_norm: of every field's mean, per unit of time.
    np.testing.assert_allclose(np.einsum("g,gab->ab", with_one.shares * with_one.eigenvalues**2, with_one.moments), 1.0)
    with pytest.raises(ValueError, match="Scale the features to unit variance"):
        mixtures.with_intercept(found, 10_000)


def test_estimates_recover_the_truth():
    """Over 6 samples of 5 per dimension: means of the Gram matrices' totals and of a smooth function of the spectrum, to 4
    standard errors of these means and 2%: far below the bias of the sample's own, 1 / 5 of the noise and of the eigenvalues."""
    d, count = 100, 500
    truth = Truth(d, [0.5, 0.3, 0.2], [0.7, 1.2, 1.3], 12.0)
    truth.unit = 1.0
    totals, smooth, low, squares = [], [], [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        cluster = np.repeat(np.arange(3), (truth.weights * count).astype(int))
        x = truth.means[cluster] + truth.scales[cluster, None] * rng.normal(size=(count, d)) * np.sqrt(truth.eigenvalues / d)
        center = truth.weights @ truth.means
        # Class by class, each one cluster.
        found = mixtures.Sampled(x - x.mean(axis=0), cluster, 1, 10).mixture
        np.testing.assert_array_equal(found.classes, [0, 1, 2])
        np.testing.assert_allclose(found.weights, truth.weights)
        np.testing.assert_allclose(found.scales, truth.scales, rtol=0.06)
        by_group = found.moments * (found.shares * found.eigenvalues**2)[:, None, None]
        assert np.min(np.linalg.eigvalsh(found.moments)) > -1e-9 * np.max(found.moments)
        totals.append(by_group.sum(axis=0) * found.mean_square_norm)
        low.append(np.einsum("g,gab->ab", 1 / (1 + found.eigenvalues), by_group))
        smooth.append(found.shares @ (1 / (0.3 + found.eigenvalues)))
        squares.append(found.mean_square_norm)
    means = truth.means - center
    expected = [d * means @ means.T, d * (means / (1 + truth.eigenvalues)) @ means.T, np.mean(1 / (0.3 + truth.eigenvalues)), 1.0]
    for values, truth_value in zip((totals, low, smooth, squares), expected, strict=True):
        values = np.asarray(values)
        error = values.std(axis=0, ddof=1) / len(values) ** 0.5
        assert np.all(np.abs(values.mean(axis=0) - truth_value) < 4 * error + 0.02 * np.max(np.abs(truth_value)))


def between_means(mixture):
    """|mu_1 - mu_2|² of two clusters, d times, in raw units."""
    by_group = np.einsum("gab,a,b->g", mixture.moments, [1.0, -1.0], [1.0, -1.0])
    return mixture.mean_square_norm * np.sum(by_group * mixture.shares * mixture.eigenvalues**2)


def test_weak_means_of_two_clusters():
    """Means hardly above their noise, from 2.5 samples a dimension, to 3 standard errors over 40 samples. Centered means have
    no noise along their mean: taking it away there too had made the distance a seventh too small."""
    truth = Truth(60, [0.6, 0.4], [0.8, 1.3])
    truth.unit = 1.0
    found = []
    for seed in range(40):
        x, number = truth.draw(150, np.random.default_rng(seed))
        found.append(between_means(mixtures.Sampled(x - x.mean(axis=0), number, 1, 10).mixture))
    expected = 60 * np.sum((truth.means[0] - truth.means[1]) ** 2)
    assert abs(np.mean(found) - expected) < 3 * np.std(found) / 40**0.5 < 0.1 * expected


def test_replicates_of_classes_say_what_data_leave_open():
    """The spread over 40 samples of the clusters' probability, and of the distance of their means, is what the replicates of each
    say. The first is binomial, up to the factor (1 - d / N)^(-1/2)."""
    truth = Truth(20, [0.6, 0.4], [0.8, 1.3], 4.0)
    found, said = [], []
    for seed in range(40):
        x, labels = truth.draw(100, np.random.default_rng(seed))
        problem = dmftopt.Problem.from_data(x, labels, train_size=100, loss="logistic", clusters=1, groups=6)
        of = [(q.weights[0], between_means(q)) for q in (problem.data.samples.mixture, *problem.data.others())]
        found.append(of[0])
        said.append(0.25 * np.sum((np.asarray(of[1::2]) - np.asarray(of[2::2])) ** 2, axis=0))
    said = np.sqrt(np.mean(said, axis=0))
    np.testing.assert_allclose(said[0], np.sqrt(0.24 / 100 / (1 - 20 / 98)), rtol=0.12)
    # Of 40 samples a deviation is known to a ninth.
    np.testing.assert_allclose(np.std(found, axis=0), said, rtol=0.3)


def test_replicates_of_classes_are_problems():
    x, y = table(0)
    problem = dataclasses.replace(dmftopt.Problem.from_data(x, y, train_size=40, loss="logistic", intercept=True), delta=3.0)
    replicates = problem.replicates
    assert len(replicates) == 16
    assert {float(replicate.delta) for replicate in replicates} == {3.0}
    assert len({float(replicate.rho[0, 0]) for replicate in replicates}) == 16
    again = dmftopt.Problem.from_data(x, y, train_size=40, loss="logistic", intercept=True)
    assert again.data.samples == problem.data.samples and hash(again.data.samples) == hash(problem.data.samples)
    assert [float(a.rho[0, 0]) for a in again.replicates] == [float(a.rho[0, 0]) for a in replicates]
    jax.tree.map(lambda a, b: np.testing.assert_equal(np.shape(a), np.shape(b)), problem, replicates[0])
    grid = dmftopt.TimeGrid.uniform(1.0, 2)

    def predict(problem):
        return dmftopt.limits.online(problem, dmftopt.Protocol(0.5), grid)

    result = dmftopt.with_estimation_error(predict, problem)
    error = np.asarray(result.estimation_error.test_error)
    assert np.all(error[1:] > 0) and np.all(error < 0.3)


def test_a_column_that_clusters_explain():
    """A class itself among the features has no variance within clusters: rounding may leave it negative."""
    x, y = table(1, 200)
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))
    x = np.column_stack([x, 3.0 * y]) @ rotation
    problem = dmftopt.Problem.from_data(x, y, train_size=100, loss="logistic", clusters=1)
    for each in (problem, *problem.replicates):
        assert np.all(np.isfinite(each.features.eigenvalues)) and np.all(np.isfinite(each.rho))


def test_the_number_of_clusters_is_what_data_show():
    rng = np.random.default_rng(3)
    d, number = 10, np.repeat([0, 1], 400)

    def chosen(x):
        return mixtures.chosen_clusters(x, mixtures._projected(x), number)

    plain = rng.normal(size=(800, d))
    assert chosen(plain) == 1
    assert chosen(plain + 8.0 * np.tile([0, 1], 400)[:, None] * np.eye(d)[0]) == 2


def table(seed=0, count=60):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3))
    return x, x[:, 0] + 0.5 * rng.normal(size=count) > 0


def test_frames_and_labels_of_every_kind():
    x, y = table()
    options = {"train_size": 30, "loss": "logistic", "clusters": 1, "groups": 3}
    reference = dmftopt.Problem.from_data(x, y, **options)
    frame = pandas.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2]})
    named = np.where(y, "spam", "ham")
    kinds = {
        ("False", "True"): [y, pandas.Series(y), pandas.Series(y, dtype="boolean"), y.tolist()],
        ("0", "1"): [y.astype(int), pandas.Series(y.astype(int), dtype="Int64")],
        ("3.0", "7.0"): [np.where(y, 7.0, 3.0)],
        ("ham", "spam"): [
            named,
            pandas.Series(named),
            pandas.Series(named).astype("category"),
            named.tolist(),
            named.astype(object),
        ],
    }
    for classes, several in kinds.items():
        for labels in several:
            found = dmftopt.Problem.from_data(frame, labels, **options)
            assert tuple(map(str, found.data.classes)) == classes
            np.testing.assert_array_equal(found.task.labels, reference.task.labels)
            np.testing.assert_allclose(found.rho, reference.rho)
    mixed = frame.assign(b=frame["b"] > 0, c=pandas.Series((10 * x[:, 2]).astype(int), dtype="Int64"))
    plain = np.column_stack([x[:, 0], x[:, 1] > 0, (10 * x[:, 2]).astype(int)])
    one, two = (dmftopt.Problem.from_data(a, x[:, 0] + x[:, 1], train_size=30, groups=3) for a in (mixed, plain))
    np.testing.assert_allclose(one.features.eigenvalues, two.features.eigenvalues)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y: (x.assign(b="blue"), y, {}), "column 'b' must be real numbers, got text"),
        (lambda x, y: (x.assign(b=x["b"].where(x["b"] > 0)), y, {}), "column 'b' holds .* NaN"),
        (lambda x, y: (x.assign(b=pandas.Series([None] + [1] * 59, dtype="Int64")), y, {}), "column 'b' holds 1 NaN"),
        (lambda x, y: (x, y.astype("object").where(y, None), {}), "labels holds .* missing"),
        (lambda x, y: (x, pandas.Series(y, dtype="boolean").where(y), {}), "labels holds .* missing"),
        (lambda x, y: (x, x["a"], {}), "labels must be classes"),
        (lambda x, y: (x, y & False, {}), "all equal"),
        (lambda x, y: (x, y[:50], {}), "labels must have shape"),
        (lambda x, y: (x, [1, "one"] * 30, {}), "classes of one kind"),
        (lambda x, y: (x, np.arange(60) % 3, {}), 'labels has 3 classes. Use loss="softmax"'),
        (lambda x, y: (x, np.arange(60) > 57, {}), "fewer than 4"),
        (lambda x, y: (x.assign(b=1.0), y, {}), "constant columns"),
        (lambda x, y: (x.assign(b=2 * x["a"]), y, {}), "linearly dependent"),
        (lambda x, y: (x, y, {"clusters": 0}), "clusters must be at least 1"),
        (lambda x, y: (x, y, {"train_size": 61}), "train_size must be at most"),
        (lambda x, y: (x, y, {"loss": "hinges"}), "loss must be one of"),
        (lambda x, y: (x, x["a"], {"loss": None, "clusters": 2}), "go with a loss"),
        (lambda x, y: (x[:5], y[:5], {"train_size": 3}), "at least 2 per dimension"),
    ],
)
def test_bad_tables(change, message):
    x, y = table()
    x, y, options = change(pandas.DataFrame(x, columns=["a", "b", "c"]), pandas.Series(y))
    with pytest.raises((ValueError, TypeError), match=message):
        dmftopt.Problem.from_data(x, y, **{"train_size": 30, "loss": "logistic", **options})


def test_softmax_and_its_columns():
    x, y = table(count=90)
    third = np.where(x[:, 1] > 0.7, "third", np.where(y, "first", "second"))
    problem = dmftopt.Problem.from_data(x, third, train_size=45, loss="softmax", clusters=2, groups=3)
    assert problem.data.classes == ("first", "second", "third")
    assert (problem.m, problem.m_star) == (3, 6)
    np.testing.assert_array_equal(problem.task.labels, [0, 0, 1, 1, 2, 2])
    assert problem.initial_overlap.shape == (3, 3) and bool(problem.valid())


def mixture_problem(loss, scales, delta=2.0, classes=2):
    one = np.array([[1, -0.5, 0.3], [-0.5, 1, 0], [0.3, 0, 1]])
    two = np.array([[1, 0.4, -0.3], [0.4, 1, 0.2], [-0.3, 0.2, 1]])
    columns = 1 if classes == 2 else classes
    correlation = np.stack(
        [np.block([[a, np.zeros((3, columns))], [np.zeros((columns, 3)), np.eye(columns)]]) for a in (one, two)]
    )
    features = dmftopt.features.Features(jnp.array([2.0, 0.5]), jnp.array([1 / 3, 2 / 3]))
    labels = LAW if classes == 2 else (0, 1, 2)
    task = tasks.GaussianMixture(labels, WEIGHTS, loss, scales)
    scale = np.array([[1.5, 1.0, 0.7], [2.0, 1.0, 3.0]])
    return dmftopt.Problem(task, features, delta, scale, 0.5, initial_correlation=correlation)


UNIT_SCALES = SCALES / np.sqrt(WEIGHTS @ SCALES**2)
PROTOCOL = dmftopt.Protocol(1.0, 1.0, ridge=0.05)


def numpy_sgd(problem, loss, d, runs, horizon, seed):
    """SGD with replacement on x = mu_c + scale_c N(0, Lambda / d), written out: test loss, 0-1 error, train loss, overlap, mean
    fields at the end, of all runs."""
    n, init, lam = round(float(problem.delta) * d), np.asarray(problem.initial), np.asarray(problem.features.eigenvalues)
    sizes = np.round(np.asarray(problem.features.weights) * d).astype(int)
    member = np.repeat(np.arange(2), sizes)
    value, slope = LOSSES[loss]
    results = []
    for run in range(runs):
        rng = np.random.default_rng(seed + run)
        columns = np.zeros((4, d))
        for a in range(2):
            q, _ = np.linalg.qr(rng.normal(size=(sizes[a], 4)))
            columns[:, member == a] = init[a] @ q.T * np.sqrt(sizes[a])
        mu, theta = columns[:3] * lam[member] / d, columns[3].copy()

        def draw(count, rng=rng, mu=mu):
            cluster = rng.choice(3, size=count, p=WEIGHTS)
            y = np.where(rng.random(count) < LAW[cluster, 1], 1.0, -1.0)
            return mu[cluster] + UNIT_SCALES[cluster, None] * rng.normal(size=(count, d)) * np.sqrt(lam[member] / d), y

        x, y = draw(n)
        for i in rng.integers(n, size=round(horizon * d)):
            theta -= x[i] * slope(x[i] @ theta, y[i]) + 0.05 / d * theta
        x_test, y_test = draw(4000)
        r = x_test @ theta
        error = np.mean(r * y_test < 0)
        results.append([value(r, y_test).mean(), error, value(x @ theta, y).mean(), np.mean(theta**2 * lam[member]), *mu @ theta])
    return np.asarray(results)


@pytest.mark.slow
@pytest.mark.long_run
@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_the_solver_and_simulate_are_sgd_written_out(loss):
    """4 standard errors and 1%, what d = 300 and (hinge: of first order) the time step leave; `simulate.sgd` makes its samples by
    way of x / scale, NumPy does not."""
    problem = mixture_problem(loss, UNIT_SCALES)
    grid = dmftopt.TimeGrid.uniform(3.0, 24)
    options = {"samples": 4096, "replicates": 4, "key": jax.random.key(0), "richardson": loss == "hinge"}
    solution = dmftopt.solve(problem, PROTOCOL, grid, **options)
    simulation = dmftopt.simulate.sgd(
        problem, PROTOCOL, horizon=3.0, dimension=300, runs=64, records=grid.times[::8], key=jax.random.key(1)
    )
    assert dmftopt.compare(solution, simulation, errors="sampling").agrees(sigmas=3.0, relative=0.01)
    found = numpy_sgd(problem, loss, 300, 48, 3.0, 7)
    error = found.std(axis=0, ddof=1) / 48**0.5
    for result in (solution, simulation):
        values = [result.test_risk, result.test_error, result.train_loss, result.student_overlap[:, 0, 0]]
        expected = np.concatenate([[v[-1] for v in values], result.teacher_overlap[-1, 0]])
        assert np.all(np.abs(found.mean(axis=0) - expected) < 4 * error * 2**0.5 + 0.01 * np.abs(expected)), (
            found.mean(axis=0),
            expected,
        )


@pytest.mark.slow
@pytest.mark.parametrize("loss, classes", [("logistic", 2), ("squared", 2), ("hinge", 2), ("softmax", 3)])
def test_the_solver_comes_to_the_online_limit(loss, classes):
    """At delta = 1e5: 4 standard errors, 1e-3 for the time step, and for softmax what 8192 points leave."""
    problem = mixture_problem(loss, UNIT_SCALES, 1e5, classes)
    grid = dmftopt.TimeGrid.uniform(3.0, 48)
    solution = dmftopt.solve(problem, PROTOCOL, grid, samples=16384, replicates=4, key=jax.random.key(3), richardson=True)
    limit = dmftopt.limits.online(problem, PROTOCOL, dmftopt.TimeGrid(solution.times))
    for name in ("test_risk", "student_overlap", "teacher_overlap"):
        found, expected = (np.asarray(getattr(result, name)) for result in (solution, limit))
        error = np.asarray(getattr(solution.standard_error, name))
        assert np.all(np.abs(found - expected) < 4 * error + 2e-3 * np.max(np.abs(expected))), (
            name,
            np.max(np.abs(found - expected)),
        )


def test_a_traced_correlation_of_each_group():
    problem = mixture_problem("logistic", UNIT_SCALES)
    two = dataclasses.replace(problem, initial_correlation=problem.initial_correlation[:1].repeat(2, axis=0))
    same = dataclasses.replace(problem, initial_correlation=problem.initial_correlation[0])
    np.testing.assert_allclose(two.rho, same.rho, atol=1e-12)
    np.testing.assert_allclose(two.initial_overlap, same.initial_overlap, atol=1e-12)

    def valid(correlation):
        return dataclasses.replace(problem, initial_correlation=correlation).valid()

    good = problem.initial_correlation
    assert jax.jit(valid)(good)
    assert not jax.jit(valid)(good.at[1, 0, 1].set(0.9))
    assert not jax.jit(valid)(good.at[1, 0, 1].set(-1.5).at[1, 1, 0].set(-1.5))


def test_roots_of_low_rank_correlations():
    """In float32 too to rounding, in few columns. In the order of the rows, the second, of which less than the tolerance is new,
    would lose 2e-3 of what it shares with the third."""
    columns = np.asarray([[1.0, 0.0], [1.0, 2.4e-3], [0.5, 0.87], [-0.3, 0.2]])
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    with jax.enable_x64(False):
        correlation, drop = jnp.asarray(columns @ columns.T), float(jnp.finfo(jnp.float32).eps) ** 0.75
        root = pivoted_root(correlation, drop)
        np.testing.assert_allclose(root @ root.T, correlation, atol=1e-6)
        np.testing.assert_array_equal(root[:, 2:], 0.0)
        by_rows = triangular_root(correlation, jnp.ones_like(correlation[0]), drop)[0]
        assert np.max(np.abs(by_rows @ by_rows.T - correlation)) > 1e-3
        slopes = jax.grad(lambda c: jnp.sum(pivoted_root(c, drop) @ pivoted_root(c, drop).T))(jnp.eye(3) + 0.5)
        np.testing.assert_allclose(slopes + slopes.T, 2.0, rtol=1e-5)
