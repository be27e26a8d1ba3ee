"""made_start and made_step: the draw of made_sample feature by feature, forced values, states."""

from __future__ import annotations

import math

import pytest
import torch
from ops.autoregress_cases import DTYPES, KINDS, network
from ops.comparison import assert_within

import evidens
from evidens import ops
from evidens.reference import autoregress as reference

SIZES = [
    (7, 5, (6, 4)),
    (33, 70, (20, 10)),
    (3, 4, ()),
    (1, 1, (3,)),
    (0, 3, (4,)),
    (65, 3, (0, 4)),
]
WAYS = [(kind, False) for kind in KINDS] + [("affine", True), ("spline", True)]
BACKENDS = ["cpu", "reference"]


def start(net, **changes):
    return ops.made_start(
        changes.pop("noise", net.noise), net.weights, net.biases, net.degrees,
        **{**net.options, **changes},
    )  # fmt: skip


def finish(state, values=None):
    """Steps to the end, each forced to its feature of ``values``; the state of the end."""
    while not state.done:
        f = state.feature
        before = state
        x, state = ops.made_step(state, None if values is None else values[:, f])
        assert x.shape == (state.rows,)
        assert before is not state
    return state


def same(a, b):
    assert torch.equal(a.isnan(), b.isnan())
    assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.fixture(params=BACKENDS)
def backend(request):
    with evidens.backend(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("kind", "inverse"), WAYS)
def test_steps_give_the_draw(kind, inverse, size, dtype):
    net = network(kind, *size, dtype, gain=0.5, **({"inverse": True} if inverse else {}))
    x, logdet = net.sample()
    state = start(net)
    assert state.places == size[1]
    state = finish(state)
    same(state.x, x)
    same(state.logdet, logdet)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared_degrees", [False, True])
def test_every_backend_steps(kind, shared_degrees, backend):
    net = network(kind, 9, 6, (12, 8), shared_degrees=shared_degrees, gain=0.5)
    known = torch.rand(9, 6) < 0.4
    values = torch.where(known, net.sample()[0].roll(1, 0), torch.nan)
    for how in ({}, {"known": known, "values": values}):
        x, logdet = net.sample(**how)
        state = finish(start(net, **how))
        assert_within(state.x, x, 1e-12, "x")
        assert_within(state.logdet, logdet, 1e-12, "logdet")


def test_features_come_in_the_order_of_their_degrees():
    net = network("affine", 5, 6, (9,))
    state, seen = start(net), []
    x, _ = net.sample()
    assert state.x.isnan().all()
    while not state.done:
        seen.append(state.feature)
        value, state = ops.made_step(state)
        assert torch.equal(value, x[:, seen[-1]])
        assert torch.equal(state.x.isnan().all(0), ~torch.isin(torch.arange(6), torch.tensor(seen)))
    assert seen == net.degrees[0].argsort().tolist()
    assert state.feature is None


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_one_hot(kind):
    net = network(kind, 20, 7, (9,), one_hot=True)
    assert torch.equal(finish(start(net)).x, net.sample()[0])


@pytest.mark.parametrize(("kind", "inverse"), WAYS)
def test_context_and_partial_observations(kind, inverse):
    net = network(kind, 21, 6, (20, 5), gain=0.5, **({"inverse": True} if inverse else {}))
    context = torch.randn(21, 20, dtype=torch.float64)
    known = torch.rand(21, 6) < 0.5
    values = torch.where(known, net.sample()[0].roll(3, 0), torch.nan)
    how = {"context": context, "known": known, "values": values}
    state = start(net, **how)
    same(state.x, values)
    x, logdet = net.sample(**how)
    state = finish(state)
    same(state.x, x)
    same(state.logdet, logdet)
    everyone = torch.tensor([True, False] * 3)
    how = {"known": everyone, "values": x}
    same(finish(start(net, **how)).x, net.sample(**how)[0])


@pytest.mark.parametrize(("kind", "inverse"), WAYS)
def test_goes_on_from_every_start(kind, inverse):
    net = network(kind, 33, 9, (16, 8), **({"inverse": True} if inverse else {}))
    x, _ = net.sample()
    for first in net.degrees[0].sort().values.tolist():
        assert torch.equal(finish(start(net, known=net.degrees[0] < first, values=x)).x, x)


@pytest.mark.parametrize(("kind", "inverse"), WAYS)
def test_teacher_forcing_equals_one_full_pass(kind, inverse):
    """What the network said at every step is what one pass over the forced rows says."""
    net = network(
        kind, 40, 12, (50, 40), seed=3, gain=0.5, **({"inverse": True} if inverse else {})
    )
    x = net.sample()[0].roll(1, 0)
    whole = reference.made_parameters(x, net.weights, net.biases, net.degrees, None, "relu")
    state = start(net, noise=torch.zeros_like(net.noise))
    assert state.parameters.isnan().all()
    while not state.done:
        f = state.feature
        value, state = ops.made_step(state, x[:, f])
        assert torch.equal(value, x[:, f])
        assert_within(state.parameters, whole[:, f], 1e-10, "parameters")
    forced, logdet = net.sample(known=torch.ones_like(x, dtype=torch.bool), values=x)
    assert torch.equal(state.x, forced)
    assert_within(state.logdet, logdet, 1e-12, "logdet")


