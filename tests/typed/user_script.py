"""A user's program, which tests/test_typed.py checks with pyright in its strict mode. It is never run."""

from pathlib import Path

import jax
import optax

import dmftopt
from dmftopt import features, limits, noise, plot, schedules, simulate, tasks

# Problem, protocol, grid.
problem = dmftopt.Problem(
    tasks.Logistic("sign"), features.spectrum([4.0, 1.0], [0.3, 0.7]), delta=2.0, teacher_scale=1.0, student_scale=0.5
)
protocol = dmftopt.Protocol(
    schedules.piecewise_linear(5.0, 6, 1.0, log=True), batch_size=dmftopt.above(2.0, 1.0), ridge=0.1, momentum=0.5
)
grid = dmftopt.TimeGrid.geometric(horizon=5.0, steps=40)
key = jax.random.key(0)

# Solve, look.
solution = dmftopt.solve(
    problem, protocol, grid, key=key, noise=noise.Poisson(), samples=1024, replicates=4, step=dmftopt.ExponentialStep(),
    solver=dmftopt.CausalInnovations(), richardson=True, throw=False, metrics={"confusion": dmftopt.metrics.Confusion()},
)  # fmt: skip
if solution.result != dmftopt.RESULTS.successful:
    raise SystemExit("failed")
final = float(solution.test_risk[-1])
spread = float(solution.standard_error.test_risk[-1])
overlap = solution.teacher_overlap[:, 0, 0]
error = solution.test_error
print(final, spread, overlap.shape, None if error is None else error[-1], solution.response.shape, solution.stats.samples)
print(solution.test_metrics["confusion"].shape)


# Tune.
def objective(protocol: dmftopt.Protocol, key: jax.Array) -> jax.Array:
    return dmftopt.solve(problem, protocol, grid, key=key, noise=noise.Brownian(), samples=256).test_risk[-1]


found = dmftopt.optimize(
    objective,
    protocol,
    optimizer=optax.adam(0.05),
    steps=10,
    key=key,
    baselines=dmftopt.baselines(protocol, horizon=5.0, peak=1.0),
)
for name, score in found.report.items():
    print(name, score.mean, score.standard_error, score.failures)
print(found, found.value, found.history[-1], found.protocol)

# Under a budget.
budget = dmftopt.Budget(samples=20.0)
design = dmftopt.Objective(problem, budget, measure=dmftopt.objectives.final(), predict=dmftopt.Solve(samples=256))
better = dmftopt.optimize(design, protocol, steps=5)
print(dmftopt.report(design, better.protocol, key=key))
steps = dmftopt.recipe(protocol, horizon=5.0, dimension=100, delta=2.0)
print(steps.learning_rate[0], steps.batch_size[0], steps.samples)
steps.save(Path("recipe.csv"))

# The other routes.
regression = dmftopt.Problem(tasks.LeastSquares(0.3), features.isotropic(), delta=2.0)
exact = limits.least_squares(regression, dmftopt.Protocol(0.5), grid)
fastest = float(limits.critical_learning_rate(regression))
simulation = simulate.sgd(problem, protocol, horizon=5.0, dimension=200, runs=8, records=grid.times, key=key)
comparison = dmftopt.compare(solution, simulation)
if not comparison.agrees(sigmas=3.0, relative=0.005):
    print(comparison)
print(float(exact.test_risk[-1]), fastest, float(simulation.standard_error.train_loss[-1]))

# Keep.
path = Path("solution.npz")
dmftopt.save(path, solution)
loaded = dmftopt.load(path)
if isinstance(loaded, dmftopt.Solution):
    print(float(loaded.test_risk[-1]))
dataset = solution.to_xarray()
axes = plot.comparison(solution, simulation, "test_risk")
