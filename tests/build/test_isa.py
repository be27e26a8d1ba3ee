"""Every instruction set that this machine has can be chosen, and no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import evidens

ORDER = ("v2", "v3", "v4")
AVAILABLE = evidens.info()["isa"]["available"]


def run(level: str | None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "EVIDENS_ISA"}
    if level is not None:
        environment["EVIDENS_ISA"] = level
    program = "import json, evidens; print(json.dumps(evidens.info()['isa']))"
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )


def test_levels_ascend():
    assert AVAILABLE
    assert AVAILABLE == sorted(AVAILABLE)
    assert set(AVAILABLE) <= {*ORDER, "neon"}


def test_best_level_by_default():
    assert json.loads(run(None).stdout)["chosen"] == AVAILABLE[-1]


@pytest.mark.parametrize("level", AVAILABLE)
def test_cap(level):
    assert json.loads(run(level).stdout)["chosen"] == level


def test_unknown_level_is_an_error():
    done = run("v9")
    assert done.returncode != 0
    assert "EVIDENS_ISA" in done.stderr
    assert "v9" in done.stderr
