"""Missing values in flows: draws have the conditional density, means are its means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from evidens import Glow, MaskedAutoregressiveFlow, NeuralSplineFlow, RealNVP

F64 = torch.float64


def flow(cls=MaskedAutoregressiveFlow, size=2, **options):
    """Weights that matter, in float64."""
    torch.manual_seed(0)
    model = cls(size, layers=2, hidden=(16,), **options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.double().eval()


def conditional(model, first, low=-12.0, high=12.0):
    """A fine grid of feature 1 given feature 0, and the distribution function there."""
    grid = torch.linspace(low, high, 4001, dtype=F64)
    rows = torch.stack([torch.full_like(grid, first), grid], 1)
    density = model.log_prob(rows).detach().exp()
    cdf = density.cumsum(0) / density.sum()
    return grid.numpy(), cdf.numpy(), float((grid * density).sum() / density.sum())


@pytest.mark.parametrize("cls", [MaskedAutoregressiveFlow, RealNVP, NeuralSplineFlow])
def test_draws_have_the_conditional_density(cls):
    model = flow(cls)
    n, first = 400, 0.7
    grid, cdf, mean = conditional(model, first)
    x = torch.tensor([[first, math.nan]], dtype=F64).repeat(n, 1)
    drawn = model.impute(x, method="sample", random_state=0)
    assert (drawn[:, 0] == first).all()
    places = np.interp(drawn[:, 1].numpy(), grid, cdf)
    assert stats.kstest(places, "uniform").pvalue > 0.01
    means = model.impute(x[:20], steps=1000, random_state=1)[:, 1]
    spread = drawn[:, 1].std().item()
    assert means.mean().item() == pytest.approx(mean, abs=0.15 * spread)


def test_a_conditional_gaussian():
    rng = np.random.default_rng(0)
    factor = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [-0.5, 0.3, 0.4]])
    x = rng.normal(size=(1500, 3)) @ factor.T * [1, 10, 0.1] + [0, 100, 5]
    model = MaskedAutoregressiveFlow(3, layers=1, hidden=())
    model.fit(x, epochs=150, lr=1e-2, random_state=0, verbose=0)
    covariance, centre = np.cov(x.T), x.mean(0)
    rows = x[:50].copy()
    rows[:, 1] = np.nan
    gain = covariance[1, [0, 2]] @ np.linalg.inv(covariance[np.ix_([0, 2], [0, 2])])
    expected = centre[1] + (rows[:, [0, 2]] - centre[[0, 2]]) @ gain
    filled = model.impute(rows, random_state=0)
    assert np.abs(filled[:, 1] - expected).mean() < 1.0  # of a deviation of 10
    np.testing.assert_array_equal(filled[:, [0, 2]], rows[:, [0, 2]])


def test_integers_angles_classes_and_what_comes_back():
    torch.manual_seed(0)
    images = torch.full((3, 1, 4, 4), 2.0)
    images[:, :, 2:] = math.nan
    filled = Glow((1, 4, 4), dequantize=5, classes=2).impute(images, y=[0, 1, 1], steps=20)
    assert filled.shape == images.shape
    assert ((filled >= 0) & (filled < 5) & ((filled[:, :, :2]) == 2).all()).all()
    drawn = Glow((1, 4, 4), dequantize=5).impute(images.numpy(), method="sample", steps=20)
    assert (drawn == np.floor(drawn)).all()
    angles = flow(NeuralSplineFlow, circular=[1])
    filled = angles.impute(np.array([[0.5, np.nan]]), steps=20, random_state=0)
    assert -math.pi <= filled[0, 1] < math.pi
    assert np.isnan(filled).sum() == 0
    assert flow().impute(np.zeros((0, 2))).shape == (0, 2)


def test_a_row_depends_on_the_seed_and_its_number_alone(monkeypatch):
    model = flow()
    x = torch.randn(10, 2, dtype=F64)
    x[:, 1] = math.nan
    x[3] = math.nan
    whole = model.impute(x, steps=10, random_state=0)
    assert whole.isfinite().all()
    few = model.impute(x[:4], steps=10, random_state=0)
    torch.testing.assert_close(few, whole[:4], rtol=1e-9, atol=1e-9)
    monkeypatch.setattr("evidens.models.flow_impute.PIECE", 1)
    pieces = model.impute(x, steps=10, random_state=0)
    torch.testing.assert_close(pieces, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "mode"}, "expected method one of mean, sample, got 'mode'"),
        ({"steps": 1}, "steps must be an integer of at least 2, got 1"),
        ({"steps": 2.5}, "steps must be an integer"),
    ],
)
def test_errors(options, words):
    with pytest.raises(ValueError, match=words):
        flow().impute([[0.0, math.nan]], **options)


def test_infinities_and_missing_labels_are_refused():
    with pytest.raises(ValueError, match="must be finite"):
        flow().impute([[math.inf, math.nan]])
    with pytest.raises(ValueError, match="pass y="):
        RealNVP(2, classes=2).impute([[0.0, math.nan]])
