"""Spline kernels, first half: from parameters to the bin of every element, and its value.

Shape letters: ``N`` rows, ``A`` transformed features, ``M`` bins; ``E`` elements of a tile, which
are some rows times some features.  The parameters of an element lie along the first axis of a
tile of (bins, E), so that a softmax and its running sum stay within a thread.
"""

from __future__ import annotations

import triton
import triton.language as tl

KNOTS = tl.constexpr(0)  # codes of the maps
NFLOWS = tl.constexpr(1)
ZUKO = tl.constexpr(2)
NONE = tl.constexpr(0)  # codes of the tails
LINEAR = tl.constexpr(1)
CIRCULAR = tl.constexpr(2)
# Where the numbers stand in the table of options.
MIN_WIDTH, SPAN_WIDTH, MIN_HEIGHT, SPAN_HEIGHT = (tl.constexpr(i) for i in range(4))
MIN_SLOPE, BETA, CLIP, SCALE = (tl.constexpr(i) for i in range(4, 8))
FLAT, STEEP, THIN, EXCURSION, HUGE = (tl.constexpr(i) for i in range(8, 13))


@triton.jit
def softplus(z):
    """``log(1 + exp(z))``, with ``log1p`` from a rounded ``1 + e`` and what rounding lost."""
    e = tl.exp(-tl.abs(z))
    one_and = 1.0 + e
    rest = one_and - 1.0
    log1p = tl.where(rest == 0.0, e, tl.log(one_and) * (e / tl.where(rest == 0.0, 1.0, rest)))
    return tl.maximum(z, 0.0) + log1p


@triton.jit
def shares(logits, in_bins, options_ptr, MAP: tl.constexpr):
    """Softmax (bins, E) of scaled logits, and the slope of what they go through first."""
    scale = tl.load(options_ptr + SCALE)
    logits = logits * scale
    inner = tl.zeros_like(logits) + scale
    if MAP == ZUKO:
        limit = tl.load(options_ptr + CLIP) / 2.0
        part = limit / (limit + tl.abs(logits))
        # Not logits * part, whose two factors may be infinite and zero.
        logits = limit * (logits / (limit + tl.abs(logits)))
        inner = inner * part * part
    logits = tl.where(in_bins, logits, float("-inf"))
    e = tl.exp(logits - tl.max(logits, axis=0)[None, :])
    return e / tl.sum(e, axis=0)[None, :], inner


@triton.jit
def upper_knots(share, k, bins, low, high, floor, span, MAP: tl.constexpr):
    """The knot at the upper end of every bin, (bins, E), never above ``high``."""
    if MAP == NFLOWS:
        share = floor + span * share
    knots = low[None, :] + (high - low)[None, :] * tl.cumsum(share, axis=0)
    knots = tl.where(knots > high[None, :], high[None, :], knots)
    return tl.where(k[:, None] == bins - 1, high[None, :], knots)


@triton.jit
def corners(upper, k, bin, low):
    """Both ends (E,) of the bin, from the upper ends of all bins."""
    before = tl.sum(tl.where(k[:, None] == bin[None, :] - 1, upper, 0.0), axis=0)
    after = tl.sum(tl.where(k[:, None] == bin[None, :], upper, 0.0), axis=0)
    return tl.where(bin == 0, low, before), after


@triton.jit
def slope_of(raw, options_ptr, MAP: tl.constexpr):
    """A slope from its parameter, and its derivative in it."""
    flat, steep = tl.load(options_ptr + FLAT), tl.load(options_ptr + STEEP)
    slope = raw
    inner = tl.zeros_like(raw) + 1.0
    if MAP == NFLOWS:
        beta = tl.load(options_ptr + BETA)
        z = raw * beta
        slope = tl.load(options_ptr + MIN_SLOPE) + softplus(z) / beta
        e = tl.exp(-tl.abs(z))
        inner = tl.where(z >= 0.0, 1.0, e) / (1.0 + e)
    if MAP == ZUKO:
        limit = tl.load(options_ptr + CLIP)
        part = limit / (limit + tl.abs(raw))
        slope = tl.exp(limit * (raw / (limit + tl.abs(raw))))
        inner = slope * part * part
    inner = tl.where((slope < flat) | (slope > steep), 0.0, inner)
    # Written so that NaN stays NaN.
    slope = tl.where(slope < flat, flat, tl.where(slope > steep, steep, slope))
    return slope, inner


@triton.jit
def stored_slope(
    at_ptr,
    stride_k,
    knot,
    inside,
    tails,
    bins,
    options_ptr,
    MAP: tl.constexpr,
    FIRST: tl.constexpr,  # the knot of the first stored derivative
    LAST: tl.constexpr,  # a linear spline stores its last slope; else it is 1
):
    """The slope at a knot (E,), its derivative in its parameter, and where that is stored."""
    where = knot - FIRST
    fixed = knot < 0  # nothing is
    if MAP != KNOTS:
        where = tl.where((tails == CIRCULAR) & (knot == bins), 0, where)
        if LAST:
            fixed = (tails == LINEAR) & (knot == 0)
        else:
            fixed = (tails == LINEAR) & ((knot == 0) | (knot == bins))
    raw = tl.load(at_ptr + where.to(tl.int64) * stride_k, mask=inside & ~fixed, other=0.0)
    slope, inner = slope_of(raw, options_ptr, MAP)
    return tl.where(fixed, 1.0, slope), tl.where(fixed, 0.0, inner), where


@triton.jit
def no_less(x, least):
    """``max(x, least)``, where NaN stays NaN."""
    return tl.where(x < least, least, x)


