"""The kernel law of loss curves, by linear recursions over segments of constant learning rate."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._register import register_part

# Nodes n per unit of the logarithm of a relaxation rate. By Poisson's sum the trapezoid rule errs by a
# share 2 |Gamma(p + 2 pi i n)| / Gamma(p) of the kernel, about
# 5 (2 pi n)^(p - 1/2) exp(-pi² n) / Gamma(p): 2e-7 for p = 1.5, 1e-4 for p = 6.
NODES = 2.0


@register_part
class KernelLaw(eqx.Module):
    """The loss before step k of a run, in numbers of its own units,

        L_k = floor + E_k,
        E_k = bias_scale tau_k^-bias_exponent
            + noise_scale sum_{j<k} w_j (1 + noise_rate (tau_k - tau_j))^-noise_exponent (1 + feedback (E_j + E_{j+1}) / 2),
        w_j = peak² (eta_j / peak)^rate_exponent b / b_j,

    with learning rates eta_j, batch sizes b_j (b: `batch_size`, that of reference), tau_k = sum_{j<k} eta_j (in the bias at least
    `peak`) and E_0 = 0. For rate_exponent 2 this is least-squares SGD on a power-law spectrum: bias, and gradient noise that
    relaxes; feedback is the noise that the excess loss itself makes. `peak`: the largest learning rate seen. `horizon`: the
    largest tau / peak seen. Leaves may have a leading axis, of bootstrap draws.
    """

    floor: Float[Array | np.ndarray, "*draw"]
    bias_scale: Float[Array | np.ndarray, "*draw"]
    bias_exponent: Float[Array | np.ndarray, "*draw"]
    noise_scale: Float[Array | np.ndarray, "*draw"]
    noise_rate: Float[Array | np.ndarray, "*draw"]
    noise_exponent: Float[Array | np.ndarray, "*draw"]
    rate_exponent: Float[Array | np.ndarray, "*draw"]
    feedback: Float[Array | np.ndarray, "*draw"]
    peak: float = eqx.field(static=True)
    horizon: float = eqx.field(static=True)
    batch_size: float = eqx.field(static=True)

    def loop_gain(self, rate: float, batch_size: float, steps: int) -> float:
        """Noise that a constant unit of noise makes within so many steps at a constant rate, for a single draw: from 1 on it
        feeds on itself without end."""
        relative = rate / self.peak
        feedback = self.noise_scale * self.peak**2 * self.feedback * relative**self.rate_exponent * self.batch_size / batch_size
        values = (self.bias_exponent, self.noise_rate * rate, self.noise_exponent, self.rate_exponent, feedback)
        with jax.enable_x64(True):
            return float(loop_gain(Shape(*map(jnp.asarray, values)), float(steps)))

    def loss(self, segments: "Segments") -> Float[Array, "run segment"]:
        """At the end of every segment, for a single draw. Differentiable in the segments' rates and in the parameters."""
        law = jax.tree.map(jnp.asarray, self)
        noise = law.noise_scale * self.peak**2
        shape = Shape(law.bias_exponent, law.noise_rate * self.peak, law.noise_exponent, law.rate_exponent, noise * law.feedback)
        bias, response = parts(shape, segments, relaxation_rates(self.horizon))
        return law.floor + law.bias_scale * self.peak**-law.bias_exponent * bias + noise * response


class Segments(eqx.Module):
    """Runs cut into segments of constant learning rate, one row per run, padded by segments of no steps.

    `steps`: how many. `rate`: learning rate / peak. `batch`: batch size / that of reference."""

    steps: Float[Array, "run segment"]
    rate: Float[Array, "run segment"]
    batch: Float[Array, "run segment"]


class Shape(eqx.Module):
    """What the law depends on nonlinearly, in units of the peak: time is tau / peak, feedback that of a unit of noise."""

    bias_exponent: Float[Array, ""]
    noise_rate: Float[Array, ""]
    noise_exponent: Float[Array, ""]
    rate_exponent: Float[Array, ""]
    feedback: Float[Array, ""]


def relaxation_rates(horizon: float) -> Float[Array, " node"]:
    """Of exponentials whose mixture is the kernel, log-spaced: from slower than anything that a hundred runs of `horizon` show to
    gone within a step at the peak."""
    return jnp.exp(jnp.arange(math.log(1e-3 / horizon), math.log(60.0), 1 / NODES))


def loop_gain(shape: Shape, horizon: float) -> Float[Array, ""]:
    """Noise made by a constant unit of noise within `horizon` steps at the peak: below 1 feedback is stable."""
    rates = relaxation_rates(horizon)
    weights = kernel_weights(shape, rates)
    return shape.feedback * (weights[-1] * horizon - jnp.sum(weights[:-1] * jnp.expm1(-rates * horizon) / jnp.expm1(rates)))


def kernel_weights(shape: Shape, rates: Float[Array, " node"]) -> Float[Array, " node+1"]:
    """(1 + c x)^-p = sum_q w_q exp(-r_q x) + w_0: a Gamma(p) law of rates r / c, by the trapezoid rule in log r. What lies
    below all rates does not relax."""
    log_z = jnp.log(rates / shape.noise_rate)
    p = shape.noise_exponent
    weights = jnp.exp(p * log_z - jnp.exp(log_z) - jax.scipy.special.gammaln(p)) / NODES
    return jnp.append(weights, 1 - weights.sum())


def parts(shape: Shape, segments: Segments, rates: Float[Array, " node"]) -> tuple[Float[Array, "run segment"], ...]:
    """At the end of every segment, bias and noise of unit amplitude:

        a = tau^-s + f M a,  n = M (1 + f n),  (M g)_k = sum_{j<k} h_j^gamma / b_j K(tau_k - tau_j) g_j

    with rates h and feedback f. A segment's sum is exact where its rate is constant; g takes the mean of its ends.
    """
    weights = kernel_weights(shape, rates)
    rates = jnp.append(rates, 0.0)

    def run(steps, rate, batch):
        bias = jnp.maximum(jnp.cumsum(steps * rate), 1.0) ** -shape.bias_exponent
        per_step = rates[None, :] * rate[:, None]
        decay = jnp.exp(-per_step * steps[:, None])
        # sum_{i=1}^{n} exp(-i x): every step's noise has relaxed by the end of that step.
        safe = jnp.maximum(per_step, 1e-12)
        total = jnp.where(per_step > 1e-12, jnp.exp(-safe) * jnp.expm1(-safe * steps[:, None]) / jnp.expm1(-safe), steps[:, None])
        gain = (rate**shape.rate_exponent / batch)[:, None] * total

        def step(state, inputs):
            memory, excess = state
            decay, gain, source = inputs
            # The source within a segment by the trapezoid rule; the end of it enters what it causes.
            half = 0.5 * shape.feedback
            rest = memory * decay[None, :] + (jnp.array([0.0, 1.0]) + half * excess)[:, None] * gain[None, :]
            own = weights @ gain
            end = (source + rest @ weights) / (1 - half * own)
            return (rest + half * end[:, None] * gain[None, :], end), end

        start = (jnp.zeros((2, rates.size)), jnp.array([0.0, 0.0]))
        sources = jnp.stack([bias, jnp.zeros_like(bias)], axis=1)
        return jax.lax.scan(step, start, (decay, gain, sources))[1].T

    both = jax.vmap(run)(segments.steps, segments.rate, segments.batch)
    return both[:, 0], both[:, 1]
