"""Budgets are met to rounding, in the limit and in whole steps and samples."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from dmftopt import Budget, Plan, Protocol, above, between, schedules

RAMP = Protocol(
    schedules.cosine(1.5, 1.0), schedules.piecewise_linear(1.0, 5, [1.2, 2.0, 1.5, 4.0, 8.0], bounds=(1.0, 20.0)), above(0.1)
)
SMOOTH = eqx.tree_at(
    lambda p: p.batch_size, RAMP, schedules.PiecewiseLinear((0.0, 1.0), jnp.log(jnp.array([1.5, 30.0])), log=True)
)

BUDGETS = {
    "steps": ({"steps": 6.0}, lambda T, S: (T, 6.0)),
    "samples": ({"samples": 20.0}, lambda T, S: (S, 20.0)),
    "epochs": ({"epochs": 3.0}, lambda T, S: (S / 2.5, 3.0)),
    "seconds": ({"seconds": 9.0, "seconds_per_step": 2.0, "seconds_per_sample": 0.1}, lambda T, S: (2 * T + 0.1 * S, 9.0)),
    "of a run": ({"samples": 9000, "dimension": 600}, lambda T, S: (S, 15.0)),
}
PAIRS = {
    "steps and samples": ({"steps": 5.0, "samples": 20.0}, ("steps", "samples")),
    "epochs and seconds": (
        {"epochs": 8.0, "seconds": 9.0, "seconds_per_step": 2.0, "seconds_per_sample": 0.1},
        ("epochs", "seconds"),
    ),
}


def seen(run):
    """∫B dt by another quadrature."""
    horizon = float(run.horizon)
    knots = [horizon * k / 4 for k in (1, 2, 3)]
    return quad(lambda t: float(run.protocol.batch_size(t)), 0, horizon, points=knots, limit=200, epsabs=1e-12, epsrel=1e-12)[0]


@pytest.mark.parametrize("protocol", [RAMP, SMOOTH], ids=["knots", "smooth"])
@pytest.mark.parametrize("name", BUDGETS)
def test_a_constraint_is_met_and_sets_the_horizon(name, protocol):
    given, spends = BUDGETS[name]
    run = Budget(**given).run(protocol, 2.5)
    spent, total = spends(float(run.horizon), seen(run))
    np.testing.assert_allclose(spent, total, rtol=1e-9)
    np.testing.assert_allclose(run.samples, seen(run), rtol=1e-9)
    # Schedules are stretched, not changed.
    np.testing.assert_allclose(run.protocol.learning_rate(0.3 * run.horizon), protocol.learning_rate(0.3), rtol=1e-12)
    np.testing.assert_allclose(run.protocol.batch_size(0.7 * run.horizon), protocol.batch_size(0.7), rtol=1e-12)


STEPS = {
    # Means: (1 + 5 + 2) / 3, and of the values of 37 steps, to which 240 panels are no multiple.
    "pieces": (schedules.piecewise_constant(1.0, 3, [1.0, 5.0, 2.0]), 8 / 3),
    "pieces that a budget stretches": (schedules.Scaled(schedules.piecewise_constant(2.0, 7, np.arange(1.0, 8.0)), 0.5), 4.0),
    "a value per step": (schedules.PerStep(jnp.asarray(1.0 + np.arange(37) ** 2 % 11), 37), 1 + np.mean(np.arange(37) ** 2 % 11)),
    "uneven knots": (
        schedules.PiecewiseLinear((0.0, 0.123, 0.124, 1.0), jnp.array([1.0, 1.0, 9.0, 9.0])),
        0.123 + 0.005 + 9 * 0.876,
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ("pieces", "uneven knots") else name for name in STEPS]
)
def test_batch_sizes_that_jump_spend_what_was_asked(name):
    batch_size, mean = STEPS[name]
    budget = Budget(samples=10.0)
    run = budget.run(Protocol(1.0, batch_size), 2.5)
    np.testing.assert_allclose([run.horizon, run.samples], [10.0 / mean, 10.0], rtol=1e-12)
    np.testing.assert_allclose(budget.spent(run, run.horizon * jnp.array([0.0, 0.3, 1.0]))[-1], 10.0, rtol=1e-12)
    found = run.recipe(dimension=100, delta=2.5).batch_size
    # Running sums too: of the pieces of constant size, to the nearest whole sample.
    assert found.sum() == 1000
    if name == "pieces":
        steps = np.arange(1, found.size + 1) * 3 / found.size
        planned = np.interp(steps, [0, 1, 2, 3], [0, 125, 750, 1000])
        assert np.abs(np.cumsum(found) - planned).max() <= 0.5 + 1e-9


def test_a_batch_size_that_cannot_be_counted_is_refused():
    """It jumps where it does not say. Traced, nothing can be raised."""
    jumping = Protocol(1.0, lambda u: jnp.where(u < 0.3337, 1.0, 8.0))
    with pytest.raises(ValueError, match=r"batch_size: its mean is .* `knots`"):
        Budget(samples=10.0).run(jumping, 2.5)
    assert np.isnan(jax.jit(lambda samples: Budget(samples=samples).run(jumping, 2.5).horizon)(10.0))
    # A kink without knots is good enough, and so is what says where it jumps.
    Budget(samples=10.0).run(Protocol(1.0, lambda u: 1 + jnp.abs(u - 0.3337)), 2.5)


@pytest.mark.parametrize("name", PAIRS)
def test_two_constraints_are_met_and_scale_the_batch_size(name):
    given, names = PAIRS[name]
    run = Budget(**given).run(RAMP, 2.5)
    for name in names:
        spent, total = BUDGETS[name][1](float(run.horizon), seen(run))[0], given[name]
        np.testing.assert_allclose(spent, total, rtol=1e-9)
    u = np.linspace(0, 1, 7)
    ratio = (run.protocol.batch_size(u * run.horizon) - 1) / (RAMP.batch_size(u) - 1)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


@pytest.mark.parametrize("given", [{"samples": 20.0}, {"steps": 5.003, "samples": 20.0}, {"epochs": 3.0}])
def test_whole_steps_and_samples_spend_the_budget_too(given):
    run = Budget(**given).run(RAMP, 2.5)
    steps = run.recipe(dimension=1000, delta=2.5)
    assert len(steps) == round(1000 * float(run.horizon))
    assert steps.batch_size.sum() == round(1000 * given.get("samples", 2.5 * given.get("epochs", 0)))


def test_a_horizon_of_ones_own():
    plan = Plan(RAMP, horizon=between(5.0, 1.0, 20.0))
    run = Budget(samples=20.0).run(plan, 2.5)
    np.testing.assert_allclose([run.horizon, seen(run)], [5.0, 20.0], rtol=1e-9)


def test_differentiable_and_traced():
    """With samples alone T = S / <B>, so d log T = -d log <B>."""
    budget = Budget(samples=20.0)
    mean = jax.grad(lambda p: jnp.log(jnp.mean(p.batch_size((jnp.arange(4000.0) + 0.5) / 4000))))
    found = jax.jit(jax.grad(lambda p: jnp.log(budget.run(p, 2.5).horizon)))(RAMP)
    np.testing.assert_allclose(found.batch_size.values.raw, -mean(RAMP).batch_size.values.raw, rtol=1e-5)


def test_what_is_spent_along_the_run():
    budget = Budget(seconds=9.0, seconds_per_step=2.0, seconds_per_sample=0.1)
    run = budget.run(RAMP, 2.5)
    spent = budget.spent(run, run.horizon * jnp.linspace(0.0, 1.0, 9))
    np.testing.assert_allclose(spent[-1], 9.0, rtol=1e-12)
    half = quad(lambda t: 2.0 + 0.1 * float(run.protocol.batch_size(t)), 0, float(run.horizon) / 2, limit=200)[0]
    np.testing.assert_allclose(spent[4], half, rtol=1e-8)


ONE = Protocol(1.0)
ERRORS = {
    "nothing": (lambda: Budget(), "one or two of"),
    "three": (lambda: Budget(steps=1.0, samples=2.0, epochs=3.0), "one or two of"),
    "negative": (lambda: Budget(samples=-1.0), "samples must be > 0"),
    "no costs": (lambda: Budget(seconds=1.0, seconds_per_step=1.0), "Give all three"),
    "negative cost": (
        lambda: Budget(seconds=1.0, seconds_per_step=-1.0, seconds_per_sample=1.0),
        "seconds_per_step must be >= 0",
    ),
    "no cost at all": (
        lambda: Budget(seconds=1.0, seconds_per_step=0.0, seconds_per_sample=0.0).run(ONE, 1.0),
        "horizon must be > 0",
    ),
    "twice the same": (lambda: Budget(samples=1.0, epochs=2.0).run(ONE, 1.0), "fix the same thing"),
    "less than one": (lambda: Budget(steps=5.0, samples=4.0).run(RAMP, 1.0), "at least one per step"),
    "nothing to scale": (lambda: Budget(steps=5.0, samples=10.0).run(ONE, 1.0), "batch_size: .* Start from a larger one"),
    "horizon fixed twice": (lambda: Budget(steps=5.0, samples=10.0).run(Plan(RAMP, 3.0), 1.0), "Leave it out"),
    "horizon of 0": (lambda: Plan(RAMP, 0.0), "horizon must be > 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_to_do(name):
    make, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_variables_stay_in_their_bounds():
    for raw in (-1e3, -5.0, 0.0, 5.0, 1e3):
        x = eqx.tree_at(lambda v: v.raw, between(0.5, 0.2, 0.7), jnp.asarray(raw)).value
        assert 0.2 <= x <= 0.7
        if abs(raw) < 1e3:
            assert eqx.tree_at(lambda v: v.raw, above(0.5, 0.2), jnp.asarray(raw)).value > 0.2
    np.testing.assert_allclose([between(0.5, 0.2, 0.7).value, above(0.5, 0.2).value], 0.5)
    for make in (lambda: above(0.0), lambda: between(1.0, 1.0, 2.0), lambda: between(jnp.array([1.5, 2.5]), 1.0, 2.0)):
        with pytest.raises(ValueError, match="value must start above"):
            make()
    with pytest.raises(ValueError, match="low must be below high"):
        between(1.0, 2.0, 1.0)


def test_bounded_schedules_are_bounded_throughout():
    for log in (False, True):
        s = schedules.piecewise_linear(1.0, 4, [0.2, 1.0, 1.9, 0.5], log=log, bounds=(0.1, 2.0))
        np.testing.assert_allclose(s(jnp.linspace(0, 1, 4)), [0.2, 1.0, 1.9, 0.5])
        wild = eqx.tree_at(lambda s: s.values.raw, s, 100 * s.values.raw)
        assert jnp.all((wild(jnp.linspace(0, 1, 50)) >= 0.1 * (1 - 1e-12)) & (wild(jnp.linspace(0, 1, 50)) <= 2.0 * (1 + 1e-12)))
    with pytest.raises(ValueError, match="initial must start above"):
        schedules.piecewise_linear(1.0, 2, 3.0, bounds=(0.1, 2.0))
    with pytest.raises(ValueError, match="logarithms need a lower bound above 0"):
        schedules.piecewise_linear(1.0, 2, 1.0, log=True, bounds=(0.0, 2.0))
    with pytest.raises(ValueError, match=r"pair \(low, high\)"):
        schedules.constant(1.0, bounds=2.0)


def test_a_protocol_takes_variables():
    p = Protocol(above(0.5), between(2.0, 1.0, 9.0), above(0.1), between(0.3, 0.0, 1.0))
    np.testing.assert_allclose([f(0.4) for f in (p.learning_rate, p.batch_size, p.ridge, p.momentum)], [0.5, 2.0, 0.1, 0.3])
    assert len(jax.tree.leaves(eqx.filter(p, eqx.is_inexact_array))) == 4


def test_a_value_per_piece_and_per_step():
    s = schedules.piecewise_constant(2.0, 4, lambda t: 1.0 + t, log=True)
    np.testing.assert_allclose(s(jnp.array([0.0, 0.49, 0.5, 1.9, 2.0, 3.0])), [1.25, 1.25, 1.75, 2.75, 2.75, 2.75])
    steps = schedules.PerStep(jnp.arange(1000.0), 300)
    np.testing.assert_array_equal(steps(jnp.arange(1000) / 300), np.arange(1000.0))
    np.testing.assert_array_equal(steps((jnp.arange(1000.0) + 0.9) / 300), np.arange(1000.0))
    assert steps(1e6) == 999.0


def test_a_budget_is_a_number_to_jit():
    @eqx.filter_jit
    def horizon(budget, protocol):
        return budget.run(protocol, 2.5).horizon

    assert horizon(Budget(samples=20.0), RAMP) == pytest.approx(2 * float(horizon(Budget(samples=10.0), RAMP)))
    assert horizon._cached._cache_size() == 1
