"""Free energy and statistics: the kernels against the reference in float64, and the seam."""

from __future__ import annotations

import math

import pytest
import torch
from ops.comparison import assert_within
from ops.rbm_cases import DTYPES, KINDS, field_error, gibbs, machine, states

import evidens
from evidens import ops
from evidens.reference import rbm as reference

each_kind = pytest.mark.parametrize(("visible", "hidden"), KINDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SIZES = [(1, 6, 3), (70, 36, 70), (5, 300, 129), (33, 66, 1), (2100, 27, 9), (2, 3, 0)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


def leaves_of(m):
    return [t for t in (*m.tensors, m.log_variance) if t is not None]


def with_leaves(m, leaves):
    names = ("weight", "visible_bias", "hidden_bias", "log_variance")
    return m.with_(**dict(zip(names, leaves)))


def free_energy(m, v, **options):
    return ops.rbm_free_energy(v, *m.tensors, **m.options, **options)


def statistics(m, v, **options):
    return ops.rbm_statistics(v, *m.tensors, **m.options, **options)


# --- values ---------------------------------------------------------------------------------------


@each_dtype
@each_kind
@each_size
def test_free_energy(size, visible, hidden, dtype):
    n, units, hidden_units = size
    m = machine(units, hidden_units, visible, hidden, dtype)
    v = states(n, units, visible, dtype)
    beta = torch.linspace(0.2, 1.5, n).to(dtype)
    wide = m.to(torch.float64)
    own = v.double().abs() @ wide.visible_bias.abs()
    if visible == "gaussian":
        own = 0.5 * ((v.double() - wide.visible_bias) ** 2 * torch.exp(-wide.log_variance)).sum(1)
    eps = torch.finfo(dtype).eps
    for b in (None, beta):
        found = free_energy(m, v, beta=b)
        assert found.dtype is dtype
        want = free_energy(wide, v.double(), beta=None if b is None else b.double())
        steep = 1 if b is None else b.double()
        with torch.no_grad():
            field = reference.hidden_field(
                v.double(), wide.weight, wide.hidden_bias, wide.log_variance
            )
            each = field_error(m, v) + 8 * eps * (1 + field.abs())
        bound = steep * (each.sum(1) + eps * (4 + units) * own) + 4 * eps * (1 + want.abs())
        assert_within(found, want, bound, f"{dtype} {size}")


@each_dtype
@each_kind
@each_size
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_statistics(weighted, size, visible, hidden, dtype):
    n, units, hidden_units = size
    m = machine(units, hidden_units, visible, hidden, dtype)
    v = states(n, units, visible, dtype)
    weight = torch.rand(n).to(dtype) if weighted else None
    wide, w = m.to(torch.float64), torch.ones(n).double() if weight is None else weight.double()
    found = statistics(m, v, sample_weight=weight)
    again = statistics(m, v, sample_weight=weight, h_mean=found.h_mean)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, again))
    eps = torch.finfo(dtype).eps
    want = statistics(wide, v.double(), sample_weight=None if weight is None else w)
    assert_within(found.h_mean, want.h_mean, 2 * field_error(m, v) + 8 * eps, "means")
    # From here on with the means as they were found.
    want = statistics(wide, v.double(), sample_weight=w, h_mean=found.h_mean.double())
    size_v, size_h = v.double().abs(), found.h_mean.double().abs() * w[:, None]
    rounding = eps * (min(n, 1024) + 6)
    precision = torch.ones(units).double()
    if visible == "gaussian":
        precision = torch.exp(-wide.log_variance)
        size_v = size_v + wide.visible_bias.abs()
    product = size_h.T @ size_v * precision
    assert_within(found.weight, want.weight, rounding * product, "weight")
    assert_within(found.visible, want.visible, 8 * eps * precision * (w @ size_v), "visible")
    assert_within(found.hidden, want.hidden, 8 * eps * size_h.sum(0), "hidden")
    if visible == "gaussian":
        bound = rounding * (wide.weight.abs() * product).sum(0) * 4
        bound = (
            bound
            + 8 * eps * precision * (w @ size_v**2)
            + eps * (wide.weight * product).abs().sum(0) * hidden_units
        )
        assert_within(found.log_variance, want.log_variance, bound, "log_variance")
    else:
        assert found.log_variance is None


