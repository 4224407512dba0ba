"""The algorithms: each maps one instance to the path of weights (time, m, d) at the observed times.

SGD, stochastic gradient flow and gradient descent of a problem are those of `dmftopt.flows`, for the model `Training`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..problem import Problem
from ..problem.regularizers import AbstractRegularizer
from ..protocol import Momentum
from ..protocol.rates import Rates
from ..tasks import columns as columns
from ._data import Instance
from .flows import AbstractFlow, AbstractModel
from .flows import Rates as FlowRates


class Training(AbstractModel):
    """One instance of a problem: at parameters p of weights f(p), sample i has the velocity -l(x_i·f(p), y_i) x_i df/dp."""

    problem: Problem
    data: tuple[Float[Array, "n d"], Float[Array, " n"]]
    probabilities: Float[Array, " n"]

    def force(self, state, samples, weights):
        x, y = samples
        l = columns.gradient(self.problem.task, self.problem.parametrization.weights(state) @ x.T, y)
        return -self.problem.parametrization.pull(state, (l * weights[None]) @ x)


class StochasticGradientFlow(AbstractFlow):
    """dp = [eta V(p) - shrinkage h(p)] dt + sqrt(noise) sum_i sqrt(p_i) v(p, i) dW_i: velocities as they are, not less their
    mean, whose share of the noise is 1/d."""

    regularizer: AbstractRegularizer
    shrinkage: Float[Array, ""]

    def directions(self, model, state):
        return model.probabilities.shape[0]

    def drift(self, model, state, rates):
        return rates.rate * model.mean(state) - self.shrinkage * self.regularizer.gradient(state)

    def diffused(self, model, state, increments):
        return model.force(state, model.data, jnp.sqrt(model.probabilities) * increments)


class Epochs(NamedTuple):
    """Passes over the training set, as many as hold `total` visits. `reshuffled`: before each, or the first only."""

    total: int
    reshuffled: bool

    def queue(self, key: Array, samples: int) -> Int[Array, " visit"]:
        """The samples in the order in which they are visited."""
        count = -(-self.total // samples)
        keys = jax.random.split(key, count if self.reshuffled else 1)
        orders = jax.vmap(lambda key: jax.random.permutation(key, samples))(keys)
        return jnp.broadcast_to(orders, (count, samples)).ravel()


class FlowAverages(NamedTuple):
    """A protocol averaged over each time step of a flow; `temperature` is eta² / B."""

    learning_rate: Float[Array, "step substep"]
    shrinkage: Float[Array, "step substep"]
    temperature: Float[Array, "step substep"]


def step_through(
    problem: Problem,
    instance: Instance,
    key: Array,
    rates: Rates,
    at: Int[Array, " time"],
    epochs: Epochs | None = None,
    gains: Float[Array, " step"] | None = None,
    kick: tuple[Array, Array] | None = None,
) -> Float[Array, "time m d"]:
    """SGD at the `rates` of each step, observed after `at` steps. `epochs`: None for draws with replacement. `gains`: observe
    an average of the weights, which moves by these shares. `kick`: after how many steps (from 1) what is added to the
    parameters."""
    samples, dimension = instance.features.shape
    model = _training(problem, instance)
    # Each step has a key of its own.
    key_order = jax.random.fold_in(key, rates.learning_rate.shape[0])
    queue = None if epochs is None else epochs.queue(key_order, samples)
    transform = None if rates.update is None else rates.update.transform(dimension)
    pace = 1.0 if rates.update is None else rates.update.rate(dimension)

    def step(s, state):
        parameters, memory, seen, mean, optimizer = state
        learning_rate, batch_size, ridge = rates.learning_rate[s], rates.batch_size[s], rates.ridge[s]
        # The optimizer takes the gradient of the batch as it is.
        weight = learning_rate if transform is None else jnp.ones_like(learning_rate)
        key_count, key_batch = jax.random.split(jax.random.fold_in(key, s))
        whole = jnp.floor(batch_size)
        more = jax.random.uniform(key_count, dtype=parameters.dtype) < batch_size - whole
        count = whole.astype(int) + more.astype(int)

        def add(j, velocity):
            if queue is None:
                i = jax.random.randint(jax.random.fold_in(key_batch, j), (1,), 0, samples)
            else:
                i = jax.lax.dynamic_slice_in_dim(queue, seen + j, 1)
            return velocity + model.drawn(parameters, i, jnp.where(j < count, weight / batch_size, 0.0)[None])

        # The same number of draws in every run, so that runs stay batched; the last may count for nothing.
        velocity = jax.lax.fori_loop(0, jnp.ceil(batch_size).astype(int), add, jnp.zeros_like(parameters))
        if transform is not None:
            # Optax raises numbers to counts, which strict promotion would not have.
            with jax.numpy_dtype_promotion("standard"):
                updates, optimizer = transform.update(velocity, optimizer, parameters)
            velocity = learning_rate * pace * jnp.asarray(updates)
        momentum = jax.tree.map(lambda a: a[s], rates.momentum)
        moved, memory = _updated(problem, momentum, parameters, memory, velocity, learning_rate * ridge / dimension)
        if kick is not None:
            kicked = jnp.where(s + 1 == kick[0], kick[1], 0.0)
            # Of the place, not of the momentum: its memory moves along.
            moved, memory = moved + kicked, None if memory is None else memory + kicked
        if gains is not None:
            mean = mean + gains[s] * (moved - mean)
        return moved, memory, seen + count, mean, optimizer

    def record(state, span):
        state = jax.lax.fori_loop(span[0], span[1], step, state)
        return state, problem.parametrization.weights(state[0] if gains is None else state[3])

    parameters, memory = _start(problem, instance, rates.momentum)
    optimizer = None if transform is None else transform.init(parameters)
    start = parameters, memory, jnp.zeros((), int), None if gains is None else parameters, optimizer
    _, path = jax.lax.scan(record, start, jnp.stack([at[:-1], at[1:]], axis=1))
    return jnp.concatenate([instance.student[None], path])


def diffuse(
    problem: Problem, instance: Instance, key: Array, times: Float[Array, "step edge"], averages: FlowAverages
) -> Float[Array, "time m d"]:
    """SGF, in time steps between the times of each row, observed at the rows' ends."""
    dimension = instance.features.shape[1]
    model = _training(problem, instance)

    def substep(parameters, inputs):
        t0, t1, now = inputs
        flow = StochasticGradientFlow(problem.regularizer, now.shrinkage)
        # A unit of time is `dimension` SGD steps.
        rate, noise = now.learning_rate * dimension, now.temperature * dimension
        rates = FlowRates(rate, rate**2, noise, jnp.ones_like(rate))
        return flow.advance(model, parameters[None], t0, t1, rates, key)[0], None

    def record(parameters, inputs):
        parameters, _ = jax.lax.scan(substep, parameters, inputs)
        return parameters, problem.parametrization.weights(parameters)

    start, _ = _start(problem, instance, None)
    _, path = jax.lax.scan(record, start, (times[:, :-1], times[:, 1:], averages))
    return jnp.concatenate([instance.student[None], path])


