from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._checks import check_count, check_instance, numbers_to_arrays
from .._measure import check_metrics
from ..dmft import AbstractStep, DiscreteStep, ExponentialStep, solve
from ..grid import TimeGrid
from ..noise import AbstractNoise, Brownian, Poisson
from ..optimize import AbstractObjective
from ..problem import Problem, check_problem
from ..protocol import Protocol
from ..variables import number
from . import objectives
from ._budget import Budget, Plan, Run, stretched


class Solve(eqx.Module):
    """Prediction by `dmftopt.solve`, with these of its arguments."""

    noise: AbstractNoise = Brownian()
    samples: int = eqx.field(static=True, default=2048)
    replicates: int = eqx.field(static=True, default=1)
    step: AbstractStep | None = None
    metrics: Any = None

    def __check_init__(self):
        check_count("samples", self.samples, minimum=4)

    def __call__(self, problem: Problem, protocol: Protocol, grid: TimeGrid, key: Array, throw: bool = False) -> Any:
        return solve(
            problem,
            protocol,
            grid,
            key=key,
            noise=self.noise,
            samples=self.samples,
            replicates=self.replicates,
            step=self.step,
            metrics=self.metrics,
            throw=throw,
        )

    def tabulated(self, protocol: Protocol, grid: TimeGrid) -> Protocol:
        """The protocol as its values at the times at which `solve` reads it: arrays of the same shape for all schedules."""
        step = self.step or (DiscreteStep() if self.noise.discrete else ExponentialStep())
        times = step.evaluation_times(grid).ravel()

        def read(schedule):
            return Table(jnp.broadcast_to(jnp.asarray(schedule(times), times.dtype), times.shape))

        momentum = None if protocol.momentum is None else read(protocol.momentum)
        others = (read(s) for s in (protocol.learning_rate, protocol.batch_size, protocol.ridge))
        return Protocol(*others, momentum, nesterov=protocol.nesterov)


class Table(eqx.Module):
    """What a schedule is at the times at which it will be read."""

    values: Float[Array, " time"]

    def __call__(self, t: Any) -> Array:
        return self.values


