"""``python -m evidens bench``: check, time, print a table, and write JSON where asked."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import pkgutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from . import harness, machine, report

DEVICES = ("cuda", "cpu")


def _prefix(device: str | None) -> str:
    return "gpu_" if device else "bench_"


def stems(device: str | None = None) -> list[str]:
    """The stems with a ``bench_<stem>.py``, or for a device with a ``gpu_<stem>.py``."""
    prefix = _prefix(device)
    names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def load(stem: str, device: str | None = None):
    """The module ``bench_<stem>`` or ``gpu_<stem>``."""
    return importlib.import_module(f".{_prefix(device)}{stem}", __package__)


def run(
    stem: str,
    size: str,
    threads: int | None,
    only: str,
    say=print,
    device: str | None = None,
) -> dict:
    """Measure one stem; returns the content of its result file."""
    ceilings, cases = machine.ceilings, load(stem, device).cases
    precision: contextlib.AbstractContextManager = contextlib.nullcontext()
    if device:
        from . import gpu

        ceilings = functools.partial(gpu.ceilings, device=device)
        cases, precision = functools.partial(cases, device=device), gpu.exact_float32()
    with machine.pinned_threads(threads) as pinned, precision:
        block = machine.machine_block(pinned)
        if device == "cuda":
            block["gpu"] = gpu.block()
        before = ceilings(size)
        results = []
        for case in cases(size):
            if only in case.name:
                say(f"  {stem}: {case.work}, {case.dtype}", file=sys.stderr, flush=True)
                results.append(harness.measure(case))
        block["ceilings"] = machine.best_of(before, ceilings(size))
    for result in results:
        harness.finish(result, block["ceilings"], judge=size == "full")
    return report.document(stem, size, block, results)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 1 where a provider's result is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m evidens bench",
        description="Speed beside the incumbents on this machine, equality checked first.",
    )
    parser.add_argument("stem", nargs="*", help=f"what to run (all: {', '.join(stems())})")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write results: a file, "
                        "or a folder that gets <stem>-<machine>.json")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--size", choices=harness.SIZES, help="sizes by name (default: full)")
    parser.add_argument("--device", choices=DEVICES, help="the suite for GPUs: cuda, or cpu to try "
                        f"it without one ({', '.join(stems('cuda'))})")  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="threads of every pool")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with TEXT in the name")
    options = parser.parse_args(argv)
    known = stems(options.device)
    chosen = options.stem or known
    if unknown := set(chosen) - set(known):
        parser.error(f"unknown stem {sorted(unknown)[0]!r}: choose from {', '.join(known)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch.cuda.is_available() is False; --device cpu --size smoke "
                     "tries the same code")  # fmt: skip
    size = "quick" if options.quick else options.size or "full"
    if options.quick and options.size not in (None, "quick"):
        parser.error("--quick is --size quick: give one of them")
    if options.device == "cpu" and (size == "full" or options.json):
        parser.error("--device cpu only tries the code: take --size smoke or quick, without --json")
    file = options.json if options.json and options.json.suffix == ".json" else None
    if file and len(chosen) > 1:
        parser.error("--json with a file takes one stem; name a folder for several")
    if options.threads is not None and options.threads < 1:
        parser.error("--threads must be at least 1")

    # The compiler's own deprecations are not the reader's business.
    warnings.filterwarnings("ignore", module=r"torch\.")
    status = 0
    for stem in chosen:
        try:
            content = run(stem, size, options.threads, options.only, device=options.device)
        except harness.CheckFailed as error:
            print(f"{stem}: refused to time, the results differ: {error}", file=sys.stderr)
            status = 1
            continue
        print(report.machine_lines(content["machine"]))
        print(report.terminal_table(content["results"]), end="\n\n")
        if options.json:
            name = f"{stem}-{machine.slug(content['machine'])}.json"
            report.write(file or options.json / name, content)
            print(f"wrote {file or options.json / name}")
    return status


if __name__ == "__main__":
    sys.exit(main())
