"""dmftopt: exact high-dimensional predictions of SGD's risk, fast and differentiable, to tune its hyperparameters."""

from . import features as features
from . import limits as limits
from . import noise as noise
from . import plot as plot
from . import schedules as schedules
from . import simulate as simulate
from . import tasks as tasks
from .compare import Comparison as Comparison
from .compare import compare as compare
from .dmft import RESULTS as RESULTS
from .dmft import CausalInnovations as CausalInnovations
from .dmft import DiscreteStep as DiscreteStep
from .dmft import ExponentialStep as ExponentialStep
from .dmft import FixedPoint as FixedPoint
from .dmft import Solution as Solution
from .dmft import SolveError as SolveError
from .dmft import solve as solve
from .grid import TimeGrid as TimeGrid
from .observables import Observables as Observables
from .optimize import Optimized as Optimized
from .optimize import baselines as baselines
from .optimize import optimize as optimize
from .problem import Problem as Problem
from .protocol import Protocol as Protocol
from .storage import load as load
from .storage import save as save
