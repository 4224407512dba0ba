import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import dmftopt
from dmftopt import features, schedules, tasks
from dmftopt.protocol import rates

# Inside, at the ends, at the corners of the shapes below, and beyond the horizon of 2.
TIMES = np.array([0.0, 0.3, 0.5, 1.0, 1.3, 1.75, 2.0, 2.6])

# schedule, its closed form in numpy, and how many numbers in it are trained
SCHEDULES = {
    "constant": (lambda: schedules.constant(0.7), lambda t: 0.7 + 0 * t, 1),
    "constant, log": (lambda: schedules.constant(0.7, log=True), lambda t: 0.7 + 0 * t, 1),
    "piecewise linear": (
        lambda: schedules.piecewise_linear(2.0, 3, [1.0, 0.4, 0.6]),
        lambda t: np.where(t < 1, 1 - 0.6 * t, np.where(t < 2, 0.4 + 0.2 * (t - 1), 0.6)),
        3,
    ),
    "piecewise linear, log": (
        lambda: schedules.piecewise_linear(2.0, 3, [1.0, 0.25, 0.5], log=True),
        lambda t: 2.0 ** np.where(t < 1, -2 * t, np.where(t < 2, -2 + (t - 1), -1)),
        3,
    ),
    "linear decay": (lambda: schedules.linear_decay(0.8, 2.0), lambda t: 0.8 * np.maximum(1 - t / 2, 0), 1),
    "linear decay to a fifth": (
        lambda: schedules.linear_decay(0.8, 2.0, 0.2),
        lambda t: np.maximum(0.8 - 0.32 * t, 0.16),
        1,
    ),
    "cosine": (lambda: schedules.cosine(0.8, 2.0), lambda t: 0.8 * np.cos(np.pi * np.minimum(t, 2) / 4) ** 2, 1),
    "cosine to a tenth": (
        lambda: schedules.cosine(0.8, 2.0, 0.1),
        lambda t: 0.08 + 0.72 * np.cos(np.pi * np.minimum(t, 2) / 4) ** 2,
        1,
    ),
    "power law": (lambda: schedules.power_law(0.8, 0.6, 0.5), lambda t: 0.8 / (1 + 2 * t) ** 0.6, 1),
    "warmup, stable, decay": (
        lambda: schedules.warmup_stable_decay(0.8, 2.0, 0.5, 0.25, 0.3),
        lambda t: np.interp(t, [0.0, 0.5, 1.75, 2.0], [0.0, 0.8, 0.8, 0.24]),
        1,
    ),
    "from optax": (
        lambda: schedules.from_optax(optax.exponential_decay(0.8, 10, 0.5), 10, scale=2.0),
        lambda t: 1.6 * 0.5**t,
        0,
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("make, closed_form, trained", SCHEDULES.values(), ids=SCHEDULES.keys())


@EVERY
def test_closed_form_at_one_time_and_at_many_under_jit_and_vmap(make, closed_form, trained):
    schedule = make()
    expected = closed_form(TIMES)
    # A few rounding errors of exp, log and cos.
    close = {"rtol": 1e-14, "atol": 1e-16}
    np.testing.assert_allclose(schedule(jnp.asarray(TIMES)), expected, **close)
    np.testing.assert_allclose(eqx.filter_jit(schedule)(jnp.asarray(TIMES)), expected, **close)
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.asarray(TIMES)), expected, **close)
    np.testing.assert_allclose([schedule(t) for t in TIMES.tolist()], expected, **close)
    assert schedule(2.0).shape == schedule(2).shape == ()


@EVERY
def test_trained_leaves_and_their_gradients(make, closed_form, trained):
    leaves, fixed = eqx.partition(make(), eqx.is_inexact_array)
    flat, unravel = ravel_pytree(leaves)
    assert flat.size == trained

    def values(flat):
        return eqx.combine(unravel(flat), fixed)(jnp.asarray(TIMES))

    jacobian = jax.jacobian(values)(flat)
    assert jacobian.shape == (len(TIMES), trained)
    # Central differences of functions of order 1: rounding 1e-16 / h = 1e-11, truncation h² f''' / 6 = 2e-11 f'''.
    h = 1e-5
    for i, direction in enumerate(np.eye(trained)):
        slope = (values(flat + h * direction) - values(flat - h * direction)) / (2 * h)
        np.testing.assert_allclose(jacobian[:, i], slope, rtol=0, atol=1e-9)
        assert np.abs(slope).max() > 0.1


