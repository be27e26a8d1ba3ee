"""Arguments of the sampling ops: every check, and what an argument is by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evidens.ops import _checks as checks
from evidens.ops._coupling_arguments import scale_code
from evidens.ops._spline_arguments import coupling_settings
from evidens.reference.autoregress import KINDS, SPLINE

#: By name: the kind of the inner op, and the numbers of noise of one feature.
NOISE = {
    "affine": "z",
    "gaussian": "z",
    "bernoulli": "u",
    "categorical": "u",
    "mixture": "uz",
    "spline": "z",
}
_PARAMETERS = {
    "affine": "2 (shift, raw scale)",
    "bernoulli": "1 (logit)",
    "categorical": "K >= 1 (logits)",
    "mixture": "3 M (logits, means, log-scales)",
    "spline": "its widths, heights and derivatives",
}
_MAPS = ("nflows", "zuko")


class Spline(NamedTuple):
    """Bins, map, tails, box and options of the inner op."""

    bins: int = 1
    map: int = 1
    tails: list[int] = [1]  # noqa: RUF012
    box: list[float] = [-1.0, 1.0, -1.0, 1.0]  # noqa: RUF012
    options: list[float] = [0.0, 0.0, 0.0, 1.0, 0.5, 1.0]  # noqa: RUF012


def kind_of(op: str, kind: str) -> str:
    """The name of a kind, checked."""
    if kind not in NOISE:
        raise ValueError(f"evidens.{op}: kind must be one of {', '.join(NOISE)}, got {kind!r}")
    return kind


def tensors(
    op: str,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    degrees: Sequence[Tensor],
    **others: Tensor | None,
) -> tuple[list[Tensor], list[Tensor | None], dict[str, Tensor]]:
    """Weights, biases and the other tensors by name, widened; refuses what requires a gradient."""
    layers = len(weights)
    if layers == 0 or len(degrees) != layers or (biases is not None and len(biases) != layers):
        raise ValueError(
            f"evidens.{op}: expected L + 1 >= 1 weights, as many biases (or None) and degrees of "
            f"the features and of L hidden layers, got {layers} weights, "
            f"{0 if biases is None else len(biases)} biases and {len(degrees)} degrees"
        )
    biases = [None] * layers if biases is None else list(biases)
    optional = [t for t in (*biases, *others.values()) if t is not None]
    if others["noise"] is not None and _settled([*weights, *optional]):
        return list(weights), biases, {name: t for name, t in others.items() if t is not None}
    every: dict[str, Any] = {f"weights[{i}]": w for i, w in enumerate(weights)}
    every |= {f"biases[{i}]": b for i, b in enumerate(biases) if b is not None}
    every |= {name: t for name, t in others.items() if t is not None or name == "noise"}
    found: dict[str, Tensor] = dict(zip(every, checks.widen(op, *every.items())))
    checks.no_gradient(op, *found.values(), instead="full passes of the network in torch")
    return (
        [found[f"weights[{i}]"] for i in range(layers)],
        [found.get(f"biases[{i}]") for i in range(layers)],
        {name: found[name] for name in others if name in found},
    )


def _settled(tensors: list[Tensor]) -> bool:
    """Whether there is nothing to widen and no gradient to lose, found at once."""
    grad = torch.is_grad_enabled()
    for t in tensors:
        if not isinstance(t, Tensor) or (grad and t.requires_grad):
            return False
        if t.dtype is not torch.float32 and t.dtype is not torch.float64:
            return False
    return True


def network(
    op: str,
    noise: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    degrees: Sequence[Tensor],
    one_hot: int,
) -> None:
    """Refuses weights, biases and degrees that do not fit each other and ``noise`` (N, D, R)."""
    features, layers = noise.shape[1], len(weights)
    dtype, device = noise.dtype, noise.device
    for i, degree in enumerate(degrees):
        if degree.ndim != 1 or degree.dtype is not torch.int64 or degree.device != device:
            raise ValueError(
                f"evidens.{op}: degrees[{i}] must be an int64 tensor of one axis on "
                f"{noise.device}, got {degree.dtype} {tuple(degree.shape)} on {degree.device}"
            )
    if degrees[0].shape[0] != features:
        raise ValueError(
            f"evidens.{op}: degrees[0] must have one degree for each of the D = {features} "
            f"features of noise, got {degrees[0].shape[0]}"
        )
    below = features * max(one_hot, 1)
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        last = i + 1 == layers
        units = weight.shape[0] if last and weight.ndim == 2 else degrees[(i + 1) % layers].shape[0]
        if weight.shape != (units, below):
            what = f"(D * P, {below})" if last else f"({units}, {below})"
            raise ValueError(
                f"evidens.{op}: weights[{i}] must have shape {what}, got {tuple(weight.shape)}"
            )
        if bias is not None and bias.shape != (units,):
            raise ValueError(
                f"evidens.{op}: biases[{i}] must have shape ({units},), got {tuple(bias.shape)}"
            )
        if weight.dtype is not dtype or weight.device != device:
            raise checks.mixed(op, f"weights[{i}]", weight, noise, "noise")
        if bias is not None and (bias.dtype is not dtype or bias.device != device):
            raise checks.mixed(op, f"biases[{i}]", bias, noise, "noise")
        below = units
    if features and (below % features or below == 0):
        raise ValueError(
            f"evidens.{op}: weights[{layers - 1}] must have D * P rows, a multiple of "
            f"D = {features}, got {below}"
        )


def parameter_count(op: str, kind: str, given: int) -> None:
    """Whether a feature has as many parameters as the kind needs."""
    fits = {"affine": given == 2, "bernoulli": given == 1, "mixture": given % 3 == 0}
    if not fits.get(kind, True):
        raise ValueError(
            f"evidens.{op}: kind {kind!r} takes {_PARAMETERS[kind]} parameters for each feature, "
            f"got P = {given}; rows d * P .. d * P + P - 1 of the last weight belong to feature d"
        )


def like(op: str, name: str, t: Tensor, noise: Tensor, letters: str, shape: tuple) -> None:
    """Shape, dtype and device of an argument beside noise."""
    if t.shape != shape:
        raise ValueError(
            f"evidens.{op}: {name} must have shape {letters} = {shape}, got {tuple(t.shape)}"
        )
    checks.alike(op, name, t, noise, "noise")


def partial(
    op: str, known: Tensor | None, values: Tensor | None, noise: Tensor, levels: int
) -> tuple[Tensor | None, Tensor | None]:
    """Mask and values (N, D) of a partial observation; ``levels`` > 0: of 0 .. levels - 1."""
    if (known is None) != (values is None):
        raise ValueError(
            f"evidens.{op}: known and values belong together, got only "
            f"{'values' if known is None else 'known'}"
        )
    if known is None or values is None:
        return None, None
    n, d = noise.shape[:2]
    like(op, "values", values, noise, "(N, D)", (n, d))
    fits = known.shape == (d,) if known.ndim == 1 else known.shape == (n, d)
    if known.dtype is not torch.bool or not fits:
        raise ValueError(
            f"evidens.{op}: known must be a bool tensor (N, D) = {(n, d)} or (D,), got "
            f"{known.dtype} {tuple(known.shape)}"
        )
    if known.device != noise.device:
        raise TypeError(
            f"evidens.{op}: known must be on {noise.device} as noise is, got {known.device}"
        )
    known = known.expand(n, d)
    if levels > 0 and checks.readable():
        bad = known & ~((values >= 0) & (values < levels) & (values == values.floor()))
        if bad.any():
            row, feature = bad.nonzero()[0].tolist()
            raise ValueError(
                f"evidens.{op}: values must be levels 0 .. {levels - 1} where known, got "
                f"{values[row, feature].item()} at row {row}, feature {feature}"
            )
    return known, values


def spline_settings(
    op: str, kind: int, given: Mapping[str, Any] | None, features: int, parameters: int
) -> Spline:
    """The words of `spline_coupling`, checked."""
    if kind != SPLINE:
        if given is not None:
            raise ValueError(f"evidens.{op}: spline is for kind 'spline', not {KINDS[kind]!r}")
        return Spline()
    words = {
        "parameters": "nflows",
        "tails": "linear",
        "bound": None,
        "min_width": 1e-3,
        "min_height": 1e-3,
        "min_derivative": 1e-3,
        "slope": 1e-3,
        "identity_init": False,
        "logit_scale": 1.0,
    }
    given = dict(given or {})
    unknown = given.keys() - words.keys() - {"bins"}
    if unknown or "bins" not in given:
        raise ValueError(
            f"evidens.{op}: spline must be a mapping with bins and any of {', '.join(words)}, got "
            f"{sorted(given)}"
        )
    bins = int(given.pop("bins"))
    w = words | given
    checks.choice(op, "parameters of spline", w["parameters"], _MAPS)
    settings = coupling_settings(features, bins, parameters, **w, op=op)
    return Spline(bins, *settings)


def way(
    op: str, kind: str, scale_map: str | None, clamp: float | None, inverse: bool
) -> tuple[int, float, bool]:
    """Code and constant of the scale map, and the direction."""
    if kind != "affine":
        if scale_map is not None or clamp is not None:
            raise ValueError(
                f"evidens.{op}: scale_map and clamp are for kind 'affine', not {kind!r}"
            )
        if inverse and kind != "spline":
            raise ValueError(
                f"evidens.{op}: inverse is for kinds 'affine' and 'spline', not {kind!r}"
            )
        return 0, 0.0, bool(inverse)
    return *scale_code("exp" if scale_map is None else scale_map, clamp, op), bool(inverse)
