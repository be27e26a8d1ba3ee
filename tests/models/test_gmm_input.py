"""What may be passed and what may not: arrays, tensors, chunks; bad input of every kind."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from evidens import GaussianMixture

TYPES = ("full", "tied", "diag", "spherical")
ATTRIBUTES = ("weights_", "means_", "covariances_", "precisions_cholesky_", "precisions_")
INITS = ("kmeans", "k-means++", "random", "random_from_data")

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def rows(n=300, d=3, dtype=np.float64):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, d)) + 4 * rng.integers(0, 3, (n, 1))).astype(dtype)


def model(k=3, **params):
    return GaussianMixture(k, **{"random_state": 0, "max_iter": 6, "tol": 0} | params)


def assert_equal(a, b, tolerance=0.0):
    for name in ATTRIBUTES:
        left, right = np.asarray(getattr(a, name)), np.asarray(getattr(b, name))
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_tensors_in_tensors_out(covariance_type, dtype):
    x = torch.from_numpy(rows()).to(dtype)
    a = model(covariance_type=covariance_type).fit(x)
    b = model(covariance_type=covariance_type).fit(x.numpy())
    for name in ATTRIBUTES:
        value = getattr(a, name)
        assert isinstance(value, torch.Tensor)
        assert value.dtype == dtype
    assert_equal(a, b, 1e-6 if dtype == torch.float32 else 1e-12)
    for name in ("log_prob", "score_samples", "predict", "predict_proba", "transform", "impute"):
        result = getattr(a, name)(x)
        assert isinstance(result, torch.Tensor)
        np.testing.assert_allclose(result, getattr(b, name)(x.numpy()), rtol=2e-5, atol=1e-5)
        # The container follows the query, not the fit.
        assert isinstance(getattr(a, name)(x.numpy()), np.ndarray)
        assert isinstance(getattr(b, name)(x), torch.Tensor)
    assert isinstance(a.score(x), float)
    drawn, component = a.sample(7)
    assert drawn.dtype == dtype
    assert component.dtype == torch.int64


def test_gradients():
    x = torch.from_numpy(rows(5)).requires_grad_()
    gm = model().fit(rows())
    assert torch.autograd.gradcheck(gm.log_prob, (x,))
    assert torch.autograd.gradcheck(gm.predict_proba, (x,))
    with torch.no_grad():
        assert not gm.log_prob(x).requires_grad
    # Rows that require gradients can be fitted to; nothing flows back.
    assert not gm.fit(x.repeat(4, 1)).means_.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_dtypes_of_tensors(dtype):
    x = torch.from_numpy(rows()).round().to(dtype)
    gm = model().fit(x)
    assert gm.means_.dtype == (torch.float64 if dtype == torch.int64 else torch.float32)
    assert gm.log_prob(x).dtype == gm.means_.dtype


@pytest.mark.parametrize(
    "change",
    [
        np.asfortranarray,
        lambda x: x[::-1],
        lambda x: np.repeat(x, 2, 1)[:, ::2],
        lambda x: x.astype(">f8"),
        lambda x: x.tolist(),
    ],
)
def test_any_layout(change):
    x = rows()
    x = x[::-1] if change(x)[0] is not x[0] and np.allclose(np.asarray(change(x))[0], x[-1]) else x
    same = np.ascontiguousarray(np.asarray(change(x), dtype=np.float64))
    begin = {"init_params": "random_from_data"}
    a, b = model(**begin).fit(change(x)), model(**begin).fit(same)
    assert_equal(a, b, 1e-12)
    np.testing.assert_allclose(a.log_prob(change(x)), b.log_prob(same), rtol=1e-12)


def test_read_only_and_untouched():
    x = rows()
    kept = x.copy()
    x.flags.writeable = False
    gm = model().fit(x)
    gm.impute(x), gm.log_prob(x)
    np.testing.assert_array_equal(x, kept)


def test_feature_names():
    pd = pytest.importorskip("pandas", reason="names of columns come with data frames")
    frame = pd.DataFrame(rows(), columns=["a", "b", "c"])
    gm = model().fit(frame)
    assert gm.feature_names_in_.tolist() == ["a", "b", "c"]
    assert gm.marginal(["c", "a"]).feature_names_in_.tolist() == ["c", "a"]
    with pytest.raises(ValueError, match="feature names should match"):
        gm.log_prob(frame[["b", "a", "c"]])
    with pytest.raises(ValueError, match="no feature is named 'z'"):
        gm.marginal(["z"])


class Again:
    """Chunks that can be read again, without being a list."""

    def __init__(self, parts):
        self.parts = parts

    def __iter__(self):
        return iter(self.parts)


@pytest.mark.parametrize("init_params", INITS)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_chunks_are_the_whole(covariance_type, init_params):
    x = rows()
    x[5, 1] = np.nan
    labels = np.where(np.arange(300) % 10 == 0, 1, -1)
    weight = np.random.default_rng(0).integers(0, 3, 300)
    parts = np.split(x, [1, 120, 130])
    params = {"covariance_type": covariance_type, "init_params": init_params, "reg_covar": 0.01}
    for keys in ({}, {"labels": labels}, {"sample_weight": weight}):
        whole = model(**params).fit(x, **keys)
        for chunks in (parts, lambda: iter(parts), Again(parts)):
            assert_equal(model(**params).fit(chunks, **keys), whole, 1e-9)


def test_chunks_of_a_data_loader():
    x = torch.from_numpy(rows())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=64)
    gm = model().fit(loader)
    assert_equal(gm, model().fit(x), 1e-9)
    assert isinstance(gm.means_, torch.Tensor)
    assert torch.equal(model().fit_predict(loader), model().fit_predict(x))


def test_chunks_that_cannot_be_read_again():
    parts = np.split(rows(), 3)
    with pytest.raises(TypeError, match=r"generator, which can be read only once.*partial_fit"):
        model().fit(part for part in parts)
    one_pass = iter(parts)
    with pytest.raises(ValueError, match=r"300 rows on the first pass|gives no chunk|200 rows"):
        model().fit(lambda: one_pass)
    with pytest.raises(ValueError, match="gives no chunk"):
        model().fit(lambda: [])
    with pytest.raises(ValueError, match="X has 2 features"):
        model().fit([parts[0], parts[1][:, :2]])


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(
    "x, text",
    [
        (np.array([[1.0, np.inf], [0.0, 1.0]]), "infinity"),
        (np.array([[1.0, -np.inf], [0.0, np.nan]]), "infinity"),
        (np.ones(5), "2D array"),
        (np.ones((2, 2, 2)), "3|dim"),
        (np.ones((0, 2)), "0 sample"),
        (np.ones((5, 0)), "0 feature"),
        (np.ones((1, 2)), re.escape("1 sample(s) (shape=(1, 2))")),
        (np.ones((2, 2)), "n_samples >= n_components but got n_components = 3, n_samples = 2"),
        (np.ones((3, 2)) * 1j, "[Cc]omplex"),
    ],
)
def test_bad_rows(x, text, as_tensor):
    with pytest.raises(ValueError, match=text):
        model().fit(torch.from_numpy(x) if as_tensor else x)


@pytest.mark.parametrize("method", ["log_prob", "predict", "predict_proba", "impute", "score"])
def test_bad_queries(method):
    ask = getattr(model().fit(rows()), method)
    for convert in (np.asarray, torch.from_numpy):
        for bad in (np.inf, -np.inf):
            x = rows(5)
            x[2, 1] = bad
            with pytest.raises(ValueError, match="infinity"):
                ask(convert(x))
        with pytest.raises(
            ValueError, match="X has 2 features, but GaussianMixture is expecting 3"
        ):
            ask(convert(rows(5, 2)))
        with pytest.raises(ValueError, match="2D array"):
            ask(convert(rows(5)[0]))
    with pytest.raises(NotFittedError, match="This GaussianMixture instance is not fitted yet"):
        getattr(GaussianMixture(), method)(rows())


@pytest.mark.parametrize(
    "weight, text",
    [
        (np.zeros(300), "all weights are zero"),
        (-np.ones(300), "non-negative finite weights, got -1.0 at row 0"),
        (np.full(300, np.nan), "non-negative finite weights, got nan"),
        (np.full(300, np.inf), "non-negative finite weights, got inf"),
        (np.ones(299), re.escape("shape (300,), got shape (299,)")),
        (np.ones((300, 1)), re.escape("got shape (300, 1)")),
        (np.r_[np.ones(2), np.zeros(298)], "n_samples = 2 of positive weight"),
    ],
)
def test_bad_weights(weight, text):
    with pytest.raises(ValueError, match=text):
        model().fit(rows(), sample_weight=weight)


@pytest.mark.parametrize(
    "labels, text",
    [
        (np.full(300, 3), r"from -1 \(unknown\) to n_components - 1 = 2, got 3 at row 0"),
        (np.full(300, -2), "got -2 at row 0"),
        (np.full(300, 0.5), "got 0.5 at row 0"),
        (np.full(300, np.nan), "got nan"),
        (np.zeros(2), re.escape("got shape (2,)")),
    ],
)
def test_bad_labels(labels, text):
    with pytest.raises(ValueError, match=text):
        model().fit(rows(), labels=labels)
    with pytest.raises(TypeError, match="labels: expected numbers"):
        model().fit(rows(), labels=["a"] * 300)


@pytest.mark.parametrize(
    "params", [{"n_components": 0}, {"tol": -1}, {"covariance_type": "round"}, {"max_iter": -1}]
)
def test_bad_parameters(params):
    name = next(iter(params))
    for method in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match=f"The '{name}' parameter of GaussianMixture must be"):
            getattr(GaussianMixture().set_params(**params), method)(rows())


def test_partial_fit_on_other_features():
    gm = model().partial_fit(rows())
    with pytest.raises(ValueError, match="X has 2 features"):
        gm.partial_fit(rows(d=2))
    with pytest.raises(ValueError, match="n_samples >= n_components"):
        model().partial_fit(rows(2))
    assert gm.partial_fit(rows(1)).n_samples_seen_ == 301
