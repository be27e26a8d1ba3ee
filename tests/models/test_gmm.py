"""GaussianMixture against scikit-learn's, and what holds for EM itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Incumbent
from sklearn.utils.estimator_checks import parametrize_with_checks

from evidens import GaussianMixture

TYPES = ("full", "tied", "diag", "spherical")
ATTRIBUTES = ("weights_", "means_", "covariances_", "precisions_cholesky_", "precisions_")
INITS = ("kmeans", "k-means++", "random", "random_from_data")
TOLERANCE = {np.float64: 1e-8, np.float32: 1e-4}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def blobs(n=400, d=4, k=4, spread=3.0, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    turn = rng.normal(size=(k, d, d)) / np.sqrt(d) + np.eye(d)
    rows = [rng.normal(size=(n // k, d)) @ turn[j] + spread * rng.normal(size=d) for j in range(k)]
    return np.concatenate(rows).astype(dtype)


def start(x, k, covariance_type, seed=0):
    """Weights, means and precisions to start from, as keyword arguments."""
    rng = np.random.default_rng(seed)
    d = x.shape[1]
    precisions = {
        "full": np.repeat(np.linalg.inv(np.cov(x.T))[None], k, 0),
        "tied": np.linalg.inv(np.cov(x.T)),
        "diag": np.repeat(1 / x.var(0)[None], k, 0),
        "spherical": np.repeat(1 / x.var(), k),
    }[covariance_type]
    return {
        "weights_init": np.full(k, 1 / k),
        "means_init": x[rng.choice(len(x), k, replace=False)].reshape(k, d),
        "precisions_init": precisions,
    }


def distance(a, b):
    """Largest difference, relative to the largest entry."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return np.abs(a - b).max() / max(np.abs(b).max(), 1e-300)


def assert_same(ours, theirs, tolerance, attributes=ATTRIBUTES):
    for name in attributes:
        assert distance(getattr(ours, name), getattr(theirs, name)) < tolerance, name


@parametrize_with_checks([GaussianMixture()])
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("max_iter", [1, 12])
def test_same_parameters_from_the_same_start(covariance_type, dtype, max_iter):
    x = blobs(dtype=dtype)
    params = {"covariance_type": covariance_type, "max_iter": max_iter, "tol": 0.0}
    params |= start(x.astype(np.float64), 4, covariance_type)
    ours = GaussianMixture(4, **params).fit(x)
    theirs = Incumbent(4, **params).fit(x)
    assert_same(ours, theirs, TOLERANCE[dtype], (*ATTRIBUTES, "lower_bound_", "lower_bounds_"))
    assert ours.n_iter_ == theirs.n_iter_
    for name in ATTRIBUTES:
        assert getattr(ours, name).dtype == dtype
    for name in ("score_samples", "predict_proba"):
        a, b = getattr(ours, name)(x), getattr(theirs, name)(x)
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=TOLERANCE[dtype], atol=20 * TOLERANCE[dtype])
    assert (ours.predict(x) == theirs.predict(x)).mean() > 0.999
    for name in ("score", "aic", "bic"):
        a, b = getattr(ours, name)(x), getattr(theirs, name)(x)
        assert a == pytest.approx(b, rel=TOLERANCE[dtype])
    assert ours._n_parameters() == theirs._n_parameters()


@pytest.mark.parametrize("init_params", INITS)
@pytest.mark.parametrize("covariance_type", TYPES)
def test_same_random_state_gives_scikit_learns_fit(covariance_type, init_params):
    x = blobs(seed=1)
    # The start from single rows has variances of reg_covar; theirs carry rounding of 1e-10.
    params = {"covariance_type": covariance_type, "init_params": init_params, "reg_covar": 1e-2}
    for seed in (0, 7):
        ours = GaussianMixture(4, random_state=seed, **params).fit(x)
        theirs = Incumbent(4, random_state=seed, **params).fit(x)
        assert_same(ours, theirs, 1e-8)
        assert ours.n_iter_ == theirs.n_iter_
        assert ours.converged_ == theirs.converged_
        for a, b in zip(ours.sample(50), theirs.sample(50)):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def test_the_best_of_several_starts():
    x = blobs(seed=1)
    params = {"init_params": "random", "random_state": 0, "max_iter": 15}
    one = GaussianMixture(4, **params).fit(x)
    ours = GaussianMixture(4, n_init=6, **params).fit(x)
    theirs = Incumbent(4, n_init=6, **params).fit(x)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, rel=1e-9)
    assert ours.lower_bound_ > one.lower_bound_
    assert ours.lower_bound_ == ours.lower_bounds_[-1]


