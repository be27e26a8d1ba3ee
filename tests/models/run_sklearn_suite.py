"""Run scikit-learn's own tests of GaussianMixture with evidens' class in place of it.

Writes ``{node id: outcome}`` as JSON to the file that is given as the only argument.  Only the
name ``GaussianMixture`` in the test module is replaced; all other names stay scikit-learn's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from evidens import GaussianMixture

SUITE = "sklearn.mixture.tests.test_gaussian_mixture"


class Swap:
    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.errors: dict[str, str] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            item.module.GaussianMixture = GaussianMixture

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[name] = report.outcome
        if report.failed:
            self.errors[name] = str(report.longrepr)


if __name__ == "__main__":
    swap = Swap()
    code = pytest.main(["--pyargs", SUITE, "-q", "-p", "no:cacheprovider"], plugins=[swap])
    result = {"code": int(code), "outcomes": swap.outcomes, "errors": swap.errors}
    Path(sys.argv[1]).write_text(json.dumps(result))
