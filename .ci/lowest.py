"""Prints, as constraints for pip, the oldest version of every package that pyproject.toml allows."""

import re
import tomllib
from itertools import chain
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
tables = [*project["project"]["optional-dependencies"].values(), *project["dependency-groups"].values()]
for requirement in sorted({*project["project"]["dependencies"], *chain.from_iterable(tables)}):
    name, version = re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:,!=[\w.]+)*", requirement).groups()
    print(f"{name}=={version}")
