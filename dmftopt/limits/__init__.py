"""Exactly solvable limits: ordinary differential equations and fixed points, independent of the solver and of simulations.

- `online`: delta -> infinity, every sample is seen once; any task.
- `least_squares`: any delta, squared loss.
- `online_least_squares`: finite dimension and finite steps, every sample is seen once, squared loss.
- `stationary`: infinite time, gradient flow with ridge; squared and logistic loss.
- `critical_learning_rate`: where SGD on least squares loses stability.
"""

from ._least_squares import critical_learning_rate as critical_learning_rate
from ._least_squares import least_squares as least_squares
from ._online import online as online
from ._online_least_squares import online_least_squares as online_least_squares
from ._result import Limit as Limit
from ._stationary import stationary as stationary
