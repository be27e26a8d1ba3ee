"""Missing values against brute force: marginalisation, and EM written out row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits

from evidens import GaussianMixture

TYPES = ("full", "tied", "diag", "spherical")

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def matrices(model):
    """The covariances as (K, D, D)."""
    k, d = model.means_.shape
    c = np.asarray(model.covariances_, np.float64)
    return {
        "full": lambda: c,
        "tied": lambda: np.repeat(c[None], k, 0),
        "diag": lambda: np.array([np.diag(v) for v in c]),
        "spherical": lambda: np.array([v * np.eye(d) for v in c]),
    }[model.covariance_type]()


def terms(model, row):
    """(K,) log w_k + log N(observed part | k), by SciPy."""
    seen = ~np.isnan(row)
    if not seen.any():
        return np.log(model.weights_)
    return np.array(
        [
            np.log(w) + multivariate_normal(m[seen], c[np.ix_(seen, seen)]).logpdf(row[seen])
            for w, m, c in zip(model.weights_, model.means_, matrices(model))
        ]
    )


def completed(m, c, row):
    """Conditional mean of a row and the conditional covariance, zero where it is observed."""
    seen, gone = ~np.isnan(row), np.isnan(row)
    mean, cov = row.copy(), np.zeros_like(c)
    gain = np.linalg.solve(c[np.ix_(seen, seen)], c[np.ix_(seen, gone)]).T
    mean[gone] = m[gone] + gain @ (row[seen] - m[seen])
    cov[np.ix_(gone, gone)] = c[np.ix_(gone, gone)] - gain @ c[np.ix_(seen, gone)]
    return mean, cov


def one_step(model, x, weight):
    """One exact EM step, row by row: weights, means and covariances."""
    k, d = model.means_.shape
    cov = matrices(model)
    nk, first, second = np.zeros(k), np.zeros((k, d)), np.zeros((k, d, d))
    for row, w in zip(x, weight):
        t = terms(model, row)
        r = w * np.exp(t - logsumexp(t))
        for j in range(k):
            mean, extra = completed(model.means_[j], cov[j], row)
            nk[j] += r[j]
            first[j] += r[j] * mean
            second[j] += r[j] * (np.outer(mean, mean) + extra)
    means = first / nk[:, None]
    second -= nk[:, None, None] * np.einsum("ki,kj->kij", means, means)
    if model.covariance_type == "tied":
        new = second.sum(0) / nk.sum() + model.reg_covar * np.eye(d)
    else:
        new = second / nk[:, None, None] + model.reg_covar * np.eye(d)
        if model.covariance_type != "full":
            new = np.array([np.diag(c) for c in new])
        if model.covariance_type == "spherical":
            new = new.mean(1)
    return nk / nk.sum(), means, new


def data(n=60, d=5, share=0.3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 4 * rng.integers(0, 2, (n, 1))
    full = x.copy()
    x[rng.random((n, d)) < share] = np.nan
    x[0], x[1] = np.nan, full[1]
    return full, x


@pytest.fixture(params=TYPES)
def fitted(request):
    full, x = data()
    model = GaussianMixture(
        3, covariance_type=request.param, reg_covar=0.1, random_state=0, max_iter=3
    )
    return model.fit(x), full, x


def test_density_and_posterior_of_what_is_seen(fitted):
    model, _, x = fitted
    brute = np.array([terms(model, row) for row in x])
    np.testing.assert_allclose(model.log_prob(x), logsumexp(brute, axis=1), rtol=1e-9, atol=1e-9)
    proba = np.exp(brute - logsumexp(brute, axis=1, keepdims=True))
    np.testing.assert_allclose(model.predict_proba(x), proba, rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(model.predict(x), brute.argmax(1))
    assert abs(model.log_prob(x)[0]) < 1e-12
    np.testing.assert_allclose(model.predict_proba(x)[0], model.weights_, rtol=1e-9)


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_one_em_step_is_the_exact_one(covariance_type, weighted):
    _, x = data()
    weight = np.random.default_rng(1).integers(0, 3, len(x)).astype(float)
    weight = weight if weighted else np.ones(len(x))
    model = GaussianMixture(
        3,
        covariance_type=covariance_type,
        reg_covar=0.1,
        random_state=0,
        max_iter=2,
        warm_start=True,
        tol=0,
    ).fit(x)
    expected = one_step(model, x, weight)
    bound = np.sum(weight * [logsumexp(terms(model, row)) for row in x]) / weight.sum()
    model.set_params(max_iter=1).fit(x, sample_weight=weight if weighted else None)
    assert model.lower_bound_ == pytest.approx(bound, rel=1e-10)
    for name, value in zip(("weights_", "means_", "covariances_"), expected):
        np.testing.assert_allclose(getattr(model, name), value, rtol=1e-8, atol=1e-10)


def test_labels_of_incomplete_rows():
    _, x = data()
    labels = np.where(np.arange(len(x)) % 3 == 0, np.arange(len(x)) % 2, -1)
    model = GaussianMixture(2, random_state=0, reg_covar=0.1, max_iter=2, warm_start=True, tol=0)
    model.fit(x, labels=labels)
    brute = np.array([terms(model, row) for row in x])
    pinned = labels >= 0
    expected = np.where(pinned, brute[np.arange(len(x)), labels], logsumexp(brute, axis=1)).mean()
    r = np.exp(brute - logsumexp(brute, axis=1, keepdims=True))
    r[pinned] = np.eye(2)[labels[pinned]]
    model.set_params(max_iter=1).fit(x, labels=labels)
    assert model.lower_bound_ == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(model.weights_, r.mean(0), rtol=1e-9)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_em_never_lowers_the_likelihood(covariance_type):
    _, x = data(n=200)
    model = GaussianMixture(
        3, covariance_type=covariance_type, reg_covar=0, random_state=0, max_iter=40, tol=0
    ).fit(x)
    assert np.diff(model.lower_bounds_).min() > -1e-10


def test_conditional_mean_and_draws(fitted):
    model, _, x = fitted
    filled = model.impute(x)
    gone = np.isnan(x)
    np.testing.assert_array_equal(filled[~gone], x[~gone])
    cov = matrices(model)
    for row, result in zip(x[1:], filled[1:]):
        t = terms(model, row)
        r = np.exp(t - logsumexp(t))
        mean = sum(r[k] * completed(model.means_[k], cov[k], row)[0] for k in range(3))
        np.testing.assert_allclose(result, mean, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(filled[0], model.weights_ @ model.means_, rtol=1e-9)
    # Draws of one row have the conditional mean and covariance.
    row = x[2] if gone[2].any() else x[3]
    draws = model.impute(np.repeat(row[None], 20_000, 0), method="sample", random_state=0)
    rest = model.conditional(row)
    mean = rest.weights_ @ rest.means_
    spread = np.einsum("k,kij->ij", rest.weights_, matrices(rest))
    spread += np.einsum("k,ki,kj->ij", rest.weights_, rest.means_ - mean, rest.means_ - mean)
    drawn = draws[:, np.isnan(row)]
    np.testing.assert_allclose(drawn.mean(0), mean, atol=5 * np.sqrt(spread.max() / 20_000))
    np.testing.assert_allclose(
        np.cov(drawn.T).reshape(spread.shape), spread, atol=0.1 * spread.max()
    )
    again = model.impute(x, method="sample", random_state=1)
    np.testing.assert_array_equal(again, model.impute(x, method="sample", random_state=1))
    assert not np.array_equal(again, model.impute(x, method="sample", random_state=2))


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_float32_and_tensors(covariance_type):
    _, x = data(n=200)
    model = GaussianMixture(2, covariance_type=covariance_type, random_state=0, reg_covar=0.1)
    model.fit(x)
    single = GaussianMixture(2, covariance_type=covariance_type, random_state=0, reg_covar=0.1)
    single.fit(torch.from_numpy(x).float())
    assert single.means_.dtype == torch.float32
    np.testing.assert_allclose(single.means_, model.means_, rtol=1e-3, atol=1e-3)
    log_prob = single.log_prob(torch.from_numpy(x).float())
    assert log_prob.dtype == torch.float32
    np.testing.assert_allclose(log_prob, model.log_prob(x), rtol=1e-3, atol=1e-3)
    assert single.impute(torch.from_numpy(x).float()).isfinite().all()


def test_gradient_beside_incomplete_rows():
    full, x = data()
    model = GaussianMixture(2, random_state=0, reg_covar=0.1).fit(x)
    rows = torch.from_numpy(x).requires_grad_()
    model.log_prob(rows).sum().backward()
    whole = ~np.isnan(x).any(1)
    alone = torch.from_numpy(full[whole]).requires_grad_()
    model.log_prob(alone).sum().backward()
    torch.testing.assert_close(rows.grad[whole], alone.grad)
    assert (rows.grad[~whole] == 0).all()


def test_digits_where_every_row_lacks_other_pixels():
    x = load_digits().data[:600] + np.random.default_rng(0).random((600, 64))
    gone = np.random.default_rng(1).random(x.shape) < 0.25
    hidden = np.where(gone, np.nan, x)
    model = GaussianMixture(10, reg_covar=0.2, random_state=0, max_iter=15).fit(hidden)
    assert np.diff(model.lower_bounds_).min() > -1e-6
    error = np.sqrt(np.mean((model.impute(hidden) - x)[gone] ** 2))
    means = np.where(gone, np.nanmean(hidden, 0), x)
    assert error < 0.7 * np.sqrt(np.mean((means - x)[gone] ** 2))


def test_a_column_that_nobody_has_seen():
    _, x = data()
    x[:, 2] = np.nan
    with pytest.raises(ValueError, match="feature 2 has no observed value"):
        GaussianMixture(2).fit(x)


def test_partial_fit_with_missing_values():
    _, x = data(n=400)
    model = GaussianMixture(2, random_state=0, reg_covar=0.1)
    for _ in range(5):
        for chunk in np.array_split(x[2:], 8):
            model.partial_fit(chunk)
    whole = GaussianMixture(2, random_state=0, reg_covar=0.1).fit(x)
    assert model.score(x) > whole.score(x) - 0.2
