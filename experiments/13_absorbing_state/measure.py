"""Critical packing fraction, decay and order-parameter exponents, flatness. What cells return are JSON values."""

import itertools
from typing import Any

import numpy as np
from scipy.optimize import curve_fit, minimize_scalar

from .dynamics import BRO, Dynamics, PairwiseSGD, ParticlewiseSGD, Spheres, matched, run

# Activity whose mean over the second half of a run is this much of its mean over the second quarter is called stationary. At
# criticality in the Manna class, where activity decays like time^-0.745, it is 2^-0.745 = 0.6.
STATIONARY = 0.97


def dynamics(kind: str, epsilon: float, p: float | None = None) -> Dynamics:
    """All with the mean kick epsilon / 2 per overlapping pair: SGD with the learning rate epsilon / 2p."""
    if kind in ("BRO", "BRO, non-reciprocal") and p is None:
        return BRO(epsilon, kind == "BRO")
    if kind in ("pairwise SGD", "particle-wise SGD") and p is not None:
        return matched(epsilon, p, PairwiseSGD if kind == "pairwise SGD" else ParticlewiseSGD)
    raise ValueError(
        f"kind={kind!r}, p={p}: ['BRO', 'BRO, non-reciprocal'] need None, ['pairwise SGD', 'particle-wise SGD'] a p."
    )


def skin(epsilon: float) -> float:
    """The fastest measured with 2000 particles near criticality: six kicks; short lists if kicks are large."""
    return 0.1 if epsilon > 0.3 else float(np.clip(6 * epsilon, 0.25, 1.0))


