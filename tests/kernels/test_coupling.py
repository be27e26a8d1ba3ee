"""Coupling kernels in Triton against the reference: every map and direction, with gradients."""

from __future__ import annotations

import math

import pytest
import torch

import evidens
from evidens import ops
from evidens.kernels import coupling as kernels
from evidens.reference import coupling as reference
from evidens.reference.coupling import SCALE_MAPS

MAPS = (*((name, None) for name in SCALE_MAPS), ("sigmoid", 0.0), ("softplus", 0.0))
# Shape of x and active features.
SHAPES = [
    ((3, 4), None),
    ((5, 7), (6, 0, 3)),
    ((2, 3, 5, 2), (1,)),
    ((2, 2, 700), None),
    ((4, 3), ()),
]


def both(call, given, dtype):
    """Triton's results and gradients, and the reference's in float64."""
    found = []
    for backend, kind in (("triton", dtype), ("reference", torch.float64)):
        leaves = [t.detach().to(kind).requires_grad_() for t in given]
        with evidens.backend(backend):
            y, logdet = call(*leaves)
            weights = torch.linspace(-1, 2, y.numel(), dtype=kind, device=y.device).view(y.shape)
            rows = torch.linspace(1, 2, len(logdet), dtype=kind, device=y.device)
            total = (weights * y).sum() + (rows * logdet).sum()
            gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        zeros = (torch.zeros_like(t) if g is None else g for g, t in zip(gradients, leaves))
        found.append((y, logdet, *zeros))
    return zip(*found, strict=True)


def check(pairs, dtype):
    tolerance = 1e-12 if dtype is torch.float64 else 2e-5
    for actual, exact in pairs:
        assert actual.dtype is dtype
        torch.testing.assert_close(actual.double(), exact, rtol=tolerance, atol=tolerance)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("scale_map", "clamp"), MAPS)
@pytest.mark.parametrize(("shape", "active"), SHAPES)
def test_affine_coupling(device, shape, active, scale_map, clamp, inverse, dtype, canaries):
    index = None if active is None else torch.tensor(active, dtype=torch.int64, device=device)
    dense = (shape[0], shape[1] if active is None else len(active), *shape[2:])
    both_parameters = normal(dense[0], 2 * dense[1], *dense[2:], seed=1).to(device)
    x = normal(*shape).to(device)

    def call(x, parameters):
        # Views of one tensor, as a conditioner gives them.
        scale, shift = parameters.chunk(2, 1) if dense[1] else (parameters, parameters)
        options = dict(active=index, scale_map=scale_map, clamp=clamp, inverse=inverse)
        return ops.affine_coupling(x, scale, shift, **options)

    check(both(call, (x, both_parameters), dtype), dtype)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("kind", ["additive", "scale"])
def test_without_a_scale_or_a_shift(device, kind, inverse, canaries):
    x, other = normal(3, 4).to(device), normal(3, 4, seed=1).to(device)

    def call(x, other):
        pair = (None, other) if kind == "additive" else (other, None)
        return ops.affine_coupling(x, *pair, inverse=inverse)

    check(both(call, (x, other), torch.float64), torch.float64)


