"""Random splines, and how far a right answer may lie from the float64 reference.

The bounds are first-order forward error bounds: the derivative of each result in the knots, slopes
and the input, which the reference knows, times what rounding may do to those.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from ops.comparison import assert_within
from torch import Tensor

import evidens
from evidens import ops
from evidens.reference import spline as formula

F32, F64 = torch.float32, torch.float64
DTYPES = (F32, F64)
PARAMETERS = formula.MAPS
TAILS = formula.TAILS
# The tensors of a case.
NAMES = ("x", "widths", "heights", "derivatives")
# A list of tails, one per feature, has a layout of its own.
MIX = ("linear", "circular", "none", "circular", "linear")


@dataclasses.dataclass
class Spline:
    """x (N, D) with a spline for every element; `derivatives` as `tails` wants them."""

    x: Tensor
    widths: Tensor
    heights: Tensor
    derivatives: Tensor
    parameters: str
    tails: str | list[str]
    bound: object
    options: dict

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.x, self.widths, self.heights, self.derivatives

    @property
    def bins(self) -> int:
        return self.widths.shape[-1] - (self.parameters == "knots")

    @property
    def params(self) -> Tensor:
        return torch.cat((self.widths, self.heights, self.derivatives), -1)

    @property
    def keywords(self) -> dict:
        return dict(parameters=self.parameters, tails=self.tails, bound=self.bound, **self.options)

    def with_(self, **changes) -> Spline:
        return dataclasses.replace(self, **changes)

    def to(self, dtype: torch.dtype) -> Spline:
        return self.with_(**{k: v.to(dtype) for k, v in vars(self).items() if _is_data(v)})

    def leaves(self) -> list[Tensor]:
        return [t.detach().clone().requires_grad_() for t in self.tensors]

    def codes(self) -> list[int]:
        if isinstance(self.tails, str):
            return [TAILS.index(self.tails)]
        codes = [TAILS.index(name) for name in self.tails]
        return codes if len(codes) > 1 else codes * 2

    def box(self) -> list[float]:
        return box_of(self.parameters, self.tails, self.bound)

    def inner(self) -> tuple:
        """What follows the tensors in the inner signature of the reference."""
        return self.parameters, self.codes(), self.box(), options_of(**self.options)


def _is_data(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def box_of(parameters: str, tails, bound) -> list[float]:
    """Left, right, bottom, top, once or for each feature."""
    if bound is None:
        unit = parameters == "nflows" and tails == "none"
        bound = (0.0, 1.0, 0.0, 1.0) if unit else 5.0 if parameters == "zuko" else 1.0
    if isinstance(bound, Tensor):
        bound = bound.tolist()
    if isinstance(bound, (int, float)):
        return [-bound, bound] * 2
    if len(bound) == 4 and tails == "none":
        return list(bound)
    return [side for b in bound for side in (-b, b, -b, b)]


def options_of(
    min_width=1e-3,
    min_height=1e-3,
    min_derivative=1e-3,
    slope=1e-3,
    identity_init=False,
    logit_scale=1.0,
) -> list[float]:
    beta = math.log(2) / (1 - min_derivative) if identity_init else 1.0
    return [min_width, min_height, min_derivative, beta, slope, logit_scale]


def count(parameters: str, tails, bins: int) -> int:
    """How many derivatives a spline has."""
    if parameters == "knots" or not isinstance(tails, str):
        return bins + 1
    return bins + {"none": 1, "linear": -1, "circular": 0}[tails]


def spline(
    n, d, bins, parameters, tails, dtype, *, bound=2.0, spread=1.0, seed=0, **options
) -> Spline:
    """Logits of standard deviation `spread`; a third of the points lies outside the box."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=F64)

    tails = list(tails) if not isinstance(tails, str) else tails
    knots = bins + (parameters == "knots")
    w, h = (spread * normal(n, d, knots) for _ in range(2))
    slopes = spread * normal(n, d, count(parameters, tails, bins))
    if parameters == "knots":
        slopes = slopes.exp()
        # Increasing, from -2 to 2 or so, and not the same for any two elements.
        w, h = (4 * v.softmax(-1).cumsum(-1) - 2 - v.softmax(-1)[..., :1] for v in (w, h))
    sides = torch.tensor(box_of(parameters, tails, bound), dtype=F64).view(-1, 4)
    inside = torch.rand(n, d, generator=g, dtype=F64)
    x = sides[:, 0] + (sides[:, 1] - sides[:, 0]) * (1.5 * inside - 0.25)
    return Spline(x, w, h, slopes, parameters, tails, bound, options).to(dtype)


def on_edges(case: Spline, inverse: bool = False) -> Spline:
    """The same splines at their knots, at the bounds and beyond, a column of x for each."""
    knots = knots_of(case)[1 if inverse else 0].to(case.x.dtype)
    lowest, highest = knots[..., 0], knots[..., -1]
    columns = [*knots.unbind(-1)]
    for end, side in ((lowest, -math.inf), (highest, math.inf)):
        columns += [torch.nextafter(end, torch.full_like(end, s * side)) for s in (-1, 1)]
        far = 1e30 if side > 0 else -1e30
        columns += [end * 1.5, torch.full_like(end, far), torch.full_like(end, side)]
    x = torch.cat([c.reshape(-1, 1) for c in columns], 0)
    rows = case.x.numel()
    parts = (t.reshape(rows, 1, -1).repeat(len(columns), 1, 1) for t in case.tensors[1:3])
    slopes = case.derivatives.reshape(rows, 1, case.derivatives.shape[-1])
    parts = (*parts, slopes.repeat(len(columns), 1, 1))
    return case.with_(**dict(zip(("x", "widths", "heights", "derivatives"), (x, *parts))))


