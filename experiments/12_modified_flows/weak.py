"""Weak errors of `dmftopt.flows` without Monte Carlo: the library's own steps as operators on functions of one variable.

Backward recursion: E[f(X_n) | X_0 = x] is n times the operator u -> E[u(X_1) | X_0 = x] applied to f. Functions are polynomials
through their values at Chebyshev nodes; the expectation over a step of SGD is the sum over the samples, over a step of a flow
Gauss-Hermite quadrature over the increments of its Brownian motions. In each problem one variable is a Markov chain of its own.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmftopt import flows

# Of Chebyshev polynomials, and of Gauss-Hermite nodes per increment: exact for its moments up to the seventh, and increments are
# of the order of the learning rate.
NODES, HERMITE = 48, 4
_ANGLES = np.pi * (np.arange(NODES) + 0.5) / NODES


class Chain(NamedTuple):
    """A model, and a variable that is a Markov chain of its own under it, under SGD as under flows.

    `states`: from the variable to initial points; `variable`: back. It is clipped to `low` and `high`, which it hardly reaches.
    `sampled`: the same model with another law of the samples, for SGD, if not the same.
    """

    model: Any
    states: Callable
    variable: Callable
    observable: Callable
    start: float
    low: float
    high: float
    sampled: Any = None


def one_point() -> Chain:
    """loss = x²/2 + xi_1 sin x - xi_2 cos x: E G(x) G(y) = cos(x - y). E cos X."""
    return Chain(_sines(_TRIANGLE), lambda x: x[None], lambda points: points[0], jnp.cos, 1.0, -10.0, 10.0, _gaussian_sines())


def two_point() -> Chain:
    """The same; of D = X^x - X^y, E D²."""
    return Chain(
        _sines(_TRIANGLE),
        lambda x: jnp.stack([x / 2, -x / 2]),
        lambda points: points[0] - points[1],
        jnp.square,
        1.5,
        -16.0,
        16.0,
        _gaussian_sines(),
    )


def mean_field(frozen_measure: bool = False) -> Chain:
    """A network f(x) = (1/M) sum theta_i² x² / 2, squared loss, two samples: of m = (1/M) sum theta_i², E m²."""

    def velocity(theta, particles, sample):
        x2, y = sample
        return (y - jnp.mean(particles**2) * x2 / 2) * theta * x2

    model = flows.MeanField(velocity, np.array([[0.9, 0.8], [1.1, 1.2]]), frozen_measure=frozen_measure)
    apart = np.sqrt([0.5, 1.5])
    return Chain(model, lambda m: (jnp.sqrt(m) * apart)[None], lambda points: jnp.mean(points**2), jnp.square, 1.0, 0.0, 10.0)


def expectations(chain: Chain, dynamics: Any, schedules: Any, batch: int = 1, substeps: int = 1) -> np.ndarray:
    """E f of the chain for each of several lists of learning rates, one per SGD step, with batches of size `batch`."""
    rates = sorted({float(rate) for schedule in schedules for rate in schedule})
    operators = dict(zip(rates, np.asarray(_operators(chain, dynamics, jnp.array(rates), batch, substeps)), strict=True))
    start = np.asarray(_basis(chain, jnp.array([chain.start])))[0]

    def of(schedule):
        values = np.asarray(chain.observable(_nodes(chain.low, chain.high)))
        for rate in reversed(schedule):
            for _ in range(substeps):
                values = operators[float(rate)] @ values
        return start @ values

    return np.array([of(schedule) for schedule in schedules])


def slopes(rates: Any, errors: Any) -> np.ndarray:
    """Of log |error| against log rate, between neighbors."""
    return np.diff(np.log(np.abs(errors))) / np.diff(np.log(rates))


_TRIANGLE = np.sqrt(2) * np.array([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])


def _sines(data: Any, probabilities: Any = None) -> flows.Model:
    # Of a standard normal xi, linear in it, flows see what they see of three points of mean 0 and covariance 1.
    return flows.Model(lambda x, xi: x**2 / 2 + xi[0] * jnp.sin(x) - xi[1] * jnp.cos(x), data, probabilities)


def _gaussian_sines() -> flows.Model:
    nodes, weights = _hermite(2, 8)
    return _sines(nodes, weights)


@functools.cache
def _hermite(dimension: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (node, dimension) and weights for independent standard normals."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    product = np.prod(list(itertools.product(weights / weights.sum(), repeat=dimension)), axis=1)
    return np.array(list(itertools.product(nodes, repeat=dimension))), product


def _nodes(low: float, high: float) -> jax.Array:
    return jnp.asarray(low + (high - low) * (1 + np.cos(_ANGLES)) / 2)


def _basis(chain: Chain, x: jax.Array) -> jax.Array:
    """(..., node): the interpolating polynomials of the nodes at x."""
    degrees = np.arange(NODES, dtype=float)
    z = jnp.clip(2 * (x - chain.low) / (chain.high - chain.low) - 1, -1, 1)
    # Chebyshev polynomials at x, and the coefficients of each node's polynomial.
    coefficients = np.cos(degrees[:, None] * _ANGLES) * np.where(degrees > 0, 2.0, 1.0)[:, None] / NODES
    angles = jnp.arccos(z)[..., None]
    return jnp.cos(degrees.reshape(*[1] * z.ndim, -1) * angles) @ coefficients


def _operators(chain: Chain, dynamics: Any, rates: jax.Array, batch: int, substeps: int) -> jax.Array:
    """(rate, node, node): from values of u at the nodes to those of E[u(X_1) | X_0 = node], X_1 after one time step."""
    is_sgd = isinstance(dynamics, flows.SGD)
    step, nodes, weights = _drawn(chain, dynamics, batch) if is_sgd else _driven(chain, dynamics, 1 / substeps)

    def matrix(rate, nodes, weights):
        ones = jnp.ones_like(rate)
        at = flows.Rates(rate, rate**2, rate**2 / batch, batch * ones, batch)

        def row(x):
            after = jax.vmap(lambda node: chain.variable(step(chain.states(x), node, at)))(nodes)
            return weights @ _basis(chain, after)

        return jax.lax.map(row, _nodes(chain.low, chain.high))

    @jax.jit
    def matrices(rates, nodes, weights):
        return jax.lax.map(lambda rate: matrix(rate, nodes, weights), rates)

    return matrices(rates, jnp.asarray(nodes), jnp.asarray(weights))


def _drawn(chain: Chain, dynamics: flows.SGD, batch: int) -> tuple[Callable, np.ndarray, np.ndarray]:
    """A step of SGD as a function of (points, node, rates), all nodes, here batches, and their probabilities."""
    model = chain.model if chain.sampled is None else chain.sampled
    p = np.asarray(model.probabilities)
    nodes = np.array(list(itertools.product(range(p.size), repeat=batch)))
    return lambda states, node, rates: dynamics.moved(model, states, rates, node), nodes, np.prod(p[nodes], axis=1)


def _driven(chain: Chain, dynamics: flows.AbstractFlow, size: float) -> tuple[Callable, np.ndarray, np.ndarray]:
    """The same for a time step of a flow, where nodes are the increments of its two halves."""
    model = chain.model
    state = jax.eval_shape(chain.states, jnp.zeros(())).shape[1:]
    directions = np.eye(dynamics.directions(model, jnp.zeros(state)))
    if isinstance(dynamics, flows.ModifiedFlow):
        # The increment along sqrt(p) does nothing.
        p = np.asarray(model.probabilities)
        directions = np.linalg.qr(np.column_stack([np.sqrt(p), directions[:, 1:]]))[0][:, 1:]
    count = directions.shape[1]

    def step(states, node, rates):
        halves = {0.0: node[:count], size / 2: node[count:]}
        terms = dynamics.terms(model, lambda t0, t1: np.sqrt(size / 2) * directions @ halves[t0])
        return flows.Splitting().step(terms, 0.0, size, states, rates, None, False)[0]

    return step, *_hermite(2 * count, HERMITE)