@pytest.mark.parametrize("covariance_type", TYPES)
def test_max_iter_0_keeps_the_start(covariance_type):
    x = blobs()
    params = {"covariance_type": covariance_type, "max_iter": 0, "random_state": 0}
    ours, theirs = GaussianMixture(3, **params).fit(x), Incumbent(3, **params).fit(x)
    assert_same(ours, theirs, 1e-8)
    assert (ours.n_iter_, ours.lower_bound_, ours.lower_bounds_) == (0, -np.inf, [])


def test_warm_start_goes_on():
    x = blobs()
    once = GaussianMixture(3, random_state=0, max_iter=6, tol=0).fit(x)
    twice = GaussianMixture(3, random_state=0, max_iter=3, tol=0, warm_start=True).fit(x).fit(x)
    assert_same(twice, once, 1e-12)
    assert twice.lower_bound_ == pytest.approx(once.lower_bound_, rel=1e-12)


def test_random_state():
    x = blobs()
    a, b = (GaussianMixture(4, random_state=3).fit(x) for _ in range(2))
    assert_same(a, b, 1e-300)
    np.testing.assert_array_equal(a.sample(5)[0], a.sample(5)[0])
    rng = np.random.RandomState(0)
    c = GaussianMixture(4, init_params="random", random_state=rng, max_iter=2)
    assert distance(c.fit(x).means_.copy(), c.fit(x).means_) > 1e-6


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("covariance_type", TYPES)
def test_em_never_lowers_the_likelihood(covariance_type, dtype):
    x = blobs(seed=2, dtype=dtype)
    ours = GaussianMixture(
        5, covariance_type=covariance_type, reg_covar=0, tol=0, max_iter=60, random_state=0
    ).fit(x)
    assert np.diff(ours.lower_bounds_).min() > (-1e-12 if dtype == np.float64 else -2e-6)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_weight_2_is_a_row_twice_and_weight_0_no_row(covariance_type):
    x = blobs()
    weight = np.random.default_rng(0).integers(0, 4, len(x)).astype(float)
    params = {"covariance_type": covariance_type, "max_iter": 8, "tol": 0}
    given = params | start(x, 4, covariance_type)
    weighted = GaussianMixture(4, **given).fit(x, sample_weight=weight)
    repeated = GaussianMixture(4, **given).fit(x.repeat(weight.astype(int), 0))
    assert_same(weighted, repeated, 1e-9, (*ATTRIBUTES, "lower_bounds_"))
    assert weighted.n_samples_seen_ == repeated.n_samples_seen_
    # The scale of all weights is of no account, however small.
    scaled = GaussianMixture(4, **given).fit(x, sample_weight=weight * 1e-30)
    assert_same(scaled, weighted, 1e-9, (*ATTRIBUTES, "lower_bounds_"))
    # Rows of weight 0 do not even enter the start.
    keep = weight > 0
    for init in INITS:
        a = GaussianMixture(3, init_params=init, random_state=0, **params)
        a.fit(np.where(keep[:, None], x, 1e6), sample_weight=keep.astype(float))
        b = GaussianMixture(3, init_params=init, random_state=0, **params).fit(x[keep])
        assert_same(a, b, 1e-7)


