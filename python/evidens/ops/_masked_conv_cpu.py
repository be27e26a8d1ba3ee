"""The masked ops on CPU tensors: addresses and strides for ``evidens._C``."""

from __future__ import annotations

import torch
from torch import Tensor

from evidens._native import address, contiguous_rows, empty, library

__all__ = ["masked_conv2d", "masked_conv2d_backward", "masked_linear", "masked_linear_backward"]

_NONE = (0, 0, 0, 0)
Planes = tuple[int, int, int, int]


def _planes(t: Tensor) -> tuple[Tensor, Planes]:
    """``t`` (N, C, H, W), or a copy of it, with adjacent places or adjacent channels.

    And its address, with the strides of images, channels and places.
    """
    _, channels, height, width = t.shape
    if t.is_contiguous():
        places = height * width
        return t, (t.data_ptr(), channels * places, 1 if channels == 1 else places, 1)
    n, c, h, w = t.stride()
    if height * width <= 1:
        even, place = c == 1 or channels == 1, w
    else:
        place = w if width > 1 else h
        even = (height == 1 or width == 1 or h == width * w) and (
            place == 1 or c == 1 or channels == 1
        )
    if not even:
        return _planes(t.contiguous())
    return t, (t.data_ptr(), n, 1 if channels == 1 else c, place)


def _contiguous_planes(t: Tensor, channels: int, places: int) -> Planes:
    return t.data_ptr(), channels * places, 1 if channels == 1 else places, 1


def masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, taps: list[int], strict: bool, groups: int
) -> Tensor:
    x, planes = _planes(x)
    weight = weight.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    n, c, h, w = x.shape
    o, _, down, across = weight.shape
    y = empty(x, (n, o, h, w))
    library.masked_conv(
        False,
        x.dtype is torch.float64,
        n,
        h,
        w,
        c,
        o,
        down,
        across,
        taps,
        groups,
        strict,
        planes,
        weight.data_ptr(),
        address(bias),
        _contiguous_planes(y, o, h * w),
        _NONE,
        0,
        0,
    )
    return y


def masked_conv2d_backward(
    x: Tensor,
    weight: Tensor,
    grad_y: Tensor,
    taps: list[int],
    strict: bool,
    groups: int,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (x, planes), (grad_y, grad_planes), weight = _planes(x), _planes(grad_y), weight.contiguous()
    n, c, h, w = x.shape
    o, _, down, across = weight.shape
    whole = n * h * w > 0
    make = x.new_empty if whole else x.new_zeros
    grad_x = empty(x, x.shape if need_x else (0,))
    grad_weight = make(weight.shape if need_weight else (0,))
    grad_bias = make((o,) if need_bias else (0,))
    library.masked_conv(
        True,
        x.dtype is torch.float64,
        n,
        h,
        w,
        c,
        o,
        down,
        across,
        taps,
        groups,
        strict,
        planes,
        weight.data_ptr(),
        0,
        grad_planes,
        _contiguous_planes(grad_x, c, h * w) if need_x else _NONE,
        grad_weight.data_ptr() if need_weight else 0,
        grad_bias.data_ptr() if need_bias else 0,
    )
    return grad_x, grad_weight, grad_bias


# --- linear --------------------------------------------------------------------------------------


def _ordered(t: Tensor, order: Tensor | None, name: str) -> Tensor:
    if order is None:
        return contiguous_rows(t)
    try:
        return t.index_select(1, order)
    except (IndexError, RuntimeError):
        raise _no_order(name) from None


def _no_order(name: str) -> ValueError:
    return ValueError(
        f"evidens.masked_linear: {name}_order must put {name}_degrees into rising order and name "
        f"each of them once; torch.argsort({name}_degrees, stable=True) is one"
    )


def _linear(
    backward: bool,
    orders: list[Tensor | None],
    degrees: tuple[Tensor, Tensor],
    strict: bool,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    grad_x: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> None:
    """Calls the kernel, which reads its input in the order of the degrees and writes in any."""
    in_order, out_order = orders
    given = _ordered(x, in_order, "in")
    other = _ordered(y, out_order, "out") if backward else y
    ok = library.masked_linear(
        backward,
        x.dtype is torch.float64,
        x.shape[0],
        x.shape[1],
        y.shape[1],
        degrees[0].data_ptr(),
        degrees[1].data_ptr(),
        address(in_order),
        address(out_order),
        strict,
        given.data_ptr(),
        given.stride(0),
        weight.data_ptr(),
        address(bias),
        other.data_ptr(),
        other.stride(0),
        address(grad_x),
        address(grad_weight),
        address(grad_bias),
    )
    if ok == 0:
        return
    # Without an order the degrees must be rising: only now is one looked for.
    place, name = (0, "in") if ok == 1 else (1, "out")
    if orders[place] is not None:
        raise _no_order(name)
    orders[place] = torch.argsort(degrees[place], stable=True)
    _linear(backward, orders, degrees, strict, x, weight, bias, y, grad_x, grad_weight, grad_bias)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    in_order: Tensor | None,
    out_order: Tensor | None,
    strict: bool,
) -> Tensor:
    y = empty(x, (x.shape[0], weight.shape[0]))
    _linear(
        False,
        [_contiguous(in_order), _contiguous(out_order)],
        (in_degrees.contiguous(), out_degrees.contiguous()),
        strict,
        x,
        weight.contiguous(),
        _contiguous(bias),
        y,
        None,
        None,
        None,
    )
    return y


def masked_linear_backward(
    x: Tensor,
    weight: Tensor,
    grad_y: Tensor,
    in_degrees: Tensor,
    out_degrees: Tensor,
    in_order: Tensor | None,
    out_order: Tensor | None,
    strict: bool,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    make = x.new_empty if x.shape[0] else x.new_zeros
    grad_x = empty(x, x.shape) if need_x else None
    grad_weight = make(weight.shape) if need_weight else None
    grad_bias = make((weight.shape[0],)) if need_bias else None
    _linear(
        True,
        [_contiguous(in_order), _contiguous(out_order)],
        (in_degrees.contiguous(), out_degrees.contiguous()),
        strict,
        x,
        weight.contiguous(),
        None,
        grad_y,
        grad_x,
        grad_weight,
        grad_bias,
    )
    a, b, c = (x.new_empty((0,)) if g is None else g for g in (grad_x, grad_weight, grad_bias))
    return a, b, c
