"""Coupling ops of normalizing flows: affine coupling, ActNorm, LU-parametrised linear layer.

Each gives y and the log-determinant of every row in one call, in either direction.  Shape
letters: ``N`` rows, ``D`` features or ``C`` channels (axis 1), ``A`` active features, ``*S`` any
number of spatial axes, also none.  float32 or float64 (half types are widened to float32), all of
one dtype on one device; log-determinants in nats, summed in float64.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from evidens.ops import _checks as checks
from evidens.ops import _coupling_arguments as given
from evidens.ops import _coupling_cpu as cpu
from evidens.ops import _registry
from evidens.reference import coupling as reference
from evidens.reference.coupling import SCALE_MAPS

__all__ = ["actnorm", "affine_coupling", "invertible_linear"]

# --- backends ------------------------------------------------------------------------------------


def _reference_coupling(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    active: Tensor | None,
    scale_map: int,
    clamp: float,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    if active is not None and (bad := given.bad_place(active, x.shape[1])) is not None:
        raise ValueError(checks.bad_index("affine_coupling", active, bad, x.shape[1]))
    return reference.affine_coupling(
        x,
        scale,
        shift,
        active=active,
        scale_map=SCALE_MAPS[scale_map],
        clamp=clamp,
        inverse=inverse,
    )


def _reference_coupling_backward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    active: Tensor | None,
    grad_y: Tensor | None,
    grad_logdet: Tensor | None,
    scale_map: int,
    clamp: float,
    inverse: bool,
    need_x: bool,
    need_scale: bool,
    need_shift: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    found = reference.affine_coupling_backward(
        x,
        scale,
        shift,
        grad_y,
        grad_logdet,
        active=active,
        scale_map=SCALE_MAPS[scale_map],
        clamp=clamp,
        inverse=inverse,
    )
    none, needs = x.new_empty((x.shape[0], 0)), (need_x, need_scale, need_shift)
    # Results share no memory with each other or with an argument.
    a, b, c = (
        f.clone() if need and f is not None else none.clone() for need, f in zip(needs, found)
    )
    return a, b, c


def _reference_actnorm_backward(
    x: Tensor, log_scale: Tensor, shift: Tensor, grad_y: Tensor, inverse: bool, need_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, *others = reference.actnorm_backward(x, log_scale, shift, grad_y, inverse=inverse)
    return grad_x if need_x else x.new_empty((x.shape[0], 0)), others[0], others[1]


def _triton(name: str) -> Any:
    def call(*args: Any) -> Any:
        from evidens.kernels import coupling as kernels

        return getattr(kernels, name)(*args)

    return call


# --- the inner ops -------------------------------------------------------------------------------


def _fake_coupling(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((x.shape[0],))


def _fake_coupling_backward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    active: Tensor | None,
    grad_y: Tensor | None,
    grad_logdet: Tensor | None,
    scale_map: int,
    clamp: float,
    inverse: bool,
    need_x: bool,
    need_scale: bool,
    need_shift: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    none = (x.shape[0], 0)
    return (
        x.new_empty(x.shape if need_x else none),
        x.new_empty(scale.shape if need_scale and scale is not None else none),
        x.new_empty(shift.shape if need_shift and shift is not None else none),
    )


def _affine_coupling_gradient(
    needs: tuple[bool, ...],
    grads: Any,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    active: Tensor | None,
    scale_map: int,
    clamp: float,
    inverse: bool,
) -> tuple[Tensor | None, ...]:
    found = _coupling_backward(
        x, scale, shift, active, *grads, scale_map, clamp, inverse, needs[0], needs[1], needs[2]
    )
    wanted = (f if need else None for f, need in zip(found, needs))
    return *wanted, None, None, None, None


def _actnorm_gradient(
    needs: tuple[bool, ...],
    grads: Any,
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    inverse: bool,
) -> tuple[Tensor | None, ...]:
    grad_y, grad_logdet = grads
    if grad_y is None:
        grad_x = torch.zeros_like(x) if needs[0] else None
        grad_log_scale, grad_shift = torch.zeros_like(log_scale), torch.zeros_like(shift)
    else:
        grad_x, grad_log_scale, grad_shift = _actnorm_backward(
            x, log_scale, shift, grad_y, inverse, needs[0]
        )
    if grad_logdet is not None and needs[1]:
        total = grad_logdet.sum(dtype=torch.float64) * math.prod(x.shape[2:])
        total = -total if inverse else total
        grad_log_scale = (grad_log_scale.double() + total).to(x.dtype)
    return (
        grad_x if needs[0] else None,
        grad_log_scale if needs[1] else None,
        grad_shift if needs[2] else None,
        None,
    )


_COUPLING = "Tensor x, Tensor? scale, Tensor? shift, Tensor? active"
_coupling = _registry.Op(
    "coupling",
    f"affine_coupling({_COUPLING}, int scale_map, float clamp, bool inverse) -> (Tensor, Tensor)",
    cpu=cpu.affine_coupling,
    reference=_reference_coupling,
    triton=_triton("affine_coupling"),
    fake=_fake_coupling,
    backward=_affine_coupling_gradient,
    rows=(0, 1, 2),
)
_coupling_backward = _registry.Op(
    "coupling",
    f"affine_coupling_backward({_COUPLING}, Tensor? grad_y, Tensor? grad_logdet, int scale_map, "
    "float clamp, bool inverse, bool need_x, bool need_scale, bool need_shift) "
    "-> (Tensor, Tensor, Tensor)",
    cpu=cpu.affine_coupling_backward,
    reference=_reference_coupling_backward,
    triton=_triton("affine_coupling_backward"),
    fake=_fake_coupling_backward,
    rows=(0, 1, 2, 4, 5),
)
_actnorm = _registry.Op(
    "coupling",
    "actnorm(Tensor x, Tensor log_scale, Tensor shift, bool inverse) -> (Tensor, Tensor)",
    cpu=cpu.actnorm,
    reference=lambda x, log_scale, shift, inverse: reference.actnorm(
        x, log_scale, shift, inverse=inverse
    ),
    triton=_triton("actnorm"),
    fake=_fake_coupling,
    backward=_actnorm_gradient,
    rows=(0,),
)
_actnorm_backward = _registry.Op(
    "coupling",
    "actnorm_backward(Tensor x, Tensor log_scale, Tensor shift, Tensor grad_y, bool inverse, "
    "bool need_x) -> (Tensor, Tensor, Tensor)",
    cpu=cpu.actnorm_backward,
    reference=_reference_actnorm_backward,
    triton=_triton("actnorm_backward"),
    fake=lambda x, log_scale, shift, grad_y, inverse, need_x: (
        x.new_empty(x.shape if need_x else (x.shape[0], 0)),
        x.new_empty(log_scale.shape),
        x.new_empty(shift.shape),
    ),
)


# --- public --------------------------------------------------------------------------------------


def affine_coupling(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    active: Tensor | None = None,
    scale_map: str = "exp",
    clamp: float | None = None,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Affine coupling: scale and shift some features, copy the others, in one pass.

    On the active features ``y = x * s(scale) + shift``, or ``y = (x - shift) / s(scale)`` with
    ``inverse``; the others are copied, whatever they hold.  The raw scale ``r`` becomes ``s`` by

    =============== ============================== ===================================
    ``scale_map``   s(r)                           ``clamp``, its default, whose it is
    =============== ============================== ===================================
    ``exp``         exp(r)                         none; RealNVP, normflows
    ``exp_clamped`` exp(clip(r, -clamp, clamp))    5
    ``sigmoid``     sigmoid(r + 2) + clamp         1e-3: nflows; 0: normflows, Glow
    ``softplus``    softplus(r) + clamp            1e-3: nflows' MAF
    ``tanh``        exp(clamp tanh(r))             1; RealNVP, FrEIA's TANH
    ``atan``        exp(clamp 0.636 atan(r))       2; FrEIA's ATAN
    ``bounded_exp`` exp(r / (1 + |r / log clamp|)) 1e-3, the least slope; zuko
    =============== ============================== ===================================

    Args:
        x: (N, D, *S).
        scale: raw scales (N, A, *S); None: additive coupling, s = 1 whatever ``scale_map``.
        shift: (N, A, *S); None: 0.  Views of one conditioner output are taken without a copy.
        active: distinct features (A,) int64, in the order of ``scale`` and ``shift``; None: all.
        scale_map: a name of the table.
        clamp: its constant; None: its default.
        inverse: the direction.

    Returns:
        ``y`` (N, D, *S) and ``logdet`` (N,) of the direction taken, in nats, dtype of ``x``: the
        sum of ``log s`` over active features and places, negative for the inverse.  Finite input
        never gives NaN.  Differentiable once in ``x``, ``scale`` and ``shift``.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.  Values of
            ``active`` are checked on the CPU; on a GPU an index out of range is left out.

    Source: Dinh, Sohl-Dickstein, Bengio, Density estimation using Real NVP (2017), eq. 4-8.

    Example:
        >>> import torch, evidens
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> scale, shift = torch.tensor([[2.0, 0.5]]).log(), torch.tensor([[10.0, 20.0]])
        >>> y, logdet = evidens.ops.affine_coupling(x, scale, shift, active=torch.tensor([2, 0]))
        >>> y, logdet
        (tensor([[20.5000,  2.0000, 16.0000]]), tensor([0.]))
        >>> evidens.ops.affine_coupling(
        ...     y, scale, shift, active=torch.tensor([2, 0]), inverse=True
        ... )[0]
        tensor([[1., 2., 3.]])
    """
    code, constant = given.scale_code(scale_map, clamp)
    if not given.ready(x, scale, shift, active):
        x, scale, shift = given.coupling(x, scale, shift, active)
    return _coupling(x, scale, shift, active, code, constant, inverse)


