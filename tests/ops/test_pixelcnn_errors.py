"""pixelcnn_sample: what is refused and what the message says; the seam."""

from __future__ import annotations

import pytest
import torch
from ops.pixelcnn_cases import DTYPES, Weights, pixels

import evidens
from evidens import ops
from evidens.ops import PixelLayer

KINDS = ("bernoulli", "categorical", "logistic")


@pytest.fixture
def case():
    return pixels("categorical", size=(3, 4), images=2, channels=2, hidden=6)


def refused(case, message, error=ValueError, **changes):
    with pytest.raises(error, match=f"(?s)evidens.pixelcnn_sample.*{message}"):
        case.sample(**changes)


def changed(case, i, **words):
    layers = list(case.layers)
    layers[i] = layers[i]._replace(**words)
    return {"layers": layers}


def test_kinds_levels_groups(case):
    refused(case, "kind must be one of bernoulli, categorical, logistic, got 'x'", kind="x")
    refused(case, "levels must be positive, got 0", levels=0)
    refused(case, r"last layer must have C \* K = 12 .logits. channels.*got 10", levels=6)
    refused(case, "groups must divide the C = 2 channels", groups=3)
    refused(case, "groups must divide", groups=0)
    logistic = pixels("logistic", channels=3)
    refused(logistic, "be 1 for kind 'logistic', got 3", groups=3)
    refused(logistic, "last layer must have 10 M .* got 21",
            layers=[*logistic.layers[:-1], Weights(0, torch.float64)(21, 12, 1)])  # fmt: skip
    with pytest.raises(ValueError, match=r"evidens\.pixelcnn_noise: kind must be one of"):
        ops.pixelcnn_noise("x", 1, 1, 1, 1, seed=0)


def test_noise(case):
    refused(case, r"must have shape \(N, C, H, W\), got \(2, 3, 4\)", noise=case.noise[:, 0])
    refused(pixels("logistic"), r"\(N, 2, H, W\) or \(N, 4, H, W\), got \(2, 3, 3, 4\)",
            noise=torch.rand(2, 3, 3, 4, dtype=torch.float64))  # fmt: skip
    refused(case, "noise must be float32 or float64", TypeError, noise=case.noise.long())
    refused(case, "noise is torch.float32", TypeError, noise=case.noise.float())


def test_layers(case):
    w = Weights(0, torch.float64)
    refused(case, "at least one layer", layers=[])
    refused(case, r"weight of layers\[1\] must have shape \(O, 6, kh, kw\), got \(6, 5, 3, 3\)",
            layers=[case.layers[0], w(6, 5, 3), case.layers[2]])  # fmt: skip
    refused(
        case,
        r"odd sizes, that of layers\[1\] is 2 x 3",
        **changed(case, 1, **w(6, 6, 2, 3)._asdict()),
    )
    refused(case, "mask of .* must be one of A, B, above, rows", **changed(case, 1, mask="C"))
    refused(case, r"mask of layers\[1\] must be a bool tensor \(3, 3\)",
            **changed(case, 1, mask=torch.ones(3, 3)))  # fmt: skip
    refused(
        case, r"activation of layers\[0\] must be one of", **changed(case, 0, activation="gelu")
    )
    refused(case, r"bias of layers\[0\] must have shape \(6,\), got \(5,\)",
            **changed(case, 0, bias=case.layers[0].bias[:5]))  # fmt: skip
    refused(case, r"context of layers\[0\] must have shape \(2, 6\)",
            **changed(case, 0, context=torch.zeros(3, 6, dtype=torch.float64)))  # fmt: skip
    refused(case, r"source of layers\[1\] must be -1 .. 0, got 1", **changed(case, 1, source=1))
    refused(case, r"add of layers\[0\] must be a layer before it", **changed(case, 0, add=0))
    refused(case, r"add of layers\[2\] must be a layer of 10 channels, layer 0 has 6",
            **changed(case, 2, add=0))  # fmt: skip
    refused(case, "has a bias but no weight", **changed(case, 1, weight=None))
    refused(case, "has 6 channels from 1|4 groups",
            **{"noise": case.noise.repeat(1, 2, 1, 1)[:, :4], "groups": 4,
               "layers": [w(6, 4, 3, mask="A"), w(20, 6, 1)]})  # fmt: skip
    refused(case, "has 6 channels from 7, which 2 groups do not divide", groups=2,
            layers=[w(7, 2, 3, mask="above"), w(6, 7, 1, source=0), w(10, 6, 1)])  # fmt: skip
    refused(case, "with gates do not divide", layers=[w(7, 2, 3, mask="A", activation="gate")])


