"""The inner ops of hidden Markov models: schemas, backends, gradient and shapes for tracing.

They take sequences in one form: ``log_obs`` (N, K), and of every sequence its first row
(``starts``), its ``lengths`` and its ``first_transition``, where a matrix varies.  The public ops
in ``hmm.py`` make it of both layouts and check their arguments.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from evidens.ops import _gmm_cpu as mixtures
from evidens.ops import _hmm_cpu as cpu
from evidens.ops import _registry
from evidens.ops._hmm_arguments import inside
from evidens.reference import hmm as reference
from evidens.reference.gmm import COVARIANCE_TYPES

__all__ = [
    "best_path",
    "draw_paths",
    "filtered",
    "gaussian",
    "log_likelihood",
    "owner",
    "posteriors",
    "times",
]


# --- backends ------------------------------------------------------------------------------------


def _triton(name: str) -> Any:
    def call(*args: Any) -> Any:
        kernels = importlib.import_module(f"evidens.kernels.{name[:3]}")  # gmm or hmm
        return getattr(kernels, name)(*args)

    return call


def _of_diagonals(function: Any) -> Any:
    """A mixture kernel of the CPU, which knows covariance types by number."""
    return lambda *args: function(*args[:-1], COVARIANCE_TYPES.index(args[-1]))


_gaussian_on_cpu = functools.partial(
    cpu.gaussian,
    in_parts=functools.partial(
        reference.hmm_gaussian_statistics,
        component_log_prob=_of_diagonals(mixtures.component_log_prob),
        log_likelihood=cpu.log_likelihood,
        posteriors=cpu.posteriors,
        best_path=cpu.best_path,
        moments=_of_diagonals(mixtures.moments),
    ),
)


# --- gradients -----------------------------------------------------------------------------------


def times(values: Tensor, factor: Tensor) -> Tensor:
    """``values`` (R, ...) times ``factor`` (R,); a factor of 0 gives 0, whatever the value."""
    factor = factor.reshape(-1, *(1,) * (values.ndim - 1))
    return (values * factor).masked_fill_(factor == 0, 0.0)


def owner(starts: Tensor, count: int) -> Tensor:
    """The sequence of each of ``count`` rows; of those that start at one row, the last."""
    rows = torch.arange(count, device=starts.device)
    return torch.searchsorted(starts.contiguous(), rows, right=True) - 1


def _log_likelihood_backward(
    needs: tuple[bool, ...],
    grads: Any,
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    first_transition: Tensor,
) -> tuple[Tensor | None, ...]:
    (g,) = grads
    g = g.to(log_obs.dtype)
    where = starts, lengths, first_transition
    given = log_obs, initial, transition, *where
    _, states, first, second = posteriors(*given, g, False, needs[2])
    gradients: list[Tensor | None] = [None] * 6
    if needs[0]:
        gradients[0] = times(states, g[owner(starts, log_obs.shape[0])])
    if needs[1]:
        each = times(first, g)
        shared = initial.ndim == 1
        gradients[1] = each.sum(0, dtype=torch.float64).to(each.dtype) if shared else each
    if needs[2]:
        if transition.ndim == 2:
            gradients[2] = second.to(transition.dtype)
        else:
            each = g[owner(first_transition, transition.shape[0])]
            gradients[2] = times(second, each)
    return tuple(gradients)


# --- the ops -------------------------------------------------------------------------------------

_SEQUENCES = (
    "Tensor initial, Tensor transition, Tensor starts, Tensor lengths, Tensor first_transition"
)


def _op(
    name: str,
    more: str,
    returns: str,
    on_cpu: Any,
    fake: Any,
    others: Any = lambda function: function,
    triton: Any = None,
    frames: str = "log_obs",
    **rest: Any,
) -> _registry.Op:
    return _registry.Op(
        "hmm",
        f"{name}(Tensor {frames}, {_SEQUENCES}{more}) -> {returns}",
        cpu=inside(name, on_cpu),
        reference=inside(name, others(getattr(reference, name))),
        triton=inside(name, others(triton or _triton(name))),
        fake=fake,
        waits=True,  # for the range of lengths, and for what must be computed again
        **rest,
    )


def _with_pairs(function: Any) -> Any:
    """Of a backend that always forms the derivative in the transitions: leaves it out if asked."""

    def call(*args: Any) -> Any:
        given, pairs = args[:8], args[8] if len(args) > 8 else True
        *rest, second = function(*given)
        return (*rest, second if pairs else second.new_empty((0, 0), dtype=torch.float64))

    return call


def _per_sequence(log_obs: Tensor, starts: Tensor) -> Tensor:
    return log_obs.new_empty((starts.shape[0],), dtype=torch.float64)


def _fake_posteriors(
    log_obs: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    first: Tensor,
    weight: Tensor | None,
    pairwise: bool,
    pairs: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (n, k), batch, new = log_obs.shape, starts.shape[0], log_obs.new_empty
    if not pairs:
        second = new((0, 0), dtype=torch.float64)
    elif transition.ndim == 3:
        second = new((transition.shape[0], k, k))
    elif pairwise:
        second = new((max(n - batch, 0), k, k))
    else:
        second = new((k, k), dtype=torch.float64)
    return _per_sequence(log_obs, starts), new((n, k)), new((batch, k)), second


def _fake_gaussian(
    x: Tensor,
    initial: Tensor,
    transition: Tensor,
    starts: Tensor,
    lengths: Tensor,
    first: Tensor,
    means: Tensor,
    precisions_cholesky: Tensor,
    weight: Tensor | None,
    task: str,
) -> tuple[Tensor, Tensor, Tensor]:
    (n, d), k, new = x.shape, means.shape[0], x.new_empty
    frames = new((0,))
    if task == "posteriors":
        frames = new((n, k))
    elif task == "viterbi":
        frames = new((n,), dtype=torch.int64)
    sums = k * (2 + k + 2 * d) if task == "statistics" else 0
    return _per_sequence(x, starts), frames, new((sums,), dtype=torch.float64)


log_likelihood = _op(
    "hmm_log_likelihood",
    "",
    "Tensor",
    cpu.log_likelihood,
    lambda x, pi, a, starts, lengths, first: x.new_empty((starts.shape[0],)),
    backward=_log_likelihood_backward,
)
posteriors = _op(
    "hmm_forward_backward",
    ", Tensor? weight, bool pairwise, bool pairs=True",
    "(Tensor, Tensor, Tensor, Tensor)",
    cpu.posteriors,
    _fake_posteriors,
    others=_with_pairs,
)
filtered = _op(
    "hmm_filter",
    "",
    "(Tensor, Tensor)",
    cpu.forward,
    lambda x, pi, a, starts, lengths, first: (_per_sequence(x, starts), x.new_empty(x.shape)),
)
best_path = _op(
    "hmm_viterbi",
    "",
    "(Tensor, Tensor)",
    cpu.best_path,
    lambda x, pi, a, starts, lengths, first: (
        x.new_empty((x.shape[0],), dtype=torch.int64),
        _per_sequence(x, starts),
    ),
)
draw_paths = _op(
    "hmm_sample_paths",
    ", int seed, int n",
    "Tensor",
    cpu.draw_paths,
    lambda x, pi, a, starts, lengths, first, seed, n: x.new_empty(
        (n, x.shape[0]), dtype=torch.int64
    ),
)
gaussian = _op(
    "hmm_gaussian_statistics",
    ", Tensor means, Tensor precisions_cholesky, Tensor? weight, str task",
    "(Tensor, Tensor, Tensor)",
    _gaussian_on_cpu,
    _fake_gaussian,
    triton=functools.partial(
        reference.hmm_gaussian_statistics,
        component_log_prob=_triton("gmm_component_log_prob"),
        log_likelihood=_triton("hmm_log_likelihood"),
        posteriors=_triton("hmm_forward_backward"),
        best_path=_triton("hmm_viterbi"),
        moments=_triton("gmm_moments"),
    ),
    frames="x",
)
