"""What is tuned, and the algorithm: schedules, gradient noise, time."""

from . import averages as averages
from . import noise as noise
from . import schedules as schedules
from . import updates as updates
from . import variables as variables
from ._protocol import Momentum as Momentum
from ._protocol import Protocol as Protocol
from ._protocol import in_domain as in_domain
from ._protocol import values_at as values_at
from ._recipe import Recipe as Recipe
from ._recipe import recipe as recipe
from .grid import TimeGrid as TimeGrid
