"""The ops under torch.compile, torch.func and forward-mode AD: right, or a clear error."""

from __future__ import annotations

import shutil

import pytest
import torch
from ops.gmm_cases import OPS, TYPES, as_tuple, mixture
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import evidens
from evidens import ops, reference

DIFFERENTIABLE = OPS[:2]
WITHOUT_GRADIENT = OPS[2:]


def case_of(covariance_type, n=6, d=3, k=2, seed=0):
    return mixture(n, d, k, covariance_type, torch.float64, below=0.0, seed=seed)


def in_x(module, op, case):
    """`op` of `module` as a function of x alone."""
    position = case.arguments(op)[1:]
    return lambda x: getattr(module, op)(x, *position)


def assert_close(actual, expected):
    for a, e in zip(as_tuple(actual), as_tuple(expected)):
        # Two float64 computations of a few dozen terms of order one to ten.
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-11)


@pytest.fixture(params=TYPES)
def covariance_type(request):
    return request.param


@pytest.fixture(params=DIFFERENTIABLE)
def op(request):
    return request.param


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda f, backend="aot_eager": torch.compile(f, backend=backend, fullgraph=True)
    torch._dynamo.reset()


# --- torch.compile --------------------------------------------------------------------------------


def forward_and_backward(op, case):
    def function(x, log_weights, means, p):
        # Something to fuse on both sides of the op.
        return getattr(ops, op)(2 * x, log_weights, means, p.sin() + 2, "diag").sin()

    leaves = [t.detach().clone().requires_grad_() for t in (case.x, *case.parameters[:3])]
    return function, leaves


def assert_compiles(function, leaves, compile_):
    want = function(*leaves)
    cotangent = torch.linspace(-1, 1, want.numel(), dtype=want.dtype).view_as(want)
    want_gradients = torch.autograd.grad(want, leaves, cotangent)
    got = compile_(function)(*leaves)
    assert_close(got, want)
    assert_close(torch.autograd.grad(got, leaves, cotangent), want_gradients)


def test_compile_forward_and_backward(op, compiled):
    assert_compiles(*forward_and_backward(op, case_of("diag")), compiled)


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_compile_with_inductor(compiled):
    function, leaves = forward_and_backward("gmm_log_prob", case_of("diag"))
    assert_compiles(function, leaves, lambda f: compiled(f, "inductor"))


def test_compile_ops_without_gradient(covariance_type, compiled):
    case = case_of(covariance_type)
    weight, labels = torch.rand(6).double(), torch.tensor([-1, 0, 1, -1, 1, 0])

    def function(x, r, weight, labels):
        return (
            *ops.gmm_statistics(x + 1, *case.parameters, weight, labels),
            *ops.gmm_moments(x + 1, r, case.means, covariance_type),
            ops.gmm_input_gradient(x + 1, r, *case.parameters[1:]),
            ops.gmm_log_prob(x + 1, *case.parameters),
        )

    arguments = case.x, case.responsibilities, weight, labels
    assert_close(compiled(function)(*arguments), function(*arguments))


def test_compile_with_dynamic_rows(compiled):
    case = case_of("full")
    function = in_x(ops, "gmm_log_prob", case)
    fast = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (6, 9, 17, 1):
        x = torch.randn(n, 3, dtype=torch.float64)
        assert_close(fast(x), function(x))


@pytest.mark.parametrize("transform", [grad, lambda f: vmap(grad(lambda x: f(x[None])))])
def test_compiled_functorch_gradients_take_the_reference(transform, compiled):
    """torch.compile of functorch's grad over a custom backward gives zeros without an error."""
    case = case_of("full")

    def gradient(x):
        return transform(lambda x: in_x(ops, "gmm_log_prob", case)(x).sum())(x)

    got = compiled(gradient)(case.x)
    x = case.x.clone().requires_grad_()
    reference.gmm.gmm_log_prob(x, *case.parameters).sum().backward()
    assert x.grad.abs().min() > 0
    assert_close(got, x.grad)


@pytest.mark.parametrize("label", [-2, 2])
def test_compiled_labels_out_of_range_are_an_error(label, compiled):
    """Tracing sees no values, so the check must be made when the compiled code runs."""
    case = case_of("diag")
    labels = torch.full((6,), label)
    function = compiled(lambda x, t: ops.gmm_statistics(x, *case.parameters, None, t))
    with pytest.raises((ValueError, RuntimeError), match="labels"):
        function(case.x, labels)


# --- vmap -----------------------------------------------------------------------------------------


def stacked(op, cases):
    loop = [as_tuple(getattr(ops, op)(*c.arguments(op))) for c in cases]
    return tuple(torch.stack(results) for results in zip(*loop))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("mapped", ["rows", "one parameter", "all"])
def test_vmap(name, mapped, covariance_type):
    cases = [case_of(covariance_type, seed=s) for s in range(3)]
    if mapped != "all":
        shared = {"rows": ("x", "responsibilities"), "one parameter": ("means",)}[mapped]
        cases = [cases[0].with_(**{k: getattr(c, k) for k in shared}) for c in cases]
    columns = list(zip(*(c.arguments(name) for c in cases)))
    same = [all(v is column[0] for v in column) for column in columns]
    in_dims = tuple(None if s else 0 for s in same)
    arguments = [c[0] if s else torch.stack(c) for c, s in zip(columns, same)]
    assert_close(vmap(getattr(ops, name), in_dims)(*arguments), stacked(name, cases))


def test_vmap_over_another_axis_and_nested(op, covariance_type):
    case = case_of(covariance_type, n=6)
    function, x = in_x(ops, op, case), torch.randn(6, 3, 4, 2, dtype=torch.float64)
    got = vmap(vmap(function, in_dims=2), in_dims=3)(x)
    assert got.shape[:2] == (2, 4)
    for i in range(2):
        for j in range(4):
            assert_close(got[i, j], function(x[:, :, j, i].contiguous()))


