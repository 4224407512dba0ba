from typing import Any

import equinox as eqx

from .. import schedules
from .._checks import check_real
from ..protocol import Protocol


def baselines(protocol: Protocol, *, horizon: float, peak: Any) -> dict[str, Protocol]:
    """What most people would run: `protocol` with its learning rate replaced by a constant, a linear decay to zero and a
    cosine to zero over `horizon`, each starting from the given peak. Batch size and ridge stay as in `protocol`: fixed if they
    are Python numbers, tuned along if they are trainable there.
    """
    check_real("peak", peak, minimum=0.0, exclusive=True)
    rates = {
        "constant": schedules.constant(peak, log=True),
        "linear decay": schedules.linear_decay(peak, horizon),
        "cosine": schedules.cosine(peak, horizon),
    }
    return {name: eqx.tree_at(lambda p: p.learning_rate, protocol, rate) for name, rate in rates.items()}
