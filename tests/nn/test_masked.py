"""The masked layers: their masks, states, starts, and what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch

from evidens.nn import MaskedConv2d, MaskedLinear

OWN = ((True, False, True),)
LAYERS = {
    "A": lambda **o: MaskedConv2d(3, 6, 5, mask="A", groups=3, **o),
    "B": lambda **o: MaskedConv2d(3, 4, (3, 5), mask="B", **o),
    "own": lambda **o: MaskedConv2d(3, 4, (1, 3), mask=torch.tensor(OWN), **o),
    "rising": lambda **o: MaskedLinear([1, 2, 3], [1, 1, 2, 3], **o),
    "shuffled": lambda **o: MaskedLinear([3, 1, 2], torch.tensor([2, 1, 3]), strict=True, **o),
}


@pytest.fixture(params=LAYERS)
def build(request):
    return LAYERS[request.param]


def given_to(layer, dtype=torch.float32):
    shape = (2, 3, 4, 5) if isinstance(layer, MaskedConv2d) else (2, 3)
    return torch.randn(shape, dtype=dtype)


def test_is_the_op_on_the_live_weights(build):
    layer = build(dtype=torch.float64)
    x = given_to(layer, torch.float64)
    dead = torch.where(layer.live(), layer.weight, 0.0)
    if isinstance(layer, MaskedConv2d):
        padding = tuple(k // 2 for k in layer.kernel_size)
        want = torch.nn.functional.conv2d(x, dead, layer.bias, padding=padding)
    else:
        want = torch.nn.functional.linear(x, dead, layer.bias)
    torch.testing.assert_close(layer(x), want, rtol=1e-12, atol=1e-12)
    layer(x).square().sum().backward()
    assert (layer.weight.grad[~layer.live()] == 0).all()
    assert (layer.weight.grad[layer.live()] != 0).all()
    assert (layer.bias.grad != 0).all()


def test_states_are_those_of_torchs_layers(build):
    layer, other = build(), build()
    if isinstance(layer, MaskedConv2d):
        plain = torch.nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size)
    else:
        plain = torch.nn.Linear(layer.in_features, layer.out_features)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if "degrees" not in k})
    other.load_state_dict(plain.state_dict(), strict=isinstance(layer, MaskedConv2d))
    x = given_to(layer)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    if isinstance(layer, MaskedLinear):
        other.load_state_dict(layer.state_dict())


def test_starts_by_what_an_output_sees():
    """Uniform within one over the root of the live inputs, of each output by itself."""
    torch.manual_seed(0)
    layer = MaskedLinear(
        [1] * 100 + [2] * 300, [0] * 500 + [1] * 500 + [2] * 500, dtype=torch.float64
    )
    for outputs, count in ((slice(500), 1), (slice(500, 1000), 100), (slice(1000, 1500), 400)):
        for values in (layer.weight[outputs], layer.bias[outputs]):
            assert 0.97 * count**-0.5 < values.abs().max() <= count**-0.5
    conv = MaskedConv2d(50, 60, 3, mask="B")
    assert 0.97 * 250**-0.5 < conv.weight.abs().max() <= 250**-0.5
    torch.manual_seed(1)
    before = conv.weight.clone()
    conv.reset_parameters()
    assert not torch.equal(conv.weight, before)


def test_without_bias(build):
    layer = build(bias=False)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert "bias=False" in repr(layer)
    layer(given_to(layer))


def test_compiles_into_one_graph(build):
    torch._dynamo.reset()
    layer = build(dtype=torch.float64)
    x = given_to(layer, torch.float64)
    fast = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(fast(x), layer(x))
    torch._dynamo.reset()


def test_moves_to_another_dtype_and_meta(build):
    layer = build().double()
    assert layer(given_to(layer, torch.float64)).dtype is torch.float64
    meta = build(device="meta")
    y = meta(given_to(meta).to("meta"))
    assert y.device.type == "meta"


def test_a_state_dict_of_other_degrees_is_refused():
    with pytest.raises(RuntimeError, match="in_degrees: the layer was built with other degrees"):
        MaskedLinear([1, 2], [1]).load_state_dict(MaskedLinear([2, 1], [1]).state_dict())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MaskedConv2d(3, 4, 2, mask="A"), "odd kernel.*got 2 x 2"),
        (lambda: MaskedConv2d(3, 4, 3, mask="a"), "'A', 'B' or"),
        (lambda: MaskedConv2d(3, 4, 3, mask=OWN), "mask must be"),
        (lambda: MaskedConv2d(3, 4, 3, mask="A", groups=3), "groups = 3 must divide"),
        (lambda: MaskedConv2d(0, 4, 3, mask="A"), "not be empty"),
        (lambda: MaskedConv2d(3, 4, (3, 3, 3), mask="A"), r"weight \(O, C, kh, kw\)"),
        (lambda: MaskedLinear([1.0], [1]), "in_degrees to be one row of integers.*float32"),
        (lambda: MaskedLinear([1], [[1]]), r"out_degrees.*shape \(1, 1\)"),
        (lambda: MaskedLinear([1], []), "out_degrees"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_repr_names_what_counts():
    assert repr(LAYERS["A"]()) == "MaskedConv2d(3, 6, kernel_size=(5, 5), mask='A', groups=3)"
    assert "mask=own" in repr(LAYERS["own"]())
    assert repr(LAYERS["shuffled"]()) == "MaskedLinear(in_features=3, out_features=3, strict=True)"


def test_a_pixelcnn_learns_stripes():
    """Two layers tell the next pixel of images whose columns repeat."""
    torch.manual_seed(0)
    x = torch.randint(0, 2, (64, 1, 1, 6)).float().expand(-1, -1, 6, -1)
    net = torch.nn.Sequential(
        MaskedConv2d(1, 8, 3, mask="A"), torch.nn.ReLU(), MaskedConv2d(8, 1, 1, mask="B")
    )
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    for _ in range(200):
        logits = net(2 * x - 1)  # beside the padding, which is 0
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert loss[:, :, 1:].mean() < 0.01  # below the first row all is known
    assert loss[:, :, 0].mean() > 0.6  # in it nothing is
