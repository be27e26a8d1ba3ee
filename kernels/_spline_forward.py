"""Spline kernel: values and log-slopes of a block of rows, forward or inverse."""

from __future__ import annotations

import triton
import triton.language as tl

from ._spline_bins import EXCURSION, KNOTS, NONE, inside_bin, read_bin, stored_slope


@triton.jit(do_not_specialize=["n"])
def forward_kernel(
    x_ptr,  # (N, D), any strides
    active_ptr,  # (A,) int64, where INDEX
    passive_ptr,  # (D,) int8, where INDEX: not one of them
    widths_ptr,  # (N, A, M or M+1), any strides; so are the next two
    heights_ptr,
    slopes_ptr,
    sides_ptr,  # (A, 4) or (1, 4), contiguous: left, right, bottom, top
    tails_ptr,  # (A,) or (1,) int32
    options_ptr,
    y_ptr,  # out (N, D), contiguous
    logdet_ptr,  # out (N,) where ROWS, else (N, A), contiguous
    n,
    d,
    features,
    bins,
    stride_xn,
    stride_xd,
    stride_wn,
    stride_wa,
    stride_wk,
    stride_hn,
    stride_ha,
    stride_hk,
    stride_dn,
    stride_da,
    stride_dk,
    INDEX: tl.constexpr,
    ROWS: tl.constexpr,  # logdet is summed over the features
    MANY_SIDES: tl.constexpr,
    MANY_TAILS: tl.constexpr,
    MAP: tl.constexpr,
    INVERSE: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One block of rows: all features where ROWS, else one block of them."""
    dtype = x_ptr.dtype.element_ty
    chunks = 1 if ROWS else tl.cdiv(features, BLOCK_A)
    row0 = tl.cast(tl.program_id(0) // chunks, tl.int64) * BLOCK_N
    begin = (tl.program_id(0) % chunks) * BLOCK_A
    end = features if ROWS else begin + 1
    element = tl.arange(0, BLOCK_N * BLOCK_A)
    rows = row0 + element // BLOCK_A
    total = tl.zeros([BLOCK_N], tl.float64)
    for a0 in range(begin, end, BLOCK_A):
        a = tl.cast(a0, tl.int64) + element % BLOCK_A
        inside = (rows < n) & (a < features)
        column = a
        if INDEX:
            column = tl.load(active_ptr + a, mask=inside, other=0)
            inside = inside & (column >= 0) & (column < d)
        given = tl.load(x_ptr + rows * stride_xn + column * stride_xd, mask=inside, other=0.0)
        held, below, above, tails, left, right, bottom, top, bin, x0, x1, y0, y1, _, _, _, _ = (
            read_bin(
                given, inside, rows, a, sides_ptr, tails_ptr,
                column if MANY_TAILS else column * 0, column if MANY_SIDES else column * 0,
                widths_ptr, heights_ptr,
                stride_wn, stride_wa, stride_wk, stride_hn, stride_ha, stride_hk,
                bins, options_ptr, MAP, INVERSE, BLOCK_M,
            )
        )  # fmt: skip
        row = slopes_ptr + rows * stride_dn + a * stride_da
        d0, _, _ = stored_slope(
            row, stride_dk, bin, inside, tails, bins, options_ptr, MAP, FIRST, LAST
        )
        d1, _, _ = stored_slope(
            row, stride_dk, bin + 1, inside, tails, bins, options_ptr, MAP, FIRST, LAST
        )
        _, _, s, t, u = inside_bin(held, x0, x1, y0, y1, d0, d1, options_ptr, INVERSE)
        part = s * t * t + d0 * t * u
        q = part + (s * u * u + d1 * t * u)
        logdet = 2.0 * tl.log(s / q) + tl.log(d1 * t * t + 2.0 * s * t * u + d0 * u * u)
        if INVERSE:
            y = x0 + (x1 - x0) * t
            y = tl.where(y > x1, x1, y)
            logdet = -logdet
        else:
            y = y0 + (y1 - y0) * (part / q)
            y = tl.where(y > y1, y1, y)
        # The tails.
        outside, bounded = below | above, tails == NONE
        finite = tl.abs(given) < float("inf")
        target = tl.where(below, left, right) if INVERSE else tl.where(below, bottom, top)
        slope = tl.where(below, d0, d1)
        log_slope = -tl.log(slope) if INVERSE else tl.log(slope)
        y_far, logdet_far = given, tl.zeros_like(given)
        if MAP == KNOTS:
            step = given - held
            line = target + (step / slope if INVERSE else step * slope)
            y_far, logdet_far = tl.where(finite, line, given), log_slope
        width = top - bottom if INVERSE else right - left
        near = tl.abs(given - held) <= tl.load(options_ptr + EXCURSION) * width
        edge = tl.where(near & finite, log_slope, float("-inf"))
        y_far, logdet_far = tl.where(bounded, target, y_far), tl.where(bounded, edge, logdet_far)
        y, logdet = tl.where(outside, y_far, y), tl.where(outside, logdet_far, logdet)
        nan = given != given
        y, logdet = tl.where(nan, given, y), tl.where(nan, given, logdet)
        tl.store(y_ptr + rows * d + column, y.to(dtype), mask=inside)
        if ROWS:
            terms = tl.where(inside, logdet, 0.0).to(tl.float64)
            total += tl.sum(tl.reshape(terms, [BLOCK_N, BLOCK_A]), axis=1)
        else:
            tl.store(logdet_ptr + rows * features + a, logdet.to(dtype), mask=inside)
    own = row0 + tl.arange(0, BLOCK_N)
    if ROWS:
        tl.store(logdet_ptr + own, total.to(dtype), mask=own < n)
    if INDEX:
        for c0 in range(0, d, BLOCK_M):
            c = tl.cast(c0, tl.int64) + tl.arange(0, BLOCK_M)
            keep = tl.load(passive_ptr + c, mask=c < d, other=0) != 0
            mask = (own < n)[:, None] & keep[None, :]
            x_at = x_ptr + own[:, None] * stride_xn + c[None, :] * stride_xd
            copied = tl.load(x_at, mask=mask, other=0.0)
            tl.store(y_ptr + own[:, None] * d + c[None, :], copied, mask=mask)
