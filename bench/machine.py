"""The machine block of a result file, the pinned threads, and the machine's own limits."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch


@contextlib.contextmanager
def pinned_threads(threads: int | None) -> Iterator[dict]:
    """Give every pool (torch, BLAS, OpenMP) the same number of threads; yields what they have."""
    import sklearn.utils  # noqa: F401  loads the BLAS and OpenMP pools, so that they are limited
    from threadpoolctl import threadpool_info, threadpool_limits

    before = torch.get_num_threads()
    threads = threads or before
    with threadpool_limits(limits=threads):
        torch.set_num_threads(threads)
        try:
            pools = [
                {"pool": p["internal_api"], "of": p["prefix"], "threads": p["num_threads"]}
                for p in threadpool_info()
            ]
            yield {"threads": torch.get_num_threads(), "pools": pools}
        finally:
            torch.set_num_threads(before)


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        names = ("model name", "cpu family", "model")
        name, *numbers = (re.search(rf"^{n}\s*:\s*(.+)$", text, re.M) for n in names)
        if name:
            # Virtual machines hide which generation it is behind a name without a number.
            found = name[1].strip()
            if re.search(r"\d", found) is None and all(numbers):
                found += f", family {numbers[0][1]} model {numbers[1][1]}"
            return found
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        done = subprocess.run([*command, "--abbrev=12"], capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def _isa() -> str | None:
    """The instruction set that evidens chose on this machine."""
    import evidens

    return evidens.info()["isa"]["chosen"]


def machine_block(pinned: dict) -> dict:
    """Everything about the machine and the software that a figure depends on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_model(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": pinned["threads"],
        "pools": pinned["pools"],
        "isa": _isa(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "sklearn": _version("scikit-learn"),
        "hmmlearn": _version("hmmlearn"),
        "dynamax": _version("dynamax"),
        "jax": _version("jax"),
        "nflows": _version("nflows"),
        "normflows": _version("normflows"),
        "zuko": _version("zuko"),
        "evidens": _version("evidens"),
        "commit": _commit(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def slug(block: dict) -> str:
    """A file-name part for a machine: its GPU, or CPU, instruction set and threads."""
    if block.get("gpu"):
        return re.sub(r"[^a-z0-9]+", "-", block["gpu"]["name"].lower()).strip("-")
    cpu = re.sub(r"\(r\)|\(tm\)|\bcpu\b|@.*|\bprocessor\b", " ", block["cpu"].lower())
    parts = [cpu, block["isa"] or "", f"{block['threads']}t"]
    return "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", p).strip("-") for p in parts)))


def _best(work: Callable[[], object], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def ceilings(size: str = "full") -> dict:
    """GEMM rate (flop/s) and exp rate (1/s) by dtype, copy bandwidth (bytes/s read + written)."""
    sides, repeats = ((256, 512, 1024, 2048), 5) if size == "full" else ((256, 512), 3)
    gemm, exp = {}, {}
    for dtype in (torch.float32, torch.float64):
        name = str(dtype).removeprefix("torch.")
        rates = []
        for side in sides:
            a = torch.randn(side, side, dtype=dtype)
            b, c = torch.randn_like(a), torch.empty_like(a)
            seconds = _best(lambda a=a, b=b, c=c: torch.mm(a, b, out=c), repeats)
            rates.append(2 * side**3 / seconds)
        gemm[name] = max(rates)
        # Stays in the cache: the limit is arithmetic, not memory.
        x = torch.rand(1 << 17, dtype=dtype).neg_()
        y = torch.empty_like(x)
        exp[name] = x.numel() / _best(lambda x=x, y=y: torch.exp(x, out=y), 50)
    source = torch.ones((1 << 26) if size == "full" else (1 << 23))
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / _best(lambda: target.copy_(source), 5)
    return {"gemm": gemm, "exp": exp, "copy": copy}


def best_of(*measured: dict) -> dict:
    """The highest rate of each kind: the fraction of the limit is never flattered by a lull."""
    return {
        "copy": max(m["copy"] for m in measured),
        **{
            kind: {name: max(m[kind][name] for m in measured) for name in measured[0][kind]}
            for kind in ("gemm", "exp")
        },
    }
