"""Affine coupling at the edges: extreme values, indices that do not fit, bad arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ops import programs
from ops.comparison import assert_within
from ops.coupling_cases import DTYPES, MAP_IDS, MAPS, PATTERNS, check, coupling, gradients, run

import evidens
from evidens import ops
from evidens.reference import coupling as reference

INF = math.inf
each_map = pytest.mark.parametrize(("scale_map", "clamp"), MAPS, ids=MAP_IDS)
each_direction = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def passive(case):
    active = range(case.x.shape[1]) if case.active is None else case.active.tolist()
    return [i for i in range(case.x.shape[1]) if i not in active]


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
@each_direction
@each_dtype
@pytest.mark.parametrize("places", [(), (3,)], ids=str)
def test_passive_features_are_copied_whatever_they_hold(pattern, inverse, dtype, places):
    case = coupling(5, 40, places, pattern, "exp", None, inverse, dtype)
    rest = passive(case)
    values = [1e30, -1e30, INF, -INF, math.nan, -0.0, torch.finfo(dtype).smallest_normal / 4]
    for i, feature in enumerate(rest):
        case.x[:, feature] = values[i % len(values)]
    clean = case.with_(x=case.x.nan_to_num(0.0, 0.0, 0.0))
    y, logdet = run(ops, case)
    assert torch.equal(y[:, rest].nan_to_num(7.0), case.x[:, rest].nan_to_num(7.0))
    assert torch.equal(y[:, rest].signbit(), case.x[:, rest].signbit())
    want, other = run(ops, clean)
    active = [i for i in range(40) if i not in rest]
    assert torch.equal(y[:, active], want[:, active])
    assert torch.equal(logdet, other)


@each_map
@each_direction
@each_dtype
def test_extreme_scales_give_no_nan(scale_map, clamp, inverse, dtype):
    """Saturated maps, overflowing and vanishing factors; x of every size, also zero."""
    raw = torch.tensor([0.0, 1.0, 20.0, 88.0, 89.0, 100.0, 700.0, 720.0, 1e4, 1e30], dtype=dtype)
    raw = torch.cat((raw, -raw))
    x = torch.tensor([0.0, 1.0, -1.0, 1e-30, 1e30], dtype=dtype)
    grid, scale = (t.reshape(-1, 1) for t in torch.meshgrid(x, raw, indexing="ij"))
    case = coupling(1, 1, (), "all", scale_map, clamp, inverse, dtype)
    case = case.with_(x=grid, scale=scale, shift=torch.ones_like(scale))
    y, logdet = run(ops, case)
    assert not y.isnan().any()
    assert logdet.isfinite().all()
    want, other = run(reference, case)
    assert not want.isnan().any()
    eps = torch.finfo(dtype).eps
    # exp(l) is off by the rounding of l, which is as large as l; what overflows may do so earlier.
    bound = eps * (16 + 8 * other.abs()).double()
    assert_within(logdet, other.double(), bound * 4)
    same = y.isfinite() & want.isfinite()
    size = 4 * bound[:, None] * (want.abs().double() + 1) + 4 * torch.finfo(dtype).tiny
    assert ((y.double() - want.double()).abs() <= size)[same].all()
    assert (y[~same].abs() >= torch.finfo(dtype).max / 2).all()
    ones = torch.ones_like(grid)
    for module in (ops, reference):
        for gradient in gradients(module, case, ones, ones[:, 0]):
            assert not gradient.isnan().any()


@each_map
@each_dtype
@pytest.mark.parametrize("n", [1, 40])
def test_a_difference_that_overflows_gives_no_nan(scale_map, clamp, dtype, n):
    """x - shift beyond the largest number, times a factor or a derivative that has vanished."""
    large = 0.9 * torch.finfo(dtype).max
    raw = torch.tensor([0.0, 2.0, 104.0, 800.0, 1e4, 1e30], dtype=dtype)
    raw = torch.cat((raw, -raw))
    ends = torch.tensor([large, -large], dtype=dtype)
    x, scale = (t.reshape(-1, 1).repeat(n, 1) for t in torch.meshgrid(ends, raw, indexing="ij"))
    case = coupling(1, 1, (), "all", scale_map, clamp, True, dtype)
    case = case.with_(x=x, scale=scale, shift=-x)
    y, _ = run(ops, case)
    want, _ = run(reference, case)
    assert not y.isnan().any()
    assert not want.isnan().any()
    # Each of x's sides; a factor below a half gives a number, which is off by what was held.
    assert ((y.signbit() == x.signbit()) | (y == 0)).all()
    halves = run(ops, case.with_(x=x / 2, shift=-x / 2))[0]
    fits = halves.abs() < torch.finfo(dtype).max / 4
    assert (y[fits].abs() >= halves[fits].abs()).all()
    assert (y[fits].abs() <= 2 * halves[fits].abs()).all()
    assert (y - want).abs()[fits].le(1e-3 * want.abs()[fits]).all() or dtype is torch.float32
    ones = torch.ones_like(x)
    for gradient in gradients(ops, case, ones, ones[:, 0]):
        assert not gradient.isnan().any()
    inner = reference.affine_coupling_backward(
        *case.tensors, ones, ones[:, 0], scale_map=scale_map, clamp=case.inner[5], inverse=True
    )
    assert not any(t.isnan().any() for t in inner)


@each_dtype
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_difference_of_infinities_is_what_it_was(dtype, backend):
    x = torch.tensor([[INF, -INF, 1.0, math.nan, INF, 1.0]], dtype=dtype)
    shift = torch.tensor([[1.0, 1.0, INF, 1.0, INF, math.nan]], dtype=dtype)
    with evidens.backend(backend):
        y, _ = ops.affine_coupling(x, torch.zeros_like(x), shift, inverse=True)
        plain, _ = ops.affine_coupling(x, None, shift, inverse=True)
    want = x - shift
    torch.testing.assert_close(y, want, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(plain, want, rtol=0, atol=0, equal_nan=True)


@each_map
@each_direction
def test_large_vectors_of_extreme_scales(scale_map, clamp, inverse):
    """The same in the vectorised part, where every lane has another value."""
    for dtype in DTYPES:
        case = coupling(3, 200, (), "second", scale_map, clamp, inverse, dtype, spread=30.0)
        y, logdet = run(ops, case)
        assert not y.isnan().any()
        assert logdet.isfinite().all()
        if dtype is torch.float64:
            check(case)


@pytest.mark.parametrize("argument", ["x", "scale", "shift"])
@pytest.mark.parametrize("pattern", ["all", "second", "even", "shuffled"])
@pytest.mark.parametrize("scale_map", reference.SCALE_MAPS)
@each_direction
def test_nan_stays_where_it_is(argument, pattern, scale_map, inverse):
    case = coupling(6, 40, (), pattern, scale_map, None, inverse, torch.float32)
    clean, logdet = run(ops, case)
    t = getattr(case, argument).clone()
    column = 0 if argument != "x" or case.active is None else int(case.active[0])
    t[2, column] = math.nan
    y, total = run(ops, case.with_(**{argument: t}))
    hit = column if argument == "x" or case.active is None else int(case.active[0])
    where = torch.zeros(6, 40, dtype=torch.bool)
    where[2, hit] = True
    assert torch.equal(y.isnan(), where)
    assert torch.equal(y[~where], clean[~where])
    rows = torch.arange(6) == 2 if argument == "scale" else torch.zeros(6, dtype=torch.bool)
    assert torch.equal(total.isnan(), rows)
    assert torch.equal(total[~rows], logdet[~rows])


@each_dtype
def test_infinite_values_of_active_features(dtype):
    x = torch.tensor([[INF, -INF, 1.0]], dtype=dtype)
    y, logdet = ops.affine_coupling(x, torch.zeros_like(x), torch.ones_like(x))
    assert y.tolist() == [[INF, -INF, 2.0]]
    assert logdet.item() == 0
    scale = torch.tensor([[INF, -INF]], dtype=dtype)
    one = torch.ones_like(scale)
    for name, value in (("tanh", 1.0), ("bounded_exp", math.log(1e3)), ("exp_clamped", 5.0)):
        y, logdet = ops.affine_coupling(one, scale, None, scale_map=name)
        assert y.log().tolist()[0] == pytest.approx([value, -value], rel=1e-5)
        assert logdet.item() == pytest.approx(0, abs=1e-6)


@each_direction
def test_float64_sums_of_many_terms(inverse):
    """A log-determinant of 90,000 float32 terms keeps the digits that a float32 sum loses."""
    scale = torch.full((1, 1, 300, 300), 0.1)
    _, logdet = ops.affine_coupling(torch.zeros_like(scale), scale, None, inverse=inverse)
    want = scale.double().sum().float()
    assert logdet.item() == (-want if inverse else want).item()


@each_dtype
@each_direction
def test_one_row_no_rows_no_features(dtype, inverse):
    for n, d in ((1, 1), (0, 3), (2, 0), (0, 0)):
        x = torch.ones(n, d, dtype=dtype)
        y, logdet = ops.affine_coupling(x, x, x, inverse=inverse)
        assert y.shape == x.shape
        assert logdet.shape == (n,)
        assert not logdet.isnan().any()


def test_results_are_new_memory():
    case = coupling(3, 4, (), "none")
    for backend in ("cpu", "reference"):
        with evidens.backend(backend):
            y, _ = run(ops, case)
            assert y.data_ptr() != case.x.data_ptr()
            assert torch.equal(y, case.x)


def test_more_than_2_31_elements():
    """Rows that repeat in memory: 2^31 elements of scale without the memory for them."""
    n, d = 9, 2**28
    row = torch.full((1, 1), 0.5)
    x = torch.zeros(n, 2)
    wide = row.expand(n, d)
    active = torch.tensor([1])
    # The stride of the only channel is never multiplied by more than 0; that of rows is.
    y, logdet = ops.affine_coupling(x, wide[:, d - 1 :], None, active=active)
    assert (logdet == 0.5).all()
    assert (y == 0).all()


# --- indices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("active", "place"),
    [
        ([4], 0),
        ([0, -1], 1),
        ([0, 1, 2, 3, 0], 4),
        ([2, 2], 1),
        ([2**62], 0),
        ([-(2**63)], 0),
        ([1, 2**32 + 1], 1),
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_indices_that_do_not_fit(active, place, backend):
    x, index = torch.randn(3, 4), torch.tensor(active)
    scale = torch.randn(3, len(active))
    message = (
        rf"^evidens\.affine_coupling: active must hold distinct features 0 \.\. D - 1 = 3, "
        rf"got {active[place]} at position {place};"
    )
    with evidens.backend(backend):
        with pytest.raises(ValueError, match=message):
            ops.affine_coupling(x, scale, scale, active=index)
        with pytest.raises(ValueError, match=message):
            ops.affine_coupling(x.requires_grad_(), scale, scale, active=index)


def test_backward_with_indices_that_were_changed():
    """The saved indices are checked again: autograd notices, and the kernel would as well."""
    active = torch.tensor([0, 2])
    x = torch.randn(3, 4, requires_grad=True)
    y, _ = ops.affine_coupling(x, None, torch.zeros(3, 2), active=active)
    active[1] = 77
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()
    inner = torch.ops.evidens.affine_coupling_backward.default
    zero = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="77 at position 1"):
        inner(x.detach(), zero, zero, active, x.detach(), None, 0, 0.0, False, True, True, True)


def test_indices_written_to_while_the_kernel_runs():
    """Nothing is read or written elsewhere, whatever another thread puts into `active`."""
    program = """
    import threading, torch, evidens
    torch.manual_seed(0)
    x, scale = torch.randn(64, 257), torch.randn(64, 128)
    active, good = torch.arange(0, 256, 2), torch.arange(0, 256, 2)
    stop = False
    def disturb():
        step = 0
        while not stop:
            where = torch.randint(128, (1,))
            active[where] = torch.randint(-(2**40), 2**40, (1,)) if step % 2 else 255 - where
            step += 1
            active.copy_(good)
    thread = threading.Thread(target=disturb)
    thread.start()
    for _ in range(3000):
        try:
            y, _ = evidens.ops.affine_coupling(x, scale, scale, active=active)
        except ValueError:
            continue
        assert torch.equal(y[:, 256], x[:, 256])  # nothing ever names it
    stop = True
    thread.join()
    print("alive")
    """
    assert "alive" in programs.run(program)


def test_the_formula_leaves_out_what_is_out_of_range():
    """As the kernels do where values cannot be looked at."""
    x, scale, shift = torch.randn(3, 4), torch.randn(3, 3), torch.randn(3, 3)
    y, logdet = reference.affine_coupling(x, scale, shift, active=torch.tensor([1, 9, -1]))
    want, total = reference.affine_coupling(x, scale[:, :1], shift[:, :1], active=torch.tensor([1]))
    assert torch.equal(y, want)
    assert torch.equal(logdet, total)


# --- errors ---------------------------------------------------------------------------------------

X = torch.zeros(5, 4)
HALF = torch.zeros(5, 2)
ACTIVE = torch.tensor([0, 1])
WRONG = {
    "x with one axis": (
        ValueError,
        dict(x=torch.zeros(4)),
        r"expected x \(N, D, \*S\), got \(4,\)",
    ),
    "neither scale nor shift": (ValueError, dict(scale=None, shift=None), r"scale or a shift"),
    "scale of all features": (
        ValueError,
        dict(scale=X),
        r"scale must have shape \(N, A, \*S\) = \(5, 2\) for x \(5, 4\), got \(5, 4\)",
    ),
    "shift of other rows": (ValueError, dict(shift=torch.zeros(4, 2)), r"shift.*got \(4, 2\)"),
    "shift with places": (ValueError, dict(shift=torch.zeros(5, 2, 1)), r"shift.*\(5, 2, 1\)"),
    "another dtype": (
        TypeError,
        dict(scale=HALF.double()),
        r"one dtype.*x is torch\.float32 on cpu, scale is torch\.float64.*scale\.to\(x\)",
    ),
    "another device": (TypeError, dict(shift=HALF.to("meta")), r"shift is torch.float32 on meta"),
    "integers": (
        TypeError,
        dict(x=X.long(), scale=HALF.long(), shift=HALF.long()),
        r"x must be float32 or float64.*int64.*x\.float\(\)",
    ),
    "a NumPy array": (TypeError, dict(x=np.zeros((5, 4), np.float32)), r"x must be.*ndarray"),
    "indices in a list": (TypeError, dict(active=[0, 1]), r"active must be an int64.*list"),
    "indices of int32": (TypeError, dict(active=ACTIVE.int()), r"active must be int64.*int32"),
    "a mask": (
        TypeError,
        dict(active=torch.tensor([True, True, False, False])),
        r"active.*torch\.bool.*active\.nonzero\(\)\[:, 0\]",
    ),
    "indices with two axes": (ValueError, dict(active=ACTIVE[None]), r"active.*\(A,\).*\(1, 2\)"),
    "no such map": (
        ValueError,
        dict(scale_map="Exp"),
        r"scale_map must be one of exp, exp_clamped, .*bounded_exp, got 'Exp'",
    ),
    "a map that cannot be hashed": (ValueError, dict(scale_map=["exp"]), r"scale_map.*\['exp'\]"),
    "clamp of exp": (ValueError, dict(clamp=2.0), r"'exp' takes no clamp, got 2\.0"),
    "clamp of 0": (ValueError, dict(scale_map="atan", clamp=0.0), r"a number > 0, got 0\.0"),
    "clamp below 0": (ValueError, dict(scale_map="sigmoid", clamp=-1), r"offset >= 0, got -1\.0"),
    "no number": (ValueError, dict(scale_map="tanh", clamp=math.nan), r"a number > 0, got nan"),
    "infinite": (ValueError, dict(scale_map="softplus", clamp=INF), r"offset >= 0, got inf"),
    "a slope of 1": (ValueError, dict(scale_map="bounded_exp", clamp=1.0), r"between 0 and 1"),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors(what):
    error, changes, message = WRONG[what]
    arguments = dict(x=X, scale=HALF, shift=HALF, active=ACTIVE) | changes
    with pytest.raises(error, match=rf"^evidens\.affine_coupling: .*{message}"):
        ops.affine_coupling(**arguments)
