"""Annealed importance sampling of restricted Boltzmann machines in Triton.

Two launches a rung; the chains of a launch share the weights in the second-level cache.  The
kernels run in Triton's interpreter and compile for sm_90; they have not yet run on a GPU.
"""

from __future__ import annotations

import triton
from torch import Tensor

from . import _rbm_anneal as anneal
from ._device import on
from ._rbm_units import DRAWN, REAL

_BLOCK_N, _BLOCK_U, _BLOCK_K, _WARPS = 16, 64, 32, 4
_MOST_LEVELS = 128  # of a group: a program takes four of them


def rbm_ais(
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
    """(N,) float64; see `evidens.reference.rbm_partition`."""
    if levels > _MOST_LEVELS:
        raise ValueError(
            f"evidens.rbm_ais: the triton kernel takes groups of at most {_MOST_LEVELS} levels, "
            f"got {levels}; use evidens.backend('reference')"
        )
    hidden, visible = weight.shape
    padded = triton.next_power_of_2(levels) if levels > 1 else 1
    block_v = max(_BLOCK_U, 4 * padded)
    block_k = _BLOCK_K if block_v <= 4 * _BLOCK_U else _BLOCK_K // 2  # of the shared memory
    blocks = triton.cdiv(chains, _BLOCK_N)
    of_hidden = blocks, triton.cdiv(hidden, _BLOCK_U)
    of_visible = blocks, triton.cdiv(visible, block_v // padded * max(levels, 1))
    weight, visible_bias, hidden_bias, base_bias, betas = (
        t.contiguous() for t in (weight, visible_bias, hidden_bias, base_bias, betas)
    )
    v, h = weight.new_empty((chains, visible)), weight.new_empty((chains, hidden))
    gains = betas.new_zeros((of_hidden[1] + of_visible[1], chains))
    options = {"BLOCK_N": _BLOCK_N, "num_warps": _WARPS, "enable_fp_fusion": True}
    rungs = betas.shape[0] - 1
    rest = seed, row0, chains, visible, hidden
    with on(weight):
        for rung in range(rungs):
            if visible:
                anneal.visible_kernel[of_visible](
                    h, weight, visible_bias, base_bias, v, gains[of_hidden[1] :], betas, rung,
                    *rest, LEVELS=levels, PADDED=padded, BLOCK_U=block_v, BLOCK_K=block_k,
                    **options,
                )  # fmt: skip
            if hidden:
                anneal.hidden_kernel[of_hidden](
                    v, weight, hidden_bias, h, gains, betas, rung + 1,
                    *rest, STATES=(DRAWN if levels else REAL).value,
                    BLOCK_U=_BLOCK_U, BLOCK_K=_BLOCK_K, **options,
                )  # fmt: skip
    return gains.sum(0)
