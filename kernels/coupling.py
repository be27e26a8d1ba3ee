"""Affine coupling and ActNorm in Triton: the functions of `evidens.reference.coupling` on a GPU.

Arguments are those of the inner ops.  Where there are passive features, torch copies x first; then
a program takes a block of the active elements of a row.  Indices are not looked at on the host,
which would wait for the device; one out of range is left out.  The kernels run in Triton's
interpreter and compile for sm_90; they have not yet run on a GPU.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from . import _coupling_maps
from ._device import constant, on

_BOUNDED = 6  # the scale map whose constant is a slope
_LARGEST_BLOCK, _ELEMENTS_OF_A_WARP = 1024, 256
_ACTNORM_BLOCK, _ACTNORM_PROGRAMS = 1024, 64


def _constant(scale_map: int, clamp: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    value = -1 / math.log(clamp) if scale_map == _BOUNDED else clamp
    return constant((value,), dtype, device)


def _spatial(t: Tensor | None) -> Tensor | None:
    """(N, A, S) with adjacent places; the strides of rows and channels stay."""
    if t is None:
        return None
    flat = t.unsqueeze(2) if t.ndim == 2 else t.flatten(2)
    return flat if flat.shape[2] < 2 or flat.stride(2) == 1 else flat.contiguous()


def _launch(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    active: Tensor | None,
    scale_map: int,
    clamp: float,
    inverse: bool,
    chunks: int,
    block: int,
    forward: bool,
    *tensors: Tensor | None,
) -> None:
    """``tensors``: y, sums, grad_y, grad_logdet, grad_x, grad_scale, grad_shift."""
    n, d = x.shape[:2]
    places = math.prod(x.shape[2:])
    elements = (d if active is None else active.shape[0]) * places
    if n == 0 or elements == 0:
        return
    scale, shift = _spatial(scale), _spatial(shift)
    strides = [s for t in (scale, shift) for s in ((0, 0) if t is None else t.stride()[:2])]
    with on(x):
        _coupling_maps.affine_kernel[(n * chunks,)](
            x,
            scale,
            shift,
            active,
            _constant(scale_map, clamp, x.dtype, x.device),
            *tensors,
            d,
            elements,
            places,
            chunks,
            *strides,
            MAP=scale_map,
            INVERSE=inverse,
            FORWARD=forward,
            INDEX=active is not None,
            SCALE=scale is not None,
            SHIFT=shift is not None,
            BLOCK=block,
            num_warps=max(1, min(4, block // _ELEMENTS_OF_A_WARP)),
            enable_fp_fusion=True,
        )


def _blocks(x: Tensor, active: Tensor | None) -> tuple[int, int]:
    """Blocks of the active elements of a row, and their size."""
    features = x.shape[1] if active is None else active.shape[0]
    elements = max(1, features * math.prod(x.shape[2:]))
    block = min(_LARGEST_BLOCK, max(16, triton.next_power_of_2(elements)))
    return triton.cdiv(elements, block), block


def _beside(x: Tensor, active: Tensor | None) -> Tensor:
    """Memory for the active features, the others as they are in ``x``."""
    out = x.new_empty(x.shape)
    return out if active is None else out.copy_(x)


def affine_coupling(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    active: Tensor | None,
    scale_map: int,
    clamp: float,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """``(y, logdet)``, like ``x`` and (N,)."""
    x = x.contiguous()
    y = _beside(x, active)
    chunks, block = _blocks(x, active)
    sums = x.new_zeros((x.shape[0], chunks), dtype=torch.float64)
    results = (y, sums, None, None, None, None, None)
    _launch(x, scale, shift, active, scale_map, clamp, inverse, chunks, block, True, *results)
    return y, sums.sum(1).to(x.dtype)


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
    """Gradients of x, scale and shift; (N, 0) for one that is not needed."""
    x = x.contiguous()
    given = torch.zeros_like(x) if grad_y is None else grad_y.contiguous()
    total = x.new_zeros(x.shape[:1]) if grad_logdet is None else grad_logdet.contiguous()
    grad_x = _beside(given, active) if need_x else None
    others = [
        t.new_empty(t.shape) if need and t is not None else None
        for t, need in ((scale, need_scale), (shift, need_shift))
    ]
    chunks, block = _blocks(x, active)
    results = (None, None, given, total, grad_x, *others)
    _launch(x, scale, shift, active, scale_map, clamp, inverse, chunks, block, False, *results)
    none = (x.shape[0], 0)
    a, b, c = (x.new_empty(none) if t is None else t for t in (grad_x, *others))
    return a, b, c


def _actnorm(
    x: Tensor, log_scale: Tensor, shift: Tensor, inverse: bool, with_shift: bool
) -> Tensor:
    out, places = x.new_empty(x.shape), math.prod(x.shape[2:])
    if x.numel():
        with on(x):
            _coupling_maps.actnorm_kernel[(triton.cdiv(x.numel(), _ACTNORM_BLOCK),)](
                x,
                log_scale.contiguous(),
                shift.contiguous(),
                out,
                x.numel(),
                x.shape[1],
                places,
                INVERSE=inverse,
                SHIFT=with_shift,
                BLOCK=_ACTNORM_BLOCK,
                num_warps=4,
                enable_fp_fusion=True,
            )
    return out


def actnorm(x: Tensor, log_scale: Tensor, shift: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """``(y, logdet)``, like ``x`` and (N,)."""
    x = x.contiguous()
    total = log_scale.sum(dtype=torch.float64) * math.prod(x.shape[2:])
    logdet = (-total if inverse else total).to(x.dtype).expand(x.shape[0]).clone()
    return _actnorm(x, log_scale, shift, inverse, True), logdet


def actnorm_backward(
    x: Tensor, log_scale: Tensor, shift: Tensor, grad_y: Tensor, inverse: bool, need_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x ((N, 0) where it is not needed), log_scale and shift, from that of y."""
    x, grad_y = x.contiguous(), grad_y.contiguous()
    n, channels, places = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    grad_x = (
        _actnorm(grad_y, log_scale, shift, inverse, False)
        if need_x
        else x.new_empty((x.shape[0], 0))
    )
    count = max(1, n * places)
    programs = min(_ACTNORM_PROGRAMS, triton.cdiv(count, _ACTNORM_BLOCK))
    sums = x.new_zeros((channels, programs, 2), dtype=torch.float64)
    if x.numel():
        with on(x):
            _coupling_maps.actnorm_sums_kernel[(channels * programs,)](
                x,
                grad_y,
                shift.contiguous(),
                sums,
                n,
                channels,
                places,
                programs,
                INVERSE=inverse,
                BLOCK=_ACTNORM_BLOCK,
                num_warps=4,
                enable_fp_fusion=True,
            )
    first, second = sums.sum(1).unbind(1)
    power = (-log_scale if inverse else log_scale).double()
    largest = 709.78 if x.dtype is torch.float64 else 88.72
    factor = power.clamp(max=largest).exp()
    second = torch.where(power > largest, 0.0, second * factor)
    if inverse:
        first, second = -first * factor, -second
    return grad_x, second.to(x.dtype), first.to(x.dtype)
