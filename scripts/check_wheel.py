"""Check a built wheel: size, contents, run-time dependencies, and what its extension links to.

Usage: python scripts/check_wheel.py dist/evidens-*.whl
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MAX_BYTES = 5_000_000
ALLOWED_LIBRARIES = re.compile(
    r"(libc|libm|libstdc\+\+|libgcc_s|libpthread|ld-linux-[\w-]+)\.so(\.\d+)*"
)
DEPENDENCIES = {"torch", "numpy", "scikit-learn", "tqdm", "safetensors"}
EXPECTED = ("evidens/py.typed", "evidens/_C.pyi", "evidens/kernels", "evidens/bench")
FOREIGN = re.compile(r"\.(cpp|h|o|a|json|cmake)$|__pycache__|^(tests|csrc|docs)/")


def check_contents(wheel: zipfile.ZipFile) -> list[str]:
    names = wheel.namelist()
    problems = [
        f"{wanted} is missing"
        for wanted in EXPECTED
        if not any(name == wanted or name.startswith(wanted + "/") for name in names)
    ]
    problems += [f"{name} does not belong in a wheel" for name in names if FOREIGN.search(name)]
    metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
    required = {
        re.split(r"[^\w-]", line.removeprefix("Requires-Dist: "))[0]
        for line in wheel.read(metadata).decode().splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }
    if required != DEPENDENCIES:
        problems.append(f"run-time dependencies are {sorted(required)}, not {sorted(DEPENDENCIES)}")
    return problems


def check_extension(path: Path) -> list[str]:
    dynamic = subprocess.run(
        ["readelf", "--dynamic", "--wide", path], check=True, capture_output=True, text=True
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    problems = [
        f"{path.name} needs {name}" for name in needed if not ALLOWED_LIBRARIES.fullmatch(name)
    ]
    if not needed:
        problems.append(f"{path.name}: readelf listed no needed library, so nothing was checked")
    if re.search(r"\((RPATH|RUNPATH)\)", dynamic):
        problems.append(f"{path.name} has a run path")
    exported = subprocess.run(
        ["nm", "--dynamic", "--defined-only", "--format=posix", path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    # Type information of the C++ runtime is public whatever the visibility.
    names = {line.split()[0] for line in exported if line and not re.match(r"_ZT[IS]", line)}
    if names != {"PyInit__C"}:
        problems.append(f"{path.name} exports {sorted(names)[:5]}, not PyInit__C alone")
    print(f"{path.name}: {path.stat().st_size:,} bytes, needs {', '.join(needed)}")
    return problems


def main() -> int:
    path = Path(sys.argv[1])
    size = path.stat().st_size
    print(f"{path.name}: {size:,} bytes")
    problems = [f"{size:,} bytes, more than {MAX_BYTES:,}"] if size > MAX_BYTES else []
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        problems += check_contents(wheel)
        extensions = [name for name in wheel.namelist() if re.match(r"evidens/_C\..*so$", name)]
        if len(extensions) != 1:
            problems.append(f"expected one evidens/_C extension, got {extensions}")
        for name in extensions:
            problems += check_extension(Path(wheel.extract(name, folder)))
    for problem in problems:
        print(f"check_wheel: {problem}", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
