from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_count, check_instance, front_door
from .._register import register
from ..protocol import Protocol
from ._budget import Plan
from ._certificate import differentiated
from ._objective import Objective
from ._staged import AbstractObjective


@register
class Sensitivity(eqx.Module):
    """What relative changes of a protocol do to an objective, under its budget.

    Each hyperparameter f(u) is multiplied by exp(c(u)), c piecewise linear with values at `knots` (relative times); a ridge and a
    momentum by exp(c) as a whole.

    - `knots`: (knot,). - `gradient`, `gradient_error`: hyperparameter -> (knot,), or () for ridge and momentum: derivative in c.
    - `hessian`: (hyperparameter, hyperparameter) -> second derivatives, of those that may go both ways (a batch size that touches
      1 may not).
    """

    knots: Float[np.ndarray, " knot"]
    gradient: dict[str, np.ndarray]
    gradient_error: dict[str, np.ndarray]
    hessian: dict[str, dict[str, np.ndarray]]


@front_door
def sensitivity(
    objective: Objective,
    protocol: Protocol | Plan,
    *,
    key: Array | None = None,
    knots: int = 9,
    keys: int = 4,
    spacing: float = 0.05,
) -> Sensitivity:
    """Gradient, with standard errors over `keys` random numbers, and Hessian of the objective along the schedules.

    A ridge or a momentum of 0 cannot change by a factor and is left out. Raises ValueError where a value is not finite.
    """
    check_instance("objective", objective, Objective, "Build it with dmftopt.Objective(problem, budget).")
    check_count("knots", knots, minimum=2)
    inner = protocol.protocol if isinstance(protocol, Plan) else protocol
    check_instance("protocol", inner, Protocol, "Build it with dmftopt.Protocol(learning_rate=...).")
    u = jnp.linspace(0.0, 1.0, 64)
    shapes: dict[str, tuple[int, ...]] = {"learning_rate": (knots,), "batch_size": (knots,)}
    for name in ("ridge", "momentum"):
        schedule = getattr(inner, name)
        if schedule is not None and bool(jnp.any(schedule(u) > 0)):
            shapes[name] = ()
    # Differences go both ways, but a batch size never below 1.
    both = [n for n in shapes if n != "batch_size" or bool(jnp.min(inner.batch_size(u)) * np.exp(-spacing) > 1)]
    still = {name: jnp.zeros(shape) for name, shape in shapes.items()}

    def along(changes):
        return {name: jnp.full_like(c, name in both) for name, c in changes.items()}

    found = differentiated(_Changed(objective, protocol), still, key, keys, spacing, along=along)
    # Parameters are in the order of the sorted names.
    ends = np.cumsum([still[name].size for name in sorted(still)])
    at = {name: slice(int(end) - still[name].size, int(end)) for name, end in zip(sorted(still), ends, strict=True)}

    def split(values):
        return {name: values[at[name]].reshape(shapes[name]) for name in shapes}

    hessian = {n: {m: found.hessian[at[n], at[m]].reshape(shapes[n] + shapes[m]) for m in both} for n in both}
    return Sensitivity(np.linspace(0.0, 1.0, knots), split(found.gradient), split(found.gradient_error), hessian)


class _Changed(AbstractObjective):
    """The objective as a function of relative changes."""

    objective: Objective
    protocol: Protocol | Plan

    @property
    def evaluator(self):
        return self.objective

    def prepare(self, protocol):
        inner = self.protocol.protocol if isinstance(self.protocol, Plan) else self.protocol
        for name, change in protocol.items():
            factor = _Times(getattr(inner, name), change)
            inner = eqx.tree_at(lambda p, name=name: getattr(p, name), inner, factor)
        changed = Plan(inner, self.protocol.horizon, self.protocol.average) if isinstance(self.protocol, Plan) else inner
        return self.objective.prepare(changed)

    def evaluate(self, inputs, key):
        return self.objective.evaluate(inputs, key)

    def explain(self, protocol, key):
        self.objective.explain(self.protocol, key)


class _Times(eqx.Module):
    """exp(change(u)) * schedule(u)."""

    schedule: Callable
    change: Array

    def __call__(self, t: Any) -> Array:
        change = (
            self.change if self.change.ndim == 0 else jnp.interp(t, jnp.linspace(0.0, 1.0, self.change.shape[0]), self.change)
        )
        return jnp.exp(change) * self.schedule(t)
