"""What type checkers should refuse, a line each. Never run."""

import jax

import dmftopt

problem = dmftopt.Problem(dmftopt.tasks.LeastSquares(), dmftopt.features.isotropic(), delta=2.0)
grid = dmftopt.TimeGrid.uniform(horizon=1.0, steps=4)
dmftopt.solve(problem, 0.5, grid, key=jax.random.key(0))  # refused
dmftopt.solve(problem, dmftopt.Protocol(0.5), grid)  # refused
dmftopt.TimeGrid.uniform(1.0, 4).step  # noqa: B018 # refused
risk: float = dmftopt.limits.least_squares(problem, dmftopt.Protocol(0.5), grid).test_risk  # refused
