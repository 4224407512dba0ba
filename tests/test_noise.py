from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import dmftopt
from dmftopt import features, noise, tasks
from dmftopt.dmft._points import draw

KEYS = jax.random.split(jax.random.key(1), 8)
SAMPLES = 4096
DRAWS = len(KEYS) * SAMPLES

RATES = {
    "rare": np.full(7, 0.01),
    "frequent": np.full(3, 30.0),
    "single": np.array([2.3]),
    "mixed": np.array([0.01, 5.0, 0.7, 30.0, 1e-3, 2.0]),
}


def multipliers(law, rate, keys=KEYS):
    """Standardized multipliers (key, step, sample) on a grid with these rates."""
    grid = dmftopt.TimeGrid(np.concatenate([[0.0], np.cumsum(rate)]))

    def standardized(key):
        return draw(key, SAMPLES, grid, law, jnp.asarray(rate)).multipliers.standardized[:-1]

    return np.asarray(jax.jit(jax.vmap(standardized))(keys))


@pytest.fixture(scope="module", params=RATES.values(), ids=RATES.keys())
def poisson(request):
    """Rates, and the standardized multipliers drawn with them."""
    return request.param, multipliers(noise.Poisson(), request.param)


def counts(rate, standardized):
    return standardized * np.sqrt(rate)[:, None] + rate[:, None]


def check_moments(standardized, fourth):
    """Mean 0, covariance 1, for laws of fourth moment `fourth`. Scrambled points do about as well as random draws or better
    (Owen 1997), whose mean has variance 1 / DRAWS, products of two steps likewise, squares (fourth - 1) / DRAWS; five
    deviations leave one failure in a million per number."""
    flat = np.concatenate(standardized, axis=-1)
    assert np.abs(flat.mean(axis=1)).max() < 5 / np.sqrt(DRAWS)
    covariance = flat @ flat.T / DRAWS
    assert np.all(np.abs(np.diagonal(covariance) - 1) < 5 * np.sqrt((fourth - 1) / DRAWS))
    assert np.abs(covariance - np.diag(np.diagonal(covariance))).max() < 5 / np.sqrt(DRAWS)


def test_brownian_multipliers_are_independent_standard_normals():
    standardized = multipliers(noise.Brownian(), RATES["mixed"])
    check_moments(standardized, 3.0)
    # Kolmogorov's distance of random draws exceeds 2.7 / sqrt(n) once in a million times.
    for step in np.moveaxis(standardized, 1, 0):
        assert stats.kstest(step.ravel(), "norm").statistic < 2.7 / np.sqrt(DRAWS)


@pytest.mark.parametrize("fraction", [0.05, 0.7])
def test_bernoulli_multipliers_are_independent_and_take_two_values(fraction):
    standardized = multipliers(noise.Bernoulli(fraction), RATES["mixed"])
    spread = np.sqrt(fraction * (1 - fraction))
    check_moments(standardized, (1 - 3 * spread**2) / spread**2)
    taken = standardized * spread + fraction
    np.testing.assert_allclose(taken, np.round(taken), rtol=0, atol=1e-14)
    assert set(np.unique(np.round(taken))) == {0.0, 1.0}


def test_bernoulli_with_everything_is_deterministic():
    law = noise.Bernoulli(1.0)
    assert np.all(multipliers(law, RATES["mixed"]) == 0.0)
    assert law.deviation(jnp.asarray(0.5), jnp.asarray(0.1), jnp.asarray(0.3)) == 0.0


def test_poisson_multipliers_are_standardized_and_independent(poisson):
    rate, standardized = poisson
    check_moments(standardized, 3 + 1 / rate)
    # Independent beyond the covariance: the chance that two steps both skip a sample is the product.
    skipped = np.concatenate(counts(rate, standardized), axis=-1) < 0.5
    for i in range(len(rate)):
        for j in range(i):
            assert_frequency(np.mean(skipped[i] & skipped[j]), np.exp(-rate[i] - rate[j]))


