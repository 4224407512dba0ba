"""Answers: closed forms, exact limits at what was answered, simulation, and what comes back from wrong questions."""

import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import problem

import dmftopt
from dmftopt import schedules
from dmftopt.__main__ import main

KEY = jax.random.key(0)


def fresh_samples(noise=0.5):
    """Isotropic least squares where no sample is seen twice."""
    return problem(dmftopt.tasks.LeastSquares(noise), delta=1e9)


# Not to rounding, and quick.
def _rough(problem, protocol, grid):
    return dmftopt.limits.least_squares(problem, protocol, grid, nodes=16, steps=16, throw=False)


def test_how_long_is_the_closed_form():
    # v' = -2 eta v + eta² (v + sigma²) for the excess 2 (risk - sigma² / 2).
    eta, sigma2, target = 0.5, 0.25, 0.3
    start, decay = 1.0 + 0.5, 2 * eta - eta**2
    level = eta**2 * sigma2 / decay
    exact = np.log((start - level) / (2 * target - sigma2 - level)) / decay
    found = dmftopt.how_long(fresh_samples(), dmftopt.Protocol(eta), target, horizon=8.0)
    assert found.earliest <= exact <= found.latest and found.latest - found.earliest < 2e-3
    assert found.steps(1000) == np.ceil(1000 * found.time) and "is reached at t" in str(found)
    never = dmftopt.how_long(fresh_samples(), dmftopt.Protocol(eta), 0.5 * (sigma2 + 0.9 * level), horizon=8.0)
    assert never.time is None and never.steps(10) is None and "is not reached" in str(never)


@pytest.mark.slow
def test_how_long_is_that_of_sgd():
    p = problem(dmftopt.tasks.Logistic("sign"))
    protocol = dmftopt.Protocol(1.0, 1.0, 0.1)
    found = dmftopt.how_long(p, protocol, 0.55, horizon=4.0, key=KEY)
    real = dmftopt.simulate.sgd(p, protocol, horizon=4.0, dimension=800, runs=64, key=KEY, records=np.linspace(0.0, 4.0, 41))
    risks = [np.asarray(real.test_risk) + sign * np.asarray(real.total_error.test_risk) for sign in (-1, 1)]
    times = np.linspace(0.0, 4.0, 41)
    early, late = (times[np.argmax(risk <= 0.55)] for risk in risks)
    assert found.earliest <= late and found.latest >= early - 0.1


def test_how_much_data_is_where_the_limit_has_the_target():
    p, protocol = problem(dmftopt.tasks.LeastSquares(0.5)), dmftopt.Protocol(dmftopt.schedules.linear_decay(0.8, 1.0))
    budget = dmftopt.Budget(epochs=2)
    found = dmftopt.how_much_data(p, protocol, budget, 0.3, key=KEY, between=(1.0, 8.0))
    exact = dmftopt.Objective(problem(dmftopt.tasks.LeastSquares(0.5), delta=found.delta), budget)
    run = exact.run(protocol)
    risk = dmftopt.limits.least_squares(exact.problems[0], run.protocol, dmftopt.TimeGrid([0.0, run.horizon])).test_risk[-1]
    assert abs(float(risk) - 0.3) < 1e-4 and found.least < found.delta < found.most
    assert found.samples(100) == np.ceil(100 * found.delta) and "needs n / d" in str(found)
    never = dmftopt.how_much_data(p, protocol, budget, 0.05, key=KEY, between=(1.0, 8.0))
    assert never.delta is None and "not reached up to n / d = 8" in str(never)


def test_the_error_holds_that_of_the_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    p = dmftopt.Problem.from_data(x, x @ [1.0, -1.0, 0.5] + rng.normal(size=60), train_size=60)

    options = {"key": KEY, "between": (4.0, 8.0), "predict": dmftopt.Exact(_rough, panels=8)}
    found = dmftopt.how_much_data(p, dmftopt.Protocol(0.2), dmftopt.Budget(steps=10.0), 100.0, **options)
    # The label noise alone is known to sqrt(2 / 60) of its variance.
    assert found.delta == 4.0 and 0.15 < found.error / found.risk[0] < 0.6


