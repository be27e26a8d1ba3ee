"""Sampling of PixelCNNs in one pass of work: every value of the network is computed once.

A plain loop runs the whole network once for every pixel.  Shape letters: ``N`` images, ``C``
channels, ``H W`` size, ``O`` outputs of a layer, ``K`` levels, ``M`` mixture terms.  float32 or
float64 (half types are widened to float32), all of one dtype on one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evidens.ops import _checks as checks
from evidens.ops import _pixelcnn_arguments as given
from evidens.ops import _pixelcnn_cpu as cpu
from evidens.ops import _registry, _steps
from evidens.ops._pixelcnn_arguments import PixelLayer as PixelLayer
from evidens.ops.philox import philox_uniform
from evidens.reference import pixelcnn as reference
from evidens.reference.pixelcnn import KINDS

__all__ = [
    "PixelLayer",
    "PixelState",
    "pixelcnn_noise",
    "pixelcnn_sample",
    "pixelcnn_start",
    "pixelcnn_step",
]


def _fake(noise: Tensor, *rest: Any) -> Tensor:
    channels = rest[8]
    return noise.new_empty((noise.shape[0], channels, *noise.shape[2:]), dtype=torch.int64)


def _one_network(function: Any) -> Any:
    """Refuses what vmap makes of a list of weights."""

    def call(noise: Tensor, weights: list[Tensor], *rest: Any) -> Tensor:
        contexts = [c for c in rest[2] if c is not None]
        if any(w.ndim != 4 for w in weights) or any(c.ndim != 2 for c in contexts):
            raise ValueError(
                "evidens.pixelcnn_sample: vmap over layers is not offered; call it once for each "
                "network, with all images in one batch"
            )
        return function(noise, weights, *rest)

    return call


def _triton(*args: Any) -> Tensor:
    from evidens.kernels import pixelcnn as kernels

    return kernels.pixelcnn_sample(*args)


def _triton_steps(*args: Any) -> Any:
    from evidens.kernels import pixelcnn as kernels

    return kernels.PixelSteps(*args)


_pixelcnn = _registry.Op(
    "pixelcnn",
    "pixelcnn_sample(Tensor noise, Tensor[] weights, Tensor?[] biases, bool[] taps, "
    "Tensor?[] contexts, Tensor? known, Tensor? values, int[] program, int kind, int channels, "
    "int levels, int groups, bool one_hot, float[] input_map, float min_log_scale) -> Tensor",
    cpu=_one_network(cpu.pixelcnn_sample),
    reference=_one_network(reference.pixelcnn_sample),
    triton=_one_network(_triton),
    fake=_fake,
    rows=(0, 5, 6),
    waits=True,  # copies its program to the device
)


def pixelcnn_noise(
    kind: str,
    images: int,
    channels: int,
    height: int,
    width: int,
    *,
    seed: int,
    row_offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The uniforms that `pixelcnn_sample` is driven by, from Philox.

    A number depends on the seed, the image, the number of the pixel in raster order and the
    channel, and on nothing else.

    Args:
        kind: as in `pixelcnn_sample`.
        images, channels, height, width: N, C, H, W.
        seed: any Python integer; its low 64 bits count.
        row_offset: first image of the stream.
        dtype: float32 (24 random bits) or float64 (53).
        device: where the result lives.

    Returns:
        (N, R, H, W) in [0, 1): R = C, for ``"logistic"`` 1 + C in (0, 1), the first to choose the
        term.

    Raises:
        ValueError: naming the argument, what was expected and what came.

    Source: `philox_uniform`, image = row, column = pixel * R + r.

    Example:
        >>> import torch, evidens
        >>> u = evidens.ops.pixelcnn_noise("bernoulli", 3, 1, 4, 4, seed=7)
        >>> last = evidens.ops.pixelcnn_noise("bernoulli", 1, 1, 4, 4, seed=7, row_offset=2)
        >>> bool((u[2:] == last).all())
        True
    """
    if kind not in KINDS:
        raise ValueError(
            f"evidens.pixelcnn_noise: kind must be one of {', '.join(KINDS)}, got {kind!r}"
        )
    draws = channels + (kind == "logistic")
    u = philox_uniform(seed, 0, images, height * width * draws, dtype, row_offset, device)
    if kind == "logistic":
        # The end of a logistic's range would be drawn once in 2^24 numbers.
        u = u.clamp(min=2.0**-25 if dtype is torch.float32 else 2.0**-54)
    return u.view(images, height, width, draws).permute(0, 3, 1, 2)


