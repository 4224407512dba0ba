"""Samples and replicates over the devices of a mesh, by XLA's own partitioner."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .._checks import check_instance, is_concrete

SAMPLES, REPLICATES = "samples", "replicates"


def check_mesh(mesh: Any, samples: int, replicates: int) -> Mesh | None:
    """The mesh with automatic axes, which is what the partitioner wants; `jax.make_mesh` gives explicit ones."""
    if mesh is None:
        return None
    check_instance("mesh", mesh, Mesh, 'Build it with jax.make_mesh((devices,), ("samples",)).')
    if not mesh.axis_names or not set(mesh.axis_names) <= {SAMPLES, REPLICATES}:
        raise ValueError(
            f'mesh must have axes named "samples" or "replicates" or both, got {mesh.axis_names}. '
            'Build it with jax.make_mesh((devices,), ("samples",)).'
        )
    over_samples, over_replicates = axis_size(mesh, SAMPLES), axis_size(mesh, REPLICATES)
    if over_samples & (over_samples - 1) or samples % (2 * over_samples):
        raise ValueError(
            f'mesh: the size of "samples" must be a power of two that divides samples / 2 = {samples // 2}, got {over_samples}. '
            "Use a power of two of the devices, or put the others on replicates."
        )
    if replicates % over_replicates:
        raise ValueError(
            f'mesh: the size of "replicates" must divide replicates = {replicates}, got {over_replicates}. '
            "Ask for a multiple of it."
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def axis_size(mesh: Mesh | None, name: str) -> int:
    return 1 if mesh is None else mesh.shape.get(name, 1)


def replicated(tree: Any, mesh: Mesh | None) -> Any:
    """Concrete arrays on every device, in every process; a traced one is wherever its own jit has it."""
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(a):
        if not eqx.is_array(a) or not is_concrete(a):
            return a
        if everywhere.is_fully_addressable or not a.is_fully_addressable:
            return jax.device_put(a, everywhere)
        # To the devices of other processes JAX sends only what is bound to no device yet.
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(a)), impl=jax.random.key_impl(a))
        return jax.device_put(np.asarray(a), everywhere)

    return jax.tree.map(put, tree)


def constrained(tree: Any, mesh: Mesh | None, *axes: str | None) -> Any:
    """Arrays inside jit split over the mesh along their last dimensions, one name (or None) for each; none: replicated."""
    if mesh is None:
        return tree
    names = [name if name in mesh.axis_names else None for name in axes]

    def constrain(a):
        spec = PartitionSpec(*[None] * (a.ndim - len(names)), *names)
        return jax.lax.with_sharding_constraint(a, NamedSharding(mesh, spec))

    return jax.tree.map(lambda a: constrain(a) if eqx.is_array(a) else a, tree)
