"""Sampled weights: any elementwise regularizer and any law of the teacher's entries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_within, central_difference, four_groups, least_squares_modes, problem
from jax.flatten_util import ravel_pytree
from jax.scipy.special import ndtri

import dmftopt
from dmftopt import noise, parametrizations, priors, regularizers, tasks

NAMES = ("test_risk", "train_loss", "student_overlap", "teacher_overlap", "norm", "correlation")
GRID = dmftopt.TimeGrid.geometric(4.0, 24, ratio=5.0)


@pytest.mark.parametrize(
    "task, law, step",
    [
        (tasks.LeastSquares(0.3), noise.Brownian(), dmftopt.ExponentialStep()),
        pytest.param(tasks.Committee(2, 1, "erf"), noise.NoNoise(), dmftopt.DiscreteStep(), marks=pytest.mark.slow),
    ],
    ids=["least squares", "committee"],
)
def test_with_the_ridge_particles_are_exact(key, task, law, step):
    """Linear weights feel second moments alone, and those of the particles are exact: both representations agree to rounding,
    which 24 Gram-Schmidt steps magnify."""
    p = problem(task, four_groups(), teacher_prior=priors.Sparse(0.2))
    options = {"noise": law, "step": step, "samples": 1024, "key": key}
    sampled = dmftopt.CausalInnovations(particles=2048, sample_weights=True)
    exact, found = (
        dmftopt.solve(p, dmftopt.Protocol(1.0, ridge=0.1), GRID, solver=s, **options)
        for s in (dmftopt.CausalInnovations(), sampled)
    )
    for name in NAMES:
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), atol=1e-7)
    if not law.deterministic and p.m == 1:
        np.testing.assert_allclose(found.response, exact.response, atol=1e-7)


def check(solution, simulation):
    comparison = dmftopt.compare(solution, simulation, errors="sampling")
    assert comparison.agrees(sigmas=2, relative=0.005), f"\n{comparison}"


SPARSE = priors.Sparse(0.1)
PARTICLES = dmftopt.CausalInnovations(particles=8192)


# At d = 1000 and 32 runs for speed; at 2000 and 64 the same gate holds, and the mean nears the solver's as d grows.
@pytest.mark.parametrize(
    "regularizer, prior, law, protocol",
    [
        (regularizers.SmoothL1(0.1), SPARSE, noise.NoNoise(), dmftopt.Protocol(0.4, ridge=0.3)),
        (regularizers.SmoothL1(0.1), priors.Laplace(), noise.Bernoulli(0.5), dmftopt.Protocol(0.15, ridge=0.5, momentum=0.5)),
    ],
    ids=["smooth L1", "batches, momentum"],
)
@pytest.mark.slow
@pytest.mark.long_run
def test_gradient_descent(regularizer, prior, law, protocol):
    p = problem(tasks.LeastSquares(0.3), delta=0.8, regularizer=regularizer, teacher_prior=prior)
    grid, options = dmftopt.TimeGrid.uniform(15.0, 15), {"noise": law, "key": jax.random.key(0)}
    solution = dmftopt.solve(
        p, protocol, grid, samples=8192, replicates=4, step=dmftopt.DiscreteStep(), solver=PARTICLES, **options
    )
    simulation = dmftopt.simulate.gradient_descent(p, protocol, grid, dimension=1000, runs=32, **options)
    check(solution, simulation)
    # As wide as this a smooth L1 is a ridge, by the same program.
    wide = problem(tasks.LeastSquares(0.3), delta=0.8, regularizer=regularizers.SmoothL1(10.0), teacher_prior=prior)
    ridge = dataclasses.replace(protocol, ridge=lambda t: 10.0 * protocol.ridge(t))
    other = dmftopt.solve(wide, ridge, grid, samples=8192, replicates=4, step=dmftopt.DiscreteStep(), solver=PARTICLES, **options)
    assert not dmftopt.compare(other, simulation, errors="sampling").agrees(sigmas=6), (
        "the regularizer is so weak that this test shows nothing"
    )


def against_sgd(p, protocol, grid, **options):
    options = {"samples": 8192, "replicates": 4, "solver": PARTICLES} | options
    solution = dmftopt.solve(p, protocol, grid, key=jax.random.key(0), **options)
    simulation = dmftopt.simulate.sgd(
        p, protocol, horizon=2.0, dimension=1000, runs=32, records=grid.times[::4], key=jax.random.key(1)
    )
    check(solution, simulation)


@pytest.mark.slow
@pytest.mark.long_run
def test_sgd():
    p = problem(
        tasks.Logistic("sign"), four_groups(), regularizer=regularizers.ElasticNet(0.5, 0.1), teacher_prior=priors.Rademacher()
    )
    against_sgd(p, dmftopt.Protocol(1.0, ridge=0.3), dmftopt.TimeGrid.geometric(2.0, 40, ratio=5.0))


@pytest.mark.slow
def test_sgd_of_diagonal_networks():
    """Euler's scheme, of first order: extrapolated."""
    p = problem(tasks.Logistic("sign"), teacher_prior=SPARSE, student_scale=0.2, parametrization=parametrizations.Diagonal(0.3))
    grid, options = dmftopt.TimeGrid.geometric(2.0, 24, ratio=5.0), {"step": dmftopt.DiscreteStep(), "richardson": True}
    against_sgd(p, dmftopt.Protocol(0.5, ridge=0.1), grid, **options)


