"""Long runs: least squares in log time against SciPy's stiff integrator, at any horizon."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from helpers import problem

import dmftopt
from dmftopt import limits, schedules

LS = dmftopt.tasks.LeastSquares(0.3)
HORIZON = 1e6
# A jump, a quiet piece, kinks of the batch size; and a ridge that is felt at the end only.
PROTOCOL = dmftopt.Protocol(
    schedules.PiecewiseConstant(jnp.array([0.8, 0.3, 0.0, 0.5]), HORIZON),
    schedules.PiecewiseLinear((0.0, 0.3 * HORIZON, HORIZON), jnp.array([1.0, 1.0, 8.0])),
    1e-6,
)
GRID = dmftopt.TimeGrid.logarithmic(HORIZON, 9, 0.1)


def power_law():
    return problem(LS, dmftopt.features.power_law(1.5, dimension=1000, groups=12), student_scale=0.5)


def stepped(z, source, forced, felt):
    """Power of the residuals at the times of the grid, by implicit steps in log time between knots: dv/dt = -2 eta (z + ridge) v
    + eta² / B source P, with P = forced(p, c) + felt @ v."""
    times = np.asarray(GRID.times)
    jumps = np.array([0.25, 0.3, 0.5, 0.75]) * HORIZON
    rates = np.array([0.8, 0.3, 0.0, 0.5])

    def power(A, v):
        p = np.exp(-A * (z + 1e-6))
        return forced(p, (1 - p) / (z + 1e-6)) + felt @ v

    state, found, now = np.zeros(1 + z.size), {0.0: power(0.0, np.zeros(z.size))}, 0.0
    edges = np.unique(np.concatenate([times[1:], jumps]))
    for edge in edges:
        last = jumps[jumps <= now][-1] if now >= jumps[0] else 0.0
        eta = rates[int(4 * 0.5 * (now + edge) / HORIZON)]

        def change(s, y, last=last, eta=eta):
            # In the logarithm of the time since the last knot.
            t = last + np.expm1(s)
            batch = 1 + 7 * max(0.0, t / HORIZON - 0.3) / 0.7
            slope = -2 * eta * (z + 1e-6) * y[1:] + eta**2 / batch * source * power(y[0], y[1:])
            return (1 + t - last) * np.append(eta, slope)

        spans = np.log1p(np.array([now, edge]) - last)
        state = scipy.integrate.solve_ivp(change, spans, state, method="Radau", rtol=1e-8, atol=1e-13).y[:, -1]
        found[edge], now = power(state[0], state[1:]), edge
    return np.array([found[t] for t in times])


def online_modes(p):
    z, w = np.asarray(p.features.eigenvalues), np.asarray(p.features.weights)
    return stepped(z, z, lambda a, c: (w * z) @ (0.25 * a**2 + (c * z - 1) ** 2) + 0.09, w * z)


def sample_modes(p):
    """Isotropic, delta = 2: Marchenko and Pastur's law, by the midpoint rule in its angle."""
    angle = (np.arange(80) + 0.5) * np.pi / 80
    z = 1.5 + 2 * 0.5**0.5 * np.cos(angle)
    w = 2 * np.sin(angle) ** 2 / z / 80

    def forced(a, c):
        return (w * z) @ (0.25 * a**2 + (c * z - 1) ** 2 + c**2 * z * 0.045) - 2 * 0.045 * (w * z) @ c + 0.09

    return stepped(z, z, forced, w * z)


ROUTES = {
    "online": (limits.online, power_law, online_modes),
    "least_squares": (limits.least_squares, lambda: problem(LS, student_scale=0.5), sample_modes),
}


@pytest.mark.parametrize("route, build, modes", ROUTES.values(), ids=ROUTES)
def test_a_million_is_as_good_as_ten(route, build, modes):
    """Over seven decades of time, with jumps: within the stated error, and 1e-6 of the value for the implicit steps of 1e-8."""
    p = build()
    found, reference = route(p, PROTOCOL, GRID, steps=192), modes(p)
    stated = 2 * np.asarray(found.discretization_error.train_loss)
    assert np.all(np.abs(2 * found.train_loss - reference) <= stated + 1e-6 * reference)
    # It says something.
    assert np.max(stated / reference) > 1e-9
    np.testing.assert_allclose(0.5 * reference[0], found.train_loss[0])


RATES = jnp.array([0.8, 1.3, 2.0, 0.1, 0.5, 0.3])


def risk(rates):
    """By the start of the learning rate, its bend, batch size, ridge, scale of the student and noise, all of which are felt."""
    horizon, p = 1e3, problem(LS, dmftopt.features.power_law(1.5, dimension=10**6, groups=12))
    p = dmftopt.Problem(dmftopt.tasks.LeastSquares(rates[5]), p.features, p.delta, 1.0, rates[4])
    rate = schedules.PiecewiseLinear((0.0, 0.5 * horizon, horizon), jnp.append(rates[:2], 0.0))
    protocol = dmftopt.Protocol(rate, rates[2], 0.01 * rates[3])
    return 1e3 * limits.online(p, protocol, dmftopt.TimeGrid([0.0, horizon]), steps=128).test_risk[-1]


