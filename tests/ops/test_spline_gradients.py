"""Gradients of the spline ops, and the ops under torch.compile, torch.func and forward mode."""

from __future__ import annotations

import functools
import shutil

import pytest
import torch
from ops.spline_cases import F32, F64, MIX, NAMES, PARAMETERS, TAILS, coupling, op, spline
from torch.func import grad, jacfwd, jacrev, jvp, vmap

import evidens
from evidens import ops

ACTIVE = torch.tensor([3, 0, 5])


@pytest.fixture(params=PARAMETERS)
def parameters(request):
    return request.param


@pytest.fixture(params=(*TAILS, MIX), ids=lambda t: t if isinstance(t, str) else "mixed")
def tails(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["forward", "inverse"])
def inverse(request):
    return request.param


def make(n, d, bins, parameters, tails, dtype=F64, **more):
    bound = None if parameters == "knots" else 2.0
    return spline(n, d, bins, parameters, tails, dtype, bound=bound, **more)


def elementwise(case, inverse, *tensors):
    """Both results, without what lies beyond a spline that has no tails."""
    y, logdet = op(case.with_(**dict(zip(NAMES, tensors))), inverse)
    there = logdet.isfinite()
    return torch.where(there, y, 0.0), torch.where(there, logdet, 0.0)


def layer(case, inverse, x, params, active=ACTIVE):
    return ops.spline_coupling(
        x, params, active=active, bins=case.bins, inverse=inverse, **case.keywords
    )


def coupled(parameters, inverse=False, n=4, tails="linear", dtype=F64):
    """``(function, x, params)`` of a coupling layer on three of six features."""
    case = make(n, 3, 4, parameters, tails, dtype)
    x = 2 * torch.randn(n, 6, dtype=dtype)
    return functools.partial(layer, case, inverse), x, case.params


def together(results, weights):
    return sum((r * w).sum() for r, w in zip(results, weights))


def assert_close(got, want, tolerance=1e-10):
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- gradients ------------------------------------------------------------------------------------


def test_gradcheck(parameters, tails, inverse):
    case = make(3, 5, 4, parameters, tails)
    function = functools.partial(elementwise, case, inverse)
    assert torch.autograd.gradcheck(function, case.leaves())


def test_gradcheck_of_a_layer(parameters, inverse):
    function, x, params = coupled(parameters, inverse)
    assert torch.autograd.gradcheck(function, (x.requires_grad_(), params.requires_grad_()))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("which", ["y", "logdet", "both"])
def test_equals_the_gradient_of_the_reference(parameters, tails, inverse, which, dtype):
    """With each result alone and with both, on more than a vector of elements."""
    case = make(19, 5, 6, parameters, tails, dtype, seed=1)

    def gradients(case, name):
        leaves = case.leaves()
        with evidens.backend(name):
            results = elementwise(case, inverse, *leaves)
        g = torch.Generator().manual_seed(2)
        weights = torch.randn(2, 19, 5, generator=g, dtype=F64).to(case.x.dtype)
        if which != "both":
            results = (results[which == "logdet"],)
        return torch.autograd.grad(together(results, weights), leaves)

    got, want = gradients(case, "cpu"), gradients(case.to(F64), "reference")
    for a, b in zip(got, want):
        assert a.dtype is dtype
        # First derivatives of logdet are second ones of y: relative to the greatest of them.
        scale = 1 + b.abs().amax() if b.numel() else 1.0
        assert ((a.double() - b).abs() <= 512 * torch.finfo(dtype).eps * scale).all()


def test_gradient_of_passive_features(inverse):
    function, x, params = coupled("nflows", inverse)
    x.requires_grad_()
    y, logdet = function(x, params)
    passive = [i for i in range(6) if i not in ACTIVE]
    assert torch.equal(y[:, passive], x[:, passive])
    weights = torch.randn_like(y)
    (gradient,) = torch.autograd.grad((y * weights).sum() + logdet.sum(), x)
    assert torch.equal(gradient[:, passive], weights[:, passive])


