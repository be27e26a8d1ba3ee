"""Spline kernels in Triton against the reference: every map, tail and direction, with gradients."""

from __future__ import annotations

import math

import pytest
import torch
from ops.comparison import EXACT, assert_within
from ops.spline_cases import F32, F64, MIX, NAMES, PARAMETERS, bounds, reference, spline

import evidens
from evidens import ops
from evidens.kernels import spline as kernels

# NumPy stands in for the GPU here, and warns where IEEE arithmetic makes inf or NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

CASES = [
    ("nflows", "linear", -1),
    ("nflows", "linear", 1),
    ("nflows", "circular", 0),
    ("nflows", "none", 1),
    ("nflows", ("linear", "circular", "none"), 1),
    ("zuko", "linear", -1),
    ("zuko", "none", 1),
    ("knots", "linear", 1),
    ("knots", "none", 1),
]


def arguments(device, dtype, parameters, more, n=5, d=3, bins=4):
    """x (N, D) that reaches beyond the box, and its parameters."""
    g = torch.Generator().manual_seed(bins + 10 * n + 100 * d)

    def normal(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64)

    edges = bins + (parameters == "knots")
    x, widths, heights, slopes = (
        2 * normal(n, d), normal(n, d, edges), normal(n, d, edges), normal(n, d, bins + more),
    )  # fmt: skip
    if parameters == "knots":
        widths, heights = widths.exp().cumsum(-1) - 1, heights.exp().cumsum(-1) - 1
        slopes = slopes.exp()
    return [t.to(device, dtype).requires_grad_() for t in (x, widths, heights, slopes)]


def both(backend, call, given):
    """Results and the gradients of a fixed combination of them."""
    with evidens.backend(backend):
        y, logdet = call(*given)
        finite = torch.where(logdet.isinf(), 0, logdet)
        weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
        total = (weights * y).sum() + (weights.flatten()[: finite.numel()] * finite.flatten()).sum()
        return (y, logdet, *torch.autograd.grad(total, given))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("parameters", "tails", "more"), CASES)
