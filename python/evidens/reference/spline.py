"""Rational-quadratic splines: a monotone function of every feature and its log-derivative.

Shape letters: ``N`` rows, ``D`` features, ``A`` transformed features, ``M`` bins.  A spline goes
through the knots ``(x_k, y_k)``, ``k = 0 .. M``, with slope ``d_k`` there.  In bin ``k``, with

- ``w = x_{k+1} - x_k``, ``h = y_{k+1} - y_k``, ``s = h / w`` and ``t = (x - x_k) / w``,

it is a ratio of two parabolas,

- ``y = y_k + h (s t^2 + d_k t (1 - t)) / q``,  ``q = s + (d_k + d_{k+1} - 2 s) t (1 - t)``;
- ``dy/dx = s^2 (d_{k+1} t^2 + 2 s t (1 - t) + d_k (1 - t)^2) / q^2``.

Its inverse is the root of a parabola.  All log-determinants are in nats.

Where the numbers come from is the *map*:

======== ==================================================== ====================================
map      widths, heights                                      derivatives
======== ==================================================== ====================================
knots    the knots themselves, M+1                            the slopes themselves, M+1
nflows   ``min + (1 - M min) softmax(scale * logits)``, M     ``min + softplus(beta d) / beta``
zuko     ``softmax(w / (1 + abs(2 w / log slope)))``, M       ``exp(d / (1 + abs(d / log slope)))``
======== ==================================================== ====================================

Source: Durkan, Bekasov, Murray, Papamakarios, Neural Spline Flows, 2019, eq. 4-8; Gregory and
Delbourgo, Piecewise rational quadratic interpolation to monotonic data, 1982.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAPS = ("knots", "nflows", "zuko")
TAILS = ("none", "linear", "circular")
NONE, LINEAR, CIRCULAR = range(3)


class _Spline(NamedTuple):
    """Knots and slopes, (*, M+1) each."""

    x: Tensor
    y: Tensor
    slopes: Tensor


class _Limits(NamedTuple):
    """What keeps every quantity and every gradient finite, by dtype."""

    flat: float  # least slope
    steep: float  # greatest slope
    thin: float  # least size of a bin that is told from zero
    excursion: float  # rounding moves a point out of the box by no more than this part of it


def _limits(dtype: torch.dtype) -> _Limits:
    if dtype is torch.float64:
        return _Limits(2.0**-255, 2.0**255, 2.0**-340, excursion=1e-12)
    return _Limits(2.0**-31, 2.0**31, 2.0**-42, excursion=1e-5)


# --- from parameters to knots --------------------------------------------------------------------


def _soft_clip(logits: Tensor, limit: float) -> Tensor:
    """``logits / (1 + |logits| / limit)``, which stays within +-limit and does not overflow."""
    return limit * (logits / (limit + logits.abs()))


def _knots(sizes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Knots (*, M+1) from ``low`` to ``high``, both exact, for relative sizes (*, M)."""
    low, high = low[..., None], high[..., None]
    inner = low + (high - low) * sizes[..., :-1].cumsum(-1)
    # Rounding may carry a sum past the last knot, which would leave a bin of negative size.
    inner = torch.where(inner > high, high, inner)
    ends = (*inner.shape[:-1], 1)
    return torch.cat((low.expand(ends), inner, high.expand(ends)), -1)


def _slopes(positive: Tensor, tails: list[int], bins: int, codes: Tensor) -> Tensor:
    """Slopes of all M+1 knots from those that are parameters."""
    given, one = positive.shape[-1], positive.new_ones((*positive.shape[:-1], 1))
    if len(tails) > 1 and given == bins + 1:  # one layout for all features of a list
        linear, circular = (codes == LINEAR)[..., None], (codes == CIRCULAR)[..., None]
        first = torch.where(linear, one, positive[..., :1])
        last = torch.where(linear, one, torch.where(circular, first, positive[..., bins:]))
        return torch.cat((first, positive[..., 1:bins], last), -1)
    if tails[0] == LINEAR:
        # A surplus of parameters reaches the last knot: nflows pads with ones, and then it takes
        # the first M+1.
        return torch.cat((one, positive[..., :bins], one), -1)[..., : bins + 1]
    if tails[0] == CIRCULAR:
        return torch.cat((positive[..., :bins], positive[..., :1]), -1)
    return positive


