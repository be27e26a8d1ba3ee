"""Hidden Markov models beside hmmlearn, dynamax and plain torch: EM iterations, ops, gradients.

An EM iteration is the difference of two fits from the same given start, over the iterations that
one has more.  The ops get log-observations, the models of the last rows get frames.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import dynamax_hmm, hmmlearn_hmm, torch_hmm
from .dynamax_hmm import DYNAMAX
from .harness import (
    OURS,
    Case,
    CheckFailed,
    Floor,
    Needs,
    Output,
    Provider,
    Setup,
    check,
    iteration_time,
    relative_error,
)
from .hmm_data import HMMLEARN, HMMLEARN_LOG, fitted, gaussian_hmm, log_observations, sequences
from .peak import measure_likelihood_peak

TORCH, SCALED = "torch", "torch scaled"
#: Relative, by array; every other array in float64 has the tolerance 1e-8.
WITHIN = {"log_likelihood": 1e-9, "log_prob": 1e-9, "states": 0.0}
#: Sequences, frames, features, states: (B, T, D, K).
SHAPES = {
    "full": {
        "fit": ((100, 1000, 4, 64), (1, 100_000, 4, 16), (200, 50, 10, 50)),
        "posteriors": (100, 1000, 4, 64),
        "small": (50, 100, 1, 10),
        "forward": ((96, 300, 4, 64), (96, 100, 4, 128), (96, 50, 4, 256)),
        "gradients": (32, 200, 4, 32),
        "long": (1, 1_000_000, 2, 8),
    },
    "quick": {
        "fit": ((20, 200, 4, 32), (1, 10_000, 4, 8), (50, 50, 10, 20)),
        "posteriors": (20, 200, 4, 64),
        "small": (50, 100, 1, 10),
        "forward": ((32, 50, 4, 64),),
        "gradients": (16, 100, 4, 16),
        "long": (1, 20_000, 2, 8),
    },
    "smoke": {
        "fit": ((4, 30, 2, 3), (1, 200, 2, 3), (3, 20, 3, 2)),
        "posteriors": (3, 20, 2, 4),
        "small": (4, 20, 1, 3),
        "forward": ((4, 10, 2, 5),),
        "gradients": (3, 10, 2, 4),
        "long": (1, 500, 2, 3),
    },
}
Shape = tuple[int, int, int, int]


def needs(shape: Shape, dtype: str, products: int, words: int, fit: bool = False) -> Needs:
    """Least work: ``products`` of a K-vector and the transition, ``words`` of K values a frame.

    A fit reads (N, D) instead, and has two products with (K, D) in each of its two steps.
    """
    b, t, d, k = shape
    n, size = b * t, np.dtype(dtype).itemsize
    flops = 2 * products * n * k * k + (8 * n * k * d if fit else 0)
    values = n * d if fit else words * n * k
    return Needs(float(flops), float(values * size), float(n * k))


def _agree(outputs: dict[str, Output]) -> dict[str, float]:
    """Ours equals each of the others in every array that both give; the largest errors."""
    worst = dict.fromkeys(outputs, 0.0)
    for array in outputs[OURS]:
        given = {by: {array: output[array]} for by, output in outputs.items() if array in output}
        found = check(Setup([], WITHIN.get(array, 1e-8)), given)
        worst = {by: max(error, found.get(by, 0.0)) for by, error in worst.items()}
    return worst


def _setup(calls: dict[str, Callable[[], Output]], work: Needs | None = None) -> Setup:
    providers = [Provider(name, call, warmup=call) for name, call in calls.items()]
    return Setup(providers, 1e-8, check=_agree, needs=work)


# --- fits ----------------------------------------------------------------------------------------


def _fits(shape: Shape) -> dict[str, Callable[[int], Output]]:
    b, t, d, k = shape
    x, lengths, start = sequences(b, t, d, k)
    # hmmlearn's default takes ten seconds an iteration at the largest size.
    names = (OURS, HMMLEARN, HMMLEARN_LOG) if b * t * k * k < 1e8 else (OURS, HMMLEARN)
    fits = {by: functools.partial(fitted, by, start, x, lengths) for by in names}
    if t <= 1000:  # longer, a loop in Python is no rival
        fits[TORCH] = functools.partial(torch_hmm.fit, torch.from_numpy(x), b, start)
    return fits


def _em(shape: Shape, compared: int, ours: tuple[int, int]) -> Setup:
    """The parameters after ``compared`` iterations are compared; ours is timed over more."""
    providers = []
    for by, fit in _fits(shape).items():
        if by == OURS:
            done = functools.cache(functools.partial(fit, compared))

            def sample(fit=fit, done=done) -> tuple[float, Output]:
                return iteration_time(fit, *ours)[0], done()

            # One call is one iteration and all that surrounds it.
            providers.append(Provider(by, functools.partial(fit, 1), sample, done))
        else:
            # What is timed is what is compared: hmmlearn takes seconds an iteration.
            sample = functools.partial(iteration_time, fit, compared, 1)
            providers.append(Provider(by, functools.partial(fit, compared), sample))
    return Setup(providers, 1e-8, check=_agree, needs=needs(shape, "float64", 3, 0, fit=True))


def _whole_fit(shape: Shape, iterations: int) -> Setup:
    calls = {by: functools.partial(fit, iterations) for by, fit in _fits(shape).items()}
    work = needs(shape, "float64", 3, 0, fit=True)
    total = Needs(*(iterations * value for value in vars(work).values()))
    return _setup(calls, total)


def _model(shape: Shape, method: str) -> Setup:
    x, lengths, start = sequences(*shape)
    names = {"decode": ("log_prob", "states"), "score": ("log_likelihood",)}

    def call(by: str) -> Output:
        found = getattr(models(by), method)(x, lengths)
        found = found if isinstance(found, tuple) else (found,)
        return dict(zip(names.get(method, ("posteriors",)), found, strict=True))

    models = functools.cache(lambda by: gaussian_hmm(by, start))
    return _setup({by: functools.partial(call, by) for by in (OURS, HMMLEARN, HMMLEARN_LOG)})


# --- ops -----------------------------------------------------------------------------------------


def _filter(*arguments: Tensor) -> Output:
    from evidens import ops

    found = ops.hmm_filter(*arguments)
    return {"filtered": found.filtered, "log_likelihood": found.log_likelihood}


def _posteriors(*arguments: Tensor) -> Output:
    from evidens import ops

    found = ops.hmm_forward_backward(*arguments)
    return {name: getattr(found, name) for name in ("posteriors", "transitions", "log_likelihood")}


def _viterbi(*arguments: Tensor) -> Output:
    from evidens import ops

    return ops.hmm_viterbi(*arguments)._asdict()


#: By work: ours, torch's, products of K x K (an addition and a comparison count as one
#: multiplication and addition each), values of each frame and state that are read and written.
OPS = {
    "filter": (_filter, torch_hmm.filtered, 1, 2),
    "posteriors": (_posteriors, torch_hmm.posteriors, 3, 2),
    "Viterbi": (_viterbi, torch_hmm.best_path, 2, 1),
}


def _op(shape: Shape, work: str) -> Setup:
    arguments = log_observations(*shape)
    ours, torchs, products, words = OPS[work]
    calls = {
        OURS: functools.partial(ours, *arguments),
        DYNAMAX: dynamax_hmm.call(work, *arguments),
        HMMLEARN: hmmlearn_hmm.call(work, *arguments),
        TORCH: functools.partial(torchs, *arguments),
    }
    return _setup(calls, needs(shape, "float64", products, words))


def _likelihoods() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    from evidens import ops

    functions = torch_hmm.log_likelihood, torch_hmm.scaled_log_likelihood
    return dict(zip((OURS, TORCH, SCALED), (ops.hmm_log_likelihood, *functions), strict=True))


def _forward(shape: Shape) -> Setup:
    arguments = log_observations(*shape, "float32")

    def call(function: Callable, arguments: tuple[Tensor, ...] = arguments) -> Output:
        with torch.no_grad():
            return {"log_likelihood": function(*arguments)}

    double = tuple(a.double() for a in arguments)
    setup = _setup({by: functools.partial(call, f) for by, f in _likelihoods().items()})
    setup.tolerance, setup.check = 1e-6, None
    setup.oracle = functools.partial(call, torch_hmm.scaled_log_likelihood, double)
    # The floor is the GEMM rate: neither the exponentials nor the reading lower it.
    b, t, _, k = shape
    setup.needs = Needs(flops=2.0 * b * t * k * k)
    return setup


def _gradients(shape: Shape) -> Setup:
    arguments = tuple(a.clone().requires_grad_() for a in log_observations(*shape))

    def call(function: Callable) -> Output:
        value = function(*arguments)
        slopes = torch.autograd.grad(value.sum(), arguments)
        names = ("log_obs", "initial", "transition")
        return {"log_likelihood": value, **dict(zip(names, slopes, strict=True))}

    calls = {by: functools.partial(call, f) for by, f in _likelihoods().items()}
    return _setup(calls, needs(shape, "float64", 3, 2))


def _gradients_peak(shape: Shape) -> Setup:
    functions = {OURS: OURS, TORCH: "log_likelihood", SCALED: "scaled_log_likelihood"}

    def sample(function: str) -> tuple[float, Output]:
        found = measure_likelihood_peak(function, *shape, torch.get_num_threads())
        names = ("log_likelihood", "initial", "transition")
        return found["mb"], {name: np.array(found[name]) for name in names}

    providers = [
        Provider(by, lambda f=f: sample(f)[1], functools.partial(sample, f))
        for by, f in functions.items()
    ]
    return Setup(providers, 1e-8, check=_agree)


def _long(shape: Shape) -> Setup:
    log_obs, initial, transition = arguments = log_observations(*shape, "float32")

    def truth() -> float:
        """The scaled recursion in float64, frame by frame."""
        start, matrix = initial.double().numpy(), transition.double().numpy()
        terms = log_obs[0].double().numpy()
        shift = terms.max(1)
        density = np.exp(terms - shift[:, None])
        alpha, scales = start, []
        for t, row in enumerate(density):
            alpha = (alpha @ matrix if t else alpha) * row
            scales.append(scale := alpha.sum())
            alpha /= scale
        return math.fsum(shift) + math.fsum(np.log(scales))

    def compare(outputs: dict[str, Output]) -> dict[str, float]:
        want = {"log_likelihood": np.array([truth()])}
        errors = {by: relative_error(output, want) for by, output in outputs.items()}
        if not errors[OURS] <= 1e-4:  # the floor, which is smaller, is judged with the others
            raise CheckFailed(f"{OURS} is off by {errors[OURS]:.1e}")
        return errors

    def ours() -> Output:
        return {"log_likelihood": _likelihoods()[OURS](*arguments)}

    setup = _setup({OURS: ours, DYNAMAX: dynamax_hmm.call("likelihood", *arguments)})
    setup.check = compare
    return setup


# --- the table -----------------------------------------------------------------------------------


def cases(size: str = "full") -> list[Case]:
    """The rows of the table."""
    shapes = SHAPES[size]
    # hmmlearn takes seconds an iteration: few of its, more of ours.
    compared, ours = (2, (3, 1)) if size == "smoke" else (3, (7, 2))
    rows: list[Case] = []

    def add(kind, shape, dtype, build, *floors, **options) -> None:
        b, t, d, k = shape
        frames = f"{t:,}" if b == 1 else f"{b} x {t:,}"
        frames += f" x {d}-D" if options.pop("frames", False) else ""
        name = "-".join((kind, f"{b}x{t}x{d}k{k}", dtype))
        name = "".join(c for c in name.replace(" ", "-").lower() if c not in "().,+")
        pace = {"rounds": 3, "budget": 1.0} if size != "full" else {}
        inner = options.pop("inner", 1) if size == "full" else 1
        build = functools.partial(build, shape)
        options = {**pace, **options, "inner": inner}
        rows.append(Case(name, f"{kind}, {frames}, K = {k}", dtype, build, floors, **options))

    em = functools.partial(_em, compared=compared, ours=ours)
    wide, single, blocks = shapes["fit"]
    title = "fit iteration, Gaussian diag"
    add(title, wide, "float64", em, Floor("ratio", 100, HMMLEARN), frames=True)
    add(title, single, "float64", em, Floor("ratio", 30, HMMLEARN), frames=True)
    for work, floor in (("posteriors", 6), ("Viterbi", 15)):
        build = functools.partial(_op, work=work)
        add(work, shapes["posteriors"], "float64", build, Floor("ratio", floor, DYNAMAX))
    small = shapes["small"]
    for work in OPS:
        build = functools.partial(_op, work=work)
        add(work, small, "float64", build, Floor("ratio", 4, DYNAMAX), inner=50, budget=8.0)
    for method in ("score", "predict_proba", "decode"):
        build = functools.partial(_model, method=method)
        floor = Floor("ratio", 15, HMMLEARN)
        add(f"GaussianHMM.{method}", small, "float64", build, floor, inner=200, budget=8.0,
            frames=True)  # fmt: skip
    build = functools.partial(_whole_fit, iterations=5)
    floor = Floor("ratio", 15, HMMLEARN)
    add("Baum-Welch, 5 iterations", small, "float64", build, floor, inner=50, budget=8.0,
        frames=True)  # fmt: skip
    for shape in shapes["forward"]:
        note = "2 K K flops a frame, nothing else counted"
        add("forward recursion", shape, "float32", _forward, Floor("fraction", 0.7), inner=20,
            note=note)  # fmt: skip
    gradients = shapes["gradients"]
    title = "log-likelihood, forward + backward"
    add(title, gradients, "float64", _gradients, Floor("ratio", 30, TORCH), inner=20)
    floor = Floor("ratio", 10, TORCH)
    add(f"peak memory of {title}", gradients, "float64", _gradients_peak, floor, unit="MB",
        rounds=1, budget=0.0, note="beyond the arguments, by a process of its own")  # fmt: skip
    add("log-likelihood", shapes["long"], "float32", _long, Floor("error", 1e-6), rounds=3,
        note="the error is against the recursion in float64")  # fmt: skip
    add("fit iteration, Gaussian diag", blocks, "float64", em, frames=True,
        note="pomegranate's published setting")  # fmt: skip
    return rows


def test_hmm(bench_case) -> None:
    """One row of the table."""
    bench_case()
