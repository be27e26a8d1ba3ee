"""What the affine coupling kernels do to a block of elements, and ActNorm's, in Triton.

Active elements of a row, ``A S`` of them, are dense in scale and shift; a program takes a block of
them.  The log-scale of a block is summed in float64, and nothing is added atomically.
"""

from __future__ import annotations

import triton
import triton.language as tl

EXP, CLAMPED, SIGMOID, SOFTPLUS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
TANH, ATAN, BOUNDED = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)


@triton.jit
def _atan(x):
    """By two halvings of the angle, so that 13 terms of the series suffice for float64."""
    a = tl.abs(x)
    large = a > 1
    z = tl.where(large, 1 / tl.where(large, a, 1.0), a)
    z = z / (1 + tl.sqrt(1 + z * z))
    z = z / (1 + tl.sqrt(1 + z * z))
    w, term, total = z * z, z, z
    for n in tl.static_range(1, 13):
        term = -term * w
        total += term / (2 * n + 1)
    y = 4 * total
    y = tl.where(large, 1.57079632679489661923 - y, y)
    return tl.where(x < 0, -y, y)


@triton.jit
def _softplus(z):
    e = tl.exp(-tl.abs(z))
    rounded = 1 + e
    kept = rounded - 1
    # log1p: what rounding 1 + e lost is put back in proportion.
    log1p = tl.where(kept == 0, e, tl.log(rounded) * (e / tl.where(kept == 0, 1.0, kept)))
    return tl.maximum(z, 0.0) + log1p


@triton.jit
def _sigmoid(z):
    e = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, e) / (1 + e)


@triton.jit
def _log_scale(r, c, MAP: tl.constexpr):
    """``log s`` of raw scales and its derivative."""
    if MAP == EXP:
        return r, tl.full(r.shape, 1.0, r.dtype)
    elif MAP == CLAMPED:
        inside = tl.where(tl.abs(r) <= c, 1.0, 0.0).to(r.dtype)
        return tl.minimum(tl.maximum(r, -c), c), inside
    elif MAP == SIGMOID:
        s = _sigmoid(r + 2) + c
        log = tl.where(c > 0, tl.log(tl.where(c > 0, s, 1.0)), -_softplus(-r - 2))
        share = tl.where(c > 0, _sigmoid(r + 2) / tl.where(c > 0, s, 1.0), 1.0)
        return log, _sigmoid(-r - 2) * share
    elif MAP == SOFTPLUS:
        # Without an offset softplus underflows; there its logarithm is r.
        if r.dtype == tl.float64:
            small = tl.where(c == 0, r, 0.0) < -36
        else:
            small = tl.where(c == 0, r, 0.0) < -16
        s = _softplus(tl.where(small, 0.0, r)) + c
        return tl.where(small, r, tl.log(s)), tl.where(small, 1.0, _sigmoid(r) / s)
    elif MAP == TANH:
        e = tl.exp(-2 * tl.abs(r))
        t = (1 - e) / (1 + e)
        return tl.where(r < 0, -t, t) * c, c * (1 - t * t)
    elif MAP == ATAN:
        r = tl.minimum(tl.maximum(r, -1e18), 1e18)  # its square is finite
        return _atan(r) * (0.636 * c), 0.636 * c / (1 + r * r)
    else:
        # `c` is -1 / log(slope) here.
        largest = 3.0e38
        r = tl.minimum(tl.maximum(r, -largest), largest)
        bent = 1 + tl.abs(r) * c
        return r / bent, 1 / bent / bent


@triton.jit
def _factor(power):
    """Its exponential, finite, and whether that is still its derivative."""
    if power.dtype == tl.float64:
        largest = 709.78
    else:
        largest = 88.72
    return tl.exp(tl.minimum(power, largest)), power <= largest


@triton.jit
def _difference(x, t):
    """``x - t``, where it overflows the largest number: a factor of 0 then gives 0, not NaN."""
    if x.dtype == tl.float64:
        largest = 1.7976931348623157e308
    else:
        largest = 3.4028234663852886e38
    d = x - t
    held = tl.minimum(tl.maximum(d, -largest), largest)
    return tl.where((tl.abs(x) <= largest) & (tl.abs(t) <= largest), held, d)


