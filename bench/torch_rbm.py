"""Gibbs chains of a restricted Boltzmann machine as a PyTorch user writes them, and their check."""

from __future__ import annotations

import torch
from torch import Tensor

from .harness import OURS, CheckFailed, Output


def step(v: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> Tensor:
    """One full step by `torch.bernoulli`."""
    h = torch.bernoulli(torch.sigmoid(torch.addmm(hidden_bias, v, weight.T)))
    return torch.bernoulli(torch.sigmoid(torch.addmm(visible_bias, h, weight)))


def step_rand(v: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> Tensor:
    """One full step by uniforms, which torch draws faster than it does Bernoulli numbers."""
    p = torch.sigmoid(torch.addmm(hidden_bias, v, weight.T))
    h = (torch.rand_like(p) < p).to(p.dtype)
    p = torch.sigmoid(torch.addmm(visible_bias, h, weight))
    return (torch.rand_like(p) < p).to(p.dtype)


def check_chains(outputs: dict[str, Output]) -> dict[str, float]:
    """Units that are on in a chain, mean over chains, in standard deviations from ours.

    Raises:
        CheckFailed: some chains are elsewhere.
    """
    counts = {name: next(iter(o.values())).double().sum(1) for name, o in outputs.items()}
    ours = counts[OURS]
    sd = float(ours.std()) * (2 / len(ours)) ** 0.5
    errors = {name: abs(float(c.mean() - ours.mean())) / sd for name, c in counts.items()}
    if not max(errors.values()) < 6:
        raise CheckFailed(f"chains are elsewhere: {errors}")
    return errors
