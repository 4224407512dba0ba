"""The time step of the flows."""

from typing import ClassVar

import diffrax


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

        def change(t, y):
            return drift.vf_prod(t, y, args, drift.contr(t0, t1))

        y = kicked(y0, t0, middle)
        k1 = change(t0, y)
        k2 = change(middle, y + k1 / 2)
        k3 = change(middle, y + k2 / 2)
        k4 = change(t1, y + k3)
        y1 = kicked(y + (k1 + 2 * k2 + 2 * k3 + k4) / 6, middle, t1)
        return y1, None, {"y0": y0, "y1": y1}, None, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)
