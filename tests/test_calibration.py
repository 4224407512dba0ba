"""Recorded runs: the law against its sum step by step, known parameters found again, input in all its forms."""

import csv
import math

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest

import dmftopt
from dmftopt.calibration import Curve, KernelLaw, Segments, cross_validate, read_curves

PEAK, STEPS = 2e-3, 600
LAW = {
    "floor": 2.0,
    "bias_scale": 0.35,
    "bias_exponent": 0.6,
    "noise_scale": 600.0,
    "noise_rate": 30.0,
    "noise_exponent": 1.5,
    "rate_exponent": 1.7,
    "feedback": 3.0,
}


def schedules():
    k = np.arange(STEPS)
    warm = np.minimum(k / 40, 1)
    return {
        "constant": PEAK * warm,
        "cosine": PEAK * warm * (0.55 + 0.45 * np.cos(np.pi * k / STEPS)),
        "drop": PEAK * np.where(k < 300, warm, 0.25),
        "steps": PEAK * np.where(k < 200, warm, np.where(k < 450, 0.6, 0.15)),
    }


def brute(rates, batches=None, **changed):
    """The law by its sum, step by step, at every step from 0 on (there with no excess)."""
    p = {**LAW, **changed}
    rates, batches = np.asarray(rates), np.ones(len(rates)) if batches is None else batches
    tau = np.concatenate([[0.0], np.cumsum(rates)])
    excess = np.zeros(len(rates) + 1)
    weight = PEAK**2 * (rates / PEAK) ** p["rate_exponent"] / batches
    for k in range(1, len(excess)):
        kernel = (1 + p["noise_rate"] * (tau[k] - tau[:k])) ** -p["noise_exponent"]
        response = p["noise_scale"] * weight[:k] * kernel
        known = p["bias_scale"] * max(tau[k], PEAK) ** -p["bias_exponent"] + response.sum()
        known += p["feedback"] * response @ (excess[:k] + excess[1 : k + 1]) / 2  # of which excess[k] is 0 as yet
        excess[k] = known / (1 - p["feedback"] * response[-1] / 2)
    return p["floor"] + excess


def curves(noise=0.0, batches=None, seed=0, names=("constant", "cosine", "drop"), **changed):
    rng, found = np.random.default_rng(seed), []
    for name in names:
        rates = schedules()[name]
        step = np.arange(48, STEPS, 6)
        loss = brute(rates, batches, **changed)[step] * (1 + noise * rng.normal(size=step.size))
        found.append(Curve(step, lambda k, rates=rates: rates[k], loss, name=name))
    return found


@pytest.fixture(scope="module")
def calibrated():
    return dmftopt.calibrate(curves(1e-4), draws=4)


def true_law(**changed):
    values = {name: np.asarray(value) for name, value in {**LAW, **changed}.items()}
    return KernelLaw(**values, peak=PEAK, horizon=float(STEPS), batch_size=1.0)


def with_law(calibrated, **changed):
    law = true_law(**changed)
    return dmftopt.Calibration(
        law=law,
        ensemble=jax.tree.map(lambda a: np.stack([a, a]), law),
        free=("rate_exponent", "feedback"),
        loose=(),
        deviation=0.0,
        discrepancy=0.0,
        records=calibrated.records,
        seen=calibrated.seen,
    )


@pytest.mark.parametrize("feedback", [0.0, 3.0])
def test_law_is_its_sum(feedback):
    """At a segment for each step exact but for the kernel's quadrature: 2e-7 of it, times ten for the feedback of an excess that
    is 14 in the beginning."""
    rates = schedules()["steps"]
    batches = np.where(np.arange(STEPS) < 250, 1.0, 2.0)
    law = true_law(feedback=feedback)
    with jax.enable_x64(True):
        steps = Segments(jnp.ones((1, STEPS)), jnp.asarray(rates / PEAK)[None, :], jnp.asarray(batches)[None, :])
        assert np.allclose(jax.jit(KernelLaw.loss)(law, steps)[0], brute(rates, batches, feedback=feedback)[1:], rtol=3e-6)