@pytest.mark.slow
def test_advice_is_no_worse_than_its_families(tmp_path):
    p = problem(dmftopt.tasks.LeastSquares(0.3), dmftopt.features.spectrum([3.0, 1.0, 0.5], [0.2, 0.4, 0.4]))
    found = dmftopt.advise(p, dmftopt.Budget(epochs=3), key=KEY, progress=False)
    names, rows = list(found.ranked), list(found.ranked.values())
    assert names[0] == "free" and rows[0].gap == 0 and all(a.risk <= b.risk for a, b in itertools.pairwise(rows))
    for name, row in found.ranked.items():
        run = found.runs[name]
        exact = dmftopt.limits.least_squares(p, run.protocol, dmftopt.TimeGrid([0.0, run.horizon])).test_risk[-1]
        assert abs(float(exact) - row.risk) < 1e-4
    # No constant rate of a fine ladder is better than the one it tuned.
    rates = np.geomspace(0.1, 2.0, 40)
    grid = dmftopt.TimeGrid([0.0, found.run.horizon])
    risks = [dmftopt.limits.least_squares(p, dmftopt.Protocol(rate), grid, throw=False).test_risk[-1] for rate in rates]
    assert found.ranked["constant"].risk <= np.nanmin(risks) + 1e-5
    dmftopt.save(tmp_path / "advice.npz", found)
    assert dmftopt.load(tmp_path / "advice.npz").enough == found.enough


@pytest.mark.slow
def test_advice_of_solved_runs():
    p, grid = problem(dmftopt.tasks.Logistic("sign")), dmftopt.TimeGrid.uniform(1.0, 4)
    options = {"key": KEY, "steps": 2, "progress": False, "grid": grid, "predict": dmftopt.Solve(samples=256)}
    found = dmftopt.advise(p, dmftopt.Budget(steps=2.0), tolerance=10.0, **options)
    # With such a tolerance the simplest of all is enough.
    assert found.enough == "constant" and "constant is enough" in str(found)
    assert set(found.to_dict()["ranked"]) == set(found.runs) and float(found.run.horizon) == 2.0


def test_a_larger_batch_takes_a_larger_rate(tmp_path):
    """The theory's own rule, and a change that is none."""
    p, budget = problem(dmftopt.tasks.LeastSquares(0.5)), dmftopt.Budget(epochs=1)
    options = {"key": KEY, "steps": 1, "progress": False, "predict": dmftopt.Exact(_rough, panels=8)}
    # With nothing free there is no other than the rescaled schedule.
    found = dmftopt.transfer(p, budget, dmftopt.Protocol(0.7), horizon=[1.0], batch_size=[4.0], **options)
    same, larger = found.rows
    assert larger.rate / same.rate == pytest.approx(4.0, rel=0.02) and larger.risk == pytest.approx(same.risk, rel=1e-4)
    assert larger.rescaled == same.rescaled == 0.0 and larger.kept > 0.02 > same.kept >= 0.0
    assert same.rate_low < same.rate < same.rate_high
    assert larger.protocol.learning_rate(0.0) == pytest.approx(0.7 * larger.rate)
    assert found.exponents["batch_size"] == pytest.approx(np.log(larger.rate) / np.log(4.0))
    assert "4 × batch size" in str(found) and found.to_dict()["rows"][1]["ridge"] is None
    dmftopt.save(tmp_path / "transfer.npz", found)
    assert str(dmftopt.load(tmp_path / "transfer.npz")) == str(found)


@pytest.mark.slow
def test_what_is_free_is_tuned_anew():
    p, budget = problem(dmftopt.tasks.LeastSquares(0.5)), dmftopt.Budget(epochs=1)
    plan = dmftopt.Protocol(schedules.constant(dmftopt.between(0.7, 0.0, 4.0)), ridge=dmftopt.above(0.01))
    options = {"key": KEY, "steps": 20, "progress": False}
    batch, more = dmftopt.transfer(p, budget, plan, batch_size=[4.0], samples=[4.0], **options).rows
    assert batch.rescaled >= 0 and batch.peak == pytest.approx(batch.rate, rel=0.2)
    # More data take less of a ridge, and nothing that is tuned is worse than what is not.
    assert more.ridge < batch.ridge and 0 <= more.rescaled <= more.kept + 1e-9


