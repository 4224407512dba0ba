"""What the limits return, and what they check."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._checks import check_instance, check_real, is_concrete
from .._register import register
from ..grid import TimeGrid
from ..noise import AbstractNoise, Brownian, NoNoise, Poisson
from ..observables import AbstractResult, Observables
from ..problem import Problem, check_linear, check_problem, check_single
from ..protocol import Protocol
from ..tasks import LeastSquares

_MINIMA = {"learning_rate": 0.0, "batch_size": 1.0, "ridge": 0.0}


@register
class Limit(AbstractResult):
    """Exact observables of a limit, see `dmftopt.Observables` for shapes: no sampling error, so no `standard_error`."""

    times: Float[Array, " time"]
    observables: Observables
    replicated: Observables | None = None

    def _attributes(self) -> dict[str, str | int]:
        return {}


def check_inputs(problem: Any, protocol: Any) -> None:
    check_problem(problem)
    check_linear(problem, "A limit")
    check_instance("protocol", protocol, Protocol, "Build it with dmftopt.Protocol(learning_rate=...).")


def check_continuous(problem: Any, protocol: Any, grid: Any, noise: Any) -> Protocol:
    """The arguments of a limit in continuous time, and the protocol as it acts there."""
    check_inputs(problem, protocol)
    check_instance("grid", grid, TimeGrid, "Build it with dmftopt.TimeGrid.uniform(horizon, steps).")
    check_noise(noise)
    protocol = protocol.in_continuous_time()
    check_protocol(protocol, grid.times, noise.deterministic)
    return protocol


def check_least_squares(problem: Problem, limit: str) -> None:
    check_single(problem, f"limits.{limit}")
    if not isinstance(problem.task, LeastSquares):
        raise TypeError(f"problem.task must be a LeastSquares for limits.{limit}, got {type(problem.task).__name__}. Use solve.")


def check_noise(noise: AbstractNoise) -> None:
    if not isinstance(noise, (Poisson, Brownian, NoNoise)):
        raise TypeError(f"noise must be Poisson(), Brownian() or NoNoise() in this limit, got {noise!r}. Use solve for others.")


def check_protocol(protocol: Protocol, times: Array, deterministic: bool = False) -> None:
    """Domain and shape of the schedules at `times`. Gradient flow does not read the batch size."""
    for name, minimum in _MINIMA.items():
        if deterministic and name == "batch_size":
            continue
        value = jnp.asarray(getattr(protocol, name)(times), dtype=times.dtype)
        if value.shape not in ((), times.shape):
            raise ValueError(
                f"{name} must return one value per time, shape {times.shape} or (), got {value.shape}. "
                "Write the schedule with jax.numpy, elementwise in t."
            )
        check_real(name, value, minimum=minimum, cure="It must be so at every time.")


def read(protocol: Protocol, t: Array, deterministic: bool = False) -> tuple[Array, Array, Array]:
    """Learning rate, temperature eta² / B (0 without gradient noise) and ridge at the time t."""
    learning_rate, ridge = (jnp.asarray(f(t), dtype=t.dtype) for f in (protocol.learning_rate, protocol.ridge))
    if deterministic:
        return learning_rate, jnp.zeros_like(learning_rate), ridge
    return learning_rate, learning_rate**2 / jnp.asarray(protocol.batch_size(t), dtype=t.dtype), ridge


def in_domain(problem: Problem, protocol: Protocol, times: Array, deterministic: bool = False) -> Bool[Array, ""]:
    """The checks at the front doors again, for traced values."""
    ok = problem.valid() & jnp.all(jnp.diff(times) > 0)
    for name, minimum in _MINIMA.items():
        if not (deterministic and name == "batch_size"):
            # Rounding of exp(log(1)) must not fail a batch size of 1.
            ok = ok & jnp.all(jnp.asarray(getattr(protocol, name)(times)) >= minimum - 1e-6 * minimum)
    return ok


def blank_unless(valid: Bool[Array, ""], observables: Observables) -> Observables:
    return jax.tree.map(lambda a: jnp.where(valid, a, jnp.nan), observables)


def finish(limit: Limit, cure: str) -> Limit:
    """Raise FloatingPointError where a concrete result is not finite."""
    for name in ("test_risk", "train_loss", "correlation", "norm"):
        value = getattr(limit, name)
        if is_concrete(value) and not bool(jnp.all(jnp.isfinite(value))):
            raise FloatingPointError(f"{name} became infinite or NaN in this limit. {cure}")
    return limit


def positive_or_one(value: Array) -> Array:
    return jnp.where((value > 0) & jnp.isfinite(value), value, 1.0)


class Groups:
    """The problem per eigenvalue group, in one dtype: eigenvalues, weights, second moments of teacher and student entries,
    delta. Traced values outside their domain are replaced: what comes of them is blanked, and must not stop a root finder."""

    def __init__(self, problem: Problem, dtype: Any):
        self.eigenvalues, self.weights = (
            positive_or_one(jnp.asarray(a, dtype)) for a in (problem.features.eigenvalues, problem.features.weights)
        )
        # Second moments of the entries of teacher and student; each is a normal of its own here.
        self.teacher, self.student = jnp.diagonal(problem.initial.astype(dtype), axis1=1, axis2=2).T ** 2
        self.field_weights = self.weights * self.eigenvalues
        self.delta = positive_or_one(jnp.asarray(problem.delta, dtype))
        self.rho = jnp.sum(self.field_weights * self.teacher)


def integrate(rates: Any, state: Any, times: Array, tolerance: float) -> Any:
    """States at `times` of d state / dt = rates(t, state), NaN or infinite where integration failed. Reverse mode recomputes
    from checkpoints."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, _: rates(t, y)),
        diffrax.Tsit5(),
        times[0],
        times[-1],
        None,
        state,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=0.01 * tolerance),
        adjoint=diffrax.RecursiveCheckpointAdjoint(),
        max_steps=2**15,
        throw=False,
    )
    return solution.ys


def response_of(factors: Float[Array, "time time"]) -> Float[Array, "time step"]:
    """Response to the kick of step j, which acts at t_{j+1}, from the response `factors`[k, j] to a kick at t_j."""
    steps = factors.shape[0] - 1
    return jnp.where(jnp.tril(jnp.ones((steps + 1, steps), bool), -1), factors[:, 1:], 0.0)


def symmetric(lower: Float[Array, "time time"]) -> Float[Array, "time time"]:
    """The symmetric matrix with this lower triangle."""
    lower = jnp.tril(lower)
    return lower + jnp.tril(lower, -1).T
