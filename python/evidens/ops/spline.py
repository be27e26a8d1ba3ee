"""Rational-quadratic splines: value and log-slope in one pass, forward or inverse.

``N`` rows, ``D`` features, ``A`` transformed features, ``M`` bins; log-determinants in nats;
float32 or float64 (half types are widened to float32), all tensors of one dtype on one device.

The numbers of a spline come from parameters by one of three maps, called by the library whose
models use it.  ``min_width``, ``min_height``, ``min_derivative``, ``identity_init`` belong to
``"nflows"``, ``slope`` to ``"zuko"``, ``logit_scale`` to both.

========== ================================================ ====================================
parameters widths and heights                               derivatives
========== ================================================ ====================================
"knots"    knots themselves, increasing, M+1                slopes, positive, M+1
"nflows"   softmax above a floor, between the bounds, M     a floor plus softplus
"zuko"     softmax of soft-clipped logits, M                exp of a soft-clipped number
========== ================================================ ====================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evidens.ops import _checks as checks
from evidens.ops import _registry
from evidens.ops import _spline_arguments as given
from evidens.ops import _spline_cpu as cpu
from evidens.reference import spline as reference
from evidens.reference.spline import MAPS

__all__ = ["rational_quadratic_spline", "spline_coupling"]

# --- backends ------------------------------------------------------------------------------------


def _by_name(function: Any, position: int) -> Any:
    """The inner ops carry the map as an integer, everybody else as its name."""

    def call(*args: Any) -> Any:
        return function(*args[:position], MAPS[args[position]], *args[position + 1 :])

    return call


def _triton(name: str, position: int) -> Any:
    def call(*args: Any) -> Any:
        from evidens.kernels import spline as kernels

        return _by_name(getattr(kernels, name), position)(*args)

    return call


def _reference_backward(function: Any, tensors: int) -> Any:
    """The gradient of a formula by torch, as the inner ``_backward`` ops give it."""

    def call(*args: Any) -> tuple[Tensor, ...]:
        values, grads, rest = args[:tensors], args[tensors : tensors + 2], args[tensors + 2 :]
        leaves = [t if t is None or not t.is_floating_point() else t.detach() for t in values]
        wanted = [t for t in leaves if t is not None and t.is_floating_point()]
        with torch.enable_grad():
            for t in wanted:
                t.requires_grad_()
            results = function(*leaves, *rest)
        pairs = [(r, g) for r, g in zip(results, grads) if g is not None and r.requires_grad]
        found = torch.autograd.grad(
            [r for r, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True
        )
        return tuple(torch.zeros_like(t) if g is None else g for g, t in zip(found, wanted))

    return call


_OPTIONS = "int map, int[] tails, float[] box, float[] options, bool inverse"
_VALUES = "Tensor x, Tensor widths, Tensor heights, Tensor derivatives"
_RECORD = "Tensor x, Tensor params, Tensor? active"
_GRADS = "Tensor? grad_y, Tensor? grad_logdet"


def _like(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in tensors if t is not None)


_spline_backward = _registry.Op(
    "spline",
    f"rational_quadratic_spline_backward({_VALUES}, {_GRADS}, {_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    cpu=cpu.rational_quadratic_spline_backward,
    reference=_reference_backward(_by_name(reference.rational_quadratic_spline, 4), 4),
    triton=_triton("rational_quadratic_spline_backward", 6),
    fake=lambda x, widths, heights, derivatives, *rest: _like(x, widths, heights, derivatives),
)
_spline = _registry.Op(
    "spline",
    f"rational_quadratic_spline({_VALUES}, {_OPTIONS}) -> (Tensor, Tensor)",
    cpu=cpu.rational_quadratic_spline,
    reference=_by_name(reference.rational_quadratic_spline, 4),
    triton=_triton("rational_quadratic_spline", 4),
    fake=lambda x, *rest: _like(x, x),
    backward=lambda needs, grads, *args: (
        *_spline_backward(*args[:4], *grads, *args[4:]),
        *(None,) * 5,
    ),
    rows=(0, 1, 2, 3),
)
_coupling_backward = _registry.Op(
    "spline",
    f"spline_coupling_backward({_RECORD}, {_GRADS}, int bins, {_OPTIONS}) -> (Tensor, Tensor)",
    cpu=cpu.spline_coupling_backward,
    reference=_reference_backward(_by_name(reference.spline_coupling, 4), 3),
    triton=_triton("spline_coupling_backward", 6),
    fake=lambda x, params, *rest: _like(x, params),
)
_coupling = _registry.Op(
    "spline",
    f"spline_coupling({_RECORD}, int bins, {_OPTIONS}) -> (Tensor, Tensor)",
    cpu=cpu.spline_coupling,
    reference=_by_name(reference.spline_coupling, 4),
    triton=_triton("spline_coupling", 4),
    fake=lambda x, *rest: (x.new_empty(x.shape), x.new_empty(x.shape[:1])),
    backward=lambda needs, grads, *args: (
        *_coupling_backward(*args[:3], *grads, *args[3:]),
        *(None,) * 7,
    ),
    rows=(0, 1),
)


# --- the ops -------------------------------------------------------------------------------------


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    inverse: bool = False,
    parameters: str = "knots",
    tails: str | Sequence[str] = "linear",
    bound: float | Sequence[float] | None = None,
    min_width: float = 1e-3,
    min_height: float = 1e-3,
    min_derivative: float = 1e-3,
    slope: float = 1e-3,
    identity_init: bool = False,
    logit_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """A monotone rational-quadratic spline for every element, and the log of its slope.

    Args:
        x: any shape ``(*)``; where it has axes, the last one is that of the D features.
        widths, heights, derivatives: ``(*, count)`` or what broadcasts to it: the parameters of
            every element, counts as in the module's table and below.
        inverse: ``x`` holds values of the spline; what gives them is wanted.
        parameters: ``"knots"``, ``"nflows"`` (normflows has the same) or ``"zuko"``.
        tails: what lies outside the box, for all features or one name for each:
            ``"linear"`` the identity, derivatives M-1, the slope at both bounds is 1 (given more,
            knot i takes entry i-1, as nflows does); ``"circular"`` the same outside, derivatives
            M, the slope at the last knot is that at the first; ``"none"`` nothing, derivatives
            M+1.  A list, of one feature also, stores M+1 for every feature and does not read what
            a tail fixes (normflows).  With ``"knots"`` there are always M+1 slopes, and the spline
            goes on as a straight line.
        bound: B, the box is ``[-B, B]`` both ways, or one for each feature; with the name
            ``"none"`` for tails also (left, right, bottom, top), and that is what four numbers are
            there, whatever D: for four bounds of four features give a list of tails.  Default: 1,
            5 for ``"zuko"``, the unit box for the name ``"none"``.
        min_width, min_height: floors of a bin's share of the box.
        min_derivative: floor of a slope.
        slope: zuko's; logits are clipped softly so that slopes lie in [slope, 1 / slope].
        identity_init: scales the softplus so that parameters of 0 are the identity.
        logit_scale: multiplies widths and heights first, as ``1 / sqrt(hidden)`` in nflows.

    Returns:
        ``(y, logdet)``, both of the shape of ``x``: values and ``log |dy/dx|`` in nats of the
        direction taken.  Differentiable once in all four tensors.  Never NaN for numbers: bounds
        belong to the box, bins of no width are skipped, slopes are held within 2^+-31 (float64
        2^+-255).  With tails ``"none"`` a point outside moves to the bound, with logdet -inf
        unless the way is as short as rounding (1e-5 of the range; float64 1e-12).

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.

    Source: Durkan et al., Neural Spline Flows, NeurIPS 2019, eq. 4-8.

    Example:
        >>> import torch, evidens
        >>> x = torch.tensor([-2.0, 0.25, 2.0])
        >>> widths, heights = torch.tensor([0.0, 1.0]), torch.zeros(2)
        >>> y, logdet = evidens.ops.rational_quadratic_spline(
        ...     x, widths, heights, torch.zeros(1), parameters="nflows"
        ... )
        >>> back, _ = evidens.ops.rational_quadratic_spline(
        ...     y, widths, heights, torch.zeros(1), parameters="nflows", inverse=True
        ... )
        >>> y, bool(torch.allclose(back, x))
        (tensor([-2.0000,  0.4382,  2.0000]), True)
    """
    name = "rational_quadratic_spline"
    x, widths, heights, derivatives = checks.widen(
        name, ("x", x), ("widths", widths), ("heights", heights), ("derivatives", derivatives)
    )
    checks.floating(name, "x", x)
    edges, slopes = widths.shape[-1:], derivatives.shape[-1:]
    features = x.shape[-1] if x.ndim else 1
    if not edges or not slopes or heights.shape[-1:] != edges:
        raise ValueError(
            f"evidens.{name}: expected widths and heights (*, M) and derivatives (*, count), "
            f"got {tuple(widths.shape)}, {tuple(heights.shape)} and {tuple(derivatives.shape)}"
        )
    settings = given.settings(
        name,
        parameters,
        given.hashable(name, "tails", tails),
        given.hashable(name, "bound", bound),
        features,
        edges[0] - (parameters == "knots"),
        slopes[0],
        min_width,
        min_height,
        min_derivative,
        slope,
        bool(identity_init),
        logit_scale,
    )
    shape = (x.shape.numel() // features, features) if features else (0, 0)
    flat = [
        given.flat(name, kind, t, x, shape)
        for kind, t in (("widths", widths), ("heights", heights), ("derivatives", derivatives))
    ]
    y, logdet = _spline(x.reshape(shape), *flat, *settings, bool(inverse))
    return y.reshape(x.shape), logdet.reshape(x.shape)


def spline_coupling(
    x: Tensor,
    params: Tensor,
    *,
    active: Tensor | None = None,
    bins: int,
    inverse: bool = False,
    parameters: str = "nflows",
    tails: str | Sequence[str] = "linear",
    bound: float | Sequence[float] | None = None,
    min_width: float = 1e-3,
    min_height: float = 1e-3,
    min_derivative: float = 1e-3,
    slope: float = 1e-3,
    identity_init: bool = False,
    logit_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """A spline coupling layer: active features through their splines, the others copied.

    Args:
        x: rows (N, D).
        params: (N, A, P), what the conditioner gives: widths, heights and derivatives of each
            active feature in a row, counts as in `rational_quadratic_spline`.
        active: (A,) int64, distinct columns of ``x``; None: all of them, A = D.  On CUDA they are
            not looked at (that would wait for the device): one out of range is left out.
        bins: M.
        inverse, parameters, tails, bound, min_width, min_height, min_derivative, slope,
            identity_init, logit_scale: as in `rational_quadratic_spline`; a list is by the D
            features of ``x``.

    Returns:
        ``y`` (N, D) and ``logdet`` (N,), nats, summed over the active features in float64.
        Differentiable once in ``x`` and ``params``.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.

    Source: Durkan et al., Neural Spline Flows, NeurIPS 2019, section 3.

    Example:
        >>> import torch, evidens
        >>> x, params = torch.tensor([[0.5, -0.5]]), torch.zeros(1, 1, 3 * 4 - 1)
        >>> y, logdet = evidens.ops.spline_coupling(
        ...     x, params, active=torch.tensor([1]), bins=4, identity_init=True
        ... )
        >>> bool(torch.allclose(y, x)), bool(logdet.abs() < 1e-6)
        (True, True)
    """
    name = "spline_coupling"
    x, params = checks.widen(name, ("x", x), ("params", params))
    if x.ndim != 2 or params.ndim != 3:
        raise ValueError(
            f"evidens.{name}: expected x (N, D) and params (N, A, P), "
            f"got x {tuple(x.shape)} and params {tuple(params.shape)}"
        )
    checks.floating(name, "x", x)
    n, features = x.shape
    per_feature = params.shape[2]
    if active is not None:
        checks.index_vector(name, "active", active, x, "A", None)
    transformed = features if active is None else active.shape[0]
    checks.arguments(
        name,
        x,
        {"N": n, "A": transformed, "P": per_feature},
        lambda: f"x ({n}, {features}) with {transformed} active features",
        ("params", params, "NAP"),
    )
    settings = given.coupling_settings(
        features,
        bins,
        per_feature,
        parameters,
        tails,
        bound,
        min_width,
        min_height,
        min_derivative,
        slope,
        identity_init,
        logit_scale,
    )
    return _coupling(x, params, active, bins, *settings, bool(inverse))
