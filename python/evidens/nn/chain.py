"""Layers one after another, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from evidens.nn._shapes import no_logdet


class Chain(nn.Module):
    """Invertible layers, applied in order; the log-determinants are added.

    Args:
        *layers: modules with ``forward(x, context)`` and ``inverse(y, context)``, each giving the
            result and its log-determinant (N,).  All get the same context.

    Raises:
        TypeError: something without ``inverse``.

    Example:
        >>> import torch, evidens
        >>> flow = evidens.nn.Chain(evidens.nn.ActNorm(2), evidens.nn.InvertibleLinear(2)).eval()
        >>> y, logdet = flow(torch.ones(3, 2))
        >>> x, back = flow.inverse(y)
        >>> x.tolist(), (logdet + back).tolist()
        ([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], [0.0, 0.0, 0.0])
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        for layer in layers:
            if not isinstance(layer, nn.Module) or not callable(getattr(layer, "inverse", None)):
                raise TypeError(
                    "Chain: expected modules with a method inverse(y, context), got "
                    f"{type(layer).__name__}"
                )
        self.layers = nn.ModuleList(layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.layers)

    def __getitem__(self, index: int) -> nn.Module:
        return self.layers[index]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, logdet)``: x (N, D, *S) through all layers; logdet (N,), nats."""
        return self._run([layer for layer in self.layers], x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, logdet)``: back through all layers; logdet (N,) of this direction, nats."""
        return self._run([layer.inverse for layer in reversed(self.layers)], y, context)

    def _run(self, steps: list[Any], x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total: Tensor | None = None
        for step in steps:
            x, logdet = step(x) if context is None else step(x, context)
            total = logdet if total is None else total + logdet
        return x, no_logdet(x) if total is None else total


class Inverse(nn.Module):
    """A layer with its two directions swapped.

    Args:
        layer: a module with ``forward`` and ``inverse``.

    Example:
        >>> import torch, evidens
        >>> unsqueeze = evidens.nn.Inverse(evidens.nn.Squeeze(2))
        >>> tuple(unsqueeze(torch.zeros(1, 4, 3, 3))[0].shape)
        (1, 1, 6, 6)
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``layer.inverse``."""
        inverse: Any = self.layer.inverse
        return inverse(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``layer.forward``."""
        return self.layer(y, context)
