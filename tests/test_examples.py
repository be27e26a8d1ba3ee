"""The examples run, and print what they say they print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")


def numbers(line: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(line)]


@pytest.mark.skipif(not EXAMPLES, reason="the examples are in the source tree, which is not here")
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_prints_what_it_shows(script, tmp_path):
    command = [sys.executable, "-W", "error::UserWarning", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = script.read_text("utf-8")
    shown = [line[4:] for line in text.splitlines() if line.startswith("# > ")]
    printed = done.stdout.splitlines()
    assert shown
    assert [NUMBER.sub("0", line) for line in printed] == [NUMBER.sub("0", line) for line in shown]
    for line, expected in zip(printed, shown, strict=True):
        # Other processors round otherwise, and a few hundred steps of training enlarge that.
        assert numbers(line) == pytest.approx(numbers(expected), rel=0.02, abs=0.02)
