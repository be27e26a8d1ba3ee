"""Masked networks for the tests of the sampling ops."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evidens import ops

DTYPES = (torch.float32, torch.float64)
KINDS = ("affine", "gaussian", "bernoulli", "categorical", "mixture", "spline")
PARAMETERS = {
    "affine": 2,
    "gaussian": 2,
    "bernoulli": 1,
    "categorical": 5,
    "mixture": 9,
    "spline": 11,
}


@dataclass
class Network:
    """The arguments of one call."""

    noise: Tensor
    weights: list[Tensor]
    biases: list[Tensor | None]
    degrees: list[Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    def sample(self, **changes: Any) -> tuple[Tensor, Tensor]:
        """x and logdet (zeros where the kind has none)."""
        found = ops.made_sample(
            changes.pop("noise", self.noise),
            self.weights,
            self.biases,
            self.degrees,
            **{**self.options, **changes},
        )
        return found if isinstance(found, tuple) else (found, found.new_zeros(found.shape[0]))


def network(
    kind: str,
    rows: int,
    features: int,
    hidden: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    *,
    seed: int = 0,
    shared_degrees: bool = False,
    one_hot: bool = False,
    gain: float = 1.0,
    **options: Any,
) -> Network:
    """Degrees in random order, with units that see nothing, and dead weights that are NaN."""
    g = torch.Generator().manual_seed(seed)
    p = PARAMETERS[kind]
    if shared_degrees:
        order = torch.randint(0, max(features // 2, 1), (features,), generator=g)
    else:
        order = torch.randperm(features, generator=g) * 2 - 3  # gaps, negative ones
    low, high = (int(order.min()) - 1, int(order.max()) + 1) if features else (0, 1)
    degrees = [order]
    degrees += [torch.randint(low, high + 1, (h,), generator=g) for h in hidden]
    width = 1
    if one_hot:
        width = options["one_hot"] = 2 if kind == "bernoulli" else p
    sizes = [features * width, *hidden, features * p]
    seen = order.repeat_interleave(width)
    weights, biases = [], []
    for i, (below, units) in enumerate(itertools.pairwise(sizes)):
        last = i + 2 == len(sizes)
        degree = order.repeat_interleave(p) if last else degrees[i + 1]
        alive = degree[:, None] > seen if last else degree[:, None] >= seen
        w = torch.randn(units, below, generator=g, dtype=dtype) * gain / max(below, 1) ** 0.5
        weights.append(torch.where(alive, w, torch.nan))
        biases.append(torch.randn(units, generator=g, dtype=dtype) * 0.3)
        seen = degree
    if kind == "spline":
        options.setdefault("spline", {"bins": 4, "bound": 3.0})
    noise = ops.made_noise(kind, rows, features, seed=seed, dtype=dtype)
    return Network(noise, weights, biases, degrees, {"kind": kind, **options})
