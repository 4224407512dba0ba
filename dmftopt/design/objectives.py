"""What is minimized: scalars of a predicted run.

Each is called as `measure(result, spent)` with what a route returns and what has been spent of the budget at `result.times`. Your
own is any such function. `of` names an observable or a metric ("test_error", "test_brier"), or is a function of the result with
one value per time.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import as_number, check_function, check_real, front_door


@front_door
class _Measure(eqx.Module):
    of: str | Callable = eqx.field(static=True, default="test_risk")

    def __check_init__(self):
        if not isinstance(self.of, str):
            check_function("of", self.of, "the result, or the name of an observable")

    def series(self, result: Any) -> Float[Array, " time"]:
        if callable(self.of):
            return self.of(result)
        known = result.observables.arrays()
        if self.of not in known:
            raise ValueError(f"of: this run has no {self.of!r}. It has {', '.join(sorted(known))}; metrics must be asked for.")
        return known[self.of]


class final(_Measure):
    """At the end of the run."""

    def __call__(self, result, spent):
        return self.series(result)[-1]


class best(_Measure):
    """The least along the run: what early stopping at the right time keeps."""

    def __call__(self, result, spent):
        return jnp.min(self.series(result))


class area(_Measure):
    """The mean over what is spent."""

    def __call__(self, result, spent):
        values = self.series(result)
        return jnp.sum(jnp.diff(spent) * 0.5 * (values[1:] + values[:-1])) / spent[-1]


class time_to(_Measure):
    """What is spent until `target` is first reached, by linear interpolation between the grid's times; for a run that never does,
    all of it times (final value) / target, which is larger."""

    target: Any = eqx.field(converter=as_number, kw_only=True)

    def __check_init__(self):
        check_real("target", self.target, minimum=0.0, exclusive=True)

    def __call__(self, result, spent):
        values = self.series(result)
        reached = values <= self.target
        # The step in which it is reached; at time 0 nothing was spent.
        k = jnp.maximum(jnp.argmax(reached), 1)
        above, below = values[k - 1], values[k]
        crossed = jnp.any(reached)
        drop = jnp.where(crossed & (above > below), above - below, 1.0)
        inside = spent[k - 1] + (spent[k] - spent[k - 1]) * (above - self.target) / drop
        inside = jnp.where(reached[0], 0.0, inside)
        return jnp.where(crossed, inside, spent[-1] * values[-1] / self.target)
