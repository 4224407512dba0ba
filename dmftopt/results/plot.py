"""Plots of results, on matplotlib axes. Each function draws on `axes` (None: new ones) and returns them.

New or empty axes get colors that color-blind readers can tell apart; nothing global is changed and nothing is shown: call
`matplotlib.pyplot.show()`, or `axes.figure.savefig(...)`. Entries of several columns are numbered from 0, as in the arrays.
matplotlib is needed only when something is drawn (ImportError names the cure).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from .._checks import check_count, check_instance, check_real, check_shape, front_door
from ..protocol import Protocol
from ._dataset import DESCRIPTIONS, check_single_result, describe
from .observables import NO_RESPONSE, AbstractResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's, the yellow (hard to see on white) and black left out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

_POINTS = {"marker": "o", "linestyle": "none", "markersize": 4, "linewidth": 1}
_TIME_LABEL = r"time $t$ = SGD steps / $d$"
_SCHEDULES = {
    "learning_rate": r"learning rate $\eta(t)$",
    "batch_size": r"batch size $B(t)$ (samples per step)",
    "ridge": "ridge coefficient",
    "momentum": r"momentum $\beta(t)$",
}


@front_door
def learning_curve(
    result: AbstractResult,
    observable: str = "test_risk",
    *,
    entries: Iterable[tuple[int, ...]] | None = None,
    sigmas: float = 2.0,
    label: str | None = None,
    axes: "Axes | None" = None,
    **style: Any,
) -> "Axes":
    """An observable of one time against time, with a band of ± `sigmas` standard errors where the result has them.

    Observables of several columns have one line per entry, or those in `entries`, [(row, column), ...]; so have metrics, which
    are observables called "train_<name>", "test_<name>" and "weight_<name>". A stationary limit, at infinite time, is a
    horizontal line. `style` goes to `Axes.plot`. Raises ValueError for an observable that the result does not have, or that has
    two times (draw those with `kernel`).
    """
    values, errors, chosen = _read("result", result, observable, entries)
    _check_sigmas(sigmas)
    axes = _ready(axes)
    for entry in chosen:
        name = " ".join(filter(None, (label, _name(entry)))) or None
        _line(axes, result, values[:, *entry], sigmas * errors[:, *entry], {"label": name, **style})
    return _finish(axes, _TIME_LABEL, _describe(observable))


@front_door
def curve(
    points: np.ndarray,
    values: np.ndarray,
    error: np.ndarray | None = None,
    *,
    x_label: str = _TIME_LABEL,
    y_label: str = "test risk",
    axes: "Axes | None" = None,
    **style: Any,
) -> "Axes":
    """Values (point,) against points (point,), with a band of ± `error` (point,) where given. `style` goes to `Axes.plot`."""
    axes = _ready(axes)
    (line,) = axes.plot(points, values, **style)
    if error is not None:
        axes.fill_between(points, values - error, values + error, color=line.get_color(), alpha=0.25, linewidth=0)
    return _finish(axes, x_label, y_label)


@front_door
def comparison(
    theory: AbstractResult,
    simulation: AbstractResult,
    observable: str = "test_risk",
    *,
    entries: Iterable[tuple[int, ...]] | None = None,
    sigmas: float = 2.0,
    line_style: Mapping[str, Any] | None = None,
    point_style: Mapping[str, Any] | None = None,
    axes: "Axes | None" = None,
) -> "Axes":
    """`theory` as a line (with a band, as in `learning_curve`), `simulation` as points with bars of ± `sigmas` standard errors.

    Any two results will do. `line_style` goes to `Axes.plot`, `point_style` to `Axes.errorbar`. Raises as `learning_curve`, and
    ValueError where the two have different columns.
    """
    line_style, point_style = dict(line_style or {}), {**_POINTS, **(point_style or {})}
    values, errors, chosen = _read("theory", theory, observable, entries)
    points, bars, _ = _read("simulation", simulation, observable, None)
    if values.shape[1:] != points.shape[1:]:
        raise ValueError(
            f"theory and simulation must have the same columns, got {observable} of shapes {values.shape} and {points.shape}. "
            "Compare results of the same problem."
        )
    if _is_stationary(simulation):
        raise ValueError("simulation is a limit at infinite time. Pass it as theory, which is then a horizontal line.")
    _check_sigmas(sigmas)
    axes = _ready(axes)
    has_bars = sigmas > 0 and bool(np.any(bars > 0))
    names = ("theory", rf"simulation ($\pm${sigmas:g} s.e.)" if has_bars else "simulation")
    single = chosen == [()]
    for entry in chosen:
        labels = names if single else (_name(entry), None)
        color = _line(axes, theory, values[:, *entry], sigmas * errors[:, *entry], {"label": labels[0], **line_style})
        bar = sigmas * bars[:, *entry] if has_bars else None
        style = {"color": color, "label": labels[1], **point_style}
        axes.errorbar(np.asarray(simulation.times), points[:, *entry], bar, **style)
    if not single:
        axes.plot([], [], **{"color": "0.4", "label": names[0], **line_style})
        axes.errorbar([], [], [] if has_bars else None, **{"color": "0.4", "label": names[1], **point_style})
    return _finish(axes, _TIME_LABEL, _describe(observable))


@front_door
def schedule(
    schedule: Callable | Protocol,
    horizon: float,
    *,
    name: str = "learning_rate",
    points: int = 500,
    axes: "Axes | None" = None,
    **style: Any,
) -> "Axes":
    """A schedule, or the one called `name` of a protocol ("learning_rate", "batch_size", ...), from 0 to `horizon`.

    Of a schedule by itself, `name` is the label. `style` goes to `Axes.plot`. Raises ValueError for a name that the protocol does
    not have or a horizon that is not positive, TypeError for what is no function of time.
    """
    function = schedule
    if isinstance(schedule, Protocol):
        functions = {field: value for field, value in vars(schedule).items() if callable(value)}
        if name not in functions:
            raise ValueError(f"name must be one of {', '.join(functions)}, got {name!r}.")
        function = functions[name]
    if not callable(function):
        raise TypeError(f"schedule must be a function of t or a Protocol, got {schedule!r}. Use dmftopt.schedules.constant(...).")
    check_real("horizon", horizon, minimum=0.0, exclusive=True, cure="It is the final time, SGD steps / dimension.")
    check_count("points", points, minimum=2)
    times = np.linspace(0.0, float(horizon), points)
    values = np.broadcast_to(np.asarray(function(jnp.asarray(times, dtype=float))), times.shape)
    axes = _ready(axes)
    axes.plot(times, values, **style)
    if values.min() >= 0 and axes.get_yscale() == "linear":
        # With a bottom of their own axes no longer grow by themselves.
        axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1.05 * values.max()))
    return _finish(axes, _TIME_LABEL, _SCHEDULES.get(name, name))


@front_door
def kernel(
    result: AbstractResult,
    observable: str = "correlation",
    *,
    entry: tuple[int, int] = (0, 0),
    colorbar: bool = True,
    axes: "Axes | None" = None,
    **style: Any,
) -> "Axes":
    """The entry `entry` of a two-time observable, "correlation" or "response", as a map with time t to the right.

    Each value fills the cell around its pair of times, whatever their spacing. The response is gray before the kick, where it
    is zero by causality; so are NaN. Colors diverge around 0 where there are negative values. `style` goes to
    `Axes.pcolormesh`. Raises ValueError for another observable, or one that the result does not have.
    """
    kinds = [name for name, about in DESCRIPTIONS.items() if len(about.dims) == 4]
    if observable not in kinds:
        raise ValueError(f"observable must be one of {', '.join(kinds)}, got {observable!r}. Draw others with learning_curve.")
    stacked = _observable("result", result, observable)
    times = np.asarray(result.times)
    if times.size < 2:
        raise ValueError("result has a single time, a map needs two. Pass a result along a grid of times.")
    _check_entry(entry, stacked.shape[2:])
    values = stacked[:, :, *entry]
    edges = np.concatenate([times[:1], 0.5 * (times[1:] + times[:-1]), times[-1:]])
    second_edges, second_label = edges, "time $s$"
    if observable == "response":
        second_edges, second_label = edges[1:], "time of the kick $s$"
        values = np.where(np.arange(times.size)[:, None] > np.arange(times.size - 1)[None], values, np.nan)
    if not np.any(np.isfinite(values)):
        raise ValueError(f"result has no finite value of {observable}: the solve failed at the start. See result.result.")
    axes = _ready(axes)
    mesh = axes.pcolormesh(edges, second_edges, values.T, **_scaled(_diverging(values), style))
    axes.set(xlim=times[[0, -1]], ylim=times[[0, -1]], aspect="equal", facecolor="0.9")
    if colorbar:
        label = _describe(observable)
        _colorbar(axes, mesh, label if stacked[0, 0].size == 1 else f"{label} {_name(entry)}")
    return _finish(axes, _TIME_LABEL, second_label)


@front_door
def margins(
    margins: Any,
    caption: str | None = None,
    *,
    weights: Any = None,
    edges: Any = None,
    axes: "Axes | None" = None,
    **style: Any,
) -> "Axes":
    """Histogram of an array of margins y r (label times output), as a density, with the share below 0: what is misclassified.

    `weights`: of the margins, same shape. `style` goes to `Axes.hist`. Or, with `edges`, the density in the bins between them as
    `metrics.Margins(edges)` measures it, `solution.test_metrics["margin"][-1]` say; `style` then goes to `Axes.stairs`. Raises
    ValueError for NaN, infinite or no margins, and densities that do not fit the edges.
    """
    check_real("margins", margins)
    if edges is not None:
        check_shape("margins", margins, ((np.size(edges) - 1,),), "Give one density per bin, of a single time.")
        axes = _ready(axes)
        first = not axes.has_data()
        axes.stairs(np.asarray(margins), np.asarray(edges), **{"fill": True, "alpha": 0.5, "label": caption, **style})
        return _finish_margins(axes, first, "density")
    flat = np.ravel(np.asarray(margins))
    if flat.size == 0:
        raise ValueError("margins is empty. Pass one margin y r per sample.")
    weights = np.ones(np.shape(margins)) if weights is None else np.asarray(weights)
    check_real("weights", weights, minimum=0.0)
    check_shape("weights", weights, (np.shape(margins),), "Give one weight per margin.")
    share = f"{weights.ravel()[flat < 0].sum() / weights.sum():.1%} below 0"
    axes = _ready(axes)
    first = not axes.has_data()
    defaults = {"bins": 60, "density": True, "histtype": "stepfilled", "alpha": 0.5}
    style = {**defaults, "label": f"{caption}, {share}" if caption else share, **style}
    axes.hist(flat, weights=weights.ravel(), **style)
    return _finish_margins(axes, first, "density" if style["density"] else "weight")


def _finish_margins(axes: "Axes", first: bool, label: str) -> "Axes":
    if first:
        axes.axvline(0.0, color="0.3", linestyle=":", linewidth=1)
    return _finish(axes, r"margin $y\,r$", label)


@front_door
def landscape(
    x: Any,
    y: Any,
    values: Any,
    *,
    labels: tuple[str, str, str] = ("", "", ""),
    colorbar: bool = True,
    axes: "Axes | None" = None,
    **style: Any,
) -> "Axes":
    """`values` (x, y), a risk say, over two hyperparameters `x` (x,) and `y` (y,), with a star at the least finite one.

    `labels`: of x, y and the values. Hyperparameters in constant ratios have logarithmic axes; NaN and infinite values (runs
    that diverged) are gray, and colors saturate where single values would otherwise wash out the rest. `style` goes to
    `Axes.pcolormesh`. Raises ValueError for x or y that do not increase, values of
    another shape, or none that is finite.
    """
    edges, scales = [], []
    for name, points in (("x", x), ("y", y)):
        check_real(name, points)
        points = np.asarray(points, dtype=float)
        if points.ndim != 1 or points.size < 2 or np.any(np.diff(points) <= 0):
            raise ValueError(
                f"{name} must hold at least two increasing numbers, got shape {points.shape}. Sort it, with the values."
            )
        scales.append("log" if _is_geometric(points) else "linear")
        edges.append(np.exp(_around(np.log(points))) if scales[-1] == "log" else _around(points))
    values = np.asarray(values)
    shape = (np.size(x), np.size(y))
    if values.shape != shape:
        cure = "Transpose it: the first axis is x." if values.shape == shape[::-1] else "Give one value per pair."
        raise ValueError(f"values must have shape {shape}, got {values.shape}. {cure}")
    finite = np.where(np.isfinite(values), values, np.nan)
    if np.all(np.isnan(finite)):
        raise ValueError("values has no finite entry. Look at smaller learning rates.")
    axes = _ready(axes)
    least, quartile, largest = np.nanquantile(finite, (0.0, 0.75, 1.0))
    top = quartile if largest - least > 3 * (quartile - least) > 0 else largest
    mesh = axes.pcolormesh(*edges, finite.T, **_scaled({"cmap": "viridis_r", "vmin": least, "vmax": top}, style))
    axes.set(xscale=scales[0], yscale=scales[1], facecolor="0.8")
    i, j = np.unravel_index(np.nanargmin(finite), shape)
    best = (float(np.asarray(x)[i]), float(np.asarray(y)[j]))
    label = f"least: {finite[i, j]:.4g} at ({best[0]:.3g}, {best[1]:.3g})"
    axes.plot(*best, "*", color="#D55E00", markeredgecolor="white", markersize=15, label=label)
    if colorbar:
        _colorbar(axes, mesh, labels[2])
    return _finish(axes, labels[0], labels[1])


@front_door
def fidelity(result: Any, *, sigmas: float = 2.0, axes: "Axes | None" = None) -> "Axes":
    """A `design.Fidelity` (or its `of_test_error`): the theory as a line with a band (numerical error and what the data leave
    open), SGD on surrogate data and on the data as points, all with ± `sigmas` standard errors."""
    axes = _ready(axes)
    times = np.asarray(result.times)
    error = sigmas * np.hypot(result.theory_error, result.estimation_error)
    (line,) = axes.plot(times, result.theory, label="theory")
    axes.fill_between(times, result.theory - error, result.theory + error, color=line.get_color(), alpha=0.25, linewidth=0)
    for name, values, errors in (
        (f"SGD on surrogate data, d = {result.dimension}", result.surrogate, result.surrogate_error),
        ("SGD on the data", result.real, result.real_error),
    ):
        axes.errorbar(times, values, sigmas * np.asarray(errors), label=name, **_POINTS)
    return _finish(axes, _TIME_LABEL, result.quantity)


def _ready(axes: Any) -> "Axes":
    try:
        import matplotlib.axes
    except ImportError as error:
        raise ImportError("dmftopt.plot needs matplotlib. Install it with: pip install 'dmftopt[plots]'.") from error
    if axes is None:
        from matplotlib import pyplot

        _, axes = pyplot.subplots(layout="constrained")
    if not isinstance(axes, matplotlib.axes.Axes):
        raise TypeError(f"axes must be one matplotlib Axes or None, got {type(axes).__name__}. Index an array of axes first.")
    if not axes.has_data():
        axes.set_prop_cycle(color=COLORS)
    return axes


def _finish(axes: "Axes", x_label: str, y_label: str) -> "Axes":
    """Labels, where the axes have none yet, and a legend if there is something to tell apart."""
    axes.set(xlabel=axes.get_xlabel() or x_label, ylabel=axes.get_ylabel() or y_label)
    if labels := axes.get_legend_handles_labels()[1]:
        axes.legend(**({"ncols": 2, "fontsize": "small"} if len(labels) > 4 else {}))
    return axes


def _line(axes: "Axes", result: AbstractResult, values: np.ndarray, band: np.ndarray, style: dict[str, Any]) -> Any:
    """Draw a line with a band, return its color."""
    times = np.asarray(result.times)
    if _is_stationary(result):
        across = axes.get_yaxis_transform()  # x from 0 to 1, whatever the times
        (line,) = axes.plot([0, 1], 2 * [values[0]], **{"linestyle": "--", "transform": across, **style})
        return line.get_color()
    (line,) = axes.plot(times, values, **style)
    if np.any(band > 0):
        axes.fill_between(times, values - band, values + band, color=line.get_color(), alpha=0.25, linewidth=0)
    return line.get_color()


def _colorbar(axes: "Axes", mesh: Any, label: str) -> None:
    beyond = mesh.norm.vmax < np.nanmax(np.ma.filled(mesh.get_array(), np.nan))
    axes.figure.colorbar(mesh, ax=axes, label=label, extend="max" if beyond else "neither")


def _scaled(defaults: dict[str, Any], style: dict[str, Any]) -> dict[str, Any]:
    """Keywords of a map; a `norm` of the caller's replaces our limits. Rasterized: thousands of cells make slow vector files."""
    limits = ("vmin", "vmax") if "norm" in style else ()
    return {"rasterized": True, **{name: value for name, value in defaults.items() if name not in limits}, **style}


