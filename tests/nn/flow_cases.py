"""Layers for the tests of `evidens.nn`, with weights that are not zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from evidens.nn import (
    MLP,
    ActNorm,
    AffineAutoregressive,
    AffineCoupling,
    Chain,
    ConvNet,
    Inverse,
    Invertible1x1Conv,
    InvertibleLinear,
    MaskedMLP,
    Permutation,
    SplineAutoregressive,
    SplineCoupling,
    Split,
    Squeeze,
)
from evidens.nn.coupling import SCALE_MAPS

D, C = 5, 4
MASK = torch.tensor([True, False, True, True, False])


def perturbed(layer: nn.Module, by: float = 0.3) -> nn.Module:
    """The layer in float64 and evaluation mode, every parameter moved."""
    layer = layer.double().eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(by * torch.randn(p.shape, dtype=torch.float64))
    return layer


def affine(mask: Tensor | None = MASK, context: int = 0, **options: Any) -> AffineCoupling:
    sizes = AffineCoupling.sizes(D, mask=mask, scale_map=options.get("scale_map", "exp"))
    return AffineCoupling(D, MLP(*sizes, (16,), context=context), mask=mask, **options)


def spline(mask: Tensor | None = MASK, context: int = 0, **options: Any) -> SplineCoupling:
    options = {"bound": 3.0} | options
    sizes = SplineCoupling.sizes(D, mask=mask, bins=4, tails=options.get("tails", "linear"))
    return SplineCoupling(D, MLP(*sizes, (16,), context=context), bins=4, mask=mask, **options)


def autoregressive_spline() -> SplineAutoregressive:
    net = MaskedMLP(D, SplineAutoregressive.outputs(4), (16,), order=[2, 0, 1, 4, 3])
    return SplineAutoregressive(net, bins=4, bound=3.0)


def image_coupling(channels: int = C) -> AffineCoupling:
    inputs, outputs = AffineCoupling.sizes(channels)
    return AffineCoupling(channels, ConvNet(inputs, outputs, 8))


def pixelwise() -> Chain:
    """Two scales over (C, 2, 2) images."""
    coarse = Chain(Squeeze(2), Invertible1x1Conv(8), image_coupling(8), Inverse(Squeeze(2)))
    return Chain(ActNorm(C), image_coupling(), Split(C, coarse))


#: Name, layer, shape of a row.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "actnorm": (lambda: ActNorm(D), (D,)),
    "actnorm image": (lambda: ActNorm(C), (C, 2, 3)),
    **{f"affine {m}": (lambda m=m: affine(scale_map=m), (D,)) for m in SCALE_MAPS},
    "affine all": (lambda: affine(torch.ones(D, dtype=torch.bool)), (D,)),
    "affine image": (image_coupling, (C, 2, 3)),
    "spline": (spline, (D,)),
    "spline zuko": (lambda: spline(parameters="zuko"), (D,)),
    "spline circular": (lambda: spline(tails="circular"), (D,)),
    "spline mixed": (
        lambda: spline(tails=["linear", "linear", "circular"] + ["linear"] * 2, bound=[3.0] * D),
        (D,),
    ),
    "spline all": (lambda: spline(torch.ones(D, dtype=torch.bool)), (D,)),
    "autoregressive": (lambda: AffineAutoregressive(MaskedMLP(D, 2, (16,))), (D,)),
    "autoregressive spline": (autoregressive_spline, (D,)),
    "linear": (lambda: InvertibleLinear(D), (D,)),
    "linear rotation": (lambda: InvertibleLinear(D, init="rotation"), (D,)),
    "1x1": (lambda: Invertible1x1Conv(C, init="rotation"), (C, 2, 3)),
    "permutation": (lambda: Permutation(D, "random"), (D,)),
    "squeeze": (lambda: Squeeze(2), (C, 4, 2)),
    "inverse": (lambda: Inverse(affine()), (D,)),
    "chain": (lambda: Chain(affine(), Permutation(D), spline(), InvertibleLinear(D)), (D,)),
    "multiscale": (pixelwise, (C, 2, 2)),
}
