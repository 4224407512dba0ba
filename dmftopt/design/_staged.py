"""Objectives in two stages, so that the costly one is compiled once for every kind of schedule."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, PyTree

from .._checks import check_function, front_door


class AbstractObjective(eqx.Module):
    """objective(protocol, key) = evaluate(prepare(protocol), key): `prepare` is cheap, `evaluate` depends on the protocol through
    arrays of fixed shapes only. `explain` raises an error that says why the objective is not finite there, if it knows."""

    @abc.abstractmethod
    def prepare(self, protocol: PyTree) -> PyTree: ...

    @abc.abstractmethod
    def evaluate(self, inputs: PyTree, key: Array | None) -> Array: ...

    @abc.abstractmethod
    def explain(self, protocol: PyTree, key: Array | None) -> None: ...

    @property
    def evaluator(self) -> "AbstractObjective":
        """Whose `evaluate` to compile."""
        return self

    def compiled(self, inputs: PyTree, key: Array | None) -> Array:
        """`evaluate`, compiled once for all kinds of schedules."""
        return _evaluated(self.evaluator, inputs, key)

    def doubled(self) -> "AbstractObjective | None":
        """The same at twice the steps and samples, to check what was found; None where it would be the same."""
        return None

    def __call__(self, protocol: PyTree, key: Array | None = None) -> Array:
        return self.evaluate(self.prepare(protocol), key)


class Plain(AbstractObjective):
    """A function of the protocol, or of protocol and key."""

    function: Callable

    def prepare(self, protocol):
        return protocol

    def evaluate(self, inputs, key):
        return self.function(inputs) if key is None else self.function(inputs, key)

    def explain(self, protocol, key):
        pass


@front_door
def staged(objective: Callable) -> AbstractObjective:
    check_function("objective", objective, "the protocol")
    return objective if isinstance(objective, AbstractObjective) else Plain(objective)


class Gradient:
    """Value, gradient in the parameters, and whether all of it is finite."""

    def __init__(self, objective: AbstractObjective, parameters: PyTree, fixed: PyTree):
        self._given = objective, fixed
        self._depends = _depends(objective, parameters, fixed)

    def __call__(self, parameters: PyTree, key: Array | None) -> tuple[Array, PyTree, Array]:
        objective, fixed = self._given
        tuned, rest = eqx.partition(_prepare(objective, parameters, fixed), self._depends)
        value, cotangents, finite = _evaluate(objective.evaluator, tuned, rest, key)
        gradient, finite = _pull(objective, parameters, fixed, self._depends, cotangents, finite)
        return value, gradient, finite


@eqx.filter_jit
def _prepare(objective, parameters, fixed):
    return objective.prepare(eqx.combine(parameters, fixed))


@eqx.filter_jit
def _evaluated(objective, inputs, key):
    return checked(objective.evaluate(inputs, key))


@eqx.filter_jit
def _evaluate(objective, tuned, rest, key):
    value, gradient = jax.value_and_grad(lambda tuned: checked(objective.evaluate(eqx.combine(tuned, rest), key)))(tuned)
    return value, gradient, jnp.isfinite(value) & _all_finite(gradient)


@eqx.filter_jit
def _pull(objective, parameters, fixed, depends, cotangents, finite):
    def tuned(parameters):
        return eqx.filter(objective.prepare(eqx.combine(parameters, fixed)), depends)

    (gradient,) = jax.vjp(tuned, parameters)[1](cotangents)
    return gradient, finite & _all_finite(gradient)


def _depends(objective, parameters, fixed) -> PyTree:
    """Which inputs are real numbers that the parameters enter. Only those may be differentiated: noise that is not differentiable
    in batch size and times is allowed where those are fixed."""
    dynamic, static = eqx.partition((objective, fixed), eqx.is_array)

    def arrays(parameters, dynamic):
        objective, fixed = eqx.combine(dynamic, static)
        return eqx.filter(objective.prepare(eqx.combine(parameters, fixed)), eqx.is_array)

    jaxpr = jax.make_jaxpr(arrays)(parameters, dynamic).jaxpr
    entered = set(jaxpr.invars[: len(jax.tree.leaves(parameters))])
    for equation in jaxpr.eqns:
        if any(v in entered for v in equation.invars if not isinstance(v, Literal)):
            entered.update(equation.outvars)
    flags = iter([not isinstance(v, Literal) and v in entered for v in jaxpr.outvars])
    inputs = _prepare(objective, parameters, fixed)
    return jax.tree.map(lambda leaf: eqx.is_array(leaf) and next(flags) and eqx.is_inexact_array(leaf), inputs)


def checked(out: Any) -> Any:
    if jnp.shape(out) != () or not jnp.issubdtype(jnp.result_type(out), jnp.floating):
        raise ValueError(f"objective must return a real scalar, got shape {jnp.shape(out)}. Take for example test_risk[-1].")
    return out


def _all_finite(tree: PyTree) -> Array:
    return jnp.all(jnp.asarray([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
