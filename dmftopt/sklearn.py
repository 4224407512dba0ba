"""scikit-learn estimators that design their learning-rate schedule before they train: nothing is tuned by training.

    from dmftopt.sklearn import ScheduledSGDClassifier

    model = make_pipeline(StandardScaler(), ScheduledSGDClassifier(budget=3)).fit(X, y)

`fit` estimates the problem that X and y pose (`Problem.from_data`), tunes schedule and ridge against the predicted test risk
under the budget (`dmftopt.advise`), then trains by plain SGD in shuffled epochs, as the recipe says. pip install "dmftopt[data]".
"""

import warnings
from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .answers import advise
from .design import Budget
from .problem import DataWarning, Problem
from .problem.prepared import Independent
from .protocol import Protocol
from .protocol.variables import above
from .simulate import follow, queues
from .tasks.losses import Squared, named

_RIDGE = 0.01


def _validated(estimator: Any, X: Any, y: Any, **options: Any) -> Any:
    return validate_data(estimator, X, y, dtype=np.float64, ensure_min_samples=2, **options)


class _ScheduledSGD(BaseEstimator):
    """What both have in common. Sets `advice_`, `problem_`, `recipe_` and `n_iter_` (steps), None and 0 where nothing varies."""

    budget: Any
    protocol: Any
    among: Any
    steps: int
    random_state: Any

    def _trained(self, x: np.ndarray, labels: np.ndarray, own: Any, columns: int, **of_classes: Any) -> tuple[Any, Any]:
        """Coefficients (column, feature) and intercepts (column,) for raw features, by the loss `own`; or None."""
        coefficients = np.zeros((columns, x.shape[1]))
        self.advice_ = self.problem_ = self.recipe_ = None
        self.n_iter_ = 0
        if np.ptp(labels) == 0:
            return coefficients, None
        centered = x - x.mean(axis=0)
        kept = Independent("X").fit(centered).kept_
        if not kept.size:
            warnings.warn("X has no column that varies: predictions are all alike.", DataWarning, stacklevel=3)
            return coefficients, None
        # Columns of mean square 1, beside which a constant 1 learns as fast as they do. (SGD's rates go with it.)
        unit = 1 / np.sqrt(np.mean(centered[:, kept] ** 2))
        features, random = unit * x[:, kept], check_random_state(self.random_state)
        self.problem_ = problem = Problem.from_data(features, labels, train_size=len(x), **of_classes)
        assert problem.data is not None
        budget = self.budget if isinstance(self.budget, Budget) else Budget(epochs=self.budget)
        protocol = Protocol(1.0, ridge=above(_RIDGE)) if self.protocol is None else self.protocol
        key = jax.random.key(random.randint(2**31 - 1))
        self.advice_ = advise(problem, budget, key=key, protocol=protocol, among=self.among, steps=self.steps, progress=False)
        d, c = problem.data.dimension, problem.data.mean_square_norm
        self.recipe_ = steps = self.advice_.run.recipe(dimension=d, delta=len(x) / d, mean_square_norm=c)
        self.n_iter_ = len(steps)
        seen, targets = problem.centered(features, labels)
        order = queues(np.arange(len(x))[None], steps, True, np.random.default_rng(random.randint(2**31 - 1, size=4)))
        theta = np.asarray(follow(steps, seen, targets, own, order, np.asarray([len(steps)]))[0, 0], dtype=float)
        if not np.all(np.isfinite(theta)):
            raise RuntimeError("SGD on these data became infinite, in theory it does not. Scale X, or lower protocol's rate.")
        coefficients[:, kept] = unit * theta[:, :d]
        constants = theta[:, d] if theta.shape[1] > d else np.zeros(columns)
        return coefficients, constants - theta[:, :d] @ problem.data.feature_center


