"""Cached sampling of masked networks in Triton: `evidens.reference.autoregress` on a GPU.

A program takes a block of rows through the whole network.  Units are sorted by degree, and a list
of jobs says which of them to sum next over how many of the layer below, or which feature to draw;
the list is made on the host, which for degrees on a GPU waits for the device.  The values of all
units of all rows lie in global memory, (units, N); a barrier after each job lets the threads of a
program see what the others wrote.  Every sum is in the order of the units, so a row depends on no
other.  The kernel runs in Triton's interpreter and compiles for sm_90; it has not yet run on a GPU.
"""

from __future__ import annotations

import bisect
import copy
import itertools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import coupling, spline
from ._device import on
from ._made_draws import activate, draw

_SPLINE = 4
_UNITS, _ROWS, _WARPS = 16, 64, 4
_HIDDEN, _OUTPUTS, _DRAW = range(3)


@triton.jit(do_not_specialize=["n", "first_job", "jobs", "stride", "params_row", "context_units"])
def made_kernel(
    jobs_ptr,  # (jobs, 8) int64, see `_schedule`
    weights_ptr,  # of every layer: its bias, then (below, units), all sorted by degree
    units_ptr,  # scratch (inputs + hidden units + P, stride)
    context_ptr,  # (N, context_units), sorted, where CONTEXT
    noise_ptr,  # (N, D, draws), contiguous
    known_ptr,  # (N, D) int8, where KNOWN
    values_ptr,  # (N, D)
    numbers_ptr,  # (3,): what the network sees is a x + b; the constant of the scale map
    sides_ptr,  # of splines
    tails_ptr,
    options_ptr,
    x_ptr,  # out (N, D)
    total_ptr,  # (N,) float64: what the jobs before have left
    logdet_ptr,  # out (N,)
    n,
    first_job,
    jobs,  # the first job that is left to another launch
    stride,
    params_row,  # of units_ptr: the first parameter of a feature
    features,
    draws,
    parameters,
    context_units,
    levels,
    bins,
    KIND: tl.constexpr,
    ACTIVATION: tl.constexpr,
    MAP: tl.constexpr,
    INVERSE: tl.constexpr,
    CONTEXT: tl.constexpr,
    KNOWN: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    MANY_SIDES: tl.constexpr,
    MANY_TAILS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """All features of a block of rows."""
    dtype = x_ptr.dtype.element_ty
    rows = tl.cast(tl.program_id(0), tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = rows < n
    wide = tl.cast(stride, tl.int64)
    total = tl.load(total_ptr + rows, mask=mask, other=0.0)
    for j in range(first_job, jobs):
        job = jobs_ptr + tl.cast(j, tl.int64) * 8
        task, first, value = tl.load(job), tl.load(job + 1), tl.load(job + 2)
        if task == 2:
            given, held = tl.zeros([BLOCK_N], dtype), mask
            place = rows * features + first
            if KNOWN:
                held = tl.load(known_ptr + place, mask=mask, other=0) != 0
                given = tl.load(values_ptr + place, mask=mask, other=0.0)
            x, log = draw(
                noise_ptr + first * draws, tl.cast(features, tl.int64) * draws, given, held,
                units_ptr + params_row * wide, wide, rows, mask, first, parameters,
                numbers_ptr + 2, sides_ptr, tails_ptr, options_ptr, bins, KIND, MAP, INVERSE,
                KNOWN, FIRST, LAST, MANY_SIDES, MANY_TAILS, BLOCK_M,
            )  # fmt: skip
            total += log.to(tl.float64)
            tl.store(x_ptr + place, x, mask=mask)
            shown = units_ptr + value * wide + rows
            if levels == 0:
                seen = x * tl.load(numbers_ptr) + tl.load(numbers_ptr + 1)
                tl.store(shown, seen, mask=mask)
            for k in range(0, levels):
                tl.store(shown, (x == k).to(dtype), mask=mask)
                shown += wide
        else:
            count, depth = tl.load(job + 3), tl.load(job + 4)
            weight, step, below = tl.load(job + 5), tl.load(job + 6), tl.load(job + 7)
            for u0 in range(0, count, BLOCK_U):
                u = u0 + tl.arange(0, BLOCK_U)
                inside = u < count
                at = weights_ptr + weight + first + u
                source = units_ptr + below * wide + rows
                bias = tl.load(at, mask=inside, other=0.0)
                acc = tl.zeros([BLOCK_U, BLOCK_N], dtype) + bias[:, None]
                for _ in range(0, depth):
                    at += step
                    w = tl.load(at, mask=inside, other=0.0)
                    h = tl.load(source, mask=mask, other=0.0)
                    acc += w[:, None] * h[None, :]
                    source += wide
                both = inside[:, None] & mask[None, :]
                if CONTEXT:
                    # Inputs begin the scratch, so what starts there is the first layer.
                    if below == 0:
                        own = context_ptr + rows[None, :] * context_units + (first + u)[:, None]
                        acc += tl.load(own, mask=both, other=0.0)
                if task == 0:
                    acc = activate(acc, ACTIVATION)
                tl.store(units_ptr + (value + u)[:, None] * wide + rows[None, :], acc, mask=both)
        tl.debug_barrier()
    tl.store(total_ptr + rows, total, mask=mask)
    tl.store(logdet_ptr + rows, total.to(dtype), mask=mask)


class _Level(NamedTuple):
    """Units sorted by degree: inputs, hidden units or parameters."""

    numbers: list[int]
    degrees: list[int]

    def before(self, degree: int) -> int:
        """How many have a smaller degree."""
        return bisect.bisect_left(self.degrees, degree)


def _sorted(degrees: list[int], times: int, most: int) -> _Level:
    """``times`` units of each degree, without those above ``most``."""
    order = sorted(range(len(degrees)), key=degrees.__getitem__)
    order = [i for i in order if degrees[i] <= most]
    numbers = [i * times + k for i in order for k in range(times)]
    return _Level(numbers, [degrees[i] for i in order for _ in range(times)])


def _schedule(levels: list[_Level], parameters: int, width: int) -> tuple[list[list[int]], int]:
    """The jobs, and the row of the scratch where the parameters begin.

    A job is (hidden, first unit, row of the scratch, units, depth, place of the bias, units of the
    layer, row of the layer below), or (draw, feature, row of its inputs, 0, ...).
    """
    rows, weights = [0], [0]
    for level, above in itertools.pairwise(levels):
        rows.append(rows[-1] + len(level.numbers))
        weights.append(weights[-1] + (1 + len(level.numbers)) * len(above.numbers))
    last, jobs = len(levels) - 1, []

    def add(level: int, first: int, count: int, seen: int) -> None:
        task = _OUTPUTS if level == last else _HIDDEN
        value = rows[level] + (0 if level == last else first)
        if count > 0:
            jobs.append([task, first, value, count, seen, weights[level - 1],
                         len(levels[level].numbers), rows[level - 1]])  # fmt: skip

    def hidden(above: int | None, below: int) -> None:
        """Units of degrees in [above, below)."""
        for level in range(1, last):
            units = levels[level]
            begin = 0 if above is None else units.before(above)
            for degree in sorted(set(units.degrees[begin : units.before(below)])):
                first, end = units.before(degree), units.before(degree + 1)
                add(level, first, end - first, levels[level - 1].before(degree + 1))

    outputs = levels[last]
    steps = sorted(set(outputs.degrees))
    hidden(None, steps[0])
    for step, following in itertools.zip_longest(steps, steps[1:]):
        for first in range(outputs.before(step), outputs.before(step + 1), parameters):
            add(last, first, parameters, levels[last - 1].before(step))
            place = first // parameters
            jobs.append([_DRAW, outputs.numbers[first] // parameters, place * width, *[0] * 5])
        if following is not None:
            hidden(step, following)
    return jobs, rows[last]


class _Network:
    """A network ready to be drawn from: jobs, packed weights, and the scratch of all rows."""

    def __init__(
        self,
        noise: Tensor,
        weights: list[Tensor],
        biases: list[Tensor | None],
        degrees: list[Tensor],
        context: Tensor | None,
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
    ) -> None:
        self.noise = noise = noise.contiguous()
        n, d, _ = noise.shape
        parameters, width = weights[-1].shape[0] // d, max(levels, 1)
        own = [degree.tolist() for degree in degrees]
        most = max(own[0])
        sorted_levels = [
            _sorted(own[0], width, most),
            *(_sorted(degree, 1, most - 1) for degree in own[1:]),  # others are seen by nothing
            _sorted(own[0], parameters, most),
        ]
        jobs, self.params_row = _schedule(sorted_levels, parameters, width)
        self.ends = [i + 1 for i, job in enumerate(jobs) if job[0] == _DRAW]
        index = {"dtype": torch.int64, "device": noise.device}
        numbers = [torch.tensor(s.numbers, **index) for s in sorted_levels]
        packed = []
        for i, (weight, bias) in enumerate(zip(weights, biases)):
            columns, rows = numbers[i], numbers[i + 1]
            first = noise.new_zeros(weight.shape[0]) if bias is None else bias
            whole = weight.index_select(0, rows).index_select(1, columns)
            packed += [first.index_select(0, rows), whole.T.reshape(-1)]
        self.jobs, self.weights = torch.tensor(jobs, **index), torch.cat(packed)
        self.context = None
        if context is not None:
            self.context = context.index_select(1, numbers[1]).contiguous()
        self.stride = triton.cdiv(n, _ROWS) * _ROWS
        self.scratch = noise.new_empty((self.params_row + parameters, self.stride))
        self.total = noise.new_zeros((n,), dtype=torch.float64)
        constant = coupling._constant(scale_map, clamp, noise.dtype, noise.device)
        seen = torch.tensor(input_map, dtype=noise.dtype, device=noise.device)
        self.numbers = torch.cat((seen, constant))
        self.call = spline._call(
            spline.MAPS[spline_map], bins, parameters - 2 * bins, tuple(tails), tuple(box),
            tuple(options), inverse, noise.dtype, noise.device,
        )  # fmt: skip
        self.parameters, self.levels, self.bins = parameters, levels, bins
        self.constants = self.call.constants | {
            "MAP": spline_map if kind == _SPLINE else scale_map,
            "KIND": kind,
            "ACTIVATION": activation,
            "CONTEXT": context is not None,
            "BLOCK_M": triton.next_power_of_2(bins),
            "BLOCK_U": _UNITS,
            "BLOCK_N": _ROWS,
        }

    def run(
        self,
        first: int,
        last: int,
        known: Tensor | None,
        values: Tensor | None,
        x: Tensor,
        logdet: Tensor,
    ) -> None:
        """Jobs first .. last, after those before."""
        n, d, draws = self.noise.shape
        with on(self.noise):
            made_kernel[(triton.cdiv(n, _ROWS),)](
                self.jobs,
                self.weights,
                self.scratch,
                self.context,
                self.noise,
                known,
                values,
                self.numbers,
                self.call.sides,
                self.call.tails,
                self.call.options,
                x,
                self.total,
                logdet,
                n,
                first,
                last,
                self.stride,
                self.params_row,
                d,
                draws,
                self.parameters,
                0 if self.context is None else self.context.shape[1],
                self.levels,
                self.bins,
                KNOWN=known is not None,
                num_warps=_WARPS,
                enable_fp_fusion=True,
                **self.constants,
            )


def made_sample(
    noise: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    degrees: list[Tensor],
    context: Tensor | None,
    known: Tensor | None,
    values: Tensor | None,
    *how: Any,
) -> tuple[Tensor, Tensor]:
    """Draws (N, D) and log-determinants (N,): arguments as in the reference."""
    n, d, _ = noise.shape
    x, logdet = noise.new_empty((n, d)), noise.new_zeros((n,))
    if n == 0 or d == 0:
        return x, logdet
    network = _Network(noise, weights, biases, degrees, context, *how)
    if known is not None and values is not None:
        known, values = known.to(torch.int8).contiguous(), values.contiguous()
    network.run(0, network.ends[-1], known, values, x, logdet)
    return x, logdet


class MadeSteps:
    """A draw that goes feature by feature: a launch for each."""

    def __init__(
        self,
        x: Tensor,
        noise: Tensor,
        weights: list[Tensor],
        biases: list[Tensor | None],
        degrees: list[Tensor],
        context: Tensor | None,
        known: Tensor,
        values: Tensor,
        *how: Any,
    ) -> None:
        n, d, _ = noise.shape
        self.x, self.known, self.values = x, known, values
        self.logdet = noise.new_zeros((n,))
        self.parameters = noise.new_full((n, weights[-1].shape[0] // d), torch.nan)
        self._network, self._place = None, 0
        if n > 0:
            self._network = _Network(noise, weights, biases, degrees, context, *how)

    def step(self) -> None:
        """One feature further, in the order of degrees."""
        network, place = self._network, self._place
        self._place += 1
        if network is None:
            return
        first = 0 if place == 0 else network.ends[place - 1]
        known = self.known.to(torch.int8)
        network.run(first, network.ends[place], known, self.values, self.x, self.logdet)
        self.parameters = network.scratch[network.params_row :, : len(self.x)].T

    def copy(self) -> MadeSteps:
        """The same again, in tensors of its own."""
        other = copy.copy(self)
        for name in ("known", "values", "x", "logdet", "parameters"):
            setattr(other, name, getattr(self, name).clone())
        if self._network is not None:
            other._network = copy.copy(self._network)
            other._network.scratch = self._network.scratch.clone()
            other._network.total = self._network.total.clone()
        return other
