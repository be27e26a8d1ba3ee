"""made_sample: the kernel against the plain loop of full passes, partial observations, splits."""

from __future__ import annotations

import pytest
import torch
from ops.autoregress_cases import DTYPES, KINDS, network
from ops.comparison import assert_within

import evidens
from evidens import ops
from evidens.reference import autoregress as reference

# Rows, features, hidden units: less and more than a vector, a tile and a panel of degrees.
SIZES = [
    (7, 5, (6, 4)),
    (70, 9, (33,)),
    (3, 4, ()),
    (33, 90, (20, 10)),
    (100, 7, (64, 64, 30)),
    (1, 1, (3,)),
    (2, 150, (5, 301)),
    (65, 3, (0, 4)),
]
WAYS = [(kind, False) for kind in KINDS] + [("affine", True), ("spline", True)]


def check(net, **changes):
    """Equal to the plain loop within what rounding explains."""
    x, logdet = net.sample(**changes)
    with evidens.backend("reference"):
        want, log = net.sample(**changes)
    eps = torch.finfo(x.dtype).eps
    bound = eps * 4e3 * (1 + want.abs().nan_to_num())
    assert_within(x, want, bound, "x")
    assert_within(logdet, log, eps * 4e3 * (1 + log.abs() + x.shape[1]), "logdet")
    return x, logdet


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("kind", "inverse"), WAYS)
def test_equals_the_plain_loop(kind, inverse, size, dtype):
    options = {"inverse": True} if inverse else {}
    # Rounding grows from feature to feature: long chains are kept tame.
    gain = 1.0 if size[1] < 20 else 0.3
    check(network(kind, *size, dtype, gain=gain, **options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_features_of_one_degree(kind, size):
    check(network(kind, *size, shared_degrees=True, gain=0.5, seed=5))


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_hot_inputs(kind, size):
    x, _ = check(network(kind, *size, one_hot=True))
    assert torch.equal(x, x.floor())
    assert x.min() >= 0
    assert x.max() < (2 if kind == "bernoulli" else 5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations(activation, dtype):
    check(network("affine", 40, 12, (17, 9), dtype, activation=activation, inverse=True))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    ("scale_map", "clamp"),
    [
        ("exp", None),
        ("exp_clamped", 0.3),
        ("sigmoid", None),
        ("sigmoid", 0.0),
        ("softplus", None),
        ("softplus", 0.0),
        ("tanh", 0.7),
        ("atan", None),
        ("bounded_exp", None),
    ],
)
def test_scale_maps(scale_map, clamp, inverse):
    options = {"scale_map": scale_map, "clamp": clamp, "inverse": inverse}
    check(network("affine", 9, 11, (14,), **options))


SPLINES = [
    {"bins": 4, "bound": 2.0, "identity_init": True, "logit_scale": 0.5},
    {"bins": 4, "parameters": "zuko"},
    {"bins": 3, "tails": "none", "bound": (-4.0, 4.0, -5.0, 5.0), "given": 10},
    {"bins": 4, "tails": "circular", "bound": 3.0, "given": 12},
    {"bins": 2, "tails": ["linear", "circular", "none"] * 2, "bound": 2.0, "given": 7},
    {"bins": 2, "bound": [1.0, 2.0, 3.0, 1.0, 2.0, 3.0], "given": 5},
    {"bins": 3, "bound": 2.0, "given": 10},  # a surplus, as nflows takes it
]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("spline", SPLINES, ids=str)
def test_splines(spline, inverse, monkeypatch):
    spline = dict(spline)
    monkeypatch.setitem(network.__globals__["PARAMETERS"], "spline", spline.pop("given", 11))
    net = network("spline", 30, 6, (8,), spline=spline, inverse=inverse)
    check(net)
    known = torch.rand(30, 6) < 0.5
    check(net, known=known, values=torch.randn(30, 6, dtype=torch.float64))


@pytest.mark.parametrize("hidden", [(), (20, 5)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_context(kind, hidden):
    discrete = kind in ("bernoulli", "categorical")
    net = network(kind, 21, 6, hidden, gain=2.0 if discrete else 0.5)
    context = (4 if discrete else 1) * torch.randn(21, net.weights[0].shape[0], dtype=torch.float64)
    x, _ = check(net, context=context)
    other, _ = check(net, context=context.roll(1, 0))
    assert not torch.equal(x, other)


def test_input_map():
    net = network("categorical", 21, 6, (20,), input_map=(0.5, -1.0))
    x, _ = check(net)
    assert not torch.equal(x, net.sample(input_map=(1.0, 0.0))[0])


def test_without_biases():
    net = network("affine", 5, 6, (20,))
    net.biases[0] = None
    check(net)
    net.biases = None
    check(net)


# --- partial observations ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "inverse"), WAYS)
def test_known_features(kind, inverse, dtype):
    net = network(kind, 50, 8, (16,), dtype, gain=0.5, **({"inverse": True} if inverse else {}))
    known = torch.rand(50, 8) < 0.4
    values = network(kind, 50, 8, (), dtype, seed=9, gain=0.5).sample()[0]
    values = torch.where(known, values, torch.nan)  # what is not known is not read
    x, _ = check(net, known=known, values=values)
    assert torch.equal(x[known], values[known])


def test_known_features_of_all_rows():
    net = network("mixture", 5, 4, (9,))
    known = torch.tensor([True, False, True, False])
    values = torch.zeros(5, 4, dtype=torch.float64)
    x, _ = check(net, known=known, values=values)
    assert torch.equal(x, net.sample(known=known.expand(5, 4), values=values)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "inverse"), WAYS)
def test_goes_on_from_every_start(kind, inverse, dtype):
    """The draw itself, taken as known up to any degree, is drawn again, bit for bit."""
    options = {"inverse": True} if inverse else {}
    net = network(kind, 33, 9, (16, 8), dtype, **options)
    x, logdet = net.sample()
    order = net.degrees[0]
    for start in order.sort().values.tolist():
        again, log = net.sample(known=order < start, values=x)
        assert torch.equal(again, x)
        if kind != "spline":  # there known features take the way back
            assert torch.equal(log, logdet)


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_forcing_equals_one_full_pass(kind):
    """Each feature of a draw is what one pass over the whole draw makes of it."""
    net = network(kind, 40, 30, (50, 40), seed=3, gain=0.5)
    x, logdet = net.sample()
    params = reference.made_parameters(x, net.weights, net.biases, net.degrees, None, "relu")
    noise = net.noise if net.noise.ndim == 3 else net.noise[..., None]
    name = "affine" if kind == "gaussian" else kind
    splines = "nflows", [1], [-3.0, 3.0, -3.0, 3.0], [1e-3, 1e-3, 1e-3, 1.0, 1e-3, 1.0], 4
    want, terms = reference.made_draw(
        noise, params, reference.KINDS.index(name), "exp", 0.0, False, splines
    )
    assert_within(x, want, 1e-10, "x")
    assert_within(logdet, terms.sum(1), 1e-10, "logdet")
    everything = torch.ones(40, 30, dtype=torch.bool)
    forced, log = net.sample(known=everything, values=x, noise=torch.zeros_like(net.noise))
    assert torch.equal(forced, x)
    assert_within(log, logdet, 1e-10, "logdet of known features")


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others(kind, dtype):
    net = network(kind, 150, 12, (20, 20), dtype)
    x, logdet = net.sample()
    for begin, end in ((0, 1), (1, 18), (18, 150), (149, 150)):
        part = net.sample(noise=net.noise[begin:end])
        assert torch.equal(part[0], x[begin:end])
        assert torch.equal(part[1], logdet[begin:end])


@pytest.mark.parametrize("kind", KINDS)
def test_a_seeds_rows_do_not_depend_on_the_batch(kind):
    whole = ops.made_noise(kind, 10, 3, seed=1)
    assert torch.equal(whole[4:6], ops.made_noise(kind, 2, 3, seed=1, row_offset=4))
    assert not torch.equal(whole, ops.made_noise(kind, 10, 3, seed=2))


@pytest.mark.parametrize("kind", KINDS)
def test_threads(kind):
    net = network(kind, 301, 40, (64, 64), torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(net.sample())
    finally:
        torch.set_num_threads(before)
    for x, logdet in results[1:]:
        assert torch.equal(x, results[0][0])
        assert torch.equal(logdet, results[0][1])


def test_permuted_units_change_nothing_but_the_order_of_sums():
    net = network("affine", 20, 6, (30,))
    x, logdet = net.sample()
    shuffle = torch.randperm(30)
    net.weights = [net.weights[0][shuffle], net.weights[1][:, shuffle]]
    net.biases[0] = net.biases[0][shuffle]
    net.degrees[1] = net.degrees[1][shuffle]
    again, log = net.sample()
    torch.testing.assert_close(again, x)
    torch.testing.assert_close(log, logdet)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_in_its_row_and_what_follows(kind, dtype):
    net = network(kind, 20, 6, (40,), dtype, gain=1.0)
    first = net.degrees[0].argmin()
    known = torch.zeros(20, 6, dtype=torch.bool)
    values = torch.zeros(20, 6, dtype=dtype)
    clean, _ = net.sample()
    if kind in ("bernoulli", "categorical"):  # a level cannot be NaN, a context can
        context = torch.zeros(20, 40, dtype=dtype)
        context[7] = torch.nan
        x, _ = check(net, context=context)
        assert x[7, net.degrees[0] > net.degrees[1].min()].isnan().all()
    else:
        known[7, first], values[7, first] = True, torch.nan
        x, _ = check(net, known=known, values=values)
        last = net.degrees[0].argmax()
        assert x[7, last].isnan()
    rest = torch.arange(20) != 7
    assert torch.equal(x[rest], clean[rest])
