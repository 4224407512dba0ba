import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dmftopt import TimeGrid, noise
from dmftopt.dmft._points import dimensions, draw
from dmftopt.dmft._sobol import _directions, scrambled_sobol

KEYS = [jax.random.key(seed) for seed in (0, 1, 2)]
DIMENSION = 12


def boxes(points, level, samples):
    """Index of the dyadic box 2^-level × 2^(level - m) that holds each of `samples` = 2^m two-dimensional points."""
    first, second = np.asarray(points)
    return (first * 2**level).astype(int) * (samples >> level) + (second * (samples >> level)).astype(int)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("samples", [4, 64, 1024])
def test_every_coordinate_is_stratified(key, samples):
    # So is every half of the points: they are what estimate_bias solves with.
    points = np.asarray(scrambled_sobol(key, DIMENSION, samples))
    assert points.shape == (DIMENSION, samples)
    for part in (points, points[:, : samples // 2], points[:, samples // 2 :]):
        count = part.shape[1]
        assert np.all(np.sort((part * count).astype(int), axis=1) == np.arange(count))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("part", [slice(0, 256), slice(0, 128), slice(128, 256)], ids=["all", "first half", "second half"])
def test_first_two_coordinates_are_a_net(key, part):
    # Sobol's first two dimensions are a (0, m, 2)-net in base 2: one point in every dyadic box of volume 1/N, of any shape.
    points = scrambled_sobol(key, DIMENSION, 256)[:2, part]
    samples = points.shape[1]
    for level in range(samples.bit_length()):
        assert np.all(np.sort(boxes(points, level, samples)) == np.arange(samples))


def test_unscrambled_points_are_those_of_scipy():
    samples, rows = 64, _directions(DIMENSION, 6)
    points = np.zeros((1, DIMENSION), np.uint32)
    for row in rows:
        points = np.concatenate([points, points ^ row])
    expected = stats.qmc.Sobol(DIMENSION, scramble=False, bits=30).random(samples)
    # The same set: np.unique puts the rows in order.
    np.testing.assert_array_equal(np.unique(points * 2.0**-30, axis=0), np.unique(expected, axis=0))


def test_same_key_same_points_and_different_keys_differ():
    first, again, other = (np.asarray(scrambled_sobol(key, DIMENSION, 64)) for key in (KEYS[0], KEYS[0], KEYS[1]))
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)


def test_points_do_not_change_under_jit_and_vmap_over_keys():
    expected = np.stack([scrambled_sobol(key, DIMENSION, 64) for key in KEYS])
    together = jax.jit(jax.vmap(lambda key: scrambled_sobol(key, DIMENSION, 64)))(jnp.stack(KEYS))
    np.testing.assert_array_equal(together, expected)


def test_every_point_is_uniform_over_the_keys():
    # The scramble makes each single point uniform, so that averages over the points are unbiased.
    keys, samples = 4000, 8
    points = np.asarray(jax.vmap(lambda key: scrambled_sobol(key, DIMENSION, samples))(jax.random.split(KEYS[0], keys)))
    assert points.shape == (keys, DIMENSION, samples)
    # Kolmogorov-Smirnov over independent keys; least p-value of 96 tests, each above 1e-8 but for one run in a million.
    for column in points.reshape(keys, -1).T:
        assert stats.kstest(column, "uniform").pvalue > 1e-8
    # The mean over keys of u_a u_b for two coordinates of a point, of variance 1/9 - 1/16 = 7/144.
    products = np.einsum("kas,kbs->abs", points, points)[np.triu_indices(DIMENSION, 1)] / keys
    assert np.abs(products - 0.25).max() < 6 * np.sqrt(7 / 144 / keys)
    # Each coordinate is scrambled on its own, so the binary digits in which two points differ are unrelated between
    # coordinates: correlations of order 1 / sqrt(keys), not 1.
    digits = (points * 2.0**30).astype(int)
    correlation = np.corrcoef((digits[:, :, 0] ^ digits[:, :, 1]).T)
    assert np.abs(correlation - np.eye(DIMENSION)).max() < 6 / np.sqrt(keys)


def test_scrambling_beats_random_draws():
    # Owen 1997: the variance of a smooth mean over a scrambled net falls as N^-3 (times logarithms), of random draws as
    # N^-1. A tenth of the latter at N = 256 fails for a scramble that breaks the net, and leaves a factor of 10^3 or more.
    points = np.asarray(jax.vmap(lambda key: scrambled_sobol(key, 2, 256))(jax.random.split(KEYS[0], 200)))
    means = np.mean(points[:, 0] * points[:, 1], axis=-1)
    assert np.var(means) < 0.1 * 7 / 144 / 256
    assert np.var(means) > 0


@pytest.mark.parametrize("x64, dtype", [(True, np.float64), (False, np.float32)])
def test_points_are_strictly_inside_the_unit_interval(x64, dtype):
    # 0 or 1 would become an infinite normal. 2^16 points come within 2^-16 of both ends and, in float32, are rounded.
    with jax.enable_x64(x64):
        points = np.asarray(scrambled_sobol(KEYS[0], 3, 1 << 16))
    assert points.dtype == dtype
    assert points.min() > 0 and points.max() < 1
    assert points.min() < 2.0**-16 and points.max() > 1 - 2.0**-16
    np.testing.assert_array_equal(np.sort((points.astype(float) * 2**16).astype(int), axis=1)[0], np.arange(1 << 16))


GRID = TimeGrid([0.0, 0.1, 0.3, 0.4, 0.9, 1.2, 2.0])
RATE = jnp.asarray([0.3, 1.1, 0.2, 2.0, 0.7, 3.0])


@pytest.mark.parametrize("law", [noise.NoNoise(), noise.Brownian(), noise.Poisson()], ids=lambda law: type(law).__name__)
def test_layout_of_the_points(law):
    samples = 64
    points = draw(KEYS[0], samples, GRID, law, RATE)
    uniforms = np.asarray(scrambled_sobol(KEYS[0], dimensions(GRID.steps, law), samples))
    np.testing.assert_array_equal(points.teacher, uniforms[:1])
    np.testing.assert_array_equal(points.label, uniforms[1])
    assert points.innovations.shape == (GRID.steps + 1, 1, samples)
    # SciPy's normal quantile and JAX's are two implementations, each good to a few rounding units of the tail.
    np.testing.assert_allclose(points.innovations[0, 0], stats.norm.ppf(uniforms[2]), rtol=1e-12, atol=1e-14)
    # Undo the rotation: the first, third, ... of the dimensions left are the principal components of the innovations.
    components = np.asarray(GRID.rotation()).T @ points.innovations[1:, 0]
    np.testing.assert_allclose(components, stats.norm.ppf(uniforms[3 :: 1 if law.deterministic else 2]), rtol=1e-11, atol=1e-12)
    if law.deterministic:
        assert points.multipliers is None
    else:
        expected = law.standardized(uniforms[4::2], GRID.rotation(), RATE)
        np.testing.assert_array_equal(points.multipliers.standardized[:-1], expected)
        np.testing.assert_array_equal(points.multipliers.standardized[-1], 0.0)


def test_halves_are_the_first_and_the_last_samples():
    points = draw(KEYS[0], 64, GRID, noise.Poisson(), RATE)
    for which, part in ((0, slice(0, 32)), (1, slice(32, 64))):
        half = points.half(which)
        for value, whole in zip(jax.tree.leaves(half), jax.tree.leaves(points), strict=True):
            np.testing.assert_array_equal(value, whole[..., part])


def pair_sums(values, weights):
    """(sqrt(w_0) a_0 + sqrt(w_1) a_1) / sqrt(w_0 + w_1) of each pair of rows."""
    w = np.asarray(weights)[:, None]
    return (np.sqrt(w[::2]) * values[::2] + np.sqrt(w[1::2]) * values[1::2]) / np.sqrt(w[::2] + w[1::2])


@pytest.mark.parametrize("law", [noise.NoNoise(), noise.Brownian(), noise.Poisson()], ids=lambda law: type(law).__name__)
def test_coarsened_points_are_normalized_pair_sums(law):
    points = draw(KEYS[0], 64, GRID, law, RATE)
    coarse = points.coarsened(GRID, law, RATE)
    for name in ("teacher", "label"):
        np.testing.assert_array_equal(getattr(coarse, name), getattr(points, name))
    np.testing.assert_array_equal(coarse.innovations[:1], points.innovations[:1])
    # Rounding of sums of two numbers of order 1.
    expected = pair_sums(np.asarray(points.innovations[1:, 0]), GRID.step_sizes)
    np.testing.assert_allclose(coarse.innovations[1:, 0], expected, rtol=0, atol=1e-14)
    if law.deterministic:
        assert coarse.multipliers is None
        return
    weights = RATE if isinstance(law, noise.Poisson) else GRID.step_sizes
    expected = pair_sums(np.asarray(points.multipliers.standardized[:-1]), weights)
    np.testing.assert_allclose(coarse.multipliers.standardized[:-1], expected, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(coarse.multipliers.standardized[-1], 0.0)


def test_coarsened_poisson_multipliers_count_the_visits_of_both_steps():
    points = draw(KEYS[0], 64, GRID, noise.Poisson(), RATE)
    coarse = points.coarsened(GRID, noise.Poisson(), RATE)

    def counts(multipliers, rate):
        return np.asarray(multipliers.standardized[:-1]) * np.sqrt(rate)[:, None] + np.asarray(rate)[:, None]

    fine = counts(points.multipliers, RATE)
    # Counts of order 10, rounded.
    np.testing.assert_allclose(counts(coarse.multipliers, RATE[::2] + RATE[1::2]), fine[::2] + fine[1::2], rtol=0, atol=1e-13)