def _diverging(values: np.ndarray) -> dict[str, Any]:
    low, high = np.nanmin(values), np.nanmax(np.abs(values))
    # Noise around 0 is no sign.
    return {"cmap": "PuOr_r", "vmin": -high, "vmax": high} if low < -0.05 * high else {"cmap": "viridis"}


def _describe(observable: str) -> str:
    about = describe(observable, 1)
    parts = about.long_name, f"${about.symbol}$" if about.symbol else "", "" if about.units == "1" else f"({about.units})"
    return " ".join(filter(None, parts))


def _name(entry: tuple[int, ...]) -> str:
    return str(list(entry)) if entry else ""


def _observable(name: str, result: Any, observable: str) -> np.ndarray:
    check_instance(name, result, AbstractResult, "Pass what solve, dmftopt.simulate or dmftopt.limits return.")
    check_single_result(name, result)
    arrays = result.observables.arrays()
    if observable not in arrays:
        if observable not in DESCRIPTIONS:
            raise ValueError(f"observable must be one of {', '.join({**DESCRIPTIONS, **arrays})}, got {observable!r}.")
        cure = NO_RESPONSE if observable == "response" else "Only classification tasks have it."
        raise ValueError(f"{name} has no {observable}. {cure}")
    return np.asarray(arrays[observable])


