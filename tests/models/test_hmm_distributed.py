"""Two processes with a part of the sequences each give the fit of one process with all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from models.hmm_cases import EMISSIONS, FAMILIES, LENGTHS, frames, model, quiet
from models.two_processes import results_of

quiet()
FIRST = LENGTHS[:1]  # of rank 0; the others are rank 1's
CASES = ("plain", "weight", "labels", "missing", "chunks")

PROGRAM = """
from evidens import GaussianHMM
from models.test_hmm_distributed import CASES, FAMILIES, fitted

for family in FAMILIES:
    for case in CASES:
        result |= fitted(family, case, rank)


def refused(X, group):
    GaussianHMM(2).fit(X, process_group=group)
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
    got = results_of(PROGRAM, tmp_path)
    assert len(got) > 100
    for family in FAMILIES:
        for case in CASES:
            for key, value in fitted(family, case, None).items():
                np.testing.assert_allclose(got[key], value, rtol=1e-7, atol=1e-8, err_msg=key)


def test_a_group_that_is_not_running():
    with pytest.raises(RuntimeError, match=r"process_group: torch\.distributed is not running"):
        model("Gaussian").fit(torch.ones(5, 2), process_group=True)
