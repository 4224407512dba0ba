"""Minimize a scalar function of a protocol. Nothing here knows how that function is computed."""

from ._baselines import baselines as baselines
from ._certificate import Certificate as Certificate
from ._certificate import certify as certify
from ._optimize import Optimized as Optimized
from ._optimize import Score as Score
from ._optimize import optimize as optimize
from ._staged import AbstractObjective as AbstractObjective
