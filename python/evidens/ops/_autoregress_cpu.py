"""Cached sampling on CPU tensors: addresses and sizes for ``evidens._C``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from evidens._native import address, contiguous_rows, library
from evidens.reference.spline import LINEAR


def _sampler(
    x: Tensor,
    logdet: Tensor,
    given: Tensor | None,
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
) -> tuple[Any, tuple[Any, ...]]:
    """The compiled sampler, and what must live as long as it does."""
    noise = noise.contiguous()
    n, d, draws = noise.shape
    parameters = weights[-1].shape[0] // d if d else 0
    # Contiguous copies must outlive the sampler.
    matrices = [contiguous_rows(w) for w in weights]
    vectors = [b if b is None else b.contiguous() for b in biases]
    orders = [o.contiguous() for o in degrees]
    context, known, values = (t if t is None else t.contiguous() for t in (context, known, values))
    slopes = parameters - 2 * bins
    first_slope = len(tails) == 1 and tails[0] == LINEAR
    if len(tails) > 1 or len(box) > 4:  # then both are per feature
        tails = tails if len(tails) > 1 else [*tails] * d
        box = box if len(box) > 4 else [*box] * d
    min_width, min_height, min_derivative, beta, slope, logit_scale = options
    sampler = library.MadeSampler(
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
        address(given),
    )
    return sampler, (noise, matrices, vectors, orders, context, known, values)


def made_sample(noise: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    n, d, _ = noise.shape
    x, logdet = noise.new_empty((n, d)), noise.new_empty(n)
    sampler, _kept = _sampler(x, logdet, None, noise, *rest)
    sampler.draw()
    return x, logdet


class MadeSteps:
    """A draw that goes feature by feature, in the order of their degrees."""

    def __init__(self, x: Tensor, noise: Tensor, weights: list[Tensor], *rest: Any) -> None:
        n, d, _ = noise.shape
        self.x, self.known, self.values = x, *rest[3:5]
        self.logdet = noise.new_zeros(n)
        self.parameters = noise.new_full((n, weights[-1].shape[0] // max(d, 1)), torch.nan)
        self._sampler, self._kept = _sampler(x, self.logdet, self.parameters, noise, weights, *rest)

    def step(self) -> None:
        self._sampler.step()

    def copy(self) -> MadeSteps:
        other = object.__new__(MadeSteps)
        other.__dict__ = dict(self.__dict__)
        own = ("known", "values", "x", "logdet", "parameters")
        for name in own:
            setattr(other, name, getattr(self, name).clone())
        other._sampler = self._sampler.copy(*(getattr(other, name).data_ptr() for name in own))
        return other
