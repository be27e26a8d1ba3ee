"""The spline ops on every instruction set, any number of threads, addresses beyond 32 bits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ops.programs import TESTS, run
from ops.spline_cases import DTYPES, F32, NAMES, PARAMETERS, coupling, levels, op, spline

from evidens import ops


@pytest.fixture(params=PARAMETERS)
def parameters(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["forward", "inverse"])
def inverse(request):
    return request.param


def everything(case) -> list[torch.Tensor]:
    results = []
    for function in (op, coupling):
        for inverse in (False, True):
            leaves = case.leaves()
            values = function(case.with_(**dict(zip(NAMES, leaves))), inverse=inverse)
            weights = (torch.linspace(-1, 1, v.numel(), dtype=v.dtype).view_as(v) for v in values)
            total = sum((v * w).nan_to_num(neginf=0.0).sum() for v, w in zip(values, weights))
            results += [v.detach() for v in values] + list(torch.autograd.grad(total, leaves))
    return results


def test_number_of_threads(parameters, dtype):
    bound = None if parameters == "knots" else 2.0
    case = spline(3001, 7, 5, parameters, "linear", dtype, bound=bound)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = everything(case)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, everything(case), want))
    finally:
        torch.set_num_threads(before)


def test_rows_do_not_depend_on_each_other(parameters, dtype, inverse):
    """A row alone gives the bits that it gives among others."""
    bound = None if parameters == "knots" else 2.0
    case = spline(37, 3, 5, parameters, "linear", dtype, bound=bound)
    for function in (op, coupling):
        want = function(case, inverse=inverse)
        for row in (0, 13, 36):
            alone = case.with_(**{k: getattr(case, k)[row : row + 1] for k in NAMES})
            for a, b in zip(function(alone, inverse=inverse), want):
                assert torch.equal(a[0], b[row])


def test_python_threads_at_once():
    cases = [spline(900, 7, 5, p, "linear", t, bound=None) for p in PARAMETERS for t in DTYPES]
    want = [everything(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(everything, cases), want):
            assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("level", levels())
def test_every_level_agrees_with_the_reference(level):
    program = """
    import sys
    sys.path.insert(0, {tests!r})
    import evidens
    from ops.spline_cases import DTYPES, MIX, PARAMETERS, TAILS, check, spline
    assert evidens.info()["isa"]["chosen"] == {level!r}
    for parameters in PARAMETERS:
        bound = None if parameters == "knots" else 2.0
        for tails in (*TAILS, MIX):
            for dtype in DTYPES:
                for n, bins in ((1, 1), (13, 9), (50, 3)):
                    case = spline(n, 5, bins, parameters, tails, dtype, bound=bound)
                    for inverse in (False, True):
                        check(case, inverse)
    print("done")
    """
    assert "done" in run(program.format(tests=str(TESTS), level=level), EVIDENS_ISA=level)


def test_strides_beyond_32_bits(tmp_path, inverse):
    """Zeros in a file of holes: only pages that are written take memory."""
    case = spline(3, 2, 4, "nflows", "linear", F32)
    params, step = case.params, 2**31 + 8
    size = 2 * step + 64
    file = torch.from_numpy(np.memmap(tmp_path / "params", np.float32, "w+", shape=(size,)))
    far = file.as_strided(params.shape, (step, 16, 1))
    far.copy_(params)
    want = coupling(case, None, inverse)
    got = ops.spline_coupling(case.x, far, bins=4, inverse=inverse, **case.keywords)
    assert all(map(torch.equal, got, want))
