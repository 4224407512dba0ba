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

    `innovations[j]` belongs to the weight-side direction phi_j: row 0, the teacher's, is zero here (the task draws it), row 1
    is the initial student's, then one row per step. `multipliers` has a last row of zeros, for the readout at the end.
    Both are laid out as the scan wants them, because a copy costs as much memory as the points themselves.

    Samples come in `shards` equal parts, one for each device; in each, those of the first half come first.
    """

    teacher: Float[Array, " sample"]
    label: Float[Array, " sample"]
    innovations: Float[Array, "step+2 sample"]
    multipliers: Float[Array, "step+1 sample"] | None
    shards: int = eqx.field(static=True, default=1)

    def half(self, which: int) -> "Points":
        """The first (0) or second (1) half of the samples: each is a Sobol set of its own."""

        def select(a):
            parts = a.reshape(*a.shape[:-1], self.shards, 2, -1)
            return parts[..., which, :].reshape(*a.shape[:-1], -1)

        return jax.tree.map(select, self)

    def coarsened(self, fine: TimeGrid, noise: AbstractNoise, rate: Float[Array, " step"]) -> "Points":
        """The same randomness on the grid of every second time: normalized sums of pairs."""

        def pairs(values, squared_weights):
            w = jnp.sqrt(squared_weights).reshape(-1, 2, 1)
            total = jnp.sum(w * values.reshape(*w.shape[:2], -1), axis=1)
            return total / jnp.sqrt(jnp.sum(w**2, axis=1))

        steps = jax.lax.stop_gradient(fine.step_sizes)
        innovations = jnp.concatenate([self.innovations[:2], pairs(self.innovations[2:], steps)])
        multipliers = self.multipliers
        if multipliers is not None:
            summed = pairs(multipliers[:-1], noise.coarsening(steps, rate))
            multipliers = jnp.concatenate([summed, multipliers[-1:]])
        return Points(self.teacher, self.label, innovations, multipliers, self.shards)


def draw(key: Array, samples: int, grid: TimeGrid, noise: AbstractNoise, rate: Float[Array, " step"], shards: int = 1) -> Points:
    """Scrambled Sobol points, dimensions in the order teacher, label, initial student, then innovations and multipliers
    in turn; each family rotated so that its first dimensions move the whole path (principal components)."""
    uniforms = scrambled_sobol(key, dimensions(grid.steps, noise), samples, shards)
    rotation = grid.rotation()
    if noise.deterministic:
        normals, multipliers = uniforms[2:], None
    else:
        normals = jnp.concatenate([uniforms[2:3], uniforms[3::2]])
        multipliers = jnp.pad(noise.standardized(uniforms[4::2], rotation, rate), ((0, 1), (0, 0)))
    with_student = jnp.zeros((grid.steps + 2, grid.steps + 1)).at[1, 0].set(1.0).at[2:, 1:].set(rotation)
    return Points(uniforms[0], uniforms[1], with_student @ ndtri(normals), multipliers, shards)


def dimensions(steps: int, noise: AbstractNoise) -> int:
    return 3 + (1 if noise.deterministic else 2) * steps