@triton.jit(do_not_specialize=["features", "elements", "places", "chunks"])
def affine_kernel(
    x_ptr,  # (N, D, S), contiguous
    scale_ptr,  # (N, A, S) by strides of the first two, or None
    shift_ptr,  # the same, or None
    index_ptr,  # (A,) int64, where INDEX
    clamp_ptr,  # (1,)
    y_ptr,  # out (N, D, S), where FORWARD; what is passive stands there already
    sums_ptr,  # out (N, chunks) float64, where FORWARD
    grad_y_ptr,  # (N, D, S) contiguous, where not FORWARD
    grad_logdet_ptr,  # (N,)
    grad_x_ptr,  # out (N, D, S) or None; what is passive stands there already
    grad_scale_ptr,  # out (N, A, S) contiguous, or None
    grad_shift_ptr,
    features,
    elements,  # A S
    places,  # S
    chunks,  # blocks of a row
    scale_row,
    scale_channel,
    shift_row,
    shift_channel,
    MAP: tl.constexpr,
    INVERSE: tl.constexpr,
    FORWARD: tl.constexpr,
    INDEX: tl.constexpr,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of the active elements of one row: value and log-scale, or gradients."""
    dtype = x_ptr.dtype.element_ty
    row = tl.cast(tl.program_id(0), tl.int64) // chunks
    chunk = tl.cast(tl.program_id(0), tl.int64) % chunks
    e = chunk * BLOCK + tl.arange(0, BLOCK)
    dense = e < elements
    a, s = e // places, e % places
    column = a
    if INDEX:
        column = tl.load(index_ptr + a, mask=dense, other=-1)
    mask = dense & (column >= 0) & (column < features)
    place = row * features * places + column * places + s
    x = tl.load(x_ptr + place, mask=mask, other=0.0)
    t = tl.zeros([BLOCK], dtype)
    if SHIFT:
        t = tl.load(shift_ptr + row * shift_row + a * shift_channel + s, mask=mask, other=0.0)
    log, slope = tl.zeros([BLOCK], dtype), tl.zeros([BLOCK], dtype)
    factor = tl.full([BLOCK], 1.0, dtype)
    moves = mask
    if SCALE:
        r = tl.load(scale_ptr + row * scale_row + a * scale_channel + s, mask=mask, other=0.0)
        log, slope = _log_scale(r, tl.load(clamp_ptr), MAP)
        power = log
        if INVERSE:
            power = -log
        factor, moves = _factor(power)
    if FORWARD:
        if INVERSE:
            y = x - t
            if SCALE:
                y = _difference(x, t) * factor
        else:
            y = x * factor + t
        tl.store(y_ptr + place, y, mask=mask)
        total = tl.sum(tl.where(mask, log, 0.0).to(tl.float64), axis=0)
        if INVERSE:
            total = -total
        tl.store(sums_ptr + row * chunks + chunk, total)
    else:
        g = tl.load(grad_y_ptr + place, mask=mask, other=0.0)
        total = tl.load(grad_logdet_ptr + row)
        grad_x = g * factor
        if grad_x_ptr is not None:
            tl.store(grad_x_ptr + place, grad_x, mask=mask)
        to = row * elements + e
        if grad_shift_ptr is not None:
            if INVERSE:
                tl.store(grad_shift_ptr + to, -grad_x, mask=dense)
            else:
                tl.store(grad_shift_ptr + to, g, mask=dense)
        if grad_scale_ptr is not None:
            through = tl.where(moves, factor * slope, 0.0)
            if INVERSE:
                r = -(_difference(x, t) * through * g + total * slope)
            else:
                r = x * through * g + total * slope
            tl.store(grad_scale_ptr + to, tl.where(mask, r, 0.0), mask=dense)


@triton.jit(do_not_specialize=["elements", "channels", "places"])
def actnorm_kernel(
    x_ptr,  # (N, C, S), contiguous
    log_scale_ptr,  # (C,)
    shift_ptr,
    out_ptr,  # (N, C, S)
    elements,  # N C S
    channels,
    places,
    INVERSE: tl.constexpr,
    SHIFT: tl.constexpr,  # without it, x is a gradient
    BLOCK: tl.constexpr,
):
    """``y = x exp(log_scale) + shift`` of a block of elements."""
    e = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = e < elements
    c = (e // places) % channels
    x = tl.load(x_ptr + e, mask=mask, other=0.0)
    power = tl.load(log_scale_ptr + c, mask=mask, other=0.0)
    shift = power * 0
    if SHIFT:
        shift = tl.load(shift_ptr + c, mask=mask, other=0.0)
    if INVERSE:
        factor, _ = _factor(-power)
        y = (x - shift) * factor
    else:
        factor, _ = _factor(power)
        y = x * factor + shift
    tl.store(out_ptr + e, y, mask=mask)


@triton.jit(do_not_specialize=["rows", "channels", "places", "programs"])
def actnorm_sums_kernel(
    x_ptr,  # (N, C, S), contiguous
    grad_y_ptr,
    shift_ptr,  # (C,)
    sums_ptr,  # out (C, programs, 2) float64: sums of g and of g times x (less the shift)
    rows,
    channels,
    places,
    programs,  # of a channel
    INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every program strides over the elements of one channel."""
    c = tl.cast(tl.program_id(0), tl.int64) // programs
    program = tl.cast(tl.program_id(0), tl.int64) % programs
    shift = tl.load(shift_ptr + c).to(tl.float64)
    if not INVERSE:
        shift = shift * 0
    count = tl.cast(rows, tl.int64) * places
    first, second = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for block in range(tl.cdiv(count, BLOCK * programs)):
        e = (tl.cast(block, tl.int64) * programs + program) * BLOCK + tl.arange(0, BLOCK)
        mask = e < count
        place = (e // places) * channels * places + c * places + e % places
        g = tl.load(grad_y_ptr + place, mask=mask, other=0.0).to(tl.float64)
        x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float64)
        first += g
        second += tl.where(mask, g * (x - shift), 0.0)
    to = (c * programs + program) * 2
    tl.store(sums_ptr + to, tl.sum(first, axis=0))
    tl.store(sums_ptr + to + 1, tl.sum(second, axis=0))