def fate(spheres: Spheres, moves: Dynamics, rng: np.random.Generator, steps: int, doublings: int) -> dict[str, Any]:
    """Whether activity dies ("absorbed"), has a plateau ("stationary") or neither by the last look ("undecided").

    Looks after `steps`, and again after each of the doublings of that."""
    if steps < 8 or doublings < 0:
        raise ValueError(f"steps={steps}, doublings={doublings}: there must be at least 8 steps and 0 doublings.")
    activity = np.empty(0)
    result: dict[str, Any] = {"phi": spheres.phi, "fate": "undecided"}
    for k in range(doublings + 1):
        activity = np.append(activity, run(spheres, moves, rng, steps * 2**k - len(activity)))
        half = len(activity) // 2
        plateau = activity[half:].mean()
        result |= {"steps": len(activity), "activity": plateau}
        if activity[-1] == 0:
            return result | {"fate": "absorbed", "activity": 0.0}
        if plateau > STATIONARY * activity[half // 2 : half].mean():
            return result | {"fate": "stationary"}
    return result


def critical_phi(kind, epsilon, p, particles, low, high, halvings, patience, least_steps, doublings, seed) -> dict[str, Any]:
    """Bisections, each run from new random positions, of the smallest packing fraction that is stationary and of the largest that
    is absorbed. Between them, which is half_width to both sides of phi, runs were undecided (longer ones would decide more).

    The first look is after max(patience / epsilon, least_steps) steps. `bracketed`: whether both fates have been seen; otherwise
    phi is None."""
    if not 0 < low < high < 1 or halvings < 1:
        raise ValueError(
            f"low={low}, high={high}, halvings={halvings}: 0 < low < high < 1, and at least one halving, are needed."
        )
    runs: dict[float, dict[str, Any]] = {}
    moves, steps = dynamics(kind, epsilon, p), max(round(patience / epsilon), least_steps)
    finest = (high - low) / 2**halvings

    def tried(phi: float) -> str:
        rng = np.random.default_rng([*seed, len(runs)])
        runs[phi] = fate(Spheres.random(rng, particles, phi, skin(epsilon)), moves, rng, steps, doublings)
        return runs[phi]["fate"]

    def with_fate(which: str) -> list[float]:
        return [phi for phi, r in runs.items() if r["fate"] == which]

    below, stationary = low, high
    while stationary - below > 1.01 * finest:
        middle = (below + stationary) / 2
        below, stationary = (below, middle) if tried(middle) == "stationary" else (middle, stationary)
    absorbed = max((phi for phi in with_fate("absorbed") if phi < stationary), default=low)
    above = min([stationary, *(phi for phi in with_fate("undecided") if phi > absorbed)])
    while above - absorbed > 1.01 * finest:
        middle = (absorbed + above) / 2
        absorbed, above = (middle, above) if tried(middle) == "absorbed" else (absorbed, middle)
    bracketed = bool(with_fate("absorbed") and with_fate("stationary"))
    return {
        "bracketed": bracketed,
        "phi": (absorbed + stationary) / 2 if bracketed else None,
        "half_width": (stationary - absorbed) / 2 if bracketed else None,
        "absorbed": absorbed if bracketed else None,
        "stationary": stationary if bracketed else None,
        "undecided": len(with_fate("undecided")),
        "runs": list(runs.values()),
    }


def decay(kind, epsilon, p, particles, phi, steps, seed) -> dict[str, Any]:
    """Mean activity in windows of time that are equally long in log time, from random positions. Step t is at time t + 1."""
    rng = np.random.default_rng(seed)
    activity = run(Spheres.random(rng, particles, phi, skin(epsilon)), dynamics(kind, epsilon, p), rng, steps)
    edges = np.unique(np.geomspace(1, steps + 1, 15 * round(np.log10(steps)) + 1).astype(int))
    full = [(a, b) for a, b in itertools.pairwise(edges) if b <= len(activity) + 1 and activity[b - 2] > 0]
    return {
        "time": [float(np.sqrt(a * (b - 1))) for a, b in full],
        "activity": [activity[a - 1 : b - 1].mean() for a, b in full],
        "absorbed_after": len(activity) if activity[-1] == 0 else None,
    }


def plateau(kind, epsilon, p, particles, phi, steps, seed) -> dict[str, Any]:
    """Mean activity over the second half, and over the second quarter; None if it was absorbed."""
    rng = np.random.default_rng(seed)
    activity = run(Spheres.random(rng, particles, phi, skin(epsilon)), dynamics(kind, epsilon, p), rng, steps)
    if activity[-1] == 0:
        return {"activity": None, "earlier": None, "absorbed_after": len(activity)}
    half = steps // 2
    return {"activity": activity[half:].mean(), "earlier": activity[half // 2 : half].mean(), "absorbed_after": None}


def flatness(spheres: Spheres, rng: np.random.Generator, deviation: float, draws: int, m: float = 1.0) -> float:
    """Mean increase of the energy per particle when every coordinate is moved by an independent normal."""
    if not 0 < deviation < np.inf or draws < 1:
        raise ValueError(f"deviation={deviation}, draws={draws}: the deviation must be positive, with at least one draw.")
    shape = (len(spheres), 3)
    moved = [spheres.positions + deviation * rng.standard_normal(shape) for _ in range(draws)]
    return float(np.mean([Spheres(x, spheres.phi, 0.1).energy(m) for x in moved]) - spheres.energy(m))


def flat(p, m, learning_rate, particles, phi, steps, deviations, draws, seed) -> dict[str, Any]:
    """Energy, activity and flatness after a quarter of the steps and after all: whether they still change."""
    rng = np.random.default_rng(seed)
    spheres, states = Spheres.random(rng, particles, phi, 0.25), []
    for part in (steps // 4, steps - steps // 4):
        activity = run(spheres, PairwiseSGD(learning_rate, p, m), rng, part)
        increase = [flatness(spheres, rng, d, draws, m) for d in deviations]
        states.append({"activity": activity[-1], "energy": spheres.energy(m), "increase": increase})
    return {"quarter": states[0], "final": states[1]}


def line(x, y) -> tuple[float, float]:
    """Least squares: slope and intercept."""
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept)


def critical_decay(decays: dict[float, dict], window: tuple[float, float]) -> dict[str, Any] | None:
    """phi_c half-way between the largest packing fraction at which activity died within the run and the next one, and there the
    exponent of the decay within the window of time, the mean of both. `half_width` and `half_difference`: how far they are apart.

    None if activity died at the largest packing fraction or at none, or at one of the two already within the window."""
    phis = sorted(decays)
    died = [k for k, phi in enumerate(phis) if decays[phi]["absorbed_after"] is not None]
    if not died or died[-1] == len(phis) - 1:
        return None
    pair, exponents = phis[died[-1] : died[-1] + 2], []
    for phi in pair:
        time, activity = np.array(decays[phi]["time"]), np.array(decays[phi]["activity"])
        inside = (time >= window[0]) & (time <= window[1])
        if inside.sum() < 5 or (decays[phi]["absorbed_after"] or np.inf) <= window[1]:
            return None
        exponents.append(-line(np.log(time[inside]), np.log(activity[inside]))[0])
    return {
        "phi": (pair[0] + pair[1]) / 2,
        "half_width": (pair[1] - pair[0]) / 2,
        "exponent": (exponents[0] + exponents[1]) / 2,
        "half_difference": abs(exponents[0] - exponents[1]) / 2,
    }


def order_exponent(distance, activity) -> float:
    """beta of activity ~ (phi - phi_c)^beta by least squares in logarithms."""
    return line(np.log(distance), np.log(activity))[0]


def order_fit(phi, activity) -> dict[str, float]:
    """phi_c, of the interval below the first phi that is as long as that of all, and beta: the straightest line in logarithms."""

    def off(critical: float) -> float:
        return float(np.polyfit(np.log(phi - critical), np.log(activity), 1, full=True)[1].sum())

    first, length = phi.min(), np.ptp(phi)
    best = minimize_scalar(off, bounds=(first - length, first - 1e-6 * length), method="bounded").x
    return {"phi_c": float(best), "beta": order_exponent(phi - best, activity)}


def extrapolated(epsilon, phi, error, power: float | None) -> dict[str, Any]:
    """phi_0 of phi = phi_0 - a epsilon^k, weighted by the errors; with k = `power`, or k fitted if None. The standard error is
    the fit's, enlarged where chi^2 per degree of freedom is above 1."""
    epsilon, phi, error = map(np.asarray, (epsilon, phi, error))
    if power is None:
        model, start = (lambda e, phi_0, a, k: phi_0 - a * e**k), (phi.max(), 1.0, 1.0)
    else:
        model, start = (lambda e, phi_0, a: phi_0 - a * e**power), (phi.max(), 1.0)
    if len(phi) <= len(start):
        raise ValueError(f"{len(phi)} step sizes cannot determine {len(start)} parameters: take more of them.")
    best, covariance = curve_fit(model, epsilon, phi, start, sigma=error, absolute_sigma=True)
    if not np.isfinite(covariance).all():
        raise ValueError(f"These step sizes do not determine {len(start)} parameters: take more of them, or fix the power.")
    chi2 = float((((phi - model(epsilon, *best)) / error) ** 2).sum() / (len(phi) - len(best)))
    return {
        "phi_0": best[0],
        "standard_error": np.sqrt(covariance[0, 0] * max(1.0, chi2)),
        "parameters": best.tolist(),
        "chi2_per_degree": chi2,
    }