def pixelcnn_sample(
    noise: Tensor,
    layers: Sequence[PixelLayer],
    *,
    kind: str = "categorical",
    levels: int = 256,
    groups: int = 1,
    known: Tensor | None = None,
    values: Tensor | None = None,
    one_hot: bool = False,
    input_map: tuple[float, float] = (1.0, 0.0),
    min_log_scale: float = -7.0,
) -> Tensor:
    """Images drawn pixel by pixel from a network of masked convolutions.

    Pixels come in raster order; with ``groups`` the channels of a pixel come in so many equal
    blocks, one after the other, and every layer outside a vertical stack has as many blocks.
    The last layer gives the parameters of every pixel:

    =============== ============================== ===========================================
    ``kind``        channels of the last layer     a level
    =============== ============================== ===========================================
    ``bernoulli``   C logits                       1 where u < sigmoid, else 0
    ``categorical`` K logits of channel 0, 1, ...  the first whose distribution function is > u
    ``logistic``    3 M (C = 1), 10 M (C = 3)      the bin that a mixture's draw falls in
    =============== ============================== ===========================================

    ``logistic`` is the discretized mixture of PixelCNN++: logits, then for each channel means,
    log-scales and (C = 3) coefficients before the tanh; levels lie on [-1, 1].

    Args:
        noise: (N, R, H, W) uniforms, R = C, for ``"logistic"`` 1 + C; see `pixelcnn_noise`.
        layers: `PixelLayer` in the order of work; the last one gives the parameters.
        kind: a name of the table.
        levels: K; 2 for ``"bernoulli"`` whatever is given.
        groups: of channels; must divide C and the channels of the layers.
        known: (N, C, H, W) or (H, W) bool or None: levels that are given, not drawn (inpainting).
        values: (N, C, H, W) or None: those levels, any dtype; read where ``known``.
        one_hot: the network sees K channels for each channel, channel c's level k at c * K + k.
        input_map: ``(a, b)``: else it sees ``a level + b``.  Padding is 0 after that.
        min_log_scale: floor of a log-scale of ``"logistic"``.

    Returns:
        (N, C, H, W) int64 levels 0 .. K-1.  No gradient.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; also where
            the network gives NaN (inside torch.compile and vmap the level is -1 there instead).
        RuntimeError: an argument requires a gradient.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu, Pixel Recurrent Neural Networks, 2016;
    Salimans, Karpathy, Chen, Kingma, PixelCNN++, 2017, section 2.

    Example:
        >>> import torch, evidens
        >>> from evidens.ops import PixelLayer
        >>> copies = torch.zeros(2, 1, 3, 3)  # logits of two levels from the pixel to the left
        >>> copies[:, 0, 1, 0] = torch.tensor([-9.0, 9.0])
        >>> layers = [PixelLayer(copies, torch.tensor([4.0, -4.0]), mask="A")]
        >>> known = torch.zeros(2, 4, dtype=torch.bool)
        >>> known[1, 1] = True
        >>> noise = torch.full((1, 1, 2, 4), 0.5)
        >>> evidens.ops.pixelcnn_sample(noise, layers, levels=2, known=known,
        ...                             values=torch.ones(1, 1, 2, 4))[0, 0]
        tensor([[0, 0, 0, 0],
                [0, 1, 1, 1]])
    """
    x = _pixelcnn(
        *_arguments(
            noise,
            layers,
            kind=kind,
            levels=levels,
            groups=groups,
            known=known,
            values=values,
            one_hot=one_hot,
            input_map=input_map,
            min_log_scale=min_log_scale,
        )
    )
    if checks.readable() and x.numel() and int(x.min()) < 0:
        n, c, y, column = (x < 0).nonzero()[0].tolist()
        raise _no_distribution("pixelcnn_sample", n, c, y, column)
    return x


def _no_distribution(op: str, n: int, c: int, y: int, column: int) -> ValueError:
    return ValueError(
        f"evidens.{op}: the network gave no distribution (NaN or infinity) for "
        f"image {n}, channel {c}, pixel ({y}, {column}); look for NaN in its weights"
    )


class PixelState(_steps.State):
    """Where a draw of `pixelcnn_start` and `pixelcnn_step` stands; a step makes the next one of it.

    Attributes:
        rows: N.
        place, places: how many pixels have been passed, and H W.
        done: whether nothing is left.
        pixel: (row, column) of the one that the next step draws; None when done.
        x: (N, C, H, W) int64 so far, -1 where a level is neither known nor drawn.
        parameters: (N, O) of the last layer at the pixel that was passed last.
    """

    def __init__(self, cache: Any, watch: Any, levels: int) -> None:
        super().__init__("pixelcnn", cache, watch, cache.x.shape[2] * cache.x.shape[3])
        self._levels = levels

    @property
    def pixel(self) -> tuple[int, int] | None:
        """(row, column) of the one that the next step draws; None when done."""
        return None if self.done else divmod(self.place, self._cache.x.shape[3])