def test_weight_two_is_a_row_twice():
    m = machine(12, 5)
    v = states(6, 12, "bernoulli", torch.float64)
    weight = torch.tensor([1.0, 2.0, 1.0, 0.0, 1.0, 3.0]).double()
    found = statistics(m, v, sample_weight=weight)
    want = statistics(m, v.repeat_interleave(weight.long(), 0))
    for a, b in zip(found[:3], want[:3]):
        torch.testing.assert_close(a, b)


@each_dtype
@each_kind
@pytest.mark.parametrize("size", [(3, 6, 4, 2), (130, 72, 40, 31), (400, 66, 70, 300)], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_both_phases_in_one_sum(weighted, size, visible, hidden, dtype):
    """Data less chains: in one order of sums, so as exact as either phase."""
    n, units, hidden_units, chains = size
    m = machine(units, hidden_units, visible, hidden, dtype)
    both = states(n + chains, units, visible, dtype)
    v, minus_v = both[:n], both[n:]
    h, minus_h = torch.rand(n + chains, hidden_units).to(dtype).split((n, chains))
    w, minus_w = (torch.rand(k).to(dtype) for k in (n, chains))
    given = {"sample_weight": w, "minus_weight": minus_w} if weighted else {}
    found = statistics(m, v, h_mean=h, minus=(minus_v, minus_h), **given)
    w, minus_w = (w, minus_w) if weighted else (torch.ones(n), torch.ones(chains))
    wide, eps = m.to(torch.float64), torch.finfo(dtype).eps
    sides = [
        statistics(wide, a.double(), h_mean=b.double(), sample_weight=c.double())
        for a, b, c in ((v, h, w), (minus_v, minus_h, minus_w))
    ]
    sizes = [
        statistics(
            wide.with_(weight=wide.weight.abs()),
            a.double().abs(),
            h_mean=b.double(),
            sample_weight=c.double(),
        )
        for a, b, c in ((v, h, w), (minus_v, minus_h, minus_w))
    ]
    rounding = eps * (min(n + chains, 1024) + 6)
    bound = rounding * (sizes[0].weight + sizes[1].weight)
    assert_within(found.weight, sides[0].weight - sides[1].weight, bound, "weight")
    for name in ("visible", "hidden", "log_variance"):
        plus, minus, got = (getattr(s, name) for s in (*sides, found))
        assert (got is None) == (plus is None)
        if got is not None:
            tolerance = (n + chains) * hidden_units * 64 * eps
            torch.testing.assert_close(got.double(), plus - minus, rtol=0, atol=tolerance)
    assert torch.equal(found.h_mean, h)
    with evidens.backend("reference"):
        want = statistics(m, v, h_mean=h, minus=(minus_v, minus_h), **given)
    for a, b in zip(found, want):
        if a is not None:
            tolerance = (n + chains) * hidden_units * 64 * eps
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_a_number_weights_the_other_rows():
    m = machine(12, 5)
    v, minus = states(6, 12, "bernoulli", torch.float64), states(4, 12, "bernoulli", torch.float64)
    h = torch.rand(4, 5).double()
    for weight in (1, 1.5):
        found = statistics(m, v, minus=(minus, h), minus_weight=weight)
        want = statistics(m, v, minus=(minus, h), minus_weight=torch.full((4,), weight).double())
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, want))
    alone, none = statistics(m, v), (minus[:0], h[:0])
    found = statistics(m, v, minus=none)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, alone))
    nothing = statistics(m, v, minus=(v, alone.h_mean))
    for t in nothing[:3]:
        torch.testing.assert_close(t, torch.zeros_like(t), rtol=0, atol=1e-13)


