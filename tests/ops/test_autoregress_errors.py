"""made_sample: what is refused and what the message says; sizes at the edge; the seam."""

from __future__ import annotations

import pytest
import torch
from ops.autoregress_cases import DTYPES, KINDS, PARAMETERS, network
from ops.comparison import assert_within

import evidens
from evidens import ops


@pytest.fixture
def net():
    return network("affine", 4, 5, (6, 7))


def refused(net, message, error=ValueError, **changes):
    with pytest.raises(error, match=f"(?s)evidens.made_sample.*{message}"):
        net.sample(**changes)


def test_kind_and_activation(net):
    refused(net, "kind must be one of affine, gaussian.*'normal'", kind="normal")
    refused(net, "activation must be one of identity, relu.*'gelu'", activation="gelu")
    with pytest.raises(ValueError, match=r"evidens\.made_noise: kind must be one of"):
        ops.made_noise("normal", 2, 3, seed=0)


def test_noise(net):
    refused(net, r"noise of kind 'affine' must have shape \(N, D\), got \(4, 5, 1\)",
            noise=net.noise[..., None])  # fmt: skip
    mixture = network("mixture", 4, 5, (6,))
    refused(mixture, r"must have shape \(N, D, 2\), got \(4, 5\)", noise=mixture.noise[..., 0])
    refused(net, "noise must be float32 or float64", TypeError, noise=net.noise.long())
    refused(net, "noise must be a torch.Tensor, got list", TypeError, noise=[[1.0]])
    refused(net, r"degrees\[0\] must have one degree for each of the D = 4", noise=net.noise[:, :4])


def test_networks(net):
    whole = net.weights
    net.weights = whole[:2]
    refused(net, "got 2 weights, 3 biases and 3 degrees")
    net.weights = [whole[0][:, :4], *whole[1:]]
    refused(net, r"weights\[0\] must have shape \(6, 5\), got \(6, 4\)")
    net.weights = [*whole[:2], whole[2][:9]]
    net.biases[2] = net.biases[2][:9]
    refused(net, r"weights\[2\] must have D \* P rows, a multiple of D = 5, got 9")
    net.weights = [*whole[:2], whole[2][:5]]
    net.biases[2] = net.biases[2][:5]
    refused(net, "kind 'affine' takes 2 .shift, raw scale. parameters for each feature, got P = 1")
    net.weights = [*whole[:2], whole[2].float()]
    net.biases[2] = None
    refused(net, r"weights\[2\] is torch.float32 on cpu", TypeError)
    net.weights = whole
    net.biases[1] = net.biases[1][:3]
    refused(net, r"biases\[1\] must have shape \(7,\), got \(3,\)")
    net.biases = None
    net.degrees[1] = net.degrees[1].int()
    refused(net, r"degrees\[1\] must be an int64 tensor")


def test_options_of_other_kinds(net):
    refused(net, "spline is for kind 'spline', not 'affine'", spline={"bins": 3})
    refused(net, "one_hot must be 0, or K levels", one_hot=2)
    refused(net, "scale_map must be one of", scale_map="cube")
    bernoulli = network("bernoulli", 4, 5, (6,))
    refused(bernoulli, "scale_map and clamp are for kind 'affine'", scale_map="exp")
    refused(bernoulli, "inverse is for kinds 'affine' and 'spline'", inverse=True)
    refused(bernoulli, r"weights\[0\] must have shape \(6, 15\)", one_hot=3)
    categorical = network("categorical", 4, 5, (6,), one_hot=True)
    categorical.weights[-1] = categorical.weights[-1][:20]
    categorical.biases = None
    refused(categorical, "one_hot must be the number of levels K = 4, got 5")


