"""Run scikit-learn's own tests of BernoulliRBM with evidens' class in place of it.

Writes ``{node id: outcome}`` as JSON to the file that is given as the only argument.  Only the
name ``BernoulliRBM`` in the test module is replaced; all other names stay scikit-learn's.
"""

from __future__ import annotations

import sys

import pytest
from suites import Record, run

from evidens import BernoulliRBM

SUITE = "sklearn.neural_network.tests.test_rbm"


class Swap(Record):
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            item.module.BernoulliRBM = BernoulliRBM


if __name__ == "__main__":
    run(["--pyargs", SUITE], Swap("::"), sys.argv[1])
