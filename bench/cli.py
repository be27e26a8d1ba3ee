"""``python -m evidens bench``: check, time, print a table, and write JSON where asked."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from . import harness, machine, report


def stems() -> list[str]:
    """The stems that have a benchmark here: one ``bench_<stem>.py`` each."""
    names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name.removeprefix("bench_") for name in names if name.startswith("bench_"))


def load(stem: str):
    """The module ``bench_<stem>``."""
    return importlib.import_module(f".bench_{stem}", __package__)


def run(stem: str, size: str, threads: int | None, only: str, say=print) -> dict:
    """Measure one stem; returns the content of its result file."""
    with machine.pinned_threads(threads) as pinned:
        block = machine.machine_block(pinned)
        before = machine.ceilings(size)
        results = []
        for case in load(stem).cases(size):
            if only in case.name:
                say(f"  {stem}: {case.work}, {case.dtype}", file=sys.stderr, flush=True)
                results.append(harness.measure(case))
        block["ceilings"] = machine.best_of(before, machine.ceilings(size))
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
    parser.add_argument("--threads", type=int, metavar="N", help="threads of every pool")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with TEXT in the name")
    options = parser.parse_args(argv)
    chosen = options.stem or stems()
    if unknown := set(chosen) - set(stems()):
        parser.error(f"unknown stem {sorted(unknown)[0]!r}: choose from {', '.join(stems())}")
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
            content = run(stem, "quick" if options.quick else "full", options.threads, options.only)
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
