"""Problem.from_data on Gaussian data of known truth: the error of predicted risks, over draws, of the estimated population and of
the sample taken for it, and whether `estimation_error` says how far single predictions are off.

Training sets of all n samples, two epochs, the final risk at learning rates .4 and 1, and 1.6 decaying to 0, by
`limits.least_squares`. Teachers of power lambda^2 (on large eigenvalues) under much label noise, and of equal power under little.
"""

import dataclasses
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure

import dmftopt
from dmftopt.problem.features import group_eigenvalues, split_groups

from ..shared import sweep
from ..shared.results import SweepSettings, finish, markdown

RATIOS = (1.3, 2.5, 5.0, 20.0)
TEACHERS = {"on large eigenvalues, noisy": (1.0, 1.0), "even, little noise": (-1.0, 0.05)}
jax.config.update("jax_enable_x64", True)

SPECTRA = {"isotropic": 0.0, "k^-0.5": 0.5, "1 / k": 1.0, "k^-1.5": 1.5, "spiked": None}
RATES = ((0.4, 1.0), (1.0, 1.0), (1.6, 0.0))
GROUPS = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings):
    """Measure the error of Problem.from_data on data of known truth."""

    dimension: int = 100
    draws: int = 24
    with_error: int = 4
    """Of the draws, those whose estimation error is computed."""


def eigenvalues_of(spectrum: str, d: int) -> np.ndarray:
    k = np.arange(1, d + 1)
    exponent = SPECTRA[spectrum]
    values = np.where(k <= 4, 0.3 * d / 2.0**k, 1.0) if exponent is None else k**-exponent
    return values * d / values.sum()


def truth(eigenvalues: np.ndarray, scale: np.ndarray, noise: float, delta: float) -> dmftopt.Problem:
    """In as many groups as estimates have, so that they share a program."""
    means, counts, labels = group_eigenvalues(eigenvalues, GROUPS)
    power = np.bincount(labels, weights=eigenvalues * scale**2) / (counts * means)
    parent, counts = split_groups(counts, GROUPS)
    features = dmftopt.features.Features(jnp.asarray(means[parent]), jnp.asarray(counts / len(eigenvalues)))
    return dmftopt.Problem(dmftopt.tasks.LeastSquares(noise), features, delta, jnp.sqrt(jnp.asarray(power[parent])))


def predicted(problem: dmftopt.Problem) -> jnp.ndarray:
    """Final risks. The learning rate is of raw features, whose mean square norm is known to be 1."""
    horizon = 2.0 * float(problem.delta)
    grid = dmftopt.TimeGrid(horizon * np.concatenate([[0.0], np.geomspace(1 / 16, 1, 4)]))
    c = 1.0 if problem.data is None else problem.data.mean_square_norm

    def risk(peak, final):
        protocol = dmftopt.Protocol(dmftopt.schedules.linear_decay(jnp.asarray(peak * c), horizon, jnp.asarray(final)))
        return dmftopt.limits.least_squares(problem, protocol, grid, nodes=40).test_risk[-1]

    return jnp.stack([risk(*rates) for rates in RATES])


