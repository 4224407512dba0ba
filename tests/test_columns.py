"""Tasks with several student and teacher columns: against single-field tasks, closed forms, limits, and finite-size runs."""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import central_difference, four_groups, problem
from scipy.integrate import quad

import dmftopt
from dmftopt import limits, tasks
from dmftopt.numerics import matrices

GRID = dmftopt.TimeGrid.geometric(4.0, 24, ratio=5.0)
PROTOCOL = dmftopt.Protocol(dmftopt.schedules.cosine(1.0, 4.0, 0.2), ridge=0.05)


def aligned(m_star, m, cosine):
    """Correlations: student column a leans toward teacher column a."""
    matrix = np.eye(m_star + m)
    for a in range(min(m_star, m)):
        matrix[a, m_star + a] = matrix[m_star + a, a] = cosine
    return matrix


@pytest.mark.parametrize(
    "matrix",
    [np.diag([2.0, 0.5, 1.0]), np.eye(3), np.ones((3, 3)) + 0.1 * np.eye(3), np.diag([1.0, 1e-6, 3e-6])],
    ids=["apart", "equal", "pair", "small"],
)
def test_functions_of_symmetric_matrices(matrix):
    """Roots squared, and first and second derivatives against central differences, where eigenvalues are equal too."""
    matrix, change = jnp.asarray(matrix), jnp.array([[0.3, 0.1, -0.2], [0.1, -0.4, 0.5], [-0.2, 0.5, 0.2]])

    def along(root):
        def at(h):
            return root(matrix + h * change)

        def slope(h):
            return jax.jvp(at, (h,), (jnp.ones_like(h),))[1]

        return jax.jit(lambda h: (at(h), *jax.jvp(slope, (h,), (jnp.ones_like(h),))))

    def shifted(h):
        return jnp.sqrt(h + 1)

    once = along(lambda a: matrices.of_symmetric(shifted, a))
    for root in (
        along(lambda a: matrices.of_symmetric(shifted, a, order=2)),
        along(lambda a: matrices.square_root(a + jnp.eye(3))),
    ):
        value, slope, second = root(jnp.array(0.0))
        np.testing.assert_allclose(value @ value, matrix + np.eye(3), atol=1e-12)
        np.testing.assert_allclose(slope, once(jnp.array(0.0))[1], atol=1e-12)
        # Truncation h² = 1e-8, rounding 1e-16 / h.
        h = jnp.array(1e-4)
        ahead, back = root(h), root(-h)
        np.testing.assert_allclose(slope, (ahead[0] - back[0]) / (2 * h), atol=1e-7)
        np.testing.assert_allclose(second, (ahead[1] - back[1]) / (2 * h), atol=1e-7)


def test_triangular_root_drops_dependent_columns():
    vectors = np.random.default_rng(0).standard_normal((3, 50))
    vectors = np.stack([vectors[0], 2 * vectors[0], vectors[1]])
    gram = jnp.asarray(vectors @ vectors.T)
    L, T = matrices.triangular_root(gram, jnp.diagonal(gram), 1e-9)
    np.testing.assert_allclose(L @ L.T, gram, rtol=1e-12)
    np.testing.assert_allclose((T @ vectors) @ (T @ vectors).T, np.diag([1.0, 0.0, 1.0]), atol=1e-12)


def test_one_linear_unit_is_least_squares():
    """The same random numbers, so the same numbers to rounding, which a chaotic step can magnify."""
    options = {"samples": 512, "noise": dmftopt.noise.Poisson(), "key": jax.random.key(0)}
    single = dmftopt.solve(problem(tasks.LeastSquares(0.3), four_groups()), PROTOCOL, GRID, **options)
    unit = dmftopt.solve(problem(tasks.Committee(1, 1, "linear", label_noise=0.3), four_groups()), PROTOCOL, GRID, **options)
    for name in ("test_risk", "train_loss", "correlation", "norm", "teacher_overlap"):
        np.testing.assert_allclose(getattr(unit, name), getattr(single, name), atol=1e-9)


