"""Objectives of a run, and how sure an optimum is. Most of it on a prediction in closed form, some on the solver."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pytest
from helpers import central_difference
from jax.flatten_util import ravel_pytree

import dmftopt
from dmftopt import Budget, Objective, Plan, Protocol, Solve, TimeGrid, above, objectives, schedules
from dmftopt.design._staged import Gradient

SIGMA2 = 0.25


class Curve(eqx.Module):
    times: Any
    risk: Any

    @property
    def observables(self):
        return self

    def arrays(self):
        return {"test_risk": self.risk}


def one_pass(problem, protocol, grid, key):
    """Least squares on isotropic features, each sample seen once: dE/dt = -2 eta E + eta²/B (E + sigma²), risk (E + sigma²) / 2,
    with the coefficients of the middle of each step. A key adds noise of a known size."""
    sigma2, steps = problem.task.label_noise**2, grid.step_sizes
    middle = grid.times[:-1] + 0.5 * steps
    eta = protocol.learning_rate(middle)
    a, b = (-2 * eta + eta**2 / protocol.batch_size(middle)) * steps, eta**2 / protocol.batch_size(middle) * steps * sigma2

    def step(E, ab):
        E = E * jnp.exp(ab[0]) + ab[1] * jnp.expm1(ab[0]) / ab[0]
        return E, E

    start = jnp.asarray(problem.teacher_scale**2, dtype=float)
    _, path = jax.lax.scan(step, start, (a, b))
    noise = 0.0 if key is None else 0.1 * jax.random.normal(key) * jnp.log(eta[0])
    return Curve(grid.times, 0.5 * (jnp.append(start, path) + sigma2) + noise)


def problem(label_noise=SIGMA2**0.5, **changes):
    options = {"features": dmftopt.features.isotropic(), "delta": 2.0, "teacher_scale": 1.0, "student_scale": 0.0}
    return dmftopt.Problem(dmftopt.tasks.LeastSquares(label_noise), **(options | changes))


def protocol(rate=0.5, knots=5):
    return Protocol(
        schedules.piecewise_linear(1.0, knots, rate, log=True), schedules.piecewise_linear(1.0, 3, 2.0, bounds=(1, 9))
    )


CLOSED = Objective(problem(), Budget(samples=6.0), predict=one_pass)


def test_only_the_temperature_counts_at_fixed_samples():
    """Per sample dE/ds = -2 tau E + tau² (E + sigma²), tau = eta/B: twice rate and batch size on half the steps is the same."""
    one = Protocol(schedules.cosine(0.6, 1.0), 1.0)
    two = Protocol(schedules.cosine(1.2, 1.0), 2.0)
    np.testing.assert_allclose(CLOSED(one), CLOSED(two), rtol=1e-12)
    assert CLOSED.run(two).horizon == pytest.approx(0.5 * float(CLOSED.run(one).horizon))


def test_measures():
    curve, spent = Curve(jnp.arange(5.0), jnp.array([4.0, 3.0, 1.0, 2.0, 2.5])), jnp.array([0.0, 2.0, 4.0, 8.0, 10.0])
    assert objectives.final()(curve, spent) == 2.5 and objectives.best()(curve, spent) == 1.0
    np.testing.assert_allclose(objectives.area()(curve, spent), (7.0 + 4.0 + 6.0 + 4.5) / 10)
    np.testing.assert_allclose(objectives.time_to(target=2.0)(curve, spent), 3.0)
    np.testing.assert_allclose(objectives.time_to(target=4.5)(curve, spent), 0.0)
    np.testing.assert_allclose(objectives.time_to(target=0.5)(curve, spent), 50.0)
    assert objectives.final(lambda result: 2 * result.risk)(curve, spent) == 5.0
    # Continuous where the target is just met at the end.
    met = [objectives.time_to(target=t)(Curve(curve.times[:3], curve.risk[:3]), spent[:3]) for t in (1.0 + 1e-9, 1.0 - 1e-9)]
    np.testing.assert_allclose(met, 4.0, rtol=1e-6)
    slope = jax.grad(lambda r: objectives.time_to(target=2.0)(Curve(curve.times, r), spent))(curve.risk)
    np.testing.assert_allclose(slope, [0, 0.5, 0.5, 0, 0])
    with pytest.raises(ValueError, match=r"no 'test_error'.*test_risk"):
        objectives.final("test_error")(curve, spent)
    with pytest.raises(ValueError, match="target must be > 0"):
        objectives.time_to(target=0.0)


@pytest.mark.parametrize("across", [pytest.param("mean", marks=pytest.mark.slow), "worst"])
def test_several_problems(across):
    """Stacked where they differ in numbers only; a spectrum of another length makes them differ in shape. Epochs are of each
    one's own training set."""
    noisy = [problem(s, delta=d) for s, d in ((0.2, 1.0), (0.8, 2.0), (0.5, 3.0))]
    odd = [*noisy, problem(0.6, features=dmftopt.features.spectrum([1.0, 1.0]))]
    for several in (noisy, odd):
        objective = Objective(several, Budget(epochs=2.0), predict=one_pass, across=across)
        each = [float(Objective(p, Budget(epochs=2.0), predict=one_pass)(protocol())) for p in several]
        np.testing.assert_allclose(objective.values(protocol()), each, rtol=1e-12)
        np.testing.assert_allclose(objective(protocol()), {"mean": np.mean, "worst": np.max}[across](each), rtol=1e-12)


