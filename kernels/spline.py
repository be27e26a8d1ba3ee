"""Rational-quadratic splines in Triton: the functions of `evidens.reference.spline` on a GPU.

Names, signatures and results are those of the reference, and there is a ``_backward`` of each;
all tensors share one dtype (float32 or float64) and one device.  The kernels run in Triton's
interpreter and compile for sm_90; they have not yet run on a GPU.

How it is laid out.  A tile is some rows times some features times all bins.  Softmax, running
sums, the search of the bin and the choice of its corners happen in registers, so every parameter
is read once and nothing is written but the results.  The layer's program takes all features of
its rows, adds their log-slopes in float64 in a fixed order and copies what is passive.  The
gradient starts from the inputs again.  No float is added atomically, so the same input gives the
same bits.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ._device import constant, on
from ._spline_backward import backward_kernel
from ._spline_forward import forward_kernel

MAPS = ("knots", "nflows", "zuko")
_LINEAR = 1
# Elements times bins of a tile, by the direction and the size of a number; and warps.  Chosen from
# the compiled code (registers without spills), not from timings.
_TILE = {("forward", 4): 1024, ("forward", 8): 512, ("backward", 4): 512, ("backward", 8): 256}
_MOST_ELEMENTS = 128
_WARPS = 4


class _Call(NamedTuple):
    """What the kernels need besides tensors of rows."""

    sides: Tensor  # (1 or D, 4), dtype of x
    tails: Tensor  # (1,), or (D,) and at least two, int32
    options: Tensor
    constants: dict


@functools.lru_cache(maxsize=256)
def _call(
    map: str,
    bins: int,
    stored: int,
    tails: tuple[int, ...],
    box: tuple[float, ...],
    options: tuple[float, ...],
    inverse: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> _Call:
    """Made once for each combination."""
    min_width, min_height, min_derivative, beta, slope, logit_scale = options
    double = dtype is torch.float64
    steep, thin = (2.0**255, 2.0**-340) if double else (2.0**31, 2.0**-42)
    numbers = (
        min_width,
        1 - min_width * bins,
        min_height,
        1 - min_height * bins,
        min_derivative,
        beta,
        -math.log(slope),
        logit_scale,
        1 / steep,
        steep,
        thin,
        1e-12 if double else 1e-5,
        2.0**1000 if double else 2.0**120,
    )
    by_name = map != "knots" and len(tails) == 1 and tails[0] == _LINEAR
    constants = {
        "MANY_SIDES": len(box) > 4,
        "MANY_TAILS": len(tails) > 1,
        "MAP": MAPS.index(map),
        "INVERSE": inverse,
        # Linear tails by name leave the outer slopes out; more than that reach the last one.
        "FIRST": int(by_name),
        "LAST": by_name and stored >= bins,
    }
    return _Call(
        constant(box, dtype, device),
        constant(tails, torch.int32, device),
        constant(numbers, dtype, device),
        constants,
    )


def _blocks(direction: str, x: Tensor, features: int, columns: int) -> dict[str, int]:
    """Rows, features and bins of a tile."""
    bins = triton.next_power_of_2(max(columns, 1))
    elements = max(1, min(_TILE[direction, x.element_size()] // bins, _MOST_ELEMENTS))
    across = min(triton.next_power_of_2(max(features, 1)), elements)
    return {"BLOCK_N": elements // across, "BLOCK_A": across, "BLOCK_M": bins}


def _passive(x: Tensor, active: Tensor) -> Tensor:
    """Which columns are copied, (D,) int8."""
    columns = torch.arange(x.shape[1], device=x.device)
    return (columns[:, None] != active).all(1).to(torch.int8)


def _forward(
    x: Tensor,
    parameters: tuple[Tensor, ...],
    active: Tensor | None,
    bins: int,
    rows: bool,
    map: str,
    tails: list[int],
    box: list[float],
    options: list[float],
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    n, d = x.shape
    features, columns = parameters[0].shape[1:]
    call = _call(
        map,
        bins,
        parameters[2].shape[2],
        tuple(tails),
        tuple(box),
        tuple(options),
        inverse,
        x.dtype,
        x.device,
    )
    y = x.new_empty((n, d))
    logdet = x.new_empty((n,) if rows else (n, features))
    blocks = _blocks("forward", x, features, columns)
    programs = triton.cdiv(n, blocks["BLOCK_N"])
    if not rows:
        programs *= triton.cdiv(features, blocks["BLOCK_A"])
    _launch(
        forward_kernel,
        programs,
        x,
        active,
        None if active is None else _passive(x, active),
        *parameters,
        *call[:3],
        y,
        logdet,
        n,
        d,
        features,
        bins,
        *x.stride(),
        *(stride for p in parameters for stride in p.stride()),
        INDEX=active is not None,
        ROWS=rows,
        **call.constants,
        **blocks,
    )
    return y, logdet


def _backward(
    x: Tensor,
    parameters: tuple[Tensor, ...],
    gradients: tuple[Tensor, ...],
    active: Tensor | None,
    bins: int,
    rows: bool,
    grad_y: Tensor | None,
    grad_logdet: Tensor | None,
    map: str,
    tails: list[int],
    box: list[float],
    options: list[float],
    inverse: bool,
) -> Tensor:
    """Writes the parameters' gradients, returns that of ``x``."""
    n, d = x.shape
    features, columns = parameters[0].shape[1:]
    stored = parameters[2].shape[2]
    call = _call(
        map,
        bins,
        stored,
        tuple(tails),
        tuple(box),
        tuple(options),
        inverse,
        x.dtype,
        x.device,
    )
    grad_x = x.new_empty((n, d))
    volume = (0, 0)
    if grad_logdet is not None:
        volume = (grad_logdet.stride(0), 0) if rows else grad_logdet.stride()
    blocks = _blocks("backward", x, features, columns)
    programs = triton.cdiv(n, blocks["BLOCK_N"])
    chunks = triton.cdiv(features, blocks["BLOCK_A"])
    _launch(
        backward_kernel,
        programs * (max(chunks, 1) if active is not None else chunks),
        x,
        active,
        None if active is None else _passive(x, active),
        *parameters,
        *call[:3],
        grad_y,
        grad_logdet,
        grad_x,
        *gradients,
        n,
        d,
        features,
        bins,
        stored,
        *x.stride(),
        *(stride for p in parameters for stride in p.stride()),
        *((0, 0) if grad_y is None else grad_y.stride()),
        *volume,
        *(stride for g in gradients for stride in g.stride()[:2]),
        INDEX=active is not None,
        ROWS=rows,
        VALUE=grad_y is not None,
        VOLUME=grad_logdet is not None,
        **call.constants,
        **blocks,
    )
    return grad_x


