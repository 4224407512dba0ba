"""Stochastic modified flows: the diffusions that follow SGD at a finite learning rate, simulated beside SGD itself.

Gess, Kassing & Konarovskyi, "Stochastic modified flows, mean-field limits and dynamics of stochastic gradient descent",
JMLR 2024, arXiv:2302.07125; for modified equations Li, Tai & E, JMLR 2019, arXiv:1811.01558.
"""

from ._dynamics import SGD as SGD
from ._dynamics import AbstractDynamics as AbstractDynamics
from ._dynamics import AbstractFlow as AbstractFlow
from ._dynamics import ModifiedEquation as ModifiedEquation
from ._dynamics import ModifiedFlow as ModifiedFlow
from ._dynamics import Rates as Rates
from ._ensemble import Ensemble as Ensemble
from ._ensemble import Estimate as Estimate
from ._model import AbstractModel as AbstractModel
from ._model import MeanField as MeanField
from ._model import Model as Model
from ._simulate import simulate as simulate
from ._solver import Splitting as Splitting
