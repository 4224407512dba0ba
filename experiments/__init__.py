"""What dmftopt finds: each experiment is a folder with its script, figure and table. See README.md."""

import os
from pathlib import Path

# Before JAX starts. Compiled programs stay, so that a second run only traces. Your own `JAX_COMPILATION_CACHE_DIR` goes first.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path("results", "compiled").absolute()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Loading one of them, jaxlib before 0.10.2 calls its own options a processor that does not match.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
