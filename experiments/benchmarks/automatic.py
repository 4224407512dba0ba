"""What choosing steps and samples by itself costs: processor time of `solve(problem, protocol, horizon)` over that of the
cheapest grid and number of samples, chosen by one who knows the exact answer, that is as good.

Least squares with random spectra, schedules and rates, against `limits.least_squares`. An error is the largest over test risk,
train loss and overlaps along the run, over the largest value of each; of a choice the root mean square over keys. `same error`:
one solve whose error is no larger. `same answer`: one that also states its error (four replicates, a second level of steps, and
halves of the samples), to no more than what the automatic one states. `answer`: one that states no more than the 1% that the
automatic one is asked for. Programs are compiled before anything is timed.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tyro
from tqdm.auto import tqdm

import dmftopt

from ..shared.results import Settings as Common
from ..shared.results import finish, markdown, short

jax.config.update("jax_enable_x64", True)

NAMES = ("test_risk", "train_loss", "student_overlap", "teacher_overlap")
# The default accuracy.
ASKED = 0.01
STATED = {"replicates": 4, "estimate_discretization": True, "estimate_bias": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Measure what an automatic solve costs."""

    problems: int = 4
    keys: int = 2
    steps: tuple[int, ...] = (16, 32, 64, 128)
    samples: tuple[int, ...] = (1024, 4096, 16384)


def drawn(rng: np.random.Generator) -> tuple[dmftopt.Problem, dmftopt.Protocol, float]:
    weights, eigenvalues = rng.uniform(0.1, 1.0, 3), np.exp(rng.uniform(np.log(0.2), np.log(5.0), 3))
    weights /= weights.sum()
    features = dmftopt.features.spectrum(list(eigenvalues / (weights @ eigenvalues)), list(weights))
    task = dmftopt.tasks.LeastSquares(rng.uniform(0.0, 1.0))
    problem = dmftopt.Problem(task, features, np.exp(rng.uniform(np.log(0.5), np.log(8.0))), 1.0, rng.uniform(0.0, 1.0))
    horizon, rate = np.exp(rng.uniform(np.log(2.0), np.log(12.0))), rng.uniform(0.2, 1.2)
    schedule = rate if rng.random() < 0.5 else dmftopt.schedules.linear_decay(rate, horizon)
    return problem, dmftopt.Protocol(schedule, 1.0, rng.choice([0.0, 0.1])), float(horizon)


def error(found: dmftopt.Solution, problem: dmftopt.Problem, protocol: dmftopt.Protocol) -> float:
    exact = dmftopt.limits.least_squares(problem, protocol, dmftopt.TimeGrid(found.times))
    return max(_largest(getattr(found, name) - getattr(exact, name)) / _largest(getattr(exact, name)) for name in NAMES)


def stated(found: dmftopt.Solution) -> float:
    return max(_largest(getattr(found.total_error, name)) / _largest(getattr(found, name)) for name in NAMES)


def _largest(values: Any) -> float:
    return float(np.max(np.abs(np.asarray(values))))


def timed(solve: Callable[[jax.Array], dmftopt.Solution], keys: int) -> tuple[list[dmftopt.Solution], float]:
    """Solutions for these keys, and processor time of one."""
    found = []
    for key in range(keys):
        jax.block_until_ready(solve(jax.random.key(key)).test_risk)
    start = time.process_time()
    for key in range(keys):
        found.append(jax.block_until_ready(solve(jax.random.key(key))))
    return found, (time.process_time() - start) / keys


def measured(s: Settings, problem: dmftopt.Problem, protocol: dmftopt.Protocol, horizon: float) -> dict[str, Any]:
    def summary(solutions, seconds):
        errors = [error(found, problem, protocol) for found in solutions]
        return {"seconds": seconds, "error": float(np.sqrt(np.mean(np.square(errors))))}

    def by_itself(key):
        return dmftopt.solve(problem, protocol, horizon, key=key, throw=False, progress=False)

    solutions, seconds = timed(by_itself, s.keys)
    automatic = summary(solutions, seconds) | {"stated": float(np.mean([stated(found) for found in solutions]))}
    chosen = []
    for steps in s.steps:
        for samples in s.samples:
            if samples < 16 * (steps + 1):
                continue
            grid = dmftopt.TimeGrid.uniform(horizon, steps)
            for kind, options in (("same error", {}), ("same answer", STATED)):

                def by_hand(key, grid=grid, samples=samples, options=options):
                    return dmftopt.solve(problem, protocol, grid, key=key, samples=samples, throw=False, **options)

                solutions, seconds = timed(by_hand, s.keys)
                row = {"kind": kind, "steps": steps, "samples": samples} | summary(solutions, seconds)
                if options:
                    row["stated"] = float(np.mean([stated(found) for found in solutions]))
                chosen.append(row)

    def best(kind, error, stated):
        good = [row for row in chosen if row["kind"] == kind and row["error"] <= error and row.get("stated", 0.0) <= stated]
        return min(good, key=lambda row: row["seconds"], default=None)

    own = automatic["error"], automatic["stated"]
    answers = {
        "same error": best("same error", *own),
        "same answer": best("same answer", *own),
        "answer": best("same answer", ASKED, ASKED),
    }
    return {"automatic": automatic, "chosen": chosen, "best": answers}


def main(s: Settings) -> None:
    s = s.sized(problems=1, keys=1, steps=(8,), samples=(1024,))
    rng = np.random.default_rng(s.seed)
    rows = [measured(s, *drawn(rng)) for _ in tqdm(range(s.problems), desc="problems", disable=None)]
    finish(s, __file__, {"problems": rows}, {"automatic": table(rows)})


def table(rows: list[dict[str, Any]]) -> str:
    def cell(best, own):
        return "none" if best is None else f"{short(own / best['seconds'])} ({best['steps']} × {best['samples']})"

    lines = []
    for row in rows:
        own = row["automatic"]
        times = [cell(best, own["seconds"]) for best in row["best"].values()]
        lines.append([f"{own['seconds']:.2f} s", f"{own['error']:.2%}", f"{own['stated']:.2%}", *times])
    return markdown(["processor time", "its error", "stated", "over same error", "over same answer", "over any answer"], lines)


if __name__ == "__main__":
    main(tyro.cli(Settings))
