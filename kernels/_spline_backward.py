"""Spline kernel: gradients of a block of rows, from the inputs alone."""

from __future__ import annotations

import triton
import triton.language as tl

from ._spline_bins import (
    HUGE,
    KNOTS,
    NFLOWS,
    NONE,
    SPAN_HEIGHT,
    SPAN_WIDTH,
    inside_bin,
    read_bin,
    stored_slope,
)


@triton.jit
def bin_gradient(g_value, g_logdet, w, h, size, s, t, u, d0, d1, huge, INVERSE: tl.constexpr):
    """Gradients of a bin: in what was given, in its corners and in its two slopes.

    ``y = y0 + size part / q`` and ``logdet = 2 log(s / q) + log(n)``.  The way back is
    differentiated as an equation: its gradients are those of the way there, at the same point,
    for other cotangents.
    """
    both, turn = t * u, u - t
    part = s * t * t + d0 * both
    q = part + (s * u * u + d1 * both)
    n = d1 * t * t + 2.0 * s * both + d0 * u * u
    q_t = (d0 + d1 - 2.0 * s) * turn
    n_t = 2.0 * (d1 * t + s * turn - d0 * u)
    by_y, by_logdet = g_value, g_logdet
    passed = g_value
    if INVERSE:
        logdet_x = (n_t / n - 2.0 * (q_t / q)) / w
        stretch = (q / s) * (q / s) / n  # dx/dy
        passed = (g_value - g_logdet * logdet_x) * tl.where(stretch > huge, huge, stretch)
        by_y, by_logdet = -passed, -g_logdet
    share = part / q
    by_part = by_y * (size / q)
    by_q = -(by_part * share + 2.0 * (by_logdet / q))
    by_n = by_logdet / n
    by_s = 2.0 * (by_logdet / s) + by_part * t * t + by_q * (t * t + u * u) + 2.0 * by_n * both
    by_d0 = (by_part + by_q) * both + by_n * u * u
    by_d1 = by_q * both + by_n * t * t
    by_t = by_part * (2.0 * s * t + d0 * turn) + by_q * q_t + by_n * n_t
    by_h = by_y * share + by_s / w
    by_w = -(by_s * s + by_t * t) / w
    by_x = by_t / w
    given = by_x
    if INVERSE:
        given = passed
    return given, -by_x - by_w, by_w, by_y - by_h, by_h, by_d0, by_d1


@triton.jit
def line_gradient(g_value, g_logdet, step, slope, INVERSE: tl.constexpr):
    """Of the straight line beyond a knot: in what was given, in its height and in its slope."""
    if INVERSE:
        given = g_value / slope
        by_slope = -(given * (step / slope) + g_logdet / slope)
    else:
        given = g_value * slope
        by_slope = g_value * step + g_logdet / slope
    return given, g_value, by_slope