def test_spline_equals_the_reference(device, parameters, tails, more, inverse, dtype, canaries):
    options = {} if parameters == "knots" else {"bound": 2.0}
    given = arguments(device, dtype, parameters, more)

    def call(*tensors):
        return ops.rational_quadratic_spline(
            *tensors, parameters=parameters, tails=tails, inverse=inverse, **options
        )

    expected = both("reference", call, [t.detach().double().requires_grad_() for t in given])
    tolerance = 1e-10 if dtype is torch.float64 else 2e-4
    for actual, exact in zip(both("triton", call, given), expected, strict=True):
        assert actual.dtype is dtype
        torch.testing.assert_close(actual.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("active", [None, (2, 0), (1,), ()])
@pytest.mark.parametrize("bins", [1, 5])
def test_coupling_equals_the_reference(device, active, inverse, bins, canaries):
    index = None if active is None else torch.tensor(active, dtype=torch.int64, device=device)
    x, *groups = arguments(device, torch.float64, "nflows", -1, n=130, bins=bins)
    params = torch.cat(groups, -1)[:, : 3 if active is None else len(active)]
    given = [x.detach().requires_grad_(), params.detach().requires_grad_()]

    def call(x, params):
        return ops.spline_coupling(
            x, params, active=index, bins=bins, bound=2.0, inverse=inverse, logit_scale=0.5
        )

    expected = both("reference", call, given)
    for actual, exact in zip(both("triton", call, given), expected, strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("inverse", [False, True])
def test_extreme_points_and_parameters(device, inverse, canaries):
    x = torch.tensor([-1e30, -2.0, 2.0, 1e30, math.inf, -math.inf, math.nan, 0.0])[:, None]
    widths = torch.tensor([1e4, -1e4, 0.0, 0.0]).expand(8, 1, 4)
    slopes = torch.tensor([1e4, -1e4, 0.0]).expand(8, 1, 3)
    results = {}
    for backend in ("reference", "triton"):
        given = [t.to(device).clone().requires_grad_() for t in (x, widths, widths, slopes)]
        with evidens.backend(backend):
            y, logdet = ops.rational_quadratic_spline(
                *given, parameters="nflows", bound=2.0, inverse=inverse
            )
            gradients = torch.autograd.grad((y[:6].sum() + logdet[:6].sum()), given)
        assert all(g[:6].isfinite().all() for g in gradients)
        results[backend] = y, logdet
    for actual, exact in zip(results["triton"], results["reference"], strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_do(device, shape):
    n, d = shape
    x, params = torch.zeros(shape, device=device), torch.zeros(n, d, 11, device=device)
    with evidens.backend("triton"):
        y, logdet = ops.spline_coupling(x, params, bins=4)
    assert y.shape == shape
    assert logdet.tolist() == [0.0] * n


# --- the launchers themselves ---------------------------------------------------------------------


def make(device, *arguments, **more):
    """A case of the op tests on the device of the kernels."""
    case = spline(*arguments, **more)
    return case.with_(**{k: getattr(case, k).to(device) for k in NAMES})


def launch(case, inverse=False):
    return kernels.rational_quadratic_spline(*case.tensors, *case.inner(), inverse)


def launch_layer(case, active=None, inverse=False, x=None):
    x = case.x if x is None else x
    return kernels.spline_coupling(x, case.params, active, case.bins, *case.inner(), inverse)


def within_bounds(got, case, inverse):
    host = case.with_(**{k: getattr(case, k).cpu() for k in NAMES})
    for a, b, bound in zip(got, reference(host, inverse), bounds(host, inverse)):
        assert a.dtype is case.x.dtype
        assert_within(a.cpu(), b, bound)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (37, 5, 8), (3, 33, 3), (5, 2, 64)])
def test_within_rounding(device, parameters, shape, inverse, dtype, canaries):
    """More rows, features and bins than a tile holds, none of them a power of two."""
    bound = None if parameters == "knots" else 2.0
    within_bounds(
        launch(case := make(device, *shape, parameters, "linear", dtype, bound=bound), inverse),
        case,
        inverse,
    )


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("parameters", ["nflows", "zuko"])
def test_options_tails_and_bounds_by_feature(device, parameters, inverse, canaries):
    options = dict(min_width=0.02, min_height=0.01, min_derivative=0.1, slope=0.05)
    options |= dict(identity_init=True, logit_scale=0.3)
    bound = [0.5, 1.0, 2.0, 3.0, 4.0]
    case = make(device, 9, 5, 6, parameters, MIX, F64, bound=bound, **options)
    within_bounds(launch(case, inverse), case, inverse)
    # A layer's lists are by the features of x.
    active = torch.tensor([4, 0, 2], device=device)
    part = case.with_(**{k: getattr(case, k)[:, active] for k in NAMES[1:]})
    y, logdet = launch_layer(part, active, inverse)
    want, terms = launch(case, inverse)
    torch.testing.assert_close(y[:, active], want[:, active], **EXACT)
    torch.testing.assert_close(y[:, [1, 3]], case.x[:, [1, 3]], **EXACT)
    torch.testing.assert_close(logdet, terms[:, active].sum(1))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", ["linear", "circular", "none"])
def test_list_of_one_feature_is_a_list(device, name, inverse, canaries):
    one = make(device, 9, 1, 6, "nflows", [name], F64, bound=2.0)
    two = one.with_(tails=[name] * 2, **{k: getattr(one, k).repeat(1, 2, 1) for k in NAMES[1:]})
    two = two.with_(x=one.x.repeat(1, 2))
    want = launch(two, inverse)
    for a, b in zip(launch(one, inverse), want):
        torch.testing.assert_close(a, b[:, :1], **EXACT)
    for active in (None, torch.tensor([0], device=device)):
        y, logdet = launch_layer(one, active, inverse)
        torch.testing.assert_close(y, want[0][:, :1], **EXACT)
        torch.testing.assert_close(logdet, want[1][:, 0], **EXACT)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("layout", ["columns", "slices", "expanded"])
def test_strides(device, layout, rows, canaries):
    case = make(device, 9, 5, 6, "nflows", "circular", F64)
    x, params = case.x, case.params
    if layout == "columns":
        strided, records = x.t().contiguous().t(), params.permute(2, 0, 1).contiguous()
        records = records.permute(1, 2, 0)
    elif layout == "slices":
        # What lies between the rows and columns is NaN and must not be read.
        strided = torch.full((18, 20), math.nan, dtype=F64, device=device)[1::2, 2:17:3]
        records = torch.full((9, 11, 40), math.nan, dtype=F64, device=device)[:, 1::2, 2:38:2]
        strided.copy_(x)
        records.copy_(params)
    else:
        x, params = x[:1].expand(9, 5), params[:1].expand(9, 5, 18)
        strided, records, x, params = x, params, x.contiguous(), params.contiguous()
    grads = torch.randn_like(x), torch.randn(9, 5, dtype=F64, device=device)
    for inverse in (False, True):
        rest = (*case.inner(), inverse)

        def everything(x, params, grad_y, grad_logdet):
            if rows:
                grad_logdet = grad_logdet[:, 0]
                record = x, params, None
                forward = kernels.spline_coupling(*record, 6, *rest)  # noqa: B023
                return *forward, *kernels.spline_coupling_backward(
                    *record,
                    grad_y,
                    grad_logdet,
                    6,
                    *rest,  # noqa: B023
                )
            parts = params.tensor_split((6, 12), -1)
            forward = kernels.rational_quadratic_spline(x, *parts, *rest)  # noqa: B023
            return *forward, *kernels.rational_quadratic_spline_backward(
                x,
                *parts,
                grad_y,
                grad_logdet,
                *rest,  # noqa: B023
            )

        want = everything(x, params, *grads)
        got = everything(strided, records, *(g.t().contiguous().t() for g in grads))
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("rows", [False, True])
def test_gradient_of_one_result(device, rows, canaries):
    """Without the other one its gradient is none, and counts as zeros."""
    case = make(device, 7, 5, 6, "nflows", "linear", F64)
    y = torch.randn(7, 5, dtype=F64, device=device)
    logdet = y[:, 0].contiguous() if rows else y.flip(0)

    def backward(y, logdet):
        rest = (*case.inner(), False)
        if rows:
            return kernels.spline_coupling_backward(case.x, case.params, None, y, logdet, 6, *rest)
        return kernels.rational_quadratic_spline_backward(*case.tensors, y, logdet, *rest)

    for given, zeros in (((y, None), (y, 0 * logdet)), ((None, logdet), (0 * y, logdet))):
        for a, b in zip(backward(*given), backward(*zeros)):
            torch.testing.assert_close(a, b, **EXACT)


def test_indices_that_are_not_there_are_left_out(device, canaries):
    """On a GPU nobody looks at them first; nothing is written out of bounds."""
    case = make(device, 7, 3, 6, "nflows", "linear", F64)
    x = torch.randn(7, 4, dtype=F64, device=device)
    active = torch.tensor([2, 2**40, -1], device=device)
    y, logdet = launch_layer(case, active, x=x)
    want, terms = launch(case.with_(x=x[:, [2, 0, 0]]))
    torch.testing.assert_close(y[:, 2], want[:, 0], **EXACT)
    torch.testing.assert_close(y[:, [0, 1, 3]], x[:, [0, 1, 3]], **EXACT)
    torch.testing.assert_close(logdet, terms[:, 0], **EXACT)
    rest = (6, *case.inner(), False)
    grads = torch.ones_like(x), torch.ones(7, dtype=F64, device=device)
    gx, gp = kernels.spline_coupling_backward(x, case.params, active, *grads, *rest)
    assert (gx[:, [0, 1, 3]] == 1).all()
    assert (gp[:, 0] != 0).any()
    assert (gp[:, 1:] == 0).all()


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_nan_in_a_parameter_shows(device, parameters):
    case = make(device, 3, 1, 4, parameters, "circular", F32, bound=None)
    case = case.with_(x=torch.zeros_like(case.x))
    for name in NAMES[1:]:
        values = getattr(case, name).clone()
        values[1] = math.nan
        for inverse in (False, True):
            y, logdet = launch(case.with_(**{name: values}), inverse)
            assert y[1].isnan().any() or logdet[1].isnan().any(), name
            assert y[[0, 2]].isfinite().all()


def test_log_slopes_are_summed_in_float64(device):
    """Terms of both signs that cancel: float32 sums would show."""
    case = make(device, 2, 300, 4, "nflows", "linear", F32, spread=5.0)
    _, terms = launch(case)
    _, logdet = launch_layer(case)
    torch.testing.assert_close(logdet, terms.double().sum(1).float(), rtol=1e-7, atol=0)
