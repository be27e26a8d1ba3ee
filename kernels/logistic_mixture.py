"""The discretized logistic mixture in Triton: `evidens.reference.logistic_mixture` on a GPU.

The kernels run in Triton's interpreter and compile for sm_90; they have not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from evidens.kernels import _logistic_mixture_bins as bins

from ._device import on

_BLOCK, _WARPS = 128, 4  # pixels of a program


def _by_places(t: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """``t`` (N, P, H, W) with places of one stride, and its strides of row, plane and place."""
    h, w = t.shape[2:]
    row, plane, line, place = t.stride()
    if w == 1:
        return t, (row, plane, line)
    if h > 1 and line != w * place:
        t = t.contiguous()
        row, plane, _, place = t.stride()
    return t, (row, plane, place)


def _cut(n: int, places: int) -> tuple[int, int]:
    """Blocks of a row, and their size."""
    block = min(_BLOCK, max(16, triton.next_power_of_2(places)))
    return triton.cdiv(places, block), block


def _run(
    x: Tensor,
    params: Tensor,
    out: Tensor | None,
    grad: Tensor | None,
    slopes: Tensor | None,
    levels: int,
    min_log_scale: float,
) -> None:
    n, c, h, w = x.shape
    if n * h * w == 0:
        return
    params, strides = _by_places(params)
    to = (0, 0, 0) if slopes is None else _by_places(slopes)[1]
    blocks, block = _cut(n, h * w)
    with on(params):
        bins.log_prob_kernel[(n * blocks,)](
            x.contiguous(),
            params,
            out,
            grad,
            slopes,
            h * w,
            params.shape[1] // (3 if c == 1 else 10),
            blocks,
            levels,
            *strides,
            *to,
            C=c,
            LEAST=min_log_scale,
            BACKWARD=slopes is not None,
            BLOCK=block,
            num_warps=max(1, min(_WARPS, block // 32)),
            enable_fp_fusion=True,
        )


def log_prob(x: Tensor, params: Tensor, levels: int, min_log_scale: float) -> Tensor:
    """(N, H, W); NaN where x is no level."""
    out = params.new_empty((x.shape[0], *x.shape[2:]))
    _run(x, params, out, None, None, levels, min_log_scale)
    return out


def log_prob_backward(
    x: Tensor, params: Tensor, grad: Tensor, levels: int, min_log_scale: float
) -> Tensor:
    """Like params: the gradient of ``(grad * log_prob).sum()``, channels last where they are."""
    n, p, h, w = params.shape
    if params.is_contiguous(memory_format=torch.channels_last) and not params.is_contiguous():
        slopes = params.new_empty((n, h, w, p)).permute(0, 3, 1, 2)
    else:
        slopes = params.new_empty(params.shape)
    _run(x, params, None, grad.contiguous(), slopes, levels, min_log_scale)
    return slopes


def sample(
    params: Tensor,
    channels: int,
    levels: int,
    min_log_scale: float,
    seed: int,
    row0: int,
    step0: int,
) -> Tensor:
    """(N, C, H, W) int64, -1 where a parameter is not a number."""
    n, p, h, w = params.shape
    out = params.new_empty((n, channels, h, w), dtype=torch.int64)
    if n * h * w == 0:
        return out
    params, strides = _by_places(params)
    blocks, block = _cut(n, h * w)
    with on(params):
        bins.sample_kernel[(n * blocks,)](
            params,
            out,
            h * w,
            p // (3 if channels == 1 else 10),
            blocks,
            levels,
            *strides,
            seed,
            row0,
            step0,
            C=channels,
            LEAST=min_log_scale,
            BLOCK=block,
            num_warps=max(1, min(_WARPS, block // 32)),
            enable_fp_fusion=True,
        )
    return out
