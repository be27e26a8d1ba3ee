"""What MADE and PixelCNN refuse, and what they survive: underflow, infinite weights, bad fits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models.flow_cases import QUICK

from evidens import MADE, PixelCNN
from evidens.nn import MaskedConv2d
from evidens.nn.pixels import PixelNet

F64 = torch.float64
IMAGES = [("bernoulli", 2, 1), ("categorical", 3, 3), ("logistic", 5, 1), ("logistic", 5, 3)]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: PixelCNN((1, 4, 4), levels=2, kernel=4), "kernels must be odd, got 4"),
        (lambda: PixelCNN((1, 4, 4), levels=2, first_kernel=6), "kernels must be odd, got 6"),
        (lambda: PixelNet(1, 2, kernel=2), "kernels must be odd, got 2"),
        (lambda: MaskedConv2d(4, 4, 2, mask="A"), "odd"),
        (lambda: PixelCNN((3, 4, 4), levels=2, hidden=8), "hidden must be a multiple of the 3"),
        (lambda: MaskedConv2d(4, 6, 3, mask="A", groups=3), "groups.*divide"),
        (lambda: PixelCNN((1, 2, 2), levels=4).fit(np.full((9, 4), 4)), "integers from 0 to 3"),
        (lambda: PixelCNN((1, 2, 2), levels=4).fit(np.full((9, 4), -1)), "integers from 0 to 3"),
        (lambda: PixelCNN((1, 2, 2), levels=4).fit(np.full((9, 4), 0.5)), "integers from 0 to 3"),
        (lambda: PixelCNN((1, 2, 2), levels=4).impute(np.full((2, 5), math.nan)), r"got \(2, 5\)"),
        (lambda: PixelCNN((1, 2, 2)).start(x=np.full((2, 1, 2, 3), math.nan)), r"got \(2, 1, 2, 3"),
        (lambda: MADE(3).impute(np.full((2, 4), math.nan)), r"got \(2, 4\)"),
        (lambda: MADE(3).start(x=np.full((2, 4), math.nan)), r"got \(2, 4\)"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def last_bias(model):
    """The bias of the parameters of all features or pixels."""
    *_, (_, bias) = ((n, p) for n, p in model.named_parameters() if n.endswith("bias"))
    return bias


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(("output", "levels"), [("bernoulli", None), ("categorical", 3)])
def test_probabilities_of_made_that_underflow(output, levels, dtype):
    """exp(-1e4) is 0 in every type; its logarithm is not, and such a level is never drawn."""
    model = MADE(3, output=output, levels=levels, hidden=(8,)).to(dtype).eval()
    with torch.no_grad():
        last_bias(model)[:] = 0
        last_bias(model)[0] = 1e4
    x = torch.zeros(2, 3, dtype=dtype)
    x[1, 0] = 1
    likely, unlikely = (x[1], x[0]) if output == "bernoulli" else (x[0], x[1])
    low = model.log_prob(unlikely[None])
    assert low.isfinite().all()
    assert low.item() == pytest.approx(-1e4, rel=1e-2)
    low.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model.log_prob(likely[None]).item() > -10
    assert (model.sample(500, random_state=0)[:, 0] == likely[0]).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(("output", "levels", "channels"), IMAGES)
def test_probabilities_of_pixels_that_underflow(output, levels, channels, dtype):
    model = PixelCNN(
        (channels, 2, 2), levels=levels, output=output, hidden=6, layers=1, first_kernel=3, terms=2
    )
    model = model.to(dtype).eval()
    with torch.no_grad():
        bias = last_bias(model)
        bias[:] = -1e4 if output == "logistic" else 0
        bias[0] = 1e4
    x = torch.randint(0, levels, (9, channels, 2, 2)).to(dtype)
    value = model.log_prob(x)
    assert value.isfinite().all()
    assert value.min() < -1e3
    value.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    drawn = model.sample(50, random_state=0)
    assert ((drawn >= 0) & (drawn < levels)).all()
    if output == "categorical":
        assert (drawn[:, 0] == 0).all()


@pytest.mark.parametrize(
    "make", [lambda: MADE(4, hidden=(8,)), lambda: PixelCNN((1, 2, 2), levels=2)]
)
def test_a_loss_that_is_not_finite_ends_training(make):
    """Also here; the weights stay those of the start, and the batch is named."""
    model, X = make(), np.random.default_rng(0).integers(2, size=(40, 4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    original = model._given_label

    def broken(x, context, labels):
        value = original(x, context, labels)
        return value * math.inf if model.training else value

    model._given_label = broken
    with pytest.warns(RuntimeWarning, match=r"stopped in epoch 1 at batch 1 of 3.*rows of X: \d+"):
        model.fit(X, epochs=5, batch_size=16, warm_start=True, **QUICK)
    for name, value in model.state_dict().items():
        if name in before and "standard" not in name:
            assert torch.equal(value, before[name])
    assert model.n_iter_ == 0
    assert np.isfinite(model.score(X))


def test_weights_that_are_nan():
    model = PixelCNN((1, 2, 2), levels=3, hidden=6, layers=1, first_kernel=3)
    with torch.no_grad():
        last_bias(model)[:] = math.nan
    for draw in (lambda: model.sample(2), lambda: model.step(model.start(2))):
        with pytest.raises(ValueError, match="no distribution"):
            draw()
