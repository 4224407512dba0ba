from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..._register import register
from ...results.codes import RESULTS
from ...results.observables import mean_and_error


class Estimate(NamedTuple):
    """Mean over runs and its standard error (None of a single run)."""

    mean: Float[Array, "time ..."]
    standard_error: Float[Array, "time ..."] | None


@register
class Ensemble(eqx.Module):
    """`states` (run, time, point, ...) after `steps` (time,) SGD steps. Runs are independent, points of a run share the noise.
    `result`: a member of `dmftopt.RESULTS`, not successful where any run is `diverged`."""

    steps: Int[Array, " time"]
    states: Float[Array, "run time point ..."]
    result: RESULTS = eqx.field(default_factory=lambda: RESULTS.successful)

    @property
    def diverged(self) -> Bool[Array, " run"]:
        """Which runs became infinite or NaN."""
        return ~jnp.all(jnp.isfinite(self.states), axis=tuple(range(1, self.states.ndim)))

    def one_point(self, function: Callable[[Array], Array] = lambda x: x) -> Estimate:
        """E f(X^x) for each initial point x: (time, point, ...)."""
        return Estimate(*mean_and_error(jax.vmap(jax.vmap(jax.vmap(function)))(self.states)))

    def two_point(self, function: Callable[[Array, Array], Array] = lambda x, y: jnp.tensordot(x, y, 0)) -> Estimate:
        """E f(X^x, X^y) for each pair of them: (time, point, point, ...). By default E X^x (X^y)^T."""

        def pairs(points):
            return jax.vmap(lambda x: jax.vmap(lambda y: function(x, y))(points))(points)

        return Estimate(*mean_and_error(jax.vmap(jax.vmap(pairs))(self.states)))