@pytest.mark.slow
def test_optimizers_agree_and_multistart_takes_the_best():
    adam = dmftopt.optimize(CLOSED, protocol(), optimizer=optax.adam(0.1), steps=150, progress=False)
    newton = dmftopt.optimize(CLOSED, protocol(), optimizer=optimistix.LBFGS(1e-5, 1e-7), steps=80, starts=3, progress=False)
    assert newton.value == pytest.approx(adam.value, rel=1e-3) and newton.value <= adam.value
    assert len(newton.ends) == 3 and newton.value == newton.ends.min() and len(newton.history) < 80
    assert CLOSED(newton.protocol) == pytest.approx(newton.value, rel=1e-9)
    # A start of one's own, next to the best, is the best.
    again = dmftopt.optimize(CLOSED, protocol(3.0), steps=0, starts=[newton.protocol], progress=False)
    assert again.value == pytest.approx(newton.value, rel=1e-9) and again.ends[0] > again.ends[1]


def noisy(p, key):
    x = p.learning_rate.values
    return 0.5 * jnp.sum((x - 1) ** 2) + 0.1 * jnp.sum(x * jax.random.normal(key, x.shape))


def test_stops_in_the_noise_and_refreshed_numbers_average_it(key):
    """The gradient is x - 1 + 0.1 noise: the optimum on one key is off by 0.1 per coordinate."""
    fixed = dmftopt.optimize(noisy, protocol(), optimizer=optax.sgd(0.2), steps=400, key=key, progress=False)
    assert len(fixed.history) < 60
    whole = dmftopt.optimize(noisy, protocol(), optimizer=optax.sgd(0.2), steps=400, key=key, stop=False, progress=False)
    assert len(whole.history) == 401
    refreshed = dmftopt.optimize(
        noisy, protocol(), optimizer=optax.sgd(0.2), steps=400, key=key, stop=False, refresh=True, progress=False
    )
    # Averages over about 100 steps, correlated over about 5: 0.1 / sqrt(100) each.
    off = np.abs(refreshed.protocol.learning_rate.values - 1)
    assert off.max() < 5 * 0.01 and np.abs(whole.protocol.learning_rate.values - 1).max() > 0.05
    early = dmftopt.optimize(noisy, protocol(), optimizer=optax.sgd(0.2), steps=400, key=key, refresh=True, progress=False)
    assert 20 < len(early.history) < 200


