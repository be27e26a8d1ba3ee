"""Parameters that passed the checks are checked again, and used anew, whenever they change."""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest
import torch
from models.hmm_cases import EMISSIONS, LENGTHS, frames, model, quiet
from torch.autograd import forward_ad

import evidens
from evidens.models import hmm_queries

quiet()
CHECKED_ONCE = ("Categorical", "Multinomial", "Poisson", "Bernoulli", "Gaussian")


def fitted(family):
    X = frames(family)
    return X, model(family).fit(X, LENGTHS)


def copied(m):
    """Another model with the same numbers, of which nothing is remembered."""
    return copy.deepcopy(m)


@pytest.mark.parametrize("family", CHECKED_ONCE)
def test_the_checks_run_once(family, monkeypatch):
    X, m = fitted(family)
    calls = []
    check = type(m)._check
    monkeypatch.setattr(type(m), "_check", lambda self: (calls.append(1), check(self))[1])
    first = m.predict_proba(X, LENGTHS)
    for _ in range(3):
        np.testing.assert_array_equal(m.predict_proba(X, LENGTHS), first)
    assert len(calls) == 1
    m.transmat_ = m.transmat_.copy()
    m.score(X, LENGTHS)
    assert len(calls) == 1
    m.tol = 0.5
    m.score(X, LENGTHS)
    assert len(calls) == 2


@pytest.mark.parametrize("how", ["in place", "replaced", "old array"])
@pytest.mark.parametrize("family", CHECKED_ONCE)
def test_changed_parameters_count_at_once(family, how):
    X, m = fitted(family)
    m.score(X, LENGTHS)
    hidden = {"covars_": "_covars_"}
    for name in ("startprob_", "transmat_", *(hidden.get(n, n) for n in EMISSIONS[family])):
        old = getattr(m, name)
        new = old[::-1].copy()
        if name == "transmat_":
            new = new[:, ::-1].copy()
        before = m.score(X, LENGTHS)
        if how == "in place":
            old[:] = new
        elif how == "replaced":
            setattr(m, name, new)
        else:  # what was remembered must not be the array itself
            setattr(m, name, old.copy())
            old[:] = new
            assert m.score(X, LENGTHS) == before
            setattr(m, name, new)
        got = m.score(X, LENGTHS)
        assert got == copied(m).score(X, LENGTHS)
        if name not in ("startprob_", "_covars_"):
            assert got != before


@pytest.mark.parametrize("family", CHECKED_ONCE)
def test_changes_are_checked(family):
    X, m = fitted(family)
    m.score(X, LENGTHS)
    m.startprob_[0] += 1
    with pytest.raises(ValueError, match="startprob_ must sum to 1"):
        m.score(X, LENGTHS)
    m.startprob_[0] -= 1
    m.score(X, LENGTHS)
    m.n_components = True
    with pytest.raises(ValueError, match="n_components: expected an integer of at least 1"):
        m.score(X, LENGTHS)
    m.n_components = 3
    m.transmat_ = m.transmat_[:2]
    with pytest.raises(ValueError, match="transmat_ must have shape"):
        m.decode(X, LENGTHS)


def test_covariances_in_place():
    X, m = fitted("Gaussian")
    m.score(X, LENGTHS)
    m._covars_[0, 0] = -1.0
    with pytest.raises(ValueError, match="'covars' must be symmetric, positive-definite"):
        m.score(X, LENGTHS)


def test_float32_attributes_are_others():
    X, m = fitted("Gaussian")
    before = m.log_prob(X.astype(np.float32), LENGTHS)
    assert before.dtype == np.float64
    for name in ("startprob_", "transmat_", "means_", "_covars_"):
        setattr(m, name, getattr(m, name).astype(np.float32))
    assert m.log_prob(X.astype(np.float32), LENGTHS).dtype == np.float32


def test_gradients_reach_parameters_that_are_tensors():
    X, m = fitted("Gaussian")
    m.log_prob(X, LENGTHS)
    x = torch.from_numpy(X)
    for name in ("means_", "transmat_", "startprob_"):
        before = getattr(m, name)
        setattr(m, name, torch.tensor(before, requires_grad=True))
        for _ in range(2):
            (g,) = torch.autograd.grad(m.log_prob(x, LENGTHS).sum(), getattr(m, name))
            assert g.abs().sum() > 0
        setattr(m, name, before)


