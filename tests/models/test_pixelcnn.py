"""PixelCNN: exact probabilities, draws that are those of full passes, fill-in, classes, files."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from models.flow_cases import QUICK, digits
from scipy import stats

import evidens
from evidens import PixelCNN
from evidens.nn.pixels import PixelNet

F64 = torch.float64
# Channels, output, levels.
CASES = [
    (1, "bernoulli", 2),
    (2, "bernoulli", 2),
    (1, "categorical", 3),
    (3, "categorical", 2),
    (1, "logistic", 5),
    (3, "logistic", 3),
]


@pytest.fixture(params=[False, True], ids=["plain", "gated"])
def gated(request):
    return request.param


def made(channels, output, levels, size=(5, 4), **options):
    """Weights that matter."""
    torch.manual_seed(0)
    options = {"hidden": 6, "layers": 2, "first_kernel": 5, "terms": 2} | options
    model = PixelCNN((channels, *size), levels=levels, output=output, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.double().eval()


def every_image(levels, shape):
    numbers = itertools.product(range(levels), repeat=math.prod(shape))
    return torch.tensor(list(numbers), dtype=F64).view(-1, *shape)


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize(("channels", "output", "levels"), CASES)
def test_probabilities_sum_to_one(channels, output, levels, one_hot, gated):
    size = (2, 3) if channels == 1 and levels == 2 else (1, 2)
    model = made(channels, output, levels, size, one_hot=one_hot, gated=gated)
    x = every_image(levels, model.shape)
    assert model.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize(("channels", "output", "levels"), CASES)
def test_draws_are_those_of_full_passes(channels, output, levels, one_hot, classes, gated):
    model = made(channels, output, levels, one_hot=one_hot, classes=classes, gated=gated)
    y = torch.arange(6) % 2 if classes else None
    x = model.sample(6, y=y, random_state=1)
    with evidens.backend("reference"):
        assert torch.equal(model.sample(6, y=y, random_state=1), x)
    assert torch.equal(model.sample(3, y=None if y is None else y[:3], random_state=1), x[:3])
    # From every start: what is drawn, given as known, is drawn again.
    for pixel in (0, 1, 7, 20):
        given = x.double().flatten(2)
        given[:, :, pixel:] = math.nan
        again = model.impute(given.view(x.shape), y=y, random_state=1)
        assert torch.equal(again.long(), x)


def test_frequencies_of_draws(gated):
    model = made(1, "categorical", 3, (2, 2), gated=gated)
    x = every_image(3, (1, 2, 2))
    expected = model.log_prob(x).exp().detach().numpy() * 20_000
    drawn = model.sample(20_000, random_state=0).flatten(1).numpy()
    seen = np.bincount((drawn * 3 ** np.arange(3, -1, -1)).sum(1), minlength=81)
    assert stats.chisquare(seen, expected).pvalue > 1e-3


@pytest.mark.parametrize("groups", [1, 3])
def test_what_a_pixel_sees(groups, gated):
    """With enough layers everything before it, and, if gated, without a blind spot."""
    net = PixelNet(3, 3, hidden=24, layers=6, first_kernel=3, groups=groups, gated=gated).double()
    x = torch.randn(1, 3, 6, 6, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x)[0, 1, 3, 2].sum(), x)
    seen = (gradient[0] != 0).flatten(1)
    before = torch.arange(36) < 3 * 6 + 2
    assert not seen[:, 3 * 6 + 3 :].any()
    own = seen[:, 3 * 6 + 2].tolist()
    assert own == ([False] * 3 if groups == 1 else [True, False, False])
    assert torch.equal(seen[:, :20].all(0), before[:20]) == gated


def test_learning(gated, tmp_path):
    X = (digits()[0] > 7).reshape(-1, 1, 8, 8)
    independent = X[:1200].mean(0).clip(1e-3, 1 - 1e-3)
    test = X[1200:1600]
    apart = np.where(test, np.log(independent), np.log(1 - independent)).sum((1, 2, 3)).mean()
    model = PixelCNN((1, 8, 8), levels=2, hidden=16, layers=2, first_kernel=5, gated=gated)
    model.fit(X[:1200], epochs=12, lr=1e-2, batch_size=32, **QUICK)
    assert model.score(test) > apart + 4
    assert model.bits_per_dim(test) == pytest.approx(-model.score(test) / 64 / math.log(2))
    model.save(tmp_path / "pixels")
    again = PixelCNN.load(tmp_path / "pixels")
    assert np.array_equal(again.sample(2, random_state=0), model.sample(2, random_state=0))


def test_classes():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=400)
    X = (rng.uniform(size=(400, 1, 4, 4)) < np.where(y, 0.8, 0.2)[:, None, None, None]) * 1.0
    model = PixelCNN((1, 4, 4), levels=2, classes=2, hidden=8, layers=1, first_kernel=3)
    model.fit(X, y, epochs=20, lr=1e-2, batch_size=64, **QUICK)
    assert (model.predict(X) == y).mean() > 0.95
    assert model.sample(50, y=1, random_state=0).mean() > 0.6


def test_rows_that_cannot_be(gated):
    for output, levels in (("bernoulli", 2), ("categorical", 2), ("logistic", 3)):
        model = made(1, output, levels, (2, 2), gated=gated, one_hot=output == "categorical")
        x = torch.zeros(4, 1, 2, 2, dtype=F64)
        x[0, 0, 0, 0], x[1, 0, 0, 0], x[2, 0, 1, 1] = levels, math.nan, 0.5
        density = model.log_prob(x)
        assert density.isneginf().tolist() == [True, False, True, False]
        assert density.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: PixelCNN((8, 8)), r"shape must be \(C, H, W\)"),
        (lambda: PixelCNN((1, 8, 8), output="poisson"), "output.*poisson"),
        (lambda: PixelCNN((1, 8, 8), levels=3, output="bernoulli"), "bernoulli.*3"),
        (lambda: PixelCNN((2, 8, 8), output="logistic"), "1 or 3 channels"),
        (lambda: PixelCNN((3, 8, 8), hidden=16), "multiple of the 3"),
        (lambda: PixelCNN((1, 8, 8), kernel=4), "odd"),
        (lambda: PixelCNN((1, 2, 2), levels=4).log_prob(np.full((1, 4), 4)), "from 0 to 3"),
        (lambda: PixelCNN((1, 2, 2), levels=4).impute(np.full((1, 4), 4.0)), "from 0 to 3"),
        (lambda: PixelCNN((1, 2, 2), levels=4).log_prob(np.zeros((1, 5))), "shape"),
        (lambda: PixelCNN((1, 2, 2), levels=4, classes=2).impute(np.zeros((1, 4))), "pass y"),
        (lambda: PixelCNN((1, 2, 2), levels=4).sample(-1), "negative"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_colours_take_a_width_that_suits_them():
    assert PixelCNN((3, 4, 4), levels=4).layers.nodes[0].conv.out_channels == 66
    assert PixelCNN((1, 4, 4), levels=4).layers.nodes[0].conv.out_channels == 64


@pytest.mark.parametrize("levels", [2.5, "2", None])
def test_levels_are_an_integer(levels):
    with pytest.raises(ValueError, match="levels must be an integer"):
        PixelCNN((1, 4, 4), levels=levels)


def test_the_ends_of_a_logistic_are_not_drawn(monkeypatch):
    """Uniforms of 24 bits are 0 once in 2^24."""
    from evidens import ops

    monkeypatch.setattr("evidens.ops.pixelcnn.philox_uniform", lambda *a: torch.zeros(a[2], a[3]))
    u = ops.pixelcnn_noise("logistic", 1, 1, 1, 1, seed=0)
    layer = ops.PixelLayer(torch.zeros(3, 1, 1, 1), torch.tensor([0.0, 0.9, -6.0]), mask="A")
    level = ops.pixelcnn_sample(u, [layer], kind="logistic")
    log_prob = ops.logistic_mixture_log_prob(level, layer.bias.view(1, 3, 1, 1))
    assert log_prob.item() > -25
