"""Fixtures of the tests of models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many fits of a hundred rows each, where threads would mostly wait for each other."""
    with threadpool_limits(1):
        yield
