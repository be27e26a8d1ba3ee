"""Masked convolutions on a GPU beside cuDNN on masked weights."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from evidens import ops
from evidens.reference.masked_conv import live_weights, taps_of

from .gpu import COMPILED, OURS, TORCH, case, compiled, normal, seconds, setup
from .harness import Case, Floor, Needs, Output, Provider, Setup

TF32 = "torch, TF32"  # torch's default on a GPU: ten bits of mantissa

#: Images, channels, height and width.
SHAPES = {"full": (64, 64, 28, 28), "quick": (8, 32, 28, 28), "smoke": (1, 3, 5, 5)}
#: Kernel, mask, and the floor against torch.
LAYERS = ((7, "A", 1.5), (5, "B", 1.0), (3, "B", 1.0))


def _build(shape: tuple[int, ...], kernel: int, mask: str, device: str, backward: bool) -> Setup:
    n, c, height, width = shape
    live = live_weights((c, c, kernel, kernel), *taps_of(mask, (kernel, kernel), 1), 1)
    alive = {dtype: live.to(device, dtype) for dtype in (torch.float32, torch.float64)}

    def torchs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.conv2d(x, weight * alive[x.dtype], bias, padding=kernel // 2)

    functions = {
        OURS: functools.partial(ops.masked_conv2d, mask=mask),
        TORCH: torchs,
        **compiled(torchs, device),
    }
    given = [
        normal(*shape, device=device),
        normal(c, c, kernel, kernel, device=device, seed=1) / kernel,
        normal(c, device=device, seed=2),
    ]
    flops = 2.0 * float(live.sum()) * n * height * width
    needs = Needs(flops=flops * (3 if backward else 1))
    made = setup(functions, torchs, given, device, backward=backward, tolerance=5e-5, needs=needs)
    if device == "cuda":
        made.providers.append(_less_precise(next(p for p in made.providers if p.name == TORCH)))
    return made


def _less_precise(torchs: Provider) -> Provider:
    def call() -> Output:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            return torchs.call()

    return Provider(TF32, call, functools.partial(seconds, call, "cuda"), warmup=call)


def cases(size: str, device: str) -> list[Case]:
    """The rows of the table."""
    n, c, height, width = SHAPES[size]
    rows = []
    for kernel, mask, floor in LAYERS:
        for backward in (False, True):
            work = f"masked {kernel} x {kernel} {mask}, "
            work += f"{'forward + backward' if backward else 'forward'}, "
            work += f"{n} x {c} x {height} x {width}"
            build = functools.partial(_build, SHAPES[size], kernel, mask, device, backward)
            floors = Floor("ratio", floor, TORCH), Floor("ratio", floor, COMPILED)
            rows.append(case("masked_conv", work, size, build, *floors))
    return rows
