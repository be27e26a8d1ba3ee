"""The Gaussian mixture ops on CPU tensors: addresses and strides for ``evidens._C``."""

from __future__ import annotations

import torch
from torch import Tensor

from evidens._native import empty, library

# The tasks of csrc/gmm.h, in its order.
_COMPONENT_LOG_PROB, _LOG_PROB, _STATISTICS, _MOMENTS, _INPUT_GRADIENT = range(5)


def _run(task: int, code: int, x: Tensor, means: Tensor, *others: Tensor | None) -> None:
    """Calls the kernel.

    ``others``: log_weights, precisions, sample_weight, labels, responsibilities, then the results
    out, log_likelihood, weight, first, second; None for what the task does not have.
    """
    addresses, alive = [], [means := means.contiguous()]
    for t in others:
        if t is None:
            addresses.append(0)
            continue
        if not t.is_contiguous():
            alive.append(t := t.contiguous())
        addresses.append(t.data_ptr())
    log_weights, precisions, *rest = addresses
    n, d = x.shape
    row, column = x.stride()
    library.gmm(
        task,
        code,
        x.dtype is torch.float64,
        n,
        d,
        means.shape[0],
        x.data_ptr(),
        row,
        column,
        log_weights,
        means.data_ptr(),
        precisions,
        *rest,
    )


_NO_MOMENTS = (None, None, None, None)


def moment_outputs(x: Tensor, means: Tensor, code: int) -> tuple[Tensor, Tensor, Tensor]:
    k, d = means.shape
    shape = ((k, d, d), (d, d), (k, d), (k,))[code]
    new = means.new_empty
    return (
        new(k, dtype=torch.float64),
        new((k, d), dtype=torch.float64),
        new(shape, dtype=torch.float64),
    )


def component_log_prob(
    x: Tensor, log_weights: Tensor, means: Tensor, p: Tensor, code: int
) -> Tensor:
    out = empty(x, (x.shape[0], means.shape[0]))
    _run(_COMPONENT_LOG_PROB, code, x, means, log_weights, p, None, None, None, out, *_NO_MOMENTS)
    return out


def log_prob(x: Tensor, log_weights: Tensor, means: Tensor, p: Tensor, code: int) -> Tensor:
    out = x.new_empty((x.shape[0],))
    _run(_LOG_PROB, code, x, means, log_weights, p, None, None, None, out, *_NO_MOMENTS)
    return out


def statistics(
    x: Tensor,
    log_weights: Tensor,
    means: Tensor,
    p: Tensor,
    code: int,
    sample_weight: Tensor | None,
    labels: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    results = (x.new_empty((), dtype=torch.float64), *moment_outputs(x, means, code))
    given = (log_weights, p, sample_weight, labels, None)
    _run(_STATISTICS, code, x, means, *given, None, *results)
    return results


def moments(
    x: Tensor, responsibilities: Tensor, means: Tensor, code: int
) -> tuple[Tensor, Tensor, Tensor]:
    results = moment_outputs(x, means, code)
    _run(_MOMENTS, code, x, means, *(None,) * 4, responsibilities, None, None, *results)
    return results


def input_gradient(
    x: Tensor, responsibilities: Tensor, means: Tensor, p: Tensor, code: int
) -> Tensor:
    out = empty(x, x.shape)
    given = (None, p, None, None, responsibilities)
    _run(_INPUT_GRADIENT, code, x, means, *given, out, *_NO_MOMENTS)
    return out
