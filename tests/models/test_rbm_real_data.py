"""Machines on real data: levels that others have published."""

from __future__ import annotations

import time

import numpy as np
import pytest

from evidens import BernoulliRBM


@pytest.fixture(scope="module")
def digits(evidens_data):
    with np.load(evidens_data / "images" / "binarized_01_10x10.npz") as data:
        return [data[f"{name}.data"].astype(np.float32) for name in ("train", "valid")]


def test_noughts_and_ones_by_the_exact_likelihood(digits):
    # About -34.5 nats of a validation row is a published level for PCD with 16 hidden units.
    train, valid = digits
    begin = time.process_time()
    rbm = BernoulliRBM(
        16,
        learning_rate=0.2,
        batch_size=50,
        n_iter=60,
        n_chains=100,
        schedule="linear",
        centered=True,
        shuffle=True,
        random_state=0,
    ).fit(train)
    assert time.process_time() - begin < 10
    assert rbm.density_kind_ == "exact"
    exact = rbm.log_partition_
    assert rbm.log_prob(valid).mean() > -32
    rbm.log_partition(exact=False, chains=100, rungs=1000)
    low, high = rbm.log_partition_interval_
    assert low < exact < high < low + 1
