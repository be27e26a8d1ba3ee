"""Hidden Markov model: likelihood, posteriors, filter, best path and sampled paths, in plain torch.

Shape letters: ``B`` sequences, ``K`` states, ``N`` frames of all sequences, ``M`` transitions of
all sequences, ``T`` frames of the longest one.  Every function takes the packed form

- ``log_obs`` (N, K): log-density of each frame under each state, nats;
- ``initial`` (K,) or (B, K) and ``transition`` (K, K) or (M, K, K): probabilities, not logs;
- ``starts`` (B,), ``lengths`` (B,): first row and number of frames of each sequence, int64;
- ``first_transition`` (B,): where ``transition`` varies, its row ``first_transition[b] + t`` leads
  from frame t to frame t + 1 of sequence b.

The recursions run in float64 and in logs, over time, on all sequences at once.  A frame is taken
about its largest log-density and a filtered state about its sum, so no log is large: nothing
overflows, and a path survives however far below the others it lies.

Source: Rabiner, A Tutorial on Hidden Markov Models, Proceedings of the IEEE 77 (1989).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from evidens.reference.gmm import gmm_component_log_prob, gmm_moments
from evidens.reference.philox import philox_uniform

_INF = math.inf
_LARGEST_EXPONENT = 700.0  # exp of it is finite in float64, and so are a few times that


def _frames(log_obs: Tensor, transition: Tensor, starts: Tensor, lengths: Tensor):
    """Row of every frame and whether there is one, (B, T); the row of a missing frame is 0."""
    if torch.compiler.is_compiling():  # lengths have no values then; no sequence is longer than:
        longest = log_obs.shape[0]
        if transition.ndim == 3:
            longest = min(longest, transition.shape[0] + 1)
    else:
        longest = int(lengths.max()) if lengths.numel() else 0
    t = torch.arange(longest, device=log_obs.device)
    present = t < lengths[:, None]
    return torch.where(present, starts[:, None] + t, 0), present


def _centred(log_obs: Tensor) -> tuple[Tensor, Tensor]:
    """Frames about their largest entry (B, T, K), which is (B, T); +inf becomes NaN."""
    log_obs = torch.where(log_obs == _INF, math.nan, log_obs)
    shift = log_obs.amax(-1)
    shift = torch.where(shift.isfinite(), shift, 0.0)
    return log_obs - shift[..., None], shift


def _step(transition: Tensor, first_transition: Tensor, present: Tensor, t: int) -> Tensor:
    """The matrix that leads to frame t: (K, K), or (B, K, K) where it varies."""
    if transition.ndim == 2:
        return transition
    return transition[torch.where(present[:, t], first_transition + (t - 1), 0)]


def _forward(obs: Tensor, present: Tensor, initial: Tensor, transition: Tensor, first: Tensor):
    """Log filtered probabilities (B, T, K) and log-normaliser of each frame (B, T).

    ``alpha_t(j) = obs_t(j) sum_i alpha_t-1(i) A_ij / norm_t``, the sum over j of alpha is 1.
    """
    alphas: list[Tensor] = []
    norms: list[Tensor] = []
    prior = initial.log().expand(present.shape[0], -1)
    for t in range(present.shape[1]):
        if t:
            log_a = _step(transition, first, present, t).log()
            prior = torch.logsumexp(alphas[-1][:, :, None] + log_a, dim=1)
        joint = prior + obs[:, t]
        norm = torch.logsumexp(joint, dim=1)
        # From an impossible frame on, every state is impossible.
        alphas.append(joint - torch.where(norm == -_INF, 0.0, norm)[:, None])
        norms.append(norm)
    if not alphas:
        return torch.zeros_like(obs), torch.zeros_like(obs[..., 0])
    return torch.stack(alphas, 1), torch.stack(norms, 1)


def _setup(log_obs: Tensor, initial: Tensor, transition: Tensor, *where: Tensor):
    """All of the above in float64: rows, present, obs, initial, transition, alpha, norm, total."""
    starts, lengths, first = where
    rows, present = _frames(log_obs, transition, starts, lengths)
    obs, shift = _centred(log_obs.double()[rows])
    initial, transition = initial.double(), transition.double()
    alpha, norm = _forward(obs, present, initial, transition, first)
    total = torch.where(present, shift + norm, 0.0).sum(1)
    return rows, present, obs, initial, transition, alpha, norm, total


def _packed(padded: Tensor, rows: Tensor, present: Tensor, like: Tensor, fill: float) -> Tensor:
    """(B, T, ...) to (N, ...) in the dtype of ``padded``; rows that no frame has hold ``fill``."""
    out = padded.new_full((like.shape[0], *padded.shape[2:]), fill)
    out[rows[present]] = padded[present]
    return out


def hmm_log_likelihood(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    first_transition: Tensor,
) -> Tensor:
    """``log sum over paths of initial prod A prod exp(log_obs)``, (B,) nats, dtype of log_obs.

    It is differentiable any number of times, also where a probability is zero: the derivative is
    that of the polynomial, not of logs.  For that the forward recursion runs a second time, in
    linear space and in units of its own result ``c``, which is held constant:
    ``p_t(j) = exp(log_obs_t(j)) sum_i p_t-1(i) A_ij exp(c_t-1(i) - c_t(j))`` is 1 for every state
    that can be reached, and 0 for the others.
    """
    where = starts, lengths, first_transition
    fixed = log_obs.detach(), initial.detach(), transition.detach()
    rows, present, obs, pi, a, alpha, norm, total = _setup(*fixed, *where)
    norm = norm.nan_to_num(0.0, neginf=0.0)

    # log_obs less its own value: 0, with the derivative of log_obs.
    moved = log_obs.double()[rows] - log_obs.detach().double()[rows]
    moved = torch.where(obs.isfinite(), moved, 0.0)
    start, log_start = _in_own_units(initial.double(), pi)
    move, log_move = _in_own_units(transition.double(), a)
    parts = moved, start, move

    impossible, unknown = total == -_INF, total.isnan()
    running = present & ~(impossible | unknown)[:, None]
    p = start.expand(present.shape[0], -1)
    c = torch.zeros_like(p.detach())
    for t in range(present.shape[1]):
        here = running[:, t, None]
        scaled = obs[:, t] - norm[:, t, None]
        # A state that nothing reaches has any unit: that of the best way into it.
        best = scaled + (c.amax(1, keepdim=True) if t else 0.0)
        c_next = torch.where(alpha[:, t] > -_INF, alpha[:, t], best).nan_to_num(0.0, neginf=0.0)
        if t == 0:
            p_next = p * _exp(scaled + log_start - c_next)
        else:
            log_unit = _step(log_move, first_transition, present, t)
            weight = _exp((scaled - c_next)[:, None, :] + c[:, :, None] + log_unit)
            step = _step(move, first_transition, present, t)
            p_next = (p[:, :, None] * step * weight).sum(1)
        p = torch.where(here, p_next * moved[:, t].exp(), p)
        c = torch.where(here, c_next, c)

    counted = running.any(1)
    share = torch.where(counted, (p * _exp(c)).sum(1), 1.0)
    value = torch.where(counted, total, 0.0) + share.log()
    nan = torch.where(unknown, math.nan, 0.0)
    value = value + nan * (1.0 + torch.where(present[..., None], moved, 0.0).sum((1, 2)))
    value = torch.where(impossible, -_INF, value)
    # Where there is no frame or no step, an argument has the derivative 0 and not none.
    nothing = sum(torch.where(value.new_zeros((), dtype=torch.bool), x, 0.0).sum() for x in parts)
    return (value + nothing).to(log_obs.dtype)


def _in_own_units(x: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` divided by its own value (zeros by 1), linear in ``x``; and the log of that unit."""
    zero = value == 0
    unit = torch.where(zero, 1.0, value)
    slope = unit.reciprocal().nan_to_num(0.0)  # of a subnormal inf, which becomes the largest
    return torch.where(zero, 0.0, 1.0) + (x - value) * slope, unit.log()


