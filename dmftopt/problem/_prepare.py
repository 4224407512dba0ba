"""From a table as it comes to columns that `Problem.from_data` takes."""

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .._checks import front_door

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

# Samples per column below which an estimate is rough, and standard deviations beyond which no bell reaches.
_ROUGH, _FAR = 2, 10.0


class DataWarning(UserWarning):
    """What was dropped from a table, or is such that predictions for it are rough."""


@front_door
def prepare(table: Any) -> "Pipeline":
    """A scikit-learn Pipeline, fitted to `table`: `prepared.transform(table)` is the (samples, columns) array of real numbers
    that `Problem.from_data` takes, and new tables of the same columns (in any order) are transformed alike.

    - Numbers and booleans: missing ones become the column's median, then mean 0 and variance 1.
    - Text and categories: one column of 0 and 1 for each but the first by alphabet, scaled likewise; missing ones are a
      category of their own. One that only a new table holds counts as the first, with a warning of scikit-learn's.
    - Dropped, with a `DataWarning` that names them: columns without an entry, constant ones, and those that are linear in columns
      before them (all but 1e-5 of their size).

    `table`: a frame (pandas, polars, ...), or an array (samples, columns), whose columns are numbered. Names of what comes out:
    `prepared.get_feature_names_out()`.

    Warns (`DataWarning`) of fewer than 2 samples per column, where teacher and noise are hard to tell apart, and of entries more
    than 10 standard deviations off, heavy tails or rare categories: the theory is of Gaussian features, and single samples that
    long make real SGD noisier (`dmftopt.fidelity` measures by how much).

    Raises TypeError for columns of dates and the like, ValueError for infinite entries, for text that is different in most
    samples (a name, not a category), for tables without a usable column, and for fewer than 1.2 samples per column that comes
    out, and 2 more; ImportError without scikit-learn.
    """
    try:
        from .prepared import pipeline
    except ImportError as error:
        raise ImportError("prepare needs scikit-learn. Install it with: pip install 'dmftopt[data]'.") from error
    prepared = pipeline()
    columns = prepared.fit_transform(table)
    for message in (*_dropped(prepared), *_doubts(columns, prepared.get_feature_names_out())):
        warnings.warn(message, DataWarning, stacklevel=2)
    return prepared


def _dropped(prepared: Any) -> Iterator[str]:
    dependent = np.delete(prepared[:-1].get_feature_names_out(), prepared["independent"].kept_)
    dropped = {**prepared["columns"].dropped_, **dict.fromkeys(dependent, "linear in those before it")}
    if dropped:
        yield "table: dropped " + "; ".join(f"{name} ({why})" for name, why in dropped.items()) + "."


def _doubts(columns: np.ndarray, names: Any) -> Iterator[str]:
    samples, d = columns.shape
    if samples < _ROUGH * d:
        yield (
            f"table has {samples} samples for {d} columns, {samples / d:.2g} per column: below {_ROUGH} the estimated teacher "
            "and noise are rough. Look at dmftopt.estimation_error, or give fewer columns."
        )
    largest = np.abs(columns).max(axis=0)
    far = {name: size for name, size in zip(names, largest, strict=True) if size > _FAR}
    if far:
        said = ", ".join(f"{name} ({size:.0f})" for name, size in sorted(far.items(), key=lambda item: -item[1])[:5])
        yield (
            f"table has heavy tails: {len(far)} of {d} columns hold entries more than {_FAR:.0f} standard deviations off, "
            f"above all {said}. Take logarithms or clip, join rare categories, or see dmftopt.fidelity for what it costs."
        )
