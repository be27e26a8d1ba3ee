"""Small machines, their exact laws by enumeration, and how far a right answer may lie."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import torch
from torch import Tensor

import evidens
from evidens.reference import rbm as reference

DTYPES = (torch.float32, torch.float64)
VISIBLE = reference.VISIBLE
HIDDEN = reference.HIDDEN
KINDS = tuple(itertools.product(VISIBLE, HIDDEN))


@dataclasses.dataclass
class Machine:
    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor
    log_variance: Tensor | None = None
    visible: str = "bernoulli"
    hidden: str = "bernoulli"
    levels: int | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, self.visible_bias, self.hidden_bias

    @property
    def options(self) -> dict[str, Any]:
        names = "visible", "hidden", "levels", "log_variance"
        return {name: getattr(self, name) for name in names}

    def with_(self, **changes: Any) -> Machine:
        return dataclasses.replace(self, **changes)

    def to(self, dtype: torch.dtype) -> Machine:
        names = "weight", "visible_bias", "hidden_bias", "log_variance"
        given = {name: getattr(self, name) for name in names}
        return self.with_(**{n: t if t is None else t.to(dtype) for n, t in given.items()})


def machine(
    units: int,
    hidden_units: int,
    visible: str = "bernoulli",
    hidden: str = "bernoulli",
    dtype: torch.dtype = torch.float64,
    levels: int = 3,
    scale: float = 1.0,
    seed: int = 0,
) -> Machine:
    """Weights whose sums over a layer are of the order of ``scale``."""
    g = torch.Generator().manual_seed(seed + units + 1000 * hidden_units)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    weight = scale * normal(hidden_units, units) / math.sqrt(max(units, hidden_units, 1) / 4)
    parts = weight, scale * normal(units), scale * normal(hidden_units), 0.3 * normal(units)
    weight, b, c, log_variance = (t.to(dtype) for t in parts)
    return Machine(
        weight,
        b,
        c,
        log_variance if visible == "gaussian" else None,
        visible,
        hidden,
        levels if visible == "softmax" else None,
    )


def states(n: int, units: int, kind: str, dtype: torch.dtype, levels: int = 3, on: float = 0.3):
    """Random states of a layer, (n, units)."""
    g = torch.Generator().manual_seed(n + 7 * units)
    if kind == "gaussian":
        return torch.randn(n, units, generator=g, dtype=torch.float64).to(dtype)
    if kind == "softmax":
        level = torch.randint(0, levels, (n, units // levels), generator=g)
        return torch.nn.functional.one_hot(level, levels).flatten(1).to(dtype)
    x = (torch.rand(n, units, generator=g) < on).to(dtype)
    return 2 * x - 1 if kind == "spin" else x


def layer_states(units: int, kind: str, levels: int | None) -> Tensor:
    """Every state of a layer that has finitely many, (S, units)."""
    if kind == "softmax":
        assert levels is not None
        choices = itertools.product(range(levels), repeat=units // levels)
        index = torch.tensor(list(choices)).view(-1, units // levels)
        return torch.nn.functional.one_hot(index, levels).flatten(1).double()
    values = (-1.0, 1.0) if kind == "spin" else (0.0, 1.0)
    return torch.tensor(list(itertools.product(values, repeat=units))).view(-1, units).double()


def energy(m: Machine, v: Tensor, h: Tensor) -> Tensor:
    """E (S, R) of every visible state (S, V) with every hidden one (R, J), by its definition."""
    wide = m.to(torch.float64)
    own = -(v @ wide.visible_bias)
    seen = v
    if wide.log_variance is not None:
        variance = wide.log_variance.exp()
        own = ((v - wide.visible_bias) ** 2 / (2 * variance)).sum(1)
        seen = v / variance
    return own[:, None] - h @ wide.hidden_bias - seen @ wide.weight.T @ h.T


def joint_law(m: Machine, beta: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Every v and h, and the probability (S, R) of each pair."""
    v = layer_states(m.weight.shape[1], m.visible, m.levels)
    h = layer_states(m.weight.shape[0], m.hidden, None)
    log = -beta * energy(m, v, h)
    return v, h, torch.exp(log - log.logsumexp((0, 1)))


def field_error(m: Machine, v: Tensor, hidden: bool = True) -> Tensor:
    """A bound of the rounding of the input of every unit: first order, sums in any order."""
    eps = torch.finfo(m.weight.dtype).eps
    weight = m.weight.double().abs()
    if not hidden:
        size = v.double().abs() @ weight + m.visible_bias.double().abs()
        return eps * (m.weight.shape[0] + 4) * size
    x = v.double().abs()
    if m.log_variance is not None:
        x = x * torch.exp(-m.log_variance.double()) * 2
    return eps * (m.weight.shape[1] + 4) * (x @ weight.T + m.hidden_bias.double().abs())


def gibbs(m: Machine, state: Tensor, module: Any = evidens.ops, **options: Any) -> Any:
    given: dict[str, Any] = {"seed": 0, **m.options, **options}
    return module.rbm_gibbs(state, *m.tensors, **given)


def chi_square(counts: Tensor, probabilities: Tensor) -> tuple[float, int]:
    """The statistic and its degrees of freedom, cells of few expected draws taken together."""
    expected = probabilities.flatten() * counts.sum()
    few = expected < 8
    observed = torch.cat((counts.flatten()[~few], counts.flatten()[few].sum()[None]))
    expected = torch.cat((expected[~few], expected[few].sum()[None]))
    observed, expected = observed[expected > 0], expected[expected > 0]
    return ((observed - expected) ** 2 / expected).sum().item(), len(expected) - 1


def assert_law(counts: Tensor, probabilities: Tensor) -> None:
    """Five standard deviations of the statistic; seeds are fixed."""
    statistic, freedom = chi_square(counts.double(), probabilities)
    assert freedom >= 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 10, (statistic, freedom)
