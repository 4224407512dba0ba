"""Settings of an experiment, its results on disk (whole or not at all), and its tables and figure in the README beside it."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import matplotlib.pyplot as plt
import numpy as np

from dmftopt.results.storage import write_atomically

plt.switch_backend("agg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    seed: int = 0
    smoke: bool = False
    """Tiny sizes: shows that everything works, agrees with nothing. Results go to <out>_smoke."""
    out: Path | None = None
    """Folder of results; None: results/<experiment>."""
    publish: bool = False
    """Also write the tables into the README beside the script, and the figure next to it."""

    def sized(self, **tiny: Any) -> Self:
        """With these sizes if smoke."""
        if self.smoke and self.publish:
            raise SystemExit("--publish: a smoke run says nothing. Leave one of the two out.")
        return dataclasses.replace(self, **tiny) if self.smoke else self

    def folder(self, script: str) -> Path:
        out = self.out or Path("results") / name_of(script)
        return out.with_name(f"{out.name}_smoke") if self.smoke else out

    def without(self, *names: str) -> dict[str, Any]:
        """What decides about results, less these: as JSON values."""
        own = ("smoke", "cluster", "out", "publish", *names)
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in own}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSettings(Settings):
    """Of an experiment that consists of cells, see sweep.py."""

    cluster: str | None = None
    """Where cells are computed. None: in this process; "local": worker processes; "tcp://host:port": a Dask scheduler."""


def name_of(script: str) -> str:
    """01_digits of 01_digits/run.py, benchmarks/speed of benchmarks/speed.py."""
    path = Path(script)
    return path.parent.name if path.stem == "run" else f"{path.parent.name}/{path.stem}"


def finish(s: Settings, script: str, result: Any, tables: Mapping[str, str], figure: Any = None, shown: str = "figure") -> None:
    """Write result.json and the figure, print the tables, and publish them if asked.

    `tables`: Markdown by the name of their place in the README.md beside the script; every one must have its place. `shown`: name
    of the published figure."""
    out, beside = s.folder(script), Path(script).parent
    write_json(out / "result.json", result)
    figures = {out / "figure.png": True, beside / f"{shown}.png": s.publish} if figure is not None else {}
    for path in (path for path, wanted in figures.items() if wanted):
        write_figure(path, figure)
    readme = (beside / "README.md").read_text()
    for name, table in tables.items():
        print(f"\n{name}\n\n{table}")
        readme = placed(readme, name, table)
    if s.publish:
        write_text(beside / "README.md", readme)
    print(f"\nwrote {out}" + (f" and {beside}" if s.publish else ""))


def placed(text: str, name: str, table: str) -> str:
    """`text` with `table` between the comments <!-- table: name --> and <!-- end -->, in place of what is there."""
    start = f"<!-- table: {name} -->"
    pattern = re.compile(rf"{re.escape(start)}\n.*?<!-- end -->", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"README.md must have one place for the table {name!r}: the lines {start} and <!-- end -->.")
    return pattern.sub(lambda _: f"{start}\n\n{table}\n\n<!-- end -->", text)


def markdown(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    lines = [list(header), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def plus_minus(estimate: Mapping[str, Any], digits: int = 4, scale: float = 1.0) -> str:
    """0.1234 ± 0.0005, of what `mean_and_error` returns."""
    mean, error = estimate["mean"], estimate["standard_error"]
    return f"{scale * mean:.{digits}f}" + ("" if error is None else f" ± {scale * error:.{digits}f}")


def short(value: float) -> str:
    """Two significant digits, never as 5.4e+02."""
    return f"{float(f'{value:.2g}'):g}"


def mean_and_error(values: Any) -> dict[str, Any]:
    """Mean over the first axis and its standard error, None for a single value. Numbers, or lists of them."""
    values = np.asarray(values, dtype=float)
    error = np.std(values, axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": values.mean(axis=0).tolist(), "standard_error": None if error is None else error.tolist()}


def write_json(path: Path, result: Any) -> None:
    """NaN and infinity are refused."""
    write_text(path, json.dumps(result, indent=1, allow_nan=False, default=_plain) + "\n")


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def write_figure(path: Path, figure: Any) -> None:
    write_atomically(path, lambda file: figure.savefig(file, dpi=150, format=path.suffix[1:]))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return np.asarray(value).tolist()