@pytest.mark.slow
@pytest.mark.long_run
@pytest.mark.parametrize("task", [dmftopt.tasks.Logistic("sign"), dmftopt.tasks.LeastSquares(0.5)], ids=["sign", "least squares"])
def test_a_kept_schedule_costs_what_it_costs_in_sgd(task):
    p, budget = problem(task), dmftopt.Budget(epochs=2)
    start = dmftopt.Protocol(schedules.linear_decay(1.0, 1.0), 1.0, 0.1)
    predict = dmftopt.Solve(samples=2048) if isinstance(task, dmftopt.tasks.Logistic) else None
    (row,) = dmftopt.transfer(p, budget, start, batch_size=[4.0], key=KEY, progress=False, predict=predict).rows
    risks = []
    for scale in (row.rate, 1.0):
        run = budget.run(dmftopt.Protocol(schedules.Scaled(start.learning_rate, scale=scale), 4.0, 0.1), 2.0)
        real = dmftopt.simulate.sgd(p, run.protocol, horizon=run.horizon, dimension=800, runs=64, key=KEY, records=2)
        risks.append([float(real.test_risk[-1]), float(real.standard_error.test_risk[-1])])
    (best, error), (kept, other) = risks
    assert abs(best - row.risk) < row.risk_error + 3 * error + 0.005 * row.risk
    assert abs(kept - best - row.kept) < row.kept_error + 3 * np.hypot(error, other) + 0.005 * row.risk
    assert row.kept > 3 * np.hypot(error, other)


SPREAD = dmftopt.features.spectrum([4.0, 1.0, 0.25])


def descent(delta, fraction, rate, updates, dimension=400, runs=6):
    """Test risk (update,) of plain NumPy."""
    risks = np.zeros(updates + 1)
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        lam = np.resize(np.asarray(SPREAD.eigenvalues), dimension)
        x = rng.normal(size=(int(delta * dimension), dimension)) * np.sqrt(lam / dimension)
        star, theta = rng.normal(size=dimension), 0.5**0.5 * rng.normal(size=dimension)
        y = x @ star + 0.5 * rng.normal(size=x.shape[0])
        for k in range(updates + 1):
            risks[k] += 0.5 * (np.mean(lam * (theta - star) ** 2) + 0.25) / runs
            taken = rng.random(x.shape[0]) < fraction
            theta = theta - rate * x[taken].T @ (x[taken] @ theta - y[taken]) / (delta * fraction)
    return risks


def fastest(delta, fraction, rates, updates, target, runs=6):
    """Over these rates, between updates by a line through logarithms."""
    found = []
    for rate in rates:
        risk = np.log(descent(delta, fraction, rate, updates, runs=runs))
        below = np.flatnonzero(risk <= np.log(target))
        if below.size:
            k = below[0]
            found.append(k - 1 + (risk[k - 1] - np.log(target)) / (risk[k - 1] - risk[k]))
    return min(found)


def test_batches_cost_updates_or_samples(tmp_path):
    p = problem(dmftopt.tasks.LeastSquares(0.5), SPREAD, delta=4.0)
    options = {"key": KEY, "updates": 8, "samples": 128, "fractions": (1.0, 0.25)}
    found = dmftopt.critical_batch_size(p, (0.25, 0.01), **options)
    few, many = found.updates[0]
    assert few < many < 4 * few and found.samples[0, 1] < found.samples[0, 0] and np.all(np.isnan(found.updates[1]))
    assert found.learning_rate[0, 1] < found.learning_rate[0, 0] and found.batch_sizes[1] == 1.0
    # What the smallest batches need is exact.
    rates = np.geomspace(0.4, 1.6, 7)
    limit = [dmftopt.how_long(p, dmftopt.Protocol(rate), 0.25, horizon=4.0).time for rate in rates]
    assert found.least_samples[0] == pytest.approx(min(t for t in limit if t), rel=0.05)
    assert "test risk 0.01" in str(found) and found.to_dict()["updates"][1] == [None, None]
    dmftopt.save(tmp_path / "batches.npz", found)
    assert str(dmftopt.load(tmp_path / "batches.npz")) == str(found)


