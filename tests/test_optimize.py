"""optimize: on functions whose minimum is known, and on the solver."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dmftopt


def protocol(value=1.0):
    return dmftopt.Protocol(dmftopt.schedules.constant(value, log=True))


def quadratic(p):
    return (jnp.log(p.learning_rate(0.0)) - 0.5) ** 2 + 2.0


def test_finds_a_known_minimum_and_keeps_the_best_iterate():
    # Steps of 0.3 overshoot: the last iterate is not the best.
    found = dmftopt.optimize(quadratic, protocol(), optimizer=optax.adam(0.3), steps=60, progress=False)
    np.testing.assert_allclose(found.protocol.learning_rate(0.0), np.exp(0.5), rtol=0.02)
    assert found.value == np.min(found.history) and len(found.history) == 61
    assert found.history[0] == pytest.approx(2.25)
    np.testing.assert_allclose(quadratic(found.protocol), found.value)


def test_steps_into_nan_are_survived():
    """The objective is NaN beyond a wall between start and minimum: the run stops short of it and does not come back NaN."""

    def walled(p):
        value = quadratic(p)
        return jnp.where(p.learning_rate(0.0) > 1.4, jnp.nan, value)

    found = dmftopt.optimize(walled, protocol(), optimizer=optax.sgd(2.0), steps=40, progress=False)
    assert np.isnan(found.history).any() and np.isfinite(found.value)
    assert found.value < 2.25 and found.protocol.learning_rate(0.0) <= 1.4


def test_only_arrays_are_tuned():
    start = dmftopt.Protocol(dmftopt.schedules.constant(1.0, log=True), batch_size=2, ridge=0.3)
    found = dmftopt.optimize(lambda p: quadratic(p) + p.ridge(0.0) + p.batch_size(0.0), start, steps=5, progress=False)
    assert found.protocol.ridge(0.0) == 0.3 and found.protocol.batch_size(0.0) == 2.0
    assert found.protocol.learning_rate(0.0) != start.learning_rate(0.0)


def test_report_scores_on_fresh_keys_beside_tuned_baselines(key):
    def noisy(p, key):
        return quadratic(p) + 0.1 * jax.random.normal(key)

    start = protocol(0.8)
    found = dmftopt.optimize(noisy, start, steps=40, key=key, fresh=64, baselines={"other": protocol(3.0)}, progress=False)
    assert set(found.report) == {"optimized", "initial", "other"} and set(found.tuned) == {"other"}
    for name in ("optimized", "other"):
        score = found.report[name]
        # The noise is known: 0.1 / sqrt(64); five of them.
        assert abs(score.mean - 2.0) < 5 * 0.1 / 8 + 0.01
        assert 0.1 / 8 / 1.5 < score.standard_error < 0.1 / 8 * 1.5
    assert "optimized" in str(found)


def test_baselines_replace_the_learning_rate_and_nothing_else():
    start = dmftopt.Protocol(1.0, dmftopt.schedules.linear_decay(4.0, 5.0, 0.25), 0.1)
    rates = dmftopt.baselines(start, horizon=5.0, peak=0.7)
    t = jnp.array([0.0, 2.5, 5.0])
    expected = {"constant": [0.7, 0.7, 0.7], "linear decay": [0.7, 0.35, 0.0], "cosine": [0.7, 0.35, 0.0]}
    for name, values in expected.items():
        np.testing.assert_allclose(rates[name].learning_rate(t), values, atol=1e-12)
        assert eqx.tree_equal(rates[name].batch_size, start.batch_size) and rates[name].ridge(0.0) == 0.1
