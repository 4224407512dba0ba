"""Answers: closed forms, exact limits at what was answered, simulation, and what comes back from wrong questions."""

import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import problem

import dmftopt
from dmftopt.__main__ import main

KEY = jax.random.key(0)


def fresh_samples(noise=0.5):
    """Isotropic least squares where no sample is seen twice."""
    return problem(dmftopt.tasks.LeastSquares(noise), delta=1e9)


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

    def limit(problem, protocol, grid):
        return dmftopt.limits.least_squares(problem, protocol, grid, nodes=16, steps=16, throw=False)

    options = {"key": KEY, "between": (4.0, 8.0), "predict": dmftopt.Exact(limit, panels=8)}
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
    assert "must be numbers" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_writes_a_schedule(tmp_path):
    data, out = table(tmp_path / "data.csv"), tmp_path / "schedule.csv"
    command = [sys.executable, "-m", "dmftopt", "advise", str(data), "--label", "y", "--epochs", "2", "--steps", "2"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "is enough" in done.stdout and len(out.read_text().splitlines()) == 1 + 2 * 60
