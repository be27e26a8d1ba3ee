"""Steps of normal emissions in memory that is laid out once: the other way, to the last digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

import evidens
from evidens import GaussianHMM
from evidens.models import hmm_normal

LENGTHS = [30, 1, 25, 44, 12]
NAMES = ("startprob_", "transmat_", "means_", "covars_", "statistics_")


def frames(d=2, seed=0):
    rng = np.random.default_rng(seed)
    states = np.repeat(rng.integers(0, 3, sum(LENGTHS) // 4), 4)
    return rng.standard_normal((len(states), d)) + 3.0 * states[:, None]


def fitted(monkeypatch, X, alone=False, sample_weight=None, **params):
    """A fit, and how many steps it made in memory of its own; ``alone``: none."""
    made = []
    with monkeypatch.context() as patch:
        step = hmm_normal.NormalSteps.step
        patch.setattr(
            hmm_normal.NormalSteps, "step", lambda *args: made.append(found := step(*args)) or found
        )
        if alone:
            patch.setattr(GaussianHMM, "_laid_out", lambda *args: None)
        model = GaussianHMM(3, random_state=0, **params)
        model.fit(X, LENGTHS, sample_weight=sample_weight)
    return model, sum(found is not None for found in made)


def assert_same(a, b):
    for name in NAMES:
        np.testing.assert_allclose(
            getattr(a, name), getattr(b, name), rtol=1e-10, atol=1e-12, err_msg=name
        )
    np.testing.assert_allclose(a.monitor_.history, b.monitor_.history, rtol=1e-12)
    assert (a.n_iter_, a.converged_) == (b.n_iter_, b.converged_)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"n_iter": 1},
        {"n_iter": 2},
        {"n_iter": 3, "params": "st"},
        {"params": "mc"},
        {"params": "tc", "n_iter": 4},
        {"params": "sm", "n_iter": 4},
        {"startprob_prior": 2.0, "transmat_prior": np.array([[2.0], [1.0], [3.0]])},
        {"startprob_prior": [1.0, 2.0, 3.0], "transmat_prior": np.full((3, 3), 1.5)},
        {"means_prior": 1.0, "means_weight": 2.0},
        {"means_prior": np.arange(6.0).reshape(3, 2), "means_weight": np.array([1.0, 0.5])},
        {"covars_prior": np.array([0.1, 2.0]), "covars_weight": 3},
        {"covars_prior": 0.5, "covars_weight": np.full((3, 2), 4.0)},
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_fit(monkeypatch, params, weighted):
    X, weight = frames(), np.array([1.0, 0.0, 2.0, 0.5, 3.0]) if weighted else None
    got, steps = fitted(monkeypatch, X, sample_weight=weight, **params)
    want, none = fitted(monkeypatch, X, True, sample_weight=weight, **params)
    assert (steps, none) == (got.n_iter_, 0)
    assert_same(got, want)
    more = frames(seed=1)[:50]
    assert_same(got.partial_fit(more), want.partial_fit(more))


def test_what_it_does_not_do(monkeypatch):
    X = frames()
    for params in ({"covariance_type": "full"}, {"covariance_type": "spherical"}):
        assert fitted(monkeypatch, X, **params)[1] == 0
    assert fitted(monkeypatch, X.astype(np.float32))[1] == 0
    X[3, 1] = np.nan
    assert fitted(monkeypatch, X)[1] == 0
    with evidens.backend("reference"):
        assert fitted(monkeypatch, frames())[1] == 0


@pytest.mark.parametrize("view", [np.asfortranarray, lambda x: np.hstack([x, x])[:, :2]])
def test_strides(monkeypatch, view):
    X = frames()
    got, steps = fitted(monkeypatch, view(X))
    assert steps == got.n_iter_
    assert_same(got, fitted(monkeypatch, X)[0])


def test_results_are_the_users(monkeypatch):
    """Nothing of the memory that steps share is left in the model."""
    X = torch.from_numpy(frames())
    first, _ = fitted(monkeypatch, X, n_iter=3)
    kept = {name: getattr(first, name).clone() for name in NAMES}
    first.fit(X + 1, LENGTHS)
    second, _ = fitted(monkeypatch, X, n_iter=3)
    for name in NAMES:
        assert torch.equal(getattr(second, name), kept[name])


def test_a_state_that_nobody_visits(monkeypatch):
    X = frames()
    start = {"n_iter": 4, "init_params": "", "params": "stmc"}

    def fit(alone):
        with monkeypatch.context() as patch:
            if alone:
                patch.setattr(GaussianHMM, "_laid_out", lambda *args: None)
            model = GaussianHMM(3, **start)
            model.startprob_ = np.array([0.5, 0.5, 0.0])
            model.transmat_ = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.2, 0.2, 0.6]])
            model.means_, model.covars_ = np.array([[0.0, 0], [4, 4], [9, 9]]), np.ones((3, 2))
            with pytest.warns(ConvergenceWarning, match=r"States \[2\] kept"):
                return model.fit(X, LENGTHS)

    got = fit(False)
    assert_same(got, fit(True))
    np.testing.assert_array_equal(got.means_[2], [9, 9])
    np.testing.assert_array_equal(got.transmat_[2], [0.2, 0.2, 0.6])


def test_a_sequence_beyond_linear_space(monkeypatch):
    """From the first sequence that linear space loses, the other way goes on."""
    X = frames()
    X[40] = 1e4  # many standard deviations from every state, with zeros in transmat_
    start = dict(n_iter=5, init_params="mc")

    def fit(alone):
        with monkeypatch.context() as patch:
            if alone:
                patch.setattr(GaussianHMM, "_laid_out", lambda *args: None)
            model = GaussianHMM(3, random_state=0, **start)
            model.startprob_ = np.array([1.0, 0.0, 0.0])
            model.transmat_ = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])
            return model.fit(X, LENGTHS)

    assert_same(fit(False), fit(True))


@pytest.mark.parametrize("kind", ["diag", "spherical", "full"])
@pytest.mark.parametrize("alone", [False, True])
def test_priors_of_any_memory_layout(monkeypatch, kind, alone):
    """A row for all states, Fortran's order and a transpose are what they look like."""
    rng = np.random.default_rng(2)
    own = {"means_prior": rng.normal(size=3) * 9, "means_weight": rng.random(3) * 9}
    if kind != "full":
        own["covars_prior"] = rng.random(3) + 0.1
    steps = rng.random((3, 3)) * 9 + 1
    X, settings = frames(3), {"covariance_type": kind, "n_iter": 2}
    whole = {name: np.tile(row, (3, 1)) for name, row in own.items()}
    want, _ = fitted(monkeypatch, X, True, transmat_prior=steps, **whole, **settings)
    columns = {name: np.asfortranarray(value) for name, value in whole.items()}
    for priors, transmat_prior in ((own, np.asfortranarray(steps)), (columns, steps.T.copy().T)):
        got, _ = fitted(monkeypatch, X, alone, transmat_prior=transmat_prior, **priors, **settings)
        assert_same(got, want)


