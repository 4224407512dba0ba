"""What a search that runs simulations costs until it is as good as what `dmftopt.optimize` found from the theory."""

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optuna
from tqdm.auto import tqdm

import dmftopt
from dmftopt.design import realized

from ..shared.protocols import flat, protocol_of

SAMPLERS = ("tpe", "random")


class Designed(NamedTuple):
    """`seconds`: with everything compiled; `first_seconds`: with compilation, of everything."""

    found: dmftopt.Optimized
    seconds: float
    first_seconds: float

    def seconds_to(self, value: float) -> float:
        """Until an iterate is at most `value`, as the optimizer sees it: its share of all seconds, the scores included."""
        good = np.flatnonzero(np.nan_to_num(self.found.history, nan=np.inf) <= value)
        return float(self.seconds * (good[0] + 1) / len(self.found.history)) if good.size else np.inf


def design(objective: dmftopt.Objective, protocol: Any, **options: Any) -> Designed:
    """`dmftopt.optimize`, twice: first with compilation, then timed."""
    jax.clear_caches()

    def timed() -> tuple[dmftopt.Optimized, float]:
        started = time.perf_counter()
        found = dmftopt.optimize(objective, protocol, **options)
        return found, time.perf_counter() - started

    _, first_seconds = timed()
    found, seconds = timed()
    return Designed(found, seconds, first_seconds)


class Trials(NamedTuple):
    """What a search tries: SGD of `protocol` with other numbers, always on the same training sets and batches."""

    objective: dmftopt.Objective
    protocol: Any
    dimension: int
    runs: int
    key: jax.Array
    simulate: Callable[[Any, jax.Array], float] | None

    def sgd(self, protocol: Any, key: jax.Array) -> float:
        values = []
        for which, problem in enumerate(self.objective.problems):
            run = self.objective.run(protocol, which)
            recipe = run.recipe(dimension=self.dimension, delta=float(problem.delta))
            # Padded, which costs nothing, to few different lengths (512, 4096, ...): each is compiled anew.
            length = max(512, 8 ** int(np.ceil(np.log2(len(recipe)) / 3)))
            values.append(realized(self.objective, run, recipe, self.runs, key, which=which, length=length))
        return float(self.objective.combined(jnp.asarray(values)))

    def value(self, point: Any) -> float:
        try:
            value = (self.simulate or self.sgd)(protocol_of(self.protocol, point), self.key)
        except (FloatingPointError, ValueError):
            # Diverged, or too short for a recipe: worse than any.
            return float("inf")
        return value if np.isfinite(value) else float("inf")


def search(
    objective: dmftopt.Objective,
    protocol: Any,
    designed: Designed,
    *,
    dimension: int,
    runs: int,
    seconds: float,
    seed: int,
    sampler: str = "tpe",
    width: float = 2.5,
    tolerance: float = 0.05,
    judge: dmftopt.Objective | None = None,
    simulate: Callable[[Any, jax.Array], float] | None = None,
) -> dict[str, Any]:
    """Search the same numbers that `designed` tuned by running SGD, for `seconds` or until the risk is that of the design.

    - The search space is the flat stored parameters of `protocol` (logarithms of rates, say), each within `width` of the start;
      the start is its first trial. The objective of a trial is the measure's mean over `runs` runs of SGD in this dimension with
      the trial's own recipe of whole batch sizes. All trials have the same training sets and batches, so that no trial is merely
      lucky: an advantage for the search, at the price of what is peculiar to these few runs, which is why `dimension` and `runs`
      should be the smallest that still lead to the right place. `simulate(protocol, key)` replaces these runs.
    - The incumbent is the best trial observed. Each is judged by `judge` (default `objective.finer()`, on random numbers of its
      own), with the clock stopped, and the search is over when one is within `tolerance` of the gain (start - design) from the
      design: the search itself would not know. The design's own time to the same value is `design_seconds_to_target`.
    - `seconds` counts sampling, simulations and bookkeeping, not compilation (`seconds_with_compilation` does).

    JSON values. Where the target was not reached, `ratio` (search over design) is a lower bound, and `reached` is False.
    """
    start, best = flat(protocol), flat(designed.found.protocol)
    judge = objective.finer() if judge is None else judge
    trials = Trials(objective, protocol, dimension, runs, jax.random.key(seed), simulate)

    def judged(point) -> float:
        return risk(judge, protocol_of(protocol, point), jax.random.key(seed + 1000))

    start_value, design_value = judged(start), judged(best)
    target = design_value + tolerance * (start_value - design_value)
    found = searched(trials, start, judged, target, width, seconds, sampler, seed)
    reached = bool(found["trace"] and found["trace"][-1]["predicted"] <= target)
    to_target = designed.seconds_to(target)
    to_target = to_target if np.isfinite(to_target) else None
    return {
        "sampler": sampler,
        "hyperparameters": int(start.size),
        "dimension": dimension,
        "runs": runs,
        "width": width,
        "tolerance": tolerance,
        "design_within_width": bool(np.all(np.abs(best - start) <= width)),
        "start": start_value,
        "design": design_value,
        "target": target,
        "reached": reached,
        **found,
        "design_seconds": designed.seconds,
        "design_seconds_to_target": to_target,
        "design_seconds_with_compilation": designed.first_seconds,
        "ratio": found["seconds"] / designed.seconds,
        "ratio_to_target": found["seconds"] / to_target if to_target is not None else None,
        "ratio_with_compilation": found["seconds_with_compilation"] / designed.first_seconds,
    }


