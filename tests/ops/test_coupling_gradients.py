"""Gradients of the coupling ops: gradcheck, what is and is not offered, which backend."""

from __future__ import annotations

import math

import pytest
import torch
from ops.coupling_cases import MAP_IDS, MAPS, PATTERNS, check_gradients, coupling, gradients, run
from torch.autograd import gradcheck, gradgradcheck

import evidens
from evidens import ops, reference

each_map = pytest.mark.parametrize(("scale_map", "clamp"), MAPS, ids=MAP_IDS)
each_direction = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def function(case):
    return lambda *tensors: run(ops, case, tensors)


@each_map
@each_direction
def test_gradcheck(scale_map, clamp, inverse):
    for d, places, pattern in ((5, (), "second"), (4, (2,), "even"), (3, (), "all")):
        case = coupling(3, d, places, pattern, scale_map, clamp, inverse)
        assert gradcheck(function(case), case.leaves())


@pytest.mark.parametrize("missing", ["scale", "shift"])
@each_direction
def test_gradcheck_of_one_parameter(missing, inverse):
    case = coupling(3, 5, (), "odd", "tanh", None, inverse).with_(**{missing: None})
    given = [t for t in case.leaves() if t is not None]

    def call(x, p):
        return run(ops, case, (x, p, None) if missing == "shift" else (x, None, p))

    assert gradcheck(call, given)


@each_map
@each_direction
def test_gradgradcheck_of_the_reference(scale_map, clamp, inverse):
    case = coupling(2, 4, (), "second", scale_map, clamp, inverse)
    with evidens.backend("reference"):
        assert gradcheck(function(case), case.leaves())
        assert gradgradcheck(function(case), case.leaves())


@each_map
@each_direction
def test_the_formula_of_the_gradient(scale_map, clamp, inverse):
    """The reference's own backward, which a device without kernels runs, against autograd."""
    for pattern in PATTERNS:
        case = coupling(4, 9, (3,), pattern, scale_map, clamp, inverse)
        grad_y, grad_logdet = torch.randn_like(case.x), torch.randn(4, dtype=torch.float64)
        want = gradients(reference.coupling, case, grad_y, grad_logdet)
        options = case.options | {"clamp": case.inner[5]}
        got = reference.coupling.affine_coupling_backward(
            *case.tensors, grad_y, grad_logdet, **options
        )
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@each_direction
@pytest.mark.parametrize("pattern", ["second", "even", "shuffled"])
def test_of_one_result(inverse, pattern):
    case = coupling(4, 40, (), pattern, "softplus", None, inverse)
    wide = case.leaves()
    for part in (0, 1):
        leaves = case.leaves()
        got = run(ops, case, leaves)[part]
        want = run(reference.coupling, case, wide)[part]
        cotangent = torch.randn_like(got)
        got = torch.autograd.grad(got, leaves, cotangent, materialize_grads=True)
        want = torch.autograd.grad(want, wide, cotangent, materialize_grads=True)
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@each_direction
def test_for_each_argument_alone(inverse):
    case = coupling(4, 40, (), "second", "sigmoid", None, inverse)
    together = gradients(ops, case, torch.ones_like(case.x), torch.ones(4))
    for i in range(3):
        alone = [t.detach().requires_grad_(i == j) for j, t in enumerate(case.tensors)]
        y, logdet = run(ops, case, tuple(alone))
        (got,) = torch.autograd.grad(y.sum() + logdet.sum(), [alone[i]])
        torch.testing.assert_close(got, together[i], rtol=0, atol=0)


def test_expanded_cotangents():
    case = coupling(33, 20, (), "even", dtype=torch.float32)
    leaves = case.leaves()
    y, logdet = run(ops, case, leaves)
    got = torch.autograd.grad(y.sum() + logdet.sum(), leaves)
    want = gradients(ops, case, torch.ones_like(case.x), torch.ones(33))
    assert all(torch.equal(a, b) for a, b in zip(got, want))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_direction
