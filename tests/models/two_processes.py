"""Fits in two processes of one group, as the distributed tests of models need them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

# What comes before and after the fits.
BEGIN = """
import os, sys, warnings
import numpy as np, torch, torch.distributed as dist
folder, tests = sys.argv[1:]
sys.path.insert(0, tests)
warnings.simplefilter("ignore")
torch.set_num_threads(1)
rank, result = int(os.environ["RANK"]), {}
dist.init_process_group("gloo")
"""
END = """
np.savez(f"{folder}/rank{rank}.npz", **result)
# One process has bad rows: both stop, and the other one says why.
try:
    refused(np.full((9, 2), np.inf if rank else 1.0), dist.group.WORLD)
except Exception as error:
    print(type(error).__name__, error)
sys.stdout.flush()
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's own threads can abort the interpreter while it shuts down
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def results_of(program: str, folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a program, which both processes must have alike.

    Args:
        program: fills ``result`` and defines ``refused(X, group)``, a fit of rows X; it has
            ``rank`` and ``folder``.
        folder: for files.
    """
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    tests = str(Path(__file__).parent.parent)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BEGIN + program + END, str(folder), tests],
            env={**os.environ, **common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [p.communicate(timeout=300) for p in processes]
    finally:
        for p in processes:
            p.kill()
    for p, (_, err) in zip(processes, outputs):
        assert p.returncode == 0, err
    assert "RuntimeError process_group: 1 of 2 processes refused their rows" in outputs[0][0]
    assert "ValueError Input X contains infinity" in outputs[1][0]
    first, second = (np.load(folder / f"rank{r}.npz") for r in range(2))
    assert first.files
    assert first.files == second.files
    for key in first.files:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)
    return dict(first)
