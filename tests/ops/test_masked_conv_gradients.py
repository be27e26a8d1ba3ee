"""The masked ops under autograd, torch.compile and torch.func, and their registrations."""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch
from ops.masked_conv_cases import conv, gradients, linear, run
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, jvp, vmap

import evidens
from evidens import ops, reference

CASES = {
    "A": lambda **o: conv(2, 3, 4, (4, 3), (3, 3), "A", **o),
    "B": lambda **o: conv(2, 3, 4, (2, 3), (3, 5), "B", **o),
    "groups": lambda **o: conv(2, 3, 6, (3, 3), (3, 3), "A", 3, **o),
    "given": lambda **o: conv(1, 2, 3, (3, 3), (1, 3), ((True, False, True),), **o),
    "none": lambda **o: conv(1, 2, 3, (3, 3), (1, 3), ((False,) * 3,), **o),
    "rising": lambda **o: linear(3, 5, 6, "rising", **o),
    "shuffled": lambda **o: linear(3, 5, 6, "shuffled", True, **o),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda f, backend="aot_eager": torch.compile(f, backend=backend, fullgraph=True)
    torch._dynamo.reset()


def function(case, module=ops):
    return lambda *tensors: run(module, case, tensors)


def assert_close(actual, expected):
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-11)


def inner(case):
    """The arguments of the inner op."""
    if case.op == "masked_linear":
        o = case.options
        return (*case.tensors, o["in_degrees"], o["out_degrees"], None, None, o["strict"])
    kernel = case.weight.shape[2:]
    groups = case.options["groups"]
    return (
        *case.tensors,
        *reference.masked_conv.taps_of(case.options["mask"], kernel, groups),
        groups,
    )


def test_gradcheck(case):
    assert gradcheck(function(case), case.leaves())


def test_gradgradcheck_of_the_reference(case):
    with evidens.backend("reference"):
        assert gradgradcheck(function(case), case.leaves())


def test_second_derivative_is_a_clear_error(case):
    leaves = case.leaves()
    y = run(ops, case, leaves)
    first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match=f"evidens.{case.op}: second derivatives.*reference"):
        torch.autograd.grad(sum(g.sum() for g in first), leaves)


def test_the_formula_of_the_gradient(case):
    """The reference's own backward, which a device without kernels runs, against autograd."""
    grad_y = torch.randn(run(ops, case).shape, dtype=torch.float64)
    x, weight, _, *rest = inner(case)
    backward = getattr(torch.ops.evidens, f"{case.op}_backward")
    with evidens.backend("reference"):
        got = backward(x, weight, grad_y, *rest, True, True, True)
    assert_close(got, gradients(reference.masked_conv, case, grad_y))


def test_each_argument_alone(case):
    grad_y = torch.randn(run(ops, case).shape, dtype=torch.float64)
    together = gradients(ops, case, grad_y)
    for needs in itertools.product((False, True), repeat=3):
        if not any(needs):
            continue
        leaves = [t.detach().requires_grad_(n) for t, n in zip(case.tensors, needs)]
        y = run(ops, case, tuple(leaves))
        found = torch.autograd.grad(y, [t for t in leaves if t.requires_grad], grad_y)
        wanted = [g for g, n in zip(together, needs) if n]
        assert all(map(torch.equal, found, wanted))


def test_without_bias(case):
    case = case.with_(bias=None)
    grad_y = torch.randn(run(ops, case).shape, dtype=torch.float64)
    assert_close(gradients(ops, case, grad_y), gradients(reference.masked_conv, case, grad_y))


def test_half_types_get_gradients_of_their_own_dtype():
    for name in CASES:
        case = CASES[name](dtype=torch.float32).to(torch.bfloat16)
        leaves, wide = case.leaves(), case.to(torch.float32).leaves()
        run(ops, case, leaves).sum().backward()
        run(ops, case, wide).sum().backward()
        for t, w in zip(leaves, wide):
            assert t.grad.dtype is torch.bfloat16
            assert torch.equal(t.grad, w.grad.bfloat16())


def test_nothing_but_the_arguments_is_saved(case):
    leaves = case.leaves()
    y = run(ops, case, leaves)
    given = [*leaves, *(t for t in case.options.values() if isinstance(t, torch.Tensor))]
    saved = {t.data_ptr() for t in y.grad_fn.saved_tensors if t is not None}
    assert saved <= {t.data_ptr() for t in given}


# --- registrations --------------------------------------------------------------------------------


def test_opcheck(case):
    arguments = inner(case)
    torch.library.opcheck(getattr(torch.ops.evidens, case.op).default, arguments)
    torch.library.opcheck(
        getattr(torch.ops.evidens, case.op).default, (*arguments[:2], None, *arguments[3:])
    )
    grad_y = torch.randn(run(ops, case).shape, dtype=torch.float64)
    backward = getattr(torch.ops.evidens, f"{case.op}_backward").default
    for needs in ((True, True, True), (True, False, False), (False, True, False)):
        torch.library.opcheck(backward, (*arguments[:2], grad_y, *arguments[3:], *needs))


