"""The normaliser of a machine: by enumeration, or by annealed importance sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from evidens import ops
from evidens.models.rbm_parameters import RBMParameters

# Units that are enumerated without being asked to: 2^20 states take a fraction of a second.
FEW = 20


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
        exact: None enumerates what is small.
        chains, rungs, level, seed: of annealed importance sampling.
    """
    enumerable = p.weight.shape[0]
    if p.visible in ("bernoulli", "spin"):
        enumerable = min(enumerable, p.pixels)
    if exact is None:
        exact = enumerable <= FEW
    found = []
    for k in range(max(1, p.classes)):
        one = p.given_class(k) if p.classes else p
        bias = float(p.visible_bias[p.pixels + k]) if p.classes else 0.0
        if exact:
            value = float(ops.rbm_exact_log_partition(*one.arguments, **one.kinds))
            found.append((value + bias, value + bias, value + bias))
            continue
        ais = ops.rbm_ais(
            *one.arguments,
            chains=chains,
            rungs=rungs,
            base_bias=base_bias,
            seed=seed + k,
            **one.kinds,
        )
        low, high = ais.interval(level)
        found.append((float(ais.log_partition) + bias, float(low) + bias, float(high) + bias))
    # The ends of the interval of a sum lie within the sums of the ends.
    value, low, high = torch.tensor(found, dtype=torch.float64).logsumexp(0).tolist()
    if not math.isfinite(value):
        raise ValueError(
            f"log Z is {value}: the parameters are not finite numbers of moderate size; decrease "
            "learning_rate and fit again"
        )
    return Partition(value, low, high)
