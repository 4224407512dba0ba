"""A compiler that is known to compute wrong numbers is not used without a word."""

import os
import warnings

import jax
from jaxlib import version

# Fusions by the library YNN: in float32, on CPUs, gradients of tasks with several columns came out wrong, or crashed.
_BROKEN = ("0.10.2", "0.11.0")
_CURE = "--xla_cpu_experimental_ynn_fusion_type="


def warn_of_compiler() -> None:
    if version.__version__ not in _BROKEN or jax.config.read("jax_enable_x64") or _CURE in os.environ.get("XLA_FLAGS", ""):
        return
    if jax.default_backend() == "cpu":
        warnings.warn(
            f"jaxlib {version.__version__} can compute wrong numbers in float32 (https://github.com/jax-ml/jax/issues/39257). "
            f'Install another version, or set jax_enable_x64, or the environment variable XLA_FLAGS="{_CURE}".',
            RuntimeWarning,
            stacklevel=3,
        )
