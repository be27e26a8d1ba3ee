"""What flows refuse, and how they say so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.flow_cases import QUICK, SMALL, fitted, moons
from scipy import sparse

from evidens import NeuralSplineFlow, RealNVP

X, y = moons(100)
NAN = X.copy()
NAN[[3, 5], [1, 0]] = np.nan
INF = X.copy()
INF[7, 0] = -np.inf


def flow(**options):
    return RealNVP(2, **SMALL | options)


def learn(data, **options):
    return flow(**options).fit(data, epochs=1, **QUICK)


@pytest.mark.parametrize("call", [learn, lambda x: fitted(RealNVP).log_prob(x)])
@pytest.mark.parametrize(
    "data, error, message",
    [
        (
            NAN,
            ValueError,
            r"RealNVP: X must be finite, got nan at \[3, 1\] and 1 more\. It has",
        ),
        (INF, ValueError, r"X must be finite, got -inf at \[7, 0\]\. It"),
        (X[:, :1], ValueError, r"X must have shape \(N, 2\), got \(100, 1\)"),
        (X[:, 0], ValueError, r"got \(100,\)\. Reshape it with X\[:, None\]"),
        (X[None], ValueError, r"got \(1, 100, 2\)"),
        (sparse.csr_matrix(X), TypeError, r"X is sparse; pass X\.toarray\(\)"),
        ([["a", "b"]], TypeError, "X must hold numbers"),
        ([[1.0, None]], ValueError, "X must be finite"),
        ([[1.0, "a"]], TypeError, "X must hold numbers"),
        (X + 1j, TypeError, "X must hold numbers, got complex128"),
        (torch.zeros(3, 2, dtype=torch.complex64), TypeError, "X must be real"),
    ],
)
def test_rows_that_are_refused(call, data, error, message):
    with pytest.raises(error, match=message):
        call(data)


def test_rows_that_are_too_few():
    for data in (X[:0], X[:1], X[:2]):
        with pytest.raises(ValueError, match="X must have at least"):
            learn(data)
    assert flow().fit(X[:2], validation_fraction=0, epochs=1, **QUICK).n_iter_ == 1
    assert learn(X[:3]).n_iter_ == 1
    with pytest.raises(ValueError, match="at least 3 rows of positive weight"):
        flow().fit(X[:3], sample_weight=[1, 1, 0])


def test_tensors_are_refused_in_fit_too():
    with pytest.raises(ValueError, match=r"X must be finite, got nan at \[3, 1\]"):
        learn(torch.from_numpy(NAN))


def test_a_failed_fit_changes_nothing():
    model = flow(classes=2).fit(X, np.where(y, "a", "b"), epochs=1, **QUICK)
    before = model.log_prob(X)
    for bad in (NAN, np.c_[X[:, 0], np.ones(100)]):
        with pytest.raises(ValueError, match="X"):
            model.fit(bad, y)
    assert (model.log_prob(X) == before).all()
    assert model.classes_.tolist() == ["a", "b"]


def test_numbers_of_every_kind():
    expected = fitted(RealNVP).log_prob(np.round(X))
    whole = np.round(X)
    for data in (
        whole.astype(int),
        whole.astype(np.float32),
        whole.astype(object),
        whole.tolist(),
        np.asfortranarray(whole),
        whole[::-1][::-1],
        whole.astype(">f8"),
        torch.from_numpy(whole.astype(np.int32)),
    ):
        np.testing.assert_allclose(
            torch.as_tensor(fitted(RealNVP).log_prob(data)).detach(), expected, atol=1e-4
        )
    frozen = whole.copy()
    frozen.flags.writeable = False
    np.testing.assert_allclose(fitted(RealNVP).log_prob(frozen), expected, atol=1e-4)


# --- context --------------------------------------------------------------------------------------


def conditional():
    c = np.abs(X[:, :1]) * [[1.0, 100.0]] + [[0.0, 1e6]]
    return NeuralSplineFlow(2, context=2, layers=2, hidden=(8,)), c


def test_context_is_standardised():
    model, c = conditional()
    model.fit(X, context=c, epochs=1, **QUICK)
    inner = model.standard.condition(torch.from_numpy(c))
    assert inner.abs().max() < 10
    constant = np.c_[c[:, :1], np.full(100, 7.0)]
    assert np.isfinite(model.fit(X, context=constant, epochs=1, **QUICK).history_["train"][0])


def test_one_context_for_all_rows():
    model, c = conditional()
    model.fit(X, context=c, epochs=2, **QUICK)
    same = np.repeat(c[:1], 100, 0)
    for one in (c[0], c[:1], c[0].tolist()):
        assert (model.log_prob(X, one) == model.log_prob(X, same)).all()
        drawn = model.sample(100, one, random_state=0)
        assert (drawn == model.sample(100, same, random_state=0)).all()
    assert isinstance(model.sample(5, torch.from_numpy(c[0])), torch.Tensor)
    single = NeuralSplineFlow(2, context=1, layers=1, hidden=(8,))
    single.fit(X, context=c[:, 0], epochs=1, **QUICK)
    assert (single.log_prob(X, c[:, 0]) == single.log_prob(X, c[:, :1])).all()
    drawn = single.sample(5, 0.5, random_state=0)
    assert (drawn == single.sample(5, [0.5], random_state=0)).all()
    # A context asks for its gradient as a row does.
    inverse = torch.zeros(3, 1, requires_grad=True)
    single.log_prob(torch.zeros(3, 2), inverse).sum().backward()
    assert inverse.grad.abs().min() > 0


def test_contexts_that_are_refused():
    model, c = conditional()
    with pytest.raises(ValueError, match=r"context must have shape \(N, 2\), got None"):
        model.fit(X)
    model.fit(X, context=c, epochs=1, **QUICK)
    with pytest.raises(ValueError, match=r"context must have shape \(100, 2\) or be one row, got"):
        model.log_prob(X, c[:50])
    with pytest.raises(ValueError, match=r"got \(100, 1\)"):
        model.log_prob(X, c[:, :1])
    with pytest.raises(ValueError, match="context must be finite"):
        model.fit(X, context=c * np.nan)
    with pytest.raises(ValueError, match=r"context must be finite, got nan at \[0, 0\]"):
        model.log_prob(X, c * np.nan)
    with pytest.raises(ValueError, match="context must be None, since the model has context=0"):
        fitted(RealNVP).log_prob(X, c)
    with pytest.raises(ValueError, match="n must be an integer that is not negative, got -1"):
        fitted(RealNVP).sample(-1)
