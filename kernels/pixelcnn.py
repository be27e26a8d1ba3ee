"""Cached sampling of masked convolutions in Triton: `evidens.reference.pixelcnn` on a GPU.

A program takes one image through all pixels; a list of jobs says which outputs to sum over which
runs of live taps.  The values of the network lie in global memory, and a barrier after each job
lets the threads of a program see what the others wrote.  The kernel runs in Triton's interpreter
and compiles for sm_90; it has not yet run on a GPU.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import triton
from torch import Tensor

from ._device import on
from ._pixelcnn_pixels import pixel_kernel

_OUTPUTS, _DEPTH, _WARPS = 64, 32, 4
_LOGISTIC, _GATE = 2, 100


class _Value:
    """What is kept of a value: its channels, rows, and columns of zeros on both sides."""

    def __init__(self, channels: int) -> None:
        self.channels, self.rows, self.left, self.right, self.place = channels, 1, 0, 0, 0

    def row(self, width: int) -> int:
        return (self.left + width + self.right) * self.channels


def _runs(
    weight: Tensor, taps: list[bool], source: _Value, group: int, groups: int, strict: bool
) -> tuple[list[list[int]], list[Tensor]]:
    """Live taps side by side as one (row, column, depth), and their weights (depth, O)."""
    _, channels, height, width = weight.shape
    seen = channels // groups * (group + (not strict))
    runs: list[list[int]] = []
    packed = []
    for ky in range(height):
        dy, open = ky - height // 2, False
        for kx in range(width):
            dx = kx - width // 2
            depth = seen if dy == 0 and dx == 0 else channels
            if not taps[ky * width + kx] or depth == 0:
                open = False
                continue
            if not open:
                runs.append([dy, dx, 0])
            runs[-1][2] += depth
            open = depth == channels  # the next tap's numbers follow
            packed.append(weight[:, :depth, ky, kx].T)
            source.rows = max(source.rows, 1 - dy)
            source.left, source.right = max(source.left, -dx), max(source.right, dx)
    return runs, packed


class _Network:
    """A network ready to be drawn from: jobs, packed weights, and the scratch of all images."""

    def __init__(
        self,
        noise: Tensor,
        weights: list[Tensor],
        biases: list[Tensor | None],
        taps: list[bool],
        contexts: list[Tensor | None],
        program: list[int],
        kind: int,
        channels: int,
        levels: int,
        groups: int,
        one_hot: bool,
        input_map: list[float],
        min_log_scale: float,
    ) -> None:
        self.noise = noise = noise.contiguous()
        self.channels, self.groups, self.levels = channels, groups, levels
        n, _, _, width = noise.shape
        values = [_Value(channels * levels if one_hot else channels)]
        ahead: list[list[int]] = []
        here: list[list[list[int]]] = [[] for _ in range(groups)]
        runs: list[list[int]] = []
        packed: list[Tensor] = []
        told: list[Tensor] = []
        length = tap = context_place = widest = 0
        for i, weight in enumerate(weights):
            source, add, activation, strict, rows = program[5 * i : 5 * i + 5]
            empty = weight.numel() == 0
            outputs = values[source].channels if empty else weight.shape[0]
            first_tap, tap = tap, tap + weight.shape[2] * weight.shape[3]
            place = -1
            context = contexts[i]
            if context is not None:
                told.append(context)
                place, context_place = context_place, context_place + outputs
            parts = 1 if rows else groups
            each = outputs // parts
            kept = each // 2 if activation == _GATE else each
            bias = biases[i]
            for g in range(parts):
                own, at = slice(g * each, (g + 1) * each), -1
                first_run = len(runs)
                if not empty:
                    found, parcels = _runs(
                        weight[own], taps[first_tap:tap], values[source], g, parts, bool(strict)
                    )
                    runs += found
                    at = length
                    packed.append(noise.new_zeros(each) if bias is None else bias[own])
                    packed += [parcel.reshape(-1) for parcel in parcels]
                    length += each + sum(parcel.numel() for parcel in parcels)
                (ahead if rows else here[g]).append(
                    [at, each, first_run, len(runs) - first_run, source, add, i + 1, g * each,
                     g * kept, activation, place]
                )  # fmt: skip
            widest = max(widest, each)
            values.append(_Value(kept * parts))
        self.size = 0
        for value in values:
            value.place = self.size
            self.size += value.rows * value.row(width)
        self.last = values[-1]
        index = {"dtype": torch.int64, "device": noise.device}
        jobs = [*ahead, *(job for some in here for job in some)]
        self.jobs = torch.tensor(jobs, **index)
        table = [[v.place, v.rows, v.row(width), v.channels, v.left] for v in values]
        self.values = torch.tensor(table, **index)
        self.runs = torch.tensor(runs or [[0, 0, 0]], **index)
        self.ahead, self.here = len(ahead), len(here[0])
        self.weights = torch.cat(packed) if packed else noise.new_zeros(1)
        self.context = torch.cat(told, 1).contiguous() if told else None
        self.scratch = noise.new_zeros((n, self.size))
        self.sums = noise.new_empty((n, widest))
        self.numbers = torch.tensor(
            [*input_map, min_log_scale, (levels - 1) / 2], dtype=noise.dtype, device=noise.device
        )
        self.mixtures = 0
        entries = levels
        if kind == _LOGISTIC:
            self.mixtures = self.last.channels // (10 if channels == 3 else 3)
            entries = max(self.mixtures, levels if one_hot else 1)
        self.constants = {
            "KIND": kind,
            "COLOURS": channels if kind == _LOGISTIC else 1,
            "ONE_HOT": bool(one_hot),
            "CONTEXT": bool(told),
            "BLOCK_O": min(_OUTPUTS, triton.next_power_of_2(widest)),
            "BLOCK_K": _DEPTH,
            "BLOCK_L": triton.next_power_of_2(entries),
        }

    def run(
        self, first: int, last: int, known: Tensor | None, values: Tensor | None, x: Tensor
    ) -> None:
        """Pixels first .. last, after those before."""
        n, draws, height, width = self.noise.shape
        with on(self.noise):
            pixel_kernel[(n,)](
                self.jobs,
                self.values,
                self.runs,
                self.weights,
                self.scratch,
                self.sums,
                self.context,
                self.noise,
                known,
                values,
                self.numbers,
                x,
                first,
                last,
                self.ahead,
                self.here,
                self.size,
                self.sums.shape[1],
                0 if self.context is None else self.context.shape[1],
                draws,
                self.channels,
                height,
                width,
                self.groups,
                self.levels,
                self.mixtures,
                KNOWN=known is not None,
                num_warps=_WARPS,
                enable_fp_fusion=True,
                **self.constants,
            )

    def parameters(self, pixel: int) -> Tensor:
        """(N, O) of the last layer at a pixel, until another one takes its place."""
        y, x = divmod(pixel, self.noise.shape[3])
        value = self.last
        row = value.row(self.noise.shape[3])
        at = value.place + y % value.rows * row + (x + value.left) * value.channels
        return self.scratch[:, at : at + value.channels]


def pixelcnn_sample(
    noise: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    taps: list[bool],
    contexts: list[Tensor | None],
    known: Tensor | None,
    values: Tensor | None,
    program: list[int],
    kind: int,
    channels: int,
    *how: Any,
) -> Tensor:
    """Levels (N, C, H, W) int64: arguments as in the reference."""
    n, _, height, width = noise.shape
    x = noise.new_zeros((n, channels, height, width), dtype=torch.int64)
    if x.numel() == 0:
        return x
    network = _Network(noise, weights, biases, taps, contexts, program, kind, channels, *how)
    if known is not None and values is not None:
        known, values = known.to(torch.int8).contiguous(), values.contiguous()
    network.run(0, height * width, known, values, x)
    return x


class PixelSteps:
    """A draw that goes pixel by pixel: a launch for each."""

    def __init__(
        self,
        x: Tensor,
        noise: Tensor,
        weights: list[Tensor],
        biases: list[Tensor | None],
        taps: list[bool],
        contexts: list[Tensor | None],
        known: Tensor,
        values: Tensor,
        *how: Any,
    ) -> None:
        self.x, self.known, self.values = x, known, values
        self._network, self._pixel = _Network(noise, weights, biases, taps, contexts, *how), 0
        self.parameters = noise.new_full((len(x), self._network.last.channels), torch.nan)

    def step(self) -> None:
        """One pixel further, in raster order."""
        network, pixel = self._network, self._pixel
        self._pixel += 1
        if len(self.x) == 0:
            return
        network.run(pixel, pixel + 1, self.known.to(torch.int8), self.values, self.x)
        self.parameters = network.parameters(pixel)

    def copy(self) -> PixelSteps:
        """The same again, in tensors of its own."""
        other = copy.copy(self)
        for name in ("known", "values", "x", "parameters"):
            setattr(other, name, getattr(self, name).clone())
        other._network = copy.copy(self._network)
        other._network.scratch = self._network.scratch.clone()
        return other
