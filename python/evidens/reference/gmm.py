"""Gaussian mixture: log-densities and the sufficient statistics of one EM step, in plain torch.

Shape letters: ``N`` rows, ``D`` features, ``K`` components.  All densities are in nats.
The covariance types are scikit-learn's, and so is the parameter: ``precisions_cholesky`` ``P``
with ``P P^T`` the inverse covariance and ``P`` upper triangular, of shape

=========== =========
full        (K, D, D)
tied        (D, D)
diag        (K, D)
spherical   (K,)
=========== =========

Source: Bishop, Pattern Recognition and Machine Learning, sections 9.2 and 2.3.9.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")


def _whitened(x: Tensor, means: Tensor, precisions_cholesky: Tensor, covariance_type: str):
    """Whitened residuals (N, K, D) and the log-determinant of each P (K,) or ()."""
    residual = x[:, None, :] - means
    p = precisions_cholesky
    if covariance_type == "full":
        # Only the upper triangle is a parameter: what stands below the diagonal is never read.
        y = torch.einsum("nki,kij->nkj", residual, p.triu())
        return y, p.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    if covariance_type == "tied":
        return residual @ p.triu(), p.diagonal().log().sum()
    if covariance_type == "diag":
        return residual * p, p.log().sum(-1)
    if covariance_type == "spherical":
        return residual * p[:, None], p.log() * x.shape[1]
    raise ValueError(f"covariance_type must be one of {COVARIANCE_TYPES}, got {covariance_type!r}")


def gmm_component_log_prob(
    x: Tensor, log_weights: Tensor, means: Tensor, precisions_cholesky: Tensor, covariance_type: str
) -> Tensor:
    """``log w_k + log N(x_n | mean_k, cov_k)``, shape (N, K)."""
    # A row infinitely far away is impossible; its products with zeros would be NaN.
    impossible = (x.isinf().any(1) & ~x.isnan().any(1))[:, None]
    x = torch.where(impossible, 0.0, x)
    y, log_det = _whitened(x, means, precisions_cholesky, covariance_type)
    constant = log_weights - 0.5 * x.shape[1] * math.log(2 * math.pi) + log_det
    return torch.where(impossible, -math.inf, constant - 0.5 * (y * y).sum(-1))


def gmm_log_prob(
    x: Tensor, log_weights: Tensor, means: Tensor, precisions_cholesky: Tensor, covariance_type: str
) -> Tensor:
    """``log sum_k w_k N(x_n | mean_k, cov_k)``, shape (N,); -inf where every term is."""
    terms = gmm_component_log_prob(x, log_weights, means, precisions_cholesky, covariance_type)
    # Where every term is -inf, logsumexp has a NaN gradient; here it is zero.
    impossible = torch.isneginf(terms).all(1)
    total = torch.logsumexp(torch.where(impossible[:, None], 0.0, terms), dim=1)
    return torch.where(impossible, -math.inf, total)


def gmm_moments(
    x: Tensor, responsibilities: Tensor, means: Tensor, covariance_type: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted moments of the rows about ``means``, in float64, for given weights ``r`` (N, K).

    Returns ``(weight, first, second)`` with ``d_nk = x_n - mean_k``:
    ``weight_k = sum_n r_nk`` (K,); ``first_k = sum_n r_nk d_nk`` (K, D); ``second`` is
    ``sum_n r_nk d_nk d_nk^T`` (K, D, D) for full, summed over ``k`` (D, D) for tied, its diagonal
    (K, D) for diag and the mean of that diagonal (K,) for spherical.
    """
    r = responsibilities.double()
    d = x.double()[:, None, :] - means.double()
    rd = r[:, :, None] * d
    # A row without weight in a component does not enter it, even where it is infinite.
    rd, d = torch.where(r[:, :, None] == 0, 0.0, rd), torch.where(r[:, :, None] == 0, 0.0, d)
    if covariance_type == "full":
        second = torch.einsum("nki,nkj->kij", rd, d)
    elif covariance_type == "tied":
        second = torch.einsum("nki,nkj->ij", rd, d)
    elif covariance_type == "diag":
        second = (rd * d).sum(0)
    elif covariance_type == "spherical":
        second = (rd * d).sum(0).mean(-1)
    else:
        raise ValueError(
            f"covariance_type must be one of {COVARIANCE_TYPES}, got {covariance_type!r}"
        )
    return r.sum(0), rd.sum(0), second


def gmm_statistics(
    x: Tensor,
    log_weights: Tensor,
    means: Tensor,
    precisions_cholesky: Tensor,
    covariance_type: str,
    sample_weight: Tensor | None = None,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E step: ``(log_likelihood, weight, first, second)``, all float64.

    The responsibilities are the posteriors of the components times ``sample_weight`` (N,).
    ``labels`` (N,) int64 pins rows to a component (-1: free); such a row contributes
    ``log w_l N(x | l)`` to the log-likelihood.  A row that is impossible under every component
    has no responsibilities and contributes -inf.  A row of weight 0 contributes nothing.
    The moments are those of `gmm_moments`, about ``means``.
    """
    terms = gmm_component_log_prob(x, log_weights, means, precisions_cholesky, covariance_type)
    log_prob = torch.logsumexp(terms, dim=1)
    possible = ~torch.isneginf(log_prob)
    r = torch.where(possible[:, None], (terms - log_prob[:, None]).exp(), 0.0)
    if labels is not None:
        pinned = labels >= 0
        index = labels.clamp(min=0)[:, None]
        one_hot = torch.zeros_like(r).scatter_(1, index, 1.0)
        r = torch.where(pinned[:, None], one_hot, r)
        log_prob = torch.where(pinned, terms.gather(1, index)[:, 0], log_prob)
    log_prob = log_prob.double()
    if sample_weight is not None:
        absent = sample_weight == 0  # such a row may even be NaN
        r = torch.where(absent[:, None], 0.0, r * sample_weight[:, None])
        log_prob = torch.where(absent, 0.0, log_prob * sample_weight)
    return log_prob.sum(), *gmm_moments(x, r, means, covariance_type)


def gmm_input_gradient(
    x: Tensor,
    responsibilities: Tensor,
    means: Tensor,
    precisions_cholesky: Tensor,
    covariance_type: str,
) -> Tensor:
    """``sum_k r_nk d/dx_n log N(x_n | mean_k, cov_k)``, shape (N, D), for given ``r`` (N, K).

    It is the gradient of ``gmm_component_log_prob`` in ``x`` for the cotangent ``r``, and that of
    ``gmm_log_prob`` where ``r`` is the cotangent times the posteriors.
    """
    r = responsibilities
    x = torch.where((r == 0).all(1, keepdim=True), 0.0, x)  # may be infinite
    y, _ = _whitened(x, means, precisions_cholesky, covariance_type)
    p = precisions_cholesky
    if covariance_type == "full":
        return -torch.einsum("nk,nkj,kij->ni", r, y, p.triu())
    if covariance_type == "tied":
        return -torch.einsum("nk,nkj->nj", r, y) @ p.triu().T
    if covariance_type == "diag":
        return -torch.einsum("nk,nkj,kj->nj", r, y, p)
    return -torch.einsum("nk,nkj,k->nj", r, y, p)
