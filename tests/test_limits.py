"""The limits against each other, closed forms, the solver, and finite-size runs; what they share no code with."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optimistix
import pytest
import scipy.optimize
from helpers import assert_within, four_groups, least_squares_modes, problem

import dmftopt
from dmftopt import limits, schedules
from dmftopt.limits._result import Groups
from dmftopt.limits._spectral import contour

GRID = dmftopt.TimeGrid.geometric(5.0, 40, ratio=10.0)
GROUPED = [0.5, 1.0, 1.5, 1.0]
START = [0.3, 0.8, 0.5, 1.0]
DECAY = dmftopt.Protocol(
    dmftopt.schedules.cosine(1.5, 5.0, 0.1), dmftopt.schedules.PiecewiseLinear((0.0, 5.0), jnp.array([1.0, 4.0])), 0.1
)


class Hinge(dmftopt.tasks.AbstractTask):
    def loss(self, r, y):
        return jnp.maximum(0.0, 1 - y * r)

    def label(self, w_star, noise):
        return jnp.sign(w_star)


def grouped(task=None, **changes):
    return problem(task or dmftopt.tasks.LeastSquares(0.3), four_groups(), teacher_scale=GROUPED, student_scale=START, **changes)


def largest_gap(first, second):
    """Largest difference of any observable over its largest value."""
    pairs = zip(jax.tree.leaves(first.observables), jax.tree.leaves(second.observables), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs if b.size)


@pytest.mark.parametrize("delta", [0.5, 2.0])
def test_contour_integrals_are_traces_of_a_sample_covariance(delta):
    """One random matrix of size 1000: traces fluctuate by O(1/d); 5/d is room for the constant."""
    d, groups = 1000, Groups(grouped(), jnp.float64)
    path = jax.jit(lambda p: contour(Groups(p, jnp.float64), jnp.asarray(1.5), 64))(grouped(delta=jnp.asarray(delta)))
    assert path.good
    member = np.repeat(np.arange(4), np.round(np.asarray(groups.weights) * d).astype(int))
    lam = np.asarray(groups.eigenvalues)[member]
    x = np.random.default_rng(0).standard_normal((round(delta * d), d)) * np.sqrt(lam / d)
    s, u = np.linalg.eigh(x.T @ x / delta)
    slow, fast = ((u * np.exp(-rate * s)) @ u.T for rate in (0.5, 1.5))
    between = np.diag(slow @ (lam[:, None] * fast))
    z = path.z
    one = 2 * np.sum(np.asarray(path.one) * np.exp(-1.5 * np.asarray(z)), axis=1).real
    for a in range(4):
        same, mirror = path.two(jnp.eye(4)[a])
        two = 2 * (jnp.exp(-0.5 * z) @ (same @ jnp.exp(-1.5 * z) + mirror @ jnp.exp(-1.5 * jnp.conj(z)))).real
        np.testing.assert_allclose(one[a], np.sum(np.diag(fast)[member == a]) / d, atol=5 / d)
        np.testing.assert_allclose(two, np.sum(between[member == a]) / d, atol=5 / d)


def test_least_squares_is_gradient_flow_over_marchenko_and_pastur():
    p = problem(dmftopt.tasks.LeastSquares(0.5), teacher_scale=1.2, student_scale=0.7)
    # Four equal groups: what is tested is also that groups add up.
    equal = problem(
        p.task, dmftopt.features.spectrum(jnp.ones(4), [0.1, 0.2, 0.3, 0.4]),
        teacher_scale=jnp.full(4, 1.2), student_scale=jnp.full(4, 0.7),
    )  # fmt: skip
    found = limits.least_squares(equal, dmftopt.Protocol(1.0, ridge=0.1), GRID, noise=dmftopt.noise.NoNoise())

    def initial(s):
        return np.exp(-(s + 0.1) * np.asarray(GRID.times)[:, None])

    correlation, overlap, train = least_squares_modes(p, initial, lambda s: (1 - initial(s)) / (s + 0.1))
    # The equations are stepped to a relative error of 1e-8 a step.
    np.testing.assert_allclose(found.correlation[:, :, 0, 0], correlation, atol=1e-6)
    np.testing.assert_allclose(found.teacher_overlap[:, 0, 0], overlap, atol=1e-6)
    np.testing.assert_allclose(found.train_loss, train, atol=1e-6)
    assert found.test_error is None and found.train_error is None


@pytest.mark.slow
def test_least_squares_is_sgd():
    """Gate: 3 standard errors over runs plus 0.5%, for the bias of order 1/d = 0.25% and the maximum over times. (At delta = 2
    both are compared to the solver.)"""
    p = grouped(delta=0.5)
    limit = limits.least_squares(p, DECAY, GRID)
    simulation = dmftopt.simulate.sgd(
        p, DECAY, horizon=5.0, dimension=400, runs=32, records=GRID.times[::4], key=jax.random.key(1)
    )
    comparison = dmftopt.compare(limit, simulation, errors="sampling")
    assert comparison.agrees(sigmas=3, relative=0.005), f"\n{comparison}"


def test_the_solver_is_least_squares():
    """Gate: 4 standard errors of 8 replicates plus 0.5%, what Richardson leaves of the time step. The response's is larger: a
    few steps after the kick, least squares at these rates is off by 6.3%, 2.1%, 0.7% of the response on 20, 40, 80 steps."""
    solution = dmftopt.solve(grouped(), DECAY, GRID, samples=4096, replicates=8, richardson=True, key=jax.random.key(0))
    comparison = dmftopt.compare(solution, limits.least_squares(grouped(), DECAY, GRID))
    response = comparison.differences.pop("response")
    assert comparison.agrees(sigmas=4, relative=0.005), f"\n{comparison}"
    assert response.excess(4, 0.025) <= 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", [dmftopt.tasks.Logistic("logistic"), pytest.param(Hinge(), marks=pytest.mark.slow)], ids=["logistic", "hinge"]
)
@pytest.mark.long_run
def test_the_solver_is_online_where_samples_abound(task):
    """Gate as above; samples are seen at most once at delta = 1e6, so train losses are means over the solver's samples.
    4096 of those were too few for the hinge: the finite-sample bias, in no standard error, was 1% of the overlap."""
    p = grouped(task, delta=1e6)
    solution = dmftopt.solve(
        p, DECAY, GRID, noise=dmftopt.noise.Brownian(), samples=16384, replicates=4, richardson=True, key=jax.random.key(0)
    )
    comparison = dmftopt.compare(solution, limits.online(p, DECAY, GRID), errors="sampling")
    # A 0-1 error over quasi-random samples jumps; Richardson extrapolation adds to that.
    comparison.differences.pop("train_error", None)
    # A kinked loss has no curvature, so nothing of what follows a kick is stepped exactly, and the response is of first order:
    # with the hinge 9% and 4% off at 40 and 80 steps, and still 2.4% after extrapolation.
    response = comparison.differences.pop("response")
    assert response.excess(4, 0.03 if isinstance(task, Hinge) else 0.005) <= 0, f"\n{comparison}"
    assert comparison.agrees(sigmas=4, relative=0.005), f"\n{comparison}"


@pytest.mark.slow
@pytest.mark.long_run
def test_online_is_sgd_on_a_kinked_loss():
    """Gate: 3 standard errors plus 1/d = 1% and the share T E[B] / delta = 0.8% of steps on a sample seen before."""
    p, grid = grouped(Hinge(), delta=250.0), dmftopt.TimeGrid.uniform(2.0, 10)
    protocol = dmftopt.Protocol(1.0, 1.0, 0.1)
    simulation = dmftopt.simulate.sgd(p, protocol, horizon=2.0, dimension=100, runs=32, records=grid.times, key=jax.random.key(1))
    comparison = dmftopt.compare(limits.online(p, protocol, grid), simulation, errors="sampling")
    assert comparison.agrees(sigmas=3, relative=0.018), f"\n{comparison}"


def test_online_is_least_squares_where_samples_abound():
    p = grouped(delta=1e7)
    online = limits.online(p, DECAY, GRID, tolerance=1e-8)
    # Corrections are of order 1 / delta = 1e-7, times a few eigenvalues.
    assert largest_gap(online, limits.least_squares(p, DECAY, GRID)) < 3e-6


def test_a_student_that_starts_at_zero_learns_online():
    """Its field has no variance at first; from there the derivative of the teacher's overlap is -eta lambda E[l w_star]."""
    p = problem(student_scale=0.0)
    found = limits.online(p, dmftopt.Protocol(1.0), dmftopt.TimeGrid([0.0, 1e-4]))
    # E[y w_star] / 2 = sqrt(2 / pi) / 2, up to curvature over the first step.
    np.testing.assert_allclose(found.teacher_overlap[1, 0, 0] / 1e-4, (0.5 / np.pi) ** 0.5, rtol=1e-3)


