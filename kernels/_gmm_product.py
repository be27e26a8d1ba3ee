"""Gaussian mixture kernels for full and tied covariances: matrix products per component.

Shape letters: ``N`` rows, ``D`` features, ``K`` components; ``E`` is D rounded up to BLOCK_D, to
which the parameters come padded with zeros.  A D beyond BLOCK_D is walked in blocks of it.  A tied
covariance is a full one whose component stride is 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._gmm_diagonal import finite_shift


@triton.jit
def _add_whitened(y, x, means_ptr, factor_ptr, cols, js, e):
    """``y + (x - mean) factor`` for features ``cols`` of ``x`` and columns ``js`` of the factor."""
    mean = tl.load(means_ptr + cols)
    factor = tl.load(factor_ptr + cols[:, None] * e + js[None, :])
    return tl.dot(x - mean[None, :], factor, y, input_precision="ieee", out_dtype=y.dtype)


@triton.jit
def _oddities(x):
    """How many infinities and NaN each row of a tile has."""
    infinite = tl.sum((tl.abs(x) == float("inf")).to(tl.int32), axis=1)
    return infinite, tl.sum((x != x).to(tl.int32), axis=1)


@triton.jit(do_not_specialize=["n"])
def log_prob_kernel(
    x_ptr,  # (N, D), any strides
    constants_ptr,  # (K,): log weight, log-determinant and the power of 2 pi
    means_ptr,  # (K, E), contiguous
    factors_ptr,  # (K, E, E), upper triangular, contiguous but for the component stride
    terms_ptr,  # out (N, K), any strides, where TERMS
    total_ptr,  # out (N,), where TOTAL
    n,
    k,
    d,
    e,
    stride_xn,
    stride_xd,
    stride_fk,
    stride_tn,
    stride_tk,
    TERMS: tl.constexpr,
    TOTAL: tl.constexpr,
    ONE_BLOCK: tl.constexpr,  # D fits BLOCK_D
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Component log-densities of a block of rows, and their log-sum-exp."""
    dtype = x_ptr.dtype.element_ty
    rows = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_in = rows < n
    lanes = tl.cast(tl.arange(0, BLOCK_D), tl.int64)
    x_at = x_ptr + rows[:, None] * stride_xn
    x = tl.load(
        x_at + lanes[None, :] * stride_xd, mask=row_in[:, None] & (lanes < d)[None, :], other=0.0
    )
    infinite, undefined = _oddities(x)
    if not ONE_BLOCK:
        for i0 in range(BLOCK_D, d, BLOCK_D):
            cols = i0 + lanes
            mask = row_in[:, None] & (cols < d)[None, :]
            more = _oddities(tl.load(x_at + cols[None, :] * stride_xd, mask=mask, other=0.0))
            infinite, undefined = infinite + more[0], undefined + more[1]
    impossible = (infinite > 0) & (undefined == 0)
    peak = tl.full([BLOCK_N], float("-inf"), dtype)
    mass = tl.zeros([BLOCK_N], dtype)
    for component in range(k):
        k64 = tl.cast(component, tl.int64)
        mean_ptr = means_ptr + k64 * e
        factor_ptr = factors_ptr + k64 * stride_fk
        if ONE_BLOCK:
            y = tl.zeros([BLOCK_N, BLOCK_D], dtype)
            y = _add_whitened(y, x, mean_ptr, factor_ptr, lanes, lanes, e)
            # An infinite row times the padding's zeros is NaN and must not count.
            y = tl.where((lanes < d)[None, :], y, 0.0)
            square = tl.sum(y * y, axis=1)
        else:
            square = tl.zeros([BLOCK_N], dtype)
            for j0 in range(0, d, BLOCK_D):
                js = j0 + lanes
                y = tl.zeros([BLOCK_N, BLOCK_D], dtype)
                # Blocks below the diagonal of the factor are zero.
                for i0 in range(0, j0 + BLOCK_D, BLOCK_D):
                    cols = i0 + lanes
                    mask = row_in[:, None] & (cols < d)[None, :]
                    x_block = tl.load(x_at + cols[None, :] * stride_xd, mask=mask, other=0.0)
                    y = _add_whitened(y, x_block, mean_ptr, factor_ptr, cols, js, e)
                y = tl.where((js < d)[None, :], y, 0.0)
                square += tl.sum(y * y, axis=1)
        # A row infinitely far away is impossible, where its products with zeros are NaN.
        terms = tl.load(constants_ptr + component) - 0.5 * square
        terms = tl.where(impossible, float("-inf"), terms)
        if TERMS:
            tl.store(terms_ptr + rows * stride_tn + k64 * stride_tk, terms, mask=row_in)
        if TOTAL:
            new_peak = tl.maximum(peak, terms)
            shift = finite_shift(new_peak)
            mass = mass * tl.exp(peak - shift) + tl.exp(terms - shift)
            peak = new_peak
    if TOTAL:
        tl.store(total_ptr + rows, tl.log(mass) + finite_shift(peak), mask=row_in)


