"""The discretized mixture of logistics of PixelCNN++: log-probability and draws.

Shape letters: ``N`` rows (images), ``C`` channels (1 or 3), ``H W`` image, ``M`` mixture terms,
``P`` numbers that a network gives for a pixel.  float32 or float64 (half types are widened to
float32); log-probabilities in nats.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from evidens.ops import _checks as checks
from evidens.ops import _logistic_mixture_cpu as cpu
from evidens.ops import _registry
from evidens.reference import logistic_mixture as reference

__all__ = ["logistic_mixture_log_prob", "logistic_mixture_sample"]

_MOST_LEVELS = 1 << 16
_LARGEST_LOG_SCALE = 80.0  # exp of it, and of its negative, is a normal float32

# --- backends ------------------------------------------------------------------------------------


def _reference_log_prob(x: Tensor, params: Tensor, levels: int, min_log_scale: float) -> Tensor:
    if x.is_cpu and not _registry._C._functorch.is_functorch_wrapped_tensor(x):
        valid = (x >= 0) & (x <= levels - 1) & (x == x.round())
        if not valid.all():
            place = int(valid.permute(0, 2, 3, 1).logical_not().flatten().nonzero()[0])
            raise ValueError(cpu.bad_level(place, levels, x))
    return reference.logistic_mixture_log_prob(
        x, params, levels=levels, min_log_scale=min_log_scale
    )


def _reference_backward(
    x: Tensor, params: Tensor, grad: Tensor, levels: int, min_log_scale: float
) -> Tensor:
    found = reference.logistic_mixture_log_prob_backward(
        x, params, grad, levels=levels, min_log_scale=min_log_scale
    )
    out = _like(params)
    return out.copy_(found)


def _reference_sample(
    params: Tensor,
    channels: int,
    levels: int,
    min_log_scale: float,
    seed: int,
    row0: int,
    step0: int,
) -> Tensor:
    return reference.logistic_mixture_sample(
        params,
        channels=channels,
        levels=levels,
        min_log_scale=min_log_scale,
        seed=seed,
        row0=row0,
        step0=step0,
    )


def _triton(name: str) -> Any:
    def call(*args: Any) -> Any:
        from evidens.kernels import logistic_mixture as kernels

        return getattr(kernels, name)(*args)

    return call


def _like(params: Tensor) -> Tensor:
    """Memory for a gradient: channels last where the parameters are, else contiguous."""
    n, p, h, w = params.shape
    if params.is_contiguous(memory_format=torch.channels_last) and not params.is_contiguous():
        return params.new_empty((n, h, w, p)).permute(0, 3, 1, 2)
    return params.new_empty(params.shape)


# --- the inner ops -------------------------------------------------------------------------------


def _gradient(
    needs: tuple[bool, ...],
    grads: Any,
    x: Tensor,
    params: Tensor,
    levels: int,
    min_log_scale: float,
) -> tuple[Tensor | None, ...]:
    found = _log_prob_backward(x, params, grads[0], levels, min_log_scale) if needs[1] else None
    return None, found, None, None


_log_prob = _registry.Op(
    "logistic_mixture",
    "logistic_mixture_log_prob(Tensor x, Tensor params, int levels, float min_log_scale) -> Tensor",
    cpu=cpu.log_prob,
    reference=_reference_log_prob,
    triton=_triton("log_prob"),
    fake=lambda x, params, levels, min_log_scale: params.new_empty(
        (params.shape[0], *params.shape[2:])
    ),
    backward=_gradient,
    rows=(0, 1),
)
_log_prob_backward = _registry.Op(
    "logistic_mixture",
    "logistic_mixture_log_prob_backward(Tensor x, Tensor params, Tensor grad, int levels, "
    "float min_log_scale) -> Tensor",
    cpu=cpu.log_prob_backward,
    reference=_reference_backward,
    triton=_triton("log_prob_backward"),
    fake=lambda x, params, grad, levels, min_log_scale: _like(params),
    rows=(0, 1, 2),
)
_sample = _registry.Op(
    "logistic_mixture",
    "logistic_mixture_sample(Tensor params, int channels, int levels, float min_log_scale, "
    "int seed, int row0, int step0) -> Tensor",
    cpu=cpu.sample,
    reference=_reference_sample,
    triton=_triton("sample"),
    fake=lambda params, channels, levels, min_log_scale, seed, row0, step0: params.new_empty(
        (params.shape[0], channels, *params.shape[2:]), dtype=torch.int64
    ),
)


# --- arguments -----------------------------------------------------------------------------------


def _ready(x: Tensor, params: Tensor, levels: int, min_log_scale: float) -> bool:
    """Whether the checks would pass and change nothing: 3 us faster, for small calls."""
    try:
        n, c, h, w = x.shape
        rows, p, height, width = params.shape
        dtype = params.dtype
        return (
            (dtype is torch.float32 or dtype is torch.float64)
            and x.dtype is dtype
            and x.is_cpu
            and params.is_cpu
            and n == rows
            and h == height
            and w == width
            and (c == 1 or c == 3)
            and p > 0
            and p % (3 if c == 1 else 10) == 0
            and type(levels) is int
            and 2 <= levels <= _MOST_LEVELS
            and type(min_log_scale) is float
            and -_LARGEST_LOG_SCALE <= min_log_scale <= _LARGEST_LOG_SCALE
            and not x.requires_grad
        )
    except (AttributeError, TypeError, ValueError):
        return False


def _options(op: str, levels: int, min_log_scale: float) -> tuple[int, float]:
    try:
        levels, min_log_scale = operator.index(levels), float(min_log_scale)
    except TypeError:
        raise TypeError(
            f"evidens.{op}: levels must be an integer and min_log_scale a number, got "
            f"{levels!r} and {min_log_scale!r}"
        ) from None
    if not 2 <= levels <= _MOST_LEVELS:
        raise ValueError(
            f"evidens.{op}: levels must be in 2 .. {_MOST_LEVELS}, got {levels}; 8-bit images have "
            "256"
        )
    if not -_LARGEST_LOG_SCALE <= min_log_scale <= _LARGEST_LOG_SCALE:
        raise ValueError(
            f"evidens.{op}: min_log_scale must be between -{_LARGEST_LOG_SCALE:g} and "
            f"{_LARGEST_LOG_SCALE:g} nats, got {min_log_scale}; PixelCNN++ has -7"
        )
    return levels, min_log_scale


def _parameters(op: str, params: Tensor, channels: int) -> None:
    checks.floating(op, "params", params)
    if params.ndim != 4:
        raise ValueError(
            f"evidens.{op}: params must have shape (N, P, H, W), got {tuple(params.shape)}; "
            "sequences (N, P, T) become images by params[:, :, None]"
        )
    kinds = 3 if channels == 1 else 10
    if params.shape[1] % kinds or params.shape[1] == 0:
        raise ValueError(
            f"evidens.{op}: params must have P = {kinds} M planes for C = {channels}, "
            f"got P = {params.shape[1]}; the network's last layer decides it"
        )


def logistic_mixture_log_prob(
    x: Tensor, params: Tensor, *, levels: int = 256, min_log_scale: float = -7.0
) -> Tensor:
    """Log-probability of images under the discretized mixture of logistics of PixelCNN++.

    Level k stands for the value ``v = 2 k / (levels - 1) - 1``; its probability under a logistic
    is the mass of the bin of half width ``1 / (levels - 1)`` around v, where the bins of the first
    and of the last level are open to their side, so that all levels sum to 1.  A pixel has one
    mixture for all its channels; within a term the means of green and blue depend on the channels
    before (``t = tanh(coefficients)``): ``mean_1 + t_0 red`` and ``mean_2 + t_1 red + t_2 green``.

    Args:
        x: levels ``0 .. levels - 1`` (N, C, H, W), C = 1 or 3, of any dtype.
        params: (N, P, H, W) as a network gives them.  C = 1: M logits, M means, M log scales,
            P = 3 M.  C = 3: M logits, then for every channel M means, M log scales and M
            coefficients, P = 10 M.  Contiguous and channels_last are read where they lie.
        levels: how many there are, at most 65536.
        min_log_scale: log scales below count as this, and have no gradient; nats.

    Returns:
        (N, H, W) nats, dtype of ``params``: the joint log-probability of a pixel's channels.  Sum
        it over the pixels for that of an image; over ``-log(2) C H W`` it is bits per dimension.
        The three kinds of bins are exact however unlikely they are, without the density that
        PixelCNN++ puts in place of a small mass.  Differentiable once in ``params``.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.  Values of
            ``x`` are checked on the CPU; on a GPU what is no level gives NaN.
        RuntimeError: if ``x`` requires a gradient (none is offered).

    Source: Salimans, Karpathy, Chen, Kingma, PixelCNN++ (2017), section 2.1 and 2.2.

    Example:
        >>> import torch, evidens
        >>> x = torch.tensor([0, 100, 255]).view(1, 1, 1, 3)
        >>> params = torch.zeros(1, 3, 1, 3)  # one standard logistic
        >>> evidens.ops.logistic_mixture_log_prob(x, params)
        tensor([[[-1.3104, -6.2460, -1.3104]]])
    """
    op = "logistic_mixture_log_prob"
    if _ready(x, params, levels, min_log_scale):
        return _log_prob(x, params, levels, min_log_scale)
    levels, min_log_scale = _options(op, levels, min_log_scale)
    (params,) = checks.widen(op, ("params", params))
    if not isinstance(x, Tensor) or x.is_complex():
        raise TypeError(
            f"evidens.{op}: x must be a tensor of levels, got "
            f"{x.dtype if isinstance(x, Tensor) else type(x).__name__}. "
            "Convert with torch.as_tensor(x)."
        )
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"evidens.{op}: x must have shape (N, C, H, W) with C = 1 or 3, got {tuple(x.shape)}; "
            "x[:, None] makes a channel axis"
        )
    _parameters(op, params, x.shape[1])
    n, p, h, w = params.shape
    if x.shape != (n, x.shape[1], h, w) or x.device != params.device:
        raise ValueError(
            f"evidens.{op}: x must have shape (N, C, H, W) = {(n, x.shape[1], h, w)} on "
            f"{params.device} for params {(n, p, h, w)}, got {tuple(x.shape)} on {x.device}"
        )
    checks.no_gradient(op, x, instead="x.detach(): levels are integers")
    return _log_prob(x.to(params.dtype), params, levels, min_log_scale)


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
    """Draws from the discretized mixture of logistics: exactly the law of the log-probability.

    A term is chosen by its cumulative weight, a logistic is drawn by its inverse distribution
    function, and the level is the one whose bin holds the draw; green and blue take the *drawn*
    levels of the channels before.  All of it is in float64, from Philox uniforms of 53 bits:
    pixel i (in raster order) of row n takes ``philox_uniform(seed, step0 + i, rows=1,
    columns=1 + C, dtype=torch.float64, row_offset=row0 + n)``.  So a row's draws do not change
    with the batch, and an image drawn pixel by pixel with ``step0 = i`` is the one drawn whole.

    Args:
        params: (N, P, H, W) as in `logistic_mixture_log_prob`.
        channels: C, 1 or 3; says what ``params`` holds.
        levels, min_log_scale: as in `logistic_mixture_log_prob`.
        seed: any Python integer; its low 64 bits count.
        row0: row of the stream of the first row, not negative.
        step0: step of the stream of the first pixel; ``step0 + H W`` is at most 2^32.

    Returns:
        Levels (N, C, H, W), int64.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.  A draw from
            parameters that are NaN raises on the CPU; on a GPU its levels are -1.
        RuntimeError: if ``params`` requires a gradient (none is offered).

    Source: Salimans, Karpathy, Chen, Kingma, PixelCNN++ (2017), section 2.1 and 2.2.

    Example:
        >>> import torch, evidens
        >>> params = torch.tensor([0.0, 0.5, -3.0]).view(1, 3, 1, 1).expand(1, 3, 2, 3)
        >>> evidens.ops.logistic_mixture_sample(params, channels=1, seed=0)
        tensor([[[[198, 219, 205],
                  [180, 190, 211]]]])
    """
    op = "logistic_mixture_sample"
    levels, min_log_scale = _options(op, levels, min_log_scale)
    (params,) = checks.widen(op, ("params", params))
    if channels not in (1, 3):
        raise ValueError(f"evidens.{op}: channels must be 1 or 3, got {channels!r}")
    _parameters(op, params, channels)
    try:
        seed, row0, step0 = (operator.index(i) for i in (seed, row0, step0))
    except TypeError:
        raise TypeError(
            f"evidens.{op}: seed, row0 and step0 must be integers, got {seed!r}, {row0!r} and "
            f"{step0!r}. Convert with int()."
        ) from None
    n, _, h, w = params.shape
    if row0 < 0 or row0 + n > 1 << 63:
        raise ValueError(
            f"evidens.{op}: row0 must not be negative and row0 + N at most 2^63, got {row0}"
        )
    if step0 < 0 or step0 + h * w > 1 << 32:
        raise ValueError(
            f"evidens.{op}: step0 must not be negative and step0 + H W at most 2^32, got {step0}; "
            "fold a longer counter into the seed"
        )
    checks.no_gradient(op, params, instead="logistic_mixture_log_prob")
    signed = ((seed + (1 << 63)) & 0xFFFFFFFFFFFFFFFF) - (1 << 63)
    x = _sample(params, int(channels), levels, min_log_scale, signed, row0, step0)
    if not torch.compiler.is_compiling() and x.is_cpu and _known(x) and bool((x < 0).any()):
        raise ValueError(cpu.not_a_number(x))
    return x


def _known(x: Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at here."""
    return not (
        torch._C._len_torch_dispatch_stack() or torch._C._functorch.is_functorch_wrapped_tensor(x)
    )
