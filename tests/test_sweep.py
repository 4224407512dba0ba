"""Cells of experiments: kept one by one, resumed, in this process and in Dask's worker processes."""

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import _common
import _sweep

CELLS = {"one": {"x": 1}, "two/half": {"x": 2}, "three": {"x": 3}}
OFFSET = 10


def shifted(scale, x, fail):
    """Uses a global, a sibling module of its own process, and leaves a trace of where it ran."""
    if x == fail:
        raise ValueError(f"no result for {x}")
    return {"value": scale * x + OFFSET, "process": os.getpid(), "sibling": Path(_common.__file__).name}


def failing(x, **settings):
    return shifted(x=x, **settings)


@pytest.mark.parametrize("cluster", [None, "local"])
def test_a_failure_spares_the_others_and_is_retried(tmp_path, capsys, cluster):
    with pytest.raises(SystemExit, match="1 of 3 cells failed: two/half"):
        _sweep.run(failing, CELLS, tmp_path, {"scale": 2, "fail": 2}, cluster)
    shown = capsys.readouterr().err
    assert "two/half failed:" in shown and "ValueError: no result for 2" in shown
    assert {f.name for f in tmp_path.iterdir()} == {"one.json", "three.json"}
    stored = json.loads((tmp_path / "one.json").read_text())
    assert stored["result"]["value"] == 12 and stored["arguments"]["settings"] == {"scale": 2, "fail": 2}
    assert (stored["result"]["process"] == os.getpid()) == (cluster is None)
