"""ActNorm and the LU-parametrised linear layer."""

from __future__ import annotations

import math

import pytest
import torch
from ops.comparison import assert_within
from ops.coupling_cases import DTYPES, LAYOUTS, strided
from torch.autograd import gradcheck, gradgradcheck

import evidens
from evidens import ops, reference

each_direction = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SHAPES = [
    (0, 3),
    (1, 1),
    (5, 3),
    (3, 70),
    (4, 3, 2),
    (2, 5, 7, 7),
    (300, 3),
    (2, 2, 300, 300),
    (2, 3, 0),
]


def norm_arguments(shape, dtype=torch.float64):
    c = shape[1]
    x, log, shift = (torch.randn(s, dtype=torch.float64) for s in (shape, (c,), (c,)))
    return tuple(t.to(dtype) for t in (x, log, shift))


def linear_arguments(shape, dtype=torch.float64):
    """x, lower, upper, log_diagonal and the options; what is not read is NaN."""
    c = shape[1]
    x, log, bias = (torch.randn(s, dtype=torch.float64) for s in (shape, (c,), (c,)))
    full = torch.randn(c, c, dtype=torch.float64) / math.sqrt(c)
    above = torch.ones(c, c).triu().bool()
    lower, upper = full.masked_fill(above, math.nan), full.masked_fill(above.T, math.nan)
    sign = torch.where(torch.rand(c) < 0.5, -1.0, 1.0)
    values = (x, lower, upper, 0.5 * log)
    options = {"sign": sign.to(dtype), "permutation": torch.randperm(c), "bias": bias.to(dtype)}
    return tuple(t.to(dtype) for t in values), options


def weight_of(lower, upper, log, sign, permutation, **_):
    """The matrix, spelled out."""
    c = len(log)
    unit, full = torch.eye(c, dtype=lower.dtype), torch.zeros(c, c, dtype=lower.dtype)
    for i in range(c):
        for j in range(c):
            if j < i:
                unit[i, j] = lower[i, j]
            elif j > i:
                full[i, j] = upper[i, j]
        full[i, i] = sign[i] * log[i].exp()
    matrix = torch.eye(c, dtype=lower.dtype)[permutation]  # row i is e_p(i)
    return matrix @ unit @ full


# --- actnorm --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_direction
@each_dtype
def test_actnorm(shape, inverse, dtype):
    x, log, shift = norm_arguments(shape, dtype)
    y, logdet = ops.actnorm(x, log, shift, inverse=inverse)
    view = (-1, *(1,) * (x.ndim - 2))
    a, b = log.double().view(view), shift.double().view(view)
    want = (x.double() - b) * (-a).exp() if inverse else x.double() * a.exp() + b
    eps = torch.finfo(dtype).eps * (4 + 2 * log.abs().max())
    assert y.dtype is logdet.dtype is dtype
    size = want.abs() + (b * (-a).exp()).abs() if inverse else want.abs() + b.abs()
    assert_within(y, want, eps * size)
    total = log.double().sum() * math.prod(shape[2:]) * (-1 if inverse else 1)
    size = log.double().abs().sum() * math.prod(shape[2:])
    assert_within(logdet, total.expand(shape[0]), eps * total.abs() + 1e-14 * size)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_direction
@each_dtype
def test_actnorm_gradients(shape, inverse, dtype):
    leaves = [t.requires_grad_() for t in norm_arguments(shape, dtype)]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    y, logdet = ops.actnorm(*leaves, inverse=inverse)
    z, other = reference.coupling.actnorm(*wide, inverse=inverse)
    grads = torch.randn_like(y), torch.randn_like(logdet)
    got = torch.autograd.grad((y, logdet), leaves, grads)
    want = torch.autograd.grad((z, other), wide, [g.double() for g in grads])
    # Sums over rows and places in double, each term with a few roundings.
    eps = torch.finfo(dtype).eps * (8 + 4 * leaves[1].abs().max().item())
    factor = (-wide[1] if inverse else wide[1]).detach().exp()
    axes = [0, *range(2, y.ndim)]
    terms = (grads[0].double().abs() * (wide[0].abs() + 20)).sum(axes).detach() * (factor + 1)
    terms += grads[1].double().abs().sum() * math.prod(shape[2:])
    sizes = (want[0].abs(), terms, terms)
    for a, b, size in zip(got, want, sizes):
        assert a.dtype is dtype
        assert_within(a, b, eps * size + 1e-300)


