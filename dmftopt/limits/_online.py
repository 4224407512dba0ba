"""delta -> infinity: every sample is seen once."""

import dataclasses
from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import front_door, numbers_to_arrays
from ..numerics.matrices import inverse_root, rank_floor, square_root
from ..numerics.quadrature import gaussian_nodes, safe_sqrt
from ..problem import Problem, group_gains, updated
from ..protocol import Protocol
from ..protocol.grid import TimeGrid
from ..protocol.noise import AbstractNoise, Poisson
from ..protocol.rates import check_update
from ..protocol.updates import AbstractUpdate, Adam, is_coordinatewise
from ..protocol.variables import number
from ..results.measure import NOTHING, Measured, Metrics, check_metrics, coordinate_nodes, linear_values, weight_means
from ..results.metrics import AbstractFieldMetric, AbstractWeightMetric
from ..results.observables import as_column, from_kernel
from ..tasks import AbstractTask, LeastSquares
from ..tasks import columns as columns
from ._result import Groups, Limit, check_continuous, check_grid, ended, finish, in_domain, positive_or_one
from ._trajectory import Coefficients, Stepping, drift, pushed, stepping, survey, trajectory
from ._volterra import STEPS, Modes, Path, along, check_steps, kicks


@front_door
def online(
    problem: Problem,
    protocol: Protocol,
    grid: TimeGrid,
    *,
    noise: AbstractNoise = Poisson(),
    tolerance: float | None = None,
    max_steps: int = 2**15,
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint(),
    steps: int = STEPS,
    throw: bool = True,
    metrics: dict[str, AbstractFieldMetric | AbstractWeightMetric] | None = None,
) -> Limit:
    """SGD in the limit d -> infinity where no sample is seen twice, delta -> infinity (`problem.delta` is ignored). Any task.

    A coordinate of eigenvalue lambda is theta = g theta_star + p theta_0 + N(0, v) with

        dg/dt = -eta [lambda (a g + b) + ridge g]          dp/dt = -eta (lambda a + ridge) p
        dv/dt = -eta [(lambda a + ridge) v + transpose] + lambda (eta²/B) E[l l^T]

    where a and b are the mean responses of l(w, y) to the student's fields w and the teacher's w_star (matrices for several
    columns): with w = O rho^-1 w_star + s z, s² = Q - O rho^-1 O^T,

        a = E[dl / dw] = E[l z^T] s^-1            b = (E[l w_star^T] - a O) rho^-1.

    The Gaussian correlation is what is used where losses have kinks. For a mixture w = O 1_c + s z in cluster c, s² = Q, and
    b = E[l 1_c^T].

    With `Protocol(friction=gamma)` a coordinate has a velocity u beside it, theta' = u, u' = -gamma u + what theta' is above, the
    noise included; the response is not told then.

    Nothing else is random in this limit: `noise` Poisson() and Brownian() coincide, and NoNoise() drops the eta²/B term.
    train_loss = test_risk, train_error = test_error, train_metrics = test_metrics.

    - `grid`: times of observation; the equations are stepped adaptively with relative error `tolerance` (default 1e-6 in
      float64, 1e-5 in float32) by diffrax's Tsit5. Expectations over (w, w_star, label) are integrals in one dimension, good to
      1e-8 at any scale, for classifications and robust regressions (with a label law of your own: in two). With several columns
      those of erf committees are in closed form; others are over 8192 fixed low-discrepancy points and their mirror images: good
      to about 1e-4 at a time (labels that jump: 1e-3), which a plateau magnifies, and test risks to 4e-4. Tasks of your own
      with one field take the nodes of their `population` times a trapezoidal rule over w: exact for polynomials, good to
      1e-8 for losses as smooth as the logistic one and student scales up to 4, to 1e-2 where the gradient jumps, unless they have
      `moments`.
    - Least squares (without an update or friction) is stepped in log time instead, whatever `tolerance` says: `steps`, and the
      error that is stated, as in `limits.least_squares`.
    - `max_steps`: of the adaptive integration, at most, from each time of the grid, knot of a schedule, or 32nd of what the
      protocol does in all, to the next.
    - `adjoint`: diffrax's way to differentiate it. The default is reverse mode with checkpoints; `diffrax.ForwardMode()` is for
      `jax.jvp` and `jax.jacfwd`, `diffrax.DirectAdjoint()` for both.
    - `throw`: as in `limits.least_squares`.
    - `metrics`: by name, any other quantities, see `dmftopt.metrics`.

    Differentiable in everything real. Sources: Saad and Solla, Phys. Rev. E 52 (1995) 4225; Goldt et al., arXiv:1906.08632.
    Raises TypeError for other noise, ValueError for a schedule outside its domain.
    """
    protocol = check_continuous(problem, protocol, grid, noise, updates=(AbstractUpdate,))
    check_update(protocol, grid.times)
    problem = updated(problem, protocol.update)
    if tolerance is None:
        tolerance = 1e-6 if grid.times.dtype == jnp.float64 else 1e-5
    asked = check_metrics(metrics, problem)
    # Propagators between all times, and products of them.
    how = stepping(tolerance, max_steps, adjoint)
    check_steps(steps, problem.features.groups)
    linear = type(problem.task) is LeastSquares and protocol.update is None and protocol.friction is None
    if linear:
        check_grid(grid, 12, "a few kernels")
    else:
        rows = problem.m if protocol.friction is None else 2 * problem.m
        check_grid(grid, (2 + 3 * problem.features.groups) * rows**2, f"{problem.features.groups} eigenvalue groups")
    problem, protocol, asked = numbers_to_arrays((problem, protocol, asked))
    if linear:
        return finish(_squares(problem, protocol, grid, noise, steps, asked), throw, "online")
    return finish(_online(problem, protocol, grid, noise, how, asked), throw, "online")


