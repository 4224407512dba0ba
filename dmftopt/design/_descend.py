"""Descent from one starting point."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
from jaxtyping import Array, PyTree
from tqdm.auto import tqdm

from ._staged import AbstractObjective, Gradient, checked

# How often, in steps, and over how many other keys the gradient is compared with its noise.
EVERY, OTHERS = 10, 4


class Descent(NamedTuple):
    """The best iterate (with refreshed keys the mean of the last quarter), its value, the values along the way."""

    protocol: PyTree
    value: float
    history: np.ndarray


class Settings(NamedTuple):
    optimizer: Any
    steps: int
    key: Array | None
    refresh: bool
    stop: bool
    trainable: Callable[[Any], bool]
    progress: bool


def descend(objective: AbstractObjective, start: PyTree, settings: Settings, description: str) -> Descent:
    parameters, fixed = eqx.partition(start, settings.trainable)
    if not jax.tree.leaves(parameters):
        raise ValueError(
            f"{description}: protocol has nothing to tune. Make a leaf a JAX array, for example with "
            "dmftopt.schedules.piecewise_linear(...) or dmftopt.schedules.constant(..., log=True)."
        )
    method = _minimise if isinstance(settings.optimizer, optimistix.AbstractMinimiser) else _follow
    # None: where there is no terminal there is no bar.
    hidden = None if settings.progress else True
    with tqdm(total=settings.steps, desc=description, disable=hidden, leave=False) as bar:
        best, value, history = method(objective, parameters, fixed, settings, description, bar)
    return Descent(eqx.combine(best, fixed), value, np.asarray(history))


def _follow(objective, parameters, fixed, settings, description, bar):
    """An optax optimizer, step by step."""
    optimizer, fixed_key = settings.optimizer, settings.key
    evaluate = Gradient(objective, parameters, fixed)

    @eqx.filter_jit
    def update(gradient, state, parameters, fraction):
        # optax itself mixes integer counts and floats.
        with jax.numpy_dtype_promotion("standard"):
            updates, new_state = optimizer.update(gradient, state, parameters)
        updates = jax.tree.map(lambda u: fraction * u, updates)
        return optax.apply_updates(parameters, updates), new_state

    def key(step):
        return jax.random.fold_in(fixed_key, step) if settings.refresh else fixed_key

    value, gradient, finite = evaluate(parameters, key(0))
    if not finite:
        _fail(objective, eqx.combine(parameters, fixed), key(0), value, description)
    # `good` is the last finite iterate with its gradient and the optimizer state before the update.
    best, best_value = parameters, float(value)
    good, fraction = (parameters, gradient, optimizer.init(parameters)), 1.0
    history, path, gradients = [float(value)], [parameters], [gradient]
    for step in range(1, settings.steps + 1):
        at, gradient, state = good
        candidate, new_state = update(gradient, state, at, fraction)
        value, new_gradient, finite = evaluate(candidate, key(step))
        if finite:
            good, fraction = (candidate, new_gradient, new_state), min(1.0, 2 * fraction)
            history.append(float(value))
            if history[-1] < best_value:
                best, best_value = candidate, history[-1]
        else:
            fraction /= 2
            history.append(float("nan"))
        path.append(good[0])
        gradients = [*gradients[1 - EVERY :], good[1]]
        bar.set_postfix(value=f"{history[-1]:.5g}", best=f"{best_value:.5g}")
        bar.update()
        if settings.stop and step % EVERY == 0 and finite and _in_noise(evaluate, good[0], gradients, settings):
            break
    if not settings.refresh:
        return best, best_value, history
    # Single values are noisy: the least is the luckiest, not the best.
    last = path[-max(1, len(path) // 4) :]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *last)
    value, _, finite = evaluate(mean, fixed_key)
    if not finite:
        mean = good[0]
        value, _, _ = evaluate(mean, fixed_key)
    return mean, float(value), history


def _in_noise(evaluate: Gradient, parameters: PyTree, gradients: list[PyTree], settings: Settings) -> bool:
    """Whether the gradient is smaller than its standard error: further steps would follow the random numbers."""
    if settings.key is None:
        return False
    if settings.refresh:
        several = np.stack([_flat(g) for g in gradients])
        mean, count = several.mean(axis=0), len(several)
    else:
        keys = jax.random.split(jax.random.fold_in(settings.key, 1), OTHERS)
        several = np.stack([_flat(evaluate(parameters, k)[1]) for k in keys])
        mean, count = _flat(gradients[-1]), 1
    noise = np.sum(several.var(axis=0, ddof=1)) / count
    return bool(np.sum(mean**2) < noise)


def _minimise(objective, parameters, fixed, settings, description, bar):
    """A quasi-Newton solver of optimistix, one evaluation at a time, so that values are seen on the way."""
    solver, key = settings.optimizer, settings.key

    def function(parameters, key):
        return checked(objective(eqx.combine(parameters, fixed), key)), None

    shape = jax.eval_shape(lambda: jnp.zeros(()))
    tags = frozenset()

    # optimistix itself mixes integer counts and floats.
    @eqx.filter_jit
    def init(parameters):
        with jax.numpy_dtype_promotion("standard"):
            return solver.init(function, parameters, key, {}, shape, None, tags)

    @eqx.filter_jit
    def advance(parameters, state):
        with jax.numpy_dtype_promotion("standard"):
            parameters, state, _ = solver.step(function, parameters, key, {}, state, tags)
            done, _ = solver.terminate(function, parameters, key, {}, state, tags)
        return parameters, state, done

    evaluate = Gradient(objective, parameters, fixed)
    state, history = init(parameters), []
    for step in range(settings.steps + 1):
        parameters, state, done = advance(parameters, state)
        history.append(float(state.f_info.f))
        if step == 0 and not np.isfinite(history[0]):
            _fail(objective, eqx.combine(parameters, fixed), key, history[0], description)
        bar.set_postfix(best=f"{history[-1]:.5g}")
        bar.update()
        noisy = settings.stop and step and step % EVERY == 0
        if done or (noisy and _in_noise(evaluate, parameters, [state.f_info.grad], settings)):
            break
    return parameters, history[-1], history


def _fail(objective: AbstractObjective, protocol: PyTree, key: Array | None, value: Any, description: str) -> None:
    message = f"{description}: objective or gradient is not finite at the start ({float(value)})."
    try:
        objective.explain(protocol, key)
    except Exception as error:
        raise ValueError(f"{message} {error}") from error
    raise ValueError(f"{message} Start from a smaller learning rate, or evaluate the objective there to see the error.")


def _flat(tree: PyTree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
