"""What every layer must do: be undone, know its determinant, start as the identity, compile."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from nn.flow_cases import LAYERS, MASK, C, D, affine, image_coupling, perturbed, spline

from evidens.nn import (
    MLP,
    ActNorm,
    AffineCoupling,
    Chain,
    InvertibleLinear,
    Permutation,
    SplineCoupling,
    Split,
    Squeeze,
)

NAMES = list(LAYERS)


def made(name, n=6, dtype=torch.float64):
    build, shape = LAYERS[name]
    return perturbed(build()).to(dtype), torch.randn(n, *shape, dtype=dtype)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name):
    layer, x = made(name)
    y, logdet = layer(x)
    back, opposite = layer.inverse(y)
    assert logdet.shape == opposite.shape == (len(x),)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(logdet, -opposite, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_logdet_is_that_of_the_jacobian(name):
    layer, x = made(name, n=2)
    _, logdet = layer(x)
    for i in range(len(x)):
        row = x[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda v, row=row: layer(v.view_as(row))[0].flatten(), row.flatten()
        )
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], logdet[i])


@pytest.mark.parametrize("name", NAMES)
def test_float32_and_gradients_of_every_parameter(name):
    layer, x = made(name, dtype=torch.float32)
    y, logdet = layer(x)
    assert y.dtype == logdet.dtype == torch.float32
    if not list(layer.parameters()):
        return
    (y.square().sum() + logdet.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_no_rows(name):
    layer, x = made(name, n=0)
    y, logdet = layer(x)
    assert len(y) == 0
    assert logdet.shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_files_of_the_state(name):
    layer, x = made(name)
    expected = layer(x)[0]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x)[0], expected)
    fresh = LAYERS[name][0]().double().eval()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x)[0], expected)


@pytest.mark.parametrize("name", ["chain", "multiscale"])
def test_compiles_into_one_graph(name):
    layer, x = made(name)
    for step in (layer, layer.inverse):
        y, logdet = torch.compile(step, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(y, step(x)[0])
        torch.testing.assert_close(logdet, step(x)[1])


@pytest.mark.parametrize("scale_map", ["exp", "exp_clamped", "tanh", "atan", "bounded_exp"])
def test_affine_starts_as_the_identity(scale_map):
    x = torch.randn(4, D)
    y, logdet = affine(scale_map=scale_map)(x)
    assert torch.equal(x, y)
    assert not logdet.any()


@pytest.mark.parametrize("parameters", ["nflows", "zuko"])
def test_spline_starts_as_the_identity(parameters):
    x = torch.randn(4, D, dtype=torch.float64)
    y, logdet = spline(parameters=parameters).double()(x)
    torch.testing.assert_close(x, y, rtol=0, atol=1e-14)
    torch.testing.assert_close(logdet, torch.zeros_like(logdet), rtol=0, atol=1e-13)


def test_rotation_keeps_lengths_and_its_determinant_is_one():
    layer = InvertibleLinear(7, init="rotation").double()
    x = torch.randn(20, 7, dtype=torch.float64)
    y, logdet = layer(x)
    torch.testing.assert_close(x.norm(dim=1), y.norm(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(logdet, torch.zeros_like(logdet), rtol=0, atol=1e-6)
    assert not torch.allclose(x, y)


@pytest.mark.parametrize("build", [affine, spline])
def test_context_decides(build):
    layer = perturbed(build(context=2))
    x, context = torch.randn(4, D).double(), torch.randn(4, 2).double()
    y, logdet = layer(x, context)
    back, opposite = layer.inverse(y, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(logdet, -opposite)
    assert not torch.allclose(layer(x, context + 1)[0], y)
    with pytest.raises(ValueError, match=r"MLP: expected a context of shape \(N, 2\), got None"):
        layer(x)
    with pytest.raises(ValueError, match=r"got \(4, 3\)"):
        layer(x, torch.randn(4, 3).double())
    with pytest.raises(ValueError, match="expected a context of None"):
        build().double()(x, context)


@pytest.mark.parametrize("build", [affine, spline])
def test_passive_features_pass_and_active_ones_do_not_see_each_other(build):
    layer = perturbed(build())
    x = torch.randn(1, D, dtype=torch.float64)
    y, _ = layer(x)
    assert torch.equal(y[:, ~MASK], x[:, ~MASK])
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0][0], x[0])
    active = jacobian[MASK][:, MASK]
    assert torch.equal(active, active.diagonal().diag())


def test_any_module_is_a_conditioner():
    class Doubling(torch.nn.Module):
        def forward(self, x, context=None):
            return torch.cat([torch.zeros_like(x), 2 * x if context is None else context], 1)

    layer = AffineCoupling(2, Doubling())
    assert layer(torch.tensor([[1.0, 10.0]]))[0].tolist() == [[1.0, 12.0]]
    context = torch.tensor([[5.0]])
    assert layer(torch.tensor([[1.0, 10.0]]), context)[0].tolist() == [[1.0, 15.0]]


def test_masks_of_every_kind_reach_the_conditioner():
    for mask in ([0, 0, 1, 1, 1], [0, 1, 0, 1, 0], [1, 0, 0, 1, 0], [1, 1, 1, 1, 1]):
        mask = torch.tensor(mask, dtype=torch.bool)
        layer, seen = affine(mask), []
        layer.conditioner.register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[0]))
        x = torch.randn(3, D)
        layer(x)
        assert torch.equal(seen[0], x[:, ~mask])


def test_split_of_an_odd_number_of_channels():
    layer = perturbed(Split(5, InvertibleLinear(3)))
    x = torch.randn(4, 5, 2, 2, dtype=torch.float64)
    y, _ = layer(x)
    assert torch.equal(y[:, 3:], x[:, 3:])
    torch.testing.assert_close(layer.inverse(y)[0], x)


def test_squeeze_puts_blocks_into_channels():
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    y, _ = Squeeze(2)(x)
    for c, i, j in itertools.product(range(2), range(2), range(2)):
        assert torch.equal(y[0, 4 * c + 2 * i + j], x[0, c, i::2, j::2])


# --- ActNorm --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_actnorm_starts_from_the_first_training_batch(shape):
    layer = ActNorm(C).double()
    x = 5 + 3 * torch.randn(50, C, *shape, dtype=torch.float64)
    assert torch.equal(layer.eval()(x)[0], x)
    assert not layer.initialized
    y, _ = layer.train()(x)
    columns = y.movedim(1, 0).flatten(1)
    torch.testing.assert_close(columns.mean(1), torch.zeros(C).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(columns.std(1, correction=0), torch.ones(C).double())
    assert layer.initialized
    torch.testing.assert_close(layer(x + 1)[0] - y, (layer(x)[0] - layer(x - 1)[0]))


def test_actnorm_remembers_through_a_state_dict():
    layer = ActNorm(2)
    layer(torch.randn(10, 2))
    other = ActNorm(2)
    other.load_state_dict(layer.state_dict())
    other(100 * torch.randn(10, 2))
    assert torch.equal(other.shift, layer.shift)


def test_actnorm_with_a_constant_feature_and_bad_batches():
    layer = ActNorm(2)
    y, _ = layer(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
    assert y.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    with pytest.raises(ValueError, match="not finite"):
        ActNorm(1)(torch.tensor([[1.0], [float("nan")]]))
    empty = ActNorm(1)
    empty(torch.zeros(0, 1))
    assert not empty.initialized


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: affine()(torch.zeros(3, D + 1)), r"5 features on axis 1, got \(3, 6\)"),
        (lambda: ActNorm(2)(torch.zeros(2)), r"got \(2,\)"),
        (lambda: AffineCoupling(2, MLP(1, 3))(torch.zeros(1, 2)), r"must give shape \(1, 2\)"),
        (lambda: AffineCoupling(2, MLP(1, 2), mask=[1, 0]), "mask must be bool"),
        (lambda: AffineCoupling(2, MLP(1, 2), mask=[False, False]), "no active feature"),
        (lambda: AffineCoupling(2, MLP(1, 2), scale_map="x"), "expected scale_map one of"),
        (lambda: spline(tails="flat"), "expected tails one of"),
        (lambda: spline(tails=["linear"]), "one for each of the 5 features, got 1"),
        (lambda: spline(parameters="knots"), "expected parameters 'nflows' or 'zuko'"),
        (lambda: spline(bound=-1.0), r"bound must be a positive number.*-1\.0"),
        (lambda: spline(bound=np.float32(-1)), r"bound must be a positive number.*-1\.0"),
        (lambda: spline(bound=torch.ones(D - 1)), "one for each of the D = 5 features"),
        (
            lambda: SplineCoupling(2, MLP(1, 1), bins=2000),
            "min_width must be between 0 and 1 / M.*2000 bins",
        ),
        (lambda: SplineCoupling(2, MLP(1, 1), bins=0), "at least one bin"),
        (lambda: spline(min_derivative=1.0), r"min_derivative must be in \[0, 1\)"),
        (lambda: spline(logit_scale=-1.0), "logit_scale must be positive"),
        (lambda: spline(tails=["none"] * 5, bound=(1, 0, 0, 1)), "left < right and bottom < top"),
        (lambda: spline()(torch.zeros(2, D, 3, 3)), r"x of shape \(N, D\).*got \(2, 5, 3, 3\)"),
        (lambda: AffineCoupling(2, MLP(1, 2), clamp=-1), "clamp of scale_map 'exp_clamped'"),
        (lambda: AffineCoupling(2, MLP(1, 2), scale_map="exp", clamp=1.0), "takes no clamp"),
        (lambda: InvertibleLinear(2, init="zero"), "expected init 'identity' or 'rotation'"),
        (lambda: Squeeze(2)(torch.zeros(1, 1, 3, 4)), "multiples of 2"),
        (lambda: Squeeze(2).inverse(torch.zeros(1, 3, 2, 2)), "C a multiple of 4"),
        (lambda: Squeeze(1), "factor >= 2"),
        (lambda: Squeeze(2.5), r"an integer factor >= 2, got 2\.5"),
        (lambda: Permutation(3, [2.5, 0.2, 1.1]), r"every number of 0\.\.2 once, got \[2\.5"),
        (lambda: Permutation(2, [True, False]), r"got \[True, False\]"),
        (lambda: Permutation(3, [0, 1, 1]), r"got \[0, 1, 1\]"),
        (lambda: Split(4, Squeeze(2))(torch.zeros(1, 4, 2, 2)), "rest must keep the shape"),
        (lambda: Split(1, Squeeze(2)), "at least 2 channels"),
        (lambda: MLP(1, 2, activation="step"), "activation: expected one of"),
        (lambda: image_coupling()(torch.zeros(1, C + 1, 2, 2)), r"4 features on axis 1"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_types_that_are_refused():
    with pytest.raises(TypeError, match=r"conditioner must be a torch\.nn\.Module"):
        AffineCoupling(2, lambda x: x)
    with pytest.raises(TypeError, match="a method inverse"):
        Chain(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("gives, name", [(lambda x: None, "NoneType"), (lambda x: (x, x), "tuple")])
def test_a_conditioner_that_gives_no_tensor(gives, name):
    class Net(torch.nn.Module):
        def forward(self, x):
            return gives(x)

    layers = AffineCoupling(2, Net()), AffineCoupling(2, Net(), scale_map="additive")
    for layer in (*layers, SplineCoupling(2, Net())):
        with pytest.raises(TypeError, match=rf"Coupling: the conditioner, Net, must give.*{name}"):
            layer(torch.zeros(3, 2))


@pytest.mark.parametrize("kind", [np.float32, np.array, torch.tensor, int])
def test_bounds_of_every_kind(kind):
    torch.manual_seed(0)
    x, layer = torch.randn(4, D, dtype=torch.float64), perturbed(spline(bound=3.0)).double()
    other = spline(bound=kind(3)).double()
    other.load_state_dict(layer.state_dict())
    assert "bound=3" in repr(other)
    for a, b in zip(other(x), layer(x)):
        assert torch.equal(a, b)
    each = spline(bound=[kind(3)] * D if kind in (int, np.float32) else kind([3.0] * D)).double()
    each.load_state_dict(layer.state_dict())
    assert torch.equal(copy.deepcopy(each)(x)[0], layer(x)[0])


@pytest.mark.parametrize("name", ["linear", "circular", "none"])
def test_a_list_of_tails_that_agree_is_their_name(name):
    """With the parameters of the name, also where there is one feature."""
    for features, mask in ((1, None), (3, [True, False, True])):
        mask = None if mask is None else torch.tensor(mask)
        nets = [MLP(*SplineCoupling.sizes(features, mask=mask, tails=t), zero_init=False)
                for t in (name, [name] * features)]  # fmt: skip
        nets[1].load_state_dict(nets[0].state_dict())
        if nets[0].constant is not None:
            for net in nets:
                torch.nn.init.normal_(net.constant, generator=torch.Generator().manual_seed(1))
        one, two = (SplineCoupling(features, net, mask=mask, tails=t)
                    for net, t in zip(nets, (name, [name] * features)))  # fmt: skip
        x = torch.rand(5, features)
        for a, b in zip(one(x), two(x)):
            assert torch.equal(a, b)


def test_a_state_dict_of_another_mask_is_refused():
    with pytest.raises(RuntimeError, match="built with another mask"):
        affine(~MASK).load_state_dict(affine(MASK).state_dict(), strict=False)


def test_repr_names_what_counts():
    text = repr(Chain(affine(), spline(), InvertibleLinear(D), ActNorm(D)))
    for part in ("5, active=3, scale_map='exp_clamped'", "bins=4, tails='linear', bound=3.0",
                 "5, init='identity', bias=True", "ActNorm(5)"):  # fmt: skip
        assert part in text
