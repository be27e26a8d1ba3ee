"""A PixelCNN at one pixel of an image: products, activations and draws, in Triton.

A value of the network keeps the rows that a kernel still reaches, (row, column, channel), with
zeros beside the columns and above the first row, so live taps side by side are one run of numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._coupling_maps import _sigmoid
from ._made_draws import activate

BERNOULLI, CATEGORICAL, LOGISTIC = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
GATE = tl.constexpr(100)


@triton.jit
def _activate(x, kind):
    """The activation of a number that is known at run time only."""
    if kind == 1:
        x = activate(x, 1)
    elif kind == 2:
        x = activate(x, 2)
    elif kind == 3:
        x = activate(x, 3)
    elif kind == 4:
        x = activate(x, 4)
    elif kind == 5:
        x = activate(x, 5)
    elif kind == 6:
        x = activate(x, 6)
    elif kind == 7:
        x = activate(x, 7)
    return x


@triton.jit
def _place(values_ptr, value, y, x):
    """Where a value's channels at a pixel begin, in the scratch of an image."""
    own = values_ptr + value * 5
    ring = tl.load(own + 1)
    return (
        tl.load(own)
        + (y + ring) % ring * tl.load(own + 2)  # y is at least 1 - ring
        + (x + tl.load(own + 4)) * tl.load(own + 3)
    )


