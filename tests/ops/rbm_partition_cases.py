"""Machines of every kind for the tests of partition functions, and Z by its definition."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import torch
from torch import Tensor

from evidens import ops

VISIBLE = ("bernoulli", "spin", "gaussian", "softmax")
HIDDEN = ("bernoulli", "spin")
KINDS = tuple(itertools.product(VISIBLE, HIDDEN))
DTYPES = (torch.float32, torch.float64)


@dataclasses.dataclass
class Machine:
    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor
    options: dict[str, Any]

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, self.visible_bias, self.hidden_bias

    def to(self, dtype: torch.dtype) -> Machine:
        options = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in self.options.items()}
        return Machine(*(t.to(dtype) for t in self.parameters), options)

    def exact(self) -> Tensor:
        return ops.rbm_exact_log_partition(*self.parameters, **self.options)

    def anneal(self, **changes: Any) -> ops.RBMPartition:
        given = dict(chains=20, rungs=7, seed=5, row0=3) | self.options | changes
        return ops.rbm_ais(*self.parameters, **given)


def machine(
    visible: str = "bernoulli",
    hidden: str = "bernoulli",
    units: int = 6,
    hidden_units: int = 4,
    *,
    levels: int = 3,
    scale: float = 0.5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Machine:
    """``units`` visible ones, or as many whole softmax groups as that has."""
    g = torch.Generator().manual_seed(seed + 100 * units + hidden_units)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    options: dict[str, Any] = {"visible": visible, "hidden": hidden}
    if visible == "softmax":
        units = max(units // levels, 1) * levels
        options["levels"] = levels
    if visible == "gaussian":
        options["log_variance"] = 0.4 * normal(units)
    found = Machine(normal(hidden_units, units) * scale, normal(units), normal(hidden_units), {})
    found.options = options
    return found.to(dtype)


def _states(kind: str, units: int, levels: int) -> Tensor:
    if kind == "softmax":
        chosen = torch.tensor(list(itertools.product(range(levels), repeat=units // levels)))
        return torch.nn.functional.one_hot(chosen, levels).flatten(1).double()
    rows = list(itertools.product((-(kind == "spin"), 1), repeat=units))
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), units)


def by_definition(m: Machine) -> Tensor:
    """log of the sum of exp(-E) over the states of both layers; of Gaussian units, integrated."""
    wide = m.to(torch.float64)
    (w, b, c), kind = wide.parameters, m.options["visible"]
    h = _states(m.options["hidden"], len(c), 0)
    if kind != "gaussian":
        v = _states(kind, len(b), m.options.get("levels", 0))
        return ((v @ b)[:, None] + h @ c + v @ w.T @ h.T).flatten().logsumexp(0)
    # The trapezoidal rule is exact to rounding for a Gaussian function that is cut off far away.
    variance = wide.options["log_variance"].exp()
    step = 0.05
    grid = torch.arange(-1200, 1201, dtype=torch.float64) * step
    terms = h @ c
    for i in range(len(b)):
        x = grid * variance[i].sqrt()
        energy = (x - b[i]).square() / (2 * variance[i]) - (h @ w[:, i])[:, None] * x / variance[i]
        terms = terms + (-energy).logsumexp(1) + math.log(step) + 0.5 * variance[i].log()
    return terms.logsumexp(0)
