"""Hidden Markov model ops: likelihood with its gradient, posteriors, filter, best and drawn paths.

Shape letters: ``B`` sequences, ``T`` time, ``K`` states, ``N`` frames of all sequences.  All take
``log_obs``, the log-density of every frame under every state in nats, in one of two layouts

- padded (B, T, K), where ``lengths`` (B,) int64 says how many frames of each sequence there are;
- packed (N, K), where sequence b holds the rows ``offsets[b] .. offsets[b + 1]`` of ``offsets``
  (B + 1,) int64, the first of which is 0 and the last N (None: one sequence);

``initial`` (K,), or (B, K) for one per sequence, and ``transition`` (K, K) with row i from state i,
or one matrix for each pair of consecutive frames: padded (B, T - 1, K, K), packed (N - number of
sequences that have frames, K, K).  Both are probabilities, not logs; zeros are exact.  float32 or
float64 (half types are widened to float32), all of one dtype on one device.
"""

from __future__ import annotations

import math
import operator
from typing import NamedTuple

import torch
from torch import Tensor

from evidens.ops import _checks as checks
from evidens.ops import _hmm_inner as inner
from evidens.ops._hmm_arguments import arguments, first_steps, has_values, is_plain, matching

__all__ = [
    "HMMFiltered",
    "HMMPath",
    "HMMPosteriors",
    "hmm_filter",
    "hmm_forward_backward",
    "hmm_log_likelihood",
    "hmm_sample_paths",
    "hmm_viterbi",
]


class HMMPosteriors(NamedTuple):
    """Result of `hmm_forward_backward`."""

    log_likelihood: Tensor
    posteriors: Tensor
    initial: Tensor
    transitions: Tensor
    pairwise: Tensor | None


class HMMFiltered(NamedTuple):
    """Result of `hmm_filter`."""

    filtered: Tensor
    log_likelihood: Tensor
    state: Tensor


class HMMPath(NamedTuple):
    """Result of `hmm_viterbi`."""

    states: Tensor
    log_prob: Tensor


