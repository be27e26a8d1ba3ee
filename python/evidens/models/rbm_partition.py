"""The normaliser of a machine: by enumeration, or by annealed importance sampling."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from evidens import ops
from evidens.models._arrays import PIECE
from evidens.models.rbm_chains import parts
from evidens.models.rbm_parameters import RBMParameters

# Units that are enumerated without being asked to: 2^20 states take a fraction of a second.
FEW = 20
# Chains of annealing in a call, for each thread: fewer would waste the products.
CHAINS = 16
# Rounds in which hidden states climb to a mode.
CLIMB = 5


@dataclass(frozen=True)
class Partition:
    """``log Z`` and its interval, nats."""

    value: float
    low: float
    high: float

    @property
    def exact(self) -> bool:
        """Whether nothing was drawn."""
        return self.low == self.high


def log_partition(
    p: RBMParameters,
    base_bias: Tensor | None,
    *,
    states: Tensor | None = None,
    exact: bool | None,
    chains: int,
    rungs: int,
    level: float,
    seed: int,
) -> Partition:
    """``log Z`` of a machine, summed over its classes.

    Args:
        p: the machine, on the CPU.
        base_bias: (V,) visible bias of the base-rate model that annealing starts from.
        states: (M, J) likely hidden states, by which the estimate is checked.
        exact: None enumerates what is small.
        chains, rungs, level, seed: of annealed importance sampling.
    """
    if exact is None:
        exact = _bits(p) <= FEW
    if exact and p.visible == "softmax" and _visible_bits(p) <= min(FEW, p.weight.shape[0]):
        value = _sum_of_visible_states(p)
        return Partition(value, value, value)
    found = []
    for k in range(max(1, p.classes)):
        one = p.given_class(k) if p.classes else p
        bias = float(p.visible_bias[p.pixels + k]) if p.classes else 0.0
        if exact:
            value = float(ops.rbm_exact_log_partition(*one.arguments, **one.kinds))
            found.append((value + bias, value + bias, value + bias))
            continue
        ais = _annealed(one, base_bias, chains, rungs, seed + k)
        low, high = ais.interval(level)
        found.append((float(ais.log_partition) + bias, float(low) + bias, float(high) + bias))
    # The ends of the interval of a sum lie within the sums of the ends.
    value, low, high = torch.tensor(found, dtype=torch.float64).logsumexp(0).tolist()
    if not math.isfinite(value):
        raise ValueError(
            f"log Z is {value}: the parameters are not finite numbers of moderate size; decrease "
            "learning_rate and fit again"
        )
    if not exact and states is not None and high < (least := least_log_partition(p, states)):
        warnings.warn(
            f"log Z was estimated as {value:.6g}, at most {high:.6g}, but single states of the "
            f"machine already weigh {least:.6g}: annealing misses a mode. That is taken for log Z, "
            "without an upper end. Use more rungs, or exact=True where a layer is small.",
            RuntimeWarning,
            stacklevel=4,
        )
        return Partition(least, least, math.inf)
    return Partition(value, low, high)


def _visible_bits(p: RBMParameters) -> float:
    """Binary logarithm of the number of visible states; a class is summed beside them."""
    if p.visible == "gaussian":
        return math.inf
    groups = p.pixels // (p.levels or 1)
    return groups * math.log2(p.levels or 2)


def _bits(p: RBMParameters) -> float:
    """Binary logarithm of the number of states of the smaller layer."""
    return min(p.weight.shape[0], _visible_bits(p))


def _sum_of_visible_states(p: RBMParameters) -> float:
    """``log Z`` of softmax groups, whose L^D states the op does not enumerate."""
    p = _double(p)
    assert p.levels is not None
    groups = p.pixels // p.levels
    place = p.levels ** torch.arange(groups)
    total = torch.tensor(-math.inf, dtype=torch.float64)
    for numbers in torch.arange(p.levels**groups).split(max(1, PIECE // max(p.weight.shape))):
        level = numbers[:, None] // place % p.levels
        v = torch.nn.functional.one_hot(level, p.levels).flatten(1).double()
        total = torch.logaddexp(total, p.log_weight(v).logsumexp(0))
    return float(total)


def _annealed(
    p: RBMParameters, base_bias: Tensor | None, chains: int, rungs: int, seed: int
) -> ops.RBMPartition:
    """All chains, some at a time: a chain does not depend on how many others there are."""
    first, found = 0, []
    cut: Iterable[int] = (chains,)  # what is no number the op refuses
    if isinstance(chains, Integral) and isinstance(rungs, Integral) and chains > 0:
        cut = parts(chains, rungs * p.weight.numel(), CHAINS * torch.get_num_threads())
    for part in cut:
        found.append(
            ops.rbm_ais(
                *p.arguments,
                chains=part,
                rungs=rungs,
                base_bias=base_bias,
                seed=seed,
                row0=first,
                **p.kinds,
            )
        )
        first += part
    return replace(found[0], log_weights=torch.cat([f.log_weights for f in found]))


def least_log_partition(p: RBMParameters, states: Tensor) -> float:
    """A lower bound of ``log Z``: what distinct hidden states weigh together.

    Args:
        p: the machine.
        states: (M, J) hidden states; these, all states of one unit, and the modes to which they
            lead are what is summed.
    """
    p = _double(p)
    off, on = (0.0, 1.0) if p.hidden == "bernoulli" else (-1.0, 1.0)
    unit = torch.eye(p.weight.shape[0], dtype=torch.float64)
    h = torch.cat([states.double(), torch.where(unit > 0, on, off), torch.full_like(unit[:1], on)])
    seen = [h]
    for _ in range(CLIMB):
        # Means in place of the likelier states: they are what all kinds of visible units have.
        h = torch.where(p.hidden_input(p.visible_mean(h)) > 0, on, off).to(h)
        seen.append(h)
    return float(p.log_weight_of_hidden(torch.cat(seen).unique(dim=0)).logsumexp(0))


def _double(p: RBMParameters) -> RBMParameters:
    names = ("weight", "visible_bias", "hidden_bias", "log_variance")
    tensors = {name: getattr(p, name) for name in names}
    double: dict[str, Any] = {n: t if t is None else t.double() for n, t in tensors.items()}
    return replace(p, **double)
