"""What dmftopt finds: each experiment is a folder with its script, figure and table. See README.md."""

import os
from pathlib import Path

# Before JAX starts. Compiled programs stay, so that a second run only traces. Your own `JAX_COMPILATION_CACHE_DIR` goes first.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path("results", "compiled").absolute()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