def test_splines():
    net = network("spline", 4, 5, (6,))
    refused(net, "spline must be a mapping with bins", spline={"bound": 2.0})
    refused(net, "spline must be a mapping with bins.*'knots'", spline={"bins": 4, "knots": 1})
    refused(net, "parameters of spline must be one of nflows, zuko",
            spline={"bins": 3, "parameters": "knots"})  # fmt: skip
    refused(
        net,
        "takes M = 4 derivatives|take M = 4 derivatives",
        spline={"bins": 4, "tails": "circular"},
    )
    refused(net, "tails must be one name or one for each of the D = 5",
            spline={"bins": 4, "tails": ["linear"] * 4})  # fmt: skip


def test_context_and_partial_observations(net):
    refused(net, r"context must have shape \(N, H1\) = \(4, 6\), got \(4, 7\)",
            context=torch.zeros(4, 7, dtype=torch.float64))  # fmt: skip
    refused(net, "context is torch.float32", TypeError, context=torch.zeros(4, 6))
    known, values = torch.ones(4, 5, dtype=torch.bool), torch.zeros(4, 5, dtype=torch.float64)
    refused(net, "known and values belong together, got only known", known=known)
    refused(net, "known and values belong together, got only values", values=values)
    refused(net, r"known must be a bool tensor \(N, D\) = \(4, 5\) or \(D,\), got torch.float32",
            known=known.float(), values=values)  # fmt: skip
    refused(net, "known must be a bool tensor.*(4, 4)", known=known[:, :4], values=values)
    refused(net, r"values must have shape \(N, D\) = \(4, 5\), got \(3, 5\)",
            known=known, values=values[:3])  # fmt: skip


@pytest.mark.parametrize("bad", [-1.0, 5.0, 1.5, torch.nan])
def test_values_outside_the_levels(bad):
    net = network("categorical", 4, 5, (6,))
    known, values = torch.zeros(4, 5, dtype=torch.bool), torch.zeros(4, 5, dtype=torch.float64)
    values[2, 3] = bad
    net.sample(known=known, values=values)  # not read
    known[2, 3] = True
    refused(net, f"values must be levels 0 .. 4 where known, got {bad} at row 2, feature 3",
            known=known, values=values)  # fmt: skip


def test_gradients_are_refused(net):
    refused(net, "offers no gradient", RuntimeError, noise=net.noise.clone().requires_grad_())
    net.weights[1].requires_grad_()
    refused(net, "offers no gradient.*full passes", RuntimeError)
    with torch.no_grad():
        net.sample()


# --- edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "features"), [(0, 3), (2, 0), (0, 0), (1, 1)])
def test_small_sizes(kind, rows, features, dtype):
    x, logdet = network(kind, rows, features, (4,), dtype).sample()
    assert x.shape == (rows, features)
    assert logdet.shape == (rows,)
    assert x.dtype == logdet.dtype == dtype
    assert x.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_strides(kind):
    net = network(kind, 9, 6, (11, 8))
    want = net.sample()
    known, values = torch.rand(9, 6) < 0.3, want[0]
    context = torch.randn(9, 11, dtype=torch.float64)
    more = net.sample(context=context, known=known, values=values)

    def strided(t):
        wide = t.new_full([2 * s for s in t.shape], 1).copy_(t.repeat([2] * t.ndim))
        view = wide[tuple(slice(None, None, 2) for _ in t.shape)]
        return view.copy_(t)

    net.weights = [w.T.contiguous().T for w in net.weights]
    net.biases = [strided(b) for b in net.biases]
    net.degrees = [strided(d) for d in net.degrees]
    again = net.sample(noise=strided(net.noise))
    assert torch.equal(again[0], want[0])
    assert torch.equal(again[1], want[1])
    net.weights = [torch.cat((w, w), 1)[:, : w.shape[1]] for w in net.weights]
    again = net.sample(
        noise=strided(net.noise),
        context=strided(context),
        known=strided(known),
        values=strided(values),
    )
    assert torch.equal(again[0], more[0])
    assert torch.equal(again[1], more[1])