def test_opcheck_of_nothing():
    case = CASES["A"]()
    case = case.with_(x=case.x[:0])
    torch.library.opcheck(torch.ops.evidens.masked_conv2d.default, inner(case))
    backward = torch.ops.evidens.masked_conv2d_backward.default
    given = (*case.tensors[:2], case.x.new_zeros(0, 4, 4, 3), *inner(case)[3:])
    torch.library.opcheck(backward, (*given, True, True, True))


def test_meta_tensors_have_shapes_and_no_values(case, recwarn):
    options = {
        k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in case.options.items()
    }
    x, weight, bias = (t.to("meta") for t in case.tensors)
    y = run(ops, case.with_(x=x, weight=weight, bias=bias, options=options))
    assert (y.shape, y.device.type) == (run(ops, case).shape, "meta")
    assert [str(w.message) for w in recwarn] == []


def test_the_choice_of_backend(case, monkeypatch):
    want = run(ops, case)
    for name in ("masked_conv", "masked_linear"):
        monkeypatch.setattr(
            evidens._native.library, name, lambda *a: pytest.fail("compiled kernel")
        )
    with pytest.raises(pytest.fail.Exception, match="compiled kernel"):
        run(ops, case)
    with evidens.backend("reference"):
        leaves = case.leaves()
        y = run(ops, case, leaves)
        assert_close([y], [want])
    y.sum().backward()
    with evidens.backend("cuda"), pytest.raises(evidens.BackendError, match="no cuda kernel"):
        run(ops, case)


def test_autocast_computes_in_float32():
    for name in CASES:
        case = CASES[name](dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = run(ops, case)
            with evidens.backend("reference"):
                z = run(ops, case)
        assert y.dtype is z.dtype is torch.float32
        assert torch.equal(y, run(ops, case))
        torch.testing.assert_close(z, y)


# --- torch.compile and torch.func -----------------------------------------------------------------


def test_compile(case, compiled):
    check_compiled(case, compiled, "aot_eager")


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["groups", "shuffled"])
def test_compile_with_inductor(name, compiled):
    check_compiled(CASES[name](), compiled, "inductor")


def check_compiled(case, compiled, backend):
    leaves = case.leaves()

    def call(x, weight, bias):
        return run(ops, case, (2 * x, weight.sin(), bias + 1)).sin()

    want = call(*leaves)
    cotangent = torch.linspace(-1, 1, want.numel(), dtype=want.dtype).view_as(want)
    gradients_wanted = torch.autograd.grad(want, leaves, cotangent)
    got = compiled(call, backend)(*leaves)
    assert_close([got], [want])
    assert_close(torch.autograd.grad(got, leaves, cotangent), gradients_wanted)


def test_compile_with_dynamic_sizes(compiled):
    weight = torch.randn(6, 3, 3, 3, dtype=torch.float64)
    fast = torch.compile(
        lambda x: ops.masked_conv2d(x, weight, mask="B", groups=3) * 2,
        backend="aot_eager",
        fullgraph=True,
        dynamic=True,
    )
    for n, h, w in ((6, 3, 4), (9, 5, 4), (1, 1, 1)):
        x = torch.randn(n, 3, h, w, dtype=torch.float64)
        assert_close([fast(x)], [2 * ops.masked_conv2d(x, weight, mask="B", groups=3)])


def test_compiled_functorch_gradients_take_the_reference(case, compiled):
    def total(x):
        return run(ops, case.with_(x=x)).sin().sum()

    assert_close([compiled(grad(total))(case.x)], [grad(total)(case.x)])


@pytest.mark.parametrize("mapped", ["x", "weight", "bias", "all"])
def test_vmap(mapped, case):
    names = ("x", "weight", "bias")
    chosen = names if mapped == "all" else (mapped,)
    many = {k: torch.stack([(i + 1) * getattr(case, k) for i in range(3)]) for k in chosen}
    arguments = [many.get(k, getattr(case, k)) for k in names]
    got = vmap(function(case), tuple(0 if k in chosen else None for k in names))(*arguments)
    want = [run(ops, case.with_(**{k: many[k][i] for k in chosen})) for i in range(3)]
    assert_close([got], [torch.stack(want)])


def test_gradient_of_each_row(case):
    def total(x, module):
        return run(module, case.with_(x=x[None])).sin().sum()

    got, want = (
        vmap(grad(lambda x, m=m: total(x, m)))(case.x) for m in (ops, reference.masked_conv)
    )
    assert_close([got], [want])


def test_jacobians(case):
    for transform in (jacrev, jacfwd):
        got = transform(function(case), argnums=(0, 1, 2))(*case.tensors)
        want = transform(function(case, reference.masked_conv), argnums=(0, 1, 2))(*case.tensors)
        assert_close(got, want)
    tangents = tuple(torch.randn_like(t) for t in case.tensors)
    got, want = (
        jvp(function(case, m), case.tensors, tangents)[1] for m in (ops, reference.masked_conv)
    )
    assert_close([got], [want])
