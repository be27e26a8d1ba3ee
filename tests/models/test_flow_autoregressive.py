"""Autoregressive flows: what depends on what, draws in one pass of work, and the inverse kind."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from models.flow_cases import QUICK, moons, shaken

from evidens import MaskedAutoregressiveFlow, ops
from evidens.nn import AffineAutoregressive, MaskedMLP, SplineAutoregressive

F64 = torch.float64
TRANSFORMERS = ("affine", "spline")


def layer_of(transformer, features=5, context=0, order=None, hidden=(16, 16), activation="tanh"):
    spline = transformer == "spline"
    outputs = SplineAutoregressive.outputs(4) if spline else 2
    net = MaskedMLP(
        features, outputs, hidden, order=order, context=context, activation=activation
    ).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=F64))
    return SplineAutoregressive(net, bins=4) if spline else AffineAutoregressive(net)


@pytest.mark.parametrize("order", [None, [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]], ids=str)
@pytest.mark.parametrize("hidden", [(), (7,), (3, 40, 9)], ids=str)
@pytest.mark.parametrize("one_hot", [0, 3])
def test_the_network_sees_what_the_order_says(order, hidden, one_hot):
    """To the entry: with more than enough units every feature before is seen, no other."""
    hidden = tuple(50 * h for h in hidden)
    net = MaskedMLP(5, 2, hidden, order=order, one_hot=one_hot, activation="tanh").double()
    place = torch.arange(5) if order is None else torch.tensor(order)
    base = torch.randint(0, 3, (1, 5)).double()
    for d in range(5):
        moved = base.clone()
        moved[0, d] = (moved[0, d] + 1) % 3
        seen = (net(moved) != net(base)).all(2)[0]
        assert torch.equal(seen, place > place[d])


@pytest.mark.parametrize("activation", ["relu", "silu", "tanh", "elu", "leaky_relu"])
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("transformer", TRANSFORMERS)
def test_the_fast_inverse_is_that_of_full_passes(transformer, context, activation):
    layer = layer_of(transformer, context=context, order=[2, 0, 4, 1, 3], activation=activation)
    y = torch.randn(9, 5, dtype=F64)
    c = torch.randn(9, context, dtype=F64) if context else None
    slow, slow_logdet = layer.inverse(y, c)
    assert slow.requires_grad
    with torch.no_grad():
        fast, fast_logdet = layer.inverse(y, c)
        back, logdet = layer(fast, c)
    torch.testing.assert_close(fast, slow.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(fast_logdet, slow_logdet.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(back, y, rtol=0, atol=1e-10)
    torch.testing.assert_close(logdet, -fast_logdet, rtol=0, atol=1e-10)


@pytest.mark.parametrize("transformer", TRANSFORMERS)
def test_gradient_of_the_inverse(transformer):
    layer = layer_of(transformer, features=3)
    y = torch.randn(4, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.inverse, (y,))


def test_a_context_reaches_the_first_feature():
    layer = layer_of("affine", context=2)
    x = torch.zeros(1, 5, dtype=F64)
    a, b = (layer(x, torch.full((1, 2), v, dtype=F64))[0] for v in (0.0, 1.0))
    assert (a != b).all()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("transformer", TRANSFORMERS)
def test_draws_and_densities_are_of_one_model(transformer, inverse):
    flow = MaskedAutoregressiveFlow(
        3, layers=3, hidden=(16,), transformer=transformer, inverse=inverse
    )
    flow = shaken(flow.double())
    x = flow.rsample(7, random_state=0)
    z = flow.transform(x)
    with torch.no_grad():
        torch.testing.assert_close(flow.sample(7, random_state=0), x.detach())
        torch.testing.assert_close(flow.transform(x.detach()), z.detach())
        density = flow.log_prob(x.detach())
    torch.testing.assert_close(density, flow.log_prob(x).detach())
    base = -0.5 * (z * z + np.log(2 * np.pi)).sum(1)
    for i in range(7):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow.transform(v[None])[0], x[i])
        expected = base[i] + torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(density[i], expected.detach())


def test_the_inverse_kind_learns():
    X = moons(400)[0]
    flow = MaskedAutoregressiveFlow(2, layers=2, hidden=(32,), transformer="spline", inverse=True)
    flow.fit(X, epochs=15, lr=1e-2, **QUICK)
    assert flow.history_["validation"][-1] > flow.history_["validation"][0] + 0.3
    assert flow.sample(5, random_state=0).shape == (5, 2)


def test_settings_survive_a_file(tmp_path):
    flow = shaken(MaskedAutoregressiveFlow(2, layers=2, transformer="spline", inverse=True))
    flow.save(tmp_path / "flow")
    again = MaskedAutoregressiveFlow.load(tmp_path / "flow")
    x = torch.randn(5, 2)
    assert torch.equal(again.log_prob(x), flow.log_prob(x))
    assert again.settings == flow.settings


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: MaskedAutoregressiveFlow(2, transformer="cubic"), "transformer.*affine.*cubic"),
        (lambda: MaskedAutoregressiveFlow(2, activation="gelu"), "activation.*relu.*gelu"),
        (lambda: MaskedMLP(3, 2, order=[0, 1, 1]), r"order.*0 \.\. D - 1 = 2"),
        (lambda: MaskedMLP(3, 0), "at least 1"),
        (lambda: MaskedMLP(3, 2)(torch.zeros(1, 4)), r"3 features.*\(1, 4\)"),
        (lambda: MaskedMLP(3, 2, context=2)(torch.zeros(1, 3)), "context"),
        (lambda: AffineAutoregressive(MaskedMLP(3, 2), scale_map="additive"), "scale_map"),
    ],
)
def test_errors(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize(
    "net", [MaskedMLP(3, 3), torch.nn.Linear(3, 6), MaskedMLP(3, 2, one_hot=2)]
)
def test_another_network_is_refused(net):
    with pytest.raises(TypeError, match="MaskedMLP with 2 parameters"):
        AffineAutoregressive(net)


def test_orders_alternate():
    flow = MaskedAutoregressiveFlow(4, layers=3)
    degrees = [layer.net.degrees[0].tolist() for layer in flow.layers]
    for a, b in itertools.pairwise(degrees):
        assert a == b[::-1]


@pytest.mark.parametrize("transformer", TRANSFORMERS)
def test_tangents_of_weights_pass_the_sequential_direction(transformer):
    torch.manual_seed(0)
    model = MaskedAutoregressiveFlow(
        2, layers=1, inverse=True, hidden=(8,), transformer=transformer
    ).double()
    x = torch.randn(3, 2, dtype=F64)
    weights = {name: p.detach() + 0.1 for name, p in model.named_parameters()}
    tangents = {name: torch.ones_like(p) for name, p in weights.items()}

    def total(w):
        return torch.func.functional_call(model, w, (x,)).sum()

    _, slope = torch.func.jvp(total, (weights,), (tangents,))
    gradient = torch.func.grad(total)(weights)
    assert slope.item() == pytest.approx(sum(g.sum().item() for g in gradient.values()))
    assert slope != 0


def test_tangents_in_lists_are_refused():
    noise, weight = torch.zeros(1, 2), torch.zeros(4, 2)
    degrees = [torch.tensor([1, 2])]  # no hidden layer

    def draw(w):
        return ops.made_sample(noise, [w], [None], degrees, kind="affine")[0]

    with pytest.raises(RuntimeError, match="carries a tangent"):
        torch.func.jvp(draw, (weight,), (torch.ones_like(weight),))
