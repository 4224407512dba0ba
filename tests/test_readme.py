"""Every README: its Python runs as printed, in a fresh interpreter with JAX's defaults, and its links lead somewhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {str(p.relative_to(ROOT)): p for top in ("dmftopt", "experiments") for p in sorted((ROOT / top).rglob("README*.md"))}
PAGES = {"README.md": ROOT / "README.md", **PAGES}

# Run after a page's blocks, with its names.
CHECKS = {
    "README.md": """
assert solution.test_risk.shape == solution.times.shape == sgd.times.shape == (11,)
assert found.report["optimized"].mean < found.report["initial"].mean
assert steps.batch_size.sum() == 3 * 2000
""",
    "dmftopt/tasks/README.md": "assert 0 < float(risk[-1]) < float(risk[0])",
    "dmftopt/results/README.md": "assert solution.correlation.shape == (41, 41, 1, 1) and data.correlation.shape[:2] == (41, 41)",
    # Of the multipliers' law the squared loss feels two moments only, which Bernoulli(1/2) shares.
    "dmftopt/protocol/README.md": """
import numpy as np
same = {"problem": squares, "protocol": descent, "grid": updates, "key": jax.random.key(0)}
half = dmftopt.solve(**same, noise=dmftopt.noise.Bernoulli(0.5))
assert np.allclose(bootstrap.student_overlap, half.student_overlap, rtol=0.02)
full = dmftopt.solve(**same, noise=dmftopt.noise.NoNoise(), step=dmftopt.DiscreteStep())
assert not np.allclose(bootstrap.student_overlap, full.student_overlap, rtol=0.05)
""",
}

# All pages in one process, so that what one compiled serves the others; the names of each are its own.
RUNNER = """
import json, sys, time, types

for page, blocks in json.load(sys.stdin).items():
    names = sys.modules[page] = types.ModuleType(page)
    for number, block in enumerate(blocks):
        started = time.process_time()
        print(f"{page}, block {number}", file=sys.stderr, flush=True)
        exec(compile(block, f"{page}, block {number}", "exec"), names.__dict__)
        print(f"  {time.process_time() - started:.1f} s of processor time", file=sys.stderr, flush=True)
"""


# What is new to a reader every time; the others take minutes.
FIRST = ("README.md", "dmftopt/README.md")


@pytest.mark.parametrize("pages", ["first", pytest.param("others", marks=pytest.mark.slow)])
def test_python_blocks_run_as_printed(tmp_path, pages):
    every = {page: re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL) for page, path in PAGES.items()}
    assert sum(map(len, every.values())) >= 6
    chosen = {page: path for page, path in PAGES.items() if (page in FIRST) == (pages == "first")}
    blocks = {page: every[page] for page in chosen}
    given = {page: [*found, *([CHECKS[page]] if page in CHECKS else [])] for page, found in blocks.items() if found}
    assert CHECKS.keys() & chosen.keys() <= given.keys()
    command = [sys.executable, "-c", RUNNER]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=600, cwd=tmp_path)
    print(done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page].read_text()):
        assert target.startswith("https://") or (PAGES[page].parent / target).exists(), target


def test_the_first_page_is_short():
    assert len(PAGES["README.md"].read_text()) <= 10_000