def actnorm(
    x: Tensor, log_scale: Tensor, shift: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """ActNorm: ``y = x * exp(log_scale) + shift`` with one scale and one shift per channel.

    With ``inverse``, ``y = (x - shift) * exp(-log_scale)``.

    Args:
        x: (N, C, *S).
        log_scale, shift: (C,).
        inverse: the direction.

    Returns:
        ``y`` (N, C, *S) and ``logdet`` (N,) of the direction taken, in nats, dtype of ``x``: the
        sum of ``log_scale`` times the number of places, the same for every row.  Differentiable
        once in all tensors.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.

    Source: Kingma, Dhariwal, Glow: Generative flow with invertible 1x1 convolutions (2018), 3.1.

    Example:
        >>> import torch, evidens
        >>> x = torch.ones(1, 2, 3)
        >>> log_scale, shift = torch.tensor([2.0, 1.0]).log(), torch.tensor([0.0, 5.0])
        >>> y, logdet = evidens.ops.actnorm(x, log_scale, shift)
        >>> y[0, :, 0], logdet
        (tensor([2., 6.]), tensor([2.0794]))
    """
    op = "actnorm"
    if given.ready_channels(x, log_scale, shift):
        return _actnorm(x, log_scale, shift, inverse)
    x, log_scale, shift = checks.widen(op, ("x", x), ("log_scale", log_scale), ("shift", shift))
    given.images(op, x, "C")
    for name, t in (("log_scale", log_scale), ("shift", shift)):
        given.like(op, name, t, x, "(C,)", (x.shape[1],))
    return _actnorm(x, log_scale, shift, inverse)


_linear = _registry._without_autocast(
    lambda x, lower, upper, log_diagonal, sign, permutation, bias, inverse: (
        reference.invertible_linear(
            x,
            lower,
            upper,
            log_diagonal,
            sign=sign,
            permutation=permutation,
            bias=bias,
            inverse=inverse,
        )
    )
)


def invertible_linear(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_diagonal: Tensor,
    *,
    sign: Tensor | None = None,
    permutation: Tensor | None = None,
    bias: Tensor | None = None,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """An invertible linear map over channels, ``y = W x + bias``; a 1x1 convolution for images.

    ``W = P L (U + diag(sign * exp(log_diagonal)))``, so the log-determinant is a sum and the
    inverse two triangular solves.  It is made of torch's own products and solves, on any device,
    with derivatives of every order.

    Args:
        x: (N, C, *S).
        lower: (C, C), whose strict lower triangle is that of the unit lower triangular ``L``.
        upper: (C, C), whose strict upper triangle is that of ``U``; the rest of both is not read.
        log_diagonal: (C,).
        sign: (C,) of +1 and -1, for a W of any sign; None: +1.  Other values are not checked and
            make ``logdet`` wrong.
        permutation: a permutation (C,) int64, row i of W is row ``permutation[i]`` of the product;
            None: no permutation.
        bias: (C,).
        inverse: the direction; solved in float64, whatever the dtype.

    Returns:
        ``y`` (N, C, *S) and ``logdet`` (N,) of the direction taken, in nats, dtype of ``x``: the
        sum of ``log_diagonal`` times the number of places, the same for every row.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.  That
            ``permutation`` is one is checked on the CPU.

    Source: Kingma, Dhariwal, Glow: Generative flow with invertible 1x1 convolutions (2018), eq. 10.

    Example:
        >>> import torch, evidens
        >>> lower, upper = torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.zeros(2, 2)
        >>> y, logdet = evidens.ops.invertible_linear(
        ...     torch.tensor([[1.0, 1.0]]), lower, upper, torch.tensor([2.0, 1.0]).log()
        ... )
        >>> y, logdet
        (tensor([[2., 7.]]), tensor([0.6931]))
    """
    op = "invertible_linear"
    tensors = {"x": x, "lower": lower, "upper": upper, "log_diagonal": log_diagonal}
    tensors |= {name: t for name, t in (("sign", sign), ("bias", bias)) if t is not None}
    wide = dict(zip(tensors, checks.widen(op, *tensors.items())))
    x = wide.pop("x")
    given.images(op, x, "C")
    c = x.shape[1]
    for name, t in wide.items():
        square = name in ("lower", "upper")
        given.like(op, name, t, x, "(C, C)" if square else "(C,)", (c, c) if square else (c,))
    if permutation is not None:
        checks.index_vector(op, "permutation", permutation, x, "C", c)
        if (bad := given.bad_place(permutation, c)) is not None:
            raise ValueError(
                f"evidens.{op}: permutation must hold each of 0 .. C - 1 = {c - 1} once, got "
                f"{int(permutation[bad])} at position {bad}; torch.randperm({c}) makes one"
            )
    return _linear(
        x,
        wide["lower"],
        wide["upper"],
        wide["log_diagonal"],
        wide.get("sign"),
        permutation,
        wide.get("bias"),
        inverse,
    )
