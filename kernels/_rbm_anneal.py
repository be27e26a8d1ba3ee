"""The two half steps of a rung of annealed importance sampling, in Triton.

Shape letters: ``N`` chains, ``V`` visible and ``J`` hidden units.  A program takes a block of
chains and a block of units.  What it adds to the log-weights of its chains goes to a row of its
own, so that nothing is added in the order of arrival.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _uniform_pairs(seed, step, row, first, BLOCK: tl.constexpr, dtype: tl.constexpr):
    """Uniforms of BLOCK columns from ``first`` on: the even ones and the odd ones."""
    SINGLE: tl.constexpr = dtype == tl.float32
    COUNTERS: tl.constexpr = BLOCK // 4 if SINGLE else BLOCK // 2
    counter = first // (4 if SINGLE else 2) + tl.arange(0, COUNTERS)
    zero = tl.zeros([row.shape[0], COUNTERS], tl.uint32)
    w0, w1, w2, w3 = tl.philox(
        seed,
        zero + counter[None, :].to(tl.uint32),
        zero + row[:, None].to(tl.uint32),
        zero + (row[:, None] >> 32).to(tl.uint32),
        zero + tl.cast(step, tl.uint32),
        n_rounds=10,
    )
    if SINGLE:
        even = (tl.interleave(w0, w2) >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
        odd = (tl.interleave(w1, w3) >> 8).to(tl.float32) * 5.9604644775390625e-08
        return even, odd
    else:
        even = ((w0 >> 5).to(tl.uint64) << 26) + (w1 >> 6).to(tl.uint64)
        odd = ((w2 >> 5).to(tl.uint64) << 26) + (w3 >> 6).to(tl.uint64)
        return (
            even.to(tl.float64) * 1.1102230246251565e-16,  # 2^-53
            odd.to(tl.float64) * 1.1102230246251565e-16,
        )


@triton.jit
def _product(
    state_ptr, row, row_in, depth, weight_ptr, weight_step, place, place_in, acc,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``acc`` plus states (N, depth) times weights, whose row k is ``weight_step`` k further."""
    wide = tl.cast(depth, tl.int64)
    for first in range(0, depth, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = k < depth
        state = tl.load(
            state_ptr + row[:, None] * wide + k[None, :],
            mask=row_in[:, None] & inside[None, :],
            other=0.0,
        )
        weight = tl.load(
            weight_ptr + place[None, :] + k[:, None] * tl.cast(weight_step, tl.int64),
            mask=place_in[None, :] & inside[:, None],
            other=0.0,
        )
        acc = tl.dot(state, weight, acc, input_precision="ieee", out_dtype=acc.dtype)
    return acc


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1 + e)


