"""made_sample against nflows' and zuko's masked autoregressive transforms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evidens import ops

nflows = pytest.importorskip("nflows.transforms.autoregressive")
zuko = pytest.importorskip("zuko")

D, HIDDEN = 6, 20


def of_nflows(made):
    """Weights, biases and degrees of a feed-forward nflows.transforms.made.MADE."""
    layers = [made.initial_layer, *(block.linear for block in made.blocks), made.final_layer]
    degrees = [torch.arange(1, D + 1), *(layer.degrees.long() for layer in layers[:-1])]
    return [layer.weight.detach() for layer in layers], [m.bias.detach() for m in layers], degrees


def randomize(module):
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * 0.5)


@pytest.mark.parametrize("context", [0, 3])
def test_nflows_affine(context):
    flow = nflows.MaskedAffineAutoregressiveTransform(
        D, HIDDEN, context or None, num_blocks=2, use_residual_blocks=False, activation=torch.tanh
    )
    flow = flow.double().eval()
    randomize(flow)
    z, given = torch.randn(30, D).double(), torch.randn(30, 3).double() if context else None
    with torch.no_grad():
        x, logdet = flow.inverse(z, given)
        made = flow.autoregressive_net
        extra = None if given is None else torch.tanh(made.context_layer(given))
    weights, biases, degrees = of_nflows(made)
    # It gives scale before shift.
    swap = torch.arange(2 * D).view(D, 2).flip(1).flatten()
    weights[-1], biases[-1] = weights[-1][swap], biases[-1][swap]
    got, log = ops.made_sample(
        z, weights, biases, degrees, activation="tanh", scale_map="softplus", inverse=True,
        context=extra,
    )  # fmt: skip
    torch.testing.assert_close(got, x)
    torch.testing.assert_close(log, logdet)


def test_nflows_spline():
    flow = nflows.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
        D,
        HIDDEN,
        num_bins=5,
        num_blocks=1,
        use_residual_blocks=False,
        tails="linear",
        tail_bound=2.0,
    )
    flow = flow.double().eval()
    randomize(flow)
    z = torch.randn(30, D).double()
    with torch.no_grad():
        x, logdet = flow.inverse(z)
    got, log = ops.made_sample(
        z, *of_nflows(flow.autoregressive_net), kind="spline", inverse=True,
        spline={"bins": 5, "bound": 2.0},
    )  # fmt: skip
    torch.testing.assert_close(got, x)
    torch.testing.assert_close(log, logdet)


def test_zuko_affine():
    """Masks alone tell the degrees of its hidden units: what they see, up to the greatest."""
    flow = zuko.flows.MaskedAutoregressiveTransform(
        D, order=torch.randperm(D), hidden_features=(HIDDEN, HIDDEN)
    ).double()
    randomize(flow)
    z = torch.randn(30, D).double()
    transform = flow()
    with torch.no_grad():
        x = transform.inv(z)
        logdet = -transform.log_abs_det_jacobian(x, z)
    layers = [m for m in flow.hyper if isinstance(m, nn.Linear)]
    degrees = [flow.order.long()]
    seen = torch.eye(D, dtype=torch.bool)
    for layer in layers[:-1]:
        seen = (layer.mask.double() @ seen.double()) > 0
        degrees.append(torch.where(seen, flow.order, -1).amax(1).long())
    # It has all shifts of a feature before its scales, as here.
    got, log = ops.made_sample(
        z, [m.weight.detach() for m in layers], [m.bias.detach() for m in layers], degrees,
        scale_map="bounded_exp", inverse=True,
    )  # fmt: skip
    torch.testing.assert_close(got, x)
    torch.testing.assert_close(log, logdet)
