"""Experiments run from the command line at toy sizes, and leave their figure and result."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SCRIPTS = [*sorted(EXPERIMENTS.glob("[0-9]*.py")), EXPERIMENTS / "absorbing_state" / "run.py"]


def test_gallery(tmp_path):
    command = [sys.executable, EXPERIMENTS / "02_gallery.py", "--smoke", "--out", tmp_path / "gallery", "--models"]
    subprocess.run([*command, "momentum, batches of n/5"], check=True, capture_output=True, timeout=600)
    out = tmp_path / "gallery_smoke"
    result = json.loads((out / "result.json").read_text())
    assert list(result["models"]) == ["momentum, batches of n/5"]
    assert {f.name for f in out.iterdir()} == {"result.json", "gallery.png", "momentum_batches_of_n_5.png"}
    wrong = subprocess.run([*command, "no such model"], capture_output=True, text=True, timeout=600)
    assert wrong.returncode != 0 and "no such model" in wrong.stderr


@pytest.mark.slow
def test_phase_diagram(tmp_path):
    command = [sys.executable, EXPERIMENTS / "05_phase_diagram.py", "--smoke", "--out", tmp_path / "diagram"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    out = tmp_path / "diagram_smoke"
    assert {f.name for f in out.iterdir()} == {"result.json", "figure.png", "cells"}
    results = json.loads((out / "result.json").read_text())["results"]
    (least_squares,), (logistic,) = (results[task].values() for task in ("least squares", "logistic"))
    # Exact at any size: of the temperatures, not of the batch size; and stability by two routes.
    assert least_squares["largest_relative_change_with_batch_4"] < 1e-8
    for batch in (1, 4):
        assert abs(least_squares[f"measured_critical_batch_{batch}"] / least_squares["critical"] - 1) < 1e-3
    assert None in least_squares["risk"] or max(least_squares["risk"]) > 1e6
    assert max(logistic["risk"]) < 10
    # What is finished is not computed again.
    before = {f: f.stat().st_mtime_ns for f in (out / "cells").iterdir()}
    again = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    assert {f: f.stat().st_mtime_ns for f in (out / "cells").iterdir()} == before and "critical rate" in again.stdout


def test_every_experiment_starts():
    """In one process, for imports are most of the time. Toy runs of all take minutes of compilation: `make smoke`."""
    shown = subprocess.run([sys.executable, "-c", HELP, *map(str, SCRIPTS)], capture_output=True, text=True, timeout=600)
    assert shown.returncode == 0, shown.stderr


HELP = """
import contextlib, io, runpy, sys

scripts = sys.argv[1:]
for script in scripts:
    sys.argv, sys.path[0] = [script, "--help"], script.rpartition("/")[0]
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code and "--smoke" in shown.getvalue(), script
    else:
        raise AssertionError(f"{script} did not stop after --help")
"""