def searched(
    trials: Trials, start, judged, target: float, width: float, seconds: float, sampler: str, seed: int
) -> dict[str, Any]:
    """Trials until one is judged to be as good as `target`, or for `seconds`."""
    space: dict[str, Any] = {f"{i:03}": optuna.distributions.FloatDistribution(a - width, a + width) for i, a in enumerate(start)}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=_sampler(sampler, seed))
    study.enqueue_trial(dict(zip(space, start.tolist(), strict=True)))
    spent, compilation, simulating, count, least = 0.0, 0.0, 0.0, 0, float("inf")
    trace: list[dict[str, float]] = []
    incumbent = start.tolist()
    with tqdm(total=round(seconds), desc=f"{sampler}, {start.size} numbers", unit="s", disable=None, leave=False) as bar:
        while spent < seconds:
            began = time.perf_counter()
            trial = study.ask(space)
            point = np.asarray([trial.params[name] for name in space])
            before = time.perf_counter()
            with _Compilation() as clock:
                value = trials.value(point)
            compiling = min(clock.seconds, time.perf_counter() - before)
            simulating += time.perf_counter() - before - compiling
            study.tell(trial, value)
            spent += time.perf_counter() - began - compiling
            compilation, count = compilation + compiling, count + 1
            if value < least:
                least, incumbent = value, point.tolist()
                trace.append({"seconds": spent, "trial": count, "observed": value, "predicted": judged(point)})
                bar.set_postfix_str(f"{trace[-1]['predicted']:.4f}, wanted {target:.4f}")
                if trace[-1]["predicted"] <= target:
                    break
            bar.n = round(min(spent, seconds))
            bar.refresh()
    return {
        "seconds": spent,
        "seconds_in_simulation": simulating,
        "seconds_with_compilation": spent + compilation,
        "trials": count,
        "trace": trace,
        "incumbent": incumbent,
    }


def risk(objective: dmftopt.Objective, protocol: Any, key: jax.Array, draws: int = 2) -> float:
    """The objective on fresh random numbers, a mean over `draws`."""
    inputs = _prepared(objective, protocol)
    return float(np.mean([float(_evaluated(objective, inputs, k)) for k in jax.random.split(key, draws)]))


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {SAMPLERS}, got {name!r}.")
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        # Multivariate is experimental, but found lower risks here than the default: neighboring knots go together.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)


class _Compilation:
    """How long JAX traces and compiles meanwhile. (A trace within a trace counts twice: if anything, too much is subtracted.)"""

    def __enter__(self):
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)
        return self

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._add)

    def _add(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self.seconds += duration_secs


@eqx.filter_jit
def _prepared(objective, protocol):
    return objective.prepare(protocol)


@eqx.filter_jit
def _evaluated(objective, inputs, key):
    return objective.evaluate(inputs, key)
