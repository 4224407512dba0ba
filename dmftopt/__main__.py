"""dmftopt from a terminal: python -m dmftopt advise data.csv --label y --epochs 3 --out schedule.csv"""

import csv
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from . import Budget, Problem, SolveError, prepare
from . import advise as ask
from .problem import DataWarning

app = tyro.extras.SubcommandApp()


@app.command
def advise(
    data: tyro.conf.Positional[Path],
    *,
    label: str,
    epochs: float,
    loss: str | None = None,
    train_size: int | None = None,
    steps: int = 40,
    seed: int = 0,
    out: Path | None = None,
) -> str:
    """A learning-rate schedule for a table, and what it gains, without training.

    Args:
        data: CSV file with a header, of numbers; of others too with scikit-learn.
        label: Name of the column that is to be predicted.
        epochs: Passes over the data.
        loss: For classes: logistic, softmax, "squared hinge", ... None is least squares.
        train_size: How many of the rows are trained on. None: all.
        steps: Of tuning, for each family of schedules.
        seed: Of the random numbers.
        out: Where to write what to do at each step, a .csv or .json file.
    """
    if out is not None and out.suffix not in (".csv", ".json"):
        raise ValueError(f"--out must end in .csv or .json, got {out}.")
    x, y = _read(data, label, loss is not None)
    problem = Problem.from_data(x, y, train_size=len(y) if train_size is None else train_size, loss=loss)
    found = ask(problem, Budget(epochs=epochs), key=jax.random.key(seed), steps=steps)
    if out is None:
        return str(found)
    assert problem.data is not None
    recipe = found.run.recipe(dimension=x.shape[1], delta=float(problem.delta), mean_square_norm=problem.data.mean_square_norm)
    recipe.save(out)
    return f"{found}\nwrote {out}: {len(recipe.learning_rate)} steps"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, 1 where no schedule could be found, 2 of a wrong argument."""
    try:
        print(app.cli(args=arguments, prog="python -m dmftopt", description="Which schedule to train with, without training."))
    except (ValueError, TypeError, OSError, ImportError, csv.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SolveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


class _Table(dict):
    """Columns by name, as frames have them."""

    @property
    def columns(self) -> list[str]:
        return list(self)


def _read(path: Path, label: str, classes: bool) -> tuple[np.ndarray, Any]:
    """Features and labels of a CSV file: numbers as they are, anything else as `dmftopt.prepare` makes it."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        names, *rows = [[entry.strip() for entry in row] for row in csv.reader(file) if row] or [[]]
    if label not in names:
        raise ValueError(f"--label must be one of the columns {', '.join(names)}, got {label!r}.")
    if len(rows) < 2 or any(len(row) != len(names) for row in rows):
        raise ValueError(f"{path}: a header of {len(names)} names and at least 2 rows of as many entries.")
    table = _Table({name: _column(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)})
    y = table.pop(label)
    if y.dtype == object and not classes:
        raise ValueError(f"--label {label}: all of it must be numbers. For classes give a --loss.")
    if all(column.dtype == float for column in table.values()):
        return np.stack(list(table.values()), axis=1), y
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DataWarning)
        x = prepare(table).transform(table)
    for message in (*(str(each.message) for each in said), "schedules are for features as dmftopt.prepare makes them"):
        print(f"note: {message}", file=sys.stderr)
    return np.asarray(x, dtype=float), y


def _column(values: tuple[str, ...]) -> np.ndarray:
    """Floats; or objects, None where an entry is missing: floats and text."""
    missing = [value.lower() in ("", "na", "nan", "null") for value in values]
    try:
        numbers = [None if gone else float(value) for value, gone in zip(values, missing, strict=True)]
    except ValueError:
        return np.asarray([None if gone else value for value, gone in zip(values, missing, strict=True)], dtype=object)
    return np.asarray(numbers, dtype=object if any(missing) else float)


if __name__ == "__main__":
    # Here is more to compile than to run: a third less of that, at the price of slower programs.
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}"
    jax.config.update("jax_enable_x64", True)
    sys.exit(main())
