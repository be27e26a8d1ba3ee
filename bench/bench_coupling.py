"""Affine couplings beside plain torch and nflows: one pass over memory is all the work there is.

The limit counts traffic alone, each array once, at the copy bandwidth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from . import torch_flows
from .flow_data import affine_arguments, gradients_of_results
from .flow_functions import NFLOWS, TORCH, Function, alternating, halves
from .flow_rows import COMPILED, both, compiled, forward, round_trip
from .harness import OURS, Case, Floor, Needs, Setup

TOLERANCE = 1e-5
#: Rows and features, half of which move.
SHAPES = {"full": (8192, 512), "quick": (2048, 128), "smoke": (33, 6)}
Shape = tuple[int, int]


def needs(shape: Shape, backward: bool = False) -> Needs:
    """Bytes that must go through memory: x, scale, shift, y; and back again all but the shift."""
    n, d = shape
    half = d // 2
    words = d + 2 * half + d
    if backward:  # gradient of y, half of x, scale; gradients of x, scale, shift
        words += (d + 2 * half) + (d + 2 * half)
    return Needs(bytes=float(4 * n * words))


def _halves(shape: Shape, whole: bool) -> dict[str, Function]:
    functions = {name: halves(name, shape[1]) for name in (OURS, TORCH)}
    if whole:  # small: compiling outlasts the work
        functions[COMPILED] = compiled(torch_flows.halves)
    return functions


def _forward(shape: Shape, whole: bool) -> Setup:
    n, d = shape
    setup = forward(
        _halves(shape, whole), affine_arguments(n, d, d // 2), torch_flows.halves, TOLERANCE
    )
    setup.needs = needs(shape)
    return setup


def _both(shape: Shape, whole: bool) -> Setup:
    n, d = shape
    incoming = gradients_of_results(shape, (n,))
    arguments = affine_arguments(n, d, d // 2)
    setup = both(_halves(shape, whole), arguments, incoming, torch_flows.halves, TOLERANCE)
    setup.needs = needs(shape, backward=True)
    return setup


def _alternating(shape: Shape, whole: bool, gradients: bool) -> Setup:
    n, d = shape
    x, scale, shift = affine_arguments(n, d, d // 2)
    arguments = x, torch.cat((shift, scale), 1)
    functions = {name: alternating(name, d) for name in (OURS, NFLOWS, TORCH)}
    if whole:
        functions[COMPILED] = compiled(functions[TORCH])
    if gradients:
        incoming = gradients_of_results(shape, (n,))
        setup = both(functions, arguments, incoming, functions[TORCH], TOLERANCE)
    else:
        setup = forward(functions, arguments, functions[TORCH], TOLERANCE)
    setup.needs = needs(shape, gradients)
    return setup


def _round_trip(shape: Shape, dtype: str) -> Setup:
    n, d = shape
    pairs = {name: (halves(name, d), halves(name, d, inverse=True)) for name in (OURS, TORCH)}
    return round_trip(pairs, *affine_arguments(n, d, d // 2, dtype))


def cases(size: str = "full") -> list[Case]:
    """The rows of the table."""
    shape = SHAPES[size]
    whole = size != "smoke"
    pace = {"rounds": 3, "budget": 1.0} if size != "full" else {"rounds": 9}
    rows: list[Case] = []

    def add(kind: str, build: Callable[[], Setup], *floors: Floor, dtype="float32", **options):
        name = "-".join((kind, f"{shape[0]}x{shape[1]}", dtype)).lower()
        name = "".join(c for c in name.replace(" ", "-") if c not in ",+'")
        work = f"affine coupling {kind}, {shape[0]:,} x {shape[1]}"
        rows.append(Case(name, work, dtype, build, floors, **{**pace, **options}))

    inner = {"inner": 20} if size == "full" else {}
    floors = Floor("ratio", 1.5, COMPILED), Floor("ratio", 1.5, TORCH), Floor("fraction", 0.65)
    add("forward", functools.partial(_forward, shape, whole), *floors, **inner)
    floors = Floor("ratio", 2, COMPILED), Floor("ratio", 2, TORCH)
    add("forward + backward", functools.partial(_both, shape, whole), *floors, **inner)
    for kind, gradients in (("forward", False), ("forward + backward", True)):
        build = functools.partial(_alternating, shape, whole, gradients)
        add(f"{kind}, every second feature", build, **inner,
            note="map of nflows, scale and shift as slices of one tensor")  # fmt: skip
    for dtype, most in (("float64", 1e-12), ("float32", 5e-5)):
        add("round trip", functools.partial(_round_trip, shape, dtype), Floor("error", most),
            dtype=dtype, error="largest",
            note="the larger of the errors of x and of the sum of both log-determinants",
            **inner)  # fmt: skip
    return rows


def test_coupling(bench_case) -> None:
    """One row of the table."""
    bench_case()
