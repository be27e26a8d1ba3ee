"""The discretized mixture of logistics of PixelCNN++, in plain torch.

Shape letters: ``N`` rows (images), ``C`` channels (1 or 3), ``H W`` image, ``M`` mixture terms.
``x`` (N, C, H, W) holds levels ``0 .. levels - 1``; level k stands for the value
``v = 2 k / (levels - 1) - 1`` and for the bin of half width ``h = 1 / (levels - 1)`` around it,
the first and the last bin being open to their side.

``params`` (N, P, H, W) is a network's output: M logits, then for every channel M means and M log
scales, and for three channels M coefficients as well: P = 3 M for one channel, 10 M for three.  A
term's channels are independent but for their means, which the coefficients couple: with
``t = tanh(coefficients)`` and the values ``r, g`` of the channels before, red has ``mean_0``, green
``mean_1 + t_0 r`` and blue ``mean_2 + t_1 r + t_2 g``.

Source: Salimans, Karpathy, Chen, Kingma, PixelCNN++ (2017), section 2.1 and 2.2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from evidens.reference.philox import philox_uniform


class Terms(NamedTuple):
    """Parameters by their meaning; axis 1 is the channel, axis 2 the term."""

    logits: Tensor  # (N, M, H, W)
    means: Tensor  # (N, C, M, H, W), before coupling
    raw_log_scales: Tensor  # (N, C, M, H, W), before clamping
    coefficients: Tensor | None  # (N, 3, M, H, W), after tanh; None for one channel


def split(params: Tensor, channels: int) -> Terms:
    """The parts of ``params``, as views but for the coefficients."""
    n, p, *image = params.shape
    kinds = 2 if channels == 1 else 3
    m = p // (1 + kinds * channels)
    rest = params[:, m:].reshape(n, channels, kinds, m, *image)
    coefficients = torch.tanh(rest[:, :, 2]) if kinds == 3 else None
    return Terms(params[:, :m], rest[:, :, 0], rest[:, :, 1], coefficients)


def value(level: Tensor, levels: int) -> Tensor:
    """Where a level lies in [-1, 1]."""
    return (2 * level - (levels - 1)) / (levels - 1)


def _coupled_means(v: Tensor, terms: Terms) -> Tensor:
    t = terms.coefficients
    if t is None:
        return terms.means
    r, g = v[:, 0, None], v[:, 1, None]
    red, green, blue = terms.means.unbind(1)
    return torch.stack((red, green + t[:, 0] * r, blue + t[:, 1] * r + t[:, 2] * g), 1)


def _log_masses(
    x: Tensor, v: Tensor, means: Tensor, log_scales: Tensor, levels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the mass of the bin of ``x`` under each logistic, (N, C, M, H, W), and its ends.

    Between the ends ``a < b`` of an inner bin, in units of the scale, the mass is
    ``sigmoid(b) - sigmoid(a) = (1 - exp(a - b)) sigmoid(b) sigmoid(-a)``: a product, so nothing
    cancels and nothing underflows.  The first bin has no ``a``, the last no ``b``.
    """
    x, v = x[:, :, None], v[:, :, None]
    inverse_scales = torch.exp(-log_scales)
    a = inverse_scales * (v - means - 1 / (levels - 1))
    b = inverse_scales * (v - means + 1 / (levels - 1))
    width = inverse_scales * (2 / (levels - 1))
    # Of a width that is nothing beside 1, the logarithm is known without the width.
    least = torch.finfo(v.dtype).eps / 2
    log_width = torch.where(
        width < least,
        math.log(2 / (levels - 1)) - log_scales,
        torch.log(-torch.expm1(-width.clamp(min=least))),
    )
    inner = log_width + logsigmoid(b) + logsigmoid(-a)
    mass = torch.where(x == 0, logsigmoid(b), torch.where(x == levels - 1, logsigmoid(-a), inner))
    valid = (x >= 0) & (x <= levels - 1) & (x == x.round())
    return torch.where(valid, mass, math.nan), a, b


def logistic_mixture_log_prob(
    x: Tensor, params: Tensor, *, levels: int = 256, min_log_scale: float = -7.0
) -> Tensor:
    """``log p(x)`` of every pixel, all its channels together: (N, H, W), nats, dtype of ``params``.

    Log scales below ``min_log_scale`` count as that.  What is no level gives NaN.
    """
    x = x.to(params.dtype)
    v, terms = value(x, levels), split(params, x.shape[1])
    log_scales = terms.raw_log_scales.clamp(min=min_log_scale)
    masses, _, _ = _log_masses(x, v, _coupled_means(v, terms), log_scales, levels)
    return torch.logsumexp(terms.logits.log_softmax(1) + masses.sum(1), 1)


