"""Time to accuracy: processor time to a given root-mean-square error, by the solver, by simulating SGD, and by the fixed-point
iteration, all in one process.

- Errors are those of final test risk, student overlap and teacher overlap against a reference: the exact Volterra solution for
  least squares, otherwise the solver with many more steps and samples (its standard error is in the report).
- Solver: root-mean-square error over random keys and time of one solve, for a ladder of steps and samples; the line of the
  figure joins the best. (Early-dense grids and Richardson extrapolation lose here, at the end of a run on isotropic features.)
- SGD: a jitted float32 loop batched over runs. A mean over R runs of dimension d has squared error (b/d)² + v(d)/R; bias b and
  variance v(d) are measured, and the cheapest (d, R) for each error is chosen. The time is R times the time of one run.
- Gradients of the final risk in a 20-knot learning rate: relative error of the whole vector, against back-propagation through
  the same loop.

Processor time counts all threads, so other load on the machine does not enter.
"""

import dataclasses
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure
from tqdm.auto import tqdm

import dmftopt

from ..shared.results import Settings as Common
from ..shared.results import finish, markdown, short

jax.config.update("jax_enable_x64", True)

HORIZON, RIDGE = 5.0, 0.1
NAMES = ("test risk", "student overlap", "teacher overlap")
TASKS = {
    "sign labels": (dmftopt.tasks.Logistic("sign"), 1.0, 1.0),
    "logistic labels": (dmftopt.tasks.Logistic("logistic"), 2.0, 1.0),
    "least squares": (dmftopt.tasks.LeastSquares(0.3), 1.0, 0.5),
}
LADDER = (
    (6, 512), (8, 1024), (10, 1024), (10, 2048), (12, 2048), (12, 4096), (14, 8192), (20, 8192), (20, 16384), (24, 32768),
    (28, 65536), (40, 65536), (48, 262144),
)  # fmt: skip
GRADIENT = ((8, 1024), (10, 2048), (12, 4096), (20, 4096), (20, 8192), (20, 16384), (40, 16384), (40, 65536))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Measure processor time to a given error: solver, simulation, fixed point."""

    keys: int = 16
    """Random keys behind each root-mean-square error of the solver."""
    runs: int = 4096
    """Simulated runs behind each bias and variance (a quarter at the largest dimension)."""
    dimensions: tuple[int, ...] = (64, 128, 256, 512)
    reference: tuple[int, int, int] = (32, 131072, 4)
    """Steps (then halved), samples and replicates of the reference."""


def problem(name: str) -> dmftopt.Problem:
    task, scale, _ = TASKS[name]
    return dmftopt.Problem(task, dmftopt.features.isotropic(), 2.0, scale, 0.5**0.5)


def protocol(name: str, knots=None) -> dmftopt.Protocol:
    rate = TASKS[name][2]
    if knots is not None:
        rate = dmftopt.schedules.PiecewiseLinear(tuple(np.linspace(0.0, HORIZON, knots.shape[0])), knots)
    return dmftopt.Protocol(rate, ridge=RIDGE)


def order_parameters(result) -> jax.Array:
    return jnp.stack([result.test_risk[-1], result.student_overlap[-1, 0, 0], result.teacher_overlap[-1, 0, 0]])


def solver(name: str, steps: int, samples: int, noise, **options) -> Callable:
    grid = dmftopt.TimeGrid.uniform(HORIZON, steps)
    options |= {"samples": samples, "throw": False}

    def run(key):
        return order_parameters(dmftopt.solve(problem(name), protocol(name), grid, noise=noise, key=key, **options))

    return jax.jit(run)


def solver_gradient(name: str, steps: int, samples: int, noise) -> Callable:
    grid = dmftopt.TimeGrid.uniform(HORIZON, steps)

    def risk(knots, key):
        p = protocol(name, knots)
        return dmftopt.solve(problem(name), p, grid, noise=noise, samples=samples, key=key, throw=False).test_risk[-1]

    knots = jnp.full(20, TASKS[name][2])
    return jax.jit(lambda key: jax.grad(risk)(knots, key))


def sgd(name: str, dimension: int, knots, key):
    """One run of SGD with batch size 1 in float32: final (Q, O). Teacher and student have exact norms and are orthogonal."""
    p, f32 = problem(name), jnp.float32
    samples, steps = round(float(p.delta) * dimension), round(HORIZON * dimension)
    k_teacher, k_student, k_x, k_label, k_index = jax.random.split(key, 5)
    teacher = jax.random.normal(k_teacher, (dimension,), f32)
    student = jax.random.normal(k_student, (dimension,), f32)
    teacher = teacher * (TASKS[name][1] * (dimension / jnp.sum(teacher**2)) ** f32(0.5))
    student = student - jnp.sum(student * teacher) / jnp.sum(teacher**2) * teacher
    student = student * ((0.5 * dimension / jnp.sum(student**2)) ** f32(0.5))
    x = jax.random.normal(k_x, (samples, dimension), f32) / f32(dimension**0.5)
    uniform = jax.random.uniform(k_label, (samples,), f32, 1e-6, 1 - 1e-6)
    cast = jax.tree.map(lambda a: jnp.asarray(a, f32) if isinstance(a, float) else a, p.task)
    y = cast.label(x @ teacher, uniform)
    times = jnp.arange(steps, dtype=f32) / dimension
    rates = jnp.interp(times, jnp.linspace(0, HORIZON, knots.shape[0], dtype=f32), knots.astype(f32))
    index = jax.random.randint(k_index, (steps,), 0, samples)

    def step(theta, inputs):
        rate, i = inputs
        g = cast.gradient(x[i] @ theta, y[i])
        return theta - rate * (g * x[i] + f32(RIDGE / dimension) * theta), None

    theta, _ = jax.lax.scan(step, student, (rates, index))
    return jnp.sum(theta**2) / dimension, jnp.sum(theta * teacher) / dimension


def simulation(name: str, dimension: int) -> Callable:
    p, knots = problem(name), jnp.full(2, TASKS[name][2])

    def run(key):
        Q, O = (a.astype(float) for a in sgd(name, dimension, knots, key))
        return jnp.stack([p.task.test_risk(Q, O, p.rho[0, 0]), Q, O])

    return jax.jit(jax.vmap(run))


def simulation_gradient(name: str, dimension: int) -> Callable:
    p = problem(name)

    def risk(knots, key):
        Q, O = (a.astype(float) for a in sgd(name, dimension, knots, key))
        return p.task.test_risk(Q, O, p.rho[0, 0])

    knots = jnp.full(20, TASKS[name][2])
    return jax.jit(jax.vmap(lambda key: jax.grad(risk)(knots, key)))


def seconds(function: Callable, argument, repeats: int = 3) -> float:
    """Processor seconds of one call, the fastest of several groups of calls long enough to time."""
    jax.block_until_ready(function(argument))
    started = time.process_time()
    jax.block_until_ready(function(argument))
    count = max(1, int(0.1 / max(time.process_time() - started, 1e-4)))
    found = []
    for _ in range(repeats):
        started = time.process_time()
        for _ in range(count):
            jax.block_until_ready(function(argument))
        found.append((time.process_time() - started) / count)
    return min(found)


def measure(function: Callable, keys: int, offset: int = 1000) -> np.ndarray:
    return np.stack([np.asarray(function(jax.random.key(offset + i))) for i in range(keys)])


def simulated(make: Callable, name: str, reference: np.ndarray, dimensions, runs: int) -> dict:
    """Bias constant, variance and seconds of one run at each dimension; the fastest of several batch sizes."""
    rows = []
    for d in dimensions:
        function, count = make(name, d), max(64, runs // (4 if d == max(dimensions) else 1))
        timings = {}
        for batch in (4, 16, 64):
            timings[batch] = seconds(function, jax.random.split(jax.random.key(0), batch)) / batch
        batch = min(timings, key=lambda b: timings[b])
        values = [np.asarray(function(keys)) for keys in jax.random.split(jax.random.key(d), (count // batch, batch))]
        values = np.concatenate(values)
        error = values.mean(axis=0) - reference
        rows.append((d, timings[batch], error, values.var(axis=0, ddof=1), len(values)))
    d = np.array([r[0] for r in rows], float)
    # Weighted least squares for b in error = b / d, each mean with its standard error.
    weight = np.stack([r[4] / r[3] for r in rows])
    error = np.stack([r[2] for r in rows])
    bias = np.sum(weight * error / d[:, None], axis=0) / np.sum(weight / d[:, None] ** 2, axis=0)
    return {"dimension": d, "seconds": np.array([r[1] for r in rows]), "variance": np.stack([r[3] for r in rows]), "bias": bias}


def cheapest(sim: dict, bias2: np.ndarray, variance: np.ndarray, target: float) -> tuple[float, int, float]:
    """Least seconds to the target over dimensions (interpolated in log d), with the dimension and the number of runs."""
    grid = np.exp(np.linspace(np.log(sim["dimension"][0]), np.log(8192), 400))
    log_d = np.log(sim["dimension"])
    # Beyond the measured dimensions seconds grow like d² (data and steps) and the variance falls like 1/d.
    second = np.exp(np.interp(np.log(grid), log_d, np.log(sim["seconds"])))
    second = np.where(grid > sim["dimension"][-1], second * (grid / sim["dimension"][-1]) ** 2, second)
    spread = np.exp(np.interp(np.log(grid), log_d, np.log(variance)))
    spread = np.where(grid > sim["dimension"][-1], spread * sim["dimension"][-1] / grid, spread)
    room = target**2 - bias2 / grid**2
    cost = np.where(room > 0, second * np.maximum(1.0, spread / np.where(room > 0, room, 1.0)), np.inf)
    best = int(np.argmin(cost))
    return float(cost[best]), int(grid[best]), float(max(1.0, spread[best] / room[best]))


def solved(make: Callable, reference: np.ndarray, ladder, keys: int) -> list[dict]:
    rows = []
    for steps, samples in ladder:
        function = make(steps, samples)
        # The largest are as good as free of bias, and slow.
        error = measure(function, keys if samples < 1e5 else max(2, keys // 3)) - reference
        rows.append({
            "steps": steps, "samples": samples, "seconds": seconds(function, jax.random.key(0)),
            "rms": np.sqrt(np.mean(error**2, axis=0)), "bias": np.mean(error, axis=0),
        })  # fmt: skip
    return rows


def fastest(rows: list[dict], column, target: float) -> dict | None:
    good = [r for r in rows if column(r["rms"]) <= target]
    return min(good, key=lambda r: r["seconds"]) if good else None


def ratio(cost: float, dimension: int, runs: float, best: dict | None) -> dict:
    return {
        "simulation_seconds": cost,
        "dimension": dimension,
        "runs": runs,
        "solver_seconds": best and best["seconds"],
        "steps_samples": best and (best["steps"], best["samples"]),
        "ratio": best and cost / best["seconds"],
    }


def main(s: Settings) -> None:
    ladder, gradient_ladder, fixed = LADDER, GRADIENT, ((20, 4096), (40, 4096))
    if s.smoke:
        ladder = gradient_ladder = ((2, 16), (4, 64))
        fixed = ((2, 16), (4, 16))
    s = s.sized(keys=2, runs=64, dimensions=(16, 32), reference=(4, 64, 2))
    machine = {"processor": platform.machine(), "cores": len(jax.devices()), "jax": jax.__version__}
    result: dict = {"machine": machine, "setting": {"delta": 2, "ridge": RIDGE, "horizon": HORIZON, "batch_size": 1}, "tasks": {}}
    for name in tqdm(TASKS, desc="tasks", disable=None):
        result["tasks"][name] = task(name, s, ladder, (1e-3, 1e-4))
    result["gradient"] = gradient(s, gradient_ladder)
    result["fixed point"] = fixed_point(s, fixed, result["tasks"]["sign labels"])
    finish(s, __file__, result, tables(result), draw(result), shown="accuracy")


def tables(result: dict) -> dict[str, str]:
    """Times to an error, of the solver and of SGD; and of the fixed-point iteration to 1e-3."""

    def row(label: str, error: str, r: dict) -> list[str]:
        other = f"{short(r['simulation_seconds'])} s ({r['runs']:.0f} of d = {r['dimension']})"
        if not r["solver_seconds"]:
            return [label, error, "not reached", other, ""]
        steps, samples = r["steps_samples"]
        return [label, error, f"{short(r['solver_seconds'])} s ({steps} × {samples})", other, f"{short(r['ratio'])}"]

    rows = []
    for name, found in result["tasks"].items():
        rows += [row(f"{name}: {label.split(', ')[0]}", label.split(", ")[1], r) for label, r in found["ratios"].items()]
    for label, r in result["gradient"]["ratios"].items():
        rows.append(row("sign labels: gradient in 20 knots", f"{float(label.split()[1]):.0%}", r))
    head = ["", "error", "solver (steps × samples)", "SGD runs", "ratio"]
    slow = [[label, f"{short(r['ratio'])}" if r["ratio"] else ""] for label, r in result["fixed point"]["ratios"].items()]
    return {"accuracy": markdown(head, rows), "fixed point": markdown(["", "fixed-point iteration over solver"], slow)}


def exact(name: str, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Reference order parameters and their standard errors."""
    steps, samples, replicates = settings.reference
    if name == "least squares":
        grid = dmftopt.TimeGrid.uniform(HORIZON, 2)
        return np.asarray(order_parameters(dmftopt.limits.least_squares(problem(name), protocol(name), grid))), np.zeros(3)
    values = measure(solver(name, steps, samples, dmftopt.noise.Poisson(), richardson=True), replicates, offset=0)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(replicates)


