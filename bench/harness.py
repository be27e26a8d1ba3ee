"""Cases and how they are measured: equality first, then interleaved timing in one run.

A case names one piece of work and the providers that can do it.  `measure` runs every provider
once and compares what came out; only then does it time them, round by round, so that a slow
phase of the machine hits all of them.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

OURS = "evidens"
LENIENCE = 100.0  # how many tolerances a baseline may be off the oracle
SIZES = ("full", "quick", "smoke")
Output = dict[str, Any]  # arrays or tensors by name


class CheckFailed(AssertionError):
    """The providers do not agree, so nothing is timed."""


@dataclass(frozen=True)
class Floor:
    """What a case must reach: ``kind`` is "ratio", "fraction", "at_most" or "error"."""

    kind: str
    value: float
    baseline: str = ""  # for "ratio": the provider that is beaten

    def reached(self, result: dict) -> bool | None:
        """Whether a result reaches the floor; None where it was not measured."""
        if self.kind == "ratio":
            ratio = result["ratio"].get(self.baseline)
            return None if ratio is None else ratio >= self.value
        if self.kind == "fraction":
            limit = result["limit"]
            return None if limit is None else limit["fraction"] >= self.value
        if self.kind == "error":
            return result["providers"][OURS]["error"] <= self.value
        return result["providers"][OURS]["median"] <= self.value


@dataclass(frozen=True)
class Provider:
    """One way of doing the work.

    ``call`` does it once and returns its output; ``sample`` returns ``(value, output)`` where the
    value is not simply the time of one call; ``warmup`` (compilation, pools) is never timed.
    """

    name: str
    call: Callable[[], Output]
    sample: Callable[[], tuple[float, Output]] | None = None
    warmup: Callable[[], object] | None = None


@dataclass(frozen=True)
class Needs:
    """The arithmetic and traffic that the work cannot do without."""

    flops: float = 0.0
    bytes: float = 0.0
    exps: float = 0.0


@dataclass
class Setup:
    """A case made ready: inputs are allocated, providers are bound to them."""

    providers: list[Provider]
    tolerance: float = 0.0  # relative, of the largest entry of each array
    oracle: Callable[[], Output] | None = None  # untimed, more precise than the providers
    check: Callable[[dict[str, Output]], dict[str, float]] | None = None  # in place of equality
    needs: Needs | None = None
    unavailable: dict[str, str] = field(default_factory=dict)
    #: What ours spends on something that every provider must do, timed alone.
    parts: dict[str, Callable[[], object]] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One row of the table; ``build`` allocates, so it is called when the row's turn comes."""

    name: str
    work: str
    dtype: str
    build: Callable[[], Setup]
    floors: tuple[Floor, ...] = ()
    unit: str = "s"  # "s" or "MB"; less is better
    error: str = "relative"  # what the error column holds
    rounds: int = 5
    budget: float = 8.0  # seconds of sampling per provider; the first round is always whole
    inner: int = 1  # calls per sample, for work of microseconds
    note: str = ""


def _array(value) -> np.ndarray:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, np.float64)


def relative_error(got: Output, want: Output) -> float:
    """Largest difference over all arrays, each relative to the largest entry of its array."""
    worst = 0.0
    for name, expected in want.items():
        a, b = _array(got[name]), _array(expected)
        if a.shape != b.shape:
            raise CheckFailed(f"{name}: shape {a.shape} against {b.shape}")
        error = float(np.max(np.abs(a - b), initial=0.0) / max(np.max(np.abs(b)), 1e-300))
        if math.isnan(error):
            raise CheckFailed(f"{name}: not a number")
        worst = max(worst, error)
    return worst


def check(setup: Setup, outputs: dict[str, Output]) -> dict[str, float]:
    """Error of every provider; raises `CheckFailed` unless ours is right.

    With an oracle ours must be within the tolerance of it.  A baseline may be less precise (sums
    in float32 over many rows are), which its error shows, but only so far that it still is the
    same work.  Without an oracle ours must equal each of the others.
    """
    if setup.check is not None:
        return setup.check(outputs)
    others = {name: output for name, output in outputs.items() if name != OURS}
    if setup.oracle is not None:
        truth = setup.oracle()
        errors = {name: relative_error(output, truth) for name, output in outputs.items()}
        allowed = {name: setup.tolerance * (1 if name == OURS else LENIENCE) for name in errors}
        found = {f"{name} and the oracle": (errors[name], allowed[name]) for name in errors}
    else:
        truth = next(iter(others.values()), outputs[OURS])
        errors = {name: relative_error(output, truth) for name, output in outputs.items()}
        found = {
            f"{OURS} and {name}": (relative_error(outputs[OURS], output), setup.tolerance)
            for name, output in others.items()
        }
    for pair, (error, most) in found.items():
        if not error <= most:
            raise CheckFailed(f"{pair} differ by {error:.1e}, more than {most:.0e}")
    return errors