class Objective(AbstractObjective):
    """What a protocol is worth: a differentiable scalar of the run it makes of a budget. For `dmftopt.optimize`.

    objective(protocol, key), with schedules in relative time u = t / horizon from 0 to 1:

    - `problem`: one, or a sequence over which the schedule is to be good on average (`across="mean"`) or in the worst case
      (`across="worst"`): a range of noise levels, delta, spectra.
    - `budget`: a `Budget`; without one, protocols come as a `Plan` with a horizon of their own.
    - `measure`: see `dmftopt.objectives`; default the final test risk.
    - `grid`: in relative time; default `TimeGrid.uniform(1.0, 20)`.
    - `predict`: how runs are predicted. `Solve(noise, samples, ...)`, or any function of (problem, protocol, grid, key), for
      example `lambda problem, protocol, grid, key: dmftopt.limits.least_squares(problem, protocol, grid)`. Where it has a
      method `tabulated(protocol, grid)`, it is given what that returns in place of the protocol: of one structure for all
      schedules, so that it is compiled once. The default is solve with Brownian noise, which is differentiable in batch size
      and horizon too; where those are fixed `Solve(Poisson())` is SGD itself.

    `run(protocol)`: the run in time t (of problem number `which`); `predict_run(protocol, key)`: its predicted observables.
    Pure, works under jit, grad and vmap; NaN where the prediction failed.
    """

    problems: tuple[Problem, ...]
    budget: Budget | None
    measure: Callable
    grid: TimeGrid
    predict: Callable
    across: str = eqx.field(static=True)

    def __init__(
        self,
        problem: Problem | Sequence[Problem],
        budget: Budget | None = None,
        *,
        measure: Callable = objectives.final(),
        grid: TimeGrid | None = None,
        predict: Callable = Solve(),
        across: str = "mean",
    ):
        problems = (problem,) if isinstance(problem, Problem) else tuple(problem)
        if not problems:
            raise ValueError("problem: give at least one.")
        for one in problems:
            check_problem(one)
            if isinstance(predict, Solve):
                check_metrics(predict.metrics, one)
        if budget is not None:
            check_instance("budget", budget, Budget, "Build it with dmftopt.Budget(samples=...).")
        for name, value in (("measure", measure), ("predict", predict)):
            if not callable(value) or isinstance(value, type):
                raise TypeError(f"{name} must be a function, got {value!r}. Pass for example dmftopt.objectives.final().")
        if across not in ("mean", "worst"):
            raise ValueError(f'across must be "mean" or "worst", got {across!r}.')
        grid = TimeGrid.uniform(1.0, 20) if grid is None else grid
        check_instance("grid", grid, TimeGrid, "Build it with dmftopt.TimeGrid.uniform(1.0, steps).")
        if abs(float(grid.times[-1]) - 1) > 1e-6:
            raise ValueError(f"grid must end at 1, got {float(grid.times[-1]):g}: it is in relative time.")
        self.problems, self.budget, self.grid, self.predict = numbers_to_arrays((problems, budget, grid, predict))
        self.measure = numbers_to_arrays(measure)
        self.across = across

    def run(self, protocol: Protocol | Plan, which: int = 0) -> Run:
        """The run of this protocol that spends the budget: a protocol in time t, and its horizon."""
        if self.budget is not None:
            return self.budget.run(protocol, self.problems[which].delta)
        if not isinstance(protocol, Plan) or protocol.horizon is None:
            raise TypeError("budget: without one pass a Plan(protocol, horizon=...), or give Objective a Budget.")
        return stretched(protocol.protocol, number(protocol.horizon))

    def predict_run(self, protocol: Protocol | Plan, key: Array, which: int = 0, **options: Any) -> Any:
        """What `predict` returns for this run."""
        run = self.run(protocol, which)
        return self.predict(self.problems[which], run.protocol, self._grid(run), key, **options)

    @property
    def evaluator(self):
        # The budget has done its part in `prepare`: objectives of other budgets share the compiled program.
        return eqx.tree_at(lambda o: o.budget, self, None, is_leaf=lambda x: x is None)

    def values(self, protocol: Protocol | Plan, key: Array | None = None) -> Float[Array, " problem"]:
        """The measure for each problem."""
        return self.values_of(self.prepare(protocol), key)

    def prepare(self, protocol):
        inputs = []
        for which in range(len(self.problems)):
            run = self.run(protocol, which)
            grid = self._grid(run)
            spent = grid.times if self.budget is None else self.budget.spent(run, grid.times)
            tabulated = getattr(self.predict, "tabulated", None)
            read = run.protocol if tabulated is None else tabulated(run.protocol, grid)
            inputs.append((read, grid, spent))
        return tuple(inputs)

    def evaluate(self, inputs, key):
        values = self.values_of(inputs, key)
        return jnp.max(values) if self.across == "worst" else jnp.mean(values)

    def explain(self, protocol, key):
        for which in range(len(self.problems)):
            options = {"throw": True} if isinstance(self.predict, Solve) else {}
            self.predict_run(protocol, key, which, **options)

    def finer(self, *, samples: int = 4, replicates: int = 4, noise: AbstractNoise | None = Poisson()) -> "Objective":
        """The same with every time step halved, and for `Solve` with `samples` times as many samples, `replicates` and this
        noise (None: as it is): to judge what was found."""
        predict = self.predict
        if isinstance(predict, Solve):
            noise = predict.noise if noise is None or predict.noise.discrete or predict.noise.deterministic else noise
            predict = Solve(noise, samples * predict.samples, replicates, predict.step, predict.metrics)
        grid = self.grid if isinstance(predict, Solve) and predict.noise.discrete else self.grid.refined()
        changed = (grid, predict)
        return eqx.tree_at(lambda o: (o.grid, o.predict), self, changed)

    def _grid(self, run: Run) -> TimeGrid:
        return TimeGrid(run.horizon * self.grid.times)

    def values_of(self, inputs: tuple, key: Array | None) -> Float[Array, " problem"]:
        """Of what `prepare` made."""

        def value(problem, inputs):
            protocol, grid, spent = inputs
            return self.measure(self.predict(problem, protocol, grid, key), spent)

        if len(self.problems) == 1:
            return value(self.problems[0], inputs[0])[None]
        stacked = _stacked(list(zip(self.problems, inputs, strict=True)))
        if stacked is None:
            return jnp.stack([value(p, i) for p, i in zip(self.problems, inputs, strict=True)])
        arrays, rest = stacked
        return jax.lax.map(lambda arrays: value(*eqx.combine(arrays, rest)), arrays)


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