def pixelcnn_start(noise: Tensor, layers: Sequence[PixelLayer], **how: Any) -> PixelState:
    """The beginning of a draw that `pixelcnn_step` continues pixel by pixel.

    All steps together do the work of one `pixelcnn_sample` and give its levels, bit for bit.
    Weights are packed here, so that a step costs what its pixel costs; a vertical stack is computed
    with the first pixel of a row.  The state keeps the rows of every layer that a kernel reaches.

    Args:
        noise, layers, **how: as in `pixelcnn_sample`.  They must stay as they are until the last
            step.

    Returns:
        The state before the first pixel in raster order.

    Raises:
        ValueError, TypeError: as `pixelcnn_sample`.
        RuntimeError: an argument requires a gradient, or the call is inside torch.compile.

    Example:
        >>> import torch, evidens
        >>> from evidens.ops import PixelLayer
        >>> copies = torch.zeros(2, 1, 3, 3)  # logits of two levels from the pixel to the left
        >>> copies[:, 0, 1, 0] = torch.tensor([-9.0, 9.0])
        >>> layers = [PixelLayer(copies, torch.tensor([4.0, -4.0]), mask="A")]
        >>> state = evidens.ops.pixelcnn_start(torch.full((1, 1, 1, 3), 0.5), layers, levels=2)
        >>> first, state = evidens.ops.pixelcnn_step(state, torch.tensor([[1]]))
        >>> while not state.done:
        ...     level, state = evidens.ops.pixelcnn_step(state)
        >>> state.x.tolist()
        [[[[1, 1, 1]]]]
    """
    _steps.starting("pixelcnn_start")
    call = _arguments(noise, layers, **how)
    watched = [noise]
    for layer in layers:
        watched += [t for t in (layer.weight, layer.bias, layer.context) if t is not None]
    backend = _pixelcnn.backend_on(call[0].device.type)
    steps: Any = {"cpu": cpu.PixelSteps, "triton": _triton_steps}.get(backend, reference.PixelSteps)
    like = _fake(*call).zero_()
    x, known, values = _steps.given(like, call[5], call[6], -1)
    cache = steps(x, *call[:5], known, values, *call[7:])
    return PixelState(cache, _steps.Watch(watched), call[10])


def pixelcnn_step(state: PixelState, value: Tensor | None = None) -> tuple[Tensor, PixelState]:
    """Passes the next pixel of a draw.

    Args:
        state: what `pixelcnn_start` or the step before returned; it is spent by the step.
        value: (N, C) levels, any dtype, instead of draws; NaN where a level is to be drawn, or is
            known from the start.

    Returns:
        The pixel's levels (N, C) int64, known, given or drawn, and the state after it.

    Raises:
        ValueError: nothing is left to draw, the state is spent, the weights have changed since,
            a value of another batch size, no level; also where the network gives NaN.
        TypeError: something that is no state, or no tensor of numbers.

    Example:
        >>> import torch, evidens
        >>> layers = [evidens.ops.PixelLayer(torch.ones(1, 1, 3, 3), mask="A")]
        >>> u = evidens.ops.pixelcnn_noise("bernoulli", 1, 1, 2, 2, seed=0)
        >>> state = evidens.ops.pixelcnn_start(u, layers, kind="bernoulli")
        >>> while not state.done:
        ...     level, state = evidens.ops.pixelcnn_step(state)
        >>> whole = evidens.ops.pixelcnn_sample(u, layers, kind="bernoulli")
        >>> bool((state.x == whole).all())
        True
    """
    _steps.check("pixelcnn", state, PixelState)
    cache = state._cache
    y, column = divmod(state.place, cache.x.shape[3])
    at = (slice(None), slice(None), y, column)
    if value is not None:
        shape = (state.rows, cache.x.shape[1])
        value = _steps.check_value("pixelcnn", value, shape, "(N, C)", state._levels)
        given_now = ~value.isnan()
        cache.known[at] |= given_now
        cache.values[at] = torch.where(given_now, value.nan_to_num().long(), cache.values[at])
    after = state._next()
    cache.step()
    level = cache.x[at].clone()
    if level.numel() and int(level.min()) < 0:
        n, c = (level < 0).nonzero()[0].tolist()
        raise _no_distribution("pixelcnn_step", n, c, y, column)
    return level, after


def _arguments(
    noise: Tensor,
    layers: Sequence[PixelLayer],
    *,
    kind: str = "categorical",
    levels: int = 256,
    groups: int = 1,
    known: Tensor | None = None,
    values: Tensor | None = None,
    one_hot: bool = False,
    input_map: tuple[float, float] = (1.0, 0.0),
    min_log_scale: float = -7.0,
) -> tuple[Any, ...]:
    """What the inner op takes, checked."""
    layers, noise = given.widen(layers, noise)
    channels = given.channels_of(kind, noise)
    levels = 2 if kind == "bernoulli" else levels
    if levels < 1 or (kind == "logistic" and levels < 2):
        raise ValueError(f"evidens.pixelcnn_sample: levels must be positive, got {levels}")
    if groups < 1 or channels % groups or (kind == "logistic" and groups > 1):
        raise ValueError(
            f"evidens.pixelcnn_sample: groups must divide the C = {channels} channels, and be 1 "
            f"for kind 'logistic', got {groups} with {kind!r}"
        )
    program, outputs = given.program(layers, noise, channels * (levels if one_hot else 1), groups)
    given.output_count(kind, outputs, channels, levels)
    known, values = given.partial(known, values, noise, channels, levels)
    return (
        noise,
        *program[:4],
        known,
        values,
        program.steps,
        KINDS.index(kind),
        channels,
        levels,
        groups,
        bool(one_hot),
        [float(v) for v in input_map],
        float(min_log_scale),
    )
