"""The random numbers of one replicate of the scheme."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from ..grid import TimeGrid
from ..noise import AbstractNoise
from ._sobol import scrambled_sobol


class Points(eqx.Module):
    """Uniforms of the teacher field and the label, normal innovations and standardized multipliers.

    `innovations[j]` belongs to the weight-side direction phi_{j+1}: first the initial student's, then one per step.
    """

    teacher: Float[Array, " sample"]
    label: Float[Array, " sample"]
    innovations: Float[Array, "step+1 sample"]
    multipliers: Float[Array, "step sample"]

    @property
    def samples(self) -> int:
        return self.teacher.shape[0]

    def half(self, which: int) -> "Points":
        """The first (0) or second (1) half of the samples: each is a Sobol set of its own."""
        return jax.tree.map(lambda a: jnp.split(a, 2, axis=-1)[which], self)

    def coarsened(self, fine: TimeGrid, noise: AbstractNoise, rate: Float[Array, " step"]) -> "Points":
        """The same randomness on the grid of every second time: normalized sums of pairs."""

        def pairs(values, squared_weights):
            w = jnp.sqrt(squared_weights).reshape(-1, 2, 1)
            total = jnp.sum(w * values.reshape(-1, 2, self.samples), axis=1)
            return total / jnp.sqrt(jnp.sum(w**2, axis=1))

        steps = pairs(self.innovations[1:], jax.lax.stop_gradient(fine.step_sizes))
        multipliers = pairs(self.multipliers, noise.coarsening(jax.lax.stop_gradient(fine.step_sizes), rate))
        return Points(self.teacher, self.label, jnp.concatenate([self.innovations[:1], steps]), multipliers)


def draw(key: Array, samples: int, grid: TimeGrid, noise: AbstractNoise, rate: Float[Array, " step"]) -> Points:
    """Scrambled Sobol points, dimensions in the order teacher, label, initial student, then innovations and multipliers
    in turn; each family rotated so that its first dimensions move the whole path (principal components)."""
    uniforms = scrambled_sobol(key, dimensions(grid.steps, noise), samples)
    rotation = grid.rotation()
    rest = uniforms[3:]
    if noise.deterministic:
        innovations, multipliers = rest, jnp.zeros_like(rest)
    else:
        innovations, multipliers = rest[0::2], noise.standardized(rest[1::2], rotation, rate)
    innovations = jnp.concatenate([ndtri(uniforms[2:3]), rotation @ ndtri(innovations)])
    return Points(uniforms[0], uniforms[1], innovations, multipliers)


def dimensions(steps: int, noise: AbstractNoise) -> int:
    return 3 + (1 if noise.deterministic else 2) * steps
