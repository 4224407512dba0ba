"""delta -> infinity: every sample is seen once."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import numbers_to_arrays
from ..grid import TimeGrid
from ..noise import AbstractNoise, Poisson
from ..observables import from_kernel
from ..problem import Problem
from ..protocol import Protocol
from ..quadrature import gaussian_nodes, safe_sqrt
from ._result import (
    Groups,
    Limit,
    blank_unless,
    check_continuous,
    finish,
    in_domain,
    integrate,
    read,
    response_of,
    symmetric,
)


def online(
    problem: Problem, protocol: Protocol, grid: TimeGrid, *, noise: AbstractNoise = Poisson(), tolerance: float | None = None
) -> Limit:
    """SGD in the limit d -> infinity where no sample is seen twice, delta -> infinity (`problem.delta` is ignored). Any task.

    A coordinate of eigenvalue lambda is theta = g theta_star + p theta_0 + N(0, v) with

        dg/dt = -eta [lambda (a g + b) + ridge g]          d log p/dt = -eta (lambda a + ridge)
        dv/dt = -2 eta (lambda a + ridge) v + lambda (eta²/B) E[l²]

    where a and b are the mean responses of l(w, y) to the student's field w and the teacher's field w_star. They are taken
    as Gaussian correlations, so kinked losses need no second derivative: with w = (O/rho) w_star + s z, s² = Q - O²/rho,

        a = E[l z] / s            b = (E[l w_star] - a O) / rho.

    Nothing else is random in this limit: `noise` Poisson() and Brownian() coincide, and NoNoise() drops the eta²/B term.
    train_loss = test_risk and train_error = test_error.

    - `grid`: times of observation; the equations are stepped adaptively with relative error `tolerance` (default 1e-6 in
      float64, 1e-5 in float32) by diffrax's Tsit5. Expectations over (w_star, label) are as good as the task's `population`.

    Reverse-mode differentiable in everything real. Sources: Saad and Solla, Phys. Rev. E 52 (1995) 4225; Goldt et al.,
    arXiv:1906.08632. Raises TypeError for other noise, ValueError for a schedule outside its domain, FloatingPointError where
    the result is not finite (inside jit: NaN).
    """
    check_continuous(problem, protocol, grid, noise)
    if tolerance is None:
        tolerance = 1e-6 if grid.times.dtype == jnp.float64 else 1e-5
    problem, protocol = numbers_to_arrays((problem, protocol))
    limit = _online(problem, protocol, grid, noise.deterministic, tolerance)
    return finish(limit, "Lower the learning rate or raise the batch size; if it is stable, raise tolerance.")


@eqx.filter_jit
def _online(problem: Problem, protocol: Protocol, grid: TimeGrid, deterministic: bool, tolerance: float) -> Limit:
    times = grid.times
    groups = Groups(problem, times.dtype)
    lam = groups.eigenvalues
    xi, y, weights = problem.task.population(safe_sqrt(groups.rho))
    w_star = safe_sqrt(groups.rho) * xi
    # A logistic loss has its nearest singularity at a distance pi / s in z: exact to 1e-8 up to s = 4.
    z, z_weights = gaussian_nodes(0.25, times.dtype)

    def order_parameters(g, p, v):
        overlap = jnp.sum(groups.field_weights * g * groups.teacher, axis=-1)
        return overlap, jnp.sum(groups.field_weights * (g**2 * groups.teacher + p**2 * groups.student + v), axis=-1)

    def rates(t, state):
        g, log_p, v = state
        eta, temperature, ridge = read(protocol, t, deterministic)
        overlap, square = order_parameters(g, jnp.exp(log_p), v)
        a, b, power = averages(overlap, square)
        decay = eta * (lam * a + ridge)
        return -decay * g - eta * lam * b, -decay, -2 * decay * v + lam * temperature * power

    def averages(overlap, square):
        variance = square - overlap**2 / groups.rho
        # The limit s -> 0 is E[dl/dw] (a student that starts at 0): a central difference of width eps^(1/3) balances its
        # error eps^(2/3) against rounding, eps / s.
        floor = groups.rho * jnp.finfo(times.dtype).eps ** (2 / 3)
        s = jnp.sqrt(jnp.maximum(variance, floor))
        l = problem.task.gradient((overlap / groups.rho * w_star)[:, None] + s * z, y[:, None])
        mean = weights @ (l @ z_weights)
        # Subtracting the mean changes nothing but the rounding, which s would magnify.
        a = weights @ ((l - mean) @ (z_weights * z)) / s
        b = ((weights * w_star) @ (l @ z_weights) - a * overlap) / groups.rho
        return a, b, weights @ (l**2 @ z_weights)

    zero = jnp.zeros_like(lam)
    g, log_p, v = integrate(rates, (zero, zero, zero), times, tolerance)
    p = jnp.exp(log_p)
    overlap, _ = order_parameters(g, p, v)
    earlier = jnp.tril(jnp.ones((times.shape[0], times.shape[0]), bool))[:, :, None]
    decays = jnp.where(earlier, jnp.exp(jnp.where(earlier, log_p[:, None] - log_p[None], 0.0)), 0.0)
    correlation = symmetric(jnp.sum(groups.field_weights * decays * v[None], axis=-1))
    correlation = correlation + (g * groups.field_weights * groups.teacher) @ g.T
    correlation = correlation + (p * groups.field_weights * groups.student) @ p.T
    norm = jnp.sum(groups.weights * (g**2 * groups.teacher + p**2 * groups.student + v), axis=-1)
    response = response_of(jnp.sum(groups.field_weights * decays, axis=-1))
    observables = fresh(problem, correlation, overlap, norm, groups.rho, response)
    return Limit(times, blank_unless(in_domain(problem, protocol, times, deterministic), observables))


def fresh(problem: Problem, correlation, overlap, norm, rho: Array, response: Float[Array, "time step"]):
    """Observables where every training sample is as good as a fresh one."""
    observables = from_kernel(problem, correlation, overlap, norm, None, None, rho, response)
    return eqx.tree_at(
        lambda o: (o.train_loss, o.train_error),
        observables,
        (observables.test_risk, observables.test_error),
        is_leaf=lambda x: x is None,
    )
