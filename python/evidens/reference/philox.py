"""Philox4x32-10, the counter-based generator, in plain torch.

A word is a 32-bit unsigned integer carried in int64.  The uniform at (row, column) is a function
of the seed, the step, the row and the column alone, so it depends on no thread count, batch
split, block size or device.

Source: Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def _multiply(a: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low word of the 64-bit product of two words."""
    # In two halves: the whole product does not fit a signed 64-bit integer.
    low, high = (a & 0xFFFF) * multiplier, (a >> 16) * multiplier
    return (high + (low >> 16)) >> 16, (((high & 0xFFFF) << 16) + low) & _MASK


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """The four output words (..., 4) of ``counter`` (..., 4) under ``key`` (..., 2), all int64.

    The leading dimensions broadcast.

    Example:
        >>> words = philox4x32(torch.zeros(4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
        >>> [f"{word:08x}" for word in words.tolist()]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def philox_uniform(
    seed: int,
    step: int,
    rows: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    row_offset: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniforms in [0, 1) of shape (rows, columns): 24 random bits in float32, 53 in float64.

    The key is the 64-bit ``seed``, the counter is ``(column block, row, row >> 32, step)`` with
    ``row`` counted from ``row_offset`` and ``step`` a 32-bit integer.  A block of four words
    serves four float32 columns, or two float64 columns of a high and a low word each.

    Raises:
        ValueError: ``dtype`` is neither float32 nor float64.

    Example:
        >>> whole = philox_uniform(seed=7, step=0, rows=4, columns=3)
        >>> tail = philox_uniform(seed=7, step=0, rows=2, columns=3, row_offset=2)
        >>> torch.equal(whole[2:], tail)
        True
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"philox_uniform: dtype must be float32 or float64, got {dtype}")
    per_block = 4 if dtype == torch.float32 else 2
    blocks = -(-columns // per_block)
    row = torch.arange(rows, dtype=torch.int64, device=device)[:, None] + row_offset
    block = torch.arange(blocks, dtype=torch.int64, device=device)
    row, block = torch.broadcast_tensors(row, block)
    counter = torch.stack(
        (block, row & _MASK, (row >> 32) & _MASK, torch.full_like(row, step & _MASK)), dim=-1
    )
    words = philox4x32(counter, torch.tensor((seed & _MASK, seed >> 32 & _MASK), device=device))
    if dtype == torch.float32:
        uniform = (words >> 8).to(dtype) * 2.0**-24
    else:
        high, low = words[..., ::2] >> 5, words[..., 1::2] >> 6
        uniform = ((high << 26) + low).to(dtype) * 2.0**-53
    return uniform.reshape(rows, blocks * per_block)[:, :columns].contiguous()
