"""Gibbs chains: their law, their streams, and what they do not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from ops.programs import TESTS, run
from ops.rbm_cases import (
    DTYPES,
    KINDS,
    assert_law,
    energy,
    field_error,
    gibbs,
    joint_law,
    layer_states,
    machine,
    states,
)

import evidens
from evidens import ops
from evidens.reference import rbm as reference

each_kind = pytest.mark.parametrize(("visible", "hidden"), KINDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
DISCRETE = [(v, h) for v, h in KINDS if v != "gaussian"]


# --- the law --------------------------------------------------------------------------------------


def cells(v, h, every_v, every_h):
    """How often each pair of states came, (S, R)."""
    base = 3.0 ** torch.arange(16)

    def place(x, every):
        key = (every.float() @ base[: every.shape[1]]).sort()
        return key.indices[torch.searchsorted(key.values, x.float() @ base[: x.shape[1]])]

    index = place(v, every_v) * len(every_h) + place(h, every_h)
    count = index.bincount(minlength=len(every_v) * len(every_h))
    return count.view(len(every_v), len(every_h))


@pytest.mark.parametrize("start", ["visible", "hidden"])
@pytest.mark.parametrize(("visible", "hidden"), DISCRETE)
def test_burnt_in_chains_follow_the_joint_law(visible, hidden, start):
    n, beta = 1_000_000, 0.8
    m = machine(6 if visible == "softmax" else 4, 3, visible, hidden, scale=0.5)
    every_v, every_h, law = joint_law(m, beta)
    state = torch.zeros(n, 3 if start == "hidden" else m.weight.shape[1])
    v, h = gibbs(m.to(torch.float32), state, start=start, steps=12, beta=beta, seed=1)
    assert_law(cells(v, h, every_v, every_h), law)


@pytest.mark.parametrize("start", ["visible", "hidden"])
@pytest.mark.parametrize(("visible", "hidden"), DISCRETE)
def test_clamped_chains_follow_the_conditional_law(visible, hidden, start):
    n = 1_000_000
    m = machine(6 if visible == "softmax" else 4, 3, visible, hidden, scale=0.5, seed=5)
    units = m.weight.shape[1]
    every_v, every_h, law = joint_law(m)
    clamped = torch.arange(units) < (3 if visible == "softmax" else 2)
    value = every_v[1]
    fits = (every_v[:, clamped] == value[clamped]).all(1)
    law = torch.where(fits[:, None], law, 0.0)
    given = value.float().expand(n, units)
    more = {"values": given} if start == "hidden" else {}
    state = torch.zeros(n, 3) if start == "hidden" else given
    v, h = gibbs(m.to(torch.float32), state, start=start, steps=12, clamped=clamped, **more)
    assert (v[:, clamped] == value[clamped].float()).all()
    assert_law(cells(v, h, every_v, every_h), law / law.sum())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("hidden", ["bernoulli", "spin"])
def test_gaussian_chains_follow_their_mixture(hidden, backend):
    """The hidden law in closed form; each visible unit is a mixture of normals."""
    n, beta = 1_000_000 if backend == "cpu" else 50_000, 0.8
    m = machine(3, 3, "gaussian", hidden, scale=0.4)
    h = layer_states(3, hidden, None)
    variance, shift = m.log_variance.exp(), h @ m.weight
    log = h @ m.hidden_bias + ((2 * m.visible_bias * shift + shift**2) / (2 * variance)).sum(1)
    law = torch.softmax(beta * log, 0)
    with evidens.backend(backend):
        v, got = gibbs(m.to(torch.float32), torch.zeros(n, 3), steps=12, beta=beta, seed=2)
    assert_law(cells(torch.zeros(n, 1), got, torch.zeros(1, 1), h), law[None])
    spread = torch.sqrt(variance / beta)
    for unit in range(3):
        edges = torch.linspace(-4, 4, 33).double() * spread[unit] + m.visible_bias[unit]
        z = (edges[:, None] - m.visible_bias[unit] - shift[:, unit]) / spread[unit]
        below = torch.special.ndtr(z) @ law
        exact = torch.diff(below, prepend=torch.zeros(1), append=torch.ones(1))
        count = torch.bucketize(v[:, unit].double(), edges).bincount(minlength=34)
        assert_law(count, exact)


def test_a_clamped_group_of_zeros_takes_no_part():
    """An absent rating: the chain is that of the machine without the group."""
    m = machine(9, 4, "softmax")
    v = states(200, 9, "softmax", torch.float64)
    v[:, 3:6] = 0
    clamped = torch.zeros(9, dtype=torch.bool)
    clamped[3:6] = True
    keep = [0, 1, 2, 6, 7, 8]
    small = m.with_(weight=m.weight[:, keep], visible_bias=m.visible_bias[keep])
    h = states(200, 4, "bernoulli", torch.float64)
    got = gibbs(m, h, start="hidden", clamped=clamped, values=v, means=True)
    want = gibbs(small, h, start="hidden", means=True)
    assert (got[0][:, 3:6] == 0).all()
    torch.testing.assert_close(got[2][:, keep], want[2])
    field = reference.hidden_field(got[0], m.weight, m.hidden_bias)
    torch.testing.assert_close(got[3], torch.sigmoid(field))


def test_probabilities_of_nothing_and_of_one():
    """A unit of probability 0 never fires, one of 1 always does, whatever the uniform."""
    m = machine(40, 70, dtype=torch.float32)
    m.hidden_bias[:30], m.hidden_bias[30:60] = math.inf, -math.inf
    m.visible_bias[:20] = -math.inf
    v, h, v_mean, h_mean = gibbs(m, torch.zeros(4000, 40), steps=3, means=True)
    assert (h[:, :30] == 1).all()
    assert (h[:, 30:60] == 0).all()
    assert (v[:, :20] == 0).all()
    assert (h_mean[:, :30] == 1).all()
    assert (v_mean[:, :20] == 0).all()
    assert h[:, 60:].std() > 0.1


# --- the same chain everywhere --------------------------------------------------------------------


def half_step(m, v, seed, step, row0, beta):
    """Probabilities in float64 of the hidden units being on, uniforms, and which of them tie."""
    wide = m.to(torch.float64)
    x = reference.hidden_field(v.double(), wide.weight, wide.hidden_bias, wide.log_variance)
    steep = (2 if m.hidden == "spin" else 1) * beta.double()[:, None]
    p = torch.sigmoid(steep * x)
    rows, units = p.shape
    u = ops.philox_uniform(seed, step, rows, units, m.weight.dtype, row0).double()
    eps = torch.finfo(m.weight.dtype).eps
    doubt = steep.abs() * field_error(m, v) + 8 * eps * (1 + (steep * x).abs())
    return p, u, (u - p).abs() <= 2 * doubt * p * (1 - p) + 8 * eps * p


@each_dtype
@each_kind
@pytest.mark.parametrize("size", [(1, 6, 3), (70, 36, 70), (5, 300, 129), (33, 66, 1)], ids=str)
def test_a_draw_is_its_uniform_below_its_probability(size, visible, hidden, dtype, poison):
    n, units, hidden_units = size
    m = machine(units, hidden_units, visible, hidden, dtype)
    v = states(n, units, visible, dtype)
    beta = torch.linspace(0.2, 1.5, n).to(dtype)
    seed, row0, step0 = -7, 2**33 + 5, 11
    for backend in ("cpu", "reference"):
        with evidens.backend(backend):
            _, h = gibbs(m, v, seed=seed, row0=row0, step0=step0, beta=beta)
        p, u, tie = half_step(m, v, seed, 2 * step0, row0, beta)
        wrong = (h > 0) != (u < p)
        assert not (wrong & ~tie).any()
        assert wrong.sum() <= (2 if dtype is torch.float32 else 0), "more ties than chance has"


@each_dtype
@each_kind
@pytest.mark.parametrize("start", ["visible", "hidden"])
@pytest.mark.parametrize("size", [(1, 6, 3), (70, 36, 70), (5, 300, 129), (2, 3, 1)], ids=str)
def test_chains_equal_those_of_the_reference(size, start, visible, hidden, dtype, poison):
    """But for rows in which a draw tied; in float64 there is none."""
    n, units, hidden_units = size
    m = machine(units, hidden_units, visible, hidden, dtype)
    kind, width = (visible, units) if start == "visible" else (hidden, hidden_units)
    state = states(n, width, kind, dtype)
    clamped = torch.rand(n, units // 3).repeat_interleave(3, 1) < 0.2
    beta = torch.linspace(0.2, 1.2, n).to(dtype)
    options = dict(start=start, steps=3, beta=beta, seed=2**70 + 3, clamped=clamped, means=True)
    if start == "hidden":
        options["values"] = states(n, units, visible, dtype)
    found = gibbs(m, state, **options)
    with evidens.backend("reference"):
        want = gibbs(m, state, **options)
    tolerance = 1e-9 if dtype is torch.float64 else 1e-3
    other = torch.zeros(n, dtype=torch.bool)
    for a, b in zip(found, want):
        assert a.shape == b.shape
        assert a.is_contiguous()
        other |= ((a - b).abs() > tolerance).any(1)
    assert other.sum() <= (1 if dtype is torch.float32 else 0)


@pytest.mark.parametrize("start", ["visible", "hidden"])
@each_kind
def test_a_chain_can_be_continued(visible, hidden, start):
    m = machine(12, 5, visible, hidden)
    state = states(
        9, 12 if start == "visible" else 5, visible if start == "visible" else hidden, torch.float64
    )
    whole = gibbs(m, state, start=start, steps=5, seed=3, step0=2)
    first = gibbs(m, state, start=start, steps=2, seed=3, step0=2)
    then = first[0] if start == "visible" else first[1]
    assert all(map(torch.equal, gibbs(m, then, start=start, steps=3, seed=3, step0=4), whole))


@each_dtype
@each_kind
def test_a_row_does_not_know_its_batch(visible, hidden, dtype):
    """Sparse rows among dense ones, alone, and in another order: the same bits."""
    m = machine(66, 40, visible, hidden, dtype)
    v = states(31, 66, visible, dtype)
    if visible == "bernoulli":
        v = (torch.rand(31, 66) < torch.linspace(0, 1, 31)[:, None]).to(dtype)
    whole = gibbs(m, v, steps=2, row0=100, means=True)
    for n in (0, 7, 30):
        alone = gibbs(m, v[n : n + 1], steps=2, row0=100 + n, means=True)
        assert all(torch.equal(a[0], w[n]) for a, w in zip(alone, whole))


@each_dtype
@each_kind
@pytest.mark.parametrize("size", [(1, 6, 3, 1), (70, 36, 70, 31), (5, 300, 129, 9)], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_pcd_is_its_parts(weighted, size, visible, hidden, dtype, poison):
    """Steps of the chains, then the rows less the chains: the same bits."""
    n, units, hidden_units, chains = size
    m = machine(units, hidden_units, visible, hidden, dtype)
    v, h = states(n, units, visible, dtype), states(chains, hidden_units, hidden, dtype)
    w, minus_w = (torch.rand(k).to(dtype) if weighted else None for k in (n, chains))
    stream = dict(steps=2, seed=2**65 + 3, step0=4, row0=7)
    weights = dict(sample_weight=w, minus_weight=minus_w)
    for backend in ("cpu", "reference"):
        with evidens.backend(backend):
            found, after = ops.rbm_pcd(v, h, *m.tensors, **m.options, **stream, **weights)
            minus_v, new, _, mean = gibbs(m, h, start="hidden", means=True, **stream)
            want = ops.rbm_statistics(v, *m.tensors, minus=(minus_v, mean), **m.options, **weights)
        assert torch.equal(after, new)
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(found, want))


def test_pcd_takes_rows_that_lie_anywhere():
    m = machine(36, 20, dtype=torch.float32)
    v, h = states(9, 36, "bernoulli", torch.float32), states(5, 20, "bernoulli", torch.float32)
    want, chains = ops.rbm_pcd(v, h, *m.tensors, seed=1)
    turned = m.with_(weight=m.weight.T.contiguous().T)
    for a, b in ((v.T.contiguous().T, torch.cat((h, h), 1)[:, :20]), (v, h.T.contiguous().T)):
        found, after = ops.rbm_pcd(a, b, *turned.tensors, seed=1)
        assert torch.equal(after, chains)
        assert all(map(torch.equal, found[:4], want[:4]))


@pytest.mark.parametrize(
    ("n", "chains", "units", "hidden"),
    [(0, 3, 6, 2), (3, 0, 6, 2), (3, 2, 0, 4), (3, 2, 6, 0), (0, 0, 0, 0)],
)
def test_pcd_of_nothing(n, chains, units, hidden):
    m = machine(units, hidden)
    h = torch.zeros(chains, hidden).double()
    found, after = ops.rbm_pcd(torch.zeros(n, units).double(), h, *m.tensors, seed=0)
    assert (found.weight.shape, found.h_mean.shape) == ((hidden, units), (n, hidden))
    assert after.shape == h.shape
    assert all(t.isfinite().all() for t in found[:4])


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian", "softmax"])
def test_number_of_threads(visible):
    m = machine(96, 130, visible, dtype=torch.float32)
    v, weight = states(301, 96, visible, torch.float32), torch.rand(301)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            s = ops.rbm_statistics(v, *m.tensors, sample_weight=weight, **m.options)
            free = ops.rbm_free_energy(v, *m.tensors, **m.options)
            both = ops.rbm_statistics(v, *m.tensors, minus=(v[7:], s.h_mean[7:]), **m.options)
            pcd, h = ops.rbm_pcd(v, s.h_mean[9:].round(), *m.tensors, seed=1, **m.options)
            rest = both.weight, both.visible, free, *pcd[:4], h
            results.append([*gibbs(m, v, steps=3), *s[:4], *rest])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


def test_states_may_lie_anywhere(poison):
    m = machine(36, 20, dtype=torch.float32)
    v = states(9, 36, "bernoulli", torch.float32)
    want = gibbs(m, v, steps=2)
    for given in (
        v.T.contiguous().T,
        torch.stack((v, v), 2)[:, :, 0],
        torch.cat((v, v), 1)[:, :36],
    ):
        turned = m.with_(weight=m.weight.T.contiguous().T)
        assert all(map(torch.equal, gibbs(turned, given, steps=2), want))
    same = gibbs(m, v[:1].expand(9, 36), steps=2, beta=0.5)
    assert all(map(torch.equal, same, gibbs(m, v[:1].repeat(9, 1), steps=2, beta=0.5)))


@pytest.mark.parametrize(("n", "units", "hidden"), [(0, 6, 3), (3, 0, 4), (3, 6, 0), (2, 0, 0)])
def test_nothing(n, units, hidden):
    m = machine(units, hidden)
    for start, width in (("visible", units), ("hidden", hidden)):
        v, h = gibbs(m, torch.zeros(n, width).double(), start=start)
        assert (v.shape, h.shape) == ((n, units), (n, hidden))
        assert v.isfinite().all()
        assert h.isfinite().all()


@each_kind
def test_what_is_not_a_number_stays_none(visible, hidden):
    m = machine(6, 4, visible, hidden, torch.float32)
    v = states(5, 6, visible, torch.float32)
    v[2, 1] = math.nan
    for backend in ("cpu", "reference"):
        with evidens.backend(backend):
            found = gibbs(m, v, steps=2, means=True)
        for t in found:
            assert t[2].isnan().all()
            assert t[[0, 1, 3, 4]].isfinite().all()


PROGRAM = """
    import sys, torch
    sys.path.insert(0, {path!r})
    from ops.rbm_cases import KINDS, gibbs, machine, states
    from evidens import ops
    out = []
    for visible, hidden in KINDS:
        for dtype in (torch.float32, torch.float64):
            m = machine(39, 21, visible, hidden, dtype)
            v = states(50, 39, visible, dtype)
            s = ops.rbm_statistics(v, *m.tensors, **m.options)
            free = ops.rbm_free_energy(v, *m.tensors, **m.options)
            less = ops.rbm_statistics(v, *m.tensors, minus=(v[9:], s.h_mean[9:]), **m.options)
            out.append([*gibbs(m, v), *s[:4], *less[:3], free])
    torch.save(out, {file!r})
"""


def test_levels_give_one_chain(tmp_path):
    """The lower instruction sets against the one in use, but for ties."""
    found = {}
    for level in evidens.info()["isa"]["available"]:
        file = str(tmp_path / f"{level}.pt")
        run(PROGRAM.format(path=str(TESTS), file=file), EVIDENS_ISA=level)
        found[level] = torch.load(file)
    want = found.pop(evidens.info()["isa"]["available"][-1])
    for level, cases in found.items():
        for a, b in zip(cases, want):
            tolerance = 1e-10 if a[0].dtype is torch.float64 else 2e-3
            other = ((a[0] - b[0]).abs() > tolerance).any(1) | (a[1] != b[1]).any(1)
            assert other.sum() <= (1 if a[0].dtype is torch.float32 else 0), level
            for x, y in zip(a[2:], b[2:]):
                torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def test_energy_of_the_cases_is_the_model():
    """One entry by hand, so that the enumeration is no echo of the code under test."""
    m = machine(2, 1)
    v, h = torch.tensor([[1.0, 0.0]]).double(), torch.ones(1, 1).double()
    want = -m.visible_bias[0] - m.hidden_bias[0] - m.weight[0, 0]
    torch.testing.assert_close(energy(m, v, h)[0, 0], want)
