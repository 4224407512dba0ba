"""Results on disk: `save` and `load`.

A file is a zip archive: `header.json` (format, versions, type, and the whole result as a tree in which arrays stand by name),
then one `.npy` member per array. `numpy.load` reads the arrays too, under names like "observables.test_risk". Nothing in it is
executed: no pickle, and only registered classes are built (`dmftopt.register`).
"""

import dataclasses
import json
import math
import os
import re
import zipfile
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import front_door, is_concrete
from .._files import write_atomically as write_atomically
from .._register import fields_of, is_result, registered, result_names
from ._dataset import version
from .codes import RESULTS

FORMAT = "dmftopt result"
FORMAT_VERSION = 2
_HEADER = "header.json"
# What zipfile, json and NumPy raise for damaged files.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, LookupError, RuntimeError, TypeError, ValueError)

_MEMBERS = list(RESULTS._name_to_item)


@front_door
def save(path: str | os.PathLike[str], result: Any) -> None:
    """Write a result to the file `path`, say "solution.npz": what `solve`, `limits`, `simulate`, `optimize`, `certify`, `report`
    or `sensitivity` return, or an instance of a class of your own that is registered with `dmftopt.register`.

    The file appears whole or not at all: a write that is interrupted leaves what was there before. Folders are made. Raises
    TypeError for anything else, under `jit`, and for results that hold a function or a class that is not registered.
    """
    if not is_result(result):
        raise TypeError(
            f"result must be one of {', '.join(result_names())}, got {type(result).__name__}. Save the whole result, not a part "
            "of it; a class of your own needs dmftopt.register."
        )
    arrays: dict[str, np.ndarray] = {}
    tree = _encode(result, "result", arrays)
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "dmftopt": version(), "type": type(result).__name__}
    text = json.dumps({**header, "result": tree}, indent=1, allow_nan=False)

    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(_HEADER, text)
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    write_atomically(path, write)


@front_door
def load(path: str | os.PathLike[str]) -> Any:
    """The result in a file written by `save`, bit for bit, of the same class and dtypes.

    Without `jax_enable_x64` JAX has no float64: such arrays then come back as NumPy arrays. Raises OSError where there is no
    file to read, ValueError where it is not by `save`, by a newer version, cut short or damaged.
    """
    with open(path, "rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            header = json.loads(archive.read(_HEADER))
            known = header["format"] == FORMAT
        except _UNREADABLE as error:
            raise ValueError(f"{path} is no file of dmftopt.save, or was cut short ({error}).") from error
        if not known:
            raise ValueError(f"{path} is no file of dmftopt.save, but of the format {header['format']!r}.")
        by = f"It was written by dmftopt {header.get('dmftopt')}, this is {version()}."
        if header.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {header.get('format_version')}, this dmftopt reads version {FORMAT_VERSION}. "
                f"{by} Use that version."
            )
        try:
            return _decode(header["result"], archive)
        except _UNREADABLE as error:
            raise ValueError(f"{path} is damaged, or of another version of dmftopt: {error}. {by}") from error


def _encode(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """`value` as JSON; arrays go to `arrays`, and their names here."""
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _encode_array(value, path, arrays)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, RESULTS):
        # With the names, so that a later version may have its codes in another order.
        return {"results": _encode(value._value, path, arrays), "names": _MEMBERS}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"dict": {name: _encode(entry, f"{path}.{name}", arrays) for name, entry in value.items()}}
    kind = type(value)
    if kind in (list, tuple):
        return {kind.__name__: [_encode(entry, f"{path}.{i}", arrays) for i, entry in enumerate(value)]}
    if registered(kind.__name__) is kind:
        fields = {name: _encode(getattr(value, name), f"{path}.{name}", arrays) for name in fields_of(kind)}
        return {"class": kind.__name__, "fields": fields}
    cure = (
        "Save it as numbers, a schedule for example as dmftopt.schedules.piecewise_linear(horizon, knots, schedule), or register "
        "its class with dmftopt.register."
    )
    raise TypeError(f"{path} is a {kind.__name__}, which save cannot store. {cure}")


def _encode_array(value: Any, path: str, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    if not is_concrete(value):
        raise TypeError(f"{path} is being traced. Return the result from the jitted function, then save it.")
    if jnp.issubdtype(value.dtype, jax.dtypes.extended) or value.dtype.kind not in "biufc":
        raise TypeError(f"{path} has the dtype {value.dtype}, which save cannot store. Save numbers.")
    name = re.sub(r"[^\w.-]", "_", path.removeprefix("result."))
    while name in arrays:
        name += "_"
    arrays[name] = np.asarray(value)
    kind = "jax" if isinstance(value, jax.Array) else "scalar" if isinstance(value, np.generic) else "numpy"
    return {"array": name, "of": kind}


def _decode(node: Any, archive: zipfile.ZipFile) -> Any:
    match node:
        case {"array": name, "of": kind}:
            with archive.open(f"{name}.npy") as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
                # A checksum is compared only at the end of a member.
                if member.read():
                    raise ValueError(f"{name} is longer than it says")
            if kind == "scalar":
                return array[()]
            representable = jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
            return jnp.asarray(array) if kind == "jax" and representable else array
        case {"float": text}:
            return float(text)
        case {"results": codes, "names": names}:
            codes = _decode(codes, archive)
            now = np.asarray([_MEMBERS.index(name) for name in names])[np.asarray(codes)].astype(codes.dtype)
            value = jnp.asarray(now) if isinstance(codes, jax.Array) else np.asarray(now)
            return _build(type(RESULTS.successful), {"_value": value, "_enumeration": RESULTS})
        case {"dict": entries}:
            return {name: _decode(entry, archive) for name, entry in entries.items()}
        case {"list": entries}:
            return [_decode(entry, archive) for entry in entries]
        case {"tuple": entries}:
            return tuple(_decode(entry, archive) for entry in entries)
        case {"class": name, "fields": fields}:
            if (kind := registered(name)) is None:
                raise ValueError(f"no class {name!r} is registered: import the module that registers it with dmftopt.register")
            return _build(kind, {field: _decode(entry, archive) for field, entry in fields.items()})
        case dict() | list():
            raise ValueError(f"the header holds {str(node)[:80]}, of no known meaning")
    return node


def _build(kind: type, fields: dict[str, Any]) -> Any:
    """An instance with exactly these fields: initializers would check and convert what was checked and converted before.
    Fields that are new since the file was written have their defaults."""
    if unknown := fields.keys() - set(fields_of(kind)):
        raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))} here")
    if issubclass(kind, tuple):
        return kind(**fields)
    instance = object.__new__(kind)
    for field in dataclasses.fields(kind):
        if field.name in fields:
            value = fields[field.name]
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            raise ValueError(f"{kind.__name__} lacks {field.name}")
        object.__setattr__(instance, field.name, value)
    return instance
