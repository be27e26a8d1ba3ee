"""Masked convolution and linear kernels in Triton against the reference, with gradients."""

from __future__ import annotations

import math

import pytest
import torch

import evidens
from evidens import ops
from evidens.kernels import masked_conv

DTYPES = [torch.float64, torch.float32]
# Rows, input and output channels, image, kernel, mask, groups.
CONVS = [
    (2, 3, 4, (5, 6), (3, 3), "A", 1),
    (1, 1, 1, (1, 1), (7, 7), "A", 1),
    (2, 6, 9, (3, 4), (3, 5), "A", 3),
    (1, 40, 70, (3, 3), (3, 1), "B", 1),
    (1, 66, 99, (2, 2), (1, 1), "B", 3),
    (1, 2, 3, (4, 3), (1, 3), ((True, False, True),), 1),
    (1, 2, 3, (4, 3), (1, 3), ((False,) * 3,), 1),
    (0, 2, 3, (4, 3), (3, 3), "B", 1),
]
LINEARS = [(3, 5, 7), (0, 5, 7), (40, 70, 33), (1, 1, 1), (17, 100, 130)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(call, given, dtype):
    """Triton's results and gradients, and the reference's in float64."""
    found = []
    for backend, kind in (("triton", dtype), ("reference", torch.float64)):
        leaves = [t.detach().to(kind).requires_grad_() for t in given]
        with evidens.backend(backend):
            y = call(*leaves)
            weights = torch.linspace(-1, 2, y.numel(), dtype=kind, device=y.device).view(y.shape)
            found.append((y.detach(), *torch.autograd.grad((weights * y).sum(), leaves)))
    tolerance = 1e-12 if dtype is torch.float64 else 3e-5
    for actual, exact in zip(*found, strict=True):
        assert actual.dtype is dtype
        size = float(exact.abs().max()) if exact.numel() else 0.0
        torch.testing.assert_close(
            actual.double(), exact, rtol=tolerance, atol=tolerance * (1 + size)
        )
    return found[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CONVS, ids=str)
def test_conv(device, shape, dtype, canaries):
    n, c, o, image, kernel, mask, groups = shape
    given = normal(n, c, *image), normal(o, c, *kernel, seed=1), normal(o, seed=2)

    def call(x, weight, bias):
        return ops.masked_conv2d(x, weight, bias, mask=mask, groups=groups)

    _, _, grad_weight, _ = check(call, [t.to(device) for t in given], dtype)
    live = evidens.reference.masked_conv
    alive = live.live_weights(
        (o, c, *kernel), *live.taps_of(mask, kernel, groups), groups, grad_weight.device
    )
    assert (grad_weight[~alive] == 0).all()


def test_conv_of_strided_images_and_several_slabs(device, canaries, monkeypatch):
    monkeypatch.setattr(masked_conv, "_SLAB", 16)
    weight = normal(20, 3, 3, 3, seed=1).to(device)
    base = normal(2, 4, 5, 9).to(device)
    for x in (base[:, :3], base.movedim(1, 3)[:, :3, :, ::2], base.transpose(2, 3)[:, 1:]):
        check(lambda x: ops.masked_conv2d(x, weight.to(x.dtype), mask="B"), [x], torch.float64)


def test_dead_weights_are_not_read(device):
    x, weight = normal(1, 6, 3, 3).to(device), normal(6, 6, 3, 3, seed=1).to(device)
    live = evidens.reference.masked_conv.live_weights(
        weight.shape, list(range(5)), True, 3, weight.device
    )
    poisoned = torch.where(live, weight, math.nan)
    with evidens.backend("triton"):
        want = ops.masked_conv2d(x, weight, mask="A", groups=3)
        assert torch.equal(ops.masked_conv2d(x, poisoned, mask="A", groups=3), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("shape", LINEARS, ids=str)
def test_linear(device, shape, strict, dtype, canaries):
    n, i, o = shape
    given = normal(n, i), normal(o, i, seed=1), normal(o, seed=2)
    g = torch.Generator().manual_seed(0)
    degrees = {
        "in_degrees": torch.randint(0, 9, (i,), generator=g).to(device),
        "out_degrees": torch.randint(0, 9, (o,), generator=g).to(device),
    }

    def call(x, weight, bias):
        return ops.masked_linear(x, weight, bias, **degrees, strict=strict)

    _, _, grad_weight, _ = check(call, [t.to(device) for t in given], dtype)
    alive = evidens.reference.masked_conv.live_links(*degrees.values(), strict)
    assert (grad_weight[~alive] == 0).all()
