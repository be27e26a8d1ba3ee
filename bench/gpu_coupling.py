"""Affine couplings on a GPU: one pass over memory is all the work there is."""

from __future__ import annotations

import functools

import torch

from evidens import ops

from . import torch_flows
from .bench_coupling import needs
from .gpu import COMPILED, OURS, TORCH, case, compiled, normal, setup
from .harness import Case, Floor, Setup

#: Rows and features, half of which move.
SHAPES = {"full": (131_072, 1024), "quick": (4096, 512), "smoke": (33, 6)}


def _build(shape: tuple[int, int], device: str, backward: bool) -> Setup:
    n, d = shape
    active = torch.arange(d, device=device)[d // 2 :]
    functions = {
        OURS: lambda *t: ops.affine_coupling(*t, active=active, scale_map="exp"),
        TORCH: torch_flows.halves,
        **compiled(torch_flows.halves, device),
    }
    given = (normal(n, s, device=device, seed=s) for s in (d, d // 2, d // 2))
    return setup(
        functions,
        torch_flows.halves,
        list(given),
        device,
        backward=backward,
        tolerance=1e-5,
        needs=needs(shape, backward),
    )


def cases(size: str, device: str) -> list[Case]:
    """The rows of the table."""
    shape = SHAPES[size]
    rows = []
    for backward in (False, True):
        work = f"affine coupling {'forward + backward' if backward else 'forward'}, "
        work += f"{shape[0]:,} x {shape[1]}"
        build = functools.partial(_build, shape, device, backward)
        floors = Floor("fraction", 0.75), Floor("ratio", 1, COMPILED)
        rows.append(case("coupling", work, size, build, *floors))
    return rows
