from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, Float

from .._register import register
from ..results.codes import RESULTS, name_of
from ..results.observables import AbstractResult, Observables


@register
class Simulation(AbstractResult):
    """Means over independent runs, each with its own teacher, student, data and batches; `standard_error` over runs.

    `test_risk` and overlaps are exact population values for each run's weights, not estimates on a test set. `result`: a member
    of `dmftopt.RESULTS`. Where it is not successful, entries from the first time on at which a run failed are NaN.
    """

    times: Float[Array, " time"]
    observables: Observables
    replicated: Observables | None
    dimension: int = eqx.field(static=True)
    runs: int = eqx.field(static=True)
    result: RESULTS = eqx.field(default_factory=lambda: RESULTS.successful)

    @property
    def repetitions(self):
        return self.runs

    def _attributes(self) -> dict[str, str | int]:
        ended = {"result": name_of(self.result), "message": RESULTS[self.result]}
        return {"dimension": self.dimension, "runs": self.runs, **ended}


@register
class Response(NamedTuple):
    """Mean and standard error over runs at `times` (None for a single run), and how it ended, a member of `dmftopt.RESULTS`."""

    times: Float[Array, " time"]
    response: Float[Array, "time m m"]
    standard_error: Float[Array, "time m m"] | None
    result: RESULTS = RESULTS.successful
