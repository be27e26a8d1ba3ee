"""The M step of hidden Markov models, on the host in float64: addresses for ``evidens._C``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from evidens._native import library

__all__ = ["Prior", "distributions", "normal"]

# One number for all entries, or an array that broadcasts to them.
Prior = float | np.ndarray


def _each(prior: Prior, like: Tensor) -> Tensor | None:
    """A prior entry by entry, None where it is one number."""
    if isinstance(prior, float | int):
        return None
    return torch.from_numpy(np.broadcast_to(prior, like.shape).astype(np.float64))


def _given(prior: Prior, each: Tensor | None) -> tuple[float, int]:
    return (float(prior), 0) if each is None else (0.0, each.data_ptr())


def distributions(counts: Tensor, prior: Prior, old: Tensor) -> Tensor:
    """Distributions (..., K) of expected counts and a Dirichlet prior.

    What was 0 in ``old`` stays 0, and a row without counts stays as it was.
    """
    counts, old = counts.contiguous(), old.contiguous()
    new, each = torch.empty_like(old), _each(prior, old)
    k = old.shape[-1]
    library.maximise_distributions(
        old.numel() // k,
        k,
        counts.data_ptr(),
        _given(prior, each),
        old.data_ptr(),
        new.data_ptr(),
    )
    return new


def normal(
    moments: tuple[Tensor, Tensor, Tensor],
    old: tuple[Tensor, Tensor, Tensor],
    *,
    mean_weight: Prior,
    mean: Prior,
    variance: Prior,
    variance_weight: float,
    learn: tuple[bool, bool],
    unvisited: float,
    least: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, variances and inverse standard deviations, and which states kept some of theirs.

    Args:
        moments: weight (K,), first (K, D) and second moments about the old means; these are
            (K, D), or (K,) of spherical variances.
        old: means (K, D), variances and inverse standard deviations (K, D) or (K,).
        mean_weight, mean: precision and mean of the normal prior of the means, of (K, D).
        variance: what the prior adds to the sums of squares, of (K, D).
        variance_weight: what counts as frames of that, plus 1.
        learn: whether the means, and the variances, are learned.
        unvisited: a state of no more weight was not visited.
        least: a variance below it is not valid: its state keeps those it has.

    Source: Huang, Acero and Hon, Spoken Language Processing (2001), p. 443.
    """
    weight, first, second = (t.contiguous() for t in moments)
    means, variances, precisions = (t.contiguous() for t in old)
    new = torch.empty_like(means), torch.empty_like(variances), torch.empty_like(variances)
    kept = torch.empty(len(means), dtype=torch.bool)
    priors = mean_weight, mean, variance
    each = [_each(prior, means) for prior in priors]
    library.maximise_normal(
        *means.shape,
        variances.ndim == 1,
        *learn,
        weight.data_ptr(),
        first.data_ptr(),
        second.data_ptr(),
        means.data_ptr(),
        variances.data_ptr(),
        precisions.data_ptr(),
        *(_given(prior, own) for prior, own in zip(priors, each)),
        variance_weight,
        unvisited,
        least,
        *(t.data_ptr() for t in new),
        kept.data_ptr(),
    )
    return *new, kept
