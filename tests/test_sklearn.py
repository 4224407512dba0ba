"""Estimators that design their schedule: scikit-learn's own checks, what they learn, what they refuse."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

import dmftopt
from dmftopt.sklearn import ScheduledSGDClassifier, ScheduledSGDRegressor


def regression(samples, d, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, d)) * np.linspace(0.5, 1.5, d) + 3.0
    return x, 2.0 + x @ rng.normal(size=d) + 0.5 * rng.normal(size=samples)


def classes(samples, d, count, seed, shares=None):
    rng = np.random.default_rng(seed)
    number = rng.choice(count, size=samples, p=shares)
    return rng.normal(size=(samples, d)) + (2.5 * rng.normal(size=(count, d)) / d**0.5)[number], np.asarray(list("uvw"))[number]


class Constant:
    """In place of what `advise` finds."""

    def __init__(self, rate, ridge, epochs):
        self.run, self.rate, self.ridge, self.epochs = self, rate, ridge, epochs

    def recipe(self, *, dimension, delta, mean_square_norm):
        protocol = dmftopt.Protocol(self.rate, ridge=self.ridge)
        return dmftopt.recipe(
            protocol, horizon=self.epochs * delta, dimension=dimension, delta=delta, mean_square_norm=mean_square_norm
        )


def test_what_is_trained_is_for_raw_features(monkeypatch):
    """Many epochs at a small rate come to the minimum over the columns that are kept, intercept included."""
    x, y = regression(60, 4, 0)
    wide = np.concatenate([x, np.ones((60, 1)), x[:, :1] - x[:, 1:2]], axis=1)  # constant, dependent
    monkeypatch.setattr("dmftopt.sklearn.advise", lambda *_, **__: Constant(0.02, 0.0, 400.0))
    model, best = ScheduledSGDRegressor(random_state=0).fit(wide, y), LinearRegression().fit(x, y)
    assert model.n_iter_ == 24000 and model.n_features_in_ == 6 and np.all(model.coef_[4:] == 0)
    np.testing.assert_allclose(model.coef_[:4], best.coef_, atol=0.02)
    assert model.intercept_ == pytest.approx(best.intercept_, abs=0.1)

    # The penalty: ridge / 2 of the squared weights, over so many samples, of columns in units of `unit` (which C undoes).
    x, labels = classes(80, 4, 2, 0, [0.3, 0.7])
    monkeypatch.setattr("dmftopt.sklearn.advise", lambda *_, **__: Constant(0.05, 0.5, 200.0))
    model = ScheduledSGDClassifier(clusters=1, random_state=0).fit(x, labels)
    unit = 1 / np.sqrt(np.mean((x - x.mean(axis=0)) ** 2))
    scaled = np.append(unit * (x - x.mean(axis=0)), np.ones((80, 1)), axis=1)
    decay = 0.5 * model.problem_.data.mean_square_norm / 4
    best = LogisticRegression(C=1 / (80 * decay), fit_intercept=False, tol=1e-8).fit(scaled, labels)
    np.testing.assert_allclose(model.decision_function(x), scaled @ best.coef_[0], atol=0.1)
    assert list(model.predict(x)) == list(np.where(model.decision_function(x) > 0, "v", "u"))


@pytest.mark.slow
def test_a_regression():
    x, y = regression(4240, 12, 0)
    model = ScheduledSGDRegressor(budget=4.0, steps=2, random_state=0).fit(x[:240], y[:240])
    assert model.n_iter_ == len(model.recipe_) == 960
    # Of one run, on a training set of which the estimate knows as much.
    risk, row = np.mean((model.predict(x[240:]) - y[240:]) ** 2) / 2, model.advice_.ranked["linear decay"]
    assert abs(risk - row.risk) < row.risk_error + 0.15 * row.risk
    again = ScheduledSGDRegressor(budget=4.0, steps=2, random_state=0).fit(x[:240], y[:240])
    np.testing.assert_array_equal(again.coef_, model.coef_)


def test_where_there_is_nothing_to_learn():
    x, y = regression(20, 3, 0)
    model = ScheduledSGDRegressor().fit(x, np.full(20, 7.0))
    assert np.all(model.predict(x) == 7.0) and model.advice_ is None
    with pytest.warns(dmftopt.DataWarning, match="X has no column that varies"):
        flat = ScheduledSGDRegressor().fit(np.ones((20, 2)), y)
    np.testing.assert_allclose(flat.predict(x[:, :2]), y.mean())
    with pytest.warns(dmftopt.DataWarning, match="X has no column that varies"):
        shares = ScheduledSGDClassifier().fit(np.ones((20, 2)), np.arange(20) % 4 == 0).predict_proba(np.zeros((1, 2)))
    np.testing.assert_allclose(shares, [[0.75, 0.25]])


BAD = {
    "one class": (ScheduledSGDClassifier(), np.zeros(20), "y has 1 class only"),
    "numbers for classes": (ScheduledSGDClassifier(), np.linspace(0, 1, 20), "continuous"),
    "three classes for a loss of two": (ScheduledSGDClassifier(loss="logistic"), np.arange(20) % 3, 'Use loss="softmax"'),
    "rare class": (ScheduledSGDClassifier(), np.arange(20) < 2, "has fewer than 4 samples"),
    "loss": (ScheduledSGDClassifier(loss="log"), np.arange(20) % 2, "loss must be one of"),
    "schedule": (ScheduledSGDRegressor(among=("linear",)), np.arange(20.0), "among must be one of"),
    "budget": (ScheduledSGDRegressor(budget=-1.0), np.arange(20.0), "epochs must be > 0"),
    "schedule for a rate": (
        ScheduledSGDRegressor(protocol=dmftopt.Protocol(dmftopt.schedules.linear_decay(1.0, 1.0))),
        np.arange(20.0),
        "protocol: its learning rate must be a number",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    model, y, match = BAD[name]
    with pytest.raises((ValueError, TypeError), match=match):
        model.fit(np.random.default_rng(0).normal(size=(20, 3)), y)


def test_too_few_samples():
    with pytest.raises(ValueError, match="X has 8 samples and 8 columns"):
        ScheduledSGDRegressor().fit(np.random.default_rng(0).normal(size=(8, 8)), np.arange(8.0))


@pytest.mark.slow
@pytest.mark.parametrize("loss, count", [(None, 2), ("squared hinge", 2), (None, 3)])
def test_classification(loss, count):
    """As good as logistic regression on fresh samples, and the loss as predicted, of one run."""
    x, y = classes(400, 20, count, 0, [0.3, 0.7] if count == 2 else None)
    model = ScheduledSGDClassifier(budget=4.0, loss=loss, steps=10, random_state=0).fit(x[:200], y[:200])
    assert model.coef_.shape == ((1 if count == 2 else 3), 20) and list(model.classes_) == list("uvw"[:count])
    reference = LogisticRegression().fit(x[:200], y[:200])
    assert model.score(x[200:], y[200:]) > reference.score(x[200:], y[200:]) - 0.03
    if loss is None:
        chance = model.predict_proba(x[200:])[np.arange(200), np.searchsorted(model.classes_, y[200:])]
        row = model.advice_.ranked["linear decay"]
        assert abs(-np.mean(np.log(chance)) - row.risk) < row.risk_error + 0.3 * row.risk
    else:
        assert not hasattr(model, "predict_proba")


def test_many_epochs_take_more_samples():
    """By default; 2048 are too few for the 240 steps of 60 epochs, which an objective used to refuse."""
    x, y = regression(300, 8, 1)
    problem = dmftopt.Problem.from_data(x, y, train_size=300)
    few, many = (dmftopt.Objective(problem, dmftopt.Budget(epochs=n)) for n in (3.0, 60.0))
    assert few.predict.solver.samples == 2048 and few.grid.steps == 24
    assert many.predict.solver.samples == 4096 and many.grid.steps == 240


def not_for_theory(estimator):
    """What it refuses, with a cure, where scikit-learn's check would have it learn."""
    if isinstance(estimator, ScheduledSGDRegressor):
        return {}
    return {
        "check_fit2d_1feature": "ten samples of three classes: one of them has fewer than four",
        "check_classifiers_classes": "classes 12 deviations apart: an intercept beside them is not resolved by the theory",
    }


@pytest.mark.slow
@parametrize_with_checks(
    [ScheduledSGDRegressor(budget=2.0, steps=1), ScheduledSGDClassifier(budget=2.0, steps=1)],
    expected_failed_checks=not_for_theory,
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)
