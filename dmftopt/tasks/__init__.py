"""What is learned: the loss (`losses`) and the law of the labels (`labels`)."""

from . import labels as labels
from . import losses as losses
from ._base import AbstractTask as AbstractTask
from ._classification import AbstractClassification as AbstractClassification
from ._classification import Hinge as Hinge
from ._classification import Logistic as Logistic
from ._classification import Perceptron as Perceptron
from ._classification import Probit as Probit
from ._classification import SquaredHinge as SquaredHinge
from ._committee import Committee as Committee
from ._mixture import GaussianMixture as GaussianMixture
from ._poisson import PoissonRegression as PoissonRegression
from ._regression import AbstractRobust as AbstractRobust
from ._regression import Huber as Huber
from ._regression import LeastAbsolute as LeastAbsolute
from ._regression import LeastSquares as LeastSquares
from ._regression import LogCosh as LogCosh
from ._regression import PhaseRetrieval as PhaseRetrieval
from ._softmax import Softmax as Softmax
from ._updated import Updated as Updated
