"""start and step: the draws of sample one at a time, fill-ins, forced values, useless states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import evidens
from evidens import MADE, MaskedAutoregressiveFlow, PixelCNN

F64 = torch.float64
MADES = [("bernoulli", None), ("categorical", 3), ("gaussian", None), ("mixture", None)]
FLOWS = [("affine", 1), ("affine", 3), ("spline", 1), ("spline", 2)]
# Channels, output, levels.
IMAGES = [
    (1, "bernoulli", 2),
    (3, "bernoulli", 2),
    (1, "categorical", 3),
    (3, "categorical", 2),
    (1, "logistic", 5),
    (3, "logistic", 4),
]


def moved(model, dtype=F64):
    """Weights, locations and scales that matter."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
        if model.levels is None and not isinstance(model, PixelCNN):
            model.standard.location.copy_(torch.randn(model.standard.location.shape, generator=g))
            model.standard.scale.copy_(torch.rand(model.standard.scale.shape, generator=g) + 0.5)
    return model.to(dtype).eval()


def made(output="gaussian", levels=None, features=5, dtype=F64, **options):
    torch.manual_seed(0)
    options = {"hidden": (12, 9), "activation": "tanh", "terms": 3} | options
    return moved(MADE(features, output=output, levels=levels, **options), dtype)


def flow(transformer="affine", layers=1, dtype=F64, **options):
    torch.manual_seed(0)
    options = {"hidden": (12,), "bins": 4} | options
    return moved(
        MaskedAutoregressiveFlow(4, transformer=transformer, layers=layers, **options), dtype
    )


def pixels(channels=1, output="categorical", levels=3, size=(3, 2), dtype=F64, **options):
    torch.manual_seed(0)
    options = {"hidden": 6, "layers": 1, "first_kernel": 3, "terms": 2} | options
    return moved(PixelCNN((channels, *size), levels=levels, output=output, **options), dtype)


def finish(model, state, forced=None):
    """Steps to the end; the state of the end, and the sum of the log-densities of the steps."""
    total = 0.0
    while not state.done:
        at = state.position
        value = None
        if forced is not None:
            at = at if isinstance(at, tuple) else (at,)
            value = (
                forced[(..., *at)]
                if np.ndim(at[-1]) == 0
                else forced.gather(1, at[0][:, None])[:, 0]
            )
        found, state = model.step(state, value)
        assert (found.isnan() if isinstance(found, torch.Tensor) else np.isnan(found)).sum() == 0
        if forced is not None:
            total = total + state.log_prob
    return state, total


