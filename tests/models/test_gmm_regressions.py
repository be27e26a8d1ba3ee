"""Defects that were found and mended: one test each."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader, TensorDataset

from evidens import GaussianMixture
from evidens.models.gmm_parameters import definite

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 2)) + 5 * RNG.integers(0, 2, (100, 1))


def nearly_singular():
    """Passes eigvalsh > 0 by rounding, fails Cholesky in one of the two orders."""
    rng = np.random.default_rng(1)
    for _ in range(10_000):
        a = rng.normal(size=(6, 3))
        c = a @ a.T
        c = (c + c.T) / 2
        orders = (c, c[::-1, ::-1].copy())
        if (np.linalg.eigvalsh(c) > 0).all() and all(
            torch.linalg.cholesky_ex(torch.from_numpy(o))[1] for o in orders
        ):
            return c
    raise AssertionError("no such matrix")


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_a_covariance_without_a_cholesky_factor_is_refused(kind):
    c = nearly_singular()
    c = c[None] if kind == "full" else c
    mean = np.zeros((1, 6))
    for given in ("covariances", "precisions"):
        with pytest.raises(ValueError, match="should be symmetric, positive-definite"):
            GaussianMixture.from_parameters([1.0], mean, covariance_type=kind, **{given: c})
    with pytest.raises(ValueError, match="should be symmetric, positive-definite"):
        GaussianMixture(1, covariance_type=kind, precisions_init=c).fit(RNG.normal(size=(50, 6)))


def test_given_parameters_are_copied():
    w, m, c = np.array([1.0]), np.zeros((1, 2)), np.ones((1, 2))
    gm = GaussianMixture.from_parameters(w, m, c, covariance_type="diag")
    gm.weights_[0], gm.means_[0, 0], gm.covariances_[0, 0] = 7, 7, 7
    assert (w[0], m[0, 0], c[0, 0]) == (1, 0, 1)
    m.flags.writeable = False
    start = GaussianMixture(1, means_init=m, max_iter=0).fit(X)
    start.means_[0, 0] = 7
    assert m[0, 0] == 0


def test_set_output_in_a_pipeline():
    pytest.importorskip("pandas")
    pipe = make_pipeline(StandardScaler(), GaussianMixture(2)).set_output(transform="pandas")
    expected = ["gaussianmixture0", "gaussianmixture1"]
    assert list(pipe.fit(X).transform(X).columns) == expected
    assert list(pipe.fit_transform(X).columns) == expected


def test_a_failed_refit_leaves_the_model():
    pd = pytest.importorskip("pandas")
    gm = GaussianMixture(1).fit(pd.DataFrame(X, columns=["a", "b"]))
    with pytest.raises(ValueError, match="infinity"):
        gm.fit(np.full((9, 3), np.inf))
    assert gm.n_features_in_ == 2
    assert gm.feature_names_in_.tolist() == ["a", "b"]


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++"])
def test_subnormal_data(init_params):
    gm = GaussianMixture(1, init_params=init_params).fit((X * 1e-40).astype("f4"))
    assert np.isfinite(gm.means_).all()


def test_shuffled_chunks_are_refused():
    data = TensorDataset(torch.from_numpy(X))
    with pytest.raises(ValueError, match="shuffle=False"):
        GaussianMixture(2).fit(DataLoader(data, 10, shuffle=True))
    GaussianMixture(2).fit(DataLoader(data, 10, shuffle=False))
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="same order each time"):
        GaussianMixture(2).fit(lambda: iter(np.split(rng.permutation(X), 10)))


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_a_constant_float32_feature_is_accepted(kind):
    x = np.c_[X, np.full(100, 4e4)].astype("f4")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        gm = GaussianMixture(1, covariance_type=kind).fit(x)
    assert np.isfinite(gm.score(x))


def test_marginal_and_conditional_of_a_rounded_covariance():
    c = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], "f4")
    c[0, 1] = c[1, 0] = np.nextafter(np.float32(1), np.float32(2))
    gm = GaussianMixture.from_parameters(
        np.ones(1, "f4"), np.zeros((1, 3), "f4"), np.eye(3, dtype="f4")[None]
    )
    gm.covariances_ = c[None]
    assert np.isfinite(gm.marginal([0, 1]).precisions_).all()
    assert np.isfinite(gm.conditional({2: 0.0}).precisions_).all()
    assert np.isfinite(gm.conditional({0: 0.0, 1: 0.0}).precisions_).all()
    bad = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    assert torch.linalg.cholesky_ex(definite(bad, "tied"))[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("format"),
        lambda h: h.pop("fitted"),
        lambda h: h.update(format="x"),
        lambda h: h.update(fitted=3),
        lambda h: h["parameters"].update(nonsense={"value": 1}),
        lambda h: h["fitted"].update(other_={"array": "numpy"}),
    ],
)
def test_load_of_an_altered_header(tmp_path, change):
    path = tmp_path / "model.safetensors"
    GaussianMixture(1).fit(X).save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["evidens"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    change(header)
    save_file(tensors, path, metadata={"evidens": json.dumps(header)})
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged header"):
        GaussianMixture.load(path)
    save_file(tensors, path, metadata={"evidens": "{"})
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged header"):
        GaussianMixture.load(path)


def test_warm_start_with_another_covariance_type():
    types = ("full", "tied", "diag", "spherical")
    for before in types:
        for after in types:
            gm = GaussianMixture(2, covariance_type=before, warm_start=True, tol=1).fit(X)
            gm.set_params(covariance_type=after)
            if before == after:
                gm.fit(X)
            else:
                with pytest.raises(ValueError, match="are not of covariance_type"):
                    gm.fit(X)
