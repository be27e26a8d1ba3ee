"""`Glow`: a multi-scale flow on images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evidens.models._density_state import check_sizes
from evidens.models.flow_base import Flow
from evidens.models.flow_realnvp import TANH_CLAMP
from evidens.nn import (
    ActNorm,
    AffineCoupling,
    Chain,
    ConvNet,
    Inverse,
    Invertible1x1Conv,
    Split,
    Squeeze,
)


class Glow(Flow):
    """Multi-scale normalizing flow on images.

    Every level squeezes 2 x 2 pixels into channels and makes ``steps`` steps of `ActNorm`,
    `Invertible1x1Conv` and `AffineCoupling`; then half of the channels is done and the other half
    goes on to the next level.

    Args:
        shape: (C, H, W) of an image; H and W multiples of ``2 ** levels``.
        context, classes: as in `evidens.RealNVP`; both enter every conditioner.
        levels: of resolution.
        steps: in each level.
        hidden: channels of the conditioners.
        scale_map, clamp, activation, dropout: as in `evidens.RealNVP`.
        standardize: images are standardised channel by channel.
        dequantize, logit: as in `evidens.RealNVP`; images come as integers.

    Source: Kingma and Dhariwal, Glow: generative flow with invertible 1x1 convolutions (2018).

    Example:
        >>> import evidens
        >>> from sklearn.datasets import load_digits
        >>> X = load_digits().images[:200, None]
        >>> flow = evidens.Glow((1, 8, 8), steps=2, hidden=16, dequantize=17)
        >>> flow.fit(X, epochs=2, random_state=0).sample(3, random_state=0).shape
        (3, 1, 8, 8)
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        context: int = 0,
        classes: int = 0,
        levels: int = 2,
        steps: int = 6,
        hidden: int = 64,
        scale_map: str = "tanh",
        clamp: float | None = None,
        activation: str = "relu",
        dropout: float = 0.0,
        standardize: bool = True,
        dequantize: int | None = None,
        logit: float | None = 0.005,
    ) -> None:
        settings = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_sizes(
            type(self).__name__,
            shape,
            context,
            classes,
            dequantize,
            logit,
            levels=levels,
            steps=steps,
            hidden=hidden,
        )
        settings["shape"] = [int(size) for size in shape]
        if scale_map == "tanh" and clamp is None:
            clamp = TANH_CLAMP
        if len(shape) != 3 or any(size % 2**levels for size in shape[1:]) or levels < 1:
            raise ValueError(
                f"Glow: shape must be (C, H, W) with H and W multiples of 2 ** levels = "
                f"{2**levels}, got {tuple(shape)}"
            )

        def step(channels: int) -> list[torch.nn.Module]:
            inputs, outputs = AffineCoupling.sizes(channels, scale_map=scale_map)
            net = ConvNet(
                inputs,
                outputs,
                hidden,
                context=context + classes,
                activation=activation,
                dropout=dropout,
            )
            return [
                ActNorm(channels),
                Invertible1x1Conv(channels, init="rotation"),
                AffineCoupling(channels, net, scale_map=scale_map, clamp=clamp),
            ]

        def level(channels: int, left: int) -> Chain:
            channels *= 4
            parts: list[torch.nn.Module] = [Squeeze(2)]
            for _ in range(steps):
                parts += step(channels)
            if left > 1:
                parts.append(Split(channels, level(channels // 2, left - 1)))
            return Chain(*parts, Inverse(Squeeze(2)))

        super().__init__(
            shape,
            level(shape[0], levels),
            settings=settings,
            context=context,
            classes=classes,
            dequantize=dequantize,
            logit=logit,
            standardize="channels" if standardize else "none",
        )
