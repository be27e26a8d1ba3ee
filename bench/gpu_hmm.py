"""Hidden Markov models on a GPU: filter and forward-backward beside a loop of matrix products."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from evidens import ops

from . import torch_hmm
from .gpu import GRAPH, OURS, TORCH, case, normal, setup
from .harness import Case, Floor, Needs, Setup

#: Sequences, frames, states: many sequences, and one that is long.
SHAPES = {
    "full": ((1024, 1000, 64), (1, 10_000, 25)),
    "quick": ((64, 100, 32), (1, 500, 25)),
    "smoke": ((3, 7, 4), (1, 12, 3)),
}
Shape = tuple[int, int, int]


def _posteriors(log_obs: Tensor, initial: Tensor, transition: Tensor) -> tuple[Any, ...]:
    found = ops.hmm_forward_backward(log_obs, initial, transition)
    return found.posteriors, found.log_likelihood


def _torch_posteriors(*given: Tensor) -> tuple[Any, ...]:
    found = torch_hmm.posteriors(*given)
    return found["posteriors"], found["log_likelihood"]


def _filter(log_obs: Tensor, initial: Tensor, transition: Tensor) -> tuple[Any, ...]:
    found = ops.hmm_filter(log_obs, initial, transition)
    return found.filtered, found.log_likelihood


def _torch_filter(*given: Tensor) -> tuple[Any, ...]:
    found = torch_hmm.filtered(*given)
    return found["filtered"], found["log_likelihood"]


WORK = {"filter": (_filter, _torch_filter), "forward-backward": (_posteriors, _torch_posteriors)}


def _build(shape: Shape, name: str, device: str) -> Setup:
    b, t, k = shape
    ours, torchs = WORK[name]
    given = [
        2 * normal(b, t, k, device=device),
        normal(k, device=device, seed=1).softmax(0),
        normal(k, k, device=device, seed=2).softmax(1),
    ]
    whole = name == "forward-backward"
    needs = Needs(
        flops=(6.0 if whole else 2.0) * b * t * k * k, bytes=4.0 * b * t * k * (4 if whole else 2)
    )
    # Sums of the logarithms of 10,000 scales, in float32 by torch.
    return setup(
        {OURS: ours, TORCH: torchs}, torchs, given, device, tolerance=1e-4, needs=needs, graph=True
    )


def cases(size: str, device: str) -> list[Case]:
    """The rows of the table."""
    many, long = SHAPES[size]
    rows = []
    for shape, name, floors in (
        (many, "forward-backward", (Floor("ratio", 10, TORCH), Floor("ratio", 1, GRAPH))),
        (long, "filter", (Floor("at_most", 4e-3), Floor("ratio", 10, TORCH))),
        (long, "forward-backward", (Floor("at_most", 15e-3), Floor("ratio", 10, TORCH))),
    ):
        b, t, k = shape
        work = f"{name}, {b:,} x {t:,}, {k} states"
        build = functools.partial(_build, shape, name, device)
        rows.append(case("hmm", work, size, build, *floors))
    return rows
