"""Objectives over several problems: weights and offsets."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dmftopt

NOISES = (0.5, 1.0, 2.0)


def predict(problem, protocol, grid, key):
    """Least at a learning rate equal to the label noise: instead of a route, to be quick."""
    return SimpleNamespace(
        value=0.5 * problem.task.label_noise**2 + (protocol.learning_rate(0.0) - problem.task.label_noise) ** 2
    )


def objective(**options):
    tasks = [dmftopt.tasks.LeastSquares(noise) for noise in NOISES]
    problems = [dmftopt.Problem(task, dmftopt.features.isotropic(), 1.0) for task in tasks]
    budget = dmftopt.Budget(steps=1.0)
    return dmftopt.Objective(problems, budget, measure=lambda result, spent: result.value, predict=predict, **options)


def test_worst_regret():
    floors = 0.5 * np.array(NOISES) ** 2
    protocol = dmftopt.Protocol(jnp.asarray(1.1))
    weights = np.array([1.0, 2.0, 0.5])
    regret = (1.1 - np.array(NOISES)) ** 2
    worst = objective(across="worst", weights=weights, offsets=floors)
    np.testing.assert_allclose(worst(protocol), (weights * regret).max(), rtol=1e-5)
    np.testing.assert_allclose(objective(offsets=floors)(protocol), regret.mean(), rtol=1e-5)
    # What is reported are the measures themselves.
    np.testing.assert_allclose(worst.values(protocol), floors + regret, rtol=1e-5)
    # Half way between the extremes, where both are equally bad; of the bare risks that of the largest noise is the worst there.
    slope = jax.grad(lambda rate: objective(across="worst", offsets=floors)(dmftopt.Protocol(rate)))
    assert slope(jnp.asarray(1.24)) < 0 < slope(jnp.asarray(1.26))
    assert jax.grad(lambda rate: objective(across="worst")(dmftopt.Protocol(rate)))(jnp.asarray(1.26)) < 0


@pytest.mark.parametrize(
    "options", [{"weights": [1.0, 2.0]}, {"offsets": [0.0]}, {"weights": 0.0}, {"weights": -1.0}, {"offsets": np.nan}]
)
def test_wrong_weights(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        objective(**options)
