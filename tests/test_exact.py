"""The solver against closed forms: full-batch descent on least squares, mode by mode of the sample covariance."""

import jax
import numpy as np
import pytest
from helpers import assert_within, continued, least_squares_modes, problem

import dmftopt

RIDGE = 0.1


def least_squares():
    return problem(dmftopt.tasks.LeastSquares(label_noise=0.5), teacher_scale=1.2, student_scale=0.7)


@pytest.mark.parametrize("rate", [0.5, 0.9], ids=["monotone", "oscillating"])
def test_full_batch_gradient_descent_with_a_finite_step_is_exact(key, rate):
    steps = 12
    # A step of 1: learning rate times the largest eigenvalue (2.9) is up to 2.6, so modes overshoot and alternate.
    grid = dmftopt.TimeGrid.uniform(float(steps), steps)
    protocol = dmftopt.Protocol(rate, ridge=RIDGE)
    solution = dmftopt.solve(
        least_squares(), protocol, grid, noise=dmftopt.noise.NoNoise(), step=dmftopt.DiscreteStep(),
        samples=4096, replicates=8, key=key,
    )  # fmt: skip
    k = np.arange(steps + 1)[:, None]

    def initial(s):
        return (1 - rate * (RIDGE + s)) ** k

    expected = least_squares_modes(least_squares(), initial, lambda s: (1 - initial(s)) / (s + RIDGE))
    _check(solution, expected)


def _gradient_flow_error(key, steps, longest=64, **options):
    """Largest errors of correlation and train loss, relative to their largest value."""
    grid = dmftopt.TimeGrid.geometric(5.0, steps, ratio=4.0)
    solution = dmftopt.solve(
        least_squares(), dmftopt.Protocol(1.0, ridge=RIDGE), continued(grid, longest), noise=dmftopt.noise.NoNoise(),
        samples=16384, replicates=2, key=key, **options,
    )  # fmt: skip
    times = np.asarray(grid.times)[:, None]

    def start(s):
        return np.exp(-(s + RIDGE) * times)

    correlation, _, train = least_squares_modes(least_squares(), start, lambda s: (1 - start(s)) / (s + RIDGE))
    got = solution.correlation[: steps + 1, : steps + 1, 0, 0], solution.train_loss[: steps + 1]
    return [np.max(np.abs(a - b)) / np.max(b) for a, b in zip(got, (correlation, train), strict=True)]


def test_gradient_flow_converges_to_the_exact_solution_at_second_order(key):
    """The train loss has the larger error (of the first step), 4.5e-3 at 32 steps; sampling errors are about 1e-4."""
    (coarse_c, coarse), (fine_c, fine) = (_gradient_flow_error(key, steps) for steps in (32, 64))
    assert 1.6 < np.log2(coarse / fine) < 2.3
    # The correlation is at its sampling error of a few 1e-4 by then.
    assert coarse_c < 3e-3 and fine_c < 1e-3


def test_richardson_extrapolation_removes_the_leading_error(key):
    plain, extrapolated = _gradient_flow_error(key, 16), _gradient_flow_error(key, 16, 16, richardson=True)
    assert extrapolated[0] < plain[0] / 3
    assert extrapolated[1] < plain[1] / 3


