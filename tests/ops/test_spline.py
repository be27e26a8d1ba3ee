"""The spline ops against the reference: values, layouts, options, and what a spline must do."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from ops.comparison import assert_within
from ops.spline_cases import (
    DTYPES,
    F32,
    F64,
    MIX,
    NAMES,
    PARAMETERS,
    TAILS,
    bounds,
    check,
    coupling,
    half_unit,
    log_slope_of_autograd,
    on_edges,
    op,
    reference,
    spline,
)

import evidens
from evidens import ops


@pytest.fixture(params=PARAMETERS)
def parameters(request):
    return request.param


@pytest.fixture(params=(*TAILS, MIX), ids=lambda t: t if isinstance(t, str) else "mixed")
def tails(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["forward", "inverse"])
def inverse(request):
    return request.param


def bound_of(parameters, bound=2.0):
    """Knots carry their own."""
    return None if parameters == "knots" else bound


def make(n, d, bins, parameters, tails, dtype, **more):
    return spline(n, d, bins, parameters, tails, dtype, bound=bound_of(parameters), **more)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 5, 4), (1, 5, 1), (33, 5, 8), (7, 5, 64), (3, 5, 13)])
def test_equals_the_reference(shape, parameters, tails, dtype, inverse):
    check(make(*shape, parameters, tails, dtype), inverse)


@pytest.mark.parametrize("d", [0, 1, 7, 17, 64])
def test_number_of_features(d, parameters, dtype, inverse):
    for n in (1, 9):
        check(make(n, d, 5, parameters, "linear", dtype), inverse)


@pytest.mark.parametrize("bins", [1, 3, 64])
def test_on_and_beyond_the_knots(bins, parameters, dtype, inverse):
    for tails in TAILS:
        case = on_edges(make(3, 2, bins, parameters, tails, dtype), inverse)
        y, logdet = op(case, inverse)
        if parameters != "knots":
            check(case, inverse, (y, logdet))
        # The reference rounds the knots of a map otherwise, so at a bound the side may differ.
        assert not y.isnan().any()
        assert not logdet.isnan().any()


@pytest.mark.parametrize("tails", TAILS)
def test_beyond_given_knots(tails, dtype, inverse):
    case = make(30, 2, 4, "knots", tails, dtype)
    source, target = (case.heights, case.widths) if inverse else (case.widths, case.heights)
    for far in (1.5, 1e3, 1e30, math.inf):
        for side in (0, -1):
            end, slope = source[..., side].double(), case.derivatives[..., side].double()
            slope = 1 / slope if inverse else slope
            x = (end + (far if side else -far)).to(dtype)
            y, logdet = op(case.with_(x=x), inverse)
            bound = target[..., side]
            if tails == "none":
                torch.testing.assert_close(y, bound, rtol=2 * torch.finfo(dtype).eps, atol=0)
                assert (logdet == -math.inf).all()
                continue
            line = bound.double() + (x.double() - end) * slope
            torch.testing.assert_close(y, line.to(dtype))
            torch.testing.assert_close(logdet, slope.log().to(dtype))


@pytest.mark.parametrize(
    ("parameters", "tails"), [("nflows", t) for t in TAILS] + [("zuko", "linear")]
)
def test_default_bounds(parameters, tails, inverse):
    check(spline(40, 3, 6, parameters, tails, F64, bound=None), inverse)


OPTIONS = {
    "floors": dict(min_width=0.02, min_height=0.05, min_derivative=0.3),
    "no floors": dict(min_width=0.0, min_height=0.0, min_derivative=0.0),
    "identity": dict(identity_init=True),
    "scale": dict(logit_scale=0.125),
    "slope": dict(slope=0.2),
    "all": dict(
        min_width=0.01,
        min_height=0.1,
        min_derivative=0.02,
        slope=0.03,
        identity_init=True,
        logit_scale=1.7,
    ),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("tails", [*TAILS, MIX], ids=str)
@pytest.mark.parametrize("parameters", ["nflows", "zuko"])
def test_options(parameters, tails, options, dtype, inverse):
    case = make(12, 5, 6, parameters, tails, dtype, **OPTIONS[options])
    check(case, inverse)
    assert not torch.equal(op(case)[0], op(case.with_(options={}))[0]) or (
        (parameters == "zuko") != (options in ("slope", "scale"))
        and options not in ("all", "scale")
    )


def test_identity_at_zero(dtype):
    zeros = [torch.zeros(50, 3, k, dtype=dtype) for k in (6, 6, 5)]
    x = 3 * torch.randn(50, 3, dtype=dtype)
    for inverse in (False, True):
        y, logdet = ops.rational_quadratic_spline(
            x, *zeros, parameters="nflows", identity_init=True, bound=2.0, inverse=inverse
        )
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(y, x, rtol=0, atol=8 * eps)
        torch.testing.assert_close(logdet, torch.zeros_like(x), rtol=0, atol=32 * eps)


KINDS = {
    "list": list,
    "tensor": torch.tensor,
    "array": np.array,
    "scalars of an array": lambda bound: [*np.float32(bound)],
    "scalars of a tensor": lambda bound: [*torch.tensor(bound)],
}


@pytest.mark.parametrize("kind", [*KINDS, "integers"])
def test_bounds_by_feature(kind, dtype, inverse):
    bound = [1, 2, 3] if kind == "integers" else [0.5, 2.25, 4.0]
    for tails in (*TAILS[1:], ["linear", "none", "circular"], ["circular"] * 3):
        given = KINDS.get(kind, list)(bound)
        check(spline(20, 3, 5, "nflows", tails, dtype, bound=given), inverse)


@pytest.mark.parametrize(
    "kind",
    [np.float32, np.array, torch.tensor, Fraction],
    ids=["float32", "array", "tensor", "ratio"],
)
def test_a_bound_of_every_kind_of_number(kind):
    case = spline(20, 3, 5, "nflows", "linear", F64, bound=2.5)
    for a, b in zip(op(case.with_(bound=kind(2.5))), op(case)):
        assert torch.equal(a, b)


def test_four_numbers_are_a_box_also_for_four_features(inverse):
    case = spline(30, 4, 5, "nflows", "none", F64, bound=(1.0, 2.0, 3.0, 5.0))
    y, _ = check(case, inverse)
    low, high = (1.0, 2.0) if inverse else (3.0, 5.0)
    assert ((y >= low) & (y <= high)).all()
    y, _ = check(case.with_(tails=["none"] * 4), inverse)
    assert (y.abs() <= torch.tensor([1.0, 2.0, 3.0, 5.0])).all()
    assert (y < 0).any()


def test_box_without_tails(dtype, inverse):
    case = spline(30, 2, 5, "nflows", "none", dtype, bound=(-1.0, 3.0, 0.5, 0.75))
    y, _ = check(case, inverse)
    low, high = (-1.0, 3.0) if inverse else (0.5, 0.75)
    assert ((y >= low) & (y <= high)).all()


def test_list_of_equal_tails_has_the_layout_of_a_list(dtype, inverse):
    """M+1 derivatives, of which linear tails read M-1 and circular ones M."""
    for name, part in (("linear", slice(1, -1)), ("circular", slice(0, -1))):
        listed = spline(20, 3, 5, "nflows", [name] * 3, dtype)
        plain = listed.with_(tails=name, derivatives=listed.derivatives[..., part])
        for a, b in zip(op(listed, inverse), op(plain, inverse)):
            assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", TAILS)
def test_list_of_one_feature_is_a_list(name, parameters, dtype, inverse, backend):
    """The same as in a list of two features, values and gradients."""
    # What the reference rounds depends on the layout.
    dtype, tolerance = (F64, 1e-12) if backend == "reference" else (dtype, 0)
    one = make(20, 1, 5, parameters, [name], dtype)
    two = one.with_(tails=[name] * 2, **{k: getattr(one, k).repeat(1, 2, 1) for k in NAMES[1:]})
    two = two.with_(x=one.x.repeat(1, 2))
    if backend == "cpu":
        check(one, inverse)
    with evidens.backend(backend):
        for function in (op, lambda c, i: coupling(c, torch.tensor([0]), i)):
            found = []
            for case in (one, two):
                leaves = case.leaves()
                given = case.with_(**dict(zip(NAMES, leaves)))
                if function is not op:
                    given = given.with_(**{k: getattr(given, k)[:, :1] for k in NAMES[1:]})
                y, logdet = function(given, inverse)
                logdet = logdet if logdet.ndim == 1 else logdet[:, 0]
                part = y[:, 0].sum() + (2 * logdet)[logdet.isfinite()].sum()
                part.backward()
                found.append([y[:, 0], logdet, *(t.grad[:, 0] for t in leaves)])
            for a, b in zip(*found):
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_no_feature_and_an_empty_list(inverse):
    y, logdet = op(make(3, 0, 5, "nflows", [], F32), inverse)
    assert y.shape == logdet.shape == (3, 0)


def test_rounding_out_of_the_box_has_the_bounds_density(dtype, inverse):
    case = spline(4, 3, 5, "nflows", "none", dtype, bound=None)
    share = 0.5 * (1e-12 if dtype is F64 else 1e-5)
    for at, out in ((0.0, -share), (1.0, share)):
        on = case.with_(x=torch.full_like(case.x, at))
        near, far = (on.with_(x=on.x + k * out) for k in (1, 1000))
        assert not torch.equal(near.x, on.x)
        for a, b in zip(op(near, inverse), op(on, inverse)):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        y, logdet = op(far, inverse)
        assert (logdet == -math.inf).all()
        assert torch.equal(y, op(on, inverse)[0])


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (2, 0, 4), (0,)], ids=str)
def test_any_shape_of_x(shape, dtype, inverse):
    n = max(1, math.prod(shape))
    case = spline(n, 1, 5, "nflows", "linear", dtype)
    x, *rest = (t[: math.prod(shape)] for t in case.tensors)
    given = [
        x.reshape(shape),
        *(t.reshape(*shape, -1) if t.numel() else t.new_empty(*shape, t.shape[-1]) for t in rest),
    ]
    got = ops.rational_quadratic_spline(*given, inverse=inverse, **case.keywords)
    want = op(case.with_(x=x, **dict(zip(("widths", "heights", "derivatives"), rest))), inverse)
    for a, b in zip(got, want):
        assert a.shape == shape
        assert torch.equal(a.reshape(-1, 1), b)


def layouts(t):
    """The same values elsewhere in memory."""
    yield "columns", t.mT.contiguous().mT if t.ndim > 1 else t
    wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), math.nan, dtype=t.dtype)
    wide[..., 1::2] = t
    yield "every other", wide[..., 1::2]
    flat = torch.full((t.numel() + 1,), math.nan, dtype=t.dtype)
    flat[1:] = t.flatten()
    yield "misaligned", flat[1:].view(t.shape)
    rows = torch.full((3 * t.shape[0], *t.shape[1:]), math.nan, dtype=t.dtype)
    rows[1::3] = t
    yield "rows apart", rows[1::3]


@pytest.mark.parametrize("which", range(4))
def test_layouts(which, parameters, dtype, inverse):
    case = make(17, 5, 6, parameters, "linear", dtype)
    want, tensors = op(case, inverse), list(case.tensors)
    for name, strided in layouts(tensors[which]):
        given = [strided if i == which else t for i, t in enumerate(tensors)]
        got = ops.rational_quadratic_spline(*given, inverse=inverse, **case.keywords)
        assert all(map(torch.equal, got, want)), name


def test_shared_parameters(parameters, dtype, inverse):
    """One spline for all rows, by broadcasting and by expanding."""
    case = make(17, 5, 6, parameters, "linear", dtype)
    names = ("widths", "heights", "derivatives")
    shared = [t[:1] for t in case.tensors[1:]]
    want = op(case.with_(**dict(zip(names, (t.repeat(17, 1, 1) for t in shared)))), inverse)
    for rows in ([t[0] for t in shared], [t.expand(17, 5, -1) for t in shared]):
        assert all(map(torch.equal, op(case.with_(**dict(zip(names, rows))), inverse), want))


def test_parameters_of_one_tensor(dtype, inverse):
    """Slices of what a conditioner gives: strides on every axis but the last."""
    case = spline(17, 5, 6, "nflows", "circular", dtype)
    parts = case.params.tensor_split((6, 12), -1)
    names = ("widths", "heights", "derivatives")
    want = op(case, inverse)
    assert all(map(torch.equal, op(case.with_(**dict(zip(names, parts))), inverse), want))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_widened(half, inverse):
    case = spline(17, 5, 6, "nflows", "linear", F32).to(half)
    for function in (op, coupling):
        got = function(case, inverse=inverse)
        want = function(case.to(F32), inverse=inverse)
        assert got[0].dtype is F32
        assert all(map(torch.equal, got, want))


# --- what a spline must do ------------------------------------------------------------------------


ROUND_TRIP = {F32: 5e-5, F64: 1e-12}


@pytest.mark.parametrize(
    ("parameters", "tails"), [("nflows", t) for t in TAILS] + [("zuko", "linear")]
)
def test_round_trip(parameters, tails, dtype):
    """Random parameters at the default bounds; a flat spline costs what y cannot tell apart."""
    case = spline(400, 16, 8, parameters, tails, dtype, bound=None)
    if tails == "none":
        case = case.with_(x=case.x.clamp(0, 1))
    for first in (False, True):
        y, there = op(case, first)
        x, back = op(case.with_(x=y), not first)
        # Half a unit in y, and as much again in the arithmetic of the way back.
        for error, lost in zip((x - case.x, there + back), half_unit(case, y, not first)):
            assert (error.abs() <= (2 * lost).clamp(min=ROUND_TRIP[dtype])).all()
            assert (error.abs() > ROUND_TRIP[dtype]).double().mean() < 0.01


def test_round_trip_within_rounding(parameters, tails, dtype):
    """Wild parameters: as exact as a y of this dtype can tell."""
    case = make(200, 5, 8, parameters, tails, dtype, spread=4.0)
    case = case.with_(x=case.x.clamp(-1.5, 1.5))
    y, there = op(case)
    there_and_back = op(case.with_(x=y), True)
    eps = torch.finfo(dtype).eps
    moved = 8 * eps * (2 + (-there.double()).exp() * 4)
    assert_within(there_and_back[0], case.x.double(), moved)


def test_monotone(parameters, tails, dtype, inverse):
    case = make(1, 5, 7, parameters, tails, dtype, spread=3.0)
    x = torch.linspace(-4, 4, 4001, dtype=dtype)[:, None].expand(-1, 5)
    names = ("widths", "heights", "derivatives")
    rows = {k: t.expand(4001, -1, -1) for k, t in zip(names, case.tensors[1:])}
    y, _ = op(case.with_(x=x, **rows), inverse)
    # Within a bin two neighbours may change places by rounding.
    assert (y.diff(dim=0) >= -4 * torch.finfo(dtype).eps * y.abs().amax()).all()


def test_logdet_is_the_slope_of_autograd(parameters, tails, inverse):
    case = make(100, 5, 6, parameters, tails, F64)
    _, logdet = op(case, inverse)
    there = logdet.isfinite()
    got = log_slope_of_autograd(case, inverse)
    torch.testing.assert_close(got[there], logdet[there], rtol=0, atol=1e-11)


def test_what_stays_in_the_box(dtype, inverse):
    """A value that rounding pushed over the top would leave the box on the way back."""
    for bound in (0.7, 3.3, 1e3, 1e-3):
        bound = float(torch.tensor(bound, dtype=dtype))
        case = spline(300, 7, 5, "nflows", "linear", dtype, bound=bound, spread=5.0)
        x = torch.where(torch.rand_like(case.x) < 0.5, bound * torch.rand_like(case.x).sign(), 0.0)
        x = torch.nextafter(x, torch.zeros_like(x)).clamp(-bound, bound)
        y, _ = op(case.with_(x=x), inverse)
        assert (y.abs() <= bound).all()


def test_bounds_are_bounds():
    """What the other tests rely on is not so loose that it would hide an error."""
    case = spline(200, 5, 8, "nflows", "linear", F32)
    got, want = op(case), reference(case)
    for a, b, bound in zip(got, want, bounds(case)):
        share = (a.double() - b).abs() / bound
        assert 0.005 < share.max() <= 1
