"""The sequences that hidden Markov models are timed on, and the models that are timed."""

from __future__ import annotations

import bisect
import functools
import logging
import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .harness import OURS, Output

# By its faster implementation ("scaling"), and by its default.
HMMLEARN, HMMLEARN_LOG = "hmmlearn", "hmmlearn log"
NAMES = ("startprob_", "transmat_", "means_", "covars_")


class Parameters(NamedTuple):
    """A Gaussian model with diagonal covariances, float64."""

    startprob: np.ndarray  # (K,)
    transmat: np.ndarray  # (K, K), rows sum to 1
    means: np.ndarray  # (K, D)
    covars: np.ndarray  # (K, D)


def _paths(p: Parameters, b: int, t: int, rng: np.random.Generator) -> np.ndarray:
    """States (B * T,) of b sequences of t frames."""
    first = np.cumsum(p.startprob)[:-1].tolist()
    rows = np.cumsum(p.transmat, axis=1)[:, :-1].tolist()
    states = []
    for uniforms in rng.random((b, t)).tolist():
        bounds = first
        for u in uniforms:
            state = bisect.bisect(bounds, u)
            states.append(state)
            bounds = rows[state]
    return np.array(states)


@functools.lru_cache(maxsize=1)
def sequences(b: int, t: int, d: int, k: int) -> tuple[np.ndarray, list[int], Parameters]:
    """Frames (B * T, D), the lengths of the sequences, and a start near the truth.

    States stay with probability 0.5 or so and overlap, so that the posteriors are far from
    one-hot.  No transition is rarer than 1e-5: dynamax takes predictions below 1e-8 for zero.
    """
    rng = np.random.default_rng(20)
    leaves = rng.gamma(1.0, size=(k, k)) + 0.05
    transmat = 0.5 * np.eye(k) + 0.5 * leaves / leaves.sum(1, keepdims=True)
    # In one dimension the states stand in a row, in more they lie about.
    spread = 1.0 if d > 1 else k / 4
    means = rng.standard_normal((k, d)) * (3.0 * spread / math.sqrt(2 * d))
    covars = rng.uniform(0.5, 1.5, (k, d))
    truth = Parameters(np.full(k, 1 / k), transmat, means, covars)
    states = _paths(truth, b, t, rng)
    x = rng.standard_normal((b * t, d)) * np.sqrt(covars)[states] + means[states]
    guess = means + rng.standard_normal((k, d)) * (0.3 / math.sqrt(d))
    even = np.full((k, k), 1 / k)
    start = Parameters(np.full(k, 1 / k), 0.5 * transmat + 0.5 * even, guess, np.ones((k, d)))
    return x, [t] * b, start


def gaussian_log_obs(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Log-densities (N, K) of frames (N, D); no array (N, K, D) is held."""
    out = np.empty((len(x), len(p.means)))
    constant = x.shape[1] * math.log(2 * math.pi)
    for k, (mean, covar) in enumerate(zip(p.means, p.covars, strict=True)):
        square = ((x - mean) ** 2 / covar).sum(1)
        out[:, k] = -0.5 * (constant + np.log(covar).sum() + square)
    return out


@functools.lru_cache(maxsize=1)
def log_observations(
    b: int, t: int, d: int, k: int, dtype: str = "float64"
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-observations (B, T, K), initial (K,) and transition (K, K), as the ops take them."""
    x, _, start = sequences(b, t, d, k)
    arrays = gaussian_log_obs(x, start).reshape(b, t, k), start.startprob, start.transmat
    return tuple(torch.from_numpy(a.astype(dtype)) for a in arrays)


def gaussian_hmm(provider: str, start: Parameters, n_iter: int = 1):
    """A `GaussianHMM` of a provider that begins at ``start`` and makes all of its iterations."""
    if provider == OURS:
        from evidens import GaussianHMM
    else:
        from hmmlearn.hmm import GaussianHMM

        # That it did not converge, or has few frames at smoke size, is the point.
        logging.getLogger("hmmlearn").setLevel(logging.ERROR)
    model = GaussianHMM(
        len(start.means),
        covariance_type="diag",
        init_params="",
        n_iter=n_iter,
        tol=-math.inf,
        implementation="log" if provider == HMMLEARN_LOG else "scaling",
    )
    for name, value in zip(NAMES, start, strict=True):
        setattr(model, name, value.copy())
    return model


def fitted(provider: str, start: Parameters, x: np.ndarray, lengths: list[int], n: int) -> Output:
    """The parameters after ``n`` iterations, and the log-likelihood before each of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = gaussian_hmm(provider, start, n).fit(x, lengths)
    if model.monitor_.iter != n:
        raise RuntimeError(f"{provider} stopped after {model.monitor_.iter} of {n} iterations")
    output = {name: np.asarray(getattr(model, name)) for name in NAMES}
    return {**output, "log_likelihood": np.array(model.monitor_.history)}
