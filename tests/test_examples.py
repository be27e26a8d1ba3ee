"""The examples run, and print what they say they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")
WROTE = re.compile(r"^# > wrote (\S+\.png)$", re.MULTILINE)


def numbers(line: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(line)]


def run(script: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::UserWarning", str(script)]
    known = {name: value for name, value in os.environ.items() if name != "EVIDENS_DATA"}
    return subprocess.run(
        command, cwd=folder, env=known | environment, capture_output=True, text=True
    )


@pytest.mark.skipif(not EXAMPLES, reason="the examples are in the source tree, which is not here")
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_prints_what_it_shows(script, tmp_path, request):
    text = script.read_text("utf-8")
    environment = {}
    if "EVIDENS_DATA" in text:
        environment["EVIDENS_DATA"] = str(request.getfixturevalue("evidens_data").resolve())
    done = run(script, tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    shown = [line[4:] for line in text.splitlines() if line.startswith("# > ")]
    printed = done.stdout.splitlines()
    assert shown
    assert [NUMBER.sub("0", line) for line in printed] == [NUMBER.sub("0", line) for line in shown]
    for line, expected in zip(printed, shown, strict=True):
        # Other processors round otherwise, and a few hundred steps of training enlarge that.
        assert numbers(line) == pytest.approx(numbers(expected), rel=0.02, abs=0.02)
    pictures = WROTE.findall(text)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(pictures)
    assert all((tmp_path / name).stat().st_size > 10_000 for name in pictures)


@pytest.mark.parametrize(
    "script",
    [path for path in EXAMPLES if "EVIDENS_DATA" in path.read_text("utf-8")],
    ids=lambda path: path.stem,
)
def test_example_says_which_data_it_wants(script, tmp_path):
    done = run(script, tmp_path)
    assert done.returncode == 1
    assert "set EVIDENS_DATA to the folder" in done.stderr
    assert not list(tmp_path.iterdir())
