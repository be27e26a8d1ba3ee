"""Masked linear layer: the mask, and values by size, order of degrees, layout, dtype and thread."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.masked_conv_cases import DTYPES, ORDERS, check, gradients, linear, run
from torch.autograd import gradcheck

import evidens
from evidens import ops, reference

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_order = pytest.mark.parametrize("order", ORDERS)
each_strict = pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])


@each_order
@each_strict
def test_the_mask_of_the_reference_is_the_definition(order, strict):
    case = linear(3, 11, 13, order, strict)
    degrees = case.options["in_degrees"], case.options["out_degrees"]
    assert torch.equal(reference.masked_conv.live_links(*degrees, strict), case.live())


@each_order
@each_strict
def test_zeros_of_the_jacobian_are_those_of_the_mask(order, strict):
    case = linear(1, 20, 33, order, strict)
    jacobian = torch.autograd.functional.jacobian(lambda x: run(ops, case.with_(x=x)), case.x)
    assert torch.equal(jacobian[0, :, 0] != 0, case.live())


def test_a_stack_is_autoregressive():
    """Input, two hidden layers, and the strict output: a strictly triangular Jacobian."""
    torch.manual_seed(0)
    inputs, hidden = torch.tensor([3, 1, 4, 2, 5]), torch.arange(30) % 4 + 1
    layers = [(inputs, hidden, False), (hidden, hidden, False), (hidden, inputs, True)]
    weights = [torch.randn(len(o), len(i), dtype=torch.float64) for i, o, _ in layers]

    def network(x):
        for (i, o, strict), weight in zip(layers, weights):
            x = ops.masked_linear(x.tanh(), weight, in_degrees=i, out_degrees=o, strict=strict)
        return x

    jacobian = torch.autograd.functional.jacobian(network, torch.randn(5, dtype=torch.float64))
    order = inputs.argsort()
    matrix = jacobian[order][:, order]
    assert (matrix.triu() == 0).all()
    assert (matrix[torch.ones(5, 5).tril(-1).bool()] != 0).all()


@each_order
@each_strict
@each_dtype
def test_every_size(order, strict, dtype):
    for n in (0, 1, 5, 40):
        for i, o in ((1, 1), (1, 9), (17, 1), (7, 16), (33, 65), (130, 70)):
            check(linear(n, i, o, order, strict, dtype))
    check(linear(300, 40, 50, order, strict, dtype, bias=False))


@each_order
@each_dtype
def test_many_rows_and_sizes_that_are_powers_of_two(order, dtype):
    check(linear(700, 256, 512, order, False, dtype))


@each_order
@each_strict
def test_given_orders_change_no_bit(order, strict):
    case = linear(9, 40, 70, order, strict, torch.float32)
    orders = {
        f"{side}_order": torch.argsort(case.options[f"{side}_degrees"], stable=True)
        for side in ("in", "out")
    }
    with_orders = case.with_(options=case.options | orders)
    grad_y = torch.randn(9, 70)
    assert torch.equal(run(ops, with_orders), run(ops, case))
    for a, b in zip(gradients(ops, with_orders, grad_y), gradients(ops, case, grad_y)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize(
    "wrong", [[0, 1, 2], [2, 1, 1], [2, 1, 3], [2, 1, -1], [2, 1, 2**62]], ids=str
)
def test_an_order_that_is_none_is_refused(side, wrong):
    degrees = torch.tensor([5, 4, 3])
    options = {"in_degrees": degrees, "out_degrees": degrees, f"{side}_order": torch.tensor(wrong)}
    with pytest.raises(ValueError, match=f"{side}_order must put {side}_degrees into rising order"):
        ops.masked_linear(torch.ones(2, 3), torch.ones(3, 3), **options)


def test_dead_weights_are_not_read():
    for order in ORDERS:
        case = linear(9, 40, 70, order)
        poisoned = case.with_(weight=torch.where(case.live(), case.weight, math.nan))
        grad_y = torch.randn(9, 70)
        for module in (ops, reference.masked_conv):
            assert torch.equal(run(module, case), run(module, poisoned))
            pairs = zip(gradients(module, case, grad_y), gradients(module, poisoned, grad_y))
            assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("leading", [(), (0,), (2, 3), (2, 0, 3), (1, 1, 1)], ids=str)
def test_leading_axes(leading):
    case = linear(1, 7, 9)
    x = torch.randn(*leading, 7, dtype=torch.float64)
    y = run(ops, case.with_(x=x))
    assert y.shape == (*leading, 9)
    torch.testing.assert_close(y, run(reference.masked_conv, case.with_(x=x)))
    check(case.with_(x=x))


@each_dtype
@each_order
def test_layouts(order, dtype):
    case = linear(6, 32, 48, order, dtype=dtype)
    flat = torch.full((32 * 6 + 3,), math.nan, dtype=dtype)[3:].view(6, 32).copy_(case.x)
    for x in (
        case.x.T.contiguous().T,
        torch.stack((case.x, -case.x), 2)[:, :, 0],
        torch.cat((case.x, case.x), 1)[:, :32],
        flat,
    ):
        check(case, case.with_(x=x))
    check(case, case.with_(weight=case.weight.T.contiguous().T))
    row = case.with_(x=case.x[:1].expand(6, -1))
    check(row.with_(x=row.x.contiguous()), row)
    repeated = case.options | {"out_degrees": case.options["out_degrees"][:1].expand(48)}
    check(case.with_(options=repeated))
    leaves = case.leaves()
    got = torch.autograd.grad(run(ops, case, leaves).sum(), leaves)  # an expanded cotangent
    for a, b in zip(got, gradients(ops, case, torch.ones(6, 48))):
        assert torch.equal(a, b)


@each_order
@each_strict
def test_gradcheck(order, strict):
    case = linear(3, 5, 6, order, strict)
    assert gradcheck(lambda *t: run(ops, case, t), case.leaves())


@given(data=st.data())
@settings(max_examples=60)
def test_property(data):
    draw = data.draw
    n, i, o = draw(st.integers(0, 20)), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    case = linear(n, i, o, "rising", draw(st.booleans()), draw(st.sampled_from(DTYPES)))
    degrees = st.integers(-5, 5)
    for side, count in (("in", i), ("out", o)):
        given = draw(st.lists(degrees, min_size=count, max_size=count))
        case.options[f"{side}_degrees"] = torch.tensor(given)
    check(case)


@each_dtype
def test_bits_depend_on_neither_threads_nor_other_rows(dtype):
    case = linear(600, 90, 120, "shuffled", dtype=dtype)
    grad_y = torch.randn(600, 120)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append([run(ops, case), *gradients(ops, case, grad_y)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    for row in (0, 599):
        alone = case.with_(x=case.x[row : row + 1])
        assert torch.equal(run(ops, alone)[0], found[0][0][row])


def test_strides_beyond_32_bits(tmp_path):
    """Zeros in a file of holes: only pages that are written take memory."""
    case, step = linear(3, 5, 7, dtype=torch.float32), 2**31 + 8
    file = torch.from_numpy(np.memmap(tmp_path / "x", np.float32, "w+", shape=(2 * step + 64,)))
    far = file.as_strided((3, 5), (step, 1))
    far.copy_(case.x)
    assert torch.equal(run(ops, case.with_(x=far)), run(ops, case))


def test_the_cpu_backend_runs_the_compiled_kernel(monkeypatch):
    case = linear()
    monkeypatch.setattr(
        evidens._native.library, "masked_linear", lambda *a: pytest.fail("compiled kernel")
    )
    with pytest.raises(pytest.fail.Exception, match="compiled kernel"):
        run(ops, case)
