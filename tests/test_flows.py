"""Modified flows: weak orders of the library's own steps, without Monte Carlo; `simulate` against them; wrong inputs."""

import functools
import importlib
import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dmftopt
from dmftopt import flows

weak = importlib.import_module("experiments.12_modified_flows.weak")
RATES = 1 / np.array([16, 32, 64])
# v = b - a x: of two moments of x SGD's own are closed.
LINEAR = flows.Model(
    lambda x, s: jnp.sum((s[0] * x - 2 * s[1]) * x) / 2, np.array([[0.5, 1.0], [1.0, -1.0], [1.5, 0.5]]), [0.2, 0.5, 0.3]
)
PLANE = flows.Model(lambda x, s: (1 - jnp.tanh(x @ s[:2])) ** 2 + s[2] * x @ x, np.arange(12.0).reshape(4, 3) % 5 / 5)
START = jnp.array([[1.0, -1.0], [0.5, 2.0]])


CHAINS = {"one": weak.one_point, "two": weak.two_point, "many": weak.mean_field, "frozen": lambda: weak.mean_field(True)}
DYNAMICS = {
    "sgd": flows.SGD(),
    "first": flows.ModifiedFlow(1),
    "second": flows.ModifiedFlow(),
    "equation": flows.ModifiedEquation(),
}


@functools.cache
def expected(chain, dynamics, shape="constant", batch=1, substeps=1, rates=tuple(RATES)):
    """At learning rates whose sum is 1 and whose mean is each of `rates`: constant, decaying to a third, or with a jump."""

    def schedule(rate):
        place = (np.arange(round(1 / rate)) + 0.5) * rate
        return rate * {"constant": np.ones(place.size), "decay": 1.5 - place, "jump": np.where(place < 0.5, 1.5, 0.5)}[shape]

    return weak.expectations(CHAINS[chain](), DYNAMICS[dynamics], [schedule(rate) for rate in rates], batch, substeps)


@pytest.mark.parametrize(
    ("chain", "dynamics", "order"),
    [
        ("one", "second", 2),
        ("one", "first", 1),
        ("two", "second", 2),
        ("two", "first", 1),
        ("two", "equation", 1),
        ("many", "second", 2),
        ("many", "first", 1),
        ("frozen", "second", 1),
    ],
)
def test_weak_order(chain, dynamics, order):
    errors = expected(chain, dynamics) - expected("many" if chain == "frozen" else chain, "sgd")
    # The slope between two rates differs from the order by that of the next term, of relative order eta < 1/16.
    np.testing.assert_allclose(weak.slopes(RATES, errors), order, atol=0.12)


@pytest.mark.parametrize(("shape", "batch"), [("decay", 1), ("jump", 1), ("constant", 2)])
def test_second_order_holds_for_schedules_and_batches(shape, batch):
    rates = tuple(RATES[:2])
    errors = expected("many", "second", shape, batch, 1, rates) - expected("many", "sgd", shape, batch, 1, rates)
    np.testing.assert_allclose(weak.slopes(rates, errors), 2, atol=0.12)


def test_time_steps_are_of_third_order():
    errors = expected("one", "second") - expected("one", "second", substeps=2)
    np.testing.assert_allclose(weak.slopes(RATES, errors), 3, atol=0.12)
    # Far below what they are to resolve.
    assert np.all(np.abs(errors) < 0.1 * np.abs(expected("one", "second") - expected("one", "sgd")))


def test_large_noise_is_of_second_order():
    """E X² under dX = -X dt + 1.5 X dW: exp((1.5² - 2) t). Four Gauss-Hermite nodes have the fourth moments of increments."""
    sizes = 1 / np.array([32.0, 64.0, 128.0])
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    increments, weights = np.array(list(itertools.product(nodes, nodes))), np.outer(weights, weights).ravel() / weights.sum() ** 2

    def after(size, increment):
        def control(t0, t1):
            return jnp.sqrt(size / 2) * jnp.where(t0 == 0, increment[0], increment[1])[None]

        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, y, args: -y), diffrax.ControlTerm(lambda t, y, args: 1.5 * y[:, None], control)
        )
        return flows.Splitting().step(terms, jnp.zeros(()), size, jnp.ones(1), None, None, False)[0][0]

    squares = jax.jit(jax.vmap(jax.vmap(after, (None, 0)), (0, None)))(jnp.asarray(sizes), jnp.asarray(increments)) ** 2
    # Of one step, one order above that of many.
    np.testing.assert_allclose(weak.slopes(sizes, squares @ weights - np.exp(0.25 * sizes)), 3, atol=0.12)


