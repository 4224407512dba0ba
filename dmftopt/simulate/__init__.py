"""Finite-size simulations of what the theory predicts, from the same Problem and Protocol, with the same observables."""

from ._follow import follow as follow
from ._follow import queues as queues
from ._response import response as response
from ._result import Response as Response
from ._result import Simulation as Simulation
from ._runs import gradient_descent as gradient_descent
from ._runs import sgd as sgd
from ._runs import sgf as sgf
