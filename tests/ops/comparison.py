"""What tests of ops hold results against."""

from __future__ import annotations

import os

import torch
from torch import Tensor

# Of two launches with other strides or options: a GPU compiles each, and may contract and add in
# another order.  In the interpreter they do the same.
EXACT = {"rtol": 0.0, "atol": 0.0, "equal_nan": True}
if os.environ.get("TRITON_INTERPRET") != "1":
    EXACT |= {"rtol": 1e-12, "atol": 1e-12}


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor | float, what: str = "") -> None:
    """Equal where not finite, within the bound elsewhere."""
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    actual, expected, finite = actual.double(), expected.double(), expected.isfinite()
    bound = torch.as_tensor(bound, dtype=torch.float64, device=expected.device)
    bound = bound.expand_as(expected)
    same = torch.where(
        finite,
        (actual - expected).abs() <= bound,
        (actual == expected) | (actual.isnan() & expected.isnan()),
    )
    if not same.all():
        at = tuple((~same).nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int((~same).sum())} of {same.numel()} differ, first at {at}: "
            f"{actual[at].item()!r}, expected {expected[at].item()!r} within {bound[at].item():.3g}"
        )