def test_needed_gradients_alone(parameters, inverse):
    case = make(9, 5, 4, parameters, "linear")
    leaves = case.leaves()
    total = sum(r.sum() for r in op(case.with_(**dict(zip(NAMES, leaves))), inverse))
    want = torch.autograd.grad(total, leaves)
    for i, name in enumerate(NAMES):
        leaf = getattr(case, name).clone().requires_grad_()
        total = sum(r.sum() for r in op(case.with_(**{name: leaf}), inverse))
        assert torch.equal(torch.autograd.grad(total, leaf)[0], want[i])


def test_expanded_parameters_get_the_sum(inverse):
    case = make(9, 5, 4, "nflows", "linear")
    shared = [t[0].clone().requires_grad_() for t in case.tensors[1:]]
    repeated = [t.detach().repeat(9, 1, 1).requires_grad_() for t in shared]

    def gradients(leaves):
        results = ops.rational_quadratic_spline(case.x, *leaves, inverse=inverse, **case.keywords)
        return torch.autograd.grad(sum(r.sum() for r in results), leaves)

    assert_close(gradients(shared), [g.sum(0) for g in gradients(repeated)])


def test_second_derivative_is_a_clear_error_and_the_reference_has_it(inverse):
    function, x, params = coupled("nflows", inverse)
    x.requires_grad_()
    first = torch.autograd.grad(function(x, params)[1].sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"second derivatives.*reference"):
        first.sum().backward()
    with evidens.backend("reference"):
        first = torch.autograd.grad(function(x, params)[1].sum(), x, create_graph=True)[0]
    assert torch.autograd.grad(first.sum(), x)[0].abs().amax() > 0


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_get_gradients_of_their_own(half, inverse):
    case = make(9, 5, 4, "nflows", "linear", F32).to(half)
    leaves = case.leaves()
    total = sum(r.sum() for r in op(case.with_(**dict(zip(NAMES, leaves))), inverse))
    assert all(g.dtype is half for g in torch.autograd.grad(total, leaves))


# --- the Jacobian ---------------------------------------------------------------------------------


def test_logdet_is_slogdet_of_the_jacobian(parameters, inverse):
    function, x, params = coupled(parameters, inverse, n=6)
    for backend in ("cpu", "reference"):
        with evidens.backend(backend):
            _, logdet = function(x, params)
            jacobian = jacrev(lambda x: function(x, params)[0].sum(0))(x).movedim(1, 0)
        sign, volume = torch.linalg.slogdet(jacobian)
        assert (sign == 1).all()
        torch.testing.assert_close(volume, logdet, rtol=0, atol=1e-11)


def test_jacrev_jacfwd_and_vmap_of_rows(parameters, inverse):
    function, x, params = coupled(parameters, inverse)

    def row(x, params):
        y, logdet = function(x[None], params[None])
        return y[0], logdet[0]

    assert_close(vmap(row)(x, params), function(x, params))
    for which in (0, 1):
        reverse = vmap(jacrev(row, argnums=which))(x, params)
        with evidens.backend("reference"):
            assert_close(reverse, vmap(jacrev(row, argnums=which))(x, params))
        assert_close(reverse, vmap(jacfwd(row, argnums=which))(x, params))


def test_forward_mode(parameters, inverse):
    function, x, params = coupled(parameters, inverse)
    tangents = torch.randn_like(x), torch.randn_like(params)
    got = jvp(function, (x, params), tangents)[1]
    with evidens.backend("reference"):
        assert_close(got, jvp(function, (x, params), tangents)[1])


@pytest.mark.parametrize("mapped", ["all", "x", "params"])
def test_vmap(mapped, parameters, inverse):
    cases = [make(4, 5, 3, parameters, "linear", seed=s) for s in range(3)]
    stacked = [torch.stack(t) for t in zip(*(c.tensors for c in cases))]
    in_dims = {"all": (0,) * 4, "x": (0, None, None, None), "params": (None, 0, 0, 0)}[mapped]
    given = [t if d == 0 else t[0] for t, d in zip(stacked, in_dims)]
    call = functools.partial(elementwise, cases[0], inverse)
    want = [call(*(t[i] if d == 0 else t for t, d in zip(given, in_dims))) for i in range(3)]
    assert_close(vmap(call, in_dims)(*given), [torch.stack(r) for r in zip(*want)])


