"""Restricted Boltzmann machines in Triton: the functions of `evidens.reference.rbm` on a GPU.

Arguments are those of the inner ops.  A half step is one launch, in which uniforms are made where
they are used; the draws of softmax groups are a second one.  The kernels run in the interpreter of
Triton and compile for sm_90; they have not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import _rbm_units as kernels
from ._device import on

# Rows, units and depth of a block, by the size of a number.
_BLOCKS = {4: (32, 64, 32), 8: (16, 32, 16)}
_SOFTMAX = (4, 64)  # rows and groups
_COLUMNS = (32, 64)  # rows and columns
_WARPS = 4
_GIVEN, _DRAWN = kernels.GIVEN.value, kernels.DRAWN.value
_KINDS = {"bernoulli": 0, "spin": 1, "gaussian": 2, "softmax": 3}


def _half(
    kind: str,
    state: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor | None,
    mean: Tensor | None,
    *,
    precision: Tensor | None = None,
    beta: Tensor | None = None,
    scale: Tensor | None = None,
    clamped: Tensor | None = None,
    values: Tensor | None = None,
    levels: int = 0,
    states: int = _GIVEN,
    stream: tuple[int, int, int] = (0, 0, 0),
) -> None:
    """Units of one layer from ``state`` (N, depth) of the other; ``weight`` is (depth, units)."""
    n, (depth, units) = state.shape[0], weight.shape
    if n * units == 0:
        return
    block_n, block_u, block_k = _BLOCKS[weight.element_size()]
    with on(weight):
        kernels.half_kernel[(triton.cdiv(n, block_n) * triton.cdiv(units, block_u),)](
            state,
            weight,
            bias,
            precision,
            beta,
            scale,
            clamped,
            values,
            out,
            None if kind == "softmax" else mean,
            *stream,
            n,
            depth,
            units,
            state.stride(0),
            weight.stride(0),
            weight.stride(1),
            KIND=_KINDS[kind],
            STATES=kernels.REAL.value if precision is not None else states,
            BLOCK_N=block_n,
            BLOCK_U=block_u,
            BLOCK_K=block_k,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
        if kind != "softmax":
            return
        block_n, block_g = _SOFTMAX
        groups = units // levels
        kernels.softmax_kernel[(triton.cdiv(n, block_n) * triton.cdiv(groups, block_g),)](
            out,
            mean,
            clamped,
            values,
            *stream,
            n,
            groups,
            levels,
            BLOCK_N=block_n,
            BLOCK_G=block_g,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )


def _precision(log_variance: Tensor | None) -> Tensor | None:
    return None if log_variance is None else torch.exp(-log_variance)


def rbm_gibbs(
    state: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    log_variance: Tensor | None,
    beta: Tensor | None,
    clamped: Tensor | None,
    values: Tensor | None,
    visible: str,
    hidden: str,
    levels: int,
    start: str,
    steps: int,
    means: bool,
    seed: int,
    row0: int,
    step0: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States after ``steps`` steps, and their means."""
    n, (j, units) = state.shape[0], weight.shape
    kept = n if means else 0
    v, h = weight.new_empty((n, units)), weight.new_empty((n, j))
    v_mean, h_mean = weight.new_empty((kept, units)), weight.new_empty((kept, j))
    precision = _precision(log_variance)
    scale = None if log_variance is None else torch.exp(0.5 * log_variance)
    visible_bias, hidden_bias = visible_bias.contiguous(), hidden_bias.contiguous()
    beta = None if beta is None else beta.contiguous()
    if clamped is not None and values is not None:
        clamped, values = clamped.contiguous().view(torch.int8), values.contiguous()
    given_v = given_h = state.contiguous()
    of_v = of_h = _GIVEN
    for t in range(step0, step0 + steps):
        last = means and t + 1 == step0 + steps
        for layer in "vh" if start == "hidden" else "hv":
            if layer == "h":
                _half(
                    hidden,
                    given_v,
                    weight.T,
                    hidden_bias,
                    h,
                    h_mean if last else None,
                    precision=precision,
                    beta=beta,
                    states=of_v,
                    stream=(seed, _signed(2 * t), row0),
                )
                given_h, of_h = h, _DRAWN
            else:
                _half(
                    visible,
                    given_h,
                    weight,
                    visible_bias,
                    v,
                    v_mean if last else None,
                    beta=beta,
                    scale=scale,
                    clamped=clamped,
                    values=values,
                    levels=levels,
                    states=of_h,
                    stream=(seed, _signed(2 * t + 1), row0),
                )
                given_v, of_v = v, _DRAWN if clamped is None else _GIVEN
    return v, h, v_mean, h_mean


