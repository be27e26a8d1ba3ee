"""The inputs that splines, couplings and training steps are timed on."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

BOUND = 3.0  # some points lie outside: the standard deviation of x is 1.5


def _normal(seed: int) -> functools.partial[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return functools.partial(torch.randn, generator=generator)


def spline_arguments(
    n: int, d: int, bins: int, dtype: str = "float32", spread: float = 1.0
) -> tuple[Tensor, ...]:
    """The points (N, D), raw widths and heights (N, D, M) and derivatives (N, D, M - 1)."""
    draw = functools.partial(_normal(30), dtype=getattr(torch, dtype))
    x, *raw = 1.5 * draw(n, d), draw(n, d, bins), draw(n, d, bins), draw(n, d, bins - 1)
    return x, *(spread * values for values in raw)


def affine_arguments(n: int, d: int, active: int, dtype: str = "float32") -> tuple[Tensor, ...]:
    """The points (N, D), raw scales and shifts (N, A)."""
    draw = functools.partial(_normal(31), dtype=getattr(torch, dtype))
    return draw(n, d), draw(n, active), draw(n, active)


def gradients_of_results(shape: tuple[int, ...], log_det: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What comes back from the loss: for y and for the log-determinants."""
    draw = _normal(32)
    return draw(shape), draw(log_det)


def correlated_rows(n: int, d: int) -> Tensor:
    """Standardized rows (N, D) with correlated features and heavier tails than a normal's."""
    draw = _normal(33)
    x = draw(n, d) @ (torch.eye(d) + 0.5 * draw(d, d) / d**0.5)
    x = x * (0.5 * draw(n, 1)).exp()
    return (x - x.mean(0)) / x.std(0)
