"""Splines and couplings as a PyTorch user writes them: the baseline, eager and compiled.

Whole tensors, no boolean indexing, nothing in place: `torch.compile` takes each in as one graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-3  # the smallest share of a bin and the smallest slope, as in nflows
Pair = tuple[Tensor, Tensor]


def _knots(raw: Tensor, bound: float) -> Tensor:
    """Knots (*, M + 1) on [-bound, bound] from raw widths or heights (*, M)."""
    bins = raw.shape[-1]
    # The floor is added after the sum: of a sum of floored shares torch 2.13 compiles a backward
    # pass that is wrong.
    shares = (1 - LEAST * bins) * raw.softmax(-1).cumsum(-1)[..., :-1]
    inner = 2 * bound * (shares + LEAST * torch.arange(1, bins).to(raw)) - bound
    return F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound)


def _inside(z: Tensor, corners: tuple[Tensor, ...], inverse: bool) -> Pair:
    """The spline within its box, from the two knots around z and their slopes."""
    left, right, bottom, top, start, end = corners
    width, height = right - left, top - bottom
    chord = height / width
    bend = start + end - 2 * chord
    if inverse:
        rise = z - bottom
        a = height * (chord - start) + rise * bend
        b = height * start - rise * bend
        c = -chord * rise
        t = 2 * c / (-b - (b * b - 4 * a * c).clamp(min=0).sqrt())
    else:
        t = (z - left) / width
    u = t * (1 - t)
    below = chord + bend * u
    slope = chord * chord * (end * t * t + 2 * chord * u + start * (1 - t) * (1 - t))
    log_slope = slope.log() - 2 * below.log()
    if inverse:
        return left + t * width, -log_slope
    return bottom + height * (chord * t * t + start * u) / below, log_slope


def spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    bound: float,
    inverse: bool = False,
) -> Pair:
    """Rational-quadratic spline with linear tails; y and log-slope like x.

    Raw widths and heights (*, M) and derivatives (*, M - 1), mapped as nflows maps them.
    """
    z = x.clamp(-bound, bound)
    xs, ys = _knots(widths, bound), _knots(heights, bound)
    slopes = F.pad(LEAST + F.softplus(derivatives), (1, 1), value=1.0)
    index = (z[..., None] >= (ys if inverse else xs)[..., 1:-1]).sum(-1, keepdim=True)
    corners = tuple(
        part.gather(-1, index).squeeze(-1)
        for values in (xs, ys, slopes)
        for part in (values[..., :-1], values[..., 1:])
    )
    y, log_slope = _inside(z, corners, inverse)
    inside = x.abs() <= bound
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)


def halves(x: Tensor, scale: Tensor, shift: Tensor, inverse: bool = False) -> Pair:
    """Affine coupling of the last features, scale map exp: y and log-determinant (N,)."""
    kept = x.shape[1] - scale.shape[1]
    moved = x[:, kept:]
    moved = (moved - shift) * (-scale).exp() if inverse else moved * scale.exp() + shift
    log_det = scale.sum(1)
    return torch.cat((x[:, :kept], moved), 1), -log_det if inverse else log_det


def chosen(x: Tensor, answer: Tensor, active: Tensor) -> Pair:
    """Affine coupling of the features in `active` by shifts | raw scales, map of nflows."""
    shift, scale = answer.chunk(2, 1)
    factor = torch.sigmoid(scale + 2) + LEAST
    y = x.index_copy(1, active, x.index_select(1, active) * factor + shift)
    return y, factor.log().sum(1)