@triton.jit(do_not_specialize=["rung", "seed", "row0", "n", "visible", "hidden"])
def hidden_kernel(
    v_ptr,  # (N, V)
    weight_ptr,  # (J, V)
    bias_ptr,  # (J,)
    h_ptr,  # out (N, J)
    gain_ptr,  # in and out (blocks of J, N), float64
    beta_ptr,  # (K + 1,) float64
    rung,
    seed,
    row0,
    n,
    visible,
    hidden,
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """What the model of a rung gains on the last one at v, and its hidden units."""
    dtype: tl.constexpr = v_ptr.dtype.element_ty
    row = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * BLOCK_U
    unit = tl.cast(first + tl.arange(0, BLOCK_U), tl.int64)
    row_in, unit_in = row < n, unit < hidden
    x = tl.zeros([BLOCK_N, BLOCK_U], dtype)
    x = _product(v_ptr, row, row_in, visible, weight_ptr, 1, unit * visible, unit_in, x, BLOCK_K)
    x += tl.load(bias_ptr + unit, mask=unit_in, other=0.0)[None, :]
    before, after = tl.load(beta_ptr + rung - 1), tl.load(beta_ptr + rung)
    wide = x.to(tl.float64)
    gain = _softplus(after * wide) - _softplus(before * wide)
    gain_at = gain_ptr + tl.cast(tl.program_id(1), tl.int64) * n + row
    total = tl.sum(tl.where(unit_in[None, :], gain, 0.0), axis=1)
    tl.store(gain_at, tl.load(gain_at, mask=row_in, other=0.0) + total, mask=row_in)
    even, odd = _uniform_pairs(seed, 2 * tl.cast(rung, tl.int64), row + row0, first, BLOCK_U, dtype)
    p = _sigmoid(after.to(dtype) * x)
    h = tl.where(p != p, p, (tl.interleave(even, odd) < p).to(dtype))
    both = row_in[:, None] & unit_in[None, :]
    tl.store(h_ptr + row[:, None] * tl.cast(hidden, tl.int64) + unit[None, :], h, mask=both)


@triton.jit
def _draw(field, seed, step, row, first, dtype: tl.constexpr, LEVELS: tl.constexpr,
          PADDED: tl.constexpr):  # fmt: skip
    """States of a block of units; ``first`` is its first unit, or its first softmax group."""
    BLOCK: tl.constexpr = field.shape[1] // PADDED
    even, odd = _uniform_pairs(seed, step, row, first, BLOCK, dtype)
    if LEVELS == 0:
        r = tl.sqrt(-2 * tl.log(1 - even.to(tl.float64)))
        angle = 6.283185307179586 * odd.to(tl.float64)
        return field + tl.interleave(r * tl.cos(angle), r * tl.sin(angle)).to(dtype)
    elif LEVELS == 1:
        p = _sigmoid(field)
        return tl.where(p != p, p, (tl.interleave(even, odd) < p).to(dtype))
    else:
        x = tl.reshape(field, [field.shape[0], BLOCK, PADDED])
        w = tl.exp(x - tl.max(x, axis=2)[:, :, None])
        limit = tl.interleave(even, odd) * tl.sum(w, axis=2)
        level = tl.arange(0, PADDED)[None, None, :]
        past = (tl.cumsum(w, axis=2) <= limit[:, :, None]) & (level < LEVELS - 1)
        chosen = tl.sum(past.to(tl.int32), axis=2)
        v = (level == chosen[:, :, None]).to(dtype) + 0 * limit[:, :, None]
        return tl.reshape(v, [field.shape[0], field.shape[1]])


@triton.jit(do_not_specialize=["rung", "seed", "row0", "n", "visible", "hidden"])
def visible_kernel(
    h_ptr,  # (N, J)
    weight_ptr,  # (J, V)
    bias_ptr,  # (V,)
    base_ptr,  # (V,)
    v_ptr,  # out (N, V)
    gain_ptr,  # in and out (blocks of V, N), float64
    beta_ptr,  # (K + 1,) float64
    rung,
    seed,
    row0,
    n,
    visible,
    hidden,
    LEVELS: tl.constexpr,  # 0: Gaussian, 1: Bernoulli, else of a softmax group
    PADDED: tl.constexpr,  # LEVELS of a softmax group as a power of two, else 1
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Visible units of the model of a rung, and what is linear in them of the next gain."""
    dtype: tl.constexpr = v_ptr.dtype.element_ty
    row = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_in = row < n
    GROUPS: tl.constexpr = BLOCK_U // PADDED
    first = tl.program_id(1) * GROUPS
    lane = tl.arange(0, BLOCK_U)
    unit, unit_in = tl.cast(first + lane, tl.int64), first + lane < visible
    if LEVELS > 1:
        unit = tl.cast(first + lane // PADDED, tl.int64) * LEVELS + lane % PADDED
        unit_in = (lane % PADDED < LEVELS) & (unit < visible)
    field = tl.zeros([BLOCK_N, BLOCK_U], dtype)
    depth = tl.where(rung > 0, hidden, 0)  # the base model has no hidden units
    field = _product(h_ptr, row, row_in, depth, weight_ptr, visible, unit, unit_in, field, BLOCK_K)
    beta, after = tl.load(beta_ptr + rung), tl.load(beta_ptr + rung + 1)
    b = tl.load(bias_ptr + unit, mask=unit_in, other=0.0)
    base = tl.load(base_ptr + unit, mask=unit_in, other=0.0)
    bias = (1 - beta).to(dtype) * base + beta.to(dtype) * b
    field = bias[None, :] + beta.to(dtype) * field
    if LEVELS > 1:
        # A group beyond the last one has no level, and must not make NaN.
        none = (lane % PADDED >= LEVELS)[None, :]
        field = tl.where(none, float("-inf"), field)
    step = 2 * tl.cast(rung, tl.int64) + 1
    v = _draw(field, seed, step, row + row0, first, dtype, LEVELS, PADDED)
    slope = b.to(tl.float64) - base.to(tl.float64)
    seen = v.to(tl.float64)
    if LEVELS == 0:
        seen -= (0.5 * (b.to(tl.float64) + base.to(tl.float64)))[None, :]
    both = row_in[:, None] & unit_in[None, :]
    total = tl.sum(tl.where(both, seen * slope[None, :], 0.0), axis=1) * (after - beta)
    gain_at = gain_ptr + tl.cast(tl.program_id(1), tl.int64) * n + row
    tl.store(gain_at, tl.load(gain_at, mask=row_in, other=0.0) + total, mask=row_in)
    tl.store(v_ptr + row[:, None] * tl.cast(visible, tl.int64) + unit[None, :], v, mask=both)
