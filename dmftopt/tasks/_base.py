import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Bool, Float

from ..quadrature import safe_sqrt


class AbstractTask(eqx.Module):
    """A loss and a label law. A new task needs only `loss` and `label`; everything else has a default.

    All methods are elementwise in one student field r = x·theta and one teacher field w_star = x·theta_star.

    Gradients with respect to the label law flow through `label`. That is exact when the label is differentiable in its
    inputs, or when it does not depend on the parameter at all (a sign and the teacher's scale). A label that jumps where a
    parameter moves (a random class) needs its own `sample`, as `Logistic` has.

    Float fields of a task arrive as traced arrays, so that they can be swept and differentiated; mark what steers Python
    control flow `eqx.field(static=True)`.
    """

    @abc.abstractmethod
    def loss(self, r: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Loss of the prediction r for the label y, elementwise."""

    @abc.abstractmethod
    def label(self, w_star: Float[Array, "..."], noise: Float[Array, "..."]) -> Float[Array, "..."]:
        """Label of the teacher field w_star; `noise` is uniform on (0, 1) and independent (`ndtri(noise)` is normal)."""

    def gradient(self, r: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
        """l(r, y) = d loss / d r."""
        return jax.grad(lambda r: jnp.sum(self.loss(r, y)))(r)

    def curvature(self, r: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
        """d l / d r. It only sets the rate of the exponential step, so a kinked loss loses accuracy, not correctness."""
        return jax.grad(lambda r: jnp.sum(self.gradient(r, y)))(r)

    def error(self, r: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."] | None:
        """0-1 error of the prediction, or None where the task is not a classification."""
        return None

    def valid(self) -> Bool[Array, ""]:
        """Whether parameters are in their domain, for values that could not be checked because they are traced."""
        return jnp.asarray(True)

    def sample(self, u_teacher: Float[Array, "..."], u_label: Float[Array, "..."], teacher_scale: Any):
        """Training samples from uniforms on (0, 1): the teacher field divided by `teacher_scale`, and the label."""
        xi = ndtri(u_teacher)
        return xi, self.label(teacher_scale * xi, u_label)

    def population(self, teacher_scale: Float[Array, ""]) -> tuple[Float[Array, " node"], ...]:
        """Nodes (teacher field / `teacher_scale`, label) and weights, summing to 1, for expectations over a fresh sample.

        By default 4096 fixed low-discrepancy points with equal weights: good to about 1e-3 for labels with a jump. Override
        it where a better rule is known. Nodes may use a symmetry of loss and labels.
        """
        index = jnp.arange(1, 4097, dtype=jnp.asarray(teacher_scale).dtype)
        # R2 sequence (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences").
        plastic = 1.32471795724474602596
        xi, y = self.sample((0.5 + index / plastic) % 1.0, (0.5 + index / plastic**2) % 1.0, teacher_scale)
        return xi, y, jnp.full_like(xi, 1 / 4096)

    def test_risk(self, Q: Float[Array, "..."], O: Float[Array, "..."], rho: Float[Array, ""]) -> Float[Array, "..."]:
        """E[loss(w, label(w_star))] for (w, w_star) ~ N(0, [[Q, O], [O, rho]]).

        By default the nodes of `population` over (w_star, label noise) times 15 Gauss-Hermite nodes over w given w_star.
        Override it where a closed form exists.
        """
        return self._population_mean(self.loss, Q, O, rho)

    def test_error(self, Q: Float[Array, "..."], O: Float[Array, "..."], rho: Float[Array, ""]):
        """E[error(w, label(w_star))], or None where the task is not a classification."""
        if self.error(jnp.zeros(()), jnp.zeros(())) is None:
            return None
        return self._population_mean(self.error, Q, O, rho)

    def _population_mean(self, function, Q, O, rho):
        dtype = jnp.asarray(Q).dtype
        xi, y, shares = self.population(safe_sqrt(jnp.asarray(rho, dtype)))
        nodes, weights = (jnp.asarray(a, dtype) for a in np.polynomial.hermite_e.hermegauss(15))

        def at(q, o):
            rest = safe_sqrt(q - o**2 / rho)
            w = o / safe_sqrt(rho) * xi[:, None] + rest * nodes
            return shares @ (function(w, y[:, None]) @ (weights / jnp.sum(weights)))

        return jax.lax.map(lambda qo: at(*qo), (jnp.ravel(Q), jnp.ravel(O))).reshape(jnp.shape(Q))
