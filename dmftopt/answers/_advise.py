"""Which schedule to run: the usual families and a free one, all tuned under one budget."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import check_count, check_instance, check_key, check_member, check_real, front_door
from .._register import register, register_part
from ..design import Budget, Run, baselines
from ..problem import Problem, check_problem
from ..protocol import Protocol, schedules
from ..protocol.grid import TimeGrid
from ..protocol.variables import between
from ..results import plot
from ._route import KEYS, judged, objective_of, scale_of, search, shown, value_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From simple to complicated: of two that are as good the first is advised.
SIMPLE_FIRST = ("constant", "linear decay", "cosine", "warmup-stable-decay", "power law", "free")
# Peaks that are tried before any is tuned, and the largest that may come out, over the one that is given.
_LADDER, _LARGEST = 2.0 ** np.arange(-5, 4), 16.0


@register_part
class Ranked(NamedTuple):
    """A tuned family: its final test risk and by how much that is above the least, each with its whole error (95%: sampling,
    steps, bias, and the data behind the problem), and the tuned plan in relative time."""

    risk: float
    risk_error: float
    gap: float
    gap_error: float
    protocol: Any


@register
class Advice(eqx.Module):
    """What `advise` found.

    - `ranked`: by name, the best first. - `enough`: the simplest family whose gap is within its error or `tolerance` of the risk.
    - `runs`: by name, the run in time t = steps / d until its horizon: `runs[name].recipe(dimension=..., delta=...)`.
    """

    ranked: dict[str, Ranked]
    enough: str
    runs: dict[str, Run]
    tolerance: float = eqx.field(static=True)

    @property
    def run(self) -> Run:
        """That of the advised family."""
        return self.runs[self.enough]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        rows = {name: {k: v for k, v in row._asdict().items() if k != "protocol"} for name, row in self.ranked.items()}
        return {"ranked": rows, "enough": self.enough, "horizon": {name: float(run.horizon) for name, run in self.runs.items()}}

    def __str__(self) -> str:
        width = max(map(len, self.ranked))
        lines = [f"{'':<{width}}  {'final test risk':>22}  {'above the best':>22}  largest rate"]
        for name, row in self.ranked.items():
            run = self.runs[name]
            rates = run.protocol.learning_rate(jnp.linspace(0.0, float(run.horizon), 401))
            cells = f"{shown(row.risk, row.risk_error):>22}  {shown(row.gap, row.gap_error) if row.gap else '':>22}"
            lines.append(f"{name:<{width}}  {cells}  {float(np.max(np.asarray(rates))):>12.4g}")
        row = self.ranked[self.enough]
        cost = (
            "it is the best"
            if not row.gap
            else f"it costs {row.gap / row.risk:.2%} of the risk (± {row.gap_error / row.risk:.2%})"
        )
        return "\n".join([*lines, f"{self.enough} is enough: {cost}."])

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """The tuned learning rates, the advised one thick. Returns the matplotlib axes."""
        for name, run in self.runs.items():
            style = {"linewidth": 3.0 if name == self.enough else 1.2, "label": name}
            axes = plot.schedule(run.protocol, float(run.horizon), axes=axes, **style)
        assert axes is not None
        return axes


@front_door
def advise(
    problem: Problem,
    budget: Budget,
    *,
    key: Array,
    protocol: Protocol | None = None,
    among: Sequence[str] = SIMPLE_FIRST,
    knots: int = 9,
    steps: int = 40,
    tolerance: float = 0.01,
    predict: Callable | None = None,
    grid: TimeGrid | None = None,
    progress: bool = True,
) -> Advice:
    """Which learning-rate schedule to run under a budget, and whether a simple one is enough.

    Constant, linear decay, cosine, warmup-stable-decay, power law and a free schedule (piecewise linear, `knots` values) are each
    tuned to the least predicted final test risk, ranked by it, and compared on common random numbers.

    - `protocol`: all else that is run, in relative time: batch size, ridge, momentum or update. Numbers stay, variables and free
      schedules are tuned along. Its learning rate, a number, is where peaks are looked for: from 1/32 to 8 times it at first,
      tuned up to 16 times. Default `Protocol(1.0)`.
    - `among`: which of them are looked at, all by default: each takes its time.
    - `steps`: of Adam (0.1) for each family. - `predict`, `grid`: as in `dmftopt.Objective`, whose defaults these are; but least
      squares without data is exact, by `limits.least_squares`.
    - `tolerance`: relative to the risk, what a simpler schedule may cost.

    Errors are whole (95%): of sampling, over 4 keys; what twice the steps and samples change; and for problems from data that of
    the data. Raises TypeError or ValueError for arguments that make no run, and `SolveError` where nothing is finite.
    """
    check_problem(problem)
    check_instance("budget", budget, Budget, "Build it with dmftopt.Budget(epochs=...).")
    check_key(key)
    for name in among:
        check_member("among", name, SIMPLE_FIRST)
    if not among:
        raise ValueError(f"among must name at least one of {SIMPLE_FIRST}.")
    check_count("knots", knots, minimum=2)
    check_count("steps", steps)
    check_real("tolerance", tolerance, minimum=0.0)
    protocol = Protocol(1.0) if protocol is None else protocol
    check_instance("protocol", protocol, Protocol, "Build it with dmftopt.Protocol(1.0, batch_size=...).")
    scale = scale_of(protocol)
    objective = objective_of(problem, budget, protocol, predict, grid)
    tune_key, *fresh = jax.random.split(key, 1 + KEYS)

    def families(peak: float) -> dict[str, Protocol]:
        return baselines(protocol, peak=between(peak, 0.0, _LARGEST * scale))

    starts = [families(scale * factor)["linear decay"] for factor in _LADDER]
    tried = [float(value_of(objective, start, tune_key)) for start in starts]
    if not np.any(np.isfinite(tried)):
        objective.explain(starts[0], tune_key)
    peak = scale * float(_LADDER[int(np.nanargmin(tried))])

    def free(rate: Callable) -> Protocol:
        start = schedules.piecewise_linear(
            1.0, knots, lambda u: jnp.maximum(rate(u), 0.01 * peak), bounds=(0.0, _LARGEST * scale)
        )
        return eqx.tree_at(lambda p: p.learning_rate, protocol, start)

    usual = families(peak)
    chosen = {name: usual[name] for name in usual if name in among}
    also = [free(usual["constant"].learning_rate)] if "free" in among else []
    first = "free" if also else next(iter(chosen))
    start = free(usual["linear decay"].learning_rate) if also else chosen.pop(first)
    found = search(objective, start, tune_key, steps, also=also, baselines=chosen, progress=progress)
    tuned = {first: found.protocol} | found.tuned
    return _ranked(problem, objective, tuned, fresh, tolerance)


def _ranked(problem: Problem, objective, tuned: dict[str, Any], keys: list[Array], tolerance: float) -> Advice:
    names, count = list(tuned), len(tuned)

    def with_gaps(values):
        # Differences of all pairs, which are hardly random.
        return jnp.concatenate([values[None], values[:, None] - values[None]])

    values, errors = judged(problem, objective, list(tuned.values()), keys, with_gaps)
    order = sorted(range(count), key=lambda i: values[0, i])
    best = order[0]
    ranked = {
        names[i]: Ranked(
            float(values[0, i]),
            float(errors.total[0, i]),
            float(values[1 + i, best]),
            float(errors.total[1 + i, best]),
            tuned[names[i]],
        )
        for i in order
    }
    least = float(values[0, best])
    simple_first = [name for name in SIMPLE_FIRST if name in ranked]
    good = [name for name in simple_first if ranked[name].gap <= max(ranked[name].gap_error, tolerance * least)]
    return Advice(ranked, good[0], {name: objective.run(row.protocol) for name, row in ranked.items()}, tolerance)