@pytest.mark.slow
def test_the_time_step_is_of_second_order(key):
    """Of gradient flow: the exponent of the step, 2.4 to 2.5 with these and other keys (of first order it would be 1)."""
    p = problem(tasks.LeastSquares(0.3), regularizer=regularizers.SmoothL1(0.3), teacher_prior=SPARSE)

    def norm(steps):
        grid = dmftopt.TimeGrid.geometric(4.0, steps, ratio=5.0)
        solver = dmftopt.CausalInnovations(particles=2048)
        options = {"noise": noise.NoNoise(), "samples": 2048, "replicates": 8, "solver": solver, "key": key}
        return dmftopt.solve(p, dmftopt.Protocol(1.0, ridge=0.2), grid, **options).norm[-1, 0, 0]

    coarse, middle, fine = (norm(steps) for steps in (12, 24, 48))
    assert np.log2(np.abs(coarse - middle) / np.abs(middle - fine)) > 1.6


def test_parameters_start_at_the_weights():
    diagonal, theta = parametrizations.Diagonal(0.3), jnp.linspace(-3.0, 3.0, 7)
    p = diagonal.parameters(theta)
    np.testing.assert_allclose(diagonal.weights(p), theta, atol=1e-15)
    np.testing.assert_allclose(p[0] * p[1], 0.09)


@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy ball", "Nesterov"])
def test_momentum_is_exact(key, nesterov):
    """Least squares, mode by mode; tolerances as in test_exact."""
    rate, ridge, steps = 0.5, 0.1, 12
    p = problem(tasks.LeastSquares(0.5), student_scale=0.7)
    beta = 0.3 + 0.05 * np.arange(steps)
    protocol = dmftopt.Protocol(rate, ridge=ridge, momentum=lambda t: 0.3 + 0.05 * t, nesterov=nesterov)
    solution = dmftopt.solve(
        p, protocol, dmftopt.TimeGrid.uniform(float(steps), steps), noise=noise.NoNoise(), step=dmftopt.DiscreteStep(),
        samples=4096, replicates=8, key=key,
    )  # fmt: skip

    def initial(s):
        here, memory, path = np.ones_like(s), np.ones_like(s), [np.ones_like(s)]
        for b in beta:
            moved = here - rate * (s + ridge) * here
            if nesterov:
                here, memory = moved + b * (moved - memory), moved
            else:
                here, memory = moved + b * (here - memory), here
            path.append(here)
        return np.stack(path)

    correlation, overlap, train = least_squares_modes(p, initial, lambda s: (1 - initial(s)) / (s + ridge))
    error = solution.standard_error
    assert_within(solution.correlation[:, :, 0, 0], correlation, error.correlation[:, :, 0, 0], 6, slack=3e-4)
    assert_within(solution.teacher_overlap[:, 0, 0], overlap, error.teacher_overlap[:, 0, 0], 6, slack=3e-4)
    assert_within(solution.train_loss, train, error.train_loss, 6, slack=3e-4)