def test_large_fields_neither_overflow_nor_vanish():
    """Softplus, not log(1 + exp): weights of size 50 and biases without end."""
    for dtype in DTYPES:
        for hidden in ("bernoulli", "spin"):
            m = machine(60, 40, "bernoulli", hidden, dtype, scale=200.0)
            v = torch.ones(3, 60, dtype=dtype)
            assert free_energy(m, v).isfinite().all()
            want = free_energy(m.to(torch.float64), v.double())
            torch.testing.assert_close(free_energy(m, v).double(), want, rtol=1e-5, atol=0)
        off = machine(6, 2, dtype=dtype)
        off.hidden_bias[0] = -math.inf
        rest = off.with_(weight=off.weight[1:], hidden_bias=off.hidden_bias[1:])
        v = states(4, 6, "bernoulli", dtype)
        torch.testing.assert_close(free_energy(off, v), free_energy(rest, v))


def test_half_types_are_widened():
    m = machine(6, 4, dtype=torch.float32).to(torch.bfloat16)
    v = states(5, 6, "bernoulli", torch.bfloat16)
    wide = m.to(torch.float32)
    assert torch.equal(free_energy(m, v), free_energy(wide, v.float()))
    assert all(map(torch.equal, gibbs(m, v), gibbs(wide, v.float())))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(free_energy(wide, v.float()), free_energy(wide, v.float()))


# --- gradients ------------------------------------------------------------------------------------


