"""Results travel: to xarray, and to disk and back bit for bit, whole or not at all."""

import functools
import io
import json
import os
import signal
import subprocess
import sys
import typing
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

import dmftopt
from dmftopt import schedules, storage
from dmftopt._register import registered
from dmftopt.design import Score
from dmftopt.dmft._solution import Statistics
from dmftopt.results._dataset import DESCRIPTIONS

PROBLEM = dmftopt.Problem(dmftopt.tasks.LeastSquares(), dmftopt.features.isotropic(), delta=2.0)
GRID = dmftopt.TimeGrid.geometric(2.0, 4)


def random_observables(steps=4, students=2, teachers=3, dtype=np.float64, seed=0, without=()):
    rng = np.random.default_rng(seed)
    shapes = {
        "test_risk": (steps + 1,),
        "train_loss": (steps + 1,),
        "student_overlap": (steps + 1, students, students),
        "teacher_overlap": (steps + 1, students, teachers),
        "correlation": (steps + 1, steps + 1, students, students),
        "norm": (steps + 1, students, students),
        "response": (steps + 1, steps, students, students),
    }
    values = {name: jnp.asarray(rng.normal(size=shape), dtype=dtype) for name, shape in shapes.items()}
    values.update(dict.fromkeys(without))
    return dmftopt.Observables(**values, test_error=None, train_error=None)


def random_solution(dtype=np.float64, **changes):
    fields = {
        "times": jnp.asarray([0.0, 0.1, 0.3, 0.7, 1.5], dtype=dtype),
        "observables": random_observables(dtype=dtype),
        "replicated": random_observables(dtype=dtype, seed=1),
        "half_difference": None,
        "bias_error": None,
        "level_difference": None,
        "stiffness": jnp.zeros(4, dtype),
        "stability": jnp.asarray([0.1, 0.2, 0.1, 0.4], dtype=dtype),
        "result": dmftopt.RESULTS.successful,
        "stats": Statistics(samples=64, replicates=4, steps=4, richardson=True),
    }
    return dmftopt.Solution(**{**fields, **changes})


def found():
    protocol = dmftopt.Protocol(
        schedules.piecewise_linear(2.0, 3, 0.5, log=True), schedules.power_law(4.0, 0.5), jnp.asarray(0.1)
    )
    scores = {"optimized": Score(0.25, float("inf"), 3), "initial": Score(float("nan"), 0.1)}
    tuned = dmftopt.baselines(protocol, horizon=2.0, peak=1.0) | {"odd/name.of mine": protocol}
    return dmftopt.Optimized(protocol, 0.1 + 0.2, np.asarray([1.0, np.nan]), scores, tuned)


@dmftopt.register
class Sweep(dmftopt.results.AbstractResult):
    """A result type of a user's own, with results inside."""

    times: jax.Array
    observables: dmftopt.Observables
    replicated: dmftopt.Observables | None
    solutions: list[dmftopt.Solution]
    label: str = eqx.field(static=True, default="none")

    def _attributes(self):
        return {"label": self.label}


@dmftopt.register
class Staircase(eqx.Module):
    """A user's own schedule."""

    height: jax.Array

    def __call__(self, t):
        return self.height * jnp.floor(t)


RECIPES = {
    "sweep": lambda: Sweep(jnp.arange(5.0), random_observables(), None, [random_solution(), random_solution(np.float32)], "mine"),
    "optimized schedule of mine": lambda: dmftopt.Optimized(
        dmftopt.Protocol(Staircase(jnp.asarray(0.5))), 0.1, np.ones(1), None, {}
    ),
    "solution": lambda: dmftopt.solve(
        PROBLEM,
        dmftopt.Protocol(0.5),
        GRID,
        samples=64,
        replicates=2,
        key=jax.random.key(0),
    ),
    "solution with a bias": lambda: random_solution(
        half_difference=random_observables(seed=2),
        bias_error=random_observables(seed=3),
        level_difference=random_observables(seed=4),
    ),
    "failed solution": lambda: random_solution(
        observables=jax.tree.map(lambda a: a.at[2:].set(jnp.nan), random_observables()), result=dmftopt.RESULTS.diverged
    ),
    "float32": lambda: random_solution(np.float32, replicated=None),
    "vmapped": lambda: jax.tree.map(lambda a: jnp.stack([a, a]), random_solution()),
    "simulation": lambda: dmftopt.simulate.sgd(
        PROBLEM, dmftopt.Protocol(0.5), horizon=2.0, dimension=20, runs=2, key=jax.random.key(0), records=4
    ),
    "limit": lambda: dmftopt.limits.Limit(jnp.arange(5.0), random_observables(students=1, without=("response",))),
    "stationary limit": lambda: dmftopt.limits.Limit(jnp.full(1, jnp.inf), random_observables(steps=0)),
    "response": lambda: dmftopt.simulate.Response(jnp.arange(3.0), jnp.ones(3), None),
    "optimized": found,
}


