"""Run hmmlearn's own tests with evidens' classes and ops in the place of its own.

Writes ``{node id: outcome}`` as JSON to the file that is given as the only argument.  The classes
of ``hmmlearn.hmm``, the base class and the monitor are replaced, and the functions of its extension
module by what `evidens.ops` gives; all other names stay hmmlearn's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hmmlearn
import hmmlearn._hmmc
import hmmlearn.base
import hmmlearn.hmm
import numpy as np
import torch
from suites import Record, run

import evidens.hmm
from evidens import ops

CLASSES = ("CategoricalHMM", "GMMHMM", "GaussianHMM", "MultinomialHMM", "PoissonHMM")
FILES = (
    "test_base",
    "test_gaussian_hmm",
    "test_categorical_hmm",
    "test_multinomial_hmm",
    "test_poisson_hmm",
    "test_gmm_hmm",
    "test_gmm_hmm_new",
    "test_gmm_hmm_multisequence",
)


def tensors(*arrays):
    return [torch.from_numpy(np.array(a, dtype=np.float64)) for a in arrays]


def forward(start, transmat, log_obs):
    """Filtered probabilities (T, K) and the log of each frame's normaliser (T,)."""
    start, transmat, log_obs = tensors(start, transmat, log_obs)
    filtered = ops.hmm_filter(log_obs, start, transmat).filtered
    before = torch.cat([start[None], filtered[:-1] @ transmat])
    return filtered, torch.logsumexp(before.log() + log_obs, 1)


def backward(transmat, log_obs):
    """Log-likelihood of the frames after t from state i, (T, K)."""
    transmat, log_obs = tensors(transmat, log_obs)
    n, k = log_obs.shape
    result = torch.zeros(n, k, dtype=torch.float64)
    for t in range(n - 1):
        rest = log_obs[t + 1 :].expand(k, -1, -1)
        result[t] = ops.hmm_log_likelihood(rest, transmat, transmat)
    return result


def forward_log(start, transmat, log_obs):
    filtered, scale = forward(start, transmat, log_obs)
    return float(scale.sum()), (filtered.log() + scale.cumsum(0)[:, None]).numpy()


def forward_scaling(start, transmat, obs):
    filtered, scale = forward(start, transmat, np.log(obs))
    return float(scale.sum()), filtered.numpy(), (-scale).exp().numpy()


def backward_log(start, transmat, log_obs):
    return backward(transmat, log_obs).numpy()


def backward_scaling(start, transmat, obs, scaling):
    (scaling,) = tensors(scaling)
    after = scaling.log().flip(0).cumsum(0).flip(0)
    return (backward(transmat, np.log(obs)) + after[:, None]).exp().numpy()


def compute_log_xi_sum(fwd, transmat, bwd, log_obs):
    fwd, transmat, log_obs = tensors(fwd, transmat, log_obs)
    start = (fwd[0] - log_obs[0]).exp()
    return ops.hmm_forward_backward(log_obs, start, transmat).transitions.log().numpy()


def compute_scaling_xi_sum(fwd, transmat, bwd, obs):
    fwd, transmat, obs = tensors(fwd, transmat, obs)
    start = fwd[0] / obs[0]  # up to a factor, which expected transitions do not have
    return ops.hmm_forward_backward(obs.log(), start, transmat).transitions.numpy()


def viterbi(start, transmat, log_obs):
    start, transmat, log_obs = tensors(start, transmat, log_obs)
    path = ops.hmm_viterbi(log_obs, start, transmat)
    return float(path.log_prob), path.states.numpy()


KERNELS = (
    forward_log,
    forward_scaling,
    backward_log,
    backward_scaling,
    compute_log_xi_sum,
    compute_scaling_xi_sum,
    viterbi,
)


if __name__ == "__main__":
    for name in CLASSES:
        setattr(hmmlearn.hmm, name, getattr(evidens.hmm, name))
    hmmlearn.base.BaseHMM = evidens.hmm.BaseHMM
    hmmlearn.base.ConvergenceMonitor = evidens.hmm.ConvergenceMonitor
    for function in KERNELS:
        setattr(hmmlearn._hmmc, function.__name__, function)
    folder = Path(hmmlearn.__file__).parent / "tests"
    files = [str(folder / f"{name}.py") for name in FILES]
    # Not our settings, under which a test of theirs that passes against expectation would fail.
    plain = ("-c", os.devnull, "-p", "no:warnings")
    run([*files, *plain], Record("/"), sys.argv[1])
