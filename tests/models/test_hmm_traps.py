"""Where other implementations give NaN, an error, or zeros that come to life."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from models.hmm_cases import (
    COVARIANCES,
    FAMILIES,
    LENGTHS,
    N,
    assert_same,
    attributes,
    frames,
    model,
    quiet,
    start_from,
)
from sklearn.exceptions import ConvergenceWarning

import evidens
from evidens import ops
from evidens.hmm import ConvergenceMonitor

quiet()
pytestmark = pytest.mark.usefixtures("one_thread")


def assert_sane(m, family):
    for name, value in attributes(m, family).items():
        assert np.isfinite(value).all(), name
    np.testing.assert_allclose(m.startprob_.sum(), 1)
    np.testing.assert_allclose(m.transmat_.sum(1), 1)
    m._check()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_that_nobody_reaches(family):
    X = frames(family)
    start = model(family).fit(X, LENGTHS)
    m = start_from(model(family), start, family)
    m.startprob_ = np.array([0.5, 0.5, 0.0])
    m.transmat_ = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    with pytest.warns(ConvergenceWarning, match=re.escape("States [2] kept parameters")):
        m.fit(X, LENGTHS)
    assert_sane(m, family)
    assert m.startprob_[2] == 0
    assert (m.transmat_[:2, 2] == 0).all()
    np.testing.assert_array_equal(m.transmat_[2], [0.2, 0.3, 0.5])
    before, after = attributes(start, family), attributes(m, family)
    for name in list(after)[2:]:
        np.testing.assert_array_equal(after[name][2], before[name][2], err_msg=name)
    assert m.predict_proba(X, LENGTHS)[:, 2].max() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_left_right_zeros_stay_zero(family):
    X = frames(family)
    letters = {"Gaussian": "mc", "GMM": "mcw", "Poisson": "l", "Bernoulli": "b"}
    m = model(family, init_params=letters.get(family, "e"), n_iter=10)
    m.startprob_ = np.array([1.0, 0.0, 0.0])
    m.transmat_ = np.array([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]])
    zero = m.transmat_ == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        m.fit(X, LENGTHS)
    assert_sane(m, family)
    assert (m.transmat_[zero] == 0).all()
    np.testing.assert_array_equal(m.startprob_, [1, 0, 0])
    path = m.predict(X, LENGTHS)
    ends = np.cumsum(LENGTHS)[:-1]
    assert all((np.diff(part) >= 0).all() for part in np.split(path, ends))


@pytest.mark.parametrize("implementation", ["log", "scaling"])
@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_an_outlier(covariance_type, implementation):
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(0, 1, (100, 1)), rng.normal(5, 1, (100, 1))])
    X[40] = 1e8
    m = evidens.GaussianHMM(
        2, covariance_type, init_params="", n_iter=20, implementation=implementation
    )
    m.startprob_, m.transmat_ = [0.5, 0.5], [[0.4, 0.6], [0.6, 0.4]]
    m.means_ = [[0.0], [5.0]]
    m.covars_ = {"full": [[[1.0]], [[1.0]]], "tied": [[1.0]]}.get(covariance_type, [[1.0], [1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        m.fit(X)
    assert_sane(m, "Gaussian")
    assert np.isfinite(m.monitor_.history).all()
    np.testing.assert_allclose(m.predict_proba(X).sum(1), 1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("covariance_type", COVARIANCES)
@pytest.mark.parametrize("family", ["Gaussian", "GMM"])
def test_degenerate_frames(family, covariance_type, dtype):
    rng = np.random.default_rng(0)
    cases = {
        "constant column": np.c_[rng.normal(size=(50, 2)), np.full(50, 3.7)],
        "frames twice": np.repeat(rng.normal(size=(10, 2)), 5, 0),
        "one feature": rng.normal(size=(30, 1)),
        "wider than long": rng.normal(size=(8, 20)),
        "two values": np.repeat([[0.0, 0.0], [9999.0, 9999.0]], 20, 0),
    }
    for X in cases.values():
        params = {"covars_prior": 0.0} if family == "Gaussian" else {}
        m = model(family, covariance_type=covariance_type, **params)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # k-means finds fewer clusters, states collapse
            m.fit(X.astype(dtype))
        for name, value in attributes(m, family).items():
            assert np.isfinite(value).all(), name
        assert m.means_.dtype == dtype
        assert np.isfinite(m.score(X.astype(dtype)))
        np.testing.assert_allclose(m.predict_proba(X).sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_that_no_path_explains(family):
    X = frames(family)
    start = model(family).fit(X, LENGTHS)
    m = start_from(model(family), start, family)
    m.startprob_ = np.array([1.0, 0.0, 0.0])
    m.transmat_ = np.eye(3)
    labels = np.full(N, -1)
    labels[0], labels[5] = 0, 1  # from 0 to 1 there is no way
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        m.fit(X, LENGTHS, labels=labels)
    messages = [str(w.message) for w in seen]
    assert any("no path of states explains sequences of weight 1" in text for text in messages)
    assert m.monitor_.history[0] == -np.inf
    assert_sane(m, family)
    # Nothing was learned from it: the others alone give the same.
    other = start_from(model(family), start, family)
    other.startprob_, other.transmat_ = np.array([1.0, 0.0, 0.0]), np.eye(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.fit(X[LENGTHS[0] :], LENGTHS[1:])
    assert_same(m, other, family, 1e-12)


def test_impossible_frames():
    m = evidens.CategoricalHMM(2, n_features=3)
    m.startprob_, m.transmat_ = [0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]]
    m.emissionprob_ = [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]
    X, lengths = [[0], [2], [1], [0]], [2, 2]
    np.testing.assert_allclose(m.log_prob(X, lengths), [-np.inf, np.log(0.25 * 0.75)])
    score, posteriors = m.score_samples(X, lengths)
    assert score == -np.inf
    np.testing.assert_array_equal(posteriors[:2], 0)
    np.testing.assert_allclose(posteriors[2:].sum(1), 1)
    for algorithm in ("viterbi", "map"):
        path = m.decode(X, lengths, algorithm)[1]
        assert path[:2].tolist() == [-1, -1]
        assert (path[2:] >= 0).all()
    assert m.decode(X, lengths)[0] == -np.inf
    p = evidens.PoissonHMM(2)
    p.startprob_, p.transmat_ = m.startprob_, m.transmat_
    p.lambdas_ = [[0.0], [0.0]]
    np.testing.assert_array_equal(p.log_prob([[0], [3]], [1, 1]), [0, -np.inf])


@pytest.mark.parametrize("family", FAMILIES)
def test_ctrl_c_keeps_what_was_learned(family, monkeypatch):
    X = frames(family)
    three = model(family, n_iter=3).fit(X, LENGTHS)
    calls = iter(range(100))
    where, name = ops, "hmm_forward_backward"
    if family == "Gaussian":
        where, name = evidens._native.library, "hmm_gaussian"
    op = getattr(where, name)

    def interrupted(*args, **keys):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return op(*args, **keys)

    monkeypatch.setattr(where, name, interrupted)
    m = model(family, n_iter=50)
    with pytest.warns(RuntimeWarning, match="interrupted; the parameters of iteration 3"):
        m.fit(X, LENGTHS)
    assert_same(m, three, family, 0, 0)
    assert m.n_iter_ == 3
    assert not m.converged_


def test_a_failed_fit_leaves_the_model_alone():
    X = frames("Gaussian")
    m = model("Gaussian").fit(X, LENGTHS)
    before = dict(vars(m))
    for bad in (np.full_like(X, np.inf), X[:, :1], X[0]):
        with pytest.raises(ValueError):
            m.fit(bad)
        assert vars(m) == before


class TestMonitor:
    def test_stops_as_hmmlearn_does(self):
        X = frames("Gaussian")
        m = model("Gaussian", n_iter=100, tol=1e-2).fit(X, LENGTHS)
        gains = np.diff(m.monitor_.history)
        assert gains[-1] < 1e-2 <= gains[:-1].min()
        assert m.converged_
        assert m.n_iter_ == m.monitor_.iter == len(m.monitor_.history)
        # The parameters are those after the last M step, the history is that before it.
        assert m.score(X, LENGTHS) > m.monitor_.history[-1]
        assert not model("Gaussian", n_iter=2).fit(X, LENGTHS).converged_

    def test_ones_own(self):
        class UpTo(ConvergenceMonitor):
            @property
            def converged(self):
                seen.append(m.score(X, LENGTHS))
                return self.history[-1] > self.tol

        X, seen = frames("Gaussian"), []
        reference = model("Gaussian", n_iter=30).fit(X, LENGTHS).monitor_.history
        m = model("Gaussian", n_iter=30)
        m.monitor_ = UpTo(reference[3] - 1e-6, 30, False)
        m.fit(X, LENGTHS)
        np.testing.assert_allclose(m.monitor_.history, list(reference)[:4])
        # It may look at the model, which has the parameters of the step just made.
        np.testing.assert_allclose(seen[:3], list(reference)[1:4])

    def test_settings_reach_it(self):
        m = model("Gaussian")
        m.monitor_.tol = 7.0
        m.set_params(n_iter=3)
        assert (m.monitor_.tol, m.monitor_.n_iter) == (7.0, 3)

    def test_verbose(self, capsys):
        model("Gaussian", verbose=True, n_iter=3).fit(frames("Gaussian"), LENGTHS)
        out, err = capsys.readouterr()
        assert not out
        assert len(err.splitlines()) == 3
        assert err.split()[2] == "+nan"


BAD = [
    ({"startprob_": [0.5, 0.6, 0.1]}, "startprob_ must sum to 1 (got 1.2000)"),
    ({"startprob_": [1.5, -0.5, 0.0]}, "startprob_ must not be negative (got -0.5)"),
    ({"startprob_": [0.5, 0.5]}, "startprob_ must have length n_components"),
    ({"transmat_": np.eye(3) * 2}, "transmat_ rows must sum to 1 (got row sums of [2. 2. 2.])"),
    ({"transmat_": np.eye(2)}, "transmat_ must have shape (n_components, n_components)"),
    ({"algorithm": "best"}, "Unknown decoder 'best'"),
    ({"implementation": "fast"}, "implementation: expected 'log' or 'scaling', got 'fast'"),
    ({"means_": np.full((3, 2), np.nan)}, "means_ must be finite"),
    ({"n_iter": -1}, "n_iter: expected a non-negative integer, got -1"),
    ({"tol": None}, "tol: expected a number (nats), got None"),
    ({"n_components": 0}, "n_components: expected an integer of at least 1, got 0"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_parameters(change, message):
    X = frames("Gaussian")
    m = start_from(model("Gaussian"), model("Gaussian").fit(X), "Gaussian")
    for name, value in change.items():
        setattr(m, name, value)
    for method in ("fit", "score", "predict"):
        with pytest.raises(ValueError, match=re.escape(message)):
            getattr(m, method)(X)


INPUT = [
    ("Gaussian", {"lengths": [40, 40]}, "lengths array [40, 40] doesn't sum to 100 samples"),
    ("Gaussian", {"lengths": [101, -1]}, "lengths: expected non-negative integers, got -1"),
    ("Gaussian", {"lengths": [50.0, 50.0]}, "lengths: expected a list of integers"),
    ("Gaussian", {"sample_weight": [1, 1]}, "one value for each of the 1 sequences"),
    ("Gaussian", {"sample_weight": [-1.0]}, "expected non-negative finite weights, got -1.0"),
    ("Gaussian", {"sample_weight": [0.0]}, "all weights are zero"),
    ("Gaussian", {"labels": [0]}, "one value for each of the 100 rows"),
    ("Gaussian", {"labels": np.full(N, 3)}, "labels: expected integers from -1 (unknown) to"),
    ("Gaussian", {"X": np.full((N, 2), np.inf)}, "Input X contains infinity"),
    ("Gaussian", {"X": np.full((N, 2), np.nan)}, "feature 0 has no observed value"),
    ("Gaussian", {"X": np.zeros((2, 2))}, "Expected n_samples >= n_components"),
    ("Gaussian", {"X": np.zeros((0, 2))}, "minimum of 1 is required"),
    ("Categorical", {"X": np.zeros((N, 1))}, "Symbols should be integers"),
    ("Categorical", {"X": np.full((N, 1), -1)}, "Symbols should be nonnegative"),
    ("Multinomial", {"X": np.full((N, 2), 0.5)}, "Symbol counts should be nonnegative integers"),
    ("Poisson", {"X": np.full((N, 2), -1)}, "Symbol counts should be nonnegative integers"),
    ("Bernoulli", {"X": np.full((N, 2), 2)}, "X: expected 0, 1 or NaN (missing), got 2.0"),
]


@pytest.mark.parametrize(("family", "change", "message"), INPUT)
def test_bad_input(family, change, message):
    keys = {"X": frames(family)} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        model(family).fit(**keys)


def test_symbols_that_fit_has_not_seen():
    X = frames("Categorical")
    m = model("Categorical").fit(X, LENGTHS)
    with pytest.raises(ValueError, match=r"Largest symbol is 5 but the model only emits .* to 4"):
        m.score([[5]])
    wide = model("Categorical", n_features=7).fit(X, LENGTHS)
    assert wide.score([[6]]) == -np.inf
    assert wide.emissionprob_.shape == (3, 7)
    with pytest.raises(ValueError, match="Largest symbol is 9"):
        m.fit(X + 5, LENGTHS)


def test_symbols_that_need_too_large_a_table():
    with pytest.raises(ValueError, match=r"a table of 3 x 1000000000000001 probabilities"):
        model("Categorical").fit([[0], [10**15]])


def test_bad_draws():
    m = model("Gaussian").fit(frames("Gaussian"), LENGTHS)
    with pytest.raises(ValueError, match="n_samples: expected at least 1, got 0"):
        m.sample(0)
    for state in (-1, 3):
        with pytest.raises(ValueError, match="currstate: expected a state from 0 to 2"):
            m.sample(3, currstate=state)


def test_other_sizes():
    X = frames("Gaussian")
    m = model("Gaussian").fit(X, LENGTHS)
    with pytest.raises(ValueError, match="Unexpected number of dimensions, got 1 but expected 2"):
        m.fit(X[:, :1], LENGTHS)
    with pytest.raises(ValueError, match="X has 1 features, but GaussianHMM is expecting 2"):
        m.score(X[:, :1])
    with pytest.raises(ValueError, match="X has 1 features, but GaussianHMM is expecting 2"):
        m.score(torch.from_numpy(X[:, :1]))
    with pytest.raises(ValueError, match="params: GaussianHMM knows the letters 'stmc', got 'stz'"):
        model("Gaussian", params="stz").fit(X)
    with pytest.raises(ValueError, match=r"init_params: GaussianHMM knows .* got 'q'"):
        model("Gaussian", init_params="q").fit(X)
    text = r"one of \('spherical', 'diag', 'full', 'tied'\), got 'round'"
    for family in ("Gaussian", "GMM"):
        with pytest.raises(ValueError, match=text):
            model(family, covariance_type="round").fit(X)


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_sequences_and_single_frames(family):
    X = frames(family)
    m = model(family).fit(X, LENGTHS)
    with_empty = start_from(model(family), m, family).fit(X, [0, *LENGTHS, 0])
    assert_same(with_empty, start_from(model(family), m, family).fit(X, LENGTHS), family, 1e-12)
    assert m.log_prob(X, [0, N, 0]).tolist() == [0, m.log_prob(X)[0], 0]
    single = start_from(model(family, params="st"), m, family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        single.fit(X[:4], [1, 1, 1, 1])
    np.testing.assert_array_equal(single.transmat_, m.transmat_)  # no transition was seen
    assert_sane(single, family)


NOT_FINITE = [
    ("Gaussian", {"transmat_prior": np.nan}, "transmat_prior"),
    ("Gaussian", {"transmat_prior": np.inf}, "transmat_prior"),
    ("Gaussian", {"startprob_prior": [1, np.nan, 1]}, "startprob_prior"),
    ("Gaussian", {"means_prior": np.nan, "means_weight": 1}, "means_prior"),
    ("Gaussian", {"means_weight": np.inf}, "means_weight"),
    ("Gaussian", {"covars_prior": np.nan}, "covars_prior"),
    ("Gaussian", {"covars_weight": np.inf}, "covars_weight"),
    ("Gaussian", {"min_covar": np.nan}, "min_covar"),
    ("GMM", {"weights_prior": np.nan}, "weights_prior"),
    ("GMM", {"covars_weight": np.inf}, "covars_weight"),
    ("Categorical", {"emissionprob_prior": np.nan}, "emissionprob_prior"),
    ("Poisson", {"lambdas_prior": np.nan}, "lambdas_prior"),
    ("Poisson", {"lambdas_weight": np.inf}, "lambdas_weight"),
    ("Bernoulli", {"alpha": np.nan}, "alpha"),
]


@pytest.mark.parametrize(("family", "change", "name"), NOT_FINITE)
def test_priors_that_are_not_finite(family, change, name):
    X = frames(family)
    m = model(family).fit(X, LENGTHS).set_params(**change)
    before = dict(vars(m))
    for learn in (m.fit, m.partial_fit):
        if name == "min_covar" and learn == m.partial_fit:
            continue  # only a start needs it
        with pytest.raises(ValueError, match=f"{name}: expected finite numbers, got (nan|inf)"):
            learn(X, LENGTHS)
        assert vars(m) == before


@pytest.mark.parametrize("change", [{"lambdas_weight": -N - 1}, {"lambdas_prior": -1e4}])
def test_priors_that_would_make_rates_negative(change):
    X = frames("Poisson")
    m = model("Poisson").fit(X, LENGTHS).set_params(**change)
    before = dict(vars(m))
    with pytest.raises(ValueError, match="lambdas_prior, lambdas_weight: expected numbers that"):
        m.fit(X, LENGTHS)
    assert vars(m) == before


@pytest.mark.parametrize("covariance_type", COVARIANCES)
@pytest.mark.parametrize("family", ["Gaussian", "GMM"])
@pytest.mark.parametrize(("value", "dtype"), [(1e25, "f4"), (3e38, "f4"), (1e300, "f8")])
def test_squares_that_overflow(family, covariance_type, value, dtype):
    X = frames("Gaussian").astype(dtype)
    X[5] = value
    m = model(family, covariance_type=covariance_type)
    name, advice = ("float32", " or pass float64") if dtype == "f4" else ("float64", "")
    text = f"X: values up to {value:.3g} overflow {name} when squared; rescale them{advice}"
    with pytest.raises(ValueError, match=re.escape(text) + "$"):
        m.fit(X, LENGTHS)
    if value == 1e25 and covariance_type in ("spherical", "diag"):  # others would be singular
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            m.fit(X.astype("f8"), LENGTHS)
        assert all(np.isfinite(value).all() for value in attributes(m, family).values())


def test_an_em_step_that_overflows():
    X = frames("Gaussian").astype("f4")
    m = model("Gaussian").fit(X, LENGTHS).set_params(covars_prior=1e42)
    before = dict(vars(m))
    for learn in (m.fit, m.partial_fit):
        with pytest.raises(ValueError, match=r"covars_: expected finite .* for float32; rescale X"):
            learn(X, LENGTHS)
        assert vars(m) == before
    m.set_params(covars_prior=0.01, init_params="")  # squares that overflow inside
    X[5] = 1e25
    m.covars_ = np.full((3, 2), 1e38, "f4")
    with pytest.warns(ConvergenceWarning, match="kept parameters"):
        m.fit(X, LENGTHS)
    assert_sane(m, "Gaussian")


@pytest.mark.parametrize("params", ["stmc", "mc"])
def test_a_log_likelihood_that_overflows(params):
    X = frames("Gaussian").astype("f4")
    start = model("Gaussian", covariance_type="full").fit(X, LENGTHS)
    m = start_from(model("Gaussian", covariance_type="full", params=params), start, "Gaussian")
    X[5], m.means_ = 3e38, np.full((3, 2), -3e38, "f4")
    before = dict(vars(m))
    with pytest.raises(ValueError, match="X: its log-likelihood is NaN in float32; rescale X or"):
        m.fit(X, LENGTHS)
    assert vars(m) == before


@pytest.mark.parametrize("sequences", [1, 2])
def test_fit_stops_where_every_sequence_is_impossible(sequences):
    m = evidens.CategoricalHMM(1, n_features=2, init_params="", n_iter=50)
    m.startprob_, m.transmat_, m.emissionprob_ = [1.0], [[1.0]], [[1.0, 0.0]]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        m.fit([[0], [1]] * sequences, [2] * sequences)
    assert any(f"sequences of weight {sequences}:" in str(w.message) for w in seen)
    assert m.n_iter_ == 2
    assert not m.converged_
    # A prior makes the path possible at the first step.
    m.set_params(emissionprob_prior=2.0, n_iter=3, tol=-np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        m.fit([[0], [1]])
    assert m.n_iter_ == 3
    assert np.isfinite(m.monitor_.history[-1])


def test_draws_from_rows_that_sum_to_a_little_less():
    class Almost(np.random.RandomState):
        def rand(self, *shape):
            return 1 - 2.0**-53

    short = np.array([0.0, 1 - 9e-6, 0.0])
    m = evidens.CategoricalHMM(3)
    m.startprob_, m.transmat_, m.emissionprob_ = short, np.tile(short, (3, 1)), [short] * 3
    X, states = m.sample(5, random_state=Almost(0))
    np.testing.assert_array_equal(states, 1)
    np.testing.assert_array_equal(X, 1)
    other = evidens.MultinomialHMM(1, n_trials=10**6)
    other.startprob_, other.transmat_, other.emissionprob_ = [1.0], [[1.0]], short[None]
    np.testing.assert_array_equal(other.sample(5, random_state=0)[0][:, [0, 2]], 0)
