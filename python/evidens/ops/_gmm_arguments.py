"""Arguments of the mixture ops: shapes and dtypes, and labels where their values are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evidens.ops import _checks as checks
from evidens.reference.gmm import COVARIANCE_TYPES

# Shape of ``precisions_cholesky`` by covariance type.
PRECISION_LETTERS = ("KDD", "DD", "KD", "K")


def check(op: str, code: int, x: Tensor, means: Tensor, *others: checks.Argument) -> None:
    """Refuses rows, means and others that do not fit each other."""
    if x.ndim != 2 or means.ndim != 2 or x.shape[1] != means.shape[1]:
        raise ValueError(
            f"evidens.{op}: expected x (N, D) and means (K, D) with equal D, "
            f"got x {tuple(x.shape)} and means {tuple(means.shape)}"
        )
    n, d = x.shape
    k = means.shape[0]
    if k == 0 or d == 0:
        raise ValueError(
            f"evidens.{op}: expected at least one component and one feature, "
            f"got means {tuple(means.shape)}"
        )
    checks.floating(op, "x", x)
    checks.arguments(
        op,
        x,
        {"N": n, "K": k, "D": d},
        lambda: f"covariance_type {COVARIANCE_TYPES[code]!r} and x ({n}, {d})",
        ("means", means, "KD"),
        *others,
    )


def ready(code: int, x: Tensor, log_weights: Tensor, means: Tensor, p: Tensor) -> bool:
    """Whether the checks would pass: 2 us faster, for the calls whose cost is all overhead."""
    try:
        (_, d), (k, e), dtype = x.shape, means.shape, x.dtype
        return (
            d == e
            and k * d != 0
            and log_weights.shape == (k,)
            and p.shape == ((k, d, d), (d, d), (k, d), (k,))[code]
            and (dtype is torch.float32 or dtype is torch.float64)
            and dtype is log_weights.dtype is means.dtype is p.dtype
            and x.is_cpu
            and log_weights.is_cpu
            and means.is_cpu
            and p.is_cpu
        )
    except (AttributeError, TypeError, ValueError):
        return False


def check_labels(op: str, labels: Tensor, x: Tensor) -> None:
    """Refuses labels by shape, dtype and device."""
    if not isinstance(labels, Tensor) or (
        labels.shape != x.shape[:1] or labels.dtype is not torch.int64 or labels.device != x.device
    ):
        got = (
            f"{labels.dtype} {tuple(labels.shape)} on {labels.device}"
            if isinstance(labels, Tensor)
            else type(labels).__name__
        )
        raise ValueError(
            f"evidens.{op}: labels must be an int64 tensor of shape (N,) = ({x.shape[0]},) on "
            f"{x.device}, got {got}"
        )


def labels_in_range(function: Any) -> Any:
    """Refuses labels outside -1 .. K-1, where their values are known: inside the op."""

    def call(*args: Any) -> Any:
        labels, k = args[-1], args[2].shape[0]
        if labels is not None and labels.numel():
            low, high = (int(v) for v in labels.aminmax())
            if low < -1 or high >= k:
                raise ValueError(
                    f"evidens.gmm_statistics: labels must lie in -1 (free) .. K-1 = {k - 1}, "
                    f"got values from {low} to {high}"
                )
        return function(*args)

    return call