def test_errors_of_segments_are_told(calibrated):
    """Segments of many steps: exact where rates are constant and there is no feedback; elsewhere as far off as they say."""
    rates = schedules()["cosine"]
    for feedback in (0.0, 3.0):
        found = with_law(calibrated, feedback=feedback).predict(rates, at=np.arange(60, STEPS + 1, 60))
        off = np.abs(found.loss / brute(rates, feedback=feedback)[found.step] - 1)
        # Halving leaves a quarter of an error of second order, so it moves by three quarters of it.
        assert 0 < found.discretization_error < 1e-3 and np.max(off) < 2 * found.discretization_error


def test_finds_known_parameters(calibrated):
    """Records with noise of 1e-4: all eight within 5%, and the loss of a schedule that was not seen within two of those."""
    found = calibrated.parameters
    assert set(found) == set(LAW)
    for name, value in found.items():
        assert abs(value.estimate / LAW[name] - 1) < 0.05, (name, value)
        assert value.low <= value.estimate <= value.high
    assert calibrated.deviation == pytest.approx(1e-4, rel=0.3)
    rates = schedules()["steps"]
    predicted = calibrated.predict(rates, at=np.arange(60, STEPS + 1, 10))
    exact = brute(rates)[predicted.step]
    assert np.max(np.abs(predicted.loss / exact - 1)) < 2e-4
    assert np.all((predicted.low < exact) & (exact < predicted.high))
    assert predicted.extrapolates == ()


@pytest.mark.slow
def test_robust():
    """A twentieth of the records off by a tenth: least squares would move predictions by several 1e-3."""
    spoiled = []
    for curve in curves(1e-4):
        loss = curve.loss.copy()
        loss[5::20] *= 1.1
        spoiled.append(Curve(curve.step, curve.learning_rate, loss, name=curve.name))
    found = dmftopt.calibrate(spoiled, draws=2).predict(schedules()["steps"], at=np.arange(60, STEPS + 1, 10))
    assert np.max(np.abs(found.loss / brute(schedules()["steps"])[found.step] - 1)) < 5e-4


@pytest.mark.slow
def test_says_what_is_not_identifiable():
    """Of one constant rate: nothing tells how noise depends on the rate."""
    found = dmftopt.calibrate(curves(1e-4, names=("constant",)), draws=4)
    assert not found.parameters["rate_exponent"].identifiable and "rate_exponent" in str(found)
    assert str(found).count("not identifiable") >= 1


def test_designed_schedule(calibrated):
    """Lower than every usual one by the exact sum too, and within the bounds."""
    found = calibrated.optimize(STEPS, warmup=40)
    assert found.learning_rate.shape == (STEPS,) and np.all(found.learning_rate <= PEAK * (1 + 1e-9))
    assert np.all(found.learning_rate[40:] >= calibrated.seen.lowest * (1 - 1e-9))
    exact = brute(found.learning_rate)[-1]
    assert abs(found.prediction.loss[-1] / exact - 1) < 2e-4
    low, k = calibrated.seen.lowest, np.arange(STEPS)
    after = np.maximum(k - 40, 0) / (STEPS - 40)
    for name, shape in {"linear": 1 - after, "cosine": 0.5 + 0.5 * np.cos(np.pi * after)}.items():
        rates = np.where(k < 40, PEAK * k / 40, low + (PEAK - low) * shape)
        gain, error = found.gain(name)
        assert error > 0 and gain == pytest.approx(brute(rates)[-1] - exact, abs=4e-4) and gain > 0
    assert float(found.to_optax()(10**6)) == pytest.approx(found.tolist()[-1])
    with pytest.raises(ValueError, match="over must be one of"):
        found.gain("no such")


