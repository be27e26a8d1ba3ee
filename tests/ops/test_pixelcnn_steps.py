"""pixelcnn_start and pixelcnn_step: the draw of pixelcnn_sample pixel by pixel, and states."""

from __future__ import annotations

import math

import pytest
import torch
from ops.comparison import assert_within
from ops.pixelcnn_cases import DTYPES, NETWORKS, pixels

import evidens
from evidens import ops
from evidens.reference import pixelcnn as reference

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


def start(net, **changes):
    noise, layers = changes.pop("noise", net.noise), changes.pop("layers", net.layers)
    return ops.pixelcnn_start(noise, layers, **{**net.options, **changes})


def finish(state, values=None):
    """Steps to the end, each forced to its pixel of ``values``; the state of the end."""
    while not state.done:
        y, x = state.pixel
        level, state = ops.pixelcnn_step(state, None if values is None else values[:, :, y, x])
        assert level.dtype is torch.int64
    return state


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with evidens.backend(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "channels", "groups"), KINDS)
def test_steps_give_the_draw(kind, channels, groups, network, dtype):
    net = pixels(kind, network, (5, 4), 3, channels, dtype, groups=groups)
    state = start(net)
    assert state.places == 20
    assert torch.equal(finish(state).x, net.sample())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "channels", "groups"), KINDS)
def test_every_backend_steps(kind, channels, groups, network, backend):
    net = pixels(kind, network, (3, 2), 2, channels, groups=groups)
    assert torch.equal(finish(start(net)).x, net.sample())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("size", "images"),
    [((1, 1), 2), ((1, 5), 1), ((5, 1), 1), ((2, 2), 0), ((2, 3), 60), ((0, 3), 2)],
    ids=str,
)
def test_sizes(network, size, images, backend):
    net = pixels("categorical", network, size, images, one_hot=True)
    state = start(net)
    assert state.places == size[0] * size[1]
    assert torch.equal(finish(state).x, net.sample())


def test_pixels_come_in_raster_order():
    net = pixels("categorical", size=(2, 3))
    state, whole, place = start(net), net.sample(), 0
    while not state.done:
        assert state.pixel == divmod(place, 3)
        level, state = ops.pixelcnn_step(state)
        place += 1
        assert torch.equal(level, whole.flatten(2)[:, :, place - 1])
        assert torch.equal(state.x.flatten(2)[:, :, :place], whole.flatten(2)[:, :, :place])
        assert (state.x.flatten(2)[:, :, place:] == -1).all()
    assert state.pixel is None


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "channels", "groups"), KINDS)
def test_partial_observations(kind, channels, groups, network):
    net = pixels(kind, network, (4, 3), 3, channels, groups=groups)
    known = torch.rand(3, channels, 4, 3) < 0.4
    how = {"known": known, "values": net.sample().flip(0)}
    state = start(net, **how)
    assert torch.equal(state.x, torch.where(known, how["values"], -1))
    assert torch.equal(finish(state).x, net.sample(**how))
    how = {"known": known[0, 0], "values": net.sample().flip(0)}
    assert torch.equal(finish(start(net, **how)).x, net.sample(**how))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "channels", "groups"), KINDS)
def test_goes_on_from_every_start(kind, channels, groups, network):
    net = pixels(kind, network, (3, 3), 2, channels, groups=groups)
    x = net.sample()
    for first in range(10):
        known = (torch.arange(9) < first).view(3, 3)
        assert torch.equal(finish(start(net, known=known, values=x)).x, x)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "channels", "groups"), KINDS)
def test_teacher_forcing_equals_one_full_pass(kind, channels, groups, network):
    net = pixels(kind, network, (4, 4), 3, channels, groups=groups)
    x = net.sample().flip(0)
    state = start(net, noise=torch.zeros_like(net.noise))
    call = ops.pixelcnn._arguments(net.noise, net.layers, **net.options)
    inputs = reference.encode(x.double(), call[10], call[12], call[13])
    whole = reference.pixelcnn_parameters(inputs, *call[1:5], call[7], call[11])
    assert state.parameters.isnan().all()
    while not state.done:
        y, column = state.pixel
        level, state = ops.pixelcnn_step(state, x[:, :, y, column])
        assert torch.equal(level, x[:, :, y, column])
        assert_within(state.parameters, whole[:, :, y, column], 1e-10, "parameters")
    assert torch.equal(state.x, x)


