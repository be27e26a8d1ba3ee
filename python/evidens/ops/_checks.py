"""Argument checks shared by the ops; each error names the op, the argument, expected and got."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from evidens._native import library

# Name of the argument, its value, its shape in the project's letters.
Argument = tuple[str, Tensor, str]


def widen(op: str, *tensors: tuple[str, Tensor]) -> list[Tensor]:
    """The tensors; float16 and bfloat16 become float32 (also the autocast rule of every op)."""
    half = False
    for name, t in tensors:
        if not isinstance(t, Tensor):
            raise TypeError(
                f"evidens.{op}: {name} must be a torch.Tensor, got {type(t).__name__}. "
                f"Convert with torch.as_tensor({name})."
            )
        dtype = t.dtype
        half = half or dtype is torch.bfloat16 or dtype is torch.float16
    if half:
        halves = (torch.float16, torch.bfloat16)
        return [t.float() if t.dtype in halves else t for _, t in tensors]
    return [t for _, t in tensors]


def floating(op: str, name: str, t: Tensor) -> None:
    """Refuses what no kernel computes in."""
    if t.dtype is not torch.float32 and t.dtype is not torch.float64:
        raise TypeError(
            f"evidens.{op}: {name} must be float32 or float64 (float16 and bfloat16 are widened), "
            f"got {t.dtype}. Convert with {name}.float()."
        )


def arguments(
    op: str,
    x: Tensor,
    sizes: dict[str, int],
    what: Callable[[], str],
    *arguments: Argument,
    other: str = "x",
) -> None:
    """Shapes by letters, and one dtype and device with ``x``, which is the argument ``other``.

    ``what()`` says whence the sizes.
    """
    dtype, device = x.dtype, x.device
    for name, t, letters in arguments:
        if t.shape != tuple([sizes[c] for c in letters]):
            want = tuple(sizes[c] for c in letters)
            raise ValueError(
                f"evidens.{op}: {name} must have shape ({', '.join(letters)}) = {want} for "
                f"{what()}, got {tuple(t.shape)}"
            )
        if t.dtype is not dtype or t.device != device:
            raise mixed(op, name, t, x, other)


def mixed(op: str, name: str, t: Tensor, x: Tensor, other: str = "x") -> TypeError:
    """The error for an argument of another dtype or device than ``x``, named ``other``."""
    return TypeError(
        f"evidens.{op}: all arguments need one dtype and one device; {other} is {x.dtype} on "
        f"{x.device}, {name} is {t.dtype} on {t.device}. Convert with {name}.to({other})."
    )


def alike(op: str, name: str, t: Tensor, x: Tensor, other: str = "x") -> None:
    """Refuses an argument of another dtype or device than ``x``."""
    if t.dtype is not x.dtype or t.device != x.device:
        raise mixed(op, name, t, x, other)


def choice(op: str, name: str, value: Any, names: Sequence[str]) -> int:
    """The place of ``value`` among ``names``."""
    try:
        return names.index(value)
    except ValueError:
        raise ValueError(
            f"evidens.{op}: {name} must be one of {', '.join(names)}, got {value!r}"
        ) from None


def readable() -> bool:
    """Whether values may be looked at: not inside torch.compile or a transform of torch.func."""
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def no_gradient(op: str, *tensors: Tensor | None, instead: str) -> None:
    """Refuses a call that would silently cut the graph."""
    for t in tensors:
        if t is not None and t.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"evidens.{op} offers no gradient, but an argument requires one. "
                f"Call it under torch.no_grad(), detach the argument, or use {instead}."
            )


def index_vector(op: str, name: str, t: Tensor, x: Tensor, letters: str, size: int | None) -> None:
    """Refuses what is no vector of indices beside x; values are looked at elsewhere."""
    if not isinstance(t, Tensor):
        raise TypeError(
            f"evidens.{op}: {name} must be an int64 tensor, got {type(t).__name__}. "
            f"Convert with torch.as_tensor({name})."
        )
    if t.dtype is not torch.int64 or t.device != x.device:
        how = (
            f"{name}.nonzero()[:, 0] makes indices from a mask"
            if t.dtype is torch.bool
            else f"Convert with {name}.to(x.device, torch.int64)"
        )
        raise TypeError(
            f"evidens.{op}: {name} must be int64 on {x.device}, got {t.dtype} on {t.device}. {how}."
        )
    if t.ndim != 1 or (size is not None and t.shape != (size,)):
        want = "" if size is None else f" = ({size},)"
        raise ValueError(
            f"evidens.{op}: {name} must have shape ({letters},){want}, got {tuple(t.shape)}"
        )


def bad_index(op: str, active: Tensor, place: int, features: int) -> str:
    """The message for an entry of ``active`` that is out of range or not the first of its kind."""
    return (
        f"evidens.{op}: active must hold distinct features 0 .. D - 1 = {features - 1}, got "
        f"{int(active[place])} at position {place}; mask.nonzero()[:, 0] makes them from a mask"
    )


def indices(op: str, active: Tensor, features: int) -> Tensor:
    """``active``, contiguous, on the CPU: distinct features of ``x``."""
    active = active.contiguous()
    place = library.first_bad_index(active.data_ptr(), active.shape[0], features)
    if place >= 0:
        raise ValueError(bad_index(op, active, place, features))
    return active