def test_flags_extrapolation(calibrated):
    assert calibrated.predict(schedules()["cosine"]).extrapolates == ()
    ways = {
        "above the largest": 2 * schedules()["cosine"],
        "below the smallest": PEAK * np.where(np.arange(100) < 50, 1.0, 0.05),
        "sum of learning rates 3": np.full(3 * STEPS, PEAK),
    }
    for how, rates in ways.items():
        found = calibrated.predict(rates)
        assert any(how in way for way in found.extrapolates) and how in str(found)
        assert np.all(np.isfinite(found.loss))
    # B kappa sum of the kernel: 2.4e-3 * 30 * 31, of which 31 by the sum itself.
    gain = 600.0 * PEAK**2 * 30.0 * np.sum((1 + 30.0 * PEAK * np.arange(1, STEPS + 1)) ** -1.5)
    unstable = with_law(calibrated, feedback=30.0)
    assert unstable.law.loop_gain(PEAK, 1.0, STEPS) == pytest.approx(gain, rel=1e-3) and gain > 1
    assert "unstable" in unstable.predict(schedules()["constant"]).extrapolates[0]


def test_saves(calibrated, tmp_path):
    dmftopt.save(tmp_path / "law.npz", calibrated)
    again = dmftopt.load(tmp_path / "law.npz")
    assert str(again) == str(calibrated)
    assert np.array_equal(again.predict(schedules()["drop"]).loss, calibrated.predict(schedules()["drop"]).loss)


@pytest.mark.slow
def test_cross_validation_prefers_what_made_the_curves():
    for leave_out, folds in (("blocks", 6), ("curves", 3)):
        found = cross_validate(curves(1e-4), [(), ("rate_exponent", "feedback")], leave_out=leave_out)
        simple, whole = (found[choice] for choice in [(), ("rate_exponent", "feedback")])
        assert len(simple) == len(whole) == folds and np.mean(whole) < 0.5 * np.mean(simple)


def rows(path, header, table):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *table])
    return path


def test_reads_tables(tmp_path):
    """The same two runs in every form."""
    step, rate = np.arange(10, 60, 10), np.array([1.0, 1.0, 0.5, 0.5, 0.4])
    losses = {"a": np.array([5.0, 4.0, 3.0, 2.0, 1.5]), "b": np.array([6.0, 4.5, 3.0, 2.5, 2.0])}
    long = [(name, k, r, x) for name, loss in losses.items() for k, r, x in zip(step, rate, loss, strict=True)]
    path = rows(tmp_path / "long.csv", ["schedule", "step", "learning_rate", "loss"], long)
    header = [
        "Step",
        "a - train/loss",
        "a - train/loss__MIN",
        "a - train/lr",
        "b - train/loss",
        "b - train/learning_rate",
    ]
    wide = [(k, losses["a"][i], 0, rate[i], "", "") for i, k in enumerate(step)]
    wide += [(k, "", "", "", losses["b"][i], rate[i]) for i, k in enumerate(step)]
    export = rows(tmp_path / "wandb.csv", header, sorted(wide, key=lambda row: row[0]))
    forms = [
        path,
        str(export),
        pandas.read_csv(path),
        pandas.read_csv(export),
        {name: (step, rate, loss) for name, loss in losses.items()},
        [Curve(step, rate, loss, name=name) for name, loss in losses.items()],
    ]
    for form in forms:
        found = read_curves(form, warmup=4)
        assert [curve.name for curve in found] == ["a", "b"]
        for curve in found:
            assert np.array_equal(curve.step, step) and np.array_equal(curve.loss, losses[curve.name])
            # Warm-up over 4 steps, a jump at the third record, a line to the last.
            rates = curve.rates()
            assert np.allclose(rates[:5], [0, 0.25, 0.5, 0.75, 1.0]) and np.all(rates[5:30] == 1.0) and rates[30] == 0.5
            assert np.allclose(rates[40:], np.linspace(0.5, 0.4, 11)[:-1])
    assert read_curves((step, rate, losses["a"]))[0].rates()[5] == pytest.approx(0.5)  # of ten steps of warm-up


