"""Experiments run from the command line at toy sizes, and leave figure and result; their tables have a place in a README."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dmftopt
from experiments.shared import results
from experiments.shared.one_pass import one_pass

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(p for p in (ROOT / "experiments").rglob("*.py") if "tyro.cli" in p.read_text())
MODULES = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in SCRIPTS]


def run(name, *options, check=True):
    command = [sys.executable, "-m", f"experiments.{name}", *map(str, options)]
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=600, cwd=ROOT)


@pytest.mark.slow
def test_gallery(tmp_path):
    options = ["--smoke", "--out", tmp_path / "gallery", "--models"]
    shown = run("02_gallery.run", *options, "momentum, batches of n/5")
    out = tmp_path / "gallery_smoke"
    result = json.loads((out / "result.json").read_text())
    assert list(result["models"]) == ["momentum, batches of n/5"] and "| momentum, batches of n/5 |" in shown.stdout
    assert {f.name for f in out.iterdir()} == {"result.json", "figure.png", "cells", "momentum_batches_of_n_5.png"}
    # Bars are for terminals.
    assert "cell/s" not in shown.stderr
    wrong = run("02_gallery.run", *options, "no such model", check=False)
    assert wrong.returncode != 0 and "no such model" in wrong.stderr


@pytest.mark.slow
def test_phase_diagram(tmp_path):
    options = ["--smoke", "--out", tmp_path / "diagram"]
    run("05_phase_diagram.run", *options)
    out = tmp_path / "diagram_smoke"
    assert {f.name for f in out.iterdir()} == {"result.json", "figure.png", "cells"}
    found = json.loads((out / "result.json").read_text())["results"]
    (least_squares,), (logistic,) = (found[task].values() for task in ("least squares", "logistic"))
    # Exact at any size: of the temperatures, not of the batch size; and stability by two routes.
    assert least_squares["largest_relative_change_with_batch_4"] < 1e-8
    for batch in (1, 4):
        assert abs(least_squares[f"measured_critical_batch_{batch}"] / least_squares["critical"] - 1) < 1e-3
    assert None in least_squares["risk"] or max(least_squares["risk"]) > 1e6
    assert max(logistic["risk"]) < 10
    # What is finished is not computed again.
    before = {f: f.stat().st_mtime_ns for f in (out / "cells").iterdir()}
    again = run("05_phase_diagram.run", *options)
    assert {f: f.stat().st_mtime_ns for f in (out / "cells").iterdir()} == before and "best rates" in again.stdout


def test_every_experiment_starts():
    """In one process, for imports are most of the time. Toy runs of all take minutes of compilation: `make smoke`."""
    numbered = {p.name for p in (ROOT / "experiments").iterdir() if p.name[0].isdigit()}
    assert numbered < {p.parent.name for p in SCRIPTS}
    shown = subprocess.run([sys.executable, "-c", HELP, *MODULES], capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr


HELP = """
import contextlib, io, runpy, sys

for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code and all(f"--{option}" in shown.getvalue() for option in ("seed", "smoke", "out", "publish")), module
    else:
        raise AssertionError(f"{module} did not stop after --help")
"""


def test_experiments_use_public_names_only():
    for path in (ROOT / "experiments").rglob("*.py"):
        text = path.read_text()
        assert "sys.path" not in text, path
        for node in ast.walk(ast.parse(text)):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dmftopt"):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Attribute) and (full := ast.unparse(node)).startswith("dmftopt."):
                names = full.split(".")
            assert not any(name.startswith("_") for name in names), f"{path}: {names}"


@pytest.mark.parametrize("folder", sorted({p.parent for p in SCRIPTS}), ids=lambda p: p.name)
def test_every_experiment_has_its_page(folder):
    text = (folder / "README.md").read_text()
    assert text.startswith("# ") and text.count("<!-- table: ") == text.count("<!-- end -->") > 0
    for figure in folder.glob("*.png"):
        assert f"]({figure.name})" in text


def test_published_tables_and_figures(tmp_path):
    script, readme = tmp_path / "01_some" / "run.py", tmp_path / "01_some" / "README.md"
    script.parent.mkdir()
    before = "# Some\n\n<!-- table: a -->\n\n| old |\n\n<!-- end -->\n\ntext\n\n<!-- table: b -->\n<!-- end -->\n"
    readme.write_text(before)
    tables = {"a": results.markdown(["x", "y"], [[1, r"\1"]]), "b": results.markdown(["z"], [[2]])}
    figure = results.plt.figure()
    result = {"number": np.float64(0.5), "array": np.arange(2)}

    def finish(**settings):
        results.finish(results.Settings(out=tmp_path / "out", **settings), str(script), result, tables, figure)

    finish()
    assert readme.read_text() == before and {f.name for f in (tmp_path / "out").iterdir()} == {"result.json", "figure.png"}
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == {"number": 0.5, "array": [0, 1]}
    finish(publish=True)
    after = readme.read_text()
    assert "| x | y |\n| --- | --- |\n| 1 | \\1 |" in after and "old" not in after and "\n\ntext\n\n" in after
    assert (script.parent / "figure.png").exists()
    finish(publish=True)
    assert readme.read_text() == after
    readme.write_text("# Some")
    with pytest.raises(ValueError, match="one place for the table 'a'"):
        finish()
    with pytest.raises(SystemExit, match="--publish"):
        results.Settings(smoke=True, publish=True).sized()


def test_mean_and_error():
    values = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])
    assert results.mean_and_error(values) == {"mean": [3.0, 2.0], "standard_error": [pytest.approx(2 / 3**0.5), 0.0]}
    assert results.mean_and_error([2.0]) == {"mean": 2.0, "standard_error": None}
    assert results.plus_minus({"mean": 0.12345, "standard_error": 0.001}) == "0.1235 ± 0.0010"
    assert [results.short(x) for x in (543.0, 0.0131, 24123.0, 4.72)] == ["540", "0.013", "24000", "4.7"]


def test_one_pass_has_the_mean_of_the_exact_recursion(key):
    """In batches of one and of four; and all protocols see the same samples."""
    d, runs = 16, 2000
    features = dmftopt.features.spectrum([1.5, 0.5], [0.5, 0.5])
    problem = dmftopt.Problem(dmftopt.tasks.LeastSquares(0.5), features, 1.0, 1.0, 0.0)
    rates = jnp.linspace(0.8, 0.1, 32)
    eigenvalues, keys = jnp.repeat(features.eigenvalues, d // 2), jax.random.split(key, runs)
    for batch in (1, 4):
        each = rates[::batch]
        options = {"batch_size": batch, "records": 2}
        found = one_pass(problem.task, eigenvalues, jnp.ones((1, d)), jnp.zeros((1, d)), jnp.stack([each, each]), keys, **options)
        assert found.shape == (runs, 2, 2) and jnp.array_equal(found[:, 0], found[:, 1])
        protocol = dmftopt.Protocol(dmftopt.schedules.PerStep(each, d), float(batch))
        exact = dmftopt.limits.online_least_squares(problem, protocol, dimension=d, horizon=len(each) / d, records=2).test_risk[
            1:
        ]
        error = found[:, 0].std(axis=0) / runs**0.5
        assert jnp.all(jnp.abs(found[:, 0].mean(axis=0) - exact) < 4 * error) and jnp.all(error < 0.01 * exact)
