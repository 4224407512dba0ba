"""dmftopt from a terminal: python -m dmftopt advise data.csv --label y --epochs 3 --out schedule.csv"""

import argparse
import csv
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import Budget, Problem, SolveError, advise, prepare
from .problem import DataWarning


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dmftopt", description="Which schedule to train with, without training.")
    commands = parser.add_subparsers(required=True, metavar="command")
    one = commands.add_parser("advise", help="a learning-rate schedule for a table")
    one.add_argument("data", type=Path, help="CSV file with a header, of numbers; of others too with scikit-learn")
    one.add_argument("--label", required=True, help="name of the column that is to be predicted")
    one.add_argument("--epochs", type=float, required=True, help="passes over the data")
    one.add_argument("--loss", help='for classes: "logistic", "softmax", "squared hinge", ... (default: least squares)')
    one.add_argument("--train-size", type=int, help="how many of the rows are trained on (default: all)")
    one.add_argument("--steps", type=int, default=40, help="of tuning, for each family of schedules")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", type=Path, help="where to write what to do at each step (.csv or .json)")
    given = parser.parse_args(arguments)
    try:
        print(_advise(given))
    except (ValueError, TypeError, OSError, ImportError, csv.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SolveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _advise(given: argparse.Namespace) -> str:
    if given.out is not None and given.out.suffix not in (".csv", ".json"):
        raise ValueError(f"--out must end in .csv or .json, got {given.out}.")
    x, y = _read(given.data, given.label, given.loss is not None)
    problem = Problem.from_data(x, y, train_size=given.train_size or len(y), loss=given.loss)
    found = advise(problem, Budget(epochs=given.epochs), key=jax.random.key(given.seed), steps=given.steps)
    if given.out is None:
        return str(found)
    assert problem.data is not None
    recipe = found.run.recipe(dimension=x.shape[1], delta=float(problem.delta), mean_square_norm=problem.data.mean_square_norm)
    recipe.save(given.out)
    return f"{found}\nwrote {given.out}: {len(recipe.learning_rate)} steps"


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
