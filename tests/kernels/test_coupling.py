"""Coupling kernels in Triton against the reference: every map and direction, with gradients."""

from __future__ import annotations

import pytest
import torch

import evidens
from evidens import ops

MAPS = ("exp", "exp_clamped", "sigmoid", "softplus", "tanh", "atan", "bounded_exp")
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
@pytest.mark.parametrize("scale_map", MAPS)
@pytest.mark.parametrize(("shape", "active"), SHAPES)
def test_affine_coupling(device, shape, active, scale_map, inverse, dtype, canaries):
    index = None if active is None else torch.tensor(active, dtype=torch.int64, device=device)
    dense = (shape[0], shape[1] if active is None else len(active), *shape[2:])
    both_parameters = normal(dense[0], 2 * dense[1], *dense[2:], seed=1).to(device)
    x = normal(*shape).to(device)

    def call(x, parameters):
        # Views of one tensor, as a conditioner gives them.
        scale, shift = parameters.chunk(2, 1) if dense[1] else (parameters, parameters)
        return ops.affine_coupling(
            x, scale, shift, active=index, scale_map=scale_map, inverse=inverse
        )

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
    for scale_map in MAPS:
        for inverse in (False, True):
            leaves = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
            with evidens.backend("triton"):
                y, logdet = ops.affine_coupling(
                    leaves[0], leaves[1], None, scale_map=scale_map, inverse=inverse
                )
                gradients = torch.autograd.grad(y.sum() + logdet.sum(), leaves)
            assert not any(t.isnan().any() for t in (y, logdet, *gradients)), scale_map


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