@pytest.mark.slow
def test_two_classes_are_logistic_regression():
    """Softmax in two classes depends on the difference of its columns, on which it is logistic regression at twice the rate."""
    options = {"samples": 8192, "replicates": 4}
    two = dmftopt.solve(problem(tasks.Softmax(2)), PROTOCOL, GRID, key=jax.random.key(0), **options)
    faster = dmftopt.Protocol(lambda t: 2 * PROTOCOL.learning_rate(t), ridge=0.025)
    one = dmftopt.solve(
        problem(tasks.Logistic("sign"), teacher_scale=2**0.5, student_scale=1.0), faster, GRID, key=jax.random.key(1), **options
    )
    for name in ("test_risk", "train_loss", "test_error", "train_error"):
        error = np.hypot(getattr(two.standard_error, name), getattr(one.standard_error, name))
        # What jumps is averaged over 8192 points only.
        slack = 0.006 if name == "test_error" else 0.002
        np.testing.assert_array_less(np.abs(getattr(two, name) - getattr(one, name)), 4 * error + slack)
    difference = jnp.array([-1.0, 1.0])
    np.testing.assert_allclose(
        jnp.einsum("a,tsab,b->ts", difference, two.correlation, difference), one.correlation[:, :, 0, 0], atol=0.01
    )


@pytest.mark.parametrize("activation", ["erf", "relu", "quadratic"])
def test_closed_forms_of_the_committee(activation):
    """Against 8192 quasi-random points: 0.5% of the spread of a loss of order 1."""
    rng = np.random.default_rng(1)
    root = rng.standard_normal((5, 5)) / 2
    covariance = jnp.asarray(root @ root.T)
    Q, O, rho = covariance[:3, :3], covariance[:3, 3:], covariance[3:, 3:]
    layers = {"second_layer": [1.0, -0.5, 0.7], "teacher_layer": [0.4, 1.0], "label_noise": 0.2}
    task = tasks.Committee(3, 2, activation, **layers)
    found = task.test_risk(Q, O, rho)
    points = dmftopt.tasks.AbstractTask.test_risk(task, Q, O, rho)
    np.testing.assert_allclose(found, points, rtol=0.01)


class Savage(tasks.losses.AbstractLoss):
    """An own loss for clusters: (1 - sigmoid(y r))² / 2, bounded."""

    def __call__(self, r, y):
        return 0.5 * jax.nn.sigmoid(-y * r) ** 2


@pytest.mark.parametrize("loss", [*tasks.losses.NAMED, Savage()], ids=[*tasks.losses.NAMED, "own"])
def test_a_mixture_takes_any_loss(loss):
    """Its risk against the mean over random fields: 3e5 of them, 5 standard errors."""
    softmax = loss == "softmax"
    task = tasks.GaussianMixture((0, 1, 0) if softmax else (1, -1, 1), (0.2, 0.5, 0.3), loss)
    rng = np.random.default_rng(0)
    O = rng.normal(size=(task.columns, 3))
    root = np.diag([0.8, 0.5][: task.columns])
    cluster = rng.choice(3, p=[0.2, 0.5, 0.3], size=300_000)
    r = jnp.asarray(O[:, cluster] + root @ rng.normal(size=(task.columns, cluster.size)))
    y = jnp.asarray(task.labels)[cluster]
    value, slope = jax.vmap(jax.value_and_grad(task.loss), (1, 0))(r, y)
    risk = task.test_risk(jnp.asarray(root @ root.T), jnp.asarray(O), jnp.eye(3))
    error = task.test_error(jnp.asarray(root @ root.T), jnp.asarray(O), jnp.eye(3))
    np.testing.assert_allclose(risk, jnp.mean(value), atol=5 * np.std(value) / 300_000**0.5 + (2e-3 if softmax else 0.0))
    wrong = (jnp.argmax(r, axis=0).astype(float) if softmax else jnp.sign(r[0])) != y
    np.testing.assert_allclose(error, jnp.mean(wrong), atol=5e-3)
    np.testing.assert_array_equal(jax.vmap(task.error, (1, 0))(r[:, :99], y[:99]), wrong[:99].astype(float))
    np.testing.assert_allclose(jax.vmap(task.gradient, (1, 0))(r[:, :99], y[:99]), slope[:99], atol=1e-12)


