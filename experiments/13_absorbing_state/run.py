"""SGD as an absorbing-state dynamics: when does it stop, and how flat is where it stays?

Spheres with a linear repulsion (dynamics.py) moved by SGD or by biased random organization (BRO). Below a critical packing
fraction phi_c all overlaps are removed and nothing moves any more, above it activity goes on. Measured, always from random
positions:

- phi_c of several step sizes epsilon (SGD's is that of the BRO with the same mean kick), and its limit epsilon -> 0;
- how phi_c depends on the number of particles and on the length of the runs;
- at a large step, the decay of activity at criticality and its growth above it, and their exponents in several windows;
- above phi_c, the mean energy increase under Gaussian perturbations after SGD that keeps different fractions p of the pairs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro

from ..shared import results, sweep
from ..shared.results import SweepSettings, finish, markdown, plus_minus
from . import measure
from .draw import MANNA, draw

MAIN = {"BRO": ("BRO", None), "pairwise SGD, p = 3/4": ("pairwise SGD", 0.75)}
OTHERS = {
    "pairwise SGD, p = 1/2": ("pairwise SGD", 0.5),
    "particle-wise SGD, p = 3/4": ("particle-wise SGD", 0.75),
}
# Distances to phi_c at which stationary activity is measured, relative to phi_c.
DISTANCES = (0.01, 0.1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings):
    """SGD as an absorbing-state dynamics: critical packing fractions, exponents, flatness."""

    epsilons: tuple[float, ...] = (0.1, 0.05, 0.025, 0.0125)
    """Step sizes: largest kicks of BRO, twice the mean kick of SGD; in diameters."""
    other_epsilons: tuple[float, ...] = (0.05, 0.025, 0.0125)
    """For the dynamics other than BRO and its match, pairwise SGD with p = 3/4."""
    particles: int = 2000
    seeds: int = 3
    """Of exponents and flatness."""
    bisections: int = 2
    """Seeds of each critical packing fraction."""
    halvings: int = 8
    """Of the bracket 0.2 to 0.72 of phi_c."""
    patience: float = 100.0
    """Runs are first looked at after patience / epsilon steps, and given up after 8 times as many."""
    least_steps: int = 500
    """Before the first look."""
    checked: float = 0.05
    """Step size at which the number of particles and the patience are varied."""
    large_epsilon: float = 0.5
    """For the exponents."""
    decay_particles: int = 20000
    decay_steps: int = 4000
    decay_phis: int = 9
    spacing: float = 0.001
    """Between the packing fractions at which the decay is watched, around the estimate of phi_c."""
    plateau_particles: int = 5000
    plateau_steps: int = 1000
    plateau_phis: int = 6
    flat_phis: tuple[float, ...] = (0.66, 0.70, 0.75)
    flat_particles: int = 1000
    flat_steps: int = 10000
    """With p = 1; otherwise 1 / p times as many."""
    learning_rate: float = 0.02
    """Of SGD where flatness is measured, in (2R)^2 / a."""


P = (0.25, 0.5, 0.75, 1.0)
DEVIATIONS = (0.01, 0.03, 0.1)


def cell(what: str, **arguments: Any) -> dict[str, Any]:
    kinds = {"critical": measure.critical_phi, "decay": measure.decay, "plateau": measure.plateau, "flat": measure.flat}
    return kinds[what](**arguments)


def mean_and_error(values) -> dict[str, Any]:
    """Of the values that are there, over seeds."""
    there = [v for v in values if v is not None]
    found = results.mean_and_error(there) if there else {"mean": None, "standard_error": None}
    return {**found, "seeds": len(there), "of": len(values)}


def critical_row(found: list[dict]) -> dict[str, Any]:
    """Of the seeds' bisections. The error is that over seeds and the zone of undecided runs, as if phi_c were uniform in it."""
    row = mean_and_error([f["phi"] for f in found])
    row |= {k: mean_and_error([f[k] for f in found])["mean"] for k in ("absorbed", "stationary", "half_width")}
    if row["seeds"]:
        row["error"] = float(np.hypot(row["standard_error"] or 0.0, row["half_width"] / 3**0.5))
    return row | {"undecided_runs": sum(f["undecided"] for f in found), "runs": sum(len(f["runs"]) for f in found)}


