"""Gradients of the hmm ops, torch.compile, torch.func, and the torch registrations."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.hmm_cases import (
    DTYPES,
    INF,
    PUBLIC,
    WITHOUT_GRADIENT,
    Case,
    answer,
    assert_within,
    hmm,
    one_thread,
    poison_padding,
    probability_bound,
    relative_bound,
)
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import evidens
from evidens import ops, reference

F32, F64 = DTYPES


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():  # results do not depend on it, see test_hmm
        yield


def leaves(case):
    return [t.detach().clone().requires_grad_() for t in case.tensors]


def call(op, *args, **kwargs):
    if op == "hmm_sample_paths":
        kwargs.setdefault("seed", 0)
    return getattr(ops, op)(*args, **kwargs)


def formula(case):
    """The reference as a function of the padded tensors."""
    _batch, _time, k = case.log_obs.shape
    where = case.inner()[3:]

    def function(log_obs, initial, transition):
        if transition.ndim == 4:
            transition = transition.reshape(-1, k, k)
        return reference.hmm.hmm_log_likelihood(log_obs.reshape(-1, k), initial, transition, *where)

    return function


def public(case):
    kwargs = case.padded()[1]
    return lambda *tensors: ops.hmm_log_likelihood(*tensors, **kwargs)


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


# --- torch.compile --------------------------------------------------------------------------------


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda f, backend="aot_eager": torch.compile(f, backend=backend, fullgraph=True)
    torch._dynamo.reset()


def close(actual, expected):
    for a, e in zip(*((r if isinstance(r, tuple) else (r,)) for r in (actual, expected))):
        # Two float64 computations of a few dozen terms of order one to ten.
        assert (a is None) == (e is None)
        if a is not None:
            torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", ["padded", "padded with lengths", "packed"])
@pytest.mark.parametrize("varying", [False, True])
def test_compile_forward_and_backward(layout, varying, compiled):
    case = hmm(3, 5, 4, F64, varying=varying)
    if layout != "padded":
        case = case.with_(lengths=torch.tensor([5, 2, 4]))
    args, kwargs = case.packed() if layout == "packed" else case.padded()

    def function(log_obs, initial, transition):
        # Something to fuse on both sides of the op.
        return ops.hmm_log_likelihood(
            2 * log_obs, initial.softmax(-1), transition.softmax(-1), **kwargs
        ).sin()

    inputs = [t.detach().clone().requires_grad_() for t in args]
    want = function(*inputs)
    cotangent = torch.linspace(-1, 1, 3, dtype=F64)
    got = compiled(function)(*inputs)
    close(got, want)
    close(torch.autograd.grad(got, inputs, cotangent), torch.autograd.grad(want, inputs, cotangent))


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_compile_with_inductor(compiled):
    case = hmm(3, 5, 4, F64)

    def function(*tensors):
        return ops.hmm_log_likelihood(*(t.exp() for t in tensors)).sin()

    inputs = leaves(case)
    want, got = function(*inputs), compiled(function, "inductor")(*inputs)
    close(got, want)
    close(torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(want.sum(), inputs))


def test_compile_ops_without_gradient(compiled):
    case = hmm(3, 5, 4, F64)
    weight, lengths = torch.rand(3, dtype=F64), torch.tensor([5, 2, 4])
    flat = case.with_(lengths=lengths).packed()[0][0]
    offsets = torch.tensor([0, 5, 7, 11])

    def function(log_obs, flat, weight, lengths, offsets):
        rest = case.tensors[1:]
        both = ops.hmm_forward_backward(
            log_obs + 1, *rest, lengths=lengths, weight=weight, pairwise=True
        )
        again = ops.hmm_forward_backward(flat + 1, *rest, offsets=offsets)
        filtered = ops.hmm_filter(log_obs + 1, *rest, lengths=lengths)
        onward = ops.hmm_filter(flat + 1, *rest, offsets=offsets, state=filtered.state)
        path = ops.hmm_viterbi(log_obs + 1, *rest, lengths=lengths)
        drawn = ops.hmm_sample_paths(flat + 1, *rest, offsets=offsets, n=2, seed=3)
        return (*both, *again[:4], *filtered, *onward, *path, drawn)

    arguments = case.log_obs, flat, weight, lengths, offsets
    close(compiled(function)(*arguments), function(*arguments))


def test_compile_with_dynamic_shapes():
    torch._dynamo.reset()
    initial, transition = torch.ones(3, dtype=F64) / 3, torch.ones(3, 3, dtype=F64) / 3
    fast = torch.compile(ops.hmm_log_likelihood, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((4, 6, 3), (5, 9, 3), (7, 2, 3)):
        x = torch.randn(shape, dtype=F64)
        close(fast(x, initial, transition), ops.hmm_log_likelihood(x, initial, transition))
    torch._dynamo.reset()


def test_compiled_functorch_gradients_take_the_reference(compiled):
    """torch.compile of functorch's grad over a custom backward gives zeros without an error."""
    case = hmm(2, 3, 2, F64)

    def gradient(x):
        return grad(lambda x: ops.hmm_log_likelihood(x, *case.tensors[1:]).sum())(x)

    want = ops.hmm_forward_backward(*case.tensors).posteriors
    close(compiled(gradient)(case.log_obs), want)


