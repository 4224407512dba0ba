"""What SGD follows: velocities v(state, xi) of single samples xi, and the law of the samples."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..._checks import check_real, check_shape, front_door, is_concrete


class AbstractModel(eqx.Module):
    """Velocities v(state, xi), V = E v their mean over a finite data set: `data`, arrays whose first axis counts samples, with
    `probabilities` (sample,).

    Of the law of xi flows see V(x) and E[v(x, xi) v(y, xi)^T] only. Where v is a polynomial in xi, an infinite law has both
    exactly in common with a finite data set: the nodes and weights of a quadrature rule for polynomials of twice its degree.
    """

    data: eqx.AbstractVar[Any]
    probabilities: eqx.AbstractVar[Array]

    @abc.abstractmethod
    def force(self, state: Array, samples: Any, weights: Float[Array, " sample"]) -> Array:
        """sum_j weights_j v(state, samples_j), shaped like `state`."""

    def acceleration(self, state: Array) -> Array:
        """(DV) V, the derivative of V along itself: that of |grad R|² / 2 where V = -grad R."""
        return jax.jvp(self.mean, (state,), (self.mean(state),))[1]

    def mean(self, state: Array) -> Array:
        """V."""
        return self.force(state, self.data, self.probabilities)

    def drawn(self, state: Array, which: Int[Array, " draw"], weights: Float[Array, " draw"]) -> Array:
        """sum_j weights_j v(state, xi_{which_j}), what a step of SGD adds to the state."""
        return self.force(state, jax.tree.map(lambda leaf: leaf[which], self.data), weights)


class Model(AbstractModel):
    """v(x, xi) = -grad_x loss(x, xi), for any loss(x, sample) -> scalar of an array x.

    `data`: a pytree of arrays, the first axis of each counts samples; `loss` is given one entry of it. `probabilities` (sample,):
    uniform unless given. A weighted sum of velocities costs one gradient.
    """

    loss: Callable
    data: Any
    probabilities: Float[Array, " sample"]

    @front_door
    def __init__(self, loss: Callable, data: Any, probabilities: Any = None):
        if not callable(loss):
            raise TypeError(f"loss must be a function of (state, sample), got {type(loss).__name__}.")
        self.loss = loss
        self.data, self.probabilities = _check_data(data, probabilities)

    def force(self, state, samples, weights):
        def total(state):
            losses = jax.vmap(lambda sample: self.loss(state, sample))(samples)
            check_shape("loss", losses, (weights.shape,), "Its first axis are samples: of one sample it must be a scalar.")
            return jnp.dot(weights, losses)

        return -jax.grad(total)(state)


class MeanField(AbstractModel):
    """Shallow networks and other interacting particles: each moves with velocity(theta, particles, sample), shaped like theta,
    where `particles`, (particle, ...), stands for their empirical measure mu. A state is all the particles.

    For a network f(x) = (1/M) sum_i phi(theta_i, x) that is -l'(f(x), y) grad_theta phi(theta, x): gradient descent at M times
    the rate. The second-order flow is the distribution-dependent one of Gess, Kassing & Konarovskyi, for which

        (DV) V (theta, mu) = d_theta V(theta, mu) V(theta, mu) + ∫ d_mu V(theta, mu)(u) V(u, mu) mu(du)

    is the derivative of all the velocities along all of them. `frozen_measure` leaves the second term out, which costs the flow
    an order; it is there to show that. V costs a velocity per particle and sample. `data`, `probabilities`: as in `Model`.
    """

    velocity: Callable
    data: Any
    probabilities: Float[Array, " sample"]
    frozen_measure: bool = eqx.field(static=True)

    @front_door
    def __init__(self, velocity: Callable, data: Any, probabilities: Any = None, *, frozen_measure: bool = False):
        if not callable(velocity):
            raise TypeError(f"velocity must be a function of (theta, particles, sample), got {type(velocity).__name__}.")
        if not isinstance(frozen_measure, bool):
            raise TypeError(f"frozen_measure must be True or False, got {frozen_measure!r}.")
        self.velocity, self.frozen_measure = velocity, frozen_measure
        self.data, self.probabilities = _check_data(data, probabilities)

    def force(self, state, samples, weights):
        return self._force(state, state, samples, weights)

    def acceleration(self, state):
        if not self.frozen_measure:
            return super().acceleration(state)

        def among(moving):
            return self._force(moving, state, self.data, self.probabilities)

        return jax.jvp(among, (state,), (among(state),))[1]

    def _force(self, moving, particles, samples, weights):
        """Of the particles `moving` in the measure of `particles`."""

        def of(theta):
            velocities = jax.vmap(lambda sample: self.velocity(theta, particles, sample))(samples)
            check_shape("velocity", velocities, ((*weights.shape, *theta.shape),), "Its first axis are samples.")
            return jnp.tensordot(weights, velocities, 1)

        return jax.vmap(of)(moving)


def _check_data(data: Any, probabilities: Any) -> tuple[Any, Array]:
    data = jax.tree.map(jnp.asarray, data)
    shapes = [leaf.shape for leaf in jax.tree.leaves(data)]
    if not shapes or any(shape[:1] != shapes[0][:1] or not shape or not shape[0] for shape in shapes):
        raise ValueError(f"data must be arrays with the same first axis, the samples, at least one; got shapes {shapes}.")
    count = shapes[0][0]
    if probabilities is None:
        return data, jnp.full(count, 1 / count, dtype=float)
    check_shape("probabilities", probabilities, ((count,),), "Give one per sample.")
    check_real("probabilities", probabilities, minimum=0.0)
    if is_concrete(probabilities) and abs(total := np.asarray(probabilities).sum() - 1) > 1e-5:
        raise ValueError(f"probabilities must sum to 1, got {1 + total}. Divide them by their sum.")
    return data, jnp.asarray(probabilities, dtype=float)