SHAPED = {
    "linear, horizon": lambda x: schedules.linear_decay(0.8, x, 0.1),
    "cosine, horizon": lambda x: schedules.cosine(0.8, x, 0.1),
    "cosine, final": lambda x: schedules.cosine(0.8, 3.0, x / 4),
    "power law, exponent": lambda x: schedules.power_law(0.8, x, 0.5),
    "power law, timescale": lambda x: schedules.power_law(0.8, 0.6, x),
    "warmup": lambda x: schedules.warmup_stable_decay(0.8, 5.0, x, 1.0),
    "decay": lambda x: schedules.warmup_stable_decay(0.8, 3.0, 0.5, x),
    "decay, horizon": lambda x: schedules.warmup_stable_decay(0.8, x, 0.5, 0.25, 0.1),
    "decay, final": lambda x: schedules.warmup_stable_decay(0.8, 2.5, 0.5, 1.0, x / 4),
}


@pytest.mark.parametrize("make", SHAPED.values(), ids=SHAPED.keys())
def test_a_shape_parameter_given_as_an_array_is_trained(make):
    def value(parameter):
        return make(parameter)(1.9)  # where the parameter matters, off the corners

    assert len(jax.tree.leaves(eqx.filter(make(jnp.asarray(2.0)), eqx.is_inexact_array))) == 2
    # h and tolerance as above.
    h = 1e-5
    slope = (value(2.0 + h) - value(2.0 - h)) / (2 * h)
    assert abs(slope) > 0.01
    np.testing.assert_allclose(jax.grad(value)(2.0), slope, rtol=0, atol=1e-9)


def test_warmup_may_be_traced():
    assert jax.jit(lambda warmup: schedules.warmup_stable_decay(1.0, 1.0, warmup, 0.2)(0.05))(0.1) == 0.5


def test_a_number_from_numpy_is_fixed_like_a_python_number():
    # np.linspace and np.float64 slip into sweeps unseen; only JAX arrays are said to be trained.
    for fixed in (schedules.cosine(0.8, np.float64(2.0)), schedules.power_law(0.8, np.float64(0.6))):
        assert len(jax.tree.leaves(eqx.filter(fixed, eqx.is_inexact_array))) == 1
    assert not jax.tree.leaves(eqx.filter(dmftopt.Protocol(np.float64(0.5)), eqx.is_inexact_array))


def test_piecewise_linear_starts_from_a_schedule():
    knots = schedules.piecewise_linear(2.0, 5, schedules.cosine(0.8, 2.0))
    times = np.linspace(0.0, 2.0, 5)
    np.testing.assert_allclose(knots(jnp.asarray(times)), 0.8 * np.cos(np.pi * times / 4) ** 2, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (schedules.cosine(0.8, 2.0, 0.1), optax.cosine_decay_schedule(0.8, 200, alpha=0.1)),
        (schedules.linear_decay(0.8, 2.0, 0.1), optax.linear_schedule(0.8, 0.08, 200)),
        (
            schedules.warmup_stable_decay(0.8, 2.0, 0.5, 0.25),
            optax.join_schedules(
                [optax.linear_schedule(0.0, 0.8, 50), optax.linear_schedule(0.8, 0.8, 125), optax.linear_schedule(0.8, 0.0, 25)],
                [50, 175],
            ),
        ),
    ],
    ids=["cosine", "linear", "warmup, stable, decay"],
)
def test_to_optax_counts_steps_as_optax_does(ours, theirs):
    # t = step / d with d = 100: the horizon of 2 is 200 steps.
    exported = schedules.to_optax(ours, 100)
    # As floats, which optax counts without rounding to float32.
    steps = [float(k) for k in range(0, 260, 5)]
    np.testing.assert_allclose([exported(k) for k in steps], [theirs(k) for k in steps], rtol=1e-14, atol=1e-15)


def test_from_optax_and_back():
    theirs = optax.exponential_decay(0.8, 50, 0.5)
    ours = schedules.from_optax(theirs, 100, scale=4.0)
    np.testing.assert_allclose(ours(0.5), 4.0 * theirs(50), rtol=1e-14)
    back = schedules.to_optax(ours, 100, scale=0.25)
    # step / 100 * 100 is the step to rounding.
    np.testing.assert_allclose([back(k) for k in range(5)], [theirs(k) for k in range(5)], rtol=1e-14)


