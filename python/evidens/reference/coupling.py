"""Affine coupling, ActNorm and the LU-parametrised linear layer, in plain torch.

Shape letters: ``N`` rows, ``D`` features or ``C`` channels, ``A`` active ones, ``*S`` any number
of spatial axes, also none.  All return ``(y, logdet)`` of the direction taken, ``logdet`` (N,) in
nats.

Sources: Dinh, Sohl-Dickstein, Bengio, Density estimation using Real NVP (2017), eq. 4-8; Kingma,
Dhariwal, Glow (2018), table 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

SCALE_MAPS = ("exp", "exp_clamped", "sigmoid", "softplus", "tanh", "atan", "bounded_exp")
# What `clamp` is by default: a bound of the log-scale, an offset, a factor, the least slope.
DEFAULT_CLAMP = {
    "exp_clamped": 5.0,
    "sigmoid": 1e-3,
    "softplus": 1e-3,
    "tanh": 1.0,
    "atan": 2.0,
    "bounded_exp": 1e-3,
}
# FrEIA's factor, which is not 2 / pi.
ATAN_FACTOR = 0.636
# exp of these is finite: beyond, a multiplier stays what it is there.
LOG_LARGEST = {torch.float32: 88.72, torch.float64: 709.78}
# Below, log(softplus(r)) is r to the last digit, and log of an underflow is not.
_SOFTPLUS_IS_EXP = {torch.float32: -20.0, torch.float64: -40.0}


def _exp(log: Tensor) -> Tensor:
    return log.clamp(max=LOG_LARGEST.get(log.dtype, 88.72)).exp()


def _difference(x: Tensor, shift: Tensor) -> Tensor:
    """``x - shift``, where it overflows the largest number: a factor of 0 then gives 0, not NaN."""
    largest = torch.finfo(x.dtype).max
    difference = x - shift
    held = difference.clamp(-largest, largest)
    return torch.where(x.isfinite() & shift.isfinite(), held, difference)


def _scale(r: Tensor, scale_map: str, clamp: float | None, inverse: bool) -> tuple[Tensor, Tensor]:
    """The factor of the direction taken, ``s`` or ``1 / s``, and ``log s``, of raw scales."""
    if scale_map not in SCALE_MAPS:
        raise ValueError(f"scale_map must be one of {SCALE_MAPS}, got {scale_map!r}")
    c = DEFAULT_CLAMP.get(scale_map, 0.0) if clamp is None else clamp
    if scale_map == "sigmoid" and c > 0:
        s = torch.sigmoid(r + 2) + c
        return (1 / s if inverse else s), s.log()
    if scale_map == "softplus":
        s = c - logsigmoid(-r)
        limit = _SOFTPLUS_IS_EXP.get(r.dtype, -20.0) if c == 0 else -math.inf
        log = torch.where(r < limit, r, (c - logsigmoid(-r.clamp(min=limit))).log())
        return (_exp(-log) if inverse else s), log
    if scale_map == "exp":
        log = r
    elif scale_map == "exp_clamped":
        log = r.clamp(-c, c)
    elif scale_map == "sigmoid":
        log = logsigmoid(r + 2)
    elif scale_map == "tanh":
        log = c * torch.tanh(r)
    elif scale_map == "atan":
        log = c * ATAN_FACTOR * torch.atan(r)
    else:
        r = r.clamp(min=-torch.finfo(r.dtype).max, max=torch.finfo(r.dtype).max)
        log = r / (1 + (r / math.log(c)).abs())
    return _exp(-log if inverse else log), log


def affine_coupling(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    active: Tensor | None = None,
    scale_map: str = "exp",
    clamp: float | None = None,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """``y = x * s(scale) + shift`` on the active features, ``y = x`` on the others.

    ``x`` (N, D, *S), ``scale`` and ``shift`` (N, A, *S) or None, ``active`` (A,) int64 or None for
    all.  An index out of range is left out.  Returns y like ``x`` and ``sum log s`` over features
    and space; with ``inverse`` ``y = (x - shift) / s`` and the negative sum.
    """
    d = x.shape[1]
    chosen, valid, target = x, None, None
    if active is not None:
        valid = (active >= 0) & (active < d)
        target = torch.where(valid, active, d)
        chosen = torch.cat((x, torch.zeros_like(x[:, :1])), 1).index_select(1, target)
    y = chosen
    if inverse and shift is not None:
        y = y - shift if scale is None else _difference(y, shift)
    logdet = x.new_zeros(x.shape[:1])
    if scale is not None:
        factor, log = _scale(scale, scale_map, clamp, inverse)
        y = y * factor
        if valid is not None:
            log = torch.where(valid.view(-1, *(1,) * (x.ndim - 2)), log, 0.0)
        logdet = log.flatten(1).sum(1, dtype=torch.float64).to(x.dtype)
        logdet = -logdet if inverse else logdet
    if not inverse and shift is not None:
        y = y + shift
    if target is not None:
        # The feature past the end takes what belongs nowhere.
        y = torch.cat((x, x[:, :1]), 1).index_copy(1, target, y)[:, :d].contiguous()
    return (y.clone() if y is x else y), logdet


def _slope(r: Tensor, scale_map: str, clamp: float) -> Tensor:
    """Derivative of ``log s`` in the raw scale ``r``."""
    c = clamp
    if scale_map == "exp":
        return torch.ones_like(r)
    if scale_map == "exp_clamped":
        return (r.abs() <= c).to(r.dtype)
    if scale_map == "sigmoid":
        rest = torch.sigmoid(-r - 2)
        return rest * torch.sigmoid(r + 2) / (torch.sigmoid(r + 2) + c) if c > 0 else rest
    if scale_map == "softplus":
        limit = _SOFTPLUS_IS_EXP.get(r.dtype, -20.0) if c == 0 else -math.inf
        inside = r.clamp(min=limit)
        slope = torch.sigmoid(inside) / (c - logsigmoid(-inside))
        return torch.where(r < limit, 1.0, slope)
    if scale_map == "tanh":
        return c * (1 - torch.tanh(r).square())
    if scale_map == "atan":
        return c * ATAN_FACTOR / (1 + r * r)
    return 1 / (1 + (r / math.log(c)).abs()).square()


def affine_coupling_backward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    grad_y: Tensor | None,
    grad_logdet: Tensor | None,
    *,
    active: Tensor | None = None,
    scale_map: str = "exp",
    clamp: float = 0.0,
    inverse: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of ``x``, ``scale`` and ``shift`` from those of y (N, D, *S) and logdet (N,)."""
    d = x.shape[1]
    grad_y = torch.zeros_like(x) if grad_y is None else grad_y
    chosen, g, valid, target = x, grad_y, None, None
    if active is not None:
        valid = (active >= 0) & (active < d)
        target = torch.where(valid, active, d)
        zero = torch.zeros_like(x[:, :1])
        chosen = torch.cat((x, zero), 1).index_select(1, target)
        g = torch.cat((grad_y, zero), 1).index_select(1, target)
        valid = valid.view(-1, *(1,) * (x.ndim - 2))
    if inverse and shift is not None:
        chosen = _difference(chosen, shift)
    grad_chosen, grad_scale = g, None
    if scale is not None:
        factor, log = _scale(scale, scale_map, clamp, inverse)
        slope = _slope(scale, scale_map, clamp)
        power = -log if inverse else log
        largest = LOG_LARGEST.get(x.dtype, 88.72)
        # Where the factor has reached its largest value it has no gradient.
        through_y = torch.where(power > largest, 0.0, factor * (-slope if inverse else slope))
        grad_scale = chosen * through_y * g
        if grad_logdet is not None:
            total = grad_logdet.view(-1, *(1,) * (x.ndim - 1))
            grad_scale = grad_scale + (-total if inverse else total) * slope
        if valid is not None:
            grad_scale = torch.where(valid, grad_scale, 0.0)
        grad_chosen = g * factor
    grad_shift = None if shift is None else (-grad_chosen if inverse else g)
    grad_x = grad_chosen
    if target is not None:
        wide = torch.cat((grad_y, grad_y[:, :1]), 1)
        grad_x = wide.index_copy(1, target, grad_chosen)[:, :d].contiguous()
    return grad_x, grad_scale, grad_shift