def test_certificate(key):
    """Of a quadratic with known curvature and known noise."""
    found = dmftopt.certify(noisy, protocol(), key=key, keys=64)
    assert found.names == ("learning_rate.values[0]", *(f"learning_rate.values[{i}]" for i in range(1, 5)), *found.names[5:])
    x = found.point[:5]
    np.testing.assert_allclose(found.hessian[:5, :5], np.eye(5), atol=1e-6)
    np.testing.assert_allclose(found.gradient[:5], x - 1, atol=5 * 0.1 / 8)
    np.testing.assert_allclose(found.gradient_error[:5], 0.1 / 8, rtol=0.4)
    assert found.possible_gain == pytest.approx(0.5 * np.sum(found.gradient[:5] ** 2), rel=1e-4)
    assert found.gradient_norm_error == pytest.approx(5**0.5 * 0.1 / 8, rel=0.2)
    at_best = dmftopt.certify(lambda p: jnp.sum((p.learning_rate.values - 1) ** 2), protocol(np.e))
    assert at_best.gradient_norm < 1e-9 and at_best.gradient_norm_error == 0 and "possible gain" in str(at_best)
    np.testing.assert_allclose(at_best.curvatures[-5:], 2.0, rtol=1e-6)
    assert at_best.downward == 0 and "minimum" not in str(at_best)


@pytest.mark.parametrize("signs, downward", [((1, 1, -1, 1, -1), 2), ((-1,) * 5, 5)], ids=["saddle", "maximum"])
def test_what_curves_downward_is_no_minimum(signs, downward):
    """Where the gradient vanishes too."""
    found = dmftopt.certify(lambda p: jnp.asarray(signs, float) @ (p.learning_rate.values - 1) ** 2, protocol(np.e))
    assert found.gradient_norm < 1e-9 and found.downward == downward and found.possible_gain == np.inf
    assert f"not a minimum: {downward} of " in str(found) and "gain unknown" in str(found)


@pytest.mark.slow
def test_sensitivity_is_the_derivative_in_relative_changes():
    plan = Plan(Protocol(schedules.cosine(0.6, 1.0, 0.1), schedules.linear_decay(8.0, 1.0, 0.5), 0.0, 0.2), 3.0)
    objective = Objective(problem(), predict=one_pass)
    found = dmftopt.sensitivity(objective, plan, knots=3)
    assert set(found.gradient) == {"learning_rate", "batch_size", "momentum"} and found.gradient["momentum"].shape == ()

    def changed(c):
        factor = schedules.PiecewiseLinear((0.0, 0.5, 1.0), c, log=True)
        rate = schedules.PiecewiseLinear(tuple(np.linspace(0, 1, 2001)), jnp.zeros(2001))
        u = jnp.linspace(0, 1, 2001)
        rate = eqx.tree_at(lambda s: s.values, rate, plan.protocol.learning_rate(u) * factor(u))
        return objective(eqx.tree_at(lambda p: p.protocol.learning_rate, plan, rate))

    expected = [central_difference(lambda x, i=i: changed(jnp.zeros(3).at[i].set(x)), 1e-3) for i in range(3)]
    np.testing.assert_allclose(found.gradient["learning_rate"], expected, rtol=1e-3)
    second = jax.hessian(changed)(jnp.zeros(3))
    np.testing.assert_allclose(found.hessian["learning_rate"]["learning_rate"], second, rtol=0.02, atol=1e-4)
    assert found.hessian["batch_size"]["learning_rate"].shape == (3, 3)
    # A batch size of 1 goes one way only.
    small = dmftopt.sensitivity(objective, Plan(Protocol(0.5), 3.0), knots=3)
    assert set(small.hessian) == {"learning_rate"} and np.all(small.gradient["batch_size"] < 0)