def test_vmap_over_single_rows(op, covariance_type):
    case = case_of(covariance_type)
    function = in_x(ops, op, case)
    assert_close(vmap(lambda row: function(row[None])[0])(case.x), function(case.x))


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3)], ids=str)
def test_vmap_over_nothing(op, shape):
    function = in_x(ops, op, case_of("diag"))
    got = vmap(function)(torch.zeros(shape, dtype=torch.float64))
    assert got.shape[:2] == shape[:2]


def test_vmap_over_weights_and_labels():
    case = case_of("diag")
    weights = torch.rand(3, 6, dtype=torch.float64)
    labels = torch.randint(-1, 2, (3, 6))

    def function(weight, labels):
        return ops.gmm_statistics(case.x, *case.parameters, weight, labels)

    want = zip(*(function(w, t) for w, t in zip(weights, labels)))
    assert_close(vmap(function)(weights, labels), tuple(torch.stack(w) for w in want))


# --- torch.func and forward mode ------------------------------------------------------------------


def test_reverse_mode(op, covariance_type):
    case = case_of(covariance_type)
    got, want = (in_x(module, op, case) for module in (ops, reference.gmm))
    assert_close(jacrev(got)(case.x), jacrev(want)(case.x))
    assert_close(
        grad(lambda x: got(x).sin().sum())(case.x), grad(lambda x: want(x).sin().sum())(case.x)
    )
    for f, g in [(got, want)]:
        (y, pull), (z, other) = vjp(f, case.x), vjp(g, case.x)
        assert_close(pull(torch.cos(y)), other(torch.cos(z)))


def test_jacobian_in_the_parameters(op, covariance_type):
    case = case_of(covariance_type)
    arguments = case.x, *case.parameters[:3]
    got, want = (
        jacrev(lambda *a, m=module: getattr(m, op)(*a, covariance_type), argnums=(0, 1, 2, 3))
        for module in (ops, reference.gmm)
    )
    assert_close(got(*arguments), want(*arguments))


def test_gradient_of_each_row(op, covariance_type):
    case = case_of(covariance_type)
    for mapped in (None, 0):
        means = case.means if mapped is None else torch.stack([case.means + s for s in range(6)])

        def total(x, means, module):
            _, log_weights, _, p = case.x, *case.parameters[:3]
            return getattr(module, op)(x[None], log_weights, means, p, covariance_type).sum()

        got, want = (
            vmap(grad(lambda x, m, module=module: total(x, m, module)), (0, mapped))(case.x, means)
            for module in (ops, reference.gmm)
        )
        assert_close(got, want)


def test_forward_mode(op, covariance_type):
    case = case_of(covariance_type)
    got, want = (in_x(module, op, case) for module in (ops, reference.gmm))
    tangent = torch.randn_like(case.x)
    assert_close(jvp(got, (case.x,), (tangent,))[1], jvp(want, (case.x,), (tangent,))[1])
    assert_close(jacfwd(got)(case.x), jacfwd(want)(case.x))
    with forward_ad.dual_level():
        y = forward_ad.unpack_dual(got(forward_ad.make_dual(case.x, tangent)))
    assert_close(y.tangent, jvp(want, (case.x,), (tangent,))[1])


def test_hessian_forward_over_reverse(covariance_type):
    case = case_of(covariance_type)
    got, want = (in_x(module, "gmm_log_prob", case) for module in (ops, reference.gmm))
    assert_close(hessian(lambda x: got(x).sum())(case.x), hessian(lambda x: want(x).sum())(case.x))


def test_second_reverse_derivative_is_a_clear_error(op):
    case = case_of("full")
    function = in_x(ops, op, case)
    with pytest.raises(RuntimeError, match=rf"evidens\.{op}: second derivatives"):
        grad(lambda x: grad(lambda x: function(x).sum())(x).sum())(case.x)


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
@pytest.mark.parametrize("entry", ["make_dual", "jvp", "grad", "vjp"])
def test_ops_without_gradient_drop_no_tangent(name, entry, covariance_type):
    """Right, or an error that says what to do; never a silent zero."""
    case = case_of(covariance_type)
    got, want = (in_x(module, name, case) for module in (ops, reference.gmm))
    tangent = torch.ones_like(case.x)

    def derivative(function):
        if entry == "jvp":
            return jvp(function, (case.x,), (tangent,))[1]
        if entry == "vjp":
            y, pull = vjp(function, case.x)
            return pull(y)
        if entry == "grad":
            return grad(lambda x: sum(t.sum() for t in as_tuple(function(x))))(case.x)
        with forward_ad.dual_level():
            y = as_tuple(function(forward_ad.make_dual(case.x, tangent)))
            return tuple(forward_ad.unpack_dual(t).tangent for t in y)

    try:
        actual = derivative(got)
    except RuntimeError as error:
        assert f"evidens.{name} offers no gradient" in str(error)  # noqa: PT017
        return
    for a, e in zip(as_tuple(actual), as_tuple(derivative(want))):
        if e is not None:
            assert a is not None, "the tangent is lost"
            assert_close(a, e)


def test_tangents_under_the_reference_backend():
    case = case_of("full")
    tangent = torch.ones_like(case.x)
    want = jvp(in_x(reference.gmm, "gmm_log_prob", case), (case.x,), (tangent,))[1]
    with evidens.backend("reference"):
        got = jvp(in_x(ops, "gmm_log_prob", case), (case.x,), (tangent,))[1]
    assert_close(got, want)
