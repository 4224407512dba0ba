"""The tasks: closed forms, label laws, derivatives, and the solver with each kind of loss."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import central_difference, problem
from scipy import integrate, special, stats

import dmftopt
from dmftopt import tasks
from dmftopt.tasks import columns

MARGIN = {
    "logistic": tasks.Logistic,
    "probit": tasks.Probit,
    "hinge": tasks.Hinge,
    "squared hinge": tasks.SquaredHinge,
    "perceptron": tasks.Perceptron,
}


class Lapsing(tasks.labels.AbstractLabels):
    """An own label law: an observer who now and then answers without looking."""

    lapse: Any

    def probability(self, w_star):
        return 0.5 * self.lapse + (1 - self.lapse) * jax.scipy.special.ndtr(w_star)


class Steep(tasks.labels.AbstractLabels):
    """An own label law that a shipped one can check: logistic labels of `slope` times the teacher."""

    slope: Any

    def probability(self, w_star):
        return jax.nn.sigmoid(self.slope * w_star)


LAWS = {
    "sign": {},
    "logistic": {},
    "flipped": {"flip_probability": 0.15},
    "probit": {},
    "own": {"labels": Lapsing(0.2)},
}
NOISES = {
    "normal": {},
    "laplace": {"noise_law": "laplace"},
    "student 3": {"noise_law": "student", "degrees_of_freedom": 3},
    "student 1.2": {"noise_law": "student", "degrees_of_freedom": 1.2},
}
ROBUST = {
    "huber": lambda **noise: tasks.Huber(0.7, threshold=0.8, **noise),
    "absolute": lambda **noise: tasks.LeastAbsolute(0.7, **noise),
    "log-cosh": lambda **noise: tasks.LogCosh(0.7, **noise),
}
ALL = {
    **{name: task() for name, task in MARGIN.items()},
    **{name: task(**NOISES["student 3"]) for name, task in ROBUST.items()},
    "phase retrieval": tasks.PhaseRetrieval(0.2),
    "Poisson": tasks.PoissonRegression(),
}
# Order parameters from none to an almost perfect alignment, at small and large fields.
MOMENTS = [(0.5, 0.0, 1.0), (0.7, 0.6, 1.3), (9.0, -2.0, 0.6), (1.0, 0.999, 1.0), (30.0, 9.0, 4.0)]


def at_moments(*functions):
    """Each function of (Q, O, rho) at all MOMENTS, by one program."""
    every = jax.jit(jax.vmap(lambda Q, O, rho: tuple(f(Q, O, rho) for f in functions)))
    return every(*jnp.asarray(MOMENTS).T)


def chance(law, w_star):
    """P(y = 1)."""
    if law == "logistic":
        return special.expit(w_star)
    if law == "probit":
        return special.ndtr(w_star)
    if law == "own":
        return 0.1 + 0.8 * special.ndtr(w_star)
    flip = LAWS[law].get("flip_probability", 0.0)
    return np.where(w_star > 0, 1 - flip, flip)


def positive_given(law, z, cosine, rho):
    """P(y = 1) given the student's field sqrt(Q) z, by the trapezoidal rule over the teacher's."""
    rest = np.sqrt(1 - cosine**2)
    if law in ("sign", "flipped"):
        flip = LAWS[law].get("flip_probability", 0.0)
        return flip + (1 - 2 * flip) * special.ndtr(cosine * z / rest)
    nodes = np.linspace(-9, 9, 1001)
    return np.trapezoid(chance(law, np.sqrt(rho) * (cosine * z[:, None] + rest * nodes)) * stats.norm.pdf(nodes), nodes)


def integral(f, edges):
    """By 40 Gauss-Legendre nodes between each edge and the next."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    centers, halves = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    return f((centers[:, None] + halves[:, None] * nodes).ravel()) @ (halves[:, None] * weights).ravel()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", MARGIN)
