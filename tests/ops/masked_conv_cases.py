"""Random masked convolutions and linear layers, and how far a right answer may lie.

The bounds are those of sums of products in any order: the number of terms times the rounding of
the sum of their magnitudes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from ops.comparison import assert_within
from torch import Tensor

import evidens
from evidens.reference import masked_conv as reference

DTYPES = (torch.float32, torch.float64)
ORDERS = ("rising", "shuffled", "equal", "unseen")


@dataclasses.dataclass
class Case:
    """Of either op: its tensors, and everything else."""

    op: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    options: dict[str, Any]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.x, self.weight, self.bias

    def with_(self, **changes: Any) -> Case:
        return dataclasses.replace(self, **changes)

    def to(self, dtype: torch.dtype) -> Case:
        x, weight, bias = (None if t is None else t.detach().to(dtype) for t in self.tensors)
        return self.with_(x=x, weight=weight, bias=bias)

    def magnitudes(self) -> Case:
        x, weight, bias = (None if t is None else t.abs() for t in self.to(torch.float64).tensors)
        return self.with_(x=x, weight=weight, bias=bias)

    def leaves(self) -> tuple[Tensor | None, ...]:
        return tuple(
            None if t is None else t.detach().clone().requires_grad_() for t in self.tensors
        )

    def live(self) -> Tensor:
        """The mask of the weight, entry by entry, from the definition."""
        if self.op == "masked_linear":
            live = torch.zeros(self.weight.shape, dtype=torch.bool)
            outs, ins = self.options["out_degrees"].tolist(), self.options["in_degrees"].tolist()
            for o, a in enumerate(outs):
                for i, b in enumerate(ins):
                    live[o, i] = a > b if self.options.get("strict") else a >= b
            return live
        return definition(self.weight.shape, self.options["mask"], self.options.get("groups", 1))


def definition(shape: Any, mask: Any, groups: int) -> Tensor:
    """The mask (O, C, kh, kw) of a convolution, entry by entry."""
    o, c, down, across = shape
    live = torch.zeros(shape, dtype=torch.bool)
    for row in range(down):
        for column in range(across):
            before = row < down // 2 or (row == down // 2 and column < across // 2)
            centre = (row, column) == (down // 2, across // 2)
            given = (before or (centre and mask == "B")) if isinstance(mask, str) else bool(
                mask[row][column]
            )  # fmt: skip
            for i in range(o):
                for j in range(c):
                    mine, other = i * groups // o, j * groups // c
                    sees = (mine >= other if given else mine > other) if centre else given
                    live[i, j, row, column] = sees
    return live


def conv(
    n: int = 2,
    c: int = 3,
    o: int = 4,
    image: tuple[int, int] = (5, 6),
    kernel: tuple[int, int] = (3, 3),
    mask: Any = "A",
    groups: int = 1,
    dtype: torch.dtype = torch.float64,
    bias: bool = True,
    seed: int = 0,
) -> Case:
    g = torch.Generator().manual_seed(seed + n + 100 * c + 10_000 * o)
    shapes = (n, c, *image), (o, c, *kernel), (o,)
    x, weight, b = (torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes)
    return Case("masked_conv2d", x, weight, b if bias else None, {"mask": mask, "groups": groups})


def degrees(count: int, order: str, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed + count)
    found = torch.randint(-3, max(1, count // 2), (count,), generator=g)
    if order == "equal":
        return torch.full((count,), 2)
    if order == "unseen":  # of outputs below every input, as of dimensions that nothing decides
        return torch.where(torch.rand(count, generator=g) < 0.5, -(2**63), 2**63 - 1)
    return found.sort()[0] if order == "rising" else found


def linear(
    n: int = 4,
    i: int = 7,
    o: int = 9,
    order: str = "shuffled",
    strict: bool = False,
    dtype: torch.dtype = torch.float64,
    bias: bool = True,
    seed: int = 0,
) -> Case:
    g = torch.Generator().manual_seed(seed + n + 100 * i + 10_000 * o)
    x, weight, b = (
        torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in ((n, i), (o, i), (o,))
    )
    options = {
        "in_degrees": degrees(i, order, seed),
        "out_degrees": degrees(o, order, seed + 1),
        "strict": strict,
    }
    return Case("masked_linear", x, weight, b if bias else None, options)


def run(module: Any, case: Case, tensors: tuple | None = None) -> Tensor:
    return getattr(module, case.op)(*(tensors or case.tensors), **case.options)


def gradients(module: Any, case: Case, grad_y: Tensor) -> list[Tensor]:
    """Of x, weight and, where there is one, bias."""
    leaves = case.leaves()
    y = run(module, case, leaves)
    given = [t for t in leaves if t is not None]
    return list(torch.autograd.grad(y, given, grad_y.to(y)))


def check(case: Case, given: Case | None = None, seed: int = 0) -> Tensor:
    """Runs the op and its gradients (on `given`, the same values otherwise laid out)."""
    given = given or case
    wide = case.to(torch.float64)
    y = run(evidens.ops, given)
    assert y.dtype is case.x.dtype
    assert y.is_contiguous()
    eps = 2 * torch.finfo(case.x.dtype).eps
    large = case.magnitudes()
    terms = case.weight[0].numel() + 2
    size = run(reference, large)
    assert_within(y, run(reference, wide), terms * eps * size, f"y {case.op}")
    g = torch.Generator().manual_seed(seed)
    grad_y = torch.randn(y.shape, generator=g, dtype=torch.float64).to(y.dtype)
    got = gradients(evidens.ops, given, grad_y)
    want = gradients(reference, wide, grad_y)
    sizes = gradients(reference, large, grad_y.double().abs())
    places = max(1, y.numel() // case.weight.shape[0])
    counts = (case.weight[:, :1].numel() + 2, places + 2, places + 2)
    for name, a, b, s, count in zip(("x", "weight", "bias"), got, want, sizes, counts):
        assert a.dtype is case.x.dtype
        assert_within(a, b, count * eps * s, f"gradient of {name}, {case.op}")
    assert (got[1][~case.live()] == 0).all()
    return y