def test_expectations_without_monte_carlo_are_right():
    """cos X at time 1, of a Gaussian autoregression and of an Ornstein-Uhlenbeck process."""
    kept = (1 - RATES) ** (1 / RATES)
    sgd = np.cos(kept) * np.exp(-(RATES**2) * (1 - kept**2) / (1 - (1 - RATES) ** 2) / 2)
    np.testing.assert_allclose(expected("one", "sgd"), sgd, atol=1e-7)
    k = 1 + RATES / 2
    flow = np.cos(np.exp(-k)) * np.exp(-RATES * (1 - np.exp(-2 * k)) / (2 * k) / 2)
    assert np.all(np.abs(expected("one", "second") - flow) < 0.1 * RATES**3)


@pytest.mark.parametrize("name", DYNAMICS)
def test_simulation(name, key):
    """Monte Carlo, end to end, against the expectations; with runs enough to tell the flows apart."""
    chain, dynamics = weak.two_point(), DYNAMICS[name]
    known = {n: expected("two", n, rates=(1 / 8,))[0] for n in DYNAMICS}
    model = chain.sampled if name == "sgd" else chain.model
    ensemble = flows.simulate(model, dynamics, 1 / 8, chain.states(1.5), 8, key=key, runs=20000, records=[0, 3, 8])
    mean, error = ensemble.two_point(lambda x, y: (x - y) ** 2)
    assert ensemble.steps.tolist() == [0, 3, 8] and mean.shape == (3, 2, 2)
    assert mean[0, 0, 1] == 1.5**2 and error[0, 0, 1] == 0 and not np.any(np.diagonal(mean, axis1=1, axis2=2))
    # D of the modified equation has no noise: right to rounding.
    assert abs(mean[-1, 0, 1] - known[name]) < 4 * error[-1, 0, 1] + 1e-9
    others = [known[n] for n in ("first", "second", "equation") if n != name]
    assert name == "sgd" or min(abs(np.subtract(others, known[name]))) > 8 * error[-1, 0, 1]


def test_batches_and_schedules_of_sgd(key):
    """First and second moments of linear maps are closed: x <- (1 - eta a) x + eta b with a, b means over a batch."""
    rates, batches = np.array([0.3, 0.5, 0.2]), np.array([1, 3, 2])
    a, b, p = *np.asarray(LINEAR.data).T, np.asarray(LINEAR.probabilities)
    mean, square = 1.0, 1.0
    for rate, batch in zip(rates, batches, strict=True):
        one, two = np.array([p @ a, p @ b]), np.array([[p @ (a * a), p @ (a * b)], [p @ (a * b), p @ (b * b)]])
        two = two / batch + (1 - 1 / batch) * np.outer(one, one)
        keep, add = 1 - rate * one[0], rate * one[1]
        keep2, add2 = 1 - 2 * rate * one[0] + rate**2 * two[0, 0], rate**2 * two[1, 1]
        mean, square = keep * mean + add, keep2 * square + 2 * rate * (one[1] - rate * two[0, 1]) * mean + add2
    options = {"batch_size": lambda n: jnp.asarray(batches)[n], "key": key, "runs": 20000}
    ensemble = flows.simulate(LINEAR, flows.SGD(), lambda n: jnp.asarray(rates)[n], jnp.ones(1), 3, **options)
    for function, value in ((lambda x: x, mean), (jnp.square, square)):
        found, error = ensemble.one_point(function)
        assert abs(found[-1, 0] - value) < 4 * error[-1, 0] and error[-1, 0] < 0.01


@pytest.mark.parametrize("step_size", [0.25, 2])
def test_rates_within_a_time_step(step_size, key):
    """Without noise dX = -(eta a + eta² a² / 2) X ds exactly, whatever the time steps, up to those of Runge and Kutta."""
    model = flows.Model(lambda x, a: a * x**2 / 2, np.array([0.8]))
    rates = jnp.array([0.1, 0.2, 0.05, 0.1, 0.1])
    options = {"records": [0, 3, 5], "step_size": step_size, "key": key}
    found = flows.simulate(model, flows.ModifiedFlow(), lambda n: rates[n], jnp.ones(1), 5, **options).states[0, :, 0]
    exponents = np.concatenate([np.zeros(1), np.cumsum(rates * 0.8 + rates**2 * 0.8**2 / 2)])[[0, 3, 5]]
    np.testing.assert_allclose(found, np.exp(-exponents), rtol=1e-4)