def _launch(kernel, programs: int, x: Tensor, *args, **constants) -> None:
    if not programs:
        return
    # Triton launches on the current device, which need not be that of the tensors.
    with on(x):
        kernel[(programs,)](x, *args, **constants, num_warps=_WARPS, enable_fp_fusion=True)


def _parts(params: Tensor, bins: int, map: str) -> tuple[Tensor, ...]:
    """Widths, heights and derivatives of a layer's parameters, as views."""
    knots = bins + 1 if map == "knots" else bins
    return params.tensor_split((knots, 2 * knots), -1)


def rational_quadratic_spline(
    x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, map: str, *rest
) -> tuple[Tensor, Tensor]:
    """``(y, log |dy/dx|)``, (N, D) each; see the reference."""
    bins = widths.shape[2] - (map == "knots")
    return _forward(x, (widths, heights, derivatives), None, bins, False, map, *rest)


def rational_quadratic_spline_backward(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    grad_y: Tensor | None,
    grad_logdet: Tensor | None,
    map: str,
    *rest,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the four tensors for those of the results, None where one was not used."""
    parameters = widths, heights, derivatives
    gradients = tuple(p.new_empty(p.shape) for p in parameters)
    bins = widths.shape[2] - (map == "knots")
    grad_x = _backward(x, parameters, gradients, None, bins, False, grad_y, grad_logdet, map, *rest)
    return grad_x, *gradients


def spline_coupling(
    x: Tensor, params: Tensor, active: Tensor | None, bins: int, map: str, *rest
) -> tuple[Tensor, Tensor]:
    """``(y, logdet)``, (N, D) and (N,); see the reference."""
    return _forward(x, _parts(params, bins, map), active, bins, True, map, *rest)


def spline_coupling_backward(
    x: Tensor,
    params: Tensor,
    active: Tensor | None,
    grad_y: Tensor | None,
    grad_logdet: Tensor | None,
    bins: int,
    map: str,
    *rest,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and ``params`` for those of the results, None where one was not used."""
    gradient = params.new_empty(params.shape)
    parts, gradients = _parts(params, bins, map), _parts(gradient, bins, map)
    grad_x = _backward(x, parts, gradients, active, bins, True, grad_y, grad_logdet, map, *rest)
    return grad_x, gradient
