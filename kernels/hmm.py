"""Hidden Markov model in Triton: the functions of `evidens.reference.hmm` on a GPU.

Names, signatures and results are those of the reference; log-densities, probabilities and weights
share one dtype (float32 or float64) and one device.  The kernels run in Triton's interpreter and
compile for sm_90; they have not yet run on a GPU.

How it is laid out.  A program takes one sequence or, where there are many, a block of sequences
of similar length, and goes over time in linear space, about the largest log-density of each frame
and normalised (`_hmm_linear`).  A shared matrix stays in registers as long as it fits, and is
streamed in tiles of rows beyond.  Derivatives in a shared matrix are one product over all frames,
by a number of programs that depends on the shape alone, each with a slice of a buffer.  What
linear space cannot hold is marked, the marks are read back once per call, and the sequences
concerned are computed again in logs and float64 (`_hmm_log`).  No float is added atomically, so
the same input gives the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import _hmm_linear, _hmm_log, _hmm_paths
from ._hmm_plan import Problem, launch, log_tiles, make_plan, problem, sequence_order
from .philox import _signed

# Programs that sums over pairs aim at, about two for each multiprocessor; and frames of a block.
_PAIR_PROGRAMS, _PAIR_ROWS = 256, 32
_DRAW_LANES = 1024  # draws times states of a program


class _Again(NamedTuple):
    """The sequences to be computed in logs."""

    order: Tensor  # (count,) int64
    scratch_start: Tensor  # (count,) int64: their first rows in scratch
    rows: int  # of scratch

    @property
    def count(self) -> int:
        return self.order.shape[0]


def hmm_log_likelihood(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    first_transition: Tensor,
) -> Tensor:
    """Log-likelihood of every sequence, (B,), dtype of log_obs."""
    p = problem(log_obs, initial, transition, starts, lengths, first_transition)
    log_likelihood, redo = _forward(p, None)
    _forward_again(p, _again(p, redo), log_likelihood, None, keep=False)
    return log_likelihood.to(log_obs.dtype)


def hmm_filter(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    first_transition: Tensor,
) -> tuple[Tensor, Tensor]:
    """``(log_likelihood, filtered)``: (B,) float64 and (N, K)."""
    p = problem(log_obs, initial, transition, starts, lengths, first_transition)
    filtered = p.zeros(*log_obs.shape)
    log_likelihood, redo = _forward(p, filtered)
    _forward_again(p, _again(p, redo), log_likelihood, filtered, keep=False)
    return log_likelihood, filtered


def hmm_forward_backward(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    first_transition: Tensor,
    weight: Tensor | None,
    pairwise: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(log_likelihood, posteriors, first, second)``, as in the reference."""
    p = problem(log_obs, initial, transition, starts, lengths, first_transition)
    weight = None if weight is None else weight.contiguous()
    (n, k), batch = log_obs.shape, starts.shape[0]
    steps = p.varying or pairwise
    filtered, posteriors = p.zeros(n, k), p.zeros(n, k)
    first = p.zeros(batch, k)
    # Read by the sums over pairs also where no frame is.
    scale, right = (None, None) if steps else (p.zeros(n), p.zeros(n, k))
    second = None
    if steps:
        second = p.zeros(transition.shape[0] if p.varying else max(n - batch, 0), k, k)
    log_likelihood, redo = _forward(p, filtered)
    plan = make_plan(p, steps=steps)
    matrix, *strides = p.backward_matrix()
    launch(
        _hmm_linear.backward_kernel,
        triton.cdiv(batch, plan.sequences),
        plan.warps,
        log_obs,
        p.initial,
        matrix,
        *p[3:],
        sequence_order(p, plan),
        weight,
        filtered,
        scale,
        right,
        posteriors,
        first,
        second,
        redo,
        batch,
        0 if second is None else second.shape[0],
        k,
        p.stride_initial,
        *strides,
        WEIGHTS=weight is not None,
        STEPS=steps,
        VARYING=p.varying,
        HELD=plan.held,
        DOT=plan.dot,
        BLOCK_B=plan.sequences,
        BLOCK_K=plan.states,
        TILE=plan.tile,
    )
    again = _again(p, redo)
    sums = _posteriors_again(p, again, log_likelihood, weight, posteriors, first, second)
    if second is None:
        if sums is not None:
            scale[_rows(p, again)] = 0.0
        second = _pair_sums(p, filtered, scale, right)
        if sums is not None:
            second += sums
    return log_likelihood, posteriors, first, second


