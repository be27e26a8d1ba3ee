"""Random couplings, and how far a right answer may lie from the float64 reference.

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
from evidens.reference.coupling import DEFAULT_CLAMP, SCALE_MAPS

DTYPES = (torch.float32, torch.float64)
# Every scale map with its default, and those whose other constants are other formulas.
MAPS = (*((name, None) for name in SCALE_MAPS), ("sigmoid", 0.0), ("softplus", 0.0))
MAP_IDS = [f"{name}{'' if clamp is None else f'={clamp:g}'}" for name, clamp in MAPS]
# The active features of D: in runs, every other one, in any order, with gaps, none.
PATTERNS = {
    "all": lambda d: None,
    "first": lambda d: torch.arange((d + 1) // 2),
    "second": lambda d: torch.arange(d // 2, d),
    "even": lambda d: torch.arange(0, d, 2),
    "odd": lambda d: torch.arange(1, d, 2),
    "shuffled": lambda d: torch.randperm(d, generator=torch.Generator().manual_seed(d))[
        : 1 + d // 2
    ],
    "backwards": lambda d: torch.arange(d - 1, -1, -1),
    "runs": lambda d: torch.tensor([i for i in range(d) if i // 20 % 2 == 0]),
    "none": lambda d: torch.arange(0),
}


@dataclasses.dataclass
class Coupling:
    x: Tensor
    scale: Tensor | None
    shift: Tensor | None
    active: Tensor | None = None
    scale_map: str = "exp"
    clamp: float | None = None
    inverse: bool = False

    @property
    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("active", "scale_map", "clamp", "inverse")}

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.x, self.scale, self.shift

    @property
    def inner(self) -> tuple:
        """The arguments of the inner op."""
        clamp = DEFAULT_CLAMP.get(self.scale_map, 0.0) if self.clamp is None else self.clamp
        return *self.tensors, self.active, SCALE_MAPS.index(self.scale_map), clamp, self.inverse

    def with_(self, **changes: Any) -> Coupling:
        return dataclasses.replace(self, **changes)

    def to(self, dtype: torch.dtype) -> Coupling:
        x, scale, shift = (None if t is None else t.detach().to(dtype) for t in self.tensors)
        return self.with_(x=x, scale=scale, shift=shift)

    def leaves(self) -> tuple[Tensor | None, ...]:
        return tuple(
            None if t is None else t.detach().clone().requires_grad_() for t in self.tensors
        )


def coupling(
    n: int,
    d: int,
    places: tuple[int, ...] = (),
    pattern: str = "second",
    scale_map: str = "exp",
    clamp: float | None = None,
    inverse: bool = False,
    dtype: torch.dtype = torch.float64,
    spread: float = 1.0,
    seed: int = 0,
) -> Coupling:
    """Drawn in float64 and rounded to `dtype`; scale and shift are views of one tensor."""
    g = torch.Generator().manual_seed(seed + n + 1000 * d)
    active = PATTERNS[pattern](d)
    count = d if active is None else len(active)
    x = 2 * torch.randn(n, d, *places, generator=g, dtype=torch.float64)
    both = spread * torch.randn(n, 2 * count, *places, generator=g, dtype=torch.float64)
    both = both.to(dtype)
    return Coupling(
        x.to(dtype), both[:, :count], both[:, count:], active, scale_map, clamp, inverse
    )


def run(module: Any, case: Coupling, tensors: tuple | None = None) -> tuple[Tensor, Tensor]:
    return module.affine_coupling(*(tensors or case.tensors), **case.options)


def exact(case: Coupling) -> tuple[Tensor, Tensor]:
    return run(evidens.reference.coupling, case.to(torch.float64))


def gradients(module: Any, case: Coupling, grad_y: Tensor, grad_logdet: Tensor) -> list[Tensor]:
    """Of x, scale and shift, those that there are."""
    leaves = case.leaves()
    y, logdet = run(module, case, leaves)
    given = [t for t in leaves if t is not None]
    outputs, grads = [y], [grad_y.to(y)]
    if logdet.requires_grad:
        outputs, grads = [y, logdet], [grad_y.to(y), grad_logdet.to(y)]
    found = torch.autograd.grad(outputs, given, grads, allow_unused=True)
    return [torch.zeros_like(t) if f is None else f for t, f in zip(given, found)]


@dataclasses.dataclass
class Bounds:
    y: Tensor
    logdet: Tensor
    x: Tensor
    scale: Tensor
    shift: Tensor


def bounds(
    case: Coupling, grad_y: Tensor | None = None, grad_logdet: Tensor | None = None
) -> Bounds:
    """Of y, logdet and the gradients; twice over in float64, where the reference rounds as well."""
    eps = torch.finfo(case.x.dtype).eps * (2 if case.x.dtype is torch.float64 else 1)
    tiny = torch.finfo(case.x.dtype).tiny
    wide = case.to(torch.float64)
    x, d = wide.x, wide.x.shape[1]
    gy = torch.zeros_like(x) if grad_y is None else grad_y.double()
    gl = x.new_zeros(len(x)) if grad_logdet is None else grad_logdet.double()
    gl = gl.view(-1, *(1,) * (x.ndim - 1)).abs()
    index = torch.arange(d) if case.active is None else case.active
    xa, ga = x[:, index], gy[:, index].abs()
    r = torch.zeros_like(xa) if wide.scale is None else wide.scale
    t = torch.zeros_like(xa) if wide.shift is None else wide.shift
    m, dm, log, dl = (
        torch.ones_like(xa),
        torch.zeros_like(xa),
        torch.zeros_like(xa),
        torch.zeros_like(xa),
    )
    if wide.scale is not None:
        one = torch.ones_like(r)
        call = evidens.reference.coupling.affine_coupling
        options = wide.with_(active=None).options
        m = call(one, r, None, **options)[0]
        back = evidens.reference.coupling.affine_coupling_backward
        options["clamp"] = wide.inner[5]
        dm = back(one, r, None, one, None, **options)[1].abs()
        dl = back(one, r, None, None, torch.ones(len(r)).double(), **options)[1].abs()
        # Space by space: log s is the logdet of a row of one element.
        flat = {**options, "inverse": False}
        log = call(one.reshape(-1, 1), r.reshape(-1, 1), None, **flat)[1].reshape(r.shape).abs()
    # What goes into the exponential or logarithm is rounded, r + 2 and clamp * tanh(r) as well.
    relative = eps * (4 + 2 * log + 2 * (r.abs() + 2) * dl)
    centred = (xa - t).abs() if case.inverse else xa.abs()
    value = centred * m
    y, gx, total = torch.zeros_like(x), torch.zeros_like(x), x.new_zeros(len(x))
    y[:, index] = value * relative + eps * (value + t.abs()) + tiny
    gx[:, index] = ga * m * relative + tiny
    own = eps * (2 * log + 2 * (r.abs() + 2) * dl + 2 * (wide.scale is not None))
    total = own.flatten(1).sum(1) + eps * log.flatten(1).sum(1)
    # The slope of log s is as well conditioned as its terms: 1 - tanh^2 and the like are of size 1.
    slope = relative + eps * 4
    size = centred * ga * (dm + m * (wide.scale is not None)) + gl * (dl + 1)
    return Bounds(y, total, gx, size * slope + tiny, ga * (m + 1) * relative + tiny)


def check(case: Coupling, given: Coupling | None = None) -> tuple[Tensor, Tensor]:
    """Runs the op (on `given`, the same values otherwise laid out) and compares it."""
    y, logdet = run(evidens.ops, given or case)
    want_y, want_logdet = exact(case)
    assert y.dtype is logdet.dtype is case.x.dtype
    assert y.is_contiguous()
    bound = bounds(case)
    what = f"{case.scale_map} {case.clamp} {case.inverse} {tuple(case.x.shape)}"
    assert_within(y, want_y, bound.y, f"y {what}")
    assert_within(logdet, want_logdet, bound.logdet, f"logdet {what}")
    return y, logdet


def check_gradients(case: Coupling, given: Coupling | None = None, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    grad_y = torch.randn(case.x.shape, generator=g, dtype=torch.float64).to(case.x.dtype)
    grad_logdet = torch.randn(case.x.shape[0], generator=g, dtype=torch.float64).to(case.x.dtype)
    got = gradients(evidens.ops, given or case, grad_y, grad_logdet)
    want = gradients(evidens.reference.coupling, case.to(torch.float64), grad_y, grad_logdet)
    bound = bounds(case, grad_y, grad_logdet)
    names = [name for name, t in zip(("x", "scale", "shift"), case.tensors) if t is not None]
    for name, a, b in zip(names, got, want):
        assert a.dtype is case.x.dtype
        what = f"gradient of {name}, {case.scale_map} {case.inverse} {tuple(case.x.shape)}"
        assert_within(a, b, getattr(bound, name), what)
    return got


def strided(t: Tensor, layout: str) -> Tensor:
    """The same values, laid out otherwise; what lies between them is NaN."""
    if layout == "contiguous":
        return t.contiguous()
    n, c, *places = t.shape
    if layout == "rows":  # of a wider tensor, at an odd address
        wide = t.new_full((n, c + 3, *places), math.nan)[:, 1 : c + 1]
    elif layout == "channels":  # every third
        wide = t.new_full((n, 3 * c, *places), math.nan)[:, 1::3]
    elif layout == "transposed":  # rows inside, as after .T
        wide = t.new_full((c, *places, n), math.nan).movedim(-1, 0)
    else:  # channels last
        wide = t.new_full((n, *places, c), math.nan).movedim(-1, 1)
    assert wide.shape == t.shape
    return wide.copy_(t)


LAYOUTS = ("contiguous", "rows", "channels", "transposed", "last")
