"""Gibbs chains of a restricted Boltzmann machine as a PyTorch user writes them: the baseline."""

from __future__ import annotations

import torch
from torch import Tensor


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
