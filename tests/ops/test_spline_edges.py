"""The spline ops at the edges: whatever the numbers, no NaN; threads, levels, addresses, errors."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.spline_cases import (
    DTYPES,
    F32,
    F64,
    MIX,
    PARAMETERS,
    TAILS,
    Spline,
    count,
    coupling,
    levels,
    op,
    spline,
)

from evidens import ops

TESTS = Path(__file__).parents[1]
NAMES = ("x", "widths", "heights", "derivatives")


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


@settings(max_examples=400)
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
    y, _ = op(case.with_(x=x, **rows))
    slack = 4 * torch.finfo(x.dtype).eps * y.abs()
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


# --- threads, levels, addresses -------------------------------------------------------------------


def everything(case) -> list[torch.Tensor]:
    results = []
    for function in (op, coupling):
        for inverse in (False, True):
            leaves = case.leaves()
            values = function(case.with_(**dict(zip(NAMES, leaves))), inverse=inverse)
            weights = (torch.linspace(-1, 1, v.numel(), dtype=v.dtype).view_as(v) for v in values)
            total = sum((v * w).nan_to_num(neginf=0.0).sum() for v, w in zip(values, weights))
            results += [v.detach() for v in values] + list(torch.autograd.grad(total, leaves))
    return results


def test_number_of_threads(parameters, dtype):
    bound = None if parameters == "knots" else 2.0
    case = spline(3001, 7, 5, parameters, "linear", dtype, bound=bound)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = everything(case)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, everything(case), want))
    finally:
        torch.set_num_threads(before)


def test_rows_do_not_depend_on_each_other(parameters, dtype, inverse):
    """A row alone gives the bits that it gives among others."""
    bound = None if parameters == "knots" else 2.0
    case = spline(37, 3, 5, parameters, "linear", dtype, bound=bound)
    for function in (op, coupling):
        want = function(case, inverse=inverse)
        for row in (0, 13, 36):
            alone = case.with_(**{k: getattr(case, k)[row : row + 1] for k in NAMES})
            for a, b in zip(function(alone, inverse=inverse), want):
                assert torch.equal(a[0], b[row])


def test_python_threads_at_once():
    cases = [spline(900, 7, 5, p, "linear", t, bound=None) for p in PARAMETERS for t in DTYPES]
    want = [everything(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(everything, cases), want):
            assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("level", levels())
def test_every_level_agrees_with_the_reference(level):
    program = f"""
    import sys
    sys.path.insert(0, {str(TESTS)!r})
    import torch, evidens
    from ops.spline_cases import *
    assert evidens.info()["isa"]["chosen"] == {level!r}
    for parameters in PARAMETERS:
        bound = None if parameters == "knots" else 2.0
        for tails in (*TAILS, MIX):
            for dtype in DTYPES:
                for n, bins in ((1, 1), (13, 9), (50, 3)):
                    case = spline(n, 5, bins, parameters, tails, dtype, bound=bound)
                    for inverse in (False, True):
                        check(case, inverse)
    print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"EVIDENS_ISA": level},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done" in done.stdout


def test_strides_beyond_32_bits(tmp_path, inverse):
    """Zeros in a file of holes: only pages that are written take memory."""
    import numpy as np

    case = spline(3, 2, 4, "nflows", "linear", F32)
    params, step = case.params, 2**31 + 8
    size = 2 * step + 64
    file = torch.from_numpy(np.memmap(tmp_path / "params", np.float32, "w+", shape=(size,)))
    far = file.as_strided(params.shape, (step, 16, 1))
    far.copy_(params)
    want = coupling(case, None, inverse)
    got = ops.spline_coupling(case.x, far, bins=4, inverse=inverse, **case.keywords)
    assert all(map(torch.equal, got, want))


# --- errors ---------------------------------------------------------------------------------------

