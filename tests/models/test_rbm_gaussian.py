"""`GaussianRBM`: the density as a mixture of 2^J Gaussians, and what it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.rbm_cases import gaussian, states
from scipy.stats import kstest, multivariate_normal
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV

from evidens import GaussianMixture, GaussianRBM


def mixture(rbm):
    """Weights (2^J,), means (2^J, V) and variances (V,) of the density."""
    h = states(rbm.hidden, len(rbm.components_))
    variance = np.exp(rbm.log_variance_)
    means = rbm.intercept_visible_ + h @ rbm.components_
    log_w = h @ rbm.intercept_hidden_ + 0.5 * (means**2 / variance).sum(1)
    weights = np.exp(log_w - log_w.max())
    return weights / weights.sum(), means, variance


def clusters(n=600, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)) * [1, 3] + 8 * rng.integers(2, size=(n, 1)) + [100, 0]


def test_the_density_is_that_of_the_mixture():
    rbm = gaussian()
    weights, means, variance = mixture(rbm)
    x = np.random.default_rng(1).normal(size=(20, 2)) * 3
    density = sum(
        w * multivariate_normal(m, np.diag(variance)).pdf(x) for w, m in zip(weights, means)
    )
    np.testing.assert_allclose(rbm.log_prob(x), np.log(density), rtol=1e-10)
    np.testing.assert_allclose(rbm.score_samples(x), rbm.log_prob(x))
    assert rbm.density_kind_ == "exact"
    exact = rbm.log_partition_
    rbm.log_partition(exact=False, chains=50, rungs=300)
    low, high = rbm.log_partition_interval_
    assert low < exact < high < low + 1


@pytest.mark.parametrize("standardize", [True, False])
def test_a_fitted_density_integrates_to_one(standardize):
    x = clusters()[:, :1] * 0.5
    rbm = GaussianRBM(3, n_iter=5, standardize=standardize, random_state=0).fit(x - x.mean())
    grid = np.linspace(-60, 60, 20_001)[:, None]
    integral = np.exp(rbm.log_prob(grid)).sum() * (grid[1, 0] - grid[0, 0])
    assert integral == pytest.approx(1, rel=1e-6)


def test_samples_have_the_law():
    rbm = gaussian()
    weights, means, variance = mixture(rbm)
    for n_temperatures in (1, 3):
        drawn = rbm.sample(4000, steps=60, n_temperatures=n_temperatures, random_state=0)
        for i in range(2):
            rng = np.random.default_rng(0)
            k = rng.choice(len(weights), size=40_000, p=weights)
            truth = rng.normal(means[k, i], np.sqrt(variance[i]))
            assert kstest(drawn[:, i], truth).pvalue > 1e-3


def test_impute_is_the_conditional_mean():
    rbm = gaussian()
    weights, means, variance = mixture(rbm)
    w = weights * np.exp(-0.5 * (0.7 - means[:, 0]) ** 2 / variance[0])
    expected = w @ means[:, 1] / w.sum()
    filled = rbm.impute(np.tile([0.7, np.nan], (300, 1)), steps=100, random_state=0)
    assert (filled[:, 0] == 0.7).all()
    assert filled[:, 1].mean() == pytest.approx(expected, abs=0.05)
    drawn = rbm.impute(np.tile([0.7, np.nan], (4000, 1)), output="sample", random_state=0)
    second = w @ (means[:, 1] ** 2 + variance[1]) / w.sum()
    assert drawn[:, 1].mean() == pytest.approx(expected, abs=0.08)
    assert drawn[:, 1].var() == pytest.approx(second - expected**2, rel=0.1)
    settled = rbm.impute([[0.7, np.nan]], method="mean_field")
    assert np.isfinite(settled).all()
    assert settled[0, 0] == 0.7


def test_it_finds_clusters_and_their_variance():
    x = clusters()
    rbm = GaussianRBM(4, random_state=0).fit(x)
    best = GaussianMixture(2, random_state=0).fit(x).score(x)
    assert rbm.log_prob(x).mean() > best - 0.15
    within = np.exp(rbm.log_variance_) * rbm.scale_**2
    np.testing.assert_allclose(within, [1, 9], rtol=0.35)
    filled = rbm.impute([[100.0, np.nan], [108.0, np.nan]], random_state=0)
    assert filled[1, 1] - filled[0, 1] > 6
    drawn = rbm.sample(2000, steps=100, n_temperatures=10, random_state=0)
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), atol=0.8)
    np.testing.assert_allclose(drawn.std(0), x.std(0), rtol=0.15)


def test_real_flowers():
    x = load_iris().data
    rbm = GaussianRBM(16, n_iter=200, random_state=0).fit(x)
    diagonal = GaussianMixture(1, covariance_type="diag").fit(x).score(x)
    assert rbm.log_prob(x).mean() > diagonal + 1.0


def test_units_and_classes():
    x = clusters(400)
    y = (x[:, 0] > 104).astype(int)
    labels = np.where(np.arange(400) % 5 == 0, y, -1)
    rbm = GaussianRBM(4, n_iter=60, random_state=0).fit(x, labels=labels)
    assert (rbm.predict(x) == y).mean() > 0.98
    assert np.isfinite(rbm.log_prob(x)).all()
    # Another unit of the rows changes the density by its scale and nothing else.
    scaled = GaussianRBM(4, n_iter=60, random_state=0).fit(1000 * x, labels=labels)
    np.testing.assert_allclose(
        scaled.log_prob(1000 * x), rbm.log_prob(x) - 2 * np.log(1000), rtol=1e-6
    )


def test_weights_standardise_as_well():
    x = clusters(60)
    weight = np.arange(60) % 3
    keys = {"n_iter": 3, "batch_size": 1000, "n_chains": 10, "shuffle": False, "random_state": 0}
    a = GaussianRBM(2, **keys).fit(x, sample_weight=weight)
    b = GaussianRBM(2, **keys).fit(np.repeat(x, weight, 0))
    for name in ("mean_", "scale_", "components_", "log_variance_"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_and_gradients(dtype):
    x = torch.from_numpy(clusters(100)).to(dtype)
    rbm = GaussianRBM(2, n_iter=2, random_state=0).fit(x)
    assert rbm.log_variance_.dtype == rbm.mean_.dtype == dtype
    assert rbm.sample(3, steps=2).dtype == dtype
    point = x[:5].clone().requires_grad_()
    rbm.log_prob(point).sum().backward()
    assert point.grad.shape == point.shape
    assert torch.isfinite(point.grad).all()
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(rbm.log_prob, (point,))


def test_a_column_that_does_not_vary():
    x = np.column_stack([clusters(100), np.full(100, 7.0)])
    rbm = GaussianRBM(2, n_iter=20, random_state=0).fit(x)
    assert rbm.scale_[2] == 1
    assert np.isfinite(rbm.log_prob(x)).all()
    assert np.exp(rbm.log_variance_).min() > 0


def test_score_selects_models():
    x = clusters(200)
    search = GridSearchCV(GaussianRBM(2, n_iter=2, random_state=0), {"learning_rate": [0.01, 0.1]})
    rbm = search.fit(x).best_estimator_
    assert rbm.score(x) == pytest.approx(rbm.log_prob(x).mean(), rel=1e-12)
    weight = np.arange(200) % 3
    weighted = np.average(rbm.log_prob(x), weights=weight)
    assert rbm.score(x, sample_weight=weight) == pytest.approx(weighted, rel=1e-12)


def test_impute_crosses_between_clusters():
    rbm = GaussianRBM(4, random_state=0).fit(clusters() - [100, 0])
    empty = np.full((400, 2), np.nan)
    exact = (rbm.sample(4000, steps=300, n_temperatures=10, random_state=1)[:, 0] > 4).mean()
    filled = rbm.impute(empty, output="sample", n_temperatures=10, random_state=0)
    assert (filled[:, 0] > 4).mean() == pytest.approx(exact, abs=0.08)
