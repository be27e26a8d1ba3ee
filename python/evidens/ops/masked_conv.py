"""Masked ops of autoregressive models: convolution in raster order, linear layer by degrees.

The mask is functional: it never changes the weight, dead weights are not read, their gradients are
exactly 0, and no arithmetic is spent on them.  float32 or float64 (half types are widened to
float32), all of one dtype on one device.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evidens.ops import _checks as checks
from evidens.ops import _masked_conv_arguments as given
from evidens.ops import _masked_conv_cpu as cpu
from evidens.ops import _registry
from evidens.reference import masked_conv as reference
from evidens.reference.masked_conv import Mask

__all__ = ["masked_conv2d", "masked_linear"]

# --- backends ------------------------------------------------------------------------------------


def _wanted(x: Tensor, found: Any, needs: tuple[bool, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Results that share no memory with each other or with an argument."""
    a, b, c = (f.contiguous() if need else x.new_empty((0,)) for f, need in zip(found, needs))
    return a, b, c


def _reference_conv_backward(
    x: Tensor,
    weight: Tensor,
    grad_y: Tensor,
    taps: list[int],
    strict: bool,
    groups: int,
    *needs: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    found = reference.masked_conv2d_backward(x, weight, grad_y, taps, strict, groups)
    return _wanted(x, found, needs)


def _reference_conv(*args: Any) -> Tensor:
    return reference.convolve(*args).contiguous()


def _reference_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    in_order: Tensor | None,
    out_order: Tensor | None,
    strict: bool,
) -> Tensor:
    degrees = {"in_degrees": in_degrees, "out_degrees": out_degrees}
    return reference.masked_linear(x, weight, bias, **degrees, strict=strict)


def _reference_linear_backward(
    x: Tensor,
    weight: Tensor,
    grad_y: Tensor,
    in_degrees: Tensor,
    out_degrees: Tensor,
    in_order: Tensor | None,
    out_order: Tensor | None,
    strict: bool,
    *needs: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    degrees = {"in_degrees": in_degrees, "out_degrees": out_degrees}
    found = reference.masked_linear_backward(x, weight, grad_y, **degrees, strict=strict)
    return _wanted(x, found, needs)


def _triton(name: str) -> Any:
    def call(*args: Any) -> Any:
        from evidens.kernels import masked_conv as kernels

        return getattr(kernels, name)(*args)

    return call


# --- the inner ops -------------------------------------------------------------------------------


def _fake_conv(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0], x.shape[2], x.shape[3]))


