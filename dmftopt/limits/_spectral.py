"""Functions of the sample covariance H = X^T X / delta: traces as contour integrals of deterministic equivalents."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jaxtyping import Array, Bool, Complex, Float

from ._result import Groups
from ._roots import root

# Of contours for what decays.
HEIGHT = 0.75


class Contour(NamedTuple):
    """Nodes z (node,) on the upper half of a contour around the spectrum of H; the lower half is their mirror image.

    With P_a the projector on group a and f(H) = -(1/2 pi i) times the contour integral of f(z) (H - z)^-1,

        (1/d) tr[P_a f(H)] = 2 Re sum_j one[a, j] f(z_j)
        (1/d) sum_a c_a tr[P_a u(H) Lambda v(H)] = 2 Re sum_jk (K_jk u_j v_k + K'_jk u_j v_k*),  (K, K') = self.two(c)

    for entire u, v, f that are real on the real axis.
    """

    z: Complex[Array, " node"]
    one: Complex[Array, "group node"]
    resolvent: Complex[Array, "group node"]
    pair: Complex[Array, "2 node node"]
    field_weights: Float[Array, " group"]
    good: Bool[Array, ""]

    def two(self, coefficients: Float[Array, " group"]) -> Complex[Array, "2 node node"]:
        c = (coefficients * self.field_weights).astype(self.z.dtype)
        left = c[:, None] * self.resolvent
        right = jnp.stack([self.resolvent, jnp.conj(self.resolvent)])
        return self.pair * jnp.einsum("aj,sak->sjk", left, right)


def companion(z: Complex[Array, " node"], groups: Groups) -> tuple[Complex[Array, " node"], Bool[Array, ""]]:
    """m(z) = 1 / (-z + (1/delta) sum_a omega_a lambda_a / (1 + lambda_a m)) for Im z > 0, on the branch Im m > 0, and whether
    it was found. Silverstein and Bai, J. Multivariate Anal. 54 (1995) 175."""

    def picture(m, args):
        (x, y), eigenvalues, weights, delta = args
        m = jax.lax.complex(m[0], m[1])
        m = 1 / (-jax.lax.complex(x, y) + jnp.sum(weights / (1 + eigenvalues * m)) / delta)
        return jnp.stack([m.real, m.imag])

    def solve(z):
        args = ((z.real, z.imag), *(a.astype(z.dtype) for a in (groups.eigenvalues, groups.field_weights, groups.delta)))
        # The iteration contracts everywhere in the upper half plane, so it finds the branch; Newton only finishes.
        start = jnp.stack([(-1 / z).real, (-1 / z).imag])
        iteration = optimistix.FixedPointIteration(rtol=1e-3, atol=0.0)
        near = optimistix.fixed_point(picture, iteration, start, jax.lax.stop_gradient(args), max_steps=2000, throw=False)
        near = jax.lax.stop_gradient(near.value)
        size = jnp.sqrt(jnp.sum(near**2))

        # In units of the first guess, so that one absolute tolerance serves m of any size.
        def excess(m):
            return picture(m * size, args) / size - m

        m = root(excess, near / size, tolerance, 32)
        return m * size, jnp.all(jnp.abs(excess(m)) < 100 * tolerance)

    tolerance = 64 * float(jnp.finfo(z.real.dtype).eps)
    m, converged = jax.vmap(solve)(z)
    return jax.lax.complex(m[:, 0], m[:, 1]), jnp.all(converged) & jnp.all(m[:, 1] > 0)


class Ellipses(NamedTuple):
    """Around the spectrum in w = log(z + eps), `half` to both sides of `center`. Paths are free, so they carry no derivative."""

    center: Float[Array, ""]
    half: Float[Array, ""]
    eps: Float[Array, ""]

    def at(self, height: Array | float, angle: Float[Array, " node"]) -> tuple[Complex[Array, " node"], Complex[Array, " node"]]:
        """z on the ellipse of this height, and its derivative in the angle."""
        axis = jnp.sqrt(self.half**2 + height**2)
        w = jax.lax.complex(self.center + axis * jnp.cos(angle), height * jnp.sin(angle))
        shifted = jnp.exp(w)
        return shifted - self.eps.astype(w.dtype), shifted * jax.lax.complex(-axis * jnp.sin(angle), height * jnp.cos(angle))


def ellipses(groups: Groups, slowest: Array) -> Ellipses:
    """Those of `contour`."""
    dtype, delta = groups.eigenvalues.dtype, groups.delta
    root = 1 / jnp.sqrt(delta)
    top = jnp.max(groups.eigenvalues) * (1 + root) ** 2
    bottom = jnp.where(delta > 1, jnp.min(groups.eigenvalues) * (1 - root) ** 2, 0.0)
    eps = 1 / jnp.maximum(slowest, 1 / top)
    top, bottom, eps = (jax.lax.stop_gradient(jnp.asarray(a, dtype)) for a in (top, bottom, eps))
    right, left = jnp.log(top + eps), jnp.log(bottom + eps)
    return Ellipses(0.5 * (right + left), 0.5 * (right - left), eps)


def contour(groups: Groups, slowest: Array, nodes: int, height: Array | float = HEIGHT) -> Contour:
    """The contour for functions such as exp(-2 A z) with A = `slowest`, and the deterministic equivalents

        (H - z)^-1 ~ -1 / (z (1 + m lambda_a)) = G_a(z)
        (H - z1)^-1 Lambda (H - z2)^-1 ~ G(z1) Lambda G(z2) / (1 - m1 m2 I),
        I = (1/delta) sum_a omega_a lambda_a² / ((1 + m1 lambda_a) (1 + m2 lambda_a))

    (Hachem, Loubaton and Najim, arXiv:math/0507172; checked against random matrices in the tests.)

    In w = log(z + eps), eps = 1 / A, slow modes are as wide as fast ones. The contour is an ellipse in w with the spectrum
    between its foci, of `height` 0.75: half way between the spectrum and |Im w| = pi/2, beyond which Re z < -eps and exp(-2 A z)
    explodes. The trapezoidal rule in the angle converges like exp(-2 nodes asinh(height / half the length of the spectrum)).
    """
    angle = jnp.asarray((np.arange(nodes) + 0.5) * np.pi / nodes, groups.eigenvalues.dtype)
    z, slope = ellipses(groups, slowest).at(height, angle)
    # d z / (2 pi i), with d angle = pi / nodes.
    step = slope / (2j * nodes)

    m, good = companion(z, groups)
    eigenvalues, weights = (a.astype(z.dtype)[:, None] for a in (groups.eigenvalues, groups.weights))
    resolvent = step[None] / (z[None] * (1 + m[None] * eigenvalues))
    shrunk = eigenvalues / (1 + m[None] * eigenvalues)
    memory = jnp.einsum("aj,sak->sjk", weights * shrunk, jnp.stack([shrunk, jnp.conj(shrunk)])) / groups.delta.astype(z.dtype)
    pair = 1 / (1 - m[None, :, None] * jnp.stack([m, jnp.conj(m)])[:, None, :] * memory)
    one = weights * resolvent
    # (1/d) tr P_a = omega_a and (1/d) tr[P_a H] = omega_a lambda_a test branch and path together.
    sums = jnp.stack([2 * jnp.sum(one, axis=1).real, 2 * jnp.sum(one * z[None], axis=1).real / groups.eigenvalues])
    accurate = jnp.all(jnp.abs(sums / groups.weights[None] - 1) < 1e-3)
    return Contour(z, one, resolvent, pair, groups.field_weights, good & accurate)


def ridge_shrinkage(groups: Groups, ridge: Array) -> Float[Array, ""]:
    """k = ridge m(-ridge) in (0, 1), for which (H + ridge)^-1 is equivalent to 1 / (ridge + lambda_a k)."""

    def excess(k):
        return k * (1 + jnp.sum(groups.field_weights / (ridge + groups.eigenvalues * k)) / groups.delta) - 1

    # Increasing and concave in k: Newton's method from 0 climbs to the root without ever passing it.
    return root(excess, jnp.zeros_like(ridge), 16 * float(jnp.finfo(ridge.dtype).eps), 64)
