"""Hidden Markov kernels in log space and float64, for the sequences that linear space loses.

Slow and exact: a path survives however far below the others it lies.  A program takes one
sequence, that of its slot in ``order``.  What a kernel leaves for the next stands in scratch of
the rows of these sequences only, slot after slot from the rows ``scratch_start``.

Shape letters: ``B`` sequences, ``N`` frames of all sequences, ``R`` frames of those in ``order``,
``M`` transitions, ``K`` states.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._hmm_linear import load_tile, pick


@triton.jit
def _finite(peak):
    """``peak`` where it is finite, else 0."""
    return tl.where(tl.abs(peak) == float("inf"), 0.0, peak)


@triton.jit
def _log_sum_exp(x):
    """Of all entries of ``x`` (1, BLOCK_K)."""
    shift = _finite(tl.max(x, axis=1))
    return tl.sum(tl.log(tl.sum(tl.exp(x - shift[:, None]), axis=1)) + shift, axis=0)


@triton.jit
def _log_product(x, matrix_at, k, stride_in, stride_out, BLOCK_K: tl.constexpr, TILE: tl.constexpr):
    """``log sum_i exp(x_i) A_ij`` of ``x`` (1, BLOCK_K), over tiles of rows i."""
    peak = tl.full([1, BLOCK_K], float("-inf"), tl.float64)
    mass = tl.zeros([1, BLOCK_K], tl.float64)
    here = tl.full([1], 1, tl.int1)
    for i0 in range(0, k, TILE):
        tile = load_tile(matrix_at, here, i0, k, stride_in, stride_out, TILE, BLOCK_K)
        terms = tl.log(tile.to(tl.float64)) + pick(x, i0, 1, BLOCK_K, TILE)[:, :, None]
        new_peak = tl.maximum(peak, tl.max(terms, axis=1))
        shift = _finite(new_peak)
        mass = mass * tl.exp(peak - shift) + tl.sum(tl.exp(terms - shift[:, None, :]), axis=1)
        peak = new_peak
    return tl.log(mass) + _finite(peak)


@triton.jit
def _load_frame(log_obs_ptr, row, k, BLOCK_K: tl.constexpr):
    """Log-densities of a frame (1, BLOCK_K), and whether one is NaN or +inf."""
    states = tl.arange(0, BLOCK_K)[None, :]
    log_obs = tl.load(log_obs_ptr + row * k + states, mask=states < k, other=float("-inf"))
    log_obs = log_obs.to(tl.float64)
    odd = (log_obs != log_obs) | (log_obs == float("inf"))
    return log_obs, tl.max(tl.max(odd.to(tl.int32), axis=1), axis=0)


@triton.jit
def forward_kernel(
    log_obs_ptr,  # (N, K), contiguous
    initial_ptr,  # (B, K), or (K,) with stride 0
    matrix_ptr,  # (K, K), or where VARYING (M, K, K), entries by strides
    starts_ptr,  # (B,) int64, and so are lengths and the first transitions
    lengths_ptr,
    first_transition_ptr,
    order_ptr,  # (count,) int64: the sequences
    scratch_start_ptr,  # (count,) int64
    log_likelihood_ptr,  # out (B,) float64
    filtered_ptr,  # out (N, K), where STORE
    alpha_ptr,  # out (R, K) float64, where KEEP: log of the filter
    k,
    stride_initial,
    stride_in,
    stride_out,
    STORE: tl.constexpr,
    KEEP: tl.constexpr,
    VARYING: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE: tl.constexpr,
):
    """Filter and log-likelihood; -inf and 0 from an impossible frame on, NaN from an odd one on."""
    slot = tl.program_id(0)
    sequence = tl.load(order_ptr + slot)
    start = tl.load(starts_ptr + sequence)
    scratch = tl.load(scratch_start_ptr + slot)
    first = tl.load(first_transition_ptr + sequence)
    states = tl.arange(0, BLOCK_K)[None, :]
    at = initial_ptr + sequence * stride_initial + states
    alpha = tl.log(tl.load(at, mask=states < k, other=0.0).to(tl.float64))
    log_likelihood = tl.sum(tl.zeros([BLOCK_K], tl.float64), axis=0)
    odd = tl.program_id(0) * 0
    for t in range(tl.load(lengths_ptr + sequence)):
        if t > 0:
            matrix_at = matrix_ptr + tl.zeros([1], tl.int64)
            if VARYING:
                matrix_at += (first + (t - 1)) * k * k
            alpha = _log_product(alpha, matrix_at, k, stride_in, stride_out, BLOCK_K, TILE)
        log_obs, odd_frame = _load_frame(log_obs_ptr, start + t, k, BLOCK_K)
        odd = odd | odd_frame
        # An odd sequence goes on among finite numbers: maxima and products are unsure with NaN.
        alpha = tl.where(odd > 0, tl.where(states < k, 0.0, float("-inf")), alpha + log_obs)
        norm = _log_sum_exp(alpha)
        alpha -= _finite(norm)
        log_likelihood += tl.where(odd > 0, float("nan"), norm)
        if STORE:
            value = tl.where(odd > 0, float("nan"), tl.exp(alpha))
            out = filtered_ptr + (start + t) * k + states
            tl.store(out, value.to(filtered_ptr.dtype.element_ty), mask=states < k)
        if KEEP:
            tl.store(alpha_ptr + (scratch + t) * k + states, alpha, mask=states < k)
    tl.store(log_likelihood_ptr + sequence, log_likelihood)


@triton.jit
def _density(exponent, log_likelihood, most):
    """``exp(exponent)``, at most ``most``; 0 where the sequence is impossible, NaN where it is."""
    value = tl.minimum(tl.exp(exponent), most)
    value = tl.where(log_likelihood == float("-inf"), 0.0, value)
    return tl.where(log_likelihood != log_likelihood, float("nan"), value)


@triton.jit
def backward_kernel(
    log_obs_ptr,  # as in forward_kernel, down to log_likelihood_ptr
    initial_ptr,
    matrix_ptr,  # entries by strides: stride_in belongs to the later state
    starts_ptr,
    lengths_ptr,
    first_transition_ptr,
    order_ptr,
    scratch_start_ptr,
    log_likelihood_ptr,  # (B,) float64
    alpha_ptr,  # (R, K) float64: log of the filter
    norm_ptr,  # out (R,) float64: log of the sum over states of alpha beta
    right_ptr,  # out (R, K) float64: log of density times beta
    posteriors_ptr,  # out (N, K)
    first_ptr,  # out (B, K)
    k,
    stride_initial,
    stride_in,
    stride_out,
    MOST: tl.constexpr,  # largest number of the dtype of the results
    VARYING: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE: tl.constexpr,
):
    """Posteriors of the frames, and the two factors of the pairs but for the filter."""
    slot = tl.program_id(0)
    sequence = tl.load(order_ptr + slot)
    start = tl.load(starts_ptr + sequence)
    length = tl.load(lengths_ptr + sequence)
    scratch = tl.load(scratch_start_ptr + slot)
    first = tl.load(first_transition_ptr + sequence)
    log_likelihood = tl.load(log_likelihood_ptr + sequence)
    dtype: tl.constexpr = posteriors_ptr.dtype.element_ty
    states = tl.arange(0, BLOCK_K)[None, :]
    beta = tl.zeros([1, BLOCK_K], tl.float64)
    right = beta
    for back in range(length):
        t = length - 1 - back
        if back > 0:
            matrix_at = matrix_ptr + tl.zeros([1], tl.int64)
            if VARYING:
                matrix_at += (first + t) * k * k
            beta = _log_product(right, matrix_at, k, stride_in, stride_out, BLOCK_K, TILE)
        at = (scratch + t) * k + states
        alpha = tl.load(alpha_ptr + at, mask=states < k, other=float("-inf"))
        norm = _log_sum_exp(alpha + beta)
        value = _density(alpha + beta - _finite(norm), log_likelihood, MOST)
        tl.store(posteriors_ptr + (start + t) * k + states, value.to(dtype), mask=states < k)
        tl.store(norm_ptr + scratch + t, norm)
        log_obs, odd = _load_frame(log_obs_ptr, start + t, k, BLOCK_K)
        right = tl.where(odd > 0, 0.0, log_obs + beta)
        right -= _finite(tl.sum(tl.max(right, axis=1), axis=0))
        tl.store(right_ptr + at, right, mask=states < k)
    at = initial_ptr + sequence * stride_initial + states
    initial = tl.log(tl.load(at, mask=states < k, other=0.0).to(tl.float64))
    value = _density(right - _finite(_log_sum_exp(initial + right)), log_likelihood, MOST)
    value = tl.where(length > 0, value, 0.0).to(dtype)
    tl.store(first_ptr + sequence * k + states, value, mask=states < k)


@triton.jit(do_not_specialize=["count", "programs", "transitions"])
def pairs_kernel(
    lengths_ptr,  # (B,) int64
    first_transition_ptr,  # (B,) int64
    order_ptr,  # (count,) int64: the sequences
    scratch_start_ptr,  # (count,) int64
    log_likelihood_ptr,  # (B,) float64
    weight_ptr,  # (B,), where WEIGHTS
    alpha_ptr,  # (R, K) float64, as the next two from the kernels above
    norm_ptr,  # (R,)
    right_ptr,  # (R, K)
    second_ptr,  # out (M, K, K) where STEPS, else (programs, K, K) float64
    count,
    programs,
    transitions,  # M
    k,
    MOST: tl.constexpr,  # largest number of the dtype of the result
    WEIGHTS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Derivatives in the transitions of every ``programs``-th sequence: a tile of each, or sums."""
    tiles = tl.cdiv(k, BLOCK_K)
    tile = tl.program_id(0) % (tiles * tiles)
    program = tl.cast(tl.program_id(0) // (tiles * tiles), tl.int64)
    i = tl.cast(tile // tiles, tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    j = tl.cast(tile % tiles, tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = (i < k)[:, None] & (j < k)[None, :]
    at = i[:, None] * k + j[None, :]
    sums = tl.zeros([BLOCK_K, BLOCK_K], tl.float64)
    for slot in range(program, count, programs):
        sequence = tl.load(order_ptr + slot)
        scratch = tl.load(scratch_start_ptr + slot)
        first = tl.load(first_transition_ptr + sequence)
        log_likelihood = tl.load(log_likelihood_ptr + sequence)
        weight = tl.load(weight_ptr + sequence).to(tl.float64) if WEIGHTS else 1.0
        for t in range(tl.load(lengths_ptr + sequence) - 1):
            row = scratch + t
            left = tl.load(alpha_ptr + row * k + i, mask=i < k, other=float("-inf"))
            right = tl.load(right_ptr + (row + 1) * k + j, mask=j < k, other=float("-inf"))
            exponent = (left - _finite(tl.load(norm_ptr + row)))[:, None] + right[None, :]
            pair = _density(exponent, log_likelihood, MOST)
            if STEPS:
                if first + t < transitions:
                    out = second_ptr + (first + t) * k * k + at
                    tl.store(out, pair.to(second_ptr.dtype.element_ty), mask=mask)
            else:
                # Without weight a sequence adds nothing, even where it is NaN.
                sums += tl.where(weight == 0.0, 0.0, weight * pair)
    if not STEPS:
        tl.store(second_ptr + program * k * k + at, sums, mask=mask)
