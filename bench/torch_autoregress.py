"""Sampling loops as a PyTorch user writes them, and the networks that they and ours run.

Masks are applied to the weights once; then the whole network runs for every feature or pixel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evidens.ops import PixelLayer


@dataclass
class Made:
    """Weights, biases and degrees of a network with sequential degrees, as nflows makes them."""

    weights: list[Tensor]
    biases: list[Tensor]
    degrees: list[Tensor]

    @property
    def masks(self) -> list[Tensor]:
        """Which weights live."""
        features = self.degrees[0].shape[0]
        masks, seen = [], self.degrees[0]
        for degree in self.degrees[1:]:
            masks.append(degree[:, None] >= seen)
            seen = degree
        last = self.degrees[0].repeat_interleave(self.weights[-1].shape[0] // features)
        return [*masks, last[:, None] > seen]

    @property
    def multiply_adds(self) -> int:
        """Of one pass over one row, dead weights left out."""
        return sum(int(mask.sum()) for mask in self.masks)


def made(features: int, parameters: int, hidden: Sequence[int], seed: int = 0) -> Made:
    """Random weights whose outputs are of size one."""
    g = torch.Generator().manual_seed(seed)
    degrees = [torch.arange(1, features + 1)]
    degrees += [torch.arange(h) % max(features - 1, 1) + min(1, features - 1) for h in hidden]
    sizes = [features, *hidden, features * parameters]
    weights = [
        torch.randn(o, i, generator=g) * (2 / i) ** 0.5 for i, o in itertools.pairwise(sizes)
    ]
    return Made(weights, [torch.zeros(o) for o in sizes[1:]], degrees)


def bernoulli_loop(net: Made, noise: Tensor) -> Tensor:
    """One full pass for every feature of a MADE with binary features."""
    weights = [torch.where(mask, w, 0.0) for mask, w in zip(net.masks, net.weights)]
    x = torch.zeros_like(noise)
    for d in range(noise.shape[1]):
        h = x
        for i, (weight, bias) in enumerate(zip(weights, net.biases)):
            h = F.linear(h, weight, bias)
            h = h if i + 1 == len(weights) else F.relu(h)
        x[:, d] = (noise[:, d] < torch.sigmoid(h[:, d])).to(x.dtype)
    return x


def pixelcnn(hidden: int, levels: int, blocks: int = 5, seed: int = 0) -> list[PixelLayer]:
    """7 x 7 A, so many 3 x 3 B, 1 x 1 to the levels; ReLU between."""
    g = torch.Generator().manual_seed(seed)

    def layer(outputs: int, inputs: int, size: int, **words: str) -> PixelLayer:
        scale = (2 / (inputs * size * size)) ** 0.5
        weight = torch.randn(outputs, inputs, size, size, generator=g) * scale
        return PixelLayer(weight, torch.zeros(outputs), **words)

    return [
        layer(hidden, 1, 7, mask="A", activation="relu"),
        *(layer(hidden, hidden, 3, activation="relu") for _ in range(blocks)),
        layer(levels, hidden, 1),
    ]


def live_taps(layer: PixelLayer) -> Tensor:
    """Taps (kh, kw) of mask A or B that live."""
    height, width = layer.weight.shape[2:]
    taps = torch.arange(height * width, device=layer.weight.device)
    live = taps < height * width // 2 + (layer.mask == "B")
    return live.view(height, width)


def pixel_multiply_adds(layers: Sequence[PixelLayer]) -> int:
    """Of one pixel of one image, dead taps left out."""
    return sum(
        layer.weight.shape[0] * layer.weight.shape[1] * int(live_taps(layer).sum())
        for layer in layers
    )


def pixel_loop(layers: Sequence[PixelLayer], noise: Tensor, levels: int) -> Tensor:
    """One full pass for every pixel; levels (N, 1, H, W) by the inverse distribution function."""
    weights = [torch.where(live_taps(layer), layer.weight, 0.0) for layer in layers]
    n, _, height, width = noise.shape
    x = noise.new_zeros((n, 1, height, width), dtype=torch.int64)
    for y in range(height):
        for column in range(width):
            h = x.to(noise.dtype) * (2 / (levels - 1)) - 1
            for i, (weight, layer) in enumerate(zip(weights, layers)):
                h = F.conv2d(h, weight, layer.bias, padding=weight.shape[2] // 2)
                h = h if i + 1 == len(weights) else F.relu(h)
            sums = h[:, :, y, column].softmax(1).cumsum(1)
            limit = noise[:, :, y, column] * sums[:, -1:]
            x[:, 0, y, column] = (sums <= limit).sum(1).clamp(max=levels - 1)
    return x
