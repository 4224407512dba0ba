from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._checks import check_count, check_instance, check_key, check_real, check_shape, front_door, is_concrete, numbers_to_arrays
from ..._memory import check_memory
from ...protocol import in_domain
from ...protocol.grid import record_steps
from ...results.codes import RESULTS, raise_unless
from ._dynamics import AbstractDynamics, Rates
from ._ensemble import Ensemble
from ._model import AbstractModel


@front_door
def simulate(
    model: AbstractModel,
    dynamics: AbstractDynamics,
    learning_rate: Any,
    initial: Float[Array, "point ..."],
    steps: int,
    *,
    key: Array,
    batch_size: Any = 1,
    runs: int = 1,
    records: Any = 1,
    step_size: float = 1.0,
    throw: bool = True,
) -> Ensemble:
    """SGD, or a flow in its place, over `steps` SGD steps from several initial points under common noise, in independent `runs`.

    - `model`: `flows.Model(loss, data)` or `flows.MeanField(velocity, data)`.
    - `dynamics`: `flows.SGD()`, `flows.ModifiedFlow(order)` or `flows.ModifiedEquation(order)`.
    - `learning_rate`, `batch_size`: numbers, or functions of the step n = 0, 1, ... as in optax; a schedule of time t becomes one
      by `dmftopt.schedules.to_optax(schedule, dimension)`. Flows hold both fixed over each SGD step, so that they follow any
      schedule to second order, jumps included. Batches are drawn with replacement; those of SGD must be concrete whole numbers.
    - `initial`: (point, ...), initial states; for `MeanField` each is an array of particles. All points of a run share the noise.
    - `records`: observe at so many equal intervals and at the start; or increasing step counts, from 0 to `steps`.
    - `step_size`: of the flows' time steps, in SGD steps: a whole number, or one over a whole number. 1 keeps the second order in
      the learning rate. Where one SGD step does little, as in high dimension d at rates of order one, some fraction of d will do.
      Steps are cut short at records.
    - `throw`: raise `SolveError` where a run became infinite or NaN. Inside jit, grad or vmap nothing can be raised: look at
      `result` and `diverged` of what is returned.

    The same key gives the same answer, and flows of either order the same Brownian motions. A pure function: works under `jit`,
    `vmap` and `grad`, in forward and in reverse mode.
    """
    check_instance("model", model, AbstractModel, "Build it with dmftopt.flows.Model(loss, data).")
    check_instance("dynamics", dynamics, AbstractDynamics, "Take dmftopt.flows.SGD() or ModifiedFlow().")
    check_count("steps", steps)
    check_count("runs", runs)
    check_key(key)
    check_real("initial", initial)
    initial = jnp.asarray(initial, dtype=float)
    check_memory(f"steps = {steps}", 8 * steps, "Use fewer.")
    if initial.ndim == 0 or initial.shape[0] == 0:
        raise ValueError(
            f"initial must have a first axis of initial points, got shape {initial.shape}. Use initial[None] for one."
        )
    try:
        velocity = jax.eval_shape(model.mean, initial[0])
    except Exception as error:
        raise ValueError(
            f"initial: the model does not take states of shape {initial.shape[1:]} ({error}). Give (point, ...), states that do."
        ) from error
    check_shape("velocity", velocity, (initial.shape[1:],), "It moves the state.")
    at = record_steps(records, steps, 1)
    request = f"runs = {runs} times {at.size} records of initial points of shape {initial.shape}"
    check_memory(request, 2.0 * runs * at.size * initial.size, "Lower one of them.")
    rates = _per_step("learning_rate", learning_rate, steps, 0.0)
    batches = _per_step("batch_size", batch_size, steps, 1.0)
    largest = _largest_batch(batches) if dynamics.discrete else 1
    spans, active, window = _spans(at, *((1, 1) if dynamics.discrete else _step_size(step_size)))
    plan = (spans, active, _rates(rates, batches, window, largest))
    model, dynamics, initial, plan = numbers_to_arrays((model, dynamics, initial, plan))
    states = _compiled(model, dynamics, initial, plan, jax.random.split(key, runs))
    valid = jnp.all(in_domain("learning_rate", rates)) & jnp.all(in_domain("batch_size", batches))
    return _finished(Ensemble(jnp.asarray(at), jnp.where(valid, states, jnp.nan)), valid, throw)


