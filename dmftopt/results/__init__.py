"""What comes out: observables, metrics, how a computation ended, files and plots."""

from . import metrics as metrics
from . import plot as plot
from . import storage as storage
from ._averaged import Averaged as Averaged
from ._averaged import averaged as averaged
from ._compare import Comparison as Comparison
from ._compare import compare as compare
from ._estimation import estimation_error as estimation_error
from ._estimation import with_estimation_error as with_estimation_error
from .codes import RESULTS as RESULTS
from .codes import SolveError as SolveError
from .observables import AbstractResult as AbstractResult
from .observables import Observables as Observables