@front_door
def _read(
    name: str, result: AbstractResult, observable: str, entries: Iterable[tuple[int, ...]] | None
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    """Values of an observable of one time, standard errors (0 where unknown), and the entries to draw: () for a single column."""
    values = _observable(name, result, observable)
    dims = describe(observable, values.ndim).dims
    if {"time_2", "step"} & set(dims):
        raise ValueError(f"observable {observable!r} has two times. Draw it with dmftopt.plot.kernel.")
    known = result.known_error()
    errors = np.zeros_like(values) if known is None else 0.5 * np.asarray(known.arrays()[observable])
    if entries is not None:
        chosen = list(entries)
        for entry in chosen:
            _check_entry(entry, values.shape[1:])
    else:
        # A matrix over pairs of students is symmetric.
        chosen = [entry for entry in np.ndindex(values.shape[1:]) if "student_2" not in dims or entry[0] <= entry[1]]
    if values[0].size == 1:
        return values.reshape(-1), errors.reshape(-1), [()]
    return values, errors, chosen


def _check_entry(entry: Any, shape: tuple[int, ...]) -> None:
    inside = isinstance(entry, tuple) and len(entry) == len(shape) and all(0 <= i < n for i, n in zip(entry, shape, strict=True))
    if not inside:
        raise ValueError(f"an entry must be a tuple of indices within the columns {shape}, got {entry!r}. The first is (0, 0).")


def _check_sigmas(sigmas: Any) -> None:
    check_real("sigmas", sigmas, minimum=0.0, cure="It is a number of standard errors; 0 draws none.")


def _is_stationary(result: AbstractResult) -> bool:
    times = np.asarray(result.times)
    return times.size == 1 and not np.isfinite(times[0])


def _is_geometric(points: np.ndarray) -> bool:
    def constant(differences):
        return np.allclose(differences, differences.mean(), rtol=0.01)

    return bool(points[0] > 0) and not constant(np.diff(points)) and constant(np.diff(np.log(points)))


def _around(points: np.ndarray) -> np.ndarray:
    """Edges of cells around points: the middles, and as far beyond the ends."""
    middles = 0.5 * (points[1:] + points[:-1])
    return np.concatenate([[2 * points[0] - middles[0]], middles, [2 * points[-1] - middles[-1]]])