def check_steps(model, n=7, **how):
    x = model.sample(n, random_state=3, **how)
    state = model.start(n, random_state=3, **how)
    assert state.rows == n
    assert state.x.isnan().all()
    state, _ = finish(model, state)
    assert state.position is None
    assert state.x.dtype is model.dtype
    assert torch.equal(state.x, x.to(model.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("orders", [1, 3])
@pytest.mark.parametrize(("output", "levels"), MADES)
def test_made_steps_give_the_draws(output, levels, orders, dtype):
    model = made(output, levels, orders=orders, dtype=dtype)
    for n in (7, 1, 0):
        check_steps(model, n)
    wide = made(output, levels, orders=orders, dtype=dtype, context=2, classes=2)
    check_steps(wide, context=torch.randn(7, 2))
    check_steps(wide, context=torch.randn(7, 2), y=torch.arange(7) % 2)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(("transformer", "layers"), FLOWS)
def test_flow_steps_give_the_draws(transformer, layers, dtype):
    model = flow(transformer, layers, dtype)
    for n in (7, 1, 0):
        check_steps(model, n)
    check_steps(flow(transformer, layers, dtype, dequantize=5))
    check_steps(flow(transformer, layers, dtype, context=1, classes=2), context=torch.randn(7, 1))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("channels", "output", "levels"), IMAGES)
def test_pixel_steps_give_the_draws(channels, output, levels, gated, dtype):
    for one_hot in (False, True):
        model = pixels(channels, output, levels, gated=gated, one_hot=one_hot, dtype=dtype)
        for n in (4, 1, 0):
            check_steps(model, n)
    check_steps(pixels(channels, output, levels, (1, 1), gated=gated, dtype=dtype))
    wide = pixels(channels, output, levels, gated=gated, classes=2, dtype=dtype)
    check_steps(wide, y=torch.arange(7) % 2)


@pytest.mark.parametrize("orders", [1, 3])
@pytest.mark.parametrize(("output", "levels"), MADES)
def test_teacher_forcing_of_made(output, levels, orders):
    model = made(output, levels, orders=orders)
    x = model.sample(9, random_state=8).double()
    state, total = finish(model, model.start(9, random_state=1), x)
    assert torch.equal(state.x, x)
    if orders == 1:
        torch.testing.assert_close(total, model.log_prob(x).detach(), rtol=0, atol=1e-10)
    else:  # of each row's own order
        z = model.standard(x)[0]
        terms = torch.stack([model._terms(net, z, None).sum(1) for net in model.layers])
        terms = terms + model.standard(x)[1]
        assert ((terms - total).abs().amin(0) < 1e-10).all()


@pytest.mark.parametrize("transformer", ["affine", "spline"])
@pytest.mark.parametrize("dequantize", [None, 5])
def test_teacher_forcing_of_a_flow(transformer, dequantize):
    model = flow(transformer, dequantize=dequantize)
    x = model.sample(9, random_state=8).double()
    state, total = finish(model, model.start(9, random_state=1), x)
    assert torch.equal(state.x, x)
    torch.testing.assert_close(total, model.log_prob(x).detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("channels", "output", "levels"), IMAGES)
def test_teacher_forcing_of_pixels(channels, output, levels, gated):
    model = pixels(channels, output, levels, gated=gated)
    x = model.sample(4, random_state=8)
    state, total = finish(model, model.start(4, random_state=1), x)
    assert torch.equal(state.x.long(), x)
    torch.testing.assert_close(total, model.log_prob(x).detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: made("categorical", 3),
        lambda: made("categorical", 3, orders=3),
        lambda: made("gaussian"),
        lambda: made("mixture", orders=2),
        lambda: flow("affine", 2),
        lambda: flow("spline", 1),
        lambda: pixels(3, "categorical", 2),
        lambda: pixels(1, "logistic", 5, gated=True),
    ],
)
def test_goes_on_from_every_start(make):
    """The draw, known up to any step, is drawn again: from a start with x as from the state."""
    model = make()
    whole = model.sample(5, random_state=3)
    state = model.start(5, random_state=3)
    for _ in range(1000):
        branch = state.copy()
        fresh = model.start(x=state.x, random_state=3)
        assert len(fresh._stops) == len(state._stops) - state._taken
        for other in (branch, fresh):
            end, _ = finish(model, other)
            torch.testing.assert_close(end.x, whole.to(F64), rtol=0, atol=1e-12)
        if state.done:
            break
        _, state = model.step(state)


@pytest.mark.parametrize("orders", [1, 3])
@pytest.mark.parametrize(("output", "levels"), MADES)
def test_fill_in(output, levels, orders):
    """Any holes: what is known stays, and a step is there where a row lacks something."""
    model = made(output, levels, orders=orders)
    x = model.sample(8, random_state=5).double()
    x[torch.rand(8, 5, generator=torch.Generator().manual_seed(0)) < 0.5] = math.nan
    x[:, 2] = 1.0
    state = model.start(x=x, random_state=0)
    if orders == 1:
        assert len(state._stops) == int(x.isnan().any(0).sum())
    end, _ = finish(model, state)
    assert torch.equal(end.x[~x.isnan()], x[~x.isnan()])
    assert not end.x.isnan().any()


def test_fill_in_of_pixels_is_impute():
    model = pixels(3, "categorical", 2)
    x = model.sample(4, random_state=5).double()
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5] = math.nan
    end, _ = finish(model, model.start(x=x, random_state=7))
    assert torch.equal(end.x, model.impute(x, random_state=7))
    assert finish(model, model.start(x=x.numpy(), random_state=7))[0].x.dtype == np.float64


def test_arrays_and_tensors():
    rng = np.random.default_rng(0)
    model = MADE(3, output="gaussian", hidden=(8,))
    model.fit(rng.normal(size=(50, 3)) * 3 + 5, epochs=2, random_state=0, verbose=0)
    value, state = model.step(model.start(2, random_state=0))
    assert isinstance(value, np.ndarray)
    assert isinstance(state.x, np.ndarray)
    assert isinstance(state.log_prob, np.ndarray)
    np.testing.assert_array_equal(finish(model, state)[0].x, model.sample(2, random_state=0))
    value, state = model.step(model.start(x=torch.full((2, 3), math.nan)))
    assert isinstance(value, torch.Tensor)
    value, state = model.step(state, 5.0)  # one number for all
    assert value.tolist() == [5.0, 5.0]
    levels, _ = (lambda m: m.step(m.start(2)))(made("categorical", 3))
    assert levels.dtype is torch.int64


