"""Restricted Boltzmann machines: Gibbs chains, free energy, statistics of the gradient.

Shape letters: ``N`` rows, ``V`` visible units, ``J`` hidden units, ``L`` levels of a softmax group,
``D = V / L`` groups.  With ``weight`` W (J, V), ``visible_bias`` b (V,), ``hidden_bias`` c (J,):

    E(v, h) = -b.v - c.h - h W v

=============  ===============================  ==================================================
``visible``    values of a unit                 conditional law, with a = b + W^T h
=============  ===============================  ==================================================
``bernoulli``  0, 1                             P(1) = sigmoid(beta a)
``spin``       -1, 1                            P(1) = sigmoid(2 beta a)
``softmax``    L units of which one is 1        P(l) = softmax(beta a) over the L units of a group
``gaussian``   real; variance s^2 = exp         mean a, variance s^2 / beta
               (``log_variance`` (V,))
=============  ===============================  ==================================================

``hidden`` is ``bernoulli`` or ``spin``, with c + W v in place of a.  Gaussian units have the energy
``sum (v - b)^2 / (2 s^2) - c.h - h W (v / s^2)``, so hidden units see c + W (v / s^2) (Cho, Ilin,
Raiko, Improved learning of Gaussian-Bernoulli restricted Boltzmann machines, 2011, eq. 1-4).
``beta`` (N,) is the inverse temperature of each row and multiplies the whole energy.

Source: Hinton, Training products of experts by minimizing contrastive divergence, 2002; Tieleman,
Training restricted Boltzmann machines using approximations to the likelihood gradient, 2008.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evidens.reference.philox import philox_uniform

VISIBLE = ("bernoulli", "spin", "gaussian", "softmax")
HIDDEN = ("bernoulli", "spin")


# --- conditional laws ----------------------------------------------------------------------------


def hidden_field(
    v: Tensor, weight: Tensor, hidden_bias: Tensor, log_variance: Tensor | None = None
) -> Tensor:
    """Inputs c + W v (N, J) of the hidden units; c + W (v / s^2) of Gaussian units."""
    if log_variance is not None:
        v = v * torch.exp(-log_variance)
    return F.linear(v, weight, hidden_bias)


def visible_field(h: Tensor, weight: Tensor, visible_bias: Tensor) -> Tensor:
    """Inputs b + W^T h (N, V) of the visible units."""
    return F.linear(h, weight.T, visible_bias)


def means(field: Tensor, kind: str, beta: Tensor | None = None, levels: int = 0) -> Tensor:
    """Means of the units whose inputs are ``field``."""
    if kind == "gaussian":
        return field
    x = field if beta is None else field * beta[:, None]
    if kind == "bernoulli":
        return torch.sigmoid(x)
    if kind == "spin":
        return torch.tanh(x)
    return x.unflatten(1, (-1, levels)).softmax(-1).flatten(1)


def standard_normal(
    seed: int, step: int, rows: int, columns: int, dtype: torch.dtype, row0: int, device: object
) -> Tensor:
    """Normals (rows, columns) by Box and Muller.

    Columns 2k and 2k + 1 are r cos(t) and r sin(t) with r = sqrt(-2 log(1 - u)), t = 2 pi w of the
    Philox uniforms u, w of these two columns.
    """
    whole = columns + columns % 2
    u = philox_uniform(seed, step, rows, whole, dtype, row0, device).double()  # type: ignore[arg-type]
    r = torch.sqrt(-2 * torch.log1p(-u[:, ::2]))
    angle = 2 * math.pi * u[:, 1::2]
    pairs = torch.stack((r * angle.cos(), r * angle.sin()), -1)
    return pairs.flatten(1)[:, :columns].to(dtype)


def draw(
    field: Tensor,
    kind: str,
    seed: int,
    step: int,
    row0: int,
    beta: Tensor | None = None,
    log_variance: Tensor | None = None,
    levels: int = 0,
) -> Tensor:
    """States drawn from the conditional law of the units whose inputs are ``field``."""
    (rows, columns), dtype, device = field.shape, field.dtype, field.device
    if kind == "gaussian":
        assert log_variance is not None
        z = standard_normal(seed, step, rows, columns, dtype, row0, device)
        scale = torch.exp(0.5 * log_variance)
        return field + z * (scale if beta is None else scale / beta.sqrt()[:, None])
    if kind == "softmax":
        u = philox_uniform(seed, step, rows, columns // levels, dtype, row0, device)
        x = field if beta is None else field * beta[:, None]
        x = x.unflatten(1, (-1, levels))
        weights = torch.exp(x - x.amax(-1, keepdim=True))
        sums = weights.cumsum(-1)
        limit = u * sums[..., -1]
        level = (sums <= limit[..., None]).sum(-1).clamp(max=levels - 1)
        one_hot = F.one_hot(level, levels).to(dtype)
        return (one_hot + 0 * limit[..., None]).flatten(1)  # NaN where there is no distribution
    x = field if beta is None else field * beta[:, None]
    p = torch.sigmoid(2 * x if kind == "spin" else x)
    u = philox_uniform(seed, step, rows, columns, dtype, row0, device)
    off = -1.0 if kind == "spin" else 0.0
    return torch.where(p.isnan(), p, torch.where(u < p, 1.0, off).to(dtype))


# --- the ops -------------------------------------------------------------------------------------


def rbm_gibbs(
    state: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    log_variance: Tensor | None,
    beta: Tensor | None,
    clamped: Tensor | None,
    values: Tensor | None,
    visible: str,
    hidden: str,
    levels: int,
    start: str,
    steps: int,
    means_too: bool,
    seed: int,
    row0: int,
    step0: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States (N, V), (N, J) after ``steps`` block Gibbs steps, and the means they were drawn from.

    Args:
        state: (N, V) visible states, or (N, J) hidden ones where ``start`` is ``"hidden"``.
        log_variance: (V,) for Gaussian visible units, else None.
        beta: (N,) or None for 1.
        clamped: bool (N, V) or None: visible units that keep ``values``.
        values: (N, V), read where ``clamped``.
        means_too: else the last two results have no rows.
        seed, row0, step0: half step t of the call takes Philox step ``2 (step0 + t)`` for hidden
            units and one more for visible ones, rows from ``row0``.
    """
    v = h = state
    v_mean = h_mean = state
    for t in range(step0, step0 + steps):
        for units in "vh" if start == "hidden" else "hv":
            if units == "h":
                field = hidden_field(v, weight, hidden_bias, log_variance)
                h = draw(field, hidden, seed, 2 * t, row0, beta)
                h_mean = means(field, hidden, beta)
            else:
                field = visible_field(h, weight, visible_bias)
                v = draw(field, visible, seed, 2 * t + 1, row0, beta, log_variance, levels)
                v_mean = means(field, visible, beta, levels)
                if clamped is not None and values is not None:
                    v = torch.where(clamped, values, v)
                    v_mean = torch.where(clamped, values, v_mean)
    if not means_too:
        v_mean, h_mean = v_mean[:0], h_mean[:0]
    return v, h, v_mean.clone(), h_mean.clone()


