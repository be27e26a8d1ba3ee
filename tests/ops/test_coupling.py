"""Affine coupling: against the reference, by size, layout, dtype, level and thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops import programs
from ops.coupling_cases import (
    DTYPES,
    LAYOUTS,
    MAP_IDS,
    MAPS,
    PATTERNS,
    Coupling,
    check,
    check_gradients,
    coupling,
    run,
    strided,
)
from ops.programs import TESTS

import evidens
from evidens import ops

each_map = pytest.mark.parametrize(("scale_map", "clamp"), MAPS, ids=MAP_IDS)
each_direction = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
each_pattern = pytest.mark.parametrize("pattern", PATTERNS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@each_map
@each_direction
@each_dtype
def test_every_map(scale_map, clamp, inverse, dtype):
    for n, d, places in ((5, 3, ()), (3, 70, ()), (2, 4, (3, 5))):
        case = coupling(n, d, places, "second", scale_map, clamp, inverse, dtype)
        check(case)
        check_gradients(case)


@each_pattern
@each_direction
@each_dtype
def test_every_pattern_and_size(pattern, inverse, dtype):
    """Around the widths of vectors, 2 to 16, and the buffers, 512 and 2048 elements."""
    sizes = [(n, d) for n in (0, 1, 7) for d in (1, 2, 3, 15, 16, 17, 31, 33, 64, 100)]
    for n, d in [*sizes, (300, 9), (3, 1100), (2, 5000)]:
        case = coupling(n, d, (), pattern, "tanh", None, inverse, dtype)
        check(case)
        check_gradients(case)


@each_pattern
@each_direction
@pytest.mark.parametrize("places", [(1,), (2,), (7,), (4, 4), (3, 1, 2), (40, 40), (0,)], ids=str)
def test_spatial(pattern, inverse, places):
    for n, d in ((3, 6), (1, 2)):
        for dtype in DTYPES:
            case = coupling(n, d, places, pattern, "atan", None, inverse, dtype)
            check(case)
            check_gradients(case)


@each_direction
@pytest.mark.parametrize("pattern", ["second", "even"])
def test_rows_that_are_cut(pattern, inverse):
    """More than 2^17 elements in a row: several units share it, and their sums are added."""
    for d, places in ((3, (300, 200)), (140_000, ())):
        case = coupling(2, d, places, pattern, "exp", None, inverse, torch.float32)
        check(case)
        check_gradients(case)


@each_pattern
@each_direction
@each_dtype
def test_additive(pattern, inverse, dtype):
    for places in ((), (3,)):
        case = coupling(4, 37, places, pattern, "exp", None, inverse, dtype).with_(scale=None)
        _, logdet = check(case)
        assert (logdet == 0).all()
        check_gradients(case)


@each_map
@each_direction
def test_scale_alone(scale_map, clamp, inverse):
    case = coupling(4, 37, (), "even", scale_map, clamp, inverse).with_(shift=None)
    check(case)
    check_gradients(case)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("argument", ["x", "scale", "shift", "active", "all"])
@pytest.mark.parametrize("places", [(), (3, 2), (20,)], ids=str)
@pytest.mark.parametrize("pattern", ["second", "even", "shuffled"])
def test_layouts(layout, argument, places, pattern):
    for n, d in ((5, 9), (3, 70)):
        case = coupling(n, d, places, pattern, "softplus", dtype=torch.float32)
        names = ("x", "scale", "shift") if argument == "all" else (argument,)
        if argument == "active":
            changed = {"active": torch.stack((case.active, -case.active), 1)[:, 0]}
        else:
            changed = {name: strided(getattr(case, name), layout) for name in names}
        laid = case.with_(**changed)
        check(case, laid)
        check_gradients(case, laid)
        # A leaf is a contiguous clone: here the strided views themselves are differentiated.
        tensors = [t.detach().requires_grad_() for t in laid.tensors]
        y, logdet = run(ops, laid, tuple(tensors))
        cotangent = strided(torch.randn_like(y), layout)
        got = torch.autograd.grad((y, logdet), tensors, (cotangent, logdet.detach()))
        plain = case.leaves()
        y, logdet = run(ops, case, plain)
        want = torch.autograd.grad((y, logdet), plain, (cotangent.contiguous(), logdet.detach()))
        for a, b in zip(got, want):
            assert torch.equal(a, b)


@each_direction
def test_views_of_one_conditioner_output(inverse):
    """Halves, interleaved and stacked parameters, as the flow libraries lay them out."""
    n, d = 6, 40
    case = coupling(n, d, (), "second", "exp", None, inverse)
    halves = torch.cat((case.scale, case.shift), 1)
    interleaved = torch.stack((case.scale, case.shift), 2).flatten(1)
    stacked = torch.stack((case.scale, case.shift), 2)
    want = run(ops, case)
    for scale, shift in (
        halves.chunk(2, 1),
        (interleaved[:, 0::2], interleaved[:, 1::2]),
        stacked.unbind(2),
    ):
        got = run(ops, case.with_(scale=scale, shift=shift))
        assert all(torch.equal(a, b) for a, b in zip(got, want))


@each_direction
def test_expanded(inverse):
    case = coupling(7, 20, (), "even", "tanh", None, inverse)
    wide = case.with_(
        x=case.x[:1].expand(7, -1),
        scale=case.scale[:1].expand(7, -1),
        shift=case.shift[:, :1].expand(-1, 10),
    )
    plain = wide.with_(**{k: getattr(wide, k).contiguous() for k in ("x", "scale", "shift")})
    check(plain, wide)
    check_gradients(plain, wide)


@each_dtype
def test_misaligned(dtype):
    case = coupling(5, 33, (), "second", dtype=dtype)
    for offset in (1, 2, 3):
        moved = {}
        for name in ("x", "scale", "shift"):
            t = getattr(case, name)
            buffer = torch.full((t.numel() + offset,), float("nan"), dtype=dtype)
            moved[name] = buffer[offset:].view(t.shape).copy_(t)
        check(case, case.with_(**moved))


@given(data=st.data())
@settings(max_examples=150)
def test_property(data):
    """Any shape, pattern of active features, layout, map, direction and dtype."""
    draw = data.draw
    n, d = draw(st.integers(0, 9)), draw(st.integers(1, 40))
    places = tuple(draw(st.lists(st.integers(0, 5), max_size=2)))
    scale_map, clamp = draw(st.sampled_from(MAPS))
    dtype = draw(st.sampled_from(DTYPES))
    active = draw(st.none() | st.lists(st.integers(0, d - 1), unique=True))
    count = d if active is None else len(active)
    spread = draw(st.sampled_from([0.1, 1.0, 10.0]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x, scale, shift = (
        (spread * torch.randn(n, c, *places, generator=g)).to(dtype) for c in (d, count, count)
    )
    index = None if active is None else torch.tensor(active, dtype=torch.int64)
    case = Coupling(x, scale, shift, index, scale_map, clamp, draw(st.booleans()))
    drop = draw(st.sampled_from(["scale", "shift", None]))
    if drop is not None:
        case = case.with_(**{drop: None})
    layouts = {
        name: strided(t, draw(st.sampled_from(LAYOUTS)))
        for name, t in zip(("x", "scale", "shift"), case.tensors)
        if t is not None
    }
    check(case, case.with_(**layouts))
    check_gradients(case, case.with_(**layouts))


@each_direction
@each_dtype
@pytest.mark.parametrize("d", [1024, 1027])
@pytest.mark.parametrize("pattern", ["all", "second", "even", "odd", "shuffled"])
def test_results_written_past_the_cache(pattern, d, inverse, dtype):
    """From 8 MB on stores are of another kind; rows that are vectors wide, and others."""
    n = 2100 if dtype is torch.float32 else 1050
    case = coupling(n, d, (), pattern, "exp", None, inverse, dtype)
    whole = results(case)
    for begin in range(0, n, 700):
        rows = slice(begin, begin + 700)
        part = case.with_(x=case.x[rows], scale=case.scale[rows], shift=case.shift[rows])
        assert all(torch.equal(a[rows], b) for a, b in zip(whole, results(part)))


def test_half_types_are_widened():
    case = coupling(4, 10, dtype=torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        half = case.to(dtype)
        y, logdet = run(ops, half)
        assert y.dtype is logdet.dtype is torch.float32
        want = run(ops, half.to(torch.float32))
        assert torch.equal(y, want[0])
        assert torch.equal(logdet, want[1])
        # Under autocast a conditioner gives half types beside a float32 x.
        mixed = case.with_(scale=half.scale, shift=half.shift)
        assert run(ops, mixed)[0].dtype is torch.float32


# --- invariants -----------------------------------------------------------------------------------


@each_map
@each_dtype
def test_inverse_after_forward(scale_map, clamp, dtype):
    """The identity, to 1e-12 and 5e-5 on random parameters, and the log-determinants cancel."""
    limit = 1e-12 if dtype is torch.float64 else 5e-5
    for pattern in PATTERNS:
        for shape in ((50, 8, ()), (20, 100, ()), (3, 6, (5, 5))):
            case = coupling(*shape, pattern, scale_map, clamp, False, dtype)
            y, logdet = run(ops, case)
            x, back = run(ops, case.with_(x=y, inverse=True))
            assert (x - case.x).abs().max() <= limit
            assert (logdet + back).abs().max() <= limit


@each_map
@each_direction
@pytest.mark.parametrize("pattern", ["all", "second", "shuffled"])
def test_logdet_is_that_of_the_jacobian(scale_map, clamp, inverse, pattern):
    for d, places in ((5, ()), (4, (3,))):
        case = coupling(3, d, places, pattern, scale_map, clamp, inverse)
        y, logdet = run(ops, case)
        size = y[0].numel()
        jacobian = torch.autograd.functional.jacobian(
            lambda x, case=case: run(ops, case.with_(x=x))[0].flatten(1).sum(0), case.x
        )
        jacobian = jacobian.view(size, 3, size).transpose(0, 1)
        want = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(logdet, want, rtol=1e-12, atol=1e-12)


def test_permuted_parameters_change_nothing():
    case = coupling(9, 40, (), "shuffled")
    order = torch.randperm(len(case.active))
    moved = case.with_(
        active=case.active[order], scale=case.scale[:, order], shift=case.shift[:, order]
    )
    (y, logdet), (z, other) = run(ops, case), run(ops, moved)
    assert torch.equal(y, z)
    torch.testing.assert_close(logdet, other, rtol=1e-14, atol=1e-14)


@each_direction
def test_a_density_integrates_to_one(inverse):
    """Of a standard normal pulled back through the layer, on a grid in two dimensions."""
    axis = torch.linspace(-12, 12, 601, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    scale, shift = 0.3 * torch.tanh(x[:, :1]), x[:, :1].sin()
    z, logdet = ops.affine_coupling(x, scale, shift, active=torch.tensor([1]), inverse=inverse)
    density = (-0.5 * z.square().sum(1) + logdet).exp() / (2 * torch.pi)
    assert abs(density.sum() * (axis[1] - axis[0]) ** 2 - 1) < 1e-9


# --- threads and levels ---------------------------------------------------------------------------


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def results(case):
    grads = torch.ones_like(case.x), torch.ones(len(case.x), dtype=case.x.dtype)
    leaves = case.leaves()
    y, logdet = run(ops, case, leaves)
    return [y.detach(), logdet.detach(), *torch.autograd.grad((y, logdet), leaves, grads)]


LARGE = [((3000, 60, ()), p) for p in ("second", "even", "shuffled")] + [
    ((3, 4, (250, 250)), "odd")
]


@pytest.mark.parametrize(("shape", "pattern"), LARGE)
@each_dtype
def test_number_of_threads(shape, pattern, dtype, set_threads):
    case = coupling(*shape, pattern, "sigmoid", dtype=dtype)
    set_threads(1)
    want = results(case)
    for threads in (2, 3):
        set_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(results(case), want))


def test_python_threads_at_once():
    cases = [coupling(*shape, p, "tanh", dtype=t) for shape, p in LARGE for t in DTYPES]
    want = [results(case) for case in cases]
    with ThreadPoolExecutor(2) as pool:
        for got, expected in zip(pool.map(results, cases), want):
            assert all(torch.equal(a, b) for a, b in zip(got, expected))


@pytest.mark.parametrize("level", evidens.info()["isa"]["available"])
def test_every_level_agrees_with_the_reference(level):
    program = """
    import sys
    sys.path.insert(0, {tests!r})
    import torch, evidens
    from ops.coupling_cases import DTYPES, MAPS, PATTERNS, check, check_gradients, coupling
    assert evidens.info()["isa"]["chosen"] == {level!r}
    shapes = (3, 5, ()), (2, 35, ()), (40, 9, ()), (2, 6, (3,)), (2, 4, (17,))
    cases = [(p, *m, i, t) for p, m in zip(PATTERNS, MAPS) for i in (False, True) for t in DTYPES]
    cases += [("second", *m, i, t) for m in MAPS for i in (False, True) for t in DTYPES]
    for i, rest in enumerate(cases):
        case = coupling(*shapes[i % 5], *rest)
        check(case)
        check_gradients(case)
    print("done")
    """
    assert "done" in programs.run(program.format(tests=str(TESTS), level=level), EVIDENS_ISA=level)