def _fake_linear(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


def _fake_backward(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, weight.shape, weight.shape[:1])
    a, b, c = (x.new_empty(s if need else (0,)) for s, need in zip(shapes, rest[-3:]))
    return a, b, c


def _conv_gradient(
    needs: tuple[bool, ...],
    grads: tuple[Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    taps: list[int],
    strict: bool,
    groups: int,
) -> tuple[Tensor | None, ...]:
    found = _conv_backward(x, weight, grads[0], taps, strict, groups, *needs[:3])
    return *(f if need else None for f, need in zip(found, needs)), None, None, None


def _linear_gradient(
    needs: tuple[bool, ...],
    grads: tuple[Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor | None, ...]:
    found = _linear_backward(x, weight, grads[0], *rest, *needs[:3])
    return *(f if need else None for f, need in zip(found, needs)), *(None,) * 5


_NEEDS = "bool need_x, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)"
_DEGREES = "Tensor in_degrees, Tensor out_degrees, Tensor? in_order, Tensor? out_order, bool strict"
_conv = _registry.Op(
    "masked_conv",
    "masked_conv2d(Tensor x, Tensor weight, Tensor? bias, int[] taps, bool strict, int groups) "
    "-> Tensor",
    cpu=cpu.masked_conv2d,
    reference=_reference_conv,
    triton=_triton("masked_conv2d"),
    fake=_fake_conv,
    backward=_conv_gradient,
    rows=(0,),
)
_conv_backward = _registry.Op(
    "masked_conv",
    "masked_conv2d_backward(Tensor x, Tensor weight, Tensor grad_y, int[] taps, bool strict, "
    f"int groups, {_NEEDS}",
    cpu=cpu.masked_conv2d_backward,
    reference=_reference_conv_backward,
    triton=_triton("masked_conv2d_backward"),
    fake=_fake_backward,
)
_linear = _registry.Op(
    "masked_conv",
    f"masked_linear(Tensor x, Tensor weight, Tensor? bias, {_DEGREES}) -> Tensor",
    cpu=cpu.masked_linear,
    reference=_reference_linear,
    triton=_triton("masked_linear"),
    fake=_fake_linear,
    backward=_linear_gradient,
    rows=(0,),
)
_linear_backward = _registry.Op(
    "masked_conv",
    f"masked_linear_backward(Tensor x, Tensor weight, Tensor grad_y, {_DEGREES}, {_NEEDS}",
    cpu=cpu.masked_linear_backward,
    reference=_reference_linear_backward,
    triton=_triton("masked_linear_backward"),
    fake=_fake_backward,
)


def _widened(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    if bias is None:
        a, b = checks.widen(op, ("x", x), ("weight", weight))
        return a, b, None
    a, b, c = checks.widen(op, ("x", x), ("weight", weight), ("bias", bias))
    return a, b, c


# --- public --------------------------------------------------------------------------------------


def masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, mask: Mask, groups: int = 1
) -> Tensor:
    """Convolution of autoregressive image models: only the live taps of the kernel are computed.

    The kernel is padded with zeros such that H and W stay.  Output channel o at a pixel sees input
    channel c at the places that ``mask`` leaves alive, relative to that pixel.

    Args:
        x: (N, C, H, W), any strides; channels_last is read as it lies.
        weight: (O, C, kh, kw), odd sizes; dead entries are not read, whatever they hold.
        bias: (O,) or None.
        mask: ``"A"``: rows above and what stands to the left, in raster order; ``"B"``: the pixel
            itself as well.  Or (kh, kw) booleans, a tensor or nested tuples, True where a tap is
            alive, also none at all.  (A tensor's values are looked at: under ``torch.compile``
            give tuples.)
        groups: colours, or any blocks that come one after the other: channels of x and of y are
            each split into that many equal blocks.  At the centre a block sees those before it,
            and itself too if the centre is alive (``"B"``, or True in a given mask); the other
            taps see all.

    Returns:
        y (N, O, H, W), contiguous, of the dtype of ``x``.  Differentiable in ``x``, ``weight`` and
        ``bias``; gradients of dead weights are 0.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came: an even
            kernel, channels that ``groups`` does not divide, another mask, shapes, dtypes.

    Source: van den Oord, Kalchbrenner, Kavukcuoglu, Pixel recurrent neural networks (2016),
    section 3.4.

    Example:
        >>> import torch, evidens
        >>> x, weight = torch.ones(1, 1, 2, 3), torch.ones(1, 1, 3, 3)
        >>> evidens.ops.masked_conv2d(x, weight, mask="A")
        tensor([[[[0., 1., 1.],
                  [2., 4., 3.]]]])
    """
    op = "masked_conv2d"
    if not given.ready_images(x, weight, bias):
        x, weight, bias = _widened(op, x, weight, bias)
        given.images(op, x, weight, bias)
    taps, strict = given.taps(op, mask, weight, groups)
    y: Tensor = _conv(x, weight, bias, taps, strict, groups)
    return y


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    in_degrees: Tensor,
    out_degrees: Tensor,
    strict: bool = False,
    in_order: Tensor | None = None,
    out_order: Tensor | None = None,
) -> Tensor:
    """Linear layer of MADE: output o sees input i where ``out_degrees[o] >= in_degrees[i]``.

    The kernel works in the order of the degrees, where what is alive is a staircase, and leaves out
    what lies beyond it.  Degrees that are rising already need no order.

    Args:
        x: (*, I), any strides.
        weight: (O, I); dead entries are not read, whatever they hold.
        bias: (O,) or None.
        in_degrees: (I,) int64, in any order.
        out_degrees: (O,) int64, in any order.
        strict: only where ``out_degrees[o] > in_degrees[i]``, as in the last layer of MADE.
        in_order: ``torch.argsort(in_degrees, stable=True)`` of degrees that are not rising, found
            once, as `evidens.nn.MaskedLinear` does; None: found in the call where it is needed.
        out_order: the same of ``out_degrees``.

    Returns:
        y (*, O), of the dtype of ``x``.  Differentiable in ``x``, ``weight`` and ``bias``;
        gradients of dead weights are 0.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.  Whether an
            order is one is looked at on the CPU.

    Source: Germain, Gregor, Murray, Larochelle, MADE (2015), eq. 12-13.

    Example:
        >>> import torch, evidens
        >>> degrees = torch.tensor([1, 2, 3])
        >>> evidens.ops.masked_linear(
        ...     torch.tensor([1.0, 10.0, 100.0]), torch.ones(3, 3),
        ...     in_degrees=degrees, out_degrees=degrees,
        ... )
        tensor([  1.,  11., 111.])
    """
    op = "masked_linear"
    integers = (in_degrees, 1), (out_degrees, 0), (in_order, 1), (out_order, 0)
    if not given.ready_features(x, weight, bias, *integers):
        x, weight, bias = _widened(op, x, weight, bias)
        orders = {"in_order": in_order, "out_order": out_order}
        given.features(op, x, weight, bias, in_degrees, out_degrees, orders)
    flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    y: Tensor = _linear(flat, weight, bias, in_degrees, out_degrees, in_order, out_order, strict)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], weight.shape[0])