def _exp(exponent: Tensor) -> Tensor:
    """Of constants: what is large here belongs to zero probabilities, and must not be infinite."""
    exponent = torch.where(exponent.isnan(), -_INF, exponent)
    return exponent.clamp(max=_LARGEST_EXPONENT).exp()


def hmm_forward_backward(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    first_transition: Tensor,
    weight: Tensor | None,
    pairwise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Forward-backward: ``(log_likelihood, posteriors, first, second)``.

    - ``log_likelihood`` (B,) float64;
    - ``posteriors`` (N, K): ``p(state of the frame | sequence)``, its derivative in ``log_obs``;
    - ``first`` (B, K): its derivative in ``initial``; times ``initial`` the posteriors of frame 0;
    - ``second``: its derivative in ``transition``; times ``transition`` the posteriors of pairs.
      (K, K) float64, summed over the sequences times ``weight`` (B,), for a shared matrix without
      ``pairwise``; otherwise of every transition, without weight: (M, K, K), dtype of log_obs, with
      M = max(N - B, 0) for a shared matrix.

    A derivative at a probability of zero may exceed the largest number, and is that number then.
    """
    where = starts, lengths, first_transition
    setup = _setup(log_obs, initial, transition, *where)
    rows, present, obs, initial, transition, alpha, norm, total = setup
    dtype, (batch, longest) = log_obs.dtype, present.shape
    k = log_obs.shape[1]
    summed = transition.ndim == 2 and not pairwise
    largest = torch.finfo(torch.float64 if summed else dtype).max

    def density(log: Tensor) -> Tensor:
        """Exp of (B, ...): 0 where a sequence is impossible, NaN where it holds one."""
        sequence = total.reshape(-1, *(1,) * (log.ndim - 1))
        value = torch.where(sequence == -_INF, 0.0, log.exp().clamp(max=largest))
        return torch.where(sequence.isnan(), math.nan, value)

    norm = torch.where(norm == -_INF, 0.0, norm)
    count = transition.shape[0] if transition.ndim == 3 else max(log_obs.shape[0] - batch, 0)
    second = obs.new_zeros((k, k)) if summed else log_obs.new_zeros((count, k, k))
    beta = obs.new_zeros((batch, k))
    posteriors = torch.zeros_like(obs)
    for t in reversed(range(longest)):
        posteriors[:, t] = density(alpha[:, t] + beta)
        right = obs[:, t] + beta - norm[:, t, None]
        if t == 0:
            break
        pair = density(alpha[:, t - 1, :, None] + right[:, None, :])
        if not summed:
            here = present[:, t]
            second[(first_transition + (t - 1))[here]] = pair[here].to(dtype)
        else:
            used = present[:, t] if weight is None else present[:, t] & (weight != 0)
            pair = torch.where(used[:, None, None], pair, 0.0)
            second += (pair if weight is None else pair * weight.double()[:, None, None]).sum(0)
        log_a = _step(transition, first_transition, present, t).log()
        # The last frame of a sequence has nothing behind it.
        beta = torch.logsumexp(log_a + right[:, None, :], dim=2)
        beta = torch.where(present[:, t, None], beta, 0.0)
    first = density(right) if longest else beta
    first = torch.where((lengths > 0)[:, None], first, 0.0).clamp(max=torch.finfo(dtype).max)
    return total, _packed(posteriors.to(dtype), rows, present, log_obs, 0), first.to(dtype), second


def hmm_filter(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    first_transition: Tensor,
) -> tuple[Tensor, Tensor]:
    """Filter: log-likelihood (B,) float64 and ``p(state of a frame | frames so far)`` (N, K).

    From a frame that is impossible (NaN) on, the filtered probabilities are 0 (NaN).
    """
    where = starts, lengths, first_transition
    rows, present, _, _, _, alpha, _, total = _setup(log_obs, initial, transition, *where)
    return total, _packed(alpha.exp().to(log_obs.dtype), rows, present, log_obs, 0)


def hmm_viterbi(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    first_transition: Tensor,
) -> tuple[Tensor, Tensor]:
    """Viterbi: states (N,) int64 and log joint density (B,) float64 of the most probable path.

    Ties: the lowest state at the last frame, and going back the highest among the predecessors.
    """
    rows, present = _frames(log_obs, transition, starts, lengths)
    obs, shift = _centred(log_obs.double()[rows])
    initial, transition = initial.double(), transition.double()
    batch, longest = present.shape
    delta = initial.log().expand(batch, -1)
    deltas, norms = [], []
    for t in range(longest):
        if t:
            log_a = _step(transition, first_transition, present, t).log()
            delta = (delta[:, :, None] + log_a).amax(1)
        delta = delta + obs[:, t]
        norm = delta.amax(1)
        delta = delta - torch.where(norm == -_INF, 0.0, norm)[:, None]
        deltas.append(delta)
        norms.append(norm)
    if not longest:
        return log_obs.new_full((log_obs.shape[0],), -1, dtype=torch.int64), shift.sum(1)
    total = torch.where(present, shift + torch.stack(norms, 1), 0.0).sum(1)

    states = torch.zeros_like(rows)
    each = torch.arange(batch, device=rows.device)
    for t in reversed(range(longest)):
        states[:, t] = _first_argmax(deltas[t])
        if t + 1 < longest:
            log_a = _step(transition, first_transition, present, t + 1).log()
            column = log_a.expand(batch, -1, -1)[each, :, states[:, t + 1]]
            before = _last_argmax(deltas[t] + column)
            states[:, t] = torch.where(present[:, t + 1], before, states[:, t])
    possible = (total > -_INF)[:, None]  # false for NaN
    return _packed(torch.where(possible, states, -1), rows, present, log_obs, -1), total


def _first_argmax(x: Tensor) -> Tensor:
    """Lowest index of the largest entry of each row; `argmax` promises none of several."""
    before = (x == x.amax(-1, keepdim=True)).int().cumsum(-1) == 0
    return before.sum(-1).clamp(max=x.shape[-1] - 1)


def _last_argmax(x: Tensor) -> Tensor:
    """Highest index of the largest entry of each row."""
    return x.shape[-1] - 1 - _first_argmax(x.flip(-1))


def hmm_sample_paths(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    first_transition: Tensor,
    seed: int,
    n: int,
) -> Tensor:
    """``n`` paths drawn from the posterior of paths, (n, N) int64: filter, then draw backwards.

    Frame t of sequence b in draw s takes the float64 uniform of `philox_uniform` at step s, row b,
    column t.  The state is the number of cumulative weights that are at most ``u`` times their
    sum, and at most the last state that has a weight.
    """
    where = starts, lengths, first_transition
    setup = _setup(log_obs, initial, transition, *where)
    rows, present, _, _, transition, alpha, _, total = setup
    batch, longest = present.shape
    possible = (total > -_INF)[:, None]  # false for NaN
    shape = batch, longest, torch.float64
    u = [philox_uniform(seed, s, *shape, device=rows.device) for s in range(n)]
    uniform = torch.stack(u)  # (n, B, T)
    each = torch.arange(batch, device=rows.device)
    states = torch.full_like(uniform, -1, dtype=torch.int64)
    for t in reversed(range(longest)):
        log_weight = alpha[:, t].expand(n, -1, -1)  # (n, B, K)
        if t + 1 < longest:
            log_a = _step(transition, first_transition, present, t + 1).log()
            column = log_a.expand(batch, -1, -1)[each, :, states[:, :, t + 1]]
            log_weight = log_weight + torch.where(present[:, t + 1, None], column, 0.0)
        top = log_weight.amax(-1, keepdim=True)
        weight = (log_weight - torch.where(top.isfinite(), top, 0.0)).exp().nan_to_num(0.0)
        cumulative = weight.cumsum(-1)
        chosen = (cumulative <= uniform[:, :, t, None] * cumulative[..., -1:]).sum(-1)
        last = _last_argmax((weight > 0).int())
        states[:, :, t] = torch.minimum(chosen, last)
    states = torch.where(possible, states, -1)
    out = states.new_full((n, log_obs.shape[0]), -1)
    out[:, rows[present]] = states[:, present]
    return out


def hmm_gaussian_statistics(
    x: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    first_transition: Tensor,
    means: Tensor,
    precisions_cholesky: Tensor,
    weight: Tensor | None,
    task: str,
    *,
    component_log_prob: Any = gmm_component_log_prob,
    log_likelihood: Any = hmm_log_likelihood,
    posteriors: Any = hmm_forward_backward,
    best_path: Any = hmm_viterbi,
    moments: Any = gmm_moments,
) -> tuple[Tensor, Tensor, Tensor]:
    """Frames x (N, D) with normal emissions: ``means`` and ``precisions_cholesky`` are (K, D).

    By ``task``: the log-likelihoods (B,) float64 and

    - ``"log_likelihood"``: nothing else;
    - ``"posteriors"``: those of the states (N, K);
    - ``"viterbi"``: the best paths (N,); the first result is their score;
    - ``"statistics"``: in the third place, float64 one behind the other, expected counts of first
      states (K,) and of steps (K, K), and the moments of `gmm_moments` about the means, of
      sequences that count ``weight`` (B,) times.

    A backend without a kernel for all of it passes its own parts.
    """
    log_obs = component_log_prob(x, means.new_zeros(len(means)), means, precisions_cholesky, "diag")
    given = log_obs, initial, transition, starts, lengths, first_transition
    nothing = x.new_empty(0), x.new_empty(0, dtype=torch.float64)
    if task == "log_likelihood":
        return log_likelihood(*given).double(), *nothing
    if task == "viterbi":
        states, score = best_path(*given)
        return score, states, nothing[1]
    total, states, first, second = posteriors(*given, weight, False)
    if task == "posteriors":
        return total, states, nothing[1]
    if weight is not None:
        first = torch.where(weight[:, None] == 0, 0.0, first * weight[:, None])
        rows = torch.arange(len(x), device=x.device)
        each = weight[torch.searchsorted(starts.contiguous(), rows, right=True) - 1][:, None]
        states = torch.where(each == 0, 0.0, states * each)
    # Derivatives may be infinite where a probability is 0.
    begun = torch.where(initial == 0, 0.0, first.double() * initial.double()).sum(0)
    steps = torch.where(transition == 0, 0.0, second * transition.double())
    sums = begun, steps, *moments(x, states, means, "diag")
    return total, nothing[0], torch.cat([s.reshape(-1) for s in sums])
