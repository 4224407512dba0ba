"""Samples, replicates and sweeps over many devices: the answer of one device, and nothing large on the wire."""

import math
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import problem
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import dmftopt
from dmftopt import noise, tasks
from dmftopt.dmft._sobol import scrambled_sobol

STEPS, SAMPLES = 6, 512
GRID = dmftopt.TimeGrid.uniform(3.0, STEPS)
KEY = jax.random.key(20260)
# Sharding changes the order of summation. A relative rounding error of 1e-16 in a sum is divided by the length of each new
# direction, at least sqrt(DROP) = 3e-5, in the worst case at every step; on these few steps nothing comes near 1e-10.
RTOL = 1e-10

pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="needs XLA_FLAGS=--xla_force_host_platform_device_count=4")


def mesh(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), devices=jax.devices()[: math.prod(axes.values())])


def solve(mesh=None, rate=1.0, task=None, law=noise.Brownian(), delta=2.0, **options):
    protocol = dmftopt.Protocol(rate, ridge=0.1)
    return dmftopt.solve(problem(task, delta=delta), protocol, GRID, noise=law, samples=SAMPLES, key=KEY, mesh=mesh, **options)


def assert_same(result, expected):
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=RTOL, atol=RTOL * np.max(np.abs(b)))


def collectives(compiled):
    """(computation, operation, elements) of every collective in the compiled module, and the names of its loops' bodies."""
    text = compiled.as_text()
    found, computation = [], ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%(\S+) \(", line):
            computation = header[1]
        if op := re.search(r"= (.*?) (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", line):
            sizes = [math.prod(int(n) for n in dims.split(",") if n) for dims in re.findall(r"\w\[([\d,]*)\]", op[1])]
            found.append((computation, op[2], sum(sizes)))
    return found, set(re.findall(r"body=%([\w.\-]+)", text))


@pytest.mark.parametrize("shards", [2, 4, 64])
def test_the_same_points_for_every_number_of_devices(shards):
    samples = 128
    points = np.asarray(scrambled_sobol(KEY, 5, samples)).reshape(5, 2, shards, -1)
    sharded = np.asarray(scrambled_sobol(KEY, 5, samples, shards)).reshape(5, shards, 2, -1)
    np.testing.assert_array_equal(sharded, points.swapaxes(1, 2))


# The cost of these tests is compilation: few cases, each of them rich.
CASES = {
    "logistic-Brownian": ({"task": tasks.Logistic("logistic")}, {"samples": 4}),
    "least squares-NoNoise": ({"task": tasks.LeastSquares(0.3), "law": noise.NoNoise(), "replicates": 4}, {"replicates": 2}),
}


@pytest.mark.parametrize(
    "options, axes",
    [pytest.param(*case, marks=pytest.mark.slow) if "NoNoise" in name else case for name, case in CASES.items()],
    ids=CASES,
)
def test_same_result(options, axes):
    result = solve(mesh(**axes), **options)
    assert_same(result, solve(**options))
    assert all(a.sharding.is_fully_replicated for a in jax.tree.leaves(result))


@pytest.mark.slow
def test_everything_at_once_and_nothing_large_is_exchanged():
    options = {"law": noise.Poisson(), "richardson": True, "estimate_bias": True, "replicates": 2}
    rate = jnp.array(1.0)
    compiled = jax.jit(partial(solve, mesh(replicates=2, samples=2), **options)).lower(rate).compile()
    assert_same(compiled(rate), solve(None, rate, **options))
    # Numbers per step (twice as many for Richardson), flags of the loops over the samples, and two-time observables over the
    # replicates, which XLA may put in one message for all.
    found, _ = collectives(compiled)
    assert {operation for _, operation, _ in found} <= {"all-reduce", "all-gather"}
    assert max(size for *_, size in found) < SAMPLES


def final(values, mesh, **options):
    rate, delta = values
    s = solve(mesh, rate, delta=delta, **options)
    return s.test_risk[-1] + s.train_loss[-2]


VALUES = (jnp.array(1.0), jnp.array(2.0))


@pytest.mark.slow
def test_same_gradient_and_two_reductions_per_step():
    """Forward: one reduction for each pass of Gram-Schmidt. Backward: those two again, and one for each of the three sets of
    coefficients handed out to the shards. Outside the loops, small change."""
    # A mesh with automatic axes is taken as it is; solve also runs inside the caller's own jit.
    both = mesh(samples=2, replicates=2)
    automatic = jax.sharding.Mesh(both.devices, both.axis_names, axis_types=(AxisType.Auto,) * 2)
    value_and_gradient = jax.jit(jax.value_and_grad(partial(final, replicates=2)), static_argnums=1)
    compiled = value_and_gradient.lower(VALUES, automatic).compile()
    assert_same(compiled(VALUES), value_and_gradient(VALUES, None))
    found, bodies = collectives(compiled)
    inside = [(name, operation, size) for name, operation, size in found if name in bodies and size > 1]
    # The smaller one is a reduction in the loop over the replicates: see the zero that starts the history.
    counts = sorted(Counter(name for name, operation, size in inside if operation == "all-reduce").values())
    assert counts[-2:] == [2, 5], found
    # 5 vectors over the directions or the innovations, and a few numbers.
    assert max(size for *_, size in inside) <= 5 * (STEPS + 2) + 10
    assert max(size for *_, size in found) < SAMPLES


def test_sweep_over_devices():
    """The batch axis of a vmap over protocols and problems on a mesh of its own: no exchange at all."""
    rates, deltas = jnp.array([0.5, 1.0, 1.5, 2.0]), jnp.array([1.0, 2.0, 3.0, 4.0])
    sweep = jax.make_mesh((4,), ("sweep",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(sweep, PartitionSpec("sweep"))

    @jax.jit
    def observables(rates, deltas):
        return jax.vmap(lambda rate, delta: solve(None, rate, delta=delta).observables)(rates, deltas)

    sharded = jax.device_put((rates, deltas), spread)
    compiled = observables.lower(*sharded).compile()
    result = compiled(*sharded)
    assert result.test_risk.sharding.is_equivalent_to(spread, 2)
    assert_same(result, observables(rates, deltas))
    found, _ = collectives(compiled)
    assert found == []


MESHES = {
    "unknown axis": (lambda: solve(mesh(data=2)), ValueError, 'mesh must have axes named "samples" or "replicates"'),
    "not a mesh": (lambda: solve(jax.devices()), TypeError, "mesh must be a Mesh"),
    "three for the samples": (lambda: solve(mesh(samples=3)), ValueError, "power of two that divides samples / 2 = 256, got 3"),
    "replicates do not divide": (
        lambda: solve(mesh(replicates=2), replicates=3),
        ValueError,
        "must divide replicates = 3, got 2",
    ),
}


@pytest.mark.parametrize("call, kind, message", MESHES.values(), ids=MESHES)
def test_bad_meshes(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_failure_is_raised_on_a_mesh():
    with pytest.raises(dmftopt.SolveError, match="unstable"):
        solve(mesh(samples=2), 1000.0, tasks.LeastSquares(), noise.NoNoise(), step=dmftopt.DiscreteStep())


@partial(jax.jit, static_argnums=1)
@partial(jax.value_and_grad, has_aux=True)
def with_observables(rate, mesh):
    s = solve(mesh, rate)
    return s.test_risk[-1], s


# Each of two processes saves all that it got.
WORKER = """
import sys
import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import test_sharding as t

assert jax.process_count() == 2 and jax.device_count() == 4
mesh = jax.make_mesh((4,), ("samples",))
result = t.with_observables(1.0, mesh)
np.savez(sys.argv[3], *jax.tree.leaves(jax.tree.map(np.asarray, result)))
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    root = os.path.dirname(__file__)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join([root, os.path.dirname(root), os.environ.get("PYTHONPATH", "")]),
    }
    files = [tmp_path / f"{i}.npz" for i in range(2)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(i), str(file)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i, file in enumerate(files)
    ]  # fmt: skip
    try:
        for worker in workers:
            output, _ = worker.communicate(timeout=120)
            assert worker.returncode == 0, output
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    expected = jax.tree.leaves(with_observables(1.0, None))
    for file in files:
        with np.load(file) as got:
            assert_same(list(got.values()), expected)
