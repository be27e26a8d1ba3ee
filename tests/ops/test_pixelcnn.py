"""pixelcnn_sample: the kernel against the loop of full passes, partial observations, splits."""

from __future__ import annotations

import pytest
import torch
from ops.pixelcnn_cases import DTYPES, NETWORKS, Weights, pixels, plain

import evidens
from evidens import ops
from evidens.ops import _pixelcnn_arguments as given
from evidens.reference import autoregress
from evidens.reference import pixelcnn as reference

# Kind, channels, groups.
OUTPUTS = [
    ("bernoulli", 1, 1),
    ("categorical", 1, 1),
    ("categorical", 2, 1),
    ("categorical", 3, 3),
    ("categorical", 4, 2),
    ("logistic", 1, 1),
    ("logistic", 3, 1),
]
# Images, size, hidden channels: less and more than a vector, a tile of images, a kernel.
SIZES = [(3, (5, 4), 12), (2, (1, 1), 12), (7, (3, 6), 36), (1, (2, 9), 132)]


def check(case, **changes):
    x = case.sample(**changes)
    with evidens.backend("reference"):
        want = case.sample(**changes)
    assert x.dtype is torch.int64
    assert torch.equal(x, want)
    assert len(x.unique()) > 1 or x.numel() < 8, "nothing is tested by a constant image"
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "channels", "groups"), OUTPUTS)
def test_equals_the_plain_loop(kind, channels, groups, network, size, dtype):
    images, shape, hidden = size
    check(pixels(kind, network, shape, images, channels, dtype, hidden=hidden, groups=groups))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "channels", "groups"), OUTPUTS)
def test_one_hot_inputs(kind, channels, groups, network):
    check(pixels(kind, network, (4, 4), 3, channels, groups=groups, one_hot=True))


@pytest.mark.parametrize("activation", autoregress.ACTIVATIONS)
def test_activations(activation):
    w = Weights(1, torch.float64)
    case = pixels("categorical", levels=7, size=(4, 5))
    case.layers = plain(w, 1, 7, 9, activation)
    check(case)


@pytest.mark.parametrize("levels", [1, 2, 3, 16, 17, 256])
@pytest.mark.parametrize("kind", ["categorical", "logistic"])
def test_levels(kind, levels):
    if levels == 1 and kind == "logistic":
        return
    case = pixels(kind, size=(4, 4), levels=levels)
    x = case.sample()
    with evidens.backend("reference"):
        assert torch.equal(x, case.sample())
    assert x.min() >= 0
    assert x.max() < levels


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_context(network, groups):
    case = pixels("categorical", network, images=4, channels=3, hidden=12, groups=groups)
    layers = []
    for layer in case.layers:
        if layer.weight is not None:
            outputs = layer.weight.shape[0]
            layer = layer._replace(context=torch.randn(4, outputs, dtype=torch.float64))
        layers.append(layer)
    x = check(case, layers=layers)
    assert not torch.equal(x, case.sample())


def test_any_taps():
    """A mask of taps: a hole in it, and nothing to the left."""
    w = Weights(3, torch.float64)
    first = torch.zeros(3, 5, dtype=torch.bool)
    first[0, 0] = first[0, 2] = first[0, 3] = first[1, 0] = True
    second = torch.zeros(3, 3, dtype=torch.bool)
    second[0] = second[1, 1] = True
    case = pixels("categorical", size=(5, 6), channels=2)
    case.layers = [
        w(8, 2, 3, 5, mask=first, activation="relu"),
        w(8, 8, 3, mask=second, activation="relu"),
        w(10, 8, 1),
    ]
    check(case)


def test_a_layer_that_sees_nothing():
    """A 1 x 1 kernel of type A, and a mask without taps: the bias alone."""
    case = pixels("bernoulli", size=(30, 30), images=2)
    w = Weights(3, torch.float64)
    bias = torch.tensor([0.7], dtype=torch.float64)
    case.layers = [w(4, 1, 1, mask="A"), w(1, 4, 3, mask=torch.zeros(3, 3, dtype=torch.bool))]
    case.layers[1] = case.layers[1]._replace(bias=bias)
    x = check(case)
    assert torch.equal(x, (case.noise < torch.sigmoid(bias)).long())


