"""Random problems over the public parameter space, each solved to an accuracy and checked by another route.

    python tests/fuzz.py --minutes 10 --out results/fuzz.jsonl      (make fuzz)

Problems are drawn by hypothesis in batches of a fixed seed, so that a file that exists is continued, not repeated. Every one is
solved with defaults and compared with an independent route: `least squares` with the exact Volterra limit, `online` (samples
hardly repeat) with the exact ODE, `any task` with a solve on four times the steps (fewer where they would be more than 512),
`sgd` with a NumPy loop of its own.
A case is *wrong* if the result is called successful and an observable is off by more than 2% of its largest value and more than
three times the stated total error (beyond the other route's own error), *flagged* if the result is not called successful, *right*
otherwise. `covered`: share of observables and times within the stated total.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import numpy as np
from hypothesis import strategies as st

import dmftopt

OBSERVABLES = ("test_risk", "train_loss", "student_overlap", "teacher_overlap", "norm")
BATCH = 10
# A successful result that is off by more than this and three times its stated error is wrong.
BEYOND = 0.02
# Compiled programs take memory: they are forgotten after so many cases.
KEPT = 25
# Steps of the reference of any task, unless its case has as many.
FINEST = 512


def between(low: float, high: float, log: bool = False) -> st.SearchStrategy[float]:
    if log:
        return st.floats(float(np.log(low)), float(np.log(high))).map(lambda x: float(np.exp(x)))
    return st.floats(low, high)


@st.composite
def cases(draw: Any, family: str) -> dict[str, Any]:
    """The numbers of a problem; `build` makes it."""
    groups = draw(st.sampled_from([1, 4]))
    case: dict[str, Any] = {
        "family": family,
        "task": draw(st.sampled_from(sorted(TASKS[family]))),
        "eigenvalues": [draw(between(0.1, 10.0, log=True)) for _ in range(groups)],
        "weights": [draw(between(0.05, 1.0)) for _ in range(groups)],
        "delta": draw(between(0.3, 10.0, log=True)),
        "teacher_scale": draw(between(0.3, 1.5)),
        "student_scale": draw(between(0.0, 1.5)),
        "noise": draw(between(0.0, 1.0)),
        "horizon": draw(between(1.0, 20.0, log=True)),
        "learning_rate": draw(between(0.1, 1.8, log=True)),
        "batch_size": draw(between(1.0, 10.0, log=True)),
        "ridge": draw(st.sampled_from([0.0, 0.01, 0.1, 0.5])),
        "schedule": draw(st.sampled_from(sorted(SCHEDULES))),
    }
    if family == "online":
        case["delta"] = 1e5
    if family == "sgd":
        # A run whose memory a test can afford, and batches that exist.
        case |= {
            "delta": round(400 * min(case["delta"], 4.0)) / 400,
            "batch_size": float(round(case["batch_size"])),
            "horizon": min(case["horizon"], 8.0),
        }
    return case


SCHEDULES: dict[str, Callable[[float, float], Any]] = {
    "constant": lambda peak, horizon: peak,
    "linear": lambda peak, horizon: dmftopt.schedules.linear_decay(peak, horizon),
    "cosine": lambda peak, horizon: dmftopt.schedules.cosine(peak, horizon),
    "warmup": lambda peak, horizon: dmftopt.schedules.warmup_stable_decay(peak, horizon, 0.1 * horizon, 0.3 * horizon),
    "pieces": lambda peak, horizon: dmftopt.schedules.piecewise_constant(horizon, 3, np.array([peak, 0.5 * peak, 0.1 * peak])),
}
_tasks = dmftopt.tasks
TASKS: dict[str, dict[str, Callable[[float], Any]]] = {
    "least squares": {"least squares": lambda noise: _tasks.LeastSquares(label_noise=noise)},
    "online": {
        "least squares": lambda noise: _tasks.LeastSquares(label_noise=noise),
        "logistic, sign": lambda noise: _tasks.Logistic(labels="sign"),
        "huber": lambda noise: _tasks.Huber(label_noise=noise),
    },
    "any task": {
        "logistic, sign": lambda noise: _tasks.Logistic(labels="sign"),
        "logistic, logistic": lambda noise: _tasks.Logistic(labels="logistic"),
        "squared hinge": lambda noise: _tasks.SquaredHinge(labels="sign"),
        "hinge": lambda noise: _tasks.Hinge(labels="sign"),
        "log cosh": lambda noise: _tasks.LogCosh(label_noise=noise),
    },
    "sgd": {
        "least squares": lambda noise: _tasks.LeastSquares(label_noise=noise),
        "logistic, sign": lambda noise: _tasks.Logistic(labels="sign"),
    },
}


def build(case: dict[str, Any]) -> tuple[dmftopt.Problem, dmftopt.Protocol, float]:
    weights = np.asarray(case["weights"]) / np.sum(case["weights"])
    eigenvalues = np.asarray(case["eigenvalues"]) / np.sum(weights * case["eigenvalues"])
    problem = dmftopt.Problem(
        TASKS[case["family"]][case["task"]](case["noise"]),
        dmftopt.features.spectrum(list(eigenvalues), list(weights)),
        delta=case["delta"],
        teacher_scale=case["teacher_scale"],
        student_scale=case["student_scale"],
    )
    rate = SCHEDULES[case["schedule"]](case["learning_rate"], case["horizon"])
    return problem, dmftopt.Protocol(rate, case["batch_size"], case["ridge"]), case["horizon"]


def reference(
    case: dict[str, Any], solution: dmftopt.Solution, key: Any, runs: int = 24
) -> tuple[dict[str, Any], dict[str, Any]]:
    """By name: values by another route at the solution's times, and the errors of these. `runs`: of SGD."""
    problem, protocol, _ = build(case)
    grid = dmftopt.TimeGrid(solution.times)
    if case["family"] == "least squares":
        exact = dmftopt.limits.least_squares(problem, protocol, grid, throw=False)
        return exact.observables.arrays(), {}
    if case["family"] == "online":
        # What is left of repeated samples is of order horizon * batch size / delta.
        exact = dmftopt.limits.online(problem, protocol, grid, throw=False)
        return exact.observables.arrays(), {}
    if case["family"] == "sgd":
        return by_numpy(case, np.asarray(solution.times), runs)
    fine = grid
    for _ in range(2):
        # Twice as many steps take four to eight times as long: minutes from some 500 on.
        fine = fine.refined() if fine.steps <= FINEST // 2 else fine
    factor = fine.steps // grid.steps
    samples = max(solution.stats.samples, 1 << (16 * fine.steps - 1).bit_length())
    again = dmftopt.solve(
        problem, protocol, fine, key=key, samples=samples, replicates=4, estimate_discretization=True, throw=False
    )
    every = {name: np.asarray(value)[::factor] for name, value in again.observables.arrays().items()}
    return every, {name: np.asarray(value)[::factor] for name, value in again.total_error.arrays().items()}


