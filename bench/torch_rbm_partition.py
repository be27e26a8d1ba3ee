"""Partition functions as one writes them in torch and NumPy."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def bernoulli(p: Tensor) -> Tensor:
    """States as one draws them."""
    return torch.bernoulli(p)


def by_uniforms(p: Tensor) -> Tensor:
    """States by uniforms, which torch draws faster."""
    return (torch.rand_like(p) < p).to(p.dtype)


def _rung(
    v: Tensor,
    weight: Tensor,
    b: Tensor,
    c: Tensor,
    before: Tensor,
    after: Tensor,
    draw: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """What a rung gains, and the next states: the hidden inputs serve both free energies."""
    x = F.linear(v, weight, c)
    gain = (F.softplus(after * x) - F.softplus(before * x)).sum(1)
    h = draw(torch.sigmoid(after * x))
    return gain, draw(torch.sigmoid(b + after * (h @ weight)))


def ais(
    weight: Tensor,
    b: Tensor,
    c: Tensor,
    chains: int,
    rungs: int,
    draw: Callable[[Tensor], Tensor],
    rung: Callable = _rung,
) -> Tensor:
    """Log-weights (N,) with the visible bias as that of the base model, two products a rung."""
    betas = torch.linspace(0, 1, rungs + 1, dtype=torch.float64).to(b.dtype).unbind()
    v = draw(torch.sigmoid(b).expand(chains, -1))
    log_weights = torch.zeros(chains, dtype=torch.float64)
    for before, after in itertools.pairwise(betas):
        gain, v = rung(v, weight, b, c, before, after, draw)
        log_weights += gain
    return log_weights + (F.softplus(b.double()).sum() + len(c) * np.log(2))


@functools.cache
def compiled_rung() -> Callable:
    """A rung by torch.compile."""
    return torch.compile(_rung, fullgraph=True)


def enumerated(weight: np.ndarray, b: np.ndarray, c: np.ndarray, bits: int = 12) -> float:
    """The log Z by blocks of hidden states, in NumPy."""
    units = len(c)
    low = (np.arange(1 << bits)[:, None] >> np.arange(bits) & 1).astype(b.dtype)
    inputs, own = low @ weight[:bits], low @ c[:bits]
    total = -np.inf
    for high in range(1 << (units - bits)):
        on = (high >> np.arange(units - bits) & 1).astype(b.dtype)
        terms = np.logaddexp(0, inputs + (b + on @ weight[bits:])).sum(1) + own + on @ c[bits:]
        most = max(total, terms.max())
        total = most + np.log(np.exp(total - most) + np.exp(terms - most).sum())
    return float(total)
