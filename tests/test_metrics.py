"""Metrics: against the built-in observables, closed forms and SGD, and everywhere that observables go."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
import xarray
from helpers import problem
from jax.flatten_util import ravel_pytree
from matplotlib import pyplot
from test_results import assert_same, random_observables, random_solution, rewrite

import dmftopt
from dmftopt import metrics, tasks
from dmftopt.numerics.ties import shares_of_largest
from dmftopt.results.codes import blank

matplotlib.use("agg")
KEY = jax.random.key(7)
GRID = dmftopt.TimeGrid.uniform(1.5, 5)
PROTOCOL = dmftopt.Protocol(1.0, 2.0, 0.1)
TWO_GROUPS = dmftopt.features.spectrum([2.0, 0.5], [0.4, 0.6])
# Its fourth moment 3 / fraction = 6 tells whether theta_star has this law.
SPARSE = dmftopt.priors.Sparse(0.5)
EDGES = np.linspace(-9.0, 9.0, 37)


def of_sample(r, y):
    """The 0-1 error, y r, r, y, r², and something else that tells (r, y) from (-r, -y)."""
    return jnp.stack([jnp.where(r * y < 0, 1.0, 0.0), r * y, r, y, r**2, jnp.tanh(r) + jnp.exp(-y) * r**2 / 4])


def of_coordinate(theta, theta_star):
    """Of scalars or columns: theta theta^T, theta theta_star^T, theta_star^4 and cos(theta)."""
    theta, theta_star = jnp.atleast_1d(theta), jnp.atleast_1d(theta_star)
    second = jnp.outer(theta, jnp.concatenate([theta, theta_star]))
    return jnp.concatenate([second.ravel(), theta_star**4, jnp.cos(theta)])


ASKED = {
    "cost": metrics.Fields(tasks.Logistic().loss),
    "moments": metrics.Fields(of_sample),
    "confusion": metrics.Confusion(),
    "margin": metrics.Margins(EDGES),
    "entry": metrics.Weights(of_coordinate),
    "law": metrics.WeightHistogram(EDGES),
}


def solve(p, protocol=PROTOCOL, grid=GRID, *, metrics, key=KEY, **options):
    """Full-batch descent, which compiles fast."""
    descent = {"noise": dmftopt.noise.NoNoise(), "step": dmftopt.DiscreteStep(), "samples": 256}
    return dmftopt.solve(p, protocol, grid, metrics=metrics, key=key, **{**descent, **options})


@pytest.fixture(scope="module")
def logistic():
    """SGD with sign labels, of which the solver's samples have only those with y = 1: half of what a metric may tell apart. On
    several devices."""
    mesh = jax.make_mesh((min(4, jax.device_count()),), ("samples",))
    return dmftopt.solve(problem(), PROTOCOL, GRID, samples=2048, replicates=2, key=KEY, metrics=ASKED, mesh=mesh)


def test_metrics_that_are_observables(logistic):
    train, test = logistic.train_metrics, logistic.test_metrics
    np.testing.assert_allclose(train["cost"], logistic.train_loss, rtol=1e-13)
    np.testing.assert_allclose(train["moments"][:, 0], logistic.train_error, rtol=1e-13)
    np.testing.assert_allclose(logistic.standard_error.train_metrics["cost"], logistic.standard_error.train_loss, rtol=1e-9)
    # The fixed points' own accuracy, for a smooth function and for a jump.
    np.testing.assert_allclose(test["cost"], logistic.test_risk, atol=2e-5)
    np.testing.assert_allclose(test["moments"][:, 0], logistic.test_error, atol=4e-4)


def test_both_signs_of_a_label_count(logistic):
    aligned = logistic.teacher_overlap[:, 0, 0] * (2 / np.pi) ** 0.5  # E[w sign(w_star)], of a teacher field of variance 1
    for moments in (logistic.train_metrics["moments"], logistic.test_metrics["moments"]):
        np.testing.assert_allclose(moments[:, 2:4], 0.0, atol=1e-15)  # r and y themselves
    np.testing.assert_allclose(logistic.test_metrics["moments"][:, 1], aligned, atol=2e-5)
    np.testing.assert_allclose(logistic.test_metrics["moments"][:, 4], logistic.student_overlap[:, 0, 0], atol=1e-4)


def test_confusion_and_margins_contain_the_error(logistic):
    for values in (logistic.train_metrics, logistic.test_metrics):
        p, density, error = values["confusion"], values["margin"], values["moments"][:, 0]
        np.testing.assert_allclose(p.sum(axis=2), 0.5, rtol=1e-12)
        np.testing.assert_allclose(1 - p.trace(axis1=1, axis2=2), error, atol=1e-12)
        below = density[:, EDGES[:-1] < 0] @ np.diff(EDGES)[EDGES[:-1] < 0]
        np.testing.assert_allclose(below, error, atol=1e-12)
        np.testing.assert_allclose(density @ np.diff(EDGES), 1.0, rtol=1e-12)


def test_coordinates_have_the_norm_and_the_overlap(logistic):
    norm, overlap = logistic.norm[:, 0, 0], logistic.teacher_overlap[:, 0, 0]
    np.testing.assert_allclose(logistic.weight_metrics["entry"][:, 0], norm, rtol=1e-10)
    np.testing.assert_allclose(logistic.weight_metrics["entry"][:, 1], overlap, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(logistic.weight_metrics["entry"][:, 2], 3.0, rtol=2e-3)
    # All is Gaussian.
    density = np.diff(jax.scipy.stats.norm.cdf(EDGES / np.sqrt(norm)[:, None])) / np.diff(EDGES)
    np.testing.assert_allclose(logistic.weight_metrics["law"], density, atol=2e-3)


def test_values_outside_of_all_bins_fall_in_none():
    inside = metrics.Margins([-1.0, 0.0, 0.5])
    found = jax.vmap(lambda r: inside.of_sample(tasks.Logistic(), r, jnp.asarray(-1.0)))(jnp.asarray([2.0, 0.7, 0.0, -0.2, -0.5]))
    np.testing.assert_allclose(found, [[0, 0], [1, 0], [0, 2], [0, 2], [0, 0]])


def test_sampled_weights():
    p = problem(tasks.LeastSquares(0.2), TWO_GROUPS, teacher_prior=SPARSE)
    sampling = dmftopt.CausalInnovations(particles=2048, sample_weights=True)
    solution = solve(p, metrics={"entry": ASKED["entry"]}, solver=sampling)
    np.testing.assert_allclose(solution.weight_metrics["entry"][:, 0], solution.norm[:, 0, 0], rtol=1e-10)
    np.testing.assert_allclose(solution.weight_metrics["entry"][:, 2], 6.0, rtol=0.05)


@pytest.mark.slow
def test_classes_of_clusters_in_columns():
    task = tasks.GaussianMixture((0, 1, 2, 1), (0.1, 0.2, 0.3, 0.4), loss="softmax")
    p = problem(task, TWO_GROUPS, teacher_prior=SPARSE, teacher_scale=1.5, student_scale=0.3)
    asked = {name: ASKED[name] for name in ("confusion", "margin", "entry")}
    solution = solve(p, metrics={**asked, "cost": metrics.Fields(task.loss)})
    np.testing.assert_allclose(solution.train_metrics["cost"], solution.train_loss, rtol=1e-12)
    np.testing.assert_allclose(solution.test_metrics["cost"], solution.test_risk, rtol=3e-3)
    results = (solution.train_metrics, solution.train_error, 1e-12), (solution.test_metrics, solution.test_error, 3e-3)
    for values, error, slack in results:
        confusion, below = values["confusion"], EDGES[:-1] < 0
        assert confusion.shape == (6, 3, 3)
        of_class = 1 - confusion.diagonal(axis1=1, axis2=2) / confusion.sum(axis=2)
        np.testing.assert_allclose(jnp.sum(of_class * confusion.sum(axis=2), axis=1), error, atol=slack)
        np.testing.assert_allclose(confusion.sum(axis=2)[-1], [0.1, 0.6, 0.3], atol=4e-3)
        np.testing.assert_allclose(values["margin"][:, below] @ np.diff(EDGES)[below], 1 - confusion.trace(axis1=1, axis2=2))
    entry = solution.weight_metrics["entry"]
    np.testing.assert_allclose(entry[:, :21].reshape(6, 3, 7)[:, :, :3], solution.norm, atol=1e-10)
    np.testing.assert_allclose(entry[:, 21:25], 1.5**4 * 6.0, rtol=0.01)


@pytest.mark.slow
@pytest.mark.long_run
def test_against_sgd_without_retracing_for_other_numbers(logistic):
    traces = 0

    def counted(width, r, y):
        nonlocal traces
        traces += 1
        return r > width

    def sgd(width):
        options = {"horizon": 1.5, "records": GRID.times, "dimension": 200, "runs": 24, "key": jax.random.key(1)}
        asked = {name: ASKED[name] for name in ("confusion", "margin", "moments", "entry")}
        asked["counted"] = metrics.Fields(jax.tree_util.Partial(counted, width))
        return dmftopt.simulate.sgd(problem(), PROTOCOL, **options, metrics=asked)

    differences = dmftopt.compare(logistic, sgd(1.0)).differences
    names = differences.keys() - dmftopt.Observables.__dataclass_fields__.keys()
    assert len(names) == 7
    for name in names:
        assert differences[name].excess(sigmas=4.0, relative=0.01) <= 0, name
    once = traces
    sgd(2.0)
    assert traces == once + 1  # at the front door, where shapes are checked


@pytest.mark.slow
def test_fixed_point_and_online():
    p, grid = problem(tasks.Logistic("probit"), student_scale=0.3), dmftopt.TimeGrid.uniform(1.0, 3)
    asked = {name: ASKED[name] for name in ("cost", "moments", "entry")}
    solution = solve(p, grid=grid, samples=1000, metrics=asked, solver=dmftopt.FixedPoint())
    for result in (solution, dmftopt.limits.online(p, PROTOCOL, grid, metrics=asked)):
        np.testing.assert_allclose(result.train_metrics["cost"], result.train_loss, atol=1e-4)
        np.testing.assert_allclose(result.test_metrics["cost"], result.test_risk, atol=1e-4)
        np.testing.assert_allclose(result.train_metrics["moments"][:, 2:4], 0.0, atol=1e-15)
        np.testing.assert_allclose(result.weight_metrics["entry"][:, 0], result.norm[:, 0, 0], rtol=1e-9)
        np.testing.assert_allclose(result.weight_metrics["entry"][:, 1], result.teacher_overlap[:, 0, 0], rtol=1e-9, atol=1e-12)


class Bump(eqx.Module):
    """With a parameter of its own."""

    width: jax.Array

    def __call__(self, a, b):
        return jnp.stack([jnp.exp(-((a / self.width) ** 2)), jnp.tanh(a - 0.3 * b)])


def final_metrics(values):
    features = dmftopt.features.Features(values["eigenvalues"], jnp.asarray([0.4, 0.6]))
    p = dmftopt.Problem(tasks.Logistic("probit"), features, values["delta"], values["teacher_scale"], values["student_scale"])
    bump = Bump(values["width"])
    asked = {"field": metrics.Fields(bump), "entry": metrics.Weights(bump)}
    s = solve(p, dmftopt.Protocol(values["rate"]), dmftopt.TimeGrid.uniform(1.5, 2), samples=64, metrics=asked)
    return jnp.concatenate([s.train_metrics["field"][-1], s.test_metrics["field"][-1], s.weight_metrics["entry"][-1]])


@pytest.mark.slow
def test_gradients_equal_central_differences():
    """In parameters of the problem, the protocol and the metrics; all at once, by vmap over problems."""
    values = {
        "rate": jnp.asarray(0.8),
        "delta": jnp.asarray(1.5),
        "teacher_scale": jnp.asarray([1.0, 0.8]),
        "student_scale": jnp.asarray([0.5, 0.4]),
        "eigenvalues": jnp.asarray([2.0, 0.5]),
        "width": jnp.asarray(1.3),
    }
    flat, unravel = ravel_pytree(values)
    weights = jnp.asarray([1.0, -0.7, 0.6, 1.1, -0.8, 0.5])  # each of train, test and weight metrics has its part

    def f(x):
        return final_metrics(unravel(x)) @ weights

    h = 1e-5  # as in test_gradients.py
    moves = h * jnp.asarray([1.0, -1.0, 2.0, -2.0])[:, None, None] * jnp.eye(flat.size)[None]
    points = jnp.concatenate([flat[None], (flat[None, None] + moves).reshape(-1, flat.size)])
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(f)))(points)
    ahead, back, far, behind = values[1:].reshape(4, flat.size)
    slopes = (8 * (ahead - back) - (far - behind)) / (12 * h)
    np.testing.assert_allclose(gradients[0], slopes, rtol=1e-6, atol=1e-7)


def with_metrics(observables, seed=0):
    rng = np.random.default_rng(seed)
    return dataclasses.replace(
        observables,
        train_metrics={"a": jnp.asarray(rng.normal(size=5)), "b": jnp.asarray(rng.normal(size=(5, 2, 3)))},
        test_metrics={"a": jnp.asarray(rng.normal(size=5)), "b": jnp.asarray(rng.normal(size=(5, 2, 3)))},
        weight_metrics={"c": jnp.asarray(rng.normal(size=(5, 4)))},
    )


def stored(**changes):
    fields = {"observables": with_metrics(random_observables()), "replicated": with_metrics(random_observables(seed=1), 1)}
    return random_solution(**{**fields, **changes})


def test_saved_and_loaded(tmp_path):
    dmftopt.save(tmp_path / "s.npz", stored())
    assert_same(dmftopt.load(tmp_path / "s.npz"), stored())
    with np.load(tmp_path / "s.npz") as arrays:
        np.testing.assert_array_equal(arrays["observables.train_metrics.b"], stored().train_metrics["b"])


def test_files_from_before_metrics_load(tmp_path):
    dmftopt.save(tmp_path / "s.npz", random_solution())

    def older(header):
        for part in ("observables", "replicated"):
            fields = header["result"]["fields"][part]["fields"]
            for kind in ("train", "test", "weight"):
                del fields[f"{kind}_metrics"]

    rewrite(tmp_path / "s.npz", older)
    assert_same(dmftopt.load(tmp_path / "s.npz"), random_solution())


def test_labeled_arrays(tmp_path):
    data = stored().to_xarray()
    assert data.train_b.dims == data.test_b.dims == ("time", "b_0", "b_1") and data.weight_c.dims == ("time", "c_0")
    np.testing.assert_array_equal(data.test_b, stored().test_metrics["b"])
    np.testing.assert_array_equal(data.weight_c_standard_error, stored().standard_error.weight_metrics["c"])
    assert data.train_a.attrs["long_name"] == "a, mean over training samples"
    data.to_netcdf(tmp_path / "s.nc", engine="scipy")
    xarray.testing.assert_equal(xarray.load_dataset(tmp_path / "s.nc", engine="scipy"), data)


def test_compared_plotted_and_blanked():
    solution = stored()
    difference = dmftopt.compare(solution, stored(observables=with_metrics(random_observables(), 2))).differences["weight_c"]
    np.testing.assert_allclose(
        difference.standard_error, 3.182446305284263 / 2**0.5 * np.abs(solution.standard_error.weight_metrics["c"])
    )
    axes = dmftopt.plot.learning_curve(solution, "test_b")
    np.testing.assert_array_equal(axes.lines[5].get_ydata(), solution.test_metrics["b"][:, 1, 2])
    assert axes.get_ylabel() == "b, mean over fresh samples"
    good = jnp.arange(5) < 3
    failed = blank(solution.observables, good)
    assert np.isfinite(failed.train_metrics["b"][:3]).all() and np.isnan(failed.weight_metrics["c"][3:]).all()
    pyplot.close("all")


def test_margins_of_a_result_can_be_drawn(logistic):
    density = logistic.test_metrics["margin"][-1]
    axes = dmftopt.plot.margins(density, "at the end", edges=EDGES)
    np.testing.assert_array_equal(axes.patches[0].get_data().values, density)
    assert "margin" in axes.get_xlabel() and len(axes.lines) == 1
    pyplot.close("all")
    with pytest.raises(ValueError, match=r"margins must have shape \(36,\).*of a single time"):
        dmftopt.plot.margins(logistic.test_metrics["margin"], edges=EDGES)


def ask(task=tasks.LeastSquares(), **asked):
    return lambda: solve(problem(task), metrics=asked)


BAD = {
    "no dict": (lambda: solve(problem(), metrics=metrics.Confusion()), TypeError, "metrics must be a dict"),
    "no metric": (ask(a=jnp.abs), TypeError, r"metrics\['a'\] must be a metric.*dmftopt\.metrics\.Fields"),
    "a class": (ask(a=metrics.Confusion), TypeError, r"metrics\['a'\] must be a metric"),
    "name with a blank": (ask(**{"a b": ASKED["cost"]}), ValueError, "a name must be a Python identifier, got 'a b'"),
    "name a number": (lambda: solve(problem(), metrics={1: ASKED["cost"]}), ValueError, "Python identifier, got 1"),
    "train_loss": (ask(loss=ASKED["cost"]), ValueError, "the name 'loss' would collide"),
    "standard error": (ask(a_standard_error=ASKED["cost"]), ValueError, "would collide"),
    "axis": (ask(time=ASKED["cost"]), ValueError, "the name 'time' would collide"),
    "no function": (lambda: metrics.Fields(3.0), TypeError, r"function must be a function of \(r, y\)"),
    "no function of weights": (lambda: metrics.Weights(None), TypeError, r"function must be a function of \(theta, theta_star\)"),
    "a pair": (ask(a=metrics.Fields(lambda r, y: (r, y))), TypeError, r"metrics\['a'\] must return a JAX array, got tuple"),
    "nothing": (ask(a=metrics.Weights(lambda t, s: None)), TypeError, "must return a JAX array, got NoneType"),
    "complex": (ask(a=metrics.Fields(lambda r, y: jax.lax.complex(r, y))), TypeError, "must return real numbers, got complex"),
    "empty": (ask(a=metrics.Fields(lambda r, y: jnp.zeros(0))), TypeError, r"of shape \(0,\)"),
    "margins of a regression": (ask(a=ASKED["margin"]), ValueError, "Margins is for classification: LeastSquares has no scores"),
    "confusion of a regression": (ask(a=metrics.Confusion()), ValueError, "Confusion is for classification"),
    "edges not increasing": (lambda: metrics.Margins([0.0, 1.0, 1.0]), ValueError, "edges must be increasing"),
    "one edge": (lambda: metrics.WeightHistogram([0.0]), ValueError, "edges must be one-dimensional with at least two"),
    "edges a number": (lambda: metrics.Margins(3), ValueError, "edges must be one-dimensional"),
    "edges NaN": (lambda: metrics.Margins([0.0, float("nan")]), ValueError, "edges must be finite"),
    "in a simulation": (
        lambda: dmftopt.simulate.sgd(problem(), PROTOCOL, horizon=2.0, dimension=20, runs=1, key=KEY, metrics=[1]),
        TypeError, "metrics must be a dict"),
    "online": (lambda: dmftopt.limits.online(problem(), PROTOCOL, GRID, metrics=[1]), TypeError, "metrics must be a dict"),
}  # fmt: skip


@pytest.mark.parametrize("call, exception, message", BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused(call, exception, message):
    with pytest.raises(exception, match=message):
        call()


SHIFTED = metrics.Shifted([1.0, 3.0])


@pytest.mark.parametrize(
    "task", [tasks.LeastSquares(0.5), pytest.param(tasks.Softmax(3), marks=pytest.mark.slow)], ids=["least squares", "softmax"]
)
def test_risk_on_other_features(task):
    """On the problem's own eigenvalues it is the test risk, and overlaps are sums over the groups."""
    p = problem(task, TWO_GROUPS)
    same = metrics.Shifted(TWO_GROUPS.eigenvalues)
    found = solve(p, metrics={"same": same, "other": SHIFTED})
    own = same.test_risk(found.weight_metrics["same"], task)
    np.testing.assert_allclose(own, found.test_risk, rtol=1e-6)
    if task.columns is None:
        one = metrics.Shifted([1.0, 0.0]), metrics.Shifted([0.0, 1.0])
        a, b = (solve(p, metrics={"part": part}).weight_metrics["part"] for part in one)
        np.testing.assert_allclose(found.weight_metrics["other"], a + 3.0 * b, rtol=1e-9, atol=1e-12)
        assert same.test_error(found.weight_metrics["same"], task) is None
    else:
        np.testing.assert_allclose(same.test_error(found.weight_metrics["same"], task), found.test_error, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.long_run
def test_risk_on_other_features_is_that_of_sgd():
    p, protocol = problem(tasks.LeastSquares(0.5), TWO_GROUPS, delta=1e6), dmftopt.Protocol(0.8)
    real = dmftopt.simulate.sgd(
        problem(tasks.LeastSquares(0.5), TWO_GROUPS, delta=8.0),
        protocol, horizon=1.5, dimension=200, runs=64, key=KEY, records=GRID.times, metrics={"other": SHIFTED}, order="shuffled",
    )  # fmt: skip
    exact = dmftopt.limits.online(p, protocol, GRID, metrics={"other": SHIFTED})
    risks = [SHIFTED.test_risk(result.weight_metrics["other"], p.task) for result in (real, exact)]
    # 64 runs leave 1% open, d = 200 another.
    np.testing.assert_allclose(*risks, rtol=0.03)
    assert np.max(np.abs(risks[1] / exact.test_risk - 1)) > 0.2


def test_what_other_features_cannot_be():
    for wrong, match in ((metrics.Shifted([1.0]), "2 groups"), (metrics.Shifted([1.0, 2.0, 3.0]), "2 groups")):
        with pytest.raises(ValueError, match=match):
            solve(problem(tasks.LeastSquares(0.5), TWO_GROUPS), metrics={"other": wrong})
    with pytest.raises(ValueError, match="must be >= 0"):
        metrics.Shifted([1.0, -1.0])
    mixture = dmftopt.Problem(tasks.GaussianMixture([-1, 1], [0.5, 0.5], "logistic"), TWO_GROUPS, delta=2.0)
    with pytest.raises(ValueError, match="mixture"):
        solve(mixture, metrics={"other": SHIFTED})


def test_what_is_as_large_up_to_rounding_ties():
    scores = jnp.asarray([[1.0, -2.0, 0.0], [1.0 - 1e-14, -2.1, 0.0], [0.5, -3.0, 0.0]])
    expected = [[0.5, 1.0, 1 / 3], [0.5, 0.0, 1 / 3], [0.0, 0.0, 1 / 3]]
    np.testing.assert_allclose(shares_of_largest(scores), expected)
