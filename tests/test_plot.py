"""Plots draw the numbers of the results: checked on the artists, not on pixels."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.collections import PolyQuadMesh, QuadMesh
from matplotlib.colors import to_rgba
from test_results import random_observables, random_solution

import dmftopt
from dmftopt import plot, schedules

matplotlib.use("agg")
TIMES = np.asarray([0.0, 0.1, 0.3, 0.7, 1.5])
SINGLE = {"students": 1, "teachers": 1}


@pytest.fixture(autouse=True)
def _nothing_global_changes():
    before = dict(matplotlib.rcParams)
    yield
    pyplot.close("all")
    assert dict(matplotlib.rcParams) == before


def single(errors=True, **changes):
    replicated = jax.tree.map(jnp.abs, random_observables(**SINGLE, seed=1)) if errors else None
    return random_solution(**{"observables": random_observables(**SINGLE), "replicated": replicated, **changes})


def simulation(students=1, teachers=1):
    observables = random_observables(students=students, teachers=teachers, seed=2)
    errors = jax.tree.map(jnp.abs, random_observables(students=students, teachers=teachers, seed=3))
    return dmftopt.simulate.Simulation(jnp.asarray(TIMES), observables, errors, 100, 8)


def stationary():
    observables = jax.tree.map(lambda a: a[:1], random_observables(**SINGLE))
    return dmftopt.limits.Limit(jnp.full(1, jnp.inf), observables)


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []


def bars(container):
    """Lower and upper ends of error bars, (point, 2)."""
    return np.asarray(container.lines[2][0].get_segments())[:, :, 1]


def the_mesh(axes):
    (mesh,) = [artist for artist in axes.collections if isinstance(artist, (QuadMesh, PolyQuadMesh))]
    return mesh


def test_learning_curve_draws_values_and_a_band_of_standard_errors():
    solution = single()
    axes = plot.learning_curve(solution, "test_risk", sigmas=3.0)
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), TIMES)
    np.testing.assert_array_equal(line.get_ydata(), solution.test_risk)
    (band,) = axes.collections
    vertices = band.get_paths()[0].vertices
    for k, t in enumerate(TIMES):
        ys = vertices[vertices[:, 0] == t, 1]
        value, error = float(solution.test_risk[k]), float(solution.standard_error.test_risk[k])
        # Half the total errors: by Student's t for four replicates, as the time step has none here.
        width = 3 * 3.182446305284263 / 2 * error
        np.testing.assert_allclose([ys.min(), ys.max()], [value - width, value + width])
    np.testing.assert_array_equal(band.get_facecolor()[0, :3], to_rgba(line.get_color())[:3])
    assert "SGD steps" in axes.get_xlabel() and "test risk" in axes.get_ylabel() and "loss per sample" in axes.get_ylabel()
    assert axes.get_legend() is None


def test_learning_curves_without_errors_have_no_band():
    assert not plot.learning_curve(single(errors=False)).collections
    assert not plot.learning_curve(single(), sigmas=0.0).collections


def test_learning_curves_share_axes_and_take_styles():
    _, axes = pyplot.subplots()
    for label, solution in (("a", single()), ("b", single(errors=False))):
        assert plot.learning_curve(solution, label=label, axes=axes, linewidth=3) is axes
    assert legend(axes) == ["a", "b"]
    assert [line.get_color() for line in axes.lines] == list(plot.COLORS[:2])
    assert {line.get_linewidth() for line in axes.lines} == {3}


def test_axes_that_hold_something_keep_their_colors_and_labels():
    _, axes = pyplot.subplots()
    axes.plot([0, 1], [0, 1])
    axes.set_ylabel("mine")
    plot.learning_curve(single(), axes=axes)
    assert to_rgba(axes.lines[1].get_color()) == to_rgba("C1")
    assert axes.get_ylabel() == "mine"


def test_several_columns_have_a_line_per_entry():
    solution = random_solution()
    axes = plot.learning_curve(solution, "teacher_overlap", label="theory")
    assert legend(axes) == [f"theory [{i}, {j}]" for i in range(2) for j in range(3)]
    for line, (i, j) in zip(axes.lines, np.ndindex(2, 3), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), solution.teacher_overlap[:, i, j])
    # The entry below the diagonal is the same by symmetry.
    assert legend(plot.learning_curve(solution, "student_overlap")) == ["[0, 0]", "[0, 1]", "[1, 1]"]
    axes = plot.learning_curve(solution, "student_overlap", entries=[(1, 0)])
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), solution.student_overlap[:, 1, 0])


def test_a_stationary_limit_is_a_horizontal_line_across():
    axes = plot.learning_curve(single())
    plot.learning_curve(stationary(), axes=axes, label="stationary")
    line = axes.lines[1]
    np.testing.assert_array_equal(line.get_ydata(), 2 * [float(stationary().test_risk[0])])
    assert line.get_transform() == axes.get_yaxis_transform() and line.get_linestyle() == "--"
    assert axes.lines[0].get_color() != line.get_color()
    assert axes.get_xlim()[1] < 2  # infinity did not enter the limits


def test_comparison_draws_a_line_and_points_with_error_bars():
    theory, runs = single(), simulation()
    axes = plot.comparison(theory, runs, "norm", sigmas=2.0, point_style={"marker": "s"})
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), theory.norm[:, 0, 0])
    (points,) = axes.containers
    np.testing.assert_array_equal(points.lines[0].get_ydata(), runs.norm[:, 0, 0])
    assert points.lines[0].get_marker() == "s"
    value, error = np.asarray(runs.norm[:, 0, 0]), np.asarray(runs.standard_error.norm[:, 0, 0])
    # Student's t for eight runs.
    width = 2.364624251592785 * error
    np.testing.assert_allclose(bars(points), np.stack([value - width, value + width], axis=1))
    assert points.lines[0].get_color() == axes.lines[0].get_color() == plot.COLORS[0]
    assert legend(axes) == ["theory", r"simulation ($\pm$2 s.e.)"]


def test_comparison_of_several_columns_pairs_colors():
    theory, runs = random_solution(), simulation(2, 3)
    axes = plot.comparison(theory, runs, "student_overlap")
    assert legend(axes) == ["[0, 0]", "[0, 1]", "[1, 1]", "theory", r"simulation ($\pm$2 s.e.)"]
    for container, (i, j), color in zip(axes.containers[:3], [(0, 0), (0, 1), (1, 1)], plot.COLORS[:3], strict=True):
        np.testing.assert_array_equal(container.lines[0].get_ydata(), runs.student_overlap[:, i, j])
        assert container.lines[0].get_color() == color


def test_comparison_without_standard_errors_has_plain_points():
    axes = plot.comparison(single(), single(errors=False))
    assert legend(axes) == ["theory", "simulation"] and not axes.containers[0].has_yerr


def test_schedule_draws_functions_and_protocols():
    rate = schedules.cosine(0.5, 2.0)
    protocol = dmftopt.Protocol(0.5, schedules.piecewise_linear(2.0, 2, jnp.asarray([1.0, 9.0])), 0.1)
    axes = plot.schedule(rate, 2.0, points=11, color="k")
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xdata(), np.linspace(0, 2, 11))
    np.testing.assert_allclose(line.get_ydata(), rate(np.linspace(0, 2, 11)))
    assert line.get_color() == "k" and axes.get_ylim()[0] == 0 and "learning rate" in axes.get_ylabel()
    axes = plot.schedule(protocol, 2.0, name="batch_size")
    np.testing.assert_allclose(axes.lines[0].get_ydata()[[0, -1]], [1.0, 9.0])
    assert "batch size" in axes.get_ylabel()
    np.testing.assert_allclose(plot.schedule(protocol, 2.0, name="ridge", points=2).lines[0].get_ydata(), [0.1, 0.1])
    axes = plot.schedule(lambda t: 3.0, 2.0, name="temperature", points=2)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [3.0, 3.0])
    assert axes.get_ylabel() == "temperature"


def test_kernel_fills_the_cell_around_each_pair_of_times():
    solution = random_solution()
    axes = plot.kernel(solution, "correlation", entry=(0, 1))
    mesh = the_mesh(axes)
    # Time t to the right: the first axis of the array is the second of the picture.
    np.testing.assert_array_equal(mesh.get_array(), solution.correlation[:, :, 0, 1].T)
    corners = mesh.get_coordinates()
    np.testing.assert_allclose(corners[0, :, 0], [0, 0.05, 0.2, 0.5, 1.1, 1.5])
    np.testing.assert_allclose(corners[:, 0, 1], [0, 0.05, 0.2, 0.5, 1.1, 1.5])
    bar = axes.figure.axes[1]
    assert "correlation" in bar.get_ylabel() and "[0, 1]" in bar.get_ylabel()
    # Negative values: colors around 0.
    assert mesh.norm.vmin == -mesh.norm.vmax


def test_kernel_of_the_response_is_left_out_before_the_kick():
    solution = single()
    axes = plot.kernel(solution, "response", cmap="magma")
    mesh = the_mesh(axes)
    shown = np.ma.filled(np.ma.masked_invalid(mesh.get_array()), np.nan).T
    later = np.arange(5)[:, None] > np.arange(4)
    np.testing.assert_array_equal(shown, np.where(later, solution.response[:, :, 0, 0], np.nan))
    np.testing.assert_allclose(mesh.get_coordinates()[:, 0, 1], [0.05, 0.2, 0.5, 1.1, 1.5])
    assert mesh.get_cmap().name == "magma" and axes.get_ylim() == (0, 1.5)


def test_kernel_of_positive_values_has_a_sequential_scale_and_the_colorbar_can_be_left_out():
    positive = single(observables=jax.tree.map(jnp.abs, random_observables(**SINGLE)))
    axes = plot.kernel(positive, colorbar=False)
    assert the_mesh(axes).get_cmap().name == "viridis" and len(axes.figure.axes) == 1


def test_margins_are_a_density_with_the_share_below_zero():
    margins = np.asarray([[-1.0, 0.5], [1.0, 2.0]])
    axes = plot.margins(margins, "at the end", bins=[-2.0, 0.0, 1.5, 3.0], histtype="bar")
    np.testing.assert_allclose([patch.get_height() for patch in axes.patches], [1 / 8, 2 / 6, 1 / 6])
    assert legend(axes) == ["at the end, 25.0% below 0"]
    plot.margins(margins, "weighted", weights=[[3.0, 1.0], [1.0, 1.0]], axes=axes)
    assert legend(axes)[1] == "weighted, 50.0% below 0"
    assert len(axes.lines) == 1  # one mark at 0


def test_landscape_marks_the_least_finite_value():
    x, y = np.asarray([0.1, 1.0, 10.0]), np.asarray([0.0, 1.0])
    values = np.asarray([[3.0, 2.0], [np.nan, 1.0], [np.inf, -np.inf]])
    axes = plot.landscape(x, y, values, labels=("learning rate", "ridge", "test risk"))
    np.testing.assert_array_equal(
        np.ma.filled(the_mesh(axes).get_array(), np.nan), np.where(np.isfinite(values), values, np.nan).T
    )
    (star,) = axes.lines
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (1.0, 1.0)
    assert legend(axes) == ["least: 1 at (1, 1)"]
    # Constant ratios: logarithmic, with cells as wide as the ratio.
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    np.testing.assert_allclose(the_mesh(axes).get_coordinates()[0, :, 0], 10.0 ** np.asarray([-1.5, -0.5, 0.5, 1.5]))
    np.testing.assert_allclose(the_mesh(axes).get_coordinates()[:, 0, 1], [-0.5, 0.5, 1.5])
    assert (axes.get_xlabel(), axes.figure.axes[1].get_ylabel()) == ("learning rate", "test risk")


def test_a_corner_that_blows_up_does_not_wash_out_the_landscape():
    values = np.linspace(1.0, 2.0, 20).reshape(4, 5)
    assert the_mesh(plot.landscape(range(4), range(5), values)).norm.vmax == 2.0
    values[-1, -1] = 1e6
    axes = plot.landscape(range(4), range(5), values)
    assert the_mesh(axes).norm.vmax < 2.0 and the_mesh(axes).colorbar.extend == "max"
    norm = matplotlib.colors.LogNorm()
    assert the_mesh(plot.landscape(range(4), range(5), values, norm=norm)).norm.vmax == 1e6
    assert the_mesh(plot.kernel(random_solution(), norm=matplotlib.colors.Normalize(-9, 9))).norm.vmax == 9


BAD = {
    "not a result": (lambda: plot.learning_curve(np.ones(3)), TypeError, "result must be an AbstractResult"),
    "unknown observable": (lambda: plot.learning_curve(single(), "risk"), ValueError, "observable must be one of test_risk"),
    "two times": (lambda: plot.learning_curve(single(), "correlation"), ValueError, r"Draw it with dmftopt\.plot\.kernel"),
    "no error rate": (lambda: plot.learning_curve(single(), "test_error"), ValueError, "result has no test_error. Only class"),
    "sigmas negative": (lambda: plot.learning_curve(single(), sigmas=-1.0), ValueError, "sigmas must be >= 0"),
    "entry outside": (
        lambda: plot.learning_curve(random_solution(), "norm", entries=[(0, 2)]), ValueError, r"within the columns \(2, 2\)"),
    "entry of a scalar": (lambda: plot.learning_curve(single(), entries=[(0, 0)]), ValueError, r"within the columns \(\)"),
    "several axes": (
        lambda: plot.learning_curve(single(), axes=pyplot.subplots(2)[1]), TypeError, "axes must be one matplotlib Axes"),
    "batched": (
        lambda: plot.learning_curve(jax.tree.map(lambda a: jnp.stack([a, a]), single())), ValueError, "axes of vmap"),
    "other columns": (lambda: plot.comparison(single(), simulation(2, 2), "norm"), ValueError, "must have the same columns"),
    "swapped": (lambda: plot.comparison(single(), stationary()), ValueError, "Pass it as theory"),
    "no simulation": (lambda: plot.comparison(single(), None), TypeError, "simulation must be a"),
    "no schedule": (lambda: plot.schedule(0.5, 1.0), TypeError, "schedule must be a function of t"),
    "no such schedule": (lambda: plot.schedule(dmftopt.Protocol(0.5), 1.0, name="momentum"), ValueError, "name must be one of"),
    "horizon zero": (lambda: plot.schedule(dmftopt.Protocol(0.5), 0.0), ValueError, "horizon must be > 0"),
    "one time": (lambda: plot.kernel(single(), "norm"), ValueError, "observable must be one of correlation, response"),
    "kernel entry": (lambda: plot.kernel(single(), entry=(1, 0)), ValueError, r"within the columns \(1, 1\), got \(1, 0\)"),
    "kernel at infinity": (lambda: plot.kernel(stationary()), ValueError, "result has a single time"),
    "no response": (
        lambda: plot.kernel(single(observables=random_observables(**SINGLE, without=("response",))), "response"),
        ValueError, "result has no response"),
    "all NaN": (
        lambda: plot.kernel(single(observables=jax.tree.map(lambda a: jnp.nan * a, random_observables(**SINGLE)))),
        ValueError, "result has no finite value of correlation"),
    "margins NaN": (lambda: plot.margins([0.1, np.nan]), ValueError, "margins must be finite"),
    "margins' weights": (lambda: plot.margins([0.1, 0.2], weights=[1.0]), ValueError, r"weights must have shape \(2,\)"),
    "margins empty": (lambda: plot.margins([]), ValueError, "margins is empty"),
    "x not sorted": (lambda: plot.landscape([2, 1], [0, 1], np.ones((2, 2))), ValueError, "x must hold .* increasing"),
    "y a number": (lambda: plot.landscape([1, 2], 1.0, np.ones(2)), ValueError, "y must hold at least two"),
    "transposed": (lambda: plot.landscape([1, 2, 3], [0, 1], np.ones((2, 3))), ValueError, r"shape \(3, 2\), got .* Transpose"),
    "nothing finite": (lambda: plot.landscape([1, 2], [0, 1], np.full((2, 2), np.nan)), ValueError, "no finite entry"),
}  # fmt: skip


@pytest.mark.parametrize("call, exception, message", BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused(call, exception, message):
    with pytest.raises(exception, match=message):
        call()


@pytest.mark.parametrize("module", ["matplotlib", "matplotlib.axes"])
def test_missing_matplotlib_names_the_cure(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'dmftopt\[plots\]'"):
        plot.learning_curve(single())


def test_importing_the_package_imports_no_matplotlib_and_no_xarray():
    code = "import sys, dmftopt; assert not {'matplotlib', 'xarray', 'pandas'} & set(sys.modules), 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