@eqx.filter_jit
def _squares(problem: Problem, protocol: Protocol, grid: TimeGrid, noise: AbstractNoise, steps: int, metrics: Metrics) -> Limit:
    """Least squares: every group is a mode, and they are coupled by the risk alone."""
    times = grid.times
    groups, task = Groups(problem, times.dtype), cast(LeastSquares, problem.task)
    z, seen, sigma2 = groups.eigenvalues, groups.field_weights, jnp.asarray(task.label_noise, times.dtype) ** 2
    # Entries of theta_star and theta_0 in independent normals, (group, normal).
    teacher, student = jnp.unstack(problem.initial.astype(times.dtype), axis=1)
    mixed = jnp.sum(teacher * student, axis=1)

    def forced(p, c):
        gap = c * jnp.broadcast_to(z, c.shape) - 1
        return p**2 @ (seen * groups.student) + 2 * (p * gap) @ (seen * mixed) + gap**2 @ (seen * groups.teacher) + sigma2

    modes = Modes(z, forced, lambda v: v @ seen, jnp.max(z))
    fine, rough, valid, integrated = along(modes, protocol, noise, grid, steps)

    def observed(found: Path):
        A, R, c, v, _ = found
        p = jnp.exp(-A[:, None] * z[None] - R[:, None])
        path = (c * z[None])[..., None] * teacher[None] + p[..., None] * student[None]
        weighted = path * seen[None, :, None]
        response, noisy = kicks(A, R, z, lambda since: since @ seen, v)
        correlation = jnp.tensordot(weighted, path, ((1, 2), (1, 2))) + noisy
        norm = jnp.sum(path**2, axis=2) @ groups.weights + v @ groups.weights
        overlap = jnp.tensordot(weighted, teacher, 2)
        kernels = (as_column(a) for a in (correlation, overlap, norm, groups.rho, response))
        weighed = _weight_metrics(problem, path[:, :, None], as_column(v), metrics.weights)
        return fresh(problem, *kernels, measured=Measured(metrics.fields, {}, weighed))

    return ended(times, observed(fine), in_domain(problem, grid) & valid, True, integrated, observed(rough))


