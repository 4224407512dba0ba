"""A small slice of `make fuzz`: its own checks, and a few cases of each kind at an accuracy a test can afford."""

import json

import fuzz
import jax
import numpy as np
import pytest


def test_batches_are_drawn_again_as_they_were():
    first, again = (fuzz.drawn("least squares", 3) for _ in range(2))
    assert first == again and len(first) == fuzz.BATCH
    assert len({json.dumps(case) for case in first + fuzz.drawn("least squares", 4)}) > fuzz.BATCH


CASE = {
    "family": "least squares", "task": "least squares", "eigenvalues": [1.0], "weights": [1.0], "delta": 2.0,
    "teacher_scale": 1.0, "student_scale": 0.5, "noise": 0.3, "horizon": 2.0, "learning_rate": 0.5, "batch_size": 1.0,
    "ridge": 0.1, "schedule": "pieces",
}  # fmt: skip


@pytest.mark.slow
def test_numpy_agrees_with_the_limit():
    """The two independent routes with each other, so that neither vouches for itself."""
    case = CASE | {"family": "sgd"}
    times = np.array([0.0, 0.5, 1.0, 2.0])
    values, errors = fuzz.by_numpy(case, times, runs=8)
    problem, protocol, _ = fuzz.build(case)
    exact = fuzz.dmftopt.limits.least_squares(problem, protocol, fuzz.dmftopt.TimeGrid(times))
    for name, value in values.items():
        assert np.all(np.abs(value - getattr(exact, name)) <= 1.5 * errors[name]), name


def test_a_case_is_right():
    row = fuzz.judge(CASE, jax.random.key(0))
    assert row["verdict"] == "right" and row["covered"] > 0.8
    assert 0 < row["error"] < 0.01 and row["stated"] < 0.02


def test_verdicts(monkeypatch):
    """A route that differs is called wrong, a solution that says it failed flagged."""
    honest = fuzz.reference

    def other(case, solution, key):
        values, errors = honest(case, solution, key)
        return {name: 1.2 * np.asarray(value) for name, value in values.items()}, errors

    monkeypatch.setattr(fuzz, "reference", other)
    assert fuzz.judge(CASE, jax.random.key(0))["verdict"] == "wrong"
    assert fuzz.judge(CASE | {"learning_rate": 2.5, "schedule": "constant"}, jax.random.key(0))["verdict"] == "flagged"
    rows = [{**fuzz.judge(CASE, jax.random.key(0))}]
    assert "wrong" in fuzz.table(rows)


def test_numbers_of_other_families_can_be_built():
    for family in fuzz.TASKS:
        for case in fuzz.drawn(family, 0, 3):
            problem, _, horizon = fuzz.build(case)
            assert horizon > 0 and problem.valid()


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(fuzz.TASKS))
def test_a_batch(family):
    rows = [fuzz.judge(case, jax.random.key(i)) for i, case in enumerate(fuzz.drawn(family, 1))]
    assert not [row for row in rows if row["verdict"] == "wrong"]
