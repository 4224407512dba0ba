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
risk = dmftopt.solve(task_problem, protocol, coarse, samples=256, key=jax.random.key(0)).test_risk
assert solution.test_risk.shape == solution.times.shape == (41,) and solution.correlation.shape == (41, 41, 1, 1)
assert found.report["optimized"].mean < found.report["initial"].mean
assert 0 < float(risk[-1]) < float(risk[0])
# Of the multipliers' law the squared loss feels two moments only, which Bernoulli(1/2) shares.
same = {"problem": squares, "protocol": dmftopt.Protocol(0.2), "grid": updates, "key": jax.random.key(0)}
half = dmftopt.solve(**same, noise=dmftopt.noise.Bernoulli(0.5))
assert np.allclose(bootstrap.student_overlap, half.student_overlap, rtol=0.02)
full = dmftopt.solve(**same, noise=dmftopt.noise.NoNoise(), step=dmftopt.DiscreteStep())
assert not np.allclose(bootstrap.student_overlap, full.student_overlap, rtol=0.05)
"""
    script = tmp_path / "readme.py"
    script.write_text("\n".join([*blocks, use]))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
