"""The discretized logistic mixture: reference against independent sums, op against reference."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from ops.comparison import assert_within
from ops.logistic_mixture_cases import (
    CHANNELS,
    DTYPES,
    LAYOUTS,
    bounds,
    check,
    gradient,
    mixture,
    run,
    strided,
)

import evidens
from evidens import ops
from evidens.reference import logistic_mixture as reference

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_count = pytest.mark.parametrize("channels", CHANNELS)


# --- the reference --------------------------------------------------------------------------------


def digits(x, params, levels, least):
    """log p of one pixel from the definition, with enough digits for plain differences."""
    mp = pytest.importorskip("mpmath", reason="mpmath is not installed").mp.clone()
    mp.dps = 120
    channels = len(x)
    kinds = 2 if channels == 1 else 3
    m = len(params) // (1 + kinds * channels)
    logits, rest = params[:m], params[m:]

    def part(channel, kind, k):
        return mp.mpf(rest[(channel * kinds + kind) * m + k])

    def sigmoid(z):
        return 1 / (1 + mp.exp(-z))

    v = [mp.mpf(2 * i) / (levels - 1) - 1 for i in x]
    half = mp.mpf(1) / (levels - 1)
    total = mp.mpf(0)
    for k in range(m):
        product = mp.exp(mp.mpf(logits[k]))
        for c in range(channels):
            mean = part(c, 0, k)
            if c == 1:
                mean += mp.tanh(part(0, 2, k)) * v[0]
            if c == 2:
                mean += mp.tanh(part(1, 2, k)) * v[0] + mp.tanh(part(2, 2, k)) * v[1]
            scale = mp.exp(mp.mpf(max(part(c, 1, k), least)))
            top = 1 if x[c] == levels - 1 else sigmoid((v[c] + half - mean) / scale)
            bottom = 0 if x[c] == 0 else sigmoid((v[c] - half - mean) / scale)
            product *= top - bottom
        total += product
    return float(mp.log(total / sum(mp.exp(mp.mpf(z)) for z in logits)))


@each_count
@pytest.mark.parametrize("levels", [2, 5, 256])
def test_reference_against_mpmath(channels, levels):
    case = mixture(6, channels, 1, 3, 3, levels)
    got = run(case, reference)
    for n, w in itertools.product(range(6), range(3)):
        pixel, numbers = case.x[n, :, 0, w].tolist(), case.params[n, :, 0, w].tolist()
        want = digits(pixel, numbers, levels, -7.0)
        assert got[n, 0, w].item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
@pytest.mark.parametrize("mean", [0.0, 1.0, -3.0, 5.0])
@pytest.mark.parametrize("log_scale", [-9.0, -7.0, -3.0, 0.0, 30.0])
def test_reference_of_bins_far_away(level, mean, log_scale):
    """Masses of e^-6500 and of e^-35, which a difference of sigmoids does not see."""
    params = torch.tensor([0.0, mean, log_scale]).double().view(1, 3, 1, 1)
    got = run(mixture(1, 1, 1, 1).with_(x=torch.tensor(level).view(1, 1, 1, 1), params=params))
    mp = pytest.importorskip("mpmath", reason="mpmath is not installed").mp.clone()
    mp.dps = 3000
    scale, half = mp.exp(max(log_scale, -7.0)), mp.mpf(1) / 255
    v = mp.mpf(2 * level) / 255 - 1

    def sigmoid(z):
        return 1 / (1 + mp.exp(-z))

    top = 1 if level == 255 else sigmoid((v + half - mean) / scale)
    bottom = 0 if level == 0 else sigmoid((v - half - mean) / scale)
    assert got.item() == pytest.approx(float(mp.log(top - bottom)), rel=1e-12, abs=1e-15)


@each_dtype
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("levels", [2, 3, 256])
def test_levels_sum_to_one(levels, backend, dtype):
    case = mixture(1, 1, 4, 5, 3, levels, dtype)
    params = case.params.expand(levels, -1, -1, -1)
    x = torch.arange(levels).view(-1, 1, 1, 1).expand(levels, 1, 4, 5)
    with evidens.backend(backend):
        total = ops.logistic_mixture_log_prob(x, params, levels=levels).double().exp().sum(0)
    assert_within(total, torch.ones_like(total), 300 * torch.finfo(dtype).eps)


@each_dtype
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("levels", [2, 5])
def test_triples_sum_to_one(levels, backend, dtype):
    case = mixture(1, 3, 3, 5, 4, levels, dtype)
    triples = torch.tensor(list(itertools.product(range(levels), repeat=3)))
    x = triples[:, :, None, None].expand(-1, 3, 3, 5)
    params = case.params.expand(len(x), -1, -1, -1)
    with evidens.backend(backend):
        total = ops.logistic_mixture_log_prob(x, params, levels=levels).double().exp().sum(0)
    assert_within(total, torch.ones_like(total), 300 * torch.finfo(dtype).eps)


def plus_plus(x, params):
    """PixelCNN++'s own arithmetic for three channels; and where it takes its approximation."""
    n, _, h, w = params.shape
    m = params.shape[1] // 10
    v = (x.double() - 127.5) / 127.5
    logits, rest = params[:, :m], params[:, m:].view(n, 3, 3, m, h, w)
    log_scales, t = rest[:, :, 1].clamp(min=-7), torch.tanh(rest[:, :, 2])
    v = v[:, :, None].expand(n, 3, m, h, w)
    means = rest[:, :, 0].clone()
    means[:, 1] += t[:, 0] * v[:, 0]
    means[:, 2] += t[:, 1] * v[:, 0] + t[:, 2] * v[:, 1]
    scaled = torch.exp(-log_scales)
    plus, minus = scaled * (v - means + 1 / 255), scaled * (v - means - 1 / 255)
    mass = torch.sigmoid(plus) - torch.sigmoid(minus)
    middle = scaled * (v - means)
    softplus = torch.nn.functional.softplus
    density = middle - log_scales - 2 * softplus(middle) - math.log(127.5)
    log = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), density)
    log = torch.where(v > 0.999, -softplus(minus), log)
    log = torch.where(v < -0.999, plus - softplus(plus), log)
    inner = (v >= -0.999) & (v <= 0.999)
    approximate = ((mass <= 1e-5) & inner).flatten(1, 2).any(1)
    return torch.logsumexp(log.sum(1) + logits.log_softmax(1), 1), approximate


