"""Partition functions of restricted Boltzmann machines, in plain torch.

Shape letters: ``V`` visible and ``J`` hidden units, ``L`` levels of a softmax group, ``N`` chains,
``K`` rungs.  ``weight`` is W (J, V), ``visible_bias`` b (V,), ``hidden_bias`` c (J,); the energies
are those of `evidens.reference.rbm`, and Z is the sum (integral) of ``exp(-E)`` over all states.

Every kind of unit is one of three in other coordinates: a spin is ``2 u - 1`` of a Bernoulli unit
u, and a Gaussian unit is its standard deviation times one of variance 1.  `reduced` changes the
coordinates; what it changes in Z is a constant.  The rest of this file knows hidden Bernoulli units
and, by ``levels``, visible ones: 0 Gaussian of variance 1, 1 Bernoulli, L >= 2 softmax groups.

Source: Neal, Annealed importance sampling, 2001; Salakhutdinov and Murray, On the quantitative
analysis of deep belief networks, 2008, section 4.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evidens.reference.philox import philox_uniform
from evidens.reference.rbm import draw

GAUSSIAN, BERNOULLI = 0, 1  # values of ``levels``

_BLOCK = 12  # bits of a block of enumerated states


class Reduced(NamedTuple):
    """A machine in other coordinates, in float64: ``log Z`` is that of the machine + constant."""

    weight: Tensor  # (J, V)
    visible_bias: Tensor  # (V,)
    hidden_bias: Tensor  # (J,)
    base_bias: Tensor  # (V,) of the model without hidden units from which annealing starts
    constant: Tensor  # 0-d, nats


def reduced(
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    base_bias: Tensor,
    log_variance: Tensor | None,
    *,
    visible: str,
    hidden: str,
) -> Reduced:
    """The machine with hidden Bernoulli units and no spins, Gaussian units of variance 1."""
    w, b, c, a = (t.double() for t in (weight, visible_bias, hidden_bias, base_bias))
    constant = w.new_zeros(())
    if visible == "gaussian":
        assert log_variance is not None
        scale = torch.exp(0.5 * log_variance.double())
        w, b, a = w / scale, b / scale, a / scale
        # Counted from b: an offset of the visible units is none of the energy.
        w, b, c, a = w, b * 0, c + w @ b, a - b
        constant = constant + 0.5 * log_variance.double().sum()
    if hidden == "spin":  # h W v + c.h = 2 u W v + 2 c.u - 1 W v - 1.c for h = 2 u - 1
        pull = w.sum(0)
        constant = constant - c.sum()
        if visible == "gaussian":  # the square is completed
            constant = constant + (pull * (0.5 * pull - b)).sum()
        w, b, c = 2 * w, b - pull, 2 * c
    if visible == "spin":
        constant = constant - b.sum()
        w, b, c, a = 2 * w, 2 * b, c - w.sum(1), 2 * a
    return Reduced(w, b, c, a, constant)


# --- annealed importance sampling ----------------------------------------------------------------


def base_log_partition(base_bias: Tensor, hidden: int, levels: int) -> Tensor:
    """The log Z of the base model, whose ``hidden`` units see nothing: 0-d float64."""
    a = base_bias.double()
    if levels == GAUSSIAN:
        own = 0.5 * math.log(2 * math.pi) * torch.ones_like(a).sum()
    elif levels == BERNOULLI:
        own = softplus(a).sum()
    else:
        own = a.unflatten(0, (-1, levels)).logsumexp(1).sum()
    return own + hidden * math.log(2)


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``; torch's own leaves it for x from 20 on unless told."""
    return F.softplus(x, threshold=80)


def _drawn(field: Tensor, levels: int, seed: int, step: int, row0: int) -> Tensor:
    if levels == GAUSSIAN:
        unit = field.new_zeros(field.shape[1])
        return draw(field, "gaussian", seed, step, row0, log_variance=unit)
    kind = "bernoulli" if levels == BERNOULLI else "softmax"
    return draw(field, kind, seed, step, row0, levels=levels)


def rbm_ais(
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    base_bias: Tensor,
    betas: Tensor,
    chains: int,
    levels: int,
    seed: int,
    row0: int,
) -> Tensor:
    """Log-weights (N,) float64, less the base model's log Z: one annealed run a chain.

    The path is ``p_beta(v) ~ exp((1 - beta) f(v; a) + beta f(v; b)) prod_j (1 + exp(beta x_j))``
    with ``x = c + W v``, the base bias a, and ``f(v; a) = a.v`` or, of Gaussian units,
    ``-|v - a|^2 / 2``.  Rung k = 1 .. K adds ``log p_k(v) - log p_(k-1)(v)`` and moves v by one
    Gibbs step of ``p_k``; x serves the weight and the hidden draw.  Hidden units of rung k take the
    Philox step 2 k, visible ones 2 k + 1; the draw from the base model has the step 1.
    """
    beta = betas.tolist()
    linear = visible_bias.double() - base_bias.double()
    middle = (visible_bias.double() + base_bias.double()) / 2 if levels == GAUSSIAN else 0.0
    v = _drawn(base_bias.expand(chains, -1), levels, seed, 1, row0)
    log_weights = betas.new_zeros(chains, dtype=torch.float64)
    for k in range(1, len(beta)):
        field = F.linear(v, weight, hidden_bias)
        x = field.double()
        gain = (softplus(beta[k] * x) - softplus(beta[k - 1] * x)).sum(1)
        log_weights += gain + (beta[k] - beta[k - 1]) * ((v.double() - middle) @ linear)
        if k + 1 == len(beta):
            break
        u = philox_uniform(seed, 2 * k, chains, weight.shape[0], weight.dtype, row0, weight.device)
        p = torch.sigmoid(beta[k] * field)
        h = torch.where(p.isnan(), p, (u < p).to(p))
        bias = (1 - beta[k]) * base_bias + beta[k] * visible_bias
        v = _drawn(bias + beta[k] * (h @ weight), levels, seed, 2 * k + 1, row0)
    return log_weights


# --- enumeration ---------------------------------------------------------------------------------


def rbm_exact_log_partition(
    weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, levels: int
) -> Tensor:
    """The log Z, 0-d float64: visible units summed out for every one of the 2^J hidden states."""
    w, b, c = (t.double() for t in (weight, visible_bias, hidden_bias))
    units = w.shape[0]
    bit = torch.arange(units, device=w.device)
    total = w.new_full((), -math.inf)
    for first in range(0, 1 << units, 1 << _BLOCK):
        state = torch.arange(first, min(first + (1 << _BLOCK), 1 << units), device=w.device)
        h = (state[:, None] >> bit & 1).double()
        total = torch.logaddexp(total, (_summed_out(b + h @ w, b, levels) + h @ c).logsumexp(0))
    return total


def _summed_out(field: Tensor, bias: Tensor, levels: int) -> Tensor:
    """The log of the sum over visible states for each row of their inputs (N, V)."""
    if levels == GAUSSIAN:
        gain = 0.5 * (field.square() - bias.square()).sum(1)
        return gain + 0.5 * math.log(2 * math.pi) * bias.shape[0]
    if levels == BERNOULLI:
        return softplus(field).sum(1)
    return field.unflatten(1, (-1, levels)).logsumexp(2).sum(1)
