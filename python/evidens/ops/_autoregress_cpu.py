"""Cached sampling on CPU tensors: addresses and sizes for ``evidens._C``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evidens._native import address, library
from evidens.reference.spline import LINEAR


def _matrix(weight: Tensor) -> Tensor:
    """With contiguous rows: a view where it is one."""
    return weight if weight.shape[1] < 2 or weight.stride(1) == 1 else weight.contiguous()


def made_sample(
    noise: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    degrees: list[Tensor],
    context: Tensor | None,
    known: Tensor | None,
    values: Tensor | None,
    kind: int,
    activation: int,
    levels: int,
    input_map: list[float],
    scale_map: int,
    clamp: float,
    inverse: bool,
    bins: int,
    spline_map: int,
    tails: list[int],
    box: list[float],
    options: list[float],
) -> tuple[Tensor, Tensor]:
    noise = noise.contiguous()
    n, d, draws = noise.shape
    parameters = weights[-1].shape[0] // d if d else 0
    x, logdet = noise.new_empty((n, d)), noise.new_empty(n)
    # Contiguous copies must outlive the call.
    matrices = [_matrix(w) for w in weights]
    vectors = [b if b is None else b.contiguous() for b in biases]
    orders = [o.contiguous() for o in degrees]
    context, known, values = (t if t is None else t.contiguous() for t in (context, known, values))
    slopes = parameters - 2 * bins
    first_slope = len(tails) == 1 and tails[0] == LINEAR
    if len(tails) > 1 or len(box) > 4:  # then both are per feature
        tails = tails if len(tails) > 1 else [*tails] * d
        box = box if len(box) > 4 else [*box] * d
    min_width, min_height, min_derivative, beta, slope, logit_scale = options
    library.made_sample(
        noise.dtype is torch.float64,
        n,
        d,
        parameters,
        draws,
        levels,
        input_map[0],
        input_map[1],
        kind,
        activation,
        scale_map,
        inverse,
        clamp,
        [(w.data_ptr(), w.stride(0)) for w in matrices],
        [address(b) for b in vectors],
        [o.data_ptr() for o in orders],
        [o.shape[0] for o in orders],
        noise.data_ptr(),
        address(context),
        0 if context is None else context.shape[1],
        address(known),
        address(values),
        bins,
        spline_map,
        first_slope,
        first_slope and slopes >= bins,
        slopes,
        tails,
        box,
        (min_width, min_height, min_derivative, beta, math.log(slope), logit_scale),
        x.data_ptr(),
        logdet.data_ptr(),
    )
    return x, logdet