@triton.jit
def store_sizes(
    at_ptr,  # (E,) pointers to the gradients of an element's logits or knots
    stride_k,
    lower,
    upper,
    bin,
    bins,
    share,
    inner,
    scale,  # range of the box times what the floors leave of it
    inside,
    MAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """From the gradients of a bin's two knots to those of all logits, and writes them."""
    k = tl.arange(0, BLOCK_M)[:, None]
    if MAP == KNOTS:
        gradient = tl.where(k == bin[None, :], lower[None, :], 0.0)
        gradient += tl.where(k == bin[None, :] + 1, upper[None, :], 0.0)
        count = bins + 1
    else:
        # The outer knots are the box; an inner one moves with every bin below it.
        lower = tl.where(bin == 0, 0.0, lower) * scale
        upper = tl.where(bin == bins - 1, 0.0, upper) * scale
        by_share = tl.where(k < bin[None, :], lower[None, :], 0.0)
        by_share += tl.where(k <= bin[None, :], upper[None, :], 0.0)
        mean = tl.sum(share * by_share, axis=0)
        gradient = share * (by_share - mean[None, :]) * inner
        count = bins
    tl.store(
        at_ptr[None, :] + k.to(tl.int64) * stride_k,
        gradient,
        mask=inside[None, :] & (k < count),
    )


@triton.jit(do_not_specialize=["n"])
def backward_kernel(
    x_ptr,  # (N, D), any strides
    active_ptr,  # (A,) int64, where INDEX
    passive_ptr,  # (D,) int8, where INDEX
    widths_ptr,  # (N, A, count), any strides; so are the next two
    heights_ptr,
    slopes_ptr,
    sides_ptr,  # (A, 4) or (1, 4)
    tails_ptr,  # (A,) or (1,) int32
    options_ptr,
    grad_y_ptr,  # (N, D), any strides, where VALUE
    grad_logdet_ptr,  # (N,) where ROWS, else (N, A), any strides; where VOLUME
    grad_x_ptr,  # out (N, D), contiguous
    grad_widths_ptr,  # out (N, A, count), contiguous along the last axis; so are the next two
    grad_heights_ptr,
    grad_slopes_ptr,
    n,
    d,
    features,
    bins,
    stored,  # derivatives of an element
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
    stride_yn,
    stride_yd,
    stride_ln,
    stride_la,
    stride_gwn,
    stride_gwa,
    stride_ghn,
    stride_gha,
    stride_gdn,
    stride_gda,
    INDEX: tl.constexpr,
    ROWS: tl.constexpr,
    VALUE: tl.constexpr,
    VOLUME: tl.constexpr,
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
    """One block of rows and one of features; the first of these also copies what is passive."""
    dtype = x_ptr.dtype.element_ty
    chunks = tl.maximum(tl.cdiv(features, BLOCK_A), 1)
    row0 = tl.cast(tl.program_id(0) // chunks, tl.int64) * BLOCK_N
    chunk = tl.program_id(0) % chunks
    element = tl.arange(0, BLOCK_N * BLOCK_A)
    rows = row0 + element // BLOCK_A
    a = tl.cast(chunk, tl.int64) * BLOCK_A + element % BLOCK_A
    inside = (rows < n) & (a < features)
    # A feature that is not there has parameters all the same, and their gradient is 0.
    written = inside
    column = a
    if INDEX:
        column = tl.load(active_ptr + a, mask=inside, other=0)
        inside = inside & (column >= 0) & (column < d)
    given = tl.load(x_ptr + rows * stride_xn + column * stride_xd, mask=inside, other=0.0)
    g_value, g_logdet = tl.zeros_like(given), tl.zeros_like(given)
    if VALUE:
        g_value = tl.load(
            grad_y_ptr + rows * stride_yn + column * stride_yd, mask=inside, other=0.0
        )
    if VOLUME:
        g_logdet = tl.load(
            grad_logdet_ptr + rows * stride_ln + a * stride_la, mask=inside, other=0.0
        )
    (
        held, below, above, tails, left, right, bottom, top, bin, x0, x1, y0, y1,
        w_share, h_share, w_inner, h_inner,
    ) = read_bin(
        given, inside, rows, a, sides_ptr, tails_ptr,
        column if MANY_TAILS else column * 0, column if MANY_SIDES else column * 0,
        widths_ptr, heights_ptr,
        stride_wn, stride_wa, stride_wk, stride_hn, stride_ha, stride_hk,
        bins, options_ptr, MAP, INVERSE, BLOCK_M,
    )  # fmt: skip
    row = slopes_ptr + rows * stride_dn + a * stride_da
    d0, d0_inner, at0 = stored_slope(
        row, stride_dk, bin, inside, tails, bins, options_ptr, MAP, FIRST, LAST
    )
    d1, d1_inner, at1 = stored_slope(
        row, stride_dk, bin + 1, inside, tails, bins, options_ptr, MAP, FIRST, LAST
    )
    w, h, s, t, u = inside_bin(held, x0, x1, y0, y1, d0, d1, options_ptr, INVERSE)
    huge = tl.load(options_ptr + HUGE)
    g_given, g_x0, g_x1, g_y0, g_y1, g_d0, g_d1 = bin_gradient(
        g_value, g_logdet, w, h, y1 - y0, s, t, u, d0, d1, huge, INVERSE
    )
    nan = given != given
    outside = below | above | nan
    g_x0, g_x1 = tl.where(outside, 0.0, g_x0), tl.where(outside, 0.0, g_x1)
    g_y0, g_y1 = tl.where(outside, 0.0, g_y0), tl.where(outside, 0.0, g_y1)
    g_d0, g_d1 = tl.where(outside, 0.0, g_d0), tl.where(outside, 0.0, g_d1)
    bounded = tails == NONE
    g_given = tl.where(outside, tl.where(bounded, 0.0, g_value), g_given)
    if MAP == KNOTS:
        slope = tl.where(below, d0, d1)
        step = tl.where(tl.abs(given) < float("inf"), given - held, 0.0)
        l_given, l_end, l_slope = line_gradient(g_value, g_logdet, step, slope, INVERSE)
        # Infinity stays itself; its log-slope is that of the line.
        infinite = tl.abs(given) == float("inf")
        l_given = tl.where(infinite, g_value, l_given)
        l_knot = tl.where(infinite, 0.0, -l_given)
        l_end = tl.where(infinite, 0.0, l_end)
        l_slope = tl.where(infinite, -g_logdet / slope if INVERSE else g_logdet / slope, l_slope)
        low, high = below & ~bounded, above & ~bounded
        by_x, by_y = (l_end, l_knot) if INVERSE else (l_knot, l_end)
        g_given = tl.where(low | high, l_given, g_given)
        g_x0, g_x1 = tl.where(low, by_x, g_x0), tl.where(high, by_x, g_x1)
        g_y0, g_y1 = tl.where(low, by_y, g_y0), tl.where(high, by_y, g_y1)
        g_d0, g_d1 = tl.where(low, l_slope, g_d0), tl.where(high, l_slope, g_d1)
    g_given = tl.where(nan, g_value + g_logdet, g_given)
    tl.store(grad_x_ptr + rows * d + column, g_given.to(dtype), mask=inside)
    g_x0, g_x1 = tl.where(inside, g_x0, 0.0), tl.where(inside, g_x1, 0.0)
    g_y0, g_y1 = tl.where(inside, g_y0, 0.0), tl.where(inside, g_y1, 0.0)
    w_scale, h_scale = right - left, top - bottom
    if MAP == NFLOWS:
        w_scale = w_scale * tl.load(options_ptr + SPAN_WIDTH)
        h_scale = h_scale * tl.load(options_ptr + SPAN_HEIGHT)
    store_sizes(
        grad_widths_ptr + rows * stride_gwn + a * stride_gwa, 1,
        g_x0, g_x1, bin, bins, w_share, w_inner, w_scale, written, MAP, BLOCK_M,
    )  # fmt: skip
    store_sizes(
        grad_heights_ptr + rows * stride_ghn + a * stride_gha, 1,
        g_y0, g_y1, bin, bins, h_share, h_inner, h_scale, written, MAP, BLOCK_M,
    )  # fmt: skip
    g_d0, g_d1 = tl.where(inside, g_d0 * d0_inner, 0.0), tl.where(inside, g_d1 * d1_inner, 0.0)
    for j0 in range(0, stored, BLOCK_M):
        j = j0 + tl.arange(0, BLOCK_M)[:, None]
        gradient = tl.where(j == at0[None, :], g_d0[None, :], 0.0)
        gradient += tl.where(j == at1[None, :], g_d1[None, :], 0.0)
        to = grad_slopes_ptr + rows * stride_gdn + a * stride_gda
        mask = written[None, :] & (j < stored)
        tl.store(to[None, :] + j.to(tl.int64), gradient.to(dtype), mask=mask)
    if INDEX:
        if chunk == 0:
            own = row0 + tl.arange(0, BLOCK_N)
            for c0 in range(0, d, BLOCK_M):
                c = tl.cast(c0, tl.int64) + tl.arange(0, BLOCK_M)
                keep = tl.load(passive_ptr + c, mask=c < d, other=0) != 0
                mask = (own < n)[:, None] & keep[None, :]
                copied = tl.zeros([BLOCK_N, BLOCK_M], dtype)
                if VALUE:
                    y_at = grad_y_ptr + own[:, None] * stride_yn + c[None, :] * stride_yd
                    copied = tl.load(y_at, mask=mask, other=0.0)
                tl.store(grad_x_ptr + own[:, None] * d + c[None, :], copied, mask=mask)
