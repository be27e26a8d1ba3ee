"""`NeuralSplineFlow`: rational-quadratic spline coupling layers on rows of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from evidens.models._density_state import check_sizes, widths
from evidens.models.flow_base import Flow
from evidens.models.flow_circular import HalfTurn, OnCircle
from evidens.models.flow_realnvp import coupling_mask
from evidens.nn import MLP, Chain, InvertibleLinear, SplineCoupling


class NeuralSplineFlow(Flow):
    """Normalizing flow of rational-quadratic spline coupling layers.

    Args:
        features: D.
        context, classes, layers, hidden: as in `evidens.RealNVP`.
        bins: M, of every spline.
        bound: B; splines work on [-B, B] in units of the standard deviation, and what lies outside
            passes as it is.  With heavy tails this matters more than ``bins``.
        circular: features that are angles, in radians; they are taken modulo 2 pi, their splines
            are periodic, and their base is uniform on the circle.
        linear: a learned linear map (LU) before every coupling layer, where no feature is circular.
        parameters: ``"nflows"`` or ``"zuko"``: the map from numbers to splines.
        activation, dropout, standardize, dequantize, logit: as in `evidens.RealNVP`.

    It starts as the Gaussian of independent features with the means and variances of the data.

    Raises:
        ValueError: a size out of range, ``circular`` names no feature or comes with ``dequantize``.

    Source: Durkan, Bekasov, Murray and Papamakarios, Neural spline flows (2019); for circles,
    Rezende et al., Normalizing flows on tori and spheres (2020).

    Example:
        >>> import evidens, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = rng.uniform(size=(1000, 1))
        >>> flow = evidens.NeuralSplineFlow(1, layers=2).fit(X, epochs=50, random_state=0)
        >>> flow.score(X) > -0.1  # a Gaussian reaches -0.18, the truth is 0
        True
    """

    def __init__(
        self,
        features: int,
        *,
        context: int = 0,
        classes: int = 0,
        layers: int = 5,
        hidden: Sequence[int] = (128, 128),
        bins: int = 8,
        bound: float = 5.0,
        circular: Sequence[int] = (),
        linear: bool = True,
        parameters: str = "nflows",
        activation: str = "relu",
        dropout: float = 0.0,
        standardize: bool = True,
        dequantize: int | None = None,
        logit: float | None = 0.005,
    ) -> None:
        settings = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_sizes(
            type(self).__name__,
            (features,),
            context,
            classes,
            dequantize,
            logit,
            layers=layers,
            bins=bins,
        )
        circular = [int(i) for i in circular]
        settings["hidden"], settings["circular"] = widths(type(self).__name__, hidden), circular
        if not set(circular) <= set(range(features)):
            raise ValueError(
                f"NeuralSplineFlow: circular must hold features from 0 to {features - 1}, got "
                f"{circular}"
            )
        if circular and dequantize is not None:
            raise ValueError(
                "NeuralSplineFlow: expected circular or dequantize, got both; integers are no "
                "angles"
            )
        angle = torch.zeros(features, dtype=torch.bool)
        angle[list(circular)] = True
        tails = ["circular" if a else "linear" for a in angle.tolist()]
        bounds = [math.pi if a else float(bound) for a in angle.tolist()]
        steps: list[nn.Module] = []
        for i in range(layers):
            mask = coupling_mask(features, i)
            inputs, outputs = SplineCoupling.sizes(features, mask=mask, bins=bins, tails=tails)
            turning = angle[~mask]
            net: nn.Module = MLP(
                inputs + int(turning.sum()),
                outputs,
                hidden,
                context=context + classes,
                activation=activation,
                dropout=dropout,
            )
            if turning.any():
                net = OnCircle(net, turning)
            if angle.any():
                steps.append(HalfTurn(angle))
            elif linear and features > 1:
                steps.append(InvertibleLinear(features))
            steps.append(
                SplineCoupling(
                    features,
                    net,
                    bins=bins,
                    mask=mask,
                    parameters=parameters,
                    tails=tails,
                    bound=bounds if angle.any() else bound,
                )
            )
        super().__init__(
            (features,),
            Chain(*steps),
            settings=settings,
            context=context,
            classes=classes,
            dequantize=dequantize,
            logit=logit,
            standardize="features" if standardize else "none",
            circular=angle,
        )