@functools.cache
def result(name):
    """Each is computed once."""
    return RECIPES[name]()


def assert_same(loaded, expected):
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)  # classes, None entries and static fields too
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array) == isinstance(b, jax.Array)
        assert isinstance(a, np.ndarray) == isinstance(b, np.ndarray)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def rewrite(path, change):
    """The file with another header."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(members["header.json"])
    change(header)
    members["header.json"] = json.dumps(header).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("name", RECIPES)
def test_a_loaded_result_is_the_saved_one_bit_for_bit(name, tmp_path):
    saved = result(name)
    dmftopt.save(tmp_path / "new folder" / "result.npz", saved)
    assert [file.name for file in (tmp_path / "new folder").iterdir()] == ["result.npz"]
    loaded = dmftopt.load(tmp_path / "new folder" / "result.npz")
    assert type(loaded) is type(saved)
    assert_same(loaded, saved)


def test_names_in_files_stay():
    """Of classes in files that were written before: they may move, not change their names."""
    results = ["Solution", "Simulation", "Limit", "Response", "Optimized", "Report", "Certificate", "Sensitivity"]
    parts = ["Observables", "Statistics", "Score", "Protocol", "Plan", "Estimate", "Row", "Above", "Between", "Constant"]
    parts += ["PiecewiseLinear", "PiecewiseConstant", "PerStep", "Decay", "PowerLaw", "WarmupStableDecay", "Scaled"]
    assert all(registered(name).__name__ == name for name in results + parts)


def test_a_class_not_registered_is_named(tmp_path):
    class Other(eqx.Module):
        times: jax.Array

    with pytest.raises(TypeError, match=r"got Other\..*dmftopt\.register"):
        dmftopt.save(tmp_path / "s.npz", Other(jnp.ones(2)))
    with pytest.raises(TypeError, match=r"result.solutions.0 is a Other.*dmftopt\.register"):
        dmftopt.save(tmp_path / "s.npz", eqx.tree_at(lambda s: s.solutions, result("sweep"), [Other(jnp.ones(2))]))


def test_names_of_registered_classes_are_unique():
    with pytest.raises(ValueError, match=r"Solution already. Give your class another name"):
        dmftopt.register(type("Solution", (eqx.Module,), {}))
    with pytest.raises(TypeError, match="Only fields can be stored"):
        dmftopt.register(type("Plain", (), {}))
    assert dmftopt.register(Staircase) is Staircase  # again, as in a notebook


def test_loaded_results_serve_like_the_originals(tmp_path):
    dmftopt.save(tmp_path / "solution", result("solution"))
    solution = dmftopt.load(tmp_path / "solution")
    assert solution.result == dmftopt.RESULTS.successful
    assert dmftopt.compare(solution, result("solution")).agrees(0.0, 0.0)
    dmftopt.save(tmp_path / "found", found())
    np.testing.assert_array_equal(
        dmftopt.load(tmp_path / "found").protocol.learning_rate(GRID.times), found().protocol.learning_rate(GRID.times)
    )


def test_numpy_reads_the_arrays(tmp_path):
    solution = random_solution()
    dmftopt.save(tmp_path / "s.npz", solution)
    with np.load(tmp_path / "s.npz") as arrays:
        np.testing.assert_array_equal(arrays["observables.correlation"], solution.correlation)
        np.testing.assert_array_equal(arrays["replicated.test_risk"], solution.standard_error.test_risk)


def test_float64_survives_a_session_without_it(tmp_path):
    solution = random_solution()
    dmftopt.save(tmp_path / "s.npz", solution)
    with jax.enable_x64(False):
        loaded = dmftopt.load(tmp_path / "s.npz")
    assert isinstance(loaded.test_risk, np.ndarray)
    assert np.asarray(loaded.test_risk).tobytes() == np.asarray(solution.test_risk).tobytes()


def test_result_codes_are_stored_by_name(tmp_path):
    # A later version may have its codes in another order.
    dmftopt.save(tmp_path / "s.npz", random_solution(result=dmftopt.RESULTS.diverged))

    def shuffle(header):
        names = header["result"]["fields"]["result"]["names"]
        one, other = names.index("diverged"), names.index("nonfinite")
        names[one], names[other] = names[other], names[one]

    rewrite(tmp_path / "s.npz", shuffle)
    assert dmftopt.load(tmp_path / "s.npz").result == dmftopt.RESULTS.nonfinite


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("where", ["write_array", "fsync"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, error, where):
    path = tmp_path / "s.npz"
    dmftopt.save(path, random_solution())
    before, count = path.read_bytes(), 0

    def fail(*args, **kwargs):
        nonlocal count
        count += 1
        if where == "fsync" or count == 3:  # in the middle of the file
            raise error
        return write_array(*args, **kwargs)

    write_array = np.lib.format.write_array
    monkeypatch.setattr(*((np.lib.format, "write_array") if where == "write_array" else (os, "fsync")), fail)
    with pytest.raises(error):
        dmftopt.save(path, random_solution(np.float32))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "s.npz"
    dmftopt.save(path, random_solution())
    before = path.read_bytes()
    # The module alone, without JAX: a process of 0.1 s.
    source = Path(dmftopt.__file__).with_name("_files.py")
    script = f"""
