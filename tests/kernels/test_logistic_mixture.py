"""Logistic mixture kernels in Triton against the reference: values, gradients and draws."""

from __future__ import annotations

import math

import pytest
import torch
from ops.logistic_mixture_cases import CHANNELS, DTYPES, bounds, mixture, strided

import evidens
from evidens import ops
from evidens.kernels import logistic_mixture as kernels
from evidens.reference import logistic_mixture as reference

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_count = pytest.mark.parametrize("channels", CHANNELS)


def check(case, device, layout="contiguous"):
    n, _, h, w = case.x.shape
    grad = torch.randn(n, h, w, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grad = grad.to(case.params.dtype)
    x, params = (strided(t, layout).to(device) for t in (case.x.to(case.params), case.params))
    rest = case.levels, case.min_log_scale
    wide = case.params.double()
    for found, want, bound in zip(
        (
            kernels.log_prob(x, params, *rest),
            kernels.log_prob_backward(x, params, grad.to(device), *rest),
        ),
        (
            reference.logistic_mixture_log_prob(case.x, wide, **case.options),
            reference.logistic_mixture_log_prob_backward(case.x, wide, grad, **case.options),
        ),
        bounds(case, grad),
    ):
        assert found.dtype is case.params.dtype
        error = (found.cpu().double() - want).abs()
        assert (error <= bound).all(), (error / bound).max()
    return found


@each_dtype
@each_count
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 5), (1, 9, 15), (3, 1, 2)], ids=str)
def test_log_prob_and_gradient(device, size, channels, dtype, canaries):
    check(mixture(size[0], channels, *size[1:], dtype=dtype), device)


@each_count
@pytest.mark.parametrize("mixtures", [1, 5])
@pytest.mark.parametrize("levels", [2, 3, 65536])
def test_terms_and_levels(device, levels, mixtures, channels, canaries):
    for dtype in DTYPES:
        check(mixture(1, channels, 3, 6, mixtures, levels, dtype), device)


@each_dtype
@pytest.mark.parametrize("log_scale", [-40.0, -12.0, 12.0, 60.0])
def test_scales_from_tiny_to_huge(device, log_scale, dtype):
    case = mixture(1, 3, 3, 20, 2, 256, dtype, log_scale=log_scale, min_log_scale=-30.0)
    check(case, device)


@each_count
@pytest.mark.parametrize("layout", ["planes", "last", "window", "turned"])
def test_layouts(device, layout, channels):
    case = mixture(2, channels, 3, 5, dtype=torch.float32)
    slopes = check(case, device, layout)
    assert slopes.is_contiguous() == (layout != "last")


def test_through_the_op(device):
    case = mixture(2, 3, 3, 5)
    x, params = case.x.to(device), case.params.to(device).requires_grad_()
    found = []
    for backend in ("triton", "reference"):
        with evidens.backend(backend):
            y = ops.logistic_mixture_log_prob(x, params)
            found.append((y, *torch.autograd.grad(y.sum(), params)))
            drawn = ops.logistic_mixture_sample(params.detach(), channels=3, seed=1)
            found[-1] += (drawn,)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@each_dtype
def test_extreme_parameters(device, dtype):
    means = [0.0, 3.0, -1e4, 1e20, -1e30]
    scales = [-1e30, -100.0, -7.0, 0.0, 50.0, 90.0, 1e4, math.inf]
    grid = torch.cartesian_prod(*(torch.tensor(v, dtype=dtype) for v in (means, scales)))
    params = torch.cat((torch.zeros(len(grid), 1, dtype=dtype), grid), 1)[:, :, None, None]
    x = torch.tensor([0.0, 1.0, 100.0, 255.0], dtype=dtype).view(1, 1, 1, 4)
    given = (
        x.expand(len(grid), -1, -1, -1).contiguous().to(device),
        params.expand(-1, -1, 1, 4).contiguous().to(device),
    )
    y = kernels.log_prob(*given, 256, -7.0)
    slopes = kernels.log_prob_backward(*given, torch.ones_like(y), 256, -7.0)
    assert not y.isnan().any()
    assert slopes.isfinite().all()


def test_nan_and_what_is_no_level_show(device):
    case = mixture(1, 3, 3, 5, 2, dtype=torch.float32)
    for plane in range(20):
        params = case.params.clone().to(device)
        params[0, plane, 1, 2] = math.nan
        y = kernels.log_prob(case.x.float().to(device), params, 256, -7.0)
        assert y.isnan().nonzero().tolist() == [[0, 1, 2]], plane
    for value in (-1.0, 256.0, 0.5, math.nan):
        x = case.x.float().to(device)
        x[0, 1, 2, 3] = value
        y = kernels.log_prob(x, case.params.to(device), 256, -7.0)
        assert y.isnan().nonzero().tolist() == [[0, 2, 3]]


@each_dtype
@each_count
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 7), (1, 1, 140)], ids=str)
def test_sample(device, size, channels, dtype):
    case = mixture(size[0], channels, *size[1:], 4, dtype=dtype, log_scale=-1.0)
    rest = channels, 256, -7.0, -5, 2**40 + 3, 2**32 - 200
    drawn = kernels.sample(case.params.to(device), *rest)
    names = ("channels", "levels", "min_log_scale", "seed", "row0", "step0")
    want = reference.logistic_mixture_sample(case.params, **dict(zip(names, rest)))
    assert torch.equal(drawn.cpu(), want)


@each_count
def test_no_draw_from_nan(device, channels):
    case = mixture(2, channels, 3, 5, 1)
    case.params[1, 1, 2, 3] = math.nan
    drawn = kernels.sample(case.params.to(device), channels, 256, -7.0, 0, 0, 0)
    assert (drawn[1, :, 2, 3] == -1).all()
    assert (drawn == -1).sum() == channels


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3)])
def test_no_pixels(device, shape):
    n, h, w = shape
    x, params = torch.zeros(n, 1, h, w, device=device), torch.zeros(n, 3, h, w, device=device)
    assert kernels.log_prob(x, params, 256, -7.0).shape == shape
    grad = torch.zeros(shape, device=device)
    assert kernels.log_prob_backward(x, params, grad, 256, -7.0).shape == params.shape
    assert kernels.sample(params, 1, 256, -7.0, 0, 0, 0).shape == x.shape