def by_numpy(case: dict[str, Any], times: np.ndarray, runs: int, dimension: int = 400) -> tuple[dict[str, Any], dict[str, Any]]:
    """Means over runs of SGD with replacement; 2.5 standard errors of these, and 1% for what is of order 1 / dimension."""
    problem, protocol, _ = build(case)
    d, n, B, rng = dimension, round(case["delta"] * dimension), round(case["batch_size"]), np.random.default_rng(runs)
    lam = np.repeat(
        np.asarray(problem.features.eigenvalues), np.diff(np.round(d * np.cumsum([0, *problem.features.weights])).astype(int))
    )
    x = rng.normal(size=(runs, n, d)) * np.sqrt(lam / d)
    star, theta = (scale * rng.normal(size=(runs, d)) for scale in (case["teacher_scale"], case["student_scale"]))
    field = np.einsum("rnd,rd->rn", x, star)
    squared = case["task"] == "least squares"
    y = field + case["noise"] * rng.normal(size=field.shape) if squared else np.sign(field)
    at = np.round(times * d).astype(int)
    rate = np.broadcast_to(np.asarray(protocol.learning_rate(np.arange(at[-1]) / d)), at[-1])
    every, rows = np.arange(runs)[:, None], []
    for step in range(at[-1] + 1):
        if step in at:
            fields = np.einsum("rnd,rd->rn", x, theta)
            loss = 0.5 * (fields - y) ** 2 if squared else np.logaddexp(0.0, -y * fields)
            rows += [(loss.mean(1), (lam * theta**2).mean(1), (lam * theta * star).mean(1), (theta**2).mean(1))] * int(
                np.sum(at == step)
            )
        if step < at[-1]:
            which = rng.integers(n, size=(runs, B))
            chosen, label = x[every, which], y[every, which]
            r = np.einsum("rbd,rd->rb", chosen, theta)
            slope = r - label if squared else -label / (1 + np.exp(label * r))
            theta = theta - rate[step] * (np.einsum("rbd,rb->rd", chosen, slope) / B + case["ridge"] * theta / d)
    values, errors = {}, {}
    for name, series in zip(("train_loss", "student_overlap", "teacher_overlap", "norm"), zip(*rows, strict=True), strict=True):
        runs_of = np.asarray(series)
        shape = (-1,) if name == "train_loss" else (-1, 1, 1)
        values[name] = runs_of.mean(1).reshape(shape)
        error = 2.5 * runs_of.std(1, ddof=1) / np.sqrt(runs) + 0.01 * np.abs(runs_of.mean(1)).max()
        errors[name] = error.reshape(shape)
    return values, errors