import runpy, time
def write(file):
    file.write(b"half a result")
    file.flush()
    print("half", flush=True)
    time.sleep(60)
runpy.run_path({str(source)!r})["write_atomically"]({str(path)!r}, write)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGKILL)
    assert path.read_bytes() == before
    assert_same(dmftopt.load(path), random_solution())


def test_a_link_to_a_file_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    dmftopt.save(tmp_path / "link", random_solution())
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").is_file()


def test_cut_short_or_changed_files_are_refused(tmp_path):
    dmftopt.save(tmp_path / "s.npz", random_solution())
    whole = (tmp_path / "s.npz").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "s.npz").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut short"):
            dmftopt.load(tmp_path / "s.npz")
    # One bit of an array's last number.
    at = whole.index(bytes(np.asarray(random_solution().train_loss[-1]).tobytes()))
    (tmp_path / "s.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match=r"damaged.*train_loss"):
        dmftopt.load(tmp_path / "s.npz")


def test_no_flipped_bit_gives_other_numbers(tmp_path):
    dmftopt.save(tmp_path / "s.npz", random_solution())
    whole = (tmp_path / "s.npz").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for at in rng.integers(len(whole), size=100):
        flipped = whole[at] ^ (1 << int(rng.integers(8)))
        (tmp_path / "s.npz").write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :])
        try:
            loaded = dmftopt.load(tmp_path / "s.npz")
        except ValueError:
            refused += 1
        else:
            assert_same(loaded, random_solution())  # the archive's dates and the like
    assert refused > 50


def newer(header):
    header["format_version"] = storage.FORMAT_VERSION + 1


def another(header):
    header["format"] = "spam"


def more(header):
    header["result"]["fields"]["observables"]["fields"]["fisher"] = None


def less(header):
    del header["result"]["fields"]["times"]


def unknown(header):
    header["result"]["class"] = "os.system"


def gone(header):
    header["result"]["fields"]["times"]["array"] = "elsewhere"


