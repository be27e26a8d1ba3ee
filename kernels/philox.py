"""Philox4x32-10 in Triton: the uniforms of `evidens.reference.philox`, bit for bit.

The kernel runs in Triton's interpreter and compiles for sm_90; it has not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._device import on

_BLOCK_ROWS, _BLOCK_COLUMNS, _WARPS = 4, 256, 4


@triton.jit(do_not_specialize=["seed", "step", "row_offset", "rows", "columns"])
def _uniform_kernel(
    out_ptr,  # (rows, columns), contiguous, float32 or float64
    seed,
    step,
    row_offset,
    rows,
    columns,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    PER_BLOCK: tl.constexpr = 128 // out_ptr.dtype.element_ty.primitive_bitwidth
    counters_per_block: tl.constexpr = BLOCK_C // PER_BLOCK
    blocks = tl.cdiv(columns, BLOCK_C)
    row_block, column_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    row = tl.cast(row_block, tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    counter = column_block * counters_per_block + tl.arange(0, counters_per_block)
    zero = tl.zeros([BLOCK_R, counters_per_block], tl.uint32)
    global_row = row[:, None] + row_offset
    w0, w1, w2, w3 = tl.philox(
        seed,
        zero + counter[None, :].to(tl.uint32),
        zero + global_row.to(tl.uint32),
        zero + (global_row >> 32).to(tl.uint32),
        zero + tl.cast(step, tl.uint32),
        n_rounds=10,
    )
    if PER_BLOCK == 4:
        # interleave() pairs last dimensions, so the even words are joined first.
        words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
        uniform = (words >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    else:
        high = (tl.interleave(w0, w2) >> 5).to(tl.uint64)
        low = (tl.interleave(w1, w3) >> 6).to(tl.uint64)
        uniform = ((high << 26) + low).to(tl.float64) * 1.1102230246251565e-16  # 2^-53
    column = tl.cast(column_block, tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(out_ptr + row[:, None] * columns + column[None, :], uniform, mask=mask)


def philox_uniform(
    seed: int,
    step: int,
    rows: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    row_offset: int = 0,
    device: torch.device | str | None = "cuda",
) -> Tensor:
    """Uniforms in [0, 1) of shape (rows, columns); see `evidens.reference.philox`."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"philox_uniform: dtype must be float32 or float64, got {dtype}")
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    grid = (triton.cdiv(rows, _BLOCK_ROWS) * triton.cdiv(columns, _BLOCK_COLUMNS),)
    seed, step = _signed(seed, 64), _signed(step, 32)
    with on(out):
        _uniform_kernel[grid](
            out,
            seed,
            step,
            row_offset,
            rows,
            columns,
            BLOCK_R=_BLOCK_ROWS,
            BLOCK_C=_BLOCK_COLUMNS,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    return out


def _signed(value: int, bits: int) -> int:
    """``value`` modulo 2^bits as a signed integer, the kind a kernel argument can be."""
    half = 1 << (bits - 1)
    return (value + half) % (2 * half) - half