def logistic_mixture_log_prob_backward(
    x: Tensor, params: Tensor, grad: Tensor, *, levels: int = 256, min_log_scale: float = -7.0
) -> Tensor:
    """Gradient of ``(grad * log_prob).sum()`` in ``params``, for ``grad`` (N, H, W)."""
    x = x.to(params.dtype)
    v, terms = value(x, levels), split(params, x.shape[1])
    log_scales = terms.raw_log_scales.clamp(min=min_log_scale)
    masses, a, b = _log_masses(x, v, _coupled_means(v, terms), log_scales, levels)
    prior = terms.logits.softmax(1)
    posterior = torch.softmax(terms.logits.log_softmax(1) + masses.sum(1), 1)
    grad = grad[:, None]
    share = (posterior * grad)[:, None]
    # An open end has no slope.
    upper = torch.where(x == levels - 1, 0.0, 1.0)[:, :, None] * torch.sigmoid(-b)
    lower = torch.where(x == 0, 0.0, 1.0)[:, :, None] * torch.sigmoid(a)
    inner = ((x > 0) & (x < levels - 1))[:, :, None]
    width = b - a
    by_width = torch.where(inner, width / torch.expm1(width.clamp(min=1e-300)), 0.0)
    by_width = torch.where(width > 0, by_width, inner.to(v.dtype))
    means = share * (lower - upper) * torch.exp(-log_scales)
    scales = share * (a * lower - b * upper - by_width)
    scales = torch.where(terms.raw_log_scales >= min_log_scale, scales, 0.0)
    parts = [means, scales]
    if (t := terms.coefficients) is not None:
        r, g = v[:, 0, None], v[:, 1, None]
        through = torch.stack((means[:, 1] * r, means[:, 2] * r, means[:, 2] * g), 1)
        parts.append(through * (1 - t * t))
    rest = torch.stack(parts, 2).flatten(1, 3)
    return torch.cat(((posterior - prior) * grad, rest), 1)


def logistic_mixture_sample(
    params: Tensor,
    *,
    channels: int,
    levels: int = 256,
    min_log_scale: float = -7.0,
    seed: int,
    row0: int = 0,
    step0: int = 0,
) -> Tensor:
    """A draw of every pixel: (N, C, H, W) int64, -1 where a parameter is not a number.

    Computed in float64 from Philox uniforms of that type: pixel ``i`` of row ``n`` has the step
    ``step0 + i`` and the row ``row0 + n``; column 0 chooses the term by its cumulative weight,
    column 1 + c is the logistic's inverse distribution function of channel c.
    """
    n, _, height, width = params.shape
    terms = split(params.double(), channels)
    m = terms.logits.shape[1]
    u = params.new_zeros((n, 1 + channels, height * width), dtype=torch.float64)
    for i in range(height * width):
        u[:, :, i] = philox_uniform(
            seed, step0 + i, n, 1 + channels, torch.float64, row0, params.device
        )
    u = u.view(n, 1 + channels, height, width)
    weights = torch.exp(terms.logits - terms.logits.amax(1, keepdim=True))
    total = weights.cumsum(1)
    chosen = (total <= u[:, :1] * total[:, -1:]).sum(1, keepdim=True).clamp(max=m - 1)
    drawn: list[Tensor] = []
    bad = total[:, -1].isnan()
    for c in range(channels):
        mean = terms.means[:, c].gather(1, chosen)[:, 0]
        log_scale = terms.raw_log_scales[:, c].gather(1, chosen)[:, 0].clamp(min=min_log_scale)
        if (t := terms.coefficients) is not None:
            for j, coefficient in enumerate(((), (0,), (1, 2))[c]):
                mean = mean + t[:, coefficient].gather(1, chosen)[:, 0] * value(drawn[j], levels)
        own = u[:, 1 + c]
        v = mean + torch.exp(log_scale) * (own.log() - (1 - own).log())  # 1 - own is exact
        level = torch.floor((v + 1) * ((levels - 1) / 2) + 0.5).clamp(0, levels - 1)
        bad = bad | level.isnan()
        drawn.append(level)
    return torch.where(bad[:, None], -1, torch.stack(drawn, 1).nan_to_num(0)).long()
