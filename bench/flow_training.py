"""One flow in each library, from the same weights: conditioners, log-density, parameters.

All have the architecture of the libraries' own coupling layers: nothing but couplings, whose
conditioners are perceptrons with two hidden layers, and a standard normal base.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .flow_functions import NFLOWS, NORMFLOWS, ZUKO
from .harness import OURS

BINS = 8
BOUND = {NFLOWS: 3.0, ZUKO: 5.0}  # by map of the spline's parameters
SPLINE_VALUES = 3 * BINS - 1


class Conditioner(nn.Sequential):
    """A perceptron that nflows and normflows take: the context is there and is ignored."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__(
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs),
        )
        self.hidden_features = hidden  # by its root nflows divides widths and heights

    def forward(self, inputs: Tensor, context: None = None) -> Tensor:
        """Parameters of the features that move."""
        return super().forward(inputs)


@dataclass
class Flow:
    """A flow of one library.

    ``nets`` are its conditioners in the order in which data goes through them; row ``i`` of their
    last layers stands for row ``rows[i]`` of everybody's: raw scales, then shifts; or for every
    feature widths, heights, derivatives.
    """

    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    nets: list[nn.Module]
    rows: list[Tensor]

    def load(self, weights: Sequence[Sequence[Tensor]]) -> None:
        """Take the weights of every conditioner."""
        with torch.no_grad():
            for net, rows, values in zip(self.nets, self.rows, weights, strict=True):
                *first, weight, bias = net.parameters()
                for parameter, value in zip(first, values):
                    parameter.copy_(value)
                weight.copy_(values[-2][rows])
                bias.copy_(values[-1][rows])

    def gradients(self) -> Tensor:
        """Those of all parameters, one after the other, in everybody's order."""
        found = []
        for net, rows in zip(self.nets, self.rows, strict=True):
            back = torch.empty_like(rows)
            back[rows] = torch.arange(len(rows))
            *first, weight, bias = (p.grad for p in net.parameters())
            found += [*first, weight[back], bias[back]]
        return torch.cat([gradient.flatten() for gradient in found])


def _alternating(features: int, layers: int) -> list[Tensor]:
    """True where a feature moves."""
    return [torch.arange(features) % 2 == i % 2 for i in range(layers)]


def _swapped_halves(features: int, layers: int) -> list[Tensor]:
    """The second half, then the first; the first is the larger one, as in `torch.chunk`."""
    first = torch.arange(features) < (features + 1) // 2
    return [first if i % 2 else ~first for i in range(layers)]


def masks(kind: str, library: str, features: int, layers: int) -> list[Tensor]:
    """The masks that the library's own couplings have."""
    halves = kind == "affine" and library == NORMFLOWS
    return (_swapped_halves if halves else _alternating)(features, layers)


def weights(kind: str, moved: Sequence[Tensor], hidden: int) -> list[list[Tensor]]:
    """Initial weights of the conditioners: torch's own initialization."""
    torch.manual_seed(40)
    each = SPLINE_VALUES if kind == "spline" else 2
    nets = [Conditioner(int((~m).sum()), int(m.sum()) * each, hidden) for m in moved]
    return [[p.detach() for p in net.parameters()] for net in nets]


def _rows(kind: str, library: str, moved: Sequence[Tensor]) -> list[Tensor]:
    counts = [int(m.sum()) for m in moved]
    if kind == "spline":
        return [torch.arange(a * SPLINE_VALUES) for a in counts]
    if library == OURS:
        return [torch.arange(2 * a) for a in counts]
    if library == NFLOWS:  # shifts, then scales
        return [torch.arange(2 * a).roll(a) for a in counts]
    # shift and scale of each feature
    return [torch.stack((torch.arange(a) + a, torch.arange(a)), 1).flatten() for a in counts]


def _standard_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))


def _through(steps: Sequence[Callable], x: Tensor) -> Tensor:
    z, total = x, torch.zeros(())
    for step in steps:
        z, log_det = step(z)
        total = total + log_det
    return _standard_normal(z) + total