class Calm(dmftopt.noise.AbstractNoise):
    """A law of one's own: half the variance of SGD's."""

    def deviation(self, learning_rate, step, rate):
        return learning_rate * step / jnp.sqrt(2 * rate)

    def standardized(self, uniforms, rotation, rate):
        return rotation @ jax.scipy.special.ndtri(uniforms)

    def temperature(self, learning_rate, batch_size):
        return learning_rate**2 / (2 * batch_size)


@pytest.mark.parametrize("noise, share", [(dmftopt.noise.Poisson(), 1.0), (dmftopt.noise.NoNoise(), 0.0), (Calm(), 0.5)])
def test_noise_in_the_online_limit(noise, share):
    """Isotropic least squares at constant rates: risk decays to its stationary value at rate 2 eta - eta² / B."""
    p = problem(dmftopt.tasks.LeastSquares(0.5), student_scale=0.7)
    grid = dmftopt.TimeGrid.uniform(4.0, 4)
    found = limits.online(p, dmftopt.Protocol(0.8, 2.0), grid, noise=noise)
    kick = share * 0.8**2 / 2
    rate, start = 1.6 - kick, 1 + 0.7**2
    error = kick * 0.25 / rate + (start - kick * 0.25 / rate) * np.exp(-rate * np.asarray(grid.times))
    np.testing.assert_allclose(found.test_risk, 0.5 * (error + 0.25), rtol=1e-5)
    np.testing.assert_allclose(found.train_loss, found.test_risk)
    times = np.asarray(grid.times)
    response = np.tril(np.exp(-0.8 * (times[:, None] - times[None, 1:])), -1)
    np.testing.assert_allclose(found.response[:, :, 0, 0], response, atol=1e-5)