@pytest.mark.parametrize(
    "change, message",
    [
        (newer, "format version 3.*reads version 2.*Use that version"),
        (another, "no file of dmftopt.save.*spam"),
        (more, "Observables has no fisher"),
        (less, "Solution lacks times"),
        (unknown, "os.system"),
        (gone, "elsewhere"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_files_of_other_versions_are_refused(tmp_path, change, message):
    dmftopt.save(tmp_path / "s.npz", random_solution())
    rewrite(tmp_path / "s.npz", change)
    with pytest.raises(ValueError, match=message):
        dmftopt.load(tmp_path / "s.npz")


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        dmftopt.load(tmp_path / "none.npz")
    np.savez(tmp_path / "foreign.npz", times=np.ones(3))
    (tmp_path / "text.npz").write_text("times")
    for name in ("foreign.npz", "text.npz"):
        with pytest.raises(ValueError, match=r"no file of dmftopt\.save"):
            dmftopt.load(tmp_path / name)


BAD = {
    "not a result": (
        lambda: random_observables(),
        r"result must be one of .*Solution.*got Observables\..*dmftopt\.register",
    ),
    "function in a protocol": (
        lambda: dmftopt.Optimized(dmftopt.Protocol(lambda t: t), 0.0, np.ones(1), None, {}),
        "result.protocol.learning_rate is a function.*piecewise_linear",
    ),
    "optax schedule": (
        lambda: dmftopt.Optimized(dmftopt.Protocol(schedules.from_optax(abs, 10)), 0.0, np.ones(1), None, {}),
        "result.protocol.learning_rate is a FromOptax",
    ),
    "keys": (
        lambda: eqx.tree_at(lambda s: s.times, random_solution(), jax.random.split(jax.random.key(0), 5)),
        "result.times has the dtype key",
    ),
}


@pytest.mark.parametrize("make, message", BAD.values(), ids=BAD.keys())
def test_what_cannot_be_stored_is_refused_and_nothing_is_written(tmp_path, make, message):
    with pytest.raises(TypeError, match=message):
        dmftopt.save(tmp_path / "s.npz", make())
    assert not list(tmp_path.iterdir())


def test_traced_results_are_refused(tmp_path):
    def inside(scale):
        solution = random_solution(times=scale * jnp.arange(5.0))
        with pytest.raises(TypeError, match="being traced"):
            dmftopt.save(tmp_path / "s.npz", solution)
        with pytest.raises(TypeError, match="being traced"):
            solution.to_xarray()
        return scale

    jax.jit(inside)(1.0)


def test_every_observable_is_described():
    # With as many axes as its annotation says.
    fields = {name: field for name, field in dmftopt.Observables.__dataclass_fields__.items() if "metrics" not in name}
    assert DESCRIPTIONS.keys() == fields.keys()
    for name, field in fields.items():
        annotation = (*typing.get_args(field.type), field.type)[0]  # the array's, of "array or None"
        assert len(DESCRIPTIONS[name].dims) == len(annotation.dim_str.split()), name


def test_xarray_has_named_axes_coordinates_and_attributes():
    solution = random_solution(half_difference=random_observables(seed=2))
    dataset = solution.to_xarray()
    assert dict(dataset.sizes) == {"time": 5, "time_2": 5, "step": 4, "student": 2, "student_2": 2, "teacher": 3}
    assert dataset.test_risk.dims == ("time",)
    assert dataset.teacher_overlap.dims == ("time", "student", "teacher")
    assert dataset.correlation.dims == ("time", "time_2", "student", "student_2")
    assert dataset.response.dims == ("time", "step", "student", "student_2")
    assert "test_error" not in dataset and "test_error_standard_error" not in dataset
    for name, value in solution.observables.arrays().items():
        np.testing.assert_array_equal(dataset[name], value)
        np.testing.assert_array_equal(dataset[f"{name}_standard_error"], solution.standard_error.arrays()[name])
        np.testing.assert_array_equal(dataset[f"{name}_bias"], solution.bias.arrays()[name])
        assert dataset[name].attrs["long_name"] and dataset[name].attrs["units"]
    # By time, not by index: what the coordinates are for.
    assert float(dataset.test_risk.sel(time=0.3)) == float(solution.test_risk[2])
    assert float(dataset.correlation.sel(time=0.7, time_2=0.1)[0, 1]) == float(solution.correlation[3, 1, 0, 1])
    np.testing.assert_array_equal(dataset.kick_time, solution.times[1:])
    assert dataset.time.attrs == {"long_name": "time", "units": "SGD steps / dimension"}
    assert dataset.attrs["type"] == "Solution" and dataset.attrs["result"] == "successful"
    assert (dataset.attrs["samples"], dataset.attrs["richardson"]) == (64, 1)


@pytest.mark.parametrize("name", ["failed solution", "simulation", "limit", "stationary limit"])
def test_xarray_of_every_kind_can_be_written_as_netcdf(name):
    original = result(name)
    dataset = original.to_xarray()
    again = xarray.load_dataset(io.BytesIO(bytes(dataset.to_netcdf(engine="scipy"))), engine="scipy")
    xarray.testing.assert_equal(again, dataset)
    assert again.attrs["type"] == type(original).__name__
    assert ("test_risk_standard_error" in dataset) == (original.replicated is not None)
    expected = {"failed solution": ("result", "diverged"), "simulation": ("runs", 2)}.get(name, ("type", "Limit"))
    assert dataset.attrs[expected[0]] == expected[1]


def test_xarray_of_batched_results_names_the_cure():
    batched = result("vmapped")
    with pytest.raises(ValueError, match=r"axes of vmap. Take one of them: jax.tree.map"):
        batched.to_xarray()
    one = jax.tree.map(lambda a: a[1], batched)
    np.testing.assert_array_equal(one.to_xarray().test_risk, random_solution().test_risk)


def test_missing_xarray_names_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"pip install 'dmftopt\[xarray\]'"):
        random_solution().to_xarray()
