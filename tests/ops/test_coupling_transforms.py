"""The coupling ops under torch.compile, torch.func and forward-mode AD, and their registrations."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from ops.coupling_cases import MAP_IDS, MAPS, coupling, run
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap

import evidens
from evidens import ops, reference

each_direction = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def assert_close(actual, expected):
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-11)


def linear_arguments(n=4, c=3, places=(), seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = (n, c, *places), (c, c), (c, c), (c,), (c,)
    x, lower, upper, log, bias = (torch.randn(s, generator=g, dtype=torch.float64) for s in sizes)
    return x, lower, upper, 0.3 * log, bias


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda f, backend="aot_eager": torch.compile(f, backend=backend, fullgraph=True)
    torch._dynamo.reset()


# --- registrations --------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["all", "shuffled", "none"])
@pytest.mark.parametrize("places", [(), (2, 3)], ids=str)
def test_opcheck(pattern, places):
    inner, backward = torch.ops.evidens.affine_coupling, torch.ops.evidens.affine_coupling_backward
    x, scale, shift, active, *rest = coupling(5, 6, places, pattern, "tanh").inner
    for s, t in ((scale, shift), (None, shift), (scale, None)):
        torch.library.opcheck(inner.default, (x, s, t, active, *rest))
    gy, gl = torch.randn_like(x), torch.randn(5, dtype=x.dtype)
    for grads, needs in (
        ((gy, gl), (True, True, True)),
        ((gy, None), (False, True, False)),
        ((None, gl), (True, False, True)),
    ):
        torch.library.opcheck(backward.default, (x, scale, shift, active, *grads, *rest, *needs))


@each_direction
def test_opcheck_without_rows(inverse):
    case = coupling(0, 6, (2,), "even", "exp", None, inverse)
    x, scale, shift, *rest = case.with_(scale=case.scale.clone(), shift=case.shift.clone()).inner
    torch.library.opcheck(torch.ops.evidens.affine_coupling.default, (x, scale, shift, *rest))
    more = (rest[0], x, x.new_zeros(0), *rest[1:], True, True, True)
    backward = torch.ops.evidens.affine_coupling_backward.default
    torch.library.opcheck(backward, (x, scale, shift, *more))


@each_direction
@pytest.mark.parametrize("shape", [(0, 3), (4, 3), (4, 3, 2, 5)], ids=str)
def test_opcheck_actnorm(shape, inverse):
    x, p, q = torch.randn(shape), torch.randn(3), torch.randn(3)
    torch.library.opcheck(torch.ops.evidens.actnorm.default, (x, p, q, inverse))
    for need in (False, True):
        given = (x, p, q, torch.randn(shape), inverse, need)
        torch.library.opcheck(torch.ops.evidens.actnorm_backward.default, given)


def test_opcheck_of_strided_arguments():
    x, both = torch.randn(6, 9).T, torch.randn(9, 6)
    arguments = (x, both[:, ::2], both[:, 1::2], torch.tensor([5, 0, 2]), 0, 0.0, False)
    torch.library.opcheck(torch.ops.evidens.affine_coupling.default, arguments)


def test_meta_tensors_have_shapes_and_no_values(recwarn):
    case = coupling(4, 6, (3,))
    meta = case.with_(**{k: getattr(case, k).to("meta") for k in ("x", "scale", "shift", "active")})
    y, logdet = run(ops, meta)
    assert (y.shape, y.device.type, logdet.shape) == (case.x.shape, "meta", (4,))
    y, logdet = ops.actnorm(meta.x, *torch.zeros(2, 6, dtype=torch.float64, device="meta"))
    assert (y.shape, y.device.type, logdet.shape) == (case.x.shape, "meta", (4,))
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.parametrize("name", ["affine_coupling", "actnorm"])
def test_the_choice_of_backend(name, monkeypatch):
    case = coupling(3, 4)
    call = {
        "affine_coupling": lambda: run(ops, case),
        "actnorm": lambda: ops.actnorm(case.x, case.x[0], case.x[1]),
    }[name]
    want = call()
    for other in ("coupling", "actnorm"):
        monkeypatch.setattr(
            evidens._native.library, other, lambda *a: pytest.fail("compiled kernel")
        )
    with pytest.raises(pytest.fail.Exception, match="compiled kernel"):
        call()
    with evidens.backend("reference"):
        assert_close(call(), want)
    with evidens.backend("cuda"), pytest.raises(evidens.BackendError, match="no cuda kernel"):
        call()


def test_autocast_computes_in_float32():
    x, *rest = (t.float() for t in linear_arguments())
    case = coupling(3, 4, dtype=torch.float32)
    plain = (*run(ops, case), *ops.invertible_linear(x, *rest[:3], bias=rest[3]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = (*run(ops, case), *ops.invertible_linear(x, *rest[:3], bias=rest[3]))
    for a, b in zip(cast, plain):
        assert a.dtype is torch.float32
        assert torch.equal(a, b)


# --- torch.compile --------------------------------------------------------------------------------


def layer(case):
    def call(x, scale, shift):
        # Something to fuse on both sides of the op.
        y, logdet = run(ops, case, (2 * x, scale.sin(), shift + 1))
        return y.sin(), logdet * 2

    return call


def assert_compiles(function, leaves, compile_):
    want = function(*leaves)
    cotangents = [torch.linspace(-1, 1, w.numel()).to(w).view_as(w) for w in want]
    want_gradients = torch.autograd.grad(want, leaves, cotangents)
    got = compile_(function)(*leaves)
    assert_close(got, want)
    assert_close(torch.autograd.grad(got, leaves, cotangents), want_gradients)


@pytest.mark.parametrize(("scale_map", "clamp"), MAPS, ids=MAP_IDS)
def test_compile_forward_and_backward(scale_map, clamp, compiled):
    case = coupling(4, 6, (), "shuffled", scale_map, clamp, scale_map > "exp")
    assert_compiles(layer(case), case.leaves(), compiled)


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_compile_with_inductor(compiled):
    case = coupling(4, 6)
    assert_compiles(layer(case), case.leaves(), lambda f: compiled(f, "inductor"))


@each_direction
def test_compile_actnorm_and_linear(inverse, compiled):
    x, lower, upper, log, bias = (t.requires_grad_() for t in linear_arguments(places=(2,)))
    permutation = torch.tensor([2, 0, 1])

    def call(x, lower, upper, log, bias):
        y, first = ops.actnorm(2 * x, log, bias, inverse=inverse)
        y, second = ops.invertible_linear(
            y, lower, upper, log, permutation=permutation, bias=bias, inverse=inverse
        )
        return y.sin(), first + second

    assert_compiles(call, (x, lower, upper, log, bias), compiled)


def test_compile_with_dynamic_rows(compiled):
    def call(x, scale, shift):
        return ops.affine_coupling(x, scale, shift, active=torch.tensor([0, 3]))

    fast = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (6, 9, 17, 1):
        x = torch.randn(n, 4, dtype=torch.float64)
        assert_close(fast(x, x[:, :2], x[:, 2:]), call(x, x[:, :2], x[:, 2:]))


def test_compiled_indices_out_of_range_are_an_error(compiled):
    """Tracing sees no values, so the check must be made when the compiled code runs."""
    x = torch.randn(3, 4)
    function = compiled(lambda x, a: ops.affine_coupling(x, None, x[:, :1], active=a))
    with pytest.raises((ValueError, RuntimeError), match="active"):
        function(x, torch.tensor([4]))


@each_direction
def test_compiled_functorch_gradients_take_the_reference(inverse, compiled):
    case = coupling(4, 6, (), "even", "atan", None, inverse)

    def total(x):
        y, logdet = run(ops, case.with_(x=x))
        return y.sin().sum() + logdet.sum()

    assert_close([compiled(grad(total))(case.x)], [grad(total)(case.x)])


# --- torch.func -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", ["x", "scale", "shift", "all", "active"])
@pytest.mark.parametrize("places", [(), (3,)], ids=str)
@each_direction
def test_vmap(mapped, places, inverse):
    cases = [coupling(4, 6, places, "shuffled", "tanh", None, inverse, seed=s) for s in range(3)]
    cases[1] = cases[1].with_(active=torch.tensor([5, 4, 3, 0]))
    names = ("x", "scale", "shift", "active") if mapped == "all" else (mapped,)
    cases = [cases[0].with_(**{k: getattr(c, k) for k in names}) for c in cases]

    def call(x, scale, shift, active):
        return run(ops, cases[0].with_(x=x, scale=scale, shift=shift, active=active))

    columns = list(zip(*((*c.tensors, c.active) for c in cases)))
    same = [all(v is column[0] for v in column) for column in columns]
    arguments = [c[0] if s else torch.stack(c) for c, s in zip(columns, same)]
    got = vmap(call, tuple(None if s else 0 for s in same))(*arguments)
    want = [torch.stack(w) for w in zip(*(run(ops, c) for c in cases))]
    assert_close(got, want)


def test_vmap_over_other_axes_rows_and_nothing():
    case = coupling(4, 6)
    x = torch.randn(4, 6, 3, 2, dtype=torch.float64)
    y, _ = vmap(vmap(lambda x: run(ops, case.with_(x=x)), in_dims=2), in_dims=3)(x)
    for i in range(2):
        for j in range(3):
            assert_close([y[i, j]], run(ops, case.with_(x=x[:, :, j, i])))
    rows = vmap(lambda *t: tuple(r[0] for r in run(ops, case, tuple(a[None] for a in t))))
    assert_close(rows(*case.tensors), run(ops, case))
    y, logdet = vmap(lambda x: run(ops, case.with_(x=x)))(x.new_zeros(0, 4, 6))
    assert (y.shape, logdet.shape) == ((0, 4, 6), (0, 4))


@each_direction
@pytest.mark.parametrize("pattern", ["all", "second", "shuffled"])
def test_jacobians(pattern, inverse):
    case = coupling(2, 4, (), pattern, "sigmoid", None, inverse)

    def call(module):
        return lambda *tensors: run(module, case, tensors)

    for transform in (jacrev, jacfwd):
        got = transform(call(ops), argnums=(0, 1, 2))(*case.tensors)
        want = transform(call(reference.coupling), argnums=(0, 1, 2))(*case.tensors)
        for a, b in zip(got, want):
            assert_close(a, b)
    x = case.x.clone()
    (_, pull), (_, other) = (
        vjp(lambda x, m=m: call(m)(x, *case.tensors[1:]), x) for m in (ops, reference.coupling)
    )
    cotangents = torch.randn_like(x), torch.randn(2, dtype=x.dtype)
    assert_close(pull(cotangents), other(cotangents))


def test_gradient_of_each_row():
    case = coupling(5, 6, (), "even", "softplus")

    def total(x, scale, shift, module):
        y, logdet = run(module, case, (x[None], scale[None], shift[None]))
        return y.sin().sum() + logdet.sum()

    got, want = (
        vmap(grad(lambda *t, m=module: total(*t, m), argnums=(0, 1, 2)))(*case.tensors)
        for module in (ops, reference.coupling)
    )
    assert_close(got, want)


def test_forward_mode():
    case = coupling(4, 6, (), "shuffled", "bounded_exp")
    tangents = tuple(torch.randn_like(t) for t in case.tensors)
    got, want = (
        jvp(lambda *t, m=m: run(m, case, t), case.tensors, tangents)
        for m in (ops, reference.coupling)
    )
    assert_close(got[1], want[1])


@each_direction
def test_actnorm_under_torch_func(inverse):
    x, log, shift = torch.randn(4, 3, 2).double(), torch.randn(3).double(), torch.randn(3).double()

    def call(module):
        return lambda *t: module.actnorm(*t, inverse=inverse)

    got = jacrev(call(ops), argnums=(0, 1, 2))(x, log, shift)
    want = jacrev(call(reference.coupling), argnums=(0, 1, 2))(x, log, shift)
    for a, b in zip(got, want):
        assert_close(a, b)
    many = torch.randn(5, 4, 3, 2).double()
    for in_dims, given in (((0, None, None), (many, log, shift)), ((0, 0, 0), None)):
        given = given or (many, torch.randn(5, 3).double(), torch.randn(5, 3).double())
        got = vmap(call(ops), in_dims)(*given)
        rows = [
            call(ops)(*(g if d is None else g[i] for g, d in zip(given, in_dims))) for i in range(5)
        ]
        assert_close(got, [torch.stack(r) for r in zip(*rows)])
    tangents = tuple(torch.ones_like(t) for t in (x, log, shift))
    assert_close(
        jvp(call(ops), (x, log, shift), tangents)[1],
        jvp(call(reference.coupling), (x, log, shift), tangents)[1],
    )


@each_direction
def test_linear_under_torch_func(inverse):
    x, lower, upper, log, bias = linear_arguments()

    def call(x, lower, upper, log, bias):
        return ops.invertible_linear(x, lower, upper, log, bias=bias, inverse=inverse)

    jacobian = jacrev(call)(x, lower, upper, log, bias)[0]
    size = x.shape[1]
    weight = torch.stack([jacobian[i, :, i] for i in range(len(x))])
    want = call(x, lower, upper, log, bias)[1]
    torch.testing.assert_close(torch.linalg.slogdet(weight)[1], want, rtol=1e-12, atol=1e-12)
    assert weight.shape == (4, size, size)
    many = torch.stack([x, 2 * x])
    y, _ = vmap(lambda x: call(x, lower, upper, log, bias))(many)
    assert_close([y[1]], [call(2 * x, lower, upper, log, bias)[0]])
    assert math.isfinite(
        jvp(call, (x, lower, upper, log, bias), (x, lower, upper, log, bias))[1][1][0]
    )
