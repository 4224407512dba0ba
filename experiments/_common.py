"""Results on disk: whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_json(path: Path, result: Any) -> None:
    """Write through a temporary file in the same folder; NaN and infinity are refused."""
    write_text(path, json.dumps(result, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    _replace(path, lambda temporary: Path(temporary).write_text(text))


def write_figure(path: Path, figure: Any) -> None:
    _replace(path, lambda temporary: figure.savefig(temporary, dpi=150, format=path.suffix[1:]))


def _replace(path: Path, write: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
