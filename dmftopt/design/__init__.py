"""Hyperparameter design: budgets, what is minimized, and how sure the answer is."""

from . import objectives as objectives
from ._budget import Budget as Budget
from ._budget import Plan as Plan
from ._budget import Run as Run
from ._objective import Objective as Objective
from ._pareto import pareto as pareto
from ._predict import AbstractPrediction as AbstractPrediction
from ._predict import Exact as Exact
from ._predict import Solve as Solve
from ._report import Report as Report
from ._report import realized as realized
from ._report import report as report
from ._sensitivity import Sensitivity as Sensitivity
from ._sensitivity import sensitivity as sensitivity
