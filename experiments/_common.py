"""Results on disk: whole or not at all."""

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from dmftopt._files import write_atomically


def write_json(path: Path, result: Any) -> None:
    """NaN and infinity are refused."""
    write_text(path, json.dumps(result, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def write_figure(path: Path, figure: Any) -> None:
    write_atomically(path, lambda file: figure.savefig(file, dpi=150, format=path.suffix[1:]))


def mean_and_error(values: Any) -> list[float]:
    """Mean and its standard error."""
    return [float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))]


def estimate(values: Any) -> dict[str, float]:
    """The same by name."""
    return dict(zip(("mean", "standard_error"), mean_and_error(values), strict=True))


def observed(objective: Any, protocol: Any, grid: Any) -> Any:
    """What an objective predicts for a run, at all of the relative times `grid`."""
    return eqx.tree_at(lambda o: o.grid, objective, grid).predict_run(protocol)
