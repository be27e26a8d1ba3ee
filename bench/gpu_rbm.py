"""Gibbs chains on a GPU beside torch's products, sigmoids and draws."""

from __future__ import annotations

import functools

from torch import Tensor

from evidens import ops

from . import torch_rbm as plain
from .gpu import COMPILED, OURS, TORCH, case, compiled, normal, setup
from .harness import Case, Floor, Needs, Setup

#: Chains, steps, visible and hidden units.
CHAINS = {"full": (8192, 20, 784, 1024), "quick": (256, 5, 784, 256), "smoke": (64, 2, 20, 8)}


def _build(shape: tuple[int, ...], device: str) -> Setup:
    n, steps, visible, hidden = shape
    begun = (normal(n, visible, device=device) > 0.5).float()
    tensors = [
        normal(hidden, visible, device=device, seed=1) * 0.05,
        normal(visible, device=device, seed=2) - 1,
        normal(hidden, device=device, seed=3) - 1,
    ]

    def ours(v: Tensor, *machine: Tensor) -> Tensor:
        return ops.rbm_gibbs(v, *machine, steps=steps, seed=0)[0]

    def torchs(v: Tensor, *machine: Tensor) -> Tensor:
        for _ in range(steps):
            v = plain.step(v, *machine)
        return v

    functions = {OURS: ours, TORCH: torchs, **compiled(torchs, device)}
    needs = Needs(flops=4.0 * n * steps * visible * hidden)
    made = setup(functions, torchs, [begun, *tensors], device, needs=needs)
    made.oracle = None

    made.check = plain.check_chains
    return made


def cases(size: str, device: str) -> list[Case]:
    """The rows of the table."""
    n, steps, visible, hidden = CHAINS[size]
    build = functools.partial(_build, CHAINS[size], device)
    work = f"{steps} Gibbs steps, {n:,} chains, {visible} x {hidden}"
    floors = (Floor("ratio", 3, TORCH), Floor("ratio", 2, COMPILED))
    return [case("rbm", work, size, build, *floors, error="standard deviations")]
