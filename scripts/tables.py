"""Generate every benchmark table in the README and the docs from committed results.

    python scripts/tables.py [--check] [FILE ...]

Between `<!-- bench:gmm -->` and `<!-- /bench:gmm -->` stands the table of the stem's cases that
have a floor; `<!-- bench:gmm:all -->` takes every case, `<!-- bench:first -->` the first two with a
floor of every family, where they were measured last, `<!-- bench:machines -->` the machines that
were measured.  With --check nothing is written and a stale table is an error.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import report  # noqa: E402  needs the path above; standard library only

MARKED = re.compile(
    r"^(?P<open><!-- bench:(?P<stem>\w+)(?P<all>:all)? -->\n)"
    r".*?^(?P<close><!-- /bench:(?P=stem) -->)$",
    re.DOTALL | re.MULTILINE,
)
# By stem: baselines besides these of all.
OTHERS = {
    "autoregress": ("nflows",),
    "coupling": ("nflows",),
    "flows": ("nflows", "normflows", "zuko"),
    "hmm": ("hmmlearn", "dynamax", "jax"),
    "spline": ("nflows", "normflows", "zuko"),
}
# The families in the order of the README.
ORDER = ("gmm", "hmm", "spline", "coupling", "flows", "masked_conv", "autoregress",
         "logistic_mixture", "rbm", "rbm_partition")  # fmt: skip
OPEN = re.compile(r"^<!-- bench:", re.MULTILINE)


def load(folder: Path) -> dict[str, list[dict]]:
    """Result files by stem; refuses quick runs and unknown schemas."""
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        content = report.read(path)
        if content["size"] != "full":
            raise ValueError(f"{path}: a {content['size']} run is not a result")
        found.setdefault(content["stem"], []).append(content)
    return found


def machines(results: dict[str, list[dict]]) -> str:
    """One row per result file: what it ran on and when."""
    head = ("results", "machine", "limits", "versions", "measured")
    rows = []
    for stem, documents in results.items():
        for content in documents:
            m = content["machine"]
            rates = m["ceilings"]
            gemm = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates["gemm"].items())
            limits = f"GEMM {gemm} GFLOP/s; copy {rates['copy'] / 1e9:.0f} GB/s"
            names = ("evidens", "torch", *(("triton",) if m.get("gpu") else ()), "sklearn")
            names += OTHERS.get(stem, ())
            versions = report.versions_text(m, names)
            when = f"{m['time'][:10]}, commit {m['commit'] or 'unknown'}"
            rows.append((stem, f"{report.machine_text(m)}; {m['os']}", limits, versions, when))
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def first(results: dict[str, list[dict]]) -> str:
    """Two rows of every family, on the machine of its last measurement."""
    last = (max(results[stem], key=lambda d: d["machine"]["time"]) for stem in ORDER)
    shown = [d | {"results": [r for r in d["results"] if r["floors"]][:2]} for d in last]
    return report.markdown_table(shown, floors_only=True)


def render(text: str, results: dict[str, list[dict]], where: str) -> str:
    """The text with every marked table made anew."""

    def table(match: re.Match) -> str:
        stem = match["stem"]
        if stem == "machines":
            body = machines(results)
        elif stem == "first":
            body = first(results)
        elif stem in results:
            body = report.markdown_table(results[stem], floors_only=not match["all"])
        else:
            raise ValueError(f"{where}: no results for bench:{stem} under bench/results")
        return f"{match['open']}{body}\n{match['close']}"

    done = MARKED.sub(table, text)
    if len(OPEN.findall(done)) != len(MARKED.findall(done)):
        raise ValueError(f"{where}: a <!-- bench:... --> marker without its <!-- /bench:... -->")
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate the benchmark tables.")
    parser.add_argument("files", nargs="*", type=Path, help="default: README.md and docs/**/*.md")
    parser.add_argument("--check", action="store_true", help="fail where a table is stale")
    options = parser.parse_args()
    files = options.files or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    stale = 0
    try:
        results = load(ROOT / "bench" / "results")
        for path in files:
            text = path.read_text(encoding="utf-8")
            new = render(text, results, str(path))
            if new == text:
                continue
            if options.check:
                stale += 1
                diff = difflib.unified_diff(
                    text.splitlines(), new.splitlines(), str(path), "generated", lineterm=""
                )
                print("\n".join(diff))
            else:
                path.write_text(new, encoding="utf-8")
                print(f"updated {path}")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if stale:
        print(f"{stale} stale: run python scripts/tables.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
