"""Finite-size simulations against plain loops on the same instance."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import problem

import dmftopt
from dmftopt.simulate._data import draw


def test_descent_and_flow_count_the_samples_that_there_are(key):
    """delta * d = 1.5 samples are 2: a step that divided by delta would be a third too large."""
    d, rate, ridge = 15, 0.3, 0.1
    p = problem(dmftopt.tasks.LeastSquares(0.3), delta=0.1)
    grid = dmftopt.TimeGrid.uniform(1.0, 4)
    # Of one run: the key of its data is the first half of its own.
    instance = draw(p, jnp.zeros(d, int), 2, jax.random.split(jax.random.split(key, 1)[0])[0])
    x, y, start = (np.asarray(a) for a in (instance.features, instance.labels, instance.student[0]))
    count = x.shape[0]

    theta, norms = start, [start @ start / d]
    for _ in range(4):
        theta = theta - 0.25 * rate * (ridge * theta + x.T @ (x @ theta - y) * d / count)
        norms.append(theta @ theta / d)
    options = {"dimension": d, "runs": 1, "key": key}
    found = dmftopt.simulate.gradient_descent(p, dmftopt.Protocol(rate, ridge=ridge), grid, **options)
    np.testing.assert_allclose(found.norm[:, 0, 0], norms, rtol=1e-10)

    # Batches so large that the flow has no noise: many small steps of Heun's method, of second order like the flow's own.
    def velocity(theta):
        return -rate * (ridge * theta + x.T @ (x @ theta - y) * d / count)

    theta, norms = start, [start @ start / d]
    for k in range(400):
        ahead = theta + velocity(theta) / 400
        theta = theta + 0.5 * (velocity(theta) + velocity(ahead)) / 400
        if k % 100 == 99:
            norms.append(theta @ theta / d)
    found = dmftopt.simulate.sgf(p, dmftopt.Protocol(rate, 1e20, ridge), grid, substeps=16, **options)
    # Its steps are of rate * step * largest eigenvalue below 0.1: 0.1² / 12 for each unit of the decay at most.
    np.testing.assert_allclose(found.norm[:, 0, 0], norms, rtol=2e-3)