@each_direction
def test_actnorm_gradcheck_and_parts(inverse):
    leaves = [t.requires_grad_() for t in norm_arguments((3, 2, 4))]
    assert gradcheck(lambda *t: ops.actnorm(*t, inverse=inverse), leaves)
    with evidens.backend("reference"):
        assert gradgradcheck(lambda *t: ops.actnorm(*t, inverse=inverse), leaves)
    for part in (0, 1):
        got, want = (
            torch.autograd.grad(
                m.actnorm(*leaves, inverse=inverse)[part].sin().sum(),
                leaves,
                materialize_grads=True,
            )
            for m in (ops, reference.coupling)
        )
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    y, logdet = ops.actnorm(*leaves, inverse=inverse)
    first = torch.autograd.grad(y.sum() + logdet.sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match=r"evidens\.actnorm: second derivatives"):
        torch.autograd.grad(first[1].sum(), leaves)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 9), (4, 3, 6, 7)], ids=str)
def test_actnorm_layouts(layout, shape):
    x, log, shift = norm_arguments(shape)
    log_strided = torch.stack((log, log), 1)[:, 0]
    plain = [t.detach().requires_grad_() for t in (x, log, shift)]
    laid = [t.detach().requires_grad_() for t in (strided(x, layout), log_strided, shift)]
    (y, logdet), (z, other) = ops.actnorm(*plain), ops.actnorm(*laid)
    assert torch.equal(y, z)
    assert torch.equal(logdet, other)
    cotangent = torch.randn_like(y)
    want = torch.autograd.grad(y, plain, cotangent)
    got = torch.autograd.grad(z, laid, strided(cotangent, layout))
    assert all(torch.equal(a, b) for a, b in zip(got, want))


@each_dtype
def test_actnorm_round_trip_extremes_and_threads(dtype):
    limit = 1e-12 if dtype is torch.float64 else 5e-5
    x, log, shift = norm_arguments((200, 5, 6), dtype)
    y, logdet = ops.actnorm(x, log, shift)
    back, other = ops.actnorm(y, log, shift, inverse=True)
    assert (back - x).abs().max() <= limit
    assert (logdet + other == 0).all()
    large = torch.tensor([100.0, -100.0, 800.0, -800.0, 1e30], dtype=dtype)
    for inverse in (False, True):
        y, logdet = ops.actnorm(torch.zeros(2, 5, dtype=dtype), large, large, inverse=inverse)
        assert not y.isnan().any()
        assert logdet.isfinite().all()
    before, leaves = (
        torch.get_num_threads(),
        [t.requires_grad_() for t in norm_arguments((3000, 40))],
    )
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y, logdet = ops.actnorm(*leaves)
        found.append([y, *torch.autograd.grad(y.sin().sum() + logdet.sum(), leaves)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


# --- invertible_linear ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(0, 3), (1, 1), (5, 3), (4, 17), (3, 4, 5), (2, 6, 3, 2)], ids=str
)
@each_direction
@each_dtype
def test_linear(shape, inverse, dtype):
    given, options = linear_arguments(shape, dtype)
    x, *rest = given
    y, logdet = ops.invertible_linear(x, *rest, **options, inverse=inverse)
    assert y.dtype is logdet.dtype is dtype
    wide = {k: v.double() if v.is_floating_point() else v for k, v in options.items()}
    weight = weight_of(*(t.double() for t in rest), **wide)
    columns, bias = x.double().flatten(2) if x.ndim > 2 else x.double()[:, :, None], wide["bias"]
    if inverse:
        want = torch.linalg.inv(weight) @ (columns - bias[:, None])
    else:
        want = weight @ columns + bias[:, None]
    want = want.reshape(shape)
    condition = torch.linalg.cond(weight) if inverse and dtype is torch.float64 else 10
    scale = want.abs().amax() + 1 if want.numel() else 1
    assert (
        (y.double() - want).abs() <= 8 * torch.finfo(dtype).eps * condition * scale * shape[1]
    ).all()
    total = torch.linalg.slogdet(weight)[1] * math.prod(shape[2:]) * (-1 if inverse else 1)
    assert_within(
        logdet,
        total.expand(shape[0]),
        1e-5 * torch.ones(1)
        if dtype is torch.float32
        else torch.full((1,), 1e-12 * max(1, abs(total.item()))),
    )


def test_linear_round_trip():
    """The inverse is solved in float64, so float32 comes back whatever the condition of W."""
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 5e-5)):
        (x, *rest), options = linear_arguments((50, 8, 3, 3), dtype)
        y, logdet = ops.invertible_linear(x, *rest, **options)
        back, other = ops.invertible_linear(y, *rest, **options, inverse=True)
        assert (back - x).abs().max() <= limit * 10
        assert (logdet + other == 0).all()