@eqx.filter_jit
def _compiled(model, dynamics, initial, plan, keys):
    def run(key):
        # Of the step all is computed again in reverse mode but its start.
        @jax.checkpoint
        def step(states, inputs):
            span, active, rates = inputs

            def advance(states):
                return dynamics.advance(model, states, span[0], span[1], rates, key)

            return jax.lax.cond(active, advance, lambda states: states, states), None

        def record(states, inputs):
            states, _ = jax.lax.scan(step, states, inputs)
            return states, states

        _, path = jax.lax.scan(record, initial, plan)
        return jnp.concatenate([initial[None], path])

    # As many runs side by side as keep the gradient's intermediate values within some hundred megabytes.
    sizes = initial.size + initial.shape[0] * sum(leaf.size for leaf in jax.tree.leaves(model.data))
    together = max(1, min(keys.shape[0], 2**23 // sizes))
    return jax.lax.map(run, keys, batch_size=together)


def _finished(ensemble: Ensemble, valid: Array, throw: bool) -> Ensemble:
    diverged = ensemble.diverged
    result = RESULTS.where(jnp.any(diverged), RESULTS.nonfinite, RESULTS.successful)
    result = RESULTS.where(valid, result, RESULTS.invalid)
    count = int(jnp.sum(diverged)) if is_concrete(diverged) else 0
    raise_unless(result, throw, f"flows.simulate failed, {count} of {diverged.shape[0]} runs became infinite or NaN")
    return Ensemble(ensemble.steps, ensemble.states, result)


def _per_step(name: str, value: Any, steps: int, minimum: float) -> Float[Array, " step"]:
    # Under jit too what is concrete is to remain so.
    with jax.ensure_compile_time_eval():
        values = jax.vmap(value)(jnp.arange(steps)) if callable(value) else value
        check_real(name, values, minimum=minimum, cure="It must be so at every step.")
        check_shape(name, values, ((steps,),) if callable(value) else ((),), "Give a number, or a function of the step.")
        return jnp.broadcast_to(jnp.asarray(values, dtype=float), (steps,))


def _largest_batch(batches: Float[Array, " step"]) -> int:
    if not is_concrete(batches):
        raise TypeError("batch_size fixes array sizes in SGD, so it cannot be traced. Only flows can be differentiated in it.")
    sizes = np.asarray(batches)
    if np.any(sizes % 1):
        raise ValueError("batch_size must be whole at every step: of random sizes the law differs to second order. Round it.")
    return int(sizes.max())


def _step_size(value: Any) -> tuple[int, int]:
    """As a numerator and a denominator, one of which is 1."""
    check_real("step_size", value, minimum=0.0, exclusive=True)
    check_shape("step_size", value, ((),))
    size = max(round(float(value)), 1), max(round(1 / float(value)), 1)
    if not np.isclose(size[0] / size[1], value, rtol=1e-6):
        raise ValueError(f"step_size must be a whole number of SGD steps or one over a whole number, got {value!r}.")
    return size


def _spans(at: np.ndarray, numerator: int, denominator: int) -> tuple[Array, Array, np.ndarray]:
    """For each interval between records and each time step in it: (record, step, 2) times from and to; (record, step) whether it
    is a step, or only makes the intervals equally long; (record, step, SGD step) the SGD steps it covers, -1 for none."""
    start, end = at[:-1, None], at[1:, None]
    longest = -(-int(np.max(end - start)) * denominator // numerator)
    edges = np.minimum(start + np.arange(longest + 1) * numerator / denominator, end)
    spans = np.stack([edges[:, :-1], edges[:, 1:]], axis=-1)
    covered = np.floor(spans[..., :1]).astype(int) + np.arange(numerator)
    window = np.where(covered < spans[..., 1:], covered, -1)
    return jnp.asarray(spans, dtype=float), jnp.asarray(spans[..., 1] > spans[..., 0]), window


def _rates(rates: Float[Array, " step"], batches: Float[Array, " step"], window: np.ndarray, largest: int) -> Rates:
    counted = jnp.asarray(window >= 0, dtype=rates.dtype)
    # Where nothing is covered nothing is computed, nor may it have a derivative of NaN.
    count = jnp.maximum(jnp.sum(counted, axis=-1), 1)

    def mean(values):
        return jnp.sum(counted * values[np.maximum(window, 0)], axis=-1) / count

    return Rates(mean(rates), mean(rates**2), mean(rates**2 / batches), mean(batches), largest)
