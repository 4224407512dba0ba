"""Has anything become slower, larger or longer to compile? Ratios within one run against the stored ones (`make bench`).

Of solves and of the exact limit, forward and with gradient: lines of the program, seconds of compilation over those of a fixed
reference program, seconds over those of a bare scan of a step's matrix-vector products (gradient: over forward), and peak memory
by XLA's own accounting. What does not depend on the machine may grow by a tenth, times by a half. Exits with 1 where more has.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from tqdm.auto import tqdm

import dmftopt
from dmftopt import noise

from ..shared.compilation import compile_anew
from ..shared.results import Settings as Common
from ..shared.results import finish, markdown, write_json
from .speed import compiled, fastest, floor

jax.config.update("jax_enable_x64", True)

STORED = Path(__file__).with_suffix(".json")
ALLOWED = {"program lines": 1.1, "memory, arrays": 1.1, "compile / reference": 1.5, "run / floor": 1.5, "gradient / forward": 1.5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Compare programs, compilation, times and memory with the stored ones; --publish stores these."""

    steps: int = 40
    samples: int = 4096
    repeats: int = 9


def cases(s: Settings) -> dict[str, Callable]:
    """By name, the final test risk as a function of the learning rate."""
    sign, squares = dmftopt.tasks.Logistic("sign"), dmftopt.tasks.LeastSquares(0.3)
    plain = {task: dmftopt.Problem(task, dmftopt.features.isotropic(), 2.0, 1.0, 0.5**0.5) for task in (sign, squares)}
    uniform = dmftopt.TimeGrid.uniform(4.0, s.steps)
    epochs = dmftopt.TimeGrid.of_epochs(plain[sign], dmftopt.Protocol(1.0), 2, s.steps)

    def solved(law, grid=uniform, **own):
        def risk(rate):
            protocol = dmftopt.Protocol(rate, 1.0, 0.1, **own)
            options: Any = {"noise": law, "samples": s.samples, "key": jax.random.key(0), "throw": False}
            return dmftopt.solve(plain[sign], protocol, grid, **options).test_risk[-1]

        return risk

    def exact(rate):
        return dmftopt.limits.least_squares(plain[squares], dmftopt.Protocol(rate), uniform, throw=False).test_risk[-1]

    return {
        "Brownian": solved(noise.Brownian()),
        "Poisson": solved(noise.Poisson()),
        "Shuffled": solved(noise.Shuffled(), epochs),
        "Poisson, Adam": solved(noise.Poisson(), update=dmftopt.updates.Adam(1.0)),
        "limits.least_squares": exact,
    }


def reference(x):
    """A program that stays as it is: loops with a sort, sums and transcendental functions, and its gradient."""

    def loop(x, power):
        def body(carry, k):
            carry = jnp.tanh(carry + jnp.sort(carry) * power) + jnp.cumsum(jnp.sin(carry * k)) / carry.size
            return carry, jnp.sum(carry**2)

        return jnp.sum(jax.lax.scan(body, x, jnp.arange(1.0, 9.0))[1])

    return jax.value_and_grad(lambda x: sum(loop(x, 0.1 * power) for power in range(1, 41)))(x)


def measured(risk: Callable, compile_unit: float, bare: float, repeats: int, size: int) -> dict[str, float]:
    found, before = {}, bare
    for name, function in (("forward", risk), ("gradient", jax.value_and_grad(risk))):
        program, seconds = compiled(function, 1.0)
        lines = jax.jit(function).lower(1.0).as_text().count("\n")
        memory = program.memory_analysis()
        assert memory is not None
        run = fastest(program, 1.0, repeats=repeats)
        found[f"{name}: program lines"] = float(lines)
        found[f"{name}: compile / reference"] = seconds / compile_unit
        found[f"{name}: " + ("run / floor" if name == "forward" else "gradient / forward")] = run / before
        found[f"{name}: memory, arrays"] = memory.temp_size_in_bytes / (8 * size)
        before = run
    return found


def growth(found: dict[str, dict], stored: dict[str, dict]) -> list[tuple[str, float, float, bool]]:
    """Every figure, as it is stored and now, and whether it has grown by more than is allowed."""
    rows = []
    for case, figures in found.items():
        for name, value in figures.items():
            old = stored.get(case, {}).get(name)
            if old is not None:
                rows.append((f"{case}, {name}", old, value, value > ALLOWED[name.split(": ")[1]] * old))
    return rows


def main(s: Settings) -> int:
    compile_anew()
    s = s.sized(steps=8, samples=512, repeats=1)
    key = jax.random.key(0)
    innovations = jax.random.normal(key, (s.steps, s.samples))
    arguments = (jnp.concatenate([innovations] * 2), innovations, jnp.ones(2 * s.steps) / s.steps, jnp.ones(s.steps) / s.steps)
    bare = fastest(compiled(floor, *arguments)[0], *arguments, repeats=s.repeats)
    unit = min(compiled(lambda x: reference(x), jnp.linspace(0.0, 1.0, 256))[1] for _ in range(2))
    found = {
        name: measured(risk, unit, bare, s.repeats, s.steps * s.samples)
        for name, risk in tqdm(cases(s).items(), desc="cases", disable=None)
    }
    rows = growth(found, {} if s.smoke or not STORED.exists() else json.loads(STORED.read_text()))
    print(markdown(["", "stored", "now", ""], [[n, f"{a:.3g}", f"{b:.3g}", "grown" if bad else ""] for n, a, b, bad in rows]))
    finish(s, __file__, {"settings": s.without(), "cases": found}, tables(found))
    if s.publish:
        write_json(STORED, found)
    grown = [name for name, *_, bad in rows if bad]
    if grown:
        print(f"grown by more than allowed: {'; '.join(grown)}", file=sys.stderr)
    return 1 if grown and not s.publish else 0


def tables(found: dict[str, dict]) -> dict[str, str]:
    names = list(next(iter(found.values())))
    lines = [[case, *(f"{figures[name]:.3g}" for name in names)] for case, figures in found.items()]
    return {"guard": markdown(["", *names], lines)}


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
