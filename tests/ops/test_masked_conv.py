"""Masked convolution: the mask, and values by size, layout, dtype, level and thread."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops import programs
from ops.coupling_cases import LAYOUTS, strided
from ops.masked_conv_cases import DTYPES, Case, check, conv, definition, gradients, run
from ops.programs import TESTS

import evidens
from evidens import ops, reference

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_mask = pytest.mark.parametrize("mask", ["A", "B"])
DIAMOND = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.bool)


# --- the mask -------------------------------------------------------------------------------------


@each_mask
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (7, 7), (3, 5), (1, 3), (5, 1)])
def test_the_mask_of_the_reference_is_the_definition(mask, groups, kernel):
    taps, strict = reference.masked_conv.taps_of(mask, kernel, groups)
    shape = (6, 12, *kernel)
    got = reference.masked_conv.live_weights(shape, taps, strict, groups)
    assert torch.equal(got, definition(shape, mask, groups))


@each_mask
def test_a_letter_is_a_given_mask(mask):
    """The same bits, as a tensor or tuples; at the centre groups go by its entry."""
    for groups in (1, 3):
        case = conv(c=6, o=9, kernel=(3, 5), mask=mask, groups=groups)
        live = definition((1, 1, 3, 5), mask, 1)[0, 0]
        for same in (live, tuple(map(tuple, live.tolist()))):
            assert torch.equal(
                run(ops, case), run(ops, case.with_(options={"mask": same, "groups": groups}))
            )


@each_mask
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (7, 5)])
def test_zeros_of_the_jacobian_are_those_of_the_mask(mask, groups, kernel):
    """And what is alive is alive: dimension by dimension in the order of rows, columns, groups."""
    case = conv(1, 3, 6, (3, 4), kernel, mask, groups)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: run(ops, case.with_(x=x))[0], case.x
    )[:, :, :, 0]  # fmt: skip
    live = definition(case.weight.shape, mask, groups)
    for h, w, row, column in torch.cartesian_prod(*map(torch.arange, (3, 4, 3, 4))).tolist():
        down, across = row - h + kernel[0] // 2, column - w + kernel[1] // 2
        inside = 0 <= down < kernel[0] and 0 <= across < kernel[1]
        want = live[:, :, down, across] if inside else torch.zeros(6, 3, dtype=torch.bool)
        assert torch.equal(jacobian[:, h, w, :, row, column] != 0, want)
        if (row, column) > (h, w):
            assert not want.any()


def test_a_stack_is_autoregressive():
    """A, B, B over three colours: nothing depends on itself or on what comes later."""
    torch.manual_seed(1)
    weights = [torch.randn(s, dtype=torch.float64) for s in ((6, 3, 3, 3), (6, 6, 3, 3))]

    def network(x):
        y = ops.masked_conv2d(x, weights[0], mask="A", groups=3)
        y = ops.masked_conv2d(y.tanh(), weights[1], mask="B", groups=3)
        return ops.masked_conv2d(y.tanh(), weights[1][:, :, :1, :1], mask="B", groups=3)

    x = torch.randn(1, 3, 3, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(network, x)[0, :, :, :, 0]
    # Row: the place of an output in raster order and its colour; two outputs share a colour.
    rows = jacobian.permute(1, 2, 0, 3, 4, 5).reshape(9, 3, 2, 3, 9).permute(2, 0, 1, 4, 3)
    for matrix in rows.reshape(2, 27, 27):
        assert (matrix.triu() == 0).all()
        assert (matrix.tril(-1)[9:, :9] != 0).any()


def test_dead_weights_are_not_read():
    for groups in (1, 3):
        case = conv(2, 6, 9, (4, 5), (3, 3), "A", groups)
        poisoned = torch.where(case.live(), case.weight, math.nan)
        for module in (ops, reference.masked_conv):
            assert torch.equal(run(module, case), run(module, case.with_(weight=poisoned)))
        grad_y = torch.randn(2, 9, 4, 5)
        for a, b in zip(gradients(ops, case.with_(weight=poisoned), grad_y),
                        gradients(ops, case, grad_y)):  # fmt: skip
            assert torch.equal(a, b)


@each_mask
@each_dtype
def test_pixels_behind_dead_taps_are_not_read(mask, dtype):
    """An image that is known up to a pixel has the values of the whole up to there."""
    case = conv(2, 3, 40, (6, 17), (5, 5), mask, dtype=dtype)
    want = run(ops, case)
    x = case.x.clone().flatten(2)
    x[:, :, 50 + (mask == "B") :] = math.nan
    y = run(ops, case.with_(x=x.view(case.x.shape)))
    assert torch.equal(y.flatten(2)[:, :, :51], want.flatten(2)[:, :, :51])
    assert y.flatten(2)[:, :, 52:].isnan().any()


def test_the_weight_is_left_as_it_is():
    case = conv()
    weight = case.weight.clone()
    gradients(ops, case, torch.ones(2, 4, 5, 6))
    assert torch.equal(case.weight, weight)


# --- values ---------------------------------------------------------------------------------------


@each_mask
@each_dtype
def test_every_kernel_and_group(mask, dtype):
    for kernel in ((1, 1), (3, 3), (5, 5), (7, 7), (3, 7), (9, 1)):
        for groups, c, o in ((1, 3, 5), (2, 4, 6), (3, 3, 9), (3, 18, 30)):
            check(conv(2, c, o, (5, 6), kernel, mask, groups, dtype))


@each_dtype
def test_every_number_of_channels(dtype):
    """Around the widths of vectors, of tiles, and of the parts that weights are packed in."""
    counts = (1, 2, 7, 8, 15, 16, 17, 33, 48, 64, 65, 130)
    for i, c in enumerate(counts):
        for o in (counts[-1 - i], counts[i], 1):
            check(conv(1, c, o, (3, 5), (3, 3), "B", 1, dtype))


@each_dtype
def test_every_size_of_an_image(dtype):
    """One pixel, smaller than the kernel, rows shorter and longer than a vector, several bands."""
    for image in ((1, 1), (1, 2), (2, 1), (1, 40), (40, 1), (2, 3), (7, 7), (16, 16), (33, 19)):
        for n in (1, 3):
            check(conv(n, 3, 5, image, (7, 5), "A", 1, dtype))
            check(conv(n, 17, 20, image, (3, 3), "B", 1, dtype))


@pytest.mark.parametrize("n", [1, 9])
@each_dtype
def test_many_bands_and_slabs(n, dtype):
    check(conv(n, 20, 70, (90, 31), (5, 5), "B", 1, dtype))
    check(conv(n, 6, 9, (90, 31), (1, 1), "B", 3, dtype))


@each_dtype
@pytest.mark.parametrize("groups", [1, 3])
def test_any_mask(groups, dtype):
    for live in (DIAMOND, ~DIAMOND, torch.ones(3, 3).bool(), DIAMOND.flip(0).triu()):
        check(conv(2, 6, 9, (5, 4), (3, 3), live, groups, dtype))


@each_dtype
@pytest.mark.parametrize("bias", [True, False])
def test_without_a_live_tap(bias, dtype):
    case = conv(2, 3, 5, mask=torch.zeros(3, 3).bool(), dtype=dtype, bias=bias)
    y = check(case)
    want = torch.zeros(5, dtype=dtype) if case.bias is None else case.bias
    assert torch.equal(y, want[:, None, None].expand(y.shape))
    check(conv(2, 3, 5, kernel=(1, 1), mask="A", dtype=dtype, bias=bias))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_nothing(shape):
    case = conv()
    case = case.with_(x=case.x.new_zeros(shape))
    for module in (ops, reference.masked_conv):
        assert run(module, case).shape == (shape[0], 4, *shape[2:])
    x, weight, bias = gradients(ops, case, torch.zeros(shape[0], 4, *shape[2:]))
    assert x.shape == shape
    assert (weight == 0).all()
    assert (bias == 0).all()


@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("argument", ["x", "weight", "bias"])
def test_layouts(argument, layout, dtype):
    for shape in ((3, 5, 7, (4, 5), (3, 3)), (2, 16, 32, (1, 1), (1, 1)), (2, 1, 1, (3, 4), (3, 1)),
                  (4, 32, 32, (6, 1), (1, 1))):  # fmt: skip
        case = conv(*shape, mask="B", dtype=dtype)
        t = getattr(case, argument)
        laid = torch.stack((t, -t), 1)[:, 0] if argument == "bias" else strided(t, layout)
        check(case, case.with_(**{argument: laid}))
        # A leaf is a contiguous clone: here the strided views themselves are differentiated.
        tensors = [t.detach().requires_grad_() for t in case.with_(**{argument: laid}).tensors]
        y = run(ops, case, tuple(tensors))
        cotangent = torch.randn_like(y)
        got = torch.autograd.grad(y, tensors, strided(cotangent, layout))
        for a, b in zip(got, gradients(ops, case, cotangent)):
            assert torch.equal(a, b)


def test_expanded_and_channels_last():
    case = conv(3, 32, 48, (5, 6), mask="B")
    wide = case.with_(x=case.x[:1, :, :1].expand(3, -1, 5, -1), bias=case.bias[:1].expand(48))
    check(wide.with_(x=wide.x.contiguous(), bias=wide.bias.contiguous()), wide)
    last = case.with_(x=case.x.to(memory_format=torch.channels_last))
    assert torch.equal(run(ops, last), run(ops, case))
    leaves = case.leaves()
    y = run(ops, case, leaves)
    got = torch.autograd.grad(y.sum(), leaves)  # an expanded cotangent
    for a, b in zip(got, gradients(ops, case, torch.ones_like(y))):
        assert torch.equal(a, b)


@each_dtype
def test_misaligned(dtype):
    case = conv(2, 16, 33, (5, 6), dtype=dtype)
    for offset in (1, 2, 3):
        moved = {}
        for name in ("x", "weight", "bias"):
            t = getattr(case, name)
            buffer = torch.full((t.numel() + offset,), math.nan, dtype=dtype)
            moved[name] = buffer[offset:].view(t.shape).copy_(t)
        check(case, case.with_(**moved))


@given(data=st.data())
@settings(max_examples=100)
def test_property(data):
    draw = data.draw
    sizes = st.integers(1, 9)
    groups = draw(st.integers(1, 3))
    c, o = (groups * draw(sizes) for _ in range(2))
    kernel = tuple(2 * draw(st.integers(0, 3)) + 1 for _ in range(2))
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    mask = draw(st.sampled_from(["A", "B", None]))
    mask = torch.rand(kernel, generator=g) < 0.4 if mask is None else mask
    image = draw(sizes), draw(sizes)
    dtype, n = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 3))
    case = conv(n, c, o, image, kernel, mask, groups, dtype, draw(st.booleans()))
    layout = draw(st.sampled_from(LAYOUTS))
    check(case, case.with_(x=strided(case.x, layout)))


def test_half_types_are_widened():
    case = conv(dtype=torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        half = case.to(dtype)
        y = run(ops, half)
        assert y.dtype is torch.float32
        assert torch.equal(y, run(ops, half.to(torch.float32)))
        assert run(ops, case.with_(x=half.x)).dtype is torch.float32


# --- bits -----------------------------------------------------------------------------------------


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


LARGE = [((9, 20, 70, (30, 31), (5, 5), "B"), 1), ((1, 6, 9, (200, 31), (3, 3), "A"), 3)]


def results(case: Case) -> list[torch.Tensor]:
    y = run(ops, case)
    g = torch.Generator().manual_seed(5)
    return [y, *gradients(ops, case, torch.randn(y.shape, generator=g))]


@each_dtype
@pytest.mark.parametrize(("shape", "groups"), LARGE)
def test_number_of_threads(shape, groups, dtype, set_threads):
    case = conv(*shape, groups, dtype)
    set_threads(1)
    want = results(case)
    for threads in (2, 3):
        set_threads(threads)
        assert all(map(torch.equal, results(case), want))


def test_python_threads_at_once():
    cases = [conv(*shape, groups, t) for shape, groups in LARGE for t in DTYPES]
    want = [results(case) for case in cases]
    with ThreadPoolExecutor(2) as pool:
        for got, expected in zip(pool.map(results, cases), want):
            assert all(map(torch.equal, got, expected))


@each_dtype
def test_images_do_not_depend_on_each_other(dtype):
    """An image alone gives the bits that it gives among others, and so does its gradient."""
    case = conv(5, 9, 70, (13, 11), (5, 5), "B", dtype=dtype)
    grad_y = torch.randn(5, 70, 13, 11, dtype=dtype)
    y, x = run(ops, case), gradients(ops, case, grad_y)[0]
    for n in (0, 4):
        alone = case.with_(x=case.x[n : n + 1])
        assert torch.equal(run(ops, alone)[0], y[n])
        assert torch.equal(gradients(ops, alone, grad_y[n : n + 1])[0][0], x[n])


@each_dtype
def test_a_moved_image_gives_moved_bits(dtype):
    """Wherever a pixel comes to lie in a tile or a band, its sum is taken in one order."""
    case = conv(1, 9, 20, (70, 40), (3, 3), "A", dtype=dtype)
    y = run(ops, case)
    for rows, columns in ((1, 0), (0, 1), (5, 7)):
        part = run(ops, case.with_(x=case.x[:, :, rows:, columns:]))
        assert torch.equal(part[:, :, 1:, 1:-1], y[:, :, rows + 1 :, columns + 1 : -1])


@pytest.mark.parametrize("level", evidens.info()["isa"]["available"])
def test_every_level_agrees_with_the_reference(level):
    program = """
    import sys
    sys.path.insert(0, {tests!r})
    import torch, evidens
    from ops.masked_conv_cases import DTYPES, ORDERS, check, conv, linear
    assert evidens.info()["isa"]["chosen"] == {level!r}
    shapes = (2, 3, 5, (5, 6)), (1, 33, 70, (4, 3)), (3, 16, 32, (9, 17)), (1, 130, 9, (2, 2))
    for dtype in DTYPES:
        for shape in shapes:
            for kernel in ((1, 1), (3, 3), (5, 7)):
                check(conv(*shape, kernel, "A", 1, dtype))
                check(conv(*shape, kernel, "B", 1, dtype))
        check(conv(2, 6, 9, (5, 6), (3, 3), "A", 3, dtype))
        for order in ORDERS:
            for sizes in ((1, 5, 7), (40, 70, 33), (7, 1, 1)):
                check(linear(*sizes, order, False, dtype))
                check(linear(*sizes, order, True, dtype))
    print("done")
    """
    assert "done" in programs.run(program.format(tests=str(TESTS), level=level), EVIDENS_ISA=level)


def test_strides_beyond_32_bits(tmp_path):
    """Zeros in a file of holes: only pages that are written take memory."""
    case, step = conv(2, 2, 3, (4, 5), dtype=torch.float32), 2**31 + 8
    file = torch.from_numpy(np.memmap(tmp_path / "x", np.float32, "w+", shape=(2 * step + 64,)))
    for strides in ((step, 20, 5, 1), (20, step, 5, 1), (step, 1, 10, 2)):
        far = file.as_strided((2, 2, 4, 5), strides)
        far.copy_(case.x)
        assert torch.equal(run(ops, case.with_(x=far)), run(ops, case))