def bisections(s: Settings, jobs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Rows by the names of the jobs, each a dynamics and a step size."""
    cells = {}
    for name, job in jobs.items():
        for seed in range(s.bisections):
            # The same for all dynamics of one step size.
            chosen = [s.seed + seed, round(1e6 * job["epsilon"])]
            cells[f"critical, {name.replace('/', ' of ')}, seed={seed}"] = {**job, "seed": chosen}
    fixed = {"what": "critical", "low": 0.2, "high": 0.72, "halvings": s.halvings, "least_steps": s.least_steps, "doublings": 3}
    done = list(sweep.run(cell, cells, s.folder(__file__) / "cells", fixed, s.cluster).values())
    found = {name: done[s.bisections * i : s.bisections * (i + 1)] for i, name in enumerate(jobs)}
    return {name: critical_row(f) | {"seen": [r for one in f for r in one["runs"]]} for name, f in found.items()}


def critical(s: Settings, names: dict[str, tuple], epsilons: tuple[float, ...]) -> dict[str, dict[str, Any]]:
    """phi_c of every dynamics and step size."""
    base = {"particles": s.particles, "patience": s.patience}
    jobs = {
        f"{name}, epsilon={e:g}": {"kind": kind, "p": p, "epsilon": e, **base}
        for e in epsilons
        for name, (kind, p) in names.items()
    }
    done = bisections(s, jobs)
    return {name: {f"{e:g}": done[f"{name}, epsilon={e:g}"] for e in epsilons} for name in names}


def checks(s: Settings) -> dict[str, Any]:
    """phi_c of BRO at one step size, with more and fewer particles and steps."""
    varied = {
        "a quarter of the particles": {"particles": s.particles // 4},
        "4 times the particles": {"particles": 4 * s.particles},
        "a quarter of the patience": {"patience": s.patience / 4},
        "4 times the patience": {"patience": 4 * s.patience},
    }
    base = {"kind": "BRO", "p": None, "epsilon": s.checked, "particles": s.particles, "patience": s.patience}
    return bisections(s, {f"BRO, epsilon={s.checked:g}, {name}": base | change for name, change in varied.items()})


def limits(rows: dict[str, Any], s: Settings) -> dict[str, Any]:
    """phi_c at zero step: a line through the smallest steps, and phi_0 - a epsilon^k with the k that fits best."""
    result: dict[str, Any] = {}
    for name, row in rows.items():
        known = [(float(e), r["mean"], r["error"]) for e, r in row.items() if r["seeds"] and float(e) != s.large_epsilon]
        result[name] = {}
        for form, power, largest in (("line, epsilon <= 0.05", 1.0, 0.05), ("power fitted", None, np.inf)):
            used = [k for k in known if k[0] <= largest]
            if len(used) > (2 if power else 3):
                epsilon, phi, error = zip(*used, strict=True)
                try:
                    result[name][form] = measure.extrapolated(epsilon, phi, error, power) | {"step_sizes": epsilon}
                except (RuntimeError, ValueError) as failed:
                    result[name][form] = {"failed": str(failed)}
    return result


def exponents(rows: dict[str, Any], s: Settings) -> dict[str, Any]:
    """At the large step: phi_c from where activity dies, its decay there and its growth above, in several windows, over seeds."""
    found: dict[str, Any] = {}
    for name, (kind, p) in MAIN.items():
        called, same = name.replace("/", " of "), {"kind": kind, "p": p, "epsilon": s.large_epsilon}
        estimate = rows[name][f"{s.large_epsilon:g}"]["mean"]
        if estimate is None:
            found[name] = {"failed": "no bisection at the large step was bracketed"}
            continue
        found[name] = decays(s, called, same, estimate)
        if found[name]["phi_c"] is None:
            found[name]["failed"] = "activity died at all of the packing fractions or at none, or too early"
        else:
            found[name] |= order(s, called, same, found[name]["phi_c"])
    return found


def decays(s: Settings, called: str, same: dict[str, Any], estimate: float) -> dict[str, Any]:
    around = [round(estimate + s.spacing * (k - (s.decay_phis - 1) / 2), 5) for k in range(s.decay_phis)]
    cells = {
        f"decay, {called}, phi={phi:g}, seed={seed}": {**same, "phi": phi, "seed": [s.seed + seed, 1, k]}
        for k, phi in enumerate(around)
        for seed in range(s.seeds)
    }
    fixed = {"what": "decay", "particles": s.decay_particles, "steps": s.decay_steps}
    done = list(sweep.run(cell, cells, s.folder(__file__) / "cells", fixed, s.cluster).values())
    by_seed = [dict(zip(around, done[seed :: s.seeds], strict=True)) for seed in range(s.seeds)]
    by_window = []
    # They end at a quarter of the run: what comes later shows whether activity dies.
    for part in ((0.0025, 0.025), (0.0025, 0.25), (0.0075, 0.075), (0.0075, 0.25), (0.025, 0.25)):
        window = (part[0] * s.decay_steps, part[1] * s.decay_steps)
        found = [measure.critical_decay(d, window) for d in by_seed]
        row: dict[str, Any] = {"window": window}
        for name, apart in (("phi", "half_width"), ("exponent", "half_difference")):
            row[name] = mean_and_error([f and f[name] for f in found])
            if row[name]["seeds"]:
                # Over seeds, and as if phi_c were uniform between the two packing fractions.
                half = np.mean([f[apart] for f in found if f])
                row[name]["error"] = float(np.hypot(row[name]["standard_error"] or 0.0, half / 3**0.5))
        by_window.append(row)
    known = [w["phi"] for w in by_window if w["phi"]["mean"] is not None]
    phi_c = max(known, key=lambda phi: phi["seeds"], default=None)
    return {"estimate": estimate, "phi_c": phi_c, "decay": by_window, "decays": by_seed}


def order(s: Settings, called: str, same: dict[str, Any], phi_c: dict[str, Any]) -> dict[str, Any]:
    critical = phi_c["mean"]
    above = [critical + d for d in critical * np.geomspace(*DISTANCES, s.plateau_phis)]
    cells = {
        f"plateau, {called}, phi={phi:.5f}, seed={seed}": {**same, "phi": round(phi, 5), "seed": [s.seed + seed, 2, k]}
        for k, phi in enumerate(above)
        for seed in range(s.seeds)
    }
    fixed = {"what": "plateau", "particles": s.plateau_particles, "steps": s.plateau_steps}
    done = list(sweep.run(cell, cells, s.folder(__file__) / "cells", fixed, s.cluster).values())
    rows = [done[s.seeds * k : s.seeds * (k + 1)] for k in range(len(above))]
    phi = np.round(above, 5)

    def by_seed(fit: Callable[..., float], part: slice) -> dict[str, Any]:
        """Of the plateaus that are there, of each seed."""
        values = []
        for seed in range(s.seeds):
            there = [(x, row[seed]["activity"]) for x, row in zip(phi[part], rows[part], strict=True) if row[seed]["activity"]]
            values.append(fit(*np.array(there).T) if len(there) > 2 else None)
        return mean_and_error(values)

    uncertain = phi_c["error"]
    middle, betas = s.plateau_phis // 2, []
    for part in (slice(None), slice(middle + 1), slice(middle - 1, None)):

        def beta(shift: float, part: slice = part) -> dict[str, Any]:
            return by_seed(lambda x, y: measure.order_exponent(x - critical - shift, y), part)

        # Not so far that the first distance vanishes.
        shift = min(uncertain, 0.9 * (phi[part][0] - critical))
        low, high = beta(-shift)["mean"], beta(shift)["mean"]
        from_phi_c = None if low is None or high is None else abs(low - high) / 2
        window = (phi[part] - critical)[[0, -1]].tolist()
        betas.append({"window": window, "beta": beta(0.0), "error_from_phi_c": from_phi_c})
    plateaus = [
        {"phi": float(x), **{k: mean_and_error([r[k] for r in row]) for k in ("activity", "earlier")}}
        for x, row in zip(phi, rows, strict=True)
    ]
    free = {k: by_seed(lambda x, y, k=k: measure.order_fit(x, y)[k], slice(None)) for k in ("phi_c", "beta")}
    return {"plateaus": plateaus, "beta": betas, "beta_with_phi_c_fitted": free}


def flatness(s: Settings) -> list[dict[str, Any]]:
    """By potential, packing fraction and p."""
    rates = {1.0: s.learning_rate, 2.0: 0.5}
    jobs = [(m, phi, p) for m in rates for phi in (s.flat_phis if m == 1 else s.flat_phis[::2]) for p in P]
    cells = {}
    for m, phi, p in jobs:
        for seed in range(s.seeds):
            # The same random positions for all p.
            arguments = {"m": m, "phi": phi, "p": p, "learning_rate": rates[m], "seed": [s.seed + seed, 3, round(1000 * phi)]}
            # As many kicks for all p: what is rarer needs longer.
            steps = round((s.flat_steps if m == 1 else s.flat_steps / 2) / p)
            cells[f"flat, m={m:g}, phi={phi:g}, p={p:g}, seed={seed}"] = {**arguments, "steps": steps}
    fixed = {"what": "flat", "particles": s.flat_particles, "deviations": DEVIATIONS, "draws": 20}
    done = list(sweep.run(cell, cells, s.folder(__file__) / "cells", fixed, s.cluster).values())
    rows = []
    for i, (m, phi, p) in enumerate(jobs):
        row: dict[str, Any] = {"m": m, "phi": phi, "p": p, "learning_rate": rates[m]}
        for when in ("quarter", "final"):
            seeds = [d[when] for d in done[s.seeds * i : s.seeds * (i + 1)]]
            row[when] = {k: mean_and_error([d[k] for d in seeds]) for k in ("activity", "energy")}
            row[when]["increase"] = {
                f"{x:g}": mean_and_error([d["increase"][j] for d in seeds]) for j, x in enumerate(DEVIATIONS)
            }
        rows.append(row)
    return rows


def number(value: dict[str, Any], digits: int = 3, scale: float = 1.0) -> str:
    error = value.get("error", value["standard_error"])
    return "" if value["mean"] is None else plus_minus({"mean": value["mean"], "standard_error": error}, digits, scale)


def tables(result: dict[str, Any], s: Settings) -> dict[str, str]:
    return {
        "critical packing fraction": critical_table(result, s),
        "checks": markdown(["", "critical packing fraction"], ([name, number(r)] for name, r in result["checks"].items())),
        "exponents": exponents_table(result["exponents"]),
        "flatness": flatness_table(result["flatness"]),
    }


def critical_table(result: dict[str, Any], s: Settings) -> str:
    rows = []
    for name, row in result["critical"].items():
        limits = [result["limits"][name].get(form) for form in ("line, epsilon <= 0.05", "power fitted")]
        zero = ("" if f is None or "failed" in f else f"{f['phi_0']:.3f} ± {f['standard_error']:.3f}" for f in limits)
        rows.append([name, *(number(row[f"{e:g}"]) if f"{e:g}" in row else "" for e in s.epsilons), *zero])
    steps = [f"ε = {e:g}" for e in s.epsilons]
    return markdown(["critical packing fraction", *steps, "ε → 0, line", "ε → 0, fitted power"], rows)


def exponents_table(found: dict[str, Any]) -> str:
    rows = []
    for name, f in found.items():
        for w in f.get("decay", []):
            window = f"steps {w['window'][0]:.0f} to {w['window'][1]:.0f}"
            rows.append([name, "decay", window, number(w["exponent"], 2)])
        for w in f.get("beta", []):
            error = np.hypot(w["beta"]["standard_error"] or 0.0, w["error_from_phi_c"] or 0.0)
            beta = number({**w["beta"], "error": float(error)}, 2)
            rows.append([name, "β", f"φ − φ_c from {w['window'][0]:.4f} to {w['window'][1]:.4f}", beta])
        if f.get("phi_c"):
            rows.append([name, "φ_c", "", number(f["phi_c"], 4)])
        if "beta_with_phi_c_fitted" in f:
            free = f["beta_with_phi_c_fitted"]
            rows.append([name, "β and φ_c fitted together", "", f"{number(free['beta'], 2)}, {number(free['phi_c'], 4)}"])
    rows.append(["Manna class", "decay, β", "", f"{MANNA['decay']}, {MANNA['beta']}"])
    return markdown(["", "exponent", "window", "value"], rows)


def flatness_table(rows: list[dict[str, Any]]) -> str:
    """In thousandths of a per sphere."""
    head = ["repulsion", "packing fraction", "p", *(f"moved by {d} diameters" for d in rows[0]["final"]["increase"])]
    kind, lines = {1: "linear", 2: "quadratic"}, []
    for r in rows:
        increases = (number(v, 2, 1e3) for v in r["final"]["increase"].values())
        lines.append([kind[r["m"]], f"{r['phi']:g}", f"{r['p']:g}", *increases])
    return markdown(head, lines)


def main(s: Settings) -> None:
    tiny: Any = {"epsilons": (0.2, 0.1), "other_epsilons": (0.2,), "particles": 400, "seeds": 2, "halvings": 4, "checked": 0.1}
    tiny |= {"least_steps": 40, "patience": 2.0, "decay_particles": 200, "decay_steps": 60, "decay_phis": 4, "spacing": 0.02}
    tiny |= {"plateau_particles": 200, "plateau_steps": 40, "plateau_phis": 4}
    s = s.sized(**tiny, flat_phis=(0.7,), flat_particles=60, flat_steps=40)
    rows = critical(s, MAIN, (s.large_epsilon, *s.epsilons))
    measured = exponents(rows, s)
    flat = flatness(s)
    for name, other in OTHERS.items():
        rows |= critical(s, {name: other}, s.other_epsilons)
    result: dict[str, Any] = {
        "settings": s.without(),
        "critical": rows,
        "checks": checks(s),
        "limits": limits(rows, s),
        "flatness": flat,
        "exponents": measured,
    }
    finish(s, __file__, result, tables(result, s), draw(result, s.large_epsilon))


if __name__ == "__main__":
    main(tyro.cli(Settings))