def test_equals_pixelcnn_plus_plus_where_that_is_exact():
    case = mixture(40, 3, 8, 8, 2, log_scale=-1.0)
    want, approximate = plus_plus(case.x, case.params)
    exact = ~approximate
    assert 100 < exact.sum() < exact.numel()
    torch.testing.assert_close(run(case)[exact], want[exact], rtol=1e-8, atol=1e-8)


def test_its_approximation_is_near_where_bins_are_narrow():
    """A mass below 1e-5 of a logistic that is wide beside the bin is nearly density times width."""
    params = torch.tensor([0.0, 1.5, -1.5]).double().view(1, 3, 1, 1).expand(1, 3, 1, 12)
    x = torch.arange(1, 13).view(1, 1, 1, 12)
    z = (reference.value(x[:, 0].double(), 256) - 1.5) * math.exp(1.5)
    density = z + 1.5 - 2 * torch.nn.functional.softplus(z) - math.log(127.5)
    assert (density < math.log(1e-5)).all()
    got = ops.logistic_mixture_log_prob(x, params)
    torch.testing.assert_close(got, density, rtol=0, atol=2e-4)
    assert (got != density).all()


@each_count
@pytest.mark.parametrize("levels", [2, 3, 256])
def test_reference_backward_is_its_derivative(channels, levels):
    case = mixture(3, channels, 4, 5, 3, levels, log_scale=-1.0)
    case.params[:, -1] = 0.0
    grad = torch.randn(3, 4, 5, dtype=torch.float64)
    want = gradient(case, grad, reference)
    given = case.x, case.params, grad
    got = reference.logistic_mixture_log_prob_backward(*given, **case.options)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


# --- the op ---------------------------------------------------------------------------------------

SIZES = [
    (1, 1, 1),
    (1, 1, 15),
    (2, 4, 4),
    (3, 1, 17),
    (2, 5, 13),
    (1, 33, 31),
    (40, 1, 1),
    (1, 2, 3),
]


