"""Where other implementations give NaN, negative variances, crashes or a copy of the data."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

import evidens
from evidens import GaussianMixture, ops

TYPES = ("full", "tied", "diag", "spherical")
INITS = ("kmeans", "k-means++", "random", "random_from_data")
DTYPES = (np.float64, np.float32)


def fit(x, k, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianMixture(k, **{"random_state": 0} | params).fit(x)


def assert_sane(gm, x):
    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
        assert np.isfinite(getattr(gm, name)).all(), name
    c = gm.covariances_
    variances = np.diagonal(c, axis1=-2, axis2=-1) if gm.covariance_type in TYPES[:2] else c
    assert (variances > 0).all()
    assert np.isfinite(gm.lower_bound_)
    assert np.isfinite(gm.log_prob(x)).all()
    np.testing.assert_allclose(gm.predict_proba(x).sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("init_params", INITS)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_degenerate_rows(covariance_type, init_params, dtype):
    rng = np.random.default_rng(0)
    cases = {
        "constant column": np.c_[rng.normal(size=(50, 2)), np.full(50, 3.7)],
        "all rows equal": np.full((20, 2), 0.1),
        "rows twice": np.repeat(rng.normal(size=(10, 2)), 5, 0),
        "two values": np.repeat([[0.0, 0.0], [9999.0, 9999.0]], 40, 0),
        "one feature": rng.normal(size=(30, 1)),
        "wider than long": rng.normal(size=(6, 40)),
        "zeros": np.zeros((20, 3)),
    }
    for x in cases.values():
        gm = fit(x.astype(dtype), 2, covariance_type=covariance_type, init_params=init_params)
        assert_sane(gm, x.astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_0_and_9999_keep_the_variance(covariance_type, dtype):
    """scikit-learn #30382: variances near -1 in float32."""
    x = np.tile([[0.0], [9999.0]], (50, 3)).astype(dtype)
    gm = fit(x, 1, covariance_type=covariance_type, reg_covar=0.1)
    variance = 9999.0**2 / 4 + 0.1
    if covariance_type in ("full", "tied"):
        np.testing.assert_allclose(np.diagonal(gm.covariances_, axis1=-2, axis2=-1), variance)
    else:
        np.testing.assert_allclose(gm.covariances_, variance, rtol=1e-6)
    gm = fit(x, 2, covariance_type=covariance_type, reg_covar=0.1)
    c = gm.covariances_
    diagonal = np.diagonal(c, axis1=-2, axis2=-1) if covariance_type in TYPES[:2] else c
    np.testing.assert_allclose(diagonal, 0.1, rtol=1e-5)


