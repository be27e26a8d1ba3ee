"""Sampling from networks of masked convolutions by plain loops of full passes.

Shape letters: ``N`` images, ``C`` channels, ``H W`` size, ``O`` outputs of a layer, ``K`` levels,
``M`` mixture terms.  Pixels come in raster order, the channels of a pixel in ``groups`` one after
the other (van den Oord, Kalchbrenner, Kavukcuoglu, Pixel Recurrent Neural Networks, 2016, section
3.4).  Here the whole network runs once for every group of every pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evidens.reference import autoregress

KINDS = ("bernoulli", "categorical", "logistic")
BERNOULLI, CATEGORICAL, LOGISTIC = range(3)
GATE = 100  # beside the numbers of autoregress.ACTIVATIONS


def full_mask(taps: Tensor, outputs: int, inputs: int, groups: int, strict: bool) -> Tensor:
    """Which entries of a weight (O, C, kh, kw) live: bool taps (kh, kw), and groups at the centre.

    There an output of group g sees inputs of groups up to g, or before g where ``strict``.
    """
    mask = taps.expand(outputs, inputs, *taps.shape).clone()
    own = torch.arange(outputs, device=taps.device) // (outputs // groups)
    other = torch.arange(inputs, device=taps.device) // (inputs // groups)
    centre = own[:, None] > other if strict else own[:, None] >= other
    mask[:, :, taps.shape[0] // 2, taps.shape[1] // 2] &= centre
    return mask


def _gate(x: Tensor, groups: int) -> Tensor:
    a, b = x.unflatten(1, (groups, 2, -1)).unbind(2)
    return (torch.tanh(a) * torch.sigmoid(b)).flatten(1, 2)


def pixelcnn_parameters(
    inputs: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    taps: Sequence[bool],
    contexts: Sequence[Tensor | None],
    program: Sequence[int],
    groups: int,
) -> Tensor:
    """What the last layer gives for all pixels: one pass of the masked network.

    Args:
        inputs: what the network sees, (N, C, H, W) or one-hot (N, C * K, H, W).
        weights: (O, C', kh, kw) of each layer; empty: the layer has none and passes its source on.
        biases: (O,) or None for each.
        taps: whether each tap of each kernel lives, row by row; one for an empty weight.
        contexts: (N, O) or None for each, added at every pixel.
        program: for each layer the value it starts from (0 is the input, i + 1 layer i), the value
            that is added (-1: none), the activation, whether the centre is strict, and whether it
            belongs to rows above, for which groups do not count.
    """
    values, place = [inputs], 0
    for i, weight in enumerate(weights):
        source, add, activation, strict, ahead = program[5 * i : 5 * i + 5]
        h, parts = values[source], 1 if ahead else groups
        outputs, channels, height, width = weight.shape
        first, place = place, place + height * width
        if weight.numel():
            live = torch.tensor(taps[first:place], device=weight.device).view(height, width)
            mask = full_mask(live, outputs, channels, parts, bool(strict))
            padding = (height // 2, width // 2)
            h = F.conv2d(h, torch.where(mask, weight, 0.0), biases[i], padding=padding)
        context = contexts[i]
        if context is not None:
            h = h + context[:, :, None, None]
        if add >= 0:
            h = h + values[add]
        if activation == GATE:
            h = _gate(h, parts)
        else:
            h = autoregress._FUNCTIONS[autoregress.ACTIVATIONS[activation]](h)
        values.append(h)
    return values[-1]


def _logistic(
    u: Tensor,
    params: Tensor,
    channels: int,
    levels: int,
    min_log_scale: float,
    known: Tensor | None,
    values: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Levels (N, C, H, W) from one mixture of logistics for all channels of a pixel.

    Salimans, Karpathy, Chen, Kingma, PixelCNN++, 2017, section 2.1 and 2.2: the level whose bin
    holds the draw; red moves the mean of green, both move that of blue.
    """
    m = params.shape[1] // (10 if channels == 3 else 3)
    chosen, nan = autoregress.pick(params[:, :m].movedim(1, -1), u[:, 0])

    def own(block: int) -> Tensor:
        return params[:, block * m : (block + 1) * m].gather(1, chosen[:, None])[:, 0]

    half = (levels - 1) / 2
    found: list[Tensor] = []
    seen: list[Tensor] = []
    for c in range(channels):
        first = 1 + c * (3 if channels == 3 else 2)
        mean, log_scale = own(first), own(first + 1)
        for b in range(c):
            mean = mean + torch.tanh(own((c + b - 1) * 3 + 3)) * seen[b]
        scale = log_scale.clamp(min=min_log_scale).exp()
        v = mean + scale * (u[:, 1 + c] / (1 - u[:, 1 + c])).log()
        level = ((v + 1) * half + 0.5).clamp(0, levels - 1)
        nan = nan + level * 0
        level = level.floor()
        if known is not None and values is not None:
            level = torch.where(known[:, c], values[:, c].to(level.dtype), level)
        found.append(level)
        seen.append(found[-1] / half - 1)
    return torch.stack(found, 1), nan[:, None]


def pixelcnn_draw(
    noise: Tensor,
    params: Tensor,
    known: Tensor | None,
    values: Tensor | None,
    kind: int,
    channels: int,
    levels: int,
    min_log_scale: float,
) -> Tensor:
    """Levels (N, C, H, W) int64 of all pixels from their parameters; -1: no distribution.

    ``values`` where ``known``, both (N, C, H, W) or None; what is known moves what is not.
    """
    if kind == LOGISTIC:
        level, nan = _logistic(noise, params, channels, levels, min_log_scale, known, values)
    elif kind == BERNOULLI:
        p = torch.sigmoid(params)
        level, nan = (noise < p).long(), p * 0
    else:
        level, nan = autoregress.pick(params.unflatten(1, (channels, levels)).movedim(2, -1), noise)
    level = torch.where(nan.isnan(), -1.0, level.to(noise.dtype)).long()
    return level if known is None or values is None else torch.where(known, values, level)


def encode(x: Tensor, levels: int, one_hot: bool, input_map: Sequence[float]) -> Tensor:
    """What a network sees of levels (N, C, H, W) in a floating dtype."""
    if not one_hot:
        return x * input_map[0] + input_map[1]
    k = torch.arange(levels, device=x.device)[:, None, None]
    return (x[:, :, None] == k).to(x.dtype).flatten(1, 2)


def pixelcnn_sample(
    noise: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    taps: Sequence[bool],
    contexts: Sequence[Tensor | None],
    known: Tensor | None,
    values: Tensor | None,
    program: Sequence[int],
    kind: int,
    channels: int,
    levels: int,
    groups: int,
    one_hot: bool,
    input_map: Sequence[float],
    min_log_scale: float,
) -> Tensor:
    """Levels (N, C, H, W) int64, drawn pixel by pixel.

    Args:
        noise: uniforms (N, R, H, W): R = C, for the logistic kind 1 + C, the first of which
            chooses the term.
        weights, biases, taps, contexts, program, groups: as in `pixelcnn_parameters`.
        known: (N, C, H, W) bool or None; where it is set, ``values``, int64, are taken.
        kind: index into `KINDS`.
        channels, levels, one_hot, input_map, min_log_scale: C, K, and how a level is seen.
    """
    n, _, height, width = noise.shape
    x = torch.zeros((n, channels, height, width), dtype=torch.int64, device=noise.device)
    share = channels // groups
    network = weights, biases, taps, contexts, program, groups
    how = kind, channels, levels, one_hot, input_map, min_log_scale
    for y in range(height):
        for column in range(width):
            for g in range(groups):
                _, drawn = _pass(noise, x, network, known, values, *how)
                now = (slice(None), slice(g * share, (g + 1) * share), y, column)
                x = x.clone()
                x[now] = drawn[now]
    return x


def _pass(
    noise: Tensor,
    x: Tensor,
    network: tuple[Any, ...],
    known: Tensor | None,
    values: Tensor | None,
    kind: int,
    channels: int,
    levels: int,
    one_hot: bool,
    input_map: Sequence[float],
    min_log_scale: float,
) -> tuple[Tensor, Tensor]:
    """Parameters and draws of all pixels, where the network sees x."""
    params = pixelcnn_parameters(encode(x.to(noise.dtype), levels, one_hot, input_map), *network)
    return params, pixelcnn_draw(
        noise, params, known, values, kind, channels, levels, min_log_scale
    )


def last_channels(weights: Sequence[Tensor], program: Sequence[int]) -> int:
    """Channels of the last layer."""
    channels: list[int] = []
    for i, weight in enumerate(weights):
        source, _, activation = program[5 * i : 5 * i + 3]
        outputs = weight.shape[0] if weight.numel() else channels[source - 1]
        channels.append(outputs // 2 if activation == GATE else outputs)
    return channels[-1]


class PixelSteps:
    """`pixelcnn_sample`, one pixel after the other.

    Args:
        x: (N, C, H, W) int64, written to as it goes.
        known, values: (N, C, H, W), read when their pixel comes.
        noise and the others: as in `pixelcnn_sample`.
    """

    def __init__(
        self,
        x: Tensor,
        noise: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        taps: Sequence[bool],
        contexts: Sequence[Tensor | None],
        known: Tensor,
        values: Tensor,
        program: Sequence[int],
        kind: int,
        channels: int,
        levels: int,
        groups: int,
        one_hot: bool,
        input_map: Sequence[float],
        min_log_scale: float,
    ) -> None:
        self.x, self.known, self.values = x, known, values
        outputs = last_channels(weights, program)
        self.parameters = noise.new_full((noise.shape[0], outputs), torch.nan)
        self._seen = torch.zeros_like(self.x)
        self._network = weights, biases, taps, contexts, program, groups
        self._how: tuple[Any, ...] = kind, channels, levels, one_hot, input_map, min_log_scale
        self._noise, self._share, self._pixel = noise, channels // groups, 0

    def step(self) -> None:
        """One pixel further, in raster order."""
        y, column = divmod(self._pixel, self.x.shape[3])
        for first in range(0, self.x.shape[1], self._share):
            params, drawn = _pass(
                self._noise, self._seen, self._network, self.known, self.values, *self._how
            )
            now = (slice(None), slice(first, first + self._share), y, column)
            self.x[now] = self._seen[now] = drawn[now]
        self.parameters = params[:, :, y, column]
        self._pixel += 1

    def copy(self) -> PixelSteps:
        """The same again, in tensors of its own."""
        other = object.__new__(PixelSteps)
        other.__dict__ = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in self.__dict__.items()
        }
        return other