def test_classification_risk_and_error_are_integrals(name, law):
    task = MARGIN[name](**{"labels": law} | LAWS[law])
    losses = {
        "logistic": lambda m: np.logaddexp(0, -m),
        "probit": lambda m: -special.log_ndtr(m),
        "hinge": lambda m: np.maximum(0, 1 - m),
        "squared hinge": lambda m: 0.5 * np.maximum(0, 1 - m) ** 2,
        "perceptron": lambda m: np.maximum(0, -m),
    }
    for (Q, O, rho), risk, error in zip(MOMENTS, *at_moments(task.test_risk, task.test_error), strict=True):
        cosine, s = O / np.sqrt(Q * rho), np.sqrt(Q)

        def mean(f, cosine=cosine, s=s, rho=rho):
            def integrand(z):
                p = positive_given(law, z, cosine, rho)
                return (p * f(s * z) + (1 - p) * f(-s * z)) * stats.norm.pdf(z)

            breaks = np.array([1 / s, 0.05, 0.2, 1.0, 3.0])
            return integral(integrand, np.unique(np.concatenate([-breaks, [-9, 0, 9], breaks])))

        # Of an own law the risk is a plain quadrature, at the kink too.
        tolerance = 1e-5 if law == "own" and task.kink_width > 0 else 2e-7
        np.testing.assert_allclose(risk, mean(losses[name]), rtol=tolerance)
        np.testing.assert_allclose(error, mean(lambda m: m < 0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", ROBUST)
def test_robust_risk_is_an_integral(name, noise):
    task = ROBUST[name](**NOISES[noise])
    law = {"normal": stats.norm, "laplace": stats.laplace}.get(noise) or stats.t(NOISES[noise]["degrees_of_freedom"])
    losses = {
        "huber": lambda e: special.huber(0.8, e),
        "absolute": np.abs,
        "log-cosh": lambda e: np.logaddexp(e, -e) - np.log(2),
    }
    z = np.linspace(-9, 9, 3001)
    for (Q, O, rho), risk in zip(MOMENTS, *at_moments(task.test_risk), strict=True):
        spread = np.sqrt(Q - 2 * O + rho)

        def integrand(v, spread=spread):
            # noise = sinh(v) turns the tail's power law into an exponential.
            e = 0.7 * np.sinh(v)[:, None]
            inner = np.trapezoid(losses[name](spread * z + e) * stats.norm.pdf(z), z)
            return 2 * inner * law.pdf(np.sinh(v)) * np.cosh(v)

        expected = integral(integrand, np.array([0, 1, 2, 4, 8, 16, 32, 64, 140.0]))
        np.testing.assert_allclose(risk, expected, rtol=2e-6)


@pytest.mark.parametrize("name", ["phase retrieval", "Poisson"])
def test_regression_risk_is_an_integral(name):
    task = ALL[name]
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    weights = weights / weights.sum()
    for (Q, O, rho), risk in list(zip(MOMENTS, *at_moments(task.test_risk), strict=True))[:4]:
        w_star = np.sqrt(rho) * nodes[:, None]
        w = O / rho * w_star + np.sqrt(Q - O**2 / rho) * nodes
        if name == "Poisson":
            mean = np.logaddexp(0, w_star)
            values = np.logaddexp(0, w) - mean * np.log(np.logaddexp(0, w))
        else:
            values = ((w**2 - w_star**2) ** 2 + 0.2**2) / 4
        np.testing.assert_allclose(risk, weights @ values @ weights, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_gradient_and_curvature_are_derivatives(name, key):
    task = ALL[name]
    r = 3 * jax.random.normal(key, (200,))
    y = jnp.sign(r[::-1]) if name in MARGIN else jnp.floor(3 * jnp.abs(jnp.roll(r, 1)))
    kink = {"hinge": y * r - 1, "squared hinge": y * r - 1, "perceptron": y * r, "absolute": r - y, "huber": jnp.abs(r - y) - 0.8}
    away = jnp.abs(kink.get(name, jnp.ones_like(r))) > 1e-3 + task.kink_width
    step = 1e-5
    for function, derivative in ((task.loss, task.gradient), (task.gradient, task.curvature)):
        slope = (function(r + step, y) - function(r - step, y)) / (2 * step)
        np.testing.assert_allclose(derivative(r, y)[away], slope[away], rtol=1e-7, atol=1e-7)
    # Far out nothing overflows or turns into NaN, in either precision.
    for dtype in (jnp.float32, jnp.float64):
        far = jnp.array([-2e3, -40.0, 0.0, 40.0, 2e3], dtype)
        for function in (task.loss, task.gradient, task.curvature):
            values = function(far, jnp.ones_like(far))
            assert values.dtype == dtype
            assert np.isfinite(values).all()


@pytest.mark.parametrize("law", LAWS)
def test_classes_follow_their_law(law):
    task, scale = tasks.Hinge(**{"labels": law} | LAWS[law]), 1.4
    u, v = stats.qmc.Sobol(2, rng=0).random_base2(14).T
    xi, y = task.sample(jnp.asarray(u), jnp.asarray(v), jnp.asarray(scale))
    assert (y == 1).all()
    z = np.linspace(-9, 9, 20001)
    density = 2 * chance(law, scale * z) * stats.norm.pdf(z)
    nodes, labels, shares = task.population(jnp.asarray(scale))
    assert (labels == 1).all()
    for f in (lambda z: z, lambda z: z**2, lambda z: np.tanh(3 * z)):
        expected = np.trapezoid(f(z) * density, z)
        np.testing.assert_allclose(np.mean(f(xi)), expected, atol=5e-4)
        np.testing.assert_allclose(f(nodes) @ shares, expected, atol=1e-6)
    # The labels that simulations draw.
    w_star = jnp.array([-2.0, -0.1, 0.3, 1.5])
    drawn = task.label(w_star[:, None], (jnp.arange(4000.0) + 0.5)[None] / 4000)
    np.testing.assert_allclose(jnp.mean(drawn == 1, axis=1), chance(law, w_star), atol=3e-4)


@pytest.mark.slow
def test_an_own_label_law_goes_through_the_solver(key):
    """The same teacher fields from the same uniforms: equal to the quadratures' error. Derivatives in the law's own parameter are
    those in the shipped law's teacher scale, but for the teacher's part of the start, of which there is none."""

    def risk(x, own):
        task, scale = (tasks.Logistic(Steep(x)), 1.0) if own else (tasks.Logistic("logistic"), x)
        s = run(task, 0.5, teacher_scale=scale, initial_correlation=None, samples=64, steps=2, key=key)
        return s.test_risk[-1] + s.train_loss[-1] + s.norm[-1, 0, 0]

    (own, own_slope), (shipped, shipped_slope) = (jax.value_and_grad(risk)(2.0, own) for own in (True, False))
    np.testing.assert_allclose(own, shipped, rtol=1e-9)
    np.testing.assert_allclose(own_slope, shipped_slope, rtol=1e-7)


@pytest.mark.parametrize("labels, own", [("argmax", False), ("softmax", False), (None, True)], ids=["argmax", "softmax", "own"])
def test_classes_of_labels_follow_their_law(labels, own):
    class Tempered(tasks.labels.AbstractClassLabels):
        def probabilities(self, w_star):
            return jax.nn.softmax(3 * w_star, axis=0)

    law = tasks.Softmax(3, Tempered() if own else labels).labels
    w_star = jnp.array([[0.3, 0.1, -0.2], [-1.0, 2.0, 0.5]])
    drawn = jax.jit(jax.vmap(jax.vmap(law.label, (None, 0)), (0, None)))(w_star, (jnp.arange(3000.0) + 0.5) / 3000)
    shares = np.mean(np.asarray(drawn)[..., None] == np.arange(3.0), axis=1)
    expected = np.eye(3)[[0, 1]] if labels == "argmax" else special.softmax((3 if own else 1) * np.asarray(w_star), axis=1)
    np.testing.assert_allclose(shares, expected, atol=4e-4)
    np.testing.assert_allclose(law.probabilities(w_star.T), expected.T, atol=1e-12)


@pytest.mark.parametrize("degrees", [None, 1.01, 1.5, 2, 3.7, 30, 1e4], ids=lambda d: "laplace" if d is None else f"t{d}")
def test_noise_is_its_laws_quantile(degrees):
    law = {"noise_law": "laplace"} if degrees is None else {"noise_law": "student", "degrees_of_freedom": degrees}
    task, exact = tasks.Huber(1.5, **law), stats.laplace if degrees is None else stats.t(degrees)
    u = np.concatenate([10.0 ** np.arange(-15, 0), np.linspace(0.15, 0.95, 30)])
    noise = task.label(jnp.zeros_like(jnp.asarray(u)), jnp.asarray(u))
    np.testing.assert_allclose(noise, 1.5 * exact.ppf(u), rtol=1e-9, atol=1e-12)


def test_counts_are_poisson():
    w_star, u = jnp.linspace(-8.0, 30.0, 40), jnp.asarray(np.linspace(1e-6, 1 - 1e-6, 1001))
    counts = jax.jit(tasks.PoissonRegression().label)(*jnp.broadcast_arrays(w_star[:, None], u))
    np.testing.assert_array_equal(counts, stats.poisson.ppf(u, np.logaddexp(0, w_star)[:, None]))


class Lopsided(tasks.labels.AbstractLabels):
    def probability(self, w_star):
        return jax.nn.sigmoid(w_star + 1)


class Constant(tasks.labels.AbstractLabels):
    def probability(self, w_star):
        return jnp.asarray(0.5)


BAD = {
    "law": (lambda: tasks.Huber(noise_law="cauchy"), ValueError, "noise_law must be one of"),
    "noise": (lambda: tasks.LogCosh(-1.0), ValueError, "label_noise must be >= 0"),
    "threshold": (lambda: tasks.Huber(threshold=0.0), ValueError, "threshold must be > 0"),
    "threshold NaN": (lambda: tasks.Huber(threshold=float("nan")), ValueError, "threshold must be finite"),
    "Cauchy noise": (lambda: tasks.Huber(1.0, "student", 1), ValueError, "degrees_of_freedom must be > 1.*risk, is infinite"),
    "no degrees": (lambda: tasks.LeastAbsolute(1.0, "student"), ValueError, 'noise_law="student" needs degrees'),
    "traced degrees": (
        lambda: jax.jit(lambda d: tasks.LogCosh(1.0, "student", d).label_noise)(3.0), TypeError, "degrees_of_freedom must be"),
    "degrees of a normal": (lambda: tasks.LogCosh(1.0, degrees_of_freedom=3), ValueError, "degrees_of_freedom goes with"),
    "phase noise": (lambda: tasks.PhaseRetrieval(-0.1), ValueError, "label_noise must be >= 0"),
    "phase noise array": (lambda: tasks.PhaseRetrieval(jnp.ones(2)), ValueError, "label_noise must have shape"),
    "labels": (lambda: tasks.Hinge("signs"), ValueError, "labels must be one of"),
    "labels object": (lambda: tasks.Hinge(tasks.losses.Hinge()), ValueError, "labels must be one of .*AbstractLabels"),
    "flips of an own law": (lambda: tasks.Hinge(Steep(2.0), 0.1), ValueError, "flip_probability goes with"),
    "lopsided law": (lambda: Lopsided(), ValueError, r"symmetric, p\(-w_star\) = 1 - p\(w_star\)"),
    "law above 1": (lambda: Lapsing(-0.5), ValueError, r"probability of Lapsing must lie in \[0, 1\]"),
    "law of wrong shape": (lambda: Constant(), ValueError, "must be elementwise"),
    "flips": (lambda: tasks.Probit("probit", 0.1), ValueError, "flip_probability goes with"),
}  # fmt: skip


@pytest.mark.parametrize("call, exception, message", BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused(call, exception, message):
    with pytest.raises(exception, match=message):
        call()


def run(task, rate, *, samples=256, steps=8, key, **changes):
    grid = dmftopt.TimeGrid.uniform(2.0, steps)
    p = problem(task, **{"initial_correlation": 0.5} | changes)
    return dmftopt.solve(p, dmftopt.Protocol(rate, 1.0, 0.1), grid, samples=samples, key=key)


@pytest.mark.slow
def test_gradient_of_the_solver_equals_central_differences(key):
    """In the learning rate, the teacher's scale and the label noise."""

    def objective(x):
        s = run(tasks.PhaseRetrieval(x[2]), x[0], teacher_scale=x[1], key=key)
        return s.test_risk[-1] + 0.3 * s.train_loss[-1] + 0.1 * s.norm[-1, 0, 0]

    f, x = jax.jit(jax.value_and_grad(objective)), jnp.array([0.05, 1.1, 0.3])
    gradient, step = f(x)[1], 1e-5
    for i in range(3):
        slope = central_difference(lambda h, i=i: f(x.at[i].add(h))[0], step)
        np.testing.assert_allclose(gradient[i], slope, rtol=1e-6, atol=1e-7)


class OwnHinge(tasks.AbstractTask):
    """An own task with a kink and two columns, whose fields it adds up by 0.6 and 0.8."""

    size: Any = 1.0

    columns = 2
    teacher_columns = 1
    kink_width = 0.1

    def loss(self, r, y):
        return self.size * jnp.maximum(0.0, 1 - y * (0.6 * r[0] + 0.8 * r[1]))

    def label(self, w_star, noise):
        return jnp.where(w_star[0] > 0, 1.0, -1.0)


def test_counts_have_no_derivative(key):
    """A count that jumps moves expectations at a rate that is no mean of derivatives along the paths."""
    task = ALL["Poisson"]
    with pytest.raises(ValueError, match="no derivative"):
        jax.grad(lambda scale: run(task, 0.5, teacher_scale=scale, samples=32, steps=2, key=key).test_risk[-1])(1.0)
    rate = jax.jit(jax.grad(lambda rate: run(task, rate, samples=32, steps=2, key=key).test_risk[-1]))(0.5)
    assert np.isfinite(rate) and rate != 0


def test_kinks_of_the_gradient_are_differentiated_right(key):
    """Differences so large that thousands of samples cross the kinks; without the jumps the slope is off by 20%."""

    @jax.jit
    @jax.value_and_grad
    def risk(rate):
        return run(tasks.Hinge(), rate, samples=2**14, steps=8, key=key).test_risk[-1]

    slope = (risk(0.55)[0] - risk(0.45)[0]) / 0.1
    np.testing.assert_allclose(risk(0.5)[1], slope, rtol=0.04)


@pytest.mark.parametrize(
    "task",
    [tasks.SquaredHinge(), pytest.param(tasks.Huber(0.3, threshold=0.5), marks=pytest.mark.slow)],
    ids=["squared hinge", "huber"],
)
def test_bends_of_the_loss_are_differentiated_right(key, task):
    """The curvature jumps, and steps this long depend on its mean: without the jumps slopes are 1.3% and 2.1% off. Differences
    of fourth order, so large that hundreds of samples cross: with 8192 samples that noise, and the width's bias, came to 0.4%."""

    @jax.jit
    @jax.value_and_grad
    def risk(rate):
        return run(task, rate, samples=2**15, steps=8, key=key).student_overlap[-1, 0, 0]

    slope = central_difference(lambda h: risk(1.5 + h)[0], 0.03)
    np.testing.assert_allclose(risk(1.5)[1], slope, rtol=5e-3)


@pytest.mark.parametrize(
    "task, along",
    [
        (tasks.Hinge(), lambda r: r[None]),
        (tasks.GaussianMixture((1, -1), loss="hinge"), lambda r: r[None]),
        (OwnHinge(), lambda r: jnp.stack([0.6 * r, 0.8 * r])),
    ],
    ids=["one field", "one column", "two columns"],
)
def test_derivatives_of_every_order_see_the_kinks(task, along):
    """E[l(z + x, 1)] = -Phi(1 - x); its derivatives are exactly the difference quotients of it over the width, once for
    each order. 65536 quantiles are good to half of 1 / 65536 in each value. Without the jumps all of them are 0."""
    # Along (0.6, 0.8) a step of w in either column moves the field by 0.6 w or 0.8 w.
    parts = [1.0] if task.columns in (None, 1) else [0.6, 0.8]
    z, width = jnp.asarray(special.ndtri((np.arange(65536) + 0.5) / 65536)), task.kink_width

    def mean(x):
        l = columns.gradient(task, along(z + x), jnp.ones_like(z))
        return jnp.mean(jnp.asarray(parts) @ l)

    def exact(x, order):
        if order == 0:
            return -special.ndtr(1 - x)
        return sum(p * (exact(x + p * width, order - 1) - exact(x - p * width, order - 1)) / (2 * width) for p in parts)

    x = 0.3
    derivatives = jax.grad(mean), jax.grad(jax.grad(mean)), jax.jacfwd(jax.jacfwd(mean)), jax.jacfwd(jax.grad(mean))
    found = jax.jit(lambda x: [derivative(x) for derivative in derivatives])(x)
    for value, order in zip(found, (1, 2, 2, 2), strict=True):
        np.testing.assert_allclose(value, exact(x, order), atol=(sum(parts) / width) ** order * 0.5 / 65536)
    # And of the law itself, but for the bias of the width.
    np.testing.assert_allclose(found[1], (1 - x) * stats.norm.pdf(1 - x), atol=0.02)


def test_derivatives_over_kinks_in_a_parameter_of_the_loss():
    """l = c * hinge'(r): d² E[l(z + x)] / dc dx = phi(1 - x), over the width."""
    z = jnp.asarray(special.ndtri((np.arange(65536) + 0.5) / 65536))

    def mean(c, x):
        return jnp.mean(columns.gradient(OwnHinge(c), jnp.stack([z + x, jnp.zeros_like(z)]), jnp.ones_like(z))[0])

    for mixed in (jax.grad(jax.grad(mean, 1), 0), jax.grad(jax.grad(mean, 0), 1)):
        # The first column's weight in the margin is 0.6, and its gradient has another such factor.
        found = mixed(jnp.asarray(1.0), jnp.asarray(0.3))
        edges = special.ndtr((1 / 0.6 - 0.3) - np.array([0.1, -0.1]))
        np.testing.assert_allclose(found, 0.6 * (edges[1] - edges[0]) / 0.2, atol=1e-4)


def test_an_explosion_ends_in_a_result_code(key):
    p = problem(tasks.PhaseRetrieval(), student_scale=1.5, initial_correlation=0.3)
    s = dmftopt.solve(p, dmftopt.Protocol(0.3), dmftopt.TimeGrid.uniform(10.0, 20), samples=512, key=key, throw=False)
    assert s.result != dmftopt.RESULTS.successful
    assert np.isnan(s.test_risk[-1])


class Plain(tasks.labels.AbstractLabels):
    def probability(self, w_star):
        return jax.nn.sigmoid(w_star)


# Students of usual size, small, and large, nearly aligned with the teacher and not.
FAR_APART = pytest.mark.parametrize("Q, O, rho", [(1.0, 0.5, 1.0), (0.01, 0.05, 1.0), (400.0, 19.9, 1.0), (400.0, -5.0, 1.0)])


@FAR_APART
def test_moments_of_a_jump_are_closed_forms(Q, O, rho):
    """Rosenblatt's perceptron: the power is the chance of a mistake, and a mistake has the mean |w| and |w_star| of a Gaussian
    wedge. The least absolute residual is normal. Gauss's rule is off by rounding, times a few where fields are nearly aligned."""
    matrix = [jnp.full((1, 1), x) for x in (Q, O, rho)]
    cosine = O / np.sqrt(Q * rho)
    # E[|w| mistake] over sqrt(Q) sqrt(2 pi), by the half angle: 1 - cosine would lose digits.
    half_angle = 0.5 * np.arccos(cosine)
    mean = 2 * np.sin(half_angle) ** 2 / np.sqrt(2 * np.pi)
    a, with_teacher, power = (float(x[0, 0]) for x in tasks.Perceptron().moments(*matrix))
    np.testing.assert_allclose([power, with_teacher], [2 * half_angle / np.pi, -np.sqrt(rho) * mean], rtol=1e-7)
    b = (with_teacher - a * O) / rho
    np.testing.assert_allclose(Q * a + O * b, np.sqrt(Q) * mean, rtol=1e-7)
    a, with_teacher, power = (float(x[0, 0]) for x in tasks.LeastAbsolute(0.5).moments(*matrix))
    slope = np.sqrt(2 / np.pi / (Q - 2 * O + rho + 0.25))
    np.testing.assert_allclose([a, with_teacher, power], [slope, slope * (O - rho), 1.0], rtol=1e-12)


MARGINS = {
    "hinge, flipped": (tasks.Hinge("flipped", 0.1), 0.0, 0.8, 1.0),
    "squared hinge, probit": (tasks.SquaredHinge("probit"), 1.0, 1.0, 1.0),
    "logistic": (tasks.Logistic(), 0.0, 1.0, 0.0),
    "probit": (tasks.Probit(), 0.0, 1.0, 0.0),
}


@pytest.mark.parametrize(
    "Q, O, rho",
    [
        (1.0, 0.5, 1.0),
        (400.0, 19.9, 1.0),
        pytest.param(0.01, 0.05, 1.0, marks=pytest.mark.slow),
        pytest.param(400.0, -5.0, 1.0, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", MARGINS)
def test_moments_and_risk_of_a_margin_are_integrals(name, Q, O, rho):
    """Over w by SciPy, given which the label is +1 with a probability of erf form. Probit's risk at Q = 400 was 6% off, a small
    difference of large integrals; what remains is that difference of rounding, and of Gauss's rules of 1e-10."""
    task, noise, contrast, kink = MARGINS[name]
    s, variance = np.sqrt(Q), rho + noise
    slope = O / s / np.sqrt(variance - O**2 / Q)

    def mean(function, deviation, slope):
        def density(z):
            value = function(jnp.asarray(deviation * z), jnp.ones(()))
            return float(value) * (1 + contrast * special.erf(slope * z / 2**0.5)) * stats.norm.pdf(z)

        points = sorted({0.0, kink / deviation, *(x / deviation for x in (-20, -5, 5, 20)), *(x / (slope or 1) for x in (-4, 4))})
        return integrate.quad(density, -9, 9, points=[p for p in points if abs(p) < 9], epsabs=1e-12, epsrel=1e-10, limit=400)[0]

    b = contrast * np.sqrt(2 / np.pi / variance) * mean(task.gradient, np.sqrt(Q - O**2 / variance), 0.0)
    power = mean(lambda r, y: task.gradient(r, y) ** 2, s, slope)
    along = mean(lambda r, y: task.gradient(r, y) * r, s, slope)
    a, with_teacher, found = (float(x[0, 0]) for x in task.moments(*(jnp.full((1, 1), x) for x in (Q, O, rho))))
    np.testing.assert_allclose([found, with_teacher], [power, O * a + rho * b], rtol=1e-7)
    np.testing.assert_allclose(Q * a, along - O * b, rtol=1e-6, atol=1e-9 * abs(O * b))
    risk = task.test_risk(*(jnp.asarray(x) for x in (Q, O, rho)))
    np.testing.assert_allclose(risk, mean(task.loss, s, slope), rtol=1e-7, atol=1e-9 * s**2)


@FAR_APART
def test_moments_with_a_label_law_of_ones_own(Q, O, rho):
    """By means over w given w_star, for a law that is known to the package as a mixture of normal ones as well. Nearly aligned, a
    layer around the kink is as narrow as w given w_star: there nodes of w_star leave 1e-7."""
    for task in (tasks.Hinge, tasks.Logistic):
        found, expected = (task(law).moments(*(jnp.full((1, 1), x) for x in (Q, O, rho))) for law in (Plain(), "logistic"))
        np.testing.assert_allclose(jnp.stack(found), jnp.stack(expected), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("build", [lambda x: tasks.Huber(threshold=x), tasks.PhaseRetrieval], ids=["threshold", "noise"])
def test_traced_parameters_outside_their_domain_end_in_a_result_code(key, build):
    s = eqx.filter_jit(lambda x: run(build(x), 0.05, samples=128, key=key))(jnp.asarray(-1.0))
    assert s.result == dmftopt.RESULTS.invalid
    assert np.isnan(s.test_risk).all()


def test_online_limit(key):
    p = problem(tasks.PoissonRegression(), delta=1e6)
    protocol, grid = dmftopt.Protocol(1.0, 1.0, 0.1), dmftopt.TimeGrid.geometric(3.0, 40, ratio=5.0)
    # At this delta a Poisson count is 0 for every sample.
    solution = dmftopt.solve(p, protocol, grid, noise=dmftopt.noise.Brownian(), samples=2**13, replicates=2, key=key)
    comparison = dmftopt.compare(solution, dmftopt.limits.online(p, protocol, grid), errors="sampling")
    for name in ("test_risk", "student_overlap", "teacher_overlap", "correlation", "norm"):
        assert comparison.differences[name].excess(2, 0.002) <= 0, f"\n{comparison}"


@pytest.mark.parametrize(
    "task, protocol, horizon, steps, changes",
    [
        (tasks.PhaseRetrieval(0.2), dmftopt.Protocol(0.05), 16.0, 48, {"initial_correlation": 0.4}),
        (tasks.Huber(0.5, "student", 1.5), dmftopt.Protocol(1.5, 1.0, 0.1), 3.0, 48, {}),
    ],
    ids=["phase retrieval", "heavy tails"],
)
@pytest.mark.slow
def test_poisson_noise_is_sgd(task, protocol, horizon, steps, changes):
    """Many samples: cubic gradients and gradients that jump scatter more than replicates show at 8192. Gate: 3 combined standard
    errors, for the largest of 17 times and 6 observables, plus 0.5%."""
    p = problem(task, **changes)
    grid = dmftopt.TimeGrid.geometric(horizon, steps, ratio=5.0)
    solution = dmftopt.solve(p, protocol, grid, samples=2**15, replicates=3, key=jax.random.key(0))
    simulation = dmftopt.simulate.sgd(
        p, protocol, horizon=horizon, dimension=500, runs=128, records=grid.times[:: steps // 16], key=jax.random.key(2)
    )
    comparison = dmftopt.compare(solution, simulation, errors="sampling")
    assert comparison.agrees(sigmas=3, relative=0.005), f"\n{comparison}"