@pytest.mark.parametrize("covariance_type", TYPES)
def test_order_of_rows_and_components_is_of_no_account(covariance_type):
    x = blobs()
    params = {"covariance_type": covariance_type, "max_iter": 8, "tol": 0}
    begin = start(x, 4, covariance_type)
    a = GaussianMixture(4, **params, **begin).fit(x)
    order = np.random.default_rng(0).permutation(len(x))
    assert_same(GaussianMixture(4, **params, **begin).fit(x[order]), a, 1e-9)
    turned = {
        name: value if name == "precisions_init" and covariance_type == "tied" else value[::-1]
        for name, value in begin.items()
    }
    b = GaussianMixture(4, **params, **turned).fit(x)
    assert distance(b.means_[::-1], a.means_) < 1e-9
    assert distance(b.weights_[::-1], a.weights_) < 1e-9


@pytest.mark.parametrize("covariance_type", TYPES)
@pytest.mark.parametrize("init_params", INITS)
def test_labels_name_the_components(covariance_type, init_params):
    x = blobs(spread=6.0)
    truth = np.repeat(np.arange(4), 100)
    labels = np.full(400, -1)
    shown = np.random.default_rng(0).choice(400, 40, replace=False)
    labels[shown] = 3 - truth[shown]  # the components in an order that no start would find
    ours = GaussianMixture(
        4, covariance_type=covariance_type, init_params=init_params, random_state=0, reg_covar=1e-3
    ).fit(x, labels=labels)
    for k in range(4):
        assert np.abs(ours.means_[k] - x[truth == 3 - k].mean(0)).max() < 1.5
    assert (ours.predict(x) == 3 - truth).mean() > 0.9


def test_all_labels_give_the_moments_of_each_component():
    x, truth = blobs(), np.repeat([2, 0, 1, 3], 100)
    ours = GaussianMixture(4, random_state=0, reg_covar=0).fit(x, labels=truth)
    for k in range(4):
        np.testing.assert_allclose(ours.means_[k], x[truth == k].mean(0), rtol=1e-9)
        np.testing.assert_allclose(ours.covariances_[k], np.cov(x[truth == k].T, bias=True))
    # The likelihood of a labelled row is that of its component.
    terms = [np.log(w) for w in ours.weights_] + np.array(
        [
            ours.from_parameters([1.0], [m], [c]).log_prob(x)
            for m, c in zip(ours.means_, ours.covariances_)
        ]
    ).T
    assert ours.lower_bound_ == pytest.approx(terms[np.arange(400), truth].mean(), rel=1e-9)


def test_labels_of_some_components_only():
    x = blobs(spread=6.0)
    labels = np.where(np.arange(400) < 20, 1, -1)
    for init in INITS:
        ours = GaussianMixture(3, init_params=init, random_state=0, reg_covar=1e-3)
        assert (ours.fit(x, labels=labels).predict(x[:100]) == 1).mean() > 0.9, init


def test_convergence_is_reported():
    x = blobs()
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        assert not GaussianMixture(4, max_iter=1, random_state=0).fit(x).converged_
    assert GaussianMixture(4, max_iter=200, random_state=0).fit(x).converged_


def test_verbose_prints_as_scikit_learn(capsys):
    x = blobs()
    for verbose in (1, 2):
        params = {"verbose": verbose, "verbose_interval": 2, "max_iter": 5, "tol": 0}
        outputs = []
        for cls in (Incumbent, GaussianMixture):
            cls(3, random_state=0, **params).fit(x)
            outputs.append(capsys.readouterr())
        theirs, ours = (o.out.splitlines() for o in outputs)
        assert outputs[1].err == ""
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            # Times differ.
            assert a.partition("time lapse")[0] == b.partition("time lapse")[0]
            assert a.partition("ll change")[2] == b.partition("ll change")[2]
    GaussianMixture(3, random_state=0).fit(x)
    assert capsys.readouterr() == ("", "")


def test_fit_predict_is_fit_then_predict():
    x = blobs()
    a = GaussianMixture(4, random_state=0, n_init=3)
    np.testing.assert_array_equal(a.fit_predict(x), a.predict(x))
    np.testing.assert_array_equal(a.fit_transform(x), a.predict_proba(x))


def test_threads_change_no_bit():
    x = blobs(n=4000, dtype=np.float32)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(GaussianMixture(4, max_iter=5, tol=0, **start(x, 4, "full")).fit(x))
    finally:
        torch.set_num_threads(before)
    for name in ATTRIBUTES:
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))
