"""The logistic mixture's gradient, and the op under torch.compile and torch.func."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from ops.logistic_mixture_cases import CHANNELS, DTYPES, gradient, mixture, run, strided
from torch.func import grad, jacrev, jvp, vjp, vmap

import evidens
from evidens import ops
from evidens.reference import logistic_mixture as reference

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_count = pytest.mark.parametrize("channels", CHANNELS)


def log_prob(x, params, levels=256):
    return ops.logistic_mixture_log_prob(x, params, levels=levels)


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda f, backend="aot_eager": torch.compile(f, backend=backend, fullgraph=True)
    torch._dynamo.reset()


# --- gradients ------------------------------------------------------------------------------------


@each_count
@pytest.mark.parametrize("levels", [2, 3, 40])
@pytest.mark.parametrize("size", [(2, 3, 3), (3, 1, 1), (1, 1, 9)], ids=str)
def test_gradcheck(size, levels, channels):
    case = mixture(size[0], channels, *size[1:], 2, levels, log_scale=-0.5)
    leaf = case.params.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: log_prob(case.x, p, levels), (leaf,))


def test_second_derivatives():
    case = mixture(1, 3, 1, 2, 2, 9, log_scale=-0.5)
    leaf = case.params.requires_grad_()
    (first,) = torch.autograd.grad(log_prob(case.x, leaf, 9).sum(), leaf, create_graph=True)
    with pytest.raises(
        RuntimeError,
        match=r"evidens\.logistic_mixture_log_prob: second derivatives.*reference",
    ):
        torch.autograd.grad(first.sum(), leaf)
    with evidens.backend("reference"):
        assert torch.autograd.gradgradcheck(lambda p: log_prob(case.x, p, 9), (leaf,))


@each_dtype
@each_count
def test_a_clamped_log_scale_has_no_gradient(channels, dtype):
    case = mixture(2, channels, 3, 20, 3, dtype=dtype, log_scale=-7.0)
    raw = reference.split(case.params, channels).raw_log_scales
    # What is just not clamped has one.
    case.x[0, 0, 0, 0] = 100
    terms = reference.split(case.params, channels)
    raw[0, 0, 0, 0, 0], terms.means[0, 0, 0, 0, 0] = -7.0, reference.value(torch.tensor(100.5), 256)
    found = gradient(case, torch.ones(2, 3, 20))
    slopes = reference.split(found, channels).raw_log_scales
    assert 0.2 < (raw < -7).float().mean() < 0.8
    assert (slopes[raw < -7] == 0).all()
    assert slopes[0, 0, 0, 0, 0] != 0


@each_count
def test_gradient_of_the_logits_sums_to_zero(channels):
    case = mixture(2, channels, 3, 20, 4)
    m = case.params.shape[1] // (3 if channels == 1 else 10)
    total = gradient(case, torch.ones(2, 3, 20))[:, :m].sum(1)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-14)


def test_incoming_gradients_of_every_kind():
    case = mixture(3, 3, 4, 17, dtype=torch.float32)
    ones = gradient(case, torch.ones(3, 4, 17))
    leaf = case.params.requires_grad_()
    y = log_prob(case.x, leaf)
    (expanded,) = torch.autograd.grad(y.sum(), leaf, retain_graph=True)
    assert torch.equal(expanded, ones)
    wide = torch.full((3, 17, 4), 1.0).transpose(1, 2)
    (turned,) = torch.autograd.grad(y, leaf, wide, retain_graph=True)
    assert torch.equal(turned, ones)
    (none,) = torch.autograd.grad(y, leaf, torch.zeros_like(y))
    assert (none == 0).all()


def test_backward_twice_and_in_place():
    case = mixture(2, 1, 3, 5)
    leaf = case.params.requires_grad_()
    y = log_prob(case.x, leaf)
    y.sum().backward(retain_graph=True)
    once = leaf.grad.clone()
    y.sum().backward()
    assert torch.equal(leaf.grad, 2 * once)
    y = log_prob(case.x, leaf)
    with torch.no_grad():
        leaf.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_nothing_but_the_arguments_is_saved():
    case = mixture(2, 3, 3, 5)
    x = case.x.to(case.params.dtype)
    leaf = case.params.requires_grad_()
    saved = log_prob(x, leaf).grad_fn.saved_tensors
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), leaf.data_ptr()}


def test_a_level_has_no_gradient():
    case = mixture(2, 1, 3, 5)
    x = case.x.double().requires_grad_()
    with pytest.raises(
        RuntimeError, match=r"logistic_mixture_log_prob offers no gradient.*x\.detach"
    ):
        log_prob(x, case.params)
    with torch.no_grad():
        assert torch.equal(log_prob(x, case.params), run(case))


def test_gradient_follows_the_backend_of_the_forward(monkeypatch):
    case = mixture(2, 1, 3, 5)
    leaf = case.params.requires_grad_()
    with evidens.backend("reference"):
        y = log_prob(case.x, leaf)
    monkeypatch.setattr(
        evidens._native.library, "logistic_mixture", lambda *a: pytest.fail("compiled kernel")
    )
    y.sum().backward()
    assert leaf.grad.isfinite().all()


# --- registrations --------------------------------------------------------------------------------


@each_count
@pytest.mark.parametrize("layout", ["contiguous", "planes", "last", "turned"])
@pytest.mark.parametrize("size", [(2, 3, 5), (0, 3, 5), (3, 1, 1)], ids=str)
def test_opcheck(size, layout, channels):
    case = mixture(max(size[0], 1), channels, *size[1:], dtype=torch.float32)
    x = case.x.float()[: size[0]].clone()
    # opcheck itself cannot copy an empty tensor with gaps.
    params = strided(case.params, layout) if size[0] else case.params[:0].clone()
    inner = torch.ops.evidens.logistic_mixture_log_prob.default
    torch.library.opcheck(inner, (x, params, 256, -7.0))
    backward = torch.ops.evidens.logistic_mixture_log_prob_backward.default
    torch.library.opcheck(backward, (x, params, torch.randn(size), 256, -7.0))
    draws = torch.ops.evidens.logistic_mixture_sample.default
    torch.library.opcheck(draws, (params, channels, 256, -7.0, 5, 0, 0))


@each_count
def test_compile(channels, compiled):
    case = mixture(2, channels, 3, 9, dtype=torch.float32)

    def loss(x, params):
        return log_prob(x, params * 2).sum(0)

    def with_gradient(f):
        leaf = case.params.clone().requires_grad_()
        y = f(case.x, leaf)
        return y, *torch.autograd.grad(y.sum(), leaf)

    for a, b in zip(with_gradient(compiled(loss)), with_gradient(loss)):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler")
def test_compile_with_inductor(compiled):
    case = mixture(2, 3, 3, 9, dtype=torch.float32)

    def loss(x, params):
        return (log_prob(x, params * 2) * 3).sum()

    leaf = case.params.clone().requires_grad_()
    got = compiled(loss, "inductor")(case.x, leaf)
    want = loss(case.x, leaf)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    a, b = (torch.autograd.grad(y, leaf)[0] for y in (got, want))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_compile_of_draws(compiled):
    case = mixture(2, 3, 3, 4)

    def draw(params):
        return ops.logistic_mixture_sample(params + 1, channels=3, seed=3) + 1

    assert torch.equal(compiled(draw)(case.params), draw(case.params))


def test_dynamic_shapes(compiled):
    f = torch.compile(log_prob, backend="aot_eager", fullgraph=True, dynamic=True)
    for n, h, w in ((2, 3, 5), (3, 4, 6), (4, 7, 5)):
        case = mixture(n, 3, h, w, dtype=torch.float32)
        assert torch.equal(f(case.x, case.params), run(case))


@each_count
def test_vmap(channels):
    cases = [mixture(2, channels, 3, 5, seed=s) for s in range(4)]
    x, params = torch.stack([c.x for c in cases]), torch.stack([c.params for c in cases])
    want = torch.stack([run(c) for c in cases])
    assert torch.equal(vmap(log_prob)(x, params), want)
    moved = vmap(log_prob, in_dims=(2, 3))(x.movedim(0, 2), params.movedim(0, 3))
    assert torch.equal(moved, want)
    shared = vmap(log_prob, in_dims=(None, 0))(x[0], params)
    assert torch.equal(shared, torch.stack([log_prob(x[0], p) for p in params]))
    assert torch.equal(vmap(vmap(log_prob))(x[:, :, None], params[:, :, None]), want[:, :, None])


def test_vmap_of_draws_repeats_the_seed():
    params = torch.stack([mixture(2, 3, 3, 5, seed=s).params for s in range(3)])
    draw = lambda p: ops.logistic_mixture_sample(p, channels=3, seed=9)  # noqa: E731
    assert torch.equal(vmap(draw)(params), torch.stack([draw(p) for p in params]))


def test_functional_gradients():
    case = mixture(3, 3, 2, 5)
    loss = lambda p: log_prob(case.x, p).sum()  # noqa: E731
    want = gradient(case, torch.ones(3, 2, 5))
    torch.testing.assert_close(grad(loss)(case.params), want)
    _, pull = vjp(loss, case.params)
    torch.testing.assert_close(pull(torch.tensor(1.0).double())[0], want)
    rows = jacrev(lambda p: log_prob(case.x, p).sum((1, 2)))(case.params)
    torch.testing.assert_close(rows.diagonal(dim1=0, dim2=1).movedim(-1, 0), want)
    each = vmap(grad(lambda p, x: log_prob(x[None], p[None]).sum()))(case.params, case.x)
    torch.testing.assert_close(each, want)


def test_forward_mode():
    case = mixture(2, 3, 2, 5, log_scale=-1.0)
    tangent = torch.randn_like(case.params)
    y, dy = jvp(lambda p: log_prob(case.x, p), (case.params,), (tangent,))
    torch.testing.assert_close(y, run(case))
    step = 1e-6
    ends = [log_prob(case.x, case.params + s * step * tangent) for s in (1, -1)]
    torch.testing.assert_close(dy, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-5)


def test_autocast_computes_in_the_type_of_the_arguments():
    case = mixture(2, 3, 2, 5, dtype=torch.float32)
    want = run(case)
    for backend in ("cpu", "reference"):
        with evidens.backend(backend), torch.autocast("cpu", dtype=torch.bfloat16):
            got = log_prob(case.x, case.params)
        assert got.dtype is torch.float32
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_training_reaches_the_entropy():
    """A free mixture for every pixel, fitted to draws, comes near the law that drew them."""
    truth = mixture(1, 1, 1, 2, 2, 16, log_scale=-1.5)
    x = ops.logistic_mixture_sample(
        truth.params.expand(4000, -1, -1, -1), channels=1, levels=16, seed=0
    )
    layer = torch.nn.Module()
    layer.register_parameter("params", torch.nn.Parameter(torch.randn(1, 15, 1, 2).double()))
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss = -log_prob(x, layer.params.expand(4000, -1, -1, -1), 16).sum((1, 2)).mean()
        loss.backward()
        optimizer.step()
    entropy = -log_prob(x, truth.params.expand(4000, -1, -1, -1), 16).sum((1, 2)).mean()
    assert math.isclose(loss.item(), entropy.item(), abs_tol=0.02)
