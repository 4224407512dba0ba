from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._checks import check_instance, check_member, check_real, check_shape, front_door, numbers_to_arrays
from ..dmft import enough_samples
from ..problem import Problem, check_problem
from ..protocol import Protocol
from ..protocol.grid import TimeGrid, spread_epochs
from ..protocol.noise import AbstractNoise, Poisson, Shuffled
from ..protocol.variables import number
from ..results import averaged
from ..results.metrics import AbstractFieldMetric
from . import objectives
from ._budget import Budget, Plan, Run, stretched
from ._predict import AbstractPrediction, Function, Solve
from ._staged import AbstractObjective


class Objective(AbstractObjective):
    """What a protocol is worth: a differentiable scalar of the run it makes of a budget. For `dmftopt.optimize`.

    objective(protocol, key), with schedules in relative time u = t / horizon from 0 to 1:

    - `problem`: one, or a sequence over which the schedule is to be good on average (`across="mean"`) or in the worst case
      (`across="worst"`): a range of noise levels, delta, spectra.
      What is averaged, or of which the worst counts, is weight * (measure - offset) with `weights` and `offsets`, one number per
      problem or one for all, default 1 and 0: problems of which some are harder than others are compared by regret (offsets:
      what the best protocol for each alone reaches) or by ratio (weights: one over that). `values` are the measures themselves.
    - `budget`: a `Budget`; without one, protocols come as a `Plan` with a horizon of their own.
    - `measure`: see `dmftopt.objectives`; default the final test risk.
    - `grid`: in relative time; default `TimeGrid.uniform(1.0, 20)`.
    - `predict`: how runs are predicted. `Solve(noise, samples, ...)`; `Exact(dmftopt.limits.least_squares)`, or `.online`; or
      any function of (problem, protocol, grid, key). `Solve(noise.Shuffled())` is SGD as data loaders run it, differentiable in
      batch sizes, under a budget that fixes the number of epochs: there relative times are shares of the epochs (not of the
      steps), which must have the end of each epoch among them; by default 8 for each epoch, and 20 at the least. It is the
      default for problems made from data under such a budget. Otherwise that is `Solve(noise.Brownian())`, differentiable in
      batch size and horizon too; where those are fixed `Solve(noise.Poisson())` is SGD that draws its batches with replacement.

    `run(protocol)`: the run in time t (of problem number `which`); `predict_run(protocol, key)`: its predicted observables.
    Pure, works under jit, grad and vmap; NaN where the prediction failed.
    """

    problems: tuple[Problem, ...]
    budget: Budget | None
    measure: Callable
    grid: TimeGrid
    predict: AbstractPrediction
    across: str = eqx.field(static=True)
    weights: Float[Array, " problem"]
    offsets: Float[Array, " problem"]
    epochs: tuple[float, ...] | None = eqx.field(static=True)

    @front_door
    def __init__(
        self,
        problem: Problem | Sequence[Problem],
        budget: Budget | None = None,
        *,
        measure: Callable = objectives.final(),
        grid: TimeGrid | None = None,
        predict: Callable | None = None,
        across: str = "mean",
        weights: Any = 1.0,
        offsets: Any = 0.0,
    ):
        problems = tuple(problem) if isinstance(problem, Sequence) else (problem,)
        if not problems:
            raise ValueError("problem: give at least one.")
        for one in problems:
            check_problem(one)
        if budget is not None:
            check_instance("budget", budget, Budget, "Build it with dmftopt.Budget(samples=...).")
        chosen = predict is None
        predict = _default_prediction(problems, budget) if predict is None else predict
        for name, value in (("measure", measure), ("predict", predict)):
            if not callable(value) or isinstance(value, type):
                raise TypeError(f"{name} must be a function, got {value!r}. Pass for example dmftopt.objectives.final().")
        predict = predict if isinstance(predict, AbstractPrediction) else Function(predict)
        for one in problems:
            predict.check(one)
        if across not in ("mean", "worst"):
            raise ValueError(f'across must be "mean" or "worst", got {across!r}.')
        in_epochs = isinstance(predict, Solve) and predict.noise.in_epochs
        epochs = [_epochs(budget, one) for one in problems] if in_epochs else None
        if grid is None:
            grid = TimeGrid.uniform(1.0, 20) if epochs is None else _default_grid(epochs)
        check_instance("grid", grid, TimeGrid, "Build it with dmftopt.TimeGrid.uniform(1.0, steps).")
        if chosen and isinstance(predict, Solve):
            # Many epochs are many steps.
            enough = enough_samples(max(one.m for one in problems), grid.steps + 1)
            predict = Solve(predict.noise, samples=max(predict.solver.samples, enough))
        if abs(float(grid.times[-1]) - 1) > 1e-6:
            raise ValueError(f"grid must end at 1, got {float(grid.times[-1]):g}: it is in relative time.")
        self.epochs = None if epochs is None else tuple(epochs)
        self.problems, self.budget, self.grid, self.predict = numbers_to_arrays((problems, budget, grid, predict))
        self.measure = numbers_to_arrays(measure)
        self.across = across
        check_real("weights", weights, minimum=0.0, exclusive=True)
        check_real("offsets", offsets)
        for name, value in (("weights", weights), ("offsets", offsets)):
            check_shape(name, value, ((), (len(problems),)), "Give one number per problem, or one for all.")
        self.weights, self.offsets = (jnp.broadcast_to(jnp.asarray(v, dtype=float), len(problems)) for v in (weights, offsets))

    def run(self, protocol: Protocol | Plan, which: int = 0) -> Run:
        """The run of this protocol that spends the budget: a protocol in time t, and its horizon."""
        check_member("which", which, range(len(self.problems)))
        if self.budget is not None:
            return self.budget.run(protocol, self.problems[which].delta)
        if not isinstance(protocol, Plan) or protocol.horizon is None:
            raise TypeError("budget: without one pass a Plan(protocol, horizon=...), or give Objective a Budget.")
        return stretched(protocol.protocol, number(protocol.horizon), protocol.average)

    def predict_run(self, protocol: Protocol | Plan, key: Array | None = None, which: int = 0) -> Any:
        """What `predict` returns for this run; with an average in the plan, that of the averaged weights."""
        return self._result(self.problems[which], self.prepare(protocol)[which], key)

    @property
    def evaluator(self):
        # The budget has done its part in `prepare`: objectives of other budgets share the compiled program.
        return eqx.tree_at(lambda o: o.budget, self, None, is_leaf=lambda x: x is None)

    def values(self, protocol: Protocol | Plan, key: Array | None = None) -> Float[Array, " problem"]:
        """The measure for each problem."""
        return self.values_of(self.prepare(protocol), key)

    def combined(self, values: Float[Array, " problem"]) -> Float[Array, ""]:
        """What is minimized, of the measures for each problem: predicted or simulated ones."""
        values = self.weights * (values - self.offsets)
        return jnp.max(values) if self.across == "worst" else jnp.mean(values)

    def prepare(self, protocol):
        inputs = []
        for which in range(len(self.problems)):
            run = self.run(protocol, which)
            grid = self._grid(run, which)
            spent = grid.times if self.budget is None else self.budget.spent(run, grid.times)
            inputs.append((self.predict.tabulated(run.protocol, grid), grid, spent, run.average))
        return tuple(inputs)

    def evaluate(self, inputs, key):
        return self.combined(self.values_of(inputs, key))

    def explain(self, protocol, key):
        # Not in jit, where nothing could be raised.
        for problem, (tabulated, grid, *_) in zip(self.problems, self.prepare(protocol), strict=True):
            self.predict.explain(problem, tabulated, grid, key)

    def finer(self, *, samples: int = 4, replicates: int = 4, noise: AbstractNoise | None = Poisson()) -> "Objective":
        """The same with every time step halved (where a step is no update of the algorithm), and for `Solve` with `samples` times
        as many samples, `replicates` and this noise (None: as it is): to judge what was found."""
        predict = self.predict.finer(samples, replicates, noise)
        grid = self.grid.refined() if predict.refinable else self.grid
        return eqx.tree_at(lambda o: (o.grid, o.predict), self, (grid, predict))

    def doubled(self):
        return self.finer(samples=2, replicates=1, noise=None) if isinstance(self.predict, Solve) else None

    def _grid(self, run: Run, which: int) -> TimeGrid:
        if self.epochs is None:
            return TimeGrid(run.horizon * self.grid.times)
        counted = self.grid.times * self.epochs[which]
        whole = jnp.round(counted)
        counted = jnp.where(jnp.abs(counted - whole) < 1e-5, whole, counted)
        return TimeGrid.at_epochs(self.problems[which].delta, run.protocol.batch_size, counted)

    def _result(self, problem: Problem, inputs: tuple, key: Array | None) -> Any:
        protocol, grid, _, average = inputs
        result = self.predict(problem, protocol, grid, key)
        if average is None:
            return result
        asked = self.predict.asked_metrics or {}
        fields = {name: metric for name, metric in asked.items() if isinstance(metric, AbstractFieldMetric)}
        return averaged(result, problem, average, metrics=fields)

    def values_of(self, inputs: tuple, key: Array | None) -> Float[Array, " problem"]:
        """Of what `prepare` made."""

        def value(problem, inputs):
            return self.measure(self._result(problem, inputs, key), inputs[2])

        if len(self.problems) == 1:
            return value(self.problems[0], inputs[0])[None]
        stacked = _stacked(list(zip(self.problems, inputs, strict=True)))
        if stacked is None:
            return jnp.stack([value(p, i) for p, i in zip(self.problems, inputs, strict=True)])
        arrays, rest = stacked
        return jax.lax.map(lambda arrays: value(*eqx.combine(arrays, rest)), arrays)