def assert_frequency(frequency, probability):
    """Bernstein's bound, passed by random draws but once in a million times: five deviations, and for rare events a few."""
    log = np.log(2e6)
    assert abs(frequency - probability) < np.sqrt(2 * log * probability / DRAWS) + log / (3 * DRAWS)


def test_poisson_counts_are_whole(poisson):
    drawn = counts(*poisson)
    # Standardized and back: a few rounding units of numbers up to about 100.
    np.testing.assert_allclose(drawn, np.round(drawn), rtol=0, atol=1e-13)
    assert np.round(drawn).min() >= 0


def test_poisson_counts_of_each_step_have_the_poisson_distribution(poisson):
    rate = poisson[0]
    drawn = np.round(counts(*poisson))
    for step, mean in enumerate(rate):
        law = stats.poisson(mean)
        for k in (0, 1, 2, *law.ppf([0.1, 0.5, 0.9]).astype(int)):
            assert_frequency(np.mean(drawn[:, step] == k), law.pmf(k))
            assert_frequency(np.mean(drawn[:, step] <= k), law.cdf(k))


def test_poisson_totals_are_stratified(poisson):
    rate = poisson[0]
    # The total is the quantile of one coordinate, which has one point in every interval of length 1/N: its distribution
    # function is right to 1/N, in every replicate.
    law = stats.poisson(rate.sum())
    for total in np.round(counts(*poisson)).sum(axis=1):
        k = np.arange(int(total.max()) + 1)
        empirical = np.searchsorted(np.sort(total), k, side="right") / SAMPLES
        assert np.abs(empirical - law.cdf(k)).max() <= 1 / SAMPLES + 1e-12


def test_poisson_totals_are_right_in_float32():
    # Totals are epochs: a thousand is one long run. Summing the probabilities must not build up their rounding.
    rate = np.full(4, 250.0)
    with jax.enable_x64(False):
        standardized = multipliers(noise.Poisson(), rate, KEYS[:1])
    total = np.round(counts(rate, standardized[0].astype(float))).sum(axis=0)
    # As above, and 1000 sums of float32 numbers up to 1, each rounded by 6e-8.
    k = np.arange(800, 1200)
    empirical = np.searchsorted(np.sort(total), k, side="right") / SAMPLES
    assert np.abs(empirical - stats.poisson(1000).cdf(k)).max() <= 1 / SAMPLES + 6e-5


def test_poisson_rates_may_be_batched():
    uniforms = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 64)))
    rates = jnp.asarray(np.random.default_rng(1).uniform(0.01, 9.0, size=(3, 5)))
    standardized = partial(noise.Poisson().standardized, uniforms, jnp.eye(5))
    # The counts are whole, so only the rounding of the standardization can differ.
    one_by_one = [jax.jit(standardized)(rate) for rate in rates]
    np.testing.assert_allclose(jax.jit(jax.vmap(standardized))(rates), one_by_one, rtol=0, atol=1e-13)


# The table of THEORY: the second moment of M, given eta, D, B and delta.
SECOND_MOMENTS = {
    "none": (noise.NoNoise(), lambda eta, D, B, delta: (eta * D) ** 2),
    "Brownian": (noise.Brownian(), lambda eta, D, B, delta: eta**2 * (D**2 + delta * D / B)),
    "Poisson": (noise.Poisson(), lambda eta, D, B, delta: eta**2 * (D**2 + delta * D / B)),
    "Bernoulli": (noise.Bernoulli(0.3), lambda eta, D, B, delta: (eta * D) ** 2 / 0.3),
}


@pytest.mark.parametrize("law, second", SECOND_MOMENTS.values(), ids=SECOND_MOMENTS.keys())
def test_deviation_gives_the_second_moment_of_the_theory(law, second):
    eta, D, B, delta = 0.8, np.array([0.05, 0.4]), np.array([1.0, 7.0]), 2.5
    deviation = law.deviation(jnp.full(2, eta), jnp.asarray(D), jnp.asarray(B * D / delta))
    np.testing.assert_allclose((eta * D) ** 2 + np.asarray(deviation) ** 2, second(eta, D, B, delta), rtol=1e-14)


