"""The hmm ops in torch: torch.compile, torch.func, forward mode, and the registrations."""

from __future__ import annotations

import shutil

import pytest
import torch
from ops.hmm_cases import (
    DTYPES,
    PUBLIC,
    WITHOUT_GRADIENT,
    answer,
    call,
    formula,
    hmm,
    leaves,
    one_thread,
    poison_padding,
    public,
)
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from evidens import ops

F32, F64 = DTYPES


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():  # results do not depend on it, see test_hmm
        yield


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
        ("hmm_forward_backward", (None, False, False)),
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
