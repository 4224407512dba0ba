"""The README's Python runs as printed, in a fresh interpreter with JAX's defaults."""

import re
import subprocess
import sys
from pathlib import Path


def test_python_blocks_run_as_printed(tmp_path):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 3
    use = """
task_problem = dmftopt.Problem(Huber(), dmftopt.features.isotropic(), delta=2.0)
risk = dmftopt.solve(task_problem, protocol, rough, samples=256, key=jax.random.key(0)).test_risk
assert solution.test_risk.shape == solution.times.shape == (41,) and solution.correlation.shape == (41, 41, 1, 1)
assert found.report["optimized"].mean < found.report["initial"].mean
assert 0 < float(risk[-1]) < float(risk[0])
"""
    script = tmp_path / "readme.py"
    script.write_text("\n".join([*blocks, use]))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
