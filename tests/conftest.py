"""What every test gets: seeds, threads, NaN in memory that nobody wrote, and the skip rules."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

# cuBLAS is deterministic only with a fixed workspace, read when CUDA starts (see `poison`).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import hypothesis
import numpy as np
import pytest
import torch

TESTS = Path(__file__).parent
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"

# The interpreter is chosen when a kernel is defined, so without a GPU these need their own process.
FAIL_WITHOUT_CUDA = os.environ.get("FAIL_WITHOUT_CUDA") == "1"
_kernels = INTERPRET or FAIL_WITHOUT_CUDA or torch.cuda.is_available()
collect_ignore = [] if _kernels else ["kernels"]

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

if os.environ.get("EVIDENS_TEST_THREADS"):
    torch.set_num_threads(int(os.environ["EVIDENS_TEST_THREADS"]))


def pytest_report_header() -> list[str]:
    import evidens

    lines = [
        f"evidens {evidens.__version__} from {Path(evidens.__file__).parent}",
        f"isa {evidens.info()['isa']}, {torch.get_num_threads()} threads of torch",
    ]
    if collect_ignore:
        lines.append("tests/kernels left out: they run by themselves with TRITON_INTERPRET=1")
    return lines


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_cuda") and not torch.cuda.is_available():
        reason = "needs a CUDA device, and torch.cuda.is_available() is False"
        if FAIL_WITHOUT_CUDA:
            pytest.fail(f"{reason} (FAIL_WITHOUT_CUDA=1)", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def seeds() -> Iterator[None]:
    """Every test starts from the same generators, and leaves them as it found them."""
    saved = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    random.setstate(saved[0])
    np.random.set_state(saved[1])
    torch.random.set_rng_state(saved[2])


@pytest.fixture
def poison() -> Iterator[None]:
    """Memory from `torch.empty` and its kin holds NaN (integers: the largest value)."""
    saved = (
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    # On a GPU torch has no deterministic cumsum, which the references need: there it only warns.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(saved[0])
    torch.utils.deterministic.fill_uninitialized_memory = saved[1]


@pytest.fixture(autouse=True)
def _poison_ops(request: pytest.FixtureRequest) -> None:
    """Every test of an op or a kernel runs on poisoned memory."""
    if request.path.relative_to(TESTS).parts[0] in ("ops", "kernels", "gpu"):
        request.getfixturevalue("poison")


@pytest.fixture(scope="session")
def evidens_data() -> Path:
    """The folder of real data sets that EVIDENS_DATA names."""
    folder = os.environ.get("EVIDENS_DATA")
    if not folder:
        pytest.skip("EVIDENS_DATA does not name a folder of data sets")
    if not Path(folder).is_dir():
        pytest.fail(f"EVIDENS_DATA={folder} is no folder", pytrace=False)
    return Path(folder)
