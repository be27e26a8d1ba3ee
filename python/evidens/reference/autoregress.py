"""Sampling from masked networks by plain loops of full passes.

Shape letters: ``N`` rows, ``D`` features, ``H`` hidden units, ``P`` parameters of one feature,
``M`` mixture terms or bins, ``K`` levels.

A feature, and each of its parameters, has a *degree*.  A hidden unit sees what has at most its own
degree, a parameter only what has a smaller one (Germain, Gregor, Murray, Larochelle, MADE: Masked
Autoencoder for Distribution Estimation, 2015, eq. 8-9), so features come one after the other in
the order of their degrees, and features of one degree come together.  Here the whole network runs
once for every degree, which is the definition of what the kernel computes in one pass of work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evidens.reference import coupling, spline

ACTIVATIONS = ("identity", "relu", "leaky_relu", "elu", "tanh", "sigmoid", "silu", "softplus")
KINDS = ("affine", "bernoulli", "categorical", "mixture", "spline")
AFFINE, BERNOULLI, CATEGORICAL, MIXTURE, SPLINE = range(5)

_FUNCTIONS = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": lambda x: F.softplus(x, threshold=80),  # the default of 20 would show in float64
}


def made_parameters(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    degrees: Sequence[Tensor],
    context: Tensor | None,
    activation: str,
) -> Tensor:
    """Parameters (N, D, P) of all features: one pass of the masked network.

    Args:
        inputs: what the network sees of a row, (N, D * width): ``width`` numbers of each feature.
        weights: (H1, D * width), (H2, H1), ..., (D * P, H); dead entries are not read.
        biases: one for each weight, or None.
        degrees: (D,) of the features, then (H1,), (H2,), ... of the hidden units.
        context: (N, H1) or None, added before the first activation; without hidden layers
            (N, D * P).
        activation: one of `ACTIVATIONS`.
    """
    features = degrees[0].shape[0]
    seen = degrees[0].repeat_interleave(inputs.shape[1] // features)
    h = inputs
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        last = i + 1 == len(weights)
        if last:
            degree = degrees[0].repeat_interleave(weight.shape[0] // features)
            alive = degree[:, None] > seen
        else:
            degree = degrees[i + 1]
            alive = degree[:, None] >= seen
        # Where, not times: what is dead may hold anything.
        h = F.linear(h, torch.where(alive, weight, 0.0), bias)
        if i == 0 and context is not None:
            h = h + context
        if not last:
            h = _FUNCTIONS[activation](h)
        seen = degree
    return h.unflatten(1, (features, h.shape[1] // features))


def pick(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Index (*,) of the entry of ``logits`` (*, K) that the uniform ``u`` (*,) falls on.

    The inverse of the distribution function of their softmax.  An entry of probability 0 is never
    picked.  The second result is NaN where the logits give no distribution, else 0.
    """
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    sums = weights.cumsum(-1)
    threshold = u * sums[..., -1]
    index = (sums <= threshold[..., None]).sum(-1).clamp(max=logits.shape[-1] - 1)
    return index, threshold * 0


def made_draw(
    noise: Tensor,
    params: Tensor,
    kind: int,
    scale_map: str,
    clamp: float,
    inverse: bool,
    splines: tuple[str, list[int], list[float], list[float], int],
) -> tuple[Tensor, Tensor]:
    """Values and terms of the log-determinant, (N, A) each, of A features from their parameters.

    Args:
        noise: (N, A, R).
        params: (N, A, P).
        kind: index into `KINDS`.
        scale_map, clamp, inverse: of the affine kind, as in `coupling.affine_coupling`; ``inverse``
            also of the spline.
        splines: map, tails, box, options and M of `spline.rational_quadratic_spline`.
    """
    z = noise[..., 0]
    none = torch.zeros_like(z)
    if kind == AFFINE:
        shift, raw = params.unbind(-1)
        factor, log = coupling._scale(raw, scale_map, clamp, inverse)
        return ((z - shift) * factor, -log) if inverse else (z * factor + shift, log)
    if kind == BERNOULLI:
        p = torch.sigmoid(params[..., 0])
        return torch.where(p.isnan(), p, (z < p).to(p.dtype)), none
    if kind == CATEGORICAL:
        x, nan = pick(params, z)
        return x + nan, none
    if kind == MIXTURE:
        logits, means, log_scales = params.chunk(3, -1)
        term, nan = pick(logits, z)
        mean, log_scale = (v.gather(-1, term[..., None])[..., 0] for v in (means, log_scales))
        return mean + log_scale.exp() * noise[..., 1] + nan, none
    map, tails, box, options, bins = splines
    edges = bins + 1 if map == "knots" else bins
    widths, heights, slopes = params.tensor_split((edges, 2 * edges), -1)
    return spline.rational_quadratic_spline(
        z, widths, heights, slopes, map, tails, box, options, inverse
    )


def encode(x: Tensor, levels: int, input_scale: float, input_shift: float) -> Tensor:
    """What a network sees of values (N, D): (N, D) scaled, or (N, D * levels) one-hot."""
    if levels == 0:
        return x * input_scale + input_shift
    return (x[..., None] == torch.arange(levels, device=x.device)).to(x.dtype).flatten(1)


