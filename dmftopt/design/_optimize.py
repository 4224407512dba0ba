"""Minimize a scalar function of a protocol. Nothing here knows how that function is computed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax
import optimistix
from jaxtyping import Array

from .._checks import check_count, check_function, check_key, check_named, check_real, front_door
from .._register import register, register_part
from ._descend import Descent, Settings, descend
from ._staged import AbstractObjective, Gradient, staged


@register_part
class Score(NamedTuple):
    """Objective of a protocol on fresh random numbers, over the keys for which it was finite; infinite if there are none."""

    mean: float
    standard_error: float
    failures: int = 0


@register_part
class Check(NamedTuple):
    """By how much the objective of what was found is below that of another protocol, as `predicted` and `doubled`, at twice the
    steps and samples. `moved`: by more than the error of their difference and more than a tenth."""

    predicted: Score
    doubled: Score

    @property
    def moved(self) -> bool:
        a, b = self
        if not np.isfinite(b.mean):
            return True
        change = abs(b.mean - a.mean)
        return bool(change > 2 * np.hypot(a.standard_error, b.standard_error) and change > 0.1 * abs(a.mean))

    def __str__(self) -> str:
        a, b = (f"{score.mean:.3g} ± {score.standard_error:.1g}" for score in self)
        return f"{a}, at twice the steps and samples {b}"


@register
class Optimized(eqx.Module):
    """What an optimization found.

    - `protocol`: the best iterate; `value`: its objective on the random numbers it was optimized on (a little optimistic).
    - `history`: (steps + 1,) the objective at every iterate, NaN where it was not finite; the first is the initial protocol.
    - `report`: with a `key`, scores on fresh random numbers of "optimized", "initial" and every tuned baseline.
    - `tuned`: the tuned baselines, name -> protocol.
    - `ends`: (start,) the value at the end of the descent from each start, the given one first; the rest is of the best.
    - `checks`: of a `dmftopt.Objective` that solves, by name, the gain over each protocol of the report again at twice the steps
      and samples. `refinements`: how many times the search was continued there because a gain had moved.
    """

    protocol: Any
    value: float
    history: np.ndarray
    scores: dict[str, Score] | None
    tuned: dict[str, Any]
    ends: np.ndarray = eqx.field(default_factory=lambda: np.zeros(0))
    checks: dict[str, Check] = eqx.field(default_factory=dict)
    refinements: int = 0

    @property
    def report(self) -> dict[str, Score]:
        if self.scores is None:
            raise ValueError("report needs fresh random numbers: give optimize a key and an objective(protocol, key).")
        return self.scores

    def __str__(self) -> str:
        if self.scores is None:
            return f"best value {self.value:.6g} after {len(self.history) - 1} steps"
        width = max(map(len, self.scores))
        lines = [
            f"{name:<{width}}  {s.mean:.6g} ± {s.standard_error:.1g}"
            + (f"  ({s.failures} keys not finite)" if s.failures else "")
            for name, s in sorted(self.scores.items(), key=lambda item: item[1].mean)
        ]
        moved = {name: check for name, check in self.checks.items() if check.moved}
        lines += [
            f"not resolved: the gain over {name!r} is {check}. Give Objective more of both." for name, check in moved.items()
        ]
        if self.checks and not moved:
            lines.append("checked at twice the steps and samples: every gain within its error or a tenth")
        return "\n".join(lines)


@front_door
def optimize(
    objective: Callable[..., Any],
    protocol: Any,
    *,
    optimizer: optax.GradientTransformation | optimistix.AbstractMinimiser[Any, Any, Any] | None = None,
    steps: int = 100,
    key: Array | None = None,
    refresh: bool = False,
    stop: bool = True,
    starts: int | Sequence[Any] = 1,
    also: Sequence[Any] = (),
    spread: float = 0.5,
    baselines: Mapping[str, Any] | None = None,
    trainable: Callable[[Any], bool] = eqx.is_inexact_array,
    fresh: int = 8,
    refinements: int = 1,
    progress: bool = True,
) -> Optimized:
    """Minimize a scalar function of a protocol.

    - `objective(protocol)`, or `objective(protocol, key)` when a `key` is given: a scalar to minimize, differentiable in
      reverse mode: a `dmftopt.Objective`, or your own, typically `solve(...).test_risk[-1]`.
    - `protocol`: where to start. Its leaves that satisfy `trainable` are tuned (JAX arrays; plain Python numbers stay fixed).
    - `optimizer`: of optax, default `optax.adam(0.1)`, or `optimistix.LBFGS(rtol, atol)` or `BFGS`, which need fewer evaluations
      where the objective is smooth. `steps`: updates, or evaluations of the latter.
    - `key`: random numbers. The same ones are used throughout, so that the objective is a smooth function (`refresh=True`: new
      ones at every step, and the mean of the last quarter of the iterates is the result; optax only). Afterwards the result
      is scored on `fresh` independent keys, which is what `report` shows.
    - `stop`: end once the gradient is smaller than its own standard error (looked at every 10 steps).
    - `starts`: how many starting points (the others have normal deviates times `spread` added to what is tuned), or more
      protocols to start from. `also`: such protocols beside so many. The best end is the result.
    - `baselines`: protocols to tune in the same way and score beside it, for example `dmftopt.baselines(...)`.
    - `refinements`: with a key and an `Objective` that solves, gains are looked at again at twice the steps and samples. Where
      one has moved by more than its error and a tenth, the search goes on from what was found at these, half as many steps of it,
      at most so many times; then all is scored there. `checks` has the last look.
    - `progress`: show a progress bar (on a terminal).

    An iterate whose objective or gradient is not finite is not kept: the run goes back to the one before and takes half the
    update, again until it is finite. The best iterate is what is returned. Raises ValueError when a start itself is not
    finite, when nothing is trainable, or when the objective is not a real scalar.
    """
    function = staged(objective)
    check_function("trainable", trainable, "a leaf")
    check_count("steps", steps, minimum=0)
    check_count("fresh", fresh, minimum=2, cure="A standard error needs two.")
    check_count("refinements", refinements, minimum=0)
    check_real("spread", spread, minimum=0.0)
    quasi_newton = isinstance(optimizer, optimistix.AbstractMinimiser)
    if optimizer is not None and not quasi_newton and not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer must be one of optax or optimistix, got {optimizer!r}. Call it: optax.sgd(0.1), say.")
    if quasi_newton and not isinstance(optimizer, (optimistix.AbstractBFGS, optimistix.AbstractLBFGS)):
        raise TypeError(f"optimizer: of optimistix pass BFGS or LBFGS, got {type(optimizer).__name__}.")
    if refresh and (key is None or quasi_newton):
        raise ValueError("refresh draws new random numbers at every step: it needs a key, and an optax optimizer.")
    if baselines is not None:
        check_named("baselines", baselines)
    _check_starts("also", also)
    if not isinstance(starts, (int, np.integer)):
        _check_starts("starts", starts)
    train_key, fresh_keys, start_key = None, [], jax.random.key(0)
    if key is not None:
        check_key(key)
        train_key, *fresh_keys = jax.random.split(key, fresh + 1)
        start_key = jax.random.fold_in(train_key, 2)
    elif baselines is not None:
        raise ValueError("baselines are scored on fresh random numbers: give a key and an objective(protocol, key).")
    settings = Settings(optax.adam(0.1) if optimizer is None else optimizer, steps, train_key, refresh, stop, trainable, progress)

    def tune(start: Any, name: str, more: int | Sequence[Any], also: Sequence[Any] = ()) -> tuple[Descent, np.ndarray]:
        points = [start, *_starting_points(start, more, spread, trainable, start_key), *also]
        ends = [descend(function, point, settings, name + (f" {i}" if i else "")) for i, point in enumerate(points)]
        return min(ends, key=lambda end: end.value), np.asarray([end.value for end in ends])

    found, ends = tune(protocol, "optimize", starts, also)
    if key is None:
        return Optimized(*found, None, {}, ends)
    tuned = {}
    for name, start in (baselines or {}).items():
        tuned[name] = tune(start, name, starts if isinstance(starts, int) else 1)[0].protocol
    refined = 0
    while True:
        compared = {"optimized": found.protocol, "initial": protocol} | tuned
        scores = {name: score(function, p, fresh_keys, trainable) for name, p in compared.items()}
        finer = function.doubled()
        checks = {} if finer is None else _checked(finer, compared, scores, fresh_keys[: max(2, fresh // 2)])
        if finer is None or refined == refinements or not any(check.moved for check in checks.values()):
            return Optimized(*found, scores, tuned, ends, checks, refined)
        refined, function, settings = refined + 1, finer, settings._replace(steps=max(1, steps // 2))
        again = {name: descend(function, p, settings, f"{name}, refined") for name, p in compared.items() if name != "initial"}
        found, tuned = again.pop("optimized"), {name: end.protocol for name, end in again.items()}


def _checked(
    finer: AbstractObjective, compared: Mapping[str, Any], scores: Mapping[str, Score], keys: list[Array]
) -> dict[str, Check]:
    """Gains of what was found over all others, as they were scored and as `finer` has them."""
    # Prepared step by step: to compile that for each kind of schedule takes longer.
    inputs = {name: finer.prepare(p) for name, p in compared.items()}
    again = {name: np.asarray([float(finer.compiled(i, key)) for key in keys]) for name, i in inputs.items()}
    best, checks = scores["optimized"], {}
    for name in compared:
        if name != "optimized":
            other = scores[name]
            error = float(np.hypot(best.standard_error, other.standard_error))
            checks[name] = Check(Score(other.mean - best.mean, error), _score(again[name] - again["optimized"]))
    return checks


def score(objective: AbstractObjective, protocol: Any, keys: list[Array], trainable: Callable[[Any], bool]) -> Score:
    # With its gradient, because that is compiled: compiling the value alone takes longer than the gradients.
    parameters, fixed = eqx.partition(protocol, trainable)
    evaluate = Gradient(objective, parameters, fixed)
    return _score(np.asarray([float(evaluate(parameters, key)[0]) for key in keys]))


def _score(values: np.ndarray) -> Score:
    finite = values[np.isfinite(values)]
    failures = values.size - finite.size
    if finite.size < 2:
        return Score(float(finite.mean()) if finite.size else float("inf"), float("inf"), failures)
    return Score(float(finite.mean()), float(finite.std(ddof=1) / np.sqrt(finite.size)), failures)


def _starting_points(
    start: Any, more: int | Sequence[Any], spread: float, trainable: Callable[[Any], bool], key: Array
) -> Sequence[Any]:
    if not isinstance(more, (int, np.integer)):
        return list(more)
    check_count("starts", more)
    parameters, fixed = eqx.partition(start, trainable)
    leaves, structure = jax.tree.flatten(parameters)
    points = []
    for own in jax.random.split(key, max(int(more), 1))[1:]:
        keys = jax.random.split(own, len(leaves))
        moved = [leaf + spread * jax.random.normal(k, leaf.shape, leaf.dtype) for leaf, k in zip(leaves, keys, strict=True)]
        points.append(eqx.combine(jax.tree.unflatten(structure, moved), fixed))
    return points


def _check_starts(name: str, value: Any) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} must be a sequence of protocols, got {type(value).__name__}. Put a single one in a list.")
