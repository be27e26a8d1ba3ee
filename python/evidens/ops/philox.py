"""Counter-based uniform random numbers, the same on every backend, device and thread count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evidens._native import library
from evidens.ops import _registry
from evidens.reference import philox as reference

__all__ = ["philox_uniform"]


def _cpu(
    seed: int,
    step: int,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    row_offset: int,
    device: torch.device,
) -> Tensor:
    out = torch.empty((rows, columns), dtype=dtype)
    library.philox_uniform(
        seed & 0xFFFFFFFFFFFFFFFF,
        step,
        row_offset,
        rows,
        columns,
        dtype is torch.float64,
        out.data_ptr(),
    )
    return out


def _triton(*args: Any) -> Tensor:
    from evidens.kernels import philox as kernels

    return kernels.philox_uniform(*args)


_uniform = _registry.Op(
    "philox",
    "philox_uniform(int seed, int step, SymInt rows, SymInt columns, ScalarType dtype, "
    "int row_offset, Device device) -> Tensor",
    cpu=_cpu,
    reference=reference.philox_uniform,
    triton=_triton,
    fake=lambda seed, step, rows, columns, dtype, row_offset, device: torch.empty(
        (rows, columns), dtype=dtype, device=device
    ),
)


def philox_uniform(
    seed: int,
    step: int,
    rows: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    row_offset: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Uniforms in [0, 1) that depend on (seed, step, row, column) and on nothing else.

    Philox4x32-10 with key = ``seed`` and counter = (column block, row, step).  A row's stream does
    not change with the batch: rows ``row_offset ..`` of a larger call are the same numbers.

    Args:
        seed: any Python integer; its low 64 bits count.
        step: 0 .. 2^32 - 1, for instance the sweep of a Gibbs chain.
        rows, columns: shape of the result, not negative.
        dtype: float32 (24 random bits) or float64 (53).
        row_offset: first row of the stream, not negative.
        device: where the result lives.

    Returns:
        (rows, columns).

    Raises:
        ValueError: naming the argument, what was expected and what came.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.

    Example:
        >>> import torch, evidens
        >>> whole = evidens.ops.philox_uniform(seed=7, step=0, rows=4, columns=3)
        >>> last = evidens.ops.philox_uniform(seed=7, step=0, rows=1, columns=3, row_offset=3)
        >>> bool((whole[3:] == last).all())
        True
    """
    if dtype is not torch.float32 and dtype is not torch.float64:
        raise ValueError(
            f"evidens.philox_uniform: dtype must be torch.float32 or torch.float64, got {dtype}"
        )
    if not 0 <= step < 1 << 32:
        raise ValueError(
            f"evidens.philox_uniform: step must be in 0 .. 2^32 - 1, got {step}; "
            "fold a longer counter into the seed"
        )
    for name, value in (("rows", rows), ("columns", columns), ("row_offset", row_offset)):
        if value < 0:
            raise ValueError(
                f"evidens.philox_uniform: {name} must be a non-negative integer, got {value}"
            )
    if row_offset + rows > 1 << 63:
        raise ValueError(
            "evidens.philox_uniform: row_offset + rows must be at most 2^63, "
            f"got {row_offset} + {rows}"
        )
    signed = ((seed + (1 << 63)) & 0xFFFFFFFFFFFFFFFF) - (1 << 63)
    return _uniform(signed, step, rows, columns, dtype, row_offset, torch.device(device))