@pytest.mark.parametrize("init_params", INITS)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_offset_of_1e8(covariance_type, init_params):
    rng = np.random.default_rng(0)
    near = rng.normal(size=(400, 3)) + 6 * rng.integers(0, 2, (400, 1))
    far = near + 1e8
    params = {"covariance_type": covariance_type, "init_params": init_params, "tol": 1e-5}
    gm = fit(far, 2, max_iter=300, **params)
    assert_sane(gm, far)
    # The same fit without the offset, from the same start: the data is rounded to 1e-8.
    begin = {
        "weights_init": [0.5, 0.5],
        "precisions_init": {
            "full": np.repeat(np.eye(3)[None], 2, 0),
            "tied": np.eye(3),
            "diag": np.ones((2, 3)),
            "spherical": np.ones(2),
        }[covariance_type],
    }
    a = fit(near, 2, covariance_type=covariance_type, means_init=near[:2], **begin)
    b = fit(far, 2, covariance_type=covariance_type, means_init=far[:2], **begin)
    np.testing.assert_allclose(b.covariances_, a.covariances_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(b.means_ - 1e8, a.means_, atol=1e-5)
    np.testing.assert_allclose(b.log_prob(far), a.log_prob(near), atol=1e-4)


@pytest.mark.parametrize("scale", [1e-18, 1e-12, 1e12, 1e18])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_scales_of_float32(covariance_type, scale):
    """Right answer or a clear error, never NaN."""
    rng = np.random.default_rng(0)
    x = ((rng.normal(size=(200, 3)) + 5 * rng.integers(0, 2, (200, 1))) * scale).astype(np.float32)
    gm = fit(x, 2, covariance_type=covariance_type)
    assert_sane(gm, x)
    with pytest.raises(ValueError, match=r"ill-defined.*float64 data instead of float32"):
        fit((x / scale * 1e25).astype(np.float32), 2, covariance_type=covariance_type)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_component_without_rows_keeps_its_parameters(covariance_type):
    x = np.random.default_rng(0).normal(size=(200, 2))
    begin = {
        "weights_init": [0.5, 0.5],
        "means_init": [[0.0, 0.0], [1e5, 1e5]],
        "precisions_init": {
            "full": np.repeat(np.eye(2)[None], 2, 0),
            "tied": np.eye(2),
            "diag": np.ones((2, 2)),
            "spherical": np.ones(2),
        }[covariance_type],
    }
    gm = GaussianMixture(2, covariance_type=covariance_type, **begin)
    with pytest.warns(ConvergenceWarning, match=r"Components \[1\] collapsed"):
        gm.fit(x)
    np.testing.assert_array_equal(gm.means_[1], [1e5, 1e5])
    np.testing.assert_allclose(gm.means_[0], x.mean(0), atol=1e-12)
    assert gm.weights_[1] < 1e-10
    assert_sane(gm, x)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_a_collapse_without_regularisation(covariance_type):
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(size=(100, 2)), np.full((50, 2), 7.3)]
    begin = {
        "weights_init": [0.5, 0.5],
        "means_init": [[0.0, 0.0], [7.3, 7.3]],
        "precisions_init": {
            "full": np.repeat(np.eye(2)[None], 2, 0),
            "tied": np.eye(2),
            "diag": np.ones((2, 2)),
            "spherical": np.ones(2),
        }[covariance_type],
    }
    gm = fit(x, 2, covariance_type=covariance_type, reg_covar=0, max_iter=200, **begin)
    assert_sane(gm, x)
    # At the start there is nothing to keep.
    with pytest.raises(ValueError, match="ill-defined empirical covariance"):
        fit(np.repeat([[0.0], [1.0]], 5, 0), 4, covariance_type=covariance_type, reg_covar=0)


def test_an_impossible_row():
    x = np.random.default_rng(0).normal(size=(50, 2))
    gm = fit(x, 2)
    far = np.array([[1e200, 0.0]])
    assert gm.log_prob(far)[0] == -np.inf
    np.testing.assert_allclose(gm.predict_proba(far)[0], gm.weights_)
    assert gm.predict(far).dtype == np.int64


@pytest.mark.parametrize("stop_at", [1, 4])
def test_ctrl_c_keeps_what_was_learned(monkeypatch, stop_at):
    x = np.random.default_rng(0).normal(size=(200, 2))
    calls = 0
    real = ops.gmm_statistics

    def press(*args):
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(ops, "gmm_statistics", press)
    gm = GaussianMixture(3, random_state=0, tol=0, n_init=2)
    with pytest.warns(RuntimeWarning, match=f"interrupted.*iteration {stop_at - 1} of"):
        gm.fit(x)
    monkeypatch.undo()
    assert not gm.converged_
    assert gm.n_iter_ == stop_at - 1
    same = fit(x, 3, tol=0, max_iter=stop_at - 1)
    np.testing.assert_array_equal(gm.means_, same.means_)
    assert np.isfinite(gm.log_prob(x)).all()