def test_critical_learning_rate():
    """Just below it the train loss of a long run settles, just above it grows, with and without ridge."""
    p = grouped()
    np.testing.assert_allclose(limits.critical_learning_rate(p), 2.0)
    assert float(limits.critical_learning_rate(problem(dmftopt.tasks.LeastSquares(), delta=0.5))) == pytest.approx(2.0)
    grid = dmftopt.TimeGrid.uniform(60.0, 40)
    for ridge in (0.0, 0.5):
        critical = limits.critical_learning_rate(p, ridge)
        for factor, grows in ((0.9, False), (1.1, True)):
            # Learning rate over batch size is what counts.
            # (The risk grows up to 1e79: over a step it may not double.)
            run = limits.least_squares(p, dmftopt.Protocol(factor * critical * 2.0, 2.0, ridge), grid, steps=2048)
            late = np.asarray(run.train_loss)[-10:]
            assert np.all(np.isfinite(late))
            assert np.all(np.diff(late) > 0.1 * late[:-1]) if grows else np.ptp(late) < 1e-3 * late[0]


def test_online_least_squares_is_exact_in_any_dimension():
    """40000 runs with fresh samples in 8 dimensions: batch of 2, ridge, two groups, falling rate. Gate: 4 standard errors."""
    rng, d, runs, steps = np.random.default_rng(1), 8, 40000, 24
    features = dmftopt.features.spectrum([3.0, 1.0], [0.25, 0.75])
    p = dmftopt.Problem(dmftopt.tasks.LeastSquares(0.5), features, 1.0, jnp.array([1.0, 0.5]), jnp.array([0.4, 0.8]))
    rate = dmftopt.schedules.power_law(2.0, 0.5)
    found = limits.online_least_squares(p, dmftopt.Protocol(rate, 2, 0.3), dimension=d, horizon=3.0, records=3)
    lam = np.repeat(np.asarray(features.eigenvalues), [2, 6])
    teacher, theta = (rng.standard_normal((runs, d)) * np.repeat(s, [2, 6]) for s in ([1.0, 0.5], [0.4, 0.8]))
    path = [theta]
    for k in range(steps):
        eta = float(rate(k / d))
        x = rng.standard_normal((runs, 2, d)) * np.sqrt(lam / d)
        residual = np.einsum("rmd,rd->rm", x, theta - teacher) - 0.5 * rng.standard_normal((runs, 2))
        theta = theta - eta * (np.einsum("rmd,rm->rd", x, residual) / 2 + 0.3 * theta / d)
        if (k + 1) % 8 == 0:
            path.append(theta)

    def check(got, samples):
        assert_within(got, samples.mean(), samples.std() / runs**0.5, 4)

    for i, a in enumerate(path):
        check(found.norm[i, 0, 0], np.mean(a**2, axis=1))
        check(found.teacher_overlap[i, 0, 0], np.mean(lam * a * teacher, axis=1))
        check(found.test_risk[i], 0.5 * (np.mean(lam * (a - teacher) ** 2, axis=1) + 0.25))
        for j, b in enumerate(path):
            check(found.correlation[i, j, 0, 0], np.mean(lam * a * b, axis=1))
    mean = np.prod([1 - float(rate(k / d)) * (np.asarray([3.0, 1.0]) / 1.5 + 0.3) / d for k in range(8, 16)], axis=0)
    np.testing.assert_allclose(found.response[2, 0, 0, 0], np.sum([0.5, 0.5] * mean), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.long_run
def test_the_square_term_of_a_small_dimension_is_visible_in_sgd():
    """Isotropic, d = 20, batch of 1: (m + 1) / m = 2 agrees with SGD on samples that hardly repeat, 1 does not. Gate: 3 standard
    errors plus the share T / delta = 1% of repeats."""
    p, d = problem(dmftopt.tasks.LeastSquares(), delta=200.0), 20
    simulation = dmftopt.simulate.sgd(
        p, dmftopt.Protocol(1.3), horizon=2.0, dimension=d, runs=512, records=2, key=jax.random.key(3)
    )
    found = limits.online_least_squares(p, dmftopt.Protocol(1.3), dimension=d, horizon=2.0, records=2)
    comparison = dmftopt.compare(found, simulation, errors="sampling")
    assert comparison.agrees(sigmas=3, relative=0.01), f"\n{comparison}"
    for factor, right in ((2, True), (1, False)):
        shrink = 1 - 2 * 1.3 / d + 1.3**2 * (factor / d**2 + 1 / d)
        risk = 0.5 * 1.5 * shrink ** (20 * np.arange(3))
        if right:
            np.testing.assert_allclose(found.test_risk, risk, rtol=1e-12)
        else:
            z = (risk - simulation.test_risk)[1:] / simulation.standard_error.test_risk[1:]
            assert np.all(np.abs(z) > 5), z


def test_online_least_squares_tends_to_online_as_the_dimension_grows():
    p, protocol = grouped(), dmftopt.Protocol(dmftopt.schedules.cosine(1.0, 2.0), 2, 0.1)
    grid = dmftopt.TimeGrid.uniform(2.0, 4)
    limit = limits.online(p, protocol, grid, tolerance=1e-8)
    gaps = [largest_gap(limits.online_least_squares(p, protocol, dimension=d, horizon=2.0, records=4), limit) for d in (100, 400)]
    slope = np.log(gaps[1] / gaps[0]) / np.log(4)
    assert abs(slope + 1) < 0.15


def test_stationary_is_the_end_of_gradient_flow():
    p = grouped(delta=0.8)
    # The slowest mode has rate ridge = 0.1: exp(-20) = 2e-9 remains, below the tolerance of integration.
    flow = limits.least_squares(
        p, dmftopt.Protocol(1.0, ridge=0.1), dmftopt.TimeGrid.geometric(200.0, 40, ratio=100.0), noise=dmftopt.noise.NoNoise()
    )
    end = limits.stationary(p, 0.1)
    assert np.isinf(end.times).all() and end.correlation.shape == (1, 1, 1, 1) and end.response.shape == (1, 0, 1, 1)
    for name in ("test_risk", "train_loss", "student_overlap", "teacher_overlap", "norm"):
        np.testing.assert_allclose(getattr(end, name)[0], getattr(flow, name)[-1], rtol=1e-6)
    with pytest.raises(ValueError, match="does not tell the error of its steps"):
        _ = end.discretization_error


@pytest.mark.parametrize(
    "labels", ["sign", pytest.param("flipped", marks=pytest.mark.slow), pytest.param("logistic", marks=pytest.mark.slow)]
)
def test_stationary_is_the_minimizer_of_the_logistic_loss(labels):
    """Three data sets of 500 dimensions. Gate: 5 standard errors (2 degrees of freedom) plus 1%, for the bias of order 1/d."""
    p = grouped(dmftopt.tasks.Logistic(labels, 0.1 if labels == "flipped" else None))
    end, d, n, ridge = limits.stationary(p, 0.05), 500, 1000, 0.05
    rows = []
    for seed in range(3):
        instance = dmftopt.simulate._data.draw(p, np.repeat(np.arange(4), (50, 150, 150, 150)), n, jax.random.key(seed))
        arrays = (instance.features, instance.labels, instance.eigenvalues, instance.teacher[0])
        x, y, lam, teacher = (np.asarray(a) for a in arrays)

        def objective(theta, x=x, y=y):
            margin = y * (x @ theta)
            slope = -y / (1 + np.exp(margin))
            return np.sum(np.logaddexp(0, -margin)) / 2 + 0.5 * ridge * theta @ theta, x.T @ slope / 2 + ridge * theta

        theta = scipy.optimize.minimize(objective, np.zeros(d), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
        margin = y * (x @ theta)
        loss, error = np.mean(np.logaddexp(0, -margin)), np.mean(margin < 0)
        rows.append([lam @ theta**2 / d, lam @ (theta * teacher) / d, theta @ theta / d, loss, error])
    got = [end.student_overlap, end.teacher_overlap, end.norm, end.train_loss, end.train_error]
    for value, found in zip(got, np.transpose(rows), strict=True):
        assert_within(np.ravel(value)[0], found.mean(), found.std(ddof=1) / 3**0.5, 5, slack=0.01)


def test_limits_are_differentiable():
    """Against central differences: error h² = 1e-6 and integration error 1e-8 / h = 1e-5, relative to slopes of order 1."""
    grid, h = dmftopt.TimeGrid.uniform(2.0, 2), 1e-3
    p = grouped()

    def risk(route):
        def final(rates):
            return route(dmftopt.Protocol(rates[0], rates[1], rates[2])).test_risk[-1]

        return final

    at = jnp.array([0.8, 1.5, 0.2])
    routes = {
        "least_squares": lambda protocol: limits.least_squares(p, protocol, grid),
        "online": lambda protocol: limits.online(p, protocol, grid, tolerance=1e-8),
        "stationary": lambda protocol: limits.stationary(grouped(dmftopt.tasks.Logistic()), protocol.ridge(0.0)),
    }
    for name, route in routes.items():
        f = jax.jit(jax.value_and_grad(risk(route)))
        differences = jnp.stack([(f(at + h * e)[0] - f(at - h * e)[0]) / (2 * h) for e in jnp.eye(3)])
        np.testing.assert_allclose(f(at)[1], differences, atol=5e-5, err_msg=name)


FORWARD = {
    "least_squares": lambda protocol, grid: limits.least_squares(grouped(), protocol, grid, nodes=16, steps=64),
    "online": lambda protocol, grid: limits.online(
        grouped(dmftopt.tasks.Logistic()), protocol, grid, adjoint=diffrax.ForwardMode()
    ),
}


@pytest.mark.parametrize("route", FORWARD.values(), ids=FORWARD)
def test_forward_mode(route):
    """Central differences: error h² = 1e-6 and integration error 1e-6 / h = 1e-3, relative to slopes of order 1."""
    grid, h = dmftopt.TimeGrid.uniform(1.0, 1), 1e-3

    @jax.jit
    def pushed(rate):
        return jax.jvp(lambda x: route(dmftopt.Protocol(x, 1.5, 0.2), grid).test_risk[-1], (rate,), (jnp.ones(()),))

    slope = (pushed(0.8 + h)[0] - pushed(0.8 - h)[0]) / (2 * h)
    np.testing.assert_allclose(pushed(0.8)[1], slope, rtol=2e-3)


EXPORTED = {
    "online": jax.grad(lambda x: limits.online(grouped(), dmftopt.Protocol(x), GRID).test_risk[-1]),
    "least_squares": lambda x: limits.least_squares(grouped(), dmftopt.Protocol(x), GRID, nodes=16).test_risk,
    "stationary": jax.grad(lambda x: limits.stationary(grouped(), x).test_risk[-1]),
    "online_least_squares": lambda x: limits.online_least_squares(grouped(), dmftopt.Protocol(x), **RUN).test_risk,
}


@pytest.mark.parametrize("function", EXPORTED.values(), ids=EXPORTED)
def test_limits_can_be_exported(function):
    """A host callback cannot be written to a file. (Nothing is compiled here.)"""
    assert "callback" not in jax.export.export(jax.jit(function))(jnp.asarray(0.8)).mlir_module()


@pytest.mark.slow
def test_limits_in_float32():
    protocol = (1.0, 2.0, 0.1)
    routes = {
        "least_squares": lambda: limits.least_squares(grouped(), dmftopt.Protocol(*protocol), dmftopt.TimeGrid.uniform(2.0, 40)),
        "online": lambda: limits.online(grouped(), dmftopt.Protocol(*protocol), dmftopt.TimeGrid.uniform(2.0, 40)),
        "stationary": lambda: limits.stationary(grouped(), 0.1),
    }
    for name, route in routes.items():
        with jax.enable_x64(False):
            narrow = jax.tree.map(np.asarray, route().observables)
        assert narrow.norm.dtype == np.float32
        # Steps to 1e-5 in float32, and what the contour and the fixed point cancel.
        for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(route().observables), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3, err_msg=name)


LS = dmftopt.tasks.LeastSquares()
RUN = {"dimension": 20, "horizon": 1.0, "records": 4}
WRONG = {
    "task": (lambda: limits.least_squares(problem(), DECAY, GRID), TypeError, "problem.task must be a LeastSquares"),
    "task online": (lambda: limits.online_least_squares(problem(), DECAY, **RUN), TypeError, "problem.task"),
    "task critical": (lambda: limits.critical_learning_rate(problem()), TypeError, "problem.task"),
    "task stationary": (lambda: limits.stationary(problem(Hinge()), 0.1), TypeError, "problem.task"),
    "noise": (lambda: limits.online(problem(), DECAY, GRID, noise=dmftopt.noise.Bernoulli(0.1)), TypeError, "noise must be"),
    "noise name": (lambda: limits.least_squares(problem(LS), DECAY, GRID, noise="none"), TypeError, "noise must be"),
    "problem": (lambda: limits.online(None, DECAY, GRID), TypeError, "problem must be a Problem"),
    "protocol": (lambda: limits.online(problem(), 1.0, GRID), TypeError, "protocol must be a Protocol"),
    "grid": (lambda: limits.online(problem(), DECAY, jnp.arange(3.0)), TypeError, "grid must be a TimeGrid"),
    "rate": (lambda: limits.online(problem(), dmftopt.Protocol(lambda t: 1 - t), GRID), ValueError, "learning_rate must be >= 0"),
    "ridge": (lambda: limits.stationary(problem(), 0.0), ValueError, "ridge must be > 0"),
    "critical": (lambda: limits.critical_learning_rate(problem(LS), -1.0), ValueError, "ridge must be >= 0"),
    "teacher": (lambda: limits.online(problem(teacher_scale=0.0), DECAY, GRID), ValueError, "teacher_scale must be > 0"),
    "batch": (
        lambda: limits.online_least_squares(problem(LS), dmftopt.Protocol(1.0, 1.5), **RUN), ValueError, "batch_size must be"
    ),
    "records": (lambda: limits.online_least_squares(problem(LS), DECAY, **RUN | {"records": 21}), ValueError, "records must be"),
    "dimension": (
        lambda: limits.online_least_squares(problem(LS), DECAY, dimension=2.5, horizon=1.0), TypeError, "dimension must be"
    ),
    "adjoint": (lambda: limits.online(problem(), DECAY, GRID, adjoint="forward"), TypeError, "adjoint must be a"),
    "max_steps": (lambda: limits.online(problem(), DECAY, GRID, max_steps=0), ValueError, "max_steps must be at least 1"),
    "nodes": (lambda: limits.least_squares(problem(LS), DECAY, GRID, nodes=2), ValueError, "nodes must be at least 8"),
}  # fmt: skip


@pytest.mark.parametrize("call, kind, message", WRONG.values(), ids=WRONG)
def test_wrong_input(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_divergence_raises_and_keeps_what_came_before():
    def run(**options):
        return limits.online_least_squares(problem(LS), dmftopt.Protocol(1e3), dimension=200, horizon=2.0, **options)

    with pytest.raises(dmftopt.SolveError, match=r"limits\.online_least_squares failed at t = .*Lower the learning rate"):
        run()
    assert issubclass(dmftopt.SolveError, FloatingPointError)
    found = run(throw=False)
    assert found.result == dmftopt.RESULTS.nonfinite
    finite = np.isfinite(found.test_risk)
    first = int(np.argmin(finite))
    assert 1 < first < 41 and not finite[first:].any()
    assert np.isfinite(found.correlation[:first, :first]).all() and np.isnan(found.correlation[:, first:]).all()


def test_a_step_limit_is_said_to_be_one():
    """A rate that jumps after t = 1 to where the equations are stiff: 5 steps no longer pass there."""
    protocol = dmftopt.Protocol(lambda t: jnp.where(t < 1.2, 0.05, 400.0), 1e4)
    given = grouped(dmftopt.tasks.Logistic()), protocol, dmftopt.TimeGrid.uniform(2.0, 4)
    with pytest.raises(dmftopt.SolveError, match=r"failed at t = 1\.5: .*max_steps"):
        limits.online(*given, max_steps=5)
    found = limits.online(*given, max_steps=5, throw=False)
    assert found.result == dmftopt.RESULTS.max_steps_reached
    np.testing.assert_array_equal(np.isfinite(found.test_risk), [True, True, True, False, False])
    np.testing.assert_array_equal(np.isfinite(found.norm[:, 0, 0]), np.isfinite(found.test_risk))


class Bump(eqx.Module):
    """A triangle of area 1 around `center`, nothing elsewhere, that says so or not."""

    center: jax.Array
    width: jax.Array
    known: bool = eqx.field(static=True, default=False)

    def __call__(self, t):
        return jnp.maximum(0.0, 1 - jnp.abs(t - self.center) / self.width) / self.width

    @property
    def knots(self):
        corners = self.center + self.width * jnp.array([-1.0, 0.0, 1.0])
        return corners if self.known else jnp.zeros(0)


SQUARES = {"online": limits.online, "least_squares": lambda *given, **options: limits.least_squares(*given, nodes=16, **options)}


@pytest.mark.parametrize("route", SQUARES.values(), ids=SQUARES)
def test_a_rate_that_acts_late_is_seen(route):
    """The same bump, from the start and after 50 of its widths of nothing. Where the steps of the integration grew over the quiet
    time it passed over the bump, and the risk remained that of no training. Tolerances: some hundred steps of 1e-6 (1e-8 for
    least squares); kinks that nothing knows of are crossed with a few times that."""
    p = problem(LS)

    def risk(center, width, horizon, known=False):
        bump = Bump(jnp.asarray(center), jnp.asarray(width), known)
        found = route(p, dmftopt.Protocol(bump, 2.0), dmftopt.TimeGrid.uniform(horizon, 2), throw=False)
        return np.asarray(found.test_risk[-1]), found.result

    early, _ = risk(10.0, 10.0, 20.0)
    assert early < 0.7 * 0.5 * 1.5
    np.testing.assert_allclose(risk(530.0, 10.0, 1000.0)[0], early, rtol=2e-4)
    # Much shorter than the distance of the times at which a schedule is looked at: right where it has knots, flagged without.
    early, _ = risk(0.1, 0.1, 0.2)
    np.testing.assert_allclose(risk(530.0, 0.1, 1000.0, known=True)[0], early, rtol=1e-5)
    late, result = risk(530.0, 0.1, 1000.0)
    assert np.isnan(late) and result == dmftopt.RESULTS.inaccurate


@pytest.mark.parametrize("ends", [4.0, 5.0], ids=["the run as well", "on a time of the grid"])
def test_a_jump_that_moves_with_a_horizon_has_its_derivative(ends):
    """Jumps of learning rate and batch size at fixed shares of the schedules' horizon: the run's, or one that puts them on times
    of a grid that stays. Central differences: error h² = 1e-6, and that of integration, 1e-6 / h, which is the same on both sides
    up to 1e-2."""
    rate, size = (schedules.PiecewiseConstant(jnp.array(v), 1.0) for v in ([1.0, 0.3, 1.5, 0.2, 0.8], [1.0, 5.0]))

    def risk(horizon):
        protocol = dmftopt.Protocol(schedules.Scaled(rate, horizon), schedules.Scaled(size, horizon))
        grid = dmftopt.TimeGrid((horizon if ends == 4.0 else ends) * jnp.array([0.0, 0.4, 1.0]))
        return limits.online(problem(LS), protocol, grid, adjoint=diffrax.ForwardMode()).test_risk[-1]

    pushed, h = jax.jit(lambda horizon: jax.jvp(risk, (horizon,), (jnp.ones(()),))), 1e-3
    slope = (pushed(ends + h)[0] - pushed(ends - h)[0]) / (2 * h)
    np.testing.assert_allclose(pushed(ends)[1], slope, atol=2e-5)
    # A hundredth of it would be seen.
    assert abs(slope) > 2e-3


def test_what_cannot_be_raised_is_a_result():
    """Under vmap as under jit, by which each member has a code of its own."""
    found = jax.vmap(lambda r: limits.stationary(grouped(), r))(jnp.array([0.1, -1.0]))
    np.testing.assert_allclose(found.test_risk[0], limits.stationary(grouped(), 0.1).test_risk)
    assert np.isnan(found.test_risk[1]).all(), "a ridge that could not be checked must not pass"
    codes = [dmftopt.RESULTS.successful, dmftopt.RESULTS.invalid]
    np.testing.assert_array_equal(found.result._value, [code._value for code in codes])
    rate = jax.jit(lambda x: limits.online_least_squares(grouped(), dmftopt.Protocol(x), **RUN).result)(-0.1)
    assert rate == dmftopt.RESULTS.invalid
    # A batch size must be whole at finite steps.
    run = jax.jit(lambda b: limits.online_least_squares(grouped(), dmftopt.Protocol(0.5, b), **RUN).result)
    assert run(2.0) == dmftopt.RESULTS.successful and run(1.5) == dmftopt.RESULTS.invalid


def test_results_say_what_other_libraries_say():
    for result in (diffrax.RESULTS.max_steps_reached, optimistix.RESULTS.nonlinear_divergence, lineax.RESULTS.singular):
        assert dmftopt.RESULTS[dmftopt.RESULTS.promote(result)] != ""
    names = ("successful", "diverged", "nonfinite", "unconverged", "inaccurate", "invalid", "max_steps_reached")
    assert len({dmftopt.RESULTS[getattr(dmftopt.RESULTS, name)] for name in names}) == len(names)
