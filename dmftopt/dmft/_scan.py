"""A scan over a write-once history, with a reverse mode that stores the history once.

Differentiating a plain `lax.scan` that carries a (steps, samples) history saves it at every step: O(samples × steps²). But each
row is written once and never changed, so the final history already holds every earlier one. The reverse pass below replays
one step at a time on the final history (a step multiplies rows not yet written by zero) and adds its cotangent to one
history-sized array. A step may use the history in products only, by the functions of `_rows`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._rows import Tape, no_pairs, with_pairs, with_tapes


def history_scan(
    step: Callable, length: int, constants: PyTree, parameters: PyTree, xs: PyTree, carry: Any, row: PyTree[jax.ShapeDtypeStruct]
) -> tuple[PyTree, PyTree, Any]:
    """Run `length` steps of

        carry, row, output = step(constants, parameters, x, carry, history, k)

    for k = 0..length-1. `history` holds `length` blocks like `row`, one after the other along the first axis; step k writes
    block k. The step must not let blocks k and beyond influence its result. Returns (history, outputs, final carry).

    Reverse mode only. `constants` get no derivative (they are held once and never copied); memory is one history for its
    cotangent, the stacked carries, the products with the rows, and the working set of a single step.
    """
    return _history_scan(step, length, constants, parameters, xs, carry, row)


def unwritten(length: int, row: PyTree[jax.ShapeDtypeStruct], zero: Any = 0.0) -> PyTree:
    """A history of so many blocks."""
    return jax.tree.map(lambda r: jnp.full((length * r.shape[0], *r.shape[1:]), zero, r.dtype), row)


def written_at(k: Array, history: PyTree, row: PyTree) -> PyTree:
    """The history with this row as its block k."""
    return jax.tree.map(lambda h, w: jax.lax.dynamic_update_slice_in_dim(h, w, k * w.shape[0], 0), history, row)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 6))
def _history_scan(step, length, constants, parameters, xs, carry, row):
    return _fwd(step, length, constants, parameters, xs, carry, row)[0]


def _fwd(step, length, constants, parameters, xs, carry, row):
    # A zero that depends on the constants: otherwise XLA makes room for the history beside the scratch space of their making.
    some = jax.tree.leaves(constants)[0]
    zero = 0 * some[(0,) * some.ndim]
    history = unwritten(length, row, zero)
    counts = []

    def body(state, inputs):
        k, x = inputs
        carry, history = state
        tapes = [Tape() for _ in jax.tree.leaves(history)]
        new, written, output = step(constants, parameters, x, carry, with_tapes(history, tapes), k)
        counts[:] = [tape.used for tape in tapes]
        return (new, written_at(k, history, written)), (output, carry, [tape.made for tape in tapes])

    (final, history), (outputs, *kept) = jax.lax.scan(body, (carry, history), (jnp.arange(length), xs))
    # How many zeros the reverse pass is to lay out for the cotangents of its products.
    slots = [no_pairs(values, count) for values, count in zip(jax.tree.leaves(history), counts, strict=True)]
    return (history, outputs, final), (constants, parameters, xs, kept, history, slots)


def _bwd(step, length, row, residuals, cotangents):
    constants, parameters, xs, kept, history, slots = residuals
    d_history, d_outputs, d_carry = cotangents

    def body(state, inputs):
        d_carry, d_history, d_parameters, pairs = state
        k, x, (carry, made), d_output = inputs
        # What the step after this one has left for the history: carried over, it is made of arrays, not of what they are made of.
        d_leaves, structure = jax.tree.flatten(d_history)
        d_history = structure.unflatten([with_pairs(*each) for each in zip(d_leaves, pairs, strict=True)])

        def replay(parameters, x, carry, slots):
            tapes = [Tape(*each) for each in zip(made, slots, strict=True)]
            return step(constants, parameters, x, carry, with_tapes(history, tapes), k)

        _, pullback = jax.vjp(replay, parameters, x, carry, slots)
        d_row = jax.tree.map(lambda h, r: jax.lax.dynamic_slice_in_dim(h, k * r.shape[0], r.shape[0], 0), d_history, row)
        d_params, d_x, d_carry, pairs = pullback((d_carry, d_row, d_output))
        return (d_carry, d_history, jax.tree.map(jnp.add, d_parameters, d_params), pairs), d_x

    state = d_carry, d_history, jax.tree.map(jnp.zeros_like, parameters), slots
    (d_carry, _, d_parameters, _), d_xs = jax.lax.scan(body, state, (jnp.arange(length), xs, kept, d_outputs), reverse=True)
    return None, d_parameters, d_xs, d_carry


_history_scan.defvjp(_fwd, _bwd)