def hmm_viterbi(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    first_transition: Tensor,
) -> tuple[Tensor, Tensor]:
    """``(states, log_prob)``: (N,) int64 and (B,) float64."""
    p = problem(log_obs, initial, transition, starts, lengths, first_transition)
    n, batch = log_obs.shape[0], starts.shape[0]
    plan = make_plan(p, paths=True)
    matrix = p.transition if p.varying else p.transition.double().log()
    scores = p.empty(n, p.states, dtype=torch.float64)
    log_prob = p.empty(batch, dtype=torch.float64)
    states = p.zeros(n, dtype=torch.int64).fill_(-1)
    order = sequence_order(p, plan)
    programs = triton.cdiv(batch, plan.sequences)
    blocks = {"VARYING": p.varying, "BLOCK_B": plan.sequences, "BLOCK_K": plan.states}
    launch(
        _hmm_paths.score_kernel,
        programs,
        plan.warps,
        log_obs,
        p.initial,
        matrix,
        *p[3:],
        order,
        scores,
        log_prob,
        batch,
        p.states,
        p.stride_initial,
        HELD=plan.held,
        TILE=plan.tile,
        **blocks,
    )
    launch(
        _hmm_paths.trace_kernel,
        programs,
        plan.warps,
        matrix,
        *p[3:],
        order,
        scores,
        log_prob,
        states,
        batch,
        p.states,
        **blocks,
    )
    return states, log_prob


