"""Products with the rows of a write-once history, the only thing that a step does with it.

The cotangent of `rows @ v` by c is the outer product c v. Left to JAX, each product would make one as large as the history, and
XLA fuse their sum with all that c and v are made of, computed anew for every element. A tape collects the pairs (c, v) instead,
and keeps what the products with the rows have been, for the replay.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Pairs = list[tuple[Array, Array]]


class Tape:
    """Of the products of one step with one array. Where they are made for the first time: `made`, those with the rows, and how
    many there are of both kinds, `used`. In the replay: `known`, those with the rows, in their order, and `slots`, a pair of
    zeros for each product, whose cotangents are to be the pairs."""

    def __init__(self, known: list[Array] | None = None, slots: Pairs | None = None):
        self.made: list[Array] = []
        self.used = 0
        self.known = iter(known or ())
        self.slots = None if slots is None else iter(slots)


class Rows:
    """A history of which products are on a tape."""

    def __init__(self, values: Float[Array, "row *sample"], tape: Tape):
        self.values, self.tape = values, tape

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


Family = Float[Array, "row *sample"] | Rows


def with_tapes(history: PyTree[Array], tapes: list[Tape]) -> PyTree[Rows]:
    leaves, structure = jax.tree.flatten(history)
    return structure.unflatten([Rows(*each) for each in zip(leaves, tapes, strict=True)])


def products_with(family: Family, v: Float[Array, "*sample"]) -> Float[Array, "row *shard"]:
    """Sums over each shard of the products of `v` with each row."""
    if not isinstance(family, Rows):
        return _products(family, v)
    tape = family.tape
    if tape.slots is not None:
        return _known_products(family.values, v, next(tape.known), next(tape.slots))
    tape.used += 1
    tape.made.append(_products(family.values, v))
    return tape.made[-1]


def combined(c: Float[Array, "row *shard"], family: Family) -> Float[Array, "*sample"]:
    """The sum of the rows times their coefficients."""
    if not isinstance(family, Rows):
        return _combined(c, family)
    tape = family.tape
    if tape.slots is not None:
        return _taped_combination(c, family.values, next(tape.slots))
    tape.used += 1
    return _combined(c, family.values)


def no_pairs(values: Float[Array, "row *sample"], count: int) -> Pairs:
    """So many pairs of zeros."""
    zeros = jnp.zeros(values.shape[: values.ndim - 1], values.dtype), jnp.zeros(values.shape[1:], values.dtype)
    return [zeros] * count


def with_pairs(values: Float[Array, "row *sample"], pairs: Pairs) -> Float[Array, "row *sample"]:
    """These values, and the outer product of each pair."""
    return values + sum(c[..., None] * v[None] for c, v in pairs)


# Batched products want the batch first: otherwise XLA copies the whole family in another order. Moved here, where on its own
# device the shard axis is 1, it costs nothing.


def _products(rows: Any, v: Any) -> Any:
    if rows.ndim == 2:
        return rows @ v
    return jnp.einsum("srl,sl->rs", jnp.moveaxis(rows, 1, 0), v)


def _combined(c: Any, rows: Any) -> Any:
    if rows.ndim == 2:
        return c @ rows
    return jnp.einsum("sr,srl->sl", c.T, jnp.moveaxis(rows, 1, 0))


@jax.custom_vjp
def _known_products(rows, v, known, slot):
    return known


_known_products.defvjp(
    lambda rows, v, known, slot: (known, (rows, v)),
    lambda saved, c: (None, _combined(c, saved[0]), None, (c, saved[1])),
)


@jax.custom_vjp
def _taped_combination(c, rows, slot):
    return _combined(c, rows)


_taped_combination.defvjp(
    lambda c, rows, slot: (_combined(c, rows), (c, rows)),
    lambda saved, v: (_products(saved[1], v), None, (saved[0], v)),
)
