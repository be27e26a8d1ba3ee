"""Half steps of a restricted Boltzmann machine in Triton: product, probability, draw.

A program takes a block of rows to a block of the other layer's units.  Uniforms are made where they
are used, by the counters of `evidens.reference.philox`, and never written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._coupling_maps import _softplus

BERNOULLI, SPIN = tl.constexpr(0), tl.constexpr(1)
GAUSSIAN, SOFTMAX = tl.constexpr(2), tl.constexpr(3)
# States of the layer below: any numbers, mostly 0 and +-1, nothing else.
REAL, GIVEN, DRAWN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def _words(seed, step, row, column, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr):
    """The four words (BLOCK_N, BLOCKS) of the column blocks that begin at number ``column``."""
    zero = tl.zeros([BLOCK_N, BLOCKS], tl.uint32)
    counter = column + tl.arange(0, BLOCKS)
    return tl.philox(
        seed,
        zero + counter[None, :].to(tl.uint32),
        zero + row[:, None].to(tl.uint32),
        zero + (row >> 32)[:, None].to(tl.uint32),
        zero + tl.cast(step, tl.uint32),
        n_rounds=10,
    )


@triton.jit
def _single(word):
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@triton.jit
def _double(high, low):
    both = ((high >> 5).to(tl.uint64) << 26) + (low >> 6).to(tl.uint64)
    return both.to(tl.float64) * 1.1102230246251565e-16  # 2^-53


@triton.jit
def uniforms(
    seed, step, row, first, dtype: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr
):
    """Uniforms (BLOCK_N, BLOCK_U) of the columns from ``first``, a multiple of BLOCK_U."""
    if dtype == tl.float32:
        w0, w1, w2, w3 = _words(seed, step, row, first // 4, BLOCK_N, BLOCK_U // 4)
        # interleave() pairs last dimensions, so the even words are joined first.
        words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
        return _single(words)
    else:
        w0, w1, w2, w3 = _words(seed, step, row, first // 2, BLOCK_N, BLOCK_U // 2)
        return tl.interleave(_double(w0, w1), _double(w2, w3))


@triton.jit
def _pair(u, w):
    """Two normals from two uniforms (Box and Muller)."""
    r = tl.sqrt(-2.0 * tl.log(1.0 - u))
    turn = w * 6.283185307179586
    return r * tl.cos(turn), r * tl.sin(turn)


@triton.jit
def normals(
    seed, step, row, first, dtype: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr
):
    if dtype == tl.float32:
        w0, w1, w2, w3 = _words(seed, step, row, first // 4, BLOCK_N, BLOCK_U // 4)
        z0, z1 = _pair(_single(w0), _single(w1))
        z2, z3 = _pair(_single(w2), _single(w3))
        return tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))
    else:
        w0, w1, w2, w3 = _words(seed, step, row, first // 2, BLOCK_N, BLOCK_U // 2)
        z0, z1 = _pair(_double(w0, w1), _double(w2, w3))
        return tl.interleave(z0, z1)


@triton.jit
def _product(x, w, acc, STATES: tl.constexpr):
    """``acc + x w``; in float32 by products of bfloat16, but for REAL states.

    A float32 has the 24 bits of three bfloat16, so products with 0 and +-1 are exact, and only sums
    are rounded.  What else a GIVEN state holds is multiplied apart, which adds 0 where there is
    nothing else: a row depends neither on the others nor on whether its state was given or drawn.
    """
    dtype: tl.constexpr = acc.dtype
    if dtype != tl.float32 or STATES == REAL:
        return tl.dot(x, w, acc, input_precision="ieee", out_dtype=dtype)
    else:
        whole = x.to(tl.bfloat16)
        high = w.to(tl.bfloat16)
        rest = w - high.to(dtype)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(dtype)).to(tl.bfloat16)
        if INTERPRETED:  # whose products of bfloat16 are those of their bits
            whole, high, middle, low = (
                whole.to(dtype),
                high.to(dtype),
                middle.to(dtype),
                low.to(dtype),
            )
        acc = tl.dot(whole, low, acc)
        acc = tl.dot(whole, middle, acc)
        acc = tl.dot(whole, high, acc)
        if STATES == GIVEN:
            kept = whole.to(dtype)
            more = tl.where(tl.abs(kept) < float("inf"), x - kept, 0.0)
            if tl.max(tl.abs(more)) > 0:
                acc = tl.dot(more, w, acc, input_precision="ieee")
        return acc


@triton.jit
def _fields(
    state_ptr, state_row, weight_ptr, weight_depth, weight_unit, bias_ptr, precision_ptr,
    row, unit, rows, depth, units, dtype: tl.constexpr, STATES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Inputs (BLOCK_N, BLOCK_U) of the units: bias and product."""
    acc = tl.zeros((BLOCK_N, BLOCK_U), dtype=dtype)
    for k in range(0, depth, BLOCK_K):
        at = tl.arange(0, BLOCK_K).to(tl.int64) + k
        x = tl.load(
            state_ptr + row[:, None] * state_row + at[None, :],
            mask=(row < rows)[:, None] & (at < depth)[None, :],
            other=0.0,
        )
        if precision_ptr is not None:
            x *= tl.load(precision_ptr + at, mask=at < depth, other=0.0)[None, :]
        w = tl.load(
            weight_ptr + at[:, None] * weight_depth + unit[None, :] * weight_unit,
            mask=(at < depth)[:, None] & (unit < units)[None, :],
            other=0.0,
        )
        acc = _product(x, w, acc, STATES)
    return acc + tl.load(bias_ptr + unit, mask=unit < units, other=0.0)[None, :]


