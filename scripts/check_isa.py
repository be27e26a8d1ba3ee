"""Check the object files of each instruction set: no weak symbol, no instruction above the level.

A weak symbol in a level object (an inline STL function, say) may be the copy that the linker keeps
for everyone, and then an old CPU runs AVX-512 code.  The objects are checked, not the extension:
that one is stripped and holds all levels.

Usage: python scripts/check_isa.py build
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Per level: what its code must not contain, and what it must (or the check would prove nothing).
FORBIDDEN = {
    "v2": r"%[yz]mm|%k[0-7]\b|\tv[a-z0-9]+ ",
    "v3": r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b",
    "v4": None,
    "neon": r"\bz\d+\.[bhsd]\b",
}
REQUIRED = {"v2": r"%xmm", "v3": r"%ymm", "v4": r"%zmm", "neon": r"\bv\d+\.\d+[bhsd]\b"}
LEVEL_OBJECT = re.compile(r"evidens_(\w+)\.dir/")


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def check_object(path: Path, level: str) -> tuple[list[str], bool]:
    """Problems of one object file, and whether it uses the vectors of its level."""
    problems = []
    for line in output("nm", "--format=posix", path).splitlines():
        name, kind = line.split()[:2]
        # _ZSt: the STL; _Zn, _Zd: operator new and delete (kernels use the caller's workspace).
        if kind in "uvVwW" or re.match(r"_ZN?K?St|_Z[nd][wal]", name):
            demangled = output("c++filt", name).strip()
            problems.append(f"{path.name} ({level}): weak or library symbol {demangled}")
    code = output("objdump", "--disassemble", "--no-show-raw-insn", path)
    forbidden = FORBIDDEN[level]
    found = re.search(rf"^.*({forbidden}).*$", code, re.MULTILINE) if forbidden else None
    if found:
        problems.append(f"{path.name} ({level}): {found[0].strip()}")
    return problems, re.search(REQUIRED[level], code) is not None


def main() -> int:
    problems: list[str] = []
    counts: dict[str, int] = {}
    vectors: set[str] = set()
    for path in sorted(Path(sys.argv[1]).rglob("*.o")):
        if match := LEVEL_OBJECT.search(path.as_posix()):
            level = match[1]
            counts[level] = counts.get(level, 0) + 1
            found, uses_vectors = check_object(path, level)
            problems += found
            if uses_vectors:
                vectors.add(level)
    print("level objects:", ", ".join(f"{level} {n}" for level, n in sorted(counts.items())))
    if not counts:
        problems.append(f"no level object under {sys.argv[1]}")
    if len(set(counts.values())) > 1:
        problems.append(f"the levels differ in their sources: {counts}")
    problems += [f"no {level} object uses {REQUIRED[level]}" for level in counts.keys() - vectors]
    for problem in problems:
        print(f"check_isa: {problem}", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