def hmm_log_likelihood(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    *,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """Log-density of every sequence, summed over all paths of states.

    Args:
        log_obs: log-density of every frame under every state, nats; padded (B, T, K) or packed
            (N, K).  -inf is an impossible frame of that state.
        initial: probabilities of the first state, (K,), or (B, K) for one row per sequence.
        transition: probabilities (K, K), row i from state i, or one matrix per pair of
            consecutive frames: (B, T - 1, K, K), packed (N - number of sequences that have
            frames, K, K).  Rows need not sum to 1.
        lengths: frames of each padded sequence (B,) int64, 0 .. T; None: all T.
        offsets: first rows of the packed sequences and N at the end, (B + 1,) int64; None: one
            sequence.

    Returns:
        (B,) in nats, dtype of ``log_obs``.  -inf where no path is possible, 0 for an empty
        sequence, NaN where a frame of the sequence holds NaN or +inf.  Differentiable once in
        ``log_obs`` (the gradient is the posterior), ``initial`` and ``transition`` (the true
        derivative, also at exact zeros); an impossible sequence has gradient 0.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.

    Source: Rabiner, A tutorial on hidden Markov models, Proc. IEEE 77 (1989), eq. 19-21.

    Example:
        >>> import torch, evidens
        >>> log_obs = torch.tensor([[[0.9, 0.2], [0.1, 0.8]]]).log().requires_grad_()
        >>> initial, transition = torch.tensor([0.5, 0.5]), torch.tensor([[0.7, 0.3], [0.3, 0.7]])
        >>> y = evidens.ops.hmm_log_likelihood(log_obs, initial, transition)
        >>> y.backward()
        >>> y.detach().exp(), log_obs.grad[0].sum(1)
        (tensor([0.1985]), tensor([1., 1.]))
    """
    return inner.log_likelihood(
        *arguments("hmm_log_likelihood", log_obs, initial, transition, lengths, offsets)
    )


def hmm_forward_backward(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    *,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    weight: Tensor | None = None,
    pairwise: bool = False,
) -> HMMPosteriors:
    """Posteriors of the states given whole sequences, and the sums that Baum-Welch needs.

    Args:
        log_obs, initial, transition, lengths, offsets: as in `hmm_log_likelihood`.
        weight: (B,), what each sequence counts in ``initial`` and ``transitions`` (nothing else);
            of any sign, one of weight 0 contributes nothing even where it holds NaN.
        pairwise: also the posteriors of the pairs at every step, K times as much memory.

    Returns:
        `HMMPosteriors`, a tuple of ``log_likelihood`` (B,) float64; ``posteriors`` like
        ``log_obs``; ``initial`` (K,) float64, the sum of the first frames' posteriors;
        ``transitions`` (K, K) float64, the sum over all sequences and steps of the posteriors of
        (state, next state); ``pairwise``, these step by step, (B, T - 1, K, K) or (N - number of
        sequences that have frames, K, K), or None.  Frames beyond a length, and sequences without
        a possible path, have posteriors 0.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        RuntimeError: if an argument requires a gradient (none is offered).

    Source: Rabiner (1989), eq. 24-38.

    Example:
        >>> import torch, evidens
        >>> log_obs = torch.tensor([[0.9, 0.2], [0.1, 0.8]]).log()
        >>> initial, transition = torch.tensor([0.5, 0.5]), torch.tensor([[0.7, 0.3], [0.3, 0.7]])
        >>> result = evidens.ops.hmm_forward_backward(log_obs, initial, transition)
        >>> result.posteriors
        tensor([[0.7028, 0.2972],
                [0.1738, 0.8262]])
        >>> result.transitions.round(decimals=4)
        tensor([[0.1587, 0.5441],
                [0.0151, 0.2821]], dtype=torch.float64)
    """
    op = "hmm_forward_backward"
    shape = log_obs.shape if isinstance(log_obs, Tensor) else ()
    given = arguments(op, log_obs, initial, transition, lengths, offsets)
    x, pi, a, starts, counts, first_step = given
    k = x.shape[1]
    if weight is not None:
        (weight,) = checks.widen(op, ("weight", weight))
        matching(op, "weight", weight, x, (("(B,)", (starts.shape[0],)),))
    checks.no_gradient(op, x, pi, a, weight, instead="hmm_log_likelihood")
    if pairwise and a.ndim == 2:
        if len(shape) == 3:
            steps = shape[0] * max(shape[1] - 1, 0)
        else:
            steps = max(x.shape[0] - 1, 0) if offsets is None else _steps(x, counts)
            first_step = first_steps(counts)
        a = a.expand(steps, k, k)
    where = starts, counts, first_step
    total, posteriors, first, second = inner.posteriors(x, pi, a, *where, weight, pairwise, True)

    # Of each sequence: posteriors of its first frame, unless it has none or is not weighted.
    begun = _probability(first if weight is None else inner.times(first, weight), pi)
    begun = begun.sum(0, dtype=torch.float64)
    pairs = _probability(second, a)
    if a.ndim == 2:
        return HMMPosteriors(total, posteriors.reshape(shape), begun, pairs, None)
    if weight is None:
        transitions = pairs.sum(0, dtype=torch.float64)
    else:
        each = weight[inner.owner(first_step, a.shape[0])]
        transitions = inner.times(pairs.double(), each).sum(0)
    if not pairwise:
        step_by_step = None
    elif len(shape) == 3:
        step_by_step = pairs.reshape(shape[0], max(shape[1] - 1, 0), k, k)
    else:
        step_by_step = pairs
    return HMMPosteriors(total, posteriors.reshape(shape), begun, transitions, step_by_step)


def _probability(derivative: Tensor, probability: Tensor) -> Tensor:
    """Their product; 0 where one is, though the other may be infinite or, where unused, NaN."""
    if derivative.is_cpu and is_plain():
        product = derivative * probability
        if math.isfinite(product.sum()):  # nothing was infinite or NaN
            return product
    bounded = derivative.clamp(max=torch.finfo(derivative.dtype).max)
    return bounded.mul_(probability).masked_fill_((probability == 0) | (derivative == 0), 0.0)


def state_posteriors(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    *,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The first two results of `hmm_forward_backward`, without the sums, for models' queries."""
    given = arguments("hmm_forward_backward", log_obs, initial, transition, lengths, offsets)
    checks.no_gradient("hmm_forward_backward", *given[:3], instead="hmm_log_likelihood")
    total, posteriors, _, _ = inner.posteriors(*given, None, False, False)
    return total, posteriors.view(log_obs.shape)


def _steps(log_obs: Tensor, lengths: Tensor) -> int:
    return log_obs.shape[0] - int((lengths > 0).sum())


def hmm_filter(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    *,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    state: Tensor | None = None,
) -> HMMFiltered:
    """Posterior of each frame's state given the frames up to it; continues over any chunks.

    Args:
        log_obs, initial, transition, lengths, offsets: as in `hmm_log_likelihood`.
        state: (B, K), that of a former call, to continue its sequences: then
            ``state @ transition`` takes the place of ``initial``, and ``transition`` must be the
            shared (K, K) one.

    Returns:
        `HMMFiltered`, a tuple of ``filtered`` like ``log_obs``; ``log_likelihood`` (B,) float64 of
        these frames given the former ones; ``state`` (B, K), the filtered probabilities of the
        last frame (of a sequence without frames: the given state).  From a frame that is
        impossible (NaN) on, they are 0 (NaN).

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; also where a
            sequence has no frames and no state, since ``initial`` is not a filtered state.
        RuntimeError: if an argument requires a gradient (none is offered).

    Source: Rabiner (1989), eq. 19-20 and 90-92 (scaling).

    Example:
        >>> import torch, evidens
        >>> log_obs = torch.tensor([[0.9, 0.2], [0.1, 0.8], [0.5, 0.5]]).log()
        >>> initial, transition = torch.tensor([0.5, 0.5]), torch.tensor([[0.7, 0.3], [0.3, 0.7]])
        >>> whole = evidens.ops.hmm_filter(log_obs, initial, transition)
        >>> head = evidens.ops.hmm_filter(log_obs[:1], initial, transition)
        >>> tail = evidens.ops.hmm_filter(log_obs[1:], initial, transition, state=head.state)
        >>> bool(torch.allclose(torch.cat((head.filtered, tail.filtered)), whole.filtered))
        True
        >>> bool(torch.allclose(head.log_likelihood + tail.log_likelihood, whole.log_likelihood))
        True
    """
    op = "hmm_filter"
    shape = log_obs.shape if isinstance(log_obs, Tensor) else ()
    given = arguments(op, log_obs, initial, transition, lengths, offsets)
    x, pi, a, starts, counts, first_step = given
    batch, k = starts.shape[0], x.shape[1]
    if state is not None:
        (state,) = checks.widen(op, ("state", state))
        matching(op, "state", state, x, (("(B, K)", (batch, k)),))
        if a.ndim != 2:
            raise ValueError(
                f"evidens.{op}: to continue from a state, transition must be the shared (K, K) = "
                f"({k}, {k}) one, got {tuple(transition.shape)}; the step between two chunks has "
                "no matrix among those that vary"
            )
        # In double and without autocast, which would take a product in half precision.
        pi = (state.double()[:, :, None] * a).sum(1).to(x.dtype) if batch else state
    elif batch and _empty_ones(shape, lengths, offsets, counts):
        raise ValueError(
            f"evidens.{op}: lengths must be at least 1 without a state, got a sequence without "
            "frames; initial belongs to its first frame and is no filtered state. Leave the "
            "sequence out until it has frames, or pass state."
        )
    checks.no_gradient(op, x, pi, a, state, instead="hmm_log_likelihood")
    total, filtered = inner.filtered(x, pi, a, starts, counts, first_step)
    if lengths is None and offsets is None and x.shape[0]:
        last = filtered.reshape(batch, -1, k)[:, -1].clone()
        return HMMFiltered(filtered.reshape(shape), total, last)
    if x.shape[0]:
        last = filtered[(starts + counts - 1).clamp(min=0, max=x.shape[0] - 1)]
    else:
        last = x.new_full((batch, k), float("nan"))
    kept = float("nan") if state is None else state
    last = torch.where((counts == 0)[:, None], kept, last)
    return HMMFiltered(filtered.reshape(shape), total, last)


def _empty_ones(
    shape: torch.Size, lengths: Tensor | None, offsets: Tensor | None, counts: Tensor
) -> bool:
    if lengths is None and offsets is None:
        return shape[-2] == 0
    return has_values(counts) and int(counts.min()) == 0


def hmm_viterbi(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    *,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
) -> HMMPath:
    """The most probable path of states through every sequence.

    Ties fall as in hmmlearn: at the last frame to the lowest state, and going back to the highest
    state among the predecessors that attain the maximum.

    Args:
        log_obs, initial, transition, lengths, offsets: as in `hmm_log_likelihood`.

    Returns:
        `HMMPath`, a tuple of ``states`` (B, T) or (N,) int64, -1 beyond a length and throughout a
        sequence without a possible path (or with NaN), and ``log_prob`` (B,) float64, the
        log-density of sequence and path in nats.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        RuntimeError: if an argument requires a gradient (none is offered).

    Source: Rabiner (1989), eq. 104-105, the recursion in logs.

    Example:
        >>> import torch, evidens
        >>> log_obs = torch.tensor([[0.9, 0.2], [0.4, 0.6], [0.1, 0.8]]).log()
        >>> initial, transition = torch.tensor([0.5, 0.5]), torch.tensor([[0.7, 0.3], [0.3, 0.7]])
        >>> path = evidens.ops.hmm_viterbi(log_obs, initial, transition)
        >>> path.states, path.log_prob.exp().round(decimals=4)
        (tensor([0, 1, 1]), tensor([0.0454], dtype=torch.float64))
    """
    op = "hmm_viterbi"
    shape = log_obs.shape if isinstance(log_obs, Tensor) else ()
    given = arguments(op, log_obs, initial, transition, lengths, offsets)
    checks.no_gradient(op, *given[:3], instead="hmm_log_likelihood")
    states, log_prob = inner.best_path(*given)
    return HMMPath(states.reshape(shape[:-1]), log_prob)


def hmm_sample_paths(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    *,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    n: int = 1,
    seed: int,
) -> Tensor:
    """Paths of states drawn from their joint posterior given the sequences.

    Forward filter, backward sampling.  Draw s of frame t of sequence b takes the float64 uniform
    of `philox_uniform` at step s, row b, column t: it depends on no thread count or padding, nor on
    the other sequences.

    Args:
        log_obs, initial, transition, lengths, offsets: as in `hmm_log_likelihood`.
        n: number of paths of each sequence, at least 1.
        seed: any Python integer; its low 64 bits count.

    Returns:
        (n, B, T) or (n, N) int64; -1 beyond a length and throughout a sequence without a possible
        path (or with NaN).

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
        RuntimeError: if an argument requires a gradient (none is offered).

    Source: Frühwirth-Schnatter, Finite Mixture and Markov Switching Models (2006), algorithm 11.5.

    Example:
        >>> import torch, evidens
        >>> log_obs = torch.tensor([[0.9, 0.2], [0.1, 0.8]]).log()
        >>> initial, transition = torch.tensor([0.5, 0.5]), torch.tensor([[0.7, 0.3], [0.3, 0.7]])
        >>> paths = evidens.ops.hmm_sample_paths(log_obs, initial, transition, n=10_000, seed=0)
        >>> paths.shape, abs(paths[:, 1].double().mean().item() - 0.8262) < 0.02
        (torch.Size([10000, 2]), True)
    """
    op = "hmm_sample_paths"
    shape = log_obs.shape if isinstance(log_obs, Tensor) else ()
    try:
        n, seed = operator.index(n), operator.index(seed)
    except TypeError:
        raise TypeError(
            f"evidens.{op}: n and seed must be integers, got {type(n).__name__} and "
            f"{type(seed).__name__}. Convert with int()."
        ) from None
    if not 1 <= n <= 1 << 32:
        raise ValueError(f"evidens.{op}: n must be in 1 .. 2^32, got {n}; leave out an empty draw")
    given = arguments(op, log_obs, initial, transition, lengths, offsets)
    checks.no_gradient(op, *given[:3], instead="hmm_log_likelihood")
    signed = ((seed + (1 << 63)) & 0xFFFFFFFFFFFFFFFF) - (1 << 63)
    return inner.draw_paths(*given, signed, n).reshape(n, *shape[:-1])
