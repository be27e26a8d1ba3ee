"""The discretized logistic mixture as a PyTorch user writes it: the baseline, eager and compiled.

PixelCNN++'s own arithmetic: a difference of sigmoids, and the density where that is small.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _parts(params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (N, M, H, W), means, log scales and coefficients (N, 3, M, H, W)."""
    n, p, h, w = params.shape
    m = p // 10
    rest = params[:, m:].reshape(n, 3, 3, m, h, w)
    means, log_scales, coefficients = rest.unbind(2)
    return params[:, :m], means, log_scales.clamp(min=-7.0), torch.tanh(coefficients)


def log_prob(x: Tensor, params: Tensor) -> Tensor:
    """(N, H, W) nats, of 8-bit levels x (N, 3, H, W) and parameters (N, 10 M, H, W)."""
    logits, means, log_scales, t = _parts(params)
    v = (x / 127.5 - 1)[:, :, None].expand(means.shape)
    green = means[:, 1] + t[:, 0] * v[:, 0]
    blue = means[:, 2] + t[:, 1] * v[:, 0] + t[:, 2] * v[:, 1]
    centred = v - torch.stack((means[:, 0], green, blue), 1)
    inverse = torch.exp(-log_scales)
    plus, minus, middle = (inverse * (centred + by) for by in (1 / 255, -1 / 255, 0.0))
    mass = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = middle - log_scales - 2 * F.softplus(middle) - math.log(127.5)
    inner = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), density)
    last = torch.where(v > 0.999, -F.softplus(minus), inner)
    log = torch.where(v < -0.999, plus - F.softplus(plus), last)
    return torch.logsumexp(log.sum(1) + logits.log_softmax(1), 1)


def sample(params: Tensor) -> Tensor:
    """Levels (N, 3, H, W): a term by Gumbel noise, logistics by their inverse distribution."""
    logits, means, log_scales, t = _parts(params)
    chosen = (logits - (-torch.rand_like(logits).log()).log()).argmax(1)[:, None, None]
    index = chosen.expand(-1, 3, -1, -1, -1)
    mean, log_scale, t = (part.gather(2, index)[:, :, 0] for part in (means, log_scales, t))
    u = torch.rand_like(mean).clamp(1e-5, 1 - 1e-5)
    noise = log_scale.exp() * (u.log() - torch.log1p(-u))
    values: list[Tensor] = []
    for c, coefficients in enumerate(((), (0,), (1, 2))):
        here = mean[:, c] + noise[:, c]
        for j, coefficient in enumerate(coefficients):
            here = here + t[:, coefficient] * values[j]
        values.append(((here.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1)
    return ((torch.stack(values, 1) + 1) * 127.5).round()
