"""Gradients of the hmm ops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.hmm_cases import (
    DTYPES,
    INF,
    WITHOUT_GRADIENT,
    Case,
    answer,
    assert_within,
    call,
    hmm,
    leaves,
    one_thread,
    probability_bound,
    public,
    relative_bound,
)

import evidens
from evidens import ops

F32, F64 = DTYPES


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():  # results do not depend on it, see test_hmm
        yield


def check_gradients(case: Case, given=None) -> list[torch.Tensor]:
    """Against the derivatives of the float64 reference, for a cotangent of both signs and zero."""
    batch, time, _k = case.log_obs.shape
    args, kwargs = given or case.padded()
    inputs = [t.detach().clone().requires_grad_() for t in args]
    y = ops.hmm_log_likelihood(*inputs, **kwargs)
    cotangent = torch.linspace(-1, 2, batch, dtype=y.dtype)
    cotangent[1::4] = 0
    got = torch.autograd.grad(y, inputs, cotangent)
    want, c = answer(case), cotangent.double()
    absolute = c.abs()
    relative = 2 * relative_bound(case)
    eps = torch.finfo(y.dtype).eps

    expected = want.posteriors * c[:, None, None]
    bound = 2 * probability_bound(case, want.posteriors) * absolute[:, None, None]
    if "offsets" in kwargs:
        expected, bound = expected[case.present], bound[case.present]
    assert_within(got[0], expected, bound + eps * expected.abs(), "log_obs")

    first, size = want.first * c[:, None], want.first * absolute[:, None]
    if case.initial.ndim == 1:
        first, size = first.sum(0), size.sum(0)
    tiny = torch.finfo(y.dtype).tiny * batch
    assert_within(got[1], first, relative * size + eps * first.abs() + tiny, "initial")

    stepped = case.stepped[..., None, None]
    second = torch.where(stepped, want.second, 0.0) * c[:, None, None, None]
    size = second.abs()
    if case.transition.ndim == 2:
        second, size = second.sum((0, 1)), size.sum((0, 1))
    elif "offsets" in kwargs:
        second, size = second[case.stepped], size[case.stepped]
    bound = 2 * relative * size + eps * second.abs() + tiny * max(time, 1)
    assert_within(got[2], second, bound, "transition")
    for t, g in zip(inputs, got):
        assert g.dtype is t.dtype
        assert g.shape == t.shape
    # Each argument alone has the same gradient.
    for i, g in enumerate(got):
        alone = [t.detach().requires_grad_(i == j) for j, t in enumerate(args)]
        y = ops.hmm_log_likelihood(*alone, **kwargs)
        assert torch.equal(torch.autograd.grad(y, alone[i], cotangent)[0], g), i
    return list(got)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("own_initial", [False, True])
@pytest.mark.parametrize("shape", [(2, 1, 3), (3, 4, 2), (1, 5, 3), (9, 2, 4)], ids=str)
def test_gradcheck(shape, varying, own_initial):
    case = hmm(*shape, F64, varying=varying, own_initial=own_initial, seed=3)
    assert torch.autograd.gradcheck(public(case), leaves(case))


def test_gradcheck_of_ragged_and_packed():
    case = hmm(5, 4, 3, F64, ragged=True, varying=True, seed=2)
    clean = case.with_(
        log_obs=case.log_obs.nan_to_num(0.3), transition=case.transition.nan_to_num(0.5)
    )
    assert torch.autograd.gradcheck(public(clean), leaves(clean))
    args, kwargs = clean.packed()
    inputs = [t.detach().clone().requires_grad_() for t in args]
    assert torch.autograd.gradcheck(lambda *t: ops.hmm_log_likelihood(*t, **kwargs), inputs)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 17, 5), (9, 9, 9), (33, 5, 3), (2, 33, 33), (17, 12, 17)], ids=str
)
@pytest.mark.parametrize("kind", ["shared", "varying", "ragged", "ragged, varying"])
def test_equals_the_reference(dtype, shape, kind):
    case = hmm(
        *shape,
        dtype,
        ragged="ragged" in kind,
        varying="varying" in kind,
        own_initial="ragged" in kind,
        seed=sum(shape),
    )
    check_gradients(case)
    check_gradients(case, case.packed())


@pytest.mark.parametrize("shape", [(3, 9, 5), (17, 6, 3), (1, 12, 9)], ids=str)
@pytest.mark.parametrize("varying", [False, True])
def test_zeros(dtype, shape, varying):
    """At an entry that is zero the derivative is not: the density of the paths that it forbids."""
    case = hmm(*shape, dtype, zeros=0.25, varying=varying, seed=sum(shape))
    got = check_gradients(case)
    assert answer(case).log_likelihood.isfinite().any()
    zero = case.transition == 0
    assert (got[2][zero] != 0).any()


def test_derivative_at_zero_is_that_of_a_small_step():
    case = hmm(2, 6, 3, F64, seed=4)
    case.transition[0, 1] = case.transition[2, 2] = case.initial[1] = 0
    inputs = leaves(case)
    gradients = torch.autograd.grad(ops.hmm_log_likelihood(*inputs).sum(), inputs)
    h = 1e-7
    for position, index in ((2, (0, 1)), (2, (2, 2)), (1, (1,))):
        moved = [t.clone() for t in case.tensors]
        moved[position][index] += h
        slope = (ops.hmm_log_likelihood(*moved) - ops.hmm_log_likelihood(*case.tensors)).sum() / h
        assert slope.item() == pytest.approx(gradients[position][index].item(), rel=1e-5)
        assert slope > 0


def test_entering_a_state_that_nothing_reaches(dtype):
    """All ways into a state are zero, so no log of it exists; the derivative does."""
    case = hmm(3, 7, 4, dtype)
    case.initial[1] = 0
    case.transition[:, 1] = 0
    got = check_gradients(case)
    assert got[1][1] != 0
    assert (got[2][[0, 2, 3], 1] != 0).all()
    assert got[2][1, 1] == 0  # that way leads from where nobody is
    assert (got[0][..., 1] == 0).all()


@pytest.mark.parametrize("shape", [(5, 6, 3), (18, 6, 4), (3, 9, 17)], ids=str)
@pytest.mark.parametrize("varying", [False, True])
def test_impossible_sequences_have_no_gradient(dtype, shape, varying):
    case = hmm(*shape, dtype, varying=varying, own_initial=True)
    case.log_obs[1, 2] = -INF
    case.initial[2] = 0
    clean = case.select(torch.tensor([b for b in range(shape[0]) if b not in (1, 2)]))
    inputs, others = leaves(case), leaves(clean)
    y = ops.hmm_log_likelihood(*inputs)
    assert (y[1:3] == -INF).all()
    y.sum().backward()
    for t in inputs:
        assert t.grad.isfinite().all()
    assert (inputs[0].grad[1:3] == 0).all()
    assert (inputs[1].grad[1:3] == 0).all()
    ops.hmm_log_likelihood(*others).sum().backward()
    if varying:
        assert (inputs[2].grad[1:3] == 0).all()
    else:
        bound = 4 * relative_bound(case) * others[2].grad.abs().double()
        assert_within(inputs[2].grad, others[2].grad, bound)


def test_frames_of_minus_infinity(dtype):
    case = hmm(4, 6, 3, dtype)
    case.log_obs[:, 2, :2] = -INF
    case.log_obs[1, :, 0] = -INF
    got = check_gradients(case)
    assert all(g.isfinite().all() for g in got)
    assert (got[0][case.log_obs.isneginf()] == 0).all()


def test_nan_and_a_cotangent_of_zero(dtype):
    """A loss that leaves a sequence out gets no NaN from it."""
    for varying in (False, True):
        case = hmm(4, 6, 3, dtype, varying=varying, own_initial=varying)
        case.log_obs[2, 3, 1] = math.nan
        inputs = leaves(case)
        y = ops.hmm_log_likelihood(*inputs)
        assert y[2].isnan()
        torch.where(y.isnan(), 0.0, y).sum().backward()
        assert all(t.grad.isfinite().all() for t in inputs)
        assert (inputs[0].grad[2] == 0).all()
        assert (inputs[0].grad[[0, 1, 3]] > 0).all()
        inputs = leaves(case)
        ops.hmm_log_likelihood(*inputs).sum().backward()
        assert inputs[0].grad[2].isnan().all()
        assert inputs[0].grad[[0, 1, 3]].isfinite().all()


def test_nobody_reads_the_padding(dtype):
    case = hmm(5, 7, 3, dtype, ragged=True, varying=True, seed=6)
    inputs = leaves(case)
    ops.hmm_log_likelihood(*inputs, lengths=case.lengths).sum().backward()
    assert (inputs[0].grad[~case.present] == 0).all()
    assert (inputs[2].grad[~case.stepped] == 0).all()
    assert all(t.grad.isfinite().all() for t in inputs)


@pytest.mark.parametrize("depth", [100.0, 1e4])
def test_extreme_models(dtype, depth):
    """A path far below the others is the only one: the derivative may be huge, but is no NaN."""
    case = hmm(3, 10, 4, dtype)
    case.transition[:] = (torch.ones(4, 4).triu() - torch.ones(4, 4).triu(2)).to(dtype) / 2
    case.initial[:] = torch.eye(4, dtype=dtype)[0]
    case.log_obs[:, :, 0] += depth
    case.log_obs[:, -1, :-1] = -INF
    want = answer(case)
    inputs = leaves(case)
    y = ops.hmm_log_likelihood(*inputs)
    gradients = torch.autograd.grad(y.sum(), inputs)
    assert not any(g.isnan().any() for g in gradients)
    assert_within(gradients[0], want.posteriors, 2 * probability_bound(case, want.posteriors))
    at = case.transition > 0
    expected = want.second.sum((0, 1))[at]
    bound = 40 * relative_bound(case) * expected + torch.finfo(dtype).tiny
    assert_within(gradients[2][at], expected, bound)
    with evidens.backend("reference"):
        slow = torch.autograd.grad(ops.hmm_log_likelihood(*inputs).sum(), inputs)
    assert not any(g.isnan().any() for g in slow)
    assert_within(slow[0], want.posteriors, 2 * probability_bound(case, want.posteriors))


@pytest.mark.parametrize(("batch", "time"), [(0, 4), (4, 0), (4, 5)])
def test_nothing_to_differentiate(dtype, batch, time):
    case = hmm(batch, time, 3, dtype)
    lengths = torch.zeros(batch, dtype=torch.int64)
    inputs = leaves(case)
    ops.hmm_log_likelihood(*inputs, lengths=lengths).sum().backward()
    for t in inputs:
        assert t.grad.shape == t.shape
        assert (t.grad == 0).all()


@settings(max_examples=30)
@given(
    batch=st.integers(1, 10),
    time=st.integers(1, 8),
    k=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    ragged=st.booleans(),
    varying=st.booleans(),
    own_initial=st.booleans(),
    packed=st.booleans(),
    zeros=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 99),
)
def test_anything(batch, time, k, dtype, ragged, varying, own_initial, packed, zeros, seed):
    more = dict(ragged=ragged, varying=varying, own_initial=own_initial, zeros=zeros, seed=seed)
    case = hmm(batch, time, k, dtype, **more)
    check_gradients(case, case.packed() if packed else None)


def test_layouts_and_expanded_cotangents(dtype):
    case = hmm(5, 6, 4, dtype, own_initial=True, varying=True)
    plain = leaves(case)
    ops.hmm_log_likelihood(*plain).sum().backward()
    strided = [t.transpose(0, -1).clone().transpose(0, -1).requires_grad_() for t in case.tensors]
    ops.hmm_log_likelihood(*strided).sum().backward()
    for a, b in zip(strided, plain):
        assert torch.equal(a.grad, b.grad)
    shared = [case.log_obs.clone(), case.initial[0].clone(), case.transition[0, 0].clone()]
    shared = [t.requires_grad_() for t in shared]
    expanded = shared[1].expand(5, 4), shared[2].expand(5, 5, 4, 4)
    ops.hmm_log_likelihood(shared[0], *expanded).sum().backward()
    want = [t.detach().clone().requires_grad_() for t in shared]
    ops.hmm_log_likelihood(*want).sum().backward()
    for a, b in zip(shared, want):
        assert_within(a.grad, b.grad, 100 * relative_bound(case) * (1 + b.grad.abs().double()))


def test_half_types_get_gradients_of_their_own_dtype():
    case = hmm(3, 6, 4, F32).to(torch.bfloat16)
    half, wide = leaves(case), leaves(case.to(F32))
    y = ops.hmm_log_likelihood(*half)
    assert y.dtype is F32
    y.sum().backward()
    ops.hmm_log_likelihood(*wide).sum().backward()
    for h, w in zip(half, wide):
        assert h.grad.dtype is torch.bfloat16
        assert torch.equal(h.grad, w.grad.bfloat16())


def test_second_derivative_is_a_clear_error():
    inputs = leaves(hmm(3, 4, 2, F64))
    y = ops.hmm_log_likelihood(*inputs)
    first = torch.autograd.grad(y.sum(), inputs, create_graph=True)
    message = r"evidens\.hmm_log_likelihood: second derivatives.*reference"
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(sum(g.sum() for g in first), inputs)


def test_second_derivatives_of_the_reference_backend():
    case = hmm(2, 3, 2, F64)
    with evidens.backend("reference"):
        assert torch.autograd.gradgradcheck(ops.hmm_log_likelihood, leaves(case))


def test_backward_twice():
    inputs = leaves(hmm(3, 4, 2, F64))
    y = ops.hmm_log_likelihood(*inputs).sum()
    y.backward(retain_graph=True)
    once = [t.grad.clone() for t in inputs]
    y.backward()
    assert all(torch.equal(t.grad, 2 * g) for t, g in zip(inputs, once))


def test_input_changed_in_place_before_backward_is_an_error():
    case = hmm(3, 4, 2, F64).with_(lengths=torch.tensor([4, 3, 2]))
    for changed in (0, 1, 2, None):
        inputs, lengths = leaves(case), case.lengths.clone()
        y = ops.hmm_log_likelihood(*inputs, lengths=lengths)
        with torch.no_grad():
            (lengths if changed is None else inputs[changed]).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_gradient_follows_the_backend_of_the_forward(monkeypatch):
    inputs = leaves(hmm(3, 4, 2, F64))
    monkeypatch.setattr(evidens._native.library, "hmm", lambda *a: pytest.fail("compiled kernel"))
    with evidens.backend("reference"):
        y = ops.hmm_log_likelihood(*inputs)
    y.sum().backward()
    assert inputs[0].grad.isfinite().all()


@pytest.mark.parametrize("op", WITHOUT_GRADIENT)
@pytest.mark.parametrize("argument", range(3))
def test_ops_without_gradient_refuse_to_cut_the_graph(op, argument):
    case = hmm(3, 4, 2, F64)
    arguments = [t.detach().requires_grad_(i == argument) for i, t in enumerate(case.tensors)]
    message = rf"evidens\.{op} offers no gradient.*no_grad.*hmm_log_likelihood"
    with pytest.raises(RuntimeError, match=message):
        call(op, *arguments)
    with torch.no_grad():
        call(op, *arguments)


@pytest.mark.parametrize("name", ["weight", "state"])
def test_weight_and_state_refuse_to_cut_the_graph(name):
    case = hmm(3, 4, 2, F64)
    op = "hmm_filter" if name == "state" else "hmm_forward_backward"
    value = torch.ones((3, 2) if name == "state" else 3, dtype=F64, requires_grad=True)
    with pytest.raises(RuntimeError, match=rf"evidens\.{op} offers no gradient"):
        call(op, *case.tensors, **{name: value})