@pytest.mark.parametrize("op", PUBLIC)
@pytest.mark.parametrize("what", ["lengths", "offsets", "transitions"])
def test_compiled_code_refuses_sequences_outside_of_their_rows(op, what, compiled):
    """Tracing sees no values, so the check must be made when the compiled code runs."""
    case = hmm(3, 5, 4, F64)
    more = {"seed": 0} if op == "hmm_sample_paths" else {}
    if op == "hmm_filter":
        more["state"] = torch.ones(3, 4, dtype=F64)
    if what == "lengths":
        x, pi, a = case.tensors
        name, wrong = "lengths", [[5, 6, 0], [5, -1, 5]]
    else:
        x, pi, a = case.log_obs.flatten(0, 1), *case.tensors[1:]
        name, wrong = "offsets", [[0, 5, 9, 14], [0, 9, 5, 15], [1, 5, 9, 15]]
    if what == "transitions":
        if op == "hmm_filter":
            more = {}
        # As many as without empty sequences, but one is empty; tracing does not see that.
        wrong, a = [[0, 5, 5, 15]], torch.ones(12, 4, 4, dtype=F64)

    function = compiled(lambda x, i: getattr(ops, op)(x + 1, pi, a, **{name: i}, **more))
    for index in wrong:
        if what == "transitions":
            continue
        with pytest.raises((ValueError, RuntimeError), match=rf"evidens.*{name}"):
            function(x, torch.tensor(index))


# --- torch.func and forward mode ------------------------------------------------------------------


@pytest.mark.parametrize("varying", [False, True])
def test_vmap_over_frames(varying):
    case = hmm(3, 5, 4, F64, varying=varying)
    case = poison_padding(case.with_(lengths=torch.tensor([5, 2, 0])))
    many = torch.stack([case.log_obs + s for s in range(4)])
    rest, kwargs = case.tensors[1:], {"lengths": case.lengths}
    got = vmap(lambda x: ops.hmm_log_likelihood(x, *rest, **kwargs))(many)
    want = torch.stack([ops.hmm_log_likelihood(x, *rest, **kwargs) for x in many])
    close(got, want)
    got = vmap(lambda x: ops.hmm_log_likelihood(x, *rest, **kwargs), in_dims=3)(many.movedim(0, 3))
    close(got, want)


def test_vmap_over_every_argument():
    cases = [hmm(3, 5, 4, F64, seed=s) for s in range(4)]
    stacked = [torch.stack(column) for column in zip(*(c.tensors for c in cases))]
    close(
        vmap(ops.hmm_log_likelihood)(*stacked),
        torch.stack([ops.hmm_log_likelihood(*c.tensors) for c in cases]),
    )
    close(
        vmap(ops.hmm_log_likelihood, in_dims=(None, None, 0))(*cases[0].tensors[:2], stacked[2]),
        torch.stack([ops.hmm_log_likelihood(*cases[0].tensors[:2], c.transition) for c in cases]),
    )


@pytest.mark.parametrize("op", WITHOUT_GRADIENT)
def test_vmap_of_ops_without_gradient(op):
    case = hmm(3, 5, 4, F64)
    many = torch.stack([case.log_obs * (1 + s) for s in range(3)])

    def function(x):
        result = call(op, x, *case.tensors[1:])
        return tuple(result[:4]) if isinstance(result, tuple) else (result,)

    close(vmap(function)(many), tuple(torch.stack(r) for r in zip(*map(function, many))))


@pytest.mark.parametrize("varying", [False, True])
def test_reverse_mode(varying):
    case = hmm(2, 4, 3, F64, varying=varying, own_initial=True, zeros=0.2, seed=7)
    assert answer(case).log_likelihood.isfinite().all()
    got, want = public(case), formula(case)
    for argument in range(3):
        close(
            jacrev(got, argnums=argument)(*case.tensors),
            jacrev(want, argnums=argument)(*case.tensors),
        )
        f, g = (
            grad(lambda *t, h=h: h(*t).sin().sum(), argnums=argument)(*case.tensors)
            for h in (got, want)
        )
        close(f, g)
    (y, pull), (z, other) = vjp(got, *case.tensors), vjp(want, *case.tensors)
    close(pull(y.cos()), other(z.cos()))


