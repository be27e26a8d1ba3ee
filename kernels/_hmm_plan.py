"""What the launchers of the hidden Markov kernels share: arguments, block sizes, the launch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ._device import on

# Sequences from which a program takes a block of them: 16 for each of an H200's multiprocessors.
_DOT_SEQUENCES = 16 * 132
_DOT_BLOCK = 16  # the smallest number of rows of a product of matrices
# States between which such a product pays and its matrix or tile fits shared memory.
_DOT_STATES = (16, 256)
# Bytes of a matrix held in registers from frame to frame, and of a tile that is streamed.
_HELD_BYTES, _TILE_BYTES = 1 << 15, 1 << 15
_WARP_BYTES = 1 << 10  # of them for each warp
# Lanes that programs of few states fill with sequences.
_SMALL_LANES = 128


class Plan(NamedTuple):
    """How a recursion over the states is cut."""

    states: int  # K rounded up to a power of two
    sequences: int  # of a program
    tile: int  # rows of the matrix that are loaded together
    held: bool  # the whole matrix stays in registers
    dot: bool  # a block of sequences times the matrix is a product of matrices
    warps: int


class Problem(NamedTuple):
    """The arguments that every function shares."""

    log_obs: Tensor
    initial: Tensor
    transition: Tensor
    starts: Tensor
    lengths: Tensor
    first_transition: Tensor

    @property
    def states(self) -> int:
        return self.log_obs.shape[1]

    @property
    def varying(self) -> bool:
        return self.transition.dim() == 3

    @property
    def stride_initial(self) -> int:
        return self.states if self.initial.dim() == 2 else 0

    def backward_matrix(self) -> tuple[Tensor, int, int]:
        """The matrix, and its strides from the later and from the earlier state."""
        if self.varying:
            return self.transition, 1, self.states
        # So that lanes, which are earlier states, load neighbours.
        return self.transition.t().contiguous(), self.states, 1

    def empty(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.log_obs.new_empty(size, dtype=dtype or self.log_obs.dtype)

    def zeros(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.log_obs.new_zeros(size, dtype=dtype or self.log_obs.dtype)


def problem(*arguments: Tensor) -> Problem:
    return Problem(*(argument.contiguous() for argument in arguments))


def make_plan(p: Problem, paths: bool = False, steps: bool = False) -> Plan:
    """By shape alone; ``paths`` for maxima in float64, ``steps`` where all pairs are written."""
    k, batch = p.states, p.starts.shape[0]
    states = max(triton.next_power_of_2(k), 2)
    size = 8 if paths else p.log_obs.element_size()
    held = not p.varying and states * states * size <= _HELD_BYTES
    few, most = _DOT_STATES
    dot = not (p.varying or paths or steps) and few <= states <= most and batch >= _DOT_SEQUENCES
    # Triton 3.9 cannot compile the float64 product: it moves a mask into the operand's layout.
    dot = dot and p.log_obs.dtype == torch.float32
    sequences = _DOT_BLOCK if dot else max(_SMALL_LANES // states**2, 1)
    # Less where an operand's layout or what is written needs registers too.
    rows = _TILE_BYTES // (states * size) // (4 if dot or steps else 1)
    tile = states if held else max(min(states, rows), 16 if dot else 1)
    warps = min(max(tile * states * size // _WARP_BYTES, 1), 8)
    return Plan(states, sequences, tile, held, dot, max(warps, 4) if dot else warps)


def sequence_order(p: Problem, plan: Plan) -> Tensor:
    """The sequences; in blocks those of like length come together, and the longest first."""
    if plan.sequences > 1:
        return p.lengths.argsort(descending=True, stable=True)
    return torch.arange(p.lengths.shape[0], device=p.lengths.device)


def log_tiles(p: Problem) -> tuple[dict[str, int], int]:
    """Block sizes and warps of the recursions in logs."""
    states = max(triton.next_power_of_2(p.states), 2)
    tile = max(min(states, _TILE_BYTES // 2 // (states * 8)), 1)
    return {"BLOCK_K": states, "TILE": tile}, min(max(tile * states * 8 // _WARP_BYTES, 1), 8)


def launch(kernel, programs: int, warps: int, x: Tensor, *args, **constants) -> None:
    if not programs:  # nothing is marked, usually; then nothing is compiled either
        return
    # Triton launches on the current device, which need not be that of the tensors.
    with on(x):
        kernel[(programs,)](x, *args, **constants, num_warps=warps, enable_fp_fusion=True)