def test_mean_field_of_a_network_is_joint_descent(key):
    """A network's particles at rate eta are one point of dimension M at rate M eta, measure derivative included."""
    data = (np.array([0.5, 1.0, -1.5]), np.array([1.0, -0.5, 0.3]))
    particles = jax.random.normal(key, (2, 4, 2))

    def network(particles, x):
        return jnp.mean(particles[:, 0] * jnp.tanh(particles[:, 1] * x))

    def velocity(theta, particles, sample):
        x, y = sample
        return (y - network(particles, x)) * jax.grad(lambda theta: theta[0] * jnp.tanh(theta[1] * x))(theta)

    joint = flows.Model(lambda particles, sample: (network(particles, sample[0]) - sample[1]) ** 2 / 2, data)
    models = ((flows.MeanField(velocity, data), 0.2), (joint, 0.8))
    a, b = (flows.simulate(model, flows.ModifiedFlow(), rate, particles, 4, key=key, runs=3).states for model, rate in models)
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_points_share_noise_and_runs_do_not(key):
    """Of SGD; that those of flows do is in their two-point expectations."""
    dynamics = flows.SGD()
    options = {"steps": 6, "key": key, "runs": 2, "records": 2}
    both = flows.simulate(PLANE, dynamics, 0.2, START, **options).states
    assert both.shape == (2, 3, 2, 2)
    alone = flows.simulate(PLANE, dynamics, 0.2, START[1:], **options).states
    np.testing.assert_allclose(both[:, :, 1:], alone, rtol=1e-12)
    np.testing.assert_array_equal(both, flows.simulate(PLANE, dynamics, 0.2, START, **options).states)
    # Two runs, and two parts of a run, differ in more than rounding.
    assert not np.allclose(both[0, 1:], both[1, 1:], rtol=1e-3)
    assert not np.allclose(
        flows.simulate(PLANE, dynamics, 0.2, START, **{**options, "key": jax.random.key(1)}).states, both, rtol=1e-3
    )


def test_diffrax_drives_it_too(key):
    """The same noise, through diffeqsolve."""
    dynamics, rate = flows.ModifiedFlow(), jnp.array(0.1)
    run = jax.random.split(key, 1)[0]
    terms = dynamics.terms(PLANE, diffrax.UnsafeBrownianPath(jax.ShapeDtypeStruct((4,), float), run))
    rates = flows.Rates(rate, rate**2, rate**2, jnp.ones(()))
    options = {"args": rates, "adjoint": diffrax.ForwardMode()}
    solved = diffrax.diffeqsolve(terms, flows.Splitting(), 0.0, 5.0, 1.0, START, **options).ys
    np.testing.assert_allclose(flows.simulate(PLANE, dynamics, 0.1, START, 5, key=key).states[0, -1], solved[0], rtol=1e-12)


@pytest.mark.slow
def test_transformations(key):
    """Derivatives in both modes under jit against central differences, which are of fourth order: right to 1e-9 at h = 1e-3."""

    def final(values):
        model = flows.Model(lambda x, s: values[2] * LINEAR.loss(x, s), LINEAR.data, LINEAR.probabilities)
        # From 0 on, where the noise's standard deviation has a corner.
        rates, batch = (lambda n: values[0] * n.astype(float) / 4), values[1]
        options = {"batch_size": batch, "runs": 3, "records": [0, 1, 5], "step_size": 2, "key": key}
        return jnp.sum(flows.simulate(model, flows.ModifiedFlow(), rates, START, 5, **options).states[:, -1] ** 2)

    at, along = jnp.array([0.2, 3.0, 1.0]), jnp.array([0.1, 2.0, -0.5])
    reverse, forward = jax.jit(lambda x: (jax.grad(final)(x), jax.jvp(final, (x,), (along,))[1]))(at)
    h = 1e-3
    values = jax.jit(jax.vmap(final))(at[None] + h * jnp.array([-2.0, -1.0, 1.0, 2.0])[:, None] * along[None])
    np.testing.assert_allclose(reverse @ along, forward, rtol=1e-10)
    np.testing.assert_allclose(forward, values @ jnp.array([1.0, -8.0, 8.0, -1.0]) / (12 * h), rtol=1e-7)


def test_divergence_is_reported(key):
    cubic = flows.Model(lambda x, s: s * x**4, np.array([1.0, 2.0]))
    arguments = (cubic, flows.SGD(), 1.0, jnp.array([3.0]), 12)
    with pytest.raises(dmftopt.SolveError, match="2 of 2 runs became infinite or NaN"):
        flows.simulate(*arguments, key=key, runs=2)
    kept = flows.simulate(*arguments, key=key, runs=2, throw=False)
    assert kept.diverged.tolist() == [True, True] and kept.result == dmftopt.RESULTS.nonfinite
    # Under jit nothing can be raised: there a rate outside its domain is a result too.
    under_jit = jax.jit(lambda rate: flows.simulate(PLANE, flows.ModifiedFlow(), rate, START, 4, key=key, runs=2))
    assert under_jit(0.1).result == dmftopt.RESULTS.successful
    invalid = under_jit(-0.1)
    assert invalid.result == dmftopt.RESULTS.invalid and invalid.diverged.all()


