"""Recorded training runs, from arrays, tables and files."""

import csv
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from .._checks import check_count, check_real, front_door

_RUN_COLUMNS = ("run", "schedule", "name")
# What a Weights-and-Biases export writes beside each metric: its smallest and largest value within a bin of steps.
_EXTREMES = re.compile(r"__(MIN|MAX)$")
_METRICS = {
    "loss": re.compile(r"(^|[/_])loss$", re.IGNORECASE),
    "learning_rate": re.compile(r"(^|[/_])(learning_rate|lr)$", re.IGNORECASE),
    "batch_size": re.compile(r"(^|[/_])batch_size$", re.IGNORECASE),
}
# A change of the learning rate between records by more than this share of the peak is a jump, at the later record.
_JUMP = 0.2


@front_door
class Curve(eqx.Module):
    """One run: the loss before SGD step `step`, and the learning rate of that step, at each record.

    - `step`: increasing whole numbers, counted from 0.
    - `learning_rate`: one per record, or a function of the step (such as an optax schedule), which is exact. Between records it
      is interpolated linearly; a change by more than a fifth of the peak is a jump, at the later record.
    - `batch_size`: None (constant, unknown), a number, or one per record, held until the next. All curves or none have it.
    - `warmup`: steps of linear warm-up from 0; None: all steps before the first record (where the learning rate is a function,
      it says so itself).

    Raises TypeError and ValueError naming the argument.
    """

    step: Int[np.ndarray, " record"]
    learning_rate: Float[np.ndarray, " record"] | Callable[[Any], Any]
    loss: Float[np.ndarray, " record"]
    batch_size: Float[np.ndarray, "..."] | None = None
    warmup: int | None = None
    name: str = "run"

    def __init__(
        self, step: Any, learning_rate: Any, loss: Any, batch_size: Any = None, *, warmup: int | None = None, name: str = "run"
    ):
        where = f" of curve {name!r}"
        self.step = _whole(f"step{where}", step)
        records = self.step.size
        if records < 2 or np.any(np.diff(self.step) <= 0) or self.step[0] < 0:
            raise ValueError(
                f"step{where} must be at least two increasing numbers from 0 on. Sort them; runs need names of their own."
            )
        self.loss = _column(f"loss{where}", loss, records)
        if callable(learning_rate):
            self.learning_rate = learning_rate
        else:
            self.learning_rate = _column(f"learning_rate{where}", learning_rate, records, minimum=0.0, exclusive=False)
        if batch_size is not None:
            batch_size = np.asarray(batch_size)
            batch_size = _column(f"batch_size{where}", batch_size if batch_size.ndim else np.full(records, batch_size), records)
        self.batch_size = batch_size
        if warmup is not None:
            check_count(f"warmup{where}", warmup, minimum=0, cure="It is a number of SGD steps.")
        self.warmup = warmup
        self.name = str(name)
        if np.max(self.rates()) <= 0:
            raise ValueError(f"learning_rate{where} must be positive somewhere.")

    @property
    def steps(self) -> int:
        """SGD steps before the last record."""
        return int(self.step[-1])

    def rates(self) -> Float[np.ndarray, " step"]:
        """The learning rate of each step before the last record."""
        every = np.arange(self.steps)
        if callable(self.learning_rate):
            rates = np.broadcast_to(np.asarray(self.learning_rate(every), dtype=float), every.shape)
            check_real(f"learning_rate of curve {self.name!r}", rates, minimum=0.0)
            return rates
        known = self.learning_rate
        rates = np.interp(every, self.step, known)
        jumps = np.flatnonzero(np.abs(np.diff(known)) > _JUMP * known.max())
        for i in jumps:
            rates[self.step[i] : self.step[i + 1]] = known[i]
        warmup = int(self.step[0]) if self.warmup is None else self.warmup
        return rates * np.minimum(every / max(warmup, 1), 1.0) if warmup else rates

    def batches(self) -> Float[np.ndarray, " step"]:
        """The batch size of each step before the last record; 1 if unknown."""
        if self.batch_size is None:
            return np.ones(self.steps)
        held = np.searchsorted(self.step, np.arange(self.steps), side="right") - 1
        return self.batch_size[np.maximum(held, 0)]


@front_door
def read_curves(curves: Any, *, warmup: int | None = None) -> list[Curve]:
    """`Curve`s of any of

    - `Curve`s, one or a list; tuples (step, learning_rate, loss[, batch_size]), one or a list, or a dict of them by name;
    - a table: a pandas DataFrame, a dict of columns, or the path of a CSV file, with columns step, learning_rate, loss, if there
      is more than one run also run (or schedule, or name), and if known batch_size;
    - a Weights-and-Biases export (the same kinds of table): Step, and "NAME - loss", "NAME - learning_rate" (or lr) and if known
      "NAME - batch_size" for every run; prefixes as in train/loss and empty cells are understood.

    `warmup`: steps of linear warm-up of all runs that do not say themselves, see `Curve`. Raises TypeError and ValueError that
    name the argument or column, FileNotFoundError.
    """
    if isinstance(curves, Curve):
        found = [curves]
    elif isinstance(curves, (str, os.PathLike)) or _is_table(curves):
        found = _of_table(_table(curves))
    elif isinstance(curves, Mapping):
        found = [_of_tuple(value, str(name)) for name, value in curves.items()]
    elif isinstance(curves, tuple) and len(curves) in (3, 4) and not any(map(_is_run, curves)):
        found = [_of_tuple(curves, "run")]
    elif isinstance(curves, Iterable):
        found = [_of_tuple(value, f"run {i}") for i, value in enumerate(curves)]
    else:
        raise TypeError(f"curves must be Curves, (step, learning_rate, loss) or a table, got {type(curves).__name__}.")
    if not found:
        raise ValueError("curves must hold at least one run.")
    if warmup is not None:
        found = [c if c.warmup is not None or callable(c.learning_rate) else _with_warmup(c, warmup) for c in found]
    known = [c.batch_size is not None for c in found]
    if any(known) and not all(known):
        missing = ", ".join(c.name for c, k in zip(found, known, strict=True) if not k)
        raise ValueError(f"batch_size: given for some curves only. Give it for {missing} too, or for none.")
    return found


