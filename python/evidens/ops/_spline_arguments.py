"""Arguments of the spline ops: every check, and what the inner ops take for them."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from evidens.ops import _checks as checks
from evidens.reference.spline import MAPS, TAILS

_KNOTS, _NFLOWS, _ZUKO = range(3)
_NONE, _LINEAR, _CIRCULAR = range(3)


def _check_settings(
    op: str,
    parameters: str,
    tails: str | tuple[str, ...],
    bound: float | tuple[float, ...] | None,
    features: int,
    bins: int,
    given: int,
    min_width: float,
    min_height: float,
    min_derivative: float,
    slope: float,
    identity_init: bool,
    logit_scale: float,
) -> tuple[int, list[int], list[float], list[float]]:
    """Map, tails, box and options of the inner op, checked; made once for each combination."""
    map = checks.choice(op, "parameters", parameters, MAPS)
    listed = isinstance(tails, tuple)
    codes = [checks.choice(op, "tails", t, TAILS) for t in (tails if listed else (tails,))]
    if listed and len(codes) != features:
        raise ValueError(
            f"evidens.{op}: tails must be one name or one for each of the D = {features} features "
            f"of x, got {len(codes)}"
        )
    if listed and features < 2:
        # The inner ops tell a list from a name by its length; they read what x has features for.
        codes = (codes or [_NONE]) * 2
    if bins < 1:
        raise ValueError(f"evidens.{op}: expected at least one bin, got {bins}")
    _check_count(op, map, codes, bins, given)
    if map == _NFLOWS:
        for name, least in (("min_width", min_width), ("min_height", min_height)):
            if not 0 <= least * bins <= 1:
                raise ValueError(
                    f"evidens.{op}: {name} must be between 0 and 1 / M, got {least} for "
                    f"M = {bins} bins; use fewer bins or a smaller {name}"
                )
        if not 0 <= min_derivative < 1:
            raise ValueError(
                f"evidens.{op}: min_derivative must be in [0, 1), got {min_derivative}"
            )
    if not 0 < slope < 1:
        raise ValueError(f"evidens.{op}: slope must be between 0 and 1, got {slope}")
    if not 0 < logit_scale < math.inf:
        raise ValueError(f"evidens.{op}: logit_scale must be positive, got {logit_scale}")
    beta = math.log(2) / (1 - min_derivative) if identity_init else 1.0
    options = [min_width, min_height, min_derivative, beta, slope, logit_scale]
    return map, codes, _box(op, map, codes, bound, features), [float(o) for o in options]


_known_settings = functools.lru_cache(maxsize=256)(_check_settings)


def settings(*arguments: Any) -> tuple[int, list[int], list[float], list[float]]:
    # torch.compile takes no cache in; what it traces is a constant of the graph anyway.
    check = _check_settings if torch.compiler.is_compiling() else _known_settings
    return check(*arguments)


def _check_count(op: str, map: int, codes: list[int], bins: int, given: int) -> None:
    if map == _KNOTS or len(codes) > 1 or codes[0] == _NONE:
        fits, want = given == bins + 1, f"M + 1 = {bins + 1}"
    elif codes[0] == _CIRCULAR:
        fits, want = given == bins, f"M = {bins}"
    else:
        fits, want = given >= bins - 1, f"M - 1 = {bins - 1} (or more, as nflows takes them)"
    if not fits:
        kind = "a list of tails" if len(codes) > 1 else f"{TAILS[codes[0]]!r} tails"
        raise ValueError(
            f"evidens.{op}: parameters {MAPS[map]!r} with {kind} and M = {bins} bins take "
            f"{want} derivatives for each element, got {given}"
        )


def _box(op: str, map: int, codes: list[int], bound: Any, features: int) -> list[float]:
    """Left, right, bottom, top: once or for every feature."""
    if map == _KNOTS:
        if bound is not None:
            raise ValueError(
                f"evidens.{op}: parameters 'knots' carry their own bounds; leave bound out"
            )
        return [0.0, 1.0, 0.0, 1.0]
    if bound is None:
        bound = (0.0, 1.0, 0.0, 1.0) if codes == [_NONE] else 5.0 if map == _ZUKO else 1.0
    bounds = bound if isinstance(bound, tuple) else (bound,)
    real = all(isinstance(b, numbers.Real) for b in bounds)
    if real and codes == [_NONE] and len(bounds) == 4:
        left, right, bottom, top = box = [float(b) for b in bounds]
        if not (-math.inf < left < right < math.inf and -math.inf < bottom < top < math.inf):
            instead = "; one bound for each of 4 features needs tails ['none'] * 4"
            raise ValueError(
                f"evidens.{op}: a bound of four numbers with tails 'none' is (left, right, bottom, "
                f"top), which must be finite with left < right and bottom < top, got {bound}"
                f"{instead if features == 4 else ''}"
            )
        return box
    if len(bounds) not in (1, features) or not real or not all(0 < b < math.inf for b in bounds):
        raise ValueError(
            f"evidens.{op}: bound must be a positive number, one for each of the D = {features} "
            f"features of x, or (left, right, bottom, top) with tails 'none'; got {bound}"
        )
    return [side for b in bounds for side in (-float(b), float(b), -float(b), float(b))]


def hashable(op: str, name: str, value: Any) -> Any:
    """A name or a number as it is; lists, arrays and tensors as tuples."""
    if value is None or isinstance(value, str | float):
        return value
    if isinstance(value, Tensor) and value.is_cuda:
        raise TypeError(
            f"evidens.{op}: {name} is a CUDA tensor, and reading it would wait for the device; "
            f"give {name}.tolist(), taken once"
        )
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(hashable(op, name, v) for v in value)
    if not isinstance(value, Hashable):
        raise TypeError(
            f"evidens.{op}: {name} must be one for all features or a sequence with one for each, "
            f"got {type(value).__name__}"
        )
    return value


def coupling_settings(
    features: int,
    bins: int,
    per_feature: int,
    parameters: str,
    tails: str | Sequence[str],
    bound: float | Sequence[float] | None,
    min_width: float,
    min_height: float,
    min_derivative: float,
    slope: float,
    identity_init: bool,
    logit_scale: float,
    op: str = "spline_coupling",
) -> tuple[int, list[int], list[float], list[float]]:
    """What `spline_coupling` makes of its options; raises as it does, in the name of ``op``."""
    return settings(
        op,
        parameters,
        hashable(op, "tails", tails),
        hashable(op, "bound", bound),
        features,
        bins,
        per_feature - 2 * (bins + (parameters == "knots")),
        min_width,
        min_height,
        min_derivative,
        slope,
        bool(identity_init),
        logit_scale,
    )


def flat(op: str, name: str, t: Tensor, x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Parameters (N, D, count) of the elements of ``x``."""
    checks.alike(op, name, t, x)
    count = t.shape[-1]
    if t.shape[:-1] != x.shape:
        try:
            t = t.expand(*x.shape, count)
        except RuntimeError:
            raise ValueError(
                f"evidens.{op}: {name} must have shape (*, {count}) with the shape of x, "
                f"{tuple(x.shape)}, or broadcast to it, got {tuple(t.shape)}"
            ) from None
    return t.reshape(*shape, count)
