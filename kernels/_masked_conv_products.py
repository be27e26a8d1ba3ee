"""The two products of a masked convolution in Triton.

Channels of the result are *lanes*, those that are summed over are the *depth*.  At the tap
``centre`` a block of lanes meets only a range of the depth; within it dead weights are zeros.
Nothing is added atomically.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _inside(pixel, dy, dx, height, width, total):
    """Image, row and column that a tap reads from each pixel, and where there is one."""
    column, row = pixel % width + dx, pixel // width % height + dy
    image = pixel // (width * height)
    there = (pixel < total) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return image, row, column, there


@triton.jit(do_not_specialize=["total", "height", "width", "depth", "lanes", "taps", "centre"])
def product_kernel(
    in_ptr,  # (N, depth, H, W), by strides
    weight_ptr,  # (taps, depth, lanes)
    bias_ptr,  # (lanes,), or None
    shift_ptr,  # (taps, 2) int64: rows and columns from a pixel to the one that is read
    limit_ptr,  # (blocks of lanes, 2) int64: begin and end of the depth at the centre, or None
    out_ptr,  # (N, lanes, H, W), by strides
    total,  # N H W
    height,
    width,
    depth,
    lanes,
    taps,
    centre,
    in_image,
    in_channel,
    in_row,
    in_column,
    out_image,
    out_channel,
    out_row,
    out_column,
    LIMITS: tl.constexpr,
    BIAS: tl.constexpr,
    PIXELS: tl.constexpr,
    LANES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    dtype = out_ptr.dtype.element_ty
    blocks = tl.cdiv(lanes, LANES)
    block = tl.program_id(0) % blocks
    pixel = (tl.program_id(0) // blocks).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    lane = block.to(tl.int64) * LANES + tl.arange(0, LANES)
    acc = tl.zeros((PIXELS, LANES), dtype=dtype)
    for t in range(taps):
        dy, dx = tl.load(shift_ptr + 2 * t), tl.load(shift_ptr + 2 * t + 1)
        image, row, column, there = _inside(pixel, dy, dx, height, width, total)
        begin, end = depth * 0, depth
        before = tl.zeros((1,), tl.int64) + t
        before *= depth
        if LIMITS:
            first = tl.load(limit_ptr + 2 * block).to(tl.int32)
            last = tl.load(limit_ptr + 2 * block + 1).to(tl.int32)
            begin, end = tl.where(t == centre, first, begin), tl.where(t == centre, last, end)
        for d in range(begin, end, DEPTH):
            channel = tl.arange(0, DEPTH).to(tl.int64) + d
            place = image * in_image + row * in_row + column * in_column
            x = tl.load(
                in_ptr + place[:, None] + (channel * in_channel)[None, :],
                mask=there[:, None] & (channel < end)[None, :],
                other=0.0,
            )
            w = tl.load(
                weight_ptr + ((before + channel) * lanes)[:, None] + lane[None, :],
                mask=(channel < end)[:, None] & (lane < lanes)[None, :],
                other=0.0,
            )
            acc = tl.dot(x, w, acc, input_precision="ieee", out_dtype=dtype)
    if BIAS:
        acc += tl.load(bias_ptr + lane, mask=lane < lanes, other=0.0)[None, :]
    column, row, image = pixel % width, pixel // width % height, pixel // (width * height)
    place = image * out_image + row * out_row + column * out_column
    tl.store(
        out_ptr + place[:, None] + (lane * out_channel)[None, :],
        acc,
        mask=(pixel < total)[:, None] & (lane < lanes)[None, :],
    )


@triton.jit(
    do_not_specialize=["total", "height", "width", "channels", "lanes", "taps", "centre", "slab"]
)
def weight_kernel(
    x_ptr,  # (N, channels, H, W), by strides
    grad_ptr,  # (N, lanes, H, W), by strides
    shift_ptr,  # (taps, 2) int64
    limit_ptr,  # (blocks of lanes,) int64: end of the channels at the centre, or None
    out_ptr,  # (slabs, taps, channels, lanes) float64
    total,
    height,
    width,
    channels,
    lanes,
    taps,
    centre,
    slab,  # pixels of one
    x_image,
    x_channel,
    x_row,
    x_column,
    grad_image,
    grad_channel,
    grad_row,
    grad_column,
    LIMITS: tl.constexpr,
    PIXELS: tl.constexpr,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    dtype = x_ptr.dtype.element_ty
    lane_blocks, channel_blocks = tl.cdiv(lanes, LANES), tl.cdiv(channels, CHANNELS)
    program = tl.program_id(0)
    block, rest = program % lane_blocks, program // lane_blocks
    channel_block, rest = rest % channel_blocks, rest // channel_blocks
    t, part = rest % taps, rest // taps
    lane = block.to(tl.int64) * LANES + tl.arange(0, LANES)
    channel = channel_block.to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    dy, dx = tl.load(shift_ptr + 2 * t), tl.load(shift_ptr + 2 * t + 1)
    begin = part.to(tl.int64) * slab
    end = tl.minimum(begin + slab, total)
    if LIMITS:
        # A block of which nothing is alive has no pixels.
        dead = (t == centre) & (channel_block * CHANNELS >= tl.load(limit_ptr + block))
        end = tl.where(dead, begin, end)
    sums = tl.zeros((CHANNELS, LANES), dtype=tl.float64)
    for p in range(begin, end, PIXELS):
        pixel = p + tl.arange(0, PIXELS).to(tl.int64)
        image, row, column, there = _inside(pixel, dy, dx, height, width, end)
        place = image * x_image + row * x_row + column * x_column
        x = tl.load(
            x_ptr + place[None, :] + (channel * x_channel)[:, None],
            mask=there[None, :] & (channel < channels)[:, None],
            other=0.0,
        )
        place = image * grad_image + (row - dy) * grad_row + (column - dx) * grad_column
        g = tl.load(
            grad_ptr + place[:, None] + (lane * grad_channel)[None, :],
            mask=there[:, None] & (lane < lanes)[None, :],
            other=0.0,
        )
        sums += tl.dot(x, g, input_precision="ieee", out_dtype=dtype).to(tl.float64)
    row = (part.to(tl.int64) * taps + t) * channels + channel
    tl.store(
        out_ptr + (row * lanes)[:, None] + lane[None, :],
        sums,
        mask=(channel < channels)[:, None] & (lane < lanes)[None, :],
    )