@triton.jit
def _compute(
    job,  # 11 numbers, see `kernels/pixelcnn.py`
    values_ptr,
    runs_ptr,
    weights_ptr,
    scratch_ptr,  # of the image
    sums_ptr,  # of the image: before a gate
    context_ptr,  # of the image
    y,
    x,
    CONTEXT: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The outputs of one group of channels of one layer at one pixel."""
    weight, outputs = tl.load(job), tl.load(job + 1)
    first_run, runs = tl.load(job + 2), tl.load(job + 3)
    source, add, out = tl.load(job + 4), tl.load(job + 5), tl.load(job + 6)
    first, first_value = tl.load(job + 7), tl.load(job + 8)
    activation, context = tl.load(job + 9), tl.load(job + 10)
    target = scratch_ptr + _place(values_ptr, out, y, x) + first_value
    gated = activation == GATE
    for o0 in range(0, outputs, BLOCK_O):
        o = o0 + tl.arange(0, BLOCK_O)
        inside = o < outputs
        if weight < 0:
            here = scratch_ptr + _place(values_ptr, source, y, x) + first + o
            acc = tl.load(here, mask=inside, other=0.0)
        else:
            acc = tl.load(weights_ptr + weight + o, mask=inside, other=0.0)
            at = weights_ptr + weight + outputs
            for r in range(first_run, first_run + runs):
                run = runs_ptr + r * 3
                depth = tl.load(run + 2)
                seen = scratch_ptr + _place(
                    values_ptr, source, y + tl.load(run), x + tl.load(run + 1)
                )
                for k0 in range(0, depth, BLOCK_K):
                    k = k0 + tl.arange(0, BLOCK_K)
                    a = tl.load(seen + k, mask=k < depth, other=0.0)
                    w = tl.load(
                        at + k[:, None] * outputs + o[None, :],
                        mask=(k < depth)[:, None] & inside[None, :],
                        other=0.0,
                    )
                    acc += tl.sum(w * a[:, None], 0)
                at += depth * outputs
        if CONTEXT:
            if context >= 0:
                acc += tl.load(context_ptr + context + first + o, mask=inside, other=0.0)
        if add >= 0:
            other = scratch_ptr + _place(values_ptr, add, y, x) + first + o
            acc += tl.load(other, mask=inside, other=0.0)
        if gated:
            tl.store(sums_ptr + o, acc, mask=inside)
        else:
            tl.store(target + o, _activate(acc, activation), mask=inside)
    tl.debug_barrier()
    if gated:
        half = outputs // 2
        for o0 in range(0, half, BLOCK_O):
            o = o0 + tl.arange(0, BLOCK_O)
            a = tl.load(sums_ptr + o, mask=o < half, other=0.0)
            b = tl.load(sums_ptr + half + o, mask=o < half, other=0.0)
            tl.store(target + o, activate(a, 4) * _sigmoid(b), mask=o < half)
        tl.debug_barrier()


@triton.jit
def _pick(params_ptr, count, u, BLOCK_L: tl.constexpr):
    """The entry of ``count`` logits that u falls on; -1 where they give no distribution."""
    k = tl.arange(0, BLOCK_L)
    logits = tl.load(params_ptr + k, mask=k < count, other=float("-inf"))
    weights = tl.exp(logits - tl.max(logits, 0))
    sums = tl.cumsum(weights, 0)
    limit = u * tl.max(sums, 0)
    index = tl.sum(((sums <= limit) & (k < count)).to(tl.int64), 0)
    total = tl.sum(weights, 0)
    return tl.where(total == total, tl.minimum(index, count - 1), -1)


@triton.jit
def _settle(
    level, c, place, size, known_ptr, values_ptr, x_ptr, input_ptr, numbers_ptr, levels,
    KNOWN: tl.constexpr, ONE_HOT: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """The level of a channel, drawn or known: told to the caller and shown to the network."""
    at = place + c * size
    if KNOWN:
        level = tl.where(tl.load(known_ptr + at) != 0, tl.load(values_ptr + at), level)
    tl.store(x_ptr + at, level)
    dtype = input_ptr.dtype.element_ty
    if ONE_HOT:
        k = tl.arange(0, BLOCK_L)
        tl.store(input_ptr + c * levels + k, (k == level).to(dtype), mask=k < levels)
    else:
        seen = level.to(dtype) * tl.load(numbers_ptr) + tl.load(numbers_ptr + 1)
        tl.store(input_ptr + c, seen)
    return level


@triton.jit(do_not_specialize=["first_pixel", "last_pixel", "ahead", "here"])
def pixel_kernel(
    jobs_ptr,  # (jobs, 11) int64: a row at a time, then those of each group
    values_ptr,  # (V, 5) int64: place, rows kept, size of a row, channels, columns of zeros
    runs_ptr,  # (runs, 3) int64: row and column beside the pixel, depth
    weights_ptr,
    scratch_ptr,  # (N, scratch)
    sums_ptr,  # (N, sums)
    context_ptr,  # (N, contexts), where CONTEXT
    noise_ptr,  # (N, draws, H, W)
    known_ptr,  # (N, C, H, W) int8, where KNOWN
    given_ptr,  # (N, C, H, W) int64
    numbers_ptr,  # (4,): what the network sees is a level + b; the least log-scale; (K - 1) / 2
    x_ptr,  # out (N, C, H, W) int64; -1: no distribution
    first_pixel,
    last_pixel,
    ahead,  # jobs of a row at a time
    here,  # jobs of each group
    scratch,
    sums,
    contexts,
    draws,
    channels,
    height,
    width,
    groups,
    levels,
    mixtures,
    KIND: tl.constexpr,
    COLOURS: tl.constexpr,  # channels of the logistic kind
    KNOWN: tl.constexpr,
    ONE_HOT: tl.constexpr,
    CONTEXT: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Pixels first_pixel .. last_pixel of one image."""
    image = tl.cast(tl.program_id(0), tl.int64)
    own = scratch_ptr + image * scratch
    size = tl.cast(height, tl.int64) * width
    sums_own, told = sums_ptr + image * sums, context_ptr
    if CONTEXT:
        told = context_ptr + image * contexts
    outputs = tl.load(jobs_ptr + (ahead + here - 1) * 11 + 6)  # the value of the last layer
    share = channels // groups
    for pixel in range(first_pixel, last_pixel):
        y, x = tl.cast(pixel // width, tl.int64), tl.cast(pixel % width, tl.int64)
        if x == 0:
            for j in range(0, ahead):
                for column in range(0, width):
                    _compute(
                        jobs_ptr + j * 11, values_ptr, runs_ptr, weights_ptr, own, sums_own, told,
                        y, tl.cast(column, tl.int64), CONTEXT, BLOCK_O, BLOCK_K,
                    )  # fmt: skip
        input_ptr = own + _place(values_ptr, 0, y, x)
        place = image * channels * size + pixel
        u_ptr = noise_ptr + image * draws * size + pixel
        for g in range(0, groups):
            for j in range(0, here):
                _compute(
                    jobs_ptr + (ahead + g * here + j) * 11, values_ptr, runs_ptr, weights_ptr, own,
                    sums_own, told, y, x, CONTEXT, BLOCK_O, BLOCK_K,
                )  # fmt: skip
            params = own + _place(values_ptr, outputs, y, x)
            if KIND == LOGISTIC:
                chosen = _pick(params, mixtures, tl.load(u_ptr), BLOCK_L)
                mine = params + tl.maximum(chosen, 0)
                half, least = tl.load(numbers_ptr + 3), tl.load(numbers_ptr + 2)
                red, green = half * 0, half * 0
                for c in tl.static_range(COLOURS):
                    mean = tl.load(mine + (1 + c * 3) * mixtures)
                    if c == 1:
                        mean += activate(tl.load(mine + 3 * mixtures), 4) * red
                    if c == 2:
                        mean += activate(tl.load(mine + 6 * mixtures), 4) * red
                        mean += activate(tl.load(mine + 9 * mixtures), 4) * green
                    low = tl.load(mine + (2 + c * 3) * mixtures)
                    scale = tl.exp(tl.where(low < least, least, low))
                    u = tl.load(u_ptr + (1 + c) * size)
                    bin = (mean + scale * tl.log(u / (1 - u)) + 1) * half + 0.5
                    sure = tl.where(bin == bin, bin, 0.0)
                    kept = tl.minimum(tl.maximum(sure, 0.0), (levels - 1).to(bin.dtype))
                    level = tl.floor(kept).to(tl.int64)
                    level = tl.where((bin == bin) & (chosen >= 0), level, -1)
                    level = _settle(
                        level, c, place, size, known_ptr, given_ptr, x_ptr, input_ptr, numbers_ptr,
                        levels, KNOWN, ONE_HOT, BLOCK_L,
                    )  # fmt: skip
                    if c == 0:
                        red = level.to(half.dtype) / half - 1
                    if c == 1:
                        green = level.to(half.dtype) / half - 1
            else:
                for c in range(g * share, (g + 1) * share):
                    u = tl.load(u_ptr + c * size)
                    if KIND == BERNOULLI:
                        p = _sigmoid(tl.load(params + c))
                        level = tl.where(p == p, (u < p).to(tl.int64), -1)
                    else:
                        level = _pick(params + c * levels, levels, u, BLOCK_L)
                    _settle(
                        level, c, place, size, known_ptr, given_ptr, x_ptr, input_ptr, numbers_ptr,
                        levels, KNOWN, ONE_HOT, BLOCK_L,
                    )  # fmt: skip
            tl.debug_barrier()