@triton.jit(do_not_specialize=["seed", "step", "row0", "rows", "depth", "units"])
def half_kernel(
    state_ptr,  # (N, depth), rows state_row apart
    weight_ptr,  # (depth, units), by strides
    bias_ptr,  # (units,)
    precision_ptr,  # (depth,) that scales the states, or None
    beta_ptr,  # (N,), or None
    scale_ptr,  # (units,) standard deviations of Gaussian units, or None
    clamped_ptr,  # (N, units) int8, or None
    values_ptr,  # (N, units), or None
    out_ptr,  # (N, units), or None
    mean_ptr,  # (N, units), or None
    seed,
    step,
    row0,
    rows,
    depth,
    units,
    state_row,
    weight_depth,
    weight_unit,
    KIND: tl.constexpr,
    STATES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    dtype: tl.constexpr = bias_ptr.dtype.element_ty
    blocks = tl.cdiv(units, BLOCK_U)
    first = (tl.program_id(0) % blocks) * BLOCK_U
    row = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    unit = first.to(tl.int64) + tl.arange(0, BLOCK_U)
    a = _fields(
        state_ptr, state_row, weight_ptr, weight_depth, weight_unit, bias_ptr, precision_ptr,
        row, unit, rows, depth, units, dtype, STATES, BLOCK_N, BLOCK_U, BLOCK_K,
    )  # fmt: skip
    mask = (row < rows)[:, None] & (unit < units)[None, :]
    to = row[:, None] * units + unit[None, :]
    x = a
    if beta_ptr is not None:
        beta = tl.load(beta_ptr + row, mask=row < rows, other=1.0)
        x = a * beta[:, None]
    if KIND == SOFTMAX:  # groups cross blocks: another kernel draws
        tl.store(out_ptr + to, x, mask=mask)
    else:
        if KIND == GAUSSIAN:
            mean = a
        else:
            e = tl.exp(-tl.abs(x) * (2.0 if KIND == SPIN else 1.0))
            if KIND == SPIN:
                mean = (1.0 - e) / (1.0 + e)
                mean = tl.where(x < 0, -mean, mean)
            else:
                mean = tl.where(x < 0, e, 1.0) / (1.0 + e)
        if clamped_ptr is not None:
            given = tl.load(clamped_ptr + to, mask=mask, other=0) != 0
            value = tl.load(values_ptr + to, mask=mask, other=0.0)
        if mean_ptr is not None:
            if clamped_ptr is not None:
                tl.store(mean_ptr + to, tl.where(given, value, mean), mask=mask)
            else:
                tl.store(mean_ptr + to, mean, mask=mask)
        if out_ptr is not None:
            if KIND == GAUSSIAN:
                spread = tl.load(scale_ptr + unit, mask=unit < units, other=0.0)[None, :]
                if beta_ptr is not None:
                    spread = spread / tl.sqrt(beta)[:, None]
                z = normals(seed, step, row + row0, first, dtype, BLOCK_N, BLOCK_U)
                drawn = a + z * spread
            else:
                u = uniforms(seed, step, row + row0, first, dtype, BLOCK_N, BLOCK_U)
                p = tl.where(x < 0, e, 1.0) / (1.0 + e)
                off = -1.0 if KIND == SPIN else 0.0
                drawn = tl.where(x != x, x, tl.where(u < p, 1.0, off))
            if clamped_ptr is not None:
                drawn = tl.where(given, value, drawn)
            tl.store(out_ptr + to, drawn.to(dtype), mask=mask)


@triton.jit(do_not_specialize=["seed", "step", "row0", "rows", "groups", "levels"])
def softmax_kernel(
    out_ptr,  # (N, groups * levels): inputs, then states
    mean_ptr,  # the same shape, or None
    clamped_ptr,  # int8, or None
    values_ptr,
    seed,
    step,
    row0,
    rows,
    groups,
    levels,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    blocks = tl.cdiv(groups, BLOCK_G)
    first = (tl.program_id(0) % blocks) * BLOCK_G
    row = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    group = first.to(tl.int64) + tl.arange(0, BLOCK_G)
    mask = (row < rows)[:, None] & (group < groups)[None, :]
    at = (row[:, None] * groups + group[None, :]) * levels
    most = tl.load(out_ptr + at, mask=mask, other=0.0)
    for k in range(1, levels):
        x = tl.load(out_ptr + at + k, mask=mask, other=0.0)
        most = tl.where((x > most) | (x != x), x, most)
    total = tl.zeros_like(most)
    for k in range(levels):
        total += tl.exp(tl.load(out_ptr + at + k, mask=mask, other=0.0) - most)
    limit = uniforms(seed, step, row + row0, first, dtype, BLOCK_N, BLOCK_G) * total
    running, level = tl.zeros_like(most), tl.zeros([BLOCK_N, BLOCK_G], tl.int32)
    for k in range(levels - 1):
        running += tl.exp(tl.load(out_ptr + at + k, mask=mask, other=0.0) - most)
        level += (running <= limit).to(tl.int32)
    for k in range(levels):
        x = tl.load(out_ptr + at + k, mask=mask, other=0.0)
        drawn = tl.where(limit != limit, limit, tl.where(level == k, 1.0, 0.0))
        mean = tl.exp(x - most) / total
        if clamped_ptr is not None:
            given = tl.load(clamped_ptr + at + k, mask=mask, other=0) != 0
            value = tl.load(values_ptr + at + k, mask=mask, other=0.0)
            drawn, mean = tl.where(given, value, drawn), tl.where(given, value, mean)
        tl.store(out_ptr + at + k, drawn.to(dtype), mask=mask)
        if mean_ptr is not None:
            tl.store(mean_ptr + at + k, mean, mask=mask)


@triton.jit(do_not_specialize=["rows", "depth", "units"])
def free_energy_kernel(
    v_ptr,  # (N, depth), rows v_row apart
    weight_ptr,  # (depth, units), by strides
    visible_bias_ptr,  # (depth,)
    hidden_bias_ptr,  # (units,)
    precision_ptr,  # (depth,) of Gaussian units, or None
    beta_ptr,  # (N,), or None
    out_ptr,  # (N,)
    rows,
    depth,
    units,
    v_row,
    weight_depth,
    weight_unit,
    SPIN_UNITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    beta = tl.full([BLOCK_N], 1.0, dtype)
    if beta_ptr is not None:
        beta = tl.load(beta_ptr + row, mask=row < rows, other=1.0)
    total = tl.zeros([BLOCK_N], tl.float64)
    for k in range(0, depth, BLOCK_K):
        at = tl.arange(0, BLOCK_K).to(tl.int64) + k
        x = tl.load(
            v_ptr + row[:, None] * v_row + at[None, :],
            mask=(row < rows)[:, None] & (at < depth)[None, :],
            other=0.0,
        ).to(tl.float64)
        b = tl.load(visible_bias_ptr + at, mask=at < depth, other=0.0).to(tl.float64)
        if precision_ptr is not None:
            away = x - b[None, :]
            precision = tl.load(precision_ptr + at, mask=at < depth, other=0.0).to(tl.float64)
            total += tl.sum(0.5 * away * away * precision[None, :], 1)
        else:
            total -= tl.sum(tl.where(x == 0, 0.0, x * b[None, :]), 1)
    total *= beta.to(tl.float64)
    for first in range(0, units, BLOCK_U):
        unit = tl.arange(0, BLOCK_U).to(tl.int64) + first
        x = _fields(
            v_ptr, v_row, weight_ptr, weight_depth, weight_unit, hidden_bias_ptr, precision_ptr,
            row, unit, rows, depth, units, dtype, REAL, BLOCK_N, BLOCK_U, BLOCK_K,
        )  # fmt: skip
        x *= beta[:, None]
        if SPIN_UNITS:
            term = tl.abs(x) + _softplus(-2.0 * tl.abs(x))
        else:
            term = _softplus(x)
        term = tl.where(x != x, x, term)
        total -= tl.sum(tl.where((unit < units)[None, :], term, 0.0).to(tl.float64), 1)
    tl.store(out_ptr + row, total.to(dtype), mask=row < rows)


@triton.jit(do_not_specialize=["rows", "visible", "hidden"])
def sums_kernel(
    h_ptr,  # (N, J) contiguous
    v_ptr,  # (N, V), rows v_row apart
    sample_weight_ptr,  # (N,), or None
    precision_ptr,  # (V,), or None
    out_ptr,  # (J, V)
    rows,
    visible,
    hidden,
    v_row,
    BLOCK_J: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The sum over rows of h v^T: a block of rows in the type of the data, blocks in double."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    blocks = tl.cdiv(visible, BLOCK_V)
    j = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_J + tl.arange(0, BLOCK_J)
    i = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
    total = tl.zeros((BLOCK_J, BLOCK_V), tl.float64)
    for n in range(0, rows, BLOCK_N):
        row = tl.arange(0, BLOCK_N).to(tl.int64) + n
        h = tl.load(
            h_ptr + row[None, :] * hidden + j[:, None],
            mask=(row < rows)[None, :] & (j < hidden)[:, None],
            other=0.0,
        )
        if sample_weight_ptr is not None:
            h *= tl.load(sample_weight_ptr + row, mask=row < rows, other=0.0)[None, :]
        v = tl.load(
            v_ptr + row[:, None] * v_row + i[None, :],
            mask=(row < rows)[:, None] & (i < visible)[None, :],
            other=0.0,
        )
        total += tl.dot(h, v, input_precision="ieee", out_dtype=dtype).to(tl.float64)
    if precision_ptr is not None:
        total *= tl.load(precision_ptr + i, mask=i < visible, other=0.0).to(tl.float64)[None, :]
    tl.store(
        out_ptr + j[:, None] * visible + i[None, :],
        total.to(dtype),
        mask=(j < hidden)[:, None] & (i < visible)[None, :],
    )


@triton.jit(do_not_specialize=["rows", "columns"])
def columns_kernel(
    x_ptr,  # (N, columns), rows x_row apart
    sample_weight_ptr,  # (N,), or None
    centre_ptr,  # (columns,), or None
    sum_ptr,  # (columns,)
    square_ptr,  # (columns,), or None
    rows,
    columns,
    x_row,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums over rows of x - centre, and of its square."""
    dtype: tl.constexpr = sum_ptr.dtype.element_ty
    c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    total, square = tl.zeros([BLOCK_C], tl.float64), tl.zeros([BLOCK_C], tl.float64)
    centre = tl.zeros([BLOCK_C], tl.float64)
    if centre_ptr is not None:
        centre = tl.load(centre_ptr + c, mask=c < columns, other=0.0).to(tl.float64)
    for n in range(0, rows, BLOCK_N):
        row = tl.arange(0, BLOCK_N).to(tl.int64) + n
        mask = (row < rows)[:, None] & (c < columns)[None, :]
        x = tl.load(x_ptr + row[:, None] * x_row + c[None, :], mask=mask, other=0.0)
        away = tl.where(mask, x.to(tl.float64) - centre[None, :], 0.0)
        weighted = away
        if sample_weight_ptr is not None:
            w = tl.load(sample_weight_ptr + row, mask=row < rows, other=0.0).to(tl.float64)
            weighted = away * w[:, None]
        total += tl.sum(weighted, 0)
        square += tl.sum(weighted * away, 0)
    tl.store(sum_ptr + c, total.to(dtype), mask=c < columns)
    if square_ptr is not None:
        tl.store(square_ptr + c, square.to(dtype), mask=c < columns)