@pytest.mark.slow
def test_momentum_of_small_batches(key):
    """SGD with momentum, at d = 1000, where it lasts 5 of 1000 steps a unit of time, against continuous time."""
    protocol = dmftopt.Protocol(0.2, ridge=0.3, momentum=lambda t: 0.8 - 0.1 * t)
    p = problem(tasks.LeastSquares(0.3), student_scale=0.0)
    grid = dmftopt.TimeGrid.uniform(2.0, 20)
    found = dmftopt.simulate.sgd(p, protocol, horizon=2.0, dimension=1000, runs=16, key=key, records=4)
    plain = dmftopt.Protocol(lambda t: 0.2 / (0.2 + 0.1 * t), ridge=0.3)
    exact = dmftopt.limits.least_squares(p, plain, grid)
    np.testing.assert_allclose(dmftopt.limits.least_squares(p, protocol, grid).norm, exact.norm, rtol=1e-12)
    assert dmftopt.compare(exact, found, errors="sampling").agrees(sigmas=3, relative=0.01)
    solved, same = (dmftopt.solve(p, x, grid, samples=256, key=key) for x in (protocol, plain))
    np.testing.assert_allclose(solved.norm, same.norm, rtol=1e-12)


@pytest.mark.parametrize("beta", [1.0, -0.5])
def test_a_traced_momentum_outside_its_domain_is_invalid(beta):
    def run(beta):
        protocol, grid = dmftopt.Protocol(0.5, momentum=beta), dmftopt.TimeGrid.uniform(1.0, 2)
        return dmftopt.solve(problem(), protocol, grid, samples=128, key=jax.random.key(0)).result

    assert jax.jit(run)(jnp.asarray(beta)) == dmftopt.RESULTS.invalid


VALUES = {
    "learning_rate": jnp.array([1.0, 0.8, 0.5]),
    # Above 1: DiscreteStep reads it at time 0, and below 1 it is invalid.
    "batch_size": jnp.array([1.2, 1.5]),
    "ridge": jnp.array(0.3),
    "momentum": jnp.array(0.4),
    "delta": jnp.array(1.5),
    "width": jnp.array(0.2),
    "share": jnp.array(0.6),
    "teacher_scale": jnp.array([1.0, 0.8]),
    "student_scale": jnp.array([0.5, 0.4]),
    "eigenvalues": jnp.array([3.0, 0.5]),
    "weights": jnp.array([0.2, 0.8]),
    "horizon": jnp.array(2.9),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, step, parametrization",
    [
        (tasks.Logistic(), None, parametrizations.Direct()),
        (tasks.Committee(2, 1, "erf"), dmftopt.DiscreteStep(), parametrizations.Diagonal(0.5)),
    ],
    ids=["logistic", "committee"],
)
def test_gradient_equals_central_differences(key, task, step, parametrization):
    def objective(values):
        features = dmftopt.features.Features(values["eigenvalues"], values["weights"])
        p = dmftopt.Problem(
            task, features, values["delta"], values["teacher_scale"], values["student_scale"],
            regularizer=regularizers.ElasticNet(values["share"], values["width"]),
            teacher_prior=SPARSE, parametrization=parametrization,
        )  # fmt: skip
        # Parameters of a diagonal network feel the gradient times 2 u and 2 v, twice.
        slower = 1.0 if step is None else 0.1
        rate = dmftopt.schedules.PiecewiseLinear((0.0, 1.5, 3.0), slower * values["learning_rate"])
        batch = dmftopt.schedules.PiecewiseLinear((0.0, 3.0), values["batch_size"])
        protocol = dmftopt.Protocol(rate, batch, values["ridge"], None if step is None else values["momentum"])
        s = dmftopt.solve(
            p, protocol, dmftopt.TimeGrid.uniform(values["horizon"], 6), noise=noise.Brownian(), samples=256, step=step, key=key,
            solver=dmftopt.CausalInnovations(particles=256),
        )  # fmt: skip
        return s.test_risk[-1] + 0.3 * s.train_loss[-1] + 0.1 * s.norm[-1, 0, 0] + 0.2 * s.correlation[3, 5, 0, 0]

    flat, unravel = ravel_pytree(VALUES)
    f = jax.jit(jax.value_and_grad(lambda x: objective(unravel(x))))
    gradient = f(flat)[1]
    # As in test_gradients.
    step_size = 1e-5
    for i in range(flat.size):
        slope = central_difference(lambda h, i=i: f(flat.at[i].add(h))[0], step_size)
        np.testing.assert_allclose(gradient[i], slope, rtol=1e-5, atol=1e-6 * float(jnp.max(jnp.abs(gradient))))


