"""Checks of concrete input at the front doors. Traced values pass through: their errors become result codes."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_Door = TypeVar("_Door")


def front_door(door: _Door) -> _Door:
    """Of a function or class that checks its arguments itself, by messages that name the cure, or hands out what has been
    checked: whoever checks annotations as the program runs (the tests do, by jaxtyping's import hook) leaves these to it. The
    annotations are for readers, and for programs that check without running."""

    door.__no_type_check__ = True  # pyright: ignore
    return door


class Aside(eqx.Module):
    """What rides along in a pytree for its owner and no program reads."""


def numbers_to_arrays(tree: Any) -> Any:
    """Python floats and NumPy arrays as JAX arrays, and None for an `Aside`, so that under our own jit a change of number or of
    what is not read never retraces."""

    def convert(leaf):
        if isinstance(leaf, Aside):
            return None
        if isinstance(leaf, float):
            return jnp.asarray(leaf, dtype=float)
        return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf

    return jax.tree.map(convert, tree, is_leaf=lambda leaf: isinstance(leaf, Aside))


def as_number(value: Any) -> Any:
    """Whole and NumPy numbers as Python floats, lists and integer arrays as float arrays: what is no JAX array is held fixed
    by `optimize`, and what is an integer has no derivative."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return jnp.asarray(value, dtype=float)
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.integer):
        return value.astype(float)
    if isinstance(value, (int, np.number)) and not isinstance(value, bool):
        return float(value)
    return value


def as_numbers(name: str, value: Any) -> jax.Array:
    """As a float array, also of lists of traced numbers. Raises TypeError naming `name` for what is none."""
    try:
        return jnp.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be real numbers, got {value!r}.") from error


def padded(times: np.ndarray) -> np.ndarray:
    """With the last one repeated up to the next power of two: what is compiled for one length then serves others too."""
    return np.pad(times, (0, (1 << (times.size - 1).bit_length()) - times.size), mode="edge")


def is_concrete(value: Any) -> bool:
    return not isinstance(value, Tracer)


def without_derivative(value: Any, message: str) -> Any:
    """The identity, with a derivative that is an error instead of a silent zero."""

    @jax.custom_jvp
    def identity(value):
        return value

    @identity.defjvp
    def _(primals, tangents):
        raise ValueError(message)

    return identity(value)


def check_real(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    exclusive: bool = False,
    maximum: float | None = None,
    cure: str = "",
) -> None:
    """Raise a ValueError naming `name` unless every entry of a concrete `value` is a finite real number within bounds; with
    `exclusive` the minimum is none of them."""
    if not is_concrete(value):
        return
    try:
        array = np.asarray(value)
    except Exception as error:
        raise TypeError(f"{name} must be a real number or array, got {type(value).__name__}.") from error
    if array.dtype == bool or not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise TypeError(f"{name} must be a real number or array, got {value!r}.")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite, got {value!r}. Remove NaN and infinite entries.")
    if minimum is not None:
        bad = np.any(array <= minimum) if exclusive else np.any(array < minimum)
        if bad:
            sign = ">" if exclusive else ">="
            raise ValueError(f"{name} must be {sign} {minimum:g}, got {value!r}. {cure}".strip())
    if maximum is not None and np.any(array > maximum):
        raise ValueError(f"{name} must be at most {maximum:g}, got {value!r}. {cure}".strip())


def check_duration(name: str, value: Any, cure: str = "") -> None:
    """Raise a ValueError unless a concrete `value` is positive, and such that its square and the inverse of that are numbers too:
    times are multiplied by times and divided by them."""
    check_real(name, value, minimum=0.0, exclusive=True, cure=cure)
    if not is_concrete(value):
        return
    limits = jnp.finfo(jnp.zeros(()).dtype)
    low, high = float(limits.tiny) ** 0.5, float(limits.max) ** 0.5
    if not np.all((np.asarray(value) >= low) & (np.asarray(value) <= high)):
        raise ValueError(
            f"{name} must be between {low:.1g} and {high:.1g} in {limits.dtype}, got {value!r}. Time is SGD steps / dimension."
        )


def check_fixed(name: str, value: Any) -> None:
    """Raise unless `value` is a single number that is known: the size of an array depends on it."""
    if not is_concrete(value):
        raise TypeError(
            f"{name} fixes the number of steps, so it cannot be traced. Pass a Python number, outside of jit and vmap."
        )
    check_shape(name, value, ((),), "Give one number.")


def check_shape(name: str, value: Any, shapes: tuple[tuple[int, ...], ...], cure: str = "") -> None:
    shape = np.shape(value)
    if shape not in shapes:
        allowed = " or ".join(str(s) for s in shapes)
        raise ValueError(f"{name} must have shape {allowed}, got {shape}. {cure}".strip())


def check_count(name: str, value: Any, *, minimum: int = 1, cure: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a Python integer, got {value!r}. {cure}".strip())
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}. {cure}".strip())


def check_instance(name: str, value: Any, kind: type, cure: str) -> None:
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise TypeError(f"{name} must be {article} {kind.__name__}, got {type(value).__name__}. {cure}")


def check_function(name: str, value: Any, of: str) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a function of {of}, got {value!r}.")


def check_named(name: str, value: Any) -> None:
    """Raise a TypeError unless `value` says what each of its entries is called."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f'{name} must be a dict, {{"name": ...}}, got {type(value).__name__}. Give each a name.')


def check_member(name: str, value: Any, known: Iterable[Any]) -> None:
    if value not in (known := list(known)):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}.")


def check_key(key: Any) -> None:
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
            return
        if key.dtype == jnp.uint32 and key.shape == (2,):
            return
    raise TypeError(f"key must be a JAX random key, a single one, got {key!r}. Pass jax.random.key(seed).")
