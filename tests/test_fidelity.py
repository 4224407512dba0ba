"""`fidelity`: SGD on data, on their Gaussian surrogate, and the theory, where it is known whether they must agree."""

import jax
import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot

import dmftopt
from dmftopt.design import Fidelity
from dmftopt.tasks.losses import named

matplotlib.use("agg")
KEY = jax.random.key(1)
TIMES = np.asarray([0.0, 1.0, 2.0])
FOUND = Fidelity(
    times=TIMES,
    theory=np.asarray([1.0, 0.5, 0.2]),
    theory_error=np.asarray([0.0, 0.0, 0.003]),
    estimation_error=np.asarray([0.1, 0.05, 0.012]),
    surrogate=np.asarray([1.0, 0.5, 0.21]),
    surrogate_error=np.asarray([0.0, 0.01, 0.004]),
    real=np.asarray([1.1, 0.6, 0.3]),
    real_error=np.asarray([0.1, 0.02, 0.003]),
    dimension=50,
    train_size=100,
    splits=20,
    diverged=0,
)


def gaussian(samples, d, seed, spread=0.0):
    """A power-law spectrum; with a `spread` each sample has a log-normal length of its own, and the same second moments."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, d)) * np.arange(1, d + 1) ** -0.4
    x = x * np.exp(spread * rng.normal(size=(samples, 1)) - spread**2)
    return x, 3 * x @ rng.normal(size=d) / d**0.5 + 0.4 * rng.normal(size=samples)


def test_where_differences_come_from(tmp_path):
    found = FOUND.differences
    np.testing.assert_allclose(found["finite d"], (0.01, 0.005))
    np.testing.assert_allclose(found["not Gaussian"], (0.09, 0.013))
    np.testing.assert_allclose(found["in all"], (0.1, np.sqrt(0.003**2 + 0.003**2 + 0.012**2)))
    assert found["finite d"].sigmas == pytest.approx(2.0)
    printed = str(FOUND)
    for said in ("real data                            0.3 ± 0.003", "+5.0% ± 4.9%  (+2.0 standard errors)", "0.0% ± 11.8%"):
        assert said in printed
    assert "diverged" not in printed
    dmftopt.save(tmp_path / "found.npz", FOUND)
    assert str(dmftopt.load(tmp_path / "found.npz")) == printed


def test_the_figure():
    axes = dmftopt.plot.fidelity(FOUND)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), FOUND.theory)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "theory",
        "SGD on surrogate data, d = 50",
        "SGD on the data",
    ]
    pyplot.close("all")


X, Y = gaussian(40, 4, 0)
BAD = {
    "no samples to test on": ({"train_size": 40}, ValueError, "train_size must leave samples to test on, got 40 of 40"),
    "one split": ({"splits": 1}, ValueError, "splits must be at least 2"),
    "order": ({"order": "fixed"}, ValueError, "order must be one of"),
    "momentum": ({"protocol": dmftopt.Protocol(0.5, momentum=0.9)}, ValueError, "protocol: fidelity takes plain SGD"),
    "no protocol": ({"protocol": 0.5}, TypeError, "protocol must be a Protocol"),
    "intercept": ({"intercept": True, "loss": "logistic"}, ValueError, "intercept: the surrogate has no constant"),
    "no epochs": ({"epochs": 0.0}, ValueError, "epochs must be > 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    changes, error, match = BAD[name]
    arguments = {"protocol": dmftopt.Protocol(0.5), "train_size": 20, "epochs": 1.0, "key": KEY} | changes
    with pytest.raises(error, match=match):
        dmftopt.fidelity(X, Y, **arguments)


def clusters(samples, d, seed, classes=2):
    """Classes that are one Gaussian cluster each."""
    rng = np.random.default_rng(seed)
    number, means = rng.integers(classes, size=samples), 1.8 * rng.normal(size=(classes, d)) / d**0.5
    return rng.normal(size=(samples, d)) * np.arange(1, d + 1) ** -0.2 + means[number], np.asarray(list("abc"))[number]


def by_numpy(steps, x, y, queue, slope, theta):
    """Plain SGD through this queue of samples."""
    start = 0
    for rate, size, decay in zip(steps.learning_rate, steps.batch_size, steps.weight_decay, strict=True):
        seen = queue[start : start + size]
        start += size
        theta = theta - rate * (slope(x[seen] @ theta.T, y[seen]).T @ x[seen] / size + decay * theta)
    return theta


@pytest.mark.parametrize("order", ["replacement", "shuffled"])
@pytest.mark.parametrize("loss", ["logistic", "softmax"])
def test_sgd_on_data_follows_the_recipe(loss, order):
    x, labels = clusters(90, 5, 0, 3 if loss == "softmax" else 2)
    y = np.unique(labels, return_inverse=True)[1] * 1.0
    protocol = dmftopt.Protocol(
        dmftopt.schedules.linear_decay(1.0, 9.0), dmftopt.schedules.piecewise_linear(9.0, 2, lambda t: 1 + t), ridge=0.2
    )
    steps = dmftopt.recipe(protocol, horizon=9.0, dimension=5, delta=4.0, mean_square_norm=3.0)
    rows = np.stack([np.arange(20), np.arange(20, 40)])
    queue = dmftopt.simulate.queues(rows, steps, order == "shuffled", np.random.default_rng(1))
    at = np.asarray([0, 7, len(steps)])
    if loss == "softmax":
        one_hot = np.eye(3)

        def slope(r, label):
            return np.exp(r) / np.exp(r).sum(axis=1, keepdims=True) - one_hot[label.astype(int)]

    else:
        y = 2 * y - 1

        def slope(r, label):
            return -label[:, None] / (1 + np.exp(label[:, None] * r))

    found = np.asarray(dmftopt.simulate.follow(steps, x, y, named(loss), queue, at))
    assert found.shape == (3, 2, 3 if loss == "softmax" else 1, 5) and steps.batch_size.max() > 5
    assert np.all(found[0] == 0)
    for run in range(2):
        np.testing.assert_allclose(found[2, run], by_numpy(steps, x, y, queue[run], slope, found[0, run]), rtol=1e-4, atol=1e-6)
        if order == "shuffled":
            assert set(queue[run, :20]) == set(queue[run, 20:40]) == set(rows[run])


@pytest.mark.slow
@pytest.mark.long_run
@pytest.mark.parametrize("loss, order", [("logistic", "replacement"), ("squared hinge", "shuffled"), ("softmax", "shuffled")])
def test_clusters_agree(loss, order):
    """On data that are what theory takes them for, as below."""
    x, y = clusters(1200, 60, 0)
    protocol = dmftopt.Protocol(dmftopt.schedules.linear_decay(0.8, 8.0), ridge=0.1)
    found = dmftopt.fidelity(x, y, protocol, train_size=240, epochs=2.0, order=order, records=8, key=KEY, loss=loss)
    print(found)
    errors = found.of_test_error
    assert errors is not None and found.quantity == "test risk" and errors.quantity == "test error"
    for each in (found, errors):
        assert all(abs(difference.sigmas) < 3 for difference in each.differences.values())
        combined = np.sqrt(each.real_error**2 + each.estimation_error**2 + each.theory_error**2)
        assert np.all(np.abs(each.real - each.theory) < 3 * combined + 1e-6)
        assert each.real[-1] < 0.7 * each.real[0]
    assert "final test error, d = 60" in str(found)


@pytest.mark.slow
@pytest.mark.long_run
@pytest.mark.parametrize("order", ["replacement", "shuffled"])
def test_gaussian_data_agree(order):
    """On data that are what theory takes them for, differences are within three standard errors, at every recorded time; in one
    of 300 cases each is not. (With replacement, d = 60, over 16 data sets: "finite d" +0.1 on average, with a standard deviation
    of 1.0; "not Gaussian" +0.1 and 0.5, as its error is overstated.)"""
    x, y = gaussian(900, 100, 0)
    protocol = dmftopt.Protocol(dmftopt.schedules.linear_decay(0.8, 6.0), ridge=0.05)
    found = dmftopt.fidelity(x, y, protocol, train_size=300, epochs=2.0, order=order, records=8, key=KEY)
    print(found)
    assert found.diverged == 0 and found.times[-1] == pytest.approx(6.0)
    assert all(abs(difference.sigmas) < 3 for difference in found.differences.values())
    error = np.sqrt(found.real_error**2 + found.estimation_error**2 + found.theory_error**2)
    assert np.all(np.abs(found.real - found.theory) < 3 * error)
    assert found.real[-1] < 0.7 * found.real[0]


@pytest.mark.slow
@pytest.mark.long_run
def test_heavy_tails_show():
    """Tukey's contaminated normal law: one sample in five has 4.2 times the mean square length, the others 0.2 times, so that
    E |x|⁴ is 3.6 times that of Gaussian data (and a step at this rate, 0.3 * 4.2 < 2, is stable still). The surrogate agrees with
    the theory, real SGD must not."""
    x, y = gaussian(6000, 60, 0)
    noise = y - np.linalg.lstsq(x, y, rcond=None)[0] @ x.T
    length = np.where(np.random.default_rng(1).random(6000) < 0.2, 4.2, 0.2)[:, None] ** 0.5
    found = dmftopt.fidelity(
        length * x, length[:, 0] * (y - noise) + noise, dmftopt.Protocol(0.3), train_size=240, epochs=2.0, records=8, key=KEY
    )
    print(found)
    assert found.diverged == 0 and abs(found.differences["finite d"].sigmas) < 3
    assert found.differences["not Gaussian"].sigmas > 3 and found.differences["in all"].sigmas > 3


@pytest.mark.slow
@pytest.mark.long_run
def test_divergence_of_real_sgd_alone_is_said():
    """Spread 0.9 and a rate at which theory is stable: long samples make real SGD leap away."""
    x, y = gaussian(900, 60, 0, spread=0.9)
    found = dmftopt.fidelity(x, y, dmftopt.Protocol(0.7), train_size=240, epochs=2.0, records=8, key=KEY)
    assert found.diverged > 0 and f"SGD diverged on {found.diverged} of 20 splits" in str(found)


@pytest.mark.slow
@pytest.mark.long_run
def test_the_digits():
    """tanh features of the digits, odd against even, in epochs: experiments/01 found real SGD 3% above the prediction."""
    from experiments.shared import data

    x, y = data.digits(200, 0)
    found = dmftopt.fidelity(x, y, dmftopt.Protocol(0.1), train_size=400, epochs=2.0, order="shuffled", key=KEY)
    print(found)
    assert found.diverged == 0
    assert abs(found.real[-1] / found.theory[-1] - 1) < 0.1
