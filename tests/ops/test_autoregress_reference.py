"""The plain loops against enumeration, Jacobians and SciPy."""

from __future__ import annotations

import itertools

import pytest
import torch
from ops.autoregress_cases import network
from scipy import stats

import evidens
from evidens import ops
from evidens.ops import _autoregress_arguments as given
from evidens.reference import autoregress as reference


def parameters(net, x, context=None):
    """(N, D, P) by one full pass over finished rows."""
    hot = net.options.get("one_hot", 0)
    inputs = reference.encode(x, hot, *net.options.get("input_map", (1.0, 0.0)))
    activation = net.options.get("activation", "relu")
    return reference.made_parameters(
        inputs, net.weights, net.biases, net.degrees, context, activation
    )


@pytest.fixture(autouse=True)
def plain():
    with evidens.backend("reference"):
        yield


@pytest.mark.parametrize("hidden", [(), (9,), (8, 11, 6)], ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["one by one", "together"])
def test_the_pattern_of_the_jacobian_is_that_of_the_degrees(hidden, shared):
    net = network("affine", 1, 6, hidden, shared_degrees=shared, activation="tanh", seed=4)
    weights = [w.nan_to_num(1.0) for w in net.weights]  # what is dead would show
    pattern = torch.autograd.functional.jacobian(
        lambda x: reference.made_parameters(
            x, weights, net.biases, net.degrees, None, "tanh"
        ).flatten(),
        torch.randn(1, 6, dtype=torch.float64),
    )[:, 0]
    # A path needs a unit between the degrees in every hidden layer.
    order = net.degrees[0]
    reach = torch.eye(6, dtype=torch.bool)
    seen = order
    for degree in net.degrees[1:]:
        reach = ((degree[:, None] >= seen).double() @ reach.double()) > 0
        seen = degree
    allowed = ((order.repeat_interleave(2)[:, None] > seen).double() @ reach.double()) > 0
    assert torch.equal(pattern != 0, allowed)
    assert not allowed[order.repeat_interleave(2)[:, None] <= order].any()


@pytest.mark.parametrize("kind", ["affine", "spline"])
@pytest.mark.parametrize("inverse", [False, True])
def test_flows_have_the_logdet_of_their_jacobian(kind, inverse):
    net = network(kind, 3, 5, (16, 16), inverse=inverse, activation="tanh", seed=2)
    names = reference.KINDS.index(kind)
    settings = given.spline_settings("", names, net.options.get("spline"), 5, 11)

    def loop(z):
        return reference.made_sample(
            z[None, :, None], net.weights, net.biases, net.degrees, None, None, None, names,
            reference.ACTIVATIONS.index("tanh"), 0, (1.0, 0.0), 0, 0.0, inverse, *settings,
        )  # fmt: skip

    for z in net.noise:
        jacobian = torch.autograd.functional.jacobian(lambda v: loop(v)[0][0], z)
        torch.testing.assert_close(loop(z)[1][0], jacobian.slogdet()[1])


@pytest.mark.parametrize("kind", ["affine", "gaussian"])
def test_one_pass_over_the_draw_gives_the_noise_back(kind):
    net = network(kind, 20, 7, (12,), inverse=kind == "affine")
    x, logdet = net.sample()
    shift, log = parameters(net, x).unbind(-1)
    z = x * log.exp() + shift if kind == "affine" else (x - shift) * (-log).exp()
    torch.testing.assert_close(z, net.noise)
    torch.testing.assert_close(logdet, (-log if kind == "affine" else log).sum(1))


def test_bernoulli_frequencies_are_the_models():
    net = network("bernoulli", 20_000, 4, (9, 8), gain=2.0)
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64)
    p = torch.sigmoid(parameters(net, states)[..., 0])
    probability = torch.where(states > 0, p, 1 - p).prod(1)
    torch.testing.assert_close(probability.sum().item(), 1.0)
    code = (net.sample()[0] * torch.tensor([8, 4, 2, 1])).sum(1).long()
    counts = torch.bincount(code, minlength=16)
    assert stats.chisquare(counts.numpy(), (probability * 20_000).numpy()).pvalue > 1e-3


def test_categorical_frequencies_are_the_models():
    net = network("categorical", 20_000, 2, (9,), gain=2.0, one_hot=True)
    states = torch.tensor(list(itertools.product(range(5), repeat=2)), dtype=torch.float64)
    p = parameters(net, states).softmax(-1).gather(-1, states.long()[..., None])[..., 0].prod(1)
    torch.testing.assert_close(p.sum().item(), 1.0)
    code = (net.sample()[0] * torch.tensor([5, 1])).sum(1).long()
    counts = torch.bincount(code, minlength=25)
    assert stats.chisquare(counts.numpy(), (p * 20_000).numpy()).pvalue > 1e-3


def test_mixture_draws_follow_the_mixture():
    net = network("mixture", 5_000, 1, ())
    logits, means, log_scales = parameters(net, net.noise[..., 0])[0, 0].view(3, 3)
    weights, scales = logits.softmax(0).numpy(), log_scales.exp().numpy()

    def cdf(v):
        terms = stats.norm.cdf((v[:, None] - means.numpy()) / scales)
        return terms @ weights

    assert stats.kstest(net.sample()[0][:, 0].numpy(), cdf).pvalue > 1e-3


def test_pick_inverts_the_distribution_function():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64).log()
    u = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.5999, 0.6001, 1 - 2.0**-53])
    index, nan = reference.pick(logits.expand(8, -1), u.double())
    assert index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert not nan.any()


def test_what_is_impossible_is_never_picked():
    inf = torch.inf
    logits = torch.tensor([[-inf, 0.0, -inf, -900.0, 0.0, -inf]])
    u = torch.tensor([0.0, 0.25, 0.4999, 0.5, 1 - 2.0**-24])
    index, _ = reference.pick(logits.expand(5, -1), u)
    assert index.tolist() == [1, 1, 1, 4, 4]
    assert reference.pick(torch.tensor([[0.0, torch.nan]]), u[:1])[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normals_are_quantiles_of_the_uniforms(dtype):
    z = ops.made_noise("gaussian", 400, 10, seed=3, dtype=dtype)
    u = ops.philox_uniform(3, 0, 400, 10, dtype).double().numpy()
    half = 2.0**-25 if dtype is torch.float32 else 0.0
    torch.testing.assert_close(z, torch.from_numpy(stats.norm.ppf(u + half)).to(dtype))
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3


def test_the_noise_of_a_mixture_is_a_uniform_and_a_normal_of_their_own():
    noise = ops.made_noise("mixture", 3000, 1, seed=3, dtype=torch.float64)
    assert torch.equal(
        noise[..., 0], ops.made_noise("bernoulli", 3000, 1, seed=3, dtype=noise.dtype)
    )
    assert stats.kstest(noise[..., 1].flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(stats.spearmanr(*noise[:, 0].T.numpy()).statistic) < 0.06
