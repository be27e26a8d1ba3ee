"""The hidden Markov model ops on CPU tensors: addresses and strides for ``evidens._C``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evidens._native import address, empty, library

__all__ = [
    "best_path",
    "draw_paths",
    "forward",
    "gaussian",
    "gaussian_call",
    "log_likelihood",
    "posteriors",
]

# The tasks of csrc/hmm.h, in its order.
_LOG_LIKELIHOOD, _FORWARD, _POSTERIORS, _BEST_PATH, _DRAW_PATHS = range(5)

# log_obs, initial, transition, starts, lengths, and where the transitions of each sequence begin.
_Where = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _run(
    task: int,
    where: _Where,
    *,
    weight: Tensor | None = None,
    posteriors: Tensor | None = None,
    first: Tensor | None = None,
    second: Tensor | None = None,
    per_step: bool = False,
    paths: Tensor | None = None,
    draws: int = 0,
    seed: int = 0,
) -> Tensor:
    """Calls the kernel, which fills every result; the log-likelihoods (B,) float64."""
    log_obs, initial, transition, starts, lengths, first_step = where
    n, k = log_obs.shape
    total = log_obs.new_empty((starts.shape[0],), dtype=torch.float64)
    if starts.shape[0] == 0:  # nor do its tensors have addresses
        return total
    library.hmm(
        task,
        log_obs.dtype is torch.float64,
        n,
        starts.shape[0],
        k,
        log_obs.data_ptr(),
        starts.data_ptr(),
        lengths.data_ptr(),
        initial.data_ptr(),
        k if initial.ndim == 2 else 0,
        transition.data_ptr(),
        first_step.data_ptr() if transition.ndim == 3 else 0,
        first_step.data_ptr() if per_step else 0,
        address(weight),
        total.data_ptr(),
        address(posteriors),
        address(first),
        address(second),
        address(paths),
        draws,
        seed & 0xFFFFFFFFFFFFFFFF,
    )
    return total


def log_likelihood(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    at: Tensor,
) -> Tensor:
    where = log_obs, initial, transition, starts, lengths, at
    return _run(_LOG_LIKELIHOOD, where).to(log_obs.dtype)


def forward(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    at: Tensor,
) -> tuple[Tensor, Tensor]:
    where = log_obs, initial, transition, starts, lengths, at
    filtered = empty(log_obs, log_obs.shape)
    return _run(_FORWARD, where, posteriors=filtered), filtered


def posteriors(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    at: Tensor,
    weight: Tensor | None,
    pairwise: bool,
    pairs: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    k = log_obs.shape[1]
    per_step = pairs and (pairwise or transition.ndim == 3)
    result = empty(log_obs, log_obs.shape)
    first = log_obs.new_empty((starts.shape[0], k))
    if not pairs:
        second = log_obs.new_empty((0, 0), dtype=torch.float64)
    elif transition.ndim == 3:
        second = torch.zeros_like(transition)
    elif pairwise:
        second = log_obs.new_zeros((max(log_obs.shape[0] - starts.shape[0], 0), k, k))
    else:
        second = log_obs.new_zeros((k, k), dtype=torch.float64)
    total = _run(
        _POSTERIORS,
        (log_obs, initial, transition, starts, lengths, at),
        weight=None if weight is None else weight.contiguous(),
        posteriors=result,
        first=first,
        second=second if pairs else None,
        per_step=per_step,
    )
    return total, result, first, second


def best_path(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    at: Tensor,
) -> tuple[Tensor, Tensor]:
    where = log_obs, initial, transition, starts, lengths, at
    states = log_obs.new_empty((log_obs.shape[0],), dtype=torch.int64)
    return states, _run(_BEST_PATH, where, paths=states)


def draw_paths(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    at: Tensor,
    seed: int,
    n: int,
) -> Tensor:
    where = log_obs, initial, transition, starts, lengths, at
    states = log_obs.new_empty((n, log_obs.shape[0]), dtype=torch.int64)
    scratch = empty(log_obs, log_obs.shape)
    _run(_DRAW_PATHS, where, posteriors=scratch, paths=states, draws=n, seed=seed)
    return states


_TASKS = {
    "log_likelihood": _LOG_LIKELIHOOD,
    "posteriors": _POSTERIORS,
    "statistics": _POSTERIORS,
    "viterbi": _BEST_PATH,
}


def gaussian_call(
    task: str,
    x: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    means: Tensor,
    p: Tensor,
    weight: Tensor | None,
    total: Tensor,
    frames: Tensor,
    sums: Tensor,
) -> tuple[Any, ...]:
    """What ``library.hmm_gaussian`` takes for contiguous tensors, the last three its results."""
    (n, d), k = x.shape, means.shape[0]
    return (
        _TASKS[task],
        x.dtype is torch.float64,
        starts.shape[0],
        k,
        d,
        x.data_ptr(),
        starts.data_ptr(),
        lengths.data_ptr(),
        initial.data_ptr(),
        k if initial.ndim == 2 else 0,
        transition.data_ptr(),
        means.data_ptr(),
        p.data_ptr(),
        address(weight),
        n,
        total.data_ptr(),
        frames.data_ptr() if task == "posteriors" else 0,
        frames.data_ptr() if task == "viterbi" else 0,
        sums.data_ptr() if task == "statistics" else 0,
    )


def gaussian(
    x: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    at: Tensor,
    means: Tensor,
    p: Tensor,
    weight: Tensor | None,
    task: str,
    *,
    in_parts: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass; ``in_parts`` does what it cannot, all sequences or those that it lost."""
    (n, d), k, batch = x.shape, means.shape[0], starts.shape[0]
    given = x, initial, transition, starts, lengths, at, means, p, weight, task
    if batch == 0:
        return in_parts(*given)
    total = torch.empty(batch, dtype=torch.float64, device="cpu")
    size = k * (2 + k + 2 * d) if task == "statistics" else 0
    sums = torch.empty(size, dtype=torch.float64, device="cpu")
    if task == "posteriors":
        frames = empty(x, (n, k))
    elif task == "viterbi":
        frames = torch.empty(n, dtype=torch.int64, device="cpu")
    else:
        frames = torch.empty(0, dtype=x.dtype, device="cpu")
    call = gaussian_call(
        task, x, initial, transition, starts, lengths, means, p, weight, total, frames, sums
    )
    lost = library.hmm_gaussian(*call)
    if len(lost) == batch:
        return in_parts(*given)
    if lost:
        index = torch.tensor(lost, device="cpu")
        own = lengths[index]
        first = own.cumsum(0) - own
        rows = torch.arange(int(own.sum()), device="cpu") + (
            starts[index] - first
        ).repeat_interleave(own)
        some = in_parts(
            x[rows],
            initial if initial.ndim == 1 else initial[index],
            transition,
            first,
            own,
            first,
            means,
            p,
            None if weight is None else weight[index],
            task,
        )
        total[index] = some[0]
        if len(frames):
            frames[rows] = some[1]
        sums += some[2]
    return total, frames, sums
