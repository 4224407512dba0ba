"""What the limits return, and what they check."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._checks import check_instance, front_door
from .._memory import check_memory
from .._register import register
from ..problem import Problem, check_linear, check_problem, check_single
from ..protocol import Protocol
from ..protocol.grid import TimeGrid
from ..protocol.noise import AbstractNoise
from ..protocol.rates import check_protocol, read
from ..results.codes import RESULTS, blank, finite_times, name_of, raise_unless, until_failure
from ..results.observables import AbstractResult, Observables
from ..tasks import LeastSquares


@register
class Limit(AbstractResult):
    """Exact observables of a limit, see `dmftopt.Observables` for shapes: no sampling error, so no `standard_error`.

    - `discretization_error`: of its steps, of the same observables, where the limit tells (least squares in continuous time).
    - `result`: a member of `dmftopt.RESULTS`. Where it is not successful, entries from the failing time on are NaN; where it is
      inaccurate they may be what was found.
    """

    times: Float[Array, " time"]
    observables: Observables
    replicated: Observables | None = None
    result: RESULTS = eqx.field(default_factory=lambda: RESULTS.successful)
    level_difference: Observables | None = None

    @property
    @front_door
    def discretization_error(self) -> Observables:
        if self.level_difference is None:
            raise ValueError("This limit does not tell the error of its steps. Compare it with a smaller tolerance.")
        return self.level_difference

    def _other_errors(self):
        return [] if self.level_difference is None else [self.level_difference]

    def _attributes(self) -> dict[str, str | int]:
        return {"result": name_of(self.result), "message": RESULTS[self.result]}


def check_inputs(problem: Any, protocol: Any, updates: tuple[type, ...] = (), friction: bool = False) -> None:
    check_problem(problem)
    check_linear(problem, "A limit")
    check_protocol(protocol)
    if protocol.friction is not None and not friction:
        raise ValueError("friction: this limit takes none. Use limits.online, limits.least_squares or solve.")
    if protocol.update is not None and not isinstance(protocol.update, updates):
        raise ValueError(f"update: this limit takes no {type(protocol.update).__name__}. Use solve.")


def check_continuous(problem: Any, protocol: Any, grid: Any, noise: Any, updates: tuple[type, ...] = ()) -> Protocol:
    """The arguments of a limit in continuous time, which takes these updates, and the protocol as it acts there."""
    check_inputs(problem, protocol, updates, friction=True)
    check_instance("grid", grid, TimeGrid, "Build it with dmftopt.TimeGrid.uniform(horizon, steps).")
    # Only whether there is one.
    if not isinstance(noise, AbstractNoise) or noise.temperature(jnp.ones(()), jnp.ones(())) is None:
        raise TypeError(f"noise must be Poisson(), Brownian() or NoNoise() in this limit, got {noise!r}. Use solve for others.")
    protocol = protocol.in_continuous_time()
    read(protocol, grid.times, batched=noise.batched)
    return protocol


def check_grid(grid: TimeGrid, each: float, factors: str) -> None:
    """Whether there is memory for so many numbers for each pair of times. `factors`: what else they count."""
    request = f"grid.steps = {grid.steps}, squared, times {factors}"
    check_memory(request, each * (grid.steps + 1) ** 2, "Use fewer.")


def check_least_squares(problem: Problem, limit: str) -> None:
    check_single(problem, f"limits.{limit}")
    if not isinstance(problem.task, LeastSquares):
        raise TypeError(f"problem.task must be a LeastSquares for limits.{limit}, got {type(problem.task).__name__}. Use solve.")


def in_domain(problem: Problem, grid: TimeGrid) -> Bool[Array, ""]:
    """The checks at the front doors again, for traced values."""
    return problem.valid() & jnp.all(grid.step_sizes > 0)


def ended(
    times: Float[Array, " time"],
    observables: Observables,
    valid: Bool[Array, ""],
    solved: Bool[Array, ""] | bool = True,
    integrated: RESULTS = RESULTS.successful,
    rough: Observables | None = None,
) -> Limit:
    """NaN from the failing time on. `solved`: whether what precedes the integration succeeded. `rough`: by half as many steps."""
    good = until_failure(finite_times(observables) & valid & solved)
    with_integration = jnp.all(good) | (integrated != RESULTS.successful)
    result = RESULTS.where(with_integration, integrated, RESULTS.nonfinite)
    result = RESULTS.where(jnp.asarray(solved), result, RESULTS.unconverged)
    result = RESULTS.where(valid, result, RESULTS.invalid)
    if rough is not None:
        # A third of it is the error of steps of second order; most are of fourth.
        rough = blank(jax.tree.map(lambda a, b: jnp.abs(a - b) / 3, observables, rough), good)
    return Limit(times, blank(observables, good), result=result, level_difference=rough)


def finish(limit: Limit, throw: bool, name: str) -> Limit:
    """Raise `SolveError` where a concrete result is not successful."""
    raise_unless(limit.result, throw, f"limits.{name} failed", limit.times, limit.test_risk)
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


def response_of(factors: Float[Array, "time time"]) -> Float[Array, "time step"]:
    """Response to the kick of step j, which acts at t_{j+1}, from the response `factors`[k, j] to a kick at t_j."""
    steps = factors.shape[0] - 1
    return jnp.where(jnp.tril(jnp.ones((steps + 1, steps), bool), -1), factors[:, 1:], 0.0)


def symmetric(lower: Float[Array, "time time"]) -> Float[Array, "time time"]:
    """The symmetric matrix with this lower triangle."""
    lower = jnp.tril(lower)
    return lower + jnp.tril(lower, -1).T