@triton.jit
def inside_bin(given, x0, x1, y0, y1, d0, d1, options_ptr, INVERSE: tl.constexpr):
    """``(w, h, s, t, u)``: the bin's sizes, their ratio, and where in the bin, from both ends."""
    thin = tl.load(options_ptr + THIN)
    w, h = no_less(x1 - x0, thin), no_less(y1 - y0, thin)
    s = no_less(h / w, tl.load(options_ptr + FLAT))
    steep = tl.load(options_ptr + STEEP)
    s = tl.where(s > steep, steep, s)
    if INVERSE:
        # The root as the reference takes it: from the end of the bin where nothing cancels.
        up = (given - y0) / h
        up = tl.where(up < 0.0, 0.0, tl.where(up > 1.0, 1.0, up))
        down = 1.0 - up
        p = d0 * down - d1 * up
        q = tl.abs(p) + tl.sqrt(p * p + 4.0 * s * s * (up * down))
        lower = p >= 0.0
        near = 2.0 * s * tl.where(lower, up, down)
        total = near + q
        t, u = tl.where(lower, near, q) / total, tl.where(lower, q, near) / total
    else:
        t = (given - x0) / w
        t = tl.where(t < 0.0, 0.0, tl.where(t > 1.0, 1.0, t))
        u = 1.0 - t
    return w, h, s, t, u


@triton.jit
def read_bin(
    given,
    inside,
    rows,
    features,
    sides_ptr,
    tails_ptr,
    tail_of,
    side_of,
    widths_ptr,
    heights_ptr,
    stride_wn,
    stride_wa,
    stride_wk,
    stride_hn,
    stride_ha,
    stride_hk,
    bins,
    options_ptr,
    MAP: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Everything but the slopes: ranges, tails, the bin, its corners, and what the map kept."""
    k = tl.arange(0, BLOCK_M)
    w_row = widths_ptr + rows * stride_wn + features * stride_wa
    h_row = heights_ptr + rows * stride_hn + features * stride_ha
    columns = k.to(tl.int64)[:, None]
    tails = tl.load(tails_ptr + tail_of, mask=inside, other=0)
    if MAP == KNOTS:
        last_w, last_h = tl.cast(bins, tl.int64) * stride_wk, tl.cast(bins, tl.int64) * stride_hk
        left = tl.load(w_row, mask=inside, other=0.0)
        right = tl.load(w_row + last_w, mask=inside, other=0.0)
        bottom = tl.load(h_row, mask=inside, other=0.0)
        top = tl.load(h_row + last_h, mask=inside, other=0.0)
    else:
        left = tl.load(sides_ptr + side_of * 4, mask=inside, other=0.0)
        right = tl.load(sides_ptr + side_of * 4 + 1, mask=inside, other=1.0)
        bottom = tl.load(sides_ptr + side_of * 4 + 2, mask=inside, other=0.0)
        top = tl.load(sides_ptr + side_of * 4 + 3, mask=inside, other=1.0)
    low, high = (bottom if INVERSE else left), (top if INVERSE else right)
    below, above = given < low, given > high
    held = tl.where(below | (given != given), low, tl.where(above, high, given))
    if MAP == KNOTS:
        # Knot k + 1 for k < M - 1, and then the two corners from memory.
        row, stride = (h_row, stride_hk) if INVERSE else (w_row, stride_wk)
        inner = (k < bins - 1)[:, None]
        knots = tl.load(
            row[None, :] + (columns + 1) * stride, mask=inside[None, :] & inner, other=0.0
        )
        bin = tl.sum((inner & (knots <= held[None, :])).to(tl.int32), axis=0)
        w_at, h_at = w_row + bin.to(tl.int64) * stride_wk, h_row + bin.to(tl.int64) * stride_hk
        x0, x1 = tl.load(w_at, mask=inside), tl.load(w_at + stride_wk, mask=inside)
        y0, y1 = tl.load(h_at, mask=inside), tl.load(h_at + stride_hk, mask=inside)
        w_share, h_share, w_inner, h_inner = knots, knots, knots, knots
    else:
        in_bins = (k < bins)[:, None]
        mask = inside[None, :] & in_bins
        w_tile = tl.load(w_row[None, :] + columns * stride_wk, mask=mask, other=0.0)
        h_tile = tl.load(h_row[None, :] + columns * stride_hk, mask=mask, other=0.0)
        w_share, w_inner = shares(w_tile, in_bins, options_ptr, MAP)
        h_share, h_inner = shares(h_tile, in_bins, options_ptr, MAP)
        floor, span = tl.load(options_ptr + MIN_WIDTH), tl.load(options_ptr + SPAN_WIDTH)
        w_tile = upper_knots(w_share, k, bins, left, right, floor, span, MAP)
        floor, span = tl.load(options_ptr + MIN_HEIGHT), tl.load(options_ptr + SPAN_HEIGHT)
        h_tile = upper_knots(h_share, k, bins, bottom, top, floor, span, MAP)
        source = h_tile if INVERSE else w_tile
        reached = (k < bins - 1)[:, None] & (source <= held[None, :])
        bin = tl.sum(reached.to(tl.int32), axis=0)
        x0, x1 = corners(w_tile, k, bin, left)
        y0, y1 = corners(h_tile, k, bin, bottom)
    return (
        held, below, above, tails, left, right, bottom, top, bin, x0, x1, y0, y1,
        w_share, h_share, w_inner, h_inner,
    )  # fmt: skip
