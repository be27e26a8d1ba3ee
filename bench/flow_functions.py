"""One spline or one affine coupling by the name of who computes it: (y, log_det) of tensors."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import torch_flows
from .flow_data import BOUND
from .harness import OURS

NFLOWS, NORMFLOWS, ZUKO, TORCH = "nflows", "normflows", "zuko", "torch"
_SPLINES = {NFLOWS: "nflows.transforms.splines", NORMFLOWS: "normflows.utils.splines"}
Function = Callable[..., tuple[Tensor, Tensor]]


def spline(provider: str, inverse: bool = False, parameters: str = NFLOWS) -> Function:
    """A function of x and raw widths, heights and derivatives; the tails are linear.

    ``parameters`` names the map that ours is given; zuko has its own, all others that of nflows.
    """
    if provider == OURS:
        from evidens import ops

        options = dict(parameters=parameters, tails="linear", bound=BOUND, inverse=inverse)
        return functools.partial(ops.rational_quadratic_spline, **options)
    if provider == TORCH:
        return functools.partial(torch_flows.spline, bound=BOUND, inverse=inverse)
    if provider == ZUKO:
        from zuko.transforms import MonotonicRQSTransform

        return lambda x, *raw: MonotonicRQSTransform(*raw, bound=BOUND).call_and_ladj(x)
    function = importlib.import_module(_SPLINES[provider]).unconstrained_rational_quadratic_spline
    return functools.partial(function, inverse=inverse, tails="linear", tail_bound=BOUND)


def halves(provider: str, features: int, inverse: bool = False) -> Function:
    """A function of x (N, D), raw scales and shifts (N, A): the last A move, the map is exp."""
    if provider == TORCH:
        return functools.partial(torch_flows.halves, inverse=inverse)
    from evidens import ops

    active = torch.arange(features)[features // 2 :]
    return functools.partial(ops.affine_coupling, active=active, scale_map="exp", inverse=inverse)


class _Given(nn.Module):
    """A conditioner that answers what it was given."""

    answer: Tensor

    def forward(self, inputs: Tensor, context: None = None) -> Tensor:
        return self.answer


def alternating(provider: str, features: int) -> Function:
    """A function of x (N, D) and a conditioner's shifts | raw scales (N, 2 A), map of nflows.

    Every second feature moves.
    """
    mask = torch.arange(features) % 2
    active = mask.nonzero().squeeze(1)
    if provider == NFLOWS:
        from nflows.transforms import AffineCouplingTransform

        layer = AffineCouplingTransform(mask, lambda inputs, outputs: _Given())

        def call(x: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
            layer.transform_net.answer = answer
            return layer(x)

        return call
    if provider == TORCH:
        return functools.partial(torch_flows.chosen, active=active)
    from evidens import ops

    def ours(x: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = answer.chunk(2, 1)
        return ops.affine_coupling(x, scale, shift, active=active, scale_map="sigmoid")

    return ours