def test_memory_of_the_gradient_is_linear_in_steps(key):
    """In arrays of (samples or particles) × steps, of each of which there are as many."""
    count = 2048
    p = problem(regularizer=regularizers.SmoothL1(0.1))

    def bytes_used(steps):
        grid = dmftopt.TimeGrid.uniform(5.0, steps)

        def final(rate):
            s = dmftopt.solve(
                p, dmftopt.Protocol(rate, ridge=0.1), grid, noise=noise.NoNoise(), samples=count, key=key,
                solver=dmftopt.CausalInnovations(particles=count),
            )  # fmt: skip
            return s.test_risk[-1]

        memory = jax.jit(jax.grad(final)).lower(jnp.array(1.0)).compile().memory_analysis()
        return memory.temp_size_in_bytes / (8 * count * steps)

    used = bytes_used(96)
    assert used < 16, used


@pytest.mark.parametrize(
    "prior, mean_absolute",
    [
        (priors.Normal(), (2 / np.pi) ** 0.5),
        (priors.Sparse(0.1), (0.1 * 2 / np.pi) ** 0.5),
        (priors.Rademacher(), 1.0),
        (priors.Laplace(), 0.5**0.5),
        # E|t| = 1 for 4 degrees of freedom, of variance 2.
        (priors.HeavyTailed(), 0.5**0.5),
    ],
    ids=lambda p: type(p).__name__ if isinstance(p, priors.AbstractPrior) else "",
)
def test_priors(prior, mean_absolute):
    """Midpoints of a million equal slices: the heaviest tail loses 1e-3 of its variance beyond them."""
    entries = prior.entries(ndtri((jnp.arange(2.0**20) + 0.5) / 2**20))
    np.testing.assert_allclose(jnp.mean(entries), 0.0, atol=1e-9)
    np.testing.assert_allclose(jnp.mean(jnp.abs(entries)), mean_absolute, rtol=1e-3)
    np.testing.assert_allclose(jnp.mean(entries**2), 1.0, rtol=2e-3)


@pytest.mark.parametrize("regularizer", [regularizers.SmoothL1(0.2), regularizers.ElasticNet(0.3, 0.2), regularizers.Ridge()])
def test_derivatives_of_regularizers(regularizer):
    """Central differences, error h² = 1e-8."""
    theta, h = jnp.linspace(-2.0, 2.0, 9), 1e-4
    first = (regularizer.penalty(theta + h) - regularizer.penalty(theta - h)) / (2 * h)
    np.testing.assert_allclose(regularizer.gradient(theta), first, atol=1e-6)
    second = (regularizer.gradient(theta + h) - regularizer.gradient(theta - h)) / (2 * h)
    np.testing.assert_allclose(regularizer.slope(theta), second, atol=1e-6)


