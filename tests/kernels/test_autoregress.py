"""Sampling of masked networks in Triton against the plain loop of full passes."""

from __future__ import annotations

import pytest
import torch
from ops.autoregress_cases import DTYPES, KINDS, network
from ops.comparison import assert_within

import evidens
from evidens import ops
from evidens.kernels import autoregress as kernels
from evidens.reference.autoregress import ACTIVATIONS

WAYS = [(kind, False) for kind in KINDS] + [("affine", True), ("spline", True)]
# Rows, features, hidden units: none, more than a tile of units, more than a block of rows.
SIZES = [(3, 2, ()), (5, 4, (20,)), (67, 3, (4, 5)), (1, 1, (3,)), (2, 3, (0, 4))]


def check(net, device, **changes):
    net.noise = net.noise.to(device)
    net.weights = [w.to(device) for w in net.weights]
    net.biases = [None if b is None else b.to(device) for b in net.biases]
    net.degrees = [degree.to(device) for degree in net.degrees]
    found = []
    for backend in ("triton", "reference"):
        with evidens.backend(backend):
            found.append(net.sample(**changes))
    (x, logdet), (want, log) = found
    bound = torch.finfo(x.dtype).eps * 4e3
    assert x.dtype is want.dtype
    assert_within(x, want, bound * (1 + want.abs().nan_to_num()), "x")
    assert_within(logdet, log, bound * (1 + log.abs().nan_to_num() + x.shape[1]), "logdet")
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("kind", "inverse"), WAYS)
def test_equals_the_plain_loop(device, kind, inverse, size, dtype, canaries):
    options = {"inverse": True} if inverse else {}
    check(network(kind, *size, dtype, gain=0.7, **options), device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "features"), [(0, 3), (2, 0)])
def test_nothing_to_draw(device, kind, rows, features):
    check(network(kind, rows, features, (4,)), device)


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_one_degree(device, kind, canaries):
    check(network(kind, 4, 7, (9,), shared_degrees=True, gain=0.5), device)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_one_hot_inputs(device, kind, canaries):
    check(network(kind, 4, 3, (9,), one_hot=True), device)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(device, activation):
    check(network("affine", 4, 3, (9,), activation=activation, inverse=True), device)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    ("scale_map", "clamp"),
    [
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
def test_scale_maps(device, scale_map, clamp, inverse):
    options = {"scale_map": scale_map, "clamp": clamp, "inverse": inverse}
    check(network("affine", 4, 3, (9,), **options), device)


SPLINES = [
    {"bins": 4, "parameters": "zuko"},
    {"bins": 3, "tails": "none", "bound": (-2.0, 2.0, -5.0, 5.0), "given": 10},
    {"bins": 4, "tails": "circular", "bound": 3.0, "given": 12},
    {"bins": 2, "tails": ["linear", "circular", "none"], "bound": [1.0, 2.0, 3.0], "given": 7},
    {"bins": 3, "bound": 2.0, "given": 10},
]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("spline", SPLINES, ids=str)
def test_splines(device, spline, inverse, monkeypatch):
    spline = dict(spline)
    monkeypatch.setitem(network.__globals__["PARAMETERS"], "spline", spline.pop("given", 11))
    net = network("spline", 9, 3, (8,), spline=spline, inverse=inverse)
    known = torch.rand(9, 3, device=device) < 0.5
    check(net, device)
    check(net, device, known=known, values=torch.randn(9, 3, device=device).double())


@pytest.mark.parametrize("hidden", [(), (20, 5)], ids=str)
@pytest.mark.parametrize(("kind", "inverse"), WAYS)
def test_context_and_partial_observations(device, kind, inverse, hidden, canaries):
    options = {"inverse": True} if inverse else {}
    net = network(kind, 6, 5, hidden, gain=0.5, **options)
    context = torch.randn(6, net.weights[0].shape[0], dtype=torch.float64).to(device)
    known = (torch.rand(6, 5) < 0.4).to(device)
    values = network(kind, 6, 5, (), seed=9, gain=0.5).sample()[0].to(device)
    values = torch.where(known, values, torch.nan)
    check(net, device, context=context, known=known, values=values)


def test_without_biases(device):
    net = network("affine", 5, 3, (20,))
    net.biases = [None, net.biases[1]]
    check(net, device)


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # of the interpreter's maximum
@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_in_its_row(device, kind):
    net = network(kind, 4, 3, (9,))
    context = torch.zeros(4, 9, dtype=torch.float64)
    context[2] = torch.nan
    x = check(net, device, context=context.to(device))
    assert not x[torch.arange(4) != 2].isnan().any()


def test_the_launcher_asks_for_whole_blocks_of_rows():
    assert kernels._ROWS % 16 == 0


@pytest.mark.parametrize(("kind", "inverse"), WAYS)
def test_steps_give_the_draw(device, kind, inverse, canaries):
    net = network(kind, 5, 3, (9,), gain=0.5, **({"inverse": True} if inverse else {}))
    known = torch.rand(5, 3, device=device) < 0.3
    values = torch.where(known, network(kind, 5, 3, (), seed=9).sample()[0].to(device), torch.nan)
    x = check(net, device, known=known, values=values)
    with evidens.backend("triton"):
        state = ops.made_start(
            net.noise, net.weights, net.biases, net.degrees,
            **net.options, known=known, values=values,
        )  # fmt: skip
        whole, logdet = net.sample(known=known, values=values)
        _, state = ops.made_step(state)
        branch = state.copy()
        while not state.done:
            _, state = ops.made_step(state)
        assert torch.equal(whole, x)
        assert torch.equal(state.x, whole)
        assert torch.equal(state.logdet, logdet)
        value = torch.ones(5, device=device)
        f = branch.feature
        drawn, branch = ops.made_step(branch, value)
        assert torch.equal(drawn, value.double())
        _, branch = ops.made_step(branch)
        forced = known.index_fill(1, net.degrees[0].argsort()[:2], True)
        given = branch.x
    want, _ = net.sample(known=forced, values=given)
    assert (branch.x[:, f] == 1).all()
    assert_within(branch.x, want, 1e-12, "x after a forced value")
    with evidens.backend("triton"):
        empty = network(kind, 0, 3, (4,))
        state = ops.made_start(
            empty.noise.to(device), [w.to(device) for w in empty.weights], None,
            [degree.to(device) for degree in empty.degrees], **empty.options,
        )  # fmt: skip
        assert ops.made_step(state)[0].shape == (0,)
