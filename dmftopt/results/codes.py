"""How a computation ended: one language for the solver, the limits, the simulations and the flows."""

import warnings

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._checks import is_concrete
from .observables import Observables

with warnings.catch_warnings():
    # Two of diffrax's members say here what the cure is in terms of our arguments, of which equinox warns.
    warnings.filterwarnings("ignore", "Enumeration has duplicate")

    class RESULTS(diffrax.RESULTS):  # pyright: ignore
        """How a computation ended: what diffrax, optimistix and lineax say (`RESULTS.promote(result)`), and our own."""

        successful = ""
        max_steps_reached = (
            "The adaptive integration took `max_steps` steps before it reached the last time. Raise max_steps or the tolerance; "
            "if that does not help, the solution blows up. Lower the learning rate then."
        )
        nonfinite = (
            "A value became infinite or NaN: the learning rate is far above its stability limit, or the loss or the label law "
            "overflows. Lower the learning rate, check the loss, or (in float32) use jax_enable_x64."
        )
        diverged = (
            "The student's overlap grew ten thousand times beyond teacher, initial student and labels: this learning rate is "
            "unstable, or the time steps are too large for it. Lower the learning rate or raise the batch size; if a grid of "
            "twice as many steps succeeds, it was the steps. (With DiscreteStep step * learning_rate * largest eigenvalue of the "
            "sample covariance must stay below about 2.)"
        )
        unconverged = (
            "Equations were not solved to their tolerance. In FixedPoint raise max_iterations or the damping, or shorten the "
            "horizon; in limits.least_squares raise nodes, in limits.stationary the ridge; in float32 use jax_enable_x64."
        )
        unphysical = (
            "What cannot be: a negative student overlap, or a teacher overlap O with O² above student overlap times the "
            "teacher's own. It was extrapolated from time steps that are too large for that. Take more steps, or drop richardson."
        )
        unstable = (
            "SGD itself is unstable at this learning rate: learning rate / batch size is beyond the critical ratio, from which "
            "the gradient noise feeds on itself, whatever the time steps say. Lower the learning rate or raise the batch size "
            "(`solution.stability` is their ratio to the critical one at each time). In a limit: raise "
            "`steps` to follow the growth itself."
        )
        inaccurate = (
            "The total error is larger than the accuracy asked for. Give `solve` a horizon in place of the grid and it chooses "
            "steps and samples; or pass more of them. (`print(solution)` tells which of the errors it is.) In a limit: raise "
            "`steps`; or the learning rate acts in times too short for the integration to see all of it. Say where by an "
            "attribute `knots` of the schedule, or use one of dmftopt.schedules, which have it."
        )
        invalid = (
            "The protocol or the problem left its domain: learning rate and ridge must be >= 0, batch size >= 1, momentum in "
            "[0, 1), delta > 0, scales >= 0, times increasing, all finite; noise.Poisson() takes at most 1e5 epochs (use Brownian"
            " or NoNoise beyond). Parametrize with log=True or bound what is tuned."
        )


class SolveError(FloatingPointError, RuntimeError):
    """A computation that did not succeed; the message says why and what to do."""


def name_of(result: RESULTS) -> str:
    """The name of a concrete member."""
    return list(RESULTS._name_to_item)[int(result._value)]


def raise_unless(
    result: RESULTS, throw: bool, where: str, times: Array | None = None, series: Float[Array, "time ..."] | None = None
) -> None:
    """With `throw`, raise `SolveError`, "`where`: what happened and what to do", where `result` is concrete, of one computation,
    and not successful. With `times` and `series` it says from which time on the series is not finite."""
    code = result._value
    if not throw or not is_concrete(code) or np.ndim(code) != 0 or bool(result == RESULTS.successful):
        return
    if times is not None and series is not None:
        finite = np.isfinite(np.asarray(series)).reshape(len(times), -1).all(axis=1)
        if not finite.all():
            where = f"{where} at t = {float(times[int(np.argmin(finite))]):.4g}"
    raise SolveError(f"{where}: {RESULTS[result]} (throw=False returns the rest.)")


def finite_times(observables: Observables) -> Bool[Array, " time"]:
    """Of each time, whether what the observables are made of is finite."""
    steps = observables.test_risk.shape[0]
    per_time = (observables.test_risk, observables.train_loss, observables.norm)
    finite = [jnp.all(jnp.isfinite(a.reshape(steps, -1)), axis=1) for a in per_time if a is not None]
    # A NaN at time k also enters row j < k of the correlation, in column k: look at the lower triangle only.
    pairs = jnp.all(jnp.isfinite(observables.correlation), axis=(2, 3)) | ~jnp.tril(jnp.ones((steps, steps), bool))
    return jnp.all(jnp.stack([*finite, jnp.all(pairs, axis=1)]), axis=0)


def until_failure(good: Bool[Array, " time"]) -> Bool[Array, " time"]:
    """Of each time, whether it and all before it are good."""
    return jnp.cumprod(good.astype(int)).astype(bool)


def blank(observables: Observables, good: Bool[Array, " time"]) -> Observables:
    """NaN where not good."""
    return observables.along_time(lambda a: jnp.where(good.reshape(-1, *[1] * (a.ndim - 1)), a, jnp.nan))


def first_failure(results: RESULTS) -> RESULTS:
    """Of several in a row, the first that is not successful (or success)."""
    codes = results._value
    first = jnp.argmax(codes != RESULTS.successful._value)
    return jax.tree.map(lambda code: code[first], results)
