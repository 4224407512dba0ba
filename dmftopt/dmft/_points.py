"""The random numbers of one replicate of the scheme."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int

from ..protocol.grid import TimeGrid
from ..protocol.noise import AbstractNoise, Multipliers, paired
from ._sobol import scrambled_sobol


class Points(eqx.Module):
    """Uniforms of the teacher fields and the label, normal innovations, and multipliers.

    `innovations[k]` belong to the weight-side directions phi_k of the m columns: row 0 to the initial student's, then one row per
    step. `multipliers` have a last row for the readout at the end: no noise, equal shares. Both are laid out as the scan wants
    them, because a copy costs as much memory as the points themselves.

    `entries` and `zetas` are normals for sampled weights: of the columns of teacher and student, and of the weight-side
    directions that belong to each step's gradients (first the m drifts', then the m noises'). None where weights are exact.

    Samples (and particles) come in `shards` equal parts, one for each device; in each, those of the first half come first.
    """

    teacher: Float[Array, "m_star sample"]
    label: Float[Array, " sample"]
    innovations: Float[Array, "row m sample"]
    multipliers: Multipliers | None
    entries: Float[Array, "column particle"] | None = None
    zetas: Float[Array, "row zeta particle"] | None = None
    shards: int = eqx.field(static=True, default=1)

    def half(self, which: Int[Array, ""] | int) -> "Points":
        """The first (0) or second (1) half of the samples: each is a Sobol set of its own."""

        def select(a):
            parts = a.reshape(*a.shape[:-1], self.shards, 2, -1)
            return parts[..., which, :].reshape(*a.shape[:-1], -1)

        return jax.tree.map(select, self)

    def coarsened(self, fine: TimeGrid, noise: AbstractNoise, visits: Float[Array, " step"]) -> "Points":
        """The same randomness on the grid of every second time: normalized sums of pairs."""

        steps = jax.lax.stop_gradient(fine.step_sizes)
        m = self.innovations.shape[1]

        def with_first(values):
            return jnp.concatenate([values[:1], paired(values[1:], steps)])

        def with_last(values):
            return jnp.concatenate([paired(values[:-1], steps), values[-1:]])

        zetas = self.zetas
        if zetas is not None:
            zetas = jnp.concatenate([with_first(zetas[:, :m]), with_last(zetas[:, m:])], axis=1)
        multipliers = self.multipliers
        if multipliers is not None:
            coarse = noise.coarsened(jax.tree.map(lambda a: a[:-1], multipliers), steps, visits)
            multipliers = _with_readout(coarse)
        return Points(self.teacher, self.label, with_first(self.innovations), multipliers, self.entries, zetas, self.shards)


def draw(
    key: Array,
    samples: int,
    grid: TimeGrid,
    noise: AbstractNoise,
    visits: Float[Array, " step"],
    shards: int = 1,
    m: int = 1,
    m_star: int = 1,
    particles: int = 0,
) -> Points:
    """Scrambled Sobol points, dimensions in the order teacher, label, initial student, then innovations and multipliers
    in turn; each family rotated so that its first dimensions move the whole path (principal components). For sampled weights the
    same of `particles` points, dimensions in the order teacher, student, then the zetas of each step."""
    steps, start = grid.steps, m_star + 1
    uniforms = scrambled_sobol(key, dimensions(steps, noise, m, m_star), samples, shards)
    rotation = grid.rotation()
    turns = uniforms[start + m :].reshape(steps, -1, samples)
    multipliers = None
    if not noise.deterministic:
        multipliers = _with_readout(noise.multipliers(turns[:, m], rotation, visits))
    rotated = jnp.zeros((steps + 1, steps + 1)).at[0, 0].set(1.0).at[1:, 1:].set(rotation)

    def rotate(uniforms):
        return (rotated @ ndtri(uniforms).reshape(steps + 1, -1)).reshape(uniforms.shape)

    innovations = rotate(jnp.concatenate([uniforms[start : start + m][None], turns[:, :m]]))
    entries = zetas = None
    if particles:
        parts = zeta_parts(noise)
        uniforms_of_weights = scrambled_sobol(jax.random.fold_in(key, 1), m_star + m + m * parts * (steps + 1), particles, shards)
        entries = ndtri(uniforms_of_weights[: m_star + m])
        zetas = rotate(uniforms_of_weights[m_star + m :].reshape(steps + 1, -1, particles))
        # The first gradient is a direction apart, as the initial student is; noises are increments from the first step on.
        zetas = jnp.concatenate([zetas[:, :m], jnp.roll(zetas[:, m:], -1, axis=0)], axis=1)
    return Points(uniforms[:m_star], uniforms[m_star], innovations, multipliers, entries, zetas, shards)


def _with_readout(multipliers: Multipliers) -> Multipliers:
    z, shares = multipliers
    shares = None if shares is None else jnp.pad(shares, ((0, 1), (0, 0)), constant_values=1.0)
    return Multipliers(jnp.pad(z, ((0, 1), (0, 0))), shares)


def zeta_parts(noise: AbstractNoise) -> int:
    """Directions of a gradient, per column: of its mean, and of its noise."""
    return 1 if noise.deterministic else 2


def dimensions(steps: int, noise: AbstractNoise, m: int = 1, m_star: int = 1) -> int:
    return m_star + 1 + m + (m if noise.deterministic else m + 1) * steps
