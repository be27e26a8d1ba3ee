"""Mixtures from mixtures: given parameters, marginals, conditionals, files, chunk after chunk."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.base import clone

from evidens import GaussianMixture

TYPES = ("full", "tied", "diag", "spherical")
ATTRIBUTES = ("weights_", "means_", "covariances_", "precisions_cholesky_", "precisions_")
WEIGHTS = np.array([0.2, 0.5, 0.3])

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def parameters(covariance_type, d=4):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, d, d))
    full = a @ a.swapaxes(1, 2) + 0.3 * np.eye(d)
    cov = {
        "full": full,
        "tied": full[0],
        "diag": np.diagonal(full, axis1=1, axis2=2).copy(),
        "spherical": full[:, 0, 0].copy(),
    }[covariance_type]
    return rng.normal(size=(3, d)) * 2, cov


def matrices(covariance_type, cov, k=3, d=4):
    return {
        "full": lambda: cov,
        "tied": lambda: np.repeat(cov[None], k, 0),
        "diag": lambda: np.array([np.diag(c) for c in cov]),
        "spherical": lambda: np.array([c * np.eye(d) for c in cov]),
    }[covariance_type]()


def scipy_log_prob(x, weights, means, covs):
    return logsumexp(
        [np.log(w) + multivariate_normal(m, c).logpdf(x) for w, m, c in zip(weights, means, covs)],
        axis=0,
    )


@pytest.fixture(params=TYPES)
def mixture(request):
    means, cov = parameters(request.param)
    gm = GaussianMixture.from_parameters(
        WEIGHTS, means, cov, covariance_type=request.param, random_state=0
    )
    return gm, means, matrices(request.param, cov)


def test_given_parameters(mixture):
    gm, means, covs = mixture
    x = np.random.default_rng(1).normal(size=(20, 4)) * 3
    np.testing.assert_allclose(gm.log_prob(x), scipy_log_prob(x, WEIGHTS, means, covs))
    other = GaussianMixture.from_parameters(
        WEIGHTS, means, precisions=gm.precisions_, covariance_type=gm.covariance_type
    )
    for name in ATTRIBUTES:
        np.testing.assert_allclose(getattr(other, name), getattr(gm, name), rtol=1e-9, atol=1e-9)
    assert (gm.n_components, gm.n_features_in_) == (3, 4)
    drawn, component = gm.sample(30_000)
    np.testing.assert_allclose(np.bincount(component) / 30_000, WEIGHTS, atol=0.01)
    for k in range(3):
        part = drawn[component == k]
        np.testing.assert_allclose(part.mean(0), means[k], atol=0.2)
        np.testing.assert_allclose(np.cov(part.T), covs[k], atol=0.08 * np.abs(covs[k]).max())
    # EM goes on from there.
    begin = clone(gm).set_params(max_iter=3, tol=0, means_init=means, weights_init=WEIGHTS)
    begin.set_params(precisions_init=gm.precisions_).fit(drawn[::10])
    gm.set_params(warm_start=True, max_iter=3, tol=0).fit(drawn[::10])
    np.testing.assert_allclose(gm.means_, begin.means_, rtol=1e-9)


def test_given_tensors():
    means, cov = parameters("full")
    gm = GaussianMixture.from_parameters(
        torch.tensor(WEIGHTS).float(), torch.tensor(means).float(), torch.tensor(cov).float()
    )
    for name in ATTRIBUTES:
        assert isinstance(getattr(gm, name), torch.Tensor)
        assert getattr(gm, name).dtype == torch.float32


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"covariances": None}, TypeError, "either covariances or precisions"),
        ({"precisions": np.ones(3)}, TypeError, "either covariances or precisions"),
        ({"weights": [0.5, 0.2, 0.2]}, ValueError, "should be normalized, but got"),
        ({"weights": [0.5, 0.5]}, ValueError, r"'weights' should have the shape of \(3,\)"),
        ({"weights": [1.5, -0.5, 0.0]}, ValueError, r"in the range \[0, 1\]"),
        ({"means": np.ones(3)}, ValueError, r"means: expected shape \(K, D\)"),
        ({"means": np.full((3, 4), np.nan)}, ValueError, "means contains NaN"),
        ({"covariances": np.ones((3, 4))}, ValueError, "'full covariance' should have the shape"),
        ({"covariances": -np.ones((3, 4, 4))}, ValueError, "'full covariance' should be symmetric"),
        ({"covariance_type": "round"}, ValueError, "'covariance_type' parameter"),
    ],
)
def test_bad_parameters(change, error, text):
    means, cov = parameters("full")
    with pytest.raises(error, match=text):
        GaussianMixture.from_parameters(
            **{"weights": WEIGHTS, "means": means, "covariances": cov} | change
        )


@pytest.mark.parametrize("dims", [[0], [2, 0], [-1, 1, 2], [3, 2, 1, 0]])
def test_marginal(mixture, dims):
    gm, means, covs = mixture
    part = gm.marginal(dims)
    x = np.random.default_rng(1).normal(size=(20, len(dims))) * 3
    expected = scipy_log_prob(x, WEIGHTS, means[:, dims], covs[:, dims][:, :, dims])
    np.testing.assert_allclose(part.log_prob(x), expected)
    assert part.covariance_type == gm.covariance_type
    assert part.n_features_in_ == len(dims)


@pytest.mark.parametrize("dims", [[0], [2, 0], [-1, 1, 2], []])
def test_conditional(mixture, dims):
    """p(rest | given) = p(rest, given) / p(given)."""
    gm = mixture[0]
    values = np.arange(len(dims)) - 0.5
    rest = gm.conditional(dict(zip(dims, values)))
    free = [j for j in range(4) if j not in [d % 4 for d in dims]]
    x = np.random.default_rng(1).normal(size=(20, len(free))) * 3
    whole = np.empty((20, 4))
    whole[:, free], whole[:, dims] = x, values
    expected = gm.log_prob(whole)
    if dims:
        expected = expected - gm.marginal(dims).log_prob(values[None])
    np.testing.assert_allclose(rest.log_prob(x), expected, rtol=1e-9, atol=1e-9)
    assert rest.covariance_type == gm.covariance_type
    # A row with NaN says the same.
    row = np.full(4, np.nan)
    row[dims] = values
    np.testing.assert_allclose(gm.conditional(row).means_, rest.means_, rtol=1e-9)


def test_conditional_on_tensors():
    means, cov = parameters("full")
    gm = GaussianMixture.from_parameters(
        *(torch.tensor(v) for v in (WEIGHTS, means, cov)), random_state=0
    )
    rest = gm.conditional(torch.tensor([1.0, float("nan"), 0.0, float("nan")]))
    assert isinstance(rest.means_, torch.Tensor)
    assert rest.means_.shape == (3, 2)


@pytest.mark.parametrize(
    "ask, text",
    [
        (lambda gm: gm.marginal([]), "at least one feature"),
        (lambda gm: gm.marginal([4]), "expected features from 0 to 3"),
        (lambda gm: gm.marginal([0, -4]), "different features"),
        (lambda gm: gm.marginal([0.5]), "expected features from 0 to 3"),
        (lambda gm: gm.conditional({0: 1, 1: 1, 2: 1, 3: 1}), "none left"),
        (lambda gm: gm.conditional({0: np.inf}), "finite values"),
        (lambda gm: gm.conditional([1.0, np.nan]), r"one row of 4 values.*got shape \(2,\)"),
        (lambda gm: gm.conditional({0: 1e200}), "no component reaches"),
        (lambda gm: gm.impute(np.ones((2, 4)), method="mode"), "expected 'mean' or 'sample'"),
        (lambda gm: gm.sample(0), "Invalid value for 'n_samples'"),
    ],
)
def test_bad_questions(mixture, ask, text):
    with pytest.raises(ValueError, match=text):
        ask(mixture[0])


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_save_and_load(tmp_path, covariance_type, as_tensor):
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    data = torch.from_numpy(x) if as_tensor else x
    gm = GaussianMixture(
        3, covariance_type=covariance_type, random_state=0, weights_init=np.array([0.5, 0.3, 0.2])
    ).fit(data)
    gm.feature_names_in_ = np.array(["a", "b", "c"], dtype=object)
    gm.save(tmp_path / "gm.safetensors")
    same = GaussianMixture.load(tmp_path / "gm.safetensors")
    del gm.feature_names_in_, same.feature_names_in_
    assert repr(same) == repr(gm)
    for name, value in vars(gm).items():
        other = getattr(same, name)
        assert type(other) is type(value), name
        assert np.array_equal(np.asarray(other), np.asarray(value)), name
    for name in ("log_prob", "predict_proba"):
        np.testing.assert_array_equal(getattr(same, name)(x), getattr(gm, name)(x))
    np.testing.assert_array_equal(same.partial_fit(data).means_, gm.partial_fit(data).means_)
    # Nothing but safetensors and JSON is in the file.
    with safe_open(tmp_path / "gm.safetensors", "np") as file:
        assert json.loads(file.metadata()["evidens"])["class"] == "GaussianMixture"


def test_bad_files(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="not a safetensors file"):
        GaussianMixture.load(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not one that evidens has saved"):
        GaussianMixture.load(path)
    header = {"format": 1, "class": "GaussianHMM", "evidens": "9", "parameters": {}, "fitted": {}}
    save_file({"a": torch.ones(2)}, path, {"evidens": json.dumps(header)})
    with pytest.raises(ValueError, match="holds a GaussianHMM, not a GaussianMixture"):
        GaussianMixture.load(path)
    save_file({"a": torch.ones(2)}, path, {"evidens": json.dumps(header | {"format": 99})})
    with pytest.raises(ValueError, match="upgrade evidens"):
        GaussianMixture.load(path)
    header |= {"class": "GaussianMixture", "fitted": {"fit": {"value": 1}}}
    save_file({"a": torch.ones(2)}, path, {"evidens": json.dumps(header)})
    with pytest.raises(ValueError, match="'fit' is not a fitted attribute"):
        GaussianMixture.load(path)
    with pytest.raises(FileNotFoundError):
        GaussianMixture.load(tmp_path / "none")
    with pytest.warns(UserWarning, match="random_state is a generator"):
        GaussianMixture(random_state=np.random.RandomState(0)).save(path)
    assert GaussianMixture.load(path).random_state is None
    with pytest.raises(TypeError, match="tol is a object"):
        GaussianMixture(tol=object()).save(path)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_partial_fit_learns(covariance_type):
    means, cov = parameters(covariance_type)
    truth = GaussianMixture.from_parameters(
        WEIGHTS, means * 3, cov, covariance_type=covariance_type, random_state=1
    )
    x, _ = truth.sample(8000)
    x = x[np.random.default_rng(0).permutation(8000)]
    gm = GaussianMixture(3, covariance_type=covariance_type, random_state=0)
    bounds = []
    for chunk in np.array_split(x, 40):
        gm.partial_fit(chunk)
        bounds.append(gm.score(x))
    whole = GaussianMixture(3, covariance_type=covariance_type, random_state=0).fit(x)
    assert bounds[-1] > bounds[0]
    assert bounds[-1] > whole.score(x) - 0.05
    assert gm.n_iter_ == len(gm.lower_bounds_) == 40
    assert gm.n_samples_seen_ == 8000


@pytest.mark.parametrize("covariance_type", TYPES)
def test_partial_fit_is_the_stated_step(covariance_type):
    """The first chunk is one EM step; a later one mixes the moments at the stated rate."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 2)), rng.normal(size=(100, 2)) + 0.3
    params = {"covariance_type": covariance_type, "random_state": 0}
    gm = GaussianMixture(2, **params).partial_fit(x)
    one = GaussianMixture(2, max_iter=1, **params).fit(x)
    for name in ATTRIBUTES:
        np.testing.assert_allclose(getattr(gm, name), getattr(one, name), rtol=1e-9)
    gm = GaussianMixture(1, **params, reg_covar=0.01).partial_fit(x).partial_fit(y)
    rate = (100 / 400) ** 0.7
    mean = (1 - rate) * x.mean(0) + rate * y.mean(0)
    np.testing.assert_allclose(gm.means_[0], mean, rtol=1e-9)
    second = (1 - rate) * (x.T @ x) / 300 + rate * (y.T @ y) / 100 - np.outer(mean, mean)
    variances = np.diag(second) + 0.01
    c = gm.covariances_
    if covariance_type in ("full", "tied"):
        np.testing.assert_allclose(c.reshape(2, 2), second + 0.01 * np.eye(2), rtol=1e-9)
    else:
        expected = variances if covariance_type == "diag" else variances.mean()
        np.testing.assert_allclose(c.squeeze(), expected, rtol=1e-9)
    # One call with everything weighted by 2 is the same as with weight 1.
    a = GaussianMixture(2, **params).partial_fit(x, sample_weight=np.full(300, 2.0))
    b = GaussianMixture(2, **params).partial_fit(x)
    np.testing.assert_allclose(a.means_, b.means_, rtol=1e-9)


def test_partial_fit_after_fit_goes_on():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 2))
    gm = GaussianMixture(2, random_state=0).fit(x)
    before = gm.means_.copy()
    gm.partial_fit(x[:5])
    assert 0 < np.abs(gm.means_ - before).max() < 0.3
    assert gm.n_samples_seen_ == 505
