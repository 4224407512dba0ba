"""Annotations are checked while the tests run (see conftest): a planted wrong shape does not pass."""

import sys

import jax.numpy as jnp
import pytest
from helpers import four_groups
from jaxtyping import TypeCheckError

from dmftopt.dmft import _motion, _weights
from dmftopt.numerics import matrices
from dmftopt.results import Observables


def observables(times: int, others: int) -> Observables:
    series, matrix = jnp.ones(others), jnp.ones((others, 1, 1))
    return Observables(
        test_risk=jnp.ones(times), train_loss=series, student_overlap=matrix, teacher_overlap=matrix,
        correlation=jnp.ones((others, others, 1, 1)), norm=matrix, test_error=None, train_error=None, response=None,
    )  # fmt: skip


WRONG = {
    "an axis is missing": lambda: _weights.norm(jnp.ones((4, 5)), four_groups(), _weights.Coefficients(2)),
    "an axis too many": lambda: matrices.square_root(jnp.ones((1, 2, 2))),
    "no square": lambda: matrices.square_root(jnp.ones((2, 3))),
    "arguments that differ in their groups": lambda: _motion._within(jnp.ones((4, 2, 2)), jnp.ones((2, 3, 5))),
    "axes in another order": lambda: _motion._within(jnp.ones((2, 2, 4)), jnp.ones((2, 4, 5))),
    "whole numbers": lambda: matrices.square_root(jnp.ones((2, 2), int)),
    "fields that differ in their times": lambda: observables(3, 4),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_shape_is_refused(call):
    with pytest.raises(TypeCheckError):
        call()


def test_right_shapes_pass():
    assert _weights.norm(jnp.ones((2, 4, 5)), four_groups(), _weights.Coefficients(2)).shape == (2, 2)
    assert _motion._within(jnp.ones((4, 2, 2)), jnp.ones((2, 4, 5))).shape == (2, 4, 5)
    assert observables(4, 4).norm.shape == (4, 1, 1)


def test_no_axis_is_added_in_silence():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) * jnp.ones(3)


def test_the_hook_is_on_every_module():
    loaders = {name: type(module.__loader__).__name__ for name, module in sys.modules.items() if name.startswith("dmftopt.")}
    assert loaders
    assert set(loaders.values()) == {"_JaxtypingLoader"}, loaders
