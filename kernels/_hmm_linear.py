"""Hidden Markov kernels in linear space: normalised filter, backward messages, sums of pairs.

Shape letters: ``B`` sequences, ``N`` frames of all sequences, ``M`` transitions, ``K`` states.  A
program takes BLOCK_B sequences, with their states side by side in BLOCK_K lanes.

The filter is kept beside a bound of what it *lost*: the mass that lay below the smallest
normal number when it was dropped, in units of that number, carried along as mass is.  Where the
bound says that the loss may show in a result, the sequence is marked in ``redo``, and computed
again by the kernels of `_hmm_log`.  Impossible and undefined frames are too: their sum is 0 or NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tiny(dtype: tl.constexpr):
    """Smallest normal number."""
    return 2.2250738585072014e-308 if dtype == tl.float64 else 1.1754943508222875e-38


@triton.jit
def most_lost(dtype: tl.constexpr):
    """What may be lost of a mass of 1, in units of `tiny`, without a trace: epsilon / tiny."""
    return 9.9792015476736e291 if dtype == tl.float64 else 1.0141204801825835e31


@triton.jit
def matrix_of(matrix_ptr, rows, active, k, VARYING: tl.constexpr):
    """Where the matrix of each sequence lies, or one for all, and whether it may be read."""
    if VARYING:
        return matrix_ptr + rows * k * k, active
    else:
        return matrix_ptr + tl.zeros([1], tl.int64), tl.full([1], 1, tl.int1)


@triton.jit
def load_tile(matrix_at, here, i0, k, stride_in, stride_out, TILE: tl.constexpr, BLOCK_K):
    """Rows ``i0`` to ``i0 + TILE`` of the matrices at ``matrix_at`` (n,): (n, TILE, BLOCK_K)."""
    rows = tl.cast(i0, tl.int64) + tl.arange(0, TILE)
    columns = tl.cast(tl.arange(0, BLOCK_K), tl.int64)
    at = rows[:, None] * stride_in + columns[None, :] * stride_out
    mask = (rows < k)[:, None] & (columns < k)[None, :]
    return tl.load(
        matrix_at[:, None, None] + at[None, :, :],
        mask=here[:, None, None] & mask[None, :, :],
        other=0.0,
    )


@triton.jit
def pick(x, i0, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, TILE: tl.constexpr):
    """Columns ``i0`` to ``i0 + TILE`` of ``x`` (BLOCK_B, BLOCK_K), which lies in registers."""
    if TILE == BLOCK_K:
        return x
    else:
        parts = tl.reshape(x, [BLOCK_B, BLOCK_K // TILE, TILE])
        chosen = tl.arange(0, BLOCK_K // TILE)[None, :, None] == i0 // TILE
        return tl.sum(tl.where(chosen, parts, 0.0), axis=1)


@triton.jit
def contract(x, tile, DOT: tl.constexpr, TILE: tl.constexpr, BLOCK_K: tl.constexpr):
    """``x`` (BLOCK_B, TILE) times the matrices of ``tile`` (BLOCK_B or 1, TILE, BLOCK_K)."""
    if DOT:
        matrix = tl.reshape(tile, [TILE, BLOCK_K])
        return tl.dot(x, matrix, input_precision="ieee", out_dtype=x.dtype)
    else:
        return tl.sum(x[:, :, None] * tile, axis=1)


@triton.jit
def product(
    x, held, matrix_at, here, k, stride_in, stride_out,
    HELD: tl.constexpr, DOT: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """``x`` (BLOCK_B, BLOCK_K) times a matrix: that in ``held``, or streamed in tiles of rows."""
    if HELD:
        out = contract(x, held, DOT, BLOCK_K, BLOCK_K)
    else:
        out = tl.zeros([BLOCK_B, BLOCK_K], x.dtype)
        for i0 in range(0, k, TILE):
            tile = load_tile(matrix_at, here, i0, k, stride_in, stride_out, TILE, BLOCK_K)
            out += contract(pick(x, i0, BLOCK_B, BLOCK_K, TILE), tile, DOT, TILE, BLOCK_K)
    return out


@triton.jit
def load_frames(log_obs_ptr, rows, active, k, BLOCK_K: tl.constexpr):
    """Log-densities of one frame of each sequence; -inf beyond K, 0 where there is no frame."""
    states = tl.arange(0, BLOCK_K)
    mask = active[:, None] & (states < k)[None, :]
    at = log_obs_ptr + rows[:, None] * k + states[None, :]
    return tl.where((states < k)[None, :], tl.load(at, mask=mask, other=0.0), float("-inf"))


@triton.jit
def absorb(mass, log_obs):
    """``mass`` times the densities of a frame, and what is needed to normalise it.

    ``(joint, density, total, shift, fine)``: densities are about ``shift``, and ``total``, the sum
    of ``joint``, is 1 where it is not fine to divide by.
    """
    shift = tl.max(log_obs, axis=1)
    density = tl.exp(log_obs - shift[:, None])
    joint = mass * density
    total = tl.sum(joint, axis=1)
    # False for NaN as well.
    fine = (total * most_lost(mass.dtype) >= 1.0) & (total < float("inf"))
    return joint, density, tl.where(fine, total, 1.0), shift, fine


@triton.jit
def lose(lost, mass, log_obs, joint, density, total, least):
    """What is lost of a normalised mass: what was before, and what drops out in this frame.

    That is also what the next product would lose, with the ``least`` positive transition.
    """
    dropped = joint < tiny(mass.dtype) / least * tl.maximum(total, 1.0)[:, None]
    dropped = dropped & (mass > 0.0) & (log_obs > float("-inf"))
    now = tl.where(dropped, 1.0 / least / tl.minimum(total, 1.0)[:, None], 0.0)
    return lost * density / total[:, None] + now


@triton.jit(do_not_specialize=["count"])
def forward_kernel(
    log_obs_ptr,  # (N, K), contiguous
    initial_ptr,  # (B, K), or (K,) with stride 0
    matrix_ptr,  # (K, K), or where VARYING (M, K, K), entries by strides
    starts_ptr,  # (B,) int64, and so are lengths and the first transitions
    lengths_ptr,
    first_transition_ptr,
    order_ptr,  # (count,) int64: the sequences
    log_likelihood_ptr,  # out (B,) float64
    filtered_ptr,  # out (N, K), where STORE
    redo_ptr,  # out (B,) int32
    least_ptr,  # (1,), the least positive transition, at most 1
    count,
    k,
    stride_initial,
    stride_in,
    stride_out,
    STORE: tl.constexpr,
    VARYING: tl.constexpr,
    HELD: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE: tl.constexpr,
):
    """Filter: ``alpha_t(j)`` is proportional to ``exp(log_obs_t(j)) sum_i alpha_t-1(i) A_ij``."""
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
        held = load_tile(whole_at, whole, 0, k, stride_in, stride_out, BLOCK_K, BLOCK_K)
    at = initial_ptr + sequence[:, None] * stride_initial + states[None, :]
    mass = tl.load(at, mask=present[:, None] & state_in, other=0.0)
    lost = tl.zeros([BLOCK_B, BLOCK_K], mass.dtype)
    least = tl.load(least_ptr)
    log_likelihood = tl.zeros([BLOCK_B], tl.float64)
    redo = tl.zeros([BLOCK_B], tl.int32)
    for t in range(tl.max(length, axis=0)):
        active = t < length
        if t > 0:
            matrix_at, here = matrix_of(matrix_ptr, first + (t - 1), active, k, VARYING)
            mass = product(
                mass, held, matrix_at, here, k, stride_in, stride_out,
                HELD, DOT, BLOCK_B, BLOCK_K, TILE,
            )  # fmt: skip
            if tl.max(tl.max(lost, axis=1), axis=0) > 0:
                lost = product(
                    lost, held, matrix_at, here, k, stride_in, stride_out,
                    HELD, DOT, BLOCK_B, BLOCK_K, TILE,
                )  # fmt: skip
        log_obs = load_frames(log_obs_ptr, start + t, active, k, BLOCK_K)
        joint, density, total, shift, fine = absorb(mass, log_obs)
        lost = lose(lost, mass, log_obs, joint, density, total, least)
        fine = fine & (tl.sum(lost, axis=1) <= most_lost(mass.dtype))
        mass = tl.where(fine[:, None], joint / total[:, None], 0.0)
        lost = tl.where(fine[:, None], lost, 0.0)
        log_norm = tl.log(total.to(tl.float64)) + shift.to(tl.float64)
        log_likelihood += tl.where(active, log_norm, 0.0)
        redo = tl.where(active & (fine == 0), 1, redo)
        if STORE:
            out = filtered_ptr + (start + t)[:, None] * k + states[None, :]
            tl.store(out, mass, mask=active[:, None] & state_in)
    tl.store(log_likelihood_ptr + sequence, log_likelihood, mask=present)
    tl.store(redo_ptr + sequence, redo, mask=present)


@triton.jit(do_not_specialize=["count", "transitions"])
def backward_kernel(
    log_obs_ptr,  # as in forward_kernel, down to order_ptr
    initial_ptr,
    matrix_ptr,  # entries by strides: stride_in belongs to the later state
    starts_ptr,
    lengths_ptr,
    first_transition_ptr,
    order_ptr,
    weight_ptr,  # (B,), where WEIGHTS
    filtered_ptr,  # (N, K)
    scale_ptr,  # out (N,), unless STEPS: 1 / Z, and 0 at the last frame
    right_ptr,  # out (N, K), unless STEPS: weight times u
    posteriors_ptr,  # out (N, K)
    first_ptr,  # out (B, K)
    second_ptr,  # out (M, K, K), where STEPS
    redo_ptr,  # in and out (B,) int32
    count,
    transitions,  # M
    k,
    stride_initial,
    stride_in,
    stride_out,
    WEIGHTS: tl.constexpr,
    STEPS: tl.constexpr,
    VARYING: tl.constexpr,
    HELD: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE: tl.constexpr,
):
    """Posteriors, from ``beta_t = A u_t+1`` with ``u_t`` proportional to ``exp(log_obs_t) beta_t``.

    With ``Z_t = sum_i alpha_t(i) beta_t(i)`` the posterior is ``alpha_t beta_t / Z_t``, and the
    derivative of the log-likelihood in A at step t is ``alpha_t(i) u_t+1(j) / Z_t``.  What drops
    out of ``u`` is less than `tiny` over the norm of u, so it lacks in no posterior by more than
    rounding as long as Z times that norm is at least 1 / `most_lost`.
    """
    slots = tl.cast(tl.program_id(0), tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    present = slots < count
    sequence = tl.load(order_ptr + slots, mask=present, other=0)
    start = tl.load(starts_ptr + sequence, mask=present, other=0)
    length = tl.load(lengths_ptr + sequence, mask=present, other=0)
    redo = tl.load(redo_ptr + sequence, mask=present, other=0)
    first = tl.load(first_transition_ptr + sequence, mask=present, other=0)
    states = tl.arange(0, BLOCK_K)
    state_in = (states < k)[None, :]
    held = 0
    if HELD:
        whole_at, whole = matrix_of(matrix_ptr, first, present, k, False)
        held = load_tile(whole_at, whole, 0, k, stride_in, stride_out, BLOCK_K, BLOCK_K)
    dtype: tl.constexpr = filtered_ptr.dtype.element_ty
    limit = most_lost(dtype)
    beta = tl.full([BLOCK_B, BLOCK_K], 1.0, dtype)
    u = tl.zeros([BLOCK_B, BLOCK_K], dtype)
    norm = tl.full([BLOCK_B], 1.0, dtype)
    weight = tl.full([BLOCK_B], 1.0, dtype)
    if WEIGHTS:
        weight = tl.load(weight_ptr + sequence, mask=present, other=0.0)
    for back in range(tl.max(length, axis=0)):
        t = length - 1 - back
        active = t >= 0
        if back > 0:
            matrix_at, here = matrix_of(matrix_ptr, first + t, active, k, VARYING)
            beta = product(
                u, held, matrix_at, here, k, stride_in, stride_out,
                HELD, DOT, BLOCK_B, BLOCK_K, TILE,
            )  # fmt: skip
        at = (start + t)[:, None] * k + states[None, :]
        mask = active[:, None] & state_in
        alpha = tl.load(filtered_ptr + at, mask=mask, other=0.0)
        total = tl.sum(alpha * beta, axis=1)
        fine = (total * tl.minimum(norm, 1.0) * limit >= 1.0) & (total < float("inf"))
        total = tl.where(fine, total, 1.0)
        tl.store(posteriors_ptr + at, alpha * beta / total[:, None], mask=mask)
        if STEPS:
            row = first + t
            paired = active & (back > 0) & (row < transitions)
            left = alpha / total[:, None]
            for i0 in range(0, k, TILE):
                i = i0 + tl.arange(0, TILE)
                pair = pick(left, i0, BLOCK_B, BLOCK_K, TILE)[:, :, None] * u[:, None, :]
                inside = (i < k)[None, :, None] & state_in[:, None, :]
                to = second_ptr + (row[:, None] * k + i[None, :])[:, :, None] * k
                tl.store(to + states[None, None, :], pair, mask=paired[:, None, None] & inside)
        else:
            # Nothing follows the last frame.
            tl.store(scale_ptr + start + t, tl.where(back > 0, 1.0 / total, 0.0), mask=active)
        log_obs = load_frames(log_obs_ptr, start + t, active, k, BLOCK_K)
        joint, _, total, _, absorbed = absorb(beta, log_obs)
        # Where a shorter sequence has ended, u stays that of its first frame.
        new_u = tl.where(absorbed[:, None], joint / total[:, None], 0.0)
        u = tl.where(active[:, None], new_u, u)
        norm = tl.where(active, total, norm)
        redo = tl.where(active & ((fine & absorbed) == 0), 1, redo)
        if not STEPS:
            tl.store(right_ptr + at, weight[:, None] * u, mask=mask)
    begins = present & (length > 0)
    at = initial_ptr + sequence[:, None] * stride_initial + states[None, :]
    initial = tl.load(at, mask=present[:, None] & state_in, other=0.0)
    total = tl.sum(initial * u, axis=1)
    fine = (total * tl.minimum(norm, 1.0) * limit >= 1.0) & (total < float("inf"))
    u = tl.where(begins[:, None], u / tl.where(fine, total, 1.0)[:, None], 0.0)
    tl.store(first_ptr + sequence[:, None] * k + states[None, :], u, present[:, None] & state_in)
    redo = tl.where(begins & (fine == 0), 1, redo)
    tl.store(redo_ptr + sequence, redo, mask=present)


@triton.jit(do_not_specialize=["n", "programs"])
def pair_sums_kernel(
    left_ptr,  # (N, K), contiguous
    scale_ptr,  # (N,): factors of the rows of left
    right_ptr,  # (N, K), contiguous
    sums_ptr,  # out (programs, K, K) float64
    n,
    k,
    programs,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``sum_n scale_n left_n(i) right_n+1(j)`` of a tile over every ``programs``-th row block."""
    dtype = left_ptr.dtype.element_ty
    tiles = tl.cdiv(k, BLOCK_K)
    tile = tl.program_id(0) % (tiles * tiles)
    program = tl.cast(tl.program_id(0) // (tiles * tiles), tl.int64)
    i = tl.cast(tile // tiles, tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    j = tl.cast(tile % tiles, tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    sums = tl.zeros([BLOCK_K, BLOCK_K], tl.float64)
    for n0 in range(program * BLOCK_N, n - 1, programs * BLOCK_N):
        rows = tl.cast(n0, tl.int64) + tl.arange(0, BLOCK_N)
        row_in = (rows < n - 1)[:, None]
        at = rows[:, None] * k
        scale = tl.load(scale_ptr + rows, mask=rows < n - 1, other=0.0)
        left = tl.load(left_ptr + at + i[None, :], mask=row_in & (i < k)[None, :], other=0.0)
        right = tl.load(right_ptr + at + k + j[None, :], mask=row_in & (j < k)[None, :], other=0.0)
        block = tl.dot(
            tl.trans(left * scale[:, None]), right, input_precision="ieee", out_dtype=dtype
        )
        sums += block.to(tl.float64)
    out = sums_ptr + (program * k + i[:, None]) * k + j[None, :]
    tl.store(out, sums, mask=(i < k)[:, None] & (j < k)[None, :])
