from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from .._checks import check_instance, front_door
from ..protocol import Protocol
from ._budget import Budget, Plan
from ._objective import Objective
from ._optimize import Optimized, optimize


@front_door
def pareto(
    objective: Objective, protocol: Protocol | Plan, budgets: Sequence[Budget], *, key: Array | None = None, **options: Any
) -> list[Optimized]:
    """The optimum for each of several budgets: the Pareto front of the objective against what is spent.

    All but the first are also started from the optimum before (give them in order), so that the front does not rise for want of a
    good start. Budgets that constrain the same things share compiled programs. `options` as in `dmftopt.optimize`; its `starts`
    serve every budget.
    """
    check_instance("objective", objective, Objective, "Build it with dmftopt.Objective(problem, budget).")
    check_instance("budgets", budgets, Sequence, "Put a single one in a list.")
    if not budgets:
        raise ValueError("budgets: give at least one.")
    front: list[Optimized] = []
    for i, budget in enumerate(budgets):
        check_instance(f"budgets[{i}]", budget, Budget, "Build it with dmftopt.Budget(samples=...).")
        at = eqx.tree_at(lambda o: o.budget, objective, budget, is_leaf=lambda x: x is None)
        before = [front[-1].protocol] if front else []
        front.append(optimize(at, protocol, key=None if key is None else jax.random.fold_in(key, i), also=before, **options))
    return front
