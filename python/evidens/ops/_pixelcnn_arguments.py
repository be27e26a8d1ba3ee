"""Arguments of `pixelcnn_sample`: every check, and the program that the inner op runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evidens.ops import _checks as checks
from evidens.reference.autoregress import ACTIVATIONS
from evidens.reference.pixelcnn import GATE, KINDS

OP = "pixelcnn_sample"
MASKS = ("A", "B", "above", "rows")


class PixelLayer(NamedTuple):
    """One layer of a network for `pixelcnn_sample`.

    Args:
        weight: (O, C, kh, kw), odd sizes, zero padding; None: no convolution, what it starts from
            is passed on.
        bias: (O,) or None.
        mask: ``"A"`` the pixels before, in raster order, and at the centre the channel groups
            before; ``"B"`` also its own group; ``"above"`` the rows above, ``"rows"`` these and the
            row of the pixel: layers of a vertical stack, which are computed a row at a time.  Or
            the live taps (kh, kw), bool.
        activation: as in `made_sample`, or ``"gate"``: tanh of the first half of the channels (of
            every group) times sigmoid of the second.
        source: the layer that it starts from; -1 is the image, None the layer before.
        add: the layer whose result is added before the activation; None: none.
        context: (N, O) or None: added at every pixel, what a condition gives.
    """

    weight: Tensor | None
    bias: Tensor | None = None
    mask: str | Tensor = "B"
    activation: str = "identity"
    source: int | None = None
    add: int | None = None
    context: Tensor | None = None


class Program(NamedTuple):
    """What the inner op takes."""

    weights: list[Tensor]
    biases: list[Tensor | None]
    taps: list[bool]
    contexts: list[Tensor | None]
    steps: list[int]


def _fail(message: str) -> None:
    raise ValueError(f"evidens.{OP}: {message}")


Taps = list[list[bool]]  # (kh, kw)


def _taps(name: str, mask: str | Tensor, height: int, width: int) -> tuple[Taps, bool, bool]:
    """Live taps, whether the centre is strict, whether the layer belongs to a vertical stack."""
    if isinstance(mask, Tensor):
        if mask.dtype is not torch.bool or mask.shape != (height, width):
            _fail(
                f"mask of {name} must be a bool tensor ({height}, {width}) as its kernel, got "
                f"{mask.dtype} {tuple(mask.shape)}"
            )
        return mask.tolist(), False, False
    if mask not in MASKS:
        _fail(f"mask of {name} must be one of {', '.join(MASKS)} or a bool tensor, got {mask!r}")
    middle, centre = height // 2, width // 2
    if mask in ("above", "rows"):
        last = middle + (mask == "rows")
        return [[y < last] * width for y in range(height)], False, True
    taps = [[y < middle or (y == middle and x <= centre) for x in range(width)]
            for y in range(height)]  # fmt: skip
    return taps, mask == "A", False


def _causal(name: str, taps: Taps, strict: bool, ahead: bool, source: int, rows: bool) -> None:
    """Refuses taps on what is not known yet; ``rows``: the source is known a row at a time."""
    middle, centre = len(taps) // 2, len(taps[0]) // 2
    for y, row in enumerate(taps):
        known = len(row)  # of this row
        if y > middle or (y == middle and ahead and not rows):
            known = 0
        elif y == middle and not rows:
            known = centre + (source > 0 or strict)
        for x in range(known, len(row)):
            if row[x]:
                what = "the image" if source == 0 else f"layer {source - 1}"
                _fail(
                    f"mask of {name} lets it see {what} at row {y - middle:+d}, column "
                    f"{x - centre:+d}, which is not drawn yet; the first layer takes mask 'A' "
                    "(or 'above'), the others 'B' (or 'rows')"
                )


def program(
    layers: Sequence[PixelLayer], noise: Tensor, inputs: int, groups: int
) -> tuple[Program, int]:
    """The layers for the inner op, checked, and the channels of the last one."""
    if not layers:
        _fail("expected at least one layer, got none")
    n = noise.shape[0]
    found = Program([], [], [], [], [])
    channels, stacks = [inputs], [False]  # of every value, the image first
    names = (*ACTIVATIONS, "gate")
    for i, layer in enumerate(layers):
        name = f"layers[{i}]"
        source = i if layer.source is None else layer.source + 1
        add = -1 if layer.add is None else layer.add + 1
        if not 0 <= source <= i:
            _fail(f"source of {name} must be -1 .. {i - 1}, got {source - 1}")
        if layer.add is not None and not 1 <= add <= i:
            _fail(f"add of {name} must be a layer before it, 0 .. {i - 1}, got {layer.add}")
        if layer.activation not in names:
            _fail(
                f"activation of {name} must be one of {', '.join(names)}, got {layer.activation!r}"
            )
        weight, taps, strict = layer.weight, [[True]], False
        if weight is None:
            outputs, ahead = channels[source], stacks[source] and (add < 0 or stacks[add])
            weight = noise.new_empty((0, 0, 1, 1))
            if layer.bias is not None:
                _fail(f"{name} has a bias but no weight")
        else:
            if weight.ndim != 4 or weight.shape[1] != channels[source] or not weight.numel():
                _fail(
                    f"weight of {name} must have shape (O, {channels[source]}, kh, kw), got "
                    f"{tuple(weight.shape)}"
                )
            outputs, height, width = weight.shape[0], *weight.shape[2:]
            if height % 2 == 0 or width % 2 == 0:
                _fail(f"kernels must have odd sizes, that of {name} is {height} x {width}")
            taps, strict, ahead = _taps(name, layer.mask, height, width)
        _causal(name, taps, strict, ahead, source, stacks[source])
        if add >= 0 and (channels[add] != outputs or (ahead and not stacks[add])):
            _fail(
                f"add of {name} must be a layer of {outputs} channels"
                f"{' of the vertical stack' if ahead else ''}, layer {add - 1} has {channels[add]}"
            )
        parts = 1 if ahead else groups
        halves = 2 if layer.activation == "gate" else 1
        if outputs % (parts * halves) or channels[source] % parts:
            _fail(
                f"{name} has {outputs} channels from {channels[source]}, which {parts} groups"
                f"{' with gates' if halves == 2 else ''} do not divide"
            )
        for what, t, shape in (
            ("bias", layer.bias, (outputs,)),
            ("context", layer.context, (n, outputs)),
        ):
            if t is not None and t.shape != shape:
                _fail(f"{what} of {name} must have shape {shape}, got {tuple(t.shape)}")
        for what, t in (("weight", weight), ("bias", layer.bias), ("context", layer.context)):
            if t is not None and (t.dtype is not noise.dtype or t.device != noise.device):
                raise TypeError(
                    f"evidens.{OP}: all arguments need one dtype and one device; noise is "
                    f"{noise.dtype} on {noise.device}, {what} of {name} is {t.dtype} on {t.device}"
                )
        found.weights.append(weight)
        found.biases.append(layer.bias)
        found.taps.extend(tap for row in taps for tap in row)
        found.contexts.append(layer.context)
        code = GATE if halves == 2 else ACTIVATIONS.index(layer.activation)
        found.steps.extend((source, add, code, int(strict), int(ahead)))
        channels.append(outputs // halves)
        stacks.append(ahead)
    if stacks[-1]:
        _fail("the last layer must not be one of the vertical stack: it would see rows above only")
    return found, channels[-1]


def widen(layers: Sequence[PixelLayer], noise: Tensor) -> tuple[list[PixelLayer], Tensor]:
    """Layers and noise, half types widened; refuses what requires a gradient."""
    named = [("noise", noise)]
    for i, layer in enumerate(layers):
        for field in ("weight", "bias", "context"):
            t = getattr(layer, field)
            if t is not None:
                named.append((f"{field} of layers[{i}]", t))
    widened = checks.widen(OP, *named)
    checks.no_gradient(OP, *widened, instead="full passes of the network in torch")
    found = dict(zip((name for name, _ in named), widened))
    return [
        layer._replace(
            weight=found.get(f"weight of layers[{i}]"),
            bias=found.get(f"bias of layers[{i}]"),
            context=found.get(f"context of layers[{i}]"),
        )
        for i, layer in enumerate(layers)
    ], found["noise"]


def channels_of(kind: str, noise: Tensor) -> int:
    """Channels C of the image, by the shape of noise."""
    if kind not in KINDS:
        _fail(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    checks.floating(OP, "noise", noise)
    channels = noise.shape[1] - (kind == "logistic") if noise.ndim == 4 else 0
    if channels < 1 or (kind == "logistic" and channels not in (1, 3)):
        want = "(N, 2, H, W) or (N, 4, H, W)" if kind == "logistic" else "(N, C, H, W)"
        _fail(
            f"noise of kind {kind!r} must have shape {want}, got {tuple(noise.shape)}; "
            "pixelcnn_noise makes it from a seed"
        )
    return channels


def output_count(kind: str, given: int, channels: int, levels: int) -> None:
    """Whether the last layer gives what the kind needs."""
    want = {
        "bernoulli": (given == channels, f"C = {channels} (logits)"),
        "categorical": (given == channels * levels, f"C * K = {channels * levels} (logits)"),
        "logistic": (
            given > 0 and given % (10 if channels == 3 else 3) == 0,
            "10 M (logits, then means, log-scales and coefficients of red, green and blue)"
            if channels == 3
            else "3 M (logits, means, log-scales)",
        ),
    }
    fits, words = want[kind]
    if not fits:
        _fail(f"the last layer must have {words} channels for kind {kind!r}, got {given}")


def partial(
    known: Tensor | None, values: Tensor | None, noise: Tensor, channels: int, levels: int
) -> tuple[Tensor | None, Tensor | None]:
    """Mask and levels (N, C, H, W) of a partial observation."""
    if (known is None) != (values is None):
        _fail(
            f"known and values belong together, got only {'values' if known is None else 'known'}"
        )
    if known is None or values is None:
        return None, None
    shape = (noise.shape[0], channels, *noise.shape[2:])
    for name, t in (("known", known), ("values", values)):
        fits = t.shape == shape or (name == "known" and t.shape == shape[2:])
        if not fits or t.device != noise.device:
            _fail(
                f"{name} must have shape (N, C, H, W) = {shape}"
                f"{' or (H, W)' if name == 'known' else ''} on {noise.device}, got "
                f"{tuple(t.shape)} on {t.device}"
            )
    if known.dtype is not torch.bool:
        _fail(f"known must be a bool tensor, got {known.dtype}")
    known = known.expand(shape)
    if checks.readable():
        bad = known & ~((values >= 0) & (values < levels))
        if values.is_floating_point():
            bad |= known & (values != values.floor())
        if bad.any():
            at = tuple(bad.nonzero()[0].tolist())
            _fail(
                f"values must be levels 0 .. {levels - 1} where known, got {values[at].item()} "
                f"at {at}"
            )
    return known, torch.where(known, values, 0).long()
