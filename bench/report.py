"""Result files and tables.  Standard library only: ``scripts/tables.py`` reads it too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

SCHEMA = 1
OURS = "evidens"


def document(stem: str, size: str, machine: dict, results: list[dict]) -> dict:
    """What one run of one stem leaves behind."""
    return {"schema": SCHEMA, "stem": stem, "size": size, "machine": machine, "results": results}


def write(path: Path, content: dict) -> None:
    """Write a result file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> dict:
    """A result file; raises ValueError where it is of another schema."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {content.get('schema')}, expected {SCHEMA}: run it again")
    return content


def value_text(value: float, unit: str) -> str:
    """A time or a size in three digits."""
    if unit == "MB":
        return f"{value:.0f} MB" if abs(value) >= 10 else f"{value:.1f} MB"
    for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if value * factor >= 1:
            return f"{value * factor:#.3g}".rstrip(".") + f" {name}"
    return f"{value * 1e9:.0f} ns"


def ratio_text(ratio: float) -> str:
    """How many times faster, or smaller."""
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.1f}x"


def error_text(error: float | None) -> str:
    """One digit and the exponent."""
    if error is None:
        return "-"
    return "0" if error == 0 else f"{error:.0e}"


def floor_text(floor: dict, unit: str) -> str:
    """What a case must reach."""
    if floor["kind"] == "ratio":
        return f">= {floor['value']:g}x {floor['baseline']}"
    if floor["kind"] == "fraction":
        return f">= {floor['value']:.0%} of limit"
    if floor["kind"] == "error":
        return f"error <= {error_text(floor['value'])}"
    return f"<= {value_text(floor['value'], unit)}"


def limit_text(result: dict) -> str:
    """Fraction of the machine's own limit, and which limit."""
    limit = result["limit"]
    return "-" if limit is None else f"{limit['fraction']:.0%} of {limit['kind']}"


def _verdict(result: dict, index: int) -> str:
    reached = result["reached"]
    if reached is None:
        return ""
    return {True: " reached", False: " MISSED", None: " not measured"}[reached[index]]


def align(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of cells as text columns; the columns in ``right`` are flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def terminal_table(results: list[dict]) -> str:
    """Every provider of every case: speed, ratio to ours, error; floor and limit for ours."""
    head = ("work", "dtype", "by", "median", "quartiles", "n", "ratio", "error", "limit", "floor")
    rows = [head]
    for result in results:
        unit, floors = result["unit"], result["floors"]
        texts = [floor_text(f, unit) + _verdict(result, i) for i, f in enumerate(floors)]
        for name, p in result["providers"].items():
            ours = name == OURS
            spread = f"{value_text(p['q1'], unit)} .. {value_text(p['q3'], unit)}"
            rows.append(
                (
                    result["work"] if ours else "",
                    result["dtype"] if ours else "",
                    name,
                    value_text(p["median"], unit),
                    spread if p["samples"] > 1 else "",
                    str(p["samples"]),
                    "" if ours else ratio_text(result["ratio"][name]),
                    error_text(p["error"]),
                    limit_text(result) if ours else "",
                    "; ".join(texts) if ours else "",
                )
            )
        for name, part in result.get("parts", {}).items():
            share = f"{part['share']:.0%} of ours"
            rows.append(("", "", f"  {name}", value_text(part["median"], unit), share, *[""] * 5))
        for name, reason in result["unavailable"].items():
            rows.append(("", "", name, "-", reason[:40], "", "", "", "", ""))
    return align(rows, right=(3, 5, 6, 7))


def machine_text(machine: dict) -> str:
    """One line: GPU and driver, or CPU, instruction set, threads."""
    if gpu := machine.get("gpu"):
        return f"{gpu['name']}, driver {gpu['driver'] or 'unknown'}"
    return f"{machine['cpu']}, {machine['isa']}, {machine['threads']} threads"


def versions_text(machine: dict, names: Sequence[str]) -> str:
    """The versions of those that the machine has."""
    return ", ".join(f"{name} {machine[name]}" for name in names if machine.get(name))


def machine_lines(machine: dict) -> str:
    """The head of a run: machine, versions, pools and the machine's own limits."""
    rates = machine["ceilings"]
    pools = ", ".join(f"{p['pool']} ({p['of']}) {p['threads']}" for p in machine["pools"])
    gemm = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates["gemm"].items())
    exp = ", ".join(f"{name} {rate / 1e9:.2f}" for name, rate in rates["exp"].items())
    versions = ("evidens", "torch", "triton", "numpy", "sklearn", "hmmlearn", "dynamax", "jax",
                "nflows", "normflows", "zuko", "python")  # fmt: skip
    return "\n".join(
        (
            f"machine   {machine_text(machine)}; {machine['cores']} cores; {machine['os']}",
            "versions  " + versions_text(machine, versions),
            f"threads   torch {machine['threads']}; {pools}",
            f"limits    GEMM {gemm} GFLOP/s; copy {rates['copy'] / 1e9:.1f} GB/s; exp {exp} G/s",
        )
    )


def _measured(result: dict) -> str:
    """The figure that the floor asks for, else the ratio to the best baseline."""
    ratios, unit, floors = result["ratio"], result["unit"], result["floors"]
    baseline = next((f["baseline"] for f in floors if f["kind"] == "ratio"), None)
    baseline = baseline if baseline in ratios else result["best_baseline"]
    text = f"{ratio_text(ratios[baseline])} {baseline}" if baseline else ""
    if any(f["kind"] == "at_most" for f in floors):
        value = value_text(result["providers"][OURS]["median"], unit)
        text = f"{value} ({text})" if text else value
    if any(f["kind"] == "error" for f in floors):
        value = f"error {error_text(result['providers'][OURS]['error'])}"
        text = f"{value} ({text})" if text else value
    shares = (f"{name} {p['share']:.0%}" for name, p in result.get("parts", {}).items())
    text = "; ".join(filter(None, (text, *shares)))
    missed = result["reached"] is not None and False in result["reached"]
    return f"{text}, missed" if missed else text


def _error_cell(result: dict) -> str:
    error = result["providers"][OURS]["error"]
    if result["error_kind"] == "relative" or error is None:
        others = (
            f"{name} {error_text(p['error'])}"
            for name, p in result["providers"].items()
            if name in {floor["baseline"] for floor in result["floors"]} and p["error"]
        )
        return " ".join((error_text(error), *(f"({text})" for text in others)))
    return f"{error:+.0e} {result['error_kind']}"


def markdown_table(documents: list[dict], floors_only: bool) -> str:
    """Speed and error in each row; rows of the same work on several machines stand together."""
    head = ("work", "dtype", "floor", "measured", "best baseline", "fraction of limit",
            "max relative error", "machine")  # fmt: skip
    names = list(dict.fromkeys(r["name"] for d in documents for r in d["results"]))
    rows = []
    for name in names:
        for content in documents:
            for result in content["results"]:
                if result["name"] != name or (floors_only and not result["floors"]):
                    continue
                best = result["best_baseline"]
                floors = "; ".join(floor_text(f, result["unit"]) for f in result["floors"])
                rows.append(
                    (
                        result["work"].replace("->", "→"),
                        result["dtype"] or "-",
                        floors.replace(">=", "≥").replace("<=", "≤") or "-",
                        _measured(result) or "-",
                        f"{ratio_text(result['ratio'][best])} {best}" if best else "-",
                        limit_text(result),
                        _error_cell(result),
                        machine_text(content["machine"]),
                    )
                )
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
