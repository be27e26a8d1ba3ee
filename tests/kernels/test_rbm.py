"""RBM kernels in Triton against the reference: chains, free energies, statistics."""

from __future__ import annotations

import math

import pytest
import torch
from ops.rbm_cases import DTYPES, KINDS, gibbs, machine, states

import evidens
from evidens import ops

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_kind = pytest.mark.parametrize(("visible", "hidden"), KINDS)
SIZES = [(5, 6, 3), (37, 66, 70), (2, 3, 1)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


def move(m, device):
    names = ("weight", "visible_bias", "hidden_bias", "log_variance")
    given = {name: getattr(m, name) for name in names}
    return m.with_(**{k: t if t is None else t.to(device) for k, t in given.items()})


@each_dtype
@each_kind
@each_size
@pytest.mark.parametrize("start", ["visible", "hidden"])
def test_chains_equal_those_of_the_reference(device, start, size, visible, hidden, dtype, canaries):
    """But for rows in which a draw tied; in float64 there is none."""
    n, units, hidden_units = size
    m = machine(units, hidden_units, visible, hidden, dtype)
    kind, width = (visible, units) if start == "visible" else (hidden, hidden_units)
    state = states(n, width, kind, dtype)
    options = dict(start=start, steps=2, seed=2**70 + 3, row0=2**33, step0=2**31 - 2, means=True)
    beta = torch.linspace(0.2, 1.2, n).to(dtype)
    clamped = torch.rand(n, units // 3).repeat_interleave(3, 1) < 0.2
    values = states(n, units, visible, dtype)
    for more in ({}, {"beta": beta, "clamped": clamped, "values": values}):
        if start == "visible":
            more = {k: t for k, t in more.items() if k != "values"}
        with evidens.backend("reference"):
            want = gibbs(m, state, **options, **more)
        there = {k: t.to(device) for k, t in more.items()}
        with evidens.backend("triton"):
            found = gibbs(move(m, device), state.to(device), **options, **there)
        tolerance = 1e-9 if dtype is torch.float64 else 1e-3
        other = torch.zeros(n, dtype=torch.bool)
        for a, b in zip(found, want):
            assert a.shape == b.shape
            other |= ~((a.cpu() - b).abs() <= tolerance).all(1)
        assert other.sum() <= (1 if dtype is torch.float32 else 0)


@each_kind
def test_a_chain_goes_on_and_rows_stand_alone(device, visible, hidden):
    """Products of drawn states are cheaper than those of any numbers, and give the same."""
    m = move(machine(66, 70, visible, hidden, torch.float32), device)
    state = states(37, 66, visible, torch.float32).to(device)
    state[::3] += 0.3  # beside rows of states, rows of other numbers
    options = dict(start="visible", seed=7, means=True)
    with evidens.backend("triton"):
        whole = gibbs(m, state, steps=3, **options)
        begun = gibbs(m, state, steps=1, **options)
        rest = gibbs(m, begun[0], steps=2, step0=1, **options)
        alone = gibbs(m, state[5:6], steps=3, row0=5, **options)
    assert all(torch.equal(a, b) for a, b in zip(rest, whole))
    assert all(torch.equal(a, b[5:6]) for a, b in zip(alone, whole))


@each_kind
def test_products_of_any_states_are_those_of_float32(device, visible, hidden):
    m = machine(66, 70, visible, hidden, torch.float32)
    state = torch.rand(37, 66, generator=torch.Generator().manual_seed(0))
    for given in (state, (state < 0.5).float()):
        with evidens.backend("triton"):
            found = gibbs(move(m, device), given.to(device), start="visible", steps=1, means=True)
        bias = m.hidden_bias.double()
        x = given.double() if m.log_variance is None else given / m.log_variance.double().exp()
        a = x @ m.weight.double().T + bias
        mean = torch.tanh(a) if hidden == "spin" else torch.sigmoid(a)
        torch.testing.assert_close(found[3].cpu().double(), mean, rtol=0, atol=2e-6)


@each_dtype
@each_kind
@each_size
def test_free_energy_and_statistics(device, size, visible, hidden, dtype, canaries):
    n, units, hidden_units = size
    m = machine(units, hidden_units, visible, hidden, dtype)
    v, beta = states(n, units, visible, dtype), torch.linspace(0.2, 1.2, n).to(dtype)
    weight, h_mean = torch.rand(n).to(dtype), torch.rand(n, hidden_units).to(dtype)
    tolerance = 1e-12 if dtype is torch.float64 else 2e-4
    for b, w, h in ((None, None, None), (beta, weight, h_mean)):
        found = []
        for backend, where in (("reference", "cpu"), ("triton", device)):
            here, x = move(m, where), v.to(where)
            b2, w2, h2 = (t if t is None else t.to(where) for t in (b, w, h))
            with evidens.backend(backend):
                free = ops.rbm_free_energy(x, *here.tensors, beta=b2, **here.options)
                s = ops.rbm_statistics(
                    x, *here.tensors, h_mean=h2, sample_weight=w2, **here.options
                )
                less = ops.rbm_statistics(
                    x,
                    *here.tensors,
                    minus=(x[1:], s.h_mean[1:]),
                    minus_weight=None if w2 is None else w2[1:],
                    **here.options,
                )
            found.append([free, *(t for t in (*s, *less) if t is not None)])
        for a, want in zip(found[1], found[0]):
            torch.testing.assert_close(a.cpu(), want, rtol=tolerance, atol=tolerance)


@each_kind
def test_pcd_is_its_parts(device, visible, hidden):
    m = move(machine(9, 12, visible, hidden), device)
    v = states(5, 9, visible, torch.float64).to(device)
    h = states(3, 12, hidden, torch.float64).to(device)
    with evidens.backend("triton"):
        found, after = ops.rbm_pcd(v, h, *m.tensors, seed=3, minus_weight=0.5, **m.options)
        minus_v, new, _, mean = gibbs(m, h, seed=3, start="hidden", means=True)
        want = ops.rbm_statistics(
            v, *m.tensors, minus=(minus_v, mean), minus_weight=0.5, **m.options
        )
    assert torch.equal(after, new)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, want))


