"""Cached sampling of pixels on CPU tensors: addresses and sizes for ``evidens._C``."""

from __future__ import annotations

import torch
from torch import Tensor

from evidens._native import address, library
from evidens.reference.pixelcnn import LOGISTIC


def pixelcnn_sample(
    noise: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    taps: list[bool],
    contexts: list[Tensor | None],
    known: Tensor | None,
    values: Tensor | None,
    program: list[int],
    kind: int,
    channels: int,
    levels: int,
    groups: int,
    one_hot: bool,
    input_map: list[float],
    min_log_scale: float,
) -> Tensor:
    noise = noise.contiguous()
    n, draws, height, width = noise.shape
    x = noise.new_empty((n, channels, height, width), dtype=torch.int64)
    # Contiguous copies must outlive the call.
    weights = [w.contiguous() for w in weights]
    biases, contexts = (
        [t if t is None else t.contiguous() for t in some] for some in (biases, contexts)
    )
    known, values = (t if t is None else t.contiguous() for t in (known, values))
    nodes, first_tap = [], 0
    for i, (weight, bias, context) in enumerate(zip(weights, biases, contexts)):
        source, add, activation, strict, ahead = program[5 * i : 5 * i + 5]
        nodes.append(
            (
                weight.data_ptr() if weight.numel() else 0,
                address(bias),
                address(context),
                weight.shape[0],
                weight.shape[2],
                weight.shape[3],
                first_tap,
                source,
                add,
                activation,
                strict,
                ahead,
            )
        )
        first_tap += weight.shape[2] * weight.shape[3]
    outputs = weights[-1].shape[0]
    library.pixelcnn_sample(
        noise.dtype is torch.float64,
        n,
        channels,
        height,
        width,
        groups,
        levels,
        draws,
        outputs // (10 if channels == 3 else 3) if kind == LOGISTIC else 0,
        kind,
        one_hot,
        input_map[0],
        input_map[1],
        min_log_scale,
        nodes,
        bytes(taps).decode(),
        noise.data_ptr(),
        address(known),
        address(values),
        x.data_ptr(),
    )
    return x