def saad_and_solla(Q, O, rho, rate, times):
    """dQ/dt, dO/dt of the online erf committee, Phys. Rev. E 52 (1995) 4225, equations 4 to 13, with unit second layers."""
    m, n = Q.shape[0], rho.shape[0]
    signs = np.concatenate([np.ones(m), -np.ones(n)])

    def three(C, i, k, j):
        small = (1 + C[i, i]) * (1 + C[j, j]) - C[i, j] ** 2
        return 2 / np.pi / jnp.sqrt(small) * (C[k, j] * (1 + C[i, i]) - C[i, k] * C[i, j]) / (1 + C[i, i])

    def four(C, i, k, j, l):
        a, b, c, d = i, k, j, l
        L4 = (1 + C[a, a]) * (1 + C[b, b]) - C[a, b] ** 2
        L0 = L4 * C[c, d] - C[b, c] * C[b, d] * (1 + C[a, a]) - C[a, c] * C[a, d] * (1 + C[b, b])
        L0 = L0 + C[a, b] * C[a, c] * C[b, d] + C[a, b] * C[a, d] * C[b, c]

        def edge(e):
            return (
                L4 * (1 + C[e, e]) - C[b, e] ** 2 * (1 + C[a, a]) - C[a, e] ** 2 * (1 + C[b, b]) + 2 * C[a, b] * C[a, e] * C[b, e]
            )

        return 4 / np.pi**2 / jnp.sqrt(L4) * jnp.arcsin(L0 / jnp.sqrt(edge(c) * edge(d)))

    def rates(t, state, _):
        Q, O = state
        C = jnp.block([[Q, O], [O.T, rho]])
        fields = range(m + n)
        pull = jnp.array([[sum(signs[j] * three(C, i, k, j) for j in fields) for k in fields] for i in range(m)])
        power = jnp.array(
            [[sum(signs[j] * signs[l] * four(C, i, k, j, l) for j in fields for l in fields) for k in range(m)] for i in range(m)]
        )
        return -rate * (pull[:, :m] + pull[:, :m].T) + rate**2 * power, -rate * pull[:, m:]

    return diffrax.diffeqsolve(
        diffrax.ODETerm(rates), diffrax.Tsit5(), times[0], times[-1], None, (Q, O), saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-10), max_steps=100_000,
    ).ys  # fmt: skip


@pytest.fixture(scope="module")
def plateau():
    """Two units that hardly differ at the start learn from two: they wait on a plateau, then specialize."""
    correlation = aligned(2, 2, 0.01)
    p = dmftopt.Problem(
        tasks.Committee(2, 2, "erf"), dmftopt.features.isotropic(), 1e6, 1.0, 0.1, initial_correlation=correlation
    )
    grid = dmftopt.TimeGrid.uniform(150.0, 60)
    return p, grid, jax.jit(lambda: saad_and_solla(p.initial_overlap, 1e-3 * jnp.eye(2), jnp.eye(2), 1.5, grid.times))()


def test_online_limit_is_that_of_saad_and_solla(plateau):
    p, grid, (Q, O) = plateau
    found = limits.online(p, dmftopt.Protocol(1.5), grid)
    # It does go through a plateau and off it.
    assert found.test_risk[20] > 0.02 and found.test_risk[-1] < 1e-3
    np.testing.assert_allclose(found.student_overlap, Q, atol=1e-4)
    np.testing.assert_allclose(found.teacher_overlap, O, atol=1e-4)


@pytest.mark.slow
def test_the_plateau_is_the_solver_s_too(plateau):
    """At delta = 1e6 the solver sees each sample once. Its samples are as random as a start, and a plateau magnifies: 2%."""
    p, _, _ = plateau
    grid = dmftopt.TimeGrid.geometric(60.0, 60, ratio=30.0)
    larger = dataclasses.replace(p, initial_correlation=aligned(2, 2, 0.3), student_scale=0.5)
    found = dmftopt.solve(
        larger, dmftopt.Protocol(1.0), grid, noise=dmftopt.noise.Brownian(), samples=8192, replicates=2, key=jax.random.key(0)
    )
    exact = limits.online(larger, dmftopt.Protocol(1.0), grid)
    np.testing.assert_allclose(found.student_overlap, exact.student_overlap, atol=0.02)
    np.testing.assert_allclose(found.teacher_overlap, exact.teacher_overlap, atol=0.02)


