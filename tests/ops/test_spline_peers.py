"""The spline ops give the numbers of nflows, normflows and zuko, where these are installed."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from ops.comparison import assert_within
from ops.spline_cases import F32, F64, bounds, coupling, on_edges, op, spline

from evidens import ops

WHY = "its splines are what ours are compared with"


def load(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they import is deprecated here and there
        return pytest.importorskip(name, reason=WHY)


@pytest.fixture(params=[F32, F64], ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["forward", "inverse"])
def inverse(request):
    return request.param


def agree(case, got, want, inverse):
    """Theirs and ours round, each within the bound; the way back by their formula loses more.

    Its ``-b - sqrt(b^2 - 4 a c)`` cancels where the slopes at the knots are far above ``h / w``.
    """
    lost = 1.0
    if inverse and case.derivatives.numel():
        lost = 8 * float(case.derivatives.double().amax().exp())
    for a, b, bound in zip(got, want, bounds(case, inverse)):
        assert_within(a, b.double(), 2 * lost * bound)


def peer(function, case, inverse, **more):
    """nflows' and normflows' spline; they write into what they get."""
    tensors = [t.clone() for t in case.tensors]
    if case.tails != "none":
        more |= dict(tails=case.tails, tail_bound=case.bound)
    return function(*tensors, inverse=inverse, **case.options, **more)


def renamed(case):
    """Their names of our options."""
    names = dict(min_width="min_bin_width", min_height="min_bin_height")
    return case.with_(options={names.get(k, k): v for k, v in case.options.items()})


# --- nflows ---------------------------------------------------------------------------------------

FLOORS = dict(min_width=0.02, min_height=0.01, min_derivative=0.1)


@pytest.mark.parametrize("options", [{}, FLOORS], ids=["defaults", "floors"])
@pytest.mark.parametrize("bins", [1, 8, 31])
def test_nflows_linear_tails(bins, options, dtype, inverse):
    theirs = load("nflows.transforms.splines.rational_quadratic")
    function = theirs.unconstrained_rational_quadratic_spline
    for bound in (1.0, 3.0):
        case = spline(60, 5, bins, "nflows", "linear", dtype, bound=bound, **options)
        for each in (case, on_edges(case.with_(x=case.x), inverse)):
            agree(each, op(each, inverse), peer(function, renamed(each), inverse), inverse)


@pytest.mark.parametrize("box", [(0.0, 1.0, 0.0, 1.0), (-1.0, 3.0, 0.5, 0.75)], ids=str)
def test_nflows_without_tails(box, dtype, inverse):
    theirs = load("nflows.transforms.splines.rational_quadratic")
    case = spline(60, 5, 6, "nflows", "none", dtype, bound=box)
    low, high = box[2:] if inverse else box[:2]
    case = case.with_(x=case.x.clamp(low, high))
    sides = dict(zip(("left", "right", "bottom", "top"), box))
    want = peer(theirs.rational_quadratic_spline, case, inverse, **sides)
    agree(case, op(case, inverse), want, inverse)


@pytest.mark.parametrize("surplus", [1, 2])
def test_nflows_with_more_derivatives(surplus, dtype, inverse):
    """Its own tests give K+1 of them; the last slope is then no longer 1."""
    theirs = load("nflows.transforms.splines.rational_quadratic")
    case = spline(60, 5, 6, "nflows", "linear", dtype)
    more = torch.randn(60, 5, surplus, dtype=dtype)
    case = case.with_(derivatives=torch.cat((case.derivatives, more), -1))
    for each in (case, on_edges(case, inverse)):
        want = peer(theirs.unconstrained_rational_quadratic_spline, each, inverse)
        agree(each, op(each, inverse), want, inverse)


@pytest.mark.parametrize("spread", [30.0, 1e4])
def test_nflows_saturated(spread, inverse):
    """Bins of the least size, slopes of the greatest; theirs asserts a positive discriminant."""
    theirs = load("nflows.transforms.splines.rational_quadratic")
    case = spline(60, 5, 6, "nflows", "linear", F64)
    signs = [spread * t.sign() for t in case.tensors[1:]]
    case = case.with_(**dict(zip(("widths", "heights", "derivatives"), signs)))
    got = op(case, inverse)
    assert all(t.isfinite().all() for t in got)
    if not inverse:
        want = peer(theirs.unconstrained_rational_quadratic_spline, case, inverse)
        agree(case, got, want, inverse)


def test_nflows_gradients(dtype, inverse):
    theirs = load("nflows.transforms.splines.rational_quadratic")
    case = spline(40, 5, 6, "nflows", "linear", dtype, seed=3)
    weights = torch.randn(2, 40, 5, dtype=dtype)

    def gradients(function):
        leaves = case.leaves()
        y, logdet = function(*leaves)
        return torch.autograd.grad((y * weights[0] + logdet * weights[1]).sum(), leaves)

    keywords = dict(inverse=inverse, **case.keywords)
    got = gradients(lambda *t: ops.rational_quadratic_spline(*t, **keywords))
    unconstrained = theirs.unconstrained_rational_quadratic_spline
    want = gradients(lambda *t: unconstrained(*t, inverse=inverse, tail_bound=2.0))
    # In float32 their way back loses most: compared with it in float64 only.
    tolerance = 1e-9 if dtype is F64 else 1e-3
    if dtype is F64 or not inverse:
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- normflows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 2, 8])
@pytest.mark.parametrize("tails", ["linear", "circular"])
def test_normflows(tails, bins, dtype, inverse):
    theirs = load("normflows.utils.splines")
    case = spline(60, 5, bins, "nflows", tails, dtype)
    for each in (case, on_edges(case, inverse)):
        want = peer(theirs.unconstrained_rational_quadratic_spline, each, inverse)
        agree(each, op(each, inverse), want, inverse)


@pytest.mark.parametrize(
    "tails",
    [("linear", "circular", "circular"), ("linear",) * 3, ("circular",) * 3],
    ids=lambda t: "-".join(t),
)
def test_normflows_tails_and_bounds_by_feature(tails, dtype, inverse):
    """A list of tails (M+1 derivatives each) with a tensor of bounds.

    Outside the box theirs gives 0 for a list, which is no map; inside is what is compared.
    """
    theirs = load("normflows.utils.splines")
    bound = torch.tensor([0.5, 2.0, math.pi], dtype=F32).to(dtype)
    case = spline(60, 3, 6, "nflows", tails, dtype, bound=bound)
    case = case.with_(x=torch.maximum(torch.minimum(case.x, bound), -bound))
    want = peer(theirs.unconstrained_rational_quadratic_spline, case, inverse)
    agree(case, op(case, inverse), want, inverse)


def test_normflows_tensor_bound_for_all(dtype, inverse):
    theirs = load("normflows.utils.splines")
    bound = torch.tensor([0.5, 2.0, 3.0], dtype=dtype)
    case = spline(60, 3, 6, "nflows", "circular", dtype, bound=bound)
    want = peer(theirs.unconstrained_rational_quadratic_spline, case, inverse)
    agree(case, op(case, inverse), want, inverse)


# --- zuko -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 8, 31])
@pytest.mark.parametrize("slope", [1e-3, 0.1])
def test_zuko(bins, slope, dtype, inverse):
    theirs = load("zuko.transforms")
    for bound, spread in ((5.0, 1.0), (1.0, 1.0), (5.0, 50.0)):
        if spread > 1 and (inverse or dtype is F32):
            continue  # theirs cancels: a negative discriminant, and slopes far above h / w
        case = spline(60, 5, bins, "zuko", "linear", dtype, bound=bound, spread=spread, slope=slope)
        for each in (case, on_edges(case, inverse)):
            # Theirs multiplies infinity by 0; and it does not pin the last knot, which may lie a
            # few roundings beyond the bound, with the derivative of the inside between the two.
            sliver = (each.x.abs() - bound).abs() <= 8 * torch.finfo(dtype).eps * bound
            apart = (sliver & (each.x.abs() > bound)) | each.x.isinf()
            each = each.with_(x=torch.where(apart, 0.0, each.x))
            transform = theirs.MonotonicRQSTransform(*each.tensors[1:], bound, slope)
            got = op(each, inverse)
            want = (transform.inv(each.x),) if inverse else transform.call_and_ladj(each.x)
            agree(each, got, want, inverse)


# --- coupling layers ------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """A conditioner whose parameters do not depend on anything."""

    def __init__(self, params):
        super().__init__()
        self.params = params

    def forward(self, inputs, context=None):
        return self.params.clone()  # nflows scales what it gets in place


@pytest.mark.parametrize("tails", ["none", "linear"])
@pytest.mark.parametrize("hidden", [None, 64])
def test_nflows_coupling_layer(tails, hidden, dtype, inverse):
    theirs = load("nflows.transforms.coupling")
    mask = torch.tensor([0, 1, 1, 0, 1])
    case = spline(30, 3, 6, "nflows", tails, dtype, bound=None)
    x = torch.rand(30, 5, dtype=dtype)
    x = x if tails == "none" else 3 * x - 1.5
    net = Fixed(case.params.flatten(1))
    if hidden is not None:
        net.hidden_features = hidden
    layer = theirs.PiecewiseRationalQuadraticCouplingTransform(
        mask, lambda *sizes: net, num_bins=6, tails=None if tails == "none" else tails
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Inputs to the softmax")
        want = layer.inverse(x) if inverse else layer(x)
    options = {} if hidden is None else dict(logit_scale=1 / math.sqrt(hidden))
    case = case.with_(x=x, options=options)
    got = coupling(case, mask.nonzero().flatten(), inverse)
    tolerance = dict(rtol=0, atol=1e-9 if dtype is F64 else 2e-4)
    assert torch.equal(got[0][:, mask == 0], x[:, mask == 0])
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, **tolerance)


def test_normflows_coupling_layer_with_mixed_tails(dtype, inverse):
    theirs = load("normflows.flows.neural_spline.coupling")
    mask = torch.tensor([0, 1, 1, 0])
    tails = ["circular", "linear", "circular", "linear"]
    # The layer's own tensor of bounds cannot be built (attribute set twice), so one for all.
    params = torch.randn(30, 2, 3 * 6 + 1, dtype=dtype)
    x = 4 * torch.rand(30, 4, dtype=dtype) - 2
    layer = theirs.PiecewiseRationalQuadraticCoupling(
        mask, lambda *sizes: Fixed(params.flatten(1)), num_bins=6, tails=tails, tail_bound=2.0
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Inputs to the softmax")
        want = layer.inverse(x) if inverse else layer(x)
    got = ops.spline_coupling(
        x, params, active=torch.tensor([1, 2]), bins=6, tails=tails, bound=2.0, inverse=inverse
    )
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 if dtype is F64 else 2e-4)


def test_zuko_coupling_layer(dtype, inverse):
    zuko = load("zuko")
    import functools

    univariate = functools.partial(zuko.transforms.MonotonicRQSTransform, slope=1e-3)
    torch.manual_seed(0)
    layer = zuko.flows.coupling.GeneralCouplingTransform(
        5, univariate=univariate, shapes=[(6,), (6,), (5,)], hidden_features=[16]
    ).to(dtype)
    x = 3 * torch.randn(30, 5, dtype=dtype)
    passive = layer.mask
    with torch.no_grad():
        params = layer.hyper(x[:, passive]).unflatten(-1, (-1, layer.total))
        transform = layer()
        y, ladj = transform.call_and_ladj(transform.inv(x) if inverse else x)
    active = (~passive).nonzero().flatten()
    got = ops.spline_coupling(x, params, active=active, bins=6, parameters="zuko", inverse=inverse)
    want = (transform.inv(x).detach(), -ladj) if inverse else (y, ladj)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 if dtype is F64 else 2e-4)