@pytest.mark.parametrize(
    "law",
    [dmftopt.noise.Brownian(), dmftopt.noise.Poisson()],
    ids=["brownian", "poisson"],
)
@pytest.mark.slow
def test_with_gradient_noise_too_the_step_is_of_second_order(key, law):
    """Against the Volterra solution: the largest error of the overlap along the run is 2.4e-2 at 16 steps; sampling errors are
    about 3e-4."""
    p, protocol, errors = problem(dmftopt.tasks.LeastSquares(0.5)), dmftopt.Protocol(0.5, ridge=RIDGE), []
    exact = dmftopt.limits.least_squares(p, protocol, dmftopt.TimeGrid.uniform(5.0, 64))
    for steps in (16, 64):
        grid = continued(dmftopt.TimeGrid.uniform(5.0, steps), 64)
        solution = dmftopt.solve(p, protocol, grid, noise=law, samples=16384, replicates=2, key=key)
        difference = solution.student_overlap[: steps + 1] - exact.student_overlap[:: 64 // steps]
        errors.append(float(np.max(np.abs(difference))))
    assert 1.8 < np.log2(errors[0] / errors[1]) / 2 < 2.15
    for name, allowed in (("teacher_overlap", 1e-3), ("test_risk", 1e-3), ("train_loss", 1.5e-3), ("norm", 2.5e-3)):
        assert np.max(np.abs(getattr(solution, name) - getattr(exact, name))) < allowed


def _check(solution, expected):
    correlation, overlap, train = expected
    error = solution.standard_error
    # Eight replicates: Student's t with 7 degrees of freedom exceeds 6 with probability 5e-4; the entries move together.
    # The slack is for the finite-sample bias, of order steps / samples = 3e-3 times a constant measured near 0.1.
    for got, want, e in (
        (solution.correlation[:, :, 0, 0], correlation, error.correlation[:, :, 0, 0]),
        (solution.teacher_overlap[:, 0, 0], overlap, error.teacher_overlap[:, 0, 0]),
        (solution.student_overlap[:, 0, 0], np.diagonal(correlation), error.student_overlap[:, 0, 0]),
        (solution.train_loss, train, error.train_loss),
    ):
        assert_within(got, want, e, 6, slack=3e-4)


def test_a_single_mode_is_exact_at_any_step(key):
    """delta -> infinity, isotropic least squares without noise: theta relaxes exponentially, which the step does exactly."""
    p = problem(dmftopt.tasks.LeastSquares(), delta=1e12)
    grid = dmftopt.TimeGrid.uniform(6.0, 2)
    solution = dmftopt.solve(p, dmftopt.Protocol(1.0), grid, noise=dmftopt.noise.NoNoise(), samples=65536, key=key)
    decay = np.exp(-np.asarray(grid.times))
    # Only S is a sample mean, exact to the quadrature error of 65536 Sobol points.
    np.testing.assert_allclose(solution.teacher_overlap[:, 0, 0], 1 - decay, atol=1e-3)
    np.testing.assert_allclose(solution.student_overlap[:, 0, 0], 0.5 * decay**2 + (1 - decay) ** 2, atol=1e-3)


@pytest.mark.slow
def test_a_stiff_spectrum_is_stable_and_accurate(key):
    """Largest eigenvalue times learning rate times step is 30: explicit stepping explodes, the default does not, and the
    risk is that of four times as many steps."""
    p = problem(dmftopt.tasks.LeastSquares(0.3), dmftopt.features.spectrum([50.0, 1.0, 0.2], [0.01, 0.3, 0.69]))
    protocol = dmftopt.Protocol(0.6)
    options = {"noise": dmftopt.noise.Brownian(), "samples": 4096, "key": key}
    coarse = dmftopt.solve(p, protocol, dmftopt.TimeGrid.geometric(4.0, 40), **options)
    fine = dmftopt.solve(p, protocol, dmftopt.TimeGrid.geometric(4.0, 160), **options)
    np.testing.assert_allclose(coarse.test_risk[-1], fine.test_risk[-1], rtol=0.02)
    euler = dmftopt.solve(p, protocol, dmftopt.TimeGrid.uniform(4.0, 40), step=dmftopt.DiscreteStep(), throw=False, **options)
    assert euler.result == dmftopt.RESULTS.diverged or float(euler.test_risk[-1]) > 10 * float(fine.test_risk[-1])


@pytest.mark.parametrize("delta", [0.25, 1.0, 4.0])
def test_coarse_steps_on_a_small_training_set_do_not_blow_up(key, delta):
    """Learning rate times step 2: the largest sample eigenvalue is up to 9 times the population's. Without noise the train
    loss of gradient flow never grows, and neither may that of a coarse step."""
    p = problem(dmftopt.tasks.LeastSquares(1.0), delta=delta, student_scale=0.0)
    s = dmftopt.solve(
        p, dmftopt.Protocol(2.0), dmftopt.TimeGrid.uniform(30.0, 30), noise=dmftopt.noise.NoNoise(), samples=4096, key=key,
        throw=False,
    )  # fmt: skip
    # The slack is the sampling error of the first gradient's overlaps, about 1e-3 at 4096 Sobol points.
    assert np.all(np.diff(s.train_loss) <= 1e-3 * s.train_loss[0])


def test_replicates_scatter_as_their_standard_error_says(key):
    """Means of 4 replicates over 16 keys: their spread agrees with the mean reported standard error within a factor 1.6
    (the relative error of a standard deviation from 16 values is 18%)."""
    grid = dmftopt.TimeGrid.uniform(3.0, 10)
    solve = jax.jit(lambda k: dmftopt.solve(problem(), dmftopt.Protocol(1.0), grid, samples=256, replicates=4, key=k))
    found = [solve(k) for k in jax.random.split(key, 16)]
    spread = np.std([s.student_overlap[-1, 0, 0] for s in found], ddof=1)
    reported = np.sqrt(np.mean([s.standard_error.student_overlap[-1, 0, 0] ** 2 for s in found]))
    assert 1 / 1.6 < spread / reported < 1.6
