"""Hyperparameter design: budgets, what is minimized and how, and how sure the answer is."""

from . import objectives as objectives
from ._baselines import baselines as baselines
from ._budget import Budget as Budget
from ._budget import Plan as Plan
from ._budget import Run as Run
from ._certificate import Certificate as Certificate
from ._certificate import certify as certify
from ._fidelity import Difference as Difference
from ._fidelity import Fidelity as Fidelity
from ._fidelity import fidelity as fidelity
from ._objective import Objective as Objective
from ._optimize import Optimized as Optimized
from ._optimize import Score as Score
from ._optimize import optimize as optimize
from ._pareto import pareto as pareto
from ._predict import AbstractPrediction as AbstractPrediction
from ._predict import Exact as Exact
from ._predict import Solve as Solve
from ._report import Estimate as Estimate
from ._report import Report as Report
from ._report import Row as Row
from ._report import realized as realized
from ._report import report as report
from ._sensitivity import Sensitivity as Sensitivity
from ._sensitivity import sensitivity as sensitivity
from ._staged import AbstractObjective as AbstractObjective
