"""Paths of a hidden Markov model: the best one (Viterbi), and draws from their posterior.

Both go forward in one kernel and back in another, so that no program reads what it wrote.  Logs,
weights and cumulative sums are float64.

Shape letters: ``B`` sequences, ``N`` frames of all sequences, ``R`` frames of those in ``order``,
``M`` transitions, ``K`` states.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._hmm_linear import load_frames, load_tile, matrix_of, pick


@triton.jit
def _log_entries(entries, inside, LOGS: tl.constexpr):
    """Loaded entries of a matrix, or where LOGS of its logs, in log space; -inf outside."""
    logs = entries if LOGS else tl.log(entries.to(tl.float64))
    return tl.where(inside, logs, float("-inf"))


@triton.jit
def _load_logs(
    matrix_at, here, i0, k, stride_in, stride_out,
    LOGS: tl.constexpr, TILE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tile = load_tile(matrix_at, here, i0, k, stride_in, stride_out, TILE, BLOCK_K)
    inside = (i0 + tl.arange(0, TILE) < k)[:, None] & (tl.arange(0, BLOCK_K) < k)[None, :]
    return _log_entries(tile, inside[None, :, :], LOGS)


@triton.jit(do_not_specialize=["count"])
def score_kernel(
    log_obs_ptr,  # (N, K), contiguous
    initial_ptr,  # (B, K), or (K,) with stride 0
    matrix_ptr,  # (M, K, K) where VARYING, else float64 logs (K, K); contiguous
    starts_ptr,  # (B,) int64, and so are lengths and the first transitions
    lengths_ptr,
    first_transition_ptr,
    order_ptr,  # (count,) int64: the sequences
    scores_ptr,  # out (N, K) float64: of the best path to each state, about that of its frame
    log_prob_ptr,  # out (B,) float64
    count,
    k,
    stride_initial,
    VARYING: tl.constexpr,
    HELD: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE: tl.constexpr,
):
    """``delta_t(j) = log_obs_t(j) + max_i (delta_t-1(i) + log A_ij)``."""
    slots = tl.cast(tl.program_id(0), tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    present = slots < count
    sequence = tl.load(order_ptr + slots, mask=present, other=0)
    start = tl.load(starts_ptr + sequence, mask=present, other=0)
    length = tl.load(lengths_ptr + sequence, mask=present, other=0)
    states = tl.arange(0, BLOCK_K)
    state_in = (states < k)[None, :]
    first = tl.load(first_transition_ptr + sequence, mask=present, other=0)
    held = 0
    if HELD:
        whole_at, whole = matrix_of(matrix_ptr, first, present, k, False)
        held = _load_logs(whole_at, whole, 0, k, k, 1, not VARYING, BLOCK_K, BLOCK_K)
    at = initial_ptr + sequence[:, None] * stride_initial + states[None, :]
    initial = tl.load(at, mask=present[:, None] & state_in, other=0.0)
    delta = tl.log(initial.to(tl.float64))
    log_prob = tl.zeros([BLOCK_B], tl.float64)
    odd = tl.zeros([BLOCK_B], tl.int32)
    for t in range(tl.max(length, axis=0)):
        active = t < length
        if t > 0:
            if HELD:
                delta = tl.max(delta[:, :, None] + held, axis=1)
            else:
                matrix_at, here = matrix_of(matrix_ptr, first + (t - 1), active, k, VARYING)
                best = tl.full([BLOCK_B, BLOCK_K], float("-inf"), tl.float64)
                for i0 in range(0, k, TILE):
                    logs = _load_logs(matrix_at, here, i0, k, k, 1, not VARYING, TILE, BLOCK_K)
                    terms = pick(delta, i0, BLOCK_B, BLOCK_K, TILE)[:, :, None] + logs
                    best = tl.maximum(best, tl.max(terms, axis=1))
                delta = best
        log_obs = load_frames(log_obs_ptr, start + t, active, k, BLOCK_K).to(tl.float64)
        odd_here = (log_obs != log_obs) | (log_obs == float("inf"))
        odd = odd | tl.where(active, tl.max(odd_here.to(tl.int32), axis=1), 0)
        # An odd sequence goes on among finite numbers.
        log_obs = tl.where(odd[:, None] > 0, 0.0, log_obs)
        shift = tl.max(log_obs, axis=1)
        shift = tl.where(shift == float("-inf"), 0.0, shift)
        delta += log_obs - shift[:, None]
        norm = tl.max(delta, axis=1)
        delta -= tl.where(norm == float("-inf"), 0.0, norm)[:, None]
        log_prob += tl.where(active, shift + norm, 0.0)
        out = scores_ptr + (start + t)[:, None] * k + states[None, :]
        tl.store(out, delta, mask=active[:, None] & state_in)
    tl.store(log_prob_ptr + sequence, tl.where(odd > 0, float("nan"), log_prob), mask=present)


@triton.jit(do_not_specialize=["count"])
def trace_kernel(
    matrix_ptr,  # as in score_kernel, down to scores_ptr
    starts_ptr,
    lengths_ptr,
    first_transition_ptr,
    order_ptr,
    scores_ptr,
    log_prob_ptr,  # (B,) float64
    states_ptr,  # out (N,) int64
    count,
    k,
    VARYING: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Back from the lowest of the best last states, to the highest of the best predecessors."""
    slots = tl.cast(tl.program_id(0), tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    present = slots < count
    sequence = tl.load(order_ptr + slots, mask=present, other=0)
    start = tl.load(starts_ptr + sequence, mask=present, other=0)
    length = tl.load(lengths_ptr + sequence, mask=present, other=0)
    first = tl.load(first_transition_ptr + sequence, mask=present, other=0)
    # False for NaN as well.
    possible = tl.load(log_prob_ptr + sequence, mask=present, other=0.0) > float("-inf")
    lanes = tl.cast(tl.arange(0, BLOCK_K), tl.int64)[None, :]
    state = tl.zeros([BLOCK_B], tl.int64)
    for back in range(tl.max(length, axis=0)):
        t = length - 1 - back
        active = t >= 0
        mask = active[:, None] & (lanes < k)
        at = scores_ptr + (start + t)[:, None] * k + lanes
        delta = tl.load(at, mask=mask, other=float("-inf"))
        if back > 0:
            offset = state
            if VARYING:
                offset += (first + t) * k * k
            column = tl.load(matrix_ptr + offset[:, None] + lanes * k, mask=mask, other=0.0)
            delta += _log_entries(column, mask, not VARYING)
        best = delta == tl.max(delta, axis=1)[:, None]
        if back > 0:
            state = tl.max(tl.where(best & mask, lanes, 0), axis=1)
        else:
            state = tl.min(tl.where(best & mask, lanes, k - 1), axis=1)
        tl.store(states_ptr + start + t, tl.where(possible, state, -1), mask=active)


@triton.jit
def _uniform(seed, step, row, column):
    """The float64 uniforms of `evidens.kernels.philox` for draws ``step``: two in a block."""
    zero = tl.zeros_like(step).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(
        seed,
        zero + (column // 2).to(tl.uint32),
        zero + row.to(tl.uint32),
        zero + (row >> 32).to(tl.uint32),
        step.to(tl.uint32),
        n_rounds=10,
    )
    odd = column % 2 == 1
    high = (tl.where(odd, w2, w0) >> 5).to(tl.uint64)
    low = (tl.where(odd, w3, w1) >> 6).to(tl.uint64)
    return ((high << 26) + low).to(tl.float64) * 1.1102230246251565e-16  # 2^-53


@triton.jit(do_not_specialize=["seed", "draws"])
def draw_kernel(
    filter_ptr,  # (N, K); where LOGS (R, K) float64 logs
    matrix_ptr,  # (K, K), or where VARYING (M, K, K), contiguous
    starts_ptr,  # (B,) int64, and so are lengths and the first transitions
    lengths_ptr,
    first_transition_ptr,
    order_ptr,  # (count,) int64: the sequences
    filter_start_ptr,  # rows of the filter: (B,) by sequence, where LOGS (count,) by slot
    log_likelihood_ptr,  # (B,) float64
    states_ptr,  # out (draws, N) int64
    n,
    k,
    seed,
    draws,
    LOGS: tl.constexpr,
    VARYING: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Paths of one sequence, BLOCK_S of them, from the last frame back."""
    blocks = tl.cdiv(draws, BLOCK_S)
    slot = tl.program_id(0) // blocks
    draw = tl.cast(tl.program_id(0) % blocks, tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    sequence = tl.load(order_ptr + slot)
    start = tl.load(starts_ptr + sequence)
    length = tl.load(lengths_ptr + sequence)
    first = tl.load(first_transition_ptr + sequence)
    filter_start = tl.load(filter_start_ptr + (slot if LOGS else sequence))
    possible = tl.load(log_likelihood_ptr + sequence) > float("-inf")
    lanes = tl.cast(tl.arange(0, BLOCK_K), tl.int64)[None, :]
    lane_in = lanes < k
    state = tl.zeros([BLOCK_S], tl.int64)
    for back in range(length):
        t = length - 1 - back
        outside = float("-inf") if LOGS else 0.0
        filtered = tl.load(filter_ptr + (filter_start + t) * k + lanes, lane_in, outside)
        weight = filtered.to(tl.float64) + tl.zeros([BLOCK_S, BLOCK_K], tl.float64)
        if back > 0:
            offset = state
            if VARYING:
                offset += (first + t) * k * k
            column = tl.load(matrix_ptr + offset[:, None] + lanes * k, lane_in, 0.0)
            column = column.to(tl.float64)
            weight = weight + tl.log(column) if LOGS else weight * column
        if LOGS:
            top = tl.max(weight, axis=1)
            weight = tl.exp(weight - tl.where(top == float("-inf"), 0.0, top)[:, None])
        cumulative = tl.cumsum(weight, axis=1)
        total = tl.max(cumulative, axis=1)
        threshold = _uniform(seed, draw, sequence, t) * total
        # The first state with a weight whose sum is above; past rounding, the last with a weight.
        above = (cumulative > threshold[:, None]) & (weight > 0.0)
        last = tl.max(tl.where(weight > 0.0, lanes, 0), axis=1)
        state = tl.minimum(tl.min(tl.where(above, lanes, k - 1), axis=1), last)
        out = states_ptr + draw * n + start + t
        tl.store(out, tl.where(possible, state, -1), mask=draw < draws)
