"""Features on a circle: what couplings need beside circular splines."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def wrapped(angle: Tensor) -> Tensor:
    """The angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


class HalfTurn(nn.Module):
    """Turns some features by pi: a circular spline keeps -pi in place, the next layer need not.

    Args:
        circular: (D,) bool, the features that are angles.
    """

    circular: Tensor

    def __init__(self, circular: Tensor) -> None:
        super().__init__()
        self.register_buffer("circular", circular, persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, logdet)`` for x (N, D); logdet is 0."""
        return torch.where(self.circular, wrapped(x + math.pi), x), x.new_zeros(x.shape[0])

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, logdet)``: another half turn."""
        return self.forward(y)


class OnCircle(nn.Module):
    """Shows a conditioner the cosine and sine of angles, which do not jump at -pi.

    Args:
        net: the conditioner, with an input more for each angle.
        circular: (P,) bool, the passive features that are angles.
    """

    circular: Tensor

    def __init__(self, net: nn.Module, circular: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("circular", circular, persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """What ``net`` gives for the passive features x (N, P)."""
        shown = torch.where(self.circular, x.cos(), x)
        x = torch.cat([shown, x[:, self.circular].sin()], 1)
        result: Tensor = self.net(x) if context is None else self.net(x, context)
        return result