def solve(solver=dmftopt.CausalInnovations(), steps=4, protocol=dmftopt.Protocol(0.5), **changes):
    grid = dmftopt.TimeGrid.uniform(2.0, steps)
    p = problem(**{"regularizer": regularizers.SmoothL1()} | changes)
    return dmftopt.solve(p, protocol, grid, samples=512, solver=solver, key=jax.random.key(0))


def differentiate_fraction():
    return jax.grad(lambda f: solve(teacher_prior=priors.Sparse(f)).test_risk[-1])(jnp.array(0.1))


ERRORS = {
    "regularizer a number": (lambda: problem(regularizer=0.1), TypeError, "regularizer must be a"),
    "prior a class": (lambda: problem(teacher_prior=priors.Normal), TypeError, "teacher_prior must be a"),
    "prior with correlation": (
        lambda: problem(teacher_prior=SPARSE, initial_correlation=0.5), ValueError, "teacher_prior must be priors.Normal"),
    "width zero": (lambda: regularizers.SmoothL1(0.0), ValueError, "width must be > 0"),
    "share": (lambda: regularizers.ElasticNet(1.5), ValueError, "share must be at most 1"),
    "fraction": (lambda: priors.Sparse(0.0), ValueError, "fraction must be > 0"),
    "fraction above 1": (lambda: priors.Sparse(1.5), ValueError, "fraction must be at most 1"),
    "particles odd": (lambda: dmftopt.CausalInnovations(particles=1000), ValueError, "particles must be a power of two"),
    "particles few": (
        lambda: solve(dmftopt.CausalInnovations(particles=128), 32), ValueError, "particles must be at least 528"),
    "fixed point": (lambda: solve(dmftopt.FixedPoint()), ValueError, r"regularizers.Ridge\(\) only"),
    "limit": (
        lambda: dmftopt.limits.online(problem(regularizer=regularizers.SmoothL1()), dmftopt.Protocol(0.5), GRID),
        ValueError, r"regularizers.Ridge\(\) only"),
    "stationary": (
        lambda: dmftopt.limits.stationary(problem(regularizer=regularizers.SmoothL1()), 0.1),
        ValueError, r"regularizers.Ridge\(\) only"),
    "parametrization a number": (lambda: problem(parametrization=0.1), TypeError, "parametrization must be a"),
    "scale zero": (lambda: parametrizations.Diagonal(0.0), ValueError, "scale must be > 0"),
    "parametrization in continuous time": (
        lambda: solve(parametrization=parametrizations.Diagonal()), ValueError, "Pass DiscreteStep"),
    "parametrization in a limit": (
        lambda: dmftopt.limits.online(problem(parametrization=parametrizations.Diagonal()), dmftopt.Protocol(0.5), GRID),
        ValueError, r"parametrizations.Direct\(\) only"),
    "momentum of 1": (lambda: dmftopt.Protocol(0.5, momentum=1.0), ValueError, "momentum must be below 1"),
    "momentum negative": (lambda: dmftopt.Protocol(0.5, momentum=-0.1), ValueError, "momentum must be >= 0"),
    "nesterov alone": (lambda: dmftopt.Protocol(0.5, nesterov=True), ValueError, "goes with a momentum"),
    "momentum of a schedule": (
        lambda: solve(protocol=dmftopt.Protocol(0.5, momentum=lambda t: 0.5 + t)), ValueError, "momentum must be below 1"),
    "momentum of the fixed point": (
        lambda: solve(protocol=dmftopt.Protocol(0.5, momentum=0.5), solver=dmftopt.FixedPoint()), ValueError, "momentum"),
    "momentum at finite steps": (
        lambda: dmftopt.limits.online_least_squares(
            problem(tasks.LeastSquares()), dmftopt.Protocol(0.5, momentum=0.5), dimension=20, horizon=1.0),
        ValueError, "momentum: limits.online_least_squares"),
}  # fmt: skip


@pytest.mark.parametrize("call, kind, message", ERRORS.values(), ids=ERRORS)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
