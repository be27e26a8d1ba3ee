"""Networks that give coupling layers their parameters; any `torch.nn.Module` may stand in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]()


def check_context(layer: nn.Module, context: Tensor | None, expected: int) -> None:
    """Refuses a context where none was announced, or the reverse."""
    got = None if context is None else tuple(context.shape)
    if (context is None) != (expected == 0) or (context is not None and got[1:] != (expected,)):  # type: ignore[index]
        want = f"shape (N, {expected})" if expected else "None"
        raise ValueError(f"{type(layer).__name__}: expected a context of {want}, got {got}")


class MLP(nn.Module):
    """A multi-layer perceptron whose last layer starts at zero.

    Args:
        inputs: features of x; with 0 inputs and no context the output is a learned constant.
        outputs: features of the result.
        hidden: widths of the hidden layers.
        context: features of the context, which joins x at the entry; 0 for none.
        activation: ``"relu"``, ``"silu"``, ``"gelu"``, ``"tanh"``, ``"elu"`` or ``"leaky_relu"``.
        dropout: share of hidden units that are left out in training.
        zero_init: the last layer starts at zero, which makes a coupling layer start as the
            identity.

    Raises:
        ValueError: an unknown activation; a context where none was announced, or the reverse.

    Example:
        >>> import torch, evidens
        >>> net = evidens.nn.MLP(3, 4, hidden=(32, 32), context=2)
        >>> net(torch.randn(5, 3), torch.randn(5, 2)).abs().max().item()
        0.0
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int] = (128, 128),
        *,
        context: int = 0,
        activation: str = "relu",
        dropout: float = 0.0,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.context = inputs, outputs, context
        width, layers = inputs + context, list[nn.Module]()
        self.constant = nn.Parameter(torch.zeros(outputs)) if width == 0 else None
        for size in hidden if width else ():
            layers += [nn.Linear(width, size), _activation(activation)]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = size
        if self.constant is None:
            last = nn.Linear(width, outputs)
            if zero_init:
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
            layers.append(last)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(N, outputs) for x (N, inputs) and a context (N, context)."""
        check_context(self, context, self.context)
        if self.constant is not None:
            return self.constant.expand(x.shape[0], -1)
        result: Tensor = self.layers(x if context is None else torch.cat([x, context], 1))
        return result


class ConvNet(nn.Module):
    """Three convolutions (3x3, 1x1, 3x3) that keep H and W; the last one starts at zero.

    Args:
        inputs: channels of x.
        outputs: channels of the result.
        hidden: channels between.
        context: features of the context, which shifts the first hidden channels; 0 for none.
        activation: as in `MLP`.
        dropout: share of hidden channels that are left out in training.
        zero_init: as in `MLP`.

    Raises:
        ValueError: an unknown activation; a context where none was announced, or the reverse.

    Source: Kingma and Dhariwal, Glow (2018), section 4.

    Example:
        >>> import torch, evidens
        >>> net = evidens.nn.ConvNet(2, 4, hidden=16)
        >>> tuple(net(torch.zeros(5, 2, 8, 8)).shape)
        (5, 4, 8, 8)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int = 128,
        *,
        context: int = 0,
        activation: str = "relu",
        dropout: float = 0.0,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.context = inputs, outputs, context
        self.first = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.entry = nn.Linear(context, hidden, bias=False) if context else None
        last = nn.Conv2d(hidden, outputs, 3, padding=1)
        if zero_init:
            nn.init.zeros_(last.weight)
            assert last.bias is not None
            nn.init.zeros_(last.bias)
        self.rest = nn.Sequential(
            _activation(activation),
            nn.Conv2d(hidden, hidden, 1),
            _activation(activation),
            nn.Dropout2d(dropout) if dropout else nn.Identity(),
            last,
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(N, outputs, H, W) for x (N, inputs, H, W) and a context (N, context)."""
        check_context(self, context, self.context)
        h = self.first(x)
        if self.entry is not None:
            h = h + self.entry(context)[:, :, None, None]
        result: Tensor = self.rest(h)
        return result