@each_kind
def test_gradients(visible, hidden):
    m = machine(6, 4, visible, hidden)
    leaves = [t.detach().requires_grad_() for t in leaves_of(m)]
    v = states(5, 6, visible, torch.float64).requires_grad_()
    beta = torch.linspace(0.3, 1.4, 5).double().requires_grad_()

    def call(v, beta, *leaves):
        return free_energy(with_leaves(m, leaves), v, beta=beta)

    assert torch.autograd.gradcheck(call, (v, beta, *leaves))
    with evidens.backend("reference"):
        assert torch.autograd.gradgradcheck(call, (v, beta, *leaves))
    y = call(v, beta, *leaves)
    (first,) = torch.autograd.grad(y.sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not offered by the kernel"):
        first.sum().backward()


@each_kind
def test_the_gradient_is_that_of_the_statistics(visible, hidden):
    m = machine(36, 20, visible, hidden)
    v = states(50, 36, visible, torch.float64)
    leaves = [t.detach().requires_grad_() for t in leaves_of(m)]
    grads = torch.autograd.grad(-free_energy(with_leaves(m, leaves), v).sum(), leaves)
    found = statistics(m, v)
    parts = [found.weight, found.visible, found.hidden]
    for a, b in zip(grads, parts + ([found.log_variance] if visible == "gaussian" else [])):
        torch.testing.assert_close(a, b)


def test_only_the_gradients_asked_for():
    m = machine(6, 4)
    v = states(5, 6, "bernoulli", torch.float64).requires_grad_()
    (g,) = torch.autograd.grad(free_energy(m, v).sum(), v)
    eps = 1e-6
    moved = v.detach().clone()
    moved[0, 0] += eps
    slope = (free_energy(m, moved)[0] - free_energy(m, v.detach())[0]) / eps
    torch.testing.assert_close(g[0, 0], slope, rtol=1e-4, atol=1e-5)


# --- the seam -------------------------------------------------------------------------------------


@each_kind
def test_opcheck(visible, hidden):
    m = machine(6, 4, visible, hidden)
    v = states(5, 6, visible, torch.float64)
    beta, weight, levels = torch.rand(5).double() + 0.1, torch.rand(5).double(), m.levels or 0
    clamped = torch.ones(5, 6, dtype=torch.bool)
    base = (v, *m.tensors, m.log_variance)
    inner = torch.ops.evidens
    for means, mask in ((False, None), (True, clamped)):
        values = None if mask is None else v
        rest = (visible, hidden, levels, "visible", 2, means, -3, 5, 7)
        torch.library.opcheck(inner.rbm_gibbs.default, (*base, beta, mask, values, *rest))
    h = torch.rand(5, 4).double().round()
    rest = (visible, hidden, levels, "hidden", 1, True, -3, 5, 7)
    torch.library.opcheck(inner.rbm_gibbs.default, (h, *base[1:], None, None, None, *rest))
    torch.library.opcheck(inner.rbm_free_energy.default, (*base, beta, visible, hidden))
    for given in ((None,) * 5, (h, weight, None, None, None), (h, weight, v, h, weight)):
        torch.library.opcheck(inner.rbm_statistics.default, (*base, *given, hidden))
    for given in ((None, None), (weight, weight)):
        rest = (*given, visible, hidden, levels, 2, -3, 5, 7)
        torch.library.opcheck(inner.rbm_pcd.default, (v, h, *base[1:], *rest))


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian", "softmax"])
def test_compile(visible):
    m = machine(6, 4, visible)
    v = states(5, 6, visible, torch.float64)
    torch.compiler.reset()

    def program(v, *leaves):
        n = with_leaves(m, leaves)
        with torch.no_grad():
            drawn = gibbs(n, v, steps=2, beta=0.5)
            s = statistics(n, v)
            step, h = ops.rbm_pcd(v, drawn[1], *n.tensors, seed=1, **n.options)
        return *drawn, *s[:4], *step[:4], h, (free_energy(n, v) - free_energy(n, drawn[0])).sum()

    compiled = torch.compile(program, fullgraph=True)
    results = []
    for call in (program, compiled):
        leaves = [t.detach().clone().requires_grad_() for t in leaves_of(m)]
        out = call(v, *leaves)
        results.append([*out, *torch.autograd.grad(out[-1], leaves)])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_vmap():
    m = machine(6, 4)
    v = torch.stack([states(5, 6, "bernoulli", torch.float64, on=on) for on in (0.2, 0.5, 0.8)])
    found = torch.vmap(lambda v: free_energy(m, v))(v)
    torch.testing.assert_close(found, torch.stack([free_energy(m, x) for x in v]))
    weights = torch.stack([m.weight, 2 * m.weight])
    each = torch.vmap(lambda w: free_energy(m.with_(weight=w), v[0]))(weights)
    want = torch.stack([free_energy(m.with_(weight=w), v[0]) for w in weights])
    torch.testing.assert_close(each, want)
    drawn = torch.vmap(lambda v: gibbs(m, v)[0])(v)
    assert torch.equal(drawn, torch.stack([gibbs(m, x)[0] for x in v]))


def test_grad_of_functorch():
    m = machine(6, 4)
    v = states(5, 6, "bernoulli", torch.float64)
    got = torch.func.grad(lambda w: free_energy(m.with_(weight=w), v).sum())(m.weight)
    torch.testing.assert_close(got, -statistics(m, v).weight)


def test_the_compiled_kernels_run(monkeypatch):
    m, v = machine(6, 4), states(5, 6, "bernoulli", torch.float64)

    def refuse(*arguments):
        raise AssertionError("the compiled kernel was called")

    def pcd(m, v):
        return ops.rbm_pcd(v, torch.zeros(2, 4).double(), *m.tensors, seed=0)

    for name in ("rbm_gibbs", "rbm_free_energy", "rbm_statistics", "rbm_pcd"):
        monkeypatch.setattr(evidens._native.library, name, refuse)
    for call in (gibbs, free_energy, statistics, pcd):
        with pytest.raises(AssertionError, match="compiled kernel was called"):
            call(m, v)
        with evidens.backend("reference"):
            call(m, v)


def test_a_visible_unit_that_is_off_for_good_takes_no_part():
    m = machine(6, 4)
    v = states(5, 6, "bernoulli", torch.float64)
    v[:, 2] = 0
    keep = torch.arange(6) != 2
    less = m.weight[:, keep], m.visible_bias[keep], m.hidden_bias
    off = m.visible_bias.clone()
    off[2] = -math.inf
    for backend in ("cpu", "reference"):
        beta = torch.linspace(0.5, 1, 5).double().requires_grad_()
        with evidens.backend(backend):
            found = ops.rbm_free_energy(v, m.weight, off, m.hidden_bias, beta=beta)
            want = ops.rbm_free_energy(v[:, keep], *less, beta=beta)
            (slope,) = torch.autograd.grad(found.sum(), beta)
            (right,) = torch.autograd.grad(want.sum(), beta)
        torch.testing.assert_close(found, want)
        torch.testing.assert_close(slope, right)
