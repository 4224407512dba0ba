"""How the pass over the time steps is differentiated."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._scan import history_scan, unwritten, written_at


class AbstractAdjoint(eqx.Module):
    """Runs

        carry, row, output = advance(constants, parameters, x, carry, history, k)     for k = 0..length-1

    on a history of `length` blocks like `row`, one after the other along the first axis, of which step k writes block k and reads
    only those before it. Nothing is differentiated in `constants`. `order`: of the derivatives it is right for."""

    order: ClassVar[int]

    @abc.abstractmethod
    def scan(
        self,
        advance: Callable,
        length: int,
        constants: PyTree,
        parameters: PyTree,
        xs: PyTree,
        carry: Any,
        row: PyTree[jax.ShapeDtypeStruct],
    ) -> PyTree:
        """The outputs, stacked."""


class WriteOnceAdjoint(AbstractAdjoint):
    """Reverse mode only (`grad`, `vjp`, `jacrev`), first derivatives, memory O(samples * steps): each row of the history is
    written once, so the final one holds all earlier ones, and the reverse pass replays one step at a time on it (25)."""

    order: ClassVar[int] = 1

    def scan(self, advance, length, constants, parameters, xs, carry, row):
        return history_scan(advance, length, constants, parameters, xs, carry, row)[1]


class DirectAdjoint(AbstractAdjoint):
    """JAX's own derivatives of a plain scan: forward mode (`jvp`, `jacfwd`) and second derivatives too. In reverse mode every
    step keeps its copy of the history, O(samples * steps²) memory: for few parameters in forward mode, for Hessians of small
    problems, and as a check of `WriteOnceAdjoint`."""

    order: ClassVar[int] = 2

    def scan(self, advance, length, constants, parameters, xs, carry, row):
        constants = jax.lax.stop_gradient(constants)

        def body(state, inputs):
            k, x = inputs
            carry, history = state
            carry, written, output = advance(constants, parameters, x, carry, history, k)
            return (carry, written_at(k, history, written)), output

        return jax.lax.scan(body, (carry, unwritten(length, row)), (jnp.arange(length), xs))[1]
