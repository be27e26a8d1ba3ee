"""Hidden Markov models with normal emissions: EM and queries in one pass over frames.

The ops of ``hmm.py`` take log-densities (N, K).  Where these are those of normal distributions with
diagonal covariances, a kernel can compute them beside the recursions: no array of frames by states
is written, neither densities nor posteriors.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from evidens.ops import _checks as checks
from evidens.ops import _hmm_inner as inner
from evidens.ops._hmm_arguments import arguments, matching

__all__ = ["HMMGaussianStatistics", "hmm_gaussian_statistics"]


class HMMGaussianStatistics(NamedTuple):
    """Result of `hmm_gaussian_statistics`, float64."""

    log_likelihood: Tensor
    initial: Tensor
    transitions: Tensor
    weight: Tensor
    first: Tensor
    second: Tensor


def hmm_gaussian_statistics(
    x: Tensor,
    initial: Tensor,
    transition: Tensor,
    means: Tensor,
    precisions_cholesky: Tensor,
    *,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    weight: Tensor | None = None,
) -> HMMGaussianStatistics:
    """The E step of Baum-Welch for normal emissions with diagonal covariances.

    Args:
        x: frames, padded (B, T, D) or packed (N, D), without NaN.
        initial: probabilities of the first state, (K,), or (B, K) for one row per sequence.
        transition: probabilities (K, K), row i from state i.
        means: (K, D).
        precisions_cholesky: inverse standard deviations (K, D).
        lengths, offsets: as in `hmm_log_likelihood`.
        weight: (B,), what each sequence counts in the sums (not in ``log_likelihood``).

    Returns:
        `HMMGaussianStatistics`, a tuple of float64: ``log_likelihood`` (B,) in nats; ``initial``
        (K,) and ``transitions`` (K, K), the expected counts of first states and of steps; and with
        the posterior r of every frame and state, times its weight, and ``d = x - means``:
        ``weight`` (K,) sums r, ``first`` (K, D) r d, ``second`` (K, D) r d^2.  Sequences without a
        possible path have log-likelihood -inf and add nothing.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        RuntimeError: if an argument requires a gradient (none is offered).

    Source: Rabiner (1989), eq. 40-54; moments about the old means: no variance is the difference
    of two large numbers.

    Example:
        >>> import torch, evidens
        >>> x = torch.tensor([[-1.0], [-1.2], [0.9], [1.1]], dtype=torch.float64)
        >>> half, one = torch.full((2, 2), 0.5).double(), torch.ones(2, 1).double()
        >>> means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        >>> found = evidens.ops.hmm_gaussian_statistics(x, half[0], half, means, one)
        >>> means[:, 0] + found.first[:, 0] / found.weight
        tensor([-0.8550,  0.7872], dtype=torch.float64)
    """
    op = "hmm_gaussian_statistics"
    means, precisions_cholesky = checks.widen(
        op, ("means", means), ("precisions_cholesky", precisions_cholesky)
    )
    if means.ndim != 2 or means.shape[0] == 0:
        raise ValueError(
            f"evidens.{op}: means must have shape (K, D) with at least one state, "
            f"got {tuple(means.shape)}"
        )
    k = means.shape[0]
    given = arguments(op, x, initial, transition, lengths, offsets, k)
    frames, shape = given[0], ("(K, D)", (k, given[0].shape[1]))
    matching(op, "means", means, frames, (shape,), "x")
    matching(op, "precisions_cholesky", precisions_cholesky, frames, (shape,), "x")
    if weight is not None:
        (weight,) = checks.widen(op, ("weight", weight))
        matching(op, "weight", weight, frames, (("(B,)", (given[3].shape[0],)),), "x")
    emissions = means, precisions_cholesky, weight
    checks.no_gradient(op, *given[:3], *emissions, instead="hmm_log_likelihood")
    total, _, sums = inner.gaussian(*given, *emissions, "statistics")
    return HMMGaussianStatistics(total, *parts_of(sums, *means.shape))


def parts_of(sums: Tensor, k: int, d: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """First states (K,), steps (K, K), and the moments (K,), (K, D), (K, D) of the inner op."""
    begun, steps, weight, first, second = sums.split_with_sizes((k, k * k, k, k * d, k * d))
    return begun, steps.view(k, k), weight, first.view(k, d), second.view(k, d)
