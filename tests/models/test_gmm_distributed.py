"""Two processes with a part of the rows each give the fit of one process with all rows."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

from evidens import GaussianMixture

ATTRIBUTES = ("weights_", "means_", "covariances_", "precisions_cholesky_", "lower_bounds_")

PROGRAM = """
import os, sys, warnings
import numpy as np, torch, torch.distributed as dist
from evidens import GaussianMixture
from evidens.models import gmm_init
warnings.simplefilter("ignore")
torch.set_num_threads(1)
rank, folder = int(os.environ["RANK"]), sys.argv[1]
dist.init_process_group("gloo")
data = np.load(f"{folder}/data.npz")
x, weight, labels = data["x"], data["weight"], data["labels"]
rows = slice(0, 130) if rank == 0 else slice(130, None)
result = {}
for covariance_type in ("full", "tied", "diag", "spherical"):
    for init in ("kmeans", "k-means++", "random", "random_from_data"):
        for case in ("plain", "weight", "labels", "missing", "sampled"):
            if case == "sampled":
                gmm_init.WHOLE, gmm_init.PER_COMPONENT = 100, 1
            keys = {}
            if case == "weight":
                keys["sample_weight"] = weight[rows]
            # A process without any labels takes part all the same.
            if case == "labels" and rank == 0:
                keys["labels"] = labels[rows]
            z = np.where(x > 5, np.nan, x) if case == "missing" else x
            # None differs from process to process: rank 0 decides.
            gm = GaussianMixture(3, covariance_type=covariance_type, init_params=init, max_iter=4,
                                 n_init=2, tol=0, reg_covar=1e-2, random_state=rank)
            gm.fit(z[rows], process_group=True, **keys)
            gmm_init.WHOLE, gmm_init.PER_COMPONENT = 131_072, 512
            for name in ("weights_", "means_", "covariances_", "precisions_cholesky_",
                         "lower_bounds_"):
                result[f"{covariance_type}/{init}/{case}/{name}"] = np.asarray(getattr(gm, name))
np.savez(f"{folder}/rank{rank}.npz", **result)
# One process has bad rows: both stop, and the other one says why.
try:
    GaussianMixture(2).fit(np.full((9, 2), np.inf if rank else 1.0), process_group=dist.group.WORLD)
except Exception as error:
    print(type(error).__name__, error)
sys.stdout.flush()
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's own threads can abort the interpreter while it shuts down
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_two_processes_are_one(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)) + 6 * rng.integers(0, 2, (300, 1))
    weight = rng.integers(0, 3, 300)
    labels = np.where(np.arange(300) < 30, np.arange(300) % 2, -1)
    np.savez(tmp_path / "data.npz", x=x, weight=weight, labels=labels)
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path)],
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
    for key in ranks[0].files:
        np.testing.assert_array_equal(ranks[0][key], ranks[1][key], err_msg=key)

    from evidens.models import gmm_init

    for covariance_type in ("full", "tied", "diag", "spherical"):
        for init in ("kmeans", "k-means++", "random", "random_from_data"):
            for case in ("plain", "weight", "labels", "missing", "sampled"):
                keys = {}
                if case == "weight":
                    keys["sample_weight"] = weight
                if case == "labels":
                    keys["labels"] = labels
                gm = GaussianMixture(
                    3,
                    covariance_type=covariance_type,
                    init_params=init,
                    max_iter=4,
                    n_init=2,
                    tol=0,
                    reg_covar=1e-2,
                    random_state=0,
                )
                with monkeypatch.context() as patch:
                    if case == "sampled":
                        patch.setattr(gmm_init, "WHOLE", 100)
                        patch.setattr(gmm_init, "PER_COMPONENT", 1)
                    gm.fit(np.where(x > 5, np.nan, x) if case == "missing" else x, **keys)
                for name in ATTRIBUTES:
                    key = f"{covariance_type}/{init}/{case}/{name}"
                    np.testing.assert_allclose(
                        ranks[0][key], getattr(gm, name), rtol=1e-8, atol=1e-8, err_msg=key
                    )


def test_a_group_that_is_not_running():
    with pytest.raises(RuntimeError, match=r"process_group: torch\.distributed is not running"):
        GaussianMixture().fit(torch.ones(5, 2), process_group=True)
