"""Gaussian mixtures beside scikit-learn and plain torch: EM iterations, scoring, whole fits.

An EM iteration is the difference of two fits from the same given start, of 12 and 2 iterations,
over 10: what both fits share (validation, start, last scoring) drops out.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable

import numpy as np
import torch

from . import torch_mixture
from .harness import (
    OURS,
    Case,
    CheckFailed,
    Floor,
    Needs,
    Output,
    Provider,
    Setup,
    iteration_time,
)
from .mixture_data import SKLEARN, double, mixture_data, mixture_factory, start_of
from .peak import measure_peak
from .torch_mixture import Parameters

TOLERANCE = {"float64": 1e-8, "float32": 1e-4}
#: Rows, features, components of the two shapes of the table, and of the peak-memory row.
SHAPES = {
    "full": ((100_000, 32, 64), (20_000, 128, 32), (1_000_000, 64, 64)),
    "quick": ((10_000, 32, 16), (3_000, 128, 4), (100_000, 64, 64)),
    "smoke": ((600, 4, 3), (600, 8, 3), (5_000, 4, 3)),
}
#: torchgmm's published grid (docs/benchmark.md there), as information.
GRID = {
    "full": ((10_000, 8, 4), (100_000, 32, 16), (1_000_000, 64, 64)),
    "quick": ((10_000, 8, 4),),
    "smoke": ((600, 3, 2),),
}


def _fit(factory: Callable, k: int, x: np.ndarray, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge is the point
        return factory(k, tol=0.0, n_init=1, verbose=0, **options).fit(x)


def _output(model) -> Output:
    """Weights, means and covariances of a model or of `Parameters`."""
    if isinstance(model, Parameters):
        return {name: getattr(model, name).numpy() for name in Parameters._fields[:3]}
    return {name: np.asarray(getattr(model, name + "_")) for name in Parameters._fields[:3]}


def needs(
    n: int, d: int, k: int, covariance_type: str, dtype: str, steps: tuple[int, int]
) -> Needs:
    """Least work of ``steps`` = (E steps, M steps), each reading X once.

    full: N K D (D + 1) flops per step (a triangular product); diag: 4 N K D (two products); tied:
    one shared triangle, then 2 N K D.
    """
    flops = {
        "full": n * k * d * (d + 1),
        "tied": n * d * (d + 1) + 2 * n * k * d,
        "diag": 4 * n * k * d,
    }[covariance_type]
    size = np.dtype(dtype).itemsize
    return Needs(flops * sum(steps), float(n * d * size * max(steps)), float(n * k * steps[0]))


def _providers(
    difference: tuple[int, int], fits: dict[str, Callable[[int], Output]]
) -> Iterable[Provider]:
    many, few = difference
    for name, fit in fits.items():
        sample = functools.partial(iteration_time, fit, many, few)
        yield Provider(name, lambda fit=fit: fit(many), sample, lambda fit=fit: fit(1))


def _em(shape, covariance_type, dtype, difference, ours) -> Setup:
    n, d, k = shape
    x, start = mixture_data(n, d, k, dtype, covariance_type)
    tensor, given = torch.from_numpy(x), start_of(start)

    def model_fit(name: str) -> Callable[[int], Output]:
        factory = functools.partial(mixture_factory(name), covariance_type=covariance_type, **given)
        return lambda iterations: _output(_fit(factory, k, x, max_iter=iterations))

    def torch_fit(step, x=tensor, start=start) -> Callable[[int], Output]:
        return lambda many: _output(torch_mixture.fit(x, start, covariance_type, many, step=step))

    fits = {
        OURS: model_fit(ours),
        SKLEARN: model_fit(SKLEARN),
        "torch": torch_fit(torch_mixture.em_step),
    }
    # Full: the compiler would unroll K matrix products.  Small: compiling outlasts the work.
    if covariance_type == "diag" and n > 10_000:
        fits["torch.compile"] = torch_fit(torch.compile(torch_mixture.em_step, dynamic=False))
    oracle = torch_fit(torch_mixture.em_step, tensor.double(), double(start))
    return Setup(
        list(_providers(difference, fits)),
        TOLERANCE[dtype],
        oracle=(lambda: oracle(difference[0])) if dtype == "float32" else None,
        needs=needs(n, d, k, covariance_type, dtype, (1, 1)),
    )


def _score(shape, covariance_type, dtype, ours) -> Setup:
    n, d, k = shape
    x, start = mixture_data(n, d, k, dtype, covariance_type)
    tensor, given = torch.from_numpy(x), start_of(start)
    part = x[:20_000]  # one iteration on some rows: parameters that are not the start's

    def model_score(name: str) -> Callable[[], Output]:
        factory = functools.partial(mixture_factory(name), covariance_type=covariance_type, **given)
        model = _fit(factory, k, part, max_iter=1)
        return lambda: {"log_prob": model.score_samples(x)}

    def torch_score(function, x=tensor, start=start) -> Callable[[], Output]:
        p = torch_mixture.fit(x[: len(part)], start, covariance_type, 1)
        return torch.no_grad()(lambda: {"log_prob": function(x, p, covariance_type).numpy()})

    calls = {
        OURS: model_score(ours),
        SKLEARN: model_score(SKLEARN),
        "torch": torch_score(torch_mixture.log_prob),
    }
    if covariance_type == "diag" and n > 10_000:
        calls["torch.compile"] = torch_score(torch.compile(torch_mixture.log_prob, dynamic=False))
    providers = [Provider(name, call, warmup=call) for name, call in calls.items()]
    oracle = torch_score(torch_mixture.log_prob, tensor.double(), double(start))
    return Setup(
        providers,
        TOLERANCE[dtype],
        oracle=oracle if dtype == "float32" else None,
        needs=needs(n, d, k, covariance_type, dtype, (1, 0)),
    )


def _whole_fit(shape, iterations, ours) -> Setup:
    n, d, k = shape
    x, _ = mixture_data(n, d, k, "float64", "full")
    tensor = torch.from_numpy(x)

    def call(name: str, rows: int = n, iterations: int = iterations) -> Output:
        options = dict(max_iter=iterations, random_state=0)
        model = _fit(mixture_factory(name), k, x[:rows], **options)
        return {f: np.asarray(getattr(model, f + "_")) for f in Parameters._fields}

    def check(outputs: dict[str, Output]) -> dict[str, float]:
        score = {}
        for name, output in outputs.items():
            p = Parameters(*(torch.from_numpy(output[f]) for f in Parameters._fields))
            score[name] = float(torch_mixture.log_prob(tensor, p, "full").mean())
        worse = score[SKLEARN] - score[OURS]
        if not worse <= 1e-2:
            raise CheckFailed(f"mean log-likelihood is {worse:.1e} nats below scikit-learn's")
        return {name: score[SKLEARN] - value for name, value in score.items()}

    providers = [
        Provider(
            column,
            functools.partial(call, name),
            warmup=functools.partial(call, name, min(n, 4 * k * d), 1),
        )
        for column, name in ((OURS, ours), (SKLEARN, SKLEARN))
    ]
    work = needs(n, d, k, "full", "float64", (iterations, iterations))
    return Setup(providers, check=check, needs=work)


def _peak(shape, init, ours) -> Setup:
    columns = {OURS: ours, **({SKLEARN: SKLEARN} if init == "start" else {})}

    def sample(name: str) -> tuple[float, Output]:
        found = measure_peak(name, *shape, init, torch.get_num_threads())
        return found["mb"], {"means": np.array(found["means"])}

    def oracle() -> Output:
        x, start = mixture_data(*shape, "float32", "diag")
        p = torch_mixture.fit(torch.from_numpy(x).double(), double(start), "diag", 2)
        return {"means": p.means}

    def finite(outputs: dict[str, Output]) -> dict[str, float]:
        if not np.isfinite(outputs[OURS]["means"]).all():
            raise CheckFailed("the means are not finite")
        return {}

    providers = [
        Provider(column, lambda name=name: sample(name)[1], functools.partial(sample, name))
        for column, name in columns.items()
    ]
    if init == "start":
        return Setup(providers, TOLERANCE["float32"], oracle=oracle)
    return Setup(providers, check=finite)


def cases(size: str = "full", ours: str = OURS) -> list[Case]:
    """The rows of the table; ``ours`` names the provider that stands in our column."""
    first, second, large = SHAPES[size]
    difference = (3, 1) if size == "smoke" else (12, 2)
    rows: list[Case] = []

    def add(kind, shape, covariance_type, dtype, build, floors=(), **options) -> None:
        n, d, k = shape
        work = f"{kind}, {covariance_type}, {n:,} x {d} -> {k}"
        name = "-".join((kind, covariance_type, f"{n}x{d}to{k}", dtype))
        name = "".join(c for c in name.replace(" ", "-").lower() if c not in "()")
        pace = {} if size == "full" else {"rounds": 3, "budget": 1.0}
        rows.append(Case(name, work, dtype, build, tuple(floors), **{**pace, **options}))

    table = (
        (first, "full", "float64", (Floor("ratio", 20, SKLEARN),), 15),
        (first, "full", "float32", (Floor("ratio", 20, SKLEARN),), 15),
        (first, "diag", "float32", (Floor("ratio", 12, SKLEARN),), 12),
        (second, "full", "float64", (Floor("ratio", 7, SKLEARN), Floor("fraction", 0.6)), 4.5),
    )
    for shape, covariance_type, dtype, floors, score in table:
        what = (shape, covariance_type, dtype)
        add("EM iteration", *what, functools.partial(_em, *what, difference, ours), floors)
        floors = (Floor("ratio", score, SKLEARN),)
        add("score_samples", *what, functools.partial(_score, *what, ours), floors)
    iterations = 3 if size == "smoke" else 20
    add(
        "whole fit",
        first,
        "full",
        "float64",
        functools.partial(_whole_fit, first, iterations, ours),
        (Floor("ratio", 10, SKLEARN),),
        error="nats below scikit-learn",
        note=f"default initialisation, {iterations} iterations; the starts may differ, so the "
        "final mean log-likelihood stands for equality: not worse by more than 1e-2 nats",
    )
    for init, text in (("start", "start given"), ("means", "means given"), ("default", "default")):
        floors = (Floor("at_most", 64),) if init != "default" else ()
        build = functools.partial(_peak, large, init, ours)
        add(f"peak memory of fit ({text})", large, "diag", "float32", build, floors, unit="MB",
            rounds=1, budget=0.0, note="beyond X, by a process of its own")  # fmt: skip
    for shape in GRID[size]:
        for covariance_type in ("diag",) if shape[0] >= 1_000_000 else ("diag", "tied", "full"):
            # The largest takes scikit-learn seconds an iteration: fewer of them.
            pair = (4, 2) if shape[0] >= 1_000_000 else difference
            what = (shape, covariance_type, "float32")
            build = functools.partial(_em, *what, pair, ours)
            add("EM iteration", *what, build, note="torchgmm's published grid")
    return rows


def test_gmm(bench_case) -> None:
    """One row of the table."""
    bench_case()
