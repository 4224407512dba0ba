"""The solver: `solve` and what goes into and comes out of it."""

from ._adjoint import AbstractAdjoint as AbstractAdjoint
from ._adjoint import DirectAdjoint as DirectAdjoint
from ._adjoint import WriteOnceAdjoint as WriteOnceAdjoint
from ._causal import CausalInnovations as CausalInnovations
from ._causal import enough_samples as enough_samples
from ._fixed_point import FixedPoint as FixedPoint
from ._solution import Solution as Solution
from ._solve import solve as solve
from ._solver import AbstractSolver as AbstractSolver
from ._solver import Curvature as Curvature
from ._solver import Inputs as Inputs
from ._solver import Outcome as Outcome
from ._solver import Sizes as Sizes
from ._solver import configured as configured
from ._step import AbstractStep as AbstractStep
from ._step import DiscreteStep as DiscreteStep
from ._step import ExponentialStep as ExponentialStep
from ._step import Factors as Factors