@each_dtype
@each_count
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_against_the_reference(size, channels, dtype, poison):
    check(mixture(size[0], channels, *size[1:], dtype=dtype))


@each_dtype
@each_count
@pytest.mark.parametrize("mixtures", [1, 2, 10, 37])
def test_numbers_of_terms(mixtures, channels, dtype):
    check(mixture(2, channels, 3, 22, mixtures, dtype=dtype))


@each_dtype
@each_count
@pytest.mark.parametrize("levels", [2, 3, 17, 65536])
def test_numbers_of_levels(levels, channels, dtype):
    check(mixture(2, channels, 3, 22, 3, levels, dtype))


@each_dtype
@each_count
@pytest.mark.parametrize("log_scale", [-40.0, -12.0, 3.0, 12.0, 40.0, 120.0])
def test_scales_from_tiny_to_huge(log_scale, channels, dtype):
    check(mixture(2, channels, 3, 22, 3, 256, dtype, log_scale=log_scale, min_log_scale=-30.0))


@each_dtype
@each_count
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(3, 5, 16), (2, 7, 9), (5, 1, 1), (3, 1, 5)], ids=str)
def test_layouts(size, layout, channels, dtype, poison):
    case = mixture(size[0], channels, *size[1:], dtype=dtype)
    given = case.with_(x=strided(case.x, layout), params=strided(case.params, layout))
    y, slopes = check(case, given)
    plain, _ = check(case)
    assert_within(y, plain.double(), bounds(case)[0])
    if layout == "last" and size[1:] != (1, 1):
        assert slopes.stride() == given.params.stride()
    else:
        assert slopes.is_contiguous()


@each_count
def test_expanded_arguments(channels):
    case = mixture(1, channels, 4, 9, dtype=torch.float32)
    wide = case.with_(x=case.x.expand(3, -1, -1, -1), params=case.params.expand(3, -1, -1, -1))
    check(wide.with_(x=wide.x.contiguous(), params=wide.params.contiguous()), wide)
    pixel = case.params[:, :, :1, :1].expand(1, -1, 4, 9)
    check(case.with_(params=pixel.contiguous()), case.with_(params=pixel))


@each_count
@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0), (0, 1, 1)], ids=str)
def test_no_pixels(channels, shape, poison):
    n, h, w = shape
    params = torch.zeros(n, 30, h, w, requires_grad=True)
    x = torch.zeros(n, channels, h, w)
    y = ops.logistic_mixture_log_prob(x, params)
    assert y.shape == (n, h, w)
    assert torch.autograd.grad(y.sum(), params)[0].shape == params.shape
    drawn = ops.logistic_mixture_sample(params.detach(), channels=channels, seed=0)
    assert drawn.shape == x.shape


@each_count
def test_levels_of_every_type(channels):
    case = mixture(2, channels, 3, 9, levels=100, dtype=torch.float32)
    want = run(case)
    for kind in (torch.uint8, torch.int8, torch.int32, torch.float16, torch.float64):
        assert torch.equal(run(case.with_(x=case.x.to(kind))), want)


@each_count
def test_half_types_are_widened(channels):
    case = mixture(2, channels, 3, 9).to(torch.bfloat16)
    got, wide = run(case), run(case.to(torch.float32))
    assert got.dtype is torch.float32
    assert torch.equal(got, wide)
    grad = torch.randn(got.shape)
    leaf = case.params.clone().requires_grad_()
    run(case.with_(params=leaf)).backward(grad)
    assert torch.equal(leaf.grad, gradient(case.to(torch.float32), grad).bfloat16())


def test_addresses_beyond_32_bits(tmp_path):
    import numpy as np

    case = mixture(2, 3, 1, 20, 1, dtype=torch.float32)
    step = 2**31 + 16  # in elements, of planes and then of rows
    for row, plane in ((20, step), (step, 20)):
        size = 1 + row + 9 * plane + 20
        file = np.memmap(tmp_path / f"{row}", np.float32, "w+", shape=(size,))
        params = torch.from_numpy(file).as_strided((2, 10, 1, 20), (row, plane, 20, 1))
        params.copy_(case.params)
        check(case, case.with_(params=params))
