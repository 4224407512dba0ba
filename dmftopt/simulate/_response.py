"""Response of finite-size SGD to a kick of the weights."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import check_fixed, check_real, front_door
from ..problem import Problem, check_direct
from ..protocol import Protocol
from ..results.codes import RESULTS, raise_unless
from ._algorithms import step_through
from ._result import Response
from ._runs import over_runs, recorded


@front_door
def response(
    problem: Problem,
    protocol: Protocol,
    *,
    horizon: float,
    dimension: int,
    runs: int,
    key: Array,
    kick_time: float,
    records: Any = 40,
    size: float = 0.2,
    throw: bool = True,
) -> Response:
    """Response of SGD (as in `sgd`) to a kick of theta after the SGD step nearest `kick_time`:

        R_ab(t) = (mean of lambda) v·Lambda·(theta_a+(t) - theta_a-(t)) / (2 size v·Lambda·v) ,

    column b of theta± kicked by ±size * v, v with standard normal entries, on the same data and batches. 0 before the kick, the
    identity at it (for features of mean eigenvalue 1). Compare it with column j of `Solution.response`, t_{j+1} = `kick_time`.

    Kicks are finite, so that kinks of the loss count (a tangent would miss them); only kinks make them noisy, errors growing
    like 1 / sqrt(size). The two signs cancel what is of first order in `size`; what is left is about 0.015 size² for the
    logistic loss and 0.05 size² for a hinge (sign labels, delta = 2, learning rate 1.5): 0.0006 and 0.002 as it stands.
    `records` and `throw` as in `sgd`.
    """
    check_real("kick_time", kick_time, minimum=0.0, cure="It is SGD steps / dimension.")
    check_fixed("kick_time", kick_time)
    check_real("size", size, minimum=0.0, exclusive=True, cure="It is the standard deviation of the kick's entries.")
    setup, rates, at = recorded(problem, protocol, horizon, dimension, runs, key, records)
    check_direct(problem, "simulate.response")
    kicked = round(float(kick_time) * dimension)
    if not 1 <= kicked <= at[-1]:
        raise ValueError(f"kick_time must lie between the first SGD step, {1 / dimension:.3g}, and the horizon, got {kick_time}.")

    arguments = (rates, jnp.asarray(at), jnp.asarray(kicked), float(size))
    mean, error = over_runs(setup, arguments, _kicked, _along)
    times = jnp.asarray(at / dimension)
    result = RESULTS.where(jnp.all(jnp.isfinite(mean)), RESULTS.successful, RESULTS.nonfinite)
    result = RESULTS.where(rates.valid, result, RESULTS.invalid)
    raise_unless(result, throw, "simulate.response failed", times, mean)
    return Response(times, mean, error, result)


def _kicked(problem, instance, key, rates, at, kicked, size):
    """The kick's direction and the central differences along it of the paths of weights, (kicked column, time, m, d)."""
    key_run, key_kick = jax.random.split(key)
    m, dimension = instance.student.shape
    v = jax.random.normal(key_kick, (dimension,))

    def change(column):
        kick = jnp.zeros((1, m, dimension)).at[0, column].set(size * v)
        plus, minus = (step_through(problem, instance, key_run, rates, at, kick=(kicked, k)) for k in (kick, -kick))
        return (plus - minus) / (2 * size)

    return v, jax.lax.map(change, jnp.arange(m))


def _along(problem, instance, change):
    v, differences = change
    weighted = instance.eigenvalues * v
    return jnp.einsum("btad,d->tab", differences, weighted) / jnp.sum(weighted * v) * jnp.mean(instance.eigenvalues)