X, W, D7 = torch.zeros(5, 3), torch.zeros(5, 3, 8), torch.zeros(5, 3, 7)
RIGHT = dict(x=X, widths=W, heights=W, derivatives=D7, parameters="nflows")
WRONG = {
    "bins too many for min_width": (ValueError, dict(min_width=0.2), r"min_width.*0\.2.*8 bins"),
    "bins too many for min_height": (ValueError, dict(min_height=0.2), r"min_height.*8 bins"),
    "negative floor": (ValueError, dict(min_width=-0.1), r"min_width.*-0\.1"),
    "min_derivative": (ValueError, dict(min_derivative=1.0), r"min_derivative.*1\.0"),
    "slope": (ValueError, dict(parameters="zuko", slope=0.0), r"slope.*0\.0"),
    "logit_scale": (ValueError, dict(logit_scale=0.0), r"logit_scale.*0\.0"),
    "map": (ValueError, dict(parameters="nsf"), r"parameters must be one of.*'nsf'"),
    "tails": (ValueError, dict(tails="cubic"), r"tails must be one of.*'cubic'"),
    "tails of another D": (ValueError, dict(tails=["linear"] * 2), r"D = 3.*got 2"),
    "too few derivatives": (
        ValueError,
        dict(derivatives=torch.zeros(5, 3, 6)),
        r"'linear'.*8 bins.*M - 1 = 7.*got 6",
    ),
    "derivatives of circular tails": (ValueError, dict(tails="circular"), r"M = 8.*got 7"),
    "derivatives without tails": (ValueError, dict(tails="none"), r"M \+ 1 = 9.*got 7"),
    "derivatives of a list": (
        ValueError,
        dict(tails=["linear", "circular", "linear"]),
        r"M \+ 1 = 9.*got 7",
    ),
    "bound": (ValueError, dict(bound=0.0), r"bound must be.*0\.0"),
    "infinite bound": (ValueError, dict(bound=math.inf), r"bound must be.*inf"),
    "bounds of another D": (ValueError, dict(bound=[1.0, 2.0]), r"bound must be.*D = 3"),
    "box with tails": (ValueError, dict(bound=(0.0, 1.0, 0.0, 1.0)), r"bound must be"),
    "box upside down": (
        ValueError,
        dict(tails="none", derivatives=torch.zeros(5, 3, 9), bound=(1.0, 0.0, 0.0, 1.0)),
        r"left < right",
    ),
    "bound of knots": (
        ValueError,
        dict(parameters="knots", derivatives=W, bound=2.0),
        r"leave bound out",
    ),
    "heights of another M": (
        ValueError,
        dict(heights=torch.zeros(5, 3, 7)),
        r"heights.*\(5, 3, 7\)",
    ),
    "widths of another shape": (
        ValueError,
        dict(widths=torch.zeros(4, 3, 8)),
        r"widths.*\(5, 3\).*\(4, 3, 8\)",
    ),
    "no bins": (
        ValueError,
        dict(widths=torch.zeros(5, 3, 0), heights=torch.zeros(5, 3, 0)),
        r"at least one bin",
    ),
    "integers": (TypeError, dict(x=X.long()), r"x must be float32 or float64.*int64.*x\.float"),
    "another dtype": (TypeError, dict(widths=W.double()), r"one dtype.*widths\.to\(x\)"),
    "another device": (TypeError, dict(widths=W.to("meta")), r"one device.*meta"),
    "no tensor": (TypeError, dict(heights=[1.0]), r"heights must be a torch\.Tensor.*list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name):
    kind, changes, message = WRONG[name]
    keywords = RIGHT | changes
    tensors = [keywords.pop(k) for k in NAMES]
    with pytest.raises(kind, match=r"evidens\.rational_quadratic_spline: .*" + message):
        ops.rational_quadratic_spline(*tensors, **keywords)


P = torch.zeros(5, 2, 23)
LAYER_WRONG = {
    "x of one axis": (ValueError, dict(x=torch.zeros(5)), r"x \(N, D\).*\(5,\)"),
    "params of two axes": (ValueError, dict(params=torch.zeros(5, 23)), r"params \(N, A, P\)"),
    "params of other rows": (
        ValueError,
        dict(params=torch.zeros(4, 2, 23)),
        r"params.*\(4, 2, 23\)",
    ),
    "params of other features": (
        ValueError,
        dict(active=None),
        r"params.*\(5, 3, 23\).*\(5, 2, 23\)",
    ),
    "params of another count": (ValueError, dict(bins=9), r"9 bins.*M - 1 = 8.*got 5"),
    "no bins": (ValueError, dict(bins=0), r"at least one bin"),
    "index out of range": (ValueError, dict(active=torch.tensor([0, 3])), r"active"),
    "negative index": (ValueError, dict(active=torch.tensor([0, -1])), r"active"),
    "index twice": (ValueError, dict(active=torch.tensor([1, 1])), r"active"),
    "index of two axes": (ValueError, dict(active=torch.tensor([[0, 1]])), r"active"),
    "mask": ((TypeError, ValueError), dict(active=torch.tensor([True, False, True])), r"active"),
    "list": ((TypeError, ValueError), dict(active=[0, 1]), r"active"),
}


@pytest.mark.parametrize("name", LAYER_WRONG)
def test_errors_of_a_layer(name):
    kind, changes, message = LAYER_WRONG[name]
    keywords = dict(x=X, params=P, active=torch.tensor([0, 2]), bins=8) | changes
    x, params = keywords.pop("x"), keywords.pop("params")
    with pytest.raises(kind, match=r"evidens\.spline_coupling: .*" + message):
        ops.spline_coupling(x, params, **keywords)


def test_only_keywords():
    with pytest.raises(TypeError):
        ops.spline_coupling(X, P, torch.tensor([0, 2]), 8)  # type: ignore[misc]
    with pytest.raises(TypeError):
        ops.rational_quadratic_spline(X, W, W, D7, True)  # type: ignore[misc]
