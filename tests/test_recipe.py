import csv
import json
import pickle

import numpy as np
import optax
import pytest

import dmftopt

PROTOCOL = dmftopt.Protocol(
    dmftopt.schedules.cosine(1.5, 3.0, 0.1), dmftopt.schedules.PiecewiseLinear((0.0, 3.0), np.array([1.0, 3.7])), 0.2
)
OPTIONS = {"horizon": 3.0, "dimension": 50, "delta": 2.0}


def made(protocol=PROTOCOL, **changes):
    return dmftopt.recipe(protocol, **{**OPTIONS, **changes})


def test_steps_are_the_schedules_at_t_in_raw_units():
    found = made(mean_square_norm=4.0)
    t = np.arange(150) / 50
    np.testing.assert_allclose(found.learning_rate, PROTOCOL.learning_rate(t) / 4, rtol=1e-12)
    np.testing.assert_allclose(found.weight_decay, 0.2 * 4 / 50)
    np.testing.assert_array_equal(found.momentum, 0.0)
    # What optax would do with the same schedule.
    schedule = dmftopt.schedules.to_optax(PROTOCOL.learning_rate, 50, scale=0.25)
    np.testing.assert_allclose([schedule(s) for s in (0, 70, 149)], found.learning_rate[[0, 70, 149]], rtol=1e-6)
    assert len(found) == 150 and found.samples == 100


def test_whole_batches_spend_the_samples_as_planned():
    found = made()
    t = np.arange(1, 151) / 50
    planned = 50 * (t + 0.9 * t**2 / 2)  # d ∫B dt of B = 1 + 0.9 t
    assert found.batch_size.dtype.kind == "i" and found.batch_size.min() >= 1
    assert np.abs(np.cumsum(found.batch_size) - planned).max() <= 0.5 + 1e-9


def test_rounding_does_not_take_a_batch_below_one():
    """exp(log(1)) may be 1 - 1e-16, and in float32 1 - 6e-8."""
    np.testing.assert_array_equal(made(dmftopt.Protocol(1.0, lambda t: 1 - 1e-7)).batch_size, 1)


def test_epochs_cover_the_run():
    found = made()
    epochs = found.epochs()
    assert [e.first_step for e in epochs] == list(np.cumsum([0, *(e.steps for e in epochs)])[:-1])
    assert sum(e.steps for e in epochs) == 150 and len(epochs) == -(-int(found.batch_size.sum()) // 100)
    for e in epochs[:-1]:
        assert abs(found.batch_size[e.first_step : e.first_step + e.steps].sum() - 100) < 5
        assert abs(e.steps * e.batch_size - 100) <= e.steps / 2 + 5
    assert made(dmftopt.Protocol(1.0), delta=3.0).epochs() == [(0, 150, 1.0, 1)]


def test_multiplier_is_what_lambda_lr_wants():
    multiplier = pickle.loads(pickle.dumps(made().learning_rate_multiplier(base=0.5)))
    rates = [0.5 * multiplier(step) for step in range(150)]
    np.testing.assert_allclose(rates, made().learning_rate, rtol=1e-12)
    assert multiplier(10**6) == multiplier(149) and type(multiplier(3)) is float


def test_sgd_by_the_recipe_is_sgd_by_the_schedule():
    """optax with the recipe's steps, against the schedule read by hand."""
    found = made(dmftopt.Protocol(PROTOCOL.learning_rate, ridge=0.2, momentum=0.5))
    rates = np.asarray(found.learning_rate)
    optimizer = optax.chain(
        optax.add_decayed_weights(float(found.weight_decay[0])),
        optax.trace(decay=float(found.momentum[0])),
        optax.scale_by_schedule(lambda step: -rates[step]),
    )
    theta, velocity, by_hand = np.ones(3), np.zeros(3), np.ones(3)
    state = optimizer.init(theta)
    for step in range(5):
        state = (*state[:2], state[2]._replace(count=np.asarray(step)))
        updates, state = optimizer.update(0.3 * theta, state, theta)
        theta = theta + updates
        velocity = 0.5 * velocity + 0.3 * by_hand + 0.2 / 50 * by_hand
        by_hand = by_hand - PROTOCOL.learning_rate(step / 50) * velocity
    np.testing.assert_allclose(theta, by_hand, rtol=1e-6)


def test_tables(tmp_path):
    found = made()
    found.save(tmp_path / "run.csv")
    rows = list(csv.DictReader((tmp_path / "run.csv").read_text().splitlines()))
    assert len(rows) == 150 and int(rows[7]["step"]) == 7 and float(rows[7]["time"]) == 7 / 50
    np.testing.assert_array_equal([float(r["learning_rate"]) for r in rows], found.learning_rate)
    np.testing.assert_array_equal([int(r["batch_size"]) for r in rows], found.batch_size)
    found.save(tmp_path / "run.json")
    stored = json.loads((tmp_path / "run.json").read_text())
    assert stored["dimension"] == 50 and stored["samples"] == 100
    np.testing.assert_array_equal(stored["weight_decay"], found.weight_decay)


ERRORS = {
    "no protocol": (lambda: made(1.0), TypeError, "protocol must be a"),
    "horizon": (lambda: made(horizon=0.0), ValueError, "horizon must be > 0"),
    "dimension": (lambda: made(dimension=1.5), TypeError, "dimension must be a Python integer"),
    "no step": (lambda: made(horizon=0.001), ValueError, "Raise dimension"),
    "delta": (lambda: made(delta=-1.0), ValueError, "delta must be > 0"),
    "norm": (lambda: made(mean_square_norm=0.0), ValueError, "mean_square_norm must be > 0"),
    "batch": (lambda: made(dmftopt.Protocol(1.0, lambda t: 2 - t)), ValueError, "batch_size must be >="),
    "base": (lambda: made().learning_rate_multiplier(0.0), ValueError, "base must be > 0"),
    "suffix": (lambda: made().save("run.txt"), ValueError, "path must end in"),
}


@pytest.mark.parametrize("call, kind, message", ERRORS.values(), ids=ERRORS)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