class ScheduledSGDRegressor(RegressorMixin, _ScheduledSGD):
    """Linear least squares by SGD, on a schedule that is designed for X and y.

    - `budget`: a number of epochs, or a `dmftopt.Budget`.
    - `protocol`: batch size, ridge and the scale of the learning rate, as `dmftopt.advise` takes it; None for batches of one and
      a ridge that is tuned.
    - `among`: the schedules that are tuned, of `dmftopt.advise`: the simplest that is enough is run. `steps`: of tuning, each.
    - `random_state`: of the search and of the order in which samples are seen.

    Fitted: `coef_` (features,), `intercept_`, `advice_` (print it for the predicted test risk, half a mean squared error),
    `problem_`, `recipe_`, `n_iter_` (steps). Columns that are constant or linear in those before them get no weight. Scale X
    first: SGD learns large columns faster.

    Raises ValueError for fewer samples than 1.2 a column and 2 more; RuntimeError where SGD becomes infinite.
    """

    def __init__(self, budget=3.0, *, protocol=None, among=("linear decay",), steps=20, random_state=None):
        self.budget = budget
        self.protocol = protocol
        self.among = among
        self.steps = steps
        self.random_state = random_state

    def fit(self, X, y):
        X, y = _validated(self, X, y, y_numeric=True)
        y = np.asarray(y, dtype=np.float64)
        coefficients, constants = self._trained(X, y, Squared(), 1)
        self.coef_ = coefficients[0]
        self.intercept_ = float(y.mean() + (0.0 if constants is None else constants[0]))
        return self

    def predict(self, X):
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float64, reset=False) @ self.coef_ + self.intercept_


def _has_probabilities(estimator: Any) -> bool:
    return estimator.loss in (None, "logistic", "softmax")


class ScheduledSGDClassifier(ClassifierMixin, _ScheduledSGD):
    """A linear classifier by SGD, on a schedule that is designed for X and y.

    - `loss`: "logistic", "squared hinge", "hinge", "squared", ... for two classes, "softmax" for more, or two; None for
      "logistic" or "softmax". Or an object of `dmftopt.tasks.losses`.
    - `fit_intercept`: whether a constant is trained beside the weights (of the same ridge). Without it nothing learns how
      frequent classes are.
    - `clusters`: in each class, of the mixture that stands in for X, see `Problem.from_data`; None for what is likeliest.
    - `budget`, `protocol`, `among`, `steps`, `random_state`: as in `ScheduledSGDRegressor`.

    Fitted: `classes_`, `coef_` (1 or classes, features), `intercept_` (1 or classes,), and as there `advice_` (the predicted test
    loss), `problem_`, `recipe_`, `n_iter_`.

    Raises ValueError for a class of fewer than 4 samples and for fewer samples than 2 a column; RuntimeError where SGD becomes
    infinite.
    """

    def __init__(
        self,
        budget=3.0,
        *,
        loss=None,
        fit_intercept=True,
        clusters=None,
        protocol=None,
        among=("linear decay",),
        steps=20,
        random_state=None,
    ):
        self.budget = budget
        self.loss = loss
        self.fit_intercept = fit_intercept
        self.clusters = clusters
        self.protocol = protocol
        self.among = among
        self.steps = steps
        self.random_state = random_state

    def fit(self, X, y):
        X, y = _validated(self, X, y)
        check_classification_targets(y)
        self.classes_, number = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has 1 class only, {self.classes_[0]!r}: there is nothing to learn. Check y.")
        loss = named(("logistic" if len(self.classes_) == 2 else "softmax") if self.loss is None else self.loss)
        columns = len(self.classes_) if loss.per_class else 1
        coefficients, constants = self._trained(
            X, number, loss, columns, loss=loss, clusters=self.clusters, intercept=self.fit_intercept
        )
        if constants is None:
            # Nothing tells samples apart but how frequent classes are.
            shares = np.log(np.bincount(number) / len(number))
            constants = shares if loss.per_class else shares[1:] - shares[:1]
        self.coef_, self.intercept_ = coefficients, constants
        return self

    def decision_function(self, X):
        """(samples,), positive for `classes_[1]`; or scores of all classes."""
        check_is_fitted(self)
        scores = validate_data(self, X, dtype=np.float64, reset=False) @ self.coef_.T + self.intercept_
        if len(self.classes_) > 2:
            return scores
        return scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0]

    def predict(self, X):
        scores = self.decision_function(X)
        return self.classes_[np.argmax(scores, axis=1) if scores.ndim == 2 else (scores > 0).astype(int)]

    @available_if(_has_probabilities)
    def predict_proba(self, X):
        """Of "logistic" and "softmax"."""
        scores = self.decision_function(X)
        scores = scores if scores.ndim == 2 else np.stack([np.zeros_like(scores), scores], axis=1)
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)
