"""For scripts that measure compilation."""

import jax
from jax.experimental.compilation_cache import compilation_cache


def compile_anew() -> None:
    """Take nothing from disk from now on. JAX asks its setting only once, at the first program of the process: it has to forget
    the answer."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
