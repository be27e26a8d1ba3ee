"""What a masked network's parameters become, and its activations, in Triton.

Parameters of one feature are (P, N) in memory, ``stride`` apart; a block of rows is a vector.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._coupling_maps import _factor, _log_scale, _sigmoid, _softplus
from ._spline_bins import EXCURSION, NONE, inside_bin, read_bin, stored_slope

AFFINE, BERNOULLI, CATEGORICAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
MIXTURE, SPLINE = tl.constexpr(3), tl.constexpr(4)


@triton.jit
def activate(x, KIND: tl.constexpr):
    """The functions of `evidens.reference.autoregress`, in its order; NaN stays NaN."""
    if KIND == 1:
        return tl.where(x < 0, 0.0, x)
    elif KIND == 2:
        return tl.where(x < 0, x * 0.01, x)
    elif KIND == 3:
        return tl.where(x < 0, tl.exp(tl.where(x < 0, x, 0.0)) - 1, x)
    elif KIND == 4:
        e = tl.exp(-2 * tl.abs(x))
        t = (1 - e) / (1 + e)
        return tl.where(x < 0, -t, t)
    elif KIND == 5:
        return _sigmoid(x)
    elif KIND == 6:
        return x * _sigmoid(x)
    elif KIND == 7:
        return tl.where(x != x, x, _softplus(x))
    else:
        return x


@triton.jit
def _affine(z, params_ptr, stride, mask, clamp_ptr, MAP: tl.constexpr, INVERSE: tl.constexpr):
    shift = tl.load(params_ptr, mask=mask, other=0.0)
    raw = tl.load(params_ptr + stride, mask=mask, other=0.0)
    log, _ = _log_scale(raw, tl.load(clamp_ptr), MAP)
    if INVERSE:
        factor, _ = _factor(-log)
        return (z - shift) * factor, -log
    else:
        factor, _ = _factor(log)
        return z * factor + shift, log


@triton.jit
def _pick(u, params_ptr, stride, mask, count):
    """Index of the logit that ``u`` falls on; and 0, or NaN where there is no distribution."""
    most = tl.load(params_ptr, mask=mask, other=0.0)
    for k in range(1, count):
        most = tl.maximum(most, tl.load(params_ptr + k * stride, mask=mask, other=0.0))
    total = tl.zeros_like(u)
    for k in range(0, count):
        total += tl.exp(tl.load(params_ptr + k * stride, mask=mask, other=0.0) - most)
    limit = u * total
    running, index = tl.zeros_like(u), tl.zeros_like(u).to(tl.int32)
    for k in range(0, count - 1):
        running += tl.exp(tl.load(params_ptr + k * stride, mask=mask, other=0.0) - most)
        index += (running <= limit).to(tl.int32)
    return index, limit * 0


@triton.jit
def _spline(
    given,
    params_ptr,
    stride,
    mask,
    feature,
    rows,
    sides_ptr,
    tails_ptr,
    options_ptr,
    bins,
    MAP: tl.constexpr,
    INVERSE: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    MANY_SIDES: tl.constexpr,
    MANY_TAILS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Value and log-slope of the direction taken."""
    zero = rows * 0
    own = zero + feature
    size = bins * stride
    held, below, above, tails, left, right, bottom, top, bin, x0, x1, y0, y1, _, _, _, _ = read_bin(
        given, mask, rows, zero, sides_ptr, tails_ptr,
        own if MANY_TAILS else zero, own if MANY_SIDES else zero,
        params_ptr, params_ptr + size, 1, 0, stride, 1, 0, stride,
        bins, options_ptr, MAP, INVERSE, BLOCK_M,
    )  # fmt: skip
    row = params_ptr + 2 * size + rows
    d0, _, _ = stored_slope(row, stride, bin, mask, tails, bins, options_ptr, MAP, FIRST, LAST)
    d1, _, _ = stored_slope(row, stride, bin + 1, mask, tails, bins, options_ptr, MAP, FIRST, LAST)
    _, _, s, t, u = inside_bin(held, x0, x1, y0, y1, d0, d1, options_ptr, INVERSE)
    part = s * t * t + d0 * t * u
    q = part + (s * u * u + d1 * t * u)
    log = 2.0 * tl.log(s / q) + tl.log(d1 * t * t + 2.0 * s * t * u + d0 * u * u)
    slope = tl.log(tl.where(below, d0, d1))
    if INVERSE:
        y = x0 + (x1 - x0) * t
        y = tl.where(y > x1, x1, y)
        log, slope = -log, -slope
        target, width = tl.where(below, left, right), top - bottom
    else:
        y = y0 + (y1 - y0) * (part / q)
        y = tl.where(y > y1, y1, y)
        target, width = tl.where(below, bottom, top), right - left
    near = tl.abs(given - held) <= tl.load(options_ptr + EXCURSION) * width
    bounded, outside = tails == NONE, below | above
    far = tl.where(bounded, tl.where(near, slope, float("-inf")), 0.0)
    y = tl.where(outside, tl.where(bounded, target, given), y)
    log = tl.where(outside, far, log)
    nan = given != given
    return tl.where(nan, given, y), tl.where(nan, given, log)


@triton.jit
def draw(
    noise_ptr,  # of the feature, by rows; the second number stands beside the first
    row_stride,
    value,
    known,
    params_ptr,  # (P, N)
    stride,
    rows,  # int64
    mask,
    feature,
    parameters,
    clamp_ptr,
    sides_ptr,
    tails_ptr,
    options_ptr,
    bins,
    KIND: tl.constexpr,
    MAP: tl.constexpr,
    INVERSE: tl.constexpr,
    KNOWN: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    MANY_SIDES: tl.constexpr,
    MANY_TAILS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """A draw of one feature and its term of the log-determinant."""
    z = tl.load(noise_ptr + rows * row_stride, mask=mask, other=0.0)
    at = params_ptr + rows
    log = tl.zeros_like(z)
    if KIND == AFFINE:
        x, log = _affine(z, at, stride, mask, clamp_ptr, MAP, INVERSE)
    elif KIND == BERNOULLI:
        p = _sigmoid(tl.load(at, mask=mask, other=0.0))
        x = tl.where(p != p, p, tl.where(z < p, 1.0, 0.0).to(z.dtype))
    elif KIND == CATEGORICAL:
        index, nan = _pick(z, at, stride, mask, parameters)
        x = index.to(z.dtype) + nan
    elif KIND == MIXTURE:
        count = parameters // 3
        index, nan = _pick(z, at, stride, mask, count)
        own = at + index.to(tl.int64) * stride
        mean = tl.load(own + count * stride, mask=mask, other=0.0)
        scale = tl.load(own + 2 * count * stride, mask=mask, other=0.0)
        other = tl.load(noise_ptr + rows * row_stride + 1, mask=mask, other=0.0)
        x = mean + tl.exp(scale) * other + nan
    else:
        x, log = _spline(
            z, params_ptr, stride, mask, feature, rows, sides_ptr, tails_ptr, options_ptr, bins,
            MAP, INVERSE, FIRST, LAST, MANY_SIDES, MANY_TAILS, BLOCK_M,
        )  # fmt: skip
        if KNOWN:
            _, back = _spline(
                value, params_ptr, stride, mask, feature, rows, sides_ptr, tails_ptr, options_ptr,
                bins, MAP, not INVERSE, FIRST, LAST, MANY_SIDES, MANY_TAILS, BLOCK_M,
            )  # fmt: skip
            log = tl.where(known, -back, log)
    if KNOWN:
        x = tl.where(known, value, x)
    return x, log