def with_(**changes):
    arguments = {"model": PLANE, "dynamics": flows.SGD(), "learning_rate": 0.1, "initial": START, "steps": 4}
    return {**arguments, "key": jax.random.key(0), **changes}


@pytest.mark.parametrize(
    ("error", "match", "changes"),
    [
        (TypeError, "model must be", {"model": lambda x: x}),
        (TypeError, "dynamics must be", {"dynamics": "sgd"}),
        (ValueError, "learning_rate must be >= 0", {"learning_rate": -0.1}),
        (ValueError, "learning_rate must be >= 0", {"learning_rate": lambda n: 0.2 - 0.1 * n.astype(float)}),
        (ValueError, "learning_rate must be finite", {"learning_rate": lambda n: jnp.where(n > 1, jnp.nan, 0.1)}),
        (ValueError, "learning_rate must have shape", {"learning_rate": jnp.ones(3)}),
        (ValueError, "initial must have a first axis", {"initial": 1.0}),
        (ValueError, "initial must be finite", {"initial": np.array([[1.0, np.nan]])}),
        (TypeError, "steps must be a Python integer", {"steps": 2.5}),
        (ValueError, "runs must be at least 1", {"runs": 0}),
        (TypeError, "key must be", {"key": 0}),
        (ValueError, "records must be increasing", {"records": [0, 3, 3, 4]}),
        (ValueError, "records must be increasing", {"records": 5}),
        (ValueError, "batch_size must be >= 1", {"batch_size": 0.5}),
        (ValueError, "batch_size must be whole", {"batch_size": 1.5}),
        (ValueError, "step_size must be a whole number", {"step_size": 1.5, "dynamics": flows.ModifiedFlow()}),
        (ValueError, "step_size must be > 0", {"step_size": 0, "dynamics": flows.ModifiedFlow()}),
        (ValueError, "loss must have shape", {"model": flows.Model(lambda x, s: s[0] * x, np.ones((3, 1)))}),
        (ValueError, "velocity must have shape", {"model": flows.MeanField(lambda x, m, s: s, np.ones((3, 1)))}),
    ],
)
def test_wrong_inputs(error, match, changes):
    with pytest.raises(error, match=match):
        flows.simulate(**with_(**changes))


@pytest.mark.parametrize(
    ("error", "match", "make"),
    [
        (TypeError, "loss must be a function", lambda: flows.Model(1.0, np.ones(3))),
        (TypeError, "velocity must be a function", lambda: flows.MeanField(None, np.ones(3))),
        (TypeError, "frozen_measure must be", lambda: flows.MeanField(jnp.sin, np.ones(3), frozen_measure=1)),
        (ValueError, "data must be arrays with the same first axis", lambda: flows.Model(jnp.sin, (np.ones(3), np.ones(2)))),
        (ValueError, "data must be arrays with the same first axis", lambda: flows.Model(jnp.sin, ())),
        (ValueError, "data must be arrays with the same first axis", lambda: flows.Model(jnp.sin, 1.0)),
        (ValueError, "probabilities must sum to 1", lambda: flows.Model(jnp.sin, np.ones(2), [0.5, 0.6])),
        (ValueError, "probabilities must be >= 0", lambda: flows.Model(jnp.sin, np.ones(2), [-0.5, 1.5])),
        (ValueError, "probabilities must have shape", lambda: flows.Model(jnp.sin, np.ones(2), [1.0])),
        (ValueError, "order must be 1 or 2", lambda: flows.ModifiedFlow(3)),
        (ValueError, "order must be 1 or 2", lambda: flows.ModifiedEquation(0)),
    ],
)
def test_wrong_models(error, match, make):
    with pytest.raises(error, match=match):
        make()


def test_what_has_no_derivative(key):
    with pytest.raises(TypeError, match="batch_size fixes array sizes in SGD"):
        jax.grad(lambda b: jnp.sum(flows.simulate(**with_(batch_size=b)).states))(2.0)
    with pytest.raises(ValueError, match="modified equation has no derivative"):
        jax.grad(lambda x: jnp.sum(flows.simulate(**with_(initial=x, dynamics=flows.ModifiedEquation())).states))(START)