def _spline(
    parameters: tuple[Tensor, ...],
    map: str,
    tails: list[int],
    codes: Tensor,
    sides: Tensor,
    options: list[float],
) -> _Spline:
    widths, heights, derivatives = parameters
    min_width, min_height, min_derivative, beta, slope, logit_scale = options
    limits = _limits(widths.dtype)
    if map == "knots":
        return _Spline(widths, heights, derivatives.clamp(limits.flat, limits.steep))
    bins = widths.shape[-1]
    if map == "nflows":
        w, h = ((logit_scale * v).softmax(-1) for v in (widths, heights))
        w = min_width + (1 - min_width * bins) * w
        h = min_height + (1 - min_height * bins) * h
        # Above the threshold torch drops log1p(exp(-z)); its default of 20 would show in float64.
        positive = min_derivative + F.softplus(beta * derivatives, threshold=80) / beta
    elif map == "zuko":
        limit = -math.log(slope)
        w, h = (_soft_clip(logit_scale * v, limit / 2).softmax(-1) for v in (widths, heights))
        positive = _soft_clip(derivatives, limit).exp()
    else:
        raise ValueError(f"map must be one of {MAPS}, got {map!r}")
    left, right, bottom, top = sides.unbind(-1)
    slopes = _slopes(positive.clamp(limits.flat, limits.steep), tails, bins, codes)
    return _Spline(_knots(w, left, right), _knots(h, bottom, top), slopes)


# --- inside the box ------------------------------------------------------------------------------


def _take(values: Tensor, bin: Tensor) -> Tensor:
    return values.gather(-1, bin[..., None]).squeeze(-1)


