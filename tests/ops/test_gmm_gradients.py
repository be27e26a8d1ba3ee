"""Gradients of the gmm ops: gradcheck, cotangents of every sign, what is and is not offered."""

from __future__ import annotations

import math

import pytest
import torch
from ops.gmm_cases import TYPES, mixture

import evidens
from evidens import ops, reference

DIFFERENTIABLE = ("gmm_component_log_prob", "gmm_log_prob")


@pytest.fixture(params=TYPES)
def covariance_type(request):
    return request.param


@pytest.fixture(params=DIFFERENTIABLE)
def op(request):
    return request.param


def leaves(case):
    return [t.detach().clone().requires_grad_() for t in (case.x, *case.parameters[:3])]


@pytest.mark.parametrize(("n", "d", "k"), [(5, 1, 1), (7, 3, 4), (3, 7, 2)])
def test_gradcheck(op, covariance_type, n, d, k):
    # Below the diagonal the numerical gradient must be zero as well: the triangle is not read.
    case = mixture(n, d, k, covariance_type, torch.float64, below=0.3)
    function = getattr(ops, op)
    assert torch.autograd.gradcheck(lambda *a: function(*a, covariance_type), leaves(case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "d", "k"), [(0, 3, 2), (1, 17, 5), (300, 7, 5), (257, 33, 3)])
def test_equals_the_reference(op, covariance_type, dtype, n, d, k):
    """Cotangents of both signs and zero, for all tensors at once and for each alone."""
    case = mixture(n, d, k, covariance_type, dtype, below=0.0)
    got = leaves(case)
    y = getattr(ops, op)(*got, covariance_type)
    cotangent = torch.randn_like(y)
    cotangent[::4] = 0
    wide = leaves(case.to(torch.float64))
    want = getattr(reference.gmm, op)(*wide, covariance_type)
    want = torch.autograd.grad(want, wide, cotangent.double())
    # Sums over n k rounded terms of comparable size, each with a few roundings per feature.
    eps = torch.finfo(dtype).eps
    scale = [1 + w.abs().amax() if w.numel() else 1.0 for w in want]
    together = torch.autograd.grad(y, got, cotangent)
    for i, (a, b, s) in enumerate(zip(together, want, scale)):
        assert a.dtype is dtype
        assert ((a.double() - b).abs() <= 8 * (d + 16) * eps * s).all(), i
    for i in range(4):
        alone = [t.detach().requires_grad_(i == j) for j, t in enumerate(got)]
        y = getattr(ops, op)(*alone, covariance_type)
        (gradient,) = torch.autograd.grad(y, [alone[i]], cotangent)
        assert ((gradient.double() - want[i]).abs() <= 8 * (d + 16) * eps * scale[i]).all(), i


def test_expanded_cotangent_and_layouts(op, covariance_type):
    case = mixture(33, 5, 3, covariance_type, torch.float64, below=0.0)
    tensors = leaves(case)
    want = torch.autograd.grad(getattr(reference.gmm, op)(*tensors, covariance_type).sum(), tensors)
    strided = [t.detach().mT.clone().mT if t.ndim > 1 else t.detach() for t in tensors]
    strided = [t.requires_grad_() for t in strided]
    got = torch.autograd.grad(getattr(ops, op)(*strided, covariance_type).sum(), strided)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_below_the_diagonal_there_is_no_gradient(op):
    for covariance_type in ("full", "tied"):
        case = mixture(20, 5, 3, covariance_type, torch.float64)  # NaN below
        tensors = leaves(case)
        getattr(ops, op)(*tensors, covariance_type).sum().backward()
        assert (tensors[3].grad.tril(-1) == 0).all()
        assert all(t.grad.isfinite().all() for t in tensors)


@pytest.mark.parametrize("needs", ["x", "parameters"])
def test_impossible_component_has_no_gradient(covariance_type, needs):
    case = mixture(33, 5, 3, covariance_type, torch.float64, below=0.0)
    case.log_weights[1] = -math.inf
    tensors = leaves(case)
    tensors[0].requires_grad_(needs == "x")
    ops.gmm_log_prob(*tensors, covariance_type).sum().backward()
    assert tensors[1].grad[1] == 0
    assert (tensors[2].grad[1] == 0).all()
    assert all(t.grad.isfinite().all() for t in tensors if t.requires_grad)


def test_half_types_get_gradients_of_their_own_dtype(op, covariance_type):
    case = mixture(33, 5, 3, covariance_type, torch.float32, below=0.0).to(torch.bfloat16)
    tensors = leaves(case)
    wide = leaves(case.to(torch.float32))
    y = getattr(ops, op)(*tensors, covariance_type)
    assert y.dtype is torch.float32
    y.sum().backward()
    getattr(ops, op)(*wide, covariance_type).sum().backward()
    for t, w in zip(tensors, wide):
        assert t.grad.dtype is torch.bfloat16
        assert torch.equal(t.grad, w.grad.bfloat16())


def test_second_derivative_is_a_clear_error(op, covariance_type):
    case = mixture(7, 3, 2, covariance_type, torch.float64, below=0.0)
    tensors = leaves(case)
    y = getattr(ops, op)(*tensors, covariance_type)
    first = torch.autograd.grad(y.sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match=rf"evidens\.{op}: second derivatives.*reference"):
        torch.autograd.grad(sum(g.sum() for g in first), tensors)


def test_backward_twice(op, covariance_type):
    tensors = leaves(mixture(7, 3, 2, covariance_type, torch.float64, below=0.0))
    y = getattr(ops, op)(*tensors, covariance_type).sum()
    y.backward(retain_graph=True)
    once = [t.grad.clone() for t in tensors]
    y.backward()
    assert all(torch.equal(t.grad, 2 * g) for t, g in zip(tensors, once))


def test_input_changed_in_place_before_backward_is_an_error(op, covariance_type):
    tensors = leaves(mixture(7, 3, 2, covariance_type, torch.float64, below=0.0))
    y = getattr(ops, op)(*tensors, covariance_type)
    with torch.no_grad():
        tensors[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradient_follows_the_backend_of_the_forward(op, monkeypatch):
    tensors = leaves(mixture(7, 3, 2, "full", torch.float64, below=0.0))
    with evidens.backend("reference"):
        y = getattr(ops, op)(*tensors, "full")
    monkeypatch.setattr(evidens._native.library, "gmm", lambda *a: pytest.fail("compiled kernel"))
    y.sum().backward()
    assert tensors[0].grad.isfinite().all()


@pytest.mark.parametrize("argument", range(4))
def test_ops_without_gradient_refuse_to_cut_the_graph(covariance_type, argument):
    case = mixture(7, 3, 2, covariance_type, torch.float64, below=0.0)
    for op in ("gmm_statistics", "gmm_moments", "gmm_input_gradient"):
        arguments = [
            a.detach().requires_grad_(i == argument) if isinstance(a, torch.Tensor) else a
            for i, a in enumerate(case.arguments(op))
        ]
        if not isinstance(case.arguments(op)[argument], torch.Tensor):
            continue
        with pytest.raises(RuntimeError, match=rf"evidens\.{op} offers no gradient.*no_grad"):
            getattr(ops, op)(*arguments)
        with torch.no_grad():
            getattr(ops, op)(*arguments)
    weight = torch.ones(7, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="offers no gradient"):
        ops.gmm_statistics(case.x, *case.parameters, weight)
