"""What is learned: the loss and the law of the labels."""

from ._base import AbstractTask as AbstractTask
from ._committee import Committee as Committee
from ._least_squares import LeastSquares as LeastSquares
from ._logistic import Logistic as Logistic
from ._mixture import GaussianMixture as GaussianMixture
from ._softmax import Softmax as Softmax