def test_batch_sizes_divide_the_noise():
    """Twice the batch from the middle on, of half the noise scale throughout: the same as in the definition."""
    step, rate = np.arange(10, 60, 10), np.full(5, 0.1)
    curve = Curve(step, rate, np.ones(5), [8, 8, 16, 16, 16], warmup=0)
    assert np.array_equal(curve.batches(), np.where(np.arange(50) < 30, 8.0, 16.0))
    assert np.all(Curve(step, rate, np.ones(5), 4).batches() == 4.0)


STEP, RATE, LOSS = np.arange(1, 40), np.full(39, 0.1), np.linspace(3, 2, 39)
BAD = {
    "increasing": lambda: Curve(STEP[::-1], RATE, LOSS),
    "loss of curve 'run' must be finite": lambda: Curve(STEP, RATE, LOSS * math.nan),
    "loss of curve 'run' must be > 0": lambda: Curve(STEP, RATE, LOSS - 5),
    "learning_rate of curve 'run' must be >= 0": lambda: Curve(STEP, -RATE, LOSS),
    "learning_rate of curve 'run' must have one entry per step": lambda: Curve(STEP, RATE[:3], LOSS),
    "must be positive somewhere": lambda: Curve(STEP, 0 * RATE, LOSS),
    "whole numbers": lambda: Curve(STEP + 0.5, RATE, LOSS),
    "warmup of curve 'run' must be at least 0": lambda: Curve(STEP, RATE, LOSS, warmup=-1),
    "at least one run": lambda: read_curves([]),
    "no column step": lambda: read_curves(pandas.DataFrame({"loss": LOSS})),
    "no column loss": lambda: read_curves({"step": STEP, "learning_rate": RATE}),
    'no column "a - learning_rate"': lambda: read_curves({"Step": STEP, "a - loss": LOSS}),
    "loss of curve 'run' must be numbers": lambda: read_curves({"step": [1, 2], "learning_rate": [1, 1], "loss": ["x", 1]}),
    "given for some curves only": lambda: read_curves([Curve(STEP, RATE, LOSS), Curve(STEP, RATE, LOSS, 8, name="b")]),
    "free must be one of": lambda: dmftopt.calibrate((STEP, RATE, LOSS), free=["floor"]),
    "leave_out must be one of": lambda: cross_validate((STEP, RATE, LOSS), leave_out="all"),
    "draws must be at least 2": lambda: dmftopt.calibrate((STEP, RATE, LOSS), draws=1),
    "has no record from step 100 on": lambda: dmftopt.calibrate((STEP, RATE, LOSS), first_step=100),
    "at least 16 records": lambda: dmftopt.calibrate((STEP[:9], RATE[:9], LOSS[:9])),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_curves(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_bad_types(calibrated):
    with pytest.raises(TypeError, match="curves must be"):
        read_curves(3)
    with pytest.raises(TypeError, match="curve 'a' must be"):
        read_curves({"a": 3})
    wrong = {
        "steps: how many": lambda: calibrated.predict(lambda k: 0.1),
        "one per step, not all 0": lambda: calibrated.predict(np.zeros(10)),
        "schedule must be >= 0": lambda: calibrated.predict([-1.0, 1.0]),
        "the law diverges": lambda: with_law(calibrated, feedback=1e4).predict(np.full(STEPS, PEAK)),
        "at must be": lambda: calibrated.predict(np.ones(10), at=[3, 2]),
        "the curves had none": lambda: calibrated.predict(np.ones(10), batch_size=3),
        "low < high": lambda: calibrated.optimize(100, bounds=(1.0, 1.0)),
        "warmup must be below": lambda: calibrated.optimize(100, warmup=100),
    }
    for message, call in wrong.items():
        with pytest.raises(ValueError, match=message):
            call()
