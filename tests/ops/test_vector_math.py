"""The functions of the vector layer: error in units in the last place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evidens
from evidens._native import library

FUNCTIONS = ("exp", "log", "log1p", "tanh", "softplus", "atan")
# VectorFunction of csrc/kernels.h
CODES = ("exp", "log", "log1p", "tanh", "softplus", "exp_nonpositive", "atan")
DTYPES = (np.float32, np.float64)
# In ULP: the worst of about 8e7 float32 and 4e7 float64 values on every level of x86-64
# (docs/design.md has the table),
# rounded up to the next half.
BOUNDS = {
    ("exp", np.float32): 1.5,
    ("exp", np.float64): 1.5,
    ("log", np.float32): 1.0,
    ("log", np.float64): 1.0,
    ("log1p", np.float32): 1.5,
    ("log1p", np.float64): 1.5,
    ("tanh", np.float32): 3.0,
    ("tanh", np.float64): 3.0,
    ("softplus", np.float32): 2.0,
    ("softplus", np.float64): 2.0,
    ("atan", np.float32): 2.0,
    ("atan", np.float64): 2.0,
}
# Where accuracy is hardest: 0 and 1, the ends of the reduced ranges, the ends of the results.
INTERVALS = (
    (-2, 2),
    (-0.35, 0.5),
    (0.99, 1.01),
    (-1e-3, 1e-3),
    (-20, 20),
    (-104, 89.5),
    (-746, 710),
    (-1.0, -0.99),
)
EXTENDED = np.finfo(np.longdouble).nmant >= 63


def call(function: str, x: np.ndarray) -> np.ndarray:
    y = np.full_like(x, 123.0)
    library.vector_math(
        CODES.index(function), x.dtype == np.float64, x.size, x.ctypes.data, y.ctypes.data
    )
    return y


def exact(function: str, x: np.ndarray) -> np.ndarray:
    """In at least eleven bits more than `x` has."""
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    with np.errstate(all="ignore"):
        x = x.astype(wide)
        if function == "softplus":
            return np.logaddexp(wide(0), x)
        return getattr(np, {"atan": "arctan"}.get(function, function))(x)


def samples(dtype: type, count: int) -> np.ndarray:
    """Every kind of bit pattern, and the intervals; exponents are as frequent as they are many."""
    rng = np.random.default_rng(0)
    integer = np.int32 if dtype is np.float32 else np.int64
    info = np.iinfo(integer)
    bits = rng.integers(info.min, info.max, 4 * count, integer, endpoint=True).view(dtype)
    drawn = [rng.uniform(low, high, count).astype(dtype) for low, high in INTERVALS]
    # Logarithmic on both sides of 0 and of 1.
    power = rng.uniform(-np.finfo(dtype).nmant, 0, count)
    small = (2.0**power * rng.choice([-1, 1], count)).astype(dtype)
    return np.concatenate([bits[~np.isnan(bits)], *drawn, small, 1 + small])


def specials(dtype: type) -> np.ndarray:
    info = np.finfo(dtype)
    borders = [0, 1, info.tiny, info.smallest_subnormal, info.max, info.eps, np.inf, 0.5, 2, 22, 44]
    edges = [np.log(info.max), np.log(info.tiny), np.log(float(info.smallest_subnormal)) - 0.7]
    values = np.array(borders + edges + [np.sqrt(0.5), np.sqrt(2) - 1]).astype(dtype)
    with np.errstate(over="ignore"):
        around = [np.nextafter(values, dtype(s) * np.inf) for s in (-1, 1)]
    values = np.concatenate([values, *around])
    return np.concatenate([values, -values])


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Error in units of the last place that `want` has in the dtype of `got`."""
    info = np.finfo(got.dtype)
    exponent = np.maximum(np.frexp(want)[1] - 1, info.minexp) - info.nmant
    return np.abs(got.astype(want.dtype) - want) / np.ldexp(want.dtype.type(1), exponent)


