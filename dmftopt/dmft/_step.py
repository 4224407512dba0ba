"""How one time step moves the weights."""

import abc
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..numerics.quadrature import GAUSS_NODES, GAUSS_WEIGHTS

# Nodes cos(angle) and weights of the semicircle law (Gauss and Chebyshev's rule of the second kind).
_ANGLES = np.arange(1, 9) * np.pi / 9
_SEMICIRCLE = np.stack([np.cos(_ANGLES), 2 / 9 * np.sin(_ANGLES) ** 2])


class Factors(NamedTuple):
    """Of one step, for each eigenvalue group and each eigenvalue of the curvature (or the matrices over the columns made of
    these): what multiplies the drift, the swing, and the change of the drift since the last step, equation (13)."""

    drift: Float[Array, "group *m"]
    swing: Float[Array, "group *m"]
    change: Float[Array, "group *m"]


class AbstractStep(eqx.Module):
    """How one time step moves the weights. Your own needs the two methods and, as class variables:

    - `continuous`: the step approximates continuous time (and gets better when halved), or is the algorithm itself.
    - `order`: power of the step with which its error vanishes. From 2 on Milstein's term (8) is part of the swing.
    - `nodes`, `node_weights`: where in a step (0 to 1) the protocol is read, and how the values are averaged.
    """

    continuous: ClassVar[bool]
    order: ClassVar[int]
    nodes: ClassVar[tuple[float, ...]]
    node_weights: ClassVar[tuple[float, ...]]

    @abc.abstractmethod
    def ahead(self, now: Array, last: Array, ratio: Array) -> Array:
        """A slowly varying coefficient as this step should use it, from its values at the start of this step and of the one
        before, equation (12); `ratio`: this step over the last, 0 for the first."""

    @abc.abstractmethod
    def factors(
        self, x: Float[Array, "group m"], ratio: Float[Array, "..."], curvature_ratio: Float[Array, "group 1"]
    ) -> Factors:
        """`x`: decay rate times step, of each eigenvalue group and eigenvalue of the curvature, equation (11); `ratio` as above;
        `curvature_ratio`: largest ratio of sample to population curvature in the group. Elementwise in x."""


class ExponentialStep(AbstractStep):
    """Continuous time, second order: exponential Adams-Bashforth, equations (11) to (14).

    With x = D eta (lambda E[l'] + ridge) the drift is x theta and a rest that varies slowly. The linear part is stepped
    exactly, the rest extrapolated from this step and the last, and so are E[l'] and the noise power E[l²] to the middle of
    the step. The protocol enters with its average over the step (three Gauss points), so that knots finer than the steps
    count. Exact for one linear mode with noise (Ornstein-Uhlenbeck) in the online limit. The
    first step knows no past and is of first order (which costs an error of order step² once): start with small steps where
    the start matters. Two-time responses are of first order: the step extrapolates across the kick.

    On a finite training set the sample curvature exceeds the population's, up to (1 + 1/sqrt(delta))² times on isotropic
    features, and what is left to the rest may be stiff too. So as its step passes 1 extrapolation fades (of fourth order in the
    step, negligible where the step is fine), and the drift's x grows to half that ratio times x (of third order), without
    which coarse steps would overshoot without bound. The swing is weighted such that noise of constant power adds up to what it
    does in continuous time on that curvature (26): the learning rate from which SGD is unstable is the equation's own, whatever
    the step.
    """

    continuous: ClassVar[bool] = True
    order: ClassVar[int] = 2
    nodes: ClassVar[tuple[float, ...]] = GAUSS_NODES
    node_weights: ClassVar[tuple[float, ...]] = GAUSS_WEIGHTS

    def ahead(self, now, last, ratio):
        return now + 0.5 * ratio * (now - last)

    def factors(self, x, ratio, curvature_ratio):
        positive = jnp.where(x > 0, x, 0.0)
        feedback = jnp.maximum(1.0, 0.5 * curvature_ratio)
        damped = jnp.minimum(x, 0.0) + positive * (1 - (feedback - 1) * jnp.expm1(-((feedback * positive) ** 2)))
        # Adams-Bashforth is stable up to a step of 1 of what it extrapolates, Euler's scheme up to 2.
        fading = jnp.exp(-(((curvature_ratio - 1) * positive) ** 4))
        f, c = phi(damped), fading * ratio * _phi2(damped)
        return Factors(f, jnp.where(x > 0, _lasting_swing(f, c, positive, curvature_ratio), jnp.sqrt(phi(2 * x))), c)


class DiscreteStep(AbstractStep):
    """The update itself, no approximation: full-batch gradient descent (NoNoise) or SGD with extensive batches (Bernoulli),
    one update per grid step, learning rate `step * learning_rate`. The protocol is read at the start of each step.
    (With Brownian or Poisson noise this is plain Euler stepping of the continuous-time equations.)"""

    continuous: ClassVar[bool] = False
    order: ClassVar[int] = 1
    nodes: ClassVar[tuple[float, ...]] = (0.0,)
    node_weights: ClassVar[tuple[float, ...]] = (1.0,)

    def ahead(self, now, last, ratio):
        return now

    def factors(self, x, ratio, curvature_ratio):
        return Factors(jnp.ones_like(x), jnp.ones_like(x), jnp.zeros_like(x))


def sample_modes(curvature_ratio: Float[Array, "*group"]) -> tuple[Float[Array, "node *group"], Float[Array, "node *one"]]:
    """Nodes of Marchenko and Pastur's law: by how much the sample's curvature is above the population's in the bulk of each
    group, over the population's; and weights, of the law times that curvature."""
    cosine, weight = jnp.asarray(_SEMICIRCLE, curvature_ratio.dtype).reshape(2, -1, *[1] * curvature_ratio.ndim)
    spread = jnp.sqrt(curvature_ratio)[None] - 1
    return spread**2 + 2 * spread * cosine, weight


def _lasting_swing(f: Array, c: Array, x: Array, curvature_ratio: Array) -> Array:
    """The factor of the swing with which noise of constant power adds up, over all steps to come, to what it does in continuous
    time, on the sample curvature: equation (26)."""
    above, weight = sample_modes(curvature_ratio)
    excess = x[None] * above
    memory = c[None] * excess
    restored = jnp.maximum(2 - f[None] * (x[None] + excess) - 2 * memory, 0.05)
    lasting = jnp.sum(weight * 2 * (1 - memory) / ((1 + memory) * f[None] * restored), axis=0)
    return 1 / jnp.sqrt(lasting)


def phi(x):
    """(1 - e^-x) / x, analytic at 0."""
    small = jnp.abs(x) < 1e-4
    safe = jnp.where(small, 1.0, x)
    return jnp.where(small, 1 - x / 2 + x**2 / 6, -jnp.expm1(-safe) / safe)


def _phi2(x):
    """(e^-x - 1 + x) / x², analytic at 0."""
    # The quotient loses digits like eps / x²: switch to the series (error x⁴ / 720) where the two are equally good.
    small = jnp.abs(x) < 0.02
    safe = jnp.where(small, 1.0, x)
    return jnp.where(small, 0.5 - x / 6 + x**2 / 24 - x**3 / 120, (jnp.expm1(-safe) + safe) / safe**2)
