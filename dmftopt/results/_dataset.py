"""What the observables are called, and results as labeled arrays."""

from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from .._checks import is_concrete

TIME = ("time", "SGD steps / dimension")


class Description(NamedTuple):
    """Name, symbol (TeX), units ("1": none) and axes of an observable."""

    long_name: str
    symbol: str
    units: str
    dims: tuple[str, ...]


_COLUMNS = ("student", "student_2")
DESCRIPTIONS = {
    "test_risk": Description("test risk", r"E\,\ell", "loss per sample", ("time",)),
    "train_loss": Description("training loss", r"\frac{1}{n}\sum_i \ell_i", "loss per sample", ("time",)),
    "student_overlap": Description("student overlap", r"E[\theta \Lambda \theta^\top]", "1", ("time", *_COLUMNS)),
    "teacher_overlap": Description("teacher overlap", r"E[\theta \Lambda \theta_\ast^\top]", "1", ("time", "student", "teacher")),
    "correlation": Description("correlation", r"E[\theta(t) \Lambda \theta(s)^\top]", "1", ("time", "time_2", *_COLUMNS)),
    "norm": Description("squared norm of the student", r"E[\theta \theta^\top]", "1", ("time", *_COLUMNS)),
    "test_error": Description("test error", r"P_\mathrm{test}", "fraction of samples", ("time",)),
    "train_error": Description("training error", r"P_\mathrm{train}", "fraction of samples", ("time",)),
    "response": Description("response", r"E[\Lambda\, \partial\theta(t) / \partial h(s)]", "1", ("time", "step", *_COLUMNS)),
}

# What metrics are averaged over, which is also how their names begin.
METRICS = {"train": "training samples", "test": "fresh samples", "weight": "coordinates"}

# The fields of a result that hold observables, and what is added to the variables' names.
_SUFFIXES = {
    "observables": "",
    "replicated": "_standard_error",
    "half_difference": "_bias",
    "bias_error": "_bias_standard_error",
    "level_difference": "_discretization_error",
    "estimation": "_estimation_error",
}
_PREFIXES = {
    "": "",
    "_standard_error": "standard error of ",
    "_bias": "estimated bias of ",
    "_bias_standard_error": "standard error of the estimated bias of ",
    "_discretization_error": "error of the time step in ",
    "_estimation_error": "standard error, from the data behind the problem, of ",
}


def describe(name: str, axes: int) -> Description:
    """An observable or a metric, an array of so many axes."""
    if name in DESCRIPTIONS:
        return DESCRIPTIONS[name]
    kind, metric = name.split("_", 1)
    return Description(f"{metric}, mean over {METRICS[kind]}", "", "1", ("time", *(f"{metric}_{i}" for i in range(axes - 1))))


def taken(metric: str, kinds: tuple[str, ...]) -> bool:
    """Whether variables or axes of a metric of this name would be called like others."""
    suffixes = tuple(suffix for suffix in _SUFFIXES.values() if suffix)
    return metric in ("time", "student") or metric.endswith(suffixes) or any(f"{kind}_{metric}" in DESCRIPTIONS for kind in kinds)


def check_single_result(name: str, result: Any) -> None:
    """Raise unless `result` holds numbers, of a single run."""
    if not is_concrete(result.times):
        raise TypeError(f"{name} is being traced. Return it from the jitted function first.")
    if np.ndim(result.times) != 1:
        raise ValueError(
            f"{name} holds several results along {np.ndim(result.times) - 1} axes of vmap. "
            f"Take one of them: jax.tree.map(lambda a: a[0], {name})."
        )


def dataset(result: Any, attributes: dict[str, Any]) -> Any:
    """The xarray.Dataset of a result, see `AbstractResult.to_xarray`."""
    try:
        import xarray
    except ImportError as error:
        raise ImportError("to_xarray needs xarray. Install it with: pip install 'dmftopt[xarray]'.") from error
    fields = vars(result)
    variables = {}
    for field, suffix in _SUFFIXES.items():
        for name, value in fields[field].arrays().items() if fields.get(field) is not None else ():
            # The response of a stationary limit is empty, and netCDF takes an axis of length 0 for one without end.
            if value.size > 0:
                long_name, _, units, dims = describe(name, value.ndim)
                attrs = {"long_name": _PREFIXES[suffix] + long_name, "units": units}
                variables[name + suffix] = (dims, np.asarray(value), attrs)
    times = np.asarray(result.times)
    long_name, units = TIME
    coordinates = {
        "time": ("time", times, {"long_name": long_name, "units": units}),
        "time_2": ("time_2", times, {"long_name": "second time", "units": units}),
    }
    if "response" in variables:
        coordinates["step"] = ("step", np.arange(len(times) - 1), {"long_name": "step of the grid", "units": "1"})
        coordinates["kick_time"] = ("step", times[1:], {"long_name": "time of the kick", "units": units})
    # netCDF knows no booleans.
    attributes = {name: int(value) if isinstance(value, bool) else value for name, value in attributes.items()}
    return xarray.Dataset(variables, coordinates, {"type": type(result).__name__, "dmftopt": version(), **attributes})


def version() -> str:
    try:
        return metadata.version("dmftopt")
    except metadata.PackageNotFoundError:
        return "not installed"
