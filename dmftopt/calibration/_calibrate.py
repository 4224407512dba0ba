"""From recorded runs to a fitted law."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from .._checks import check_count, check_member, front_door
from ._curves import Curve, read_curves
from ._fit import OPTIONAL, SHAPE, Data, Fit, fit, law_of, loose, starts
from ._law import KernelLaw
from ._result import Calibration, Seen
from ._segments import PIECES, of_curves

# Records of a curve that are fitted: more of them are averaged in groups.
_RECORDS = 120
# Blocks of a curve, whose errors go together, in the bootstrap.
_BLOCKS = 6
_STARTS = 5


class _Prepared(NamedTuple):
    data: Data
    step: np.ndarray
    seen: Seen


@front_door
def calibrate(
    curves: Any,
    *,
    free: Sequence[str] = OPTIONAL,
    warmup: int | None = None,
    first_step: int | None = None,
    draws: int = 40,
    seed: int = 0,
) -> Calibration:
    """Fit the kernel law (`KernelLaw`) to the losses of a few runs.

    Minimizes Cauchy's loss of relative residuals, of a width by their median deviation. Amplitudes are projected out, the rest
    is found by Levenberg-Marquardt from several starts, in float64. A bootstrap that weights blocks of records (sixths of a
    curve, exponential weights) gives errors.

    - `curves`: see `read_curves`.
    - `free`: which of "rate_exponent" (2 otherwise) and "feedback" (0 otherwise) are fitted too; `cross_validate` compares.
    - `warmup`: steps of linear warm-up, see `read_curves`.
    - `first_step`: earlier records are left out; None: those in a stated warm-up.
    - `draws`: of the bootstrap. `seed`: of starts and bootstrap.

    A surrogate wherever the runs are not SGD on least squares: it extrapolates as its form does, and says from where on. Raises
    TypeError and ValueError that name the argument. Sources: least-squares SGD on power-law spectra (arXiv:2405.15074);
    2503.12811 for learning-rate schedules of language models.
    """
    free = _check_free(free)
    check_count("draws", draws, minimum=2, cure="Errors need some.")
    prepared = _prepare(read_curves(curves, warmup=warmup), first_step)
    data, horizon = prepared.data, prepared.seen.horizon
    best = _fit(prepared, np.ones(data.loss.shape[0]), free, seed)
    rng = np.random.default_rng(seed + 1)
    again = [fit(data, w, free, horizon, [best.values], rounds=2) for w in _block_weights(data, rng, draws)]
    left_out = _left_out(prepared, _curve_folds(prepared), best)
    law, ensemble = _law(best, prepared), [_law(one, prepared) for one in again]
    return Calibration(
        law=law,
        ensemble=jax.tree.map(lambda *leaves: np.stack(leaves), *ensemble),
        free=best.free,
        loose=loose(best, data, horizon, _BLOCKS * len(prepared.seen.names)),
        deviation=best.scale,
        discrepancy=float(np.median([np.sqrt(np.mean(errors**2)) for errors in left_out])),
        records=int(data.loss.shape[0]),
        seen=prepared.seen,
    )


@front_door
def cross_validate(
    curves: Any,
    free: Sequence[Sequence[str]] = ((), OPTIONAL[:1], OPTIONAL),
    *,
    leave_out: Literal["blocks", "curves"] = "blocks",
    warmup: int | None = None,
    first_step: int | None = None,
) -> dict[tuple[str, ...], list[float]]:
    """Mean relative error of each choice of `free` parameters on records that were left out of the fit, fold by fold.

    `leave_out`: "blocks", a sixth of every curve at a time, from different parts of them; or "curves", one at a time (of a single
    one its last third): harder, and often no test at all, for the rest may not fix the parameters. Raises as `calibrate` does."""
    check_member("leave_out", leave_out, ("blocks", "curves"))
    prepared = _prepare(read_curves(curves, warmup=warmup), first_step)
    held = _curve_folds(prepared) if leave_out == "curves" else _block_folds(prepared)
    scores = {}
    for choice in map(_check_free, free):
        whole = _fit(prepared, np.ones(prepared.step.size), choice, 0)
        scores[choice] = [float(np.abs(errors).mean()) for errors in _left_out(prepared, held, whole)]
    return scores


def _left_out(prepared: _Prepared, held: list[np.ndarray], whole: Fit) -> list[np.ndarray]:
    """Relative errors on the records that were left out of a fit, which starts from that of all."""

    def errors(out):
        return fit(prepared.data, (~out).astype(float), whole.free, prepared.seen.horizon, [whole.values]).residuals[out]

    return [errors(out) for out in held]


def _curve_folds(prepared: _Prepared) -> list[np.ndarray]:
    run = np.asarray(prepared.data.run)
    if len(prepared.seen.names) > 1:
        return [run == i for i in range(len(prepared.seen.names))]
    return [prepared.step > prepared.step[-1] * 2 / 3]


def _block_folds(prepared: _Prepared) -> list[np.ndarray]:
    run, block = np.asarray(prepared.data.run), _blocks(prepared.data)
    # Two further on with every curve, so that no fold lacks a part of all runs.
    return [(block % _BLOCKS + 2 * run) % _BLOCKS == fold for fold in range(_BLOCKS)]


def _fit(prepared: _Prepared, weights: np.ndarray, free: tuple[str, ...], seed: int) -> Fit:
    names = (*SHAPE, *free)
    return fit(prepared.data, weights, free, prepared.seen.horizon, starts(names, _STARTS, seed))


def _law(found: Fit, prepared: _Prepared) -> KernelLaw:
    seen = prepared.seen
    return law_of(found, seen.peak, seen.horizon, seen.batch_size[2])


def _check_free(free: Any) -> tuple[str, ...]:
    if isinstance(free, str):
        free = (free,)
    for name in free:
        check_member("free", name, OPTIONAL)
    return tuple(name for name in OPTIONAL if name in free)


def _prepare(curves: list[Curve], first_step: int | None) -> _Prepared:
    if first_step is not None:
        check_count("first_step", first_step, minimum=0)
    kept = [_thinned(curve, first_step) for curve in curves]
    seen = _seen(curves)
    with jax.enable_x64(True):
        segments, run, segment = of_curves(curves, [step for step, _ in kept], seen.peak, seen.batch_size[2], PIECES)
    loss = np.concatenate([loss for _, loss in kept])
    parameters = 3 + len(SHAPE) + len(OPTIONAL)
    if loss.size < 2 * parameters:
        raise ValueError(f"curves must have at least {2 * parameters} records after warm-up, got {loss.size}. Log more often.")
    return _Prepared(Data(segments, run, segment, loss), np.concatenate([step for step, _ in kept]), seen)


def _thinned(curve: Curve, first_step: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses from `first_step` on, means over groups of neighbours if there are many."""
    first = (curve.warmup or 0) if first_step is None else first_step
    kept = (curve.step >= first) & (curve.step > 0)
    if not np.any(kept):
        raise ValueError(f"first_step: curve {curve.name!r} has no record from step {first} on. Lower it.")
    step, loss = curve.step[kept], curve.loss[kept]
    groups = np.array_split(np.arange(step.size), min(_RECORDS, step.size))
    return np.asarray([round(step[g].mean()) for g in groups]), np.asarray([loss[g].mean() for g in groups])


