"""Every op of every stem on a GPU as on a CPU: values, gradients, layouts, streams and graphs.

The rows stand in `calls`.  What needs no GPU runs on CPU tensors too, so that these tests are
themselves tested where there is none.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator

import pytest
import torch
from gpu.calls import CALLS, Call, Given, Results, close
from torch import Tensor

import evidens
from evidens.ops import _registry

needs_cuda = pytest.mark.needs_cuda
pytestmark = pytest.mark.filterwarnings("ignore:.*running the plain torch reference:RuntimeWarning")
DTYPES = [torch.float32, torch.float64]
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
SUMS_OVER_ROWS = (
    "gmm_moments",
    "gmm_statistics",
    "hmm_forward_backward",
    "hmm_gaussian_statistics",
    "rbm_statistics",
    "rbm_pcd",
    "rbm_exact_log_partition",
)


def over(calls: Iterable[Call]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("call", [pytest.param(c, id=c.name) for c in calls])


FIRST = {call.op: call for call in reversed(CALLS.values())}
each_call = over(CALLS.values())
one_of_each_op = over(FIRST.values())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_device = pytest.mark.parametrize("device", DEVICES)


def gradients(given: Given) -> Results:
    """Results and the gradients of a fixed combination of them in all tensors."""
    leaves = [t.detach().clone().requires_grad_() for t in given.tensors]
    found = given(*leaves)
    total = torch.zeros((), dtype=torch.float64, device=found[0].device)
    for i, y in enumerate(found):
        weights = torch.linspace(-1 - i, 2, y.numel(), dtype=y.dtype, device=y.device)
        total = total + (weights.view(y.shape) * y).sum()
    return *found, *torch.autograd.grad(total, leaves)


def exact(call: Call, given: Given, dtype: torch.dtype) -> Results:
    """The reference on the CPU, in float64 of the same numbers."""
    host = given.on("cpu", dtype)
    if given.rows and call.op not in (
        "rbm_gibbs",
        "rbm_pcd",
    ):  # of draws the dtype is part of what is asked
        host = host.on("cpu", torch.float64)
    with evidens.backend("reference"):
        return gradients(host) if call.gradient else host()


@each_device
@each_dtype
@each_call
@pytest.mark.parametrize("n", [0, 1, 37])
def test_equals_the_reference(call, n, dtype, device):
    given = call.given(n)
    here = given.on(device, dtype)
    found = gradients(here) if call.gradient else here()
    assert all(t.device.type == device for t in found)
    close(found, exact(call, given, dtype), dtype)


@each_device
@each_call
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_widened(call, half, device):
    given = call.given(9).on(device, half)
    if not call.halves:
        with pytest.raises((TypeError, ValueError), match="float16"):
            given()
        return
    widened = given.on(device, torch.float32)
    for a, b in zip(given(), widened()):
        assert a.dtype is b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def spread(t: Tensor) -> Tensor:
    """The same numbers with NaN between them."""
    wide = torch.full([2 * s + 1 for s in t.shape], math.nan, dtype=t.dtype, device=t.device)
    return wide[tuple(slice(1, None, 2) for _ in t.shape)].copy_(t)


def turned(t: Tensor) -> Tensor:
    """The same numbers with the first axis innermost."""
    return t.movedim(0, -1).contiguous().movedim(-1, 0) if t.dim() else t


@each_device
@each_call
@pytest.mark.parametrize("layout", ["spread", "turned", "expanded"])
def test_layouts(call, layout, device):
    given = call.given(9).on(device, torch.float64)
    if layout == "expanded":
        strided = [
            t[:1].expand(9, *t.shape[1:]) if i in given.rows else t
            for i, t in enumerate(given.tensors)
        ]
    else:
        strided = [(spread if layout == "spread" else turned)(t) for t in given.tensors]
    plain = given._replace(tensors=[t.contiguous() for t in strided])
    strided = given._replace(tensors=strided)
    if call.gradient:
        close(gradients(strided), gradients(plain), torch.float64)
    close(strided(), plain(), torch.float64)


@each_device
@each_dtype
@each_call
def test_the_same_bits_twice(call, dtype, device):
    given = call.given(130).on(device, dtype)
    run = gradients if call.gradient else Given.__call__
    for a, b in zip(run(given), run(given)):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@each_device
@over(call for call in CALLS.values() if call.op not in SUMS_OVER_ROWS)
def test_rows_do_not_know_each_other(call, device):
    """A row's draws and values are those of the row alone."""
    given = call.given(20).on(device, torch.float64)
    tensors = [t[:3] if i in given.rows else t for i, t in enumerate(given.tensors)]
    # Lengths and levels are by row, degrees and features are not.
    indices = [i[:3] if call.op.startswith("hmm") or i.ndim > 3 else i for i in given.indices]
    part = given._replace(tensors=tensors, indices=indices)
    if not given.rows:
        part = call.given(3).on(device, torch.float64)
    for a, b in zip(part(), given()):
        of_rows = b[:, :3] if call.op == "hmm_sample_paths" else b[:3]
        close((a,), (of_rows,), torch.float64)