def test_min_log_scale():
    case = pixels("logistic", levels=200, size=(4, 4))
    bias = case.layers[-1].bias.clone()
    bias[-2:] = -30.0  # log-scales
    case.layers[-1] = case.layers[-1]._replace(bias=bias)
    sharp = check(case, min_log_scale=-12.0)
    wide = check(case, min_log_scale=0.0)
    assert not torch.equal(sharp, wide)


# --- partial observations ------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "channels", "groups"), OUTPUTS)
def test_known_pixels(kind, channels, groups, network):
    case = pixels(kind, network, (4, 5), 4, channels, groups=groups)
    values = torch.randint(0, case.options["levels"], (4, channels, 4, 5))
    known = torch.rand(4, channels, 4, 5) < 0.4
    hidden = torch.where(known, values.double(), torch.nan)  # what is not known is not read
    x = check(case, known=known, values=hidden)
    assert torch.equal(x[known], values[known])
    one = torch.rand(4, 5) < 0.4
    x = check(case, known=one, values=values.to(torch.uint8))
    assert torch.equal(x, case.sample(known=one.expand(known.shape), values=values))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "channels", "groups"), OUTPUTS)
def test_goes_on_from_every_start(kind, channels, groups, network):
    case = pixels(kind, network, (3, 4), 3, channels, torch.float32, groups=groups)
    x = case.sample()
    for start in range(13):
        known = (torch.arange(12) < start).view(3, 4)
        assert torch.equal(case.sample(known=known, values=x), x)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "channels", "groups"), OUTPUTS)
def test_teacher_forcing_equals_one_full_pass(kind, channels, groups, network):
    """Every pixel is what one pass over the whole image makes of it."""
    case = pixels(kind, network, (6, 6), 3, channels, groups=groups)
    x, levels = case.sample(), case.options["levels"]
    program, _ = given.program(case.layers, case.noise, channels, groups)
    inputs = reference.encode(x.double(), levels, False, case.options["input_map"])
    params = reference.pixelcnn_parameters(inputs, *program, groups)
    code = reference.KINDS.index(kind)
    want = reference.pixelcnn_draw(case.noise, params, None, None, code, channels, levels, -7.0)
    assert torch.equal(x, want)


# --- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_an_image_does_not_depend_on_the_others(network):
    case = pixels("categorical", network, (4, 4), 60, dtype=torch.float32, hidden=20)
    x = case.sample()
    for begin, end in ((0, 1), (1, 8), (8, 60), (59, 60)):
        assert torch.equal(case.sample(noise=case.noise[begin:end]), x[begin:end])


def test_a_seeds_images_do_not_depend_on_the_batch():
    whole = ops.pixelcnn_noise("logistic", 6, 3, 4, 5, seed=1)
    assert whole.shape == (6, 4, 4, 5)
    part = ops.pixelcnn_noise("logistic", 2, 3, 4, 5, seed=1, row_offset=3)
    assert torch.equal(whole[3:5], part)
    numbers = ops.philox_uniform(1, 0, 6, 4 * 5 * 4).view(6, 4, 5, 4)
    assert torch.equal(whole, numbers.permute(0, 3, 1, 2))


@pytest.mark.parametrize("network", NETWORKS)
def test_threads(network):
    case = pixels("categorical", network, (6, 6), 13, dtype=torch.float32, hidden=32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(case.sample())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_and_half_types(dtype):
    case = pixels("categorical", "gated", (4, 4), 3, 3, dtype, groups=3)
    x = case.sample()
    layers = [
        layer._replace(weight=None if layer.weight is None else strided(layer.weight),
                       bias=None if layer.bias is None else strided(layer.bias))
        for layer in case.layers
    ]  # fmt: skip
    assert torch.equal(case.sample(layers=layers, noise=strided(case.noise)), x)
    halves = [layer if layer.bias is None else layer._replace(bias=layer.bias.half())
              for layer in case.layers]  # fmt: skip
    if dtype is torch.float32:
        rounded = [layer if layer.bias is None else layer._replace(bias=layer.bias.half().float())
                   for layer in case.layers]  # fmt: skip
        assert torch.equal(case.sample(layers=halves), case.sample(layers=rounded))


def strided(t):
    wide = torch.stack((t, t), -1)
    return wide[..., 0]
