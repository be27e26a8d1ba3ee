"""The gmm reference, the oracle of the others, against SciPy and against plain NumPy loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.gmm_cases import TYPES, mixture
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from evidens.reference import gmm as reference

SHAPES = [(9, 1, 1), (9, 2, 3), (9, 5, 4)]


def covariances(case) -> np.ndarray:
    """(K, D, D), by the definition: the inverse of P P^T."""
    k, d = case.means.shape
    p = case.p.numpy()
    if case.covariance_type in ("full", "tied"):
        p = np.triu(p)
    elif case.covariance_type == "diag":
        p = np.stack([np.diag(row) for row in p])
    else:
        p = p[:, None, None] * np.eye(d)
    return np.broadcast_to(np.linalg.inv(p @ np.swapaxes(p, -1, -2)), (k, d, d))


def scipy_terms(case) -> np.ndarray:
    columns = [
        np.atleast_1d(multivariate_normal(mean, covariance).logpdf(case.x.numpy()))
        for mean, covariance in zip(case.means.numpy(), covariances(case))
    ]
    return np.stack(columns, 1) + case.log_weights.numpy()


@pytest.fixture(params=TYPES)
def covariance_type(request):
    return request.param


@pytest.fixture(params=SHAPES, ids=str)
def case(request, covariance_type):
    return mixture(*request.param, covariance_type, torch.float64)


def close(actual, expected):
    # SciPy inverts the covariance again: its condition is below 1e3 here.
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-11, atol=1e-11)


def test_log_prob(case):
    terms = scipy_terms(case)
    close(reference.gmm_component_log_prob(case.x, *case.parameters), terms)
    close(reference.gmm_log_prob(case.x, *case.parameters), logsumexp(terms, 1))


def loops(case, r):
    """Moments by enumeration of rows, components and features."""
    x, means = case.x.numpy(), case.means.numpy()
    (n_rows, d), k = x.shape, len(means)
    weight, first = np.zeros(k), np.zeros((k, d))
    scatter = np.zeros((k, d, d))
    for n in range(n_rows):
        for c in range(k):
            weight[c] += r[n, c]
            for i in range(d):
                first[c, i] += r[n, c] * (x[n, i] - means[c, i])
                for j in range(d):
                    scatter[c, i, j] += r[n, c] * (x[n, i] - means[c, i]) * (x[n, j] - means[c, j])
    second = {
        "full": scatter,
        "tied": scatter.sum(0),
        "diag": np.array([np.diag(s) for s in scatter]),
        "spherical": np.array([np.trace(s) / d for s in scatter]),
    }[case.covariance_type]
    return weight, first, second


def test_moments(case):
    for actual, expected in zip(
        reference.gmm_moments(case.x, case.responsibilities, case.means, case.covariance_type),
        loops(case, case.responsibilities.numpy()),
    ):
        close(actual, expected)


@pytest.mark.parametrize("with_weight", [False, True])
@pytest.mark.parametrize("with_labels", [False, True])
def test_statistics(case, with_weight, with_labels):
    (n, _), k = case.x.shape, case.means.shape[0]
    terms = scipy_terms(case)
    log_prob = logsumexp(terms, 1)
    r = np.exp(terms - log_prob[:, None])
    labels = weight = None
    if with_labels:
        labels = torch.arange(n) % (k + 1) - 1
        for row, label in enumerate(labels.tolist()):
            if label >= 0:
                r[row] = np.eye(k)[label]
                log_prob[row] = terms[row, label]
    if with_weight:
        weight = torch.linspace(-1, 3, n, dtype=torch.float64)
        log_prob, r = log_prob * weight.numpy(), r * weight.numpy()[:, None]
    log_likelihood, *moments = reference.gmm_statistics(case.x, *case.parameters, weight, labels)
    close(log_likelihood, log_prob.sum())
    for actual, expected in zip(moments, loops(case, r)):
        close(actual, expected)


def test_input_gradient_by_differences(case):
    r, h = case.responsibilities.numpy(), 1e-6
    got = reference.gmm_input_gradient(
        case.x, case.responsibilities, case.means, case.p, case.covariance_type
    ).numpy()
    for i in range(case.x.shape[1]):
        step = torch.zeros_like(case.x)
        step[:, i] = h
        up, down = (scipy_terms(case.with_(x=case.x + s)) for s in (step, -step))
        # Central differences of a quadratic are exact; 1e-13 of a term is lost to 1 / 2h.
        np.testing.assert_allclose((r * (up - down)).sum(1) / (2 * h), got[:, i], atol=1e-6)


def test_impossible_rows():
    case = mixture(3, 2, 2, "full", torch.float64)
    case.log_weights[:] = -torch.inf
    assert (reference.gmm_log_prob(case.x, *case.parameters) == -torch.inf).all()
    log_likelihood, weight, first, second = reference.gmm_statistics(case.x, *case.parameters)
    assert log_likelihood == -torch.inf
    assert all((m == 0).all() for m in (weight, first, second))