def test_poisson_multiplier_is_the_learning_rate_over_the_batch_size_per_visit(poisson):
    # M = eta (delta / B) N, put together as the solver does: mean + deviation * standardized.
    rate, standardized = poisson
    eta, delta, B = 0.8, 2.5, 7.0
    D = rate * delta / B
    deviation = noise.Poisson().deviation(jnp.full(rate.size, eta), jnp.asarray(D), jnp.asarray(rate))
    M = (eta * D)[:, None] + np.asarray(deviation)[:, None] * standardized
    np.testing.assert_allclose(M * B / (eta * delta), np.round(counts(rate, standardized)), rtol=0, atol=1e-13)


TRAINED = {"batch_size": jnp.asarray(2.0), "delta": jnp.asarray(1.5), "times": jnp.linspace(0.0, 2.0, 4)}
RATE = jnp.asarray(0.5)


def final_risk(law, protocol, delta=1.5, times=TRAINED["times"]):
    problem = dmftopt.Problem(tasks.Logistic(), features.isotropic(), delta=delta)
    return dmftopt.solve(problem, protocol, dmftopt.TimeGrid(times), key=KEYS[0], noise=law, samples=64).test_risk[-1]


def risk_of(law, batch_size=2.0, **others):
    return final_risk(law, dmftopt.Protocol(0.5, batch_size), **others)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
@pytest.mark.parametrize("name", TRAINED)
def test_derivatives_that_poisson_counts_do_not_have_are_an_error(name, wrap):
    with pytest.raises(ValueError, match=r"Poisson.*batch_size, delta or times.*Brownian"):
        wrap(jax.grad(lambda x: risk_of(noise.Poisson(), **{name: x})))(TRAINED[name])


def test_brownian_noise_is_the_way_to_the_derivatives_that_poisson_refuses():
    gradients = jax.jit(jax.grad(lambda p: risk_of(noise.Brownian(), **p)))(TRAINED)
    assert all(np.all(np.isfinite(g)) for g in gradients.values())
    assert gradients["batch_size"] < 0  # a larger batch is less noisy
    assert gradients["delta"] < 0  # and more data better
    assert np.abs(gradients["times"][1:]).max() > 1e-3


def test_derivative_in_the_fraction_of_bernoulli_is_an_error():
    with pytest.raises(ValueError, match=r"Bernoulli.*fraction"):
        jax.grad(lambda fraction: risk_of(noise.Bernoulli(fraction)))(jnp.asarray(0.5))


def check_slope(value, gradient):
    # Rounding of 1e-16, amplified up to 3e4 times by the shortest direction kept (relative variance 1e-9), over h; the
    # truncation h² f''' / 6 is of that order or below for a risk that changes on the scale of the rate itself.
    h = 1e-4
    slope = (value(RATE + h) - value(RATE - h)) / (2 * h)
    assert abs(slope) > 1e-2
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=3e4 * 1e-16 / h)


@pytest.mark.parametrize(
    "law",
    [noise.Brownian(), pytest.param(noise.Bernoulli(0.3), marks=pytest.mark.slow)],
    ids=lambda law: type(law).__name__,
)
def test_derivative_in_the_learning_rate_under_jit(law):
    both = jax.jit(jax.value_and_grad(lambda rate: final_risk(law, dmftopt.Protocol(rate, 2.0))))
    check_slope(lambda rate: both(rate)[0], both(RATE)[1])


def test_a_batch_size_held_fixed_leaves_the_derivative_of_a_protocol():
    both = eqx.filter_jit(eqx.filter_value_and_grad(partial(final_risk, noise.Poisson())))
    with pytest.raises(ValueError, match=r"hold them fixed"):
        both(dmftopt.Protocol(RATE, jnp.asarray(2.0)))
    # The cure in that message.
    gradient = both(dmftopt.Protocol(RATE, 2.0))[1]
    assert gradient.batch_size.value is None
    check_slope(lambda rate: both(dmftopt.Protocol(rate, 2.0))[0], gradient.learning_rate.value)