def assert_accurate(function: str, x: np.ndarray, bound: float) -> None:
    got, want = call(function, x), exact(function, x)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = want.astype(x.dtype)
    assert np.array_equal(np.isnan(got), np.isnan(rounded))
    infinite = np.isinf(rounded)
    assert np.array_equal(got[infinite], rounded[infinite])
    zero = want == 0
    assert np.array_equal(np.signbit(got[zero]), np.signbit(rounded[zero]))
    finite = np.isfinite(rounded)
    error = ulps(got[finite], want[finite])
    worst = error.argmax()
    assert error[worst] <= bound, (
        f"{function}({x[finite][worst]!r}) = {got[finite][worst]!r}, "
        f"off by {error[worst]:.3f} ULP of {want[finite][worst]!r}"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_whole_range(function, dtype):
    if dtype is np.float64 and not EXTENDED:
        pytest.skip("long double has no more bits than double here; test_against_mpmath serves")
    assert_accurate(function, samples(dtype, 50_000), BOUNDS[function, dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_specials(function, dtype):
    if dtype is np.float64 and not EXTENDED:
        pytest.skip("long double has no more bits than double here; test_against_mpmath serves")
    assert_accurate(function, specials(dtype), BOUNDS[function, dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_values(dtype):
    inf, nan = np.inf, np.nan
    table = {
        "exp": ([0.0, -0.0, -inf, inf, nan], [1, 1, 0, inf, nan]),
        "log": ([1.0, 0.0, -0.0, -1.0, -inf, inf, nan], [0, -inf, -inf, nan, nan, inf, nan]),
        "log1p": ([0.0, -0.0, -1.0, -1.5, -inf, inf, nan], [0, -0.0, -inf, nan, nan, inf, nan]),
        "tanh": ([0.0, -0.0, 50.0, -inf, inf, nan], [0, -0.0, 1, -1, 1, nan]),
        "softplus": ([-inf, inf, nan], [0, inf, nan]),
        "atan": ([0.0, -0.0, inf, -inf, nan], [0, -0.0, np.pi / 2, -np.pi / 2, nan]),
    }
    for function, (x, y) in table.items():
        got = call(function, np.array(x, dtype))
        # assert_array_equal treats NaN as equal but not the sign of zero.
        np.testing.assert_array_equal(got, np.array(y, dtype), err_msg=function)
        assert np.array_equal(np.signbit(got[got == 0]), np.signbit(np.array(y)[got == 0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_nonpositive(dtype):
    """exp, but 0 for what is below the normal numbers."""
    x = np.concatenate([samples(dtype, 50_000), specials(dtype)])
    x = x[x <= 0]
    got, full = call("exp_nonpositive", x), call("exp", x)
    tiny = np.finfo(dtype).tiny
    normal = full > tiny
    assert (np.abs(got - full)[normal] <= np.spacing(full[normal])).all()
    assert ((got[~normal] == 0) | ((got[~normal] >= tiny) & (got[~normal] <= 2 * tiny))).all()
    ends = np.array([0.0, -0.0, -np.inf, np.nan, np.log(tiny) - 1], dtype)
    np.testing.assert_array_equal(
        call("exp_nonpositive", ends), np.array([1, 1, 0, np.nan, 0], dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", CODES)
def test_every_nan(function, dtype):
    """A NaN may carry anything in its mantissa, as R's NA does."""
    integer, quiet = (np.int32, 0x7FC00000) if dtype is np.float32 else (np.int64, 0x7FF8 << 48)
    payloads = np.random.default_rng(0).integers(0, np.finfo(dtype).nmant ** 3, 1000)
    bits = (quiet | np.concatenate([[0, 1, 0x7A2, 0x180, quiet >> 4], payloads])).astype(integer)
    x = np.concatenate([bits, bits | np.iinfo(integer).min]).view(dtype)
    assert np.isnan(x).all()
    assert np.isnan(call(function, x)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_against_mpmath(function, dtype):
    """Checks the wider oracle as well, and takes its place where there is none."""
    mpmath = pytest.importorskip("mpmath", reason="oracle with 40 digits; comes with torch's sympy")
    x = samples(dtype, 150)
    x = x[np.isfinite(x)]
    got = call(function, x)
    info = np.finfo(dtype)
    apply = {
        "log1p": lambda v: mpmath.log(1 + v),
        "softplus": lambda v: mpmath.log(1 + mpmath.exp(v)),
    }.get(function, getattr(mpmath, function, None))
    # 1 + v and exp(v) keep all digits down to the smallest v that matters: 2^-1074 of 1.
    with mpmath.workdps(700 if function in ("log1p", "softplus") else 40):
        for v, y in zip(x.tolist(), got.tolist()):
            if (function == "log" and v <= 0) or (function == "log1p" and v <= -1):
                assert np.isnan(y) or y == -np.inf
                continue
            if abs(v) > 1e4 and function in ("exp", "softplus"):
                assert y == ((0 if v < 0 else np.inf) if function == "exp" else max(v, 0))
                continue
            if abs(v) > 1e4 and function == "tanh":
                assert y == np.sign(v)
                continue
            want = apply(mpmath.mpf(v))
            if want > mpmath.mpf(float(info.max)):
                assert y == np.inf
                continue
            exponent = max(int(mpmath.mag(want)) - 1, info.minexp) if want else info.minexp
            error = abs(mpmath.mpf(y) - want) / mpmath.ldexp(1, exponent - info.nmant)
            assert error <= BOUNDS[function, dtype], (v, y, error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_value_does_not_depend_on_its_lane(function, dtype):
    x = np.linspace(0.1, 3, 40).astype(dtype)
    whole = call(function, x)
    for n in range(40):
        assert np.array_equal(call(function, x[:n]), whole[:n])
        assert np.array_equal(call(function, x[n:]), whole[n:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_monotone_up_to_its_bound(function, dtype):
    x = np.sort(samples(dtype, 20_000))
    x = x[x > {"log": 0, "log1p": -1}.get(function, -np.inf)]
    y = call(function, x)
    with np.errstate(invalid="ignore"):
        fall = np.maximum.accumulate(y) - y
    slack = 2 * BOUNDS[function, dtype] * np.spacing(np.abs(np.where(np.isinf(y), 1, y)))
    assert (fall[np.isfinite(fall)] <= slack[np.isfinite(fall)]).all()


@pytest.mark.parametrize("level", evidens.info()["isa"]["available"])
def test_every_level(level):
    if level == evidens.info()["isa"]["chosen"]:
        pytest.skip("the level of this process: the other tests run it")
    tests = [f"{__file__}::{name}" for name in ("test_whole_range", "test_specials")]
    more = ("test_exact_values", "test_exp_nonpositive", "test_every_nan")
    tests += [f"{__file__}::{name}" for name in more]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        env=os.environ | {"EVIDENS_ISA": level},
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
