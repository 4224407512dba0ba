"""Cells of experiments: kept one by one, resumed, in this process and in Dask's worker processes."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shared import sweep

CELLS = {"one": {"x": 1}, "two/half": {"x": 2}, "three": {"x": 3}}
OFFSET = 10


def shifted(x, scale, fail):
    if x == fail:
        raise ValueError(f"no result for {x}")
    return {"value": scale * x + OFFSET, "process": os.getpid()}


def values(results):
    return {name: result["value"] for name, result in results.items()}


@pytest.mark.parametrize("cluster", [None, "local"])
def test_a_failure_spares_the_others_and_is_retried(tmp_path, capsys, cluster):
    settings = {"scale": 2, "fail": 2}
    with pytest.raises(SystemExit, match="1 of 3 cells failed: two/half"):
        sweep.run(shifted, CELLS, tmp_path, settings, cluster)
    shown = capsys.readouterr().err
    assert "two/half failed:" in shown and "ValueError: no result for 2" in shown
    files = {name: tmp_path / f"{name}.json" for name in ("one", "three")}
    assert set(tmp_path.iterdir()) == set(files.values())
    first = json.loads(files["one"].read_text())
    assert first["arguments"] == {"settings": settings, "cell": {"x": 1}}
    assert (first["result"]["process"] == os.getpid()) == (cluster is None)
    if cluster:
        return
    # Resumed: what is there is read; only new and changed cells are computed.
    files["one"].write_text(json.dumps({**first, "result": {**first["result"], "value": "kept"}}))
    more = {**CELLS, "two/half": {"x": 4}, "four": {"x": 4}}
    assert values(sweep.run(shifted, more, tmp_path, settings)) == {"one": "kept", "two/half": 18, "three": 16, "four": 18}
    # Other settings: everything again. A file cut short, by other means, counts as missing.
    files["three"].write_text('{"settings"')
    assert values(sweep.run(shifted, CELLS, tmp_path, {"scale": 3, "fail": 0})) == {"one": 13, "two/half": 16, "three": 19}


def test_an_interruption_keeps_what_is_finished(tmp_path):
    def interrupted(x):
        if x == 2:
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt):
        sweep.run(interrupted, CELLS, tmp_path, {})
    assert [f.name for f in tmp_path.iterdir()] == ["one.json"]


def test_what_is_not_json_fails_its_cell_only(tmp_path, capsys):
    with pytest.raises(SystemExit, match="failed: two"):
        sweep.run(lambda x: x / (x - 2) if x != 2 else float("nan"), {"one": {"x": 1}, "two": {"x": 2}}, tmp_path, {})
    assert "ValueError: Out of range float values" in capsys.readouterr().err


def test_mapped_over_devices():
    """5 entries do not divide the 4 devices."""

    def outer(a, b, *, power):
        traced.append(a)
        return a**power, a * b

    traced = []
    a, b = np.arange(5.0), np.linspace(0.0, 1.0, 15).reshape(5, 3)
    for _ in range(2):
        squares, products = sweep.over_devices(outer, a, b, power=2)
    np.testing.assert_allclose(squares, a**2)
    np.testing.assert_allclose(products, a[:, None] * b)
    assert len(traced) == 1 and isinstance(squares, jnp.ndarray)
