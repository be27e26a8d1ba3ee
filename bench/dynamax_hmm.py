"""dynamax's inference, mapped over sequences and compiled, on the CPU."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from .harness import Output

DYNAMAX = "dynamax"


@functools.cache
def _library() -> SimpleNamespace:
    # XLA sizes its pool by this when the first array is made, and never again.
    os.environ.setdefault("NPROC", str(torch.get_num_threads()))
    import jax
    from dynamax.hidden_markov_model import inference

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    return SimpleNamespace(jax=jax, inference=inference)


def _filtered(lib: SimpleNamespace, initial, transition, log_obs):
    post = lib.jax.vmap(lib.inference.hmm_filter, (None, None, 0))(initial, transition, log_obs)
    return {"filtered": post.filtered_probs, "log_likelihood": post.marginal_loglik}


def _likelihood(lib: SimpleNamespace, initial, transition, log_obs):
    post = lib.jax.vmap(lib.inference.hmm_filter, (None, None, 0))(initial, transition, log_obs)
    return {"log_likelihood": post.marginal_loglik}


def _posteriors(lib: SimpleNamespace, initial, transition, log_obs):
    post = lib.jax.vmap(lib.inference.hmm_smoother, (None, None, 0))(initial, transition, log_obs)
    return {
        "posteriors": post.smoothed_probs,
        "transitions": post.trans_probs.sum(0),
        "log_likelihood": post.marginal_loglik,
    }


def _best_path(lib: SimpleNamespace, initial, transition, log_obs):
    mode = lib.jax.vmap(lib.inference.hmm_posterior_mode, (None, None, 0))
    return {"states": mode(initial, transition, log_obs)}


WORK = {
    "filter": _filtered,
    "likelihood": _likelihood,
    "posteriors": _posteriors,
    "Viterbi": _best_path,
}


def call(work: str, log_obs: Tensor, initial: Tensor, transition: Tensor) -> Callable[[], Output]:
    """A call of ``work`` on these tensors; the first one imports, copies and compiles."""

    @functools.cache
    def compiled():
        lib = _library()
        arrays = [lib.jax.numpy.asarray(a.numpy()) for a in (initial, transition, log_obs)]
        return lib.jax, lib.jax.jit(functools.partial(WORK[work], lib)), arrays

    def run() -> Output:
        jax, function, arrays = compiled()
        found = jax.block_until_ready(function(*arrays))
        return {name: np.asarray(value) for name, value in found.items()}

    return run
