"""The pytest door: one test per case, equality checked before anything is timed."""

from __future__ import annotations

import pytest

from . import harness, machine


def pytest_addoption(parser: pytest.Parser) -> None:
    """Sizes and threads."""
    parser.addoption(
        "--bench-size",
        choices=harness.SIZES,
        help="sizes of the benchmark cases (default: quick, or smoke with --benchmark-disable)",
    )
    parser.addoption("--bench-threads", type=int, help="threads of every pool")


def pytest_configure(config: pytest.Config) -> None:
    """Collect ``bench_*.py``; a baseline that warns is not an error."""
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("filterwarnings", "default")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per case."""
    if "bench_case" not in metafunc.fixturenames:
        return
    options = metafunc.config.option
    size = options.bench_size or ("smoke" if options.benchmark_disable else "quick")
    cases = metafunc.module.cases(size)
    metafunc.parametrize("bench_case", cases, ids=lambda case: case.name, indirect=True)


@pytest.fixture(scope="module", autouse=True)
def threads(request: pytest.FixtureRequest):
    """Every pool pinned, and shown with ``-s``."""
    with machine.pinned_threads(request.config.option.bench_threads) as pinned:
        print(f"threads: {pinned}")
        yield


@pytest.fixture
def bench_case(request: pytest.FixtureRequest, benchmark):
    """A function that checks the case, compares the providers and hands ours to the plugin."""
    case = request.param

    def run() -> None:
        prepared = harness.prepare(case)
        ours = next(p for p in prepared.setup.providers if p.name == harness.OURS)
        if benchmark.enabled:
            result = harness.measure(case, prepared)
            benchmark.extra_info.update(
                {name: result[name] for name in ("work", "dtype", "unit", "ratio", "providers")}
            )
        benchmark.pedantic(ours.call, rounds=case.rounds, iterations=case.inner)

    return run