def test_a_row_of_means_as_the_formula():
    X = frames()
    start = GaussianHMM(1, means_prior=np.array([5.0, -7.0]), means_weight=50.0, n_iter=1).fit(X)
    want = (X.sum(0) + 50 * np.array([5.0, -7.0])) / (len(X) + 50)
    np.testing.assert_allclose(start.means_[0], want)


def test_lazily_negated_weights_and_attributes():
    X, w = frames(), torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0]).double()
    want = GaussianHMM(3, random_state=0).fit(X, LENGTHS, sample_weight=w)
    got = GaussianHMM(3, random_state=0).fit(X, LENGTHS, sample_weight=torch._neg_view(-w))
    assert_same(got, want)
    score = got.score(X, LENGTHS)
    got.means_ = torch._neg_view(-torch.from_numpy(got.means_))
    assert got.score(X, LENGTHS) == pytest.approx(score, rel=1e-12)


# The first look for what is not finite is at X.
@pytest.mark.parametrize(("call", "last"), [("hmm_gaussian", 4), ("all_finite", 5)])
def test_ctrl_c_inside_a_step(monkeypatch, call, last):
    """The parameters and sums of the last whole step are not those that were being written."""
    X, calls = frames(), iter(range(100))
    want, _ = fitted(monkeypatch, X, n_iter=4)
    function = getattr(evidens._native.library, call)

    def interrupted(*arguments):
        found = function(*arguments)
        if next(calls) == last:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(evidens._native.library, call, interrupted)
        model = GaussianHMM(3, random_state=0, n_iter=50)
        with pytest.warns(RuntimeWarning, match="interrupted"):
            model.fit(X, LENGTHS)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(model, name), getattr(want, name))
