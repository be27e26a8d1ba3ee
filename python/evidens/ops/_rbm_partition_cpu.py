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
        raise ValueError(_overflow("rbm_ais", weight, visible_bias, hidden_bias, base_bias))
    return out


def exact_log_partition(
    weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, levels: int
) -> Tensor:
    tensors = [t.double().contiguous() for t in (weight, visible_bias, hidden_bias)]
    found = library.rbm_exact_log_partition(
        weight.shape[1], weight.shape[0], levels, *map(address, tensors)
    )
    if not math.isfinite(found):
        raise ValueError(_overflow("rbm_exact_log_partition", weight, visible_bias, hidden_bias))
    return torch.tensor(found, dtype=torch.float64)


def _overflow(op: str, weight: Tensor, *biases: Tensor) -> str:
    """The message for energies out of range, with the largest number of each kind."""
    of_weights, of_biases = (
        max((float(t.abs().max()) for t in tensors if t.numel()), default=0.0)
        for tensors in ((weight,), biases)
    )
    return (
        f"evidens.{op}: energies must stay within what {weight.dtype} resolves, got weights of up "
        f"to {of_weights:.3g} and biases of up to {of_biases:.3g} (of units of two states 0 and 1, "
        "or of variance 1); look at how the machine was trained"
    )