def test_what_sees_the_future_is_refused(case):
    w = Weights(0, torch.float64)
    last = w(10, 6, 1)
    refused(case, r"layers\[0\] lets it see the image at row \+0, column \+0.*takes mask 'A'",
            layers=[w(6, 2, 3, mask="B"), last])  # fmt: skip
    refused(case, "lets it see the image", layers=[PixelLayer(None), w(10, 2, 1)])
    refused(case, r"layers\[0\] lets it see the image at row \+0, column -1",
            layers=[w(6, 2, 3, mask="rows"), last])  # fmt: skip
    refused(case, r"layers\[1\] lets it see layer 0 at row \+0, column \+1",
            layers=[w(6, 2, 3, mask="A"), w(6, 6, 3, mask=torch.ones(3, 3) > 0), last])  # fmt: skip
    below = torch.zeros(3, 3, dtype=torch.bool)
    below[2, 0] = True
    refused(case, r"lets it see layer 0 at row \+1, column -1",
            layers=[w(6, 2, 3, mask="A"), w(6, 6, 3, mask=below), last])  # fmt: skip
    refused(case, r"layers\[1\] lets it see layer 0 at row \+0",
            layers=[w(6, 2, 3, mask="A"), w(6, 6, 3, mask="rows"), last])  # fmt: skip
    stack = w(6, 2, 3, mask="above", source=-1, add=0)
    refused(case, "of the vertical stack, layer 0 has 6",
            layers=[w(6, 2, 3, mask="A"), stack, last])  # fmt: skip
    refused(case, "last layer must not be one of the vertical", layers=[w(10, 2, 3, mask="above")])


def test_partial_observations(case):
    known, values = torch.ones(2, 2, 3, 4, dtype=torch.bool), torch.zeros(2, 2, 3, 4)
    refused(case, "known and values belong together, got only known", known=known)
    refused(case, r"known must have shape \(N, C, H, W\) = \(2, 2, 3, 4\) or \(H, W\)",
            known=known[:, :1], values=values)  # fmt: skip
    refused(case, "known must be a bool tensor", known=known.int(), values=values)
    refused(case, "values must have shape", known=known, values=values[:1])
    for bad in (-1.0, 5.0, 0.5, torch.nan):
        values[1, 0, 2, 3] = bad
        refused(case, rf"values must be levels 0 .. 4 where known, got {bad} at \(1, 0, 2, 3\)",
                known=known, values=values)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_an_error_that_says_where(kind, dtype):
    case = pixels(kind, size=(3, 3), images=2, dtype=dtype)
    outputs = case.layers[-1].weight.shape[0]
    context = torch.zeros(2, outputs, dtype=dtype)
    context[1] = torch.nan
    changes = changed(case, -1, context=context)
    refused(case, r"no distribution.*image 1, channel 0, pixel \(0, 0\)", **changes)
    with evidens.backend("reference"):
        refused(case, r"no distribution.*image 1, channel 0, pixel \(0, 0\)", **changes)


def test_gradients_are_refused(case):
    layers = changed(case, 0, weight=case.layers[0].weight.clone().requires_grad_())
    refused(case, "offers no gradient.*full passes", RuntimeError, **layers)
    with torch.no_grad():
        case.sample(**layers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 3), (2, 3, 0)], ids=str)
def test_nothing_to_draw(kind, shape):
    images, *size = shape
    x = pixels(kind, size=tuple(size), images=images).sample()
    assert x.shape == (images, 1, *size)
    assert x.dtype is torch.int64


def inner(case):
    found = []
    op = evidens.ops.pixelcnn._pixelcnn
    original = op.run
    try:
        op.run = lambda *args: found.append(args) or original(*args)
        case.sample()
    finally:
        del op.run
    return found[0]


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind):
    case = pixels(kind, "gated", (2, 2), 2)
    case.options |= {"known": torch.eye(2) > 0, "values": torch.zeros(2, 1, 2, 2)}
    torch.library.opcheck(torch.ops.evidens.pixelcnn_sample.default, inner(case))


@pytest.mark.parametrize("kind", KINDS)
def test_compile(kind):
    case = pixels(kind, "gated", (3, 3), 2)
    x = case.sample()
    known = torch.eye(3) > 0

    @torch.compile(fullgraph=True, backend="aot_eager")
    def call(noise, values):
        plain = ops.pixelcnn_sample(noise, case.layers, **case.options)
        return plain, ops.pixelcnn_sample(
            noise, case.layers, known=known, values=values, **case.options
        )

    plain, filled = call(case.noise, x)
    assert torch.equal(plain, x)
    assert torch.equal(filled, x)


def test_vmap():
    case = pixels("categorical", size=(3, 3), images=2)
    noise = torch.stack((case.noise, case.noise.flip(0)))
    found = torch.func.vmap(lambda u: ops.pixelcnn_sample(u, case.layers, **case.options))(noise)
    assert torch.equal(found[0], case.sample())
    assert torch.equal(found[1], case.sample(noise=noise[1]))
