"""What `import evidens` costs and leaves behind, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys

BUDGET_SECONDS = 0.150
HEAVY = ("sklearn", "scipy", "pandas", "triton", "matplotlib", "tqdm", "torch._dynamo")


def python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_within_budget():
    program = """
import time, torch
start = time.process_time()  # other tests share the processor
import evidens
print(time.process_time() - start)
"""
    seconds = [float(python(program)) for _ in range(5)]
    assert min(seconds) < BUDGET_SECONDS, seconds


def test_import_leaves_heavy_modules_alone():
    program = f"""
import sys, torch
before = set(sys.modules)
import evidens
print([name for name in {HEAVY} if name in sys.modules and name not in before])
"""
    assert python(program).strip() == "[]"


def test_subnormals_survive_import():
    program = """
import torch, evidens
import numpy as np
tiny = np.float32(1e-39) + np.zeros(3, np.float32)
assert (tiny * np.float32(1) > 0).all(), "NumPy flushes subnormals to zero"
assert (torch.full((3,), 1e-39) * 1 > 0).all(), "torch flushes subnormals to zero"
assert 5e-324 * 1.0 > 0, "Python flushes subnormals to zero"
x = torch.zeros(64, 2)
p = (torch.zeros(1), x[:1], torch.ones(1, 2), "diag")
evidens.ops.gmm_log_prob(x, *p)
assert (torch.full((3,), 1e-39) * 1 > 0).all(), "a kernel flushes subnormals to zero"
"""
    python(program)


def test_no_warning_on_import():
    program = """
import warnings, torch
warnings.simplefilter("error")
import evidens
for name in evidens.__all__:
    getattr(evidens, name)
"""
    python(program)