def test_from_optax_in_relative_time_with_a_tuned_peak():
    """A run of 200 steps as a function of u = step / 200, whatever the number of steps that a budget leaves."""
    theirs = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=20, decay_steps=200)
    ours = schedules.from_optax(theirs, 200, dmftopt.above(0.8))
    # Relative times, and what remains of the cosine after 20 of 200 steps.
    u = np.array([0.0, 0.05, 0.1, 0.55, 1.0])
    np.testing.assert_allclose(ours(jnp.asarray(u)), 0.8 * np.array([0.0, 0.5, 1.0, 0.5, 0.0]), rtol=1e-14, atol=1e-16)
    assert len(jax.tree.leaves(eqx.filter(ours, eqx.is_inexact_array))) == 1
    run = dmftopt.Budget(samples=6.0).run(dmftopt.Protocol(ours, 2.0), 1.0)
    # 6 samples in batches of 2: until t = 3.
    np.testing.assert_allclose(run.protocol.learning_rate(3 * jnp.asarray(u)), ours(jnp.asarray(u)), rtol=1e-14, atol=1e-15)


def test_to_optax_drives_optax_sgd_under_jit():
    optimizer = optax.sgd(schedules.to_optax(schedules.linear_decay(0.8, 0.04), 100, scale=0.5))
    weights, state = jnp.asarray(0.0), optimizer.init(jnp.asarray(0.0))
    update = jax.jit(optimizer.update)
    moves = []
    for _ in range(5):
        change, state = update(jnp.asarray(1.0), state)
        weights = optax.apply_updates(weights, change)
        moves.append(float(change))
    # Gradient 1, rate 0.4 falling to 0 over 0.04 * 100 = 4 steps.
    np.testing.assert_allclose(moves, [-0.4, -0.3, -0.2, -0.1, 0.0], rtol=1e-14, atol=1e-16)
    np.testing.assert_allclose(weights, -1.0, rtol=1e-14)


@EVERY
def test_solve_reads_a_schedule_as_its_values(make, closed_form, trained):
    problem = dmftopt.Problem(tasks.LeastSquares(), features.isotropic(), delta=2.0)
    grid = dmftopt.TimeGrid.uniform(2.6, 4)

    def final_risk(rate, size, ridge):
        protocol = dmftopt.Protocol(rate, lambda t: 1 + size(t), ridge)
        return dmftopt.solve(problem, protocol, grid, key=jax.random.key(0), samples=64).test_risk[-1]

    schedule = make()
    times = (0.65 * (np.arange(4)[:, None] + 0.5 + 0.15**0.5 * np.array([-1.0, 0.0, 1.0]))).ravel()

    def tabulated(t):
        # The values at three Gauss points of each step, which is where ExponentialStep reads; nothing else is known to it.
        np.testing.assert_allclose(t, times, rtol=1e-14)
        return jnp.asarray(closed_form(times))

    # The same numbers to rounding go in, and the shortest direction kept (relative variance 1e-9) amplifies that 3e4 times.
    np.testing.assert_allclose(final_risk(schedule, schedule, schedule), final_risk(tabulated, tabulated, tabulated), rtol=1e-11)


def test_whole_numbers_at_knots_interpolate_like_real_ones():
    """A batch size from 1 to 4, given as integers."""
    schedule = schedules.PiecewiseLinear((0.0, 5.0), jnp.array([1, 4]))
    np.testing.assert_allclose(schedule(jnp.array([0.0, 0.5, 2.5, 5.0])), [1.0, 1.3, 2.5, 4.0])


@pytest.mark.parametrize("precise", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["float64", "float32"])
def test_every_piece_is_read_from_its_start(precise):
    """Starts of pieces are whole up to rounding only: of a grid with one step per piece every piece was to be read once."""
    with jax.enable_x64(precise):
        for horizon in (1.0, 3.0, 7.3, 49.0):
            for pieces in (7, 10, 49, 97):
                values = jnp.arange(float(pieces))
                schedule = schedules.PiecewiseConstant(values, horizon)
                stretched = schedules.Scaled(schedules.PiecewiseConstant(values, 1.0), horizon)
                starts = dmftopt.TimeGrid.uniform(horizon, pieces).times[:-1]
                np.testing.assert_array_equal(schedule(starts), values)
                np.testing.assert_array_equal(stretched(starts), values)
                # Nothing but rounding is forgiven.
                before = starts[1:] * (1 - 100 * float(jnp.finfo(starts.dtype).eps))
                np.testing.assert_array_equal(schedule(before), values[:-1])


@pytest.mark.parametrize("count, precise", [(10**6, True), (10**5, False)], ids=["float64", "float32"])
def test_a_value_per_step_is_read_at_its_step(count, precise):
    """At t = k / dimension, where simulations and recipes read."""
    steps = np.arange(count)
    with jax.enable_x64(precise):
        for dimension in (3, 300, 1001):
            schedule = schedules.PerStep(jnp.asarray(steps, dtype=float), dimension)
            np.testing.assert_array_equal(schedule(jnp.asarray(steps / dimension, dtype=float)), steps)
            np.testing.assert_array_equal(schedule(jnp.asarray(steps, dtype=float) / dimension), steps)


