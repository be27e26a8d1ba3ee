"""Rational-quadratic splines on a GPU: bound by memory, of which eager torch makes dozens."""

from __future__ import annotations

import functools

from evidens import ops

from . import torch_flows
from .flow_data import BOUND
from .gpu import COMPILED, OURS, TORCH, case, compiled, normal, setup
from .harness import Case, Floor, Needs, Setup

#: Rows, features, bins.
SHAPES = {"full": (131_072, 64, 8), "quick": (4096, 64, 8), "smoke": (17, 3, 4)}


def _needs(n: int, d: int, bins: int, backward: bool) -> Needs:
    """Bytes: x and the parameters in, y and the log-slopes out; and back again."""
    words = 1 + (3 * bins - 1) + 2
    if backward:  # gradients of both results in, of all arguments out
        words += (1 + 3 * bins - 1 + 2) + (1 + 3 * bins - 1)
    return Needs(bytes=4.0 * n * d * words)


def _build(shape: tuple[int, int, int], device: str, backward: bool) -> Setup:
    n, d, bins = shape
    sizes = [normal(n, d, s, device=device, seed=i) for i, s in enumerate((bins, bins, bins - 1))]
    torchs = functools.partial(torch_flows.spline, bound=BOUND)
    words = {"parameters": "nflows", "tails": "linear", "bound": BOUND}
    functions = {
        OURS: functools.partial(ops.rational_quadratic_spline, **words),
        TORCH: torchs,
        **compiled(torchs, device),
    }
    return setup(
        functions,
        torchs,
        [1.5 * normal(n, d, device=device, seed=9), *sizes],
        device,
        backward=backward,
        tolerance=1e-4,
        needs=_needs(*shape, backward),
    )


def cases(size: str, device: str) -> list[Case]:
    """The rows of the table."""
    n, d, bins = SHAPES[size]
    rows = []
    for backward in (False, True):
        work = f"spline {'forward + backward' if backward else 'forward'}, {n:,} x {d}, {bins} bins"
        floors = (Floor("fraction", 0.75),)
        if backward:
            floors += Floor("ratio", 10, TORCH), Floor("ratio", 2, COMPILED)
        build = functools.partial(_build, SHAPES[size], device, backward)
        rows.append(case("spline", work, size, build, *floors))
    return rows
