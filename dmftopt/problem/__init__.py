"""What is learned: the problem, its features and the laws of its weights. (Loss and labels: `dmftopt.tasks`.)"""

from . import features as features
from . import parametrizations as parametrizations
from . import priors as priors
from . import regularizers as regularizers
from ._data import DataMap as DataMap
from ._prepare import DataWarning as DataWarning
from ._prepare import prepare as prepare
from ._problem import Problem as Problem
from ._problem import check_basis as check_basis
from ._problem import check_direct as check_direct
from ._problem import check_linear as check_linear
from ._problem import check_problem as check_problem
from ._problem import check_single as check_single
from ._problem import group_gains as group_gains
from ._problem import updated as updated
