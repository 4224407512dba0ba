"""What is the best schedule of a long run, and how large should the model be for a given compute?

One-pass SGD on power-law problems, exactly (`limits.online`, stepped in log time), from 1e3 to 1e6 SGD steps.

- Schedules: eigenvalues k^-b, and a teacher for which the signal that is left after an intrinsic time u falls like u^-s. A free
  schedule is tuned at every length, and families by their peak. Known (arXiv:2602.06797): for easy tasks, s > 1 - 1/b, the
  optimum is peak (1 - z)^(2 b - 1), with a peak that falls like N^-((s - 1 + 1/b) / (s + 1/b)); for hard ones the largest rate
  that is admissible is kept until a decay near the end.
- Compute: random features of a power-law problem, whose number d is free while d times the number of steps is not
  (arXiv:2405.15074). How the loss at the best d falls with the compute.
- Cost: seconds of a prediction and of its gradient, and stated errors, at growing horizons.
"""

import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import dmftopt
from dmftopt import limits, schedules

from ..shared.results import Settings as BaseSettings
from ..shared.results import finish, markdown, short

# Of the eigenvalues, and of the noise of labels of variance 1.
CAPACITY, NOISE = 1.5, 0.5
SOURCES = {"easy": 1.0, "hard": 0.15}
# Rates stay below the critical one, 2.
LARGEST = 1.8
# Shares of the run that are left at the knots of the free schedule.
LEFT = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2, 0.12, 0.06, 0.03, 0.01, 0.0)
# Exponents of features k^-2a and of the teacher's entries k^-b, in the paper's letters.
PHASES = {"I": (0.75, 0.35), "II": (1.0, 0.75), "III": (0.7, 1.1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(BaseSettings):
    """Optimal schedules and sizes of long runs."""

    lengths: tuple[float, ...] = (1e3, 1e4, 1e5, 1e6)
    """SGD steps."""
    dimension: float = 1e12
    """Directions of the power law: so many that those that are left out hold nothing to learn."""
    groups: int = 96
    steps: int = 200
    """Of the optimizer."""
    accuracy: int = 192
    """Steps of the integration."""
    sizes: tuple[int, ...] = (48, 96, 192, 384, 768)
    """Random features."""
    hidden: int = 6144
    """Directions behind them."""
    horizons: tuple[float, ...] = (10.0, 1e3, 1e6)
    """Of the costs, in units of SGD steps / d."""


class PowerDecay(eqx.Module):
    """(1 - z)^exponent."""

    exponent: Any

    def __call__(self, t: Any) -> Any:
        left = jnp.maximum(1 - t, 0.0)
        return jnp.where(left > 0, jnp.where(left > 0, left, 1.0) ** self.exponent, jnp.where(self.exponent > 0, 0.0, 1.0))


def power_law(dimension: float, groups: int) -> Any:
    """Mean eigenvalues k^-CAPACITY over groups of directions, equal in log k."""
    edges = np.unique(np.round(np.geomspace(1, dimension, groups + 1))) - 0.5
    means = np.diff(edges ** (1 - CAPACITY)) / (1 - CAPACITY) / np.diff(edges)
    return dmftopt.features.spectrum(means, np.diff(edges))


def scales(features: Any, source: float) -> np.ndarray:
    """Teacher's scale per group, such that the signal on eigenvalues below l is like l^source, and labels have variance 1."""
    eigenvalues, weights = np.asarray(features.eigenvalues), np.asarray(features.weights)
    power = eigenvalues ** (source - 1 + 1 / CAPACITY)
    return np.sqrt(power / np.sum(weights * eigenvalues * power))


def excess(features, teacher, schedule, length, dimension: float, steps: int):
    """Excess risk of a relative schedule over so many SGD steps."""
    horizon = length / dimension
    problem = dmftopt.Problem(dmftopt.tasks.LeastSquares(NOISE), features, 1.0, teacher, 0.0)
    protocol = dmftopt.Protocol(schedules.Scaled(schedule, horizon))
    grid = dmftopt.TimeGrid(horizon * jnp.array([0.0, 1.0]))
    return limits.online(problem, protocol, grid, steps=steps).test_risk[-1] - 0.5 * NOISE**2


def free(raw):
    """A schedule between 0 and LARGEST, linear in the logarithm between knots."""
    return schedules.PiecewiseLinear(tuple(1 - left for left in LEFT), jnp.log(LARGEST) + jax.nn.log_sigmoid(raw), log=True)


def tuned(s: Settings) -> dict[str, Any]:
    """Of each task: excess risks by length of the free schedule and of families with a tuned peak, and these peaks."""
    features = power_law(s.dimension, s.groups)
    teachers, lengths = jnp.stack([scales(features, a) for a in SOURCES.values()]), jnp.asarray(s.lengths)

    def everywhere(of):
        """Over tasks and lengths."""
        return jax.vmap(jax.vmap(of, (None, 0, 0)), (0, None, 0))

    def cost(teacher, length, raw):
        return jnp.log(excess(features, teacher, free(raw), length, s.dimension, s.accuracy))

    optimizer = optax.adam(optax.cosine_decay_schedule(0.15, s.steps))

    @jax.jit
    def descend(raw):
        def step(carry, _):
            raw, state = carry
            values, slopes = everywhere(jax.value_and_grad(cost, argnums=2))(teachers, lengths, raw)
            updates, state = optimizer.update(slopes, state)
            return (optax.apply_updates(raw, updates), state), values

        (raw, _), values = jax.lax.scan(step, (raw, optimizer.init(raw)), None, length=s.steps)
        return raw, values

    # From a linear decay with about the right peak.
    start = 2.0 * lengths[None, :, None] ** -jnp.array([0.4, 0.1])[:, None, None] * (jnp.asarray(LEFT) + 0.01)[None, None]
    raw, path = descend(jax.scipy.special.logit(jnp.minimum(start / LARGEST, 0.9)))
    peaks = jnp.geomspace(1e-3, LARGEST, 41)

    @jax.jit
    def family(schedule):
        def at(teacher, length, peak):
            return excess(features, teacher, schedules.Scaled(schedule, scale=peak), length, s.dimension, s.accuracy)

        def both(peak):
            return everywhere(at)(teachers, lengths, jnp.full((len(SOURCES), lengths.size), peak))

        return jax.lax.map(both, peaks)

    families = {"constant": 0.0, "linear decay": 1.0, "power decay": 2 * CAPACITY - 1}
    scanned = {name: np.asarray(family(PowerDecay(jnp.asarray(power)))) for name, power in families.items()}
    decay = schedules.PiecewiseLinear((0.0, 0.8, 1.0), jnp.array([1.0, 1.0, 0.0]))
    scanned["stable, then linear over a fifth"] = np.asarray(family(decay))
    rates = np.asarray(LARGEST * jax.nn.sigmoid(raw))
    found = {}
    for i, task in enumerate(SOURCES):
        best = {
            name: [least(np.asarray(peaks), values[:, i, j]) for j in range(lengths.size)] for name, values in scanned.items()
        }
        best["free"] = [(float(rates[i, j].max()), float(np.exp(path[-1, i, j]))) for j in range(lengths.size)]
        found[task] = {"rates": rates[i].tolist(), "families": best, "descent": np.asarray(path[:, i]).T.tolist()}
    return found


def least(peaks: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The best peak and its value, by the parabola through the lowest of the values and its neighbors, in logarithms."""
    k = int(np.nanargmin(values))
    if not 0 < k < values.size - 1 or not np.isfinite(values[k + 1]):
        return float(peaks[k]), float(values[k])
    x, y = np.log(peaks[k - 1 : k + 2]), np.log(values[k - 1 : k + 2])
    a, b, c = np.polyfit(x - x[1], y, 2)
    return float(np.exp(x[1] - b / (2 * a))), float(np.exp(c - b**2 / (4 * a)))


def slope(x: Any, y: Any) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def random_features(a: float, b: float, size: int, hidden: int, seed: int) -> dmftopt.Problem:
    """Least squares on W^T x in `size` dimensions, x_k ~ N(0, k^-2a), labels sum_k x_k k^-b: what no student reaches is noise."""
    k = np.arange(1, hidden + 1.0)
    mixed = np.random.default_rng(seed).standard_normal((hidden, size)) / size**0.5
    weighted = mixed.T * k ** (-2 * a)
    values, vectors = np.linalg.eigh(weighted @ mixed)
    reached = vectors.T @ (weighted @ k**-b)
    noise = max(np.sum(k ** (-2 * a - 2 * b)) - np.sum(reached**2 / values), 0.0)
    trace = np.sum(values)
    # Entries of the best student, for features of unit mean square norm.
    teacher = np.abs(reached / values) * trace**0.5
    return dmftopt.Problem(
        dmftopt.tasks.LeastSquares(float(noise**0.5)), dmftopt.features.spectrum(values), 1.0, jnp.asarray(teacher), 0.0
    )


def scaling(s: Settings) -> dict[str, Any]:
    """Of each phase: loss (all of it, noise included) against compute at every size, and at the best one."""
    found, steps = {}, np.geomspace(10.0, 1e6, 41)
    for name, (a, b) in PHASES.items():
        losses = []
        for size in s.sizes:
            problem = random_features(a, b, size, s.hidden, s.seed)
            grid = dmftopt.TimeGrid(np.append(0.0, steps / size))
            losses.append(2 * np.asarray(limits.online(problem, dmftopt.Protocol(0.5), grid, steps=s.accuracy).test_risk[1:]))
        compute = np.geomspace(10.0 * s.sizes[-1], 1e6 * s.sizes[0], 101)
        at = np.stack(
            [np.interp(np.log(compute / size), np.log(steps), np.log(loss)) for size, loss in zip(s.sizes, losses, strict=True)]
        )
        best = np.argmin(at, axis=0)
        # Where the best size is none of the ends: by the parabola in log size.
        inner = np.flatnonzero((best > 0) & (best < len(s.sizes) - 1))
        sizes, least_losses = [], []
        for i in inner:
            x, y = np.log(np.asarray(s.sizes[best[i] - 1 : best[i] + 2], dtype=float)), at[best[i] - 1 : best[i] + 2, i]
            p, q, r = np.polyfit(x - x[1], y, 2)
            sizes.append(float(np.exp(x[1] - q / (2 * p))))
            least_losses.append(float(np.exp(r - q**2 / (4 * p))))
        curves = {"steps": steps.tolist(), "losses": [loss.tolist() for loss in losses], "compute": compute[inner].tolist()}
        found[name] = {"a": a, "b": b, "sizes": sizes, "least": least_losses, "predicted": predicted(a, b), **curves}
        # Over less than a factor of ten a slope says nothing.
        if inner.size > 1 and compute[inner[-1]] > 10 * compute[inner[0]]:
            found[name]["measured"] = (-slope(compute[inner], least_losses), slope(compute[inner], sizes))
    return found


def predicted(a: float, b: float) -> tuple[float, float]:
    """Exponents of loss and best size in the compute, for 2 a > 1, from what is left after r steps with d features,

        r^-(2a + 2b - 1)/(2a) + d^-(2a - max(0, 1 - 2b)) + [2b > 1] r^-(1 - 1/(2a)) / d + r^-(2 - 1/(2a)),

    directions not yet learned, those never learned, those that random features distort, and the noise of SGD."""

    def logarithm(size, compute):
        r = compute - size
        terms = [-(2 * a + 2 * b - 1) / (2 * a) * r, -(2 * a - max(0.0, 1 - 2 * b)) * size, -(2 - 1 / (2 * a)) * r]
        if 2 * b > 1:
            terms.append(-(1 - 1 / (2 * a)) * r - size)
        return np.max(terms, axis=0)

    # In units of the logarithm of the compute.
    sizes = np.linspace(0.0, 1.0, 20001)
    values = logarithm(sizes, 1.0)
    return float(-np.min(values)), float(sizes[np.argmin(values)])


def costs(s: Settings) -> list[dict[str, Any]]:
    """Seconds after compilation, best of five, and stated relative errors of the excess risk under linear decay."""
    features, rows = dmftopt.features.power_law(CAPACITY, dimension=1000), []
    problem = dmftopt.Problem(dmftopt.tasks.LeastSquares(0.3), features, 50.0)
    for name, route in (("online", limits.online), ("least_squares", limits.least_squares)):

        @jax.jit
        def predict(peak, horizon, route=route):
            protocol = dmftopt.Protocol(schedules.Scaled(schedules.linear_decay(1.0, 1.0), horizon, scale=peak))
            found = route(problem, protocol, dmftopt.TimeGrid(horizon * jnp.array([0.0, 1.0])))
            return found.test_risk[-1], found.discretization_error.test_risk[-1]

        slopes = jax.jit(jax.grad(lambda peak, horizon, predict=predict: predict(peak, horizon)[0]))
        for horizon in s.horizons:
            value, error = predict(1.0, horizon)
            seconds = [fastest(f, horizon) for f in (predict, slopes)]
            rows.append({"route": name, "horizon": horizon, "seconds": seconds, "error": float(error / (value - 0.045))})
    return rows


def fastest(function: Any, horizon: float) -> float:
    best = np.inf
    for _ in range(6):
        began = time.perf_counter()
        jax.block_until_ready(function(1.0, horizon))
        best = min(best, time.perf_counter() - began)
    return best


def tables(s: Settings, found: dict[str, Any]) -> dict[str, str]:
    shapes, exponents = [], []
    for task, source in SOURCES.items():
        families = found["schedules"][task]["families"]
        for name, values in families.items():
            ratios = [f"{v[1] / f[1]:.3f}" for v, f in zip(values, families["free"], strict=True)]
            shapes.append([task, name, *ratios, *(short(v[0]) for v in values)])
        easy = source > 1 - 1 / CAPACITY
        known = (source - 1 + 1 / CAPACITY) / (source + 1 / CAPACITY) if easy else 0.0
        reach = source * (1 - known)
        last = slice(-2, None)
        for name in ("power decay", "free"):
            peak, risk = (slope(s.lengths[last], [v[i] for v in families[name]][last]) for i in (0, 1))
            exponents.append([task, name, f"{-peak:.3f}", f"{known:.3f}", f"{-risk:.3f}", f"{reach:.3f}"])
    lengths = [f"{n:g}" for n in s.lengths]
    head = ["task", "schedule", *(f"excess / free, N = {n}" for n in lengths), *(f"peak, N = {n}" for n in lengths)]
    columns = ["task", "schedule", "peak falls like N^-", "known", "excess falls like N^-", "known"]
    sized = []
    for name, v in found["scaling"].items():
        measured = v.get("measured", (float("nan"), float("nan")))
        sized.append(
            [
                name,
                v["a"],
                v["b"],
                *("" if np.isnan(x) else f"{x:.3f}" for pair in zip(measured, v["predicted"], strict=True) for x in pair),
            ]
        )
    spent = [
        [r["route"], f"{r['horizon']:g}", *(f"{1e3 * x:.0f}" for x in r["seconds"]), f"{r['error']:.0e}"] for r in found["costs"]
    ]
    return {
        "shapes": markdown(head, shapes),
        "exponents": markdown(columns, exponents),
        "scaling": markdown(
            ["phase", "a", "b", "loss falls like compute^-", "derived", "best size grows like compute^", "derived"], sized
        ),
        "costs": markdown(["limit", "t", "prediction, ms", "gradient, ms", "stated error of the excess"], spent),
    }


def draw(s: Settings, found: dict[str, Any]) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
    left, colors = np.array(LEFT), plt.get_cmap("viridis")(np.linspace(0, 0.85, len(s.lengths)))
    for axis, task in zip(axes, SOURCES, strict=False):
        for color, n, rates in zip(colors, s.lengths, found["schedules"][task]["rates"], strict=True):
            axis.plot(left[:-1], rates[:-1], "o-", ms=4, color=color, label=f"N = {n:g}")
            if task == "easy":
                axis.plot(left[:-1], rates[0] * left[:-1] ** (2 * CAPACITY - 1), ":", color=color)
        axis.set(xscale="log", yscale="log", xlabel=r"share of the run that is left, $1 - z$", ylabel=r"learning rate $\eta$")
        known = f"; dotted: $(1 - z)^{{{2 * CAPACITY - 1:g}}}$" if task == "easy" else ""
        axis.set_title(f"{task} task, free schedules{known}", fontsize=10)
        axis.invert_xaxis()
        axis.legend(fontsize=8, frameon=False)
    for color, (name, v) in zip(dmftopt.plot.COLORS, found["scaling"].items(), strict=False):
        for size, loss in zip(s.sizes, v["losses"], strict=True):
            axes[2].plot(size * np.array(v["steps"]), loss, color=color, lw=0.7, alpha=0.5)
        label = f"phase {name}: {v['measured'][0]:.3f}, derived {v['predicted'][0]:.3f}" if "measured" in v else f"phase {name}"
        axes[2].plot(v["compute"], v["least"], color=color, lw=2.5, label=label)
    axes[2].set(xscale="log", yscale="log", xlabel="compute, features times SGD steps", ylabel="loss")
    axes[2].set_title("loss by size (thin), at the best size (thick), its exponent", fontsize=10)
    axes[2].legend(fontsize=8, frameon=False)
    return figure


def main(s: Settings) -> None:
    s = s.sized(lengths=(1e3, 1e4), dimension=1e3, groups=8, steps=3, accuracy=16, sizes=(4, 8, 16), hidden=64, horizons=(10.0,))
    with jax.enable_x64(True):
        found = {"settings": s.without(), "schedules": tuned(s), "scaling": scaling(s), "costs": costs(s)}
    finish(s, __file__, found, tables(s, found), draw(s, found))


if __name__ == "__main__":
    main(tyro.cli(Settings))