def _seen(curves: list[Curve]) -> Seen:
    rates = [curve.rates() for curve in curves]
    peak = max(float(r.max()) for r in rates)
    after = [r[np.argmax(r >= 0.99 * r.max()) :] for r in rates]
    batches = np.concatenate([curve.batches() for curve in curves])
    return Seen(
        peak=peak,
        lowest=min(float(r.min()) for r in after),
        horizon=max(float(r.sum()) for r in rates) / peak,
        steps=max(curve.steps for curve in curves),
        warmup=int(np.median([np.argmax(r >= 0.99 * r.max()) for r in rates])),
        batch_size=(float(batches.min()), float(batches.max()), float(np.exp(np.log(batches).mean()))),
        batched=curves[0].batch_size is not None,
        lowest_loss=min(float(curve.loss.min()) for curve in curves),
        names=tuple(curve.name for curve in curves),
    )


def _blocks(data: Data) -> np.ndarray:
    """Which block of neighbouring records each is of: sixths of the first run, of the second..."""
    run = np.asarray(data.run)
    block = np.empty(run.size, dtype=int)
    for i in np.unique(run):
        (mine,) = np.nonzero(run == i)
        block[mine] = i * _BLOCKS + np.arange(mine.size) * _BLOCKS // mine.size
    return block


def _block_weights(data: Data, rng: np.random.Generator, draws: int):
    """Exponential weights of blocks, of mean 1."""
    block = _blocks(data)
    for _ in range(draws):
        yield rng.exponential(size=block.max() + 1)[block]
