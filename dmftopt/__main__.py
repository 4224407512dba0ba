"""dmftopt from a terminal: python -m dmftopt advise data.csv --label y --epochs 3 --out schedule.csv"""

import argparse
import os
import sys
from pathlib import Path

import jax
import numpy as np

from . import Budget, Problem, SolveError, advise


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dmftopt", description="Which schedule to train with, without training.")
    commands = parser.add_subparsers(required=True, metavar="command")
    one = commands.add_parser("advise", help="a learning-rate schedule for least squares on a table")
    one.add_argument("data", type=Path, help="CSV file of numbers with a header")
    one.add_argument("--label", required=True, help="name of the column that is to be predicted")
    one.add_argument("--epochs", type=float, required=True, help="passes over the data")
    one.add_argument("--train-size", type=int, help="how many of the rows are trained on (default: all)")
    one.add_argument("--steps", type=int, default=40, help="of tuning, for each family of schedules")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", type=Path, help="where to write what to do at each step (.csv or .json)")
    given = parser.parse_args(arguments)
    try:
        print(_advise(given))
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SolveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _advise(given: argparse.Namespace) -> str:
    if given.out is not None and given.out.suffix not in (".csv", ".json"):
        raise ValueError(f"--out must end in .csv or .json, got {given.out}.")
    x, y = _read(given.data, given.label)
    problem = Problem.from_data(x, y, train_size=given.train_size or len(y))
    found = advise(problem, Budget(epochs=given.epochs), key=jax.random.key(given.seed), steps=given.steps)
    if given.out is None:
        return str(found)
    assert problem.data is not None
    recipe = found.run.recipe(dimension=x.shape[1], delta=float(problem.delta), mean_square_norm=problem.data.mean_square_norm)
    recipe.save(given.out)
    return f"{found}\nwrote {given.out}: {len(recipe.learning_rate)} steps"


def _read(path: Path, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of a CSV file."""
    with path.open(encoding="utf-8-sig") as file:
        names = [name.strip().strip('"') for name in file.readline().split(",")]
        if label not in names:
            raise ValueError(f"--label must be one of the columns {', '.join(names)}, got {label!r}.")
        try:
            values = np.loadtxt(file, delimiter=",", ndmin=2)
        except ValueError as error:
            raise ValueError(f"{path}: all of it must be numbers. Encode categories and fill gaps first. ({error})") from None
    if values.shape[0] < 2 or values.shape[1] != len(names):
        raise ValueError(f"{path}: a header of {len(names)} names and at least 2 rows of as many numbers, got {values.shape}.")
    at = names.index(label)
    return np.delete(values, at, axis=1), values[:, at]


if __name__ == "__main__":
    # Here is more to compile than to run: a third less of that, at the price of slower programs.
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}"
    jax.config.update("jax_enable_x64", True)
    sys.exit(main())
