"""`Standardize`: from the user's numbers to those that the layers see, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from evidens.models.flow_circular import wrapped

# Numbers that share a location and a scale.
BY = ("features", "channels", "none")


class Standardize(nn.Module):
    """Location and scale of rows and contexts; integers are taken to the line by a logit first.

    Args:
        shape: of one row: (D,) or (C, H, W).
        by: ``"features"``: every number in a row has its own scale; ``"channels"``: every channel;
            ``"none"``: nothing is scaled.
        context: features of the context.
        levels: L of integers 0 .. L - 1, to which noise in [0, 1) has been added; None for others.
        logit: a of ``logit(a + (1 - 2 a) x / L)``; None for no logit.
        circular: (D,) bool, features that are angles: brought into [-pi, pi) and not scaled.

    Source: of the logit, Dinh et al., Density estimation using Real NVP (2017), section 4.1.
    """

    circular: Tensor | None
    location: Tensor
    scale: Tensor
    context_location: Tensor
    context_scale: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        *,
        by: str = "features",
        context: int = 0,
        levels: int | None = None,
        logit: float | None = None,
        circular: Tensor | None = None,
    ) -> None:
        super().__init__()
        if by not in BY:
            raise ValueError(f"standardize: expected one of {', '.join(BY)}, got {by!r}")
        self.by, self.levels, self.logit = by, levels, logit
        self.numbers = math.prod(shape)
        size = {
            "features": tuple(shape),
            "channels": (shape[0], *(1,) * (len(shape) - 1)),
            "none": (1,) * len(shape),
        }[by]
        some = circular is not None and bool(circular.any())
        self.register_buffer("circular", circular if some else None, persistent=False)
        self.register_buffer("location", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(size, dtype=torch.float64))
        self.register_buffer("context_location", torch.zeros(context, dtype=torch.float64))
        self.register_buffer("context_scale", torch.ones(context, dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Standardize:
        # These stay float64 whatever the network's dtype: data may lie far from 0.
        kept = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        """What repr shows."""
        return f"by={self.by!r}" + ("" if self.levels is None else f", levels={self.levels}")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (N, *shape) for the layers, float64, and the log-determinant, () or (N,)."""
        logdet = -self.scale.log().sum() * (self.numbers // self.scale.numel())
        x, change = self._to_line(x)
        return (x - self.location) / self.scale, logdet + change

    def inverse(self, z: Tensor) -> Tensor:
        """Rows as the user has them."""
        x = z * self.scale + self.location
        if self.circular is not None:
            x = torch.where(self.circular, wrapped(x), x)
        if self.levels is None or self.logit is None:
            return x
        return self.levels * (torch.sigmoid(x) - self.logit) / (1 - 2 * self.logit)

    def condition(self, context: Tensor) -> Tensor:
        """Contexts (N, K) for the conditioners, float64."""
        return (context - self.context_location) / self.context_scale

    def _to_line(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.circular is not None:
            x = torch.where(self.circular, wrapped(x), x)
        if self.levels is None or self.logit is None:
            return x, x.new_zeros(())
        a, numbers = self.logit, self.numbers
        share = a + (1 - 2 * a) * (x.double() / self.levels)
        up, down = share.log(), torch.log1p(-share)
        constant = numbers * math.log((1 - 2 * a) / self.levels)
        return up - down, constant - (up + down).flatten(1).sum(1)

    @torch.no_grad()
    def learn(self, x: Tensor, context: Tensor | None, weight: Tensor | None) -> None:
        """Location and scale from rows (N, *shape), contexts (N, K) and weights (N,) or None.

        Raises:
            ValueError: a column of X is constant.
        """
        if self.by == "none":
            return
        x, _ = self._to_line(x.double())
        shared = (0,) if self.by == "features" else (0, *range(2, x.ndim))
        constant = (x.amax(shared) == x.amin(shared)).flatten()
        if constant.any():
            raise ValueError(
                f"X: {self.by[:-1]} {int(constant.nonzero()[0])} is constant, which has no "
                "density, in the rows to learn from (those that are not held out): drop it"
            )
        weight = x.new_ones(len(x)) if weight is None else weight.double()
        location, scale = _moments(x, weight, shared)
        wrong = ~(location.isfinite() & scale.isfinite() & (scale > 0)).flatten()
        if wrong.any():
            raise ValueError(
                f"X: {self.by[:-1]} {int(wrong.nonzero()[0])} has a mean or a scale beyond "
                "float64: rescale it"
            )
        if self.circular is not None:
            location = location.where(~self.circular, 0.0)
            scale = scale.where(~self.circular, 1.0)
        self.location.copy_(location.view(self.location.shape))
        self.scale.copy_(scale.view(self.scale.shape))
        if context is not None:
            location, scale = _moments(context.double(), weight, (0,))
            self.context_location.copy_(location)
            self.context_scale.copy_(scale.where(scale > 0, 1.0))


def _moments(x: Tensor, weight: Tensor, shared: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation over the shared axes."""
    share = (weight / weight.sum()).view(-1, *(1,) * (x.ndim - 1))
    inner = tuple(shared[1:])
    average = (lambda t: t.mean(inner, keepdim=True)) if inner else (lambda t: t)
    mean = average((share * x).sum(0, keepdim=True))
    apart = x - mean
    # Squares of what is far from 1 would leave the range.
    size = apart.abs().amax(shared, keepdim=True)
    size = size.where(size > 0, 1.0)
    variance = average((share * (apart / size).square()).sum(0, keepdim=True))
    return mean[0], (variance.sqrt() * size)[0]
