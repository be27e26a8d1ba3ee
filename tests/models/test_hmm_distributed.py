"""Two processes with a part of the sequences each give the fit of one process with all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from models.hmm_cases import EMISSIONS, FAMILIES, LENGTHS, frames, model, quiet
from models.test_gmm_distributed import free_port

quiet()
FIRST = LENGTHS[:1]  # of rank 0; the others are rank 1's
CASES = ("plain", "weight", "labels", "missing", "chunks")

PROGRAM = """
import os, sys, warnings
import numpy as np, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[2])
from models.test_hmm_distributed import CASES, FAMILIES, fitted
warnings.simplefilter("ignore")
torch.set_num_threads(1)
rank = int(os.environ["RANK"])
dist.init_process_group("gloo")
result = {}
for family in FAMILIES:
    for case in CASES:
        result |= fitted(family, case, rank)
np.savez(f"{sys.argv[1]}/rank{rank}.npz", **result)
# One process has bad frames: both stop, and the other one says why.
from evidens import GaussianHMM
try:
    GaussianHMM(2).fit(np.full((9, 2), np.inf if rank else 1.0), process_group=dist.group.WORLD)
except Exception as error:
    print(type(error).__name__, error)
sys.stdout.flush()
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's own threads can abort the interpreter while it shuts down
"""


def fitted(family, case, rank):
    """Parameters of one model; ``rank`` None is one process with all sequences."""
    X, lengths = frames(family).astype(float), LENGTHS
    weight, labels = np.array([1.0, 2.0, 0.5, 1.0]), np.full(len(X), -1)
    labels[:9] = np.arange(9) % 3  # all of them in rank 0's sequence
    if case == "missing":
        X[3:6] = X[50] = np.nan
    elif family not in ("Gaussian", "GMM", "Custom"):
        X = X.astype(int)
    parts = {None: (0, 4), 0: (0, len(FIRST)), 1: (len(FIRST), 4)}[rank]
    lengths = lengths[slice(*parts)]
    start = sum(LENGTHS[: parts[0]])
    rows = slice(start, start + sum(lengths))
    keys = {}
    if case == "weight":
        keys["sample_weight"] = weight[slice(*parts)]
    if case == "labels" and rank != 1:
        keys["labels"] = labels[rows]
    x = X[rows]
    if case == "chunks":
        x, lengths = np.split(x, np.cumsum(lengths)[:-1]), None
    # None differs from process to process: rank 0 decides.
    m = model(family, n_iter=4, random_state=rank or 0)
    m.fit(x, lengths, process_group=None if rank is None else True, **keys)
    names = ("startprob_", "transmat_", *EMISSIONS[family])
    result = {f"{family}/{case}/{name}": np.asarray(getattr(m, name)) for name in names}
    return result | {f"{family}/{case}/history": np.array(m.monitor_.history)}


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.filterwarnings("ignore")
def test_two_processes_are_one(tmp_path):
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
            [sys.executable, "-c", PROGRAM, str(tmp_path), tests],
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
    ranks = [np.load(tmp_path / f"rank{r}.npz") for r in range(2)]
    assert len(ranks[0].files) > 100
    for key in ranks[0].files:
        np.testing.assert_array_equal(ranks[0][key], ranks[1][key], err_msg=key)
    for family in FAMILIES:
        for case in CASES:
            for key, value in fitted(family, case, None).items():
                np.testing.assert_allclose(ranks[0][key], value, rtol=1e-7, atol=1e-8, err_msg=key)


def test_a_group_that_is_not_running():
    with pytest.raises(RuntimeError, match=r"process_group: torch\.distributed is not running"):
        model("Gaussian").fit(torch.ones(5, 2), process_group=True)
