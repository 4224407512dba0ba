"""The solver: `solve` and what goes into and comes out of it."""

from ._causal import CausalInnovations as CausalInnovations
from ._fixed_point import FixedPoint as FixedPoint
from ._solution import Solution as Solution
from ._solve import solve as solve
from ._solver import AbstractSolver as AbstractSolver
from ._step import AbstractStep as AbstractStep
from ._step import DiscreteStep as DiscreteStep
from ._step import ExponentialStep as ExponentialStep
