"""SGD every sample of which is new: the online limit at finite dimension, which `dmftopt.simulate` (a training set) has not."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@eqx.filter_jit
def one_pass(
    task: Any,
    eigenvalues: Float[Array, " d"],
    teacher: Float[Array, "m_star d"],
    student: Float[Array, "m d"],
    rates: Float[Array, "protocol step"],
    keys: Array,
    *,
    batch_size: int = 1,
    records: int = 1,
) -> Float[Array, "run protocol record"]:
    """Test risks after each of `records` equal parts of the steps, in one run per key, with the learning rates of several
    protocols. In run and sample j all of them see the same x and label, whatever their batch size: step k takes the samples
    k B, ..., k B + B - 1.

    x has independent Gaussian coordinates of variance eigenvalue / d. The weights start the same in every run: of what is
    Gaussian and isotropic within equal eigenvalues, only the overlaps matter.
    """
    d = eigenvalues.size
    # Tasks with a single field are given scalars.
    fields, targets = (lambda a, n=n: a[0] if n is None else a for n in (task.columns, task.teacher_columns))

    def gradient(theta, key):
        key_x, key_label = jax.random.split(key)
        x = jax.random.normal(key_x, (d,), eigenvalues.dtype) * jnp.sqrt(eigenvalues / d)
        noise = jax.random.uniform(key_label, (), eigenvalues.dtype, minval=1e-7, maxval=1 - 1e-7)
        y = task.label(targets(teacher @ x), noise)
        return jax.grad(lambda theta: task.loss(fields(theta @ x), y))(theta)

    def risk(theta):
        weighted = theta * eigenvalues[None] / d
        overlaps = weighted @ theta.T, weighted @ teacher.T, (teacher * eigenvalues[None] / d) @ teacher.T
        return task.test_risk(*(a[0, 0] if task.columns is None else a for a in overlaps))

    def run(rates, key):
        def step(theta, now):
            k, rate = now
            samples = jax.vmap(functools.partial(jax.random.fold_in, key))(k * batch_size + jnp.arange(batch_size))
            return theta - rate * jnp.mean(jax.vmap(gradient, (None, 0))(theta, samples), axis=0), None

        def record(theta, part):
            theta, _ = jax.lax.scan(step, theta, part)
            return theta, risk(theta)

        parts = (jnp.arange(rates.size).reshape(records, -1), rates.reshape(records, -1))
        return jax.lax.scan(record, student, parts)[1]

    return jax.lax.map(lambda key: jax.vmap(run, (0, None))(rates, key), keys, batch_size=8)
