"""Masked convolution and linear layers in Triton: the functions of `evidens.reference.masked_conv`.

Arguments are those of the inner ops.  Torch packs the live weights; a program then forms a block of
pixels times channels over live taps, or a block of the weight's gradient over a slab of pixels, and
skips the blocks of channels that are dead at the centre.  Degrees are sorted on the device.  The
kernels run in Triton's interpreter and compile for sm_90; they have not yet run on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from . import _masked_conv_products as products
from ._device import constant, on

# Pixels, lanes and depth of a block, by the size of a number.
_PRODUCT = {4: (64, 64, 32), 8: (32, 32, 16)}
# Pixels, lanes and channels.
_WEIGHT = {4: (32, 64, 32), 8: (16, 32, 16)}
_SLAB, _SLABS = 2048, 64


@functools.lru_cache(maxsize=64)
def _shifts(
    taps: tuple[int, ...], kernel: tuple[int, int], sign: int, device: torch.device
) -> Tensor:
    down, across = kernel
    pairs = ((sign * (t // across - down // 2), sign * (t % across - across // 2)) for t in taps)
    return constant(tuple(pairs), torch.int64, device).reshape(-1, 2)


@functools.lru_cache(maxsize=64)
def _group_limits(
    channels: int, others: int, groups: int, strict: bool, block: int, first: bool,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """What each block of lanes meets at the centre: from the ``first`` on, or up to the last."""
    limits = []
    for lane in range(0, channels, block):
        last = min(lane + block, channels) - 1
        group = (lane if first else last) // (channels // groups)
        if first:
            limits.append((min(groups, group + strict) * (others // groups), others))
        else:
            limits.append((0, (group + 1 - strict) * (others // groups)))
    return constant(tuple(limits), torch.int64, device)


def _product(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    shifts: Tensor,
    limits: Tensor | None,
    centre: int,
) -> Tensor:
    """(N, lanes, H, W) of x (N, depth, H, W) and weights (taps, depth, lanes)."""
    n, depth, height, width = x.shape
    taps, _, lanes = weights.shape
    out = x.new_empty((n, lanes, height, width))
    pixels, lane_block, depth_block = _PRODUCT[x.element_size()]
    total = n * height * width
    if total == 0:
        return out
    with on(x):
        products.product_kernel[(triton.cdiv(total, pixels) * triton.cdiv(lanes, lane_block),)](
            x,
            weights,
            bias,
            shifts,
            limits,
            out,
            total,
            height,
            width,
            depth,
            lanes,
            taps,
            centre,
            *x.stride(),
            *out.stride(),
            LIMITS=limits is not None,
            BIAS=bias is not None,
            PIXELS=pixels,
            LANES=lane_block,
            DEPTH=depth_block,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out


def _weight_sums(
    x: Tensor, grad_y: Tensor, shifts: Tensor, limits: Tensor | None, centre: int
) -> Tensor:
    """(taps, C, O) sums over pixels of x (N, C, H, W), read by each tap, times grad_y."""
    n, channels, height, width = x.shape
    lanes, taps = grad_y.shape[1], shifts.shape[0]
    pixels, lane_block, channel_block = _WEIGHT[x.element_size()]
    total = n * height * width
    slabs = max(1, min(_SLABS, triton.cdiv(total, _SLAB)))
    slab = triton.cdiv(triton.cdiv(total, slabs), pixels) * pixels
    sums = x.new_zeros((slabs, taps, channels, lanes), dtype=torch.float64)
    blocks = triton.cdiv(lanes, lane_block) * triton.cdiv(channels, channel_block)
    if total and taps:
        with on(x):
            products.weight_kernel[(slabs * taps * blocks,)](
                x,
                grad_y,
                shifts,
                limits,
                sums,
                total,
                height,
                width,
                channels,
                lanes,
                taps,
                centre,
                slab,
                *x.stride(),
                *grad_y.stride(),
                LIMITS=limits is not None,
                PIXELS=pixels,
                LANES=lane_block,
                CHANNELS=channel_block,
                num_warps=4,
                enable_fp_fusion=True,
            )
    return sums.sum(0)


def _links(in_degrees: Tensor, out_degrees: Tensor, strict: bool) -> Tensor:
    """The mask (O, I) of a linear layer."""
    seen = out_degrees[:, None]
    return seen > in_degrees if strict else seen >= in_degrees


def _live(weight: Tensor, taps: Sequence[int], strict: bool, groups: int) -> tuple[Tensor, Tensor]:
    """The mask of a weight, and its live taps (taps, O, C) with zeros where a channel is dead."""
    (o, c, down, across), device = weight.shape, weight.device
    places = constant(tuple(taps), torch.int64, device)
    live = torch.zeros(o, c, down * across, dtype=torch.bool, device=device)
    live[:, :, places] = True
    centre = down * across // 2
    if groups > 1 and centre in taps:
        own = torch.arange(o, device=device)[:, None] // max(1, o // groups)
        seen = torch.arange(c, device=device) // max(1, c // groups) + strict
        live[:, :, centre] = own >= seen
    live = live.view(weight.shape)
    chosen = torch.where(live, weight, 0.0).flatten(2).index_select(2, places)
    return live, chosen.permute(2, 0, 1)


def _centre(weight: Tensor, taps: Sequence[int], groups: int) -> int:
    place = weight.shape[2] * weight.shape[3] // 2
    return list(taps).index(place) if groups > 1 and place in taps else -1


def masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, taps: Sequence[int], strict: bool, groups: int
) -> Tensor:
    """The result (N, O, H, W)."""
    o, c, *kernel = weight.shape
    _, packed = _live(weight, taps, strict, groups)
    shifts = _shifts(tuple(taps), tuple(kernel), 1, x.device)
    centre, limits = _centre(weight, taps, groups), None
    if centre >= 0:
        block = _PRODUCT[x.element_size()][1]
        limits = _group_limits(o, c, groups, strict, block, False, x.device)
    bias = None if bias is None else bias.contiguous()
    return _product(x, packed.mT.contiguous(), bias, shifts, limits, centre)


def masked_conv2d_backward(
    x: Tensor,
    weight: Tensor,
    grad_y: Tensor,
    taps: Sequence[int],
    strict: bool,
    groups: int,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; (0,) for one that is not needed."""
    o, c, *kernel = weight.shape
    live, packed = _live(weight, taps, strict, groups)
    centre, size = _centre(weight, taps, groups), x.element_size()
    grad_x = grad_weight = grad_bias = x.new_empty((0,))
    if need_x:
        limits = None
        if centre >= 0:
            limits = _group_limits(c, o, groups, strict, _PRODUCT[size][1], True, x.device)
        shifts = _shifts(tuple(taps), tuple(kernel), -1, x.device)
        grad_x = _product(grad_y, packed.contiguous(), None, shifts, limits, centre)
    if need_weight:
        limits = None
        if centre >= 0:
            both = _group_limits(o, c, groups, strict, _WEIGHT[size][1], False, x.device)
            limits = both[:, 1].contiguous()
        shifts = _shifts(tuple(taps), tuple(kernel), 1, x.device)
        sums = _weight_sums(x, grad_y, shifts, limits, centre).permute(2, 1, 0).to(x.dtype)
        whole = torch.zeros_like(weight, memory_format=torch.contiguous_format).flatten(2)
        places = constant(tuple(taps), torch.int64, x.device)
        whole.index_copy_(2, places, sums)
        grad_weight = torch.where(live, whole.view(weight.shape), 0.0)
    if need_bias:
        grad_bias = grad_y.sum((0, 2, 3), dtype=torch.float64).to(x.dtype)
    return grad_x, grad_weight.clone(), grad_bias.clone()


