"""Masked convolutions and linear layers beside torch's full ones on masked weights.

The limit counts the arithmetic of live weights alone, at the GEMM rate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from evidens import nn, ops
from evidens.reference.masked_conv import live_weights, taps_of

from .harness import OURS, Case, Floor, Needs, Output, Provider, Setup

TORCH = "torch"
COMPILED = "torch.compile"
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
NAMES = ("x", "weight", "bias")
#: Images, channels, height and width.
SHAPES = {"full": (16, 64, 28, 28), "quick": (4, 32, 28, 28), "smoke": (1, 3, 5, 5)}
#: Kernel, mask, groups and the floor against torch.
LAYERS = ((7, "A", 1, 1.5), (5, "B", 1, 1.5), (3, "B", 1, 1.15))
#: Rows, inputs and outputs of a hidden layer of MADE over 63 dimensions.
LINEAR = {"full": (256, 512, 512), "quick": (64, 128, 128), "smoke": (3, 5, 7)}
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def _double(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


def _setup(
    functions: dict[str, Function], given: list[Tensor], live: float, gradients: bool, dtype: str
) -> Setup:
    """``live``: multiply-adds of the product; the oracle is torch in float64."""
    dtype_of = getattr(torch, dtype)
    given = [t.to(dtype_of).requires_grad_(gradients) for t in given]
    incoming = torch.randn(functions[TORCH](*given).shape, dtype=dtype_of)

    def call(function: Function, given: Sequence[Tensor], incoming: Tensor) -> Output:
        y = function(*given)
        if not gradients:
            return {"y": y}
        slopes = torch.autograd.grad(y, given, incoming)
        return {"y": y.detach(), **dict(zip(NAMES, slopes))}

    calls = {name: functools.partial(call, f, given, incoming) for name, f in functions.items()}
    return Setup(
        [Provider(name, c, warmup=c) for name, c in calls.items()],
        TOLERANCE[dtype],
        oracle=functools.partial(call, functions[TORCH], _double(given), incoming.double()),
        needs=Needs(flops=2 * live * (3 if gradients else 1)),
    )


def _conv(
    shape: tuple[int, int, int, int], kernel: int, mask: str, groups: int, gradients: bool,
    whole: bool, dtype: str = "float32",
) -> Setup:  # fmt: skip
    n, c, height, width = shape
    given = [torch.randn(shape), torch.randn(c, c, kernel, kernel) / kernel, torch.randn(c)]
    live = live_weights(given[1].shape, *taps_of(mask, (kernel, kernel), groups), groups)
    factor = {getattr(torch, name): live.to(getattr(torch, name)) for name in TOLERANCE}

    def torchs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.conv2d(x, weight * factor[x.dtype], bias, padding=kernel // 2)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.masked_conv2d(x, weight, bias, mask=mask, groups=groups)

    functions: dict[str, Function] = {OURS: ours, TORCH: torchs}
    if whole:  # small: compiling outlasts the work
        functions[COMPILED] = torch.compile(torchs, fullgraph=True, dynamic=False)
    return _setup(functions, given, float(live.sum()) * n * height * width, gradients, dtype)


def _linear(shape: tuple[int, int, int], gradients: bool, dtype: str = "float32") -> Setup:
    n, inputs, outputs = shape
    layer = nn.MaskedLinear(torch.arange(inputs) % 63, torch.arange(outputs) % 63)
    given = [torch.randn(n, inputs), layer.weight.detach(), torch.randn(outputs)]
    factor = {getattr(torch, name): layer.live().to(getattr(torch, name)) for name in TOLERANCE}
    degrees = {
        name: getattr(layer, name)
        for name in ("in_degrees", "out_degrees", "in_order", "out_order")
    }

    def torchs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.linear(x, weight * factor[x.dtype], bias)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.masked_linear(x, weight, bias, **degrees)

    functions: dict[str, Function] = {OURS: ours, TORCH: torchs}
    return _setup(functions, given, float(layer.live().sum()) * n, gradients, dtype)


def cases(size: str = "full") -> list[Case]:
    """The rows of the table."""
    shape, linear, whole = SHAPES[size], LINEAR[size], size != "smoke"
    pace = {"rounds": 3, "budget": 1.0} if size != "full" else {"rounds": 9}
    rows: list[Case] = []

    def add(work: str, dtype: str, build: Callable[[], Setup], *floors: Floor, **options):
        name = "-".join((*work.lower().replace(",", "").replace(" + ", " ").split(), dtype))
        rows.append(Case(name, work, dtype, build, floors, **{**pace, **options}))

    n, c, height, width = shape
    for kernel, mask, groups, floor in LAYERS:
        what = f"masked conv {kernel}x{kernel} {mask}, {c} to {c}, {height}x{width}, batch {n}"
        for gradients in (False, True):
            build = functools.partial(_conv, shape, kernel, mask, groups, gradients, whole)
            floors = (Floor("ratio", floor, TORCH),) if gradients else ()
            add(f"{what}, forward{' + backward' if gradients else ''}", "float32", build, *floors)
    build = functools.partial(_conv, shape, 7, "A", 1, True, False, "float64")
    what = f"masked conv 7x7 A, {c} to {c}, {height}x{width}, batch {n}"
    add(f"{what}, forward + backward", "float64", build)
    colours = (max(1, n // 4), 3 * c, height, width)
    build = functools.partial(_conv, colours, 3, "B", 3, True, False)
    what = f"masked conv 3x3 B of 3 groups, {3 * c} to {3 * c}, {height}x{width}"
    add(f"{what}, batch {colours[0]}, forward + backward", "float32", build)
    for gradients in (False, True):
        build = functools.partial(_linear, linear, gradients)
        what = f"masked linear {linear[1]} to {linear[2]}, batch {linear[0]}"
        add(f"{what}, forward{' + backward' if gradients else ''}", "float32", build,
            note="degrees of a hidden layer of MADE over 63 dimensions, not sorted")  # fmt: skip
    return rows


def test_masked_conv(bench_case) -> None:
    """One row of the table."""
    bench_case()
