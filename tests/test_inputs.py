"""Bad input is refused at the front doors, by a message that names the argument and says what it must be."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dmftopt
from dmftopt import features, noise, schedules, simulate, tasks
from dmftopt.design import Estimate, Report, Row

KEY = jax.random.key(0)
PROBLEM = dmftopt.Problem(tasks.LeastSquares(), features.isotropic(), delta=2.0)
PROTOCOL = dmftopt.Protocol(0.5)
GRID = dmftopt.TimeGrid.uniform(2.0, 4)
NAN = float("nan")
MINUS_ONE_AT_END = dmftopt.Protocol(lambda t: 1.0 - t)
FLOW = dmftopt.flows.Model(lambda x, s: jnp.sum((x - s) ** 2), jnp.ones((3, 2)))
OBJECTIVE = dmftopt.Objective(PROBLEM, dmftopt.Budget(steps=1.0))
_ROW = Row(Estimate(1.0, 0.1), None, None, 1.0, 1.0)
REPORT = Report({"mine": [_ROW]}, {"mine": [np.zeros(0)]})
SPIKY = dmftopt.Problem(tasks.LeastSquares(), features.spectrum([100.0, 1.0], [0.01, 0.99]), delta=2.0)


def problem(**changes):
    return dmftopt.Problem(**{"task": tasks.LeastSquares(), "features": features.isotropic(), "delta": 2.0} | changes)


def solve(problem=PROBLEM, protocol=PROTOCOL, grid=GRID, *, key=KEY, samples=64, **options):
    return dmftopt.solve(problem, protocol, grid, key=key, samples=samples, **options)


def sgd(problem=PROBLEM, **changes):
    return simulate.sgd(problem, PROTOCOL, **{"horizon": 2.0, "dimension": 20, "runs": 1, "key": KEY, "records": 4} | changes)


def from_data(change=lambda x: x, labels=None, **options):
    x = np.random.default_rng(0).normal(size=(40, 3))
    return dmftopt.Problem.from_data(change(x), x[:, 0] if labels is None else labels, **{"train_size": 30} | options)


def optimize(objective=lambda p: p.learning_rate(0.0) ** 2, protocol=None, **options):
    protocol = dmftopt.Protocol(jnp.asarray(0.5)) if protocol is None else protocol
    return dmftopt.optimize(objective, protocol, steps=1, progress=False, **options)


PROBLEMS = {
    "delta zero": (lambda: problem(delta=0.0), ValueError, "delta must be > 0"),
    "delta negative": (lambda: problem(delta=-1), ValueError, "delta must be > 0"),
    "delta NaN": (lambda: problem(delta=NAN), ValueError, "delta must be finite"),
    "delta infinite": (lambda: problem(delta=float("inf")), ValueError, "delta must be finite"),
    "delta array": (lambda: problem(delta=jnp.ones(2)), ValueError, r"delta must have shape \(\)"),
    "delta text": (lambda: problem(delta="2"), TypeError, "delta must be a real number"),
    "delta complex": (lambda: problem(delta=2j), TypeError, "delta must be a real number"),
    "delta boolean": (lambda: problem(delta=True), TypeError, "delta must be a real number"),
    "task a class": (lambda: problem(task=tasks.LeastSquares), TypeError, "task must be a"),
    "features an array": (lambda: problem(features=jnp.ones(3)), TypeError, "features must be a Features"),
    "teacher_scale per wrong group": (lambda: problem(teacher_scale=jnp.ones(3)), ValueError, "teacher_scale must have shape"),
    "teacher_scale negative": (lambda: problem(teacher_scale=-1.0), ValueError, "teacher_scale must be >= 0"),
    "student_scale per wrong group": (lambda: problem(student_scale=jnp.ones(3)), ValueError, "student_scale must have shape"),
    "no teacher": (lambda: solve(problem(teacher_scale=0.0)), ValueError, "teacher_scale must be > 0"),
    "label law": (lambda: tasks.Logistic("signs"), ValueError, "labels must be one of"),
    "flip_probability missing": (lambda: tasks.Logistic("flipped"), ValueError, "needs flip_probability"),
    "flip_probability half": (lambda: tasks.Logistic("flipped", 0.5), ValueError, "flip_probability must be below 0.5"),
    "flip_probability negative": (lambda: tasks.Logistic("flipped", -0.1), ValueError, "flip_probability must be >= 0"),
    "flip_probability NaN": (lambda: tasks.Logistic("flipped", NAN), ValueError, "flip_probability must be finite"),
    "flip_probability of sign": (lambda: tasks.Logistic("sign", 0.1), ValueError, "flip_probability goes with"),
    "flip_probability array": (
        lambda: tasks.Logistic("flipped", jnp.full(2, 0.1)), ValueError, "flip_probability must have shape"),
    "label_noise negative": (lambda: tasks.LeastSquares(-0.1), ValueError, "label_noise must be >= 0"),
    "label_noise array": (lambda: tasks.LeastSquares(jnp.ones(2)), ValueError, "label_noise must have shape"),
    "eigenvalue zero": (lambda: features.Features(jnp.zeros(1), jnp.ones(1)), ValueError, "eigenvalues must be > 0"),
    "eigenvalue negative": (lambda: features.spectrum([1.0, -1.0]), ValueError, "eigenvalues must be > 0"),
    "eigenvalues 2-D": (lambda: features.Features(jnp.ones((1, 1)), jnp.ones((1, 1))), ValueError, "eigenvalues must be one-dim"),
    "weights of other shape": (lambda: features.Features(jnp.ones(2), jnp.ones(1)), ValueError, "weights must have shape"),
    "weights summing to 2": (lambda: features.Features(jnp.ones(2), jnp.ones(2)), ValueError, "weights must sum to 1"),
    "weight zero": (lambda: features.Features(jnp.ones(2), jnp.arange(2.0)), ValueError, "weights must be > 0"),
    "spectrum's weights": (lambda: features.spectrum([1.0, 2.0], [1.0]), ValueError, "weights must have shape"),
    "power-law exponent": (lambda: features.power_law(-1.0), ValueError, "exponent must be >= 0"),
    "no eigenvalues": (lambda: features.spectrum([]), ValueError, "eigenvalues must be one-dim"),
    "power-law underflows": (lambda: features.power_law(1e4), ValueError, "exponent must leave eigenvalues above 0"),
    "power-law dimension": (lambda: features.power_law(1.0, dimension=0), ValueError, "dimension must be at least 1"),
}  # fmt: skip

PROTOCOLS = {
    "learning_rate negative": (lambda: dmftopt.Protocol(-0.1), ValueError, "learning_rate must be >= 0"),
    "learning_rate NaN": (lambda: dmftopt.Protocol(NAN), ValueError, "learning_rate must be finite"),
    "learning_rate array": (lambda: dmftopt.Protocol(jnp.ones(2)), ValueError, "learning_rate must be a scalar"),
    "learning_rate list": (lambda: dmftopt.Protocol([0.1, 0.2]), ValueError, "learning_rate must be a scalar"),
    "learning_rate None": (lambda: dmftopt.Protocol(None), TypeError, "learning_rate must be a real number"),
    "batch_size half": (lambda: dmftopt.Protocol(1.0, 0.5), ValueError, "batch_size must be >= 1"),
    "ridge negative": (lambda: dmftopt.Protocol(1.0, ridge=-0.1), ValueError, "ridge must be >= 0"),
    "learning_rate dips": (lambda: solve(protocol=MINUS_ONE_AT_END), ValueError, "learning_rate must be >= 0"),
    "batch_size dips": (
        lambda: solve(protocol=dmftopt.Protocol(0.5, lambda t: 2.0 - t)), ValueError, "batch_size must be >= 1"),
    "ridge dips": (lambda: solve(protocol=dmftopt.Protocol(0.5, ridge=lambda t: 1.0 - t)), ValueError, "ridge must be >= 0"),
    "learning_rate turns NaN": (
        lambda: solve(protocol=dmftopt.Protocol(lambda t: NAN * t)), ValueError, "learning_rate must be finite"),
    "schedule of wrong shape": (
        lambda: solve(protocol=dmftopt.Protocol(lambda t: jnp.ones(3))), ValueError, "learning_rate must return one value"),
    "schedule of nothing": (
        lambda: solve(protocol=dmftopt.Protocol(lambda t: None)), TypeError, "learning_rate must return .* got NoneType"),
    "schedule a class": (
        lambda: solve(protocol=dmftopt.Protocol(schedules.Constant)), TypeError, "learning_rate must return .* got Constant"),
    "schedule complex": (
        lambda: solve(protocol=dmftopt.Protocol(lambda t: t.astype(complex))), TypeError, "learning_rate must return .* complex"),
    "learning_rate dips in a simulation": (
        lambda: simulate.sgd(PROBLEM, MINUS_ONE_AT_END, horizon=2.0, dimension=20, runs=1, key=KEY),
        ValueError, "learning_rate must be >= 0"),
}  # fmt: skip

SCHEDULES = {
    "horizon zero": (lambda: schedules.cosine(1.0, 0.0), ValueError, "horizon must be > 0"),
    "peak zero": (lambda: schedules.linear_decay(0.0, 1.0), ValueError, "peak must be > 0"),
    "final negative": (lambda: schedules.cosine(1.0, 1.0, -0.1), ValueError, "final must be >= 0"),
    "timescale zero": (lambda: schedules.power_law(1.0, 1.0, 0.0), ValueError, "timescale must be > 0"),
    "exponent NaN": (lambda: schedules.power_law(1.0, NAN), ValueError, "exponent must be finite"),
    "one knot": (lambda: schedules.piecewise_linear(1.0, 1, 0.1), ValueError, "knots must be at least 2"),
    "knots fractional": (lambda: schedules.piecewise_linear(1.0, 2.5, 0.1), TypeError, "knots must be a Python integer"),
    "initial of wrong length": (lambda: schedules.piecewise_linear(1.0, 3, [0.1, 0.2]), ValueError, "initial must have shape"),
    "log of zero": (lambda: schedules.piecewise_linear(1.0, 2, [1.0, 0.0], log=True), ValueError, "initial must be > 0"),
    "log of a negative": (lambda: schedules.constant(-1.0, log=True), ValueError, "value must be > 0"),
    "knots not sorted": (lambda: schedules.PiecewiseLinear([0.0, 2.0, 1.0], jnp.ones(3)), ValueError, "times must be increasing"),
    "warmup too long": (lambda: schedules.warmup_stable_decay(1.0, 1.0, 0.6, 0.5), ValueError, r"warmup \+ decay"),
    "warmup zero": (lambda: schedules.warmup_stable_decay(1.0, 1.0, 0.0, 0.5), ValueError, "warmup must be > 0"),
    "from_optax of a number": (lambda: schedules.from_optax(0.1, 100), TypeError, "schedule must be a callable"),
    "from_optax dimension": (lambda: schedules.from_optax(optax.constant_schedule(0.1), 0), ValueError, "dimension must be"),
    "final above the peak": (lambda: schedules.linear_decay(1.0, 1.0, 2.0), ValueError, "final must be at most 1"),
    "to_optax scale zero": (lambda: schedules.to_optax(PROTOCOL.learning_rate, 10, 0.0), ValueError, "scale must be > 0"),
    "initial None": (lambda: schedules.piecewise_linear(1.0, 3, None), TypeError, "initial must be real numbers"),
    "Constant negative": (lambda: schedules.Constant(-1.0), ValueError, "value must be >= 0"),
    "PiecewiseLinear empty": (lambda: schedules.PiecewiseLinear([], jnp.ones(0)), ValueError, "times must have at least one"),
    "PiecewiseLinear of a number": (lambda: schedules.PiecewiseLinear(1.0, jnp.ones(1)), TypeError, "times must be a sequence"),
    "PiecewiseLinear negative": (
        lambda: schedules.PiecewiseLinear([0.0, 1.0], jnp.array([1.0, -1.0])), ValueError, "values must be >= 0"),
    "PiecewiseConstant horizon": (lambda: schedules.PiecewiseConstant(jnp.ones(3), 0.0), ValueError, "horizon must be > 0"),
    "PiecewiseConstant empty": (lambda: schedules.PiecewiseConstant(jnp.ones(0), 1.0), ValueError, "values must be one-dim"),
    "PiecewiseConstant negative": (
        lambda: schedules.PiecewiseConstant(jnp.array([-1.0]), 1.0), ValueError, "values must be >= 0"),
    "PerStep dimension": (lambda: schedules.PerStep(jnp.ones(3), 0), ValueError, "dimension must be at least 1"),
    "PerStep scalar": (lambda: schedules.PerStep(1.0, 3), ValueError, "values must be one-dimensional"),
    "Decay peak": (lambda: schedules.Decay(-1.0, 1.0, 0.0, "linear"), ValueError, "peak must be > 0"),
    "Decay horizon": (lambda: schedules.Decay(1.0, 0.0, 0.0, "linear"), ValueError, "horizon must be > 0"),
    "Decay shape": (lambda: schedules.Decay(1.0, 1.0, 0.0, "square"), ValueError, "shape must be"),
    "PowerLaw timescale": (lambda: schedules.PowerLaw(1.0, 1.0, 0.0), ValueError, "timescale must be > 0"),
    "WarmupStableDecay": (
        lambda: schedules.WarmupStableDecay(1.0, 1.0, 0.6, 0.6, 0.0), ValueError, r"warmup \+ decay"),
    "FromOptax scale": (
        lambda: schedules.FromOptax(optax.constant_schedule(0.1), 10, -1.0), ValueError, "scale must be > 0"),
    "Scaled of a number": (lambda: schedules.Scaled(1.0), TypeError, "schedule must be a callable"),
    "horizon whose square overflows": (lambda: schedules.cosine(1.0, 1e200), ValueError, "horizon must be between"),
    "to_optax of a number": (lambda: schedules.to_optax(0.1, 100), TypeError, "schedule must be a callable"),
}  # fmt: skip

GRIDS = {
    "not increasing": (lambda: dmftopt.TimeGrid([0.0, 1.0, 1.0]), ValueError, "times must be increasing"),
    "not from 0": (lambda: dmftopt.TimeGrid([0.1, 1.0]), ValueError, "times must start at 0"),
    "NaN": (lambda: dmftopt.TimeGrid([0.0, NAN]), ValueError, "times must be finite"),
    "2-D": (lambda: dmftopt.TimeGrid([[0.0, 1.0]]), ValueError, "times must be one-dimensional"),
    "single time": (lambda: dmftopt.TimeGrid([0.0]), ValueError, "times must .* at least two entries"),
    "horizon zero": (lambda: dmftopt.TimeGrid.uniform(0.0, 4), ValueError, "horizon must be > 0"),
    "horizon negative": (lambda: dmftopt.TimeGrid.geometric(-1.0, 4), ValueError, "horizon must be > 0"),
    "horizon array": (lambda: dmftopt.TimeGrid.uniform(jnp.ones(2), 4), ValueError, "horizon must"),
    "steps fractional": (lambda: dmftopt.TimeGrid.uniform(1.0, 4.0), TypeError, "steps must be a Python integer"),
    "steps zero": (lambda: dmftopt.TimeGrid.uniform(1.0, 0), ValueError, "steps must be at least 1"),
    "nothing": (lambda: dmftopt.TimeGrid(None), TypeError, "times must be real numbers"),
    "text": (lambda: dmftopt.TimeGrid(["a", "b"]), TypeError, "times must be real numbers"),
    "times whose squares overflow": (lambda: dmftopt.TimeGrid([0.0, 1e200]), ValueError, "times must be between"),
    "ratio zero": (lambda: dmftopt.TimeGrid.geometric(1.0, 4, 0.0), ValueError, "ratio must be > 0"),
}  # fmt: skip

SOLVE = {
    "problem": (lambda: solve(problem=GRID), TypeError, "problem must be a Problem"),
    "protocol a number": (lambda: solve(protocol=0.5), TypeError, "protocol must be a Protocol"),
    "grid an array": (lambda: solve(grid=jnp.linspace(0.0, 1.0, 3)), TypeError, "grid must be a TimeGrid"),
    "noise a class": (lambda: solve(noise=noise.Poisson), TypeError, "noise must be a"),
    "step text": (lambda: solve(step="euler"), TypeError, "step must be a"),
    "key a number": (lambda: solve(key=0), TypeError, "key must be a JAX random key"),
    "key a batch of keys": (lambda: solve(key=jax.random.split(KEY, 2)), (TypeError, ValueError), "key must be"),
    "key an array of floats": (lambda: solve(key=jnp.ones(2)), TypeError, "key must be a JAX random key"),
    "samples no power of two": (lambda: solve(samples=100), ValueError, "samples must be a power of two"),
    "samples few": (lambda: solve(samples=2), ValueError, "samples must be at least"),
    "samples fractional": (lambda: solve(samples=64.0), TypeError, "samples must be a Python integer"),
    "no replicates": (lambda: solve(replicates=0), ValueError, "replicates must be at least 1"),
    "steps beyond Sobol": (lambda: solve(grid=dmftopt.TimeGrid.uniform(1.0, 12000)), ValueError, "steps: 12000"),
    "Bernoulli extrapolated": (lambda: solve(noise=noise.Bernoulli(0.5), richardson=True), ValueError, "richardson"),
    "gradient descent extrapolated": (
        lambda: solve(noise=noise.NoNoise(), step=dmftopt.DiscreteStep(), richardson=True), ValueError, "richardson"),
    "Bernoulli in continuous time": (
        lambda: solve(noise=noise.Bernoulli(0.5), step=dmftopt.ExponentialStep()), ValueError, "step.*DiscreteStep"),
    "fraction zero": (lambda: noise.Bernoulli(0.0), ValueError, "fraction must be > 0"),
    "fraction above 1": (lambda: noise.Bernoulli(1.5), ValueError, "fraction must be at most 1"),
    "fraction array": (lambda: noise.Bernoulli(jnp.full(2, 0.5)), ValueError, "fraction must have shape"),
}  # fmt: skip

SIMULATE = {
    "dimension too small for the spectrum": (
        lambda: sgd(SPIKY, dimension=20), ValueError, "dimension 20 cannot hold the spectrum"),
    "dimension fractional": (lambda: sgd(dimension=20.0), TypeError, "dimension must be a Python integer"),
    "no training sample": (lambda: sgd(problem(delta=0.01)), ValueError, "dimension 20 leaves no training sample"),
    "more records than steps": (lambda: sgd(records=41), ValueError, "records must be .* at most 40"),
    "records not from 0": (lambda: sgd(records=[0.5, 2.0]), ValueError, "records must be increasing times from 0"),
    "records within a step": (lambda: sgd(records=[0.0, 0.51, 0.52, 2.0]), ValueError, "records must be increasing times"),
    "records short of the horizon": (lambda: sgd(records=[0.0, 1.0]), ValueError, "records must .* to the horizon"),
    "horizon zero": (lambda: sgd(horizon=0.0), ValueError, "horizon must be > 0"),
    "no runs": (lambda: sgd(runs=0), ValueError, "runs must be at least 1"),
    "key a number": (lambda: sgd(key=0), TypeError, "key must be a JAX random key"),
    "Poisson gradient descent": (
        lambda: simulate.gradient_descent(PROBLEM, PROTOCOL, GRID, dimension=20, runs=1, key=KEY, noise=noise.Poisson()),
        TypeError, "noise must be NoNoise"),
    "no records": (lambda: sgd(records=[]), ValueError, "records must be increasing times"),
    "horizons": (lambda: sgd(horizon=jnp.ones(2)), ValueError, r"horizon must have shape \(\)"),
    "horizon traced": (lambda: jax.jit(lambda t: sgd(horizon=t).test_risk)(2.0), TypeError, "horizon .* cannot be traced"),
    "kick times": (
        lambda: simulate.response(
            PROBLEM, PROTOCOL, horizon=2.0, dimension=20, runs=1, key=KEY, kick_time=jnp.ones(2), records=4
        ),
        ValueError, "kick_time must have shape"),
    "recipe traced": (
        lambda: jax.jit(lambda t: dmftopt.recipe(PROTOCOL, horizon=t, dimension=9, delta=1.0).batch_size)(1.0),
        TypeError, "horizon .* cannot be traced"),
    "states of another dimension": (
        lambda: dmftopt.flows.simulate(FLOW, dmftopt.flows.SGD(), 0.1, jnp.ones((1, 4)), 3, key=KEY),
        ValueError, r"initial: the model does not take states of shape \(4,\)"),
    "tolerance": (lambda: dmftopt.limits.online(PROBLEM, PROTOCOL, GRID, tolerance=-1.0), ValueError, "tolerance must be > 0"),
    "substeps zero": (
        lambda: simulate.sgf(PROBLEM, PROTOCOL, GRID, dimension=20, runs=1, key=KEY, substeps=0),
        ValueError, "substeps must be at least 1"),
}  # fmt: skip

DATA = {
    "NaN feature": (lambda: from_data(lambda x: np.where(x > 2, NAN, x)), ValueError, "features holds . NaN"),
    "infinite label": (lambda: from_data(labels=np.full(40, np.inf)), ValueError, "labels holds 40 NaN or infinite"),
    "constant column": (lambda: from_data(lambda x: x * [1, 0, 1] + 3), ValueError, r"features has constant columns: \[1\]"),
    "duplicated column": (lambda: from_data(lambda x: x[:, [0, 1, 1]]), ValueError, "features has linearly dependent columns"),
    "too few samples": (
        lambda: from_data(lambda x: x[:3], np.arange(3), train_size=3), ValueError, "features has 3 samples in 3 dimensions"),
    "features 1-D": (lambda: from_data(lambda x: x[:, 0]), ValueError, r"features must have shape \(samples, d\)"),
    "features text": (lambda: from_data(lambda x: x.astype(str)), TypeError, "features must be real numbers"),
    "labels of wrong shape": (lambda: from_data(labels=np.zeros((40, 1))), ValueError, r"labels must have shape \(40,\)"),
    "constant labels": (lambda: from_data(labels=np.ones(40)), ValueError, "labels are all equal"),
    "train_size too large": (lambda: from_data(train_size=41), ValueError, "train_size must be at most the 40"),
    "population unknown": (lambda: from_data(population="all"), ValueError, "population must be one of 'estimate', 'sample'"),
    "train_size zero": (lambda: from_data(train_size=0), ValueError, "train_size must be at least 1"),
}  # fmt: skip

OPTIMIZE = {
    "nothing trainable": (lambda: optimize(protocol=PROTOCOL), ValueError, "protocol has nothing to tune"),
    "baselines without key": (lambda: optimize(baselines={"mine": PROTOCOL}), ValueError, "baselines .* give a key"),
    "objective a number": (lambda: optimize(0.3), TypeError, "objective must be a function"),
    "objective an array": (
        lambda: optimize(lambda p: p.learning_rate(jnp.zeros(2))), ValueError, "objective must return a real scalar"),
    "objective a whole number": (lambda: optimize(lambda p: 1), ValueError, "objective must return a real scalar"),
    "objective infinite": (
        lambda: optimize(lambda p: 1 / (p.learning_rate(0.0) - 0.5)), ValueError, "objective or gradient is not"),
    "gradient infinite": (
        lambda: optimize(lambda p: jnp.sqrt(p.learning_rate(0.0) - 0.5)), ValueError, "objective or gradient is not"),
    "fresh alone": (lambda: optimize(fresh=1), ValueError, "fresh must be at least 2"),
    "key a number": (lambda: optimize(lambda p, key: p.learning_rate(0.0), key=0), TypeError, "key must be a JAX random key"),
    "report without key": (lambda: optimize().report, ValueError, "report needs .* a key"),
    "optimizer not called": (lambda: optimize(optimizer=optax.sgd), TypeError, "optimizer must be .* Call it"),
    "baselines in a list": (
        lambda: optimize(lambda p, key: p.learning_rate(0.0), key=KEY, baselines=[PROTOCOL]),
        TypeError, "baselines must be a dict"),
    "a single start": (lambda: optimize(starts=PROTOCOL), TypeError, "starts must be a sequence"),
    "a single start beside others": (lambda: optimize(also=PROTOCOL), TypeError, "also must be a sequence"),
    "trainable a boolean": (lambda: optimize(trainable=True), TypeError, "trainable must be a function"),
    "certify a number": (lambda: dmftopt.certify(3.0, PROTOCOL), TypeError, "objective must be a function"),
    "report on a list": (lambda: dmftopt.report(OBJECTIVE, [PROTOCOL], key=KEY), TypeError, "protocols must be a dict"),
    "report on nothing": (lambda: dmftopt.report(OBJECTIVE, {}, key=KEY), ValueError, "protocols: give at least one"),
    "gain of an unknown name": (lambda: REPORT.gain("other", "mine"), ValueError, "name must be one of 'mine', got 'other'"),
    "gain over an unknown name": (lambda: REPORT.gain("mine", "other"), ValueError, "over must be one of"),
    "gain of an unknown problem": (lambda: REPORT.gain("mine", "mine", 1), ValueError, "which must be one of 0"),
    "realized of an unknown name": (lambda: REPORT.realized("other"), ValueError, "name must be one of"),
    "run of an unknown problem": (lambda: OBJECTIVE.run(PROTOCOL, 1), ValueError, "which must be one of 0"),
    "problem a number": (lambda: dmftopt.Objective(3.0), TypeError, "problem must be a Problem"),
    "noise by name": (lambda: dmftopt.Solve(noise="poisson"), TypeError, "noise must be an AbstractNoise"),
    "replicates fractional": (lambda: dmftopt.Solve(replicates=1.5), TypeError, "replicates must be a Python integer"),
    "route by name": (lambda: dmftopt.Exact("online"), TypeError, "route must be a function"),
    "observable a number": (lambda: dmftopt.objectives.final(3), TypeError, "of must be a function"),
    "budgets": (lambda: dmftopt.Budget(steps=jnp.ones(2)), ValueError, "steps must have shape"),
    "a single budget": (
        lambda: dmftopt.pareto(OBJECTIVE, PROTOCOL, dmftopt.Budget(steps=1.0)), TypeError, "budgets must be a Sequence"),
    "sensitivity of a number": (lambda: dmftopt.sensitivity(OBJECTIVE, 3.0), TypeError, "protocol must be a Protocol"),
    "baselines of a number": (lambda: dmftopt.baselines(0.3, peak=1.0), TypeError, "protocol must be a Protocol"),
    "baselines' peak": (lambda: dmftopt.baselines(PROTOCOL, horizon=1.0, peak=0.0), ValueError, "peak must be > 0"),
}  # fmt: skip

RESULTS = {
    "standard_error of one replicate": (lambda: solve().standard_error, ValueError, "standard_error needs"),
    "bias not asked for": (lambda: solve().bias, ValueError, "bias was not estimated"),
    "save to a folder": (lambda: dmftopt.save("/", solve()), IsADirectoryError, "path must be the name of a file"),
    "save to a number": (lambda: dmftopt.save(3, solve()), TypeError, "path must be the name of a file"),
    "compare with a number": (lambda: dmftopt.compare(solve(), 1.0), TypeError, "second must be a"),
    "compare beyond the horizon": (
        lambda: dmftopt.compare(solve(), solve(grid=dmftopt.TimeGrid.uniform(3.0, 4))), ValueError, "second runs to t = 3"),
}  # fmt: skip

TABLES = {
    "problem": PROBLEMS, "protocol": PROTOCOLS, "schedule": SCHEDULES, "grid": GRIDS, "solve": SOLVE,
    "simulate": SIMULATE, "data": DATA, "optimize": OPTIMIZE, "result": RESULTS,
}  # fmt: skip
CASES = [pytest.param(*case, id=f"{table}: {name}") for table, cases in TABLES.items() for name, case in cases.items()]


@pytest.mark.parametrize("call, exception, message", CASES)
def test_bad_input_is_refused(call, exception, message):
    with pytest.raises(exception, match=message):
        call()


def test_unstable_learning_rate_raises_and_names_the_cure():
    with pytest.raises(dmftopt.SolveError, match="Lower the learning rate"):
        solve(protocol=dmftopt.Protocol(1e6))


def test_throw_false_returns_finite_values_up_to_the_failure_and_nan_after():
    # Stable until t = 1, the third of five times: what comes before the failure must survive it.
    solution = solve(protocol=dmftopt.Protocol(lambda t: jnp.where(t < 1.0, 0.5, 1e6)), throw=False)
    assert solution.result != dmftopt.RESULTS.successful
    finite = np.isfinite(solution.test_risk)
    first = int(np.argmin(finite))
    assert 2 < first < 5
    assert not finite[first:].any()
    for name, value in solution.observables.arrays().items():
        assert np.isfinite(value[:first] if name != "correlation" else value[:first, :first]).all(), name
        assert np.isnan(value[first:]).all(), name
    assert np.isnan(solution.correlation[:, first:]).all()


def test_invalid_values_inside_jit_become_a_result_code():
    # Nothing can be raised there: a negative rate must not come back as numbers.
    solution = eqx.filter_jit(lambda rate: solve(protocol=dmftopt.Protocol(rate)))(jnp.asarray(-0.1))
    assert solution.result == dmftopt.RESULTS.invalid
    assert np.isnan(solution.test_risk).all()


# The table proves something only if the objects it varies pass unchanged.
VALID = {
    "solve": lambda: solve().test_risk,
    "sgd": lambda: sgd().test_risk,
    "from_data": lambda: from_data().delta,
    "optimize": lambda: optimize().value,
}


@pytest.mark.parametrize("call", VALID.values(), ids=VALID.keys())
def test_valid_input_is_accepted(call):
    assert np.isfinite(call()).all()


@pytest.mark.parametrize(
    "number", [2, np.int64(2), np.float64(2), jnp.asarray(2), jnp.asarray(2.0)], ids=lambda n: type(n).__name__
)
def test_any_kind_of_number_is_accepted(number):
    np.testing.assert_array_equal(solve(problem(delta=number)).test_risk, solve(problem(delta=2.0)).test_risk)
    given, expected = (solve(protocol=dmftopt.Protocol(value, value, value)) for value in (number, 2.0))
    np.testing.assert_array_equal(given.test_risk, expected.test_risk)
