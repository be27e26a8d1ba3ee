"""hmmlearn's compiled recursions ("scaling", the faster ones), called for each sequence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from .harness import Output


def _filtered(hmmc, initial, transition, log_obs) -> Output:
    found = [hmmc.forward_scaling(initial, transition, np.exp(x)) for x in log_obs]
    return {
        "filtered": np.stack([forward for _, forward, _ in found]),
        "log_likelihood": np.array([total for total, _, _ in found]),
    }


def _posteriors(hmmc, initial, transition, log_obs) -> Output:
    posteriors, transitions, totals = [], np.zeros_like(transition), []
    for x in log_obs:
        density = np.exp(x)
        total, forward, scale = hmmc.forward_scaling(initial, transition, density)
        backward = hmmc.backward_scaling(initial, transition, density, scale)
        product = forward * backward
        posteriors.append(product / product.sum(1, keepdims=True))
        transitions += hmmc.compute_scaling_xi_sum(forward, transition, backward, density)
        totals.append(total)
    found = np.stack(posteriors), transitions, np.array(totals)
    return dict(zip(("posteriors", "transitions", "log_likelihood"), found, strict=True))


def _best_path(hmmc, initial, transition, log_obs) -> Output:
    with np.errstate(divide="ignore"):
        found = [hmmc.viterbi(initial, transition, x) for x in log_obs]
    return {
        "states": np.stack([states for _, states in found]),
        "log_prob": np.array([total for total, _ in found]),
    }


WORK = {"filter": _filtered, "posteriors": _posteriors, "Viterbi": _best_path}


def call(work: str, log_obs: Tensor, initial: Tensor, transition: Tensor) -> Callable[[], Output]:
    """``work`` on log-observations (B, T, K)."""

    def run() -> Output:
        from hmmlearn import _hmmc

        return WORK[work](_hmmc, *arguments)

    arguments = initial.numpy(), transition.numpy(), log_obs.numpy()
    return run