@pytest.mark.parametrize(("kind", "channels", "groups"), KINDS)
def test_some_levels_are_forced(kind, channels, groups, backend):
    net = pixels(kind, "gated", (3, 2), 3, channels, groups=groups)
    value = torch.full((3, channels), math.nan)
    value[1, -1] = 1
    _, state = ops.pixelcnn_step(start(net))
    level, state = ops.pixelcnn_step(state, value)
    assert level[1, -1] == 1
    state = finish(state)
    rest = torch.tensor([0, 2])
    assert torch.equal(state.x[rest], net.sample()[rest])
    known = torch.zeros(3, 2, dtype=torch.bool)
    known[0] = True
    assert torch.equal(state.x, net.sample(known=known, values=state.x))


def test_states_do_not_meet_and_copies_go_their_own_way(backend):
    one, other = pixels("categorical", "gated", (3, 3)), pixels("logistic", size=(3, 3), seed=2)
    a, b = start(one), start(other)
    while not a.done:
        if a.pixel == (1, 1):
            branch = a.copy()
            forced = (one.sample()[:, :, 1, 1] + 1) % 5
            _, branch = ops.pixelcnn_step(branch, forced)
            assert torch.equal(finish(branch).x[:, :, 1, 1], forced)
        _, a = ops.pixelcnn_step(a)
        _, b = ops.pixelcnn_step(b)
    assert torch.equal(a.x, one.sample())
    assert torch.equal(b.x, other.sample())


def test_contexts():
    net = pixels("categorical", "plain", (3, 3))
    context = torch.randn(3, 12, dtype=torch.float64)
    layers = [net.layers[0]._replace(context=context), *net.layers[1:]]
    assert torch.equal(finish(start(net, layers=layers)).x, net.sample(layers=layers))


# --- bad input -----------------------------------------------------------------------------------


def test_states_that_cannot_be_stepped_on():
    net = pixels("categorical", size=(2, 2))
    state = start(net)
    _, after = ops.pixelcnn_step(state)
    with pytest.raises(ValueError, match="stepped on already"):
        ops.pixelcnn_step(state)
    with pytest.raises(ValueError, match="nothing is left to draw after 4 steps"):
        ops.pixelcnn_step(finish(after))
    with pytest.raises(TypeError, match="state must come from pixelcnn_start"):
        ops.pixelcnn_step(None)


@pytest.mark.parametrize("field", ["weight", "bias"])
def test_weights_that_changed(field):
    net = pixels("categorical", size=(2, 2))
    _, state = ops.pixelcnn_step(start(net))
    getattr(net.layers[1], field).mul_(2)
    with pytest.raises(ValueError, match="changed since pixelcnn_start"):
        ops.pixelcnn_step(state)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(3), r"shape \(N, C\) = \(3, 1\) for a state of 3 rows, got \(3,\)"),
        (torch.zeros(2, 1), r"got \(2, 1\)"),
        (torch.full((3, 1), 5), "levels 0 .. 4, or NaN to draw, got 5"),
        (torch.full((3, 1), 0.5), "got 0.5"),
    ],
)
def test_values_that_cannot_be(value, words):
    with pytest.raises(ValueError, match=words):
        ops.pixelcnn_step(start(pixels("categorical", size=(2, 2))), value)


def test_a_network_that_gives_nan(backend):
    net = pixels("categorical", size=(2, 2))
    net.layers[-1].bias[0] = math.nan
    with pytest.raises(ValueError, match=r"pixelcnn_step: .*no distribution.*pixel \(0, 0\)"):
        ops.pixelcnn_step(start(net))