def test_extreme_scales_are_finite(device):
    scale = torch.tensor([[-1e30, -200.0, 0.0, 200.0, 1e30]], device=device)
    x = torch.ones_like(scale)
    for scale_map, clamp in MAPS:
        for inverse in (False, True):
            leaves = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
            options = dict(scale_map=scale_map, clamp=clamp, inverse=inverse)
            with evidens.backend("triton"):
                y, logdet = ops.affine_coupling(*leaves, None, **options)
                gradients = torch.autograd.grad(y.sum() + logdet.sum(), leaves)
            assert not any(t.isnan().any() for t in (y, logdet, *gradients)), scale_map


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # the interpreter's
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_difference_that_overflows_gives_no_nan(device, dtype):
    large = 0.9 * torch.finfo(dtype).max
    scale = torch.tensor([[-1e30, -104.0, 0.0, 104.0, 800.0, 1e30]], dtype=dtype, device=device)
    x = torch.full_like(scale, large)
    for scale_map, clamp in MAPS:
        leaves = [t.clone().requires_grad_() for t in (x, scale, -x)]
        options = dict(scale_map=scale_map, clamp=clamp, inverse=True)
        with evidens.backend("triton"):
            y, logdet = ops.affine_coupling(*leaves, **options)
            gradients = torch.autograd.grad(y.sum() + logdet.sum(), leaves)
        assert not any(t.isnan().any() for t in (y, logdet, *gradients)), scale_map
    infinite = torch.tensor([[math.inf, -math.inf, math.nan]], dtype=dtype, device=device)
    zero, one = torch.zeros_like(infinite), torch.ones_like(infinite)
    with evidens.backend("triton"):
        for scale in (zero, None):
            y, _ = ops.affine_coupling(infinite, scale, one, inverse=True)
            torch.testing.assert_close(y, infinite, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("inverse", [False, True])
def test_indices_out_of_range_are_left_out(device, inverse, canaries):
    """Nothing looks at their values on the host, so they must lead nowhere."""
    x, scale, shift = (normal(4, 5, 3, seed=s).to(device) for s in range(3))
    index = torch.tensor([5, 1, -1, 2**40, 3], device=device)
    kept = torch.tensor([1, 4], device=device)
    rest = (SCALE_MAPS.index("tanh"), 1.0, inverse)
    options = dict(scale_map="tanh", clamp=1.0, inverse=inverse)
    y, logdet = kernels.affine_coupling(x, scale, shift, index, *rest)
    plain = scale[:, kept], shift[:, kept]
    want = reference.affine_coupling(x, *plain, active=index[kept], **options)
    torch.testing.assert_close((y, logdet), want, rtol=1e-12, atol=1e-12)
    grads = normal(4, 5, 3, seed=3).to(device), normal(4, seed=4).to(device)
    given = (x, scale, shift, index, *grads, *rest, True, True, True)
    found = kernels.affine_coupling_backward(*given)
    want = reference.affine_coupling_backward(x, *plain, *grads, active=index[kept], **options)
    torch.testing.assert_close(found[0], want[0], rtol=1e-12, atol=1e-12)
    others = [i for i in range(5) if i not in kept.tolist()]
    for a, b in zip(found[1:], want[1:]):
        torch.testing.assert_close(a[:, kept], b, rtol=1e-12, atol=1e-12)
        assert (a[:, others] == 0).all()


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True)]
)
@pytest.mark.parametrize("layout", ["interleaved", "rows inside"])
def test_strided_parameters_and_one_gradient_at_a_time(device, layout, needs, canaries):
    n, a, places = 5, 3, 4
    both = normal(n, 2 * a, places, seed=1).to(device)
    scale, shift = both[:, 0::2], both[:, 1::2]
    if layout == "rows inside":
        scale, shift = (t.permute(2, 1, 0).contiguous().permute(2, 1, 0) for t in (scale, shift))
    x = normal(n, 2 * a, places).to(device).transpose(0, 2).contiguous().transpose(0, 2)
    index, rest = torch.tensor([4, 0, 1], device=device), (0, 0.0, True)
    y, logdet = kernels.affine_coupling(x, scale, shift, index, *rest)
    want = reference.affine_coupling(x, scale, shift, active=index, inverse=True)
    torch.testing.assert_close((y, logdet), want, rtol=1e-12, atol=1e-12)
    grad = normal(n, places, 2 * a, seed=2).to(device).transpose(1, 2)
    found = kernels.affine_coupling_backward(x, scale, shift, index, grad, None, *rest, *needs)
    want = reference.affine_coupling_backward(
        x, scale, shift, grad, None, active=index, inverse=True
    )
    for f, w, need in zip(found, want, needs):
        if need:
            torch.testing.assert_close(f, w, rtol=1e-12, atol=1e-12)
        else:
            assert f.shape == (n, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5, 7), (1, 1), (3, 2, 1100)])
def test_actnorm(device, shape, inverse, dtype, canaries):
    given = (
        normal(*shape).to(device),
        normal(shape[1], seed=1).to(device),
        normal(shape[1], seed=2).to(device),
    )
    check(both(lambda *t: ops.actnorm(*t, inverse=inverse), given, dtype), dtype)


@pytest.mark.parametrize("shape", [(0, 3), (0, 2, 4)])
def test_no_rows(device, shape):
    x = torch.zeros(shape, device=device)
    with evidens.backend("triton"):
        for y, logdet in (
            ops.affine_coupling(x, x, x),
            ops.actnorm(x, torch.zeros(shape[1]).to(device), torch.zeros(shape[1]).to(device)),
        ):
            assert y.shape == shape
            assert logdet.shape == (0,)
