"""The kernels run on torch's own pool, also after a fork and from several Python threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import evidens

PROGRAM = """
import os, torch, evidens

def threads():
    return len(os.listdir("/proc/self/task"))

x = torch.randn(200_000, 8)
means = torch.randn(16, 8)
def statistics():
    return evidens.ops.gmm_statistics(
        x, torch.full((16,), 1 / 16).log(), means, torch.ones(16, 8), "diag"
    )
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and forks")


def run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_info_names_the_pool():
    assert evidens.info()["threads"] == {"count": torch.get_num_threads(), "pool": "torch"}


@linux
@pytest.mark.skipif(os.cpu_count() == 1, reason="one core: torch has no pool")
def test_no_thread_beyond_torch():
    run("""
torch.set_num_threads(2)
(x.exp().sum() + x.log().sum()).item()
before = threads()
statistics()
assert threads() == before, (before, threads())
""")


@linux
def test_kernel_in_a_forked_child():
    run("""
want = statistics()[0]
child = os.fork()
if child == 0:
    os._exit(int(not torch.equal(statistics()[0], want)))
assert os.waitpid(child, 0)[1] == 0
""")


def test_two_python_threads_at_once():
    run("""
from concurrent.futures import ThreadPoolExecutor
want = statistics()
with ThreadPoolExecutor(4) as pool:
    for got in pool.map(lambda _: statistics(), range(8)):
        assert all(torch.equal(a, b) for a, b in zip(got, want))
""")