@eqx.filter_jit
def _online(problem: Problem, protocol: Protocol, grid: TimeGrid, noise: AbstractNoise, how: Stepping, metrics: Metrics) -> Limit:
    times, m, m_star = grid.times, problem.m, problem.m_star
    features, initial = problem.features, problem.initial.astype(times.dtype)
    lam, shares = (positive_or_one(a.astype(times.dtype)) for a in (features.eigenvalues, features.weights))
    # Entries of theta_star and theta_0 in independent normals, (group, column, normal).
    teacher, student = initial[:, :m_star], initial[:, m_star:]
    rho = jnp.einsum("a,aik,ajk->ij", shares * lam, teacher, teacher)

    def moving(g, p):
        """What is not noise, in the same normals."""
        return jnp.einsum("aij,ajk->aik", g, teacher) + jnp.einsum("aij,ajk->aik", p, student)

    def moments(g, p, v, weights):
        path = moving(g, p)
        overlap = jnp.einsum("a,aik,ajk->ij", weights, path, teacher)
        return jnp.einsum("a,aik,ajk->ij", weights, path, path) + jnp.tensordot(weights, v, 1), overlap

    update, overlap = protocol.update, 1.0 if protocol.update is None else protocol.update.overlap
    memory = jnp.asarray(number(update.memory), times.dtype) if isinstance(update, Adam) else None

    def rates(now: Coefficients, state):
        _, scale, g, p, v, since = state
        eta, friction = now.learning_rate, now.friction
        Q, O = moments(g[:, :m], p[:, :m], v[:, :m, :m], shares * lam)
        a, b, power = _averages(problem.task, Q, O, rho)
        seen, passed = lam[:, None, None], None
        if is_coordinatewise(update):
            seen = seen * group_gains(problem).astype(times.dtype)[:, None, None]
        if scale is not None:
            # Over the root mean square of gradients (34): of each column, and of each eigenvalue.
            gains, passed = _gains(scale, jnp.diagonal(power) / now.batch_size, memory)
            a, b, power = gains[:, None] * a, gains[:, None] * b, gains[:, None] * power * gains[None]
        decay = drift(eta * seen * a[None] + now.shrinkage * jnp.eye(m, dtype=times.dtype)[None], friction)
        spread = decay @ v
        lost = -decay @ g - pushed(eta * seen * b[None], friction)
        heat = pushed(now.temperature / overlap**2 * seen**2 / lam[:, None, None] * power[None], friction)
        gained = -spread - jnp.swapaxes(spread, 1, 2) + jnp.swapaxes(pushed(jnp.swapaxes(heat, 1, 2), friction), 1, 2)
        return eta, passed, lost, -decay @ p, gained, -decay @ since

    groups = lam.shape[0]
    # Positions, and with friction velocities behind them.
    rows = m if protocol.friction is None else 2 * m
    still = jnp.broadcast_to(jnp.eye(rows, dtype=times.dtype), (groups, rows, rows))
    # Of power / batch size: the running mean from 0, and the weight of that.
    scale = None if memory is None else (jnp.zeros(m, times.dtype), jnp.zeros((), times.dtype))
    start = (
        jnp.zeros((), times.dtype),
        scale,
        jnp.zeros((groups, rows, m_star), times.dtype),
        still[..., :m],
        jnp.zeros_like(still),
        still,
    )
    # The last of the state is what happened since the start of the step: products of these never underflow.
    seen = survey(protocol, noise, grid)
    (_, _, g, p, v, factors), integrated = trajectory(
        rates, start, protocol, noise, times, seen, how, restarted=lambda state: (*state[:-1], still)
    )

    propagators = _propagators(factors, m)
    steady, noisy = jax.vmap(moving)(g[:, :, :m], p[:, :, :m]), _noise(shares * lam, propagators, v, m)
    v = v[:, :, :m, :m]
    correlation = jnp.einsum("a,taik,sajk->tsij", shares * lam, steady, steady) + noisy
    overlap = jnp.einsum("a,taik,ajk->tij", shares * lam, steady, teacher)
    norm = jnp.einsum("a,taik,tajk->tij", shares, steady, steady) + jnp.einsum("a,taij->tij", shares, v)
    # What a kick of the velocity does later is told by no route.
    response = None if protocol.friction is not None else jnp.einsum("a,tsaij->tsij", shares * lam, propagators)[:, 1:]
    measured = Measured(metrics.fields, {}, _weight_metrics(problem, steady, v, metrics.weights))
    observables = fresh(problem, correlation, overlap, norm, rho, response, measured=measured)
    return ended(times, observables, in_domain(problem, grid) & seen.valid, integrated=integrated)


def _propagators(factors: Float[Array, "time group rows rows"], m: int) -> Float[Array, "time time group m rows"]:
    """What is left at each time of the state at each earlier one, of positions, from what is left after each step."""
    count, still = factors.shape[0], jnp.broadcast_to(jnp.eye(factors.shape[-1], dtype=factors.dtype), factors.shape[1:])

    def extend(since, inputs):
        k, factor = inputs
        since = jnp.einsum("aij,sajk->saik", factor, since).at[k].set(still)
        return since, since[:, :, :m]

    return jax.lax.scan(extend, jnp.zeros((count, *still.shape), factors.dtype), (jnp.arange(count), factors))[1]


def _noise(
    weights: Float[Array, " group"],
    propagators: Float[Array, "time time group m rows"],
    v: Float[Array, "time group rows rows"],
    m: int,
) -> Float[Array, "time time m m"]:
    """Covariance of the fields' noise at two times."""
    noisy = jnp.einsum("a,tsaij,sajk->tsik", weights, propagators, v[..., :m])
    at = jnp.arange(v.shape[0])
    noisy = jnp.where(jnp.tril(jnp.ones((at.size, at.size), bool), -1)[:, :, None, None], noisy, 0.0)
    noisy = noisy + noisy.transpose(1, 0, 3, 2)
    return noisy.at[at, at].set(jnp.einsum("a,taij->tij", weights, v[:, :, :m, :m]))


def _gains(scale, power, memory):
    """V^-1/2 of each column, and the rates of what is kept for it. A memory of 0 keeps nothing."""
    mean, weight = scale
    tau = jnp.where(memory > 0, memory, 1.0)
    # Before anything is seen, what is seen first.
    V = jnp.where((memory > 0) & (weight > 1e-6), mean / jnp.maximum(weight, 1e-6), power)
    return 1 / jnp.sqrt(jnp.maximum(V, jnp.finfo(power.dtype).tiny)), ((power - mean) / tau, (1 - weight) / tau)


