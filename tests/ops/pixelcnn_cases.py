"""Networks of masked convolutions for the tests of `pixelcnn_sample`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evidens import ops
from evidens.ops import PixelLayer

DTYPES = (torch.float32, torch.float64)


@dataclass
class Pixels:
    """The arguments of one call."""

    noise: Tensor
    layers: list[PixelLayer]
    options: dict[str, Any] = field(default_factory=dict)

    def sample(self, **changes: Any) -> Tensor:
        noise = changes.pop("noise", self.noise)
        layers = changes.pop("layers", self.layers)
        return ops.pixelcnn_sample(noise, layers, **{**self.options, **changes})


class Weights:
    """Random weights of a generator, dead ones included."""

    def __init__(self, seed: int, dtype: torch.dtype, gain: float = 1.5) -> None:
        self.generator, self.dtype, self.gain = torch.Generator().manual_seed(seed), dtype, gain

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=self.dtype)

    def __call__(self, outputs: int, inputs: int, height: int, width: int = 0, **words: Any):
        width = width or height
        scale = self.gain * (2 / (inputs * height * width)) ** 0.5
        weight = self.normal(outputs, inputs, height, width) * scale
        return PixelLayer(weight, self.normal(outputs) * 0.5, **words)


def outputs_of(kind: str, channels: int, levels: int, mixtures: int = 2) -> int:
    if kind == "logistic":
        return mixtures * (10 if channels == 3 else 3)
    return channels * (levels if kind == "categorical" else 1)


def plain(w: Weights, inputs: int, outputs: int, hidden: int, activation: str = "relu"):
    """7 x 7 A, 3 x 3 B, 1 x 1."""
    return [
        w(hidden, inputs, 7, mask="A", activation=activation),
        w(hidden, hidden, 3, activation=activation),
        w(outputs, hidden, 1),
    ]


def residual(w: Weights, inputs: int, outputs: int, hidden: int):
    """A residual block with activations before its convolutions."""
    half = hidden // 2
    return [
        w(hidden, inputs, 5, mask="A"),
        PixelLayer(None, activation="elu"),
        w(half, hidden, 1, activation="relu"),
        w(half, half, 3, activation="relu"),
        w(hidden, half, 1, add=0),
        PixelLayer(None, activation="silu"),
        w(outputs, hidden, 1),
    ]


def gated(w: Weights, inputs: int, outputs: int, hidden: int):
    """Two gated layers with a vertical and a horizontal stack."""
    return [
        w(2 * hidden, inputs, 5, mask="above", source=-1),  # 0: vertical
        w(2 * hidden, 2 * hidden, 1, mask="rows", source=0),
        w(2 * hidden, inputs, 1, 5, mask="A", source=-1, add=1, activation="gate"),
        w(hidden, hidden, 1),  # 3: horizontal
        PixelLayer(None, source=0, activation="gate"),  # 4
        w(2 * hidden, hidden, 3, mask="rows", source=4),
        w(2 * hidden, 2 * hidden, 1, mask="rows", source=5),
        w(2 * hidden, hidden, 1, 3, source=3, add=6, activation="gate"),
        w(hidden, hidden, 1, add=3, activation="relu"),
        w(outputs, hidden, 1),
    ]


NETWORKS = {"plain": plain, "residual": residual, "gated": gated}


def pixels(
    kind: str,
    network: str = "plain",
    size: tuple[int, int] = (5, 4),
    images: int = 3,
    channels: int = 1,
    dtype: torch.dtype = torch.float64,
    *,
    hidden: int = 12,
    levels: int = 5,
    seed: int = 0,
    **options: Any,
) -> Pixels:
    levels = 2 if kind == "bernoulli" else levels
    inputs = channels * (levels if options.get("one_hot") else 1)
    w = Weights(seed, dtype)
    layers = NETWORKS[network](w, inputs, outputs_of(kind, channels, levels), hidden)
    noise = ops.pixelcnn_noise(kind, images, channels, *size, seed=seed, dtype=dtype)
    options.setdefault("input_map", (2 / max(levels - 1, 1), -1.0))
    return Pixels(noise, layers, {"kind": kind, "levels": levels, **options})
