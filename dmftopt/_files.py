"""Files on disk: whole or not at all."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Any, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a temporary file in the folder of `path` (a name; folders are made), which then takes the place of
    `path` at once. A write that fails or is killed leaves what was there before."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be the name of a file, got {path!r}.")
    path = Path(os.path.realpath(path))  # a symbolic link stays one
    if path.is_dir():
        raise IsADirectoryError(f"path must be the name of a file, but {path} is a folder. Add a name to it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            # Some file systems rename before the data is on disk: a power cut would then leave an empty file.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