def test_derivatives_of_a_long_run():
    """In schedule, batch size, ridge and problem, all at once under vmap. Central differences of a smooth function: error h²."""
    h = 1e-3
    shifts = h * jnp.concatenate([jnp.zeros((1, 6)), jnp.eye(6), -jnp.eye(6)])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(risk)))(RATES[None] + shifts)
    np.testing.assert_allclose(slopes[0], (values[1:7] - values[7:]) / (2 * h), rtol=1e-4, atol=1e-5)
    assert np.all(np.abs(slopes[0]) > 1e-4)


def test_instability_is_flagged_at_any_length():
    """Beyond the critical rate of 2, that all eigenvalues have in common: over a long step the equations have no solution. Below
    it the risk is that of the balance v = eta P / 2."""
    p = power_law()

    def final(rate):
        found = limits.online(p, dmftopt.Protocol(rate), dmftopt.TimeGrid([0.0, 1e7]), throw=False)
        return found.test_risk[-1], found.result

    value, result = final(jnp.asarray(1.5))
    np.testing.assert_allclose(value, 0.045 / (1 - 0.75), rtol=1e-4)
    assert result == dmftopt.RESULTS.successful
    value, result = final(jnp.asarray(2.2))
    assert result == dmftopt.RESULTS.unstable and np.isnan(value)
    with pytest.raises(dmftopt.SolveError, match=r"SGD itself is unstable.*`steps`"):
        limits.online(p, dmftopt.Protocol(2.2), dmftopt.TimeGrid([0.0, 1e7]))


def test_logarithmic_grids():
    """Equal ratios between a first step and the horizon; with a last step, equal ratios of t / (horizon - t)."""
    times = np.asarray(dmftopt.TimeGrid.logarithmic(1e4, 6, 0.1).times)
    np.testing.assert_allclose(times, [0.0, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4], rtol=1e-12)
    times = np.asarray(dmftopt.TimeGrid.logarithmic(1e3, 7, 0.1, 2.0).times)
    assert times[-1] == 1e3
    np.testing.assert_allclose([times[1], 1e3 - times[-2]], [0.1, 2.0], rtol=1e-9)
    odds = times[1:-1] / (1e3 - times[1:-1])
    np.testing.assert_allclose(odds[1:] / odds[:-1], (odds[-1] / odds[0]) ** 0.2, rtol=1e-9)
    assert jax.jit(lambda t: dmftopt.TimeGrid.logarithmic(t, 4, 0.1, 0.1).times)(2.0).shape == (5,)


@pytest.mark.slow
def test_a_solve_takes_a_logarithmic_grid():
    """Gate: the stated total error, four standard errors and more."""
    grid, p = dmftopt.TimeGrid.logarithmic(4.0, 16, 0.05), problem(LS, delta=4.0)
    found = dmftopt.solve(p, dmftopt.Protocol(0.5), grid, samples=1024, replicates=4, key=jax.random.key(0))
    exact = limits.least_squares(p, dmftopt.Protocol(0.5), grid, nodes=16, steps=32)
    assert np.all(np.abs(found.test_risk - exact.test_risk) <= 2 * found.total_error.test_risk + 0.005)


WRONG = {
    "first": (lambda: dmftopt.TimeGrid.logarithmic(1.0, 4, 0.0), "first must be > 0"),
    "last": (lambda: dmftopt.TimeGrid.logarithmic(1.0, 4, 0.1, -1.0), "last must be > 0"),
    "both": (lambda: dmftopt.TimeGrid.logarithmic(1.0, 4, 0.5, 0.6), "must be less than the horizon"),
    "steps": (lambda: dmftopt.TimeGrid.logarithmic(1.0, 1, 0.1), "steps must be at least 2"),
    "of a limit": (lambda: limits.online(power_law(), PROTOCOL, GRID, steps=4), "steps must be at least 8"),
}


@pytest.mark.parametrize("call, message", WRONG.values(), ids=WRONG)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_the_step_is_of_fourth_order():
    """Of second where the ridge changes along the run. What is stated is a third of what halving all steps makes: of an error of
    order q (2^q - 1) / 3, 5 or 1 times itself."""
    rate = schedules.PiecewiseLinear((0.0, 50.0, 100.0), jnp.array([1.5, 0.7, 0.2]))
    for start, ratio in ((0.1, 5.0), (0.0, 1.0)):

        def found(steps, start=start):
            ridge = schedules.PiecewiseLinear((0.0, 100.0), jnp.array([start, 0.1]))
            return limits.online(power_law(), dmftopt.Protocol(rate, 1.0, ridge), dmftopt.TimeGrid([0.0, 100.0]), steps=steps)

        error = np.abs(found(64).test_risk - found(768).test_risk)[1]
        np.testing.assert_allclose(found(64).discretization_error.test_risk[1] / error, ratio, rtol=0.15)