def hmm_sample_paths(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    first_transition: Tensor,
    seed: int,
    n: int,
) -> Tensor:
    """``n`` paths from the posterior of paths, (n, N) int64."""
    p = problem(log_obs, initial, transition, starts, lengths, first_transition)
    filtered = p.zeros(*log_obs.shape)
    log_likelihood, redo = _forward(p, filtered)
    again = _again(p, redo)
    alpha = _forward_again(p, again, log_likelihood, None, keep=True)
    states = p.zeros(n, log_obs.shape[0], dtype=torch.int64).fill_(-1)
    everything = torch.arange(starts.shape[0], device=log_obs.device)
    # The second pass overwrites what the first one drew for the sequences in logs.
    for logs, order, rows, first_rows in (
        (False, everything, filtered, starts),
        (True, again.order, alpha, again.scratch_start),
    ):
        plan = make_plan(p)
        block = max(1, min(triton.next_power_of_2(max(n, 1)), _DRAW_LANES // plan.states))
        launch(
            _hmm_paths.draw_kernel,
            order.shape[0] * triton.cdiv(n, block),
            max(1, min(8, block * plan.states // 128)),
            rows,
            p.transition,
            *p[3:],
            order,
            first_rows,
            log_likelihood,
            states,
            log_obs.shape[0],
            p.states,
            _signed(seed, 64),
            n,
            LOGS=logs,
            VARYING=p.varying,
            BLOCK_S=block,
            BLOCK_K=plan.states,
        )
    return states


def _forward(p: Problem, filtered: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(log_likelihood, redo)``, and the filter where asked for."""
    batch, plan = p.starts.shape[0], make_plan(p)
    log_likelihood = p.empty(batch, dtype=torch.float64)
    redo = p.zeros(batch, dtype=torch.int32)
    positive = torch.where(p.transition > 0, p.transition, 1.0).flatten()
    least = torch.nn.functional.pad(positive, (0, 1), value=1.0).amin(0, keepdim=True)
    launch(
        _hmm_linear.forward_kernel,
        triton.cdiv(batch, plan.sequences),
        plan.warps,
        p.log_obs,
        p.initial,
        p.transition,
        *p[3:],
        sequence_order(p, plan),
        log_likelihood,
        filtered,
        redo,
        least,
        batch,
        p.states,
        p.stride_initial,
        p.states,
        1,
        STORE=filtered is not None,
        VARYING=p.varying,
        HELD=plan.held,
        DOT=plan.dot,
        BLOCK_B=plan.sequences,
        BLOCK_K=plan.states,
        TILE=plan.tile,
    )
    return log_likelihood, redo


def _marked(redo: Tensor) -> Tensor:
    """The sequences that are marked; waits for the GPU."""
    return redo.nonzero()[:, 0]


def _again(p: Problem, redo: Tensor) -> _Again:
    order = _marked(redo)
    lengths = p.lengths[order]
    ends = lengths.cumsum(0)
    return _Again(order, ends - lengths, int(ends[-1]) if order.shape[0] else 0)


def _rows(p: Problem, again: _Again) -> Tensor:
    """Rows of the frames of these sequences, in the order of scratch."""
    shift = p.starts[again.order] - again.scratch_start
    shift = shift.repeat_interleave(p.lengths[again.order], output_size=again.rows)
    return shift + torch.arange(again.rows, device=shift.device)


def _forward_again(
    p: Problem, again: _Again, log_likelihood: Tensor, filtered: Tensor | None, keep: bool
) -> Tensor | None:
    """The filter of the marked sequences; its logs (rows, K) where they are to be kept."""
    alpha = p.empty(again.rows, p.states, dtype=torch.float64) if keep else None
    blocks, warps = log_tiles(p)
    launch(
        _hmm_log.forward_kernel,
        again.count,
        warps,
        p.log_obs,
        p.initial,
        p.transition,
        *p[3:],
        again.order,
        again.scratch_start,
        log_likelihood,
        filtered,
        alpha,
        p.states,
        p.stride_initial,
        p.states,
        1,
        STORE=filtered is not None,
        KEEP=keep,
        VARYING=p.varying,
        **blocks,
    )
    return alpha


def _posteriors_again(
    p: Problem,
    again: _Again,
    log_likelihood: Tensor,
    weight: Tensor | None,
    posteriors: Tensor,
    first: Tensor,
    second: Tensor | None,
) -> Tensor | None:
    """All results of the marked sequences; what they add to the sum over pairs, where asked for."""
    if not again.count:
        return None
    k, steps = p.states, second is not None
    alpha = _forward_again(p, again, log_likelihood, None, keep=True)
    norm = p.empty(again.rows, dtype=torch.float64)
    right = p.empty(again.rows, k, dtype=torch.float64)
    matrix, *strides = p.backward_matrix()
    blocks, warps = log_tiles(p)
    launch(
        _hmm_log.backward_kernel,
        again.count,
        warps,
        p.log_obs,
        p.initial,
        matrix,
        *p[3:],
        again.order,
        again.scratch_start,
        log_likelihood,
        alpha,
        norm,
        right,
        posteriors,
        first,
        k,
        p.stride_initial,
        *strides,
        MOST=torch.finfo(first.dtype).max,
        VARYING=p.varying,
        **blocks,
    )
    block = min(blocks["BLOCK_K"], 32)
    tiles = triton.cdiv(k, block) ** 2
    programs = again.count if steps else min(again.count, triton.cdiv(_PAIR_PROGRAMS, tiles))
    out = second if steps else p.zeros(programs, k, k, dtype=torch.float64)
    launch(
        _hmm_log.pairs_kernel,
        programs * tiles,
        4 if block > 16 else 1,
        p.lengths,
        p.first_transition,
        again.order,
        again.scratch_start,
        log_likelihood,
        weight,
        alpha,
        norm,
        right,
        out,
        again.count,
        programs,
        second.shape[0] if steps else 0,
        k,
        # A sum of a few of the largest must not be infinite.
        MOST=torch.finfo(first.dtype).max if steps else 1e300,
        WEIGHTS=weight is not None,
        STEPS=steps,
        BLOCK_K=block,
    )
    return None if steps else out.sum(0)


def _pair_sums(p: Problem, left: Tensor, scale: Tensor, right: Tensor) -> Tensor:
    """``sum_n scale_n left_n(i) right_n+1(j)``, (K, K) float64."""
    n, k = left.shape
    block = min(max(triton.next_power_of_2(k), 16), 64)
    tiles = triton.cdiv(k, block) ** 2
    programs = min(triton.cdiv(_PAIR_PROGRAMS, tiles), triton.cdiv(n, _PAIR_ROWS))
    sums = p.zeros(max(programs, 1), k, k, dtype=torch.float64)
    launch(
        _hmm_linear.pair_sums_kernel,
        programs * tiles,
        max(block // 16, 1) * 2,
        left,
        scale,
        right,
        sums,
        n,
        k,
        programs,
        BLOCK_N=_PAIR_ROWS,
        BLOCK_K=block,
    )
    return sums.sum(0)
