"""What a call and an import cost when there is next to nothing to compute."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from collections.abc import Callable

import torch

from . import torch_hmm
from .harness import OURS, Case, CheckFailed, Floor, Output, Provider, Setup

N, D, K = 1, 2, 2
B, T = 1, 3


def _arguments(gradients: bool) -> tuple[torch.Tensor, ...]:
    """The data (1, 2), log-weights (2,), means (2, 2), precisions_cholesky (2, 2, 2), float32."""
    chol = torch.tensor([[[1.0, 0.5], [0.0, 2.0]], [[1.5, -0.2], [0.0, 0.7]]])
    arguments = (
        torch.tensor([[0.3, -0.4]]),
        torch.tensor([0.25, 0.75]).log(),
        torch.tensor([[0.0, 1.0], [-1.0, 0.5]]),
        chol,
    )
    return tuple(a.requires_grad_(gradients) for a in arguments)


def _eager(x, log_weights, means, chol):
    """The formula for few components: every whitened residual at once."""
    y = torch.einsum("nki,kij->nkj", x[:, None] - means, chol.triu())
    log_det = chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = 0.5 * x.shape[1] * math.log(2 * math.pi)
    return torch.logsumexp(log_weights - constant + log_det - 0.5 * y.square().sum(-1), 1)


def _hmm_arguments(gradients: bool) -> tuple[torch.Tensor, ...]:
    """Log-observations (1, 3, 2), initial (2,) and transition (2, 2), float32."""
    arguments = (
        torch.tensor([[[-0.3, -1.2], [-0.9, -0.1], [-2.0, -0.4]]]),
        torch.tensor([0.25, 0.75]),
        torch.tensor([[0.9, 0.1], [0.3, 0.7]]),
    )
    return tuple(a.requires_grad_(gradients) for a in arguments)


def _distribution(x, log_weights, means, chol):
    """``torch.distributions``, built once; the call is ``log_prob`` alone."""
    covariance = torch.linalg.inv(chol @ chol.mT).detach()
    components = torch.distributions.MultivariateNormal(means.detach(), covariance)
    weights = torch.distributions.Categorical(logits=log_weights.detach())
    return torch.distributions.MixtureSameFamily(weights, components).log_prob


def _call(gradients: str, ours: str) -> Setup:
    arguments = _arguments(gradients != "none")
    functions = _functions(_eager)
    if ours == OURS:
        from evidens import ops

        functions[OURS] = lambda *arguments: ops.gmm_log_prob(*arguments, "full")
    if gradients == "none":
        log_prob = _distribution(*arguments)
        functions["torch.distributions"] = lambda x, *rest: log_prob(x)
    return _setup(functions, arguments, gradients)


def _hmm_call(gradients: str, ours: str) -> Setup:
    functions = _functions(torch_hmm.log_likelihood)
    if ours == OURS:
        from evidens import ops

        functions[OURS] = ops.hmm_log_likelihood
    return _setup(functions, _hmm_arguments(gradients != "none"), gradients)


def _functions(eager: Callable) -> dict[str, Callable]:
    compiled = torch.compile(eager, fullgraph=True, dynamic=False)
    return {OURS: eager, "torch": eager, "torch.compile": compiled}


def _setup(
    functions: dict[str, Callable], arguments: tuple[torch.Tensor, ...], gradients: str
) -> Setup:
    def call(function: Callable, arguments: tuple[torch.Tensor, ...] = arguments) -> Output:
        y = function(*arguments)
        if gradients == "both":
            slopes = torch.autograd.grad(y, arguments)
            return {"y": y, **{str(i): slope for i, slope in enumerate(slopes)}}
        return {"y": y}

    providers = [
        Provider(name, functools.partial(call, f), warmup=functools.partial(call, f))
        for name, f in functions.items()
    ]
    double = tuple(a.detach().double().requires_grad_(a.requires_grad) for a in arguments)
    oracle = functools.partial(call, functions["torch"], double)
    return Setup(providers, 1e-5, oracle=oracle)


def _import_seconds(module: str) -> tuple[float, Output]:
    code = (
        "import time, torch; start = time.perf_counter(); "
        f"import {module}; print(time.perf_counter() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode != 0:
        raise CheckFailed(f"import {module} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout), {}


def _import(ours: str) -> Setup:
    modules = {OURS: ours, "scikit-learn": "sklearn.mixture"}
    providers = [
        Provider(
            name,
            lambda module=module: _import_seconds(module)[1],
            sample=functools.partial(_import_seconds, module),
        )
        for name, module in modules.items()
    ]
    return Setup(providers, check=lambda outputs: {})


def cases(size: str = "full", ours: str = OURS) -> list[Case]:
    """Calls of microseconds, with and without gradients, and the import."""
    inner, rounds = (2, 2) if size == "smoke" else (2000, 15)
    floor = (Floor("at_most", 12e-6),)
    calls = {
        "": (f"ops.gmm_log_prob, N = {N}, D = {D}, K = {K}", _call, floor),
        "hmm-": (f"ops.hmm_log_likelihood, {B} x {T}, K = {K}", _hmm_call, ()),
    }
    kinds = {
        "none": ("", "call"),
        "forward": (", recorded for gradients", "call-recorded"),
        "both": (", forward and backward", "call-backward"),
    }
    rows = [
        Case(
            prefix + name,
            call + how,
            "float32",
            functools.partial(build, kind, ours),
            () if kind == "both" else floors,
            inner=inner,
            rounds=rounds,
            budget=4.0,
        )
        for prefix, (call, build, floors) in calls.items()
        for kind, (how, name) in kinds.items()
    ]
    rows.append(
        Case(
            "import",
            "import evidens after import torch",
            "",
            functools.partial(_import, "evidens" if ours == OURS else "sklearn.mixture"),
            (Floor("at_most", 0.150),),
            rounds=1 if size == "smoke" else 5,
            budget=20.0,
            note="beside import sklearn.mixture after import torch",
        )
    )
    return rows


def test_overhead(bench_case) -> None:
    """One row of the table."""
    bench_case()