def _signed(step: int) -> int:
    """A step of 32 bits as the signed integer that a kernel argument can be."""
    return (step + (1 << 31)) % (1 << 32) - (1 << 31)


def rbm_free_energy(
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    log_variance: Tensor | None,
    beta: Tensor | None,
    visible: str,
    hidden: str,
) -> Tensor:
    """(N,) nats."""
    out = v.new_empty(v.shape[:1])
    v = v.contiguous()
    if v.shape[0] == 0:
        return out
    block_n, block_u, block_k = _BLOCKS[weight.element_size()]
    with on(weight):
        kernels.free_energy_kernel[(triton.cdiv(v.shape[0], block_n),)](
            v,
            weight,
            visible_bias.contiguous(),
            hidden_bias.contiguous(),
            _precision(log_variance),
            None if beta is None else beta.contiguous(),
            out,
            *v.shape,
            weight.shape[0],
            v.stride(0),
            weight.stride(1),
            weight.stride(0),
            SPIN_UNITS=hidden == "spin",
            BLOCK_N=block_n,
            BLOCK_U=block_u,
            BLOCK_K=block_k,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    return out


def _columns(
    x: Tensor,
    sample_weight: Tensor | None,
    centre: Tensor | None,
    total: Tensor,
    square: Tensor | None,
) -> None:
    if x.shape[1] == 0:
        return
    block_n, block_c = _COLUMNS
    with on(x):
        kernels.columns_kernel[(triton.cdiv(x.shape[1], block_c),)](
            x,
            sample_weight,
            centre,
            total,
            square,
            *x.shape,
            x.stride(0),
            BLOCK_N=block_n,
            BLOCK_C=block_c,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )


def _signed_weights(
    v: Tensor, sample_weight: Tensor | None, minus_v: Tensor | None, minus_weight: Tensor | None
) -> Tensor | None:
    """Weights of the rows, then minus those of the rows that are taken off; None for 1."""
    if minus_v is None:
        return sample_weight
    n = v.shape[0]
    counts = v.new_ones(n + minus_v.shape[0])
    if sample_weight is not None:
        counts[:n] = sample_weight
    counts[n:] = -1.0 if minus_weight is None else -minus_weight
    return counts


def rbm_statistics(
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    log_variance: Tensor | None,
    h_mean: Tensor | None,
    sample_weight: Tensor | None,
    minus_v: Tensor | None,
    minus_h: Tensor | None,
    minus_weight: Tensor | None,
    hidden: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sums over rows of ``-dE / d parameter``, hidden units at their means."""
    n, (j, units) = v.shape[0], weight.shape
    counts = _signed_weights(v, sample_weight, minus_v, minus_weight)
    precision, v = _precision(log_variance), v.contiguous()
    visible_bias, hidden_bias = visible_bias.contiguous(), hidden_bias.contiguous()
    counts = None if counts is None else counts.contiguous()
    means = weight.new_empty((n, j))
    if h_mean is None:
        _half(hidden, v, weight.T, hidden_bias, None, means, precision=precision)
    else:
        means.copy_(h_mean)
    h = means
    if minus_v is not None and minus_h is not None:
        v, h = torch.cat((v, minus_v)), torch.cat((means, minus_h))
    found, sum_v, sum_h = (weight.new_empty(size) for size in ((j, units), (units,), (j,)))
    square = None if precision is None else weight.new_empty(units)
    if j * units:
        block_n, block_v, block_j = _BLOCKS[weight.element_size()]
        with on(weight):
            kernels.sums_kernel[(triton.cdiv(j, block_j) * triton.cdiv(units, block_v),)](
                h,
                v,
                counts,
                precision,
                found,
                v.shape[0],
                units,
                j,
                v.stride(0),
                BLOCK_J=block_j,
                BLOCK_V=block_v,
                BLOCK_N=block_n,
                num_warps=_WARPS,
                enable_fp_fusion=True,
            )
    _columns(h, counts, None, sum_h, None)
    _columns(v, counts, None if precision is None else visible_bias, sum_v, square)
    if precision is None or square is None:
        return found, sum_v, sum_h, means, weight.new_empty(0)
    spread = 0.5 * precision * square - (weight * found).sum(0)
    return found, sum_v * precision, sum_h, means, spread
