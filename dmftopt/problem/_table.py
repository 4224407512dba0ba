"""Tables as they come: arrays, and frames whose columns are asked for by name."""

from typing import Any

import numpy as np


def as_matrix(name: str, table: Any) -> np.ndarray:
    """(samples, columns) of floats. Frames (pandas, polars) may hold numbers and booleans; what else a column holds, and missing
    values, are errors that name the column."""
    if hasattr(table, "columns") and hasattr(table, "__getitem__"):
        columns = [_numbers(f"{name}: column {column!r}", table[column]) for column in table.columns]
        if not columns:
            raise ValueError(f"{name} has no columns.")
        return np.stack(columns, axis=1)
    array = np.asarray(table)
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape (samples, d), got {array.shape}. Flatten each sample to a row.")
    return _numbers(name, array)


def as_vector(name: str, values: Any) -> np.ndarray:
    """(samples,) of floats, with the same errors."""
    return _numbers(name, values)


def _numbers(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype == object and any(isinstance(a, str) for a in array.ravel()[:1000]):
        raise TypeError(f"{name} must be real numbers, got text. Encode categories as numbers.")
    if array.dtype == object:
        # Numbers beside a frame's own sign for what is missing.
        missing = np.reshape([is_missing(a) for a in array.ravel()], array.shape)
        array = np.where(missing, np.nan, array)
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must be real numbers, got {array.ravel()[0]!r}. Encode categories as numbers.") from error
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
        raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}. Encode categories as numbers.")
    array = array.astype(np.float64)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} holds {np.count_nonzero(~np.isfinite(array))} NaN or infinite entries. Impute or drop them.")
    return array


def is_missing(value: Any) -> bool:
    """None, NaN, and what a frame puts in their place, which is not equal to itself or will not say."""
    if value is None:
        return True
    try:
        return not bool(value == value)
    except (TypeError, ValueError):
        return True


def as_classes(name: str, labels: Any) -> tuple[np.ndarray, tuple[Any, ...]]:
    """The number 0, 1, ... of each label's class, and the classes in increasing order (False before True, text by alphabet), of
    whole numbers, booleans, text or categories."""
    # NumPy would turn a list of numbers and text into text.
    array = np.asarray(labels, dtype=object if isinstance(labels, (list, tuple)) else None)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {array.shape}. Give one class a sample.")
    missing = [is_missing(a) for a in array] if array.dtype.kind in "Of" else [False]
    if any(missing):
        raise ValueError(f"{name} holds {sum(missing)} missing entries. Drop these samples.")
    if array.dtype.kind == "f" and not np.all(array == np.round(array)):
        raise ValueError(f"{name} must be classes, got numbers such as {array[array != np.round(array)][0]}. Leave out loss.")
    if array.dtype == object:
        kinds = {type(a) for a in array}
        if len(kinds) > 1:
            names = sorted(kind.__name__ for kind in kinds)
            raise TypeError(f"{name} must be classes of one kind, got {' and '.join(names)}. Turn all into text, say.")
        array = np.asarray(array.tolist())
    if array.dtype.kind not in "fiubU":
        raise TypeError(f"{name} must be whole numbers, booleans or text, got dtype {array.dtype}.")
    classes, number = np.unique(array, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"{name} are all equal: there is nothing to learn. Check the labels.")
    return number, tuple(classes.tolist())


def centered(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Less the columns' means, and these. Columns that do not vary are an error."""
    center = x.mean(axis=0)
    x = x - center
    spread = x.std(axis=0)
    constant = np.flatnonzero(spread <= 1e-10 * max(float(spread.max()), np.finfo(float).tiny))
    if constant.size:
        more = "..." if constant.size > 10 else ""
        raise ValueError(f"{name} has constant columns: {constant[:10].tolist()}{more}. Drop them.")
    return x, center


def check_independent(name: str, eigenvalues: np.ndarray) -> None:
    """Of increasing eigenvalues of the columns' covariance."""
    if eigenvalues[0] <= 1e-12 * eigenvalues[-1]:
        raise ValueError(
            f"{name} has linearly dependent columns (smallest covariance eigenvalue "
            f"{eigenvalues[0]:.1e} of the largest {eigenvalues[-1]:.1e}). Drop or project out the dependent ones."
        )