@pytest.mark.slow
def test_the_critical_batch_size_is_that_of_descent():
    p = problem(dmftopt.tasks.LeastSquares(0.5), SPREAD, delta=8.0)
    found = dmftopt.critical_batch_size(p, 0.18, key=KEY)
    near, fractions = 2.0 ** np.array([-0.25, 0.0, 0.25]), found.fractions[:4]
    # 24 runs leave 2% of a count open.
    updates = [fastest(8.0, f, r * near, 16, 0.18, 24) for f, r in zip(fractions, found.learning_rate[0], strict=False)]
    np.testing.assert_allclose(found.updates[0, :4], updates, rtol=0.05)
    with pytest.raises(ValueError, match="is not reached in 64 updates by any batch"):
        dmftopt.critical_batch_size(p, 1e-6, key=KEY)
    samples = 8.0 * fractions * updates / found.least_samples[0]
    gap = np.log(np.divide(updates, updates[0])) - np.log(samples)
    expected = 8.0 * np.exp(np.interp(0.0, gap, np.log(fractions)))
    assert found.critical[0] == pytest.approx(expected, rel=0.08) and found.lowest[0] <= found.critical[0] <= found.highest[0]


@pytest.mark.slow
def test_batches_of_another_loss_are_those_of_descent():
    p = problem(dmftopt.tasks.Logistic("sign"), SPREAD, delta=4.0)
    found = dmftopt.critical_batch_size(p, (0.5, 0.45), key=KEY, fractions=(1.0, 0.25), protocol=dmftopt.Protocol(4.0))
    for count, rate, fraction in zip(found.updates[0], found.learning_rate[0], found.fractions, strict=True):
        grid = dmftopt.TimeGrid.uniform(64.0, 64)
        noise = dmftopt.noise.Bernoulli(fraction) if fraction < 1 else dmftopt.noise.NoNoise()
        real = dmftopt.simulate.gradient_descent(p, dmftopt.Protocol(rate), grid, dimension=600, runs=16, key=KEY, noise=noise)
        risk = np.asarray(real.test_risk)
        k = int(np.argmax(risk <= 0.5))
        time = k - 1 + (risk[k - 1] - 0.5) / (risk[k - 1] - risk[k])
        # One rate: that of the parabola's top is near the best of all.
        assert time == pytest.approx(count, rel=0.05)


@pytest.mark.parametrize(
    "wrong, error, match",
    [
        (lambda p: dmftopt.how_long(p, dmftopt.Protocol(0.5), -1.0, horizon=1.0), ValueError, "target must be > 0"),
        (lambda p: dmftopt.how_long(p, dmftopt.Protocol(0.5), 0.1, horizon=1.0), ValueError, "key: this problem is solved"),
        (
            lambda p: dmftopt.how_much_data(p, dmftopt.Protocol(0.5), dmftopt.Budget(epochs=1), 0.1, key=KEY, between=(2.0, 1.0)),
            ValueError,
            "between must be two increasing",
        ),
        (
            lambda p: dmftopt.transfer(p, dmftopt.Budget(epochs=1), dmftopt.Protocol(0.5), key=KEY),
            ValueError,
            "one change",
        ),
        (
            lambda p: dmftopt.transfer(p, dmftopt.Budget(epochs=1), dmftopt.Protocol(0.5), key=KEY, samples=2.0),
            TypeError,
            "samples must be a list of factors",
        ),
        (lambda p: dmftopt.critical_batch_size(p, -0.1, key=KEY), ValueError, "target must be > 0"),
        (
            lambda p: dmftopt.critical_batch_size(p, 0.1, key=KEY, fractions=(0.5, 0.1)),
            ValueError,
            "must decrease from 1",
        ),
        (lambda p: dmftopt.critical_batch_size(p, 0.1, key=KEY, samples=64), ValueError, "Pass samples=1024 or more"),
        (
            lambda p: dmftopt.critical_batch_size(p, 0.1, key=KEY, protocol=dmftopt.Protocol(1.0, 1.0, lambda t: t)),
            TypeError,
            "protocol.ridge must be a number",
        ),
        (
            lambda p: dmftopt.critical_batch_size(p, 0.1, key=KEY, protocol=dmftopt.Protocol(1.0, update=dmftopt.updates.Sign())),
            ValueError,
            "Leave update and friction out",
        ),
        (
            lambda p: dmftopt.advise(
                p, dmftopt.Budget(epochs=1), key=KEY, protocol=dmftopt.Protocol(dmftopt.schedules.linear_decay(1.0, 1.0))
            ),
            TypeError,
            "its learning rate must be a number",
        ),
        (lambda p: dmftopt.advise(p, 3, key=KEY), TypeError, "budget must be a Budget"),
    ],
)
def test_wrong_questions(wrong, error, match):
    with pytest.raises(error, match=match):
        wrong(problem(dmftopt.tasks.Logistic("sign")))


