"""`RealNVP`: affine coupling layers on rows of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evidens.models._density_state import check_sizes, widths
from evidens.models.flow_base import Flow
from evidens.nn import MLP, AffineCoupling, Chain, InvertibleLinear

# Affine layers that scale by up to e^5, the op's bound, now and then throw a row far away.
TANH_CLAMP = 2.0


class RealNVP(Flow):
    """Normalizing flow of affine coupling layers.

    Args:
        features: D.
        context: K, features of the context that `log_prob` and `sample` then take.
        classes: number of classes: ``p(x | y)`` and, by Bayes' rule, ``p(y | x)``.
        layers: coupling layers.
        hidden: widths of the hidden layers of each conditioner.
        scale_map, clamp: as in `evidens.nn.AffineCoupling`; None is a clamp of 2 for ``"tanh"``:
            a layer scales by e^-2 to e^2.
        linear: a learned linear map (LU) before every coupling layer.
        activation, dropout: of the conditioners, as in `evidens.nn.MLP`.
        standardize: rows and contexts are standardised by the mean and scale of the training rows,
            which `log_prob` accounts for.
        dequantize: L, for data of integers 0 .. L - 1: uniform noise in [0, 1) is added to them.
        logit: a of ``logit(a + (1 - 2 a) x / L)``, which takes integers to the line; None for no
            logit.

    With maps that are exponentials (all but ``"sigmoid"`` and ``"softplus"``) it starts as the
    Gaussian of independent features with the means and variances of the data.
    Which features a layer transforms is fixed by D and the number of the layer: random halves, in
    pairs of a half and its complement.

    Source: Dinh, Sohl-Dickstein and Bengio, Density estimation using Real NVP (2017).

    Example:
        >>> import evidens, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(1000, 2))
        >>> X[:, 1] += X[:, 0] ** 2
        >>> flow = evidens.RealNVP(2, layers=4, hidden=(32,)).fit(X, epochs=20, random_state=0)
        >>> flow.score(X) > -3.1  # a Gaussian reaches -3.4, the truth is -2.84
        True
        >>> flow.sample(3, random_state=0).shape
        (3, 2)
    """

    def __init__(
        self,
        features: int,
        *,
        context: int = 0,
        classes: int = 0,
        layers: int = 10,
        hidden: Sequence[int] = (128, 128),
        scale_map: str = "tanh",
        clamp: float | None = None,
        linear: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        standardize: bool = True,
        dequantize: int | None = None,
        logit: float | None = 0.005,
    ) -> None:
        settings = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_sizes(
            type(self).__name__, (features,), context, classes, dequantize, logit, layers=layers
        )
        settings["hidden"] = widths(type(self).__name__, hidden)
        if scale_map == "tanh" and clamp is None:
            clamp = TANH_CLAMP
        steps: list[torch.nn.Module] = []
        for i in range(layers):
            mask = coupling_mask(features, i)
            inputs, outputs = AffineCoupling.sizes(features, mask=mask, scale_map=scale_map)
            net = MLP(
                inputs,
                outputs,
                hidden,
                context=context + classes,
                activation=activation,
                dropout=dropout,
            )
            if linear:
                steps.append(InvertibleLinear(features))
            steps.append(AffineCoupling(features, net, mask=mask, scale_map=scale_map, clamp=clamp))
        super().__init__(
            (features,),
            Chain(*steps),
            settings=settings,
            context=context,
            classes=classes,
            dequantize=dequantize,
            logit=logit,
            standardize="features" if standardize else "none",
        )


def coupling_mask(features: int, layer: int) -> Tensor:
    """(D,) bool, the active features of a layer: random halves, each followed by its complement."""
    if features == 1:
        return torch.ones(1, dtype=torch.bool)
    order = torch.randperm(
        features, generator=torch.Generator().manual_seed(layer // 2), device="cpu"
    )
    mask = torch.zeros(features, dtype=torch.bool)
    mask[order[: features // 2]] = True
    return mask if layer % 2 == 0 else ~mask
