"""Optima known with pencil and paper, and what `optimize` makes of the same problems.

The derivations are in the docstrings. No reference value below is a number from an earlier run: each is a closed form, a
property of a closed form, or another route.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_within, continued, four_groups, problem
from scipy.integrate import simpson
from scipy.optimize import minimize_scalar
from scipy.special import lambertw

import dmftopt
from dmftopt import limits

LS = dmftopt.tasks.LeastSquares


def search(objective, start, steps, rate, **options):
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    return dmftopt.optimize(objective, start, optimizer=optimizer, steps=steps, progress=False, **options)


@pytest.mark.slow
def test_optimal_rate_of_online_least_squares():
    """Online least squares on isotropic features: with E = E[(theta - theta_star)²], test risk (E + sigma²)/2, section 5's
    equations for Q and O (E = Q - 2 O + rho, E[l w_star] = O - rho, E[l w] = Q - O, E[l²] = E + sigma²) add up to

        dE/dt = -2 eta E + (eta²/B) (E + sigma²).

    Per sample, dS = B dt, in terms of the temperature u = eta/B: dE/dS = -2 u E + u² (E + sigma²), which is smallest at

        u*(E) = E / (E + sigma²),        dE/dS = -E² / (E + sigma²).

    Greedy is optimal: the equation is scalar and autonomous, and whatever the protocol, its right-hand side at E is at least
    the greedy one at E, so E never falls below the greedy solution (comparison of solutions). B matters through S only.

    With F(E) = log E - sigma²/E the greedy solution is F(E) = F(E_0) - S, by Lambert's W: E = sigma² / W(v exp(v + S)), v =
    sigma²/E_0. For any other protocol, as F' = (E + sigma²)/E²,

        F(E_T) = F(E_0) - S + waste,    waste = int (u / u*(E) - 1)² dS    with E the protocol's own:

    a protocol of relative errors e in the rate ends where the optimum is with int e² dS samples fewer. That is the sensitivity,
    the same at all times, and what the best constant loses. For constant u and B = 1

        E_T = E_inf + (E_0 - E_inf) exp(-(2u - u²) T),        E_inf = u sigma² / (2 - u).

    Along the optimum y = log u* has y' = -u (1 - u) and y'' = u² (1 - u) (1 - 2u), per sample. A schedule linear in log u between
    knots h apart misses by h²/8 max|y''|, and wastes at most T times the square of that, which is the margin an optimizer of
    such schedules deserves.
    """
    horizon, knots, fine, sigma2 = 6.0, 5, 25, 0.25
    p = problem(LS(sigma2**0.5), teacher_scale=1.0, student_scale=0.5)
    start = 1.0**2 + 0.5**2
    times, coarse = (np.linspace(0, horizon, count) for count in (fine, knots))
    grid, rough = (dmftopt.TimeGrid.uniform(horizon, count - 1) for count in (fine, knots))

    def potential(E):
        return np.log(E) - sigma2 / E

    def optimal(S):
        return sigma2 / lambertw(sigma2 / start * np.exp(sigma2 / start + S)).real

    def best(E):
        return E / (E + sigma2)

    def errors(log_rates, log_batches):
        """E at `times`."""
        schedules = (dmftopt.schedules.PiecewiseLinear(times, jnp.asarray(a), log=True) for a in (log_rates, log_batches))
        return 2 * np.asarray(limits.online(p, dmftopt.Protocol(*schedules), grid).test_risk) - sigma2

    def wasted(E):
        return horizon - potential(start) + potential(E)

    # The closed form is a solution, with constant and with growing batches (but for the interpolation between 25 knots).
    one = np.zeros(fine)
    np.testing.assert_allclose(errors(np.log(best(optimal(times))), one), optimal(times), rtol=1e-5)
    growth = 0.2
    samples = np.expm1(growth * times) / growth
    path = errors(np.log(best(optimal(samples))) + growth * times, growth * times)
    np.testing.assert_allclose(path, optimal(samples), rtol=1e-4)

    # The best constant: its risk, and that it is behind by the waste.
    def flat(u):
        rest = u * sigma2 / (2 - u)
        return rest + (start - rest) * np.exp(-(2 * u - u**2) * horizon)

    u = minimize_scalar(flat, bounds=(0.01, 1.0), method="bounded", options={"xatol": 1e-10}).x
    path = errors(np.full(fine, np.log(u)), one)
    np.testing.assert_allclose(path[-1], flat(u), rtol=1e-5)
    np.testing.assert_allclose(wasted(path[-1]), simpson((u / best(path) - 1) ** 2, x=times), rtol=1e-3)
    assert wasted(path[-1]) > 0.1 * horizon

    # What is found is between the optimum and its interpolation at the knots, which is a schedule of the same family.
    initial = dmftopt.Protocol(dmftopt.schedules.piecewise_linear(horizon, knots, 0.4, log=True))
    found = search(lambda protocol: limits.online(p, protocol, rough).test_risk[-1], initial, steps=100, rate=0.2)
    target = np.log(best(optimal(coarse)))
    interpolated = errors(np.interp(times, coarse, target), one)[-1]
    log_rates = np.asarray(found.protocol.learning_rate.values)
    path = errors(np.interp(times, coarse, log_rates), one)
    np.testing.assert_allclose(0.5 * (path[-1] + sigma2), found.value, rtol=1e-5)
    assert optimal(horizon) * (1 - 1e-5) < path[-1] < interpolated
    v = np.linspace(best(optimal(horizon)), best(start), 1000)
    margin = (horizon / (knots - 1)) ** 2 / 8 * np.max(np.abs(v**2 * (1 - v) * (1 - 2 * v)))
    assert wasted(path[-1]) < horizon * margin**2
    # Every knot matters about equally (waste), so every knot is near its closed form.
    np.testing.assert_allclose(log_rates, target, atol=2 * margin)


RATE, BATCH, SPAN = 1.5, 1.0, 3.0


def ramped(power, steps, faster=1.0):
    """A protocol whose learning rate falls like g^-power and whose batch size grows like g^(1 - power), g = 1 + s, as
    functions of the clock s = int eta dt, and the grid of times at which s = 0, ..., SPAN in equal steps. `faster` multiplies
    both.

    From dt = ds / eta: t = ((1 + s)^(power + 1) - 1) / ((power + 1) eta_0), so both are power laws of t. Power 0 is a linear
    ramp of the batch size at constant rate, power 1 a rate like (1 + 2 eta_0 t)^(-1/2) at constant batch size.
    """
    rate = (power + 1) * RATE * faster
    start, exponents = (RATE * faster, BATCH * faster), (power / (power + 1), (power - 1) / (power + 1))
    eta, batch = (
        dmftopt.schedules.power_law(*(jnp.asarray(a) for a in (first, exponent, 1 / rate)))
        for first, exponent in zip(start, exponents, strict=True)
    )
    s = np.linspace(0.0, SPAN, steps + 1)
    return dmftopt.Protocol(eta, batch, jnp.asarray(0.1)), dmftopt.TimeGrid(((1 + s) ** (power + 1) - 1) / rate)


OBSERVABLES = ("student_overlap", "teacher_overlap", "correlation", "norm", "test_risk", "train_loss")


@pytest.mark.slow
def test_batch_ramp_is_learning_rate_decay_least_squares():
    """In the clock s = int eta dt, SGF (section 1) is

        d theta = -h(theta) ds - (1/delta) X^T l ds + sqrt(tau/delta) sum_i x_i l_i dW_i(s),    tau = eta/B,

    because dW_i(t) = dW_i(s) / sqrt(eta). So protocols with equal tau(s) and ridge(s) have the same law of the whole path in
    s, for any task, regularizer and delta; one may trade a growing batch for a decaying rate. The steps, d int ds / eta,
    differ; the samples, d int B dt = d int ds / tau, do not. (SGD at finite rates obeys this too as d -> infinity: its Poisson
    counts have mean B dt / delta = ds / (tau delta), and each multiplies eta delta / B = tau delta. In finite d it is true to
    order 1/d.)

    In least squares every observable agrees to the tolerance of the integration, 1e-8 per step.
    """
    p = problem(LS(0.5), four_groups())
    ramp, half, decay = ((power, *ramped(power, 8)) for power in (0.0, 0.5, 1.0))
    expected = limits.least_squares(p, *ramp[1:])
    for power, protocol, grid in (half, decay):
        found = limits.least_squares(p, protocol, grid)
        for name in (*OBSERVABLES, "response"):
            a, b = np.asarray(getattr(found, name)), np.asarray(getattr(expected, name))
            np.testing.assert_allclose(a, b, atol=1e-6 * np.max(np.abs(b)), err_msg=f"{name} {power}")

    # Steps and samples by the recipe, which is what would be run; (1 + s)^power is what a unit of s costs in steps.
    d, spent = 1000, {}
    for power, protocol, grid in (ramp, half, decay):
        steps = dmftopt.recipe(protocol, horizon=float(grid.times[-1]), dimension=d, delta=2.0)
        spent[power] = np.sum(steps.batch_size) / d
        expected_steps = ((1 + SPAN) ** (power + 1) - 1) / ((power + 1) * RATE)
        assert abs(len(steps.batch_size) - d * expected_steps) <= 1
    # The integral of ds / tau, to a batch at either end.
    samples = BATCH / RATE * (SPAN + SPAN**2 / 2)
    np.testing.assert_allclose(list(spent.values()), samples, atol=2 * (1 + SPAN) * BATCH / d)

    # Not at equal times: there the two part by far more.
    late = limits.least_squares(p, decay[1], ramp[2])
    assert np.max(np.abs(late.test_risk / expected.test_risk - 1)) > 0.02


@pytest.mark.slow
def test_batch_ramp_is_learning_rate_decay_logistic(key):
    """The same for the solver, where everything is a function of the averages over a step of eta, B, eta * ridge and eta²/B times
    the step, which are integrals over s, ds / tau, ridge ds and tau ds.

    - A common factor in eta and B moves all times alike and nothing else: equal to rounding.
    - Otherwise the points are turned by each grid's own rotation, and coefficients are extrapolated in t instead of s: equal to
      standard error and the error of the time step, which is measured against half the steps.
    """
    p, noise, steps = problem(features=four_groups()), dmftopt.noise.Brownian(), 32

    def solution(power, steps_in_s=steps, faster=1.0):
        protocol, grid = ramped(power, steps_in_s, faster)
        return dmftopt.solve(p, protocol, continued(grid, steps), noise=noise, samples=4096, replicates=8, key=key)

    ramp, decay = solution(0.0), solution(1.0)
    same = solution(1.0, faster=1.7)
    for name in OBSERVABLES:
        np.testing.assert_allclose(getattr(same, name), getattr(decay, name), rtol=1e-9, atol=1e-9, err_msg=name)
    coarse = solution(0.0, steps // 2), solution(1.0, steps // 2)
    for name in OBSERVABLES:
        a, b = (np.asarray(getattr(x, name)) for x in (ramp, decay))
        error = np.hypot(*(np.asarray(getattr(x.standard_error, name)) for x in (ramp, decay)))
        here = slice(steps // 2 + 1)
        every = (slice(None, None, 2),) * (2 if name == "correlation" else 1)
        halved = (np.asarray(getattr(x, name))[(here,) * len(every)] for x in coarse)
        doubled = max(np.max(np.abs(c - x[every])) for c, x in zip(halved, (a, b), strict=True))
        # Of second order: a third of what halving the step changed, for each of the two.
        assert_within(a, b, error, sigmas=4.5, slack=2 / 3 * doubled / np.max(np.abs(b)))


DIMENSION, STEPS = 50, 4
FEATURES = dmftopt.features.power_law(1.0, dimension=DIMENSION, groups=16)
STEP_TIMES = np.arange(STEPS) / DIMENSION


def finite(label_noise, batch_size):
    """Final risk after STEPS steps of one-pass SGD from 0, as a function of the protocol; and of the logarithms of its rates."""
    p = problem(LS(label_noise), FEATURES, student_scale=0.0)

    def of_protocol(protocol):
        run = {"dimension": DIMENSION, "horizon": STEPS / DIMENSION, "records": 1}
        return limits.online_least_squares(p, protocol, **run).test_risk[-1]

    def protocol(log_rates):
        return dmftopt.Protocol(dmftopt.schedules.PiecewiseLinear(STEP_TIMES, jnp.asarray(log_rates), log=True), batch_size)

    risk = jax.jit(lambda log_rates: of_protocol(protocol(log_rates)))
    return of_protocol, protocol, lambda log_rates: float(risk(jnp.asarray(log_rates)))


def tuned(risk, shape):
    """The best multiple of `shape`, as logarithms: the best of a scan, refined."""
    peaks = np.linspace(np.log(0.5), np.log(50.0), 24)
    near = peaks[np.argmin([risk(peak + np.log(shape)) for peak in peaks])]
    bounds = near - (peaks[1] - peaks[0]), near + (peaks[1] - peaks[0])
    peak = minimize_scalar(lambda x: risk(x + np.log(shape)), bounds=bounds, method="bounded").x
    return peak + np.log(shape)


def test_finite_steps_without_noise_are_conjugate_gradients():
    """Without label noise and with infinite batches K steps multiply the error of mode S = lambda/d by p(S) = prod_k (1 -
    eta_k S), whatever their order, and the risk is sum_j S_j p(S_j)² / 2 (teacher of variance 1, student from 0). In the best
    p of degree K with p(0) = 1 a change S q(S), q of lower degree, is of no use: sum_j S_j² p(S_j) q(S_j) = 0. So p is the
    orthogonal polynomial of weights S_j² at S_j (that of conjugate gradients), and 1/eta_k are its zeros, the Ritz values of
    K steps of Lanczos: real and within the spectrum. The rates are positive, the largest far beyond the stable 2 / S_max.
    Every order of them is an optimum, and the best constant is a saddle between: by symmetry, in exact arithmetic, no method
    that treats steps alike leaves the constants once it is there.
    """
    S = np.repeat(np.asarray(FEATURES.eigenvalues), np.round(FEATURES.weights * DIMENSION).astype(int)) / DIMENSION
    basis, _ = np.linalg.qr(np.vander(S / S.max(), STEPS) * S[:, None])
    rates = 1 / np.linalg.eigvalsh(basis.T @ (S[:, None] * basis))
    optimum = 0.5 * np.sum(S * np.prod(1 - rates[:, None] * S, axis=0) ** 2)
    assert rates.max() > 2 * 2 / S.max()

    of_protocol, protocol, risk = finite(0.0, 2.0**50)
    for order in itertools.permutations(rates):
        # Early small steps leave large factors to later ones, on what rounding and the batch of 2^50 left over.
        np.testing.assert_allclose(risk(np.log(order)), optimum, rtol=1e-6)
    linear = tuned(risk, 1 - np.arange(STEPS) / STEPS)
    found = search(of_protocol, protocol(linear), steps=300, rate=0.1)
    np.testing.assert_allclose(found.value, optimum, rtol=1e-5)
    np.testing.assert_allclose(np.sort(np.exp(found.protocol.learning_rate.values)), np.sort(rates), rtol=0.01)

    constant = tuned(risk, np.ones(STEPS))
    slopes = [(risk(constant + 1e-4 * e) - risk(constant - 1e-4 * e)) / 2e-4 for e in np.eye(STEPS)]
    np.testing.assert_allclose(slopes, 0.0, atol=1e-4 * risk(constant))
    swap = np.array([1.0, -1.0, 0.0, 0.0])
    assert risk(constant + 0.05 * swap) < risk(constant) and optimum < 0.5 * risk(constant)


def test_noise_tells_orders_apart_and_a_local_search_stalls():
    """With noise (batches of 256, label noise 0.1) orders of the same steps differ, because what a step adds only later steps
    take away, and several are strict local minima: Adam from the tuned linear decay, the natural start, stops in one that is
    percents above the best, which itself is far below the tuned decay. So one start is not enough; starting again from the
    best order of the steps found is, and random starts find a better one too. Checked by training: fresh samples, no code of
    the package.
    """
    noise, batch = 0.1, 256
    of_protocol, protocol, risk = finite(noise, batch)
    linear = tuned(risk, 1 - np.arange(STEPS) / STEPS)

    stalled = search(of_protocol, protocol(linear), steps=200, rate=0.1)
    log_rates = np.asarray(stalled.protocol.learning_rate.values)
    reordered = protocol(min(itertools.permutations(log_rates), key=risk))
    best = search(of_protocol, reordered, steps=200, rate=0.1)
    assert best.value < 0.8 * risk(linear)
    assert stalled.value > 1.05 * best.value
    # Several random starts around the same point find a better minimum too.
    several = search(of_protocol, protocol(linear), steps=200, rate=0.1, starts=2)
    assert several.ends[0] == stalled.value > 1.05 * several.value

    # Stalled for good: a Newton step would gain less than a thousandth of what is missing, and the curvature is positive.
    h, unit = 1e-3, np.eye(STEPS)
    slope = np.array([risk(log_rates + h * e) - risk(log_rates - h * e) for e in unit]) / (2 * h)
    corners = [[[risk(log_rates + h * (a * e + b * f)) for a in (1, -1) for b in (1, -1)] for f in unit] for e in unit]
    curvature = np.array(corners) @ np.array([1, -1, -1, 1]) / (4 * h**2)
    assert np.linalg.eigvalsh(curvature).min() > 0
    assert 0.5 * slope @ np.linalg.solve(curvature, slope) < 1e-3 * (stalled.value - best.value)

    schedules = np.exp([np.asarray(best.protocol.learning_rate.values), log_rates, linear])
    trained = trained_risks(schedules, noise, batch, runs=600)
    mean, error = trained.mean(axis=0), trained.std(axis=0, ddof=1) / len(trained) ** 0.5
    assert_within(mean, [best.value, stalled.value, risk(linear)], error, sigmas=4)
    # The same samples for all three: differences are known better than risks.
    gap = trained[:, 1] - trained[:, 0]
    assert gap.mean() > 3 * gap.std(ddof=1) / len(gap) ** 0.5


def trained_risks(schedules, noise, batch, runs):
    """Final risk (run, schedule) of SGD with fresh samples, plainly."""
    rng = np.random.default_rng(0)
    variances = np.repeat(FEATURES.eigenvalues, np.round(FEATURES.weights * DIMENSION).astype(int)) / DIMENSION
    risks = np.empty((runs, len(schedules)))
    for run in range(runs):
        teacher = rng.normal(size=DIMENSION)
        theta = np.zeros((DIMENSION, len(schedules)))
        for rates in schedules.T:
            x = rng.normal(size=(batch, DIMENSION)) * np.sqrt(variances)
            y = x @ teacher + noise * rng.normal(size=batch)
            theta = theta - rates * (x.T @ (x @ theta - y[:, None])) / batch
        risks[run] = 0.5 * (variances @ (theta - teacher[:, None]) ** 2 + noise**2)
    return risks
