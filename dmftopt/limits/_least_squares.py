"""Least squares at any delta: modes of the sample covariance, coupled through the train loss."""

from typing import cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_count, check_instance, check_real, check_shape, front_door, numbers_to_arrays
from ..numerics.quadrature import beside
from ..problem import Problem, check_linear
from ..protocol import Protocol
from ..protocol.grid import TimeGrid
from ..protocol.noise import AbstractNoise, Poisson
from ..results.observables import as_column, from_kernel
from ..tasks import LeastSquares
from ._result import (
    Groups,
    Limit,
    check_continuous,
    check_grid,
    check_least_squares,
    ended,
    finish,
    in_domain,
    positive_or_one,
    response_of,
    symmetric,
)
from ._spectral import contour, ridge_shrinkage
from ._trajectory import Stepping, stepping, survey, trajectory


@front_door
def least_squares(
    problem: Problem,
    protocol: Protocol,
    grid: TimeGrid,
    *,
    noise: AbstractNoise = Poisson(),
    nodes: int = 64,
    max_steps: int = 2**15,
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    throw: bool = True,
) -> Limit:
    """Multi-pass SGD on least squares, exactly: any delta, spectrum, scales of teacher and student, and schedules.

    With H = X^T X / delta and label noise e of variance sigma²,

        theta_t = p(H) theta_0 + c(H) (H theta_star + X^T e / delta) + noise of covariance v(H)

    where per mode z of H, with L the train loss (the only coupling between modes: a Volterra equation),

        p = exp(-A z - R),  A = int eta,  R = int eta ridge
        dc/dt = eta - eta (z + ridge) c
        dv/dt = -2 eta (z + ridge) v + 2 (eta²/B) z L.

    Traces of functions of H, also those with the population covariance in between, are contour integrals of deterministic
    equivalents on `nodes` nodes (see `_spectral.contour`). Against 192 nodes, 64 left 1e-12 where the largest sample eigenvalue
    times A was 4e3, and 5e-9 with a power-law spectrum 100 times as wide; the equations are stepped to 1e-8 (1e-5 in float32).
    Poisson() and Brownian() noise coincide under the squared loss; NoNoise() is gradient flow.
    `test_error` and `train_error` are None. At a learning rate above `critical_learning_rate` the loss grows without bound.

    - `max_steps`: of the adaptive integration, at most, from each time of the grid, knot of a schedule, or 32nd of what the
      protocol does in all, to the next. Between its knots a schedule is looked at about 6000 times first: one that acts for a
      shorter time is right if it has `knots` (see `dmftopt.schedules`), and otherwise the result is `RESULTS.inaccurate`, or, if
      it acts between two looks only, as if it did not.
    - `adjoint`: diffrax's way to differentiate it. The default is reverse mode with checkpoints; `diffrax.ForwardMode()` is for
      `jax.jvp` and `jax.jacfwd`, `diffrax.DirectAdjoint()` for both.
    - `throw`: raise `SolveError` where the result is not successful. Inside jit, grad or vmap nothing can be raised: look
      at `limit.result`; failed entries are NaN.

    Differentiable in everything real in `problem` and `protocol`. Sources: Paquette et al., arXiv:2102.04396;
    Ali, Dobriban and Tibshirani, arXiv:2003.07802. Raises TypeError for other tasks or noise, ValueError for a schedule outside
    its domain.
    """
    protocol = check_continuous(problem, protocol, grid, noise)
    check_least_squares(problem, "least_squares")
    check_count("nodes", nodes, minimum=8)
    # Complex propagators between all times.
    check_grid(grid, 6 * nodes, f"nodes = {nodes}")
    problem, protocol = numbers_to_arrays((problem, protocol))
    how = stepping(1e-8 if grid.times.dtype == jnp.float64 else 1e-5, max_steps, adjoint)
    return finish(_least_squares(problem, protocol, grid, noise, nodes, how), throw, "least_squares")


