"""The response of the weights, read off the noise: equation (22) of README.md."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..numerics.matrices import inverse_root, rank_floor
from ..problem import Problem
from ._motion import decay_factors
from ._solver import Inputs
from ._step import AbstractStep


def is_told(problem: Problem, inputs: Inputs, random: bool) -> bool:
    """Whether the noise tells the response. Kicks of parameters are no kicks of the weights; what several columns do in
    directions that the loss does not see is known with the plain ridge only. The last step of an epoch has no noise."""
    several = problem.m > 1 and (inputs.momentum is not None or not problem.linear_weights)
    return random and problem.direct and not several and inputs.epoch_start is None


def response(
    problem: Problem,
    step: AbstractStep,
    inputs: Inputs,
    reached: Float[Array, "time m group time m"],
    added: Float[Array, "time m group time m"],
    curvature: Float[Array, "time m m"],
) -> Float[Array, "time step m m"]:
    """R(k, j) from the normals of the swings, which are kicks of known size: those of a step reach theta_k through all that they
    added to the weights, reached(k, zeta) = sum_i R(k, i) added(i, zeta).

    Block triangular in (i, zeta) with the swing itself on the diagonal, so well conditioned. A step without noise (learning
    rate 0) moves nothing: a kick there is one in the step before. In directions of the columns that the loss does not see
    (the sum of a softmax's) there is no noise, and a kick only shrinks with the ridge. All NaN where the noise cannot tell: the
    first step has none, or none in directions that the loss does see (hidden units that are equal).
    """
    # (group, time, m, step, m)
    reached, added = (jnp.moveaxis(a, 2, 0)[:, :, :, :-1] for a in (reached, added[:-1]))
    groups, times, m, steps, _ = reached.shape
    own = jnp.moveaxis(jnp.diagonal(added, axis1=1, axis2=3), -1, 1)
    inverse = jax.vmap(jax.vmap(_pseudo_inverse))(own)
    reached, added = (jnp.einsum("gkajb,gjbc->gkajc", a, inverse) for a in (reached, added))
    earlier = jnp.tril(jnp.ones((steps, steps)), -1)[None, :, None, :, None]
    lower = (added * earlier).reshape(groups, steps * m, steps * m) + jnp.eye(steps * m, dtype=added.dtype)[None]
    per_group = jax.vmap(_divided)(reached.reshape(groups, times * m, steps * m), lower).reshape(reached.shape)
    shares = problem.features.weights * problem.features.eigenvalues
    result = jnp.einsum("g,gkajb->kjab", shares, per_group)
    told = jnp.ones(steps, bool)
    if m > 1:
        unseen = jnp.eye(m)[None, None] - own @ inverse
        kept = jax.vmap(_products_between)(decay_factors(step, inputs, problem.features, problem.delta))
        result = result + jnp.einsum("g,gkj,gjab->kjab", shares, kept, unseen)
        felt = jnp.max(jnp.abs(curvature[None, :-1] @ unseen), axis=(0, 2, 3))
        told = felt <= jnp.finfo(felt.dtype).eps ** 0.5 * jnp.max(jnp.abs(curvature[:-1]), axis=(1, 2))
    noisy = jnp.any(own != 0, axis=(0, 2, 3))
    result = jnp.where(noisy[0] & jnp.all(told | ~noisy), result, jnp.nan)
    before = jax.lax.cummax(jnp.where(noisy, jnp.arange(steps), 0))
    after = jnp.arange(times)[:, None] > jnp.arange(steps)[None]
    return jnp.where(after[..., None, None], result[:, before], 0.0)


def _pseudo_inverse(matrix: Float[Array, "m m"]) -> Float[Array, "m m"]:
    if matrix.shape == (1, 1):
        return jnp.where(matrix == 0, 0.0, 1 / jnp.where(matrix == 0, 1.0, matrix))
    root = inverse_root(matrix.T @ matrix, rank_floor(matrix.T @ matrix))
    return root @ root @ matrix.T


def _products_between(factors: Float[Array, " step"]) -> Float[Array, "time step"]:
    """Entry (k, j): the product of factors j + 1 to k - 1, 0 for k <= j."""

    def add(row, inputs):
        k, factor = inputs
        row = (row * factor).at[k].set(1.0)
        return row, row

    start = jnp.zeros_like(factors)
    _, rows = jax.lax.scan(add, start, (jnp.arange(factors.size), factors))
    return jnp.concatenate([start[None], rows])


def _divided(numerator: Float[Array, "row n"], lower: Float[Array, "n n"]) -> Float[Array, "row n"]:
    """numerator @ inverse(lower). By hand: batched triangular solves of LAPACK, two at once, can hang jaxlib's CPU threads."""

    def substituted(matrix, b, upper):
        def row(k, x):
            k = matrix.shape[0] - 1 - k if upper else k
            return x.at[k].set((b[k] - matrix[k] @ x) / matrix[k, k])

        return jax.lax.fori_loop(0, matrix.shape[0], row, jnp.zeros_like(b))

    return jax.lax.custom_linear_solve(
        lambda x: lower.T @ x,
        numerator.T,
        lambda _, b: substituted(lower.T, b, True),
        lambda _, b: substituted(lower, b, False),
    ).T
