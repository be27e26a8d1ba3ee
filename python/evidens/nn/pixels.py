"""Networks of masked convolutions: trained pass by pass, sampled pixel by pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evidens import ops
from evidens.nn.conditioners import check_context
from evidens.nn.masked import MaskedConv2d


class _Node(nn.Module):
    """One step: a convolution of an earlier value, plus another, through an activation."""

    def __init__(
        self,
        conv: MaskedConv2d | None,
        mask: str,
        activation: str,
        source: int | None,
        add: int | None,
        context: int,
    ) -> None:
        super().__init__()
        self.conv, self.mask, self.activation = conv, mask, activation
        self.source, self.add = source, add
        outputs = 0 if conv is None else conv.out_channels
        self.entry = nn.Linear(context, outputs, bias=False) if context and conv else None


class PixelNet(nn.Module):
    """A PixelCNN: parameters of every pixel, from the pixels before it in raster order.

    Args:
        channels: C of the image; inputs are C, or C x one_hot, channels.
        outputs: channels of the result.
        hidden: channels between.
        layers: masked 3 x 3 blocks after the first convolution.
        kernel: size of these, odd.
        first_kernel: size of the first one, odd.
        groups: colours that come one after the other in a pixel; 1: all at once.
        gated: a vertical and a horizontal stack with gates, which see all that comes before; else
            convolutions with ReLU, which are blind to a part of it on the right above.
        context: features of a condition, which every block sees; 0 for none.
        one_hot: K: a channel is shown as K of them; 0: as a number.
        dropout: share of hidden channels that are left out in training.

    Raises:
        ValueError: even kernels, channels that groups do not divide.

    Source: van den Oord, Kalchbrenner and Kavukcuoglu, Pixel recurrent neural networks (2016); van
    den Oord et al., Conditional image generation with PixelCNN decoders (2016), figure 2.

    Example:
        >>> import torch, evidens
        >>> net = evidens.nn.PixelNet(1, 2, hidden=8, layers=2, gated=True)
        >>> x = torch.zeros(1, 1, 4, 4).requires_grad_()
        >>> net(x)[0, :, 2, 1].sum().backward()
        >>> x.grad[0, 0].ne(0).int()
        tensor([[1, 1, 1, 1],
                [1, 1, 1, 1],
                [1, 0, 0, 0],
                [0, 0, 0, 0]], dtype=torch.int32)
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        hidden: int = 64,
        layers: int = 5,
        kernel: int = 3,
        first_kernel: int = 7,
        groups: int = 1,
        gated: bool = False,
        context: int = 0,
        one_hot: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.groups, self.context, self.one_hot = groups, context, one_hot
        self.nodes = nn.ModuleList()
        inputs = channels * max(one_hot, 1)
        if gated:
            self._gated(inputs, hidden, layers, kernel, first_kernel)
        else:
            self._plain(inputs, hidden, layers, kernel, first_kernel)
        last = self._step(hidden, hidden, 1, "B", activation="relu")
        self._step(hidden, outputs, 1, "B", source=last)
        self.dropout = nn.Dropout2d(dropout) if dropout else None

    def _plain(self, inputs: int, hidden: int, layers: int, kernel: int, first: int) -> None:
        at = self._step(inputs, hidden, first, "A", activation="relu", source=-1, told=True)
        for _ in range(layers):
            at = self._step(hidden, hidden, kernel, "B", "relu", source=at, add=at, told=True)

    def _gated(self, inputs: int, hidden: int, layers: int, kernel: int, first: int) -> None:
        up = across = -1
        for i in range(layers + 1):
            size, width = (first, inputs) if i == 0 else (kernel, hidden)
            # The vertical stack: all rows above; it shows itself before its gate.
            raw = self._step(
                width, 2 * hidden, size, "rows" if i else "above", source=up, told=True
            )
            up = self._step(0, 0, 0, "rows", "gate", source=raw)
            link = self._step(2 * hidden, 2 * hidden, 1, "B", source=raw)
            row = self._step(
                width, 2 * hidden, (1, size), "B" if i else "A", "gate", source=across, add=link,
                told=True,
            )  # fmt: skip
            across = self._step(hidden, hidden, 1, "B", source=row, add=across if i else None)

    def _step(
        self,
        inputs: int,
        outputs: int,
        kernel: Any,
        mask: str,
        activation: str = "identity",
        source: int | None = None,
        add: int | None = None,
        told: bool = False,
    ) -> int:
        """Appends a step; its number."""
        conv = None
        if inputs:
            size = (kernel, kernel) if isinstance(kernel, int) else kernel
            if size[0] % 2 == 0 or size[1] % 2 == 0:
                raise ValueError(f"{type(self).__name__}: kernels must be odd, got {kernel}")
            ahead = mask in ("above", "rows")
            taps: Any = mask
            if ahead:
                last = size[0] // 2 + (mask == "rows")
                taps = tuple((y < last,) * size[1] for y in range(size[0]))
            conv = MaskedConv2d(
                inputs, outputs, size, mask=taps, groups=1 if ahead else self.groups
            )
        self.nodes.append(_Node(conv, mask, activation, source, add, self.context if told else 0))
        return len(self.nodes) - 1

    def _steps(self) -> list[_Node]:
        return list(self.nodes)  # type: ignore[arg-type]

    def shown(self, x: Tensor) -> Tensor:
        """What the network sees of levels (N, C, H, W)."""
        if not self.one_hot:
            return x
        n, c, height, width = x.shape
        levels = torch.arange(self.one_hot, device=x.device).view(-1, 1, 1)
        return (x[:, :, None] == levels).view(n, c * self.one_hot, height, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(N, outputs, H, W) for what is `shown` of x (N, C, H, W) and a context (N, context)."""
        check_context(self, context, self.context)
        values = [x]
        for node in self._steps():
            h = values[-1 if node.source is None else node.source + 1]
            if node.conv is not None:
                h = node.conv(h)
            if node.entry is not None:
                h = h + node.entry(context)[:, :, None, None]
            if node.add is not None:
                h = h + values[node.add + 1]
            if node.activation == "gate":
                a, b = h.unflatten(1, (1 if node.mask == "rows" else self.groups, 2, -1)).unbind(2)
                h = (torch.tanh(a) * torch.sigmoid(b)).flatten(1, 2)
            elif node.activation == "relu":
                h = torch.relu(h)
                h = h if self.dropout is None else self.dropout(h)
            values.append(h)
        return values[-1]

    def draw(self, noise: Tensor, context: Tensor | None = None, **how: Any) -> Tensor:
        """`evidens.ops.pixelcnn_sample` with this network; no gradient.

        Args:
            noise: as the op wants it.
            context: (N, context) or None.
            **how: ``kind``, ``levels``, ``known``, ``values``, ``input_map``, ``min_log_scale``.
        """
        levels: Tensor = self._drawn_by(ops.pixelcnn_sample, noise, context, **how)
        return levels

    def start(self, noise: Tensor, context: Tensor | None = None, **how: Any) -> ops.PixelState:
        """`evidens.ops.pixelcnn_start` with this network: `draw` pixel by pixel."""
        state: ops.PixelState = self._drawn_by(ops.pixelcnn_start, noise, context, **how)
        return state

    def _drawn_by(self, op: Any, noise: Tensor, context: Tensor | None, **how: Any) -> Any:
        check_context(self, context, self.context)
        with torch.no_grad():
            layers = [
                ops.PixelLayer(
                    None if node.conv is None else node.conv.weight,
                    None if node.conv is None else node.conv.bias,
                    node.mask,
                    node.activation,
                    node.source,
                    node.add,
                    None if node.entry is None else node.entry(context),
                )
                for node in self._steps()
            ]
            return op(noise, layers, groups=self.groups, one_hot=bool(self.one_hot), **how)
