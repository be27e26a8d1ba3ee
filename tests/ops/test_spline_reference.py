"""The spline formula against what does not share its code: mpmath, autograd, quadrature, limits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from ops.spline_cases import (
    F32,
    F64,
    MIX,
    PARAMETERS,
    TAILS,
    knots_of,
    on_edges,
    options_of,
    spline,
)

from evidens.reference import spline as formula

ALL_TAILS = (*TAILS, MIX)


@pytest.fixture(params=PARAMETERS)
def parameters(request):
    return request.param


@pytest.fixture(params=ALL_TAILS, ids=lambda t: t if isinstance(t, str) else "mixed")
def tails(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["forward", "inverse"])
def inverse(request):
    return request.param


def call(case, inverse=False):
    return formula.rational_quadratic_spline(*case.tensors, *case.inner(), inverse)


# --- against 50 digits ----------------------------------------------------------------------------


def exact(mpmath, knots, x, inverse):
    """Value and log-slope of one spline by the textbook, with 50 digits."""
    xs, ys, ds = ([mpmath.mpf(v) for v in t.tolist()] for t in knots)
    x, source = mpmath.mpf(x), ys if inverse else xs
    k = max(i for i in range(len(source) - 1) if i == 0 or source[i] <= x)
    w, h = xs[k + 1] - xs[k], ys[k + 1] - ys[k]
    s, d0, d1 = h / w, ds[k], ds[k + 1]
    if inverse:
        a = h * (s - d0) + (x - ys[k]) * (d0 + d1 - 2 * s)
        b = h * d0 - (x - ys[k]) * (d0 + d1 - 2 * s)
        c = -s * (x - ys[k])
        t = 2 * c / (-b - mpmath.sqrt(b * b - 4 * a * c))
    else:
        t = (x - xs[k]) / w
    q = s + (d0 + d1 - 2 * s) * t * (1 - t)
    slope = s**2 * (d1 * t**2 + 2 * s * t * (1 - t) + d0 * (1 - t) ** 2) / q**2
    if inverse:
        return xs[k] + t * w, -mpmath.log(slope)
    return ys[k] + h * (s * t**2 + d0 * t * (1 - t)) / q, mpmath.log(slope)


@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_against_50_digits(inverse, spread):
    mpmath = pytest.importorskip("mpmath", reason="oracle with 50 digits; comes with torch's sympy")
    case = spline(9, 4, 6, "knots", "none", F64, spread=spread)
    knots = knots_of(case)
    source = knots.y if inverse else knots.x
    inside = case.x.clamp(source[..., 0], source[..., -1])
    y, logdet = call(case.with_(x=inside), inverse)
    with mpmath.workdps(50):
        for n in range(9):
            for d in range(4):
                here = [t[n, d] for t in knots]
                value, log_slope = exact(mpmath, here, inside[n, d].item(), inverse)
                # The offset in the bin is off by half a unit of x, which the slope magnifies.
                unit = 2.0**-52 * 4
                slope = float(mpmath.exp(log_slope))
                assert abs(float(value - y[n, d].item())) <= unit * (2 + slope)
                bin = (source[n, d][1:-1] <= inside[n, d]).sum()
                ds, width = here[2][bin : bin + 2], source[n, d].diff()[bin].item()
                ratio = (ds.max() / ds.min()).item() * (slope + 1 / slope)
                error = abs(float(log_slope - logdet[n, d].item()))
                assert error <= unit * (4 + 8 * ratio / width)


# --- derivatives ----------------------------------------------------------------------------------


def test_logdet_is_the_slope_of_autograd(parameters, tails, inverse):
    case = spline(40, 5, 4, parameters, tails, F64)
    x = case.x.clone().requires_grad_()
    y, logdet = call(case.with_(x=x), inverse)
    (slope,) = torch.autograd.grad(y.sum(), x)
    outside = torch.isneginf(logdet)
    assert outside.any() == ("none" in tails)
    assert (slope[outside] == 0).all()
    torch.testing.assert_close(slope.log()[~outside], logdet[~outside], rtol=0, atol=1e-11)


def test_derivatives_of_two_orders(parameters, tails, inverse):
    case = spline(1, 5, 2, parameters, tails, F64)
    names = ("x", "widths", "heights", "derivatives")

    def function(*leaves):
        y, logdet = call(case.with_(**dict(zip(names, leaves))), inverse)
        # Beyond a spline without tails nothing has a gradient, the bound that y takes included.
        there = logdet.isfinite()
        return torch.where(there, y, 0.0), torch.where(there, logdet, 0.0)

    leaves = case.leaves()
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_gradient_where_the_bins_halves_meet():
    """The two forms of the root change over here, at the middle of a symmetric bin."""
    case = spline(1, 3, 4, "nflows", "linear", F64, bound=1.0, identity_init=True)
    zero = {k: torch.zeros_like(getattr(case, k)) for k in ("widths", "heights", "derivatives")}
    x = torch.tensor([[-0.25, 0.25, 0.75]], dtype=F64, requires_grad=True)
    y, _ = call(case.with_(x=x, **zero), inverse=True)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], torch.ones_like(x))


def test_no_nan_gradient_outside(parameters, tails, inverse):
    case = on_edges(spline(2, 1, 3, parameters, tails if isinstance(tails, str) else "none", F64))
    leaves = case.leaves()
    names = ("x", "widths", "heights", "derivatives")
    y, logdet = call(case.with_(**dict(zip(names, leaves))), inverse)
    finite = y.isfinite() & logdet.isfinite()
    total = torch.where(finite, y, 0.0).sum() + torch.where(finite, logdet, 0.0).sum()
    gradients = torch.autograd.grad(total, leaves, create_graph=True)
    assert all(g.isfinite().all() for g in gradients)
    small = [g for g, t in zip(gradients, leaves) if g.requires_grad]
    second = torch.autograd.grad(sum(g.sum() for g in small), leaves, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in second)


# --- densities ------------------------------------------------------------------------------------


def test_density_of_one_feature_integrates_to_one(parameters, tails):
    tails = tails if isinstance(tails, str) else ("circular",)
    case = spline(
        1, 1, 5, parameters, tails[0] if tails == ("circular",) else tails, F64, bound=3.0
    )
    # The knots are kinks of the density: each bin by itself, by Gauss and Legendre's rule.
    knots = knots_of(case).x.flatten()
    borders = torch.cat((torch.tensor([-40.0]).double(), knots, torch.tensor([40.0]).double()))
    nodes, weights = gauss(60)
    mass = 0.0
    base = torch.distributions.Normal(torch.zeros((), dtype=F64), 1.0)
    for low, high in itertools.pairwise(borders):
        for part in range(8):
            a, b = (low + (high - low) * p / 8 for p in (part, part + 1))
            x = (a + (b - a) * nodes)[:, None]
            rows = [t.expand(len(x), 1, -1) for t in case.tensors[1:]]
            y, logdet = formula.rational_quadratic_spline(x, *rows, *case.inner(), False)
            mass += ((b - a) * weights * (base.log_prob(y) + logdet).exp()[:, 0]).sum()
    if tails == "none":  # nothing comes from beyond the ends
        ends = knots_of(case).y[0, 0, [0, -1]]
        assert mass == pytest.approx(float(base.cdf(ends).diff()), abs=1e-9)
    else:
        assert mass == pytest.approx(1.0, abs=1e-9)


def gauss(n):
    """Nodes and weights on [0, 1]."""
    off = torch.arange(1, n, dtype=F64)
    off = off / (4 * off**2 - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (values + 1) / 2, vectors[0] ** 2


# --- the limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_bins_of_no_size(dtype, inverse):
    widths = torch.tensor([[[0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0]]], dtype=dtype)
    heights = torch.tensor([[[0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0]]], dtype=dtype)
    x = torch.linspace(-1, 3, 41, dtype=dtype)[:, None]
    rows = [t.expand(41, 1, 7) for t in (widths, heights, torch.ones_like(widths))]
    y, logdet = formula.rational_quadratic_spline(
        x, *rows, "knots", [formula.LINEAR], [0.0] * 4, options_of(), inverse
    )
    assert y.isfinite().all()
    assert logdet.isfinite().all()
    assert (y.diff(dim=0) >= 0).all()


def test_nan_stays_in_its_element(parameters, inverse):
    case = spline(4, 3, 5, parameters, "linear", F64)
    clean = call(case, inverse)
    x = case.x.clone()
    x[1, 2] = math.nan
    leaves = case.with_(x=x).leaves()
    names = ("x", "widths", "heights", "derivatives")
    got = call(case.with_(**dict(zip(names, leaves))), inverse)
    for a, b in zip(got, clean):
        assert a[1, 2].isnan()
        keep = torch.ones_like(a, dtype=torch.bool)
        keep[1, 2] = False
        assert torch.equal(a[keep], b[keep])
    total = sum(torch.where(a.isnan(), 0.0, a).sum() for a in got)
    assert all(g.isfinite().all() for g in torch.autograd.grad(total, leaves))


def test_unknown_map():
    case = spline(1, 1, 2, "nflows", "linear", F64)
    with pytest.raises(ValueError, match="map must be one of"):
        formula.rational_quadratic_spline(*case.tensors, "nsf", *case.inner()[1:], False)