@pytest.mark.slow
def test_identical_units_stay_identical_in_the_online_limit():
    """Directions in which units do not differ are null directions of their fields."""
    p = dmftopt.Problem(tasks.Committee(2, 2, "tanh"), dmftopt.features.isotropic(), 1.0, 1.0, 0.0)
    found = limits.online(p, dmftopt.Protocol(1.5), dmftopt.TimeGrid.uniform(15.0, 10))
    np.testing.assert_allclose(found.student_overlap, np.asarray(found.student_overlap)[:, :1, :1] * np.ones((2, 2)), rtol=1e-3)
    # What the softmax does not see, a shift of all columns, is never moved.
    p = dmftopt.Problem(tasks.Softmax(3), dmftopt.features.isotropic(), 1.0, 1.0, 0.0)
    found = limits.online(p, dmftopt.Protocol(1.0), dmftopt.TimeGrid.uniform(2.0, 4))
    np.testing.assert_allclose(found.response[4, 0] @ np.ones(3), np.ones(3), rtol=1e-6)


def test_traced_correlations_outside_their_domain_end_in_a_result_code():
    def solve(correlation):
        p = problem(tasks.LeastSquares(), initial_correlation=correlation)
        return dmftopt.solve(p, PROTOCOL, GRID, samples=512, key=jax.random.key(0))

    solution = jax.jit(solve)(jnp.asarray(1.5))
    assert solution.result == dmftopt.RESULTS.invalid and np.isnan(solution.test_risk).all()
    assert jax.jit(solve)(jnp.asarray(0.5)).result == dmftopt.RESULTS.successful


COMMITTEE = dmftopt.Problem(
    tasks.Committee(3, 2, "erf", label_noise=0.1), dmftopt.features.isotropic(), 3.0, 1.0, 0.5,
    initial_correlation=aligned(2, 3, 0.2),
)  # fmt: skip
OPPOSITE = np.array([[1.0, 0.0, -1.0, 0.3], [0.0, 1.0, 0.0, 0.0], [-1.0, 0.0, 1.0, -0.3], [0.3, 0.0, -0.3, 1.0]])
XOR = dmftopt.Problem(
    tasks.GaussianMixture((1, -1, 1), (0.25, 0.5, 0.25)), four_groups(), 2.0, np.array([[2.0, 0.0, 2.0]]), 0.3,
    initial_correlation=OPPOSITE,
)  # fmt: skip
CLASSES = dmftopt.Problem(tasks.Softmax(3), dmftopt.features.isotropic(), 2.0, 1.0, 0.3)
RELU = dmftopt.Problem(
    tasks.Committee(2, 2, "relu", [1.0, -1.0], [1.0, -1.0], label_noise=0.1), four_groups(), 3.0, 1.0, 0.5,
    initial_correlation=aligned(2, 2, 0.2),
)  # fmt: skip


@pytest.mark.parametrize("p", [pytest.param(COMMITTEE, marks=pytest.mark.slow, id="committee"), pytest.param(XOR, id="mixture")])
@pytest.mark.slow
@pytest.mark.long_run
def test_the_solver_is_sgd(p):
    """Gate: 2 combined standard errors plus 0.5%, as for a single column (tests/test_against_simulation.py)."""
    grid = GRID.refined()
    solution = dmftopt.solve(p, PROTOCOL, grid, samples=8192, replicates=4, key=jax.random.key(0))
    simulation = dmftopt.simulate.sgd(
        p, PROTOCOL, horizon=4.0, dimension=500, runs=96, records=grid.times[::4], key=jax.random.key(1)
    )
    comparison = dmftopt.compare(solution, simulation, errors="sampling")
    assert comparison.agrees(), f"\n{comparison}"


@pytest.mark.parametrize("p", [RELU, CLASSES], ids=["relu", "softmax"])
@pytest.mark.slow
def test_the_solver_is_gradient_descent(p):
    grid = dmftopt.TimeGrid.uniform(4.0, 16)
    protocol = dmftopt.Protocol(0.4, ridge=0.05)
    options = {"noise": dmftopt.noise.NoNoise(), "step": dmftopt.DiscreteStep(), "samples": 8192, "replicates": 4}
    solution = dmftopt.solve(p, protocol, grid, key=jax.random.key(0), **options)
    simulation = dmftopt.simulate.gradient_descent(p, protocol, grid, dimension=500, runs=32, key=jax.random.key(1))
    comparison = dmftopt.compare(solution, simulation, errors="sampling")
    assert comparison.agrees(), f"\n{comparison}"