@pytest.mark.slow
def test_more_budget_is_never_worse():
    budgets = [Budget(samples=s) for s in (2.0, 4.0, 8.0)]
    front = dmftopt.pareto(CLOSED, protocol(), budgets, steps=60, progress=False)
    assert front[0].value > front[1].value > front[2].value > 0.5 * SIGMA2
    assert len(front[0].ends) == 1 and len(front[1].ends) == 2
    # Starts of one's own serve every budget, and so do so many of them.
    for starts in ([protocol(2.0), protocol(0.5)], 3):
        front = dmftopt.pareto(CLOSED, protocol(), budgets, steps=0, starts=starts, progress=False)
        assert [len(found.ends) for found in front] == [3, 4, 4]


SMALL = {"samples": 128, "noise": dmftopt.noise.Brownian()}


def test_the_objective_is_solve_on_the_run(key):
    """With what is tuned entering rates, batch sizes and the horizon; derivatives against differences."""
    grid = TimeGrid.geometric(1.0, 5)
    objective = Objective(problem(), Budget(samples=6.0), grid=grid, predict=Solve(**SMALL), measure=objectives.area())
    p = eqx.tree_at(lambda p: p.ridge, protocol(), schedules.Constant(above(0.1)))
    run = objective.run(p)
    at = TimeGrid(run.horizon * grid.times)
    direct = dmftopt.solve(objective.problems[0], run.protocol, at, key=key, **SMALL)
    np.testing.assert_allclose(objective.predict_run(p, key).test_risk, direct.test_risk, rtol=1e-12)
    compiled = eqx.filter_jit(lambda p, key: objective(p, key))
    expected = objectives.area()(direct, objective.budget.spent(run, at.times))
    np.testing.assert_allclose(compiled(p, key), expected, rtol=1e-12)
    # In two stages, as optimize does.
    parameters, fixed = eqx.partition(p, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(parameters)
    _, gradient, finite = Gradient(objective, parameters, fixed)(parameters, key)
    direction = jnp.asarray(np.random.default_rng(0).normal(size=flat.size))
    slope = central_difference(lambda x: compiled(eqx.combine(unravel(flat + x * direction), fixed), key), 1e-3)
    np.testing.assert_allclose(ravel_pytree(gradient)[0] @ direction, slope, rtol=1e-6)
    assert finite


@pytest.mark.slow
def test_poisson_noise_where_batch_size_and_horizon_are_fixed(key):
    """Only the rate is differentiated; where the batch size is tuned too, it says why not."""
    predict = Solve(dmftopt.noise.Poisson(), samples=64)
    objective = Objective(problem(), Budget(steps=2.0), grid=TimeGrid.uniform(1.0, 4), predict=predict)
    start = Protocol(schedules.constant(0.3, log=True))
    found = dmftopt.optimize(objective, start, steps=2, key=key, stop=False, fresh=2, progress=False)
    assert found.value < found.history[0]
    with pytest.raises(Exception, match="no derivative"):
        dmftopt.optimize(objective, protocol(), steps=1, key=key, fresh=2, progress=False)
    # A start that fails says what solve says.
    with pytest.raises(ValueError, match=r"optimize: .* not finite at the start .*learning rate"):
        dmftopt.optimize(objective, Protocol(schedules.constant(300.0, log=True)), steps=1, key=key, fresh=2, progress=False)


def test_a_prediction_takes_a_solver_and_is_made_finer_by_it():
    solver = dmftopt.CausalInnovations(samples=64, particles=128)
    short, long = Solve(samples=64, replicates=2), Solve(solver=solver, replicates=2)
    assert short.solver.samples == long.solver.samples == 64 and long.solver.particles == 128
    assert Solve().solver.samples == 2048 and Solve(step=dmftopt.DiscreteStep()).solver.step == dmftopt.DiscreteStep()
    finer = Objective(problem(), Budget(steps=1.0), grid=TimeGrid.uniform(1.0, 3), predict=long).finer(samples=4, replicates=3)
    assert finer.predict.solver == dmftopt.CausalInnovations(samples=256, particles=512) and finer.predict.replicates == 3
    assert isinstance(finer.predict.noise, dmftopt.noise.Poisson) and finer.grid.steps == 6
    # A step that is the algorithm's own update is not halved, nor is a law without noise made noisy.
    for noise in (dmftopt.noise.Bernoulli(0.5), dmftopt.noise.NoNoise()):
        predict = Solve(noise, samples=64, step=dmftopt.DiscreteStep())
        finer = Objective(problem(), Budget(steps=1.0), grid=TimeGrid.uniform(1.0, 3), predict=predict).finer()
        assert finer.grid.steps == 3 and type(finer.predict.noise) is type(noise)
    with pytest.raises(ValueError, match="samples must be at least 4"):
        Solve(samples=2)


JUMPS = Protocol(
    schedules.piecewise_constant(1.0, 7, [1.2, 0.3, 1.5, 0.2, 0.8, 2.0, 0.1]),
    schedules.piecewise_constant(1.0, 3, [1.0, 5.0, 2.0]),
    schedules.warmup_stable_decay(0.2, 1.0, jnp.asarray(0.123), 0.31),
)


@pytest.mark.slow
def test_an_exact_prediction_knows_jumps():
    """Seven pieces of learning rate do not fall on 480 panels: where they were smeared over those the risk was 0.3% off. The
    limit takes steps of relative error 1e-6."""
    p = dmftopt.Problem(dmftopt.tasks.LeastSquares(0.3), dmftopt.features.spectrum([2.0, 0.5], [0.3, 0.7]), 1.0)
    predict = dmftopt.Exact(dmftopt.limits.online)
    objective = Objective(p, Budget(samples=12.0), grid=TimeGrid.uniform(1.0, 2), predict=predict)
    run = objective.run(JUMPS)
    direct = dmftopt.limits.online(p, run.protocol, TimeGrid(run.horizon * jnp.array([0.0, 1 / 3, 1.0])))
    np.testing.assert_allclose(objective(JUMPS), direct.test_risk[-1], rtol=1e-5)
    # One program for all kinds.
    smooth = Protocol(schedules.cosine(1.0, 1.0), 2.0, momentum=0.3)
    shapes = [jax.tree.map(jnp.shape, objective.prepare(protocol)) for protocol in (JUMPS, smooth)]
    assert shapes[0] == shapes[1] and jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])


