"""`ActNorm`: a scale and a shift per feature that start from the first batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evidens import ops
from evidens.nn._shapes import check_features


class ActNorm(nn.Module):
    """``y = x exp(log_scale) + shift`` with parameters per feature or channel.

    The first batch that comes in training mode sets the parameters so that its features leave with
    mean 0 and standard deviation 1 (a constant feature keeps its scale); before that the layer is
    the identity.  The buffer ``initialized`` says which it is and travels with the state dict.

    Args:
        features: D or C, the size of axis 1.

    Source: Kingma and Dhariwal, Glow (2018), section 3.1.

    Example:
        >>> import torch, evidens
        >>> layer = evidens.nn.ActNorm(1)
        >>> y, logdet = layer(torch.tensor([[10.0], [30.0]]))
        >>> [[round(v, 3) for v in t.flatten().tolist()] for t in (y, logdet)]
        [[-1.0, 1.0], [-2.303, -2.303]]
    """

    initialized: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.register_buffer("initialized", torch.tensor(False))
        # The buffer once more, where torch.compile can branch on it.
        self._ready = False

    def extra_repr(self) -> str:
        """What repr shows."""
        return f"{self.features}"

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, logdet)`` for x (N, D, *S); ``context`` is ignored.

        Raises:
            ValueError: another number of features, or a first batch that is not finite.
        """
        check_features(self, x, self.features)
        if self.training and not self._ready:
            self._initialize(x.detach())
        return ops.actnorm(x, self.log_scale, self.shift)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, logdet)`` for y (N, D, *S)."""
        check_features(self, y, self.features)
        return ops.actnorm(y, self.log_scale, self.shift, inverse=True)

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        if len(x) == 0:
            return
        columns = x.double().movedim(1, 0).flatten(1)
        std, mean = torch.std_mean(columns, 1, correction=0)
        if not (std.isfinite() & mean.isfinite()).all():
            raise ValueError("ActNorm: the first batch sets the scales, and x is not finite")
        scale = 1 / std.where(std > 1e-6 * mean.abs().clamp(min=1e-6), 1)
        self.log_scale.copy_(scale.log())
        self.shift.copy_(-mean * scale)
        self.initialized.fill_(True)
        self._ready = True

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._ready = bool(self.initialized)
