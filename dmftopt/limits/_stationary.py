"""Where training ends: the minimizer of the regularized train loss."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix
from jax.scipy.special import ndtr
from jaxtyping import Array

from .._checks import check_real, check_shape, front_door, numbers_to_arrays
from ..numerics.quadrature import gaussian_nodes, safe_sqrt
from ..problem import Problem, check_linear, check_problem, check_single
from ..results.observables import as_column, from_kernel
from ..tasks import LeastSquares, Logistic
from ._result import Groups, Limit, ended, finish, positive_or_one
from ._roots import root
from ._spectral import ridge_shrinkage


@front_door
def stationary(problem: Problem, ridge: float | Array, *, throw: bool = True) -> Limit:
    """The minimizer of (1/delta) sum_i loss(x_i·theta, y_i) + ridge |theta|² / 2 for d -> infinity: what gradient flow reaches
    at infinite time, from any student.

    With w = (O/rho) w_star + s z, s² = Q - O²/rho, the training field r solves r + (V/delta) l(r, y) = w; with g = l(r, y),

        a = E[g z] / s        b = (E[g w_star] - a O) / rho        c = E[g²]
        O = -sum_a omega_a lambda_a² b T_a² / (ridge + lambda_a a)
        Q = sum_a omega_a lambda_a (lambda_a² b² T_a² + lambda_a c / delta) / (ridge + lambda_a a)²
        V = sum_a omega_a lambda_a / (ridge + lambda_a a)

    where T is the teacher's scale. The result has the one time infinity: shapes are those of `dmftopt.Observables` with 1 time
    and 0 steps.

    `throw`: as in `limits.least_squares`. Differentiable in everything real (implicitly). Sources: Thrampoulidis, Abbasi and
    Hassibi, arXiv:1601.06233; Salehi, Abbasi and Hassibi, arXiv:1906.03761. Raises ValueError unless ridge > 0 (without it there
    may be no minimizer, or many), TypeError for a task other than LeastSquares and Logistic.
    """
    check_problem(problem)
    check_single(problem, "limits.stationary")
    check_linear(problem, "limits.stationary")
    if not isinstance(problem.task, (LeastSquares, Logistic)):
        raise TypeError(f"problem.task must be LeastSquares or Logistic here, got {type(problem.task).__name__}. Use solve.")
    check_real("ridge", ridge, minimum=0.0, exclusive=True, cure="Without a ridge the minimizer may not exist or be unique.")
    check_shape("ridge", ridge, ((),), "Use jax.vmap for a sweep.")
    return finish(_stationary(*numbers_to_arrays((problem, ridge))), throw, "stationary")


@eqx.filter_jit
def _stationary(problem: Problem, ridge: Any) -> Limit:
    dtype = jnp.asarray(problem.features.eigenvalues).dtype
    groups = Groups(problem, dtype)
    asked = jnp.asarray(ridge, dtype)
    ridge, delta = positive_or_one(asked), groups.delta
    args = (problem.task, groups.eigenvalues, groups.weights, groups.teacher, delta, ridge)

    def changes(x):
        return jax.tree.map(jnp.subtract, _picture(x, args), x)

    # V from the largest curvature h of the loss, with which it solves in closed form: from there the iteration has always
    # converged, where from V of a loss without curvature it overflows. Newton's method finishes.
    h = problem.task.curvature(jnp.zeros((), dtype), jnp.ones((), dtype))
    k = ridge_shrinkage(groups, ridge / h)
    stiffest = jnp.sum(groups.field_weights / (ridge + h * groups.eigenvalues * k))
    start = (jnp.log(stiffest), jnp.zeros((), dtype), jnp.log(groups.rho))
    tolerance = 1e-10 if dtype == jnp.float64 else 1e-4
    start, fixed = jax.lax.stop_gradient((start, args))
    iteration = optimistix.FixedPointIteration(rtol=1e-3, atol=1e-3)
    near = optimistix.fixed_point(_picture, iteration, start, fixed, max_steps=300, throw=False).value
    near = jax.tree.map(lambda a, b: jnp.where(jnp.isfinite(a), a, b), near, start)
    x = root(changes, jax.lax.stop_gradient(near), tolerance, 64)
    solved = jnp.all(jnp.abs(jnp.stack(changes(x))) < 1e3 * tolerance)

    _, ratio, log_variance = x
    loss, error, (a, b, c) = _fields(x, args)
    overlap = ratio * groups.rho
    square = jnp.exp(log_variance) + overlap * ratio
    norm = jnp.sum(groups.weights * _second_moment(a, b, c, args))
    error, response = None if error is None else error[None], jnp.zeros((1, 0), dtype)
    kernels = (as_column(a) for a in (square[None, None], overlap[None], norm[None], groups.rho, response))
    correlation, overlap, norm, rho, response = kernels
    observables = from_kernel(problem, correlation, overlap, norm, loss[None], error, rho, response)
    valid = problem.valid() & (asked > 0)
    return ended(jnp.full(1, jnp.inf, dtype), observables, valid, solved)


def _picture(x, args):
    """One round of the equations, in the unknowns (log V, O / rho, log s²)."""
    _, eigenvalues, weights, teacher, _, ridge = args
    _, _, (a, b, c) = _fields(x, args)
    field_weights = weights * eigenvalues
    rho = jnp.sum(field_weights * teacher)
    v = jnp.sum(field_weights / (ridge + eigenvalues * a))
    ratio = -jnp.sum(field_weights * eigenvalues * b * teacher / (ridge + eigenvalues * a)) / rho
    # Q - O²/rho as one sum of positive terms: the teacher's part is a variance over groups.
    signal = -b * eigenvalues / (ridge + eigenvalues * a)
    noise = _second_moment(a, 0.0 * b, c, args)
    variance = jnp.sum(field_weights * ((signal - ratio) ** 2 * teacher + noise))
    return jnp.log(v), ratio, jnp.log(variance)


def _second_moment(a, b, c, args):
    """E[theta²] of each group."""
    _, eigenvalues, _, teacher, delta, ridge = args
    return (eigenvalues**2 * b**2 * teacher + eigenvalues * c / delta) / (ridge + eigenvalues * a) ** 2


def _fields(x, args):
    """Train loss and error, and (a, b, c)."""
    task, eigenvalues, weights, teacher, delta, _ = args
    log_v, ratio, log_variance = x
    rho = jnp.sum(weights * eigenvalues * teacher)
    stiffness, s = jnp.exp(log_v) / delta, jnp.exp(0.5 * log_variance)
    xi, y, shares = task.population(safe_sqrt(rho))
    z, z_weights = gaussian_nodes(0.125, s.dtype)
    w_star = safe_sqrt(rho) * xi
    center = ratio * w_star
    r = _training_field(task, center[:, None] + s * z[None], jnp.broadcast_to(y[:, None], (y.size, z.size)), stiffness)
    g = task.gradient(r, y[:, None])
    a = shares @ ((g - shares @ (g @ z_weights)) @ (z_weights * z)) / s
    b = (shares * w_star) @ (g @ z_weights) / rho - a * ratio
    loss = shares @ (task.loss(r, y[:, None]) @ z_weights)
    error = None
    if isinstance(task, Logistic):
        # r changes sign with w - (V/delta) l(0, y), so the jump is integrated exactly. The nodes have y = 1.
        error = shares @ ndtr((stiffness * task.gradient(jnp.zeros_like(y), y) - center) / s)
    return loss, error, (a, b, shares @ (g**2 @ z_weights))


def _training_field(task, w, y, stiffness):
    """r + stiffness * l(r, y) = w, elementwise."""

    # The logistic l is convex on one side of 0 and concave on the other: from 0, Newton's method never passes the root.
    tolerance = 8 * float(jnp.finfo(w.dtype).eps)

    def solve(w, y):
        return root(lambda r: r + stiffness * task.gradient(r, y) - w, jnp.zeros_like(w), tolerance, 64)

    return jax.vmap(jax.vmap(solve))(w, y)
