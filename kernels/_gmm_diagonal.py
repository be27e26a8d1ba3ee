"""Gaussian mixture kernels for diagonal and spherical covariances, and the responsibilities.

Shape letters: ``N`` rows, ``D`` features, ``K`` components.  Every product is elementwise, so a
tile of the result stays in registers while the contracted dimension is walked one step at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def finite_shift(peak):
    """``peak`` where it is finite, else 0."""
    return tl.where(tl.abs(peak) == float("inf"), 0.0, peak)


@triton.jit(do_not_specialize=["n"])
def log_prob_kernel(
    x_ptr,  # (N, D), any strides
    constants_ptr,  # (K,): log weight, log-determinant and the power of 2 pi
    means_ptr,  # (D, K), contiguous
    scales_ptr,  # (D, K) by strides
    terms_ptr,  # out (N, K), any strides, where TERMS
    total_ptr,  # out (N,), where TOTAL
    n,
    k,
    d,
    stride_xn,
    stride_xd,
    stride_sd,
    stride_sk,
    stride_tn,
    stride_tk,
    TERMS: tl.constexpr,
    TOTAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Component log-densities of a block of rows, and their log-sum-exp."""
    dtype = x_ptr.dtype.element_ty
    rows = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_in = rows < n
    peak = tl.full([BLOCK_N], float("-inf"), dtype)
    mass = tl.zeros([BLOCK_N], dtype)
    for k0 in range(0, k, BLOCK_K):
        ks = tl.cast(k0, tl.int64) + tl.arange(0, BLOCK_K)
        k_in = ks < k
        square = tl.zeros([BLOCK_N, BLOCK_K], dtype)
        for j in range(d):
            j64 = tl.cast(j, tl.int64)
            x = tl.load(x_ptr + rows * stride_xn + j64 * stride_xd, mask=row_in, other=0.0)
            mean = tl.load(means_ptr + j64 * k + ks, mask=k_in, other=0.0)
            scale = tl.load(scales_ptr + j64 * stride_sd + ks * stride_sk, mask=k_in, other=0.0)
            y = (x[:, None] - mean[None, :]) * scale[None, :]
            square += y * y
        constant = tl.load(constants_ptr + ks, mask=k_in, other=0.0)
        terms = constant[None, :] - 0.5 * square
        if TERMS:
            pointers = terms_ptr + rows[:, None] * stride_tn + ks[None, :] * stride_tk
            tl.store(pointers, terms, mask=row_in[:, None] & k_in[None, :])
        if TOTAL:
            terms = tl.where(k_in[None, :], terms, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(terms, axis=1))
            shift = finite_shift(new_peak)
            mass = mass * tl.exp(peak - shift) + tl.sum(tl.exp(terms - shift[:, None]), axis=1)
            peak = new_peak
    if TOTAL:
        tl.store(total_ptr + rows, tl.log(mass) + finite_shift(peak), mask=row_in)


