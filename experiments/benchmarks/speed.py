"""Speed, memory and accuracy of the solver, as ratios within one run.

- Forward time against a floor: a bare scan that does only the four matrix-vector products of a step, on arrays of the same
  shape. Gradient time against forward time. Compile times. Gradient peak memory (XLA's own accounting) in arrays of samples ×
  steps.
- Growth of both times with steps and with samples, as exponents; time and memory of a large gradient.
- Root-mean-square error against samples (order parameters at the end, over replicates) without noise and with Brownian noise,
  and against steps with and without Richardson extrapolation.
- What float32 costs in accuracy, on the same random numbers.
"""

import dataclasses
import platform
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure
from tqdm.auto import tqdm

import dmftopt

from ..shared.compilation import compile_anew
from ..shared.results import Settings as Common
from ..shared.results import finish, markdown

jax.config.update("jax_enable_x64", True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Measure speed, memory and accuracy of the solver."""

    shapes: tuple[tuple[int, int], ...] = ((20, 8192), (80, 4096), (400, 8192))
    """(steps, samples) to time."""
    large: tuple[int, int] = (1000, 16384)
    """(steps, samples) of one large gradient."""
    keys: int = 48
    """Independent replicates behind each root-mean-square error."""
    repeats: int = 5


NAMES = ("student overlap", "teacher overlap", "train loss", "test risk")


def problem() -> dmftopt.Problem:
    features = dmftopt.features.isotropic()
    return dmftopt.Problem(dmftopt.tasks.Logistic("sign"), features, 2.0, 1.0, 0.5**0.5)


def final(steps: int, samples: int, noise, key, learning_rate=1.0, richardson=False):
    """The four order parameters at t = 5."""
    grid = dmftopt.TimeGrid.uniform(5.0, steps)
    s = dmftopt.solve(
        problem(),
        dmftopt.Protocol(learning_rate, ridge=0.1),
        grid,
        noise=noise,
        samples=samples,
        richardson=richardson,
        key=key,
        throw=False,
    )
    return jnp.stack([s.student_overlap[-1, 0, 0], s.teacher_overlap[-1, 0, 0], s.train_loss[-1], s.test_risk[-1]])


def compiled(function, *arguments):
    started = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return program, time.perf_counter() - started


def fastest(program, *arguments, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        times.append(time.perf_counter() - started)
    return min(times[1:])


def floor(gradients, innovations, a, b):
    """Four matrix-vector products per step, and nothing else."""

    def body(state, _):
        a, b = state
        r = a @ gradients + b @ innovations
        return (gradients @ r / r.size, innovations @ r / r.size), r[0]

    return jax.lax.scan(body, (a, b), None, length=innovations.shape[0])


ARGUMENTS = (1.0, jax.random.key(0))


def risk(steps: int, samples: int):
    return lambda rate, key: final(steps, samples, dmftopt.noise.Brownian(), key, rate)[3]


def programs(steps: int, samples: int):
    """Compiled forward and gradient, each with its compile seconds."""
    function = risk(steps, samples)
    return compiled(function, *ARGUMENTS), compiled(jax.value_and_grad(function), *ARGUMENTS)


def time_shape(steps: int, samples: int, repeats: int) -> dict:
    (forward, forward_compile), (gradient, gradient_compile) = programs(steps, samples)
    innovations = jax.random.normal(jax.random.key(0), (steps, samples))
    bare = {}
    # The split step keeps two gradient directions per step; the plain floor has one.
    for columns in (1, 2):
        rows = jnp.concatenate([innovations] * columns)
        arguments = (rows, innovations, jnp.ones(columns * steps) / steps, jnp.ones(steps) / steps)
        program, _ = compiled(floor, *arguments)
        bare[columns] = fastest(program, *arguments, repeats=repeats)
    forward_seconds = fastest(forward, *ARGUMENTS, repeats=repeats)
    gradient_seconds = fastest(gradient, *ARGUMENTS, repeats=repeats)
    memory = gradient.memory_analysis()
    assert memory is not None
    return {
        "steps": steps,
        "samples": samples,
        "forward_seconds": forward_seconds,
        "floor_seconds": bare[2],
        "forward_over_floor": forward_seconds / bare[2],
        "forward_over_floor_of_one_direction": forward_seconds / bare[1],
        "gradient_over_forward": gradient_seconds / forward_seconds,
        "gradient_peak_arrays": memory.temp_size_in_bytes / (8 * steps * samples),
        "forward_compile_seconds": forward_compile,
        "gradient_compile_seconds": gradient_compile,
    }


def growth(shapes, repeats: int) -> dict:
    """Exponents of time over the changing one of (steps, samples)."""
    seconds = []
    for steps, samples in shapes:
        both = programs(steps, samples)
        seconds.append([fastest(program, *ARGUMENTS, repeats=repeats) for program, _ in both])
    size = [max(s) if shapes[0][0] == shapes[1][0] else s[0] for s in shapes]
    slopes = np.polyfit(np.log(size), np.log(seconds), 1)[0]
    return {"shapes": shapes, "seconds": seconds, "exponents": {"forward": slopes[0], "gradient": slopes[1]}}


def large(steps: int, samples: int) -> dict:
    gradient, compile_seconds = compiled(jax.value_and_grad(risk(steps, samples)), *ARGUMENTS)
    memory = gradient.memory_analysis()
    assert memory is not None
    started = time.perf_counter()
    jax.block_until_ready(gradient(*ARGUMENTS))
    return {
        "shape": (steps, samples),
        "gradient_seconds": time.perf_counter() - started,
        "gradient_gigabytes": memory.temp_size_in_bytes / 1e9,
        "compile_seconds": compile_seconds,
    }


def single_precision(steps: int, samples: int) -> dict:
    """Largest relative difference of the order parameters, and of the risk's derivative, in float32 from float64."""

    def both(rate):
        key, noise = jax.random.key(0), dmftopt.noise.Brownian()
        slope = jax.grad(lambda rate: final(steps, samples, noise, key, rate)[3])(rate)
        return np.asarray(final(steps, samples, noise, key, rate), float), float(slope)

    values, slope = both(jnp.asarray(1.0))
    with jax.enable_x64(False):
        single, single_slope = both(jnp.asarray(1.0))
    return {
        "shape": (steps, samples),
        "order_parameters": float(np.max(np.abs(single / values - 1))),
        "derivative": abs(single_slope / slope - 1),
    }


def errors_in_samples(noise, counts, keys: int) -> dict:
    """Root-mean-square error of each order parameter at 20 steps, against the mean of the largest population."""
    values = {}
    for count in counts:
        solve = jax.jit(lambda key, count=count: final(20, count, noise, key))
        values[count] = np.stack([solve(jax.random.key(i)) for i in range(keys)])
    reference = values[counts[-1]].mean(axis=0)
    rms = np.stack([np.sqrt(np.mean((values[c] - reference) ** 2, axis=0)) for c in counts])
    slopes = np.polyfit(np.log(counts), np.log(rms), 1)[0]
    return {"samples": list(counts), "rms": rms.tolist(), "slopes": dict(zip(NAMES, slopes.tolist(), strict=True))}


def errors_in_steps(noise, counts, richardson: bool, samples: int, keys: int) -> dict:
    """Error of each order parameter against the most refined Richardson solution."""

    def mean(steps, richardson):
        solve = jax.jit(lambda key: final(steps, samples, noise, key, richardson=richardson))
        return np.mean([solve(jax.random.key(i)) for i in range(keys)], axis=0)

    reference = mean(counts[-1], True)
    errors = np.abs(np.stack([mean(k, richardson) - reference for k in counts[:-1]]))
    # The student overlap has the largest time error; in the others it is soon below the sampling error.
    slope = np.polyfit(np.log(counts[:-1]), np.log(errors[:, 0]), 1)[0]
    return {"steps": list(counts[:-1]), "errors": errors.tolist(), "slope_student_overlap": float(slope)}


def main(s: Settings) -> None:
    compile_anew()
    sample_counts, step_counts, largest, keys = (1024, 4096, 16384, 65536), (6, 12, 24, 48), 65536, 4
    growing = {
        "steps": ((50, 8192), (100, 8192), (200, 8192), (400, 8192)),
        "samples": ((100, 2048), (100, 4096), (100, 8192), (100, 16384)),
    }
    precise = ((20, 8192), (80, 8192))
    if s.smoke:
        growing, precise = {"steps": ((2, 64), (4, 64)), "samples": ((4, 32), (4, 64))}, ((4, 64),)
        sample_counts, step_counts, largest, keys = (32, 64, 128), (2, 4, 8), 128, 2
    s = s.sized(shapes=((4, 64),), large=(6, 64), keys=3, repeats=1)
    result: dict = {"machine": {"processor": platform.machine(), "cores": jax.device_count(), "jax": jax.__version__}}
    result["timings"] = [time_shape(*shape, s.repeats) for shape in tqdm(s.shapes, desc="timings", disable=None)]
    result["growth"] = {name: growth(shapes, s.repeats) for name, shapes in growing.items()}
    result["precision"] = [single_precision(*shape) for shape in precise]
    result["large"] = large(*s.large)
    noises = {"none": dmftopt.noise.NoNoise(), "Brownian": dmftopt.noise.Brownian()}
    result["samples"] = {name: errors_in_samples(noise, sample_counts, s.keys) for name, noise in noises.items()}
    result["steps"] = {
        label: errors_in_steps(dmftopt.noise.Brownian(), step_counts, richardson, largest, keys)
        for label, richardson in (("plain", False), ("Richardson", True))
    }
    finish(s, __file__, result, tables(result), draw(result), shown="speed")


def tables(result: dict) -> dict[str, str]:
    """What a solve and its gradient cost; how time grows and errors fall."""
    rows = []
    for r in result["timings"]:
        row = [f"{r['steps']} × {r['samples']}", f"{r['forward_seconds']:.2g} s", f"{r['forward_over_floor']:.1f}"]
        row += [f"{r['gradient_over_forward']:.1f}", f"{r['gradient_peak_arrays']:.1f}"]
        rows.append([*row, f"{r['forward_compile_seconds']:.1f} / {r['gradient_compile_seconds']:.1f} s"])
    head = ["steps × samples", "forward", "over floor", "gradient / forward"]
    head += ["gradient peak memory, arrays of samples × steps", "compile, forward / gradient"]
    exponents = [[f"time with {k}, {w}", f"{v:.2f}"] for k, g in result["growth"].items() for w, v in g["exponents"].items()]
    for name, found in result["samples"].items():
        slopes = found["slopes"].values()
        exponents.append([f"error with samples, noise {name}", f"{max(slopes):.2f} to {min(slopes):.2f}"])
    exponents += [[f"error with steps, {label}", f"{f['slope_student_overlap']:.2f}"] for label, f in result["steps"].items()]
    return {"cost": markdown(head, rows), "exponents": markdown(["growth of", "exponent"], exponents)}


def draw(result: dict) -> Figure:
    picture, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for color, (name, found) in zip(("C0", "C1"), result["samples"].items(), strict=True):
        for i, style in enumerate(("-o", "--s", ":^", "-.d")):
            left.loglog(found["samples"], np.asarray(found["rms"])[:, i], style, color=color, label=f"{NAMES[i]}, noise {name}")
    left.set(xlabel="samples", ylabel="root-mean-square error", title="20 steps, scrambled Sobol")
    for color, (name, found) in zip(("C0", "C1"), result["steps"].items(), strict=True):
        right.loglog(found["steps"], np.asarray(found["errors"])[:, 0], "-o", color=color, label=f"{name}, student overlap")
        right.loglog(found["steps"], np.asarray(found["errors"])[:, 1], "--s", color=color, label=f"{name}, teacher overlap")
    right.set(xlabel="steps", ylabel="error", title="Brownian noise, time step")
    for axes in (left, right):
        axes.legend(fontsize=7)
        axes.grid(which="both", alpha=0.2)
    return picture


if __name__ == "__main__":
    main(tyro.cli(Settings))
