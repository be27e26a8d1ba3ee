"""The images and parameters that the logistic mixture is timed on."""

from __future__ import annotations

import torch
from torch import Tensor


def image_arguments(n: int, side: int, mixtures: int) -> tuple[Tensor, Tensor]:
    """8-bit levels (N, 3, H, W) and parameters (N, 10 M, H, W) of a network that has learned some.

    The means of every other term are near the image, the scales a few bins; a quarter of the
    levels are the first or the last.
    """
    g = torch.Generator().manual_seed(40)
    x = (torch.randn(n, 3, side, side, generator=g) * 110 + 127.5).round().clamp(0, 255)
    params = torch.randn(n, 10 * mixtures, side, side, generator=g)
    parts = params[:, mixtures:].view(n, 3, 3, mixtures, side, side)
    near = (x / 127.5 - 1)[:, :, None] + 0.1 * parts[:, :, 0, ::2]
    parts[:, :, 0, ::2] = near
    parts[:, :, 1] = parts[:, :, 1] * 0.5 - 3
    parts[:, :, 2] *= 0.1
    return x, params
