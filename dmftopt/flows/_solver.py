"""The time step of the flows."""

from typing import ClassVar

import diffrax
import jax
import jax.numpy as jnp


class Splitting(diffrax.AbstractItoSolver):
    """Strang splitting of a drift and a small Itô noise: noise over half the step, the drift over all of it by the classical
    Runge-Kutta method, noise over the other half, the noise by Euler's method.

    For `diffrax.MultiTerm(ODETerm, ControlTerm)` on an array, with fixed steps. In time eta * steps a modified flow has noise of
    generator eta A, and one SGD step is a time step of eta. Its weak error is then of order eta³, one below what it resolves: the
    splitting's is eta² [D, [D, eta A]], Euler's method's eta (eta A)², Runge and Kutta's eta⁴. Euler's method for the drift would
    have an error of order eta, and Heun's is for Stratonovich's integral.
    """

    term_structure: ClassVar = diffrax.MultiTerm[tuple[diffrax.ODETerm, diffrax.AbstractTerm]]
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def order(self, terms):
        return 4

    def strong_order(self, terms):
        return 0.5

    def init(self, terms, t0, t1, y0, args):
        return None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        drift, noise = terms.terms
        size = t1 - t0
        middle = t0 + size / 2

        def kicked(y, start, end):
            return y + noise.vf_prod(start + (end - start) / 2, y, args, noise.contr(start, end))

        y = kicked(y0, t0, middle)

        # The four stages in a loop: compiled once.
        def stage(state, coefficients):
            change, total = state
            at, weight = coefficients
            change = drift.vf_prod(t0 + at * size, y + at * change, args, drift.contr(t0, t1))
            return (change, total + weight * change), None

        stages = jnp.array([0.0, 0.5, 0.5, 1.0], y.dtype), jnp.array([1.0, 2.0, 2.0, 1.0], y.dtype) / 6
        (_, total), _ = jax.lax.scan(stage, (jnp.zeros_like(y), jnp.zeros_like(y)), stages)
        y1 = kicked(y + total, middle, t1)
        return y1, None, {"y0": y0, "y1": y1}, None, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)
