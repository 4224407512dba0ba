"""Which classes a file of results may hold. Each is registered where it is defined: `storage` knows none of them by name."""

import dataclasses
from typing import Any, TypeVar

_Class = TypeVar("_Class", bound=type)

_RESULTS: dict[str, type] = {}
_PARTS: dict[str, type] = {}


def register(cls: _Class) -> _Class:
    """A class decorator: `dmftopt.save` and `dmftopt.load` then know the class, on its own and inside other results.

    For results of your own, and for classes of your own inside ours, such as a schedule in the protocol of an `Optimized`:

        @dmftopt.register
        class Sweep(eqx.Module):
            rates: Array
            solutions: list[dmftopt.Solution]

    It must be an `eqx.Module`, another dataclass or a NamedTuple. Files hold its name and its fields, so that it is found again
    wherever it has moved; `load` sets the fields and runs no initializer. Register it (import its module) before loading.

    Raises TypeError for a class without fields, ValueError where another class of that name is registered.
    """
    return _add(_RESULTS, cls)


def register_part(cls: _Class) -> _Class:
    """The same for what only stands inside results: `save` refuses it on its own."""
    return _add(_PARTS, cls)


def registered(name: str) -> Any:
    """The class that files call by this name, None if there is none."""
    return _RESULTS.get(name, _PARTS.get(name))


def result_names() -> list[str]:
    return sorted(_RESULTS, reverse=True)


def is_result(value: Any) -> bool:
    return _RESULTS.get(type(value).__name__) is type(value)


def fields_of(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else list(cls._fields)


def _add(group: dict[str, type], cls: Any) -> Any:
    if not isinstance(cls, type) or not (dataclasses.is_dataclass(cls) or (issubclass(cls, tuple) and hasattr(cls, "_fields"))):
        raise TypeError(f"register takes an eqx.Module, a dataclass or a NamedTuple, got {cls!r}. Only fields can be stored.")
    other = registered(cls.__name__)
    # The same class again, in a notebook or by a reload, takes the place of the old one.
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        where = f"{other.__module__}.{other.__qualname__}"
        raise ValueError(f"register: files call {where} by the name {cls.__name__} already. Give your class another name.")
    group[cls.__name__] = cls
    return cls
