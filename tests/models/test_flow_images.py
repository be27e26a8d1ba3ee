"""Glow, and integers: what becomes of cells, pixels and bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from models.flow_cases import QUICK, SMALL, digits, fitted_digits, shaken
from scipy.special import logsumexp

from evidens import Glow, NeuralSplineFlow, RealNVP

X, Y = digits()
IMAGES = X.reshape(-1, 1, 8, 8)


def test_glow_learns_the_digits():
    flow = fitted_digits()
    test, answer = IMAGES[1400:], Y[1400:]
    start = Glow((1, 8, 8), classes=10, steps=3, hidden=24, dequantize=17)
    start.fit(IMAGES[:1400], Y[:1400], epochs=0, **QUICK)
    bits = flow.bits_per_dim(test, answer)
    assert bits < 2.4 < np.log2(17) < 4.1
    assert bits < start.bits_per_dim(test, answer) - 0.3
    assert (flow.predict(test) == answer).mean() > 0.9


def test_draws_look_like_digits():
    """A nearest neighbour that has seen no draw reads them as what they were drawn as."""
    from sklearn.neighbors import KNeighborsClassifier

    judge = KNeighborsClassifier(3).fit(X, Y)
    labels = np.repeat(np.arange(10), 20)
    drawn = fitted_digits().sample(200, y=labels, random_state=0)
    assert drawn.shape == (200, 1, 8, 8)
    assert drawn.dtype == np.int64
    assert drawn.min() == 0
    assert drawn.max() == 16
    assert judge.score(drawn.reshape(200, 64), labels) > 0.6


def test_rows_may_be_flat():
    flow = fitted_digits()
    flat = flow.log_prob(X[:20])
    assert (flat == flow.log_prob(IMAGES[:20])).all()
    assert (flat == flow.log_prob(IMAGES[:20].astype(np.uint8))).all()
    with pytest.raises(ValueError, match=r"shape \(N, 1, 8, 8\) or \(N, 64\), got \(20, 8, 8\)"):
        flow.log_prob(IMAGES[:20, 0])


def test_log_prob_is_the_same_in_every_call_and_a_bound():
    flow = fitted_digits()
    assert flow.density_kind_ == "bound"
    assert RealNVP(2).density_kind_ == "exact"
    first = flow.log_prob(X[:30])
    assert (flow.log_prob(X[:30]) == first).all()
    assert flow.log_prob(torch.from_numpy(X[:30])).detach().numpy() == pytest.approx(first)
    one, many = (flow.bits_per_dim(X[1400:1500], draws=n) for n in (1, 20))
    assert many < one
    assert -first.mean() / (64 * np.log(2)) == pytest.approx(flow.bits_per_dim(X[:30]))


@pytest.mark.parametrize("logit", [None, 0.005, 0.1])
@pytest.mark.parametrize("cls", [RealNVP, NeuralSplineFlow])
def test_masses_of_integers_sum_to_one(cls, logit):
    """The mean of exp(log_prob) over the noise is the mass of a cell; all cells make up 1."""
    flow = shaken(cls(2, dequantize=3, logit=logit, **SMALL), 0.05).double()
    cells = np.array(list(itertools.product(range(3), range(3))), dtype=float)
    flow.fit(np.repeat(cells, 30, 0), epochs=0, warm_start=True, **QUICK)
    steps = (np.arange(60) + 0.5) / 60
    noise = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    inside = torch.from_numpy((cells[:, None] + noise).reshape(-1, 2))
    mass = np.exp(logsumexp(flow._density(inside).detach().reshape(9, -1), 1) - np.log(3600))
    assert mass.sum() <= 1 + 1e-3
    if logit is not None:  # then nothing lies outside
        share = logit * 2  # of the line that the logit leaves below 0 and above L
        assert mass.sum() > 1 - 3 * share - 0.02
    drawn = flow.sample(20000, random_state=0)
    counts = (drawn[:, None] == torch.from_numpy(cells)).all(2).double().mean(0)
    if logit == 0.005:
        np.testing.assert_allclose(counts, mass / mass.sum(), atol=0.03)


@pytest.mark.parametrize("logit", [None, 0.05])
def test_logdet_of_dequantization(logit):
    flow = shaken(RealNVP(2, dequantize=5, logit=logit, **SMALL)).double()
    x = torch.tensor([[0.3, 4.9], [2.5, 1.1]], dtype=torch.float64)
    z, logdet = flow.standard(x)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow.standard(v[None])[0][0], x[i])
        expected = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(logdet.expand(2)[i], expected)
    torch.testing.assert_close(flow.standard.inverse(z), x)


@pytest.mark.parametrize(
    "value, message",
    [
        (17.0, r"integers from 0 to 16, got 17\.0 at \[2, 0, 3, 4\]"),
        (-1.0, r"got -1\.0"),
        (0.5, r"got 0\.5"),
        (np.nan, "X must be finite"),
    ],
)
def test_numbers_out_of_range(value, message):
    bad = IMAGES[:5].copy()
    bad[2, 0, 3, 4] = value
    for call in (fitted_digits().log_prob, fitted_digits().predict):
        with pytest.raises(ValueError, match=message):
            call(bad)
    with pytest.raises(ValueError, match=message):
        Glow((1, 8, 8), dequantize=17).fit(bad)
    with torch.no_grad():
        result = fitted_digits().log_prob(torch.from_numpy(bad))
    assert result[[0, 1, 3, 4]].isfinite().all()
    assert result[2].isnan() if np.isnan(value) else result[2] == -np.inf


def test_bits_need_levels():
    with pytest.raises(ValueError, match="build the flow with dequantize=levels"):
        RealNVP(2).bits_per_dim(X[:, :2])


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_round_trip_of_glow(levels):
    flow = Glow((3, 8, 16), levels=levels, steps=2, hidden=8, classes=2, context=1).double()
    shaken(flow, 0.05)
    x, c = torch.randn(4, 3, 8, 16).double(), torch.randn(4, 3).double()
    z, logdet = flow.layers.eval()(x, c)
    assert z.shape == x.shape
    back, opposite = flow.layers.inverse(z, c)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(logdet, -opposite, rtol=0, atol=1e-10)


def test_logdet_of_glow():
    flow = Glow((1, 4, 4), levels=2, steps=1, hidden=4)
    flow = shaken(flow.double()).eval()
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: flow.layers(v.view_as(x))[0].flatten(), x.flatten()
    )
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], flow.layers(x)[1][0])


def test_glow_compiles_into_one_graph():
    flow = Glow((1, 4, 4), levels=1, steps=1, hidden=4, dequantize=4)
    x = torch.randint(4, (5, 1, 4, 4)).float()
    flow.fit(x, epochs=1, **QUICK)
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), flow.log_prob(x))


def test_copies_and_files_of_glow(tmp_path):
    flow = fitted_digits()
    flow.save(tmp_path / "glow.safetensors")
    loaded = Glow.load(tmp_path / "glow.safetensors")
    assert (loaded.log_prob(X[:20]) == flow.log_prob(X[:20])).all()
    assert (loaded.sample(4, y=3, random_state=0) == flow.sample(4, y=3, random_state=0)).all()
    assert repr(loaded) == repr(flow)