def test_gradient_of_each_sequence():
    case = hmm(4, 5, 3, F64)

    def total(x, a, function):
        return function(x[None], case.initial, a).sum()

    one = formula(case.select(torch.tensor([0])))
    for mapped in (None, 0):
        a = (
            case.transition
            if mapped is None
            else torch.stack([case.transition.roll(s) for s in range(4)])
        )
        got, want = (
            vmap(grad(lambda x, a, f=f: total(x, a, f), argnums=(0, 1)), (0, mapped))(
                case.log_obs, a
            )
            for f in (ops.hmm_log_likelihood, one)
        )
        close(got, want)


def test_forward_mode():
    case = hmm(2, 4, 3, F64, zeros=0.2, seed=7)
    got, want = public(case), formula(case)
    tangents = tuple(torch.randn_like(t) for t in case.tensors)
    close(jvp(got, case.tensors, tangents)[1], jvp(want, case.tensors, tangents)[1])
    close(jacfwd(got)(*case.tensors), jacrev(want)(*case.tensors))


def test_hessian_forward_over_reverse():
    case = hmm(1, 3, 2, F64)
    got, want = (hessian(lambda *t, f=f: f(*t).sum()) for f in (public(case), formula(case)))
    close(got(*case.tensors), want(*case.tensors))
    # Against differences of the gradient, which is the posterior.
    h, x = 1e-5, case.log_obs
    rows = []
    for i in range(6):
        step = torch.zeros(6, dtype=F64)
        step[i] = h
        up, down = (
            ops.hmm_forward_backward(x + s.view_as(x), *case.tensors[1:]).posteriors
            for s in (step, -step)
        )
        rows.append((up - down).flatten() / (2 * h))
    matrix = got(*case.tensors).reshape(6, 6)
    torch.testing.assert_close(matrix, torch.stack(rows), rtol=1e-6, atol=1e-8)


def test_second_reverse_derivative_is_a_clear_error():
    case = hmm(2, 3, 2, F64)

    def function(x):
        return ops.hmm_log_likelihood(x, *case.tensors[1:]).sum()

    with pytest.raises(RuntimeError, match=r"evidens\.hmm_log_likelihood: second derivatives"):
        grad(lambda x: grad(function)(x).sum())(case.log_obs)


@pytest.mark.parametrize("op", WITHOUT_GRADIENT)
def test_ops_without_gradient_drop_no_tangent(op):
    case = hmm(2, 3, 2, F64)
    tangent = torch.ones_like(case.log_obs)
    with pytest.raises(RuntimeError, match=r"evidens\.hmm_\w+ offers no gradient"):
        jvp(lambda x: call(op, x, *case.tensors[1:])[0], (case.log_obs,), (tangent,))


# --- registrations --------------------------------------------------------------------------------


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 1, 1)], ids=str)
def test_opcheck(shape, varying):
    case = hmm(*shape, F64, varying=varying, own_initial=varying)
    inner = case.inner()
    weight = torch.rand(shape[0], dtype=F64)
    for name, more in (
        ("hmm_log_likelihood", ()),
        ("hmm_forward_backward", (None, False)),
        ("hmm_forward_backward", (weight, False)),
        ("hmm_forward_backward", (weight, True)),
        ("hmm_filter", ()),
        ("hmm_viterbi", ()),
        ("hmm_sample_paths", (3, 2)),
    ):
        torch.library.opcheck(getattr(torch.ops.evidens, name).default, (*inner, *more))


@pytest.mark.parametrize("op", PUBLIC)
def test_meta_tensors_have_shapes_and_no_values(op):
    case = hmm(3, 5, 4, F64)
    want = call(op, *case.tensors)
    got = call(op, *(t.to("meta") for t in case.tensors))
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want))):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.shape, a.dtype, a.device.type) == (b.shape, b.dtype, "meta")


@pytest.mark.parametrize("op", PUBLIC)
def test_autocast_computes_in_float32(op):
    case = hmm(3, 5, 4, F32)
    kwargs = {"state": torch.rand(3, 4)} if op == "hmm_filter" else {}
    want = call(op, *case.tensors, **kwargs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = call(op, *case.tensors, **kwargs)
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want))):
        assert (a is None and b is None) or torch.equal(a, b)


def test_lazily_negated_tensors():
    """Their memory holds the other sign: the direct path past the dispatcher must not read it."""
    case = hmm(3, 5, 4, F32)
    x = torch.complex(torch.zeros_like(case.log_obs), -case.log_obs).conj().imag
    assert x.is_neg()
    for op in PUBLIC:
        got, want = call(op, x, *case.tensors[1:]), call(op, *case.tensors)
        for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want))):
            assert (a is None and b is None) or torch.equal(a, b)


def test_inference_mode_first():
    """What a call under inference_mode leaves behind serves a call with gradients."""
    shape = (3, 11, 2)  # a shape that no other test has
    case = hmm(*shape, F64)
    with torch.inference_mode():
        ops.hmm_log_likelihood(*case.tensors)
    inputs = leaves(case)
    ops.hmm_log_likelihood(*inputs).sum().backward()
    assert inputs[0].grad.isfinite().all()