def _ours(kind: str, library: str, moved: Sequence[Tensor], hidden: int) -> Flow:
    """Ours in the way of the library: its masks, maps and direction."""
    from evidens import nn as layers

    features = len(moved[0])
    flow: list[nn.Module] = []
    for mask in moved:
        active = int(mask.sum())
        if kind == "spline":
            net = Conditioner(features - active, active * SPLINE_VALUES, hidden)
            parameters = ZUKO if library == ZUKO else NFLOWS
            options = dict(parameters=parameters, bound=BOUND[parameters], identity_init=False)
            if parameters == NFLOWS:
                options["logit_scale"] = hidden**-0.5
            flow.append(layers.SplineCoupling(features, net, bins=BINS, mask=mask, **options))
        else:
            net = Conditioner(features - active, 2 * active, hidden)
            scale_map = {NFLOWS: "sigmoid", NORMFLOWS: "exp", ZUKO: "bounded_exp"}[library]
            flow.append(layers.AffineCoupling(features, net, mask=mask, scale_map=scale_map))
    inverse = kind == "affine" and library == NORMFLOWS
    steps = [layer.inverse if inverse else layer for layer in flow]
    nets = [layer.conditioner for layer in flow]
    log_prob = functools.partial(_through, steps)
    return Flow(nn.ModuleList(flow), log_prob, nets, _rows(kind, OURS, moved))


def _nflows(kind: str, moved: Sequence[Tensor], hidden: int) -> Flow:
    from nflows import transforms
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow as Model

    net = functools.partial(Conditioner, hidden=hidden)
    layers = [
        transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask, net, num_bins=BINS, tails="linear", tail_bound=BOUND[NFLOWS]
        )
        if kind == "spline"
        else transforms.AffineCouplingTransform(mask, net)
        for mask in moved
    ]
    model = Model(transforms.CompositeTransform(layers), StandardNormal([len(moved[0])]))
    nets = [layer.transform_net for layer in layers]
    return Flow(model, model.log_prob, nets, _rows(kind, NFLOWS, moved))


def _normflows(kind: str, moved: Sequence[Tensor], hidden: int) -> Flow:
    import normflows
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling

    features = len(moved[0])
    layers, nets = [], []
    for i, mask in enumerate(moved):
        active = int(mask.sum())
        if kind == "spline":
            # Its public layer has a residual network and splines on the passive features as well.
            layer = normflows.flows.CoupledRationalQuadraticSpline(features, 1, 1)
            net = functools.partial(Conditioner, hidden=hidden)
            layer.prqct = PiecewiseRationalQuadraticCoupling(
                mask, net, num_bins=BINS, tails="linear", tail_bound=BOUND[NFLOWS]
            )
            nets.append(layer.prqct.transform_net)
        else:
            nets.append(Conditioner(features - active, 2 * active, hidden))
            split = "channel_inv" if i % 2 else "channel"
            layer = normflows.flows.AffineCouplingBlock(nets[-1], split_mode=split)
        layers.append(layer)
    base = normflows.distributions.DiagGaussian(features, trainable=False)
    # It counts its layers from the base.
    model = normflows.NormalizingFlow(base, layers[::-1])
    return Flow(model, model.log_prob, nets, _rows(kind, NORMFLOWS, moved))


def _zuko(kind: str, moved: Sequence[Tensor], hidden: int) -> Flow:
    import zuko
    from zuko.flows.coupling import GeneralCouplingTransform

    features = len(moved[0])
    options: dict = {"hidden_features": (hidden, hidden)}
    if kind == "spline":
        spline = functools.partial(zuko.transforms.MonotonicRQSTransform, bound=BOUND[ZUKO])
        options |= {"univariate": spline, "shapes": [(BINS,), (BINS,), (BINS - 1,)]}
    layers = [GeneralCouplingTransform(features, mask=~mask, **options) for mask in moved]
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(features), torch.ones(features), buffer=True
    )
    model = zuko.lazy.Flow(layers, base)
    nets = [layer.hyper for layer in layers]
    return Flow(model, lambda x: model().log_prob(x), nets, _rows(kind, ZUKO, moved))


def flow(kind: str, provider: str, library: str, features: int, hidden: int, layers: int) -> Flow:
    """A flow of couplings of ``kind`` "spline" or "affine" by ``provider``.

    Ours follows ``library`` in what the libraries do differently.
    """
    moved = masks(kind, library, features, layers)
    if provider == OURS:
        built = _ours(kind, library, moved, hidden)
    else:
        make = {NFLOWS: _nflows, NORMFLOWS: _normflows, ZUKO: _zuko}[provider]
        built = make(kind, moved, hidden)
    built.load(weights(kind, moved, hidden))
    return built
