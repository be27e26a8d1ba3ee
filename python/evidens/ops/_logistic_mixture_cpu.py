"""The logistic mixture ops on CPU tensors: addresses and strides for ``evidens._C``."""

from __future__ import annotations

import torch
from torch import Tensor

from evidens._native import empty, library

__all__ = ["bad_level", "log_prob", "log_prob_backward", "not_a_number", "sample"]

_NONE = (0, 0, 0, 0)
Planes = tuple[int, int, int, int]


def _planes(t: Tensor) -> tuple[Tensor, Planes]:
    """``t`` (N, P, H, W) with places of one stride, and its address and strides."""
    if t.is_contiguous():
        _, p, h, w = t.shape
        return t, (t.data_ptr(), p * h * w, h * w, 1)
    row, plane, line, place = t.stride()
    h, w = t.shape[2:]
    if w == 1:
        place = line
    elif h > 1 and line != w * place:
        return _planes(t.contiguous())
    return t, (t.data_ptr(), row, plane, place)


def _sizes(x: Tensor, levels: Planes, planes: Planes) -> tuple[int, int, Planes, Planes]:
    """Rows and places; images of one pixel are the places of one row, so that lanes are filled."""
    n, _, h, w = x.shape
    if h * w != 1:
        return n, h * w, levels, planes
    return 1, n, _rows_as_places(levels), _rows_as_places(planes)


def _rows_as_places(planes: Planes) -> Planes:
    return planes[0], 0, planes[2], planes[1]


def bad_level(place: int, levels: int, x: Tensor) -> str:
    """The message for a value of x that is no level; ``place`` is ``(n S + s) C + c``."""
    _, c, _, w = x.shape
    pixel, channel = divmod(place, c)
    n, s = divmod(pixel, x.shape[2] * w)
    at = (n, channel, *divmod(s, w))
    return (
        f"evidens.logistic_mixture_log_prob: x must hold integers 0 .. levels - 1 = {levels - 1}, "
        f"got {x[at].item():g} at {at}; images in [0, 1] become levels by "
        "(x * (levels - 1)).round()"
    )


def not_a_number(x: Tensor) -> str:
    """The message for draws of which some are -1."""
    n, _, h, w = (x < 0).nonzero()[0].tolist()
    return (
        "evidens.logistic_mixture_sample: params must be numbers, got a draw that is none at row "
        f"{n}, pixel ({h}, {w}); look for NaN or infinities there"
    )


def log_prob(x: Tensor, params: Tensor, levels: int, min_log_scale: float) -> Tensor:
    n, c, h, w = x.shape
    out = params.new_empty((n, h, w))
    params, planes = _planes(params)
    x, levels_at = _planes(x)
    rows, places, levels_at, planes = _sizes(x, levels_at, planes)
    bad = library.logistic_mixture(
        False,
        params.dtype is torch.float64,
        rows,
        places,
        params.shape[1] // (3 if c == 1 else 10),
        c,
        levels,
        min_log_scale,
        planes,
        levels_at,
        out.data_ptr(),
        0,
        _NONE,
    )
    if bad >= 0:
        raise ValueError(bad_level(bad, levels, x))
    return out


def log_prob_backward(
    x: Tensor, params: Tensor, grad: Tensor, levels: int, min_log_scale: float
) -> Tensor:
    n, c, h, w = x.shape
    grad = grad.contiguous()
    params, planes = _planes(params)
    x, levels_at = _planes(x)
    if params.is_contiguous(memory_format=torch.channels_last) and not params.is_contiguous():
        out = empty(params, (n, h, w, params.shape[1])).permute(0, 3, 1, 2)
    else:
        out = empty(params, params.shape)
    out_planes = _planes(out)[1]
    rows, places, levels_at, planes = _sizes(x, levels_at, planes)
    library.logistic_mixture(
        True,
        params.dtype is torch.float64,
        rows,
        places,
        params.shape[1] // (3 if c == 1 else 10),
        c,
        levels,
        min_log_scale,
        planes,
        levels_at,
        0,
        grad.data_ptr(),
        _rows_as_places(out_planes) if h * w == 1 else out_planes,
    )
    return out


def sample(
    params: Tensor,
    channels: int,
    levels: int,
    min_log_scale: float,
    seed: int,
    row0: int,
    step0: int,
) -> Tensor:
    n, p, h, w = params.shape
    out = params.new_empty((n, channels, h, w), dtype=torch.int64)
    params, planes = _planes(params)
    library.logistic_mixture_sample(
        params.dtype is torch.float64,
        n,
        h * w,
        p // (3 if channels == 1 else 10),
        channels,
        levels,
        min_log_scale,
        planes,
        seed & 0xFFFFFFFFFFFFFFFF,
        row0,
        step0,
        out.data_ptr(),
    )
    return out
