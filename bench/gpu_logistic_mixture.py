"""The discretized logistic mixture of RGB images on a GPU."""

from __future__ import annotations

import functools

from evidens import ops
from evidens.reference import logistic_mixture as reference

from . import torch_logistic_mixture
from .gpu import COMPILED, OURS, TORCH, case, compiled, setup
from .harness import Case, Floor, Needs, Setup
from .mixture_images import image_arguments

#: Images, side, terms.
SHAPES = {"full": (128, 32, 10), "quick": (16, 32, 10), "smoke": (2, 4, 2)}


def _build(shape: tuple[int, int, int], device: str, backward: bool) -> Setup:
    n, side, mixtures = shape
    x, params = (t.to(device) for t in image_arguments(n, side, mixtures))

    def torchs(params):
        return torch_logistic_mixture.log_prob(x.to(params.dtype), params)

    functions = {
        OURS: lambda params: ops.logistic_mixture_log_prob(x.to(params.dtype), params),
        TORCH: torchs,
        **compiled(torchs, device),
    }
    pixels = n * side * side
    words = pixels * ((3 + 10 * mixtures + 1) + backward * (20 * mixtures + 3 + 1))
    # Traffic alone: the device's exp rate was measured from memory, and is no limit for these.
    needs = Needs(bytes=4.0 * words)
    # torch's difference of two sigmoids loses digits in narrow bins, which shows in its error.
    return setup(
        functions,
        lambda p: reference.logistic_mixture_log_prob(x.to(p.dtype), p),
        [params],
        device,
        backward=backward,
        tolerance=1e-4,
        needs=needs,
    )


def cases(size: str, device: str) -> list[Case]:
    """The rows of the table."""
    n, side, mixtures = SHAPES[size]
    rows = []
    for backward in (False, True):
        work = f"logistic mixture {'forward + backward' if backward else 'forward'}, "
        work += f"{n} x 3 x {side} x {side}, {mixtures} terms"
        build = functools.partial(_build, SHAPES[size], device, backward)
        floors = Floor("ratio", 5, TORCH), Floor("ratio", 1, COMPILED)
        rows.append(case("logistic_mixture", work, size, build, *floors))
    return rows
