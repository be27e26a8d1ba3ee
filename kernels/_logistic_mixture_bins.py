"""What the logistic mixture kernels do to a block of pixels, in Triton.

A program takes a block of pixels of one row (image) and loops over the terms: forward once, with a
running maximum, backward once more for the derivatives, so that nothing is kept in memory.  The
arithmetic is that of ``csrc/logistic_mixture_tile.h``: a term is ``exp(linear) * factor``, and a
logarithm is taken once a pixel.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _decay(t):
    """``exp(-t)`` and ``1 - exp(-t)`` for t >= 0."""
    if t.dtype == tl.float64:
        terms: tl.constexpr = 14
    else:
        terms: tl.constexpr = 7
    left = tl.exp(-t)
    near = tl.where(t < 0.5, t, 0.0)
    series = tl.full(t.shape, 1.0, t.dtype)
    for n in tl.static_range(terms, 1, -1):
        series = 1 - series * near / n
    return left, tl.where(t < 0.5, near * series, 1 - left)


@triton.jit
def _tanh(x):
    """And its derivative."""
    left, lost = _decay(2 * tl.abs(x))
    part = 1 / (1 + left)
    return tl.where(x < 0, -lost, lost) * part, 4 * left * part * part


@triton.jit
def _value(x, levels):
    last = tl.cast(levels - 1, x.dtype)
    return (2 * x - last) / last


@triton.jit
def _bin(x, v, mean, raw, levels, LEAST: tl.constexpr):
    """``linear``, ``factor`` and the derivatives of their logarithm in mean and log scale."""
    if x.dtype == tl.float64:
        small_width, big, tiny = 1.1102230246251565e-16, 1e307, 1e-307
    else:
        small_width, big, tiny = 5.9604644775390625e-08, 2e37, 2e-38
    last = tl.cast(levels - 1, x.dtype)
    first = x == 0
    inner = (x != 0) & (x != last)
    scale = tl.where(raw < LEAST, LEAST, raw)
    inverse = tl.exp(-scale)
    inverse = tl.where(inverse < tiny, tiny, inverse)
    c = v - mean
    turned = first | (inner & (c < 0))
    p = tl.where(turned, -c, c) * inverse
    p = tl.where(p > big, big, tl.where(p < -big, -big, p))
    q = inverse / last
    a, b, width = p - q, p + q, 2 * q
    ea = tl.exp(-tl.abs(a))
    eb = tl.where(inner, tl.exp(-tl.where(inner, b, 0.0)), 0.0)
    left, lost = _decay(width)
    small = inner & (width < small_width)
    factor = tl.where(inner & (width >= small_width), lost, 1.0)
    # NaN in the scale alone must not be lost.
    factor = tl.where(inverse != inverse, inverse, factor)
    linear = tl.where(small, tl.log(2 / last) - scale, 0.0) - tl.where(a > 0, a, 0.0)
    da, db = 1 + ea, 1 + eb
    lower, upper = tl.where(a >= 0, 1.0, ea) / da, eb / db
    slope = inverse * (lower - upper)
    by_width = tl.where(small, 1.0, tl.where(inner, width * left / tl.where(small, 1.0, lost), 0.0))
    bend = a * lower - tl.where(inner, b, 0.0) * upper - by_width
    return (
        linear,
        factor / (da * db),
        tl.where(turned, -slope, slope),
        tl.where(raw < LEAST, 0.0, bend),
    )


@triton.jit
def _plane(params_ptr, index, plane, at, mask):
    return tl.load(params_ptr + tl.cast(index, tl.int64) * plane + at, mask=mask, other=0.0)


@triton.jit
def _pixels(x_ptr, n, s, places, mask, levels, C: tl.constexpr, c: tl.constexpr):
    """Levels of a channel, NaN what is none, and their values."""
    x = tl.load(x_ptr + (n * C + c) * places + s, mask=mask, other=0.0)
    valid = (x >= 0) & (x <= tl.cast(levels - 1, x.dtype)) & (x == tl.floor(x))
    x = tl.where(valid, x, float("nan"))
    return x, _value(x, levels)


@triton.jit
def _term(m, mixtures, params_ptr, plane, at, mask, x0, x1, x2, v0, v1, v2, levels,
          C: tl.constexpr, LEAST: tl.constexpr):  # fmt: skip
    """Of a term: linear and factor, slopes by channel, and the derivatives of its coefficients."""
    if C == 1:
        mean = _plane(params_ptr, mixtures + m, plane, at, mask)
        raw = _plane(params_ptr, 2 * mixtures + m, plane, at, mask)
        linear, factor, slope, bend = _bin(x0, v0, mean, raw, levels, LEAST)
        return linear, factor, slope, slope, slope, bend, bend, bend, slope, slope, slope
    else:
        t0, d0 = _tanh(_plane(params_ptr, 3 * mixtures + m, plane, at, mask))
        t1, d1 = _tanh(_plane(params_ptr, 6 * mixtures + m, plane, at, mask))
        t2, d2 = _tanh(_plane(params_ptr, 9 * mixtures + m, plane, at, mask))
        red = _plane(params_ptr, mixtures + m, plane, at, mask)
        green = _plane(params_ptr, 4 * mixtures + m, plane, at, mask) + t0 * v0
        blue = _plane(params_ptr, 7 * mixtures + m, plane, at, mask) + (t1 * v0 + t2 * v1)
        raw0 = _plane(params_ptr, 2 * mixtures + m, plane, at, mask)
        raw1 = _plane(params_ptr, 5 * mixtures + m, plane, at, mask)
        raw2 = _plane(params_ptr, 8 * mixtures + m, plane, at, mask)
        l0, f0, s0, b0 = _bin(x0, v0, red, raw0, levels, LEAST)
        l1, f1, s1, b1 = _bin(x1, v1, green, raw1, levels, LEAST)
        l2, f2, s2, b2 = _bin(x2, v2, blue, raw2, levels, LEAST)
        through = s1 * v0 * d0, s2 * v0 * d1, s2 * v1 * d2
        return (
            l0 + l1 + l2, f0 * f1 * f2, s0, s1, s2, b0, b1, b2, through[0], through[1], through[2],
        )  # fmt: skip


@triton.jit(do_not_specialize=["places", "mixtures", "blocks", "levels"])
def log_prob_kernel(
    x_ptr,  # (N, C, S) levels, contiguous, of the type of params
    params_ptr,  # (N, P, S) by strides
    out_ptr,  # out (N, S), where not BACKWARD
    grad_ptr,  # (N, S), where BACKWARD
    slopes_ptr,  # out (N, P, S) by strides, where BACKWARD
    places,  # S
    mixtures,  # M
    blocks,  # of a row
    levels,
    row,
    plane,
    place,
    slopes_row,
    slopes_plane,
    slopes_place,
    C: tl.constexpr,
    LEAST: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Log-probability of a block of pixels, or the gradient in their parameters."""
    n = tl.cast(tl.program_id(0), tl.int64) // blocks
    s = (tl.cast(tl.program_id(0), tl.int64) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = s < places
    at = n * row + s * place
    x0, v0 = _pixels(x_ptr, n, s, places, mask, levels, C, 0)
    x1, v1, x2, v2 = x0, v0, x0, v0
    if C == 3:
        x1, v1 = _pixels(x_ptr, n, s, places, mask, levels, C, 1)
        x2, v2 = _pixels(x_ptr, n, s, places, mask, levels, C, 2)
    greatest = _plane(params_ptr, 0, plane, at, mask)
    for m in range(1, mixtures):
        z = _plane(params_ptr, m, plane, at, mask)
        greatest = tl.where(z > greatest, z, greatest)
    top = tl.full([BLOCK], -3e38, x0.dtype)
    total, prior = tl.zeros([BLOCK], x0.dtype), tl.zeros([BLOCK], x0.dtype)
    for m in range(mixtures):
        linear, factor, _, _, _, _, _, _, _, _, _ = _term(
            m, mixtures, params_ptr, plane, at, mask, x0, x1, x2, v0, v1, v2, levels, C, LEAST
        )
        z = _plane(params_ptr, m, plane, at, mask) - greatest
        linear += z
        prior += tl.exp(z)
        higher = tl.where(linear > top, linear, top)
        total = total * tl.exp(top - higher) + factor * tl.exp(linear - higher)
        top = higher
    if BACKWARD:
        g = tl.load(grad_ptr + n * places + s, mask=mask, other=0.0)
        by_total = tl.where(total == 0, 0.0, g / tl.where(total == 0, 1.0, total))
        by_prior = g / prior
        to = slopes_ptr + n * slopes_row + s * slopes_place
        step = tl.cast(mixtures, tl.int64) * slopes_plane
        for m in range(mixtures):
            linear, factor, s0, s1, s2, b0, b1, b2, t0, t1, t2 = _term(
                m, mixtures, params_ptr, plane, at, mask, x0, x1, x2, v0, v1, v2, levels, C, LEAST
            )
            z = _plane(params_ptr, m, plane, at, mask) - greatest
            share = factor * tl.exp(linear + z - top) * by_total
            own = to + tl.cast(m, tl.int64) * slopes_plane
            tl.store(own, share - tl.exp(z) * by_prior, mask=mask)
            tl.store(own + step, s0 * share, mask=mask)
            tl.store(own + 2 * step, b0 * share, mask=mask)
            if C == 3:
                tl.store(own + 3 * step, t0 * share, mask=mask)
                tl.store(own + 4 * step, s1 * share, mask=mask)
                tl.store(own + 5 * step, b1 * share, mask=mask)
                tl.store(own + 6 * step, t1 * share, mask=mask)
                tl.store(own + 7 * step, s2 * share, mask=mask)
                tl.store(own + 8 * step, b2 * share, mask=mask)
                tl.store(own + 9 * step, t2 * share, mask=mask)
    else:
        log = tl.log(tl.where(total == 0, 1.0, total) / prior)
        log = tl.where(total == 0, float("-inf"), top + log)
        tl.store(out_ptr + n * places + s, log, mask=mask)


@triton.jit
def _uniform(high, low):
    """53 bits in [0, 1)."""
    whole = (tl.cast(high >> 5, tl.uint64) << 26) + tl.cast(low >> 6, tl.uint64)
    return whole.to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _draw(u, mean, raw, levels, LEAST: tl.constexpr):
    """The level whose bin holds the draw, NaN where there is none, and its value."""
    scale = tl.exp(tl.where(raw < LEAST, LEAST, raw))
    none = u == 0
    log = tl.where(none, float("-inf"), tl.log(tl.where(none, 1.0, u)))
    v = mean + scale * (log - tl.log(1 - u))  # 1 - u is exact
    last = tl.cast(levels - 1, tl.float64)
    level = tl.floor((v + 1) * (last / 2) + 0.5)
    level = tl.where(level < 0, 0.0, tl.where(level > last, last, level))
    return level, _value(level, levels)


@triton.jit
def _wide(params_ptr, index, plane, at, mask):
    return tl.load(params_ptr + index * plane + at, mask=mask, other=0.0).to(tl.float64)


@triton.jit(do_not_specialize=["places", "mixtures", "blocks", "levels", "seed", "row0", "step0"])
def sample_kernel(
    params_ptr,  # (N, P, S) by strides
    out_ptr,  # out (N, C, S) int64
    places,  # S
    mixtures,  # M
    blocks,  # of a row
    levels,
    row,
    plane,
    place,
    seed,
    row0,
    step0,
    C: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Draws of a block of pixels, in float64 whatever the parameters are."""
    n = tl.cast(tl.program_id(0), tl.int64) // blocks
    s = (tl.cast(tl.program_id(0), tl.int64) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = s < places
    at = n * row + s * place
    zero = tl.zeros([BLOCK], tl.uint32)
    stream = n + row0
    low, high = zero + stream.to(tl.uint32), zero + (stream >> 32).to(tl.uint32)
    step = zero + (s + step0).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, zero, low, high, step, n_rounds=10)
    u, u0 = _uniform(w0, w1), _uniform(w2, w3)
    m64 = tl.cast(mixtures, tl.int64)
    greatest = _wide(params_ptr, tl.zeros([BLOCK], tl.int64), plane, at, mask)
    for m in range(1, mixtures):
        z = _wide(params_ptr, tl.cast(m, tl.int64), plane, at, mask)
        greatest = tl.where(z > greatest, z, greatest)
    total = tl.zeros([BLOCK], tl.float64)
    for m in range(mixtures):
        total += tl.exp(_wide(params_ptr, tl.cast(m, tl.int64), plane, at, mask) - greatest)
    mark = u * total
    chosen, running = tl.zeros([BLOCK], tl.int64), tl.zeros([BLOCK], tl.float64)
    for m in range(mixtures - 1):
        running += tl.exp(_wide(params_ptr, tl.cast(m, tl.int64), plane, at, mask) - greatest)
        chosen += (running <= mark).to(tl.int64)
    mean = _wide(params_ptr, m64 + chosen, plane, at, mask)
    raw = _wide(params_ptr, 2 * m64 + chosen, plane, at, mask)
    x0, v0 = _draw(u0, mean, raw, levels, LEAST)
    to = out_ptr + n * C * places + s
    bad = total != total
    wrong = bad | (x0 != x0)
    if C == 1:
        tl.store(to, tl.where(wrong, -1.0, x0).to(tl.int64), mask=mask)
    else:
        w0, w1, w2, w3 = tl.philox(seed, zero + 1, low, high, step, n_rounds=10)
        t0, _ = _tanh(_wide(params_ptr, 3 * m64 + chosen, plane, at, mask))
        t1, _ = _tanh(_wide(params_ptr, 6 * m64 + chosen, plane, at, mask))
        t2, _ = _tanh(_wide(params_ptr, 9 * m64 + chosen, plane, at, mask))
        mean = _wide(params_ptr, 4 * m64 + chosen, plane, at, mask) + t0 * v0
        raw = _wide(params_ptr, 5 * m64 + chosen, plane, at, mask)
        x1, v1 = _draw(_uniform(w0, w1), mean, raw, levels, LEAST)
        mean = _wide(params_ptr, 7 * m64 + chosen, plane, at, mask) + t1 * v0 + t2 * v1
        raw = _wide(params_ptr, 8 * m64 + chosen, plane, at, mask)
        x2, _ = _draw(_uniform(w2, w3), mean, raw, levels, LEAST)
        wrong = wrong | (x1 != x1) | (x2 != x2)
        tl.store(to, tl.where(wrong, -1.0, x0).to(tl.int64), mask=mask)
        tl.store(to + places, tl.where(wrong, -1.0, x1).to(tl.int64), mask=mask)
        tl.store(to + 2 * places, tl.where(wrong, -1.0, x2).to(tl.int64), mask=mask)