@triton.jit(do_not_specialize=["n"])
def responsibilities_kernel(
    terms_ptr,  # (N, K), any strides: component log-densities in, responsibilities out
    total_ptr,  # (N,): their log-sum-exp
    weights_ptr,  # (N,), where WEIGHTS
    labels_ptr,  # (N,) int64, where LABELS
    partial_ptr,  # out (programs,) float64: the log-likelihood of each block of rows
    n,
    k,
    stride_tn,
    stride_tk,
    WEIGHTS: tl.constexpr,
    LABELS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Posterior of the components, with labels and sample weights, in place."""
    dtype = terms_ptr.dtype.element_ty
    rows = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_in = rows < n
    total = tl.load(total_ptr + rows, mask=row_in, other=0.0)
    weights = tl.full([BLOCK_N], 1.0, dtype)
    if WEIGHTS:
        weights = tl.load(weights_ptr + rows, mask=row_in, other=0.0)
    labels = tl.full([BLOCK_N], -1, tl.int64)
    if LABELS:
        labels = tl.load(labels_ptr + rows, mask=row_in, other=-1)
    # A label past K must not pass for a free row.
    log_prob = tl.where(labels < 0, total, tl.where(labels < k, 0.0, float("nan")))
    for k0 in range(0, k, BLOCK_K):
        ks = tl.cast(k0, tl.int64) + tl.arange(0, BLOCK_K)
        pointers = terms_ptr + rows[:, None] * stride_tn + ks[None, :] * stride_tk
        mask = row_in[:, None] & (ks < k)[None, :]
        terms = tl.load(pointers, mask=mask, other=float("-inf"))
        r = tl.where((total == float("-inf"))[:, None], 0.0, tl.exp(terms - total[:, None]))
        if LABELS:
            own = labels[:, None] == ks[None, :]
            log_prob += tl.sum(tl.where(own, terms, 0.0), axis=1)
            r = tl.where((labels >= 0)[:, None], tl.where(own, 1.0, 0.0), r)
        if WEIGHTS:
            r = tl.where(weights[:, None] == 0.0, 0.0, r * weights[:, None])
        tl.store(pointers, r.to(dtype), mask=mask)
    log_prob = tl.where(row_in, log_prob, 0.0).to(tl.float64)
    if WEIGHTS:
        log_prob = tl.where(weights == 0.0, 0.0, log_prob * weights.to(tl.float64))
    tl.store(partial_ptr + tl.program_id(0), tl.sum(log_prob, axis=0))


@triton.jit(do_not_specialize=["n", "programs"])
def moments_kernel(
    x_ptr,  # (N, D), any strides
    r_ptr,  # (N, K), any strides
    means_ptr,  # (K, D), contiguous
    weight_ptr,  # in and out (programs, K) float64, contiguous; so are the next two
    first_ptr,  # (programs, K, D)
    second_ptr,  # (programs, K, D)
    n,
    k,
    d,
    programs,
    stride_xn,
    stride_xd,
    stride_rn,
    stride_rk,
    BLOCK_N: tl.constexpr,  # rows summed in the dtype of x before they are added in float64
    BLOCK_R: tl.constexpr,  # rows side by side
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Moments of one tile of (component, feature) over every ``programs``-th block of rows."""
    dtype = x_ptr.dtype.element_ty
    k_blocks, d_blocks = tl.cdiv(k, BLOCK_K), tl.cdiv(d, BLOCK_D)
    tile = tl.program_id(0) % (k_blocks * d_blocks)
    # Tiles vary fastest, so programs that run together share their rows in the cache.
    program = tl.cast(tl.program_id(0) // (k_blocks * d_blocks), tl.int64)
    ks = tl.cast(tile // d_blocks, tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    js = tl.cast(tile % d_blocks, tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    k_in, j_in = ks < k, js < d
    inside = k_in[:, None] & j_in[None, :]
    mean = tl.load(means_ptr + ks[:, None] * d + js[None, :], mask=inside, other=0.0)
    weight = tl.zeros([BLOCK_R, BLOCK_K], tl.float64)
    first = tl.zeros([BLOCK_R, BLOCK_K, BLOCK_D], tl.float64)
    second = tl.zeros([BLOCK_R, BLOCK_K, BLOCK_D], tl.float64)
    for n0 in range(program * BLOCK_N, n, programs * BLOCK_N):
        group_weight = tl.zeros([BLOCK_R, BLOCK_K], dtype)
        group_first = tl.zeros([BLOCK_R, BLOCK_K, BLOCK_D], dtype)
        group_second = tl.zeros([BLOCK_R, BLOCK_K, BLOCK_D], dtype)
        for i in range(n0, tl.minimum(n0 + BLOCK_N, n), BLOCK_R):
            rows = tl.cast(i, tl.int64) + tl.arange(0, BLOCK_R)
            row_in = (rows < n)[:, None]
            r_at = r_ptr + rows[:, None] * stride_rn + ks[None, :] * stride_rk
            x_at = x_ptr + rows[:, None] * stride_xn + js[None, :] * stride_xd
            r = tl.load(r_at, mask=row_in & k_in[None, :], other=0.0)
            x = tl.load(x_at, mask=row_in & j_in[None, :], other=0.0)
            # Without weight there is no row, even where it is infinite.
            residual = tl.where((r == 0.0)[:, :, None], 0.0, x[:, None, :] - mean[None, :, :])
            weighted = r[:, :, None] * residual
            group_weight += r
            group_first += weighted
            group_second += weighted * residual
        weight += group_weight.to(tl.float64)
        first += group_first.to(tl.float64)
        second += group_second.to(tl.float64)
    if tile % d_blocks == 0:
        weight_at = weight_ptr + program * k + ks
        tl.store(weight_at, tl.load(weight_at, mask=k_in) + tl.sum(weight, axis=0), mask=k_in)
    moment_at = program * k * d + ks[:, None] * d + js[None, :]
    first_at, second_at = first_ptr + moment_at, second_ptr + moment_at
    tl.store(first_at, tl.load(first_at, mask=inside) + tl.sum(first, axis=0), mask=inside)
    tl.store(second_at, tl.load(second_at, mask=inside) + tl.sum(second, axis=0), mask=inside)


@triton.jit(do_not_specialize=["n"])
def input_gradient_kernel(
    x_ptr,  # (N, D), any strides
    r_ptr,  # (N, K), any strides
    means_ptr,  # (K, D), contiguous
    scales_ptr,  # (K, D) by strides
    out_ptr,  # out (N, D), contiguous
    n,
    k,
    d,
    stride_xn,
    stride_xd,
    stride_rn,
    stride_rk,
    stride_sk,
    stride_sd,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``-sum_k r_nk (x_n - mean_k) p_k^2`` for a block of rows and features."""
    d_blocks = tl.cdiv(d, BLOCK_D)
    rows = tl.cast(tl.program_id(0) // d_blocks, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    js = tl.cast(tl.program_id(0) % d_blocks, tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    row_in, j_in = rows < n, js < d
    inside = row_in[:, None] & j_in[None, :]
    x_at = x_ptr + rows[:, None] * stride_xn + js[None, :] * stride_xd
    x = tl.load(x_at, mask=inside, other=0.0)
    gradient = tl.zeros([BLOCK_N, BLOCK_D], x_ptr.dtype.element_ty)
    for component in range(k):
        k64 = tl.cast(component, tl.int64)
        r = tl.load(r_ptr + rows * stride_rn + k64 * stride_rk, mask=row_in, other=0.0)
        mean = tl.load(means_ptr + k64 * d + js, mask=j_in, other=0.0)
        scale = tl.load(scales_ptr + k64 * stride_sk + js * stride_sd, mask=j_in, other=0.0)
        y = (x - mean[None, :]) * scale[None, :]
        absent = (r == 0.0)[:, None]  # such a row may be infinite
        gradient -= tl.where(absent, 0.0, r[:, None] * y * scale[None, :])
    tl.store(out_ptr + rows[:, None] * d + js[None, :], gradient, mask=inside)