@pytest.mark.slow
def test_responses_are_those_of_the_online_limit():
    """Gate: 4 standard errors (0.02) plus 0.02, what 12 steps leave: responses are of first order."""
    p, grid = dataclasses.replace(COMMITTEE, delta=1e6, features=four_groups()), dmftopt.TimeGrid.uniform(2.0, 12)
    noise = dmftopt.noise.Brownian()
    solution = dmftopt.solve(p, PROTOCOL, grid, noise=noise, samples=4096, replicates=8, key=jax.random.key(0))
    difference, error = solution.response - limits.online(p, PROTOCOL, grid).response, solution.standard_error.response
    assert jnp.all(jnp.abs(difference) <= 4 * error + 0.02), f"{jnp.max(jnp.abs(difference))}"
    assert jnp.max(error) < 0.04


@pytest.mark.slow
def test_responses_are_those_of_kicked_sgd():
    """Softmax: its gradients say nothing about a shift of all columns, so that part of the response is not read off the noise."""
    times = GRID.times
    solution = dmftopt.solve(CLASSES, PROTOCOL, GRID, samples=4096, replicates=4, key=jax.random.key(0))
    j = 9
    simulated = dmftopt.simulate.response(
        CLASSES,
        PROTOCOL,
        horizon=4.0,
        dimension=300,
        runs=48,
        records=times,
        kick_time=float(times[j + 1]),
        key=jax.random.key(1),
    )
    np.testing.assert_allclose(simulated.response[j + 1], np.eye(3), atol=1e-5)
    difference = simulated.response - solution.response[:, j]
    error = jnp.hypot(simulated.standard_error, solution.standard_error.response[:, j])
    assert jnp.all(jnp.abs(difference) <= 3 * error + 0.01), f"\n{jnp.max(jnp.abs(difference), axis=(1, 2))}"
    assert jnp.max(error) < 0.02
    # The shift only shrinks with the ridge.
    shrunk = jnp.exp(-0.05 * jnp.array([quad(PROTOCOL.learning_rate, times[j + 1], t)[0] for t in times[j + 1 :]]))
    np.testing.assert_allclose(solution.response[j + 1 :, j] @ np.ones(3), shrunk[:, None] * np.ones(3), rtol=1e-5)


@pytest.mark.slow
def test_the_response_is_refused_where_noise_does_not_tell():
    """Equal units: the noise never separates them, the loss would. In a step with the classes' shift it is told."""
    options = {"grid": dmftopt.TimeGrid.uniform(2.0, 4), "samples": 256, "key": jax.random.key(0)}
    equal = problem(tasks.Committee(2, 1, "erf"), initial_correlation=np.ones((3, 3)))
    solution = dmftopt.solve(equal, PROTOCOL, **options)
    assert (
        np.isfinite(solution.test_risk).all()
        and "response" not in dmftopt.compare(solution, solution, errors="sampling").differences
    )
    with pytest.raises(ValueError, match="hidden units are equal"):
        _ = solution.response
    batches = dmftopt.solve(CLASSES, dmftopt.Protocol(0.5), noise=dmftopt.noise.Bernoulli(0.5), **options)
    np.testing.assert_allclose(batches.response[1:, 0] @ np.ones(3), np.ones((4, 3)), rtol=1e-5)
    late = dmftopt.Protocol(lambda t: jnp.minimum(t, 0.5), momentum=0.5)
    assert dmftopt.solve(CLASSES, late, noise=dmftopt.noise.Bernoulli(0.5), **options).observables.response is None


def test_the_risk_of_a_student_that_is_sure_is_positive():
    """A student 200 times its teacher: log sum exp and the label's field nearly cancel. 8 million random samples say 0.00348."""
    task, one = tasks.Softmax(3), jnp.eye(3)
    np.testing.assert_allclose(task.test_risk(4e4 * one, 200 * one, one), 0.00348, atol=5e-5)
    power = task.moments(4e4 * one, 200 * one, one)[2]
    assert jnp.linalg.eigvalsh(power)[0] > -1e-12