def descend(
    problem: Problem,
    instance: Instance,
    key: Array,
    rates: Rates,
    step_sizes: Float[Array, " step"],
    fraction: Array,
    optimizer: Any = None,
) -> Float[Array, "time m d"]:
    """Full-batch or extensive-batch gradient descent, one update per time step, at the `rates` of each. `optimizer`: of optax."""
    samples, dimension = instance.features.shape
    model = _training(problem, instance)

    def step(state, inputs):
        parameters, memory, own = state
        learning_rate, ridge, coefficient, size, key = inputs
        taken = (jax.random.uniform(key, (samples,), parameters.dtype) < fraction).astype(parameters.dtype)
        # A step of size D is dimension * D steps of SGD.
        weights = dimension * model.probabilities * taken / fraction
        velocity, pace = model.force(parameters, model.data, weights), size * learning_rate
        if optimizer is None:
            moved, memory = _updated(problem, coefficient, parameters, memory, pace * velocity, pace * ridge)
        else:
            gradient = ridge * problem.regularizer.gradient(parameters) - velocity
            with jax.numpy_dtype_promotion("standard"):
                updates, own = optimizer.update(gradient, own, parameters)
            moved = parameters + pace * jnp.asarray(updates)
        return (moved, memory, own), problem.parametrization.weights(moved)

    keys = jax.random.split(key, step_sizes.shape[0])
    inputs = (rates.learning_rate, rates.ridge, rates.momentum, step_sizes, keys)
    start = _start(problem, instance, rates.momentum)
    _, path = jax.lax.scan(step, (*start, None if optimizer is None else optimizer.init(start[0])), inputs)
    return jnp.concatenate([instance.student[None], path])


def _training(problem: Problem, instance: Instance) -> Training:
    samples = instance.labels.shape[0]
    share = jnp.full(samples, 1 / samples, instance.features.dtype)
    return Training(problem=problem, data=(instance.features, instance.labels), probabilities=share)


def _start(problem: Problem, instance: Instance, momentum: Momentum | None) -> tuple[Array, Array | None]:
    """Parameters, and the memory of a momentum."""
    parameters = problem.parametrization.parameters(instance.student)
    return parameters, None if momentum is None else parameters


def _updated(
    problem: Problem, momentum: Momentum | None, here: Array, memory: Array | None, velocity: Array, shrinkage: Array
) -> tuple[Array, Array | None]:
    """p + velocity - shrinkage h(p), and what the momentum makes of it: where the next gradient is taken, and its memory."""
    moved = here + velocity - shrinkage * problem.regularizer.gradient(here)
    if momentum is None or memory is None:
        return moved, None
    return momentum.carry(here, moved, memory)
