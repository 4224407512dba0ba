"""SGD and the flows: how to take several initial points from one time to the next, all under the same noise."""

import abc
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
from jaxtyping import Array, Float, Int

from ..._checks import front_door, without_derivative
from ._model import AbstractModel
from ._solver import Splitting


class Rates(eqx.Module):
    """Learning rate eta and batch size B within one time step: means over its SGD steps of eta, eta², eta² / B, and B.

    `largest_batch`: of the run, for SGD only."""

    rate: Float[Array, "..."]
    square: Float[Array, "..."]
    noise: Float[Array, "..."]
    batch_size: Float[Array, "..."]
    largest_batch: int = eqx.field(static=True, default=1)


class AbstractDynamics(eqx.Module):
    """`discrete`: each time step is one SGD step, with whole batches."""

    discrete: ClassVar[bool] = False

    @abc.abstractmethod
    def advance(
        self, model: AbstractModel, states: Float[Array, "point ..."], t0: Array, t1: Array, rates: Rates, key: Array
    ) -> Float[Array, "point ..."]:
        """The states at time t1 from those at t0, in SGD steps; the key is that of the run."""


class SGD(AbstractDynamics):
    """x <- x + (eta / B) sum_{j in batch} v(x, xi_j), the batch drawn with replacement, the same for all points."""

    discrete: ClassVar[bool] = True

    def advance(self, model, states, t0, t1, rates, key):
        key = jax.random.fold_in(key, t0.astype(int))
        samples = model.probabilities.shape[0]
        return self.moved(model, states, rates, jax.random.choice(key, samples, (rates.largest_batch,), p=model.probabilities))

    def moved(
        self, model: AbstractModel, states: Float[Array, "point ..."], rates: Rates, drawn: Int[Array, " largest_batch"]
    ) -> Float[Array, "point ..."]:
        """The states after a step with the first B of these samples."""
        taken = jnp.arange(drawn.shape[0], dtype=states.dtype) < rates.batch_size
        weights = jnp.where(taken, rates.rate / rates.batch_size, 0.0)
        return jax.vmap(lambda x: x + model.drawn(x, drawn, weights))(states)


class AbstractFlow(AbstractDynamics):
    """Itô equations dX = drift(X) ds + (eta / sqrt B) diffusion(X) dW, time s in SGD steps, stepped by `Splitting`."""

    @abc.abstractmethod
    def directions(self, model: AbstractModel, state: Array) -> int:
        """How many Brownian motions drive it."""

    @abc.abstractmethod
    def diffused(self, model: AbstractModel, state: Array, increments: Float[Array, " direction"]) -> Array:
        """diffusion(state) applied to increments of the Brownian motions."""

    @abc.abstractmethod
    def drift(self, model: AbstractModel, state: Array, rates: Rates) -> Array:
        """The mean change per time."""

    def terms(self, model: AbstractModel, control: Any) -> diffrax.MultiTerm:
        """For diffrax, with `Rates` as args: any number of points driven by the same `control`, a Brownian path or a function of
        (t0, t1)."""

        def drift(t, states, rates):
            return jax.vmap(lambda x: self.drift(model, x, rates))(states)

        def diffusion(t, states, rates):
            # A rate of 0, where a warmup starts, is not to have a derivative of NaN.
            amplitude = jnp.where(rates.noise > 0, jnp.sqrt(jnp.where(rates.noise > 0, rates.noise, 1.0)), 0.0)

            def diffused(increments):
                return amplitude * jax.vmap(lambda x: self.diffused(model, x, increments))(states)

            structure = jax.ShapeDtypeStruct((self.directions(model, states[0]),), states.dtype)
            return lineax.FunctionLinearOperator(diffused, structure)

        return diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, control))

    def advance(self, model, states, t0, t1, rates, key):
        structure = jax.ShapeDtypeStruct((self.directions(model, states[0]),), states.dtype)
        terms = self.terms(model, diffrax.UnsafeBrownianPath(structure, key))
        return Splitting().step(terms, t0, t1, states, rates, None, False)[0]


class AbstractModified(AbstractFlow):
    """Drift eta V - (eta²/2) (DV) V, without the eta² at order 1."""

    order: eqx.AbstractVar[int]

    def __check_init__(self):
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {self.order!r}. 2 has the correction of the drift.")

    def drift(self, model, state, rates):
        velocity = rates.rate * model.mean(state)
        return velocity if self.order == 1 else velocity - rates.square / 2 * model.acceleration(state)


@front_door
class ModifiedFlow(AbstractModified):
    """Stochastic modified flow: noise sum_j sqrt(p_j) (v(X, xi_j) - V(X)) dB_j, one Brownian motion per sample, the same for all
    points:

        d<X^x, X^y> = (eta²/B) Cov(v(X^x, xi), v(X^y, xi)) ds.

    Order 2 has the laws of one and of several points of SGD to second order in eta, order 1 (stochastic gradient flow) to first.
    """

    order: int = eqx.field(static=True, default=2)

    def directions(self, model, state):
        return model.probabilities.shape[0]

    def diffused(self, model, state, increments):
        # The V is in the weights, which sum to 0: one gradient in all.
        weights = jnp.sqrt(model.probabilities) * increments
        return model.force(state, model.data, weights - model.probabilities * jnp.sum(weights))


@front_door
class ModifiedEquation(AbstractModified):
    """Stochastic modified equation: noise Sigma(X)^{1/2} dB, Sigma = Cov v(X, xi), a Brownian motion for each entry of X.

    The law of one point is that of `ModifiedFlow`. Of several points it is not: their covariance
    Sigma(X^x)^{1/2} Sigma(X^y)^{1/2} is not that of SGD, an error of first order. Each step costs all samples' velocities and an
    eigendecomposition, whose derivatives are not offered.
    """

    order: int = eqx.field(static=True, default=2)

    def directions(self, model, state):
        return state.size

    def diffused(self, model, state, increments):
        def velocity(sample):
            one = jax.tree.map(lambda leaf: leaf[None], sample)
            return model.force(state, one, jnp.ones(1, state.dtype)).ravel()

        deviations = jax.vmap(velocity)(model.data) - model.mean(state).ravel()[None]
        sigma = without_derivative(
            (deviations.T * model.probabilities[None]) @ deviations,
            "The modified equation has no derivative: roots of matrices without full rank have none. Use ModifiedFlow.",
        )
        values, vectors = jnp.linalg.eigh(sigma)
        return (vectors @ (jnp.sqrt(jnp.maximum(values, 0.0)) * (vectors.T @ increments))).reshape(state.shape)
