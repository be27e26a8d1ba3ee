"""Results depend on no thread count, on no fork, on no 32-bit address, and on no level by much."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ops.gmm_cases import DTYPES, OPS, TYPES, as_tuple, check, mixture
from ops.programs import TESTS, run

import evidens
from evidens import ops


@pytest.fixture(params=TYPES)
def covariance_type(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def results(case):
    """All ops, and the gradients of the differentiable ones, as one flat list."""
    values = [t for op in OPS for t in as_tuple(getattr(ops, op)(*case.arguments(op)))]
    leaves = [t.detach().clone().requires_grad_() for t in (case.x, *case.parameters[:3])]
    for op in OPS[:2]:
        y = getattr(ops, op)(*leaves, case.covariance_type)
        values += torch.autograd.grad(y, leaves, torch.linspace(-1, 1, y.numel()).to(y).view_as(y))
    # With the parameters alone, the gradient of log_prob takes the statistics' way.
    y = ops.gmm_log_prob(case.x, *leaves[1:], case.covariance_type)
    return values + list(torch.autograd.grad(y.sum(), leaves[1:]))


def assert_equal(a, b):
    for i, (u, v) in enumerate(zip(a, b)):
        assert torch.equal(u, v), i


# Eight blocks and more: every thread gets several, and the last one is not whole.
LARGE = (9001, 9, 11)


def test_number_of_threads(covariance_type, dtype, set_threads):
    case = mixture(*LARGE, covariance_type, dtype, below=0.0)
    set_threads(1)
    want = results(case)
    for threads in (2, 3):
        set_threads(threads)
        for _ in range(3):
            assert_equal(results(case), want)


@pytest.mark.parametrize("shape", [(3000, 33, 2), (600, 2, 300), (1, 5, 400)], ids=str)
def test_number_of_threads_at_odd_shapes(covariance_type, shape, set_threads):
    case = mixture(*shape, covariance_type, torch.float32, below=0.0)
    set_threads(1)
    want = results(case)
    set_threads(3)
    assert_equal(results(case), want)


def test_python_threads_at_once(covariance_type):
    cases = [mixture(*LARGE, covariance_type, t, below=0.0, seed=s) for t in DTYPES for s in (0, 1)]
    want = [results(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, expected in zip(pool.map(results, cases), want):
                assert_equal(got, expected)


def test_inside_autograd():
    """A kernel called in a backward pass that another thread started."""

    class Statistics(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, case):
            ctx.case = case
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            case = ctx.case
            total = ops.gmm_statistics(case.x, *case.parameters)[0]
            return grad * total.to(grad), None

    case = mixture(*LARGE, "full", torch.float64)
    want = ops.gmm_statistics(case.x, *case.parameters)[0]
    x = torch.ones((), dtype=torch.float64, requires_grad=True)
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(Statistics.apply(x, case).backward) for _ in range(4)]:
            job.result()
    assert x.grad == 4 * want


FORK = """
import faulthandler, os, sys
sys.path.insert(0, {tests!r})
faulthandler.dump_traceback_later(60, exit=True)
import numpy, torch
from ops.gmm_cases import OPS, TYPES, as_tuple, mixture
from evidens import ops

torch.set_num_threads(2)
cases = [mixture(9001, 9, 11, t, torch.float32) for t in TYPES]

def everything():
    return [
        t.numpy().tobytes()
        for case in cases for op in OPS for t in as_tuple(getattr(ops, op)(*case.arguments(op)))
    ] + [ops.philox_uniform(1, 2, 3000, 100).numpy().tobytes()]

want = everything()  # the pool has been used
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks; macOS forbids it after threads")
def test_forked_child():
    run(
        FORK.format(tests=str(TESTS))
        + """
child = os.fork()
if child == 0:
    os._exit(0 if everything() == want else 1)
assert os.waitpid(child, 0)[1] == 0
assert everything() == want  # the parent's pool is as it was
"""
    )


@pytest.mark.skipif(sys.platform != "linux", reason="forks; macOS forbids it after threads")
def test_forked_worker_process():
    run(
        FORK.format(tests=str(TESTS))
        + """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    for got in [job.get(60) for job in [pool.apply_async(everything) for _ in range(4)]]:
        assert got == want
"""
    )


# --- instruction sets -----------------------------------------------------------------------------


@pytest.mark.parametrize("level", evidens.info()["isa"]["available"])
def test_every_level_agrees_with_the_reference(level):
    """Sizes around the tiles: 8 to 64 rows of data, 6 columns of P, 12 of the moments."""
    program = """
    import sys
    sys.path.insert(0, {tests!r})
    import torch, evidens
    from ops.gmm_cases import DTYPES, OPS, TYPES, check, mixture
    torch.set_num_threads(1)  # many small calls: the threads are tested above
    assert evidens.info()["isa"]["chosen"] == {level!r}
    sizes = [(n, d, k) for n in (1, 9, 33, 65) for d, k in ((1, 1), (7, 3), (13, 5), (24, 2))]
    for n, d, k in [*sizes, (1500, 12, 5), (400, 65, 3)]:
        for covariance_type in TYPES:
            for dtype in DTYPES:
                for op in OPS:
                    check(op, mixture(n, d, k, covariance_type, dtype))
    u = evidens.ops.philox_uniform(1, 2, 33, 17)
    assert torch.equal(u, evidens.reference.philox.philox_uniform(1, 2, 33, 17))
    print("done")
    """
    assert "done" in run(program.format(tests=str(TESTS), level=level), EVIDENS_ISA=level)


def test_unknown_level():
    program = "import evidens"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"EVIDENS_ISA": "v5"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    levels = ", ".join(evidens.info()["isa"]["available"])
    assert f"EVIDENS_ISA: expected one of {levels} on this machine, got 'v5'" in done.stderr


# --- addresses beyond 32 bits ---------------------------------------------------------------------


def sparse(path: Path, elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros in a file of holes: only pages that are written take memory."""
    numpy_dtype = np.float32 if dtype is torch.float32 else np.float64
    return torch.from_numpy(np.memmap(path, numpy_dtype, "w+", shape=(elements,)))


@pytest.mark.skipif(sys.platform == "win32", reason="files have no holes without asking")
def test_strides_beyond_32_bits(covariance_type, dtype, tmp_path):
    n, d = 5, 3
    case = mixture(n, d, 4, covariance_type, dtype)
    step = 2**31 + 8  # in elements; a 32-bit product of it with any row is wrong
    for stride in ((step, 1), (1, step)):
        size = 1 + (n - 1) * stride[0] + (d - 1) * stride[1]
        x = sparse(tmp_path / f"{stride[0]}", size, dtype).as_strided((n, d), stride)
        x.copy_(case.x)
        for op in OPS:
            check(op, case, given=case.with_(x=x))


def test_more_than_2_31_elements():
    """Rows that repeat a few in memory: 2^31 elements of x without the memory for them."""
    n = 2**31 // 64 + 3
    row = torch.linspace(-1, 1, 64)
    parameters = torch.zeros(1), torch.zeros(1, 64), torch.ones(1), "spherical"
    y = ops.gmm_log_prob(row.expand(n, 64), *parameters)
    want = ops.gmm_log_prob(row[None], *parameters)
    assert y.shape == (n,)
    assert (y == want).all()
    log_likelihood, weight, _, _ = ops.gmm_statistics(row.expand(n, 64), *parameters)
    assert weight.item() == n
    assert log_likelihood.item() == pytest.approx(n * want.item(), rel=1e-12)
