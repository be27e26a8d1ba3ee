"""The normaliser of a machine: what is counted, what is estimated, and how it is checked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.rbm_cases import bernoulli, categorical, gaussian, given, states
from scipy.special import logsumexp

from evidens import BernoulliRBM, CategoricalRBM, GaussianRBM
from evidens.models.rbm_partition import least_log_partition

MACHINES = [
    pytest.param(lambda: bernoulli(), id="bernoulli"),
    pytest.param(lambda: bernoulli(classes=2), id="classes"),
    pytest.param(lambda: bernoulli(visible="spin", hidden="spin", classes=3), id="spins"),
    pytest.param(gaussian, id="gaussian"),
    pytest.param(categorical, id="categorical"),
]


@pytest.mark.parametrize("make", MACHINES)
def test_hidden_states_weigh_what_they_weigh(make):
    rbm = make()
    p = rbm._parameters()
    every = torch.from_numpy(states(rbm.hidden, len(p.weight)))
    truth = rbm.log_partition()
    assert float(p.log_weight_of_hidden(every).logsumexp(0)) == pytest.approx(truth, rel=1e-12)
    assert least_log_partition(p, every) == pytest.approx(truth, rel=1e-12)  # each state once
    assert least_log_partition(p, every[:1]) <= truth + 1e-12


def test_an_estimate_that_misses_a_mode_is_found_out():
    rbm = given(BernoulliRBM(1), np.full((1, 20), 50.0), np.zeros(20), [-980.0])
    truth = rbm.log_partition()
    assert truth == pytest.approx(20.002, abs=1e-3)
    with pytest.warns(RuntimeWarning, match=r"at most 13\.\d+, but single states .* weigh 20\.0"):
        rbm.log_partition(exact=False)
    low, high = rbm.log_partition_interval_
    assert low <= truth + 1e-9 < high
    assert rbm.density_kind_ == "estimate"
    assert (rbm.log_prob(np.ones((1, 20))) <= 1e-9).all()


def test_few_visible_states_are_counted():
    rng = np.random.default_rng(0)
    rows = rng.integers(3, size=(100, 2))
    rbm = CategoricalRBM(100, n_iter=2, random_state=0).fit(rows)
    assert rbm.density_kind_ == "exact"
    every = np.array([[i, j] for i in range(3) for j in range(3)])
    assert logsumexp(rbm.log_prob(every)) == pytest.approx(0, abs=1e-9)
    rbm.log_partition(exact=False, rungs=1000)
    low, high = rbm.log_partition_interval_
    assert low < rbm.log_partition(exact=True) < high
    few = categorical(d=2, count=3, j=12)  # either layer can be counted
    hidden = torch.from_numpy(states("bernoulli", 12))
    truth = float(few._parameters().log_weight_of_hidden(hidden).logsumexp(0))
    assert few.log_partition() == pytest.approx(truth, rel=1e-12)


def test_an_offset_of_numbers_is_none_of_the_energy():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 2))
    rbm = GaussianRBM(3, n_iter=2, standardize=False, random_state=0).fit(rows)
    for exact in (True, False):
        near = rbm.log_partition(exact=exact)
        far = GaussianRBM(3, n_iter=2, standardize=False, random_state=0).fit(rows)
        far.intercept_visible_ = rbm.intercept_visible_ + 3e7
        far.visible_means_ = rbm.visible_means_ + 3e7
        shift = rbm.components_ / np.exp(rbm.log_variance_) @ np.full(2, 3e7)
        far.intercept_hidden_ = rbm.intercept_hidden_ - shift
        assert far.log_partition(exact=exact) == pytest.approx(near, abs=1e-6)
    assert np.isfinite(
        GaussianRBM(3, n_iter=2, standardize=False, random_state=0).fit(rows + 3e7).log_prob(rows)
    ).all()


@pytest.mark.parametrize("name", ["chains", "rungs"])
@pytest.mark.parametrize("value", [0, 2.5])
def test_numbers_of_chains_and_rungs(name, value):
    with pytest.raises((TypeError, ValueError), match=f"rbm_ais: {name} must be"):
        bernoulli().log_partition(exact=False, **{name: value})