@each_kind
def test_what_is_not_a_number_stays_none(device, visible, hidden):
    m = machine(6, 4, visible, hidden, torch.float32)
    v = states(5, 6, visible, torch.float32)
    v[2, 1] = math.nan
    with evidens.backend("triton"):
        found = gibbs(move(m, device), v.to(device), steps=2, means=True)
        free = ops.rbm_free_energy(
            v.to(device), *move(m, device).tensors, **move(m, device).options
        )
    for t in (*found, free):
        assert t[2].isnan().all()
        assert t[[0, 1, 3, 4]].isfinite().all()


def test_probabilities_of_nothing_and_of_one(device):
    m = machine(9, 12, dtype=torch.float32)
    m.hidden_bias[:4], m.hidden_bias[4:8] = math.inf, -math.inf
    with evidens.backend("triton"):
        _, h = gibbs(move(m, device), torch.zeros(200, 9, device=device))
    assert (h[:, :4] == 1).all()
    assert (h[:, 4:8] == 0).all()


@pytest.mark.parametrize(("n", "units", "hidden"), [(0, 6, 3), (3, 0, 4), (3, 6, 0)])
def test_nothing(device, n, units, hidden):
    m = move(machine(units, hidden), device)
    v = torch.zeros(n, units, dtype=torch.float64, device=device)
    with evidens.backend("triton"):
        drawn = gibbs(m, v)
        s = ops.rbm_statistics(v, *m.tensors)
        free = ops.rbm_free_energy(v, *m.tensors)
    want = ops.rbm_free_energy(v.cpu(), *machine(units, hidden).tensors)
    torch.testing.assert_close(free.cpu(), want)
    assert drawn[0].shape == (n, units)
    assert drawn[1].shape == (n, hidden)
    assert (s.weight == 0).all() == (n == 0 or units == 0 or hidden == 0)


def test_the_gradient_goes_through_the_op(device):
    m = move(machine(6, 4, "gaussian"), device)
    v = states(5, 6, "gaussian", torch.float64).to(device).requires_grad_()
    grads = []
    for backend in ("triton", "reference"):
        with evidens.backend(backend):
            y = ops.rbm_free_energy(v, *m.tensors, **m.options)
            grads.append(torch.autograd.grad(y.sum(), v)[0])
    torch.testing.assert_close(*grads)
