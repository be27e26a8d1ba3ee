"""The M step of hidden Markov models, on the host in float64: addresses for ``evidens._C``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evidens._native import library

__all__ = [
    "Normal",
    "Prior",
    "Settings",
    "distributions",
    "distributions_call",
    "normal",
    "normal_call",
    "prior_of",
]

# One number for all entries, or one for each.
Prior = float | Tensor

#: means, variances and inverse standard deviations: (K, D), the last two (K,) where spherical
Normal = tuple[Tensor, Tensor, Tensor]


def prior_of(value: float | np.ndarray, shape: tuple[int, ...]) -> Prior:
    """A prior that broadcasts to a shape, as the calls below take it."""
    if isinstance(value, float | int):
        return float(value)
    return torch.from_numpy(np.broadcast_to(value, shape).astype(np.float64, order="C"))


def _given(prior: Prior) -> tuple[float, int]:
    return (0.0, prior.data_ptr()) if isinstance(prior, Tensor) else (prior, 0)


def distributions(counts: Tensor, prior: Prior, old: Tensor) -> Tensor:
    """Distributions (..., K) of expected counts and a Dirichlet prior.

    What was 0 in ``old`` stays 0, and a row without counts stays as it was.
    """
    counts, old = counts.contiguous(), old.contiguous()
    new = torch.empty_like(old)
    library.maximise_distributions(*distributions_call(counts, prior, old, new))
    return new


def distributions_call(counts: Tensor, prior: Prior, old: Tensor, new: Tensor) -> tuple[Any, ...]:
    """What ``library.maximise_distributions`` takes for contiguous tensors."""
    k = old.shape[-1]
    rows = old.numel() // k
    return rows, k, counts.data_ptr(), _given(prior), old.data_ptr(), new.data_ptr()


class Settings(NamedTuple):
    """What decides how means and variances are learned.

    Attributes:
        mean_weight, mean: precision and mean of the normal prior of the means, of (K, D).
        variance: what the prior of the variances adds to the sums of squares, of (K, D).
        variance_weight: what counts as frames of that, plus 1.
        means, variances: whether these are learned.
        unvisited: a state of no more weight was not visited.
        least: a variance below it is not valid: its state keeps those it has.
    """

    mean_weight: Prior
    mean: Prior
    variance: Prior
    variance_weight: float
    means: bool
    variances: bool
    unvisited: float
    least: float


def normal(moments: Normal, old: Normal, settings: Settings) -> tuple[Normal, Tensor]:
    """New parameters, and (K,) which states were not visited or kept their variances.

    Args:
        moments: weight (K,), first (K, D) and second moments about the old means; these are
            (K, D), or (K,) of spherical variances.
        old: the parameters before.
        settings: priors, and what is learned.

    Source: Huang, Acero and Hon, Spoken Language Processing (2001), p. 443.
    """
    weight, first, second = (t.contiguous() for t in moments)
    means, variances, p = (t.contiguous() for t in old)
    new = torch.empty_like(means), torch.empty_like(variances), torch.empty_like(p)
    kept = torch.empty(means.shape[0], dtype=torch.bool, device="cpu")
    call = normal_call((weight, first, second), (means, variances, p), settings, new, kept)
    library.maximise_normal(*call)
    return new, kept


def normal_call(
    moments: Normal, old: Normal, settings: Settings, new: Normal, kept: Tensor
) -> tuple[Any, ...]:
    """What ``library.maximise_normal`` takes for contiguous tensors, the last four its results."""
    s = settings
    return (
        *old[0].shape,
        old[1].ndim == 1,
        s.means,
        s.variances,
        *[t.data_ptr() for t in (*moments, *old)],
        _given(s.mean_weight),
        _given(s.mean),
        _given(s.variance),
        s.variance_weight,
        s.unvisited,
        s.least,
        *[t.data_ptr() for t in (*new, kept)],
    )