def _own(v: Tensor, bias: Tensor) -> Tensor:
    """``-b.v`` (N,), where a unit that is off for good takes no part."""
    return -(v * torch.where((v == 0) & bias.isinf(), 0.0, bias)).sum(1)


def rbm_free_energy(
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    log_variance: Tensor | None,
    beta: Tensor | None,
    visible: str,
    hidden: str,
) -> Tensor:
    """``-log sum_h exp(-beta E(v, h))`` (N,), nats."""
    field = hidden_field(v, weight, hidden_bias, log_variance)
    if visible == "gaussian":
        assert log_variance is not None
        own = 0.5 * ((v - visible_bias).square() * torch.exp(-log_variance)).sum(1)
    else:
        own = _own(v, visible_bias)
    if beta is not None:
        field, own = field * beta[:, None], own * beta
    # torch leaves softplus for its argument from 20 on, which would show in float64.
    if hidden == "spin":
        return own - (F.softplus(2 * field, threshold=80) - field).sum(1)
    return own - F.softplus(field, threshold=80).sum(1)


def rbm_free_energy_backward(
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    log_variance: Tensor | None,
    beta: Tensor | None,
    grad: Tensor,
    visible: str,
    hidden: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of ``grad . rbm_free_energy`` in its tensors."""
    field = hidden_field(v, weight, hidden_bias, log_variance)
    mean = means(field, hidden, beta)
    g = grad if beta is None else grad * beta
    pulled = -g[:, None] * mean
    seen, grad_v = v, pulled @ weight
    grad_log_variance = None
    if log_variance is not None:
        precision = torch.exp(-log_variance)
        away = v - visible_bias
        seen = v * precision
        quadratic = g[:, None] * away
        grad_log_variance = -precision * (0.5 * quadratic * away + grad_v * v).sum(0)
        grad_v = (grad_v + quadratic) * precision
        grad_visible = -precision * quadratic.sum(0)
        own = 0.5 * (away.square() * precision).sum(1)
    else:
        grad_v = grad_v - g[:, None] * visible_bias
        grad_visible = -(g @ v)
        own = _own(v, visible_bias)
    grad_beta = None
    if beta is not None:
        # A hidden unit that is off for good has a field of -inf and takes no part.
        part = torch.where(mean == 0, 0.0, mean * field)
        grad_beta = grad * (own - part.sum(1))
    return grad_v, pulled.T @ seen, grad_visible, pulled.sum(0), grad_log_variance, grad_beta


def signed_weights(
    v: Tensor, sample_weight: Tensor | None, minus_v: Tensor | None, minus_weight: Tensor | None
) -> Tensor | None:
    """Weights of the rows, then minus those of the rows that are taken off; None for 1."""
    if minus_v is None:
        return sample_weight
    plus = v.new_ones(v.shape[0]) if sample_weight is None else sample_weight
    minus = v.new_ones(minus_v.shape[0]) if minus_weight is None else minus_weight
    return torch.cat((plus, -minus))


def rbm_statistics(
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    log_variance: Tensor | None,
    h_mean: Tensor | None,
    sample_weight: Tensor | None,
    minus_v: Tensor | None,
    minus_h: Tensor | None,
    minus_weight: Tensor | None,
    hidden: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sums over rows of ``-dE / d parameter``, hidden units at their means.

    Args:
        h_mean: (N, J) or None: they are computed.
        sample_weight: (N,) or None for 1.
        minus_v, minus_h: (M, V), (M, J) or None: rows whose sums are taken off.
        minus_weight: (M,) or None for 1.

    Returns:
        weight (J, V), visible (V,), hidden (J,), means (N, J), log_variance (V,), which is empty
        without ``log_variance``.
    """
    if h_mean is None:
        h_mean = means(hidden_field(v, weight, hidden_bias, log_variance), hidden)
    else:
        h_mean = h_mean.clone()
    counts, h = signed_weights(v, sample_weight, minus_v, minus_weight), h_mean
    if minus_v is not None and minus_h is not None:
        v, h = torch.cat((v, minus_v)), torch.cat((h, minus_h))
    counted = h if counts is None else h * counts[:, None]
    ones = v.new_ones(v.shape[0]) if counts is None else counts
    if log_variance is None:
        return counted.T @ v, ones @ v, counted.sum(0), h_mean, v.new_zeros(0)
    precision, away = torch.exp(-log_variance), v - visible_bias
    product = (counted.T @ v) * precision
    spread = 0.5 * precision * (ones @ away.square()) - (weight * product).sum(0)
    return product, precision * (ones @ away), counted.sum(0), h_mean, spread


def rbm_pcd(
    v: Tensor,
    h: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    log_variance: Tensor | None,
    sample_weight: Tensor | None,
    minus_weight: Tensor | None,
    visible: str,
    hidden: str,
    levels: int,
    steps: int,
    seed: int,
    row0: int,
    step0: int,
    *,
    gibbs: Any = rbm_gibbs,
    statistics: Any = rbm_statistics,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Statistics of the rows less those of chains after ``steps`` steps from h, and the chains.

    Another backend that has no kernel for all of it passes its own two parts.
    """
    machine = weight, visible_bias, hidden_bias, log_variance
    given, kinds = (None, None, None), (visible, hidden, levels)
    minus_v, chains, _, minus_h = gibbs(
        h, *machine, *given, *kinds, "hidden", steps, True, seed, row0, step0
    )
    minus = minus_v, minus_h, minus_weight
    return *statistics(v, *machine, None, sample_weight, *minus, hidden), chains
