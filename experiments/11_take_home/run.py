"""From a design to a training run of your own: an exported schedule in optax and in PyTorch.

Odd against even digits through random features. Learning rate, batch size and weight decay are designed for a training set
(`Problem.from_data`) under a budget of both epochs and steps, and exported as a recipe, one entry per step. Then the raw data are
trained on

- in optax: the recipe's arrays are its schedules, and batches have the recipe's sizes;
- in PyTorch, step by step: `LambdaLR` with `recipe.learning_rate_multiplier()`, and a batch sampler of the recipe's sizes;
- in PyTorch, epoch by epoch: an ordinary shuffling `DataLoader`, with one rate and batch size per epoch (`recipe.epochs()`).

and the test error is compared with the prediction. PyTorch is optional:
`pip install torch --index-url https://download.pytorch.org/whl/cpu`. The recipe is written as recipe.csv.
"""

import dataclasses
import importlib
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure

import dmftopt
from dmftopt import schedules

from ..shared import data
from ..shared.results import Settings as Common
from ..shared.results import finish, markdown, mean_and_error, plus_minus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Common):
    """Train with an exported schedule."""

    features: int = 200
    train_size: int = 800
    epochs: float = 4.0
    steps: int = 800
    """SGD steps: with the epochs they fix the mean batch size, here 4."""
    seeds: int = 20
    """Random splits and batch orders."""
    optimizer_steps: int = 50
    samples: int = 1024


def by_optax(splits, recipe, seed: int) -> np.ndarray:
    """Final test mean squared errors. See shared/data.py: the optimizer is
    optax.chain(optax.add_decayed_weights(lambda k: decay[k]), optax.sgd(lambda k: rate[k]))."""
    keys = jax.random.split(jax.random.key(seed), len(splits[0]))
    return data.follow(splits, keys, recipe, 1, shuffled=True)[0][:, -1]


