"""The hidden Markov model as a PyTorch user writes it: the baseline, not the oracle.

`log_likelihood` is the textbook loop in log space, which autograd can go back through.  The others
stay in linear space with a scale per frame: a matrix product per step, the most that a loop in
Python can give.  All take ``log_obs`` (B, T, K), ``initial`` (K,) and ``transition`` (K, K).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .harness import Output
from .hmm_data import Parameters

COVARS_PRIOR = 1e-2  # what hmmlearn adds to the sums of squares by default


def log_likelihood(log_obs: Tensor, initial: Tensor, transition: Tensor) -> Tensor:
    """Log-likelihood (B,) by log-sum-exp over (B, K, K) at every step."""
    log_transition = transition.log()
    alpha = initial.log() + log_obs[:, 0]
    for t in range(1, log_obs.shape[1]):
        alpha = torch.logsumexp(alpha[:, :, None] + log_transition, dim=1) + log_obs[:, t]
    return torch.logsumexp(alpha, dim=1)


def scaled_log_likelihood(log_obs: Tensor, initial: Tensor, transition: Tensor) -> Tensor:
    """Log-likelihood (B,) by one matrix product and one scale per step."""
    shift = log_obs.detach().amax(-1, keepdim=True)
    density = (log_obs - shift).exp()
    alpha = initial * density[:, 0]
    total = shift.sum((1, 2))
    for t in range(1, log_obs.shape[1]):
        scale = alpha.sum(1, keepdim=True)
        total = total + scale.log()[:, 0]
        alpha = (alpha / scale) @ transition * density[:, t]
    return total + alpha.sum(1).log()


def _forward(
    log_obs: Tensor, initial: Tensor, transition: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shifted densities and filtered probabilities (B, T, K), scales (B, T), log-likelihood."""
    shift = log_obs.amax(-1, keepdim=True)
    density = (log_obs - shift).exp()
    filtered, scales = torch.empty_like(density), torch.empty_like(density[:, :, 0])
    alpha = initial * density[:, 0]
    for t in range(log_obs.shape[1]):
        if t:
            alpha = filtered[:, t - 1] @ transition * density[:, t]
        scales[:, t] = alpha.sum(1)
        torch.div(alpha, scales[:, t, None], out=filtered[:, t])
    return density, filtered, scales, shift.sum((1, 2)) + scales.log().sum(1)


def filtered(log_obs: Tensor, initial: Tensor, transition: Tensor) -> Output:
    """Filtered probabilities (B, T, K) and the log-likelihood (B,)."""
    _, probabilities, _, total = _forward(log_obs, initial, transition)
    return {"filtered": probabilities, "log_likelihood": total}


def posteriors(log_obs: Tensor, initial: Tensor, transition: Tensor) -> Output:
    """Posteriors (B, T, K), summed expected transitions (K, K), log-likelihood (B,)."""
    density, alpha, scales, total = _forward(log_obs, initial, transition)
    density /= scales[:, :, None]
    beta = torch.ones_like(alpha)
    for t in range(log_obs.shape[1] - 1, 0, -1):
        density[:, t] *= beta[:, t]
        torch.mm(density[:, t], transition.T, out=beta[:, t - 1])
    k = len(initial)
    pairs = alpha[:, :-1].reshape(-1, k).T @ density[:, 1:].reshape(-1, k)
    return {
        "posteriors": alpha.mul_(beta),
        "transitions": pairs * transition,
        "log_likelihood": total,
    }


def best_path(log_obs: Tensor, initial: Tensor, transition: Tensor) -> Output:
    """Viterbi: states (B, T) and their log-probability (B,)."""
    steps = log_obs.shape[1]
    log_transition = transition.T.log().contiguous()  # to j from i, so that i lies along rows
    best = initial.log() + log_obs[:, 0]
    back = []
    for t in range(1, steps):
        best, index = (best[:, None, :] + log_transition).max(2)
        best = best + log_obs[:, t]
        back.append(index)
    log_prob, state = best.max(1)
    states = log_obs.new_empty(log_obs.shape[:2], dtype=torch.int64)
    states[:, -1] = state
    for t in range(steps - 2, -1, -1):
        state = back[t].gather(1, state[:, None])[:, 0]
        states[:, t] = state
    return {"states": states, "log_prob": log_prob}


def fit(x: Tensor, batch: int, start: Parameters, iterations: int) -> Output:
    """EM of a diagonal Gaussian model on sequences of equal length, as hmmlearn defines it."""
    initial, transition, means, covars = (torch.from_numpy(a) for a in start)
    constant = x.shape[1] * math.log(2 * math.pi)
    square = x.square()
    history = []
    for _ in range(iterations):
        precision = 1 / covars
        distance = square @ precision.T - 2 * (x @ (means * precision).T)
        offset = (means.square() * precision + covars.log()).sum(1) + constant
        log_obs = -0.5 * (distance + offset)
        log_obs = log_obs.reshape(batch, -1, len(means))
        found = posteriors(log_obs, initial, transition)
        history.append(found["log_likelihood"].sum())
        p = found["posteriors"]
        initial = p[:, 0].sum(0) / p[:, 0].sum()
        transition = found["transitions"] / found["transitions"].sum(1, keepdim=True)
        p = p.reshape(len(x), -1)
        mass = p.sum(0)[:, None]
        means = p.T @ x / mass
        covars = (p.T @ square - means.square() * mass + COVARS_PRIOR) / mass
    covars = torch.diag_embed(covars)
    output = dict(zip(("startprob_", "transmat_", "means_"), (initial, transition, means)))
    return {**output, "covars_": covars, "log_likelihood": torch.stack(history)}