@over(call for op, call in FIRST.items() if op)
def test_the_table_knows_who_waits(call):
    """torch.compile leaves an op out of its CUDA graphs where some call cannot be recorded."""
    waits = any(other.waits for other in CALLS.values() if other.op == call.op)
    tags = getattr(torch.ops.evidens, call.op).default.tags
    assert (torch.Tag.cudagraph_unsafe in tags) == waits
    assert (_registry.OPS[call.op].implementations["triton"] is not None) == call.kernel


def test_every_op_is_in_the_table():
    gradients = {f"{name}_backward" for name in _registry.OPS} & set(_registry.OPS)
    assert {call.op for call in CALLS.values()} - {""} == set(_registry.OPS) - gradients
    named = {call.name.split("-")[0] for call in CALLS.values() if not call.op}
    assert named <= set(evidens.ops.__all__)


@each_device
@one_of_each_op
def test_compiled(call, device):
    """With CUDA graphs on a GPU; several calls, so that they are recorded and replayed."""
    torch._dynamo.reset()
    options = {"mode": "reduce-overhead"} if device == "cuda" else {"backend": "eager"}
    given = call.given(9).on(device, torch.float32)
    function = torch.compile(lambda *tensors: given.function(*tensors, *given.indices), **options)
    for turn in range(4 if device == "cuda" else 1):
        tensors = [t.roll(turn, 0) if i in given.rows else t for i, t in enumerate(given.tensors)]
        found = function(*tensors)
        found = found if isinstance(found, tuple) else (found,)
        close(tuple(t.clone() for t in found), given(*tensors), torch.float32)
    torch._dynamo.reset()


# --- on a GPU only --------------------------------------------------------------------------------


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@needs_cuda
@each_call
def test_the_host_waits_only_where_the_table_says_so(call):
    given = call.given(37).on("cuda", torch.float32)
    run = gradients if call.gradient else Given.__call__
    run(given)  # what is made once waits once
    torch.cuda.synchronize()
    if call.waits:
        with waiting_is_an_error(), pytest.raises(RuntimeError, match="synchroniz"):
            run(given)
    else:
        with waiting_is_an_error():
            run(given)


@needs_cuda
@over(call for call in CALLS.values() if not call.waits)
def test_a_cuda_graph_is_replayed_with_new_inputs(call):
    given = call.given(37).on("cuda", torch.float32)
    static = given._replace(tensors=[t.clone() for t in given.tensors])
    run = gradients if call.gradient else Given.__call__
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(static)
    for turn in (1, 2):
        tensors = [t.roll(turn, 0) if i in given.rows else t for i, t in enumerate(given.tensors)]
        for t, new in zip(static.tensors, tensors):
            t.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        close(found, run(given._replace(tensors=tensors)), torch.float32)


@needs_cuda
@each_call
def test_two_streams_at_once(call):
    """Each behind a long kernel: what is not ordered on its stream reads too early."""
    given = call.given(37).on("cuda", torch.float64)
    run = gradients if call.gradient else Given.__call__
    want = run(given)
    torch.cuda.synchronize()
    found = []
    for stream in (torch.cuda.Stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            late = [torch.full_like(t, math.nan) for t in given.tensors]
            torch.cuda._sleep(20_000_000)
            for t, value in zip(late, given.tensors):
                t.copy_(value)
            found.append(run(given._replace(tensors=late)))
    torch.cuda.synchronize()
    for each in found:
        close(each, want, torch.float64)


@needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
@each_call
def test_a_device_that_is_not_the_current_one(call):
    given = call.given(37)
    there = given.on("cuda:1", torch.float64)
    assert torch.cuda.current_device() == 0
    found = gradients(there) if call.gradient else there()
    assert all(t.device == torch.device("cuda:1") for t in found)
    close(found, exact(call, given, torch.float64), torch.float64)


@needs_cuda
@each_dtype
@pytest.mark.parametrize("rows", [1, 1000])
def test_draws_are_those_of_the_cpu(rows, dtype):
    options = {"seed": 2**63 + 11, "step": 5, "rows": rows, "columns": 1031, "dtype": dtype}
    here, there = (evidens.ops.philox_uniform(**options, device=d) for d in ("cuda", "cpu"))
    assert torch.equal(here.cpu(), there)
