"""Sampling of masked convolutions in Triton against the plain loop of full passes."""

from __future__ import annotations

import math

import pytest
import torch
from ops.comparison import assert_within
from ops.pixelcnn_cases import NETWORKS, pixels

import evidens
from evidens import ops
from evidens.reference.autoregress import ACTIVATIONS

# Kind, channels, groups.
KINDS = [
    ("bernoulli", 1, 1),
    ("bernoulli", 2, 2),
    ("categorical", 1, 1),
    ("categorical", 3, 3),
    ("categorical", 2, 1),
    ("logistic", 1, 1),
    ("logistic", 3, 1),
]


def placed(net, device):
    net.noise = net.noise.to(device)
    net.layers = [
        layer._replace(**{
            field: t.to(device)
            for field in ("weight", "bias", "context")
            if (t := getattr(layer, field)) is not None
        })
        for layer in net.layers
    ]  # fmt: skip
    return net


def check(net, device, **changes):
    net, found = placed(net, device), []
    for backend in ("triton", "reference"):
        with evidens.backend(backend):
            found.append(net.sample(**changes))
    assert torch.equal(*found)
    return found[0]


@pytest.mark.parametrize(("kind", "channels", "groups"), KINDS)
def test_equals_the_plain_loop(device, kind, channels, groups, canaries):
    for network in NETWORKS:
        check(pixels(kind, network, (2, 2), 2, channels, groups=groups), device)
    check(pixels(kind, "gated", (3, 2), 1, channels, torch.float32, groups=groups), device)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 1), (0, 2)], ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_sizes(device, network, size, canaries):
    check(pixels("categorical", network, size, 2), device)
    check(pixels("categorical", network, (2, 2), 0), device)


@pytest.mark.parametrize("kind", ["categorical", "logistic"])
def test_one_hot_and_many_channels(device, kind, canaries):
    """More outputs than a block, more depth than a block."""
    check(pixels(kind, "gated", (2, 2), 2, one_hot=True, hidden=70), device)


@pytest.mark.parametrize(("kind", "channels", "groups"), KINDS)
def test_partial_observations(device, kind, channels, groups, canaries):
    net = pixels(kind, "gated", (2, 2), 2, channels, groups=groups)
    known = torch.rand(2, channels, 2, 2) < 0.5
    values = torch.randint(0, 2, known.shape)
    check(net, device, known=known.to(device), values=values.to(device))


def test_contexts(device, canaries):
    net = pixels("categorical", "gated", (3, 2), 2)
    net.layers = [
        layer if layer.weight is None
        else layer._replace(context=torch.randn(2, len(layer.weight), dtype=torch.float64))
        for layer in net.layers
    ]  # fmt: skip
    check(net, device)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(device, activation):
    net = pixels("categorical", "plain", (2, 2), 2)
    net.layers = [*(k._replace(activation=activation) for k in net.layers[:2]), net.layers[2]]
    check(net, device)


def test_without_biases(device):
    net = pixels("bernoulli", "plain", (2, 2), 2)
    net.layers = [layer._replace(bias=None) for layer in net.layers]
    check(net, device)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's NaN
@pytest.mark.parametrize("kind", ["bernoulli", "categorical", "logistic"])
def test_a_network_that_gives_nan(device, kind):
    net = placed(pixels(kind, "plain", (2, 2), 2), device)
    net.layers[-1].bias[:] = math.nan
    with evidens.backend("triton"), pytest.raises(ValueError, match="no distribution"):
        net.sample()


@pytest.mark.parametrize(("kind", "channels", "groups"), KINDS)
def test_steps_give_the_draw(device, kind, channels, groups):
    net = pixels(kind, "gated", (2, 2), 2, channels, groups=groups)
    whole = check(net, device)
    said = []
    for backend in ("triton", "reference"):
        with evidens.backend(backend):
            state = ops.pixelcnn_start(net.noise, net.layers, **net.options)
            _, state = ops.pixelcnn_step(state)
            said.append(state.parameters)
            branch = state.copy()
            while not state.done:
                _, state = ops.pixelcnn_step(state)
            assert torch.equal(state.x, whole)
            forced = torch.ones(2, channels, device=device)
            _, branch = ops.pixelcnn_step(branch, forced)
            assert (branch.x[:, :, 0, 1] == 1).all()
            while not branch.done:
                _, branch = ops.pixelcnn_step(branch)
            said.append(branch.x)
    assert_within(said[0], said[2], 1e-12, "parameters")
    assert torch.equal(said[1], said[3])