def iteration_time(fit: Callable[[int], Output], many: int, few: int) -> tuple[float, Output]:
    """Seconds of one iteration, and what ``fit(many)`` gave.

    The difference of two fits; of the best of several where they are short.
    """
    begun = time.perf_counter()
    best = {many: math.inf, few: math.inf}
    while True:
        for iterations in (few, many):
            started = time.perf_counter()
            output = fit(iterations)
            took = time.perf_counter() - started
            best[iterations] = min(best[iterations], took)
        if time.perf_counter() - begun >= 0.2 and best[many] > best[few]:
            return (best[many] - best[few]) / (many - few), output


def _sample(provider: Provider, inner: int) -> tuple[float, Output]:
    if provider.sample is not None:
        return provider.sample()
    started = time.perf_counter()
    for _ in range(inner):
        output = provider.call()
    return (time.perf_counter() - started) / inner, output


class Prepared(NamedTuple):
    """A case that passed its check."""

    setup: Setup
    errors: dict[str, float]
    first: dict[str, tuple[float, float]]  # by provider: the checked sample and its wall time


def prepare(case: Case) -> Prepared:
    """Build a case, run every provider once and compare; raises `CheckFailed`."""
    setup = case.build()
    outputs: dict[str, Output] = {}
    first: dict[str, tuple[float, float]] = {}
    for provider in list(setup.providers):
        try:
            if provider.warmup is not None:
                provider.warmup()
            started = time.perf_counter()
            value, outputs[provider.name] = _sample(provider, case.inner)
            first[provider.name] = value, time.perf_counter() - started
        except Exception as error:
            if provider.name == OURS:
                raise
            setup.providers.remove(provider)
            setup.unavailable[provider.name] = f"{type(error).__name__}: {error}".split("\n")[0]
    return Prepared(setup, check(setup, outputs), first)


def measure(case: Case, prepared: Prepared | None = None) -> dict:
    """The result of a case, as it is written to JSON; `finish` adds the fraction of the limit."""
    setup, errors, first = prepared or prepare(case)
    parts = [Provider(name, call) for name, call in setup.parts.items()]
    everyone = [*setup.providers, *parts]
    samples: dict[str, list[float]] = {provider.name: [] for provider in everyone}
    spent = dict.fromkeys(samples, 0.0)
    for name, (value, wall) in first.items():
        # Work too slow to repeat keeps its checked run; all others start again, warm.
        if wall >= case.budget:
            samples[name].append(value)
            spent[name] = wall
    for turn in range(case.rounds):
        order: Sequence[Provider] = everyone if turn % 2 == 0 else everyone[::-1]
        for provider in order:
            if samples[provider.name] and spent[provider.name] >= case.budget:
                continue
            gc.collect()
            started = time.perf_counter()
            value, _ = _sample(provider, case.inner)
            spent[provider.name] += time.perf_counter() - started
            samples[provider.name].append(value)
    return _result(case, setup, samples, errors)


def _result(
    case: Case, setup: Setup, samples: dict[str, list[float]], errors: dict[str, float]
) -> dict:
    providers, parts = {}, {}
    for name, values in samples.items():
        if name in setup.parts:
            parts[name] = float(np.median(values))
            continue
        q1, median, q3 = (float(q) for q in np.percentile(values, (25, 50, 75)))
        providers[name] = {
            "median": median,
            "q1": q1,
            "q3": q3,
            "samples": len(values),
            "error": errors.get(name),
        }
    ours = providers[OURS]["median"]
    ratio = {name: p["median"] / ours for name, p in providers.items() if name != OURS}
    return {
        "name": case.name,
        "work": case.work,
        "dtype": case.dtype,
        "unit": case.unit,
        "error_kind": case.error,
        "tolerance": setup.tolerance or None,
        "floors": [vars(floor) for floor in case.floors],
        "providers": providers,
        "unavailable": setup.unavailable,
        "ratio": ratio,
        "parts": {name: {"median": value, "share": value / ours} for name, value in parts.items()},
        "best_baseline": min(ratio, key=ratio.get) if ratio else None,
        "needs": vars(setup.needs) if setup.needs else None,
        "limit": None,
        "reached": None,
        "note": case.note,
    }


def finish(result: dict, ceilings: dict, judge: bool) -> None:
    """Add the fraction of the machine's own limit and, at full size, whether the floors hold."""
    needs = result["needs"]
    if needs is not None:
        dtype = result["dtype"]
        seconds = {
            f"gemm {dtype}": needs["flops"] / ceilings["gemm"][dtype],
            "copy": needs["bytes"] / ceilings["copy"],
            f"exp {dtype}": needs["exps"] / ceilings["exp"][dtype],
        }
        kind = max(seconds, key=seconds.get)
        fraction = seconds[kind] / result["providers"][OURS]["median"]
        result["limit"] = {"kind": kind, "seconds": seconds[kind], "fraction": fraction}
    if judge:
        result["reached"] = [Floor(**floor).reached(result) for floor in result["floors"]]
