"""The coupling ops on CPU tensors: addresses and strides for ``evidens._C``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evidens._native import address, empty, library
from evidens.ops import _checks as checks

__all__ = ["actnorm", "actnorm_backward", "affine_coupling", "affine_coupling_backward"]

_LARGE = 1 << 19  # elements: fewer never ask for huge pages


def _rows(t: Tensor) -> Tensor:
    """``t`` with its rows contiguous: a view where it is one."""
    return t if t.is_contiguous() or t[:1].is_contiguous() else t.contiguous()


def _channels(t: Tensor | None) -> Tensor | None:
    """``t`` with the places of each of its channels contiguous."""
    if t is None or t.ndim == 2 or t.is_contiguous() or t[:1, :1].is_contiguous():
        return t
    return t.contiguous()


def _run(
    backward: bool,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    active: Tensor | None,
    scale_map: int,
    clamp: float,
    inverse: bool,
    y: Tensor | None,
    logdet: Tensor | None,
    *others: int,
) -> None:
    """Calls the kernel; ``others``: addresses and row strides of the gradients.

    Written for small calls, where every attribute of a tensor counts.
    """
    shape = x.shape
    places = 1
    if len(shape) > 2:
        scale, shift, places = _channels(scale), _channels(shift), math.prod(shape[2:])
    if active is None:
        count, index = shape[1], 0
    else:
        if not active.is_contiguous():
            active = active.contiguous()
        count, index = active.shape[0], active.data_ptr()
    scale_at = scale_row = scale_channel = shift_at = shift_row = shift_channel = 0
    if scale is not None:
        scale_at = scale.data_ptr()
        scale_row, scale_channel = scale.stride()[:2]
    if shift is not None:
        shift_at = shift.data_ptr()
        shift_row, shift_channel = shift.stride()[:2]
    bad = library.coupling(
        backward,
        x.dtype is torch.float64,
        shape[0],
        shape[1],
        count,
        places,
        scale_map,
        inverse,
        clamp,
        index,
        x.data_ptr(),
        x.stride(0),
        scale_at,
        scale_row,
        scale_channel,
        shift_at,
        shift_row,
        shift_channel,
        address(y),
        address(logdet),
        *(others or _NO_GRADIENTS),
    )
    if bad:
        assert active is not None
        raise ValueError(checks.bad_index("affine_coupling", active, bad - 1, shape[1]))


# grad_y and its row stride, grad_logdet and its stride, grad_x, grad_scale, grad_shift.
_NO_GRADIENTS = (0,) * 7


def _results(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` with contiguous rows, and memory for y and logdet."""
    if x.numel() < _LARGE and x.is_contiguous():
        y = torch.empty_like(x)  # half the time of new_empty
    else:
        x = _rows(x)
        y = empty(x, x.shape)
    return x, y, x.new_empty(x.shape[0])


def affine_coupling(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    active: Tensor | None,
    scale_map: int,
    clamp: float,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    x, y, logdet = _results(x)
    _run(False, x, scale, shift, active, scale_map, clamp, inverse, y, logdet)
    return y, logdet


def affine_coupling_backward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    active: Tensor | None,
    grad_y: Tensor | None,
    grad_logdet: Tensor | None,
    scale_map: int,
    clamp: float,
    inverse: bool,
    need_x: bool,
    need_scale: bool,
    need_shift: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x, none = _rows(x), (x.shape[0], 0)
    grad_y = None if grad_y is None else _rows(grad_y)
    grad_x = empty(x, x.shape if need_x else none)
    grad_scale = empty(x, scale.shape if need_scale and scale is not None else none)
    grad_shift = empty(x, shift.shape if need_shift and shift is not None else none)
    _run(
        True,
        x,
        scale,
        shift,
        active,
        scale_map,
        clamp,
        inverse,
        None,
        None,
        address(grad_y),
        0 if grad_y is None else grad_y.stride(0),
        address(grad_logdet),
        0 if grad_logdet is None else grad_logdet.stride(0),
        grad_x.data_ptr() if need_x else 0,
        grad_scale.data_ptr() if need_scale else 0,
        grad_shift.data_ptr() if need_shift else 0,
    )
    return grad_x, grad_scale, grad_shift


def actnorm(x: Tensor, log_scale: Tensor, shift: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    x, y, logdet = _results(x)
    log_scale, shift = log_scale.contiguous(), shift.contiguous()
    shape = x.shape
    library.actnorm(
        False,
        x.dtype is torch.float64,
        shape[0],
        shape[1],
        1 if len(shape) == 2 else math.prod(shape[2:]),
        inverse,
        x.data_ptr(),
        x.stride(0),
        log_scale.data_ptr(),
        shift.data_ptr(),
        y.data_ptr(),
        logdet.data_ptr(),
        0,
        0,
        0,
        0,
        0,
    )
    return y, logdet


def actnorm_backward(
    x: Tensor, log_scale: Tensor, shift: Tensor, grad_y: Tensor, inverse: bool, need_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x, grad_y = _rows(x), _rows(grad_y)
    log_scale, shift = log_scale.contiguous(), shift.contiguous()
    grad_x = empty(x, x.shape if need_x else (x.shape[0], 0))
    grad_log_scale, grad_shift = x.new_empty(shift.shape), x.new_empty(shift.shape)
    library.actnorm(
        True,
        x.dtype is torch.float64,
        x.shape[0],
        x.shape[1],
        math.prod(x.shape[2:]),
        inverse,
        x.data_ptr(),
        x.stride(0),
        log_scale.data_ptr(),
        shift.data_ptr(),
        0,
        0,
        grad_y.data_ptr(),
        grad_y.stride(0),
        grad_x.data_ptr() if need_x else 0,
        grad_log_scale.data_ptr(),
        grad_shift.data_ptr(),
    )
    return grad_x, grad_log_scale, grad_shift
