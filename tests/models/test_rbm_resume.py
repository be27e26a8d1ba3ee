"""Going on with a machine: chains, ladders, momentum, refused steps, and files in between."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from models.rbm_cases import bernoulli

from evidens import BernoulliRBM, CategoricalRBM, GaussianRBM, ops
from evidens.models.rbm_chains import Ladder, Stream
from evidens.models.rbm_learning import Learner

LEARNED = ("components_", "intercept_hidden_", "intercept_visible_", "h_samples_", "hidden_means_")
X = (np.random.default_rng(0).random((200, 6)) < 0.4).astype(float)


def clusters(n=500):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 2)) + 8 * rng.integers(2, size=(n, 1))


def assert_same(a, b):
    for name in LEARNED:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("count", [5, 10, 20])
def test_another_number_of_temperatures_makes_new_ladders(count):
    rbm = GaussianRBM(4, n_iter=3, random_state=0).fit(clusters())
    ladder = Ladder(torch.from_numpy(rbm.h_rungs_))
    assert ladder.rung.shape == (50, 10)
    cold = rbm.h_samples_[ladder.cold]
    learner = rbm.set_params(n_temperatures=count)._resume(rbm._read(clusters()))
    chains = learner.chains.view(50, count, 4)
    if count != 10:
        np.testing.assert_array_equal(chains, np.repeat(cold[:, None], count, 1))
    for _ in range(3):
        rbm.partial_fit(clusters())
        assert rbm.h_samples_.shape == (50 * count, 4)
        np.testing.assert_array_equal(np.sort(rbm.h_rungs_), np.tile(np.arange(count), (50, 1)))


def test_the_cold_chains_go_on_without_temperatures():
    rbm = BernoulliRBM(4, n_iter=3, method="pt", n_temperatures=6, random_state=0).fit(X)
    rbm.set_params(method="pcd").partial_fit(X)
    assert rbm.h_samples_.shape == (10, 4)
    assert not hasattr(rbm, "h_rungs_")
    rbm.set_params(method="pt").partial_fit(X)
    assert rbm.h_samples_.shape == (60, 4)


def test_means_of_the_negative_phase_are_those_of_the_machine():
    p = bernoulli(v=6, j=4)._parameters()
    ladder = Ladder.of(8, 30, torch.device("cpu"))
    learner = Learner(p, Stream(0), "pt", 3, torch.zeros(240, 4).double(), ladder)
    for _ in range(3):  # after an exchange the chain at 1 may have stood at 7/8
        v, h_mean = learner._negative(torch.zeros(5, 6).double(), None, None)
        torch.testing.assert_close(h_mean, p.hidden_mean(v))


@pytest.mark.parametrize(
    "model",
    [
        BernoulliRBM(4, momentum=0.9, n_iter=3, random_state=0),
        GaussianRBM(4, momentum=0.9, n_iter=3, random_state=0),
        CategoricalRBM(4, momentum=0.9, n_iter=3, random_state=0),
    ],
)
@pytest.mark.parametrize("tensors", [False, True])
def test_a_file_keeps_the_momentum(model, tensors, tmp_path):
    rows = torch.from_numpy(X) if tensors else X
    model.fit(rows).save(tmp_path / "rbm")
    again = type(model).load(tmp_path / "rbm")
    other = copy.copy(model).partial_fit(rows[:20])
    assert_same(model.partial_fit(rows[:20]), again.partial_fit(rows[:20]))
    assert_same(model, other)  # a copy takes nothing from its model
    model.set_params(momentum=0.0).partial_fit(rows[:20])
    assert not hasattr(model, "velocity_")


@pytest.mark.parametrize("model", [BernoulliRBM(4), GaussianRBM(4), CategoricalRBM(4)])
def test_a_refused_step_leaves_no_trace(model):
    model = model.set_params(random_state=0, n_iter=2, momentum=0.5, method="cd").fit(X)
    before = copy.deepcopy(model)
    with pytest.warns(RuntimeWarning, match="diverged"):
        model.set_params(learning_rate=1e12).partial_fit(X[:20])
    for name in (*LEARNED, "velocity_"):
        np.testing.assert_array_equal(getattr(model, name), getattr(before, name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_params(learning_rate=0.01)
        for _ in range(20):
            model.partial_fit(X[:20])


@pytest.mark.parametrize(
    ("dtype", "large"), [(np.float64, 1e200), (np.float64, 1.7e308), (np.float32, 3e38)]
)
def test_biases_diverge_as_well(dtype, large):
    rbm = BernoulliRBM(4, random_state=0, n_iter=2).fit(X.astype(dtype))
    before = rbm.intercept_visible_.copy()
    for _ in range(3):
        with (
            pytest.warns(UserWarning, match="holds"),
            pytest.warns(RuntimeWarning, match="diverged"),
        ):
            rbm.partial_fit((X[:20] * large).astype(dtype))
    np.testing.assert_array_equal(rbm.intercept_visible_, before)
    column = np.array(X, dtype)
    column[:, 0] = -1e38
    with pytest.warns(UserWarning, match="holds"), pytest.warns(RuntimeWarning, match="diverged"):
        rbm = BernoulliRBM(4, random_state=0, n_iter=2).fit(column)
    assert np.abs(rbm.intercept_visible_).max() < 10


@pytest.mark.parametrize("size", [1e-44, 1e-40, 1e38])
@pytest.mark.parametrize("cls", [BernoulliRBM, GaussianRBM, CategoricalRBM])
def test_the_size_of_weights_does_not_matter(cls, size):
    rows = X.astype(np.float32)
    keys = {"n_iter": 3, "random_state": 0}
    plain = cls(4, **keys).fit(rows, sample_weight=np.ones(200))
    scaled = cls(4, **keys).fit(rows, sample_weight=np.full(200, size))
    # Its one entry more in each feature has a weight of 1.
    entries = 0.01 if cls is CategoricalRBM else 1e-6
    np.testing.assert_allclose(scaled.components_, plain.components_, atol=entries)
    assert np.isfinite(scaled.components_).all()
    assert scaled.components_.dtype == np.float32


def test_a_normaliser_is_of_the_parameters_as_they_are():
    rbm = bernoulli()
    fresh = bernoulli()
    first = rbm.log_partition_
    for change in ({"components_": 2 * rbm.components_}, {"intercept_hidden_": np.ones(3)}):
        for model in (rbm, fresh):
            for name, value in change.items():
                setattr(model, name, value)
        assert rbm.log_partition_ != first
        first = rbm.log_partition_
        assert first == fresh.log_partition()
    rbm.components_[0, 0] += 1  # in place
    assert rbm.log_partition_ != first
    first = rbm.log_partition_
    assert rbm.set_params(hidden="spin").log_partition_ != first
    value = rbm.log_partition(exact=False, chains=10, rungs=50)  # asked for: stays
    assert rbm.log_partition_ == value
    assert rbm.density_kind_ == "estimate"


def test_long_calls_are_cut_where_ctrl_c_is_heard(monkeypatch):
    rbm = bernoulli()
    holes = np.where(np.arange(5) == 2, np.nan, 1.0)[None]

    def calls():
        again = copy.copy(rbm)
        return (
            again.sample(4, steps=9, random_state=0),
            again.sample(4, steps=9, n_temperatures=3, random_state=0),
            again.impute(holes, steps=9, random_state=0),
            again.gibbs(np.ones((2, 5)), steps=9),
            again.log_partition(exact=False, chains=40, rungs=30),
        )

    whole = calls()
    monkeypatch.setattr("evidens.models.rbm_chains.CALL", 1)
    counts = {"rbm_gibbs": 0, "rbm_ais": 0}

    def counted(name):
        op = getattr(ops, name)

        def call(*args, **keys):
            counts[name] += 1
            return op(*args, **keys)

        return call

    for name in counts:
        monkeypatch.setattr(ops, name, counted(name))
    for cut, one in zip(calls(), whole):
        np.testing.assert_array_equal(cut, one)
    assert counts["rbm_gibbs"] == 4 * 9
    assert counts["rbm_ais"] > 1