def _with_warmup(curve: Curve, warmup: int) -> Curve:
    return Curve(curve.step, curve.learning_rate, curve.loss, curve.batch_size, warmup=warmup, name=curve.name)


def _is_run(value: Any) -> bool:
    """Rather than one of its columns, whose entries are numbers."""
    return isinstance(value, Curve) or (isinstance(value, (tuple, list)) and len(value) > 0 and np.ndim(value[0]) > 0)


def _of_tuple(value: Any, name: str) -> Curve:
    if isinstance(value, Curve):
        return value
    if not isinstance(value, (tuple, list)) or len(value) not in (3, 4):
        raise TypeError(f"curve {name!r} must be a Curve or (step, learning_rate, loss), got {type(value).__name__}.")
    return Curve(*value, name=name)


def _is_table(value: Any) -> bool:
    if hasattr(value, "columns") and hasattr(value, "to_dict"):
        return True
    return isinstance(value, Mapping) and any(str(key).lower() == "step" for key in value)


def _table(source: Any) -> dict[str, np.ndarray]:
    """Columns by name, as arrays of objects."""
    if isinstance(source, (str, os.PathLike)):
        with Path(source).open(newline="") as file:
            rows = list(csv.reader(file))
        if len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows):
            raise ValueError(f"{source}: not a table. It takes a line of names, and as many cells in every other line.")
        columns = {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}
    else:
        columns = source if isinstance(source, Mapping) else source.to_dict("list")
    return {str(name).strip(): np.asarray(values, dtype=object) for name, values in columns.items()}


def _of_table(table: dict[str, np.ndarray]) -> list[Curve]:
    step = next((name for name in table if name.lower() == "step"), None)
    if step is None:
        raise ValueError(f"curves: no column step among {', '.join(table)}.")
    wide = any(" - " in name for name in table)
    return _of_export(table, step) if wide else _of_rows(table, step)


def _of_rows(table: dict[str, np.ndarray], step: str) -> list[Curve]:
    for name in ("learning_rate", "loss"):
        if name not in table:
            raise ValueError(f"curves: no column {name} among {', '.join(table)}.")
    by = next((name for name in _RUN_COLUMNS if name in table), None)
    runs = np.full(table[step].size, "run", dtype=object) if by is None else table[by]
    found = []
    for name in dict.fromkeys(runs):
        of = {key: table[key][runs == name] for key in ("learning_rate", "loss", "batch_size") if key in table}
        found.append(_curve(str(name), table[step][runs == name], of))
    return found


def _of_export(table: dict[str, np.ndarray], step: str) -> list[Curve]:
    runs: dict[str, dict[str, np.ndarray]] = {}
    for column, values in table.items():
        name, _, metric = column.rpartition(" - ")
        for kind, pattern in _METRICS.items():
            if name and not _EXTREMES.search(metric) and pattern.search(metric):
                if kind in runs.setdefault(name, {}):
                    raise ValueError(f"curves: more than one {kind} of the run {name!r}. Export a single one.")
                runs[name][kind] = values
    found = []
    for name, of in runs.items():
        for kind in ("loss", "learning_rate"):
            if kind not in of:
                raise ValueError(f'curves: no column "{name} - {kind}". Export it too.')
        found.append(_curve(name, table[step], of))
    return found


def _curve(name: str, step: np.ndarray, of: dict[str, np.ndarray]) -> Curve:
    """Without the records that lack the loss; a learning rate logged less often holds in between."""
    numbers = {key: _numbers(f"{key} of curve {name!r}", values) for key, values in {"step": step, **of}.items()}
    for key in set(numbers) & {"learning_rate", "batch_size"}:
        numbers[key] = _filled(numbers[key])
    kept = ~np.isnan(numbers["loss"]) & ~np.isnan(numbers["learning_rate"])
    rows = {key: values[kept] for key, values in numbers.items()}
    return Curve(rows["step"], rows["learning_rate"], rows["loss"], rows.get("batch_size"), name=name)


def _filled(values: np.ndarray) -> np.ndarray:
    last = np.maximum.accumulate(np.where(np.isnan(values), -1, np.arange(values.size)))
    return np.where(last < 0, np.nan, values[np.maximum(last, 0)])


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
    try:
        return np.asarray([float(v) if str(v).strip() else np.nan for v in values])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers: {error}.") from error


def _whole(name: str, values: Any) -> np.ndarray:
    check_real(name, values, minimum=0.0)
    array = np.asarray(values)
    if array.ndim != 1 or np.any(array != np.round(array)):
        raise ValueError(f"{name} must be a list of whole numbers, got shape {array.shape}.")
    return array.astype(int)


def _column(name: str, values: Any, records: int, *, minimum: float = 0.0, exclusive: bool = True) -> np.ndarray:
    check_real(name, values, minimum=minimum, exclusive=exclusive)
    array = np.asarray(values, dtype=float)
    if array.shape != (records,):
        raise ValueError(f"{name} must have one entry per step, {records}, got shape {array.shape}.")
    return array