@triton.jit(do_not_specialize=["n", "programs", "group", "k_begin"])
def moments_kernel(
    x_ptr,  # (N, D), any strides
    r_ptr,  # (N, K), any strides
    means_ptr,  # (K, E), contiguous
    weight_ptr,  # in and out (programs, K) float64, contiguous; so are the next two
    first_ptr,  # (programs, K, D)
    second_ptr,  # (programs, group, D, D), upper blocks only
    n,
    k,
    d,
    e,
    programs,
    group,  # components of this launch, at most
    k_begin,  # the first of them
    stride_xn,
    stride_xd,
    stride_rn,
    stride_rk,
    ONE_BLOCK: tl.constexpr,  # D fits BLOCK_D
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Moments of one component and block of feature pairs over every ``programs``-th row block."""
    dtype = x_ptr.dtype.element_ty
    d_blocks = tl.cdiv(d, BLOCK_D)
    tile = tl.program_id(0) % (d_blocks * d_blocks)
    # Tiles and components vary fastest: programs that run together share their rows in the cache.
    slot = tl.program_id(0) // (d_blocks * d_blocks)
    program = tl.cast(slot // group, tl.int64)
    component = tl.cast(k_begin + slot % group, tl.int64)
    a, b = tile // d_blocks, tile % d_blocks
    if (a > b) | (component >= k):
        return
    cols_a = tl.cast(a, tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    cols_b = tl.cast(b, tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    a_in, b_in = cols_a < d, cols_b < d
    mean_a = tl.load(means_ptr + component * e + cols_a)
    mean_b = tl.load(means_ptr + component * e + cols_b)
    weight = tl.zeros([BLOCK_N], tl.float64)
    first = tl.zeros([BLOCK_D], tl.float64)
    second = tl.zeros([BLOCK_D, BLOCK_D], tl.float64)
    for n0 in range(program * BLOCK_N, n, programs * BLOCK_N):
        rows = tl.cast(n0, tl.int64) + tl.arange(0, BLOCK_N)
        row_in = rows < n
        r = tl.load(r_ptr + rows * stride_rn + component * stride_rk, mask=row_in, other=0.0)
        x_at = x_ptr + rows[:, None] * stride_xn
        mask_a, mask_b = row_in[:, None] & a_in[None, :], row_in[:, None] & b_in[None, :]
        x_a = tl.load(x_at + cols_a[None, :] * stride_xd, mask=mask_a, other=0.0)
        x_b = x_a
        if not ONE_BLOCK:
            x_b = tl.load(x_at + cols_b[None, :] * stride_xd, mask=mask_b, other=0.0)
        # Without weight there is no row, even where it is infinite.
        absent = (r == 0.0)[:, None]
        weighted = r[:, None] * tl.where(absent, 0.0, x_a - mean_a[None, :])
        residual = tl.where(absent, 0.0, x_b - mean_b[None, :])
        weight += r.to(tl.float64)
        first += tl.sum(weighted, axis=0).to(tl.float64)
        block = tl.dot(tl.trans(weighted), residual, input_precision="ieee", out_dtype=dtype)
        second += block.to(tl.float64)
    if a == b:
        first_at = first_ptr + (program * k + component) * d + cols_a
        tl.store(first_at, tl.load(first_at, mask=a_in) + first, mask=a_in)
        if a == 0:
            weight_at = weight_ptr + program * k + component
            tl.store(weight_at, tl.load(weight_at) + tl.sum(weight, axis=0))
    second_at = (
        second_ptr + ((program * group + slot % group) * d + cols_a[:, None]) * d + cols_b[None, :]
    )
    second_mask = a_in[:, None] & b_in[None, :]
    tl.store(second_at, tl.load(second_at, mask=second_mask) + second, mask=second_mask)


@triton.jit(do_not_specialize=["n"])
def input_gradient_kernel(
    x_ptr,  # (N, D), any strides
    r_ptr,  # (N, K), any strides
    means_ptr,  # (K, E), contiguous
    precisions_ptr,  # (K, E, E), where TIED (1, E, E); symmetric, contiguous
    out_ptr,  # out (N, D), contiguous
    n,
    k,
    d,
    e,
    stride_xn,
    stride_xd,
    stride_rn,
    stride_rk,
    TIED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``-sum_k r_nk precision_k (x_n - mean_k)`` for a block of rows and features."""
    dtype = x_ptr.dtype.element_ty
    d_blocks = tl.cdiv(d, BLOCK_D)
    rows = tl.cast(tl.program_id(0) // d_blocks, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    js = tl.cast(tl.program_id(0) % d_blocks, tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    row_in, j_in = rows < n, js < d
    gradient = tl.zeros([BLOCK_N, BLOCK_D], dtype)
    # One matrix serves every component where TIED, so the residuals are summed first.
    matrices = 1 if TIED else k
    for matrix in range(matrices):
        k_begin, k_end = (0, k) if TIED else (matrix, matrix + 1)
        for i0 in range(0, d, BLOCK_D):
            cols = tl.cast(i0, tl.int64) + tl.arange(0, BLOCK_D)
            col_in = cols < d
            x_at = x_ptr + rows[:, None] * stride_xn + cols[None, :] * stride_xd
            x = tl.load(x_at, mask=row_in[:, None] & col_in[None, :], other=0.0)
            weighted = tl.zeros([BLOCK_N, BLOCK_D], dtype)
            for component in range(k_begin, k_end):
                k64 = tl.cast(component, tl.int64)
                r = tl.load(r_ptr + rows * stride_rn + k64 * stride_rk, mask=row_in, other=0.0)
                mean = tl.load(means_ptr + k64 * e + cols)
                absent = (r == 0.0)[:, None]  # such a row may be infinite
                weighted += tl.where(absent, 0.0, r[:, None] * (x - mean[None, :]))
            precision_rows = precisions_ptr + (tl.cast(matrix, tl.int64) * e + cols[:, None]) * e
            precision = tl.load(precision_rows + js[None, :])
            gradient = tl.dot(
                weighted, precision, gradient, input_precision="ieee", out_dtype=dtype
            )
    out_at = out_ptr + rows[:, None] * d + js[None, :]
    tl.store(out_at, -gradient, mask=row_in[:, None] & j_in[None, :])
