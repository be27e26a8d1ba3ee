"""The spline ops on CPU tensors: addresses and strides for ``evidens._C``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evidens._native import empty, library
from evidens.ops import _checks as checks

# csrc/spline.h, in its order.
KNOTS, SOFTMAX, SOFT_CLIP = range(3)
NO_TAILS, LINEAR, CIRCULAR = range(3)

Group = tuple[int, int, int, int, int, int, int]


def _group(values: Tensor, gradient: Tensor | None, first: int, count: int) -> Group:
    """``count`` values from ``first`` on of the records (N, A, P)."""
    row, feature, _ = values.stride()
    skip = first * values.element_size()
    if gradient is None:
        return values.data_ptr() + skip, row, feature, 0, 0, 0, count
    to_row, to_feature, _ = gradient.stride()
    return (
        values.data_ptr() + skip,
        row,
        feature,
        gradient.data_ptr() + skip,
        to_row,
        to_feature,
        count,
    )


def _records(t: Tensor) -> Tensor:
    """With the values of a record side by side; the other strides are the kernel's."""
    return t if t.shape[2] < 2 or t.stride(2) == 1 else t.contiguous()


def _run(
    x: Tensor,
    groups: list[Group],
    active: Tensor | None,
    features: int,
    per_row: bool,
    options: tuple,
    *tensors: Tensor | None,
) -> None:
    """``tensors``: y, logdet, grad_y, grad_logdet, grad_x; None for what the call does not have."""
    map, tails, box, (min_width, min_height, min_derivative, beta, slope, scale), inverse = options
    widths, heights, derivatives = groups
    edges, stored = widths[-1], derivatives[-1]
    bins = edges - 1 if map == KNOTS else edges
    # A list of tails, two codes or more, stores the slope of every knot; linear tails by name leave
    # out the outer ones.
    first_slope = map != KNOTS and len(tails) == 1 and tails[0] == LINEAR
    per_feature = len(tails) > 1 or len(box) > 4
    if per_feature:
        tails = tails if len(tails) > 1 else [*tails] * x.shape[1]
        box = box if len(box) > 4 else [*box] * x.shape[1]
    library.spline(
        tensors[0] is None,
        x.dtype is torch.float64,
        x.shape[0],
        x.shape[1],
        features,
        0 if active is None else active.data_ptr(),
        bins,
        map,
        inverse,
        per_row,
        per_feature,
        first_slope,
        first_slope and stored >= bins,
        tails,
        box,
        (min_width, min_height, min_derivative, beta, math.log(slope), scale),
        widths,
        heights,
        derivatives,
        x.data_ptr(),
        *(0 if t is None else t.data_ptr() for t in tensors),
    )


def rational_quadratic_spline(
    x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, *options: object
) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    given = [_records(t) for t in (widths, heights, derivatives)]
    groups = [_group(t, None, 0, t.shape[2]) for t in given]
    y, logdet = empty(x, x.shape), empty(x, x.shape)
    _run(x, groups, None, x.shape[1], False, options, y, logdet, None, None, None)
    return y, logdet


def rational_quadratic_spline_backward(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    grad_y: Tensor | None,
    grad_logdet: Tensor | None,
    *options: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = x.contiguous()
    given = [_records(t) for t in (widths, heights, derivatives)]
    gradients = [empty(t, t.shape) for t in given]
    groups = [_group(t, g, 0, t.shape[2]) for t, g in zip(given, gradients)]
    grad_x, (grad_y, grad_logdet) = empty(x, x.shape), _contiguous(grad_y, grad_logdet)
    _run(x, groups, None, x.shape[1], False, options, None, None, grad_y, grad_logdet, grad_x)
    return grad_x, gradients[0], gradients[1], gradients[2]


def spline_coupling(
    x: Tensor, params: Tensor, active: Tensor | None, bins: int, *options: object
) -> tuple[Tensor, Tensor]:
    x, params, active = x.contiguous(), _records(params), _index(x, active)
    y, logdet = empty(x, x.shape), x.new_empty(x.shape[:1])
    groups = _record_groups(params, None, bins, options[0] == KNOTS)
    _run(x, groups, active, params.shape[1], True, options, y, logdet, None, None, None)
    return y, logdet


def spline_coupling_backward(
    x: Tensor,
    params: Tensor,
    active: Tensor | None,
    grad_y: Tensor | None,
    grad_logdet: Tensor | None,
    bins: int,
    *options: object,
) -> tuple[Tensor, Tensor]:
    x, params, active = x.contiguous(), _records(params), _index(x, active)
    grad_x, gradient = empty(x, x.shape), empty(params, params.shape)
    groups = _record_groups(params, gradient, bins, options[0] == KNOTS)
    grad_y, grad_logdet = _contiguous(grad_y, grad_logdet)
    _run(x, groups, active, params.shape[1], True, options, None, None, grad_y, grad_logdet, grad_x)
    return grad_x, gradient


def _record_groups(params: Tensor, gradient: Tensor | None, bins: int, knots: bool) -> list[Group]:
    edges = bins + knots
    return [
        _group(params, gradient, 0, edges),
        _group(params, gradient, edges, edges),
        _group(params, gradient, 2 * edges, params.shape[2] - 2 * edges),
    ]


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _index(x: Tensor, active: Tensor | None) -> Tensor | None:
    return None if active is None else checks.indices("spline_coupling", active, x.shape[1])
