"""What the benchmarks on a GPU share: the clock, the device's own limits, and how a row is made.

Everything here also runs on the CPU (``--device cpu``) with another clock, so that it is tested
where there is no GPU.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .harness import OURS as OURS
from .harness import Case, Needs, Output, Provider, Setup

TORCH, COMPILED, GRAPH = "torch", "torch.compile", "torch, CUDA graph"
Function = Callable[..., object]
_HEAD_START = 1_000_000  # cycles that the device is kept busy while the host queues the work
_REPEATS = 5  # calls of a sample; its value is their median


@functools.cache
def _junk(device: str) -> Tensor:
    """Several times as large as the L2 cache; its writing throws everything else out."""
    size = torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(4 * size, dtype=torch.int8, device=device)


def _cuda_seconds(call: Callable[[], object]) -> tuple[float, object]:
    """Median seconds on the device by events, from a cold L2, and what the last call gave.

    The device sleeps while the host queues a call, so that gaps between launches do not count; a
    call during which the host waits for the device pays for that all the same.
    """
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(_REPEATS)]
    output = None
    for begin, end in marks:
        output = None  # its memory is free for the next call
        _junk("cuda").zero_()
        torch.cuda._sleep(_HEAD_START)
        begin.record()
        output = call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in marks) * 1e-3, output


def seconds(call: Callable[[], object], device: str) -> tuple[float, object]:
    """Seconds of one call, and what it gave."""
    if device == "cuda":
        return _cuda_seconds(call)
    started = time.perf_counter()
    output = call()
    return time.perf_counter() - started, output


def graphed(call: Callable[[], Output]) -> Callable[[], Output]:
    """The call recorded once and replayed: torch without its launches (CUDA only)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> Output:
        graph.replay()
        return output

    return replay


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32, which cuDNN takes by default; a row of TF32 names itself."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


# --- the machine ----------------------------------------------------------------------------------


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() or None if done.returncode == 0 else None


def block() -> dict:
    """The GPU and its software, for the machine block of a result file."""
    properties = torch.cuda.get_device_properties("cuda")
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "l2": properties.L2_cache_size,
        "driver": _driver(),
        "cuda": torch.version.cuda,
    }


def ceilings(size: str, device: str) -> dict:
    """GEMM rate and exp rate by dtype and copy bandwidth of the device, as `machine.ceilings`."""
    large = size == "full" and device == "cuda"
    sides, words = ((4096, 8192), 1 << 28) if large else ((64,), 1 << 12)

    def best(call: Callable[[], object]) -> float:
        call()
        return min(seconds(call, device)[0] for _ in range(3))

    gemm, exp = {}, {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        rates = []
        for side in sides:
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            c = torch.empty_like(a)
            rates.append(2 * side**3 / best(lambda a=a, b=b, c=c: torch.mm(a, b, out=c)))
        gemm[name] = max(rates)
        # Past the caches on a GPU; elementwise work cannot be bound by less than its traffic.
        x = torch.rand(words // 16, device=device).to(dtype).neg_()
        y = torch.empty_like(x)
        exp[name] = x.numel() / best(lambda x=x, y=y: torch.exp(x, out=y))
    source = torch.ones(words, device=device)
    target = torch.empty_like(source)
    return {
        "gemm": gemm,
        "exp": exp,
        "copy": 2 * source.nbytes / best(lambda: target.copy_(source)),
    }


# --- rows of the table ----------------------------------------------------------------------------


def compiled(function: Function, device: str) -> dict[str, Function]:
    """The function compiled for the shapes of its first call; on the CPU nothing, to be short."""
    if device != "cuda":
        return {}
    return {COMPILED: torch.compile(function, fullgraph=True, dynamic=False)}


def _named(found: object) -> Output:
    results = found if isinstance(found, tuple) else (found,)
    return {str(i): t.detach() for i, t in enumerate(results) if isinstance(t, Tensor)}


def setup(
    functions: dict[str, Function],
    oracle: Function,
    arguments: Sequence[Tensor],
    device: str,
    *,
    backward: bool = False,
    tolerance: float = 1e-4,
    needs: Needs | None = None,
    graph: bool = False,
) -> Setup:
    """Providers of one piece of work on the same tensors; the oracle takes them in float64.

    ``backward``: also the gradients of all arguments, for given gradients of the results.
    ``graph``: also torch's own function as a CUDA graph.
    """
    arguments = [t.requires_grad_(backward) for t in arguments]
    incoming: list[Tensor] = []

    def call(function: Function, wide: bool = False) -> Output:
        given = arguments
        if wide:
            given = [t.detach().double().requires_grad_(backward) for t in arguments]
        with torch.set_grad_enabled(backward):
            results = function(*given)
        if not backward:
            return _named(results)
        results = results if isinstance(results, tuple) else (results,)
        if not incoming:
            g = torch.Generator(device).manual_seed(0)
            incoming.extend(
                torch.randn(y.shape, generator=g, device=device, dtype=torch.float32).to(y.dtype)
                for y in results
            )
        back = [i.to(y.dtype) for i, y in zip(incoming, results)]
        return _named((*results, *torch.autograd.grad(results, given, back)))

    def provider(name: str, work: Callable[[], Output]) -> Provider:
        return Provider(name, work, functools.partial(seconds, work, device), warmup=work)

    providers = [provider(name, functools.partial(call, f)) for name, f in functions.items()]
    if graph and device == "cuda":
        recorded: list[Callable[[], Output]] = []

        def replay() -> Output:
            if not recorded:
                recorded.append(graphed(functools.partial(call, functions[TORCH])))
            return recorded[0]()

        providers.append(provider(GRAPH, replay))
    truth = functools.partial(call, oracle, wide=True)
    return Setup(providers, tolerance, oracle=truth, needs=needs)


def case(stem: str, work: str, size: str, build: Callable[[], Setup], *floors, **words) -> Case:
    """A row: its name is made of the work."""
    kept = "".join(c if c.isalnum() else "-" for c in f"gpu-{stem}-{work}".lower())
    pace = {"rounds": 7, "budget": 3.0} if size == "full" else {"rounds": 1, "budget": 0.5}
    dtype = words.pop("dtype", "float32")
    return Case("-".join(filter(None, kept.split("-"))), work, dtype, build, floors,
                **{**pace, **words})  # fmt: skip


def normal(*shape: int, device: str, seed: int = 0) -> Tensor:
    """Standard normals of the device's own generator."""
    g = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=g, device=device)
