"""Layers that mix features: dense matrices in LU form, 1x1 convolutions, permutations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from evidens import ops
from evidens.nn._shapes import check_features, no_logdet


class InvertibleLinear(nn.Module):
    """``y = W x + bias`` with ``W = P L (U + diag(sign exp(log_diagonal)))``.

    L is unit lower triangular, U strictly upper triangular, P a fixed permutation.  The determinant
    costs D operations and cannot become 0; the inverse is by triangular solves in float64.

    Args:
        features: D or C, the size of axis 1; further axes are pixels that share W.
        init: ``"identity"``, or ``"rotation"`` for a random rotation.
        bias: whether a bias is learned.

    Raises:
        ValueError: an unknown ``init``.

    Source: Kingma and Dhariwal, Glow (2018), equation 11.

    Example:
        >>> import torch, evidens
        >>> layer = evidens.nn.InvertibleLinear(3, init="rotation")
        >>> x = torch.randn(5, 3)
        >>> y, logdet = layer(x)
        >>> torch.allclose(layer.inverse(y)[0], x, atol=1e-5)
        True
        >>> torch.allclose(y.norm(dim=1), x.norm(dim=1)), logdet.abs().max().item() < 1e-5
        (True, True)
    """

    sign: Tensor | None
    permutation: Tensor | None

    def __init__(self, features: int, *, init: str = "identity", bias: bool = True) -> None:
        super().__init__()
        if init not in ("identity", "rotation"):
            raise ValueError(
                f"{type(self).__name__}: expected init 'identity' or 'rotation', got {init!r}"
            )
        self.features, self.init = features, init
        lu, log_diagonal = torch.zeros(features, features), torch.zeros(features)
        sign = permutation = None
        if init == "rotation":
            rotation, _ = torch.linalg.qr(torch.randn(features, features, dtype=torch.float64))
            p, lower, upper = torch.linalg.lu(rotation)
            diagonal = upper.diagonal()
            lu = (lower.tril(-1) + upper.triu(1)).float()
            log_diagonal, sign = diagonal.abs().log().float(), diagonal.sign().float()
            permutation = p.argmax(1)
        # One matrix for both triangles; its diagonal is not read.
        self.lu = nn.Parameter(lu)
        self.log_diagonal = nn.Parameter(log_diagonal)
        self.bias = nn.Parameter(torch.zeros(features)) if bias else None
        self.register_buffer("sign", sign)
        self.register_buffer("permutation", permutation)

    def extra_repr(self) -> str:
        """What repr shows."""
        return f"{self.features}, init={self.init!r}, bias={self.bias is not None}"

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, logdet)`` for x (N, D, *S); ``context`` is ignored."""
        return self._apply_matrix(x, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, logdet)`` for y (N, D, *S)."""
        return self._apply_matrix(y, inverse=True)

    def _apply_matrix(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        check_features(self, x, self.features)
        return ops.invertible_linear(
            x,
            self.lu,
            self.lu,
            self.log_diagonal,
            sign=self.sign,
            permutation=self.permutation,
            bias=self.bias,
            inverse=inverse,
        )


class Invertible1x1Conv(InvertibleLinear):
    """`InvertibleLinear` over the channels of images: a 1x1 convolution.

    Args:
        channels: C.
        init, bias: as in `InvertibleLinear`.

    Source: Kingma and Dhariwal, Glow (2018), section 3.2.

    Example:
        >>> import torch, evidens
        >>> layer = evidens.nn.Invertible1x1Conv(4)
        >>> y, logdet = layer(torch.zeros(2, 4, 8, 8))
        >>> tuple(y.shape), tuple(logdet.shape)
        ((2, 4, 8, 8), (2,))
    """

    def __init__(self, channels: int, *, init: str = "identity", bias: bool = True) -> None:
        super().__init__(channels, init=init, bias=bias)

    def _apply_matrix(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        check_features(self, x, self.features, least=4)
        return super()._apply_matrix(x, inverse)


class Permutation(nn.Module):
    """A fixed order of the features.

    Args:
        features: D or C, the size of axis 1.
        order: ``"reverse"``, ``"random"`` (from torch's generator), or the features in their new
            order.

    Raises:
        ValueError: ``order`` is not a permutation.

    Example:
        >>> import torch, evidens
        >>> layer = evidens.nn.Permutation(3, [2, 0, 1])
        >>> layer(torch.tensor([[10.0, 11.0, 12.0]]))[0].tolist()
        [[12.0, 10.0, 11.0]]
    """

    order: Tensor

    def __init__(self, features: int, order: str | Sequence[int] | Tensor = "reverse") -> None:
        super().__init__()
        if isinstance(order, str):
            if order not in ("reverse", "random"):
                raise ValueError(
                    f"Permutation: expected 'reverse', 'random' or {features} indices, got "
                    f"{order!r}"
                )
            index = (
                torch.randperm(features) if order == "random" else torch.arange(features).flip(0)
            )
        else:
            given = torch.as_tensor(order)
            # Fractions are not cut off, nor a mask taken for 0 and 1.
            whole = not given.is_floating_point() and given.dtype is not torch.bool
            index = given.long()
            if not (whole or not features) or not index.sort()[0].equal(torch.arange(features)):
                raise ValueError(
                    f"Permutation: expected every number of 0..{features - 1} once, got "
                    f"{given.tolist()}"
                )
        self.features = features
        self.register_buffer("order", index)

    def extra_repr(self) -> str:
        """What repr shows."""
        return f"{self.features}"

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y, logdet)`` for x (N, D, *S); ``context`` is ignored and logdet is 0."""
        check_features(self, x, self.features)
        return x.index_select(1, self.order), no_logdet(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(x, logdet)`` for y (N, D, *S)."""
        check_features(self, y, self.features)
        return y.index_select(1, self.order.argsort()), no_logdet(y)
