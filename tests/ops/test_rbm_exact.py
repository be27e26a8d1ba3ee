"""Exact partition functions against their definition, and the kernel against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from ops.programs import TESTS
from ops.programs import run as run_program
from ops.rbm_partition_cases import KINDS, Machine, by_definition, machine

import evidens
from evidens import ops

each_kind = pytest.mark.parametrize(("visible", "hidden"), KINDS)
each_backend = pytest.mark.parametrize("backend", ["cpu", "reference"])


def check(m, want=None, tolerance=1e-14):
    """Within rounding of the energies, whose size bounds that of log Z."""
    want = by_definition(m) if want is None else want
    got = m.exact()
    assert got.shape == ()
    assert got.dtype is torch.float64
    assert abs(got - want) <= tolerance * (10 + abs(want)), (got, want)
    return got


@each_backend
@each_kind
@pytest.mark.parametrize("units", [(1, 1), (3, 5), (6, 4), (12, 3), (5, 9), (9, 7)], ids=str)
def test_against_the_definition(visible, hidden, units, backend):
    with evidens.backend(backend):
        check(machine(visible, hidden, *units))


@each_kind
@pytest.mark.parametrize("scale", [3.0, 50.0, 1000.0])
def test_large_weights(visible, hidden, scale):
    """Inputs beyond the range of exp, which take another way through the kernel."""
    if visible == "gaussian":
        # exp(g^2 / 2) of an input g, which the grid of the definition must still hold.
        scale = {3.0: 1.0, 50.0: 2.0, 1000.0: 3.0}[scale]
    check(machine(visible, hidden, 9, 5, scale=scale), tolerance=1e-13)


@pytest.mark.parametrize("visible", ["bernoulli", "softmax"])
def test_ordinary_units_among_wild_ones(visible):
    m = machine(visible, "bernoulli", 12, 6)
    m.weight[:, 3:6] *= 1000
    m.visible_bias[9] = 1e5
    check(m, tolerance=1e-13)


@each_kind
@pytest.mark.parametrize("units", [(100, 13), (40, 14), (700, 12), (2400, 11)], ids=str)
def test_several_blocks(visible, hidden, units):
    """More states than a block has, and tables of the middle bits that are cut by the units."""
    m = machine(visible, hidden, *units, scale=0.2)
    with evidens.backend("reference"):
        want = m.exact()
    check(m, want, 1e-13)


@pytest.mark.parametrize("inputs", [0.5, 20.0, 250.0, -250.0])
def test_products_are_rescaled(inputs):
    """Units without weights, so that Z is a product: 2000 factors of 1 + exp(inputs)."""
    w = torch.zeros(3, 2000, dtype=torch.float64)
    m = Machine(w, w[0] + inputs, w[:, 0], {})
    unit = max(inputs, 0) + math.log1p(math.exp(-abs(inputs)))
    check(m, torch.tensor(2000 * unit + 3 * math.log(2), dtype=torch.float64), 1e-13)


def test_arithmetic_of_many_digits():
    mpmath = pytest.importorskip("mpmath", reason="mpmath is not installed")
    mpmath.mp.dps = 50
    m = machine("bernoulli", "bernoulli", 7, 5, scale=4.0)
    w, b, c = (t.tolist() for t in m.parameters)
    total = mpmath.mpf(0)
    for state in range(32):
        on = [j for j in range(5) if state >> j & 1]
        term = mpmath.exp(mpmath.fsum(c[j] for j in on))
        for i in range(7):
            term *= 1 + mpmath.exp(b[i] + mpmath.fsum(w[j][i] for j in on))
        total += term
    assert m.exact().item() == pytest.approx(float(mpmath.log(total)), rel=4e-16)


@pytest.mark.parametrize("hidden", ["bernoulli", "spin"])
@pytest.mark.parametrize("visible", ["bernoulli", "spin"])
def test_layers_exchanged(visible, hidden):
    """The smaller layer is enumerated, whichever it is."""
    m = machine(visible, hidden, 6, 17)
    turned = Machine(m.weight.T, m.hidden_bias, m.visible_bias, {})
    turned.options = {"visible": hidden, "hidden": visible}
    with evidens.backend("reference"):
        want = turned.exact()
    check(m, want)


@each_backend
@pytest.mark.parametrize(("units", "hidden_units"), [(0, 3), (3, 0), (0, 0)])
def test_layers_without_units(units, hidden_units, backend):
    m = machine("bernoulli", "bernoulli", units, hidden_units)
    softplus = torch.nn.functional.softplus
    want = softplus(m.visible_bias).sum() + softplus(m.hidden_bias).sum()
    with evidens.backend(backend):
        check(m, want)


@each_kind
def test_float32_and_half_are_computed_in_float64(visible, hidden):
    m = machine(visible, hidden, 6, 4, dtype=torch.float32)
    assert torch.equal(m.exact(), m.to(torch.float64).exact())
    half = m.to(torch.bfloat16)
    assert torch.equal(half.exact(), half.to(torch.float32).exact())


def test_layouts():
    m = machine("bernoulli", "bernoulli", 30, 6)
    strided = torch.zeros(12, 60).double()[::2, ::2].copy_(m.weight)
    expanded = m.visible_bias[:1].expand(30)
    assert torch.equal(ops.rbm_exact_log_partition(strided, *m.parameters[1:]), m.exact())
    want = ops.rbm_exact_log_partition(m.weight, expanded.contiguous(), m.hidden_bias)
    assert torch.equal(ops.rbm_exact_log_partition(m.weight, expanded, m.hidden_bias), want)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian", "softmax"])
def test_number_of_threads(visible, set_threads):
    m = machine(visible, "bernoulli", 30, 15)
    set_threads(1)
    want = m.exact()
    for threads in (2, 3):
        set_threads(threads)
        assert torch.equal(m.exact(), want)


def test_the_size_of_an_enumeration():
    # 2^30 states are allowed, and take too long here; the error is of the sizes alone.
    w = torch.zeros(31, 40)
    message = r"at most 30 units \(2\^30 states\), got 31 beside 40; estimate it by rbm_ais"
    with pytest.raises(ValueError, match=message):
        ops.rbm_exact_log_partition(w, w[0], w[:, 0])
    options = dict(visible="gaussian", log_variance=torch.zeros(31))
    with pytest.raises(ValueError, match="got 40 beside 31"):
        ops.rbm_exact_log_partition(w.T.contiguous(), w[:, 0], w[0], **options)


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_energies_that_are_too_large(visible, part):
    m = machine(visible)
    m.parameters[part][..., 0] = 1e10
    if visible == "bernoulli":
        check(m)
    m.parameters[part][..., 0] = 1e13
    with pytest.raises(ValueError, match=r"within what torch.float64 resolves, got weights"):
        m.exact()


def test_opcheck_compile_and_info():
    m = machine("softmax", "bernoulli")
    torch.library.opcheck(
        torch.ops.evidens.rbm_exact_log_partition.default, (*m.parameters, m.options["levels"])
    )
    compiled = torch.compile(ops.rbm_exact_log_partition, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*m.parameters, **m.options), m.exact())
    why = evidens.info()["ops"]["rbm_exact_log_partition"]["triton"]
    assert why == "evidens.rbm_exact_log_partition has no triton kernel"


def test_vmap():
    m = [machine(seed=s) for s in range(3)]
    stacked = [torch.stack(t) for t in zip(*(x.parameters for x in m))]
    got = torch.func.vmap(ops.rbm_exact_log_partition)(*stacked)
    torch.testing.assert_close(got, torch.stack([x.exact() for x in m]), rtol=1e-13, atol=0)


@pytest.mark.parametrize("level", evidens.info()["isa"]["available"])
def test_every_level(level):
    program = """
    import sys
    sys.path.insert(0, {tests!r})
    import torch, evidens
    from ops.rbm_partition_cases import KINDS, machine
    from ops.test_rbm_exact import check
    assert evidens.info()["isa"]["chosen"] == {level!r}
    torch.set_num_threads(1)
    for visible, hidden in KINDS:
        for units in ((1, 1), (7, 6), (33, 8), (16, 13)):
            for scale in (0.5, 1.0 if visible == "gaussian" else 100.0):
                m = machine(visible, hidden, *units, scale=scale)
                with evidens.backend("reference"):
                    want = m.exact()
                check(m, want, 1e-13)
    print("done")
    """
    assert "done" in run_program(program.format(tests=str(TESTS), level=level), EVIDENS_ISA=level)
