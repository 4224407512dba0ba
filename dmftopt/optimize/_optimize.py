from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree
from tqdm.auto import tqdm

from .._checks import check_count, check_key


class Score(NamedTuple):
    """Objective of a protocol on fresh random numbers, over the keys for which it was finite; infinite if there are none."""

    mean: float
    standard_error: float
    failures: int = 0


class Optimized(eqx.Module):
    """What an optimization found.

    - `protocol`: the best iterate; `value`: its objective on the random numbers it was optimized on (a little optimistic).
    - `history`: (steps + 1,) the objective at every iterate, NaN where it was not finite; the first is the initial protocol.
    - `report`: with a `key`, scores on fresh random numbers of "optimized", "initial" and every tuned baseline.
    - `tuned`: the tuned baselines, name -> protocol.
    """

    protocol: PyTree
    value: float
    history: np.ndarray
    scores: dict[str, Score] | None
    tuned: dict[str, PyTree]

    @property
    def report(self) -> dict[str, Score]:
        if self.scores is None:
            raise ValueError("report needs fresh random numbers: give optimize a key and an objective(protocol, key).")
        return self.scores

    def __str__(self) -> str:
        if self.scores is None:
            return f"best value {self.value:.6g} after {len(self.history) - 1} steps"
        width = max(map(len, self.scores))
        return "\n".join(
            f"{name:<{width}}  {s.mean:.6g} ± {s.standard_error:.1g}"
            + (f"  ({s.failures} keys not finite)" if s.failures else "")
            for name, s in sorted(self.scores.items(), key=lambda item: item[1].mean)
        )


def optimize(
    objective: Callable,
    protocol: PyTree,
    *,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 100,
    key: Array | None = None,
    baselines: Mapping[str, PyTree] | None = None,
    trainable: Callable[[Any], bool] = eqx.is_inexact_array,
    fresh: int = 8,
    progress: bool = True,
) -> Optimized:
    """Minimize a scalar function of a protocol with an optax optimizer.

    - `objective(protocol)`, or `objective(protocol, key)` when a `key` is given: a scalar to minimize, differentiable in
      reverse mode, typically `solve(...).test_risk[-1]`.
    - `protocol`: where to start. Its leaves that satisfy `trainable` are tuned (JAX arrays; plain Python numbers stay fixed).
    - `optimizer`: default `optax.adam(0.1)`. `steps`: updates.
    - `key`: random numbers. The same ones are used throughout, so that the objective is a smooth function; afterwards the
      best iterate is scored on `fresh` independent keys, which is what `report` shows.
    - `baselines`: protocols to tune in the same way and score beside it, for example `dmftopt.baselines(...)`.
    - `progress`: show a progress bar.

    An iterate whose objective or gradient is not finite is not kept: the run goes back to the one before and takes half the
    update, again until it is finite. The best iterate is what is returned. Raises ValueError when the start itself is not
    finite, when nothing is trainable, or when the objective is not a real scalar.
    """
    if not callable(objective):
        raise TypeError(f"objective must be a function of the protocol, got {objective!r}.")
    check_count("steps", steps, minimum=0)
    check_count("fresh", fresh, minimum=2, cure="A standard error needs two.")
    if key is None:
        if baselines is not None:
            raise ValueError("baselines are scored on fresh random numbers: give a key and an objective(protocol, key).")

        def keyed(protocol, key):
            return objective(protocol)

        train_key, fresh_keys = None, []
    else:
        check_key(key)
        keyed = objective
        train_key, *fresh_keys = jax.random.split(key, fresh + 1)
    optimizer = optax.adam(0.1) if optimizer is None else optimizer

    found, value, history, evaluate = _descend(keyed, protocol, optimizer, steps, train_key, trainable, progress, "optimize")
    tuned, scores = {}, None
    if key is not None:
        scores = {name: _score(evaluate, p, fresh_keys) for name, p in {"optimized": found, "initial": protocol}.items()}
        for name, start in (baselines or {}).items():
            tuned[name], _, _, evaluate = _descend(keyed, start, optimizer, steps, train_key, trainable, progress, name)
            scores[name] = _score(evaluate, tuned[name], fresh_keys)
    return Optimized(found, value, history, scores, tuned)


def _score(evaluate: Callable, protocol: PyTree, keys: list[Array]) -> Score:
    values = np.asarray([float(evaluate(protocol, key)) for key in keys])
    finite = values[np.isfinite(values)]
    failures = values.size - finite.size
    if finite.size < 2:
        return Score(float(finite.mean()) if finite.size else float("inf"), float("inf"), failures)
    return Score(float(finite.mean()), float(finite.std(ddof=1) / np.sqrt(finite.size)), failures)


def _descend(objective, start, optimizer, steps, key, trainable, progress, description):
    parameters, fixed = eqx.partition(start, trainable)
    if not jax.tree.leaves(parameters):
        raise ValueError(
            f"{description}: protocol has nothing to tune. Make a leaf a JAX array, for example with "
            "dmftopt.schedules.piecewise_linear(...) or dmftopt.schedules.constant(..., log=True)."
        )

    @eqx.filter_jit
    def value_and_gradient(parameters, key):
        def evaluate(parameters):
            out = objective(eqx.combine(parameters, fixed), key)
            if jnp.shape(out) != () or not jnp.issubdtype(jnp.result_type(out), jnp.floating):
                raise ValueError(
                    f"objective must return a real scalar, got shape {jnp.shape(out)}. Take for example test_risk[-1]."
                )
            return out

        value, gradient = jax.value_and_grad(evaluate)(parameters)
        finite = jnp.isfinite(value) & jnp.all(jnp.asarray([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradient)]))
        return value, gradient, finite

    @eqx.filter_jit
    def update(gradient, state, parameters, fraction):
        # optax itself mixes integer counts and floats.
        with jax.numpy_dtype_promotion("standard"):
            updates, new_state = optimizer.update(gradient, state, parameters)
        updates = jax.tree.map(lambda u: fraction * u, updates)
        return optax.apply_updates(parameters, updates), new_state

    value, gradient, finite = value_and_gradient(parameters, key)
    if not finite:
        raise ValueError(
            f"{description}: objective or gradient is not finite at the start ({float(value)}). "
            "Start from a smaller learning rate, or evaluate the objective there to see the error."
        )
    state = optimizer.init(parameters)
    # From here on `good` is the last finite iterate with its gradient and the optimizer state before the update.
    best, best_value = parameters, float(value)
    good, fraction = (parameters, gradient, state), 1.0
    history = [float(value)]
    with tqdm(total=steps, desc=description, disable=not progress, leave=False) as bar:
        for _ in range(steps):
            at, gradient, state = good
            candidate, new_state = update(gradient, state, at, fraction)
            value, new_gradient, finite = value_and_gradient(candidate, key)
            if finite:
                good, fraction = (candidate, new_gradient, new_state), min(1.0, 2 * fraction)
                history.append(float(value))
                if history[-1] < best_value:
                    best, best_value = candidate, history[-1]
            else:
                fraction /= 2
                history.append(float("nan"))
            bar.set_postfix(value=f"{history[-1]:.5g}", best=f"{best_value:.5g}")
            bar.update()
    # With its gradient, because that is compiled: compiling the value alone takes longer than the gradients.
    return (
        eqx.combine(best, fixed),
        best_value,
        np.asarray(history),
        lambda protocol, key: value_and_gradient(eqx.filter(protocol, trainable), key)[0],
    )
