"""The time step of the flows."""

from typing import ClassVar

import diffrax
import jax
import jax.numpy as jnp


class Splitting(diffrax.AbstractItoSolver):
    """Strang splitting of a drift and an Itô noise: the drift over half the step by Heun's third-order method, the noise over all
    of it, the drift over the other half.

    The noise, of increments W1 and W2 over the halves of the step, is

        y + diffusion(y) W1 + diffusion(y') W2,    y' = y + sqrt(2) diffusion(y) W1.

    The sqrt(2) makes the covariance right to second order in the step (two steps of Euler's method have half of what is due
    there): where velocities are linear, as of least squares, moments up to the second are of weak order 2, whatever the size of
    the noise. Otherwise third moments within a step are of first order, at 0.29 times the error of Euler's method.

    For `diffrax.MultiTerm(ODETerm, ControlTerm)` on an array, with fixed steps. Stable up to a rate of the drift times the step
    of 5. In time eta * steps a modified flow has noise of generator eta A, and one SGD step is a time step of eta. Its weak error
    is then of order eta³, one below what it resolves: the splitting's is eta² [D, [D, eta A]], the noise's eta (eta A)², Heun's
    eta³. Euler's method for the drift would have an error of order eta, and Heun's of second order is for Stratonovich's
    integral.
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

        def moved(y, start):
            """The drift over half the step."""

            # The three stages in a loop: compiled once.
            def stage(state, coefficients):
                change, total = state
                at, weight = coefficients
                control = drift.contr(start, start + size / 2)
                change = drift.vf_prod(start + at * size / 2, y + at * change, args, control)
                return (change, total + weight * change), None

            stages = jnp.array([0.0, 1.0, 2.0], y.dtype) / 3, jnp.array([1.0, 0.0, 3.0], y.dtype) / 4
            (_, total), _ = jax.lax.scan(stage, (jnp.zeros_like(y), jnp.zeros_like(y)), stages)
            return y + total

        y = moved(y0, t0)
        first = noise.vf_prod(middle, y, args, noise.contr(t0, middle))
        second = noise.vf_prod(middle, y + 2**0.5 * first, args, noise.contr(middle, t1))
        y1 = moved(y + first + second, middle)
        return y1, None, {"y0": y0, "y1": y1}, None, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)
