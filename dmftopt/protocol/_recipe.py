"""A protocol as the steps of a training run, for any framework to follow."""

import csv
import io
import itertools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax

from .._checks import check_count, check_duration, check_fixed, check_instance, check_real, front_door, padded
from .._files import write_atomically
from .._memory import check_memory
from ..numerics.quadrature import GAUSS_NODES, GAUSS_WEIGHTS
from ._protocol import Protocol, values_at
from .averages import AbstractAverage
from .rates import check_protocol, read
from .schedules import knots_of
from .updates import transformation

_COLUMNS = ("learning_rate", "batch_size", "weight_decay", "momentum")


class Epoch(NamedTuple):
    """One pass over the training set: its first step and number of steps, the mean learning rate, and the constant batch size
    that takes as many samples in as many steps."""

    first_step: int
    steps: int
    learning_rate: float
    batch_size: int


class Multiplier:
    """step -> value[step] / base, for PyTorch's `LambdaLR` and the like: a plain picklable object. Beyond the last step the last
    value holds."""

    def __init__(self, values: np.ndarray, base: float):
        self.values = np.asarray(values, dtype=float) / base

    def __call__(self, step: int) -> float:
        return float(self.values[min(int(step), self.values.size - 1)])


class Recipe(eqx.Module):
    """What to do at each of the `horizon * dimension` steps of a run. One array entry per step:

    - `learning_rate`: for raw features of mean square norm c, eta(t) / c; that of Adam is eta(t) / sqrt(c d).
    - `batch_size`: whole numbers; every running sum is within 1 of the schedule's, so samples are spent as planned.
    - `weight_decay`: coefficient of theta in the gradient, ridge(t) c / d; of AdamW's decoupled decay, ridge(t) sqrt(c / d).
    - `momentum`: beta(t), 0 if the protocol has none, of theta <- theta - learning_rate * gradient + momentum * (last change of
      theta). With friction it is 1 - gamma(t) / d, and the learning rate is eta(t) / (c d).
    - `average_gain`: the average of the weights moves by this share of the way to them after each step (1 - decay of an EMA; 1
      before it begins, 1 / count for a plain mean). None: none is kept.

    `samples`: of the training set, delta * dimension. Predicted with `noise.Shuffled()`, pass through it in epochs, reshuffled
    before each. `optimizer`: name and numbers: "sgd", "adamw" (beta1, beta2, eps), "rmsprop", "sign", "normalized", "clipped"
    (max_norm).
    """

    learning_rate: np.ndarray
    batch_size: np.ndarray
    weight_decay: np.ndarray
    momentum: np.ndarray
    dimension: int
    samples: int
    average_gain: np.ndarray | None = None
    optimizer: dict[str, Any] = eqx.field(default_factory=lambda: {"name": "sgd"})

    def __len__(self) -> int:
        return self.learning_rate.size

    def learning_rate_multiplier(self, base: float = 1.0) -> Multiplier:
        """For an optimizer whose own learning rate is `base`: PyTorch's `LambdaLR(optimizer, recipe.learning_rate_multiplier())`
        with `SGD(..., lr=1.0)`."""
        check_real("base", base, minimum=0.0, exclusive=True, cure="It is the optimizer's own learning rate.")
        return Multiplier(self.learning_rate, float(base))

    @property
    def constant_momentum(self) -> float:
        if np.ptp(self.momentum) > 0:
            raise ValueError("momentum: optax takes a constant one. Follow recipe.momentum step by step.")
        return float(self.momentum[0])

    def to_optax(self) -> optax.GradientTransformation:
        """The optimizer with its schedules of learning rate and weight decay, for gradients of a batch's mean loss, without
        decay. (Momentum that varies is not optax's: a constant one only.)"""

        def at(values):
            table = jnp.asarray(values, dtype=float)
            return lambda step: table[jnp.minimum(step, table.size - 1)]

        return self.chained(at(self.learning_rate), at(self.weight_decay), self.constant_momentum, self.optimizer)

    @staticmethod
    def chained(rate: Any, decay: Any, momentum: Any, described: dict[str, Any]) -> optax.GradientTransformation:
        """What `to_optax` makes of functions of the step, a momentum and `optimizer`."""
        scaled, decayed = optax.scale_by_learning_rate(rate), optax.add_decayed_weights(decay)
        if described["name"] != "sgd":
            return optax.chain(transformation(described), decayed, scaled)
        # The rate first: what is remembered is the change, not the gradient.
        return optax.chain(decayed, scaled, optax.trace(momentum))

    def epochs(self) -> list[Epoch]:
        """The run cut into passes over the training set (the last may be shorter), for loaders whose batch size can change only
        there."""
        seen = np.concatenate([[0], np.cumsum(self.batch_size)])
        # The pass in which a step begins.
        which = seen[:-1] // self.samples
        edges = [*np.flatnonzero(np.diff(which, prepend=-1)), len(self)]
        return [
            Epoch(int(a), int(b - a), float(self.learning_rate[a:b].mean()), max(1, round(float(self.batch_size[a:b].mean()))))
            for a, b in itertools.pairwise(edges)
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """As a table, one row per step: `.csv`, or `.json` (an object of arrays with dimension and samples). Whole or not at
        all. Raises ValueError for another suffix."""
        kept = () if self.average_gain is None else ("average_gain",)
        table = {name: getattr(self, name).tolist() for name in (*_COLUMNS, *kept)}
        match Path(path).suffix:
            case ".csv":
                text = io.StringIO()
                writer = csv.writer(text, lineterminator="\n")
                writer.writerow(("step", "time", *table))
                for step, row in enumerate(zip(*table.values(), strict=True)):
                    writer.writerow((step, step / self.dimension, *row))
                data = text.getvalue()
            case ".json":
                known = {"dimension": self.dimension, "samples": self.samples, "optimizer": self.optimizer}
                data = json.dumps({**known, **table}, allow_nan=False) + "\n"
            case suffix:
                raise ValueError(f"path must end in .csv or .json, got {suffix!r}.")
        write_atomically(path, lambda file: file.write(data.encode()))


@front_door
def recipe(
    protocol: Protocol,
    *,
    horizon: float,
    dimension: int,
    delta: float,
    mean_square_norm: float = 1.0,
    average: AbstractAverage | None = None,
) -> Recipe:
    """The steps of the run that `protocol` describes, read at t = step / `dimension`, as SGD does; batch sizes are the means over
    a step, so that all together they are d ∫B dt samples, to the nearest whole one.

    `mean_square_norm`: that of the raw features; `problem.data.mean_square_norm` for a problem made by `Problem.from_data`
    (whose centers are to be subtracted first). `average`: of the weights, to be kept beside them. Batch sizes below 1 and other
    values outside their domain raise ValueError.
    """
    check_protocol(protocol)
    if average is not None:
        check_instance("average", average, AbstractAverage, "Pass dmftopt.averages.Exponential(memory), say.")
    check_duration("horizon", horizon, "It is the final time, SGD steps / dimension.")
    check_count("dimension", dimension)
    check_real("delta", delta, minimum=0.0, exclusive=True, cure="It is training samples / dimension.")
    check_real("mean_square_norm", mean_square_norm, minimum=0.0, exclusive=True)
    for name, value in (("horizon", horizon), ("delta", delta), ("mean_square_norm", mean_square_norm)):
        check_fixed(name, value)
    horizon = float(horizon)
    steps, samples = round(horizon * dimension), round(float(delta) * dimension)
    if steps < 1 or samples < 1:
        raise ValueError(f"dimension {dimension} leaves {steps} steps and {samples} samples. Raise dimension.")
    check_memory(f"horizon * dimension = {steps} steps", 16 * steps, "Shorten the run, or make recipes of its parts.")
    starts = np.arange(steps) / dimension
    at_starts = read(protocol, jnp.asarray(padded(starts)), batched=False)

    def per_step(values):
        return np.asarray(values, dtype=float)[:steps]

    # Running integrals from step to step and knot to knot (three Gauss points in between), so that the sum is the schedule's.
    ends = np.arange(steps + 1) * horizon / steps
    edges = np.sort(np.append(ends, np.clip(np.asarray(knots_of(protocol.batch_size)), 0.0, ends[-1])))
    nodes = edges[:-1, None] + np.diff(edges)[:, None] * np.asarray(GAUSS_NODES)
    batch_size = values_at("batch_size", protocol.batch_size, jnp.asarray(padded(nodes.ravel())))
    planned = np.maximum(np.asarray(batch_size, dtype=float)[: nodes.size], 1.0).reshape(nodes.shape) @ np.asarray(GAUSS_WEIGHTS)
    seen = np.append(0.0, np.cumsum(np.diff(edges) * planned))[np.searchsorted(edges, ends)]
    spent = np.floor(dimension * seen + 0.5)
    c, update = float(mean_square_norm), protocol.update
    # The optimizer's own rate over eta; its product with the weight decay is eta ridge / d.
    rate = 1 / c if update is None else update.raw_rate(dimension, c)
    momentum, slowed = np.zeros(steps), 1
    if at_starts.momentum is not None:
        momentum = per_step(at_starts.momentum.coefficient)
    elif at_starts.friction is not None:
        momentum, slowed = 1 - per_step(at_starts.friction) / dimension, dimension
        if momentum.min() < 0:
            raise ValueError(
                f"friction: must be below dimension {dimension}, got {dimension * (1 - momentum.min()):g}. Lower it."
            )
    described = {"name": "sgd"} if update is None else update.described(dimension, c)
    return Recipe(
        learning_rate=per_step(at_starts.learning_rate) * rate / slowed,
        batch_size=np.diff(spent).astype(int),
        weight_decay=per_step(at_starts.ridge) / (dimension * rate),
        momentum=momentum,
        dimension=dimension,
        samples=samples,
        average_gain=None if average is None else np.asarray(average.gains(steps, dimension), dtype=float),
        optimizer={key: value if key == "name" else float(value) for key, value in described.items()},
    )
