from typing import Any

import equinox as eqx

from .._checks import check_instance, check_real, front_door
from ..protocol import Protocol, schedules
from ..protocol.variables import above, between, number


@front_door
def baselines(protocol: Protocol, *, horizon: float = 1.0, peak: Any) -> dict[str, Protocol]:
    """What most people would run: `protocol` with its learning rate replaced by a constant, a linear decay to zero, a cosine to
    zero, a power law (exponent and timescale tuned, from 1/2 and a tenth of the horizon) and warmup-stable-decay (lengths of
    both ramps tuned, from 5% and 25% of the horizon), each starting from the given peak: a number, or a variable with bounds such
    as `between(1.0, 0.0, 4.0)`. `horizon`: 1 for a `Budget`, in relative time. Batch size, ridge and momentum stay as in
    `protocol`: fixed if they are Python numbers, tuned along if they are trainable there.
    """
    check_instance("protocol", protocol, Protocol, "Build it with dmftopt.Protocol(learning_rate=...).")
    check_real("peak", number(peak), minimum=0.0, exclusive=True)
    rates = {
        "constant": schedules.constant(peak, log=True),
        "linear decay": schedules.linear_decay(peak, horizon),
        "cosine": schedules.cosine(peak, horizon),
        "power law": schedules.power_law(peak, above(0.5), above(0.1 * horizon)),
        "warmup-stable-decay": schedules.warmup_stable_decay(
            peak, horizon, between(0.05 * horizon, 0.0, 0.5 * horizon), between(0.25 * horizon, 0.0, 0.5 * horizon)
        ),
    }
    return {name: eqx.tree_at(lambda p: p.learning_rate, protocol, rate) for name, rate in rates.items()}
