"""Two processes with a part of the rows each give the fit of one process with all rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from models.two_processes import results_of

from evidens import GaussianMixture

ATTRIBUTES = ("weights_", "means_", "covariances_", "precisions_cholesky_", "lower_bounds_")

PROGRAM = """
from evidens import GaussianMixture
from evidens.models import gmm_init

data = np.load(f"{folder}/data.npz")
x, weight, labels = data["x"], data["weight"], data["labels"]
rows = slice(0, 130) if rank == 0 else slice(130, None)
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


def refused(X, group):
    GaussianMixture(2).fit(X, process_group=group)
"""


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_two_processes_are_one(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)) + 6 * rng.integers(0, 2, (300, 1))
    weight = rng.integers(0, 3, 300)
    labels = np.where(np.arange(300) < 30, np.arange(300) % 2, -1)
    np.savez(tmp_path / "data.npz", x=x, weight=weight, labels=labels)
    got = results_of(PROGRAM, tmp_path)

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
                        got[key], getattr(gm, name), rtol=1e-8, atol=1e-8, err_msg=key
                    )


def test_a_group_that_is_not_running():
    with pytest.raises(RuntimeError, match=r"process_group: torch\.distributed is not running"):
        GaussianMixture().fit(torch.ones(5, 2), process_group=True)
