import os

# Before JAX starts: four CPU devices, so that anything sharded is exercised. And LLVM does not optimize: most of the time is
# compilation, which takes a third less; what simulates long takes a quarter more.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")

import equinox as eqx
import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key():
    return jax.random.key(20260)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Hundreds of them in one process exhaust its memory maps, and LLVM aborts (and long before that the system is slow)."""
    yield
    eqx.clear_caches()
    jax.clear_caches()