@pytest.mark.slow
def test_an_exact_prediction_reads_schedules_as_they_are():
    """Their values and the derivatives of these, where a kink is as well."""
    predict, grid = dmftopt.Exact(dmftopt.limits.online), TimeGrid.uniform(3.0, 2)
    t = jnp.asarray(np.random.default_rng(0).uniform(0.0, 3.0, 200))

    def values(protocol, tabulated):
        protocol = Protocol(*(schedules.Scaled(s, 3.0) for s in (protocol.learning_rate, protocol.batch_size, protocol.ridge)))
        protocol = predict.tabulated(protocol, grid) if tabulated else protocol
        return jnp.stack([protocol.learning_rate(t), protocol.batch_size(t), protocol.ridge(t)])

    flat, unravel = ravel_pytree(eqx.filter(JUMPS, eqx.is_inexact_array))
    fixed = eqx.filter(JUMPS, eqx.is_inexact_array, inverse=True)
    found, expected = (
        (f(flat), jax.jacfwd(f)(flat))
        for f in [lambda x, tab=tab: values(eqx.combine(unravel(x), fixed), tab) for tab in (True, False)]
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)
    # A smooth schedule to second order: (1 / 480)² / 8 of the second derivative, pi² / 2 in relative time.
    cosine = schedules.cosine(1.0, 3.0)
    np.testing.assert_allclose(predict.tabulated(Protocol(cosine), grid).learning_rate(t), cosine(t), atol=3e-6)


