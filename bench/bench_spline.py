"""Rational-quadratic splines beside nflows, normflows, zuko and plain torch, both directions.

Every side gets the raw parameters of a conditioner; zuko maps them in its own way, so it stands
in a row of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from .flow_data import gradients_of_results, spline_arguments
from .flow_functions import NFLOWS, NORMFLOWS, TORCH, ZUKO, spline
from .flow_rows import COMPILED, Function, both, compiled, forward, round_trip
from .harness import OURS, Case, Floor, Needs, Output, Provider, Setup
from .peak import measure_spline_peak

#: A bin may be 0.006 wide at the bound 3, where float32 knots are 2.4e-7 apart: the place in the
#: bin is known to 1e-4 or so, and with it whatever depends on it.
TOLERANCE = 1e-3
#: Rows, features, bins.
SHAPES = {"full": (8192, 64, 8), "quick": (1024, 64, 8), "smoke": (33, 5, 8)}
Shape = tuple[int, int, int]


def needs(shape: Shape, backward: bool = False) -> Needs:
    """Least work: one reading and writing, and the exponentials and logarithms of each element.

    These are two softmaxes, two of the softplus (for the knots around x) and one logarithm; the
    backward pass takes the first four again.
    """
    n, d, bins = shape
    values = 3 * bins - 1 + 1  # parameters and x
    words, exps = values + 2, 2 * bins + 4 + 1
    if backward:
        words, exps = words + 2 * values + 2, exps + 2 * bins + 4
    return Needs(0.0, float(4 * n * d * words), float(n * d * exps))


def _functions(inverse: bool, whole: bool) -> dict[str, Function]:
    names = (OURS, NFLOWS, NORMFLOWS, TORCH)
    functions = {name: spline(name, inverse) for name in names}
    if whole:  # small: compiling outlasts the work
        functions[COMPILED] = compiled(functions[TORCH])
    return functions


def _forward(shape: Shape, whole: bool, inverse: bool = False) -> Setup:
    arguments = spline_arguments(*shape)
    oracle = spline(TORCH, inverse)
    setup = forward(_functions(inverse, whole), arguments, oracle, TOLERANCE)
    setup.needs = needs(shape)
    return setup


def _both(shape: Shape, whole: bool) -> Setup:
    arguments = spline_arguments(*shape)
    incoming = gradients_of_results(shape[:2], shape[:2])
    oracle = spline(TORCH)
    setup = both(_functions(False, whole), arguments, incoming, oracle, TOLERANCE)
    setup.needs = needs(shape, backward=True)
    return setup


def _zuko(shape: Shape, gradients: bool) -> Setup:
    arguments = spline_arguments(*shape)
    functions = {OURS: spline(OURS, parameters="zuko"), ZUKO: spline(ZUKO)}
    if gradients:
        incoming = gradients_of_results(shape[:2], shape[:2])
        return both(functions, arguments, incoming, functions[ZUKO], TOLERANCE)
    return forward(functions, arguments, functions[ZUKO], TOLERANCE)


def _round_trip(shape: Shape, dtype: str, spread: float) -> Setup:
    arguments = spline_arguments(*shape, dtype, spread)
    pairs = {name: (spline(name), spline(name, inverse=True)) for name in (OURS, NFLOWS, TORCH)}
    return round_trip(pairs, *arguments)


def _peak(shape: Shape) -> Setup:
    def sample(provider: str) -> tuple[float, Output]:
        found = measure_spline_peak(provider, *shape, torch.get_num_threads())
        return found["mb"], {"norms": np.array(found["norms"])}

    providers = [
        Provider(name, lambda name=name: sample(name)[1], functools.partial(sample, name))
        for name in (OURS, NFLOWS, TORCH)
    ]
    return Setup(providers, TOLERANCE)


def cases(size: str = "full") -> list[Case]:
    """The rows of the table."""
    shape = SHAPES[size]
    n, d, bins = shape
    whole = size != "smoke"
    pace = {"rounds": 3, "budget": 1.0} if size != "full" else {"rounds": 7}
    rows: list[Case] = []

    def add(kind: str, build: Callable[[], Setup], *floors: Floor, dtype="float32", **options):
        name = "-".join((kind, f"{n}x{d}x{bins}", dtype)).lower()
        name = "".join(c for c in name.replace(" ", "-") if c not in ",+'")
        work = f"RQ spline {kind}, {n:,} x {d}, {bins} bins"
        rows.append(Case(name, work, dtype, build, floors, **{**pace, **options}))

    inner = {"inner": 3} if size == "full" else {}
    add("forward", functools.partial(_forward, shape, whole),
        Floor("ratio", 40, NFLOWS), Floor("ratio", 7, COMPILED), **inner)  # fmt: skip
    add("inverse", functools.partial(_forward, shape, whole, inverse=True),
        Floor("ratio", 30, NFLOWS), **inner)  # fmt: skip
    add("forward + backward", functools.partial(_both, shape, whole),
        Floor("ratio", 15, NFLOWS), Floor("ratio", 5, COMPILED))  # fmt: skip
    outputs = 2 * 4 * n * d / 1e6
    add("forward + backward, peak memory",
        functools.partial(_peak, shape),
        Floor("at_most", outputs + 16), unit="MB", rounds=1, budget=0.0,
        note="beyond the arguments and their gradients, by a process of its own")  # fmt: skip
    add("forward, zuko's map", functools.partial(_zuko, shape, False), **inner)
    add("forward + backward, zuko's map", functools.partial(_zuko, shape, True))
    for dtype, most in (("float64", 1e-12), ("float32", 5e-5)):
        for kind, spread, floors in (
            ("round trip", 0.3, (Floor("error", most),)),
            ("round trip, steep", 1.0, ()),
        ):
            add(kind, functools.partial(_round_trip, shape, dtype, spread), *floors,
                dtype=dtype, error="largest",
                note="the larger of the errors of x and of the sum of both log-slopes")  # fmt: skip
    return rows


def test_spline(bench_case) -> None:
    """One row of the table."""
    bench_case()
