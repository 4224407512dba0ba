import equinox as eqx
from jaxtyping import Array, Float

from .._register import register
from ..observables import AbstractResult, Observables


@register
class Simulation(AbstractResult):
    """Means over independent runs, each with its own teacher, student, data and batches; `standard_error` over runs.

    `test_risk` and overlaps are exact population values for each run's weights, not estimates on a test set.
    """

    times: Float[Array, " time"]
    observables: Observables
    replicated: Observables | None
    dimension: int = eqx.field(static=True)
    runs: int = eqx.field(static=True)

    def _attributes(self) -> dict[str, str | int]:
        return {"dimension": self.dimension, "runs": self.runs}