def cell(spectrum: str, teacher: str, ratio: float, *, dimension: int, draws: int, with_error: int, seed: int) -> dict[str, Any]:
    exponent, noise = TEACHERS[teacher]
    eigenvalues, n = eigenvalues_of(spectrum, dimension), round(ratio * dimension)
    scale = eigenvalues ** (0.5 * exponent)
    scale /= np.sqrt(np.mean(eigenvalues * scale**2))
    exact = np.asarray(predicted(truth(eigenvalues, scale, noise**0.5, n / dimension)))
    found: dict[str, list] = {"estimate": [], "sample": [], "error": []}
    for draw in range(draws):
        rng = np.random.default_rng([seed, zlib.crc32(f"{spectrum}{teacher}{ratio}".encode()), draw])
        x = rng.normal(size=(n, dimension)) * np.sqrt(eigenvalues / dimension)
        y = x @ (scale * rng.choice([-1.0, 1.0], size=dimension)) + noise**0.5 * rng.normal(size=n)
        for population in ("estimate", "sample"):
            problem = dmftopt.Problem.from_data(x, y, train_size=n, groups=GROUPS, population=population)
            found[population].append((np.asarray(predicted(problem)) / exact - 1).tolist())
            if population == "estimate" and draw < with_error:
                found["error"].append((np.asarray(dmftopt.estimation_error(predicted, problem)) / exact).tolist())
    return found


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Over draws and the three schedules: bias of the worst of these and its standard error, spread, what it was said to be."""
    estimate, sample, error = (np.asarray(found[name]) for name in ("estimate", "sample", "error"))
    count, worst = len(estimate), int(np.argmax(np.abs(estimate.mean(axis=0))))
    return {
        "bias": float(estimate[:, worst].mean()),
        "bias_standard_error": float(estimate[:, worst].std(ddof=1) / np.sqrt(count)),
        "bias_of_sample": float(sample[:, worst].mean()),
        "spread": float(np.sqrt(np.mean(estimate.var(axis=0, ddof=1)))),
        "said": float(np.sqrt(np.mean(error**2))),
        "covered": float(np.mean(np.abs(estimate[: len(error)]) < 1.96 * error)),
    }


def tables(rows: dict[str, dict]) -> dict[str, str]:
    head = ["spectrum", "teacher", "n / d", "bias, estimate", "bias, sample", "spread over draws", "estimation error"]
    lines = []
    for name, r in rows.items():
        bias = f"{r['bias']:+.1%} ± {r['bias_standard_error']:.1%}"
        lines.append([*name.split(" | "), bias, f"{r['bias_of_sample']:+.1%}", f"{r['spread']:.1%}", f"{r['said']:.1%}"])
    covered = np.mean([r["covered"] for r in rows.values()])
    lines.append(["all", "", "", "", "", "", f"{covered:.0%} within 1.96 of it"])
    return {"population": markdown(head, lines)}


def draw(rows: dict[str, dict]) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for key, color, label in (("bias_of_sample", "C1", "the sample itself"), ("bias", "C0", "estimated population")):
        values = [100 * r[key] for r in rows.values()]
        errors = [200 * r["bias_standard_error"] for r in rows.values()]
        # Side by side.
        place = [float(name.split(" | ")[2]) * 1.02 ** (i % 10 - 4.5) for i, name in enumerate(rows)]
        left.errorbar(place, values, errors, fmt="o", ms=4, lw=1, color=color, label=label)
    left.axhline(0, color="0.8", zorder=0)
    left.set(xscale="log", xlabel="samples / dimension", ylabel="bias of predicted final risk, percent (2 s.e.)")
    left.set_xticks(RATIOS, [f"{ratio:g}" for ratio in RATIOS])
    left.minorticks_off()
    left.legend()
    said, spread = ([100 * r[key] for r in rows.values()] for key in ("said", "spread"))
    right.plot(spread, said, "o", ms=4)
    right.axline((0, 0), slope=1, color="0.8", zorder=0)
    right.set(xlabel="spread over draws, percent", ylabel="estimation_error, percent", xlim=(0, None), ylim=(0, None))
    return figure


def main(s: Settings) -> None:
    s = s.sized(dimension=50, draws=3, with_error=2)
    ratios = RATIOS[1:2] if s.smoke else RATIOS
    cells = {
        f"{spectrum} | {teacher} | {ratio:g}": {"spectrum": spectrum, "teacher": teacher, "ratio": ratio}
        for ratio in ratios
        for spectrum in SPECTRA
        for teacher in TEACHERS
    }
    done = sweep.run(cell, cells, s.folder(__file__) / "cells", s.without(), s.cluster)
    rows = {name: summary(found) for name, found in done.items()}
    finish(s, __file__, {"settings": s.without(), "cases": rows}, tables(rows), draw(rows), shown="population")


if __name__ == "__main__":
    main(tyro.cli(Settings))
