from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmftopt import TimeGrid

EPS = np.finfo(float).eps
GRIDS = {
    "single step": TimeGrid.uniform(0.7, 1),
    "uniform": TimeGrid.uniform(5.0, 60),
    "geometric": TimeGrid.geometric(5.0, 60),
    "geometric, ratio 1e4": TimeGrid.geometric(5.0, 80, 1e4),
    "geometric, ratio 1e-4": TimeGrid.geometric(5.0, 80, 1e-4),
    "irregular": TimeGrid(np.concatenate([[0.0], np.cumsum(10.0 ** np.random.default_rng(0).uniform(-3, 0, 50))])),
}
EVERY = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


@pytest.mark.parametrize("horizon", [5.0, 0.1, 1 / 3])
@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("make", [TimeGrid.uniform, TimeGrid.geometric, partial(TimeGrid.geometric, ratio=1e4)])
def test_grids_run_exactly_from_0_to_the_horizon(make, steps, horizon):
    grid = make(horizon, steps)
    assert grid.steps == steps == len(grid.step_sizes)
    # Exactly: a run of the solver and one of a simulation must be comparable at their last times.
    assert grid.times[0] == 0.0
    assert grid.times[-1] == horizon


def test_uniform_steps_are_equal():
    # A difference of times of order 1 rounds by 1e-16, of steps of 1/100.
    np.testing.assert_allclose(TimeGrid.uniform(1.0, 100).step_sizes, 0.01, rtol=1e-13)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 20.0, 1e4])
def test_geometric_steps_grow_by_one_factor(ratio):
    sizes = TimeGrid.geometric(1.0, 41, ratio).step_sizes
    # The smallest step is above 1e-6, and a difference of times of order 1 rounds by 1e-16.
    np.testing.assert_allclose(sizes[1:] / sizes[:-1], ratio ** (1 / 40), rtol=1e-9)
    np.testing.assert_allclose(sizes[-1] / sizes[0], ratio, rtol=1e-9)


@EVERY
def test_refined_contains_the_grid_and_halves_its_steps(grid):
    fine = grid.refined()
    assert fine.steps == 2 * grid.steps
    np.testing.assert_array_equal(fine.times[::2], grid.times)
    # Differences of times up to the horizon, rounded.
    rounding = 2 * EPS * float(grid.times[-1])
    np.testing.assert_allclose(fine.step_sizes, np.repeat(grid.step_sizes, 2) / 2, rtol=0, atol=rounding)


@EVERY
def test_rotation_is_orthogonal(grid):
    q = grid.rotation()
    # Householder QR is orthogonal to a rounding unit per row.
    np.testing.assert_allclose(q.T @ q, np.eye(grid.steps), rtol=0, atol=grid.steps * EPS)


@EVERY
def test_rotation_makes_brownian_paths_out_of_principal_components(grid):
    # W = cumsum(sqrt(D) rotation) maps independent normals to Brownian motion at the grid's times: W W^T = min(t, s), and its
    # columns are the principal components, orthogonal, of decreasing variance.
    times = np.asarray(grid.times[1:])
    covariance = np.minimum.outer(times, times)
    paths = np.cumsum(np.sqrt(np.asarray(grid.step_sizes))[:, None] * np.asarray(grid.rotation()), axis=0)
    # A rounding unit of the largest variance per row. The components come from paths, so their rounding is sqrt(largest
    # variance); over sqrt(D) in the increments it tilts the columns by that much, and the first column weighs most.
    largest = np.linalg.eigvalsh(covariance)[-1]
    rounding = grid.steps * EPS * largest
    tilt = rounding * np.sqrt(largest / np.min(grid.step_sizes))
    np.testing.assert_allclose(paths @ paths.T, covariance, rtol=0, atol=rounding)
    gram = paths.T @ paths
    variances = np.diagonal(gram)
    np.testing.assert_allclose(gram, np.diag(variances), rtol=0, atol=tilt)
    assert np.all(np.diff(variances) <= tilt)
    np.testing.assert_allclose(variances[0], largest, rtol=0, atol=tilt)


def test_rotation_on_a_uniform_grid_is_the_known_sine_basis():
    # Eigenvectors of min(j, k), j, k = 1..K: sin((i + 1/2) pi j / (K + 1/2)), of variance 1 / (4 sin²((i + 1/2) pi / (2 K + 1))).
    steps = 8
    index = np.arange(steps)
    modes = np.sin(np.pi * np.outer(index + 1, 2 * index + 1) / (2 * steps + 1)) * 2 / np.sqrt(2 * steps + 1)
    paths = modes / (2 * np.sin(np.pi * (index + 0.5) / (2 * steps + 1)))
    expected = np.diff(paths, axis=0, prepend=0.0)
    rotation = TimeGrid.uniform(1.0, steps).rotation()
    signs = np.sign(np.sum(expected * rotation, axis=0))
    np.testing.assert_allclose(rotation, signs * expected, rtol=0, atol=100 * EPS)  # variances here span a factor of 100


@pytest.mark.parametrize("steps, ratio", [(80, 1.0), (80, 1e4), (160, 1e6)])
def test_rotation_is_orthogonal_in_float32(steps, ratio):
    # Here the smallest variances of the path are lost in the rounding of the largest, and may come out as 0.
    with jax.enable_x64(False):
        q = np.asarray(TimeGrid.geometric(5.0, steps, ratio).rotation())
    assert q.dtype == np.float32
    np.testing.assert_allclose(q.T @ q, np.eye(steps), rtol=0, atol=steps * np.finfo(np.float32).eps)


def test_a_grid_is_differentiable_in_its_horizon():
    gradient = eqx.filter_grad(lambda horizon: TimeGrid.geometric(horizon, 5).times[-2])(jnp.asarray(2.0))
    np.testing.assert_allclose(gradient, TimeGrid.geometric(1.0, 5).times[-2], rtol=1e-14)