def test_a_limit_of_another_form_is_a_function():
    """At finite steps: the derivative is that of the recursion, whose number of steps the budget fixes."""
    p, run = (
        dmftopt.Problem(dmftopt.tasks.LeastSquares(0.3), dmftopt.features.isotropic(), 1.0),
        {"dimension": 20, "horizon": 2.0},
    )
    objective = Objective(
        p,
        Budget(steps=2.0),
        predict=lambda problem, protocol, grid, key: dmftopt.limits.online_least_squares(problem, protocol, records=1, **run),
    )
    rate = schedules.constant(0.8)
    found, expected = (
        jax.value_and_grad(f)(jnp.asarray(0.8))
        for f in (
            lambda x: objective(Protocol(eqx.tree_at(lambda s: s.value, rate, x))),
            lambda x: dmftopt.limits.online_least_squares(p, Protocol(x), records=1, **run).test_risk[-1],
        )
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.slow
def test_report_predicts_and_trains_with_whole_batches(key):
    """Batch sizes between 1 and 2, where rounding costs: theory says how much, SGD confirms."""
    objective = Objective(problem(), Budget(samples=5.0), grid=TimeGrid.uniform(1.0, 10), predict=Solve(samples=512))
    between_1_and_2 = Protocol(1.2, schedules.Constant(1.5))
    found = dmftopt.report(
        objective.finer(samples=2, replicates=1),
        {"1.5": between_1_and_2, "slow": Protocol(0.3, 1.0)},
        key=key,
        dimension=200,
        runs=64,
        fresh=2,
        progress=False,
    )
    row, slow = found.rows["1.5"][0], found.rows["slow"][0]
    assert row.samples == pytest.approx(5.0) and row.horizon == pytest.approx(5.0 / 1.5)
    assert row.rounded.mean > row.predicted.mean * 1.02 and slow.rounded.mean == pytest.approx(slow.predicted.mean, rel=1e-9)
    for r in (row, slow):
        # Finite-size bias at d = 200 is below half a percent (THEORY, section 6).
        assert abs(r.realized.mean - r.rounded.mean) < 4 * r.realized.standard_error + 0.005 * r.rounded.mean
    gain = found.gain("slow", "1.5")
    assert abs(gain["realized"].mean - gain["rounded"].mean) < 4 * gain["realized"].standard_error + 0.005
    assert gain["realized"].standard_error < np.hypot(row.realized.standard_error, slow.realized.standard_error)
    assert found.to_dict()["slow"][0]["realized"]["mean"] == slow.realized.mean and "SGD" in str(found)


ERRORS = {
    "no problem": (lambda: Objective([], Budget(steps=1.0)), "problem: give at least one"),
    "grid to 5": (lambda: Objective(problem(), Budget(steps=1.0), grid=TimeGrid.uniform(5.0, 4)), "grid must end at 1, got 5"),
    "a class": (lambda: Objective(problem(), Budget(steps=1.0), measure=objectives.final), "measure must be a function"),
    "a route without a grid": (
        lambda: dmftopt.Exact(dmftopt.limits.online_least_squares),
        "route must be a function of .* predict=",
    ),
    "no route": (lambda: dmftopt.Exact("online"), "route must be a function of"),
    "across": (lambda: Objective(problem(), Budget(steps=1.0), across="all"), "across must be"),
    "not a budget": (lambda: Objective(problem(), 5.0), "budget must be a Budget"),
    "no budget": (lambda: Objective(problem())(protocol()), "budget: without one pass a Plan"),
    "refresh without key": (lambda: dmftopt.optimize(CLOSED, protocol(), refresh=True), "refresh .* needs a key"),
    "other minimiser": (lambda: dmftopt.optimize(CLOSED, protocol(), optimizer=optimistix.NelderMead(1e-3, 1e-3)), "pass BFGS"),
    "no starts": (lambda: dmftopt.optimize(CLOSED, protocol(), starts=0), "starts must be at least 1"),
    "nothing to certify": (lambda: dmftopt.certify(CLOSED, Protocol(0.5)), "nothing to tune"),
    "no budgets": (lambda: dmftopt.pareto(CLOSED, protocol(), []), "budgets: give at least one"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_to_do(name):
    make, message = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=message):
        make()