def table(path, rows=60):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3))
    y = x @ [1.0, -1.0, 0.5] + 0.3 * rng.normal(size=rows)
    np.savetxt(path, np.column_stack([x, y]), delimiter=",", header="a,b,c,y", comments="")
    return path


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    data = str(table(tmp_path / "data.csv"))
    assert main(["advise", data, "--label", "z", "--epochs", "2"]) == 2
    assert "--label must be one of the columns a, b, c, y" in capsys.readouterr().err
    assert main(["advise", data, "--label", "y", "--epochs", "2", "--out", "schedule.txt"]) == 2
    assert main(["advise", str(tmp_path / "none.csv"), "--label", "y", "--epochs", "2"]) == 2
    (tmp_path / "text.csv").write_text("a,y\n1,yes\n2,no\n")
    assert main(["advise", str(tmp_path / "text.csv"), "--label", "y", "--epochs", "2"]) == 2
    assert "must be numbers. For classes give a --loss" in capsys.readouterr().err
    for bad in ("", "a,y\n1,2\n1,2,3\n"):
        (tmp_path / "bad.csv").write_text(bad)
        assert main(["advise", str(tmp_path / "bad.csv"), "--label", "y", "--epochs", "2"]) == 2
        assert "error: " in capsys.readouterr().err
    assert main(["advise", data, "--label", "y", "--epochs", "2", "--loss", "log"]) == 2
    assert "loss must be one of" in capsys.readouterr().err


def test_the_command_line_reads_tables_as_they_come(tmp_path, monkeypatch, capsys):
    """Text, gaps and classes: what is asked of `advise`."""
    asked = []
    monkeypatch.setattr("dmftopt.__main__.ask", lambda problem, budget, **_: asked.append(problem))
    rows = [
        f"{i % 7},{'' if i % 9 == 0 else i % 5},{('Ulm', 'Kiel', 'Bonn')[i % 3]},{'yes' if i % 2 else 'no'}" for i in range(60)
    ]
    (tmp_path / "mixed.csv").write_text("\n".join(["a,b,city,y", *rows]))
    assert main(["advise", str(tmp_path / "mixed.csv"), "--label", "y", "--epochs", "2", "--loss", "logistic"]) == 0
    (problem,) = asked
    assert problem.data.classes == ("no", "yes") and problem.data.dimension == 4 and problem.data.train_size == 60
    assert "note: schedules are for features as dmftopt.prepare makes them" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_writes_a_schedule(tmp_path):
    data, out = table(tmp_path / "data.csv"), tmp_path / "schedule.csv"
    command = [sys.executable, "-m", "dmftopt", "advise", str(data), "--label", "y", "--epochs", "2", "--steps", "2"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "is enough" in done.stdout and len(out.read_text().splitlines()) == 1 + 2 * 60
