"""Neighbor search of the absorbing-state experiment: scipy's periodic k-d tree against a cell list in JAX, 20 000 spheres.

Both search all pairs within 1 + skin of positions as they are near criticality. Then what a step costs on the list: as the
experiment does it (numpy, only pairs of which a particle has moved) and as one jitted function of all pairs. Compilation is not
counted; medians.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.spatial import KDTree

from ..shared.results import Settings as Common
from ..shared.results import finish, markdown
from .dynamics import BRO, Spheres, run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Time neighbor searches and steps."""

    particles: int = 20000
    cases: tuple[tuple[float, float, float], ...] = ((0.3, 0.5, 0.1), (0.6, 0.05, 0.3))
    """Packing fraction, step size of BRO, skin."""
    relax: int = 300
    """Steps from random positions."""
    repeats: int = 11


def milliseconds(call: Callable[[], Any], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


@functools.partial(jax.jit, static_argnames=("cells", "capacity", "pairs"))
def cell_list(x, box, within, *, cells: int, capacity: int, pairs: int):
    """First and second particle of at most `pairs` pairs (filled up with -1), and how many there are, by cells of the side
    box / cells >= within that hold at most `capacity` particles."""
    n = len(x)
    at = jnp.floor(x / box * cells).astype(int)
    cell = (at[:, 0] * cells + at[:, 1]) * cells + at[:, 2]
    order = jnp.argsort(cell)
    start = jnp.searchsorted(cell[order], jnp.arange(cells**3))
    table = jnp.full((cells**3, capacity), n).at[cell[order], jnp.arange(n) - start[cell[order]]].set(order)
    shift = jnp.stack(jnp.meshgrid(*[jnp.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    near = (at[:, None] + shift) % cells
    candidates = table[(near[..., 0] * cells + near[..., 1]) * cells + near[..., 2]].reshape(n, -1)
    d = x[:, None] - x[jnp.minimum(candidates, n - 1)]
    d = d - box * jnp.round(d / box)
    close = ((d**2).sum(-1) < within**2) & (candidates < n) & (candidates > jnp.arange(n)[:, None])
    (flat,) = jnp.nonzero(close.ravel(), size=pairs, fill_value=-1)
    first = jnp.where(flat < 0, -1, flat // candidates.shape[1])
    return first, jnp.where(flat < 0, -1, candidates.ravel()[flat]), close.sum()


@jax.jit
def jitted_step(x, first, second, box, epsilon, key):
    d = x[first] - x[second]
    d = d - box * jnp.round(d / box)
    r = jnp.sqrt((d**2).sum(-1))
    kick = jnp.where(r < 1, epsilon * jax.random.uniform(key, r.shape, r.dtype) / r, 0.0)[:, None] * d
    return x.at[first].add(kick).at[second].add(-kick)


def compared(particles: int, phi: float, epsilon: float, skin: float, relax: int, repeats: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    spheres = Spheres.random(rng, particles, phi, skin)
    activity = run(spheres, BRO(epsilon), rng, relax)[-1]
    within, x = 1 + skin, spheres.positions % spheres.box
    few = x[: particles // 20]

    def tree():
        return KDTree(x, boxsize=spheres.box, compact_nodes=False, balanced_tree=False)

    found = tree().query_pairs(within, output_type="ndarray")
    cells = int(spheres.box / within)
    occupied = np.floor(x / spheres.box * cells).astype(int)
    capacity = int(np.unique(occupied, axis=0, return_counts=True)[1].max())
    position = jnp.asarray(x)
    sizes = {"cells": cells, "capacity": capacity, "pairs": len(found)}
    first, second, count = cell_list(position, spheres.box, within, **sizes)
    same = {tuple(sorted(p)) for p in found.tolist()} == set(
        zip(np.asarray(first).tolist(), np.asarray(second).tolist(), strict=True)
    )
    if int(count) != len(found) or not same:
        raise RuntimeError("The cell list and the k-d tree disagree.")
    key = jax.random.key(0)
    return {
        "phi": phi,
        "epsilon": epsilon,
        "activity": activity,
        "pairs": len(found),
        "milliseconds": {
            "k-d tree, all pairs": milliseconds(lambda: tree().query_pairs(within, output_type="ndarray"), repeats),
            "k-d tree, pairs of 5% of the particles": milliseconds(lambda: tree().query_ball_point(few, within), repeats),
            "JAX cell list, all pairs": milliseconds(lambda: cell_list(position, spheres.box, within, **sizes), repeats),
            "step in numpy, renewed lists included": milliseconds(lambda: spheres.step(BRO(epsilon), rng), 5 * repeats),
            "step in JAX, list given": milliseconds(
                lambda: jitted_step(position, first, second, spheres.box, epsilon, key), repeats
            ),
        },
    }


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    head = ["milliseconds", *(f"ε = {r['epsilon']:g}, φ = {r['phi']:g}, activity {r['activity']:.2f}" for r in rows)]
    lines = ([name, *(f"{r['milliseconds'][name]:.3g}" for r in rows)] for name in rows[0]["milliseconds"])
    return {"neighbors": markdown(head, lines)}


def main(s: Settings) -> None:
    jax.config.update("jax_enable_x64", True)
    s = s.sized(particles=1000, relax=5, repeats=2)
    rows = [compared(s.particles, *case, s.relax, s.repeats, s.seed) for case in s.cases]
    finish(s, __file__, {"particles": s.particles, "cases": rows}, tables(rows))


if __name__ == "__main__":
    main(tyro.cli(Settings))
