"""Minimize a scalar function of a protocol. Nothing here knows how that function is computed."""

from ._baselines import baselines as baselines
from ._optimize import Optimized as Optimized
from ._optimize import Score as Score
from ._optimize import optimize as optimize
