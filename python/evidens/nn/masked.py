"""Masked layers of autoregressive models: convolutions in raster order, linear ones by degrees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evidens import ops
from evidens.reference.masked_conv import Mask, live_links, live_weights, taps_of


def _reset(weight: Tensor, bias: Tensor | None, live: Tensor) -> None:
    """As torch's layers start, with the inputs counted that an output sees."""
    count = live.flatten(1).sum(1).clamp(min=1)
    bound = count.to(weight).rsqrt()
    with torch.no_grad():
        weight.uniform_(-1, 1).mul_(bound.view(-1, *(1,) * (weight.ndim - 1)))
        if bias is not None:
            bias.uniform_(-1, 1).mul_(bound)


class MaskedConv2d(nn.Module):
    """Convolution of which only the live taps are computed; H and W stay.

    Weights and bias are named and shaped as in `torch.nn.Conv2d`, the dead ones included, so that
    states are exchangeable.  The mask is never applied to the stored weight.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: an odd number, or two.
        mask: ``"A"`` for the first layer, ``"B"`` for those after it, or (kh, kw) booleans.
        groups: blocks of channels in the order of colours; at the centre one sees those before it,
            and with ``"B"`` itself.
        bias: whether a bias is learned.
        device, dtype: of the parameters.

    Raises:
        ValueError: an even kernel, channels that ``groups`` does not divide, an unknown mask.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu, Pixel recurrent neural networks (2016),
    section 3.4.

    Example:
        >>> import torch, evidens
        >>> layer = evidens.nn.MaskedConv2d(1, 8, 7, mask="A")
        >>> x = torch.zeros(1, 1, 5, 5).requires_grad_()
        >>> layer(x)[0, :, 2, 2].sum().backward()
        >>> x.grad[0, 0].ne(0).int()
        tensor([[1, 1, 1, 1, 1],
                [1, 1, 1, 1, 1],
                [1, 1, 0, 0, 0],
                [0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0]], dtype=torch.int32)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        mask: Mask,
        groups: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        given = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        kernel: Any = tuple(given)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size: tuple[int, int] = kernel
        # Not a buffer: it has no values to learn or to move, and a graph may know it.
        self.mask: Mask = (
            mask if isinstance(mask, str) else tuple(tuple(bool(e) for e in row) for row in mask)
        )
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels, *kernel, device=device, dtype=dtype)
        )
        self.bias = (
            nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        # The op knows what is wrong with a kernel, a mask or groups.
        ops.masked_conv2d(
            self.weight.new_empty(0, in_channels, 1, 1),
            self.weight.detach(),
            mask=self.mask,
            groups=groups,
        )
        self.reset_parameters()

    def live(self) -> Tensor:
        """The mask of the weight, (O, C, kh, kw) bool."""
        taps, strict = taps_of(self.mask, self.kernel_size, self.groups)
        return live_weights(self.weight.shape, taps, strict, self.groups, self.weight.device)

    def reset_parameters(self) -> None:
        """Draws weights and bias anew, uniform in 1 / sqrt(inputs that an output sees)."""
        _reset(self.weight, self.bias, self.live())

    def forward(self, x: Tensor) -> Tensor:
        """(N, O, H, W) for x (N, C, H, W)."""
        return ops.masked_conv2d(x, self.weight, self.bias, mask=self.mask, groups=self.groups)

    def extra_repr(self) -> str:
        """What repr shows."""
        mask = repr(self.mask) if isinstance(self.mask, str) else "own"
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, mask={mask}"
        )
        text += f", groups={self.groups}" if self.groups > 1 else ""
        return text if self.bias is not None else f"{text}, bias=False"


class MaskedLinear(nn.Module):
    """Linear layer of MADE: output o sees input i where ``out_degrees[o] >= in_degrees[i]``.

    Weights and bias are named and shaped as in `torch.nn.Linear`, the dead ones included.  The
    order of the degrees is found once.

    Args:
        in_degrees: (I,) integers, in any order.
        out_degrees: (O,) integers, in any order.
        strict: only where ``out_degrees[o] > in_degrees[i]``, as in the last layer.
        bias: whether a bias is learned.
        device, dtype: of the parameters.

    Raises:
        ValueError: degrees that are not integers in one row, or none of them.

    Source: Germain, Gregor, Murray, Larochelle, MADE (2015), eq. 12-13.

    Example:
        >>> import torch, evidens
        >>> layer = evidens.nn.MaskedLinear([1, 2, 3], [3, 1], strict=True)
        >>> layer.live().int()
        tensor([[1, 1, 0],
                [0, 0, 0]], dtype=torch.int32)
        >>> layer
        MaskedLinear(in_features=3, out_features=2, strict=True)
    """

    in_degrees: Tensor
    out_degrees: Tensor
    in_order: Tensor | None
    out_order: Tensor | None

    def __init__(
        self,
        in_degrees: Any,
        out_degrees: Any,
        *,
        strict: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.strict = strict
        for name, given in (("in", in_degrees), ("out", out_degrees)):
            degrees = torch.as_tensor(given)
            if degrees.ndim != 1 or degrees.is_floating_point() or len(degrees) == 0:
                raise ValueError(
                    f"{type(self).__name__}: expected {name}_degrees to be one row of integers, "
                    f"got {degrees.dtype} of shape {tuple(degrees.shape)}"
                )
            degrees = degrees.to(torch.int64).clone()
            rising = bool((degrees[1:] >= degrees[:-1]).all())
            order = None if rising else torch.argsort(degrees, stable=True).to(device)
            self.register_buffer(f"{name}_degrees", degrees.to(device))
            self.register_buffer(f"{name}_order", order, persistent=False)
        self.in_features, self.out_features = len(self.in_degrees), len(self.out_degrees)
        shape = self.out_features, self.in_features
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = (
            nn.Parameter(torch.empty(shape[0], device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def live(self) -> Tensor:
        """The mask of the weight, (O, I) bool."""
        return live_links(self.in_degrees, self.out_degrees, self.strict)

    def reset_parameters(self) -> None:
        """Draws weights and bias anew, uniform in 1 / sqrt(inputs that an output sees)."""
        _reset(self.weight, self.bias, self.live())

    def forward(self, x: Tensor) -> Tensor:
        """(*, O) for x (*, I)."""
        return ops.masked_linear(
            x,
            self.weight,
            self.bias,
            in_degrees=self.in_degrees,
            out_degrees=self.out_degrees,
            strict=self.strict,
            in_order=self.in_order,
            out_order=self.out_order,
        )

    def extra_repr(self) -> str:
        """What repr shows."""
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        text += ", strict=True" if self.strict else ""
        return text if self.bias is not None else f"{text}, bias=False"

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: Any,
        unexpected: Any, errors: list[str],
    ) -> None:  # fmt: skip
        for name in ("in_degrees", "out_degrees"):
            there = state_dict.get(f"{prefix}{name}")
            if there is not None and not torch.equal(there.cpu(), getattr(self, name).cpu()):
                errors.append(f"{prefix}{name}: the layer was built with other degrees")
                return
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing, unexpected, errors
        )
