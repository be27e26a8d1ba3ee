"""`SplineCoupling`: coupling layers of rational-quadratic splines."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from evidens import ops
from evidens.nn.coupling import Coupling, coupling_mask
from evidens.ops._spline_arguments import coupling_settings

# Derivatives of a spline with tails of one kind, less the bins.
DERIVATIVES = {"linear": -1, "circular": 0, "none": 1}


class SplineCoupling(Coupling):
    """Rational-quadratic splines on the active features, with parameters from the others.

    Args:
        features: D.
        conditioner: module from the passive features (N, D - A), and the context where there is
            one, to (N, A P): for every active feature its widths, heights and derivatives.
        bins: M.
        mask: (D,) bool, True where a feature is active; None: the second half is.
        parameters: ``"nflows"`` or ``"zuko"``, the map from raw parameters to knots.
        tails: ``"linear"`` (identity outside the box), ``"circular"``, ``"none"`` (x is confined
            to the box), or one name per feature; where the active ones agree, that is their name.
        bound: B, the box is [-B, B]; a sequence has one per feature, but four numbers with tails
            ``"none"`` are (left, right, bottom, top), whatever D.  None for the map's default.
        min_width, min_height, min_derivative: least width, height and slope (nflows).
        slope: of zuko's soft clip.
        identity_init: zeros give derivatives of 1, so a conditioner that gives zeros makes the
            layer the identity (nflows; zuko's map always does).
        logit_scale: factor on raw widths and heights; nflows' own layers use ``hidden ** -0.5``.

    P is 3 M - 1 with linear tails, 3 M with circular ones and 3 M + 1 without or with a mix.

    Raises:
        ValueError: a mask, tails or bounds of another size; what `evidens.ops.spline_coupling`
            would not take.
        TypeError: the conditioner is not a module, or gives no tensor.

    Source: Durkan et al., Neural spline flows (2019), section 3; circular tails: Rezende et al.,
    Normalizing flows on tori and spheres (2020).

    Example:
        >>> import torch, evidens
        >>> inputs, outputs = evidens.nn.SplineCoupling.sizes(2, bins=8)
        >>> layer = evidens.nn.SplineCoupling(2, evidens.nn.MLP(inputs, outputs), bound=3.0)
        >>> x = torch.randn(4, 2)
        >>> y, logdet = layer(x)
        >>> outputs, torch.allclose(x, y, atol=1e-5)
        (23, True)
    """

    def __init__(
        self,
        features: int,
        conditioner: nn.Module,
        *,
        bins: int = 8,
        mask: Any = None,
        parameters: str = "nflows",
        tails: str | Sequence[str] = "linear",
        bound: float | Sequence[float] | None = None,
        min_width: float = 1e-3,
        min_height: float = 1e-3,
        min_derivative: float = 1e-3,
        slope: float = 1e-3,
        identity_init: bool = True,
        logit_scale: float = 1.0,
    ) -> None:
        super().__init__(features, conditioner, mask)
        if parameters not in ("nflows", "zuko"):
            raise ValueError(
                f"SplineCoupling: expected parameters 'nflows' or 'zuko', got {parameters!r}"
            )
        self.bins = bins
        self.tails = _tails(features, self.mask, tails)
        box: Any = bound
        if hasattr(box, "tolist"):
            box = box.tolist()
        self.options = {
            "parameters": parameters,
            "min_width": min_width,
            "min_height": min_height,
            "min_derivative": min_derivative,
            "slope": slope,
            "identity_init": identity_init,
            "logit_scale": logit_scale,
        }
        self.outputs = self.sizes(features, mask=self.mask, bins=bins, tails=tails)[1]
        # The op's own checks, before the first call.
        count = self.outputs // self.n_active if self.n_active else 0
        options: dict[str, Any] = self.options
        coupling_settings(features, bins, count, tails=self.tails, bound=box, **options)
        one = box is None or isinstance(box, numbers.Real)
        self.bound: float | list[float] | None = box if one else list(box)

    @staticmethod
    def sizes(
        features: int, *, mask: Any = None, bins: int = 8, tails: str | Sequence[str] = "linear"
    ) -> tuple[int, int]:
        """Features that a conditioner gets and that it must give: ``(D - A, A P)``."""
        mask = coupling_mask("SplineCoupling", features, mask)
        active, tails = int(mask.sum()), _tails(features, mask, tails)
        derivatives = bins + (DERIVATIVES[tails] if isinstance(tails, str) else 1)
        return features - active, active * (2 * bins + derivatives)

    def extra_repr(self) -> str:
        """What repr shows."""
        tails = self.tails if isinstance(self.tails, str) else "mixed"
        bound = f", bound={self.bound}" if isinstance(self.bound, numbers.Real) else ""
        return f"{self.features}, active={self.n_active}, bins={self.bins}, tails={tails!r}{bound}"

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, logdet)`` for x (N, D) and a context for the conditioner."""
        return self._transform(x, context, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, logdet)`` for y (N, D) and the same context."""
        return self._transform(y, context, inverse=True)

    def _transform(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.ndim != 2:
            raise ValueError(
                f"SplineCoupling: expected x of shape (N, D) with {self.features} features, got "
                f"{tuple(x.shape)}; splines of pixels take each as a row"
            )
        raw = self._parameters_of(x, context, self.outputs)
        options: dict[str, Any] = self.options
        return ops.spline_coupling(
            x,
            raw.view(x.shape[0], self.n_active, raw.shape[1] // self.n_active),
            active=self.active,
            bins=self.bins,
            tails=self.tails,
            bound=self.bound,
            inverse=inverse,
            **options,
        )


def _tails(features: int, mask: Tensor, tails: str | Sequence[str]) -> str | list[str]:
    """A name where the active features agree, else one for each feature."""
    names = [tails] * features if isinstance(tails, str) else list(tails)
    if len(names) != features:
        raise ValueError(
            f"SplineCoupling: tails must be one name or one for each of the {features} features, "
            f"got {len(names)}"
        )
    for name in names:
        if name not in DERIVATIVES:
            raise ValueError(
                f"SplineCoupling: expected tails one of {', '.join(DERIVATIVES)}, got {name!r}"
            )
    active = {name for name, chosen in zip(names, mask.tolist()) if chosen}
    return active.pop() if len(active) == 1 else names