def test_schedules_say_where_they_are_not_smooth():
    jumps = schedules.piecewise_constant(2.0, 4, 0.5)
    per_step = schedules.PerStep(jnp.ones(4), 10)
    own = Triangle(jnp.asarray(0.4))
    cases = [
        (schedules.constant(0.5), []),
        (schedules.power_law(0.5, 1.0), []),
        (schedules.piecewise_linear(3.0, 4, 0.5), [0.0, 1.0, 2.0, 3.0]),
        (jumps, [0.5, 1.0, 1.5]),
        (per_step, [0.1, 0.2, 0.3]),
        (schedules.cosine(0.5, 2.0), [2.0]),
        (schedules.warmup_stable_decay(0.5, 2.0, 0.5, 0.2), [0.5, 1.8, 2.0]),
        (schedules.Scaled(jumps, 3.0), [1.5, 3.0, 4.5]),
        (schedules.from_optax(optax.constant_schedule(1.0), 10), []),
        (lambda t: 1 + t, []),
        (own, [1.0]),
    ]
    for schedule, times in cases:
        np.testing.assert_allclose(dmftopt.Protocol(schedule).knots, times, rtol=1e-14)
    # Of a whole protocol, with momentum as it acts in continuous time too: sorted, within the run, of fixed number.
    whole = dmftopt.Protocol(own, schedules.Scaled(jumps, 3.0), momentum=per_step)
    for protocol in (whole, whole.in_continuous_time()):
        np.testing.assert_allclose(rates.knots(protocol, 4.0), [0.1, 0.2, 0.3, 1.0, 1.5, 3.0, 4.0], rtol=1e-14)

    def last(horizon):
        return rates.knots(dmftopt.Protocol(schedules.Scaled(jumps, horizon)), 10.0)[-1]

    np.testing.assert_allclose(jax.jit(last)(2.0), 3.0)
    np.testing.assert_allclose(jax.grad(last)(2.0), 1.5)
    for wrong in (3, "many", [[0.5]], [jnp.nan]):
        with pytest.raises((ValueError, TypeError), match="knots"):
            rates.knots(dmftopt.Protocol(Triangle(own.peak, wrong)), 2.0)


class Triangle(eqx.Module):
    """A schedule of one's own: any callable of t, trained where it holds arrays. It says where it has a kink."""

    peak: jax.Array
    knots: tuple = (1.0,)

    def __call__(self, t):
        return self.peak * (1 - jnp.abs(t - 1))


def test_a_schedule_of_ones_own():
    """Read, tuned and written down like those of the package."""
    protocol = dmftopt.Protocol(Triangle(jnp.asarray(0.4)), lambda t: 1 + t)
    steps = dmftopt.recipe(protocol, horizon=2.0, dimension=10, delta=1.0)
    np.testing.assert_allclose(steps.learning_rate, 0.4 * (1 - np.abs(np.arange(20) / 10 - 1)), atol=1e-15)
    found = dmftopt.optimize(lambda p: (p.learning_rate(1.0) - 0.5) ** 2, protocol, steps=40, progress=False)
    np.testing.assert_allclose(found.protocol.learning_rate.peak, 0.5, atol=1e-2)
    with pytest.raises(ValueError, match=r"learning_rate must be >= 0 at every time, got -0\.04 at t = 2\.1"):
        dmftopt.recipe(protocol, horizon=2.2, dimension=10, delta=1.0)


def test_a_table_is_known_at_its_own_times_only():
    table = schedules.Tabulated(jnp.array([0.0, 0.5, 2.0]), jnp.array([1.0, 3.0, 2.0]))
    np.testing.assert_array_equal(table(jnp.array([0.0, 0.5 + 1e-16, 2.0])), [1.0, 3.0, 2.0])
    with pytest.raises(ValueError, match="t must be the times of the table"):
        table(jnp.array([0.0, 0.6, 2.0]))
    with pytest.raises(ValueError, match=r"t must have shape \(3,\)"):
        table(jnp.zeros(2))
    # Traced, nothing can be raised: what comes of NaN is known to every route as invalid.
    values, times = table.values, jnp.array([0.0, 0.6, 2.0])
    slope = jax.grad(lambda v: eqx.tree_at(lambda s: s.values, table, v)(table.times)[1])(values)
    np.testing.assert_array_equal(slope, [0, 1, 0])
    np.testing.assert_array_equal(eqx.filter_jit(table)(times), [1.0, np.nan, 2.0])
