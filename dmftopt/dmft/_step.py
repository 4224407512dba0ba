"""How one time step moves the weights."""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..grid import TimeGrid


class AbstractStep(eqx.Module):
    """`continuous`: the step approximates continuous time (and gets better when halved), or is the algorithm itself."""

    continuous: ClassVar[bool]

    @abc.abstractmethod
    def evaluation_times(self, grid: TimeGrid) -> Float[Array, " step"]:
        """Times at which the protocol is read, one per step."""

    @abc.abstractmethod
    def factors(self, x: Float[Array, " group"], feedback: Float[Array, " group"]) -> tuple[Array, Array]:
        """Factors of the drift and of the noise of one step, given decay rate times step x of each eigenvalue group.
        `feedback`: half the largest ratio of sample to population curvature there, or 1 if that is larger."""


class ExponentialStep(AbstractStep):
    """Continuous time, first order. With x = D eta (lambda E[l'] + ridge) the drift is multiplied by (1 - e^-x)/x and the
    noise by sqrt((1 - e^-2x)/(2x)): exact for one linear mode with noise (Ornstein-Uhlenbeck) in the online limit. The
    protocol is read at the middle of each step.

    On a finite training set the sample curvature exceeds the population's, up to (1 + 1/sqrt(delta))² times on isotropic
    features, and a coarse step would overshoot along those modes without bound. So in the drift x grows to c x, c half that
    ratio, as c x passes 1 (x > 0): a change of third order in the step, negligible where the step is fine."""

    continuous: ClassVar[bool] = True

    def evaluation_times(self, grid):
        return 0.5 * (grid.times[1:] + grid.times[:-1])

    def factors(self, x, feedback):
        damped = jnp.where(x > 0, x, 0.0)
        damped = jnp.minimum(x, 0.0) + damped * (1 - (feedback - 1) * jnp.expm1(-((feedback * damped) ** 2)))
        return _phi(damped), jnp.sqrt(_phi(2 * x))


class DiscreteStep(AbstractStep):
    """The update itself, no approximation: full-batch gradient descent (NoNoise) or SGD with extensive batches (Bernoulli),
    one update per grid step, learning rate `step * learning_rate`. The protocol is read at the start of each step.
    (With Brownian or Poisson noise this is plain Euler stepping of the continuous-time equations.)"""

    continuous: ClassVar[bool] = False

    def evaluation_times(self, grid):
        return grid.times[:-1]

    def factors(self, x, feedback):
        return jnp.ones_like(x), jnp.ones_like(x)


def _phi(x):
    """(1 - e^-x) / x, analytic at 0."""
    small = jnp.abs(x) < 1e-4
    safe = jnp.where(small, 1.0, x)
    return jnp.where(small, 1 - x / 2 + x**2 / 6, -jnp.expm1(-safe) / safe)
