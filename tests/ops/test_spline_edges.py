"""The spline ops at the edges: no NaN whatever the numbers, and the layer on its own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.spline_cases import (
    DTYPES,
    F64,
    MIX,
    NAMES,
    PARAMETERS,
    TAILS,
    Spline,
    count,
    coupling,
    knots_of,
    op,
    spline,
)

from evidens import ops


@pytest.fixture(params=PARAMETERS)
def parameters(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["forward", "inverse"])
def inverse(request):
    return request.param


# --- no NaN ---------------------------------------------------------------------------------------

SPECIAL = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    2.0,
    -2.0,
    1e-38,
    -1e-40,
    1e-300,
    1e4,
    -1e4,
    50.0,
    -50.0,
    1e30,
    -1e30,
)


def numbers(size, *more):
    value = st.one_of(st.floats(-3, 3), st.sampled_from((*SPECIAL, *more)), st.floats(-1e30, 1e30))
    return st.lists(value, min_size=size, max_size=size)


@st.composite
def wild(draw):
    """Splines of numbers that no net should give; knots are at least in order."""
    parameters, tails = draw(st.sampled_from(PARAMETERS)), draw(st.sampled_from(TAILS))
    dtype, bins = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 5))
    n, knots = 5, bins + (parameters == "knots")

    def table(columns):
        rows = [draw(numbers(columns)) for _ in range(n)]
        return torch.tensor(rows, dtype=F64).to(dtype).view(n, 1, columns)

    w, h, d = table(knots), table(knots), table(count(parameters, tails, bins))
    if parameters == "knots":
        w, h = (t.clamp(-100, 100).sort(-1).values for t in (w, h))
        d = d.abs().clamp(1e-6, 1e6)
    bound = None if parameters == "knots" else draw(st.sampled_from((0.01, 1.0, 5.0, 1e3)))
    least = draw(st.sampled_from((0.0, 1e-3)))
    options = dict(min_width=least, min_height=least, min_derivative=least)
    x = torch.tensor(draw(numbers(n, math.inf, -math.inf)), dtype=F64).to(dtype).view(n, 1)
    if draw(st.booleans()):  # on the knots of the map or near them
        scale = bound or 1.0
        x = x.clamp(-1, 1) * scale
    return Spline(x, w, h, d, parameters, tails, bound, options)


@settings(max_examples=200)
@given(case=wild(), inverse=st.booleans())
def test_never_nan(case, inverse):
    leaves = case.leaves()
    y, logdet = op(case.with_(**dict(zip(NAMES, leaves))), inverse)
    finite = case.x.isfinite()
    assert y[finite].isfinite().all()
    assert not y.isnan().any()
    if case.tails == "none":
        assert (logdet.isfinite() | (logdet == -math.inf)).all()
        assert y.isfinite().all()
    else:
        assert logdet.isfinite().all()
    there = y.isfinite() & logdet.isfinite()
    total = torch.where(there, y, 0.0).sum() + torch.where(there, logdet, 0.0).sum()
    gradients = torch.autograd.grad(total, leaves)
    assert all(g.isfinite().all() for g in gradients), [g.isfinite().all() for g in gradients]


@settings(max_examples=100)
@given(case=wild())
def test_values_stay_between_the_knots(case):
    x = case.x.nan_to_num(0.0, 1e30, -1e30).sort(0).values
    rows = {k: getattr(case, k)[:1].expand(5, 1, -1) for k in NAMES[1:]}
    case = case.with_(x=x, **rows)
    y, _ = op(case)
    # A value is rounded to its own size and to the height of the bin that it is a part of.
    tallest = knots_of(case).y[0, 0].diff().max()
    slack = 4 * torch.finfo(x.dtype).eps * (y.abs() + tallest)
    assert (y[1:] >= y[:-1] - slack[1:]).all()


@pytest.mark.parametrize("value", [1e30, -1e30, math.inf, -math.inf])
@pytest.mark.parametrize("tails", ["linear", "circular"])
@pytest.mark.parametrize("map", ["nflows", "zuko"])
def test_far_away_is_the_identity(map, tails, value, dtype, inverse):
    case = spline(9, 3, 4, map, tails, dtype)
    case = case.with_(x=torch.full_like(case.x, value))
    y, logdet = op(case, inverse)
    assert torch.equal(y, case.x)
    assert (logdet == 0).all()


@pytest.mark.parametrize("tails", [*TAILS, MIX], ids=str)
def test_nan_stays_in_its_element(tails, parameters, dtype, inverse):
    case = spline(21, 5, 4, parameters, tails, dtype, bound=None if parameters == "knots" else 2.0)
    want = op(case, inverse)
    x = case.x.clone()
    x[7, 2] = math.nan
    keep = torch.ones_like(x, dtype=torch.bool)
    keep[7, 2] = False
    for a, b in zip(op(case.with_(x=x), inverse), want):
        assert a[7, 2].isnan()
        assert torch.equal(a[keep], b[keep])
    y, logdet = coupling(case.with_(x=x), inverse=inverse)
    rows = torch.arange(21) != 7
    assert logdet[7].isnan()
    assert torch.equal(logdet[rows], coupling(case, inverse=inverse)[1][rows])
    assert torch.equal(y.isnan(), ~keep)


def test_nan_in_a_parameter_shows(parameters, dtype, inverse):
    for name in NAMES[1:]:
        case = spline(
            3, 1, 4, parameters, "circular", dtype, bound=None if parameters == "knots" else 9.0
        )
        case = case.with_(x=torch.zeros_like(case.x))
        values = getattr(case, name).clone()
        values[1] = math.nan
        y, logdet = op(case.with_(**{name: values}), inverse)
        assert y[1].isnan().any() or logdet[1].isnan().any(), name
        assert y[[0, 2]].isfinite().all()


# --- the layer ------------------------------------------------------------------------------------

LAYERS = {"all": None, "some": [4, 0, 2], "one": [3], "none": [], "permuted": [1, 0, 4, 3, 2]}


@pytest.mark.parametrize("which", LAYERS)
def test_layer_is_a_spline_for_each_active_feature(which, parameters, dtype, inverse):
    columns = LAYERS[which]
    active = None if columns is None else torch.tensor(columns, dtype=torch.int64)
    columns = list(range(5)) if columns is None else columns
    bound = None if parameters == "knots" else 2.0
    for n in (0, 1, 33):
        case = spline(n, len(columns), 6, parameters, "linear", dtype, bound=bound)
        x = 3 * torch.randn(n, 5, dtype=dtype)
        x[:, [c for c in range(5) if c not in columns]] = math.inf  # copied, not looked at
        y, logdet = coupling(case.with_(x=x), active, inverse)
        want = x.clone()
        want[:, columns], terms = op(case.with_(x=x[:, columns]), inverse)
        assert torch.equal(y, want)
        exact = terms.double().sum(1)
        scale = terms.double().abs().sum(1)
        eps = torch.finfo(dtype).eps
        assert ((logdet.double() - exact).abs() <= eps * exact.abs() + 1e-15 * scale).all()


def test_layer_with_tails_and_bounds_of_its_features(dtype, inverse):
    """Lists are by the features of x, whatever is active."""
    case = spline(33, 5, 6, "nflows", MIX, dtype, bound=[0.5, 1.0, 2.0, 3.0, 4.0])
    y, logdet = op(case, inverse)
    columns = [4, 0, 2]
    layer = case.with_(**{k: getattr(case, k)[:, columns] for k in NAMES[1:]})
    got, volume = coupling(layer, torch.tensor(columns), inverse)
    assert torch.equal(got[:, columns], y[:, columns])
    torch.testing.assert_close(volume, logdet[:, columns].sum(1))
    torch.testing.assert_close(coupling(case, None, inverse)[0], y, rtol=0, atol=0)


def test_layer_reads_views_of_a_conditioners_output(dtype, inverse):
    case = spline(33, 3, 6, "nflows", "linear", dtype)
    want = coupling(case, None, inverse)
    wide = torch.full((33, 7, 20), math.nan, dtype=dtype)
    wide[:, 1:7:2, 1:18] = case.params
    for params in (
        wide[:, 1:7:2, 1:18],
        case.params.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    ):
        got = ops.spline_coupling(case.x, params, bins=6, inverse=inverse, **case.keywords)
        assert all(map(torch.equal, got, want))
    one = case.params[:1].expand(33, 3, -1)
    want = ops.spline_coupling(case.x, one.contiguous(), bins=6, inverse=inverse, **case.keywords)
    got = ops.spline_coupling(case.x, one, bins=6, inverse=inverse, **case.keywords)
    assert all(map(torch.equal, got, want))
