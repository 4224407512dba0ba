"""The annotations serve users: pyright in its strict mode accepts a user's program and refuses misuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "typed"


def test_strict_pyright_accepts_a_user_s_program_and_refuses_misuse():
    # This checkout, as an installed package: with the annotations it ships and nothing else.
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}
    command = [sys.executable, "-m", "pyright", "--outputjson", "-p", str(FOLDER), "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    try:
        found = json.loads(done.stdout)["generalDiagnostics"]
    except (ValueError, KeyError):
        pytest.skip(f"pyright does not run here: {done.stderr[-500:]}")
    refused = {(Path(d["file"]).name, d["range"]["start"]["line"]) for d in found if d["severity"] == "error"}
    lines = (FOLDER / "misuse.py").read_text().splitlines()
    expected = {("misuse.py", i) for i, line in enumerate(lines) if line.endswith("# refused")}
    shown = (f"{Path(d['file']).name}:{d['range']['start']['line'] + 1} {d['message']}" for d in found)
    assert refused == expected, "\n".join(shown)