def op(case: Spline, inverse: bool = False) -> tuple[Tensor, Tensor]:
    return ops.rational_quadratic_spline(*case.tensors, inverse=inverse, **case.keywords)


def coupling(case: Spline, active=None, inverse: bool = False) -> tuple[Tensor, Tensor]:
    return ops.spline_coupling(
        case.x, case.params, active=active, bins=case.bins, inverse=inverse, **case.keywords
    )


def reference(case: Spline, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """The formula in float64 on the values that the op is given."""
    wide = case.to(F64)
    if "none" in case.tails and case.x.dtype is F32:
        # What float32 takes for rounding at a bound, float64 does not.
        source = knots_of(case)[1 if inverse else 0]
        low, high = source[..., 0], source[..., -1]
        moved = torch.maximum(torch.minimum(wide.x, high), low)
        near = (moved - wide.x).abs() <= 1e-5 * (high - low)
        codes, _ = formula._by_feature(wide.x, case.codes(), case.box())
        wide = wide.with_(x=torch.where(near & (codes == formula.NONE), moved, wide.x))
    return formula.rational_quadratic_spline(*wide.tensors, *case.inner(), inverse)


def knots_of(case: Spline) -> formula._Spline:
    """Knots and slopes in float64, (N, D, M+1) each."""
    wide = case.to(F64)
    codes, sides = formula._by_feature(wide.x, case.codes(), case.box())
    parameters, tails, _, options = case.inner()
    return formula._spline(wide.tensors[1:], parameters, tails, codes, sides, options)


def bounds(case: Spline, inverse: bool = False, eps: float | None = None) -> tuple[Tensor, Tensor]:
    """Of y and logdet: rounded knots (sums of M terms), slopes (one map) and formulas."""
    eps = torch.finfo(case.x.dtype).eps if eps is None else eps
    knots = [t.detach().requires_grad_() for t in knots_of(case)]
    size = [(t[..., -1] - t[..., 0]).detach()[..., None] for t in knots[:2]]
    off = [eps * (case.bins + 8) * s.expand_as(t).detach() for s, t in zip(size, knots)]
    off = [*off, 24 * eps * knots[2].detach()]
    source = knots[1] if inverse else knots[0]
    low, high = source[..., 0].detach(), source[..., -1].detach()
    x = case.x.double()
    inside = (x >= low) & (x <= high)
    total = [torch.zeros_like(x)] * 2
    # At a knot rounding decides on the bin, and what rounding does is not the same in both.
    for step in (-1, 0, 1):
        at = x + 2 * step * off[1 if inverse else 0][..., 0]
        at = torch.where(inside, at.clamp(low, high), low).detach().requires_grad_()
        # The spline as such: with tails the identity of the map would hide it at the bounds.
        results = formula.rational_quadratic_spline(
            at, *knots, "knots", [formula.NONE], [0.0] * 4, options_of(), inverse
        )
        for i, (result, scale) in enumerate(zip(results, (size[0 if inverse else 1][..., 0], 1.0))):
            gradients = torch.autograd.grad(result.sum(), (at, *knots), retain_graph=True)
            moved = sum((g.abs() * o).sum(-1) for g, o in zip(gradients[1:], off))
            moved = moved + 4 * eps * gradients[0].abs() * (at.abs() + size[0][..., 0])
            bound = moved.detach() + 32 * eps * (scale + result.detach().abs())
            total[i] = torch.maximum(total[i], bound)
    # Outside the value is x itself, or on a line, or the bound.
    far = 8 * eps * (1 + case.x.double().abs()) * knots[2].detach().amax(-1).clamp(min=1.0)
    far = torch.where(torch.isfinite(far), far, 0.0)
    return torch.where(inside, total[0], total[0] + far), total[1]


def check(case: Spline, inverse: bool = False, got=None) -> tuple[Tensor, Tensor]:
    """The op on a case agrees with the reference."""
    got = op(case, inverse) if got is None else got
    for a, b, bound in zip(got, reference(case, inverse), bounds(case, inverse)):
        assert a.dtype is case.x.dtype
        assert_within(a, b, bound)
    return got


def half_unit(case: Spline, y: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """What half a unit in the last place of ``y`` moves on the way from it: value and logdet."""
    wide = case.with_(x=y).to(F64)
    at = wide.x.clone().requires_grad_()
    results = formula.rational_quadratic_spline(at, *wide.tensors[1:], *wide.inner(), inverse)
    unit = (torch.nextafter(y.abs(), torch.full_like(y, math.inf)) - y.abs()).double()
    slopes = (torch.autograd.grad(r.sum(), at, retain_graph=True)[0] for r in results)
    value, logdet = (unit / 2 * s.abs() for s in slopes)
    return value, logdet


def log_slope_of_autograd(case: Spline, inverse: bool = False) -> Tensor:
    """log |dy/dx| by differentiating the values."""
    x = case.x.detach().clone().requires_grad_()
    y, _ = op(case.with_(x=x), inverse)
    return torch.autograd.grad(y.sum(), x)[0].log()


def levels() -> list[str]:
    return evidens.info()["isa"]["available"]