@pytest.mark.slow
def test_gradients_see_the_kinks_of_relu():
    """Against differences over ±0.05 in the rate, on the same random numbers. Without the jumps the slope is off by 20%; gate 4%,
    for the bias of their width (2% here) and the error of the difference (1%)."""
    grid = dmftopt.TimeGrid.uniform(2.0, 6)

    @jax.jit
    @jax.value_and_grad
    def risk(rate):
        s = dmftopt.solve(RELU, dmftopt.Protocol(rate, 1.0, 0.1), grid, samples=16384, key=jax.random.key(0), throw=False)
        return s.test_risk[-1]

    (low, _), (_, slope), (high, _) = (risk(rate) for rate in (0.35, 0.4, 0.45))
    np.testing.assert_allclose(slope, (high - low) / 0.1, rtol=0.04)


@pytest.mark.parametrize("p", [pytest.param(COMMITTEE, marks=pytest.mark.slow), XOR], ids=["committee", "mixture"])
def test_gradients_equal_central_differences(p):
    """Central differences of fourth order: error of order h⁴ = 1e-8 and rounding 1e-14 / h, relative to slopes of order 0.1."""
    grid = dmftopt.TimeGrid.uniform(2.0, 6)

    def risk(rate, ridge, delta):
        q = dataclasses.replace(p, delta=delta)
        s = dmftopt.solve(q, dmftopt.Protocol(rate, 1.0, ridge), grid, noise=dmftopt.noise.Brownian(), samples=512,
                          key=jax.random.key(0), throw=False)  # fmt: skip
        return s.test_risk[-1] + s.train_loss[3]

    point, h = [jnp.asarray(a) for a in (0.8, 0.1, 2.0)], 1e-2
    f = jax.jit(jax.value_and_grad(risk, argnums=(0, 1, 2)))
    for i, slope in enumerate(f(*point)[1]):

        def along(x, i=i):
            return f(*point[:i], point[i] + x, *point[i + 1 :])[0]

        np.testing.assert_allclose(slope, central_difference(along, h), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: tasks.Committee(0, 1), "hidden must be at least 1"),
        (lambda: tasks.Committee(2, 1, "sine"), "activation must be one of"),
        (lambda: tasks.Committee(2, 1, second_layer=[1.0]), "second_layer must have shape"),
        (lambda: tasks.Softmax(1), "classes must be at least 2"),
        (lambda: tasks.Softmax(3, "sign"), "labels must be one of"),
        (lambda: tasks.GaussianMixture((1, -1), loss="hinges"), "loss must be one of"),
        (lambda: tasks.GaussianMixture((1, -1), loss=tasks.Hinge()), "object of dmftopt.tasks.losses"),
        (lambda: tasks.GaussianMixture((1, 1)), "at least two classes"),
        (lambda: tasks.GaussianMixture(()), "labels must be a sequence"),
        (lambda: tasks.Committee(2, 1, kink=-0.1), "kink must be"),
        (lambda: tasks.GaussianMixture((1, 2)), "labels must be ±1"),
        (lambda: tasks.GaussianMixture((0, 2), loss="softmax"), "class numbers"),
        (lambda: tasks.GaussianMixture((1, -1), (0.5, 0.6)), "weights must be positive and sum to 1"),
        (lambda: problem(tasks.Softmax(3), initial_correlation=0.5), "initial_correlation must have shape"),
        (lambda: problem(initial_correlation=1.5), "must lie in"),
        (lambda: problem(initial_correlation=[[1.0, 0.5], [0.4, 1.0]]), "symmetric"),
        (lambda: problem(tasks.Softmax(2), initial_correlation=1.5 * np.ones((4, 4)) - 0.5 * np.eye(4)), "semidefinite"),
        (lambda: problem(tasks.Softmax(3), teacher_scale=[1.0, 2.0]), "teacher_scale must have shape"),
        (lambda: limits.stationary(problem(tasks.Softmax(3)), 0.1), "single field"),
        (lambda: limits.least_squares(problem(tasks.LeastSquares(), initial_correlation=0.1), PROTOCOL, GRID), "initial_correl"),
        (
            lambda: dmftopt.solve(problem(tasks.Softmax(3)), PROTOCOL, GRID, solver=dmftopt.FixedPoint(), key=jax.random.key(0)),
            "single field",
        ),
    ],
)  # fmt: skip
def test_bad_input(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
