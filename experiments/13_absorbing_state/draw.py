"""The figure of the absorbing-state experiment, from its result."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from dmftopt.results.plot import COLORS

# Three-dimensional Manna (conserved directed percolation) class: Lubeck, Int. J. Mod. Phys. B 18, 3977 (2004).
MANNA = {"decay": 0.745, "beta": 0.84}


def draw(result: dict[str, Any], large_epsilon: float) -> Figure:
    figure, axes = plt.subplots(2, 3, figsize=(16, 9.5), layout="constrained")
    (by_phi, zero, order), (decay, windows, flat) = axes
    draw_runs(by_phi, result)
    draw_limits(zero, result, large_epsilon)
    draw_order(order, result, large_epsilon)
    draw_decay(decay, result, large_epsilon)
    draw_windows(windows, result)
    draw_flatness(flat, result)
    return figure


def draw_runs(by_phi, result: dict[str, Any]) -> None:
    for (name, rows), marker in zip(((n, result["critical"][n]) for n in result["exponents"]), "os", strict=False):
        for k, (epsilon, row) in enumerate(rows.items()):
            color = plt.get_cmap("viridis")(0.95 * k / max(1, len(rows) - 1))
            for fates, form in ((("absorbed", "stationary"), marker), (("undecided",), "x")):
                seen = [(r["phi"], r["activity"]) for r in row["seen"] if r["fate"] in fates]
                label = rf"$\epsilon$ = {epsilon}" if name == "BRO" and form != "x" else None
                x, y = zip(*seen, strict=True) if seen else ((), ())
                by_phi.plot(x, y, form, ms=5, mfc="none", color=color, label=label)
    by_phi.set(xlabel=r"packing fraction $\phi$", ylabel="activity (0: absorbed)", title="runs of the bisections")
    by_phi.set_xlim(0.05, 0.7)
    by_phi.legend(frameon=False, fontsize=9, loc="upper left", title="circles: BRO\nsquares: SGD, p = 3/4\ncrosses: undecided")


def draw_limits(zero, result: dict[str, Any], large_epsilon: float) -> None:
    for (name, rows), color, marker in zip(result["critical"].items(), COLORS, "osv^D", strict=False):
        known = [(float(e), r["mean"], r["error"]) for e, r in rows.items() if r["seeds"] and float(e) != large_epsilon]
        if not known:
            continue
        x, y, error = zip(*known, strict=True)
        zero.errorbar(x, y, error, fmt=marker, ms=6, mfc="none", color=color, capsize=2, label=name)
        for form, fit in result["limits"][name].items():
            if "failed" in fit:
                continue
            k = fit["parameters"][2] if len(fit["parameters"]) > 2 else 1.0
            e = np.linspace(0, max(fit["step_sizes"]), 200)
            zero.plot(e, fit["phi_0"] - fit["parameters"][1] * e**k, "--" if "line" in form else "-", color=color, lw=1)
    zero.axhspan(0.63, 0.65, color="0.9", zorder=0, label="0.63 to 0.65")
    zero.set(xlabel=r"step size $\epsilon$ (twice the mean kick, in diameters)", ylabel=r"critical packing fraction $\phi_c$")
    zero.set_title("limit of zero steps (dashed: line,\nsolid: fitted power)", fontsize=11)
    zero.set_xlim(left=-0.003)
    zero.legend(frameon=False, fontsize=9, loc="lower left")


def draw_order(order, result: dict[str, Any], large_epsilon: float) -> None:
    for (name, found), color, marker in zip(result["exponents"].items(), COLORS, "os", strict=False):
        if "plateaus" in found:
            there = [r for r in found["plateaus"] if r["activity"]["seeds"] and r["phi"] > found["phi_c"]["mean"]]
            x = np.array([r["phi"] - found["phi_c"]["mean"] for r in there])
            y = np.array([r["activity"]["mean"] for r in there])
            error = [r["activity"]["standard_error"] or 0.0 for r in there]
            order.errorbar(x, y, error, fmt=marker, ms=6, mfc="none", color=color, capsize=2, label=name)
            if name == "BRO" and len(x):
                order.plot(x, y[len(y) // 2] * (x / x[len(y) // 2]) ** MANNA["beta"], "k:", label=f"Manna: slope {MANNA['beta']}")
    order.set(xscale="log", yscale="log", xlabel=r"$\phi - \phi_c$", ylabel="stationary activity")
    order.set_title(rf"above criticality, $\epsilon$ = {large_epsilon:g}", fontsize=11)
    for axis, ticks in ((order.xaxis, (0.003, 0.01, 0.03)), (order.yaxis, (0.2, 0.3, 0.5, 0.7))):
        axis.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
        axis.set_ticks([], minor=True)
    order.legend(frameon=False)


def draw_decay(decay, result: dict[str, Any], large_epsilon: float) -> None:
    found = result["exponents"]["BRO"]
    phis = list(found["decays"][0]) if "decays" in found else []
    for k, phi in enumerate(phis):
        seeds = [d[phi] for d in found["decays"]]
        length = min(len(d["time"]) for d in seeds)
        time, y = np.array(seeds[0]["time"][:length]), np.mean([d["activity"][:length] for d in seeds], axis=0)
        decay.plot(time, y * time ** MANNA["decay"], color=plt.get_cmap("viridis")(0.9 * k / len(phis)), label=f"{phi:.4f}")
    decay.set(xscale="log", yscale="log", xlabel="time (steps)", ylabel=rf"activity $\times$ time$^{{{MANNA['decay']}}}$")
    decay.set_title(rf"BRO, $\epsilon$ = {large_epsilon:g}: level where it decays as in the Manna class", fontsize=11)
    decay.legend(frameon=False, title=r"$\phi$", fontsize=9)


def draw_windows(windows, result: dict[str, Any]) -> None:
    for (_, found), color, marker in zip(result["exponents"].items(), COLORS, "os", strict=False):
        for j, w in enumerate(found.get("decay", [])):
            if w["exponent"]["seeds"]:
                at = j + 0.12 * (marker == "s")
                error = w["exponent"]["error"]
                windows.errorbar(at, w["exponent"]["mean"], error, fmt=marker, ms=6, mfc="none", color=color, capsize=2)
        for j, w in enumerate(found.get("beta", [])):
            if w["beta"]["seeds"]:
                at = j + 5.5 + 0.12 * (marker == "s")
                error = np.hypot(w["beta"]["standard_error"] or 0.0, w["error_from_phi_c"] or 0.0)
                windows.errorbar(at, w["beta"]["mean"], error, fmt=marker, ms=6, mfc="none", color=color, capsize=2)
    found = result["exponents"]["BRO"]
    ticks = [f"{w['window'][0]:.0f}-{w['window'][1]:.0f}" for w in found.get("decay", [])]
    ends = [f"{w['window'][0]:.3f}-\n{w['window'][1]:.3f}" for w in found.get("beta", [])]
    windows.set_xticks(
        [*range(len(ticks)), *(5.5 + j for j in range(len(ends)))], labels=[*ticks, *ends], fontsize=8, rotation=30
    )
    windows.hlines(MANNA["decay"], -0.4, 4.6, color="k", ls=":", label="Manna")
    windows.hlines(MANNA["beta"], 5.2, 8.0, color="k", ls=":")
    windows.set(
        ylabel="exponent", title="decay in windows of time, beta in windows of $\\phi - \\phi_c$\n(circles: BRO, squares: SGD)"
    )
    windows.set_ylim(0, 1.25)
    windows.legend(frameon=False, loc="lower right")


def draw_flatness(flat, result: dict[str, Any]) -> None:
    linear = [r for r in result["flatness"] if r["m"] == 1]
    deviation = min(linear[0]["final"]["increase"], key=float)
    for p, color, marker in zip(sorted({r["p"] for r in linear}), COLORS, "osv^", strict=False):
        rows = [r for r in linear if r["p"] == p]
        y = [r["final"]["increase"][deviation] for r in rows]
        error = [v["standard_error"] or 0.0 for v in y]
        x = [r["phi"] for r in rows]
        flat.errorbar(x, [v["mean"] for v in y], error, fmt=f"{marker}-", color=color, capsize=2, label=f"p = {p:g}")
        quarter = [r["quarter"]["increase"][deviation]["mean"] for r in rows]
        flat.plot(x, quarter, ":", color=color, lw=1)
    flat.set(xlabel=r"packing fraction $\phi$", ylabel=r"mean energy increase per particle / $a$")
    flat.set_title(f"flatness: perturbations of {deviation} diameters\n(dotted: after a quarter of the steps)", fontsize=11)
    flat.legend(frameon=False)
