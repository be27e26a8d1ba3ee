"""Arguments of the coupling ops: every check, and what an argument is by default."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evidens.ops import _checks as checks
from evidens.reference.coupling import DEFAULT_CLAMP, SCALE_MAPS

__all__ = [
    "bad_place",
    "coupling",
    "images",
    "like",
    "ready",
    "ready_channels",
    "scale_code",
]

_CODE = {name: code for code, name in enumerate(SCALE_MAPS)}
_DEFAULT = {name: (code, DEFAULT_CLAMP.get(name, 0.0)) for name, code in _CODE.items()}
_OFFSETS = ("sigmoid", "softplus")


def scale_code(
    scale_map: str, clamp: float | None, op: str = "affine_coupling"
) -> tuple[int, float]:
    """The code of a scale map and its constant."""
    try:
        code, default = _DEFAULT[scale_map]
    except (KeyError, TypeError):
        raise ValueError(
            f"evidens.{op}: scale_map must be one of {', '.join(SCALE_MAPS)}, got {scale_map!r}"
        ) from None
    if clamp is None:
        return code, default
    if scale_map == "exp":
        raise ValueError(
            f"evidens.{op}: scale_map 'exp' takes no clamp, got {clamp!r}; "
            "'exp_clamped' clips the raw scale"
        )
    clamp = float(clamp)
    low = clamp >= 0 if scale_map in _OFFSETS else clamp > 0
    if not low or not clamp < (1.0 if scale_map == "bounded_exp" else math.inf):
        want = {"sigmoid": "an offset >= 0", "softplus": "an offset >= 0"}.get(
            scale_map, "a slope between 0 and 1" if scale_map == "bounded_exp" else "a number > 0"
        )
        raise ValueError(
            f"evidens.{op}: clamp of scale_map {scale_map!r} must be {want}, got {clamp}"
        )
    return code, clamp


def ready(x: Tensor, scale: Tensor | None, shift: Tensor | None, active: Tensor | None) -> bool:
    """Whether the checks would pass: 3 us faster, for the calls whose cost is all overhead."""
    try:
        shape, dtype = x.shape, x.dtype
        if active is not None:
            (a,) = active.shape
            shape = (shape[0], a, *shape[2:])  # type: ignore[assignment]
            if active.dtype is not torch.int64 or not active.is_cpu:
                return False
        return (
            len(shape) > 1
            and (dtype is torch.float32 or dtype is torch.float64)
            and x.is_cpu
            and (scale is not None or shift is not None)
            and (scale is None or (scale.shape == shape and scale.dtype is dtype and scale.is_cpu))
            and (shift is None or (shift.shape == shape and shift.dtype is dtype and shift.is_cpu))
        )
    except (AttributeError, TypeError, ValueError):
        return False


def ready_channels(x: Tensor, *others: Tensor) -> bool:
    """The same for an x (N, C, *S) and vectors (C,)."""
    try:
        shape, dtype = (x.shape[1],), x.dtype
        return (
            (dtype is torch.float32 or dtype is torch.float64)
            and x.is_cpu
            and all(t.shape == shape and t.dtype is dtype and t.is_cpu for t in others)
        )
    except (AttributeError, IndexError, TypeError):
        return False


def images(op: str, x: Tensor, letter: str) -> None:
    checks.floating(op, "x", x)
    if x.ndim < 2:
        raise ValueError(
            f"evidens.{op}: expected x (N, {letter}, *S), got {tuple(x.shape)}; "
            "x[:, None] makes a feature axis"
        )


def like(op: str, name: str, t: Tensor, x: Tensor, letters: str, want: tuple[int, ...]) -> None:
    if t.shape != want:
        raise ValueError(
            f"evidens.{op}: {name} must have shape {letters} = {want} for x {tuple(x.shape)}, "
            f"got {tuple(t.shape)}"
        )
    checks.alike(op, name, t, x)


def _has_values(t: Tensor) -> bool:
    return not (
        torch.compiler.is_compiling()
        or t.is_meta
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.is_functorch_wrapped_tensor(t)
    )


def bad_place(t: Tensor, size: int) -> int | None:
    """The first place of an index that is out of range or repeats another, where it is known."""
    if not t.is_cpu or not _has_values(t):
        return None
    seen = set()
    for place, value in enumerate(t.tolist()):
        if not 0 <= value < size or value in seen:
            return place
        seen.add(value)
    return None


def coupling(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, active: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    op = "affine_coupling"
    if scale is None and shift is None:
        raise ValueError(f"evidens.{op}: expected a scale or a shift, got None for both")
    given = {name: t for name, t in (("scale", scale), ("shift", shift)) if t is not None}
    x, *wide = checks.widen(op, ("x", x), *given.items())
    images(op, x, "D")
    count = x.shape[1]
    if active is not None:
        checks.index_vector(op, "active", active, x, "A", None)
        count = active.shape[0]
    found = dict(zip(given, wide))
    for name, t in found.items():
        like(op, name, t, x, "(N, A, *S)", (x.shape[0], count, *x.shape[2:]))
    return x, found.get("scale"), found.get("shift")