def _weight_metrics(problem: Problem, steady, v, weights: dict[str, AbstractWeightMetric]) -> dict[str, Float[Array, "time ..."]]:
    """Of theta with coefficients `steady` (time, group, m, m_star + m) on the entries at the start, and Gaussian rest of
    covariance v (time, group, m, m)."""
    if not weights:
        return {}
    nodes, theta_star = coordinate_nodes(problem)

    def at(law):
        theta = linear_values(jnp.swapaxes(law[0], 0, 1), law[1], nodes)
        return weight_means(weights, problem.task, theta, theta_star, problem.features.weights)

    return jax.lax.map(at, (steady, v))


def _averages(task: AbstractTask, Q: Array, O: Array, rho: Array) -> tuple[Array, Array, Array]:
    """a (m, m), b (m, m_star) and E[l l^T] of `online`."""
    moments = task.moments(Q, O, rho)
    if moments is not None:
        a, with_teacher, power = moments
        if task.mixture:
            # Already E[l 1_c^T].
            return a, with_teacher, power
        to_normals = inverse_root(rho, rank_floor(rho))
        return a, (with_teacher - a @ O) @ to_normals @ to_normals, power
    return _single(task, Q[0, 0], O[0, 0], rho[0, 0]) if task.columns is None else _several(task, Q, O, rho)


def _single(task: AbstractTask, q: Array, o: Array, rho: Array) -> tuple[Array, Array, Array]:
    # The limit s -> 0 is E[dl/dw] (a student that starts at 0): a central difference of width eps^(1/3) balances its
    # error eps^(2/3) against rounding, eps / s.
    floor = rho * jnp.finfo(q.dtype).eps ** (2 / 3)
    xi, y, weights = task.population(safe_sqrt(rho))
    w_star = safe_sqrt(rho) * xi
    # A logistic loss has its nearest singularity at a distance pi / s in z: exact to 1e-8 up to s = 4. Where a gradient jumps the
    # error is of the order of the spacing.
    z, z_weights = gaussian_nodes(0.25 if task.kink_width == 0 else 0.05, q.dtype)
    s = jnp.sqrt(jnp.maximum(q - o**2 / rho, floor))
    w = (o / rho * w_star)[:, None] + s * z[None]
    l = columns.gradient(task, w[None], jnp.broadcast_to(y[:, None], w.shape))[0]
    mean = weights @ (l @ z_weights)
    # Subtracting the mean changes nothing but the rounding, which s would magnify.
    a = weights @ ((l - mean) @ (z_weights * z)) / s
    b = ((weights * w_star) @ (l @ z_weights) - a * o) / rho
    return a.reshape(1, 1), b.reshape(1, 1), (weights @ (l**2 @ z_weights)).reshape(1, 1)


def _several(task: AbstractTask, Q: Array, O: Array, rho: Array) -> tuple[Array, Array, Array]:
    to_normals = inverse_root(rho, rank_floor(rho))
    known, y, z = columns.fresh(task, rho)
    to_known = O if task.mixture else O @ to_normals
    rest = Q if task.mixture else Q - to_known @ to_known.T
    center, swing = to_known @ known, square_root(rest, rank_floor(Q)) @ z
    plus, minus = columns.gradient(task, center + swing, y), columns.gradient(task, center - swing, y)
    a = 0.5 * jnp.mean(columns.curvature(task, center + swing, y) + columns.curvature(task, center - swing, y), axis=-1)
    count = y.shape[0]
    if task.kink_width > 0:
        # Correlations are free of the kink's width, but directions in which the fields hardly vary drown in those of the others.
        inverse = inverse_root(rest, 1e-2 * jnp.trace(jax.lax.stop_gradient(rest)))
        seen = 0.5 * (plus - minus) @ z.T / count @ inverse
        a = seen + a @ (jnp.eye(Q.shape[0], dtype=Q.dtype) - inverse @ inverse @ rest)
    with_known = 0.5 * (plus + minus) @ known.T / count
    power = 0.5 * (plus @ plus.T + minus @ minus.T) / count
    return a, with_known if task.mixture else (with_known - a @ to_known) @ to_normals, power


def fresh(
    problem: Problem,
    correlation: Array,
    overlap: Array,
    norm: Array,
    rho: Array,
    response: Float[Array, "time step m m"] | None,
    *,
    measured: Measured = NOTHING,
) -> Any:
    """Observables where every training sample is as good as a fresh one."""
    observables = from_kernel(problem, correlation, overlap, norm, None, None, rho, response, measured)
    return dataclasses.replace(observables, train_error=observables.test_error, train_metrics=observables.test_metrics)