def task(name: str, settings: Settings, ladder, targets) -> dict:
    reference, error = exact(name, settings)
    sim = simulated(simulation, name, reference, settings.dimensions, settings.runs)
    rows = solved(lambda k, n: solver(name, k, n, dmftopt.noise.Poisson()), reference, ladder, settings.keys)
    found: dict = {"reference": reference, "reference_error": error, "simulation": sim, "solver": rows, "ratios": {}}
    for i, observable in enumerate(NAMES):
        for target in targets:
            cost, d, runs = cheapest(sim, sim["bias"][i] ** 2, sim["variance"][:, i], target)
            best = fastest(rows, lambda rms, i=i: rms[i], target)
            found["ratios"][f"{observable}, {target:g}"] = ratio(cost, d, runs, best)
    return found


def gradient(settings: Settings, ladder) -> dict:
    """Relative errors: norm of the error of the whole gradient over the norm of the gradient."""
    name, noise = "sign labels", dmftopt.noise.Poisson()
    steps, samples, replicates = settings.reference
    # No extrapolation here: the reference has the steps of its fine level.
    reference = measure(solver_gradient(name, 2 * steps, samples // 2, noise), replicates, offset=0).mean(axis=0)
    size = float(np.linalg.norm(reference))
    sim = simulated(simulation_gradient, name, reference, settings.dimensions[:-1], settings.runs // 4)
    rows = solved(lambda k, n: solver_gradient(name, k, n, noise), reference, ladder, max(2, settings.keys // 2))
    found: dict = {"reference": reference, "solver": rows, "ratios": {}}
    for target in (1e-1, 3e-2, 1e-2):
        bias2, variance = np.sum(sim["bias"] ** 2), sim["variance"].sum(axis=1)
        cost, d, runs = cheapest(sim, bias2, variance, target * size)
        best = fastest(rows, lambda rms: np.linalg.norm(rms), target * size)
        found["ratios"][f"relative {target:g}"] = ratio(cost, d, runs, best)
    return found


def fixed_point(settings: Settings, sizes, against: dict) -> dict:
    """Euler steps extrapolated from K and 2 K, random samples: seconds to 1e-3 from the measured bias and variance."""
    (coarse, samples), (fine, _) = sizes
    rows, reference = [], against["reference"]
    for steps in (coarse, fine):
        function = solver("sign labels", steps, samples, dmftopt.noise.Poisson(), solver=dmftopt.FixedPoint())
        values = measure(function, max(2, settings.keys // 3))
        rows.append({"steps": steps, "samples": samples, "seconds": seconds(function, jax.random.key(0), 1)})
        rows[-1] |= {"bias": values.mean(axis=0) - reference, "deviation": values.std(axis=0, ddof=1)}
    found: dict = {"measured": rows, "ratios": {}}
    for i, observable in enumerate(NAMES):
        # Extrapolation of the two levels, taken to be free of bias, with the fine level's variance times 2² + 1 at most.
        runs = max(1.0, 5 * (rows[-1]["deviation"][i] / 1e-3) ** 2)
        cost = runs * (rows[0]["seconds"] + rows[1]["seconds"])
        best = against["ratios"][f"{observable}, 0.001"]["solver_seconds"]
        found["ratios"][f"{observable}, 0.001"] = {"fixed_point_seconds": cost, "ratio": best and cost / best}
    return found


def draw(result: dict) -> Figure:
    picture, panels = plt.subplots(1, len(result["tasks"]), figsize=(4.6 * len(result["tasks"]), 4.2), layout="constrained")
    targets = np.logspace(-2, -4.3, 24)
    for axes, (name, found) in zip(np.atleast_1d(panels), result["tasks"].items(), strict=True):
        sim = found["simulation"]
        for i, observable in enumerate(NAMES):
            front, best = [], np.inf
            for row in sorted(found["solver"], key=lambda r: r["seconds"]):
                axes.loglog(row["seconds"], row["rms"][i], ".", color=f"C{i}", alpha=0.4)
                if row["rms"][i] < best:
                    best = row["rms"][i]
                    front.append((row["seconds"], best))
            axes.loglog(*np.transpose(front), "-o", ms=4, color=f"C{i}", label=f"solver, {observable}")
            cost = [cheapest(sim, sim["bias"][i] ** 2, sim["variance"][:, i], t)[0] for t in targets]
            axes.loglog(cost, targets, "--", color=f"C{i}", label=f"SGD runs, {observable}")
        axes.set(xlabel="processor time (s)", ylabel="root-mean-square error", title=name)
        axes.grid(which="both", alpha=0.2)
    np.atleast_1d(panels)[0].legend(fontsize=7)
    return picture


if __name__ == "__main__":
    main(tyro.cli(Settings))