def actnorm(
    x: Tensor, log_scale: Tensor, shift: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """``y = x * exp(log_scale) + shift`` per channel; ``log_scale``, ``shift`` (C,), x (N, C, *S).

    ``logdet`` (N,) is ``sum log_scale`` times the number of places, for every row the same.
    """
    shape = (-1, *(1,) * (x.ndim - 2))
    places = math.prod(x.shape[2:])
    total = log_scale.sum(dtype=torch.float64) * places
    if inverse:
        y = (x - shift.view(shape)) * _exp(-log_scale).view(shape)
        total = -total
    else:
        y = x * _exp(log_scale).view(shape) + shift.view(shape)
    return y, total.to(x.dtype).expand(x.shape[0]).clone()


def actnorm_backward(
    x: Tensor, log_scale: Tensor, shift: Tensor, grad_y: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, ``log_scale`` and ``shift`` from that of y; logdet's part is apart."""
    shape = (-1, *(1,) * (x.ndim - 2))
    power = -log_scale if inverse else log_scale
    factor = _exp(power)
    wide = grad_y.double()
    centred = x.double() - shift.view(shape).double() if inverse else x.double()
    axes = [0, *range(2, x.ndim)]
    first, second = wide.sum(axes), (wide * centred).sum(axes)
    largest = LOG_LARGEST.get(x.dtype, 88.72)
    second = torch.where(power > largest, 0.0, second * factor.double())
    grad_log, grad_shift = (-second, -first * factor.double()) if inverse else (second, first)
    return grad_y * factor.view(shape), grad_log.to(x.dtype), grad_shift.to(x.dtype)


def invertible_linear(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_diagonal: Tensor,
    *,
    sign: Tensor | None = None,
    permutation: Tensor | None = None,
    bias: Tensor | None = None,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """``y = W x + bias`` over channels, with ``W = P L (U + diag(sign * exp(log_diagonal)))``.

    ``x`` (N, C, *S).  ``L`` is the strict lower triangle of ``lower`` (C, C) with a unit diagonal,
    ``U`` the strict upper one of ``upper``; ``sign`` (C,) of +-1; ``permutation`` (C,) int64: row i
    of W is row ``permutation[i]`` of the product.  The inverse is two triangular solves in float64.
    ``logdet`` (N,) is ``sum log_diagonal`` times the number of places, for every row the same.
    """
    wide = torch.float64 if inverse else x.dtype
    diagonal = log_diagonal.to(wide).exp()
    if sign is not None:
        diagonal = diagonal * sign.to(wide)
    eye = torch.eye(x.shape[1], dtype=wide, device=x.device)
    unit = lower.to(wide).tril(-1) + eye
    full = upper.to(wide).triu(1) + torch.diag_embed(diagonal)
    columns = x.to(wide).flatten(2) if x.ndim > 2 else x.to(wide).unsqueeze(2)
    offset = None if bias is None else bias.to(wide).unsqueeze(1)
    if inverse:
        if offset is not None:
            columns = columns - offset
        if permutation is not None:
            columns = columns.index_select(1, permutation.argsort())
        # One solve over all places of all rows: (C, N * S).
        rows = columns.transpose(0, 1).flatten(1)
        rows = torch.linalg.solve_triangular(unit, rows, upper=False, unitriangular=True)
        rows = torch.linalg.solve_triangular(full, rows, upper=True)
        y = rows.unflatten(1, (columns.shape[0], columns.shape[2])).transpose(0, 1)
    else:
        weight = unit @ full
        if permutation is not None:
            weight = weight.index_select(0, permutation)
        if x.ndim == 2:  # one product; a batch of matrix-vector products is several times slower
            y = torch.nn.functional.linear(x, weight, bias)
        else:
            y = weight @ columns if offset is None else weight @ columns + offset
    total = log_diagonal.sum(dtype=torch.float64) * math.prod(x.shape[2:])
    logdet = (-total if inverse else total).to(x.dtype).expand(x.shape[0]).clone()
    return y.reshape(x.shape).to(x.dtype), logdet
