import jax.numpy as jnp
import numpy as np
import pytest

from dmftopt import features
from dmftopt.problem.features import group_eigenvalues

EVERY = {
    "isotropic": features.isotropic(),
    "spectrum": features.spectrum([5.0, 1.0, 0.2]),
    "weighted spectrum": features.spectrum([5.0, 1.0, 0.2], [1, 3, 6]),
    "power law": features.power_law(1.2, dimension=500, groups=20),
    "power law in one group": features.power_law(1.2, dimension=500, groups=1),
    "flat power law": features.power_law(0.0, dimension=10),
}


@pytest.mark.parametrize("example", EVERY.values(), ids=EVERY.keys())
def test_mean_eigenvalue_is_one(example):
    # So that E‖x‖² = 1 and the learning rate is that of SGD on features of unit mean square norm.
    assert float(jnp.sum(example.weights)) == pytest.approx(1.0, rel=1e-14)
    assert float(jnp.sum(example.weights * example.eigenvalues)) == pytest.approx(1.0, rel=1e-14)
    assert example.groups == len(example.eigenvalues) == len(example.weights)


def test_spectrum_keeps_ratios():
    # Mean eigenvalue (5 + 3 + 6 · 0.2) / 10 = 0.92.
    example = features.spectrum([5.0, 1.0, 0.2], [1, 3, 6])
    np.testing.assert_allclose(example.eigenvalues, np.array([5.0, 1.0, 0.2]) / 0.92, rtol=1e-14)
    np.testing.assert_allclose(example.weights, [0.1, 0.3, 0.6], rtol=1e-14)


@pytest.mark.parametrize("exponent, groups", [(0.5, 8), (1.0, 32), (2.5, 7)])
def test_power_law_groups_are_the_spectrum_itself_within_a_log_bin(exponent, groups):
    dimension = 300
    eigenvalues = np.arange(1, dimension + 1) ** -exponent
    means, counts, labels = group_eigenvalues(eigenvalues, groups)
    assert counts.sum() == dimension
    assert len(counts) <= groups and counts.min() >= 1
    np.testing.assert_allclose((means * counts).sum(), eigenvalues.sum(), rtol=1e-13)
    width = exponent * np.log(dimension) / groups
    for group, mean in enumerate(means):
        members = np.log(eigenvalues[labels == group])
        assert np.ptp(members) <= width * (1 + 1e-9)  # the rounding of an edge
        assert members.min() - 1e-12 <= np.log(mean) <= members.max() + 1e-12

    law = features.power_law(exponent, dimension=dimension, groups=groups)
    np.testing.assert_allclose(law.weights, counts / dimension, rtol=1e-14)
    np.testing.assert_allclose(law.eigenvalues, means / eigenvalues.mean(), rtol=1e-13)


def test_enough_groups_resolve_every_eigenvalue():
    law = features.power_law(1.0, dimension=6, groups=1000)
    # Mean (1 + 1/2 + ... + 1/6) / 6 = 49 / 120.
    np.testing.assert_allclose(law.eigenvalues, 120 / 49 / np.arange(1, 7), rtol=1e-14)


def test_equal_eigenvalues_are_one_group():
    means, counts, labels = group_eigenvalues(np.full(5, 0.3), 4)
    np.testing.assert_allclose(means, [0.3], rtol=1e-15)
    assert counts.tolist() == [5] and labels.tolist() == [0] * 5