@pytest.mark.parametrize("kind", KINDS)
def test_half_types_are_widened(kind):
    net = network(kind, 9, 6, (11,), torch.float32)
    half = network(kind, 9, 6, (11,), torch.float32)
    half.weights = [w.bfloat16() for w in net.weights]
    net.weights = [w.float() for w in half.weights]
    x, logdet = half.sample()
    assert x.dtype is torch.float32
    assert torch.equal(x, net.sample()[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half.sample()[1], logdet)


def test_memory_beyond_32_bits_of_elements():
    """Rows of a weight lie 2^32 bytes and more apart."""
    torch.utils.deterministic.fill_uninitialized_memory = False  # few of its pages are touched
    step = (1 << 31) + 5
    weight = torch.empty(step + 3).as_strided((2, 3), (step, 1))
    weight.copy_(torch.randn(2, 3))
    degrees = [torch.arange(3), torch.tensor([0, 1])]
    last = torch.randn(3, 2)
    noise = torch.rand(5, 3)
    x = ops.made_sample(noise, [weight, last], None, degrees, kind="bernoulli")
    want = ops.made_sample(noise, [weight.clone(), last], None, degrees, kind="bernoulli")
    assert torch.equal(x, want)


# --- the seam ------------------------------------------------------------------------------------


def inner(net):
    found = []
    call = evidens.ops.autoregress._made
    original = call.run
    try:
        call.run = lambda *args: found.append(args) or original(*args)
        net.sample()
    finally:
        del call.run
    return found[0]


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind):
    net = network(kind, 3, 4, (5,))
    known = torch.rand(3, 4) < 0.5
    net.options |= {"known": known, "values": torch.zeros(3, 4, dtype=torch.float64)}
    torch.library.opcheck(torch.ops.evidens.made_sample.default, inner(net))


@pytest.mark.parametrize("kind", KINDS)
def test_compile(kind):
    net = network(kind, 6, 4, (5,))
    want = net.sample()
    known = torch.tensor([True, False, True, False])
    partial = net.sample(known=known, values=want[0])

    @torch.compile(fullgraph=True, backend="aot_eager")
    def call(noise, values):
        plain = ops.made_sample(noise, net.weights, net.biases, net.degrees, **net.options)
        filled = ops.made_sample(
            noise, net.weights, net.biases, net.degrees, known=known, values=values, **net.options
        )
        return plain, filled

    plain, filled = call(net.noise, want[0])
    if not isinstance(plain, tuple):
        plain, filled = (plain,), (filled,)
    for a, b in zip((*plain, *filled), (*want[: len(plain)], *partial[: len(plain)])):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap(kind):
    net = network(kind, 6, 4, (5,))
    noise = torch.stack((net.noise, net.noise.flip(0)))
    context = torch.randn(2, 6, 5, dtype=torch.float64)

    def call(z, c):
        return net.sample(noise=z, context=c)

    found = torch.func.vmap(call)(noise, context)
    for b in range(2):
        want = call(noise[b], context[b])
        assert torch.equal(found[0][b], want[0])
        assert torch.equal(found[1][b], want[1])


def test_vmap_over_networks_is_refused(net):
    stacked = [torch.stack((w, w)) for w in net.weights]
    with pytest.raises(Exception, match="made_sample"):
        torch.func.vmap(lambda w: ops.made_sample(net.noise, w, net.biases, net.degrees)[0])(
            stacked
        )


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_near_float64(kind):
    net = network(kind, 64, 6, (20,), gain=0.5)
    x, logdet = net.sample()
    net.weights = [w.float() for w in net.weights]
    net.biases = [b.float() for b in net.biases]
    single, log = net.sample(noise=net.noise.float())
    assert_within(single, x, 1e-4 * (1 + x.abs()), "x")
    assert_within(log, logdet, 1e-4, "logdet")
    assert PARAMETERS[kind] * 6 == net.weights[-1].shape[0]