@each_direction
def test_linear_derivatives(inverse):
    (x, lower, upper, log), options = linear_arguments((2, 3, 2))
    lower, upper = lower.nan_to_num(), upper.nan_to_num()
    leaves = [t.requires_grad_() for t in (x, lower, upper, log, options.pop("bias"))]

    def call(x, lower, upper, log, bias):
        return ops.invertible_linear(x, lower, upper, log, **options, bias=bias, inverse=inverse)

    assert gradcheck(call, leaves)
    assert gradgradcheck(call, leaves)


def test_linear_without_options_is_triangular_algebra():
    (x, lower, upper, log), _ = linear_arguments((4, 3))
    ones, order = torch.ones(3).double(), torch.arange(3)
    plain = ops.invertible_linear(x, lower, upper, log)
    full = ops.invertible_linear(x, lower, upper, log, sign=ones, permutation=order, bias=0 * ones)
    assert all(torch.equal(a, b) for a, b in zip(plain, full))


# --- errors ---------------------------------------------------------------------------------------

X, C, CC = torch.zeros(4, 3), torch.zeros(3), torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("op", "arguments", "options", "error", "message"),
    [
        ("actnorm", (X[0], C, C), {}, ValueError, r"x \(N, C, \*S\), got \(3,\)"),
        ("actnorm", (X, X, C), {}, ValueError, r"log_scale.*\(C,\) = \(3,\).*got \(4, 3\)"),
        ("actnorm", (X, C, C[:2]), {}, ValueError, r"shift.*got \(2,\)"),
        ("actnorm", (X, C.double(), C), {}, TypeError, r"log_scale is torch.float64"),
        ("actnorm", ([1.0], C, C), {}, TypeError, r"x must be a torch.Tensor, got list"),
        ("actnorm", (X.long(), C, C), {}, TypeError, r"float32 or float64.*int64"),
        ("invertible_linear", (X, C, CC, C), {}, ValueError, r"lower.*\(C, C\) = \(3, 3\)"),
        ("invertible_linear", (X, CC, CC, CC), {}, ValueError, r"log_diagonal.*\(C,\) = \(3,\)"),
        ("invertible_linear", (X, CC, CC, C), {"bias": X}, ValueError, r"bias.*got \(4, 3\)"),
        ("invertible_linear", (X, CC, CC, C), {"sign": C.double()}, TypeError, r"sign is.*float64"),
        ("invertible_linear", (X[0], CC, CC, C), {}, ValueError, r"x \(N, C, \*S\)"),
        ("invertible_linear", (X, CC, CC, C), {"permutation": C}, TypeError, r"int64.*float32"),
        (
            "invertible_linear",
            (X, CC, CC, C),
            {"permutation": torch.arange(2)},
            ValueError,
            r"permutation must have shape \(C,\) = \(3,\), got \(2,\)",
        ),
        (
            "invertible_linear",
            (X, CC, CC, C),
            {"permutation": torch.tensor([0, 2, 2])},
            ValueError,
            r"each of 0 \.\. C - 1 = 2 once, got 2 at position 2; torch\.randperm\(3\)",
        ),
    ],
)
def test_errors(op, arguments, options, error, message):
    with pytest.raises(error, match=rf"^evidens\.{op}: .*{message}"):
        getattr(ops, op)(*arguments, **options)
