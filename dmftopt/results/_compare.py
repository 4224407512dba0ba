"""Two routes to the same numbers, side by side."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_instance, front_door
from .observables import AbstractResult, Observables


class Difference(eqx.Module):
    """One observable: `first - second`, its standard error (half the 95% total errors of the two, added in squares), and the size
    of `second`, at the second result's times."""

    difference: Float[Array, "..."]
    standard_error: Float[Array, "..."]
    reference: Float[Array, "..."]

    @property
    def z_score(self) -> Float[Array, "..."]:
        """Difference in combined standard errors; 0 where the two are equal to rounding (at time 0, say)."""
        rounding = 1e3 * jnp.finfo(self.reference.dtype).eps * jnp.max(jnp.abs(self.reference))
        equal = jnp.abs(self.difference) <= rounding
        return jnp.where(equal, 0.0, self.difference / jnp.maximum(self.standard_error, rounding))

    def excess(self, sigmas: float, relative: float) -> Float[Array, ""]:
        """Largest |difference| beyond `sigmas` standard errors, as a fraction of the largest |reference|, less `relative`.
        Negative: they agree."""
        largest = jnp.max(jnp.abs(self.reference))
        scale = jnp.where(largest > 0, largest, 1.0)
        return jnp.max((jnp.abs(self.difference) - sigmas * self.standard_error) / scale) - relative


class Comparison(eqx.Module):
    """`differences[name]` for each observable that both results have; `print` it for a table."""

    times: Float[Array, " time"]
    differences: dict[str, Difference]

    def agrees(self, sigmas: float = 2.0, relative: float = 0.005) -> bool:
        """Whether every observable, at every time, agrees within `sigmas` combined standard errors plus `relative` times
        the observable's largest value along the run."""
        return all(bool(d.excess(sigmas, relative) <= 0) for d in self.differences.values())

    def __str__(self) -> str:
        lines = [f"{'observable':<18}{'max |difference|':>18}{'relative':>10}{'max |z|':>10}{'rms z':>8}"]
        for name, d in self.differences.items():
            size = float(jnp.max(jnp.abs(d.difference)))
            scale = float(jnp.max(jnp.abs(d.reference)))
            z = np.asarray(d.z_score)[np.asarray(d.standard_error) > 0]
            rms = float(np.sqrt(np.mean(z**2))) if z.size else 0.0
            top = float(np.max(np.abs(z))) if z.size else 0.0
            lines.append(f"{name:<18}{size:>18.3g}{size / (scale or 1.0):>10.2%}{top:>10.2f}{rms:>8.2f}")
        return "\n".join(lines)


@front_door
def compare(first: AbstractResult, second: AbstractResult, *, errors: str = "total") -> Comparison:
    """Compare two results (a solution and a simulation, two solvers, ...) at the second one's times.

    `first` is interpolated linearly between its times (and held beyond its last by at most 0.1%, the rounding to SGD steps);
    give both the same times where that matters. The response, whose second axis counts steps, cannot be interpolated: it is
    compared only where both have it, at the same times. The errors are halves of `total_error` and add in squares; what a route
    does not know of its own (a solution without replicates its sampling error) counts as exact. `errors="sampling"`:
    standard errors alone, for two routes that share everything else, a grid and a step. Raises ValueError when the second reaches
    beyond the first's times.
    """
    check_instance("first", first, AbstractResult, "Pass a Solution or a Simulation.")
    check_instance("second", second, AbstractResult, "Pass a Solution or a Simulation.")
    if float(second.times[-1]) > float(first.times[-1]) * (1 + 1e-3) or float(second.times[0]) < float(first.times[0]):
        raise ValueError(
            f"second runs to t = {float(second.times[-1])}, first to {float(first.times[-1])}. Solve to the same horizon."
        )
    left, weight = _brackets(first.times, second.times)
    same = first.times.shape == second.times.shape and bool(
        jnp.all(jnp.abs(first.times - second.times) <= 1e-6 * second.times[-1])
    )

    def at(values, name):
        if name == "response":
            return values
        if name == "correlation":
            values = _mix(jnp.swapaxes(_mix(values, left, weight), 0, 1), left, weight)
            return jnp.swapaxes(values, 0, 1)
        return _mix(values, left, weight)

    if errors not in ("total", "sampling"):
        raise ValueError(f'errors must be "total" or "sampling", got {errors!r}.')
    halves = [_half_width(result, errors) for result in (first, second)]
    known = [{} if e is None else e.arrays() for e in halves]

    def error(which, name, like):
        return known[which][name] if name in known[which] else jnp.zeros_like(like)

    differences, others = {}, second.observables.arrays()
    for name, a in first.observables.arrays().items():
        if name not in others or (name == "response" and not same):
            continue
        b = others[name]
        if name == "response" and not bool(jnp.all(jnp.isfinite(a)) & jnp.all(jnp.isfinite(b))):
            continue  # not determined, see AbstractResult.response
        squares = at(error(0, name, a), name) ** 2 + error(1, name, b) ** 2
        differences[name] = Difference(at(a, name) - b, jnp.sqrt(squares), b)
    return Comparison(second.times, differences)


def _half_width(result: AbstractResult, errors: str) -> Observables | None:
    if errors == "sampling":
        return result.replicated
    known = result.known_error()
    return None if known is None else jax.tree.map(lambda a: 0.5 * a, known)


def _brackets(times, at):
    left = jnp.clip(jnp.searchsorted(times, at, side="right") - 1, 0, times.shape[0] - 2)
    return left, jnp.clip((at - times[left]) / (times[left + 1] - times[left]), 0.0, 1.0)


def _mix(values, left, weight):
    w = weight.reshape(-1, *([1] * (values.ndim - 1)))
    return (1 - w) * values[left] + w * values[left + 1]