def test_ctrl_c_in_a_later_start_keeps_the_earlier_one(monkeypatch):
    from evidens.models import gmm

    x = np.random.default_rng(0).normal(size=(200, 2))
    real, calls = gmm.initial_statistics, []

    def press(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(gmm, "initial_statistics", press)
    with pytest.warns(RuntimeWarning, match="interrupted"):
        gm = GaussianMixture(3, random_state=0, n_init=5, max_iter=4, tol=0).fit(x)
    np.testing.assert_array_equal(gm.means_, fit(x, 3, max_iter=4, tol=0).means_)
    del calls[1:]
    with pytest.raises(KeyboardInterrupt):  # in the first start there is nothing to keep
        GaussianMixture(3).fit(x)


def test_large_data_starts_from_a_sample(monkeypatch):
    from evidens.models import gmm_init

    monkeypatch.setattr(gmm_init, "WHOLE", 500)
    monkeypatch.setattr(gmm_init, "PER_COMPONENT", 10)
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 5000)
    x = rng.normal(size=(5000, 4)) + 8 * np.eye(4)[truth]
    x[::50, 1] = np.nan
    for init in INITS:
        gm = fit(x, 3, init_params=init, max_iter=60)
        assert_sane(gm, x)
        if init != "random":
            centres = np.sort(gm.means_.argmax(1))
            np.testing.assert_array_equal(centres, [0, 1, 2])
    a, b = (fit(x, 3, max_iter=2).means_ for _ in range(2))
    np.testing.assert_array_equal(a, b)
    c = fit(np.array_split(x, 7), 3, max_iter=2).means_
    np.testing.assert_allclose(c, a, rtol=1e-9)


MEMORY = """
import resource, sys, warnings
import numpy as np
import evidens
warnings.simplefilter("ignore")
n, d, k, given = 400_000, 64, 64, sys.argv[1] == "given"
x = np.random.default_rng(0).random((n, d), dtype=np.float32)
params = dict(covariance_type="diag", max_iter=2, tol=0, random_state=0)
if given:
    params |= dict(weights_init=np.full(k, 1 / k), means_init=x[:k])
    params |= dict(precisions_init=np.ones((k, d)))
evidens.GaussianMixture(k, **params).fit(x[:30000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
evidens.GaussianMixture(k, **params).fit(x)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
@pytest.mark.parametrize("start", ["given", "default"])
def test_fit_holds_no_copy_of_the_rows(start):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, start], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # The rows take 98 MB, responsibilities would take 98 MB, too.
    assert float(done.stdout) < 64


CPU_PATHS = {
    "fit": lambda gm, x: gm.fit(x),
    "fit with missing values": lambda gm, x: gm.fit(np.where(x > 1, np.nan, x)),
    "fit on tensors": lambda gm, x: gm.fit(torch.from_numpy(x)),
    "fit on chunks": lambda gm, x: gm.fit([x, x]),
    "fit with labels": lambda gm, x: gm.fit(x, labels=np.zeros(len(x))),
    "fit_predict": lambda gm, x: gm.fit_predict(x),
    "partial_fit": lambda gm, x: gm.partial_fit(x),
    "log_prob": lambda gm, x: gm.log_prob(x),
    "log_prob with missing values": lambda gm, x: gm.log_prob(np.full_like(x, np.nan)),
    "log_prob with gradients": lambda gm, x: gm.log_prob(torch.tensor(x, requires_grad=True)),
    "score": lambda gm, x: gm.score(x),
    "bic": lambda gm, x: gm.bic(x),
    "predict": lambda gm, x: gm.predict(x),
    "predict_proba": lambda gm, x: gm.predict_proba(x),
    "transform": lambda gm, x: gm.transform(x),
    "impute": lambda gm, x: gm.impute(np.where(x > 1, np.nan, x)),
    "conditional": lambda gm, x: gm.conditional({0: 0.0}),
}


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("path", CPU_PATHS)
def test_there_is_no_second_path(monkeypatch, path, covariance_type):
    from evidens._native import library

    x = np.random.default_rng(0).normal(size=(60, 3))
    fitted = fit(x, 2, covariance_type=covariance_type)

    def fail(*args):
        raise SystemError("kernel")

    monkeypatch.setattr(library, "gmm", fail)
    with pytest.raises(SystemError, match="kernel"):
        CPU_PATHS[path](fitted, x)
    assert evidens.info()  # the frame itself stands