# --- linear --------------------------------------------------------------------------------------


def _image(t: Tensor) -> Tensor:
    """Rows (N, D) as the pixels of one image, (1, D, N, 1)."""
    return t.T[None, :, :, None]


def _degree_limits(lanes: Tensor, others: Tensor, strict: bool, block: int, first: bool) -> Tensor:
    """The same as `_group_limits`, of rising degrees; nothing is looked at on the host."""
    count = lanes.shape[0]
    at = torch.arange(0, count, block, device=lanes.device)
    if first:
        begin = torch.searchsorted(others, lanes[at], right=strict)
        return torch.stack((begin, torch.full_like(begin, others.shape[0])), 1)
    end = torch.searchsorted(others, lanes[(at + block - 1).clamp(max=count - 1)], right=not strict)
    return torch.stack((torch.zeros_like(end), end), 1)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    in_order: Tensor | None,
    out_order: Tensor | None,
    strict: bool,
) -> Tensor:
    """The result (N, O)."""
    ins, in_order = in_degrees.sort(stable=True)
    outs, out_order = out_degrees.sort(stable=True)
    dead = torch.where(_links(in_degrees, out_degrees, strict), weight, 0.0)
    packed = dead[out_order][:, in_order].T.contiguous()[None]
    limits = _degree_limits(outs, ins, strict, _PRODUCT[x.element_size()][1], False)
    shifts = _shifts((0,), (1, 1), 1, x.device)
    ordered = None if bias is None else bias[out_order]
    y = _product(_image(x[:, in_order]), packed, ordered, shifts, limits, 0)[0, :, :, 0].T
    return torch.zeros_like(y, memory_format=torch.contiguous_format).index_copy_(1, out_order, y)


def masked_linear_backward(
    x: Tensor,
    weight: Tensor,
    grad_y: Tensor,
    in_degrees: Tensor,
    out_degrees: Tensor,
    in_order: Tensor | None,
    out_order: Tensor | None,
    strict: bool,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; (0,) for one that is not needed."""
    ins, in_order = in_degrees.sort(stable=True)
    outs, out_order = out_degrees.sort(stable=True)
    live, size = _links(in_degrees, out_degrees, strict), x.element_size()
    shifts = _shifts((0,), (1, 1), 1, x.device)
    given = _image(grad_y[:, out_order])
    grad_x = grad_weight = grad_bias = x.new_empty((0,))
    if need_x:
        packed = torch.where(live, weight, 0.0)[out_order][:, in_order].contiguous()[None]
        limits = _degree_limits(ins, outs, strict, _PRODUCT[size][1], True)
        g = _product(given, packed, None, shifts, limits, 0)[0, :, :, 0].T
        grad_x = torch.zeros_like(g, memory_format=torch.contiguous_format)
        grad_x.index_copy_(1, in_order, g)
    if need_weight:
        limits = _degree_limits(outs, ins, strict, _WEIGHT[size][1], False)[:, 1].contiguous()
        sums = _weight_sums(_image(x[:, in_order]), given, shifts, limits, 0)[0].T.to(x.dtype)
        back = sums[torch.argsort(out_order)][:, torch.argsort(in_order)]
        grad_weight = torch.where(live, back, 0.0)
    if need_bias:
        grad_bias = grad_y.sum(0, dtype=torch.float64).to(x.dtype)
    return grad_x, grad_weight.clone(), grad_bias.clone()
