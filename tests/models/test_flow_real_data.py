"""Flows on MINIBOONE, where EVIDENS_DATA names the folder of data sets."""

from __future__ import annotations

import numpy as np
import pytest
from models.flow_cases import CLASSES, QUICK

from evidens import GaussianMixture


@pytest.mark.parametrize("cls", CLASSES)
def test_miniboone_is_no_gaussian(cls, evidens_data):
    with np.load(evidens_data / "uci" / "miniboone_maf_val_test.npz") as file:
        data, test = file["val"], file["test"]
    order = np.random.default_rng(0).permutation(len(data))
    learn, pick = data[order[len(data) // 5 :]], data[order[: len(data) // 5]]
    flow = cls(43, layers=3, hidden=(64, 64), dropout=0.1)
    flow.fit(learn, validation_data=pick, epochs=15, lr=5e-3, batch_size=128, **QUICK)
    assert flow.score(test) > GaussianMixture().fit(learn).score(test) + 10
