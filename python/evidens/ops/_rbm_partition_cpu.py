"""The partition function ops on CPU tensors: addresses and sizes for ``evidens._C``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evidens._native import address, library

_KINDS, _SOFTMAX = {0: 2, 1: 0}, 3  # RbmUnits in csrc/rbm.h, by levels

__all__ = ["ais", "exact_log_partition"]


def ais(
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    base_bias: Tensor,
    betas: Tensor,
    chains: int,
    levels: int,
    seed: int,
    row0: int,
) -> Tensor:
    out = betas.new_empty(chains)
    weight, visible_bias, hidden_bias, base_bias, betas = (
        t.contiguous() for t in (weight, visible_bias, hidden_bias, base_bias, betas)
    )
    library.rbm_ais(
        weight.dtype is torch.float64,
        chains,
        weight.shape[1],
        weight.shape[0],
        _KINDS.get(levels, _SOFTMAX),
        levels,
        address(weight),
        address(visible_bias),
        address(hidden_bias),
        address(base_bias),
        betas.shape[0] - 1,
        address(betas),
        seed & 0xFFFFFFFFFFFFFFFF,
        row0,
        out.data_ptr(),
    )
    if not out.isfinite().all():
        raise ValueError(_overflow("rbm_ais", weight))
    return out


def exact_log_partition(
    weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, levels: int
) -> Tensor:
    tensors = [t.double().contiguous() for t in (weight, visible_bias, hidden_bias)]
    found = library.rbm_exact_log_partition(
        weight.shape[1], weight.shape[0], levels, *map(address, tensors)
    )
    if not math.isfinite(found):
        raise ValueError(_overflow("rbm_exact_log_partition", weight))
    return torch.tensor(found, dtype=torch.float64)


def _overflow(op: str, weight: Tensor) -> str:
    return (
        f"evidens.{op}: energies must stay within what {weight.dtype} resolves, got weights of up "
        f"to {weight.abs().max().item():.3g}; look at how the machine was trained"
    )
