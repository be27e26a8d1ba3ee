"""Random images and parameters, and how far a right answer may lie from the float64 reference.

The bounds are first-order forward error bounds of the formulas, so they follow the data and no test
needs a tolerance of its own.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from ops.comparison import assert_within
from torch import Tensor

import evidens
from evidens.reference import logistic_mixture as reference

DTYPES = (torch.float32, torch.float64)
CHANNELS = (1, 3)


@dataclasses.dataclass
class Mixture:
    x: Tensor
    params: Tensor
    levels: int = 256
    min_log_scale: float = -7.0

    @property
    def channels(self) -> int:
        return self.x.shape[1]

    @property
    def options(self) -> dict[str, Any]:
        return {"levels": self.levels, "min_log_scale": self.min_log_scale}

    def with_(self, **changes: Any) -> Mixture:
        return dataclasses.replace(self, **changes)

    def to(self, dtype: torch.dtype) -> Mixture:
        return self.with_(params=self.params.detach().to(dtype))


def mixture(
    n: int,
    channels: int,
    height: int,
    width: int,
    mixtures: int = 3,
    levels: int = 256,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    log_scale: float = -2.5,
    min_log_scale: float = -7.0,
) -> Mixture:
    """Means near the image and anywhere, scales from far below a bin to beyond the image.

    A third of the levels are the first or the last.
    """
    g = torch.Generator().manual_seed(seed + n + 100 * height + 10_000 * width + channels)
    kinds = 2 if channels == 1 else 3
    x = torch.randint(0, levels, (n, channels, height, width), generator=g)
    edge = torch.rand(x.shape, generator=g)
    x = torch.where(edge < 1 / 6, 0, torch.where(edge > 5 / 6, levels - 1, x))
    parts = torch.randn(
        n, channels, kinds, mixtures, height, width, generator=g, dtype=torch.float64
    )
    v = reference.value(x.double(), levels)[:, :, None]
    parts[:, :, 0, ::2] = v + 0.1 * parts[:, :, 0, ::2]
    parts[:, :, 1] = log_scale + 2 * parts[:, :, 1]
    logits = torch.randn(n, mixtures, height, width, generator=g, dtype=torch.float64)
    params = torch.cat((logits, parts.flatten(1, 3)), 1)
    return Mixture(x, params.to(dtype), levels, min_log_scale)


def run(case: Mixture, module: Any = evidens.ops) -> Tensor:
    return module.logistic_mixture_log_prob(case.x, case.params, **case.options)


def gradient(case: Mixture, grad: Tensor, module: Any = evidens.ops) -> Tensor:
    leaf = case.params.detach().requires_grad_()
    (found,) = torch.autograd.grad(run(case.with_(params=leaf), module), leaf, grad.to(leaf))
    return found


def bounds(case: Mixture, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of the log-probability and of the gradient."""
    # In float64 the reference rounds as well.
    eps = torch.finfo(case.params.dtype).eps * (2 if case.params.dtype is torch.float64 else 1)
    wide = case.params.double()
    x = case.x.double()
    v, terms = reference.value(x, case.levels), reference.split(wide, case.channels)
    means = reference._coupled_means(v, terms)
    s = terms.raw_log_scales.clamp(min=case.min_log_scale)
    mass, a, b = reference._log_masses(x, v, means, s, case.levels)
    inverse, q = torch.exp(-s), (b - a) / 2
    exponent = eps * (4 + s.abs())  # relative, of an exponential whose argument is rounded
    # A coupled mean is a sum, and its coefficients are rounded.
    size = v[:, :, None].abs() + terms.means.abs() + 4 * (case.channels > 1) + 1
    shift = inverse * eps * size + (a.abs() + b.abs()) * exponent
    open_left, open_right = (x == 0)[:, :, None], (x == case.levels - 1)[:, :, None]
    lower = torch.where(open_left, 0.0, torch.sigmoid(a))
    upper = torch.where(open_right, 0.0, torch.sigmoid(-b))
    inner = ~(open_left | open_right)
    by_width = torch.where(inner, 2 * q / torch.expm1((2 * q).clamp(min=1e-300)), 0.0)
    own = (lower - upper).abs() * shift + (lower + upper) * q * exponent + by_width * exponent
    own = (
        own + 0.25 * shift**2 + eps * (8 + mass.abs())
    )  # the second order matters beside steep bins
    logits = terms.logits.log_softmax(1)
    term = own.sum(1) + eps * (8 + (terms.logits - terms.logits.amax(1, keepdim=True)).abs())
    posterior = torch.softmax(logits + mass.sum(1), 1)
    value = (posterior * term).sum(1) + eps * (4 + mass.sum(1).amax(1).abs())
    if grad is None:
        return value, value
    g = grad.double()[:, None].abs()
    # A logistic function below this may be taken as 0.
    nothing = 2.0**-36 if case.params.dtype is torch.float32 else 2.0**-300
    relative = term + value[:, None] + 8 * eps
    # A share of nearly nothing may be taken as nothing.
    share, doubt = (posterior * g)[:, None], (posterior * g * relative + eps**2 * g)[:, None]
    slope = ((lower - upper) * inverse).abs()
    slope_doubt = inverse * (0.5 * shift + 8 * eps) + slope * exponent
    scale = (a * lower - b * upper - by_width).abs()
    bend = (a.abs() * lower * (1 - lower)).nan_to_num() + (b.abs() * upper * (1 - upper))
    scale_doubt = (
        (lower + upper + bend) * shift
        + 8 * eps * (a.abs() * lower + b.abs() * upper + by_width)
        + by_width * (1 + 2 * q) * exponent
        + (a.abs() + b.abs()) * nothing
        + shift**2
    )
    parts = [share * slope_doubt + doubt * slope, share * scale_doubt + doubt * scale]
    if (t := terms.coefficients) is not None:
        through = torch.stack((parts[0][:, 1], parts[0][:, 2], parts[0][:, 2]), 1)
        whole = torch.stack((slope[:, 1], slope[:, 2], slope[:, 2]), 1) * share
        parts.append(through * (1 - t * t) + 16 * eps * whole)
    rest = torch.stack(parts, 2).flatten(1, 3)
    prior = terms.logits.softmax(1)
    own = doubt[:, 0] + prior * g * 8 * eps * (1 + terms.logits.abs()) + eps**2 * g
    # The inverse of a scale is no smaller than a normal number.
    return value, torch.cat((own, rest), 1) * 1.5 + 8 * torch.finfo(case.params.dtype).tiny * g