def test_some_rows_are_forced(backend):
    """NaN in a value is a draw, and what a forced row draws later is the draw from there."""
    net = network("mixture", 12, 5, (10,))
    order = net.degrees[0].argsort()
    clean, _ = net.sample()
    value = torch.full((12,), math.nan, dtype=torch.float64)
    value[3], value[7] = 2.5, -1.0
    _, state = ops.made_step(start(net))
    drawn, state = ops.made_step(state, value)
    assert drawn[3] == 2.5
    assert drawn[7] == -1
    state = finish(state)
    rest = ~torch.isin(torch.arange(12), torch.tensor([3, 7]))
    assert_within(state.x[rest], clean[rest], 1e-12, "rows that are not forced")
    known = torch.zeros(12, 5, dtype=torch.bool)
    known[:, order[:2]] = True
    want, _ = net.sample(known=known, values=state.x)
    assert_within(state.x, want, 1e-12, "rows that are")


def test_states_do_not_meet(backend):
    one, other = network("affine", 6, 5, (8,)), network("affine", 4, 5, (8,), seed=2)
    a, b = start(one), start(other)
    while not a.done:
        _, a = ops.made_step(a)
        _, b = ops.made_step(b)
    assert_within(a.x, one.sample()[0], 1e-12, "one")
    assert_within(b.x, other.sample()[0], 1e-12, "other")


def test_copies_go_their_own_way(backend):
    net = network("gaussian", 6, 5, (8, 8))
    _, state = ops.made_step(start(net))
    branch = state.copy()
    _, branch = ops.made_step(branch, torch.full((6,), 9.0))
    again, branch = finish(branch), None
    state = finish(state)
    assert_within(state.x, net.sample()[0], 1e-12, "the state itself")
    assert (again.x[:, net.degrees[0].argsort()[1]] == 9).all()
    assert not torch.equal(again.x, state.x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others(kind):
    net = network(kind, 70, 6, (20, 20), torch.float32)
    x = finish(start(net)).x
    assert torch.equal(finish(start(net, noise=net.noise[17:18])).x, x[17:18])


def test_threads():
    net = network("affine", 301, 6, (400, 400), torch.float32, gain=0.5)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(finish(start(net)).x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])


def test_half_types_are_widened():
    net = network("affine", 3, 4, (5,), torch.float32)
    net.weights = [w.half() for w in net.weights]
    state = finish(start(net))
    assert torch.equal(state.x, net.sample()[0])


# --- bad input -----------------------------------------------------------------------------------


def test_a_spent_state():
    state = start(network("affine", 3, 4, (5,)))
    _, after = ops.made_step(state)
    for use in (lambda: ops.made_step(state), lambda: state.x, lambda: state.copy()):
        with pytest.raises(ValueError, match=r"stepped on already.*go on with the state"):
            use()
    assert "spent" in repr(state)
    assert "1 of 4 steps" in repr(after)


def test_a_state_that_is_done():
    state = finish(start(network("affine", 3, 4, (5,))))
    with pytest.raises(ValueError, match="nothing is left to draw after 4 steps"):
        ops.made_step(state)
    assert state.x.shape == (3, 4)


@pytest.mark.parametrize("what", ["weights", "biases", "degrees", "noise", "context"])
def test_weights_that_changed(what):
    net = network("affine", 3, 4, (5,))
    context = torch.zeros(3, 5, dtype=torch.float64)
    _, state = ops.made_step(start(net, context=context))
    found = context if what == "context" else getattr(net, what)
    (found if isinstance(found, torch.Tensor) else found[0]).add_(1)
    with pytest.raises(ValueError, match=r"changed since made_start.*start again"):
        ops.made_step(state)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (torch.zeros(4), ValueError, r"shape \(N,\) = \(3,\) for a state of 3 rows, got \(4,\)"),
        (torch.zeros(3, 1), ValueError, r"got \(3, 1\)"),
        (torch.tensor([0, 1, 5]), ValueError, r"levels 0 .. 4, or NaN to draw, got 5"),
        (torch.tensor([0, 1, 0.5]), ValueError, "got 0.5"),
        (torch.tensor([0, -1.0, math.nan]), ValueError, "got -1.0"),
        ([0, 1, 2], TypeError, "tensor of numbers or None, got list"),
        (torch.ones(3, dtype=torch.bool), TypeError, "torch.bool"),
    ],
)
def test_values_that_cannot_be(value, error, words):
    state = start(network("categorical", 3, 4, (5,)))
    with pytest.raises(error, match=words):
        ops.made_step(state, value)
    ops.made_step(state)  # it was not spent by what was refused


def test_states_of_other_ops():
    with pytest.raises(TypeError, match="state must come from made_start or made_step, got Tensor"):
        ops.made_step(torch.zeros(3))
    layers = [ops.PixelLayer(torch.ones(1, 1, 3, 3), mask="A")]
    pixels = ops.pixelcnn_start(torch.rand(1, 1, 2, 2), layers, kind="bernoulli")
    with pytest.raises(TypeError, match="got PixelState"):
        ops.made_step(pixels)


def test_starts_that_cannot_be():
    net = network("affine", 3, 4, (5,))
    with pytest.raises(ValueError, match=r"evidens.made_start: known and values belong together"):
        start(net, known=torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="no features"):
        start(network("affine", 3, 0, (5,)))
    net.weights[0].requires_grad_()
    with pytest.raises(RuntimeError, match="made_start offers no gradient"):
        start(net)
    net.weights[0].requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"torch.compile and torch.func cannot follow"):
        torch.func.vmap(lambda z: start(net, noise=z).x)(net.noise[:, None])