def test_gradient_under_vmap(inverse):
    function, x, params = coupled("nflows", inverse)

    def total(x, params):
        y, logdet = function(x[None], params[None])
        return y.sin().sum() + logdet.sum()

    got = vmap(grad(total, (0, 1)))(x, params)
    leaves = [x.requires_grad_(), params.requires_grad_()]
    y, logdet = function(*leaves)
    assert_close(got, torch.autograd.grad(y.sin().sum() + logdet.sum(), leaves))


# --- torch.compile and the dispatcher -------------------------------------------------------------


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda f, **more: torch.compile(f, **(dict(backend="aot_eager", fullgraph=True) | more))
    torch._dynamo.reset()


def assert_compiles(function, leaves, compile_):
    want = function(*leaves)
    weights = [torch.randn_like(r) for r in want]
    gradients = torch.autograd.grad(together(want, weights), leaves)
    got = compile_(function)(*leaves)
    assert_close(got, want)
    assert_close(torch.autograd.grad(together(got, weights), leaves), gradients)


@pytest.mark.parametrize("tails", ["linear", "none"])
def test_compile(parameters, tails, inverse, compiled):
    case = make(4, 3, 4, parameters, tails)
    case = case.with_(x=case.x.clamp(-0.5, 0.5))
    assert_compiles(functools.partial(elementwise, case, inverse), case.leaves(), compiled)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_a_layer(backend, inverse, compiled):
    if backend == "inductor" and shutil.which("c++") is None:
        pytest.skip("inductor needs a C++ compiler")
    function, x, params = coupled("nflows", inverse)
    leaves = [x.requires_grad_(), params.requires_grad_()]

    def around(x, params):
        y, logdet = function(2 * x, params.sin())
        return y.cos(), logdet + 1

    assert_compiles(around, leaves, functools.partial(compiled, backend=backend))


def test_compile_with_dynamic_rows(compiled):
    case = make(1, 3, 4, "nflows", "linear")
    fast = compiled(functools.partial(layer, case, False), dynamic=True)
    for n in (6, 9, 17, 1):
        function, x, params = coupled("nflows", n=n)
        assert_close(fast(x, params), function(x, params))


def inner_arguments(case, inverse):
    parameters, codes, box, options = case.inner()
    return PARAMETERS.index(parameters), codes, box, options, inverse


@pytest.mark.parametrize("n", [0, 4])
def test_opcheck(n, parameters, tails, inverse):
    case = make(n, 5, 3, parameters, tails)
    rest = inner_arguments(case, inverse)
    inner = torch.ops.evidens.rational_quadratic_spline.default
    torch.library.opcheck(inner, (*case.tensors, *rest))
    inner = torch.ops.evidens.rational_quadratic_spline_backward.default
    for grads in ((case.x, None), (None, case.x), (case.x, case.x.clone())):
        torch.library.opcheck(inner, (*case.tensors, *grads, *rest))


@pytest.mark.parametrize("n", [0, 4])
def test_opcheck_of_a_layer(n, parameters, inverse):
    case = make(n, 3, 3, parameters, "linear")
    x, rest = torch.randn(n, 6, dtype=F64), inner_arguments(case, inverse)
    for given, active in ((x, ACTIVE), (case.x, None)):
        arguments = given, case.params, active
        torch.library.opcheck(torch.ops.evidens.spline_coupling.default, (*arguments, 3, *rest))
        inner = torch.ops.evidens.spline_coupling_backward.default
        for grads in ((given, None), (None, given[:, 0]), (given, given[:, 0])):
            torch.library.opcheck(inner, (*arguments, *grads, 3, *rest))


def test_meta_tensors_have_shapes_and_no_values(parameters):
    case = make(4, 3, 4, parameters, "linear")
    for function in (op, coupling):
        want = function(case)
        meta = case.with_(**{k: getattr(case, k).to("meta") for k in NAMES})
        for a, b in zip(function(meta), want):
            assert (a.shape, a.dtype, a.device.type) == (b.shape, b.dtype, "meta")


def test_autocast_computes_in_float32():
    case = make(9, 5, 4, "nflows", "linear", F32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = op(case), coupling(case)
    for a, b in zip(got, (op(case), coupling(case))):
        assert all(map(torch.equal, a, b))