def judge(case: dict[str, Any], key: Any) -> dict[str, Any]:
    """The case with its verdict."""
    problem, protocol, horizon = build(case)
    start = time.perf_counter()
    solution = dmftopt.solve(problem, protocol, horizon, key=key, throw=False, progress=False)
    seconds = time.perf_counter() - start
    row = {**case, "seconds": seconds, "steps": solution.stats.steps, "samples": solution.stats.samples}
    successful = bool(solution.result == dmftopt.RESULTS.successful)
    row["result"] = "successful" if successful else dmftopt.RESULTS[solution.result][:40]
    row["stability"] = float(np.max(solution.stability))
    row |= compared(solution, *reference(case, solution, jax.random.fold_in(key, 1)))
    if case["family"] == "sgd" and row["beyond"] > BEYOND:
        # Of some hundred means of 24 runs one is now and then three standard errors off: once more, with others.
        row |= compared(solution, *reference(case, solution, key, runs=96))
    wrong = row["beyond"] > BEYOND or not np.isfinite(row["error"])
    row["verdict"] = "flagged" if not successful else "wrong" if wrong else "right"
    return row


def compared(solution: dmftopt.Solution, values: dict[str, Any], errors: dict[str, Any]) -> dict[str, float]:
    """Largest error over each observable's largest value, and that beyond three times the stated total; what is stated; and the
    share that is covered."""
    worst, excess, stated, covered = 0.0, 0.0, 0.0, []
    for name in (name for name in OBSERVABLES if name in values):
        mine, other = np.asarray(getattr(solution, name)), np.asarray(values[name])
        total, own = np.asarray(getattr(solution.total_error, name)), np.asarray(errors.get(name, 0.0))
        scale = max(np.nanmax(np.abs(other)), 1e-12)
        off = np.maximum(np.abs(mine - other) - own, 0.0)
        worst, stated = max(worst, float(np.max(off) / scale)), max(stated, float(np.max(total) / scale))
        excess = max(excess, float(np.max(np.where(off > 3 * total, off, 0.0)) / scale))
        covered.append(np.mean(off <= total + 1e-9 * scale))
    return {"error": worst, "beyond": excess, "stated": stated, "covered": float(np.mean(covered))}


def drawn(family: str, seed: int, count: int = BATCH) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate])
    @hypothesis.given(cases(family))
    def collect(case):
        found.append(case)

    collect()
    return found


def batches(families: list[str], seed: int) -> Iterator[tuple[str, int]]:
    while True:
        for family in families:
            yield family, seed
        seed += 1


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'family':<16}{'cases':>7}{'right':>7}{'flagged':>9}{'wrong':>7}{'covered':>9}{'median error':>14}{'seconds':>9}"]
    for family in sorted({row["family"] for row in rows}):
        own = [row for row in rows if row["family"] == family]
        count = {verdict: sum(row["verdict"] == verdict for row in own) for verdict in ("right", "flagged", "wrong")}
        good = [row for row in own if row["verdict"] != "flagged"]
        covered = np.mean([row["covered"] for row in good]) if good else np.nan
        error = np.median([row["error"] for row in good]) if good else np.nan
        seconds = np.median([row["seconds"] for row in own])
        lines.append(
            f"{family:<16}{len(own):>7}{count['right']:>7}{count['flagged']:>9}{count['wrong']:>7}{covered:>9.1%}{error:>14.2%}{seconds:>9.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("results/fuzz.jsonl"))
    parser.add_argument("--first", type=int, default=0, help="seed of the first batch: processes side by side start apart")
    parser.add_argument("--family", action="append", choices=sorted(TASKS), help="all by default; may be repeated")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done = {(row["family"], row["seed"], row["number"]) for row in rows}
    until = time.monotonic() + 60 * arguments.minutes
    for family, seed in batches(arguments.family or sorted(TASKS), arguments.first):
        for number, case in enumerate(drawn(family, seed)):
            if time.monotonic() > until:
                print(table(rows))
                sys.exit(any(row["verdict"] == "wrong" for row in rows))
            if (family, seed, number) in done:
                continue
            row = judge(case, jax.random.key(1000 * seed + number)) | {"seed": seed, "number": number}
            rows.append(row)
            if len(rows) % KEPT == 0:
                jax.clear_caches()
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if sys.stderr.isatty():
                print(f"{len(rows)}: {row['verdict']}, error {row['error']:.2%}, stated {row['stated']:.2%}", file=sys.stderr)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
