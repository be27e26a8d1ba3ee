"""Partition functions of restricted Boltzmann machines beside torch and NumPy."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np
import torch

from . import torch_rbm_partition as plain
from .flow_rows import COMPILED
from .harness import OURS, Case, CheckFailed, Floor, Needs, Output, Provider, Setup

TORCH, BERNOULLI, NUMPY = "torch", "torch.bernoulli", "numpy"  # the first draws by uniforms
#: Visible units, hidden units, chains, rungs.
ANNEALED = {"full": (784, 500, 100, 10_000), "quick": (784, 500, 100, 300), "smoke": (9, 5, 20, 60)}
#: Visible units, hidden units, of which NumPy enumerates so many.
ENUMERATED = {"full": (100, 25, 20), "quick": (100, 22, 17), "smoke": (7, 14, 13)}


def machine(
    units: int, hidden: int, bias: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weak weights, so that the inputs of either layer are about ``bias``."""
    g = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    found = 0.02 * normal(hidden, units), bias + normal(units), bias + normal(hidden)
    return tuple(t.to(dtype) for t in found)  # type: ignore[return-value]


def _agree(outputs: dict[str, Output]) -> dict[str, float]:
    """Estimates of log Z, in standard errors of their difference from ours."""
    from evidens import ops

    found = {name: ops.RBMPartition(out["log_weights"]) for name, out in outputs.items()}
    errors = {}
    for name, result in found.items():
        spread = sum(
            float((len(r.log_weights) / r.effective_sample_size - 1) / len(r.log_weights))
            for r in (result, found[OURS])
        )
        away = abs(float(result.log_partition - found[OURS].log_partition))
        # Float32 sums of a baseline drift over the rungs.
        errors[name] = away / (spread**0.5 + 1e-5 * abs(float(result.log_partition)))
        if not errors[name] < 6:
            raise CheckFailed(f"{name}: log Z is {errors[name]:.1f} standard errors from ours")
    return errors


def _annealed(shape: tuple[int, int, int, int], bias: float, whole: bool) -> Setup:
    from evidens import ops

    units, hidden, chains, rungs = shape
    given = machine(units, hidden, bias, torch.float32)

    def ours(count: int = rungs) -> Output:
        return {"log_weights": ops.rbm_ais(*given, chains=chains, rungs=count, seed=0).log_weights}

    def theirs(draw: Callable, rung: Callable | None = None, count: int = rungs) -> Output:
        more = () if rung is None else (rung,)
        with torch.no_grad():
            return {"log_weights": plain.ais(*given, chains, count, draw, *more)}

    calls = {
        OURS: ours,
        TORCH: functools.partial(theirs, plain.by_uniforms),
        BERNOULLI: functools.partial(theirs, plain.bernoulli),
    }
    if whole:
        calls[COMPILED] = functools.partial(theirs, plain.by_uniforms, plain.compiled_rung())
    providers = [
        Provider(name, call, warmup=functools.partial(call, count=3))
        for name, call in calls.items()
    ]
    needs = Needs(flops=4.0 * units * hidden * chains * rungs)
    return Setup(providers, check=_agree, needs=needs)


def _enumerated(shape: tuple[int, int, int]) -> Setup:
    """The time of as many states as NumPy can be given; the result is that of those."""
    from evidens import ops

    units, hidden, fewer = shape
    weight, b, c = machine(units, hidden, 0.0, torch.float64)
    part = weight[:fewer], b, c[:fewer]
    arrays = tuple(t.numpy() for t in part)

    def ours() -> Output:
        return {"log Z": ops.rbm_exact_log_partition(*part)}

    def timed() -> tuple[float, Output]:
        started = time.perf_counter()
        ops.rbm_exact_log_partition(weight, b, c)
        return (time.perf_counter() - started) / 2 ** (hidden - fewer), ours()

    providers = [
        Provider(OURS, ours, timed),
        Provider(NUMPY, lambda: {"log Z": np.float64(plain.enumerated(*arrays))}),
    ]
    # A multiply-add and a product for each unit of each state.
    return Setup(providers, 1e-12, needs=Needs(flops=3.0 * units * 2**fewer))


def cases(size: str = "full") -> list[Case]:
    """The rows of the table."""
    whole = size != "smoke"
    pace = {"rounds": 2, "budget": 0.0} if size == "full" else {"rounds": 2, "budget": 1.0}
    rows = []
    shape = ANNEALED[size]
    units, hidden, chains, rungs = shape
    floors = Floor("ratio", 2, TORCH), Floor("ratio", 2, BERNOULLI)
    for bias, what in ((-2.0, "few units on, as of images"), (0.0, "half of the units on")):
        rows.append(
            Case(
                f"ais-{units}x{hidden}-{chains}-{rungs}-{'sparse' if bias else 'dense'}",
                f"AIS {units} x {hidden}, {chains} chains x {rungs} rungs, {what}",
                "float32",
                functools.partial(_annealed, shape, bias, whole),
                floors,
                error="standard errors",
                note="two products a rung; every provider has a generator of its own",
                **pace,
            )
        )
    units, hidden, fewer = ENUMERATED[size]
    rows.append(
        Case(
            f"exact-{units}x{hidden}",
            f"exact log Z {units} x {hidden}, time per 2^{fewer} states",
            "float64",
            functools.partial(_enumerated, (units, hidden, fewer)),
            (Floor("ratio", 100, NUMPY), Floor("at_most", 5.0 / 2 ** (hidden - fewer))),
            note=f"ours enumerates 2^{hidden} states, NumPy 2^{fewer} of them in blocks",
            **pace,
        )
    )
    return rows


def test_rbm_partition(bench_case) -> None:
    """One row of the table."""
    bench_case()
