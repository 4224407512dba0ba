import gc
import os
from pathlib import Path

# Most of the time is compilation and tracing. Before JAX starts, also for the processes that tests start:
# - Four CPU devices, so that anything sharded is exercised.
# - XLA's older code generator, without the passes of MLIR, and an LLVM that does not optimize: about half of the time.
#   What runs longer than that has the mark `long_run`.
# - Every program is compiled once, for all modules, both processes, and the next run.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4 --xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# - As in experiments/__init__.py.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import equinox as eqx
import jax
import jaxtyping
import pytest

# Tracing makes millions of objects that live: looking for garbage among them a hundred times less often saves a tenth.
gc.set_threshold(100_000, 50, 50)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Shapes are enforced: annotations are checked as programs are traced (the hook comes before dmftopt), and no axis is added in
# silence.
jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook("dmftopt", "typecheck.checked")


# Two processes take one file after another: what takes longest goes first, so that both end together.
LONGEST = (
    *("readme", "against_simulation", "limits", "columns", "tasks", "own", "fixed_point", "flows", "weights", "exact", "metrics"),
    *("sharding", "design", "accuracy", "gradients", "experiments", "fuzz"),
)


def pytest_collection_finish():
    # What importing made stays.
    gc.freeze()


def pytest_collection_modifyitems(items):
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def _optimized(request):
    """Simulations and populations so large that optimized code earns its compilation."""
    if request.node.get_closest_marker("long_run") is None:
        yield
        return
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def key():
    return jax.random.key(20260)


def _memory_maps() -> int:
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return 2**16


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Thousands of them in one process exhaust its memory maps (65530 by default), and LLVM aborts."""
    yield
    if _memory_maps() > 10_000:
        eqx.clear_caches()
        jax.clear_caches()