def _root(phi: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    """``(t, 1 - t)`` at the height ``phi = (y - y_k) / h`` of a bin, to full relative accuracy.

    ``t`` is the root ``2 c / (-b - sqrt(b^2 - 4 a c))`` of ``a t^2 + b t + c`` (eq. 8 and what
    follows it).  The discriminant is a sum of squares here.  Where ``b`` might cancel against the
    square root, ``1 - t`` is taken instead, which is the same root seen from the bin's other end.
    """
    p = d0 * (1 - phi) - d1 * phi
    disc = p * p + 4 * s * s * (phi * (1 - phi))
    lower = p >= 0
    # abs() has no derivative at 0, but either side's is right here.
    q = torch.where(lower, p, -p) + disc.clamp(min=torch.finfo(disc.dtype).tiny).sqrt()
    near = 2 * s * torch.where(lower, phi, 1 - phi)
    small, large = near / (near + q), q / (near + q)
    return torch.where(lower, small, large), torch.where(lower, large, small)


def _inside(x: Tensor, spline: _Spline, inverse: bool) -> tuple[Tensor, Tensor]:
    """The spline or its inverse where ``x`` lies in the box."""
    limits = _limits(x.dtype)
    source, target = (spline.y, spline.x) if inverse else (spline.x, spline.y)
    # The last knot <= x begins the bin; the last knot of all belongs to the last bin.
    bin = (source[..., 1:-1] <= x[..., None]).sum(-1)
    x0, x1 = _take(source, bin), _take(source, bin + 1)
    y0, y1 = _take(target, bin), _take(target, bin + 1)
    d0, d1 = _take(spline.slopes, bin), _take(spline.slopes, bin + 1)
    size, other = ((a - b).clamp(min=limits.thin) for a, b in ((x1, x0), (y1, y0)))
    s = (size / other if inverse else other / size).clamp(limits.flat, limits.steep)
    phi = ((x - x0) / size).clamp(0, 1)
    t, u = _root(phi, s, d0, d1) if inverse else (phi, 1 - phi)
    # q of the module's docstring as a sum of positive terms, so the share lies in [0, 1].
    below, above = s * t * t + d0 * t * u, s * u * u + d1 * t * u
    q = below + above
    y = y0 + (y1 - y0) * (t if inverse else below / q)
    y = y - (y - y1).clamp(min=0).detach()  # rounding must not leave the bin
    logdet = 2 * (s / q).log() + (d1 * t * t + 2 * s * t * u + d0 * u * u).log()
    return y, -logdet if inverse else logdet


# --- outside -------------------------------------------------------------------------------------


def _outside(
    x: Tensor, spline: _Spline, map: str, codes: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    """What the tails say, where ``x`` does not lie in the box."""
    source, target = (spline.y, spline.x) if inverse else (spline.x, spline.y)
    low = x < source[..., 0]
    knot, bound, slope = (
        torch.where(low, v[..., 0], v[..., -1]) for v in (source, target, spline.slopes)
    )
    slope = 1 / slope if inverse else slope
    # The line through the last knot; infinity has no gradient in it.
    excursion = torch.where(x.isfinite(), x - knot, 0.0)
    line = torch.where(x.isfinite(), bound + excursion * slope, x)
    y, logdet = (line, slope.log()) if map == "knots" else (x, torch.zeros_like(x))
    # Without tails there is nothing: the nearest bound, impossible unless rounding explains it.
    far = _limits(x.dtype).excursion * (source[..., -1] - source[..., 0])
    near = x.isfinite() & ((x - knot).abs() <= far)
    edge = torch.where(near, slope.log(), -math.inf)
    none = codes == NONE
    y = torch.where(none, bound.detach(), y)
    return y, torch.where(none, edge.detach(), logdet)


# --- the functions -------------------------------------------------------------------------------


def _by_feature(x: Tensor, tails: list[int], box: list[float]) -> tuple[Tensor, Tensor]:
    """Codes of the tails and sides of the box as tensors (1 or D,) and (1 or D, 4)."""
    codes = torch.tensor(tails[: max(1, x.shape[1])], device=x.device)
    return codes, torch.tensor(box, dtype=x.dtype, device=x.device).view(-1, 4)


def _transform(
    x: Tensor,
    parameters: tuple[Tensor, ...],
    map: str,
    tails: list[int],
    codes: Tensor,
    sides: Tensor,
    options: list[float],
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    spline = _spline(parameters, map, tails, codes, sides, options)
    source = spline.y if inverse else spline.x
    nan = x.isnan()
    inside = (x >= source[..., 0]) & (x <= source[..., -1])
    # Every branch gets an input that it can bear: NaN times a zero gradient would be NaN.
    y, logdet = _inside(torch.where(inside, x, source[..., 0]), spline, inverse)
    far, tail = _outside(torch.where(nan, source[..., 0], x), spline, map, codes, inverse)
    y, logdet = torch.where(inside, y, far), torch.where(inside, logdet, tail)
    return torch.where(nan, x, y), torch.where(nan, x, logdet)


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    map: str,
    tails: list[int],
    box: list[float],
    options: list[float],
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """``(y, log |dy/dx|)``, (N, D) each, of every element through a spline of its own.

    Args:
        x: (N, D); the heights y where ``inverse``.
        widths, heights: (N, D, M), for the map ``knots`` (N, D, M+1), increasing.
        derivatives: (N, D, n): M+1 without tails, M-1 with linear ones (the ends are 1), M with
            circular ones (the last is the first), M+1 for a list of tails (the ends of a linear
            feature and the last of a circular one are not read).  A linear spline given more has
            a last slope that is not 1: knot ``i`` takes entry ``i - 1``.
        map: one of `MAPS`.
        tails: codes, indices into `TAILS`: one for all features, or a list with one for each, which
            for a single feature holds its code twice.
        box: left, right, bottom, top: four numbers, or four for every feature in turn.
        options: min_width, min_height, min_derivative, beta, slope, logit_scale.
        inverse: the way back, and its log-derivative.

    Outside the box, linear and circular tails are the identity (map ``knots``: the line through
    the end knot with its slope).  Without tails ``x`` is moved to the bound; the log-derivative is
    the bound's where rounding explains the excursion, else -inf; there are no gradients there.
    NaN stays in its element.
    """
    spline = widths, heights, derivatives
    return _transform(x, spline, map, tails, *_by_feature(x, tails, box), options, inverse)


def spline_coupling(
    x: Tensor,
    params: Tensor,
    active: Tensor | None,
    bins: int,
    map: str,
    tails: list[int],
    box: list[float],
    options: list[float],
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """``(y, logdet)``, (N, D) and (N,): the ``active`` features through splines, others copied.

    Args:
        x: (N, D).
        params: (N, A, P): widths, heights and derivatives of every active feature in turn.
        active: (A,) int64, distinct features; None: all of them.
        bins: M.
        map, options, inverse: as in `rational_quadratic_spline`.
        tails, box: as there; a list is by the D features of ``x``.

    ``logdet`` is the sum over the active features, taken in float64.
    """
    knots = bins + 1 if map == "knots" else bins
    parameters = params.tensor_split((knots, 2 * knots), -1)
    codes, sides = _by_feature(x, tails, box)
    moved = x
    if active is not None:
        moved = x.index_select(1, active)
        codes = codes.index_select(0, active) if len(tails) > 1 else codes
        sides = sides.index_select(0, active) if len(box) > 4 else sides
    y, logdet = _transform(moved, parameters, map, tails, codes, sides, options, inverse)
    if active is not None:
        y = x.index_copy(1, active, y)
    return y, logdet.sum(1, dtype=torch.float64).to(x.dtype)
