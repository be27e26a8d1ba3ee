"""The M step of hidden Markov models, on the host in float64: addresses for ``evidens._C``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from evidens._native import library

__all__ = ["Normal", "Prior", "distributions", "distributions_call", "normal", "normal_call"]

# One number for all entries, or one for each.
Prior = float | Tensor

#: means, variances and inverse standard deviations: (K, D), the last two (K,) where spherical
Normal = tuple[Tensor, Tensor, Tensor]


def prior_of(value: float | np.ndarray, shape: tuple[int, ...]) -> Prior:
    """A prior that broadcasts to a shape, as the calls below take it."""
    if isinstance(value, float | int):
        return float(value)
    return torch.from_numpy(np.broadcast_to(value, shape).astype(np.float64))


def _given(prior: Prior) -> tuple[float, int]:
    return (0.0, prior.data_ptr()) if isinstance(prior, Tensor) else (prior, 0)


def distributions(counts: Tensor, prior: float | np.ndarray, old: Tensor) -> Tensor:
    """Distributions (..., K) of expected counts and a Dirichlet prior.

    What was 0 in ``old`` stays 0, and a row without counts stays as it was.
    """
    counts, old = counts.contiguous(), old.contiguous()
    new, each = torch.empty_like(old), prior_of(prior, old.shape)
    library.maximise_distributions(*distributions_call(counts, each, old, new))
    return new


def distributions_call(counts: Tensor, prior: Prior, old: Tensor, new: Tensor) -> tuple[Any, ...]:
    """What ``library.maximise_distributions`` takes for contiguous tensors."""
    k = old.shape[-1]
    rows = old.numel() // k
    return rows, k, counts.data_ptr(), _given(prior), old.data_ptr(), new.data_ptr()


def normal(
    moments: Normal, old: Normal, priors: tuple[Prior, Prior, Prior], *rest: Any
) -> tuple[Normal, Tensor]:
    """New parameters, and (K,) which states were not visited or kept their variances.

    Arguments as `normal_call`.
    """
    moments = tuple([t.contiguous() for t in moments])
    old = tuple([t.contiguous() for t in old])
    new: Normal = tuple([torch.empty_like(t) for t in old])
    kept = torch.empty(len(old[0]), dtype=torch.bool)
    library.maximise_normal(*normal_call(moments, old, priors, *rest, new, kept))
    return new, kept


def normal_call(
    moments: Normal,
    old: Normal,
    priors: tuple[Prior, Prior, Prior],
    variance_weight: float,
    learn: tuple[bool, bool],
    unvisited: float,
    least: float,
    new: Normal,
    kept: Tensor,
) -> tuple[Any, ...]:
    """What ``library.maximise_normal`` takes for contiguous tensors.

    Args:
        moments: weight (K,), first (K, D) and second moments about the old means; these are
            (K, D), or (K,) of spherical variances.
        old: the parameters before.
        priors: precision and mean of the normal prior of the means, and what the prior of the
            variances adds to the sums of squares, each of (K, D).
        variance_weight: what counts as frames of that, plus 1.
        learn: whether the means, and the variances, are learned.
        unvisited: a state of no more weight was not visited.
        least: a variance below it is not valid: its state keeps those it has.
        new: where the new parameters go.
        kept: (K,) bool, where it says which states were not visited or kept their variances.

    Source: Huang, Acero and Hon, Spoken Language Processing (2001), p. 443.
    """
    return (
        *old[0].shape,
        old[1].ndim == 1,
        *learn,
        *[t.data_ptr() for t in (*moments, *old)],
        *[_given(prior) for prior in priors],
        variance_weight,
        unvisited,
        least,
        *[t.data_ptr() for t in (*new, kept)],
    )
