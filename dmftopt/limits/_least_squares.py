"""Least squares at any delta: modes of the sample covariance, coupled through the train loss."""

from typing import cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_count, check_instance, check_real, check_shape, front_door, numbers_to_arrays
from ..problem import Problem, check_linear
from ..protocol import Protocol
from ..protocol.grid import TimeGrid
from ..protocol.noise import AbstractNoise, Poisson
from ..results.observables import Observables, as_column, from_kernel
from ..tasks import LeastSquares
from ._heavy_ball import along_heavy, heavy_contour
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
)
from ._spectral import Contour, contour, ridge_shrinkage
from ._trajectory import Stepping, stepping, survey
from ._volterra import STEPS, Modes, Path, along, check_steps, kicks


@front_door
def least_squares(
    problem: Problem,
    protocol: Protocol,
    grid: TimeGrid,
    *,
    noise: AbstractNoise = Poisson(),
    nodes: int | None = None,
    steps: int = STEPS,
    tolerance: float | None = None,
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
    equivalents on `nodes` nodes, by default 128 (see `_spectral.contour`). They converge like exp(-2 nodes asinh(.75 / h)), h
    half the logarithm of the range of eigenvalues that matter (at most the largest one times A): against 256 nodes, 128 left
    8e-12 at t = 1e6, and 3e-7 with a power-law spectrum 1e7 times as wide.
    Poisson() and Brownian() noise coincide under the squared loss; NoNoise() is gradient flow.
    `test_error` and `train_error` are None. At a learning rate above `critical_learning_rate` the loss grows without bound.

    - `steps`: in equal parts of log time, from the start and from each knot of a schedule, and towards the next (see
      `_volterra.along`), beside times of the grid and quantiles of what the protocol does: so t = 1e6 costs what t = 10 does. Of
      fourth order (of second where the ridge changes), each step halved once more; `limit.discretization_error` is a third of the
      difference that makes. Beyond 1% of the residuals' power the result is `RESULTS.inaccurate`; where learning rate / batch
      size is beyond critical for longer than steps can follow it is `RESULTS.unstable`. A schedule is looked at about 7000 times,
      a sixth of them in equal steps of log time, and between its knots: one that acts for a shorter time is right if it has
      `knots` (see `dmftopt.schedules`), and otherwise the result is `RESULTS.inaccurate`, or, if it acts between two looks only,
      as if it did not.
    - With `Protocol(friction=gamma)` positions x have a velocity beside them, of which p, c and v are the first component:
      x'' = -gamma x' + (what x' is above), noise included; `response` is not told. Contours are flat then, and have 512 nodes by
      default: `RESULTS.unconverged` if the run oscillates too often for these. The equations are stepped by diffrax's Tsit5 with
      relative error `tolerance` (by default 1e-7 in float64, 1e-5 in float32), at most `max_steps` between times of the grid, and
      differentiated by `adjoint` (reverse mode by default), as in `limits.online`; `steps` is not used, and the error not stated.
    - `throw`: raise `SolveError` where the result is not successful. Inside jit, grad or vmap nothing can be raised: look
      at `limit.result`; failed entries are NaN.

    Differentiable in everything real in `problem` and `protocol`, forward and in reverse. Sources: Paquette et al.,
    arXiv:2102.04396; Ali, Dobriban and Tibshirani, arXiv:2003.07802; for friction, arXiv:2505.16098. Raises TypeError for other
    tasks or noise, ValueError for a schedule outside its domain.
    """
    protocol = check_continuous(problem, protocol, grid, noise)
    check_least_squares(problem, "least_squares")
    heavy = protocol.friction is not None
    nodes = (512 if heavy else 128) if nodes is None else nodes
    check_count("nodes", nodes, minimum=8)
    check_steps(steps, nodes)
    if tolerance is None:
        tolerance = 1e-7 if grid.times.dtype == jnp.float64 else 1e-5
    how = stepping(tolerance, max_steps, adjoint)
    problem, protocol = numbers_to_arrays((problem, protocol))
    if heavy:
        check_grid(grid, 16 + 8 * nodes, f"{nodes} nodes")
        return finish(_heavy_ball(problem, protocol, grid, noise, nodes, how), throw, "least_squares")
    check_grid(grid, 12, "a few kernels")
    return finish(_least_squares(problem, protocol, grid, noise, nodes, steps), throw, "least_squares")


@eqx.filter_jit
def _least_squares(problem: Problem, protocol: Protocol, grid: TimeGrid, noise: AbstractNoise, nodes: int, steps: int) -> Limit:
    groups = Groups(problem, grid.times.dtype)
    slowest = positive_or_one(jax.lax.stop_gradient(survey(protocol, noise, grid).clock[-1]))
    traces = _Traces(problem, groups, contour(groups, slowest, nodes))
    fine, rough, valid, integrated = along(traces.modes, protocol, noise, grid, steps)

    def observed(found: Path):
        A, R, c, v, power = found
        z = traces.path.z
        p = jnp.exp(-A.astype(z.dtype)[:, None] * z[None] - R.astype(z.dtype)[:, None])
        response, noisy = kicks(A, R, z, lambda since: traces.real(traces.field, since), v)
        return traces.observed(p, c, v, power, noisy, response)

    valid = in_domain(problem, grid) & valid
    return ended(grid.times, observed(fine), valid, traces.path.good, integrated, observed(rough))


@eqx.filter_jit
def _heavy_ball(problem: Problem, protocol: Protocol, grid: TimeGrid, noise: AbstractNoise, nodes: int, how: Stepping) -> Limit:
    groups = Groups(problem, grid.times.dtype)
    path, good = heavy_contour(groups, protocol, noise, grid, nodes)
    traces = _Traces(problem, groups, path)
    found, valid, integrated = along_heavy(traces.modes, lambda f: traces.real(traces.field, f), protocol, noise, grid, how)
    observables = traces.observed(found.p, found.c, found.v, found.power, found.noisy, None)
    return ended(grid.times, observables, in_domain(problem, grid) & valid, good, integrated)


class _Traces:
    """Sums over the modes of the sample covariance, on a contour."""

    def __init__(self, problem: Problem, groups: Groups, path: Contour):
        self.problem, self.groups, self.path = problem, groups, path
        self.sigma2 = jnp.asarray(cast(LeastSquares, problem.task).label_noise, groups.weights.dtype) ** 2
        self.student, self.teacher, self.plain = (
            self.group_sum(a) for a in (groups.student, groups.teacher, jnp.ones_like(groups.weights))
        )
        self.field, self.field_teacher = (
            self.group_sum(groups.eigenvalues * a) for a in (jnp.ones_like(groups.weights), groups.teacher)
        )
        self.label = (self.sigma2 / groups.delta).astype(path.z.dtype) * self.plain

    def real(self, coefficients, values):
        """Contour integral of values (..., node)."""
        return 2 * jnp.sum(jnp.broadcast_to(coefficients, values.shape) * values, axis=-1).real

    def group_sum(self, values):
        return jnp.sum(values.astype(self.path.z.dtype)[:, None] * self.path.one, axis=0)

    @property
    def modes(self) -> Modes:
        real, label = self.real, self.label

        def forced(p, c):
            z = jnp.broadcast_to(self.path.z, p.shape)
            residual = real(self.student, z * p**2) + real(self.teacher, z * (c * z - 1) ** 2) + real(label, (c * z) ** 2)
            return residual - 2 * real(label, c * z) + self.sigma2

        def felt(v):
            return real(self.plain, v * jnp.broadcast_to(self.path.z, v.shape))

        return Modes(self.path.z, forced, felt, _edge(self.groups))

    def between(self, coefficients, u):
        """sum_a coefficients_a (1/d) tr[P_a u_t(H) Lambda u_s(H)]."""
        same, mirror = self.path.two(coefficients)
        return 2 * (u @ same @ u.T + u @ mirror @ jnp.conj(u).T).real

    def observed(self, p, c, v, power, noisy, response) -> Observables:
        """From coefficients and variances (time, mode), the residuals' power (time,), and the covariance of the fields' noise."""
        groups, real, z = self.groups, self.real, self.path.z[None]
        noise_in_labels = 2 * (self.sigma2 / groups.delta)
        correlation = self.between(groups.student, p) + self.between(groups.teacher, c * z)
        correlation = correlation + noise_in_labels * ((c * self.field[None] * z) @ c.T).real + noisy
        norm = real(self.student, p**2) + real(self.teacher, (c * z) ** 2) + real(self.label, c**2 * z) + real(self.plain, v)
        overlap = real(self.field_teacher, c * z)
        kernels = (as_column(a) for a in (correlation, overlap, norm, groups.rho))
        correlation, overlap, norm, rho = kernels
        response = None if response is None else as_column(response)
        return from_kernel(self.problem, correlation, overlap, norm, 0.5 * power, None, rho, response)


def _edge(groups: Groups) -> Float[Array, ""]:
    """No eigenvalue of H is larger."""
    return jnp.max(groups.eigenvalues) * (1 + 1 / jnp.sqrt(groups.delta)) ** 2


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
