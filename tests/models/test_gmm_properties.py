"""Any shape, any type, any pattern of missing values: what must hold for every mixture."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from evidens import GaussianMixture

TYPES = ("full", "tied", "diag", "spherical")

shapes = st.fixed_dictionaries(
    {
        "n": st.integers(2, 60),
        "d": st.integers(1, 9),
        "k": st.integers(1, 6),
        "covariance_type": st.sampled_from(TYPES),
        "init_params": st.sampled_from(["kmeans", "k-means++", "random", "random_from_data"]),
        "share": st.sampled_from([0.0, 0.2, 0.7]),
        "dtype": st.sampled_from([np.float64, np.float32]),
        "scale": st.sampled_from([1e-3, 1.0, 1e3]),
        "seed": st.integers(0, 2**16),
    }
)


def fit(n, d, k, covariance_type, init_params, share, dtype, scale, seed, **more):
    rng = np.random.default_rng(seed)
    x = (scale * rng.normal(size=(n, d)) + rng.normal(size=d)).astype(dtype)
    gone = rng.random((n, d)) < share
    gone[rng.integers(n, size=d), np.arange(d)] = False  # every feature is seen once
    x[gone] = np.nan
    gm = GaussianMixture(
        min(k, n),
        covariance_type=covariance_type,
        init_params=init_params,
        random_state=seed,
        max_iter=5,
        **more,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gm.fit(x)
    return gm, x


@settings(max_examples=150)
@given(shapes)
def test_fit_is_sane(case):
    gm, x = fit(**case)
    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
        assert np.isfinite(getattr(gm, name)).all(), name
        assert getattr(gm, name).dtype == case["dtype"]
    assert gm.weights_.sum() == pytest.approx(1, rel=1e-5)
    assert not np.isnan(gm.log_prob(x)).any()
    proba = gm.predict_proba(x)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-4)
    filled = gm.impute(x)
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[~np.isnan(x)], x[~np.isnan(x)])
    drawn = gm.impute(x, method="sample", random_state=0)
    assert np.isfinite(drawn).all()


@settings(max_examples=60)
@given(shapes)
def test_log_prob_is_scipys(case):
    gm, x = fit(**case | {"dtype": np.float64}, reg_covar=1e-2 * case["scale"] ** 2)
    k, d = gm.means_.shape
    c = gm.covariances_
    covs = {
        "full": lambda: c,
        "tied": lambda: np.repeat(c[None], k, 0),
        "diag": lambda: [np.diag(v) for v in c],
        "spherical": lambda: [v * np.eye(d) for v in c],
    }[gm.covariance_type]()
    for row, value in zip(x, gm.log_prob(x)):
        seen = ~np.isnan(row)
        terms = np.log(gm.weights_)
        if seen.any():
            terms = terms + [
                multivariate_normal(m[seen], cov[np.ix_(seen, seen)]).logpdf(row[seen])
                for m, cov in zip(gm.means_, covs)
            ]
        assert value == pytest.approx(logsumexp(terms), rel=1e-7, abs=1e-7)


@settings(max_examples=60)
@given(shapes, st.lists(st.integers(0, 60), max_size=4))
def test_chunks_are_the_whole(case, cuts):
    case = case | {"dtype": np.float64}
    gm, x = fit(**case, reg_covar=1e-2 * case["scale"] ** 2)
    parts = [p for p in np.split(x, sorted(c for c in cuts if c < len(x))) if len(p)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = GaussianMixture(**gm.get_params()).fit(parts)
    # The sums are taken in another order, and EM can magnify that.
    np.testing.assert_allclose(other.lower_bounds_, gm.lower_bounds_, rtol=1e-5, atol=1e-6)


SIGINT = """
import os, signal, sys, threading, warnings
import numpy as np
from evidens import GaussianMixture
x = np.random.default_rng(0).normal(size=(200_000, 16))
gm = GaussianMixture(16, init_params="random_from_data", tol=0, max_iter=10**6, random_state=0)
threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    gm.fit(x)
assert "interrupted" in str(caught[0].message)
assert 0 < gm.n_iter_ < 10**6 and not gm.converged_
assert np.isfinite(gm.log_prob(x[:10])).all()
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to itself")
def test_a_real_ctrl_c():
    done = subprocess.run(
        [sys.executable, "-c", SIGINT],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        # A shell's background job ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 0, done.stderr


def test_a_bar_where_somebody_watches(monkeypatch, capsys):
    x = np.random.default_rng(0).normal(size=(100, 2))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    quiet = GaussianMixture(2, random_state=0).fit(x)
    assert capsys.readouterr().err == ""
    GaussianMixture(2, random_state=0, verbose=1, verbose_interval=1).fit(x)
    out, err = capsys.readouterr()
    assert "EM" in err
    assert out.count("Iteration") == quiet.n_iter_
