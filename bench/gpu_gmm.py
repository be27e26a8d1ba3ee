"""Gaussian mixtures on a GPU: one EM iteration and scoring, full and diagonal."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch
from torch import Tensor

from evidens import ops

from . import torch_mixture
from .bench_gmm import needs
from .gpu import COMPILED, OURS, TORCH, case, compiled, normal, setup
from .harness import Case, Floor, Output, Provider, Setup, iteration_time
from .mixture_data import SKLEARN
from .torch_mixture import Parameters

#: Rows, features, components.
SHAPES = {"full": (1_000_000, 64, 64), "quick": (50_000, 32, 16), "smoke": (300, 4, 3)}
_REG = 1e-6


def _start(n: int, d: int, k: int, kind: str, device: str) -> list[Tensor]:
    """Rows about overlapping means, and where the iteration starts."""
    means = normal(k, d, device=device, seed=1) * (4.0 / (2 * d) ** 0.5)
    x = normal(n, d, device=device) + means[torch.arange(n, device=device) % k]
    eye = torch.eye(d, device=device).repeat(k, 1, 1) if kind == "full" else torch.ones_like(means)
    guess = means + normal(k, d, device=device, seed=2) * (0.5 / (2 * d) ** 0.5)
    return [x, torch.full((k,), 1 / k, device=device), guess, eye]


def _ours(kind: str, x: Tensor, weights: Tensor, means: Tensor, p: Tensor) -> tuple[Tensor, ...]:
    """One iteration: weights, means and covariances."""
    _, mass, first, second = ops.gmm_statistics(x, weights.log(), means, p, kind)
    shift = first / mass[:, None]
    if kind == "full":
        covariances = second / mass[:, None, None] - shift[:, :, None] * shift[:, None, :]
        covariances.diagonal(dim1=-2, dim2=-1).add_(_REG)
    else:
        covariances = second / mass[:, None] - shift.square() + _REG
    return mass / mass.sum(), means + shift, covariances


def _torch(kind: str, x: Tensor, weights: Tensor, means: Tensor, p: Tensor) -> tuple[Tensor, ...]:
    found = torch_mixture.em_step(x, Parameters(weights, means, p, p), kind, _REG)
    return found[:3]


def _sklearn(kind: str, x: Tensor, weights: Tensor, means: Tensor, p: Tensor) -> Provider:
    """On this machine's CPU; the difference of three iterations and one, over two."""
    rows, w, m, q = (t.cpu().numpy() for t in (x, weights, means, p))

    def fit(iterations: int) -> Output:
        from sklearn.mixture import GaussianMixture

        words = {"weights_init": w, "means_init": m, "precisions_init": q, "tol": 0.0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it did not converge is the point
            model = GaussianMixture(len(m), covariance_type=kind, max_iter=iterations, **words)
            model.fit(rows)
        found = model.weights_, model.means_, model.covariances_
        return {str(i): np.asarray(a) for i, a in enumerate(found)}

    def sample() -> tuple[float, Output]:
        value, _ = iteration_time(fit, 3, 1)
        return value, fit(1)

    return Provider(SKLEARN, lambda: fit(1), sample)


def _iteration(shape: tuple[int, int, int], kind: str, device: str) -> Setup:
    given = _start(*shape, kind, device)
    functions = {OURS: functools.partial(_ours, kind), TORCH: functools.partial(_torch, kind)}
    made = setup(
        functions,
        functions[TORCH],
        given,
        device,
        tolerance=1e-4,
        needs=needs(*shape, kind, "float32", (1, 1)),
    )
    made.providers.append(_sklearn(kind, *given))
    return made


def _score(shape: tuple[int, int, int], kind: str, device: str) -> Setup:
    x, weights, means, p = _start(*shape, kind, device)

    def ours(x: Tensor, weights: Tensor, means: Tensor, p: Tensor) -> Tensor:
        return ops.gmm_log_prob(x, weights.log(), means, p, kind)

    def torchs(x: Tensor, weights: Tensor, means: Tensor, p: Tensor) -> Tensor:
        return torch_mixture.log_prob(x, Parameters(weights, means, p, p), kind)

    more = compiled(torchs, device) if kind == "diag" else {}  # full: a loop over K products
    return setup(
        {OURS: ours, TORCH: torchs, **more},
        torchs,
        [x, weights, means, p],
        device,
        needs=needs(*shape, kind, "float32", (1, 0)),
    )


def cases(size: str, device: str) -> list[Case]:
    """The rows of the table."""
    n, d, k = SHAPES[size]
    rows = []
    for kind in ("full", "diag"):
        shape = f"{n:,} x {d} -> {k}"
        floors = Floor("fraction", 0.6), Floor("ratio", 5, TORCH), Floor("ratio", 100, SKLEARN)
        build = functools.partial(_iteration, SHAPES[size], kind, device)
        rows.append(case("gmm", f"EM iteration, {kind}, {shape}", size, build, *floors))
        build = functools.partial(_score, SHAPES[size], kind, device)
        floors = (Floor("ratio", 1, COMPILED if kind == "diag" else TORCH),)
        rows.append(case("gmm", f"log_prob, {kind}, {shape}", size, build, *floors))
    return rows
