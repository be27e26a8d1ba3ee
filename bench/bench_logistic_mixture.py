"""The discretized logistic mixture beside plain torch: loss, loss with gradient, memory, draws."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from . import torch_logistic_mixture as plain
from .flow_rows import COMPILED, compiled
from .harness import OURS, Case, CheckFailed, Floor, Needs, Output, Provider, Setup
from .mixture_images import image_arguments
from .peak import measure_logistic_mixture_peak

TORCH = "torch"
#: Scales are e^-3 and less, so float32 knows the place in units of the scale to 1e-5 or so.  The
#: difference of sigmoids loses two digits more.
TOLERANCE = 2e-4
#: Images, pixels a side, terms.
SHAPES = {"full": (32, 32, 10), "quick": (8, 32, 10), "smoke": (2, 5, 3)}
Shape = tuple[int, int, int]


def needs(shape: Shape, backward: bool = False) -> Needs:
    """Least work: levels, parameters and results once through memory, and the exponentials.

    A bin takes three, for its scale, its width and its distance; a coefficient one; a term two.
    """
    n, side, m = shape
    pixels = n * side * side
    words, exps = 3 + 10 * m + 1, m * (3 * 3 + 3 + 2) + 2
    if backward:
        words, exps = 2 * words + 10 * m, 2 * exps
    return Needs(0.0, 4.0 * pixels * words, float(pixels * exps))


def _functions(whole: bool) -> dict[str, Callable]:
    from evidens import ops

    functions: dict[str, Callable] = {OURS: ops.logistic_mixture_log_prob, TORCH: plain.log_prob}
    if whole:  # small: compiling outlasts the work
        functions[COMPILED] = compiled(plain.log_prob)
    return functions


def _exact(shape: Shape, gradients: bool) -> Output:
    from evidens.reference.logistic_mixture import logistic_mixture_log_prob

    x, params = image_arguments(*shape)
    return _call(logistic_mixture_log_prob, x, params.double(), gradients)


def _call(function: Callable, x: torch.Tensor, params: torch.Tensor, gradients: bool) -> Output:
    if not gradients:
        with torch.no_grad():
            return {"log_prob": function(x, params)}
    params = params.requires_grad_()
    y = function(x, params)
    (slopes,) = torch.autograd.grad(y.sum(), params)
    return {"log_prob": y.detach(), "gradient": slopes}


def _loss(shape: Shape, whole: bool, gradients: bool) -> Setup:
    arguments = image_arguments(*shape)
    providers = []
    for name, function in _functions(whole).items():
        call = functools.partial(_call, function, *arguments, gradients)
        providers.append(Provider(name, call, warmup=call))
    oracle = functools.partial(_exact, shape, gradients)
    return Setup(providers, TOLERANCE, oracle=oracle, needs=needs(shape, gradients))


def _peak(shape: Shape) -> Setup:
    def sample(provider: str) -> tuple[float, Output]:
        found = measure_logistic_mixture_peak(provider, *shape, torch.get_num_threads())
        return found["mb"], {"norms": np.array(found["norms"])}

    providers = [
        Provider(name, lambda name=name: sample(name)[1], functools.partial(sample, name))
        for name in (OURS, TORCH)
    ]
    return Setup(providers, 100 * TOLERANCE)


def _draws(shape: Shape, whole: bool) -> Setup:
    from evidens import ops

    _, params = image_arguments(*shape)
    n, side, _ = shape
    draw = functools.partial(ops.logistic_mixture_sample, params, channels=3, seed=0)
    functions = {OURS: draw, TORCH: functools.partial(plain.sample, params)}
    if whole:
        functions[COMPILED] = functools.partial(compiled(plain.sample), params)

    def call(function: Callable) -> Output:
        with torch.no_grad():
            return {"x": function()}

    def check(outputs: dict[str, Output]) -> dict[str, float]:
        """The mean of the levels, in standard deviations of the mean."""
        count = n * 3 * side * side
        means = {name: float(out["x"].double().mean()) for name, out in outputs.items()}
        sd = float(outputs[OURS]["x"].double().std()) * (2 / count) ** 0.5
        errors = {name: abs(mean - means[OURS]) / sd for name, mean in means.items()}
        worst = max(errors.values())
        if not worst < 6:
            raise CheckFailed(f"means of draws are {worst:.1f} standard deviations apart: {means}")
        return errors

    providers = []
    for name, function in functions.items():
        bound = functools.partial(call, function)
        providers.append(Provider(name, bound, warmup=bound))
    return Setup(providers, 0.0, check=check)


def cases(size: str = "full") -> list[Case]:
    """The rows of the table."""
    shape = SHAPES[size]
    n, side, m = shape
    whole = size != "smoke"
    pace = {"rounds": 3, "budget": 1.0} if size != "full" else {"rounds": 9}
    rows: list[Case] = []

    def add(kind: str, build: Callable[[], Setup], *floors: Floor, **options):
        name = "-".join((kind, f"{n}x{side}x{side}x{m}", "float32")).lower()
        name = "".join(c for c in name.replace(" ", "-") if c not in ",+'")
        work = f"logistic mixture {kind}, {n} x 3 x {side} x {side}, {m} terms"
        rows.append(Case(name, work, "float32", build, floors, **{**pace, **options}))

    inner = {"inner": 5} if size == "full" else {}
    add("forward", functools.partial(_loss, shape, whole, False), **inner)
    floors = Floor("ratio", 8, TORCH), Floor("ratio", 2, COMPILED)
    add("forward + backward", functools.partial(_loss, shape, whole, True), *floors)
    add("forward + backward, peak memory", functools.partial(_peak, shape),
        Floor("ratio", 10, TORCH), unit="MB", rounds=1, budget=0.0,
        note="beyond the arguments and their gradients, by a process of its own")  # fmt: skip
    add("draws", functools.partial(_draws, shape, whole), error="standard deviations",
        note="each has a generator of its own; ours draws in float64", **inner)  # fmt: skip
    return rows


def test_logistic_mixture(bench_case) -> None:
    """One row of the table."""
    bench_case()
