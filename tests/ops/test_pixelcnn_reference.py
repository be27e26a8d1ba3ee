"""The plain loop against enumeration, SciPy and the pattern of its Jacobian."""

from __future__ import annotations

import itertools

import pytest
import torch
from ops.pixelcnn_cases import NETWORKS, pixels
from scipy import stats

import evidens
from evidens.ops import _pixelcnn_arguments as given
from evidens.reference import pixelcnn as reference


@pytest.fixture(autouse=True)
def plain_loop():
    with evidens.backend("reference"):
        yield


def parameters(case, x, channels, groups=1):
    levels = case.options["levels"]
    program, _ = given.program(case.layers, case.noise, channels, groups)
    inputs = reference.encode(x, levels, False, case.options["input_map"])
    return reference.pixelcnn_parameters(inputs, *program, groups)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_pattern_of_the_jacobian_is_raster_order_and_groups(network, groups):
    """The image is smaller than the reach of the network, so all that may be seen is seen."""
    h, w = 3, 3
    case = pixels("categorical", network, (h, w), 1, 3, levels=2, hidden=12, groups=groups)
    smooth = [layer._replace(activation="tanh" if layer.activation != "gate" else "gate")
              for layer in case.layers[:-1]]  # fmt: skip
    case.layers = [*smooth, case.layers[-1]]
    jacobian = torch.autograd.functional.jacobian(
        lambda x: parameters(case, x, 3, groups)[0], torch.randn(1, 3, h, w, dtype=torch.float64)
    )[:, :, :, 0]
    place = torch.arange(h * w).view(h, w)
    before = place[:, :, None, None] > place  # (H, W, H, W)
    same = place[:, :, None, None] == place
    group_out, group_in = torch.arange(6) // (6 // groups), torch.arange(3) // (3 // groups)
    earlier = group_out[:, None] > group_in
    allowed = before[None, :, :, None] | (
        same[None, :, :, None] & earlier[:, None, None, :, None, None]
    )
    assert torch.equal(jacobian != 0, allowed.expand(jacobian.shape))


@pytest.mark.parametrize("network", NETWORKS)
def test_frequencies_are_the_models(network):
    n = 20_000
    case = pixels("bernoulli", network, (2, 2), 4, hidden=6)
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64)
    states = states.view(16, 1, 2, 2)
    p = torch.sigmoid(parameters(case, states, 1))
    probability = torch.where(states > 0, p, 1 - p).flatten(1).prod(1)
    torch.testing.assert_close(probability.sum().item(), 1.0)
    noise = evidens.ops.pixelcnn_noise("bernoulli", n, 1, 2, 2, seed=5, dtype=torch.float64)
    code = (case.sample(noise=noise).flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)
    counts = torch.bincount(code, minlength=16)
    assert stats.chisquare(counts.numpy(), (probability * n).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_logistic_frequencies_are_differences_of_sigmoids(channels):
    """Levels of PixelCNN++: a bin's mass under the mixture, the outer bins open."""
    levels, m, n = 6, 3, 40_000
    g = torch.Generator().manual_seed(1)
    params = torch.randn(1, m * (10 if channels == 3 else 3), 1, 1, generator=g).double()
    noise = evidens.ops.pixelcnn_noise("logistic", n, channels, 1, 1, seed=2, dtype=torch.float64)
    x = reference.pixelcnn_draw(
        noise, params.expand(n, -1, 1, 1), None, None, reference.LOGISTIC, channels, levels, -7.0
    )[:, :, 0, 0]
    blocks = params.flatten().view(-1, m)
    weights = blocks[0].softmax(0)
    value = torch.arange(levels).double() * 2 / (levels - 1) - 1
    edges = torch.cat((torch.tensor([-torch.inf]), value[:-1] + 1 / (levels - 1),
                       torch.tensor([torch.inf])))  # fmt: skip

    def mass(mean, log_scale):  # (..., M) to (..., M, K)
        cdf = torch.sigmoid((edges - mean[..., None]) / log_scale.exp()[..., None])
        return cdf.diff(dim=-1)

    if channels == 1:
        p = weights @ mass(blocks[1], blocks[2])
        code, size = x[:, 0], levels
    else:
        c = torch.tanh(blocks[3::3])  # red for green, red for blue, green for blue
        red = mass(blocks[1], blocks[2])  # (M, K)
        r, gr = value[:, None, None], value[None, :, None]
        green = mass(blocks[4] + c[0] * value[:, None], blocks[5].expand(levels, m))
        blue = mass(blocks[7] + c[1] * r + c[2] * gr, blocks[8].expand(levels, levels, m))
        p = torch.einsum("m,mr,rmg,rgmb->rgb", weights, red, green, blue).flatten()
        code, size = (x * torch.tensor([levels**2, levels, 1])).sum(1), levels**3
    torch.testing.assert_close(p.sum().item(), 1.0)
    counts = torch.bincount(code, minlength=size).double()
    often = p * n > 5
    observed = torch.cat((counts[often], counts[~often].sum()[None]))
    expected = torch.cat((p[often], p[~often].sum()[None])) * n
    observed, expected = observed[expected > 0], expected[expected > 0]
    assert stats.chisquare(observed.numpy(), expected.numpy()).pvalue > 1e-3


def test_the_ends_of_the_uniforms_are_the_ends_of_the_levels():
    params = torch.zeros(2, 3, 1, 1, dtype=torch.float64)
    noise = torch.tensor([[0.0, 0.0], [0.0, 1 - 2.0**-53]], dtype=torch.float64).view(2, 2, 1, 1)
    x = reference.pixelcnn_draw(noise, params, None, None, reference.LOGISTIC, 1, 256, -7.0)
    assert x.flatten().tolist() == [0, 255]


def test_gates_are_within_the_groups():
    x = torch.randn(2, 8, 3, 3)
    a, b = x.chunk(2, 1)
    torch.testing.assert_close(reference._gate(x, 1), torch.tanh(a) * torch.sigmoid(b))
    first = reference._gate(x[:, :4], 1)
    assert torch.equal(reference._gate(x, 2)[:, :2], first)