def check(case: Mixture, given: Mixture | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Runs the op and its gradient (on `given`, otherwise laid out) and compares them."""
    given = given or case
    y = run(given)
    assert y.dtype is case.params.dtype
    assert y.is_contiguous()
    g = torch.Generator().manual_seed(seed)
    grad = torch.randn(y.shape, generator=g, dtype=torch.float64).to(y)
    found = gradient(given, grad)
    assert found.dtype is case.params.dtype
    wide = case.to(torch.float64)
    value, slope = bounds(case, grad)
    what = f"{case.params.dtype} {tuple(case.params.shape)} {case.levels}"
    assert_within(y, run(wide, reference), value, f"log_prob {what}")
    # The derivative that torch takes of expm1 is less precise than its own formula.
    want = reference.logistic_mixture_log_prob_backward(wide.x, wide.params, grad, **wide.options)
    assert_within(found, want, slope, f"gradient {what}")
    return y, found


def strided(t: Tensor, layout: str) -> Tensor:
    """The same values, laid out otherwise; what lies between them is NaN (or no level)."""
    n, p, h, w = t.shape
    nothing = math.nan if t.is_floating_point() else -1
    if layout == "contiguous":
        return t.contiguous()
    if layout == "planes":  # some of a wider tensor, at an odd address
        wide = t.new_full((n, p + 3, h, w), nothing)[:, 1 : p + 1]
    elif layout == "last":
        wide = t.new_full((n, h, w, p), nothing).permute(0, 3, 1, 2)
    elif layout == "wide last":  # some channels of a wider tensor, channels last
        wide = t.new_full((n, h, w, p + 5), nothing).permute(0, 3, 1, 2)[:, 2 : p + 2]
    elif layout == "window":  # of a larger image
        wide = t.new_full((n, p, h + 2, w + 3), nothing)[:, :, 1 : h + 1, 2 : w + 2]
    else:  # every other pixel, image on its side
        wide = t.new_full((n, p, 2 * w, h), nothing)[:, :, ::2].transpose(2, 3)
    assert wide.shape == t.shape
    return wide.copy_(t)


LAYOUTS = ("contiguous", "planes", "last", "wide last", "window", "turned")