def test_a_subclass_may_read_more():
    class Shifted(evidens.GaussianHMM):
        shift = 0.0

        def _emission(self):
            emission = super()._emission()
            return type(emission)(
                emission.covariance_type,
                emission.weights,
                emission.means + self.shift,
                emission.precisions_cholesky,
                emission.covariances,
            )

    X = frames("Gaussian")
    m = Shifted(3, random_state=0, n_iter=2).fit(X, LENGTHS)
    before = m.score(X, LENGTHS)
    m.shift = 5.0
    assert m.score(X, LENGTHS) != before


def test_nothing_is_kept_of_a_model_that_is_gone():
    X, m = fitted("Gaussian")
    m.score(X, LENGTHS)
    assert m in hmm_queries._CHECKED
    assert copied(m) not in hmm_queries._CHECKED
    gc.collect()
    count = len(hmm_queries._CHECKED)
    del m
    gc.collect()
    assert len(hmm_queries._CHECKED) == count - 1


@pytest.mark.parametrize(
    "lengths",
    [[25, 25, 25, 25], (25, 25, 25, 25), np.full(4, 25), torch.full((4,), 25), [np.int64(25)] * 4],
    ids=["list", "tuple", "array", "tensor", "numbers of numpy"],
)
def test_equal_lengths(lengths):
    X, m = fitted("Gaussian")
    parts = [m.log_prob(X[i : i + 25])[0] for i in range(0, 100, 25)]
    np.testing.assert_allclose(m.log_prob(X, lengths), parts, rtol=1e-12)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([25] * 3, "lengths array .* doesn't sum to 100 samples"),
        ([-25] * 4, "lengths: expected non-negative integers, got -25"),
        ([25.0] * 4, "lengths: expected a list of integers"),
        ([True] * 100, "lengths: expected a list of integers"),
        ([[25] * 4], "lengths: expected a list of integers"),
        ([0] * 4, "lengths array .* doesn't sum to 100 samples"),
    ],
)
def test_bad_lengths(lengths, message):
    X, m = fitted("Gaussian")
    with pytest.raises(ValueError, match=message):
        m.score(X, lengths)


def test_a_query_under_inference_mode_leaves_gradients_to_the_next():
    X = frames("Gaussian")
    for kind in ("diag", "full"):
        m = model("Gaussian", covariance_type=kind).fit(X, LENGTHS)
        with torch.inference_mode():
            want = m.score(X, LENGTHS)
        x = torch.tensor(X, requires_grad=True)
        total = m.log_prob(x, LENGTHS).sum()
        total.backward()
        assert total.item() == pytest.approx(want)
        assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["diag", "spherical", "full"])
def test_forward_derivatives(kind):
    X = frames("Gaussian")
    m = model("Gaussian", covariance_type=kind).fit(X, LENGTHS)
    x = torch.tensor(X, requires_grad=True)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    (slope,) = torch.autograd.grad(m.log_prob(x, LENGTHS).sum(), x)
    with forward_ad.dual_level():
        found = m.log_prob(forward_ad.make_dual(x.detach(), v), LENGTHS)
        tangent = forward_ad.unpack_dual(found).tangent
    torch.testing.assert_close(tangent.sum(), (slope * v).sum())
    _, tangent = torch.func.jvp(lambda z: m.log_prob(z, LENGTHS).sum(), (x.detach(),), (v,))
    torch.testing.assert_close(tangent, (slope * v).sum())


def test_another_default_device():
    """Kernels write into memory of the host, whatever device new tensors go to."""
    X = frames("Gaussian")
    m = model("Gaussian").fit(X, LENGTHS)
    want = m.score(X, LENGTHS), m.predict(X, LENGTHS), m.predict_proba(X, LENGTHS)
    with torch.device("meta"):
        got = m.score(X, LENGTHS), m.predict(X, LENGTHS), m.predict_proba(X, LENGTHS)
    for a, b in zip(got, want):
        np.testing.assert_array_equal(a, b)


def test_a_model_that_cannot_be_hashed():
    class Equal(evidens.GaussianHMM):
        def __eq__(self, other):
            return True

    X = frames("Gaussian")
    m = Equal(2, random_state=0).fit(X, LENGTHS)
    assert np.isfinite(m.score(X, LENGTHS))
