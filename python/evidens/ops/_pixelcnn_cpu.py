"""Cached sampling of pixels on CPU tensors: addresses and sizes for ``evidens._C``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evidens._native import address, library
from evidens.reference.pixelcnn import LOGISTIC, last_channels


def _sampler(
    x: Tensor,
    given: Tensor | None,
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
) -> tuple[Any, tuple[Any, ...]]:
    """The compiled sampler, and what must live as long as it does."""
    noise = noise.contiguous()
    n, draws, height, width = noise.shape
    # Contiguous copies must outlive the sampler.
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
    sampler = library.PixelSampler(
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
        address(given),
    )
    return sampler, (noise, weights, biases, contexts, known, values)


def pixelcnn_sample(noise: Tensor, *rest: Any) -> Tensor:
    x = noise.new_empty((noise.shape[0], rest[8], *noise.shape[2:]), dtype=torch.int64)
    sampler, _kept = _sampler(x, None, noise, *rest)
    sampler.draw()
    return x


class PixelSteps:
    """A draw that goes pixel by pixel."""

    def __init__(self, x: Tensor, noise: Tensor, weights: list[Tensor], *rest: Any) -> None:
        self.x, self.known, self.values = x, *rest[3:5]
        outputs = last_channels(weights, rest[5])
        self.parameters = noise.new_full((noise.shape[0], outputs), torch.nan)
        self._sampler, self._kept = _sampler(x, self.parameters, noise, weights, *rest)

    def step(self) -> None:
        self._sampler.step()

    def copy(self) -> PixelSteps:
        other = object.__new__(PixelSteps)
        other.__dict__ = dict(self.__dict__)
        own = ("known", "values", "x", "parameters")
        for name in own:
            setattr(other, name, getattr(self, name).clone())
        other._sampler = self._sampler.copy(*(getattr(other, name).data_ptr() for name in own))
        return other
