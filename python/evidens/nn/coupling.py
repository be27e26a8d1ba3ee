"""Coupling layers: some features are transformed, by parameters that the others decide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evidens import ops
from evidens.nn._shapes import check_features
from evidens.ops._coupling_arguments import scale_code

SCALE_MAPS = (
    "exp",
    "exp_clamped",
    "sigmoid",
    "softplus",
    "tanh",
    "atan",
    "bounded_exp",
    "additive",
)


class Coupling(nn.Module):
    """Mask, conditioner and context; what is done to the active features is the subclass's."""

    mask: Tensor
    active: Tensor | None
    passive: Tensor

    def __init__(self, features: int, conditioner: nn.Module, mask: Any) -> None:
        super().__init__()
        if not isinstance(conditioner, nn.Module):
            raise TypeError(
                f"{type(self).__name__}: conditioner must be a torch.nn.Module from the passive "
                f"features to the parameters, got {type(conditioner).__name__}"
            )
        self.features, self.conditioner = features, conditioner
        mask = coupling_mask(type(self).__name__, features, mask)
        active, passive = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
        self.register_buffer("mask", mask)
        self.register_buffer("active", active if len(passive) else None, persistent=False)
        self.register_buffer("passive", passive, persistent=False)
        self.n_active = len(active)
        # Features in even steps are a view, others a copy.
        self._view = _even_steps(passive.tolist())

    def _parameters_of(self, x: Tensor, context: Tensor | None, count: int) -> Tensor:
        """What the conditioner says, (N, count, *S)."""
        check_features(self, x, self.features)
        view = self._view
        passive = x.index_select(1, self.passive) if view is None else x[:, view]
        raw = self.conditioner(passive) if context is None else self.conditioner(passive, context)
        if not isinstance(raw, Tensor):
            raise TypeError(
                f"{type(self).__name__}: the conditioner, {type(self.conditioner).__name__}, must "
                f"give a torch.Tensor of shape {(x.shape[0], count, *x.shape[2:])}, got "
                f"{type(raw).__name__}"
            )
        if raw.shape != (x.shape[0], count, *x.shape[2:]):
            raise ValueError(
                f"{type(self).__name__}: the conditioner must give shape "
                f"{(x.shape[0], count, *x.shape[2:])} for {self.n_active} active features, got "
                f"{tuple(raw.shape)}"
            )
        return raw

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: Any,
        unexpected: Any, errors: list[str],
    ) -> None:  # fmt: skip
        there = state_dict.get(f"{prefix}mask")
        if there is not None and not torch.equal(there.cpu(), self.mask.cpu()):
            errors.append(f"{prefix}mask: the layer was built with another mask")
            return
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing, unexpected, errors
        )


class AffineCoupling(Coupling):
    """``y = x s(scale) + shift`` on the active features; the others pass and decide both.

    Args:
        features: D or C, the size of axis 1; further axes (H, W) are pixels.
        conditioner: module from the passive features (N, D - A, *S), and the context where there
            is one, to (N, 2 A, *S): raw scales, then shifts; (N, A, *S) shifts if additive.
        mask: (D,) bool, True where a feature is active; None: the second half is.
        scale_map: what makes raw scales positive: ``"exp"``, ``"exp_clamped"``, ``"sigmoid"``,
            ``"softplus"``, ``"tanh"``, ``"atan"``, ``"bounded_exp"``, or ``"additive"`` for none;
            see `evidens.ops.affine_coupling`.
        clamp: parameter of the map; None for its default.

    With a conditioner that gives zeros the layer is the identity for the exponential maps.

    Raises:
        ValueError: an unknown map, a clamp that it does not take, a mask of another size or
            without an active feature.
        TypeError: the conditioner is not a module, or gives no tensor.

    Source: Dinh et al., Density estimation using Real NVP (2017), equations 7 and 8.

    Example:
        >>> import torch, evidens
        >>> mask = torch.tensor([True, False, True])
        >>> inputs, outputs = evidens.nn.AffineCoupling.sizes(3, mask=mask)
        >>> layer = evidens.nn.AffineCoupling(3, evidens.nn.MLP(inputs, outputs), mask=mask)
        >>> x = torch.randn(4, 3)
        >>> y, logdet = layer(x)
        >>> torch.equal(x, y), logdet.tolist()
        (True, [0.0, 0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        features: int,
        conditioner: nn.Module,
        *,
        mask: Any = None,
        scale_map: str = "exp_clamped",
        clamp: float | None = None,
    ) -> None:
        super().__init__(features, conditioner, mask)
        if scale_map not in SCALE_MAPS:
            raise ValueError(
                f"AffineCoupling: expected scale_map one of {', '.join(SCALE_MAPS)}, got "
                f"{scale_map!r}"
            )
        if scale_map != "additive":
            scale_code(scale_map, clamp)  # the op's own check, before the first call
        self.scale_map, self.clamp = scale_map, clamp

    @staticmethod
    def sizes(
        features: int, *, mask: Any = None, scale_map: str = "exp_clamped"
    ) -> tuple[int, int]:
        """Features that a conditioner gets and that it must give: ``(D - A, 2 A)``."""
        active = int(coupling_mask("AffineCoupling", features, mask).sum())
        return features - active, active * (1 if scale_map == "additive" else 2)

    def extra_repr(self) -> str:
        """What repr shows."""
        clamp = "" if self.clamp is None else f", clamp={self.clamp}"
        return f"{self.features}, active={self.n_active}, scale_map={self.scale_map!r}{clamp}"

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, logdet)`` for x (N, D, *S) and a context for the conditioner."""
        return self._transform(x, context, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, logdet)`` for y (N, D, *S) and the same context."""
        return self._transform(y, context, inverse=True)

    def _transform(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        a = self.n_active
        if self.scale_map == "additive":
            shift = self._parameters_of(x, context, a)
            return ops.affine_coupling(x, None, shift, active=self.active, inverse=inverse)
        scale, shift = self._parameters_of(x, context, 2 * a).chunk(2, 1)
        return ops.affine_coupling(
            x,
            scale,
            shift,
            active=self.active,
            scale_map=self.scale_map,
            clamp=self.clamp,
            inverse=inverse,
        )


def coupling_mask(layer: str, features: int, mask: Any) -> Tensor:
    """(D,) bool."""
    if mask is None:
        return torch.arange(features) >= features // 2
    mask = torch.as_tensor(mask)
    if mask.dtype is not torch.bool or mask.shape != (features,):
        raise ValueError(
            f"{layer}: mask must be bool of shape ({features},), got {mask.dtype} of shape "
            f"{tuple(mask.shape)}"
        )
    if not mask.any():
        raise ValueError(f"{layer}: mask names no active feature")
    return mask.detach().cpu().clone()


def _even_steps(index: list[int]) -> slice | None:
    """The slice that takes these indices, if there is one."""
    if not index:
        return slice(0, 0)
    step = index[1] - index[0] if len(index) > 1 else 1
    if index != list(range(index[0], index[-1] + 1, step)):
        return None
    return slice(index[0], index[-1] + 1, step)
