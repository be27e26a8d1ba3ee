"""Running the tests that a library ships, with evidens' classes in the place of its own.

A runner (``run_*_suite.py``) swaps the classes in a process of its own and writes what came of the
tests as JSON; a test module (``test_*_suite.py``) holds the outcomes against its list.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


class Record:
    """Outcomes and errors by node id, from the last ``separator`` on."""

    def __init__(self, separator: str) -> None:
        self.separator = separator
        self.outcomes: dict[str, str] = {}
        self.errors: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition(self.separator)[2]
        if report.when == "call" or report.outcome != "passed":
            expected = hasattr(report, "wasxfail") and report.skipped
            self.outcomes[name] = "xfailed" if expected else report.outcome
        if report.failed:
            self.errors[name] = str(report.longrepr)


def run(arguments: list[str], record: Record, path: str) -> None:
    """Run pytest, and write the outcomes to a file."""
    code = pytest.main([*arguments, "-q", "-p", "no:cacheprovider"], [record])
    result = {"code": int(code), "outcomes": record.outcomes, "errors": record.errors}
    Path(path).write_text(json.dumps(result))


def result_of(runner: Path, folder: Path, environment: dict[str, str]) -> Any:
    """What a runner wrote."""
    done = subprocess.run(
        [sys.executable, runner, folder / "result.json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (folder / "result.json").exists(), done.stdout + done.stderr
    return json.loads((folder / "result.json").read_text())


def assert_few_left_out(left_out: dict[str, str], tests: int, *reasons: str) -> None:
    """At most 5 %, each for a reason that counts."""
    assert len(left_out) <= 0.05 * tests
    allowed = ("random stream", "private helper", "pickling", *reasons)
    assert all(reason.startswith(allowed) for reason in left_out.values())