def _default_prediction(problems: tuple[Problem, ...], budget: Budget | None) -> Solve:
    """Data sets are gone through in epochs, where it is known how many."""
    counts = {None if budget is None or one.data is None else budget.epochs(one.delta) for one in problems}
    return Solve() if None in counts or len(counts) > 1 else Solve(Shuffled())


def _epochs(budget: Budget | None, problem: Problem) -> float:
    epochs = None if budget is None else budget.epochs(problem.delta)
    if epochs is None:
        raise ValueError(
            "budget: with noise.Shuffled() it must fix the number of epochs (epochs=..., or samples=...), on which the grid "
            "depends. For a horizon that is tuned take Solve(noise.Brownian())."
        )
    return epochs


def _default_grid(epochs: list[float]) -> TimeGrid:
    if max(epochs) > min(epochs) * (1 + 1e-9):
        raise ValueError(f"budget: these problems are run for {epochs} epochs. Give a budget of epochs, the same for all.")
    parts = int(np.ceil(epochs[0] - 1e-9))
    # Eight an epoch. Of many epochs four are enough: a final risk after 16 is then off by .1%.
    return TimeGrid(spread_epochs(epochs[0], max(20, min(8 * parts, max(64, 4 * parts)))) / epochs[0])


def _stacked(trees: list[PyTree]) -> tuple[PyTree, PyTree] | None:
    """Trees that differ in numbers only as one with a leading axis: its arrays, and the rest. None for others."""
    parts = [eqx.partition(tree, eqx.is_array) for tree in trees]
    arrays, rest = zip(*parts, strict=True)
    shapes = [jax.tree.map(jnp.shape, a) for a in arrays]
    if not all(eqx.tree_equal(rest[0], r) for r in rest) or not all(s == shapes[0] for s in shapes):
        return None
    if len({jax.tree.structure(a) for a in arrays}) > 1:
        return None
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *arrays), rest[0]