def made_sample(
    noise: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    degrees: Sequence[Tensor],
    context: Tensor | None,
    known: Tensor | None,
    values: Tensor | None,
    kind: int,
    activation: int,
    levels: int,
    input_map: Sequence[float],
    scale_map: int,
    clamp: float,
    inverse: bool,
    bins: int,
    spline_map: int,
    tails: list[int],
    box: list[float],
    options: list[float],
) -> tuple[Tensor, Tensor]:
    """Draws (N, D) of a masked network, and the log-determinant (N,) of noise to draw, nats.

    Args:
        noise: (N, D, R): what the kind is driven by.
        weights, biases, degrees, context: as in `made_parameters`.
        known: (N, D) bool or None; where it is set, ``values`` (N, D) are taken instead of draws.
            Their terms of the log-determinant count.
        kind: index into `KINDS`; `activation` into `ACTIVATIONS`.
        levels: 0: the network sees ``input_map[0] * x + input_map[1]``; else x one-hot.
        scale_map: index into `coupling.SCALE_MAPS`; with ``clamp`` and ``inverse`` the affine kind.
        bins, spline_map, tails, box, options, inverse: of the spline.
    """
    order = degrees[0]
    x = torch.zeros_like(noise[..., 0])
    total = x.new_zeros(x.shape[0], dtype=torch.float64)
    splines = spline.MAPS[spline_map], tails, box, options, bins
    how = ACTIVATIONS[activation], kind, levels, input_map, scale_map, clamp, inverse, splines
    for degree in order.unique():
        _, drawn, terms = _pass(noise, x, weights, biases, degrees, context, known, values, *how)
        now = order == degree
        x = torch.where(now, drawn, x)
        total = total + torch.where(now, terms, 0.0).sum(1, dtype=torch.float64)
    return x, total.to(noise.dtype)


def _pass(
    noise: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    degrees: Sequence[Tensor],
    context: Tensor | None,
    known: Tensor | None,
    values: Tensor | None,
    activation: str,
    kind: int,
    levels: int,
    input_map: Sequence[float],
    scale_map: int,
    clamp: float,
    inverse: bool,
    splines: tuple[str, list[int], list[float], list[float], int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters, draws and terms of all features, where the network sees x."""
    inputs = encode(x, levels, *input_map)
    params = made_parameters(inputs, weights, biases, degrees, context, activation)
    map = coupling.SCALE_MAPS[scale_map]
    drawn, terms = made_draw(noise, params, kind, map, clamp, inverse, splines)
    if known is not None and values is not None:
        if kind == SPLINE:  # its slope, seen from the value
            undo = made_draw(values[..., None], params, kind, map, clamp, not inverse, splines)[1]
            terms = torch.where(known, -undo, terms)
        drawn = torch.where(known, values, drawn)
    return params, drawn, terms


class MadeSteps:
    """`made_sample`, one feature after the other.

    Args:
        x: (N, D), written to as it goes.
        known, values: (N, D), read when their feature comes.
        noise and the others: as in `made_sample`.
    """

    def __init__(
        self,
        x: Tensor,
        noise: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        degrees: Sequence[Tensor],
        context: Tensor | None,
        known: Tensor,
        values: Tensor,
        kind: int,
        activation: int,
        levels: int,
        input_map: Sequence[float],
        scale_map: int,
        clamp: float,
        inverse: bool,
        bins: int,
        spline_map: int,
        tails: list[int],
        box: list[float],
        options: list[float],
    ) -> None:
        n, d = noise.shape[:2]
        self.x, self.known, self.values = x, known, values
        self.parameters = noise.new_full((n, weights[-1].shape[0] // max(d, 1)), torch.nan)
        self.logdet = noise.new_zeros(n)
        self._total = noise.new_zeros(n, dtype=torch.float64)
        self._seen = torch.zeros_like(self.x)
        self._order = degrees[0].sort(stable=True).indices.tolist()
        self._network: tuple[Any, ...] = weights, biases, degrees, context
        splines = spline.MAPS[spline_map], tails, box, options, bins
        self._how: tuple[Any, ...] = (
            ACTIVATIONS[activation], kind, levels, input_map, scale_map, clamp, inverse, splines,
        )  # fmt: skip
        self._noise, self._place = noise, 0

    def step(self) -> None:
        """One feature further, in the order of degrees."""
        f = self._order[self._place]
        given = *self._network, self.known, self.values, *self._how
        params, drawn, terms = _pass(self._noise, self._seen, *given)
        self.parameters = params[:, f]
        self.x[:, f] = self._seen[:, f] = drawn[:, f]
        self._total = self._total + terms[:, f].double()
        self.logdet = self._total.to(self.x.dtype)
        self._place += 1

    def copy(self) -> MadeSteps:
        """The same again, in tensors of its own."""
        other = object.__new__(MadeSteps)
        other.__dict__ = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in self.__dict__.items()
        }
        return other
