"""Arguments of the masked convolution and linear ops: every check."""

from __future__ import annotations

import torch
from torch import Tensor

from evidens.ops import _checks as checks
from evidens.reference.masked_conv import Mask, taps_of

__all__ = ["features", "images", "ready_features", "ready_images", "taps"]


def ready_images(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the checks would pass: faster, for the calls whose cost is all overhead."""
    try:
        dtype = x.dtype
        _, c, _, _ = x.shape
        o, channels, down, across = weight.shape
        return (
            (dtype is torch.float32 or dtype is torch.float64)
            and x.is_cpu
            and channels == c > 0
            and o > 0
            and down % 2 == across % 2 == 1
            and weight.dtype is dtype
            and weight.is_cpu
            and (bias is None or (bias.shape == (o,) and bias.dtype is dtype and bias.is_cpu))
        )
    except (AttributeError, TypeError, ValueError):
        return False


def ready_features(
    x: Tensor, weight: Tensor, bias: Tensor | None, *integers: tuple[Tensor | None, int]
) -> bool:
    """The same of a linear layer; ``integers``: each with the axis of the weight it goes with."""
    try:
        dtype, shape = x.dtype, weight.shape
        o, i = shape
        if not (
            (dtype is torch.float32 or dtype is torch.float64)
            and x.is_cpu
            and x.shape[-1] == i > 0
            and o > 0
            and weight.dtype is dtype
            and weight.is_cpu
            and (bias is None or (bias.shape == (o,) and bias.dtype is dtype and bias.is_cpu))
        ):
            return False
        for t, axis in integers:
            if t is not None and not (
                t.dtype is torch.int64 and t.shape == (shape[axis],) and t.is_cpu
            ):
                return False
        return True
    except (AttributeError, IndexError, TypeError, ValueError):
        return False


def _not_empty(op: str, weight: Tensor) -> None:
    if 0 in weight.shape:
        raise ValueError(
            f"evidens.{op}: weight must not be empty, got {tuple(weight.shape)}; "
            "leave out a layer without inputs or outputs"
        )


def _bias(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if bias is None:
        return
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"evidens.{op}: bias must have shape (O,) = ({weight.shape[0]},) for weight "
            f"{tuple(weight.shape)}, got {tuple(bias.shape)}"
        )
    checks.alike(op, "bias", bias, x)


def images(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """x, weight and bias of a convolution."""
    checks.floating(op, "x", x)
    if x.ndim != 4:
        raise ValueError(
            f"evidens.{op}: expected x (N, C, H, W), got {tuple(x.shape)}; "
            "x[None] makes a batch of one image"
        )
    if weight.ndim != 4 or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"evidens.{op}: expected weight (O, C, kh, kw) with C = {x.shape[1]} as x "
            f"{tuple(x.shape)} has, got {tuple(weight.shape)}"
        )
    _not_empty(op, weight)
    down, across = weight.shape[2:]
    if down % 2 == 0 or across % 2 == 0:
        raise ValueError(
            f"evidens.{op}: weight must have an odd kernel, for the mask has a centre, got "
            f"{down} x {across}; pad it with zeros to {down + 1 - down % 2} x "
            f"{across + 1 - across % 2}"
        )
    checks.alike(op, "weight", weight, x)
    _bias(op, x, weight, bias)


def taps(op: str, mask: Mask, weight: Tensor, groups: int) -> tuple[list[int], bool]:
    """The live taps of a mask, and whether its centre is strict."""
    o, c, down, across = weight.shape
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise ValueError(f"evidens.{op}: groups must be an integer >= 1, got {groups!r}")
    if c % groups or o % groups:
        raise ValueError(
            f"evidens.{op}: groups = {groups} must divide the channels of x and of y, got C = {c} "
            f"and O = {o}; choose multiples of {groups}"
        )
    if isinstance(mask, str):
        if mask not in ("A", "B"):
            raise ValueError(
                f"evidens.{op}: mask must be 'A', 'B' or ({down}, {across}) booleans, got {mask!r}"
            )
        return taps_of(mask, (down, across), groups)
    if isinstance(mask, Tensor):
        if mask.dtype is not torch.bool or mask.shape != (down, across):
            raise ValueError(
                f"evidens.{op}: mask must be bool of shape (kh, kw) = ({down}, {across}), got "
                f"{mask.dtype} {tuple(mask.shape)}"
            )
    else:
        try:
            sizes = [len(row) for row in mask]
        except TypeError:
            sizes = []
        if len(sizes) != down or any(size != across for size in sizes):
            raise ValueError(
                f"evidens.{op}: mask must be 'A', 'B' or ({down}, {across}) booleans, got {mask!r}"
            )
    return taps_of(mask, (down, across), groups)


def _integers(op: str, name: str, t: Tensor, x: Tensor, letter: str, size: int) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(
            f"evidens.{op}: {name} must be an int64 tensor, got {type(t).__name__}. "
            f"Convert with torch.as_tensor({name})."
        )
    if t.dtype is not torch.int64 or t.device != x.device:
        raise TypeError(
            f"evidens.{op}: {name} must be int64 on {x.device}, got {t.dtype} on {t.device}. "
            f"Convert with {name}.to(x.device, torch.int64)."
        )
    if t.shape != (size,):
        raise ValueError(
            f"evidens.{op}: {name} must have shape ({letter},) = ({size},), got {tuple(t.shape)}"
        )


def features(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    orders: dict[str, Tensor | None],
) -> None:
    """All tensors of a linear layer."""
    checks.floating(op, "x", x)
    if x.ndim == 0 or weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"evidens.{op}: expected x (*, I) and weight (O, I), got {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    _not_empty(op, weight)
    checks.alike(op, "weight", weight, x)
    _bias(op, x, weight, bias)
    o, i = weight.shape
    _integers(op, "in_degrees", in_degrees, x, "I", i)
    _integers(op, "out_degrees", out_degrees, x, "O", o)
    for (name, order), letter, size in zip(orders.items(), "IO", (i, o)):
        if order is not None:
            _integers(op, name, order, x, letter, size)
