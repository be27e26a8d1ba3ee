"""What machines refuse, and in which words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.exceptions import NotFittedError

from evidens import BernoulliRBM, CategoricalRBM, GaussianRBM

X = (np.random.default_rng(0).random((40, 5)) < 0.5).astype(float)
NAN = np.where(np.arange(5) == 2, np.nan, X)


def model(**params):
    return BernoulliRBM(**({"n_components": 3, "n_iter": 1, "random_state": 0} | params))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_components", 0),
        ("n_components", 2.5),
        ("learning_rate", 0.0),
        ("learning_rate", -1.0),
        ("batch_size", 0),
        ("n_iter", -1),
        ("method", "sml"),
        ("steps", 0),
        ("n_chains", 0),
        ("n_temperatures", 1),
        ("momentum", 1.0),
        ("weight_decay", -1),
        ("schedule", "step"),
        ("visible", "gaussian"),
        ("hidden", "softmax"),
        ("monitor", -1),
    ],
)
def test_parameters_out_of_range(name, value):
    for call in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match=f"The '{name}' parameter of BernoulliRBM"):
            getattr(model(**{name: value}), call)(X)


@pytest.mark.parametrize("change", [lambda x: x, torch.from_numpy, csr_array])
@pytest.mark.parametrize(("value", "message"), [(np.nan, "contains NaN"), (np.inf, "infinity")])
def test_nan_and_infinity(change, value, message):
    bad = X.copy()
    bad[3, 2] = value
    rbm = model().fit(X)
    for call in (model().fit, model().partial_fit, rbm.transform, rbm.log_prob, rbm.gibbs):
        with pytest.raises(ValueError, match=f"Input X contains {message.split()[-1]}"):
            call(change(bad))
    with pytest.raises(ValueError, match="contains"):
        GaussianRBM(2).fit(change(bad))


@pytest.mark.parametrize(
    ("bad", "visible", "shown"),
    [(2 * X, "bernoulli", "2"), (X - 0.5, "bernoulli", "-0.5"), (X - 1.5, "spin", "-1.5")],
)
def test_values_outside_the_range_of_a_unit(bad, visible, shown):
    for some in (bad, csr_array(bad), torch.from_numpy(bad)):
        with pytest.warns(UserWarning, match=rf"X holds {shown}; expected states or means"):
            model(visible=visible).fit(some)
        with pytest.warns(UserWarning, match=rf"X holds {shown}"):
            model(visible=visible).partial_fit(some)


def test_only_states_have_a_probability():
    rbm = model().fit(X)
    for bad in (0.5 * X, 2 * X, torch.from_numpy(0.5 * X), csr_array(0.5 * X)):
        with pytest.raises(ValueError, match="expected states 0 or 1, which alone have a prob"):
            rbm.log_prob(bad)
        assert np.isfinite(np.asarray(rbm.free_energy(bad))).all()
    spin = model(visible="spin").fit(2 * X - 1)
    with pytest.raises(ValueError, match="expected states -1 or 1"):
        spin.log_prob(X)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.fit(X, labels=np.zeros(3)), r"labels: .*shape \(40,\), got shape \(3,\)"),
        (lambda m: m.fit(X, labels=np.zeros(40, int)), "at least two classes, got 1"),
        (lambda m: m.fit(X, labels=np.full(40, -1)), "at least two classes, got 0"),
        (lambda m: m.fit(X, labels=np.arange(40) / 2), r"got 0\.5 at row 1; fractions"),
        (lambda m: m.fit(X, labels=["a"] * 40), "LabelEncoder"),
        (lambda m: m.fit(X, sample_weight=-np.ones(40)), "sample_weight: expected non-negative"),
        (lambda m: m.fit(X, sample_weight=np.zeros(40)), "all weights are zero"),
        (lambda m: m.fit(X, sample_weight=[1, 2]), r"shape \(40,\), got shape \(2,\)"),
        (lambda m: m.fit(X, validation_data=X[:, :2]), "X has 2 features, but BernoulliRBM"),
        (lambda m: m.fit(X[0]), "Expected 2D array"),
        (lambda m: m.fit(X[:0]), "0 sample"),
        (lambda m: m.fit(X).transform(X[:, :2]), "X has 2 features"),
        (
            lambda m: m.fit(X).gibbs(X, steps=0),
            "gibbs: steps must be an integer of at least 1, got 0",
        ),
        (lambda m: m.fit(X).sample(-1), "sample: n must be an integer of at least 0, got -1"),
        (lambda m: m.fit(X).sample(2, steps=0), "sample: steps must be an integer of at least 1"),
        (lambda m: m.fit(X).impute(NAN, method="em"), "method must be one of gibbs, mean_field"),
        (lambda m: m.fit(X).impute(NAN, output="all"), "output must be one of mean, mode, sample"),
        (lambda m: m.fit(X).impute(NAN, steps=1), "steps must be an integer of at least 2, got 1"),
        (
            lambda m: m.fit(X).impute(NAN, method="mean_field", output="sample"),
            "a mean field has no samples",
        ),
        (
            lambda m: m.fit(X, labels=X[:, 0].astype(int)).sample(2, labels=[0, 5]),
            r"labels: expected one of \[0, 1\] or -1 for unknown, got 5 at row 1",
        ),
        (lambda m: m.fit(X).gibbs(X, steps=2.5), "gibbs: steps must be an integer of .* got 2.5"),
        (lambda m: m.fit(X).impute(NAN, steps=2.5), "impute: steps must be an integer .* got 2.5"),
        (
            lambda m: m.fit(X).impute(NAN, n_temperatures=0),
            "impute: n_temperatures must be an integer of at least 1, got 0",
        ),
        (
            lambda m: m.fit(X).impute(NAN, method="mean_field", n_temperatures=2),
            "a mean field has no temperatures",
        ),
        (
            lambda m: m.fit(X).impute(np.where(NAN == 1, 7, NAN)),
            "impute: X holds 7 at row 0 .* expected states 0 or 1, .* put NaN where",
        ),
        (
            lambda m: m.set_params(visible="spin").fit(2 * X - 1).impute(0.5 * X),
            "impute: X holds 0 .* expected states -1 or 1",
        ),
        (
            lambda m: m.set_params(monitor=1).fit(0.5 * X),
            "monitor: X holds 0.5 at row 0 .* fit with monitor=0",
        ),
        (
            lambda m: m.set_params(monitor=1).fit(X, validation_data=0.5 * X),
            "monitor: validation_data holds 0.5 .* fit with monitor=0",
        ),
        (lambda m: m.fit(X, labels=np.full(40, 1e30)), r"labels: .* got 1e\+30 at row 0"),
        (lambda m: m.fit(X, labels=np.full(40, np.inf)), "labels: .* got inf at row 0"),
        (
            lambda m: m.fit(X, labels=X[:, 0].astype(int)).sample(2, labels=0.5),
            "labels: expected integers .* got 0.5",
        ),
        (lambda m: m.fit(torch.zeros(3, 5, device="meta")), "X is a tensor on the meta device"),
        (lambda m: m.fit(X).score(X, sample_weight=np.zeros(40)), "score: sample_weight is zero"),
        (
            lambda m: m.fit(X, labels=X[:, 0].astype(int)).partial_fit(X),
            "was begun with classes",
        ),
        (lambda m: m.fit(X).partial_fit(X, labels=X[:, 0].astype(int)), "begun without classes"),
        (
            lambda m: m.set_params(n_components=40).fit(np.tile(X, 8)).log_partition(exact=True),
            "AIS|ais",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(model())


def test_classes_where_there_are_none():
    rbm = model().fit(X)
    assert not hasattr(rbm, "predict")
    with pytest.raises(AttributeError, match="no attribute 'predict_proba'"):
        rbm.predict_proba(X)
    with pytest.raises(AttributeError, match="knows no classes: fit it with labels="):
        rbm.sample(2, labels=[0, 1])


@pytest.mark.parametrize("cls", [BernoulliRBM, GaussianRBM, CategoricalRBM])
def test_before_fit(cls):
    rbm = cls()
    for name in ("transform", "log_prob", "score_samples", "free_energy", "impute"):
        with pytest.raises(NotFittedError):
            getattr(rbm, name)(X)
    for call in (rbm.sample, rbm.log_partition):
        with pytest.raises(NotFittedError):
            call()
    with pytest.raises(NotFittedError):
        _ = rbm.log_partition_


def test_parameters_that_are_not_finite_have_no_normaliser():
    rbm = model().fit(X)
    rbm.components_ = np.full((3, 5), np.nan)
    for exact in (True, False):
        with pytest.raises(ValueError, match="finite"):
            rbm.log_partition(exact=exact)


def test_files_of_other_classes(tmp_path):
    model().fit(X).save(tmp_path / "rbm")
    with pytest.raises(ValueError, match="holds a BernoulliRBM, not a GaussianRBM"):
        GaussianRBM.load(tmp_path / "rbm")


def test_the_rows_stay_as_they_are():
    kept = X.copy()
    kept.flags.writeable = False
    rbm = model().fit(kept)
    holes = NAN.copy()
    rbm.impute(holes, random_state=0), rbm.gibbs(kept), rbm.partial_fit(kept)
    np.testing.assert_array_equal(kept, X)
    np.testing.assert_array_equal(holes, NAN)
