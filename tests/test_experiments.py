"""Experiments run from the command line at toy sizes, and leave their figure and result."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def test_gallery(tmp_path):
    command = [sys.executable, EXPERIMENTS / "02_gallery.py", "--smoke", "--out", tmp_path / "gallery", "--models"]
    subprocess.run([*command, "momentum, batches of n/5"], check=True, capture_output=True, timeout=600)
    out = tmp_path / "gallery_smoke"
    result = json.loads((out / "result.json").read_text())
    assert list(result["models"]) == ["momentum, batches of n/5"]
    assert {f.name for f in out.iterdir()} == {"result.json", "gallery.png", "momentum_batches_of_n_5.png"}
    wrong = subprocess.run([*command, "no such model"], capture_output=True, text=True, timeout=600)
    assert wrong.returncode != 0 and "no such model" in wrong.stderr


@pytest.mark.parametrize("name", ["09_real_data", "10_search_cost", "11_take_home"])
def test_smoke(name, tmp_path):
    command = [sys.executable, EXPERIMENTS / f"{name}.py", "--smoke", "--out", tmp_path / name]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    out = tmp_path / f"{name}_smoke"
    assert {f.name for f in out.iterdir()} >= {"result.json", "figure.png"}
    assert json.loads((out / "result.json").read_text())
