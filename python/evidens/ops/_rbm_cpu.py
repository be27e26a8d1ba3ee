"""The RBM ops on CPU tensors: addresses and strides for ``evidens._C``."""

from __future__ import annotations

import torch
from torch import Tensor

from evidens._native import address, contiguous_rows, empty, library
from evidens.reference.rbm import HIDDEN, VISIBLE

__all__ = ["free_energy", "gibbs", "pcd", "statistics"]


def _machine(*tensors: Tensor | None) -> list[Tensor | None]:
    return [t if t is None else t.contiguous() for t in tensors]


def _precision(log_variance: Tensor | None) -> Tensor | None:
    return None if log_variance is None else torch.exp(-log_variance)


def gibbs(
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
    n, (j, v) = state.shape[0], weight.shape
    kept = n if means else 0
    out = [empty(weight, shape) for shape in ((n, v), (n, j), (kept, v), (kept, j))]
    # Contiguous copies must outlive the call.
    state = contiguous_rows(state)
    weight, visible_bias, hidden_bias, beta = _machine(weight, visible_bias, hidden_bias, beta)  # type: ignore[assignment]
    precision = _precision(log_variance)
    scale = None if log_variance is None else torch.exp(0.5 * log_variance)
    clamped, values = (t if t is None else contiguous_rows(t) for t in (clamped, values))
    library.rbm_gibbs(
        weight.dtype is torch.float64,
        n,
        v,
        j,
        VISIBLE.index(visible),
        HIDDEN.index(hidden),
        levels,
        weight.data_ptr(),
        visible_bias.data_ptr(),
        hidden_bias.data_ptr(),
        address(precision),
        address(scale),
        address(beta),
        state.data_ptr(),
        state.stride(0),
        start == "hidden",
        address(clamped),
        0 if clamped is None else clamped.stride(0),
        address(values),
        0 if values is None else values.stride(0),
        steps,
        step0,
        row0,
        seed & 0xFFFFFFFFFFFFFFFF,
        out[0].data_ptr(),
        out[1].data_ptr(),
        out[2].data_ptr() if means else 0,
        out[3].data_ptr() if means else 0,
    )
    return out[0], out[1], out[2], out[3]


def free_energy(
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    log_variance: Tensor | None,
    beta: Tensor | None,
    visible: str,
    hidden: str,
) -> Tensor:
    out = v.new_empty(v.shape[:1])
    v = contiguous_rows(v)
    weight, visible_bias, hidden_bias, beta = _machine(weight, visible_bias, hidden_bias, beta)  # type: ignore[assignment]
    precision = _precision(log_variance)
    library.rbm_free_energy(
        weight.dtype is torch.float64,
        v.shape[0],
        v.shape[1],
        weight.shape[0],
        HIDDEN.index(hidden),
        weight.data_ptr(),
        visible_bias.data_ptr(),
        hidden_bias.data_ptr(),
        address(precision),
        address(beta),
        v.data_ptr(),
        v.stride(0),
        out.data_ptr(),
    )
    return out


def statistics(
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
    n, (j, units) = v.shape[0], weight.shape
    found = empty(weight, (j, units))
    sum_v, sum_h = empty(weight, (units,)), empty(weight, (j,))
    square = None if log_variance is None else empty(weight, (units,))
    means = (
        empty(weight, (n, j))
        if h_mean is None
        else h_mean.clone(memory_format=torch.contiguous_format)
    )
    v = contiguous_rows(v)
    weight, visible_bias, hidden_bias, sample_weight, minus_weight = _machine(  # type: ignore[assignment]
        weight, visible_bias, hidden_bias, sample_weight, minus_weight
    )
    minus_v, minus_h = (t if t is None else contiguous_rows(t) for t in (minus_v, minus_h))
    precision = _precision(log_variance)
    library.rbm_statistics(
        weight.dtype is torch.float64,
        n,
        units,
        j,
        HIDDEN.index(hidden),
        weight.data_ptr(),
        hidden_bias.data_ptr(),
        address(precision),
        v.data_ptr(),
        v.stride(0),
        h_mean is not None,
        means.data_ptr(),
        j,
        address(sample_weight),
        0 if minus_v is None else minus_v.shape[0],
        address(minus_v),
        0 if minus_v is None else minus_v.stride(0),
        address(minus_h),
        0 if minus_h is None else minus_h.stride(0),
        address(minus_weight),
        0 if precision is None else visible_bias.data_ptr(),
        found.data_ptr(),
        sum_v.data_ptr(),
        sum_h.data_ptr(),
        address(square),
    )
    return _finished(found, sum_v, sum_h, means, weight, precision, square)


def pcd(
    v: Tensor,
    h: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    log_variance: Tensor | None,
    sample_weight: Tensor | None,
    minus_weight: Tensor | None,
    visible: str,
    hidden: str,
    levels: int,
    steps: int,
    seed: int,
    row0: int,
    step0: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    n, m, (j, units) = v.shape[0], h.shape[0], weight.shape
    found, means, chains = empty(weight, (j, units)), empty(weight, (n, j)), empty(weight, (m, j))
    sum_v, sum_h = empty(weight, (units,)), empty(weight, (j,))
    square = None if log_variance is None else empty(weight, (units,))
    v, h = contiguous_rows(v), contiguous_rows(h)
    weight, visible_bias, hidden_bias, sample_weight, minus_weight = _machine(  # type: ignore[assignment]
        weight, visible_bias, hidden_bias, sample_weight, minus_weight
    )
    precision = _precision(log_variance)
    scale = None if log_variance is None else torch.exp(0.5 * log_variance)
    library.rbm_pcd(
        weight.dtype is torch.float64,
        n,
        m,
        units,
        j,
        VISIBLE.index(visible),
        HIDDEN.index(hidden),
        levels,
        weight.data_ptr(),
        visible_bias.data_ptr(),
        hidden_bias.data_ptr(),
        address(precision),
        address(scale),
        v.data_ptr(),
        v.stride(0),
        h.data_ptr(),
        h.stride(0),
        address(sample_weight),
        address(minus_weight),
        steps,
        step0,
        row0,
        seed & 0xFFFFFFFFFFFFFFFF,
        chains.data_ptr(),
        means.data_ptr(),
        found.data_ptr(),
        sum_v.data_ptr(),
        sum_h.data_ptr(),
        address(square),
    )
    return *_finished(found, sum_v, sum_h, means, weight, precision, square), chains


def _finished(
    found: Tensor,
    sum_v: Tensor,
    sum_h: Tensor,
    means: Tensor,
    weight: Tensor,
    precision: Tensor | None,
    square: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Statistics of the parameters from the sums over rows."""
    if precision is None or square is None:
        return found, sum_v, sum_h, means, weight.new_empty(0)
    found *= precision
    spread = 0.5 * precision * square - (weight * found).sum(0)
    return found, sum_v * precision, sum_h, means, spread
