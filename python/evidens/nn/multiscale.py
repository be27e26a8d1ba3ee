"""Layers of multi-scale flows over images."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor, nn

from evidens.nn._shapes import check_features, no_logdet


class Squeeze(nn.Module):
    """Blocks of ``factor x factor`` pixels become channels.

    (N, C, H, W) becomes (N, C f^2, H / f, W / f); channel ``c f^2 + i f + j`` holds pixel (i, j) of
    every block of channel c.

    Args:
        factor: f, at least 2.

    Raises:
        ValueError: a factor that is no integer from 2 on; H or W is not a multiple of f.

    Source: Dinh et al., Density estimation using Real NVP (2017), section 3.6.

    Example:
        >>> import torch, evidens
        >>> y, _ = evidens.nn.Squeeze(2)(torch.arange(4.0).reshape(1, 1, 2, 2))
        >>> y.flatten().tolist(), tuple(y.shape)
        ([0.0, 1.0, 2.0, 3.0], (1, 4, 1, 1))
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if not isinstance(factor, numbers.Integral) or factor < 2:
            raise ValueError(f"Squeeze: expected an integer factor >= 2, got {factor}")
        self.factor: int = int(factor)

    def extra_repr(self) -> str:
        """What repr shows."""
        return f"{self.factor}"

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, logdet)`` for x (N, C, H, W); ``context`` is ignored and logdet is 0."""
        f = self.factor
        if x.ndim != 4 or x.shape[2] % f or x.shape[3] % f:
            raise ValueError(
                f"Squeeze: expected x of shape (N, C, H, W) with H and W multiples of {f}, got "
                f"{tuple(x.shape)}"
            )
        n, c, h, w = x.shape
        blocks = x.reshape(n, c, h // f, f, w // f, f).permute(0, 1, 3, 5, 2, 4)
        return blocks.reshape(n, c * f * f, h // f, w // f), no_logdet(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, logdet)`` for y (N, C f^2, H / f, W / f)."""
        if y.ndim != 4 or y.shape[1] % self.factor**2:
            raise ValueError(
                f"Squeeze: expected y of shape (N, C, H, W) with C a multiple of "
                f"{self.factor**2}, got {tuple(y.shape)}"
            )
        f, (n, c, h, w) = self.factor, y.shape
        blocks = y.reshape(n, c // f**2, f, f, h, w).permute(0, 1, 4, 2, 5, 3)
        return blocks.reshape(n, c // f**2, h * f, w * f), no_logdet(y)


class Split(nn.Module):
    """Half of the channels goes to the base as it is, the other half through more layers.

    ``y = [rest(x[:, :C/2]), x[:, C/2:]]``: the first half meets finer layers, the second is done.
    `rest` keeps the shape (a `Squeeze` inside it is undone at its end), so that the latent has the
    shape of x.

    Args:
        channels: C; an odd one leaves the larger half to ``rest``.
        rest: a layer for (N, C/2, *S) that keeps the shape.

    Raises:
        ValueError: ``rest`` changes the shape.

    Source: Dinh et al., Density estimation using Real NVP (2017), equation 14.

    Example:
        >>> import torch, evidens
        >>> from evidens.nn import Chain, Inverse, Invertible1x1Conv, Split, Squeeze
        >>> coarse = Chain(Squeeze(2), Invertible1x1Conv(8), Inverse(Squeeze(2)))
        >>> flow = Chain(Squeeze(2), Invertible1x1Conv(4), Split(4, coarse))
        >>> tuple(flow(torch.zeros(3, 1, 8, 8))[0].shape)
        (3, 4, 4, 4)
    """

    def __init__(self, channels: int, rest: nn.Module) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(f"Split: expected at least 2 channels, got {channels}")
        self.channels = channels
        self.rest = rest

    def extra_repr(self) -> str:
        """What repr shows."""
        return f"{self.channels}"

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, logdet)`` for x (N, C, *S)."""
        return self._run(self.rest, x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, logdet)`` for y (N, C, *S)."""
        return self._run(self.rest.inverse, y, context)

    def _run(self, rest: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        check_features(self, x, self.channels)
        kept = (self.channels + 1) // 2
        first, second = x[:, :kept], x[:, kept:]
        out, logdet = rest(first) if context is None else rest(first, context)
        if out.shape != first.shape:
            raise ValueError(
                f"Split: rest must keep the shape {tuple(first.shape)}, it gave {tuple(out.shape)}"
            )
        return torch.cat([out, second], 1), logdet
