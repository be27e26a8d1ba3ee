"""The logistic mixture at the edges: extreme values, bad arguments, threads, levels of the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from ops.comparison import assert_within
from ops.logistic_mixture_cases import CHANNELS, DTYPES, gradient, mixture, run
from ops.programs import TESTS
from ops.programs import run as run_program

import evidens
from evidens import ops
from evidens.reference import logistic_mixture as reference

INF = math.inf
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_count = pytest.mark.parametrize("channels", CHANNELS)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def one(dtype, logits, means, log_scales, level):
    """One grey pixel of every level in `level`, all with the same parameters."""
    params = torch.tensor([*logits, *means, *log_scales], dtype=dtype).view(1, -1, 1, 1)
    x = torch.tensor(level).view(1, 1, 1, -1)
    return x, params.expand(1, -1, 1, len(level)).clone().requires_grad_()


# --- values ---------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("mean", [0.0, 3.0, -1e4, 1e20, -1e30])
@pytest.mark.parametrize("log_scale", [-1e30, -100.0, -7.0, 0.0, 50.0, 90.0, 1e4])
def test_extreme_parameters_give_numbers(mean, log_scale, dtype):
    x, params = one(dtype, [0.0], [mean], [log_scale], [0, 1, 100, 254, 255])
    y = ops.logistic_mixture_log_prob(x, params)
    assert not y.isnan().any()
    assert (y <= 0).all()
    (slopes,) = torch.autograd.grad(y.sum(), params)
    assert slopes.isfinite().all()
    want = reference.logistic_mixture_log_prob(x, params.double())
    most = torch.finfo(dtype).max / 16
    assert_within(y, want.clamp(min=-most), 1e-5 * want.abs() + 1e-5)
    ones = torch.ones(y.shape, dtype=torch.float64)
    slope = reference.logistic_mixture_log_prob_backward(x, params.double(), ones)
    assert_within(slopes, slope.clamp(-most, most), 1e-4 * slope.abs() + 1e-4)


@each_dtype
@each_count
def test_a_term_of_no_weight_is_none(channels, dtype):
    """A logit of -inf, wherever the term is; the others share the weight."""
    case = mixture(2, channels, 3, 20, 3, dtype=dtype)
    grad = torch.randn(2, 3, 20)
    kinds = 3 if channels == 1 else 10
    keep = torch.arange(3 * kinds) % 3 != 1
    two = case.with_(params=case.params[:, keep])
    case.params[:, 1] = -INF
    tolerance = dict(rtol=64 * torch.finfo(dtype).eps, atol=64 * torch.finfo(dtype).eps)
    torch.testing.assert_close(run(case), run(two), **tolerance)
    slopes = gradient(case, grad)
    assert (slopes[:, ~keep] == 0).all()
    torch.testing.assert_close(slopes[:, keep], gradient(two, grad), rtol=1e-3, atol=1e-4)


@each_dtype
def test_what_cannot_be_is_minus_infinity(dtype):
    """A scale of infinity leaves no mass to an inner bin."""
    x, params = one(dtype, [0.0, 0.0], [0.0, 1.0], [INF, INF], [5, 100])
    for backend in ("cpu", "reference"):
        with evidens.backend(backend):
            assert (ops.logistic_mixture_log_prob(x, params) == -INF).all()
    y = ops.logistic_mixture_log_prob(x, params)
    assert torch.autograd.grad(y.sum(), params)[0].isfinite().all()


@each_dtype
@each_count
def test_nan_stays_in_its_pixel(channels, dtype):
    case = mixture(1, channels, 5, 20, 2, dtype=dtype)
    clean, grad = run(case), torch.ones(1, 5, 20)
    slopes = gradient(case, grad)
    planes = case.params.shape[1]
    for plane in range(planes):
        bad = case.params.clone()
        bad[0, plane, plane % 5, plane % 20] = math.nan
        y, found = run(case.with_(params=bad)), gradient(case.with_(params=bad), grad)
        hit = torch.zeros(1, 5, 20, dtype=torch.bool)
        hit[0, plane % 5, plane % 20] = True
        assert torch.equal(y.isnan(), hit), plane
        assert torch.equal(y[~hit], clean[~hit])
        wide = hit[:, None].expand_as(found)
        assert found[wide].isnan().any()
        assert torch.equal(found[~wide], slopes[~wide])


@each_dtype
def test_equal_means_of_mirrored_images(dtype):
    """Level k under a mean is level 255 - k under its negative, to the bit."""
    case = mixture(2, 1, 5, 20, 1, dtype=dtype)
    mirrored = case.params.clone()
    mirrored[:, 1] *= -1
    assert torch.equal(run(case), run(case.with_(x=255 - case.x, params=mirrored)))


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("value", [-1, 256, 1000, 2**40, 0.5, math.nan, INF])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 2, 1, 3), (1, 1, 2, 16)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_no_level(place, value, backend, layout):
    case = mixture(2, 3, 3, 17, dtype=torch.float64)
    x = case.x.double().contiguous(memory_format=layout)
    x[place] = value
    params = case.params.contiguous(memory_format=layout)
    message = rf"x must hold integers 0 \.\. levels - 1 = 255, got .* at \({place[0]}, {place[1]}"
    with evidens.backend(backend), pytest.raises(ValueError, match=message):
        ops.logistic_mixture_log_prob(x, params)


def test_the_first_of_several_is_named():
    x = torch.zeros(4, 1, 40, 40)
    x[1, 0, 20, 3] = x[2, 0, 0, 0] = 300
    with pytest.raises(ValueError, match=r"got 300 at \(1, 0, 20, 3\)"):
        ops.logistic_mixture_log_prob(x, torch.zeros(4, 30, 40, 40))
    flat = torch.zeros(50, 3, 1, 1)
    flat[31, 2] = -4
    with pytest.raises(ValueError, match=r"got -4 at \(31, 2, 0, 0\)"):
        ops.logistic_mixture_log_prob(flat, torch.zeros(50, 30, 1, 1))


X, PARAMS = torch.zeros(2, 1, 4, 5), torch.zeros(2, 6, 4, 5)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (dict(x=X[:, 0]), ValueError, r"x must have shape \(N, C, H, W\) with C = 1 or 3.*\(2, 4"),
        (dict(x=torch.zeros(2, 2, 4, 5)), ValueError, r"C = 1 or 3, got \(2, 2, 4, 5\)"),
        (
            dict(x=X[:1]),
            ValueError,
            r"x must have shape.*\(2, 1, 4, 5\) on cpu.*got \(1, 1, 4, 5\)",
        ),
        (dict(x=torch.zeros(2, 1, 5, 4)), ValueError, r"got \(2, 1, 5, 4\)"),
        (dict(x=[1, 2]), TypeError, r"x must be a tensor of levels, got list"),
        (dict(x=X.to(torch.complex64)), TypeError, r"got torch.complex64"),
        (dict(x=X.to("meta")), ValueError, r"on cpu.*got \(2, 1, 4, 5\) on meta"),
        (dict(params=None), TypeError, r"params must be a torch.Tensor, got NoneType"),
        (dict(params=PARAMS.int()), TypeError, r"params must be float32 or float64.*torch.int32"),
        (
            dict(params=PARAMS[0]),
            ValueError,
            r"params must have shape \(N, P, H, W\), got \(6, 4, 5",
        ),
        (dict(params=PARAMS[:, :5]), ValueError, r"P = 3 M planes for C = 1, got P = 5"),
        (dict(params=PARAMS[:, :0]), ValueError, r"got P = 0"),
        (dict(x=torch.zeros(2, 3, 4, 5)), ValueError, r"P = 10 M planes for C = 3, got P = 6"),
        (dict(levels=1), ValueError, r"levels must be in 2 \.\. 65536, got 1"),
        (dict(levels=65537), ValueError, r"got 65537"),
        (dict(levels=2.5), TypeError, r"levels must be an integer.*2\.5"),
        (dict(min_log_scale=-81.0), ValueError, r"min_log_scale must be between -80 and 80.*-81"),
        (dict(min_log_scale=math.nan), ValueError, r"got nan"),
        (dict(min_log_scale="low"), (TypeError, ValueError), r"low"),
    ],
)
def test_bad_arguments(given, kind, message):
    arguments = {"x": X, "params": PARAMS} | given
    with pytest.raises(kind, match=message) as error:
        ops.logistic_mixture_log_prob(**arguments)
    assert (
        "evidens.logistic_mixture_log_prob" in str(error.value)
        or given.get("min_log_scale") == "low"
    )


# --- threads, forks and levels of the CPU ---------------------------------------------------------


@each_dtype
@each_count
@pytest.mark.parametrize("size", [(9, 40, 40), (3, 33, 35), (3000, 1, 1)], ids=str)
def test_number_of_threads(size, channels, dtype, set_threads):
    case = mixture(size[0], channels, *size[1:], 2, dtype=dtype)
    grad = torch.randn(size)

    def results():
        drawn = ops.logistic_mixture_sample(case.params, channels=channels, seed=4)
        return run(case), gradient(case, grad), drawn

    set_threads(1)
    want = results()
    for threads in (2, 3):
        set_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(results(), want))


@pytest.mark.parametrize("level", evidens.info()["isa"]["available"])
def test_every_level_agrees_with_the_reference(level):
    program = """
    import sys
    sys.path.insert(0, {tests!r})
    import torch, evidens
    from evidens.reference import logistic_mixture as reference
    from ops.logistic_mixture_cases import CHANNELS, DTYPES, check, mixture
    torch.set_num_threads(1)
    assert evidens.info()["isa"]["chosen"] == {level!r}
    for dtype in DTYPES:
        for channels in CHANNELS:
            for size in ((1, 1, 1), (2, 3, 9), (1, 8, 16)):
                for m in (1, 10):
                    case = mixture(size[0], channels, *size[1:], m, dtype=dtype)
                    check(case)
                    options = dict(channels=channels, seed=m)
                    drawn = evidens.ops.logistic_mixture_sample(case.params, **options)
                    want = reference.logistic_mixture_sample(case.params, **options)
                    assert torch.equal(drawn, want)
    print("done")
    """
    assert "done" in run_program(program.format(tests=str(TESTS), level=level), EVIDENS_ISA=level)
