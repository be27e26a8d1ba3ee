"""Masked convolution and masked linear layer, in plain torch: the whole product, dead weights as 0.

Shape letters: ``N`` rows, ``C`` input and ``O`` output channels, ``H W`` image, ``I`` input and
``O`` output features.  A mask is functional: it never changes the weight.

Sources: van den Oord, Kalchbrenner, Kavukcuoglu, Pixel recurrent neural networks (2016), section
3.4 and figure 4; Germain et al., MADE (2015), eq. 12-13.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

Mask = str | Tensor | Sequence[Sequence[bool]]


def taps_of(mask: Mask, kernel: tuple[int, int], groups: int) -> tuple[list[int], bool]:
    """Places in the raster of the kernel that are alive for some channels, and whether the centre
    is strict: whether there an output sees only groups before its own.
    """
    down, across = kernel
    centre = down * across // 2
    if isinstance(mask, str):
        strict = mask == "A"
        taps = list(range(centre if strict else centre + 1))
    else:
        rows = mask.tolist() if isinstance(mask, Tensor) else mask
        flat = [bool(entry) for row in rows for entry in row]
        strict = not flat[centre]
        taps = [place for place, entry in enumerate(flat) if entry]
    if strict and groups > 1:
        taps = sorted((*taps, centre))
    return taps, strict


def live_weights(
    shape: Sequence[int],
    taps: Sequence[int],
    strict: bool,
    groups: int,
    device: torch.device | None = None,
) -> Tensor:
    """The mask of a weight of ``shape`` (O, C, kh, kw), bool."""
    o, c, down, across = shape
    live = torch.zeros(o, c, down * across, dtype=torch.bool, device=device)
    live[:, :, list(taps)] = True
    centre = down * across // 2
    if groups > 1 and centre in taps:
        later = torch.arange(o, device=device)[:, None] // max(1, o // groups)
        earlier = torch.arange(c, device=device) // max(1, c // groups)
        live[:, :, centre] = later > earlier if strict else later >= earlier
    return live.view(o, c, down, across)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, taps: Sequence[int], strict: bool, groups: int
) -> Tensor:
    """``masked_conv2d`` after `taps_of`."""
    down, across = weight.shape[2:]
    weight = torch.where(live_weights(weight.shape, taps, strict, groups, x.device), weight, 0.0)
    if x.shape[0] == 0 or x.shape[2] == 0 or x.shape[3] == 0:  # torch refuses some of them
        y = torch.einsum("nchw,ockl->nohw", x, weight)
        return y if bias is None else y + bias[:, None, None]
    return functional.conv2d(x, weight, bias, padding=(down // 2, across // 2))


def masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, mask: Mask, groups: int = 1
) -> Tensor:
    """Convolution that keeps H x W, of weights of which only the live ones count.

    ``x`` (N, C, H, W), ``weight`` (O, C, kh, kw) of odd sizes, ``bias`` (O,); y (N, O, H, W).
    ``mask``: "A" or "B", or (kh, kw) live taps; ``groups`` blocks of channels, of which at the
    centre one sees those before it, and with "B" itself.
    """
    down, across = weight.shape[2:]
    return convolve(x, weight, bias, *taps_of(mask, (down, across), groups), groups)


def masked_conv2d_backward(
    x: Tensor, weight: Tensor, grad_y: Tensor, taps: Sequence[int], strict: bool, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, ``weight`` and ``bias`` from that of y (N, O, H, W)."""
    down, across = weight.shape[2:]
    live = live_weights(weight.shape, taps, strict, groups, x.device)
    if grad_y.numel() == 0 or x.numel() == 0:
        bias = grad_y.sum((0, 2, 3))
        return torch.zeros_like(x), torch.zeros_like(weight), bias
    found = torch.ops.aten.convolution_backward(
        grad_y,
        x,
        torch.where(live, weight, 0.0),
        [weight.shape[0]],
        [1, 1],
        [down // 2, across // 2],
        [1, 1],
        False,
        [0, 0],
        1,
        [True, True, True],
    )
    return found[0], torch.where(live, found[1], 0.0), found[2]


def live_links(in_degrees: Tensor, out_degrees: Tensor, strict: bool) -> Tensor:
    """The mask (O, I) of a linear layer, bool."""
    if strict:
        return out_degrees[:, None] > in_degrees
    return out_degrees[:, None] >= in_degrees


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    in_degrees: Tensor,
    out_degrees: Tensor,
    strict: bool = False,
) -> Tensor:
    """``x @ weight.T + bias`` where output o sees input i if ``out_degrees[o] >= in_degrees[i]``.

    ``x`` (*, I), ``weight`` (O, I), ``bias`` (O,), degrees int64 (I,) and (O,); y (*, O).
    ``strict``: only if ``out_degrees[o] > in_degrees[i]``.
    """
    live = live_links(in_degrees, out_degrees, strict)
    return functional.linear(x, torch.where(live, weight, 0.0), bias)


def masked_linear_backward(
    x: Tensor,
    weight: Tensor,
    grad_y: Tensor,
    *,
    in_degrees: Tensor,
    out_degrees: Tensor,
    strict: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x`` (N, I), ``weight`` and ``bias`` from that of y (N, O)."""
    live = live_links(in_degrees, out_degrees, strict)
    grad_weight = torch.where(live, grad_y.mT @ x, 0.0)
    return grad_y @ torch.where(live, weight, 0.0), grad_weight, grad_y.sum(0)
