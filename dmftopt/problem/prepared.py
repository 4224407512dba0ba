"""The steps of `prepare`, on scikit-learn's classes: imported when a table is prepared, as the package runs without them."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from ._table import is_missing

# Of a column's size, what may be left beside the columns before it.
_LEFT = 1e-5
# As in `_data.describe`: samples per column, and more.
_FEWEST, _MORE = 1.2, 2
MISSING = "(missing)"


def pipeline() -> Pipeline:
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    encoder = OneHotEncoder(drop="first", sparse_output=False, handle_unknown="ignore")
    categories = make_pipeline(encoder, StandardScaler())
    encode = ColumnTransformer([("numbers", numbers, _Of("number")), ("categories", categories, _Of("category"))])
    encode.set_params(verbose_feature_names_out=False)
    return Pipeline([("columns", Columns()), ("encode", encode), ("independent", Independent())])


class _Of:
    """Picks the columns of one kind from what `Columns` makes: numbers are floats, categories text."""

    def __init__(self, kind: str):
        self.kind = kind

    def __call__(self, frame: Any) -> list[int]:
        return [i for i in range(frame.shape[1]) if isinstance(frame[0, i], str) == (self.kind == "category")]


class Columns(TransformerMixin, BaseEstimator):
    """Any frame as an array of objects: floats, NaN where one is missing, and text. `kinds_`: name -> "number" or "category";
    `dropped_`: name -> why."""

    def fit(self, table: Any, labels: Any = None) -> "Columns":
        kinds, self.dropped_ = {}, {}
        for name, values in _read(table).items():
            present = [a for a in values if not is_missing(a)]
            if not present:
                self.dropped_[str(name)] = "without an entry"
                continue
            kinds[name] = _kind(name, present)
            if len(set(present)) == 1:
                self.dropped_[str(name)] = "constant"
                del kinds[name]
                continue
            if kinds[name] == "category" and len(set(map(str, present))) > max(10, len(values) // 2):
                raise ValueError(f"table: column {name!r} is different text in most samples. It tells them apart: drop it.")
        if not kinds:
            raise ValueError("table has no column that varies. Give at least one.")
        self.kinds_ = kinds
        return self

    def transform(self, table: Any) -> np.ndarray:
        given = _read(table)
        lost = [name for name in self.kinds_ if name not in given]
        if lost:
            raise ValueError(f"table lacks columns {lost[:10]}, which the one that was prepared has. Add them.")
        columns = [_converted(name, given[name], kind) for name, kind in self.kinds_.items()]
        out = np.empty((len(columns[0]), len(columns)), dtype=object)
        for i, column in enumerate(columns):
            out[:, i] = column
        return out

    def get_feature_names_out(self, names: Any = None) -> np.ndarray:
        return np.asarray([str(name) for name in self.kinds_], dtype=object)


class Independent(TransformerMixin, BaseEstimator):
    """Columns that vary and are not linear in those before them (Gram and Schmidt's procedure, each column twice). `name`: what
    errors call the table."""

    def __init__(self, name: str = "table"):
        self.name = name

    def fit(self, columns: Any, labels: Any = None) -> "Independent":
        size = np.linalg.norm(columns, axis=0)
        varies = size > 1e-7 * np.sqrt(len(columns))
        if len(columns) < _FEWEST * varies.sum() + _MORE:
            raise ValueError(
                f"{self.name} has {len(columns)} samples and {varies.sum()} columns, categories encoded; at least {_FEWEST} "
                f"per column, and {_MORE} more, are needed. Give more samples, fewer columns, or join rare categories."
            )
        basis, kept = np.zeros_like(columns, order="F"), []
        for i in np.flatnonzero(varies):
            earlier = basis[:, : len(kept)]
            rest = columns[:, i] - earlier @ (earlier.T @ columns[:, i])
            rest = rest - earlier @ (earlier.T @ rest)
            left = np.linalg.norm(rest)
            if left > _LEFT * size[i]:
                basis[:, len(kept)] = rest / left
                kept.append(i)
        self.kept_, self.n_features_in_ = np.asarray(kept), columns.shape[1]
        return self

    def transform(self, columns: Any) -> np.ndarray:
        return np.asarray(columns)[:, self.kept_]

    def get_feature_names_out(self, names: Any) -> np.ndarray:
        return np.asarray(names, dtype=object)[self.kept_]


def _read(table: Any) -> dict[Any, np.ndarray]:
    """Name -> entries, of frames and arrays."""
    if hasattr(table, "columns") and hasattr(table, "__getitem__"):
        names = list(table.columns)
        if len(set(names)) < len(names):
            raise ValueError("table has two columns of one name. Rename one.")
        return {name: np.asarray(table[name], dtype=object) for name in names}
    array = np.asarray(table, dtype=object)
    if array.ndim != 2:
        raise ValueError(f"table must have shape (samples, columns), got {array.shape}. Give each sample a row.")
    return dict(enumerate(array.T))


def _kind(name: Any, present: list[Any]) -> str:
    if all(isinstance(a, (int, float, np.number, np.bool_)) for a in present):
        return "number"
    if all(isinstance(a, str) for a in present):
        return "category"
    odd = next(a for a in present if not isinstance(a, (int, float, np.number, np.bool_)))
    kinds = " and ".join(sorted({type(a).__name__ for a in present}))
    raise TypeError(f"table: column {name!r} holds {kinds}, such as {odd!r}. Turn it into numbers, or all of it into text.")


def _converted(name: Any, values: np.ndarray, kind: str) -> list[Any]:
    missing = [is_missing(a) for a in values]
    present = [a for a, gone in zip(values, missing, strict=True) if not gone]
    if present and (other := _kind(name, present)) != kind:
        raise TypeError(f"table: column {name!r} is a {kind} in the table that was prepared, and here a {other}. Convert it.")
    if kind == "category":
        return [MISSING if gone else str(a) for a, gone in zip(values, missing, strict=True)]
    if not np.all(np.isfinite(np.asarray(present, dtype=float))):
        raise ValueError(f"table: column {name!r} holds infinite entries. Drop or replace them.")
    return [np.nan if gone else float(a) for a, gone in zip(values, missing, strict=True)]