def test_some_rows_are_forced():
    model = made("gaussian", orders=2)
    state = model.start(6, random_state=0)
    _, state = model.step(state, [math.nan, 2.0, math.nan, math.nan, -1.0, math.nan])
    end, _ = finish(model, state)
    rest = torch.tensor([0, 2, 3, 5])
    assert torch.equal(end.x[rest], model.sample(6, random_state=0)[rest])
    assert (end.x[1] == 2).any()


def test_two_states_at_once_and_branches():
    model = made("mixture")
    a, b = model.start(3, random_state=0), model.start(4, random_state=1)
    while not a.done:
        _, a = model.step(a)
        _, b = model.step(b)
    assert torch.equal(a.x, model.sample(3, random_state=0))
    assert torch.equal(b.x, model.sample(4, random_state=1))
    start = model.start(2, random_state=0)
    branch = start.copy()
    _, start = model.step(start, 9.0)
    _, branch = model.step(branch)
    assert (start.x[:, 0] == 9).all()
    assert (branch.x[:, 0] != 9).all()
    assert "1 of 5 steps" in repr(branch)


# --- bad input -----------------------------------------------------------------------------------


def test_states_of_another_model():
    one, other = made(), made()
    with pytest.raises(ValueError, match=r"belongs to another model, a MADE; step with"):
        other.step(one.start(2))
    with pytest.raises(TypeError, match=r"state must come from MADE.start or step, got Tensor"):
        one.step(torch.zeros(2))


def test_spent_states_and_the_end():
    model = pixels()
    state = model.start(2)
    _, after = model.step(state)
    for use in (lambda: model.step(state), lambda: state.x, lambda: state.copy()):
        with pytest.raises(ValueError, match="stepped on already"):
            use()
    end, _ = finish(model, after)
    with pytest.raises(ValueError, match="nothing is left to draw after 6 steps"):
        model.step(end)


@pytest.mark.parametrize("make", [made, flow, pixels])
def test_weights_that_changed(make):
    def nudge(m):
        with torch.no_grad():
            next(m.parameters()).mul_(1.5)

    def train(m):
        m.fit(m.sample(20, random_state=0), epochs=1, random_state=0, verbose=0)

    def exchange(m):
        module = next(k for k in m.modules() if k._parameters)
        name = next(iter(module._parameters))
        setattr(module, name, torch.nn.Parameter(getattr(module, name).clone()))

    def load(m):
        m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()})

    for change in (nudge, train, exchange, load, torch.nn.Module.float):
        model = make()
        _, state = model.step(model.start(2, random_state=0))
        change(model)
        with pytest.raises(ValueError, match=r"weights have changed since start.*start again"):
            model.step(state)


@pytest.mark.parametrize(
    ("make", "value", "words"),
    [
        (made, [0.0, 1.0, 2.0], r"shape \(2,\) for a state of 2 rows, got \(3,\)"),
        (made, [math.inf, 0.0], "finite.*got inf"),
        (pixels, torch.zeros(2), r"shape \(2, 1\).*got \(2,\)"),
        (pixels, 3, "integers from 0 to 2, or NaN to draw, got 3"),
        (pixels, 0.5, "got 0.5"),
    ],
)
def test_values_that_cannot_be(make, value, words):
    model = make()
    with pytest.raises(ValueError, match=words):
        model.step(model.start(2), value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: made().start(-1), "negative"),
        (lambda: made().start(3, x=np.zeros((2, 5))), "n = 3 rows, got 2"),
        (lambda: made().start(x=np.zeros((2, 4))), "shape"),
        (lambda: made().start(x=[[math.inf, 0, 0, 0, 0]]), "finite"),
        (lambda: pixels().start(x=np.full((1, 6), 3.0)), "integers from 0 to 2"),
        (lambda: pixels(classes=2).start(x=np.full((1, 6), math.nan)), "pass y"),
        (lambda: made(context=2).start(3), "context"),
        (lambda: flow(inverse=True).start(3), r"inverse=False.*call sample"),
        (lambda: made().start(2).log_prob, "none was taken"),
    ],
)
def test_starts_that_cannot_be(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_densities_of_a_flow_of_several_layers():
    model = flow("affine", 2)
    _, state = model.step(model.start(2))
    with pytest.raises(ValueError, match="flows of one layer; this one has 2"):
        _ = state.log_prob


def test_the_reference_backend():
    model = made("categorical", 3, orders=2)
    x = model.sample(4, random_state=0)
    with evidens.backend("reference"):
        end, _ = finish(model, model.start(4, random_state=0))
    assert torch.equal(end.x.long(), x)
