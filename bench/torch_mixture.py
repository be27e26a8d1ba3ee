"""The mixture as a PyTorch user writes it: the baseline, not the oracle.

The products are those of scikit-learn (one matrix product per component and step), so nothing of
shape (N, K, D) is ever held; parameters and names are scikit-learn's too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Parameters(NamedTuple):
    """Mixture parameters; ``precisions_cholesky`` as in scikit-learn."""

    weights: Tensor  # (K,)
    means: Tensor  # (K, D)
    covariances: Tensor  # full (K, D, D), tied (D, D), diag (K, D)
    precisions_cholesky: Tensor


def component_log_prob(x: Tensor, p: Parameters, covariance_type: str) -> Tensor:
    """``log w_k + log N(x_n | k)``, shape (N, K)."""
    chol = p.precisions_cholesky
    if covariance_type == "full":
        square = x.new_empty(len(x), len(p.means))
        for k, (mean, c) in enumerate(zip(p.means, chol, strict=True)):
            square[:, k] = torch.addmm(-(mean @ c), x, c).square().sum(1)
        log_det = chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    elif covariance_type == "tied":
        y, m = x @ chol, p.means @ chol
        square = y.square().sum(1)[:, None] - 2 * (y @ m.T) + m.square().sum(1)
        log_det = chol.diagonal().log().sum()
    else:
        precision = chol.square()
        square = (
            x.square() @ precision.T
            - 2 * (x @ (p.means * precision).T)
            + (p.means.square() * precision).sum(1)
        )
        log_det = chol.log().sum(1)
    return p.weights.log() + log_det - 0.5 * (x.shape[1] * math.log(2 * math.pi) + square)


def log_prob(x: Tensor, p: Parameters, covariance_type: str) -> Tensor:
    """``log p(x_n)``, shape (N,)."""
    return torch.logsumexp(component_log_prob(x, p, covariance_type), dim=1)


def _maximise(x: Tensor, r: Tensor, covariance_type: str, reg_covar: float) -> tuple[Tensor, ...]:
    """Weights, means and covariances for responsibilities ``r`` (N, K)."""
    mass = r.sum(0) + 10 * torch.finfo(x.dtype).eps
    means = (r.T @ x) / mass[:, None]
    if covariance_type == "full":
        covariances = x.new_empty(len(means), x.shape[1], x.shape[1])
        for k, mean in enumerate(means):
            d = x - mean
            covariances[k] = (r[:, k, None] * d).T @ d / mass[k]
        covariances.diagonal(dim1=-2, dim2=-1).add_(reg_covar)
    elif covariance_type == "tied":
        covariances = (x.T @ x - (mass * means.T) @ means) / mass.sum()
        covariances.diagonal().add_(reg_covar)
    else:
        covariances = (r.T @ x.square()) / mass[:, None] - means.square() + reg_covar
    return mass / mass.sum(), means, covariances


def _precisions_cholesky(covariances: Tensor, covariance_type: str) -> Tensor:
    if covariance_type == "diag":
        return covariances.rsqrt()
    lower = torch.linalg.cholesky(covariances)
    eye = torch.eye(lower.shape[-1]).to(lower)
    return torch.linalg.solve_triangular(lower, eye, upper=False).mT


def em_step(x: Tensor, p: Parameters, covariance_type: str, reg_covar: float) -> Parameters:
    """One expectation and one maximisation step."""
    terms = component_log_prob(x, p, covariance_type)
    r = (terms - torch.logsumexp(terms, dim=1, keepdim=True)).exp()
    weights, means, covariances = _maximise(x, r, covariance_type, reg_covar)
    chol = _precisions_cholesky(covariances, covariance_type)
    return Parameters(weights, means, covariances, chol)


def fit(
    x: Tensor,
    start: Parameters,
    covariance_type: str,
    iterations: int,
    reg_covar: float = 1e-6,
    step=em_step,
) -> Parameters:
    """``iterations`` steps from ``start``; ``step`` may be a compiled `em_step`."""
    with torch.no_grad():
        for _ in range(iterations):
            start = step(x, start, covariance_type, reg_covar)
    return start