@eqx.filter_jit
def _least_squares(
    problem: Problem, protocol: Protocol, grid: TimeGrid, noise: AbstractNoise, nodes: int, how: Stepping
) -> Limit:
    times = grid.times
    dtype = times.dtype
    groups = Groups(problem, dtype)
    delta, task = groups.delta, cast(LeastSquares, problem.task)
    sigma2 = jnp.asarray(task.label_noise, dtype) ** 2

    def real(coefficients, values):
        """Contour integral of values (..., node)."""
        return 2 * jnp.sum(jnp.broadcast_to(coefficients, values.shape) * values, axis=-1).real

    def group_sum(values):
        return jnp.sum(values.astype(path.z.dtype)[:, None] * path.one, axis=0)

    zero = jnp.zeros((), dtype)
    seen = survey(protocol, noise, grid)
    slowest = positive_or_one(jax.lax.stop_gradient(seen.clock[-1]))
    path = contour(groups, slowest, nodes)
    z = path.z
    student, teacher, plain = (group_sum(a) for a in (groups.student, groups.teacher, jnp.ones_like(groups.weights)))
    field, field_teacher = (group_sum(groups.eigenvalues * a) for a in (jnp.ones_like(groups.weights), groups.teacher))
    label = (sigma2 / delta).astype(z.dtype) * plain

    def propagator(A, R):
        return jnp.exp(-A.astype(z.dtype)[..., None] * beside(z, A) - R.astype(z.dtype)[..., None])

    def loss(p, c, v):
        z = jnp.broadcast_to(path.z, p.shape)
        residual = real(student, z * p**2) + real(teacher, z * (c * z - 1) ** 2) + real(label, (c * z) ** 2) + real(plain, z * v)
        return 0.5 * (residual - 2 * real(label, c * z) + sigma2)

    def rates(eta, temperature, shrinkage, state):
        A, R, c, v = state
        c, v = (jax.lax.complex(*a) for a in (c, v))
        decay = (eta * z.real + shrinkage, eta * z.imag)
        decay = jax.lax.complex(*decay)
        dc = eta.astype(z.dtype) - decay * c
        dv = -2 * decay * v + (2 * temperature * loss(propagator(A, R), c, v)).astype(z.dtype) * z
        return eta, shrinkage, jnp.stack([dc.real, dc.imag]), jnp.stack([dv.real, dv.imag])

    still = jnp.zeros((2, nodes), dtype)
    (A, R, c, v), integrated = trajectory(rates, (zero, zero, still, still), protocol, noise, seen, how)
    c, v = (jax.lax.complex(a[:, 0], a[:, 1]) for a in (c, v))
    p = propagator(A, R)

    def between(coefficients, u):
        """sum_a coefficients_a (1/d) tr[P_a u_t(H) Lambda u_s(H)]."""
        same, mirror = path.two(coefficients)
        return 2 * (u @ same @ u.T + u @ mirror @ jnp.conj(u).T).real

    earlier = jnp.tril(jnp.ones((times.shape[0], times.shape[0]), bool))
    since = [jnp.where(earlier, a[:, None] - a[None], 0.0) for a in (A, R)]
    since = jnp.where(earlier[..., None], propagator(*since), 0.0)
    correlation = between(groups.student, p) + between(groups.teacher, c * z[None])
    correlation = correlation + 2 * (sigma2 / delta) * ((c * field[None] * z[None]) @ c.T).real
    correlation = correlation + symmetric(real(field, since * v[None]))
    norm = real(student, p**2) + real(teacher, (c * z[None]) ** 2) + real(label, c**2 * z[None]) + real(plain, v)
    overlap = real(field_teacher, c * z[None])
    response = response_of(real(field, since))
    correlation, overlap, norm, rho, response = (as_column(a) for a in (correlation, overlap, norm, groups.rho, response))
    observables = from_kernel(problem, correlation, overlap, norm, loss(p, c, v), None, rho, response)
    return ended(times, observables, in_domain(problem, grid) & seen.valid, path.good, integrated)


@front_door
def critical_learning_rate(problem: Problem, ridge: float | Array = 0.0) -> Float[Array, ""]:
    """The ratio learning rate / batch size from which SGD on least squares, at constant rates, diverges in mean square:

        (eta/B)_c = 2 / ((1/d) tr[H² (H + ridge)^-1]),    H = X^T X / delta,

    which is 2 for features of mean eigenvalue 1 without ridge, whatever delta. There the train loss at one time feeds back,
    through the noise, exactly its own amount into all later ones: the integral of the Volterra kernel
    (eta²/B) (1/d) tr[H² exp(-2 eta (H + ridge) t)] is 1. (In continuous time the drift alone never diverges.)

    Source: Paquette et al., arXiv:2102.04396. Raises TypeError for other tasks, ValueError for a negative ridge.
    """
    check_instance("problem", problem, Problem, "Build it with dmftopt.Problem(...).")
    check_least_squares(problem, "critical_learning_rate")
    check_linear(problem, "critical_learning_rate")
    check_real("ridge", ridge, minimum=0.0, cure="A negative ridge is unbounded below.")
    check_shape("ridge", ridge, ((),), "Use jax.vmap for a sweep.")
    groups = Groups(problem, jnp.asarray(problem.features.eigenvalues).dtype)
    shift = jnp.asarray(ridge, groups.weights.dtype)
    lam = groups.eigenvalues
    positive = jnp.where(shift > 0, shift, 1.0)
    k = ridge_shrinkage(groups, positive)
    # z² / (z + ridge) = z - ridge + ridge² / (z + ridge).
    share = jnp.where(shift > 0, 1 - positive * k / (positive + lam * k), 1.0)
    return 2 / jnp.sum(groups.field_weights * share)
