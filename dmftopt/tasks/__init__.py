"""What is learned: the loss and the law of the labels."""

from ._base import AbstractTask as AbstractTask
from ._classification import AbstractClassification as AbstractClassification
from ._committee import Committee as Committee
from ._hinge import Hinge as Hinge
from ._hinge import Perceptron as Perceptron
from ._hinge import SquaredHinge as SquaredHinge
from ._least_squares import LeastSquares as LeastSquares
from ._logistic import Logistic as Logistic
from ._logistic import Probit as Probit
from ._mixture import GaussianMixture as GaussianMixture
from ._phase_retrieval import PhaseRetrieval as PhaseRetrieval
from ._poisson import PoissonRegression as PoissonRegression
from ._robust import AbstractRobust as AbstractRobust
from ._robust import Huber as Huber
from ._robust import LeastAbsolute as LeastAbsolute
from ._robust import LogCosh as LogCosh
from ._softmax import Softmax as Softmax