def test_a_clipped_scale_has_no_gradient(inverse, dtype):
    case = coupling(5, 40, (), "second", "exp_clamped", 1.0, inverse, dtype, spread=3.0)
    _, scale, _ = check_gradients(case)
    clipped = case.scale.abs() > 1
    assert clipped.any()
    assert (scale[clipped] == 0).all()
    assert (scale[~clipped] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_direction
def test_a_factor_at_its_largest_has_no_gradient_through_y(inverse, dtype):
    large = 100.0 if dtype is torch.float32 else 800.0
    x = torch.tensor([[2.0, 3.0]], dtype=dtype)
    scale = torch.full((1, 2), -large if inverse else large, dtype=dtype, requires_grad=True)
    for backend in ("cpu", "reference"):
        with evidens.backend(backend):
            y, logdet = ops.affine_coupling(x, scale, None, inverse=inverse)
            assert y.isfinite().all() or not torch.isnan(y).any()
            assert logdet.item() == pytest.approx(2 * large)
            (g,) = torch.autograd.grad(y.sum(), scale, retain_graph=True)
            assert (g == 0).all()
            (g,) = torch.autograd.grad(logdet.sum(), scale)
            assert (g == (-1 if inverse else 1)).all()


def test_half_types_get_gradients_of_their_own_dtype():
    case = coupling(5, 12, dtype=torch.float32).to(torch.bfloat16)
    leaves, wide = case.leaves(), case.to(torch.float32).leaves()
    y, logdet = run(ops, case, leaves)
    (y.sum() + logdet.sum()).backward()
    z, other = run(ops, case, wide)
    (z.sum() + other.sum()).backward()
    for t, w in zip(leaves, wide):
        assert t.grad.dtype is torch.bfloat16
        assert torch.equal(t.grad, w.grad.bfloat16())


def test_second_derivative_is_a_clear_error():
    leaves = coupling(4, 6).leaves()
    y, logdet = ops.affine_coupling(leaves[0][:, :3], leaves[1], leaves[2])
    first = torch.autograd.grad(y.sum() + logdet.sum(), leaves, create_graph=True)
    with pytest.raises(
        RuntimeError, match=r"evidens\.affine_coupling: second derivatives.*reference"
    ):
        torch.autograd.grad(sum(g.sum() for g in first), leaves)


def test_backward_twice_and_in_place():
    case = coupling(4, 6)
    leaves = case.leaves()
    total = sum(t.sum() for t in run(ops, case, leaves))
    total.backward(retain_graph=True)
    once = [t.grad.clone() for t in leaves]
    total.backward()
    assert all(torch.equal(t.grad, 2 * g) for t, g in zip(leaves, once))
    y, _ = run(ops, case, leaves)
    with torch.no_grad():
        leaves[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_nothing_but_the_arguments_is_saved():
    case = coupling(4, 6)
    leaves = case.leaves()
    y, _ = run(ops, case, leaves)
    saved = {t.data_ptr() for t in y.grad_fn.saved_tensors if t is not None}
    assert saved <= {t.data_ptr() for t in (*leaves, case.active)}


def test_gradient_follows_the_backend_of_the_forward(monkeypatch):
    case = coupling(4, 6)
    leaves = case.leaves()
    with evidens.backend("reference"):
        y, _ = run(ops, case, leaves)
    monkeypatch.setattr(
        evidens._native.library, "coupling", lambda *a: pytest.fail("compiled kernel")
    )
    y.sum().backward()
    assert leaves[1].grad.isfinite().all()


@pytest.mark.parametrize("value", [1e30, math.inf, -math.inf])
def test_a_passive_feature_passes_its_gradient_whatever_it_holds(value):
    for pattern in ("second", "shuffled"):
        case = coupling(3, 40, (), pattern, "exp")
        passive = [i for i in range(40) if i not in case.active.tolist()]
        case.x[1, passive] = value
        grad_y = torch.randn_like(case.x)
        for module in (ops, reference.coupling):
            x, scale, shift = gradients(module, case, grad_y, torch.ones(3))
            assert torch.equal(x[:, passive], grad_y[:, passive])
            assert scale.isfinite().all()
            assert shift.isfinite().all()