def by_torch(torch, split, recipe, seed: int, by_epoch: bool) -> float:
    """Final test mean squared error of a PyTorch training loop."""
    x, y, x_test, y_test = (torch.from_numpy(np.array(a, dtype=np.float32)) for a in split)
    pairs = torch.utils.data.TensorDataset(x, y)
    model = torch.nn.Linear(x.shape[1], 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    # The schedule carries the rate itself: the optimizer's own is 1. Weight decay is constant over this run.
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=float(recipe.weight_decay[0]))

    def step(x, y):
        optimizer.zero_grad()
        (0.5 * torch.mean((model(x)[:, 0] - y) ** 2)).backward()
        optimizer.step()

    generator = torch.Generator().manual_seed(seed)
    if by_epoch:
        for epoch in recipe.epochs():
            optimizer.param_groups[0]["lr"] = epoch.learning_rate
            loader = torch.utils.data.DataLoader(pairs, epoch.batch_size, shuffle=True, generator=generator)
            # An epoch of a recipe may be a part of a pass.
            for _, batch in zip(range(epoch.steps), loader, strict=False):
                step(*batch)
    else:
        # Any iterable of lists of indices is a batch sampler.
        taken = recipe.batch_size.tolist()
        passes = [torch.randperm(len(x), generator=generator) for _ in range(-(-sum(taken) // len(x)))]
        batches = [batch.tolist() for batch in torch.split(torch.cat(passes)[: sum(taken)], taken)]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.learning_rate_multiplier())
        for batch in torch.utils.data.DataLoader(pairs, batch_sampler=batches):
            step(*batch)
            scheduler.step()
    with torch.no_grad():
        return float(torch.mean((model(x_test)[:, 0] - y_test) ** 2))


def design(problem, s: Settings) -> tuple[dmftopt.Objective, dict[str, dmftopt.Protocol]]:
    """The objective, where the search starts and where it ends."""
    objective = dmftopt.Objective(
        problem,
        dmftopt.Budget(epochs=s.epochs, steps=s.steps, dimension=problem.data.dimension),
        predict=dmftopt.Solve(dmftopt.noise.Shuffled(), samples=s.samples),
    )
    start = dmftopt.Protocol(
        learning_rate=schedules.piecewise_linear(1.0, 9, schedules.linear_decay(0.5, 1.0, 0.1), log=True),
        batch_size=schedules.piecewise_linear(1.0, 5, 4.0, bounds=(1.0, 32.0)),
        ridge=dmftopt.above(0.01),
    )
    adam = optax.adam(optax.cosine_decay_schedule(0.2, s.optimizer_steps, 0.05))
    found = dmftopt.optimize(objective, start, steps=s.optimizer_steps, key=jax.random.key(s.seed), fresh=2, optimizer=adam)
    return objective, {"start": start, "designed": found.protocol}


def pytorch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        print(f"PyTorch is left out ({error}). pip install torch --index-url https://download.pytorch.org/whl/cpu")
        return None


def main(s: Settings) -> None:
    s = s.sized(features=30, train_size=60, steps=60, seeds=3, optimizer_steps=1, samples=512)
    x, y = data.digits(s.features, s.seed)
    problem = dmftopt.Problem.from_data(x, y, train_size=s.train_size)
    assert problem.data is not None
    objective, protocols = design(problem, s)
    finer, torch = objective.finer(), pytorch()
    splits = [data.split(x, y, s.train_size, seed) for seed in range(s.seeds)]
    stacked = jax.tree.map(lambda *a: np.stack(a), *splits)
    rows: dict[str, Any] = {}
    recipes = {}
    for name, protocol in protocols.items():
        predicted = finer.predict_run(protocol, jax.random.key(s.seed + 1))
        c = problem.data.mean_square_norm
        recipe = objective.run(protocol).recipe(dimension=problem.data.dimension, delta=float(problem.delta), mean_square_norm=c)
        recipes[name] = recipe
        trained = {"optax": by_optax(stacked, recipe, s.seed)}
        if torch is not None:
            for how, by_epoch in (("PyTorch, by step", False), ("PyTorch, by epoch", True)):
                trained[how] = np.asarray([by_torch(torch, a, recipe, seed, by_epoch) for seed, a in enumerate(splits)])
        rows[name] = {"predicted": 2 * float(predicted.test_risk[-1]), "steps": len(recipe)}
        rows[name] |= {"samples": int(recipe.batch_size.sum()), "trained": {how: a.tolist() for how, a in trained.items()}}
    s.folder(__file__).mkdir(parents=True, exist_ok=True)
    recipes["designed"].save(s.folder(__file__) / "recipe.csv")
    finish(s, __file__, {"settings": s.without(), "rows": rows}, tables(rows), draw(recipes, rows))


def tables(rows: dict[str, Any]) -> dict[str, str]:
    predicted = [rows[name]["predicted"] for name in ("start", "designed")]
    lines = [["predicted", *(f"{p:.4f}" for p in predicted), f"{predicted[0] - predicted[1]:.4f}"]]
    for how in rows["start"]["trained"]:
        start, designed = (np.asarray(rows[name]["trained"][how]) for name in ("start", "designed"))
        lines.append([how, *(plus_minus(mean_and_error(v)) for v in (start, designed, start - designed))])
    return {"trained": markdown(["test mean squared error", "start", "designed", "saved"], lines)}


def draw(recipes, rows) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for color, (name, recipe) in zip(dmftopt.plot.COLORS, recipes.items(), strict=False):
        axes[0].plot(recipe.learning_rate, color=color, label=f"{name}, weight decay {recipe.weight_decay[0]:.2g}")
        axes[1].plot(recipe.batch_size, ".", ms=2, color=color, label=name)
    for ax, label in zip(axes, ("learning rate, raw features", "batch size"), strict=False):
        ax.set(xlabel="SGD step", ylabel=label, ylim=(0, None))
        ax.legend(fontsize=9)
    ax = axes[2]
    for i, (color, (name, row)) in enumerate(zip(dmftopt.plot.COLORS, rows.items(), strict=False)):
        ax.axhline(row["predicted"], color=color, label=f"{name}, predicted")
        values = np.asarray(list(row["trained"].values()))
        place = np.arange(len(values)) + 0.1 * i
        error = 2 * values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
        ax.errorbar(place, values.mean(axis=1), error, fmt="o", color=color, label=f"{name}, trained (2 s.e.)")
    ax.set_xticks(range(len(rows["start"]["trained"])), [how.replace(", ", ",\n") for how in rows["start"]["trained"]])
    ax.set(ylabel="test mean squared error", ylim=(0, None), xlim=(-0.5, len(rows["start"]["trained"]) - 0.3))
    ax.legend(fontsize=8, loc="lower left")
    return figure


if __name__ == "__main__":
    main(tyro.cli(Settings))
