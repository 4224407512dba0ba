"""The algorithms: each maps one instance to the path of weights (time, m, d) at the observed times."""

import diffrax
import jax
import jax.numpy as jnp
import lineax
from jaxtyping import Array, Float

from ..problem import Problem
from ..protocol import Momentum, Protocol
from ..tasks import _columns as columns
from ._data import Instance


def step_through(
    problem: Problem, instance: Instance, key: Array, protocol: Protocol, at: Array, kick: tuple[Array, Array] | None = None
) -> Float[Array, "time m d"]:
    """SGD, observed after `at` steps. `kick`: after how many steps (from 1) what is added to the parameters."""
    samples, dimension = instance.features.shape
    task, parametrization = problem.task, problem.parametrization

    def step(s, state):
        parameters, memory = state
        theta = parametrization.weights(parameters)
        t = s.astype(theta.dtype) / dimension
        learning_rate, batch_size, ridge = (f(t) for f in (protocol.learning_rate, protocol.batch_size, protocol.ridge))
        key_count, key_batch = jax.random.split(jax.random.fold_in(key, s))
        whole = jnp.floor(batch_size)
        more = jax.random.uniform(key_count, dtype=theta.dtype) < batch_size - whole

        count = whole.astype(int) + more.astype(int)

        def add(j, gradient):
            i = jax.random.randint(jax.random.fold_in(key_batch, j), (), 0, samples)
            x = instance.features[i]
            l = columns.gradient(task, theta @ x, instance.labels[i])
            return gradient + jnp.where(j < count, l, 0.0)[:, None] * x

        # The same number of draws in every run, so that runs stay batched; the last may count for nothing.
        gradient = jax.lax.fori_loop(0, jnp.ceil(batch_size).astype(int), add, jnp.zeros_like(theta))
        pull = parametrization.pull(parameters, gradient / batch_size)
        moved = parameters - learning_rate * (pull + ridge / dimension * problem.regularizer.gradient(parameters))
        moved, memory = _carried(protocol, t, parameters, moved, memory)
        if kick is not None:
            kicked = jnp.where(s + 1 == kick[0], kick[1], 0.0)
            # Of the place, not of the momentum: its memory moves along.
            moved, memory = moved + kicked, None if memory is None else memory + kicked
        return moved, memory

    def record(state, span):
        state = jax.lax.fori_loop(span[0], span[1], step, state)
        return state, parametrization.weights(state[0])

    start = parametrization.parameters(instance.student)
    _, path = jax.lax.scan(record, (start, _memory(protocol, start)), jnp.stack([at[:-1], at[1:]], axis=1))
    return jnp.concatenate([instance.student[None], path])


def diffuse(problem, instance: Instance, key: Array, protocol: Protocol, times: Array, fine: Array) -> Float[Array, "time m d"]:
    """SGF through diffrax on the fixed times `fine`, observed at `times`."""
    samples, _ = instance.features.shape
    parametrization = problem.parametrization

    def gradient(parameters):
        fields = parametrization.weights(parameters) @ instance.features.T
        return columns.gradient(problem.task, fields, instance.labels)

    def pull(parameters, l):
        return parametrization.pull(parameters, l @ instance.features)

    def drift(t, parameters, _):
        shrinkage = protocol.ridge(t) * problem.regularizer.gradient(parameters)
        return -protocol.learning_rate(t) * (pull(parameters, gradient(parameters)) / problem.delta + shrinkage)

    def diffusion(t, parameters, _):
        amplitude = protocol.learning_rate(t) / jnp.sqrt(protocol.batch_size(t) * problem.delta)
        l = amplitude * gradient(parameters)
        # x_i l_i dW_i summed over samples, without ever building the (d, n) matrix.
        structure = jax.ShapeDtypeStruct((samples,), parameters.dtype)
        return lineax.FunctionLinearOperator(lambda dw: pull(parameters, l * dw), structure)

    noise = diffrax.UnsafeBrownianPath((samples,), key)
    terms = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, noise))
    solution = diffrax.diffeqsolve(
        terms,
        diffrax.Euler(),
        fine[0],
        fine[-1],
        None,
        parametrization.parameters(instance.student),
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.StepTo(fine),
        max_steps=None,
        adjoint=diffrax.ForwardMode(),
    )
    assert solution.ys is not None
    return jax.vmap(parametrization.weights)(solution.ys)


def descend(problem, instance: Instance, key: Array, protocol: Protocol, times: Array, fraction) -> Float[Array, "time m d"]:
    """Full-batch or extensive-batch gradient descent, one update per time step."""
    samples, _ = instance.features.shape
    parametrization = problem.parametrization

    def step(state, inputs):
        parameters, memory = state
        theta = parametrization.weights(parameters)
        t, size, key = inputs
        drift = size * protocol.learning_rate(t)
        taken = (jax.random.uniform(key, (samples,), theta.dtype) < fraction).astype(theta.dtype)
        l = columns.gradient(problem.task, theta @ instance.features.T, instance.labels) * taken / fraction
        pull = parametrization.pull(parameters, l @ instance.features / problem.delta)
        moved = parameters - drift * (protocol.ridge(t) * problem.regularizer.gradient(parameters) + pull)
        moved, memory = _carried(protocol, t, parameters, moved, memory)
        return (moved, memory), parametrization.weights(moved)

    keys = jax.random.split(key, times.shape[0] - 1)
    start = parametrization.parameters(instance.student)
    _, path = jax.lax.scan(step, (start, _memory(protocol, start)), (times[:-1], jnp.diff(times), keys))
    return jnp.concatenate([instance.student[None], path])


def _memory(protocol: Protocol, start: Array) -> Array | None:
    return None if protocol.momentum is None else start


def _carried(protocol: Protocol, t: Array, here: Array, moved: Array, memory: Array | None) -> tuple[Array, Array | None]:
    """Where the next gradient is taken, and the memory of a momentum."""
    if protocol.momentum is None or memory is None:
        return moved, None
    return Momentum(protocol.momentum(t), protocol.nesterov).carry(here, moved, memory)
